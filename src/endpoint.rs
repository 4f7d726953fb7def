//! Addresses in text form: where to listen, and where to connect to.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;

use crate::address::Address;
use crate::event_loop;
use crate::io_error;
use crate::unblock::unblock;

/// An address in text form, which stands for one or more sockets. [`Server::bind`](crate::Server::bind) listens on it,
/// and [`Connection::connect`](crate::Connection::connect) connects to it.
///
/// | text | listens on | connects to |
/// |---|---|---|
/// | `PORT` | 127.0.0.1 and, where the machine has it, ::1 | the same, in this order |
/// | `:PORT` | all interfaces, with IPv4 and IPv6 | as `PORT` |
/// | `IP:PORT`, `[IP6]:PORT` | this address | this address |
/// | `NAME:PORT` | every address of the name | the addresses of the name, in turn |
/// | `unix:PATH` | a Unix socket | a Unix socket |
///
/// An IPv6 address may have the number of an interface: `[fe80::1%2]:PORT`. A `PORT` displays as `localhost:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Endpoint {
    /// `PORT`
    Loopback(u16),
    /// `:PORT`
    All(u16),
    /// `IP:PORT` or `[IP6]:PORT`, or several of these addresses.
    Ip(Vec<SocketAddr>),
    /// `NAME:PORT`
    Name(String, u16),
    /// `unix:PATH`
    Unix(PathBuf),
}

impl Endpoint {
    /// The TCP addresses that a connection tries in turn. A name is looked up on a thread of smol's pool.
    pub(crate) async fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        Ok(match self {
            Endpoint::Loopback(port) | Endpoint::All(port) => vec![
                (Ipv4Addr::LOCALHOST, *port).into(),
                (Ipv6Addr::LOCALHOST, *port).into(),
            ],
            Endpoint::Ip(addrs) => addrs.clone(),
            Endpoint::Name(name, port) => {
                // If no thread can be started, the look-up would never return.
                event_loop::check_threads().map_err(|error| {
                    io_error::explain("cannot start a thread to look up the address", error)
                })?;
                let host = (name.clone(), *port);
                unblock(move || host.to_socket_addrs()).await?.collect()
            }
            Endpoint::Unix(_) => Vec::new(),
        })
    }
}

impl FromStr for Endpoint {
    type Err = io::Error;

    /// # Errors
    ///
    /// `InvalidInput` if the text has none of the forms.
    fn from_str(text: &str) -> io::Result<Endpoint> {
        let endpoint = match text.strip_prefix("unix:") {
            Some("") => None,
            Some(path) => Some(Endpoint::Unix(path.into())),
            None => match text.strip_prefix(':') {
                Some(all) => port(all).map(Endpoint::All),
                None => port(text)
                    .map(Endpoint::Loopback)
                    .or_else(|| Some(Endpoint::Ip(vec![text.parse().ok()?])))
                    .or_else(|| name_and_port(text)),
            },
        };
        endpoint.ok_or_else(|| {
            let forms = "PORT, :PORT, IP:PORT, [IP6]:PORT, NAME:PORT or unix:PATH";
            let error =
                format!("{text:?} is not an address: expected {forms}, with a port up to 65535");
            io::Error::new(io::ErrorKind::InvalidInput, error)
        })
    }
}

/// A port in digits. `u16::from_str` alone would also accept a sign.
fn port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

fn name_and_port(text: &str) -> Option<Endpoint> {
    let (name, digits) = text.rsplit_once(':')?;
    let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    // A text of only digits and dots is an IP address with a mistake.
    let is_name = name.bytes().all(is_of_name) && name.bytes().any(|b| b.is_ascii_alphabetic());
    Some(Endpoint::Name(name.to_owned(), port(digits)?)).filter(|_| is_name)
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Loopback(port) => write!(f, "localhost:{port}"),
            Endpoint::All(port) => write!(f, ":{port}"),
            Endpoint::Ip(addrs) => {
                let addrs: Vec<String> = addrs.iter().map(SocketAddr::to_string).collect();
                f.write_str(&addrs.join(" "))
            }
            Endpoint::Name(name, port) => write!(f, "{name}:{port}"),
            Endpoint::Unix(path) => Address::Unix(Some(path.clone())).fmt(f),
        }
    }
}

/// Types that name an [`Endpoint`]: text in one of its forms, or an address type of std or of this crate.
pub trait ToEndpoint {
    /// The endpoint.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if this is not an address for listening or connecting.
    fn to_endpoint(&self) -> io::Result<Endpoint>;
}

/// How values of a type name an endpoint.
macro_rules! to_endpoint {
    ($($type:ty: $value:ident => $endpoint:expr;)*) => {$(
        impl ToEndpoint for $type {
            fn to_endpoint(&self) -> io::Result<Endpoint> {
                let $value = self;
                $endpoint
            }
        }
    )*};
}

to_endpoint! {
    Endpoint: endpoint => Ok(endpoint.clone());
    str: text => text.parse();
    String: text => text.parse();
    (String, u16): pair => (pair.0.as_str(), pair.1).to_endpoint();
    (IpAddr, u16): pair => ip(*pair);
    (Ipv4Addr, u16): pair => ip(*pair);
    (Ipv6Addr, u16): pair => ip(*pair);
    SocketAddr: addr => ip(*addr);
    SocketAddrV4: addr => ip(*addr);
    SocketAddrV6: addr => ip(*addr);
    [SocketAddr]: addrs => Ok(Endpoint::Ip(addrs.to_owned()));
}

fn ip(addr: impl Into<SocketAddr>) -> io::Result<Endpoint> {
    Ok(Endpoint::Ip(vec![addr.into()]))
}

/// A name or an IP address, with a port.
impl ToEndpoint for (&str, u16) {
    fn to_endpoint(&self) -> io::Result<Endpoint> {
        let (host, port) = *self;
        Ok(match host.parse::<IpAddr>() {
            Ok(ip) => Endpoint::Ip(vec![(ip, port).into()]),
            Err(_) => Endpoint::Name(host.to_owned(), port),
        })
    }
}

impl ToEndpoint for Address {
    fn to_endpoint(&self) -> io::Result<Endpoint> {
        match self {
            Address::Tcp(addr) => Ok(Endpoint::Ip(vec![*addr])),
            Address::Unix(Some(path)) => Ok(Endpoint::Unix(path.clone())),
            Address::Unix(None) | Address::Unknown => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("the address of a socket without one ({self}) leads nowhere"),
            )),
        }
    }
}

impl<T: ToEndpoint + ?Sized> ToEndpoint for &T {
    fn to_endpoint(&self) -> io::Result<Endpoint> {
        (**self).to_endpoint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_has_one_of_six_forms() {
        let ip = |text: &str| Endpoint::Ip(vec![text.parse().unwrap()]);
        let forms = [
            ("25000", Endpoint::Loopback(25000)),
            ("0", Endpoint::Loopback(0)),
            (":25000", Endpoint::All(25000)),
            ("127.0.0.2:7", ip("127.0.0.2:7")),
            ("[::1]:7", ip("[::1]:7")),
            ("[fe80::1%2]:7", ip("[fe80::1%2]:7")),
            (
                "an-upstream.test:7",
                Endpoint::Name("an-upstream.test".into(), 7),
            ),
            (
                "unix:/run/echo.sock",
                Endpoint::Unix("/run/echo.sock".into()),
            ),
        ];
        for (text, endpoint) in forms {
            assert_eq!(text.parse::<Endpoint>().unwrap(), endpoint, "{text}");
            assert_eq!(text.to_endpoint().unwrap(), endpoint, "{text}");
        }
        for text in [
            "",
            ":",
            "65536",
            "+7",
            "-1",
            ":+7",
            "host",
            "host:",
            "host:65536",
            "host:+7",
            "127.0.0.1",
            "::1:7",
            "[::1]",
            "[::1]7",
            "unix:",
            " 7",
            "a b:7",
            "http://host:7",
        ] {
            let error = text.parse::<Endpoint>().expect_err(text);
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            let words = format!("{text:?} is not an address: expected PORT, ");
            assert!(error.to_string().starts_with(&words), "{error}");
        }
    }

    #[test]
    fn what_is_an_address_already_is_an_endpoint() {
        let addr: SocketAddr = "127.0.0.1:7".parse().unwrap();
        let same = Endpoint::Ip(vec![addr]);
        assert_eq!(addr.to_endpoint().unwrap(), same);
        assert_eq!(ToEndpoint::to_endpoint(&&addr).unwrap(), same);
        assert_eq!(("127.0.0.1", 7).to_endpoint().unwrap(), same);
        assert_eq!((addr.ip(), 7).to_endpoint().unwrap(), same);
        assert_eq!(Address::Tcp(addr).to_endpoint().unwrap(), same);
        assert_eq!([addr][..].to_endpoint().unwrap(), same);
        let name = Endpoint::Name("host".into(), 7);
        assert_eq!(("host".to_owned(), 7).to_endpoint().unwrap(), name);
        assert_eq!(name.to_string(), "host:7");
        assert!(Address::Unknown.to_endpoint().is_err());
    }
}
