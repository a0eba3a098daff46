//! `moim config`: is it right, what is in force and why, and a file to start from.

use clap::{Args, Subcommand};
use moim::config::{
    Origin,
    keys::{KEYS, Key},
};

use super::{Failure, print, settings::SettingsArgs};

#[derive(Args)]
#[command(after_help = "Examples:\n  moim config init > moim.toml\n  moim config check --config moim.toml")]
pub struct ConfigCommand {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Read everything as "moim serve" would, and say what is wrong
    Check(SettingsArgs),
    /// Show every setting in force and where its value came from
    Show(SettingsArgs),
    /// Write a commented file with every default to standard output
    Init,
}

impl ConfigCommand {
    pub fn run(self) -> Result<(), Failure> {
        match self.what {
            What::Check(settings) => {
                settings.read()?.finish()?;
                println!("The configuration is valid.");
            }
            What::Show(settings) => {
                let (config, origins) = settings.read()?.explain()?;
                let line =
                    |(key, origin): &(&Key, Origin)| format!("{:26} {:28} {origin}\n", key.name, (key.show)(&config));
                print(&origins.iter().map(line).collect::<String>());
            }
            What::Init => print(&init()),
        }
        Ok(())
    }
}

/// Every default, commented out, under its section. The table holds the keys without a section first, as TOML needs it.
fn init() -> String {
    let mut text =
        String::from("# moim's settings with their defaults. Flags and MOIM_ variables win over this file.\n");
    let mut section = "";
    for key in KEYS {
        let (of, name) = key.name.split_once('.').unwrap_or(("", key.name));
        if of != section {
            section = of;
            text += &format!("\n[{section}]\n");
        }
        text += &format!("# {}\n# {name} = {}\n", key.help, value(key));
    }
    text
}

fn value(key: &Key) -> String {
    if key.many {
        let items = key.default.split(',').filter(|item| !item.is_empty());
        format!("[{}]", items.map(|item| format!("\"{item}\"")).collect::<Vec<_>>().join(", "))
    } else if key.kind == "N" && !key.default.is_empty() {
        key.default.into()
    } else {
        format!("\"{}\"", key.default)
    }
}

#[cfg(test)]
mod tests {
    use moim::config::{Config, Settings};

    use super::*;

    #[test]
    fn the_written_file_holds_every_default() {
        let file: String = init().lines().skip(1).map(|line| line.strip_prefix("# ").unwrap_or(line)).fold(
            String::new(),
            |text, line| {
                if line.starts_with('[') || line.contains(" = ") { text + line + "\n" } else { text }
            },
        );
        let (config, _) = Settings::default().file("moim.toml", &file).expect("valid").explain().expect("checked");
        let default = Config::default();
        for key in KEYS.iter().filter(|key| !key.default.is_empty()) {
            assert_eq!((key.show)(&config), (key.show)(&default), "{}", key.name);
        }
    }
}
