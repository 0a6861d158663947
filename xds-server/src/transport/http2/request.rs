//! A list of fields -> the head of a request. See RFC 9113, sections 8.2 and 8.3.

use http::{HeaderName, HeaderValue, Method, Request, Uri, header, uri::PathAndQuery};

use super::{LIST_BYTES_MAX, frame::Reason, hpack};

/// What has come of a head so far.
#[derive(Default)]
pub(super) struct RequestHead {
    method: Option<Method>,
    path: Option<PathAndQuery>,
    has_scheme: bool,
    has_authority: bool,
    has_regular: bool,
    headers: http::HeaderMap,
    bytes: usize,
    fault: Option<Reason>,
}

/// Not the head of a request.
struct Malformed;

impl RequestHead {
    /// Takes in the next field. What is wrong with it is said at the end: the rest of the list has to be decoded in any case.
    pub(super) fn field(&mut self, name: &[u8], value: &[u8]) {
        self.bytes += name.len() + value.len() + hpack::FIELD_BYTES;
        if self.bytes > LIST_BYTES_MAX {
            self.fault = Some(Reason::EnhanceYourCalm);
        }
        if self.fault.is_none() && self.take(name, value).is_err() {
            self.fault = Some(Reason::ProtocolError);
        }
    }

    fn take(&mut self, name: &[u8], value: &[u8]) -> Result<(), Malformed> {
        if let Some(name) = name.strip_prefix(b":") {
            return self.take_pseudo(name, value);
        }
        self.has_regular = true;
        let name = HeaderName::from_lowercase(name).map_err(|_| Malformed)?;
        let value = HeaderValue::from_bytes(value).map_err(|_| Malformed)?;
        let is_of_http1 = [
            header::CONNECTION,
            header::TRANSFER_ENCODING,
            header::UPGRADE,
        ]
        .contains(&name)
            || ["keep-alive", "proxy-connection"].contains(&name.as_str());
        if is_of_http1 || (name == header::TE && value != "trailers") {
            return Err(Malformed);
        }
        self.headers.append(name, value);
        Ok(())
    }

    fn take_pseudo(&mut self, name: &[u8], value: &[u8]) -> Result<(), Malformed> {
        let is_first = match name {
            b"method" => {
                let method = Method::from_bytes(value).map_err(|_| Malformed)?;
                self.method.replace(method).is_none()
            }
            b"path" => {
                let path = PathAndQuery::try_from(value).map_err(|_| Malformed)?;
                self.path.replace(path).is_none()
            }
            b"scheme" => !std::mem::replace(&mut self.has_scheme, true),
            b"authority" => !std::mem::replace(&mut self.has_authority, true),
            _ => false,
        };
        if is_first && !self.has_regular {
            Ok(())
        } else {
            Err(Malformed)
        }
    }

    /// The head, once all fields have come. Errors: why the stream cannot be.
    pub(super) fn finish(self) -> Result<Request<()>, Reason> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let (Some(method), Some(path), true) = (self.method, self.path, self.has_scheme) else {
            return Err(Reason::ProtocolError);
        };
        let mut request = Request::new(());
        *request.method_mut() = method;
        *request.uri_mut() = Uri::from(path);
        *request.headers_mut() = self.headers;
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [(&str, &str); 6] = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/a.B/C?d"),
        (":authority", "x"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ];

    fn read(fields: &[(&str, &str)]) -> Result<Request<()>, Reason> {
        let mut head = RequestHead::default();
        for (name, value) in fields {
            head.field(name.as_bytes(), value.as_bytes());
        }
        head.finish()
    }

    #[test]
    fn a_request_says_what_it_asks_for() {
        let request = read(&GOOD).expect("a request");
        assert_eq!(request.method(), Method::POST);
        assert_eq!(request.uri(), "/a.B/C?d");
        assert_eq!(request.headers().len(), 2);
        assert_eq!(request.headers()["content-type"], "application/grpc");
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let malformed = |fields: &[(&str, &str)]| {
            let refused = read(fields).expect_err("no request");
            assert_eq!(refused, Reason::ProtocolError, "{fields:?}");
        };
        for missing in [":method", ":scheme", ":path"] {
            let others = GOOD.into_iter().filter(|(name, _)| *name != missing);
            malformed(&others.collect::<Vec<_>>());
        }
        for more in [
            (":method", "POST"),
            (":authority", "y"),
            (":status", "200"),
            ("Content-Type", "x"),
            ("", "x"),
            ("x", "a\nb"),
            ("connection", "close"),
            ("keep-alive", "1"),
            ("te", "gzip"),
        ] {
            malformed(&[&GOOD[..], &[more]].concat());
        }
        // What begins with a colon stands before the rest.
        let mut late = GOOD;
        late.rotate_left(1);
        malformed(&late);
        malformed(&[&[(":path", "no path")], &GOOD[..]].concat());
    }

    #[test]
    fn a_list_that_is_too_long_is_refused() {
        let long = "x".repeat(LIST_BYTES_MAX);
        let refused = read(&[&GOOD[..], &[("long", &long)]].concat()).expect_err("too long");
        assert_eq!(refused, Reason::EnhanceYourCalm);
        // Empty ones count as well.
        let many = [("a", "")].repeat(LIST_BYTES_MAX / hpack::FIELD_BYTES);
        let refused = read(&[&GOOD[..], &many].concat()).expect_err("too long");
        assert_eq!(refused, Reason::EnhanceYourCalm);
    }
}
