//! The requests to the monitor: lines of text.

/// The longest request, in bytes, with its end.
pub(super) const REQUEST_MAX: usize = 256;

/// A line that a client sent to the monitor.
#[derive(Debug, PartialEq)]
pub(super) enum Request<'a> {
    Ps,
    Stats,
    Health,
    Help,
    Quit,
    Http(HttpRequest<'a>),
    /// Text, but none of the above.
    Unknown,
    /// Too long, or not valid text.
    Refused,
}

/// The first line of an HTTP request.
#[derive(Debug, PartialEq)]
pub(super) struct HttpRequest<'a> {
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    /// Later versions keep the connection open.
    pub(super) is_1_1: bool,
}

impl Request<'_> {
    /// Reads a line of at most [`REQUEST_MAX`] bytes, with its end unless it is the last or too long.
    pub(super) fn parse(line: &[u8]) -> Request<'_> {
        if line.len() == REQUEST_MAX && !line.ends_with(b"\n") {
            return Request::Refused;
        }
        let is_text = |&byte: &u8| byte == b' ' || byte == b'\t' || byte.is_ascii_graphic();
        let text = match std::str::from_utf8(line.trim_ascii_end()) {
            Ok(text) if text.as_bytes().iter().all(is_text) => text.trim_start(),
            _ => return Request::Refused,
        };
        match text {
            "ps" => Request::Ps,
            "stats" => Request::Stats,
            "health" => Request::Health,
            "help" | "" => Request::Help,
            "quit" => Request::Quit,
            _ => http(text).map_or(Request::Unknown, Request::Http),
        }
    }
}

/// A GET may have no version, as in HTTP 0.9. Other methods need the version.
fn http(text: &str) -> Option<HttpRequest<'_>> {
    let mut words = text.split_ascii_whitespace();
    let (method, path) = (words.next()?, words.next()?);
    let version = words.next().unwrap_or_default();
    (method == "GET" || version.starts_with("HTTP/")).then_some(HttpRequest {
        method,
        path,
        is_1_1: version == "HTTP/1.1",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_a_line_of_text() {
        let http = |method, path, is_1_1| {
            Request::Http(HttpRequest {
                method,
                path,
                is_1_1,
            })
        };
        let cases: [(&[u8], Request<'_>); 15] = [
            (b"ps\n", Request::Ps),
            (b"  ps \r\n", Request::Ps),
            (b"ps", Request::Ps),
            (b"stats\n", Request::Stats),
            (b"health\n", Request::Health),
            (b"\n", Request::Help),
            (b"quit\n", Request::Quit),
            (b"GET /metrics HTTP/1.1\r\n", http("GET", "/metrics", true)),
            (b"GET /\n", http("GET", "/", false)),
            (b"POST / HTTP/1.0\r\n", http("POST", "/", false)),
            (b"GET \n", Request::Unknown),
            (b"PS\n", Request::Unknown),
            (b"p\x1bs\n", Request::Refused),
            (b"\xff\n", Request::Refused),
            (&[b'p'; REQUEST_MAX], Request::Refused),
        ];
        for (line, request) in cases {
            assert_eq!(
                Request::parse(line),
                request,
                "{:?}",
                line.escape_ascii().to_string()
            );
        }
    }
}
