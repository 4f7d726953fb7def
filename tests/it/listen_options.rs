//! Options of sockets that listen.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use tinyloop::{ListenOptions, Listener};

use crate::support::TempDir;

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn addr(listener: &Listener) -> SocketAddr {
    listener.local_addr().unwrap().tcp().unwrap()
}

#[test]
fn several_sockets_share_a_port_if_all_of_them_allow_it() {
    let shared = ListenOptions::new().reuse_port();
    let first = shared.bind(ANY_PORT).unwrap();
    let second = shared.bind(addr(&first)).unwrap();
    assert_eq!(addr(&first), addr(&second));
    let error = Listener::bind(addr(&first)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    let alone = Listener::bind(ANY_PORT).unwrap();
    let error = shared.bind(addr(&alone)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
}

#[test]
fn an_ipv6_socket_takes_ipv4_connections_only_if_it_is_told_to() {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let Ok(alone) = Listener::bind(any) else {
        return;
    };
    let both = ListenOptions::new().dual_stack().bind(any).unwrap();
    let connect = |listener| TcpStream::connect((Ipv4Addr::LOCALHOST, addr(listener).port()));
    assert!(connect(&both).is_ok());
    let error = connect(&alone).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_unix_socket_has_the_mode_that_is_asked_for() {
    let dir = TempDir::new("mode");
    for mode in [0o600, 0o660, 0o666] {
        let path = dir.path("socket");
        let listener = ListenOptions::new()
            .unix_mode(mode)
            .bind_unix(&path)
            .unwrap();
        let permissions = fs::metadata(&path).unwrap().permissions();
        assert_eq!(permissions.mode() & 0o777, mode);
        drop(listener);
        assert!(!path.exists());
    }
}

#[test]
fn a_small_backlog_holds_few_connections() {
    let listener = ListenOptions::new().backlog(1).bind(ANY_PORT).unwrap();
    let connect = || TcpStream::connect_timeout(&addr(&listener), Duration::from_millis(300));
    // Linux lets in one more than it was told.
    let held = [connect().unwrap(), connect().unwrap()];
    let error = connect().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    drop(held);
}
