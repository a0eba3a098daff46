//! How the kinds of values are written: one small module each, with `parse` and its inverse `show`.

/// A number with a unit: `500ms`, `120s`, `10m`, `1h`, `7d`.
pub mod duration {
    use std::time::Duration;

    /// Largest first, so that `show` finds the shortest way to write a value.
    const UNITS_MS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

    pub fn parse(text: &str) -> Result<Duration, String> {
        let wrong = || format!("\"{text}\" is no duration; write a number and a unit, such as 500ms, 120s, 10m or 7d");
        let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, unit) = text.split_at(digits);
        let (_, ms) = UNITS_MS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        let number: u64 = number.parse().map_err(|_| wrong())?;
        number.checked_mul(*ms).map(Duration::from_millis).ok_or_else(wrong)
    }

    /// In the largest unit that writes it whole: `120s` is shown as `2m`.
    pub fn show(value: &Duration) -> String {
        let ms = value.as_millis() as u64;
        match UNITS_MS.iter().find(|(_, unit)| ms != 0 && ms.is_multiple_of(*unit)) {
            Some((name, unit)) => format!("{}{name}", ms / unit),
            None => "0s".into(),
        }
    }
}

/// A number of bytes: `4MiB`, `64KiB`, `100B` or `100`.
pub mod bytes {
    const UNITS: [(&str, usize); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

    pub fn parse(text: &str) -> Result<usize, String> {
        let wrong = || format!("\"{text}\" is no size; write a number and a unit, such as 512B, 64KiB or 4MiB");
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = if unit.is_empty() { "B" } else { unit };
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        let number: usize = number.parse().map_err(|_| wrong())?;
        number.checked_mul(*factor).ok_or_else(wrong)
    }

    pub fn show(value: &usize) -> String {
        match UNITS.iter().find(|(_, unit)| *value != 0 && value.is_multiple_of(*unit)) {
            Some((name, unit)) => format!("{}{name}", value / unit),
            None => "0B".into(),
        }
    }
}

pub mod count {
    pub fn parse(text: &str) -> Result<usize, String> {
        text.parse().map_err(|_| format!("\"{text}\" is no whole number"))
    }

    pub fn show(value: &usize) -> String {
        value.to_string()
    }
}

/// A number, or nothing when left out.
pub mod count_or_none {
    pub fn parse(text: &str) -> Result<Option<usize>, String> {
        if text.is_empty() { Ok(None) } else { super::count::parse(text).map(Some) }
    }

    pub fn show(value: &Option<usize>) -> String {
        value.map(|count| count.to_string()).unwrap_or_default()
    }
}

/// An address to listen on: IP and port.
pub mod address {
    use std::net::SocketAddr;

    pub fn parse(text: &str) -> Result<SocketAddr, String> {
        text.parse().map_err(|_| {
            format!("\"{text}\" is no address to listen on; write IP:PORT, such as 127.0.0.1:3000 or [::]:3000")
        })
    }

    pub fn show(value: &SocketAddr) -> String {
        value.to_string()
    }
}

/// `host:port` of somebody else; the host may be a name.
pub mod host_port {
    pub fn parse(text: &str) -> Result<Option<String>, String> {
        if text.is_empty() { Ok(None) } else { check(text).map(Some) }
    }

    pub fn show(value: &Option<String>) -> String {
        value.clone().unwrap_or_default()
    }

    pub(super) fn check(text: &str) -> Result<String, String> {
        let parts =
            text.rsplit_once(':').filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0));
        parts.map(|_| text.to_string()).ok_or_else(|| format!("\"{text}\" is no HOST:PORT, such as node2:3200"))
    }
}

pub mod host_ports {
    pub fn parse(text: &str) -> Result<Vec<String>, String> {
        super::list::parse(text)?.iter().map(|item| super::host_port::check(item)).collect()
    }

    pub fn show(value: &[String]) -> String {
        super::list::show(value)
    }
}

/// Words with commas between them.
pub mod list {
    pub fn parse(text: &str) -> Result<Vec<String>, String> {
        Ok(text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_string).collect())
    }

    pub fn show(value: &[String]) -> String {
        value.join(",")
    }
}

pub mod text {
    pub fn parse(text: &str) -> Result<String, String> {
        Ok(text.to_string())
    }

    pub fn show(value: &str) -> String {
        value.to_string()
    }
}

/// A node's name: it goes into file names, shell commands (`--restart 'CMD {name}'`) and addresses, so it is a plain word.
pub mod name {
    const LENGTH_MAX: usize = 63;

    pub fn parse(text: &str) -> Result<String, String> {
        let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        if text.len() <= LENGTH_MAX && plain && !text.starts_with(['-', '.']) {
            Ok(text.to_string())
        } else {
            Err(format!("\"{text}\" is no node name; use up to {LENGTH_MAX} letters, digits, \"-\", \"_\" and \".\""))
        }
    }

    pub fn show(value: &str) -> String {
        value.to_string()
    }
}

pub mod path {
    use std::path::{Path, PathBuf};

    pub fn parse(text: &str) -> Result<PathBuf, String> {
        if text.is_empty() { Err("a path cannot be empty".into()) } else { Ok(text.into()) }
    }

    pub fn show(value: &Path) -> String {
        value.display().to_string()
    }
}

pub mod path_or_none {
    use std::path::PathBuf;

    pub fn parse(text: &str) -> Result<Option<PathBuf>, String> {
        Ok(Some(text).filter(|text| !text.is_empty()).map(PathBuf::from))
    }

    pub fn show(value: &Option<PathBuf>) -> String {
        value.as_deref().map(super::path::show).unwrap_or_default()
    }
}

pub mod auth {
    use crate::config::Auth;

    pub fn parse(text: &str) -> Result<Option<Auth>, String> {
        match text {
            "" => Ok(None),
            "open" => Ok(Some(Auth::Open)),
            "jwt" => Ok(Some(Auth::Jwt)),
            other => Err(format!("\"{other}\" is no way to know users; choose open or jwt")),
        }
    }

    pub fn show(value: &Option<Auth>) -> String {
        match value {
            None => "",
            Some(Auth::Open) => "open",
            Some(Auth::Jwt) => "jwt",
        }
        .into()
    }
}

pub mod log_format {
    use crate::config::LogFormat;

    pub fn parse(text: &str) -> Result<LogFormat, String> {
        match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            other => Err(format!("\"{other}\" is no log format; choose text or json")),
        }
    }

    pub fn show(value: &LogFormat) -> String {
        match value {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        }
        .into()
    }
}
