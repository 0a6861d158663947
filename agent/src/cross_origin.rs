//! Requests that a browser sends for a foreign page. Operators of Tidegate also read web pages,
//! from a machine that reaches its ports; a page must not be able to change anything there. Pure.
//!
//! A browser sends a request to another origin without asking that origin first (by a CORS
//! preflight, which nobody here answers) only if its method is GET, HEAD or POST and its
//! `content-type` is that of a form. So changes demand JSON. The `Origin` header is compared
//! besides, and a name that may lead anywhere (DNS rebinding) does not vouch for itself.

use std::net::IpAddr;

use hyper::header::{CONTENT_TYPE, HOST, ORIGIN};
use hyper::http::uri::Authority;
use hyper::{HeaderMap, Method, StatusCode, Uri};

/// Why a request is rejected. The text says what to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CrossOrigin {
    #[error(
        "send `content-type: application/json`, also without a body: browsers send nothing else \
         unasked for a foreign page"
    )]
    ContentType,
    #[error("the request comes from a page of another origin: pages may not change anything here")]
    Origin,
}

impl CrossOrigin {
    /// The status of the answer.
    pub fn status(self) -> StatusCode {
        match self {
            CrossOrigin::ContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            CrossOrigin::Origin => StatusCode::FORBIDDEN,
        }
    }
}

/// Rejects requests that a foreign page may have sent. Reads pass: no foreign page is shown their
/// answers.
pub fn check(method: &Method, headers: &HeaderMap, is_tls: bool) -> Result<(), CrossOrigin> {
    if [Method::GET, Method::HEAD].contains(method) {
        return Ok(());
    }
    if !is_own_origin(headers, is_tls) {
        return Err(CrossOrigin::Origin);
    }
    match *method {
        // No browser sends it unasked, and it has no body.
        Method::DELETE => Ok(()),
        _ if is_json(headers) => Ok(()),
        _ => Err(CrossOrigin::ContentType),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(CONTENT_TYPE).into_iter();
    let (Some(content_type), None) = (types.next(), types.next()) else {
        return false;
    };
    let text = content_type.to_str().unwrap_or_default();
    let media_type = text.split(';').next().unwrap_or_default();
    media_type.trim().eq_ignore_ascii_case("application/json")
}

/// Without an origin it is no browser's. With one, the page has to come from here.
fn is_own_origin(headers: &HeaderMap, is_tls: bool) -> bool {
    let site = headers.get("sec-fetch-site").map(|site| site.as_bytes());
    if matches!(site, Some(b"cross-site" | b"same-site")) {
        return false;
    }
    let origins: Vec<_> = headers.get_all(ORIGIN).into_iter().collect();
    let [origin] = origins[..] else {
        return origins.is_empty();
    };
    let origin = origin
        .to_str()
        .ok()
        .and_then(|text| text.parse::<Uri>().ok());
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = host.and_then(|text| text.parse::<Authority>().ok());
    let (Some(origin), Some(host)) = (origin, host) else {
        return false;
    };
    let scheme = if is_tls { "https" } else { "http" };
    origin.scheme_str() == Some(scheme)
        && origin.authority().is_some_and(|authority| same(authority, &host))
        // The certificate vouches for the name, or there is none that could lead elsewhere.
        && (is_tls || is_fixed(host.host()))
}

fn same(a: &Authority, b: &Authority) -> bool {
    a.host().eq_ignore_ascii_case(b.host()) && a.port_u16() == b.port_u16()
}

fn is_fixed(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Headers as `name: value` lines.
    fn checked(method: &str, is_tls: bool, headers: &str) -> Result<(), CrossOrigin> {
        let mut map = HeaderMap::new();
        for line in headers.lines() {
            let (name, value) = line.split_once(": ").expect("a header");
            let name = name.parse::<hyper::header::HeaderName>().expect("a name");
            map.append(name, value.parse().expect("a value"));
        }
        check(&method.parse().expect("a method"), &map, is_tls)
    }

    #[test]
    fn changes_demand_json() {
        let json = "content-type: application/json";
        for method in ["POST", "PUT", "PATCH"] {
            assert_eq!(checked(method, false, ""), Err(CrossOrigin::ContentType));
            assert_eq!(checked(method, false, json), Ok(()));
        }
        for method in ["GET", "HEAD", "DELETE"] {
            assert_eq!(checked(method, false, ""), Ok(()));
        }
        for (header, taken) in [
            ("content-type: application/json; charset=utf-8", true),
            ("content-type: Application/JSON", true),
            ("content-type: text/plain", false),
            ("content-type: text/plain; application/json", false),
            ("content-type: application/x-www-form-urlencoded", false),
            (
                "content-type: multipart/form-data; boundary=application/json",
                false,
            ),
            (
                "content-type: text/plain\ncontent-type: application/json",
                false,
            ),
        ] {
            assert_eq!(checked("POST", false, header).is_ok(), taken, "{header}");
        }
    }

    #[test]
    fn foreign_origins_are_rejected() {
        for (is_tls, headers, taken) in [
            (
                false,
                "host: 127.0.0.1:18001\norigin: http://127.0.0.1:18001",
                true,
            ),
            (false, "host: [::1]:18001\norigin: http://[::1]:18001", true),
            (
                false,
                "host: localhost:18001\norigin: http://localhost:18001",
                true,
            ),
            (
                true,
                "host: tidegate:18001\norigin: https://tidegate:18001",
                true,
            ),
            (
                false,
                "host: 127.0.0.1:18001\norigin: https://evil.example",
                false,
            ),
            (false, "host: 127.0.0.1:18001\norigin: null", false),
            (
                false,
                "host: 127.0.0.1:18001\norigin: http://127.0.0.1:8080",
                false,
            ),
            (
                false,
                "host: 127.0.0.1:18001\norigin: https://127.0.0.1:18001",
                false,
            ),
            (
                false,
                "host: 127.0.0.1:18001\nsec-fetch-site: cross-site",
                false,
            ),
            // A name that its owner has let lead here.
            (
                false,
                "host: evil.example:18001\norigin: http://evil.example:18001",
                false,
            ),
            (
                true,
                "host: tidegate:18001\norigin: https://evil.example",
                false,
            ),
            (
                false,
                "host: 127.0.0.1:1\norigin: http://127.0.0.1:1\norigin: http://127.0.0.1:1",
                false,
            ),
        ] {
            for (method, more) in [("POST", "content-type: application/json\n"), ("DELETE", "")] {
                let headers = format!("{more}{headers}");
                let checked = checked(method, is_tls, &headers);
                let expected = if taken {
                    Ok(())
                } else {
                    Err(CrossOrigin::Origin)
                };
                assert_eq!(checked, expected, "{method} {headers}");
            }
            assert_eq!(checked("GET", is_tls, headers), Ok(()));
        }
    }
}
