//! The monitor over HTTP: the page, its JSON, and the metrics.

use std::io::{self, BufReader, Write};
use std::net::{IpAddr, Ipv6Addr, TcpStream};
use std::time::Instant;

use super::health;
use super::json;
use super::line::read_line;
use super::request::HttpRequest;
use super::text;
use crate::task_table::TaskTable;

const PAGE: &str = include_str!("page.html");

/// The most bytes of headers.
const HEADERS_MAX: usize = 16 * 1024;

/// The page may load nothing from other places, and no other page may embed it. The script is identified by its hash.
const POLICY: &str = "default-src 'none'; script-src 'sha256-GmMEZ7I9KET+fg4dio6G49TAT6caP4OSAh9jlXH2leo='; style-src 'unsafe-inline'; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The headers that matter here.
struct Headers {
    foreign_host: bool,
    /// The connection ends after this request: the peer asks for that, or a body follows, which nobody reads.
    last: bool,
}

/// Reads the headers and answers. Returns whether another request may follow.
pub(super) fn answer(
    reader: &mut BufReader<&TcpStream>,
    request: &HttpRequest<'_>,
    deadline: Instant,
    table: &TaskTable,
) -> io::Result<bool> {
    const PLAIN: &str = "text/plain; charset=utf-8";
    const UNAVAILABLE: &str = "503 Service Unavailable";
    const JSON: &str = "application/json";
    let headers = read_headers(reader, deadline)?;
    let path = request.path.split('?').next().unwrap_or_default();
    let (status, kind, body) = match (&headers, path) {
        (None, _) => (
            "431 Request Header Fields Too Large",
            PLAIN,
            "headers have at most 16 kB\n".to_owned(),
        ),
        (Some(headers), _) if headers.foreign_host => (
            "403 Forbidden",
            PLAIN,
            "the Host has to be an IP address or localhost\n".to_owned(),
        ),
        _ if !matches!(request.method, "GET" | "HEAD") => (
            "405 Method Not Allowed",
            PLAIN,
            "only GET and HEAD\n".to_owned(),
        ),
        (_, "/") => ("200 OK", "text/html; charset=utf-8", PAGE.to_owned()),
        (_, "/tasks.json") => ("200 OK", JSON, json::tasks(&table.tasks())),
        (_, "/stats.json") => ("200 OK", JSON, json::stats(&table.servers())),
        (_, "/health") => {
            let health = health::health(table);
            let status = if health.is_ok() {
                "200 OK"
            } else {
                UNAVAILABLE
            };
            (status, PLAIN, health::line(health))
        }
        (_, "/metrics") => (
            "200 OK",
            "text/plain; version=0.0.4; charset=utf-8",
            text::metrics(&table.tasks(), &table.servers()),
        ),
        _ => (
            "404 Not Found",
            PLAIN,
            "there are /, /health, /metrics, /stats.json and /tasks.json\n".to_owned(),
        ),
    };
    let refused = !matches!(&status[..3], "200" | "404" | "503");
    let stays = request.is_1_1 && !refused && headers.is_some_and(|headers| !headers.last);
    let connection = if stays { "keep-alive" } else { "close" };
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: {connection}\r\n\
         Allow: GET, HEAD\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\
         Referrer-Policy: no-referrer\r\nContent-Security-Policy: {POLICY}\r\n\r\n",
        body.len()
    );
    if request.method != "HEAD" {
        answer.push_str(&body);
    }
    let mut stream = *reader.get_ref();
    stream.write_all(answer.as_bytes())?;
    Ok(stays)
}

/// None if there are too many.
fn read_headers(
    reader: &mut BufReader<&TcpStream>,
    deadline: Instant,
) -> io::Result<Option<Headers>> {
    let mut headers = Headers {
        foreign_host: false,
        last: false,
    };
    let mut left = HEADERS_MAX;
    loop {
        let line = read_line(reader, left, deadline)?;
        left -= line.len();
        if line.trim_ascii().is_empty() && left > 0 {
            return Ok(Some(headers));
        }
        if left == 0 {
            return Ok(None);
        }
        let line = String::from_utf8_lossy(&line).to_ascii_lowercase();
        let (name, value) = line.split_once(':').unwrap_or_default();
        let value = value.trim();
        match name.trim() {
            "host" => headers.foreign_host |= !is_own(value),
            "connection" => headers.last |= value.contains("close"),
            "content-length" | "transfer-encoding" => headers.last |= value != "0",
            _ => {}
        }
    }
}

/// Whether a `Host` is an address, or a name that nobody else can own. Another website could let its own name point to
/// this address (DNS rebinding). The browser would then let that website read the answers.
fn is_own(host: &str) -> bool {
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    if let Some((ip, port)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let port = port.strip_prefix(':').unwrap_or(port);
        return ip.parse::<Ipv6Addr>().is_ok() && is_port(port);
    }
    let (name, port) = host.split_once(':').unwrap_or((host, ""));
    (name == "localhost" || name.parse::<IpAddr>().is_ok()) && is_port(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_an_address_or_localhost() {
        for own in [
            "127.0.0.1:25001",
            "localhost",
            "localhost:1",
            "[::1]:25001",
            "10.0.0.1",
        ] {
            assert!(is_own(own), "{own}");
        }
        for foreign in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:80",
            "[::1].evil",
            "::1",
        ] {
            assert!(!is_own(foreign), "{foreign}");
        }
    }
}
