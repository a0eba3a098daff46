//! Whom the admin port lets in while there is no token: tools of this machine, and no web page of another.
//!
//! The port listens on loopback alone (the configuration is checked for that), but a browser on this machine would carry a
//! foreign page's requests there. So the `Host` must be a loopback one (a name that an attacker points at 127.0.0.1 is
//! not), and a request that says it comes from elsewhere is refused.

use axum::{
    extract::Request,
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, Uri, header};

use super::answer::Failure;

/// Runs in front of every route, and of what is none.
pub async fn guard(request: Request, next: Next) -> Response {
    match check(request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(why) => Failure::new(http::StatusCode::FORBIDDEN, "forbidden", why).into_response(),
    }
}

fn check(uri: &Uri, headers: &HeaderMap) -> Result<(), &'static str> {
    let text = |name| headers.get_all(name).iter().map(|value| value.to_str().unwrap_or_default());
    let named = uri.authority().map(http::uri::Authority::as_str);
    let hosts: Vec<&str> = text(header::HOST).chain(named).collect();
    if hosts.is_empty() || !hosts.iter().all(|host| is_loopback(host)) {
        return Err("without a token the admin port is asked by a loopback name: 127.0.0.1, [::1] or localhost");
    }
    if !text(header::ORIGIN).all(|origin| is_own(origin, &hosts)) {
        return Err("a page of another origin may not ask the admin port");
    }
    if text(header::HeaderName::from_static("sec-fetch-site")).any(|site| site.eq_ignore_ascii_case("cross-site")) {
        return Err("a page of another site may not ask the admin port");
    }
    Ok(())
}

/// Whether a page is of this very port: a browser names both alike. What else is served on this machine is foreign, too.
fn is_own(origin: &str, hosts: &[&str]) -> bool {
    let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    authority.is_some_and(|authority| hosts.iter().all(|host| host.eq_ignore_ascii_case(authority)))
}

/// `host` or `host:port`, where the host is `localhost` or a loopback address.
fn is_loopback(authority: &str) -> bool {
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if is_port(port) => host,
        _ => authority,
    };
    let v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match v6 {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok_and(|address| address.is_loopback()),
        None => {
            host.eq_ignore_ascii_case("localhost")
                || host.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(uri: &str, headers: &[(&'static str, &str)]) -> bool {
        let headers = headers.iter().map(|(name, value)| {
            (header::HeaderName::from_static(name), header::HeaderValue::from_str(value).expect("a header"))
        });
        check(
            &uri.parse().expect("a URI"),
            &headers.fold(HeaderMap::new(), |mut map, (name, value)| {
                map.append(name, value);
                map
            }),
        )
        .is_ok()
    }

    #[test]
    fn only_a_loopback_host_is_let_in() {
        for good in ["localhost", "LOCALHOST:3100", "127.0.0.1", "127.0.0.1:3100", "127.9.9.9:1", "[::1]", "[::1]:3100"]
        {
            assert!(allowed("/", &[("host", good)]), "{good}");
        }
        let bad = [
            "",
            "moim.example",
            "127.0.0.1.moim.example",
            "localhost.example:3100",
            "10.0.0.1",
            "0.0.0.0",
            "::1",
            "[::2]",
            "[::1",
            "user@localhost",
            "localhost:x",
            "localhost:",
            "127.1",
            "2130706433",
            "localhost.",
            "é",
        ];
        for bad in bad {
            assert!(!allowed("/", &[("host", bad)]), "{bad}");
        }
        assert!(!allowed("/", &[]), "a request says whom it asks");
        assert!(!allowed("/", &[("host", "localhost"), ("host", "moim.example")]), "all of them count");
        assert!(!allowed("http://moim.example/", &[("host", "localhost")]), "also the one in the request line");
    }

    #[test]
    fn what_comes_from_a_foreign_page_is_refused() {
        let host = ("host", "127.0.0.1:3100");
        for (good, origin) in [
            ("127.0.0.1:3100", "http://127.0.0.1:3100"),
            ("localhost", "https://LOCALHOST"),
            ("[::1]:8080", "http://[::1]:8080"),
        ] {
            assert!(allowed("/", &[("host", good), ("origin", origin)]), "{origin}");
        }
        let bad = [
            "null",
            "",
            "http://moim.example",
            "http://127.0.0.1.moim.example:3100",
            "file://",
            "ftp://127.0.0.1:3100",
            "127.0.0.1:3100",
            // The chat page, or whatever else this machine serves.
            "http://127.0.0.1:3000",
            "http://127.0.0.1",
            "http://localhost:3100",
        ];
        for bad in bad {
            assert!(!allowed("/", &[host, ("origin", bad)]), "{bad}");
        }
        for (site, good) in [("same-origin", true), ("same-site", true), ("none", true), ("cross-site", false)] {
            assert_eq!(allowed("/", &[host, ("sec-fetch-site", site)]), good, "{site}");
        }
    }
}
