//! Addresses to connect from.

use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddrV4};

/// Below the ports that the kernel gives to sockets which ask for none: it passes over a port
/// that a resting connection of another host was bound to.
const PORTS: std::ops::Range<u16> = 10_000..32_000;
const HOSTS: std::ops::Range<u8> = 2..250;

/// Hands out a new address each time, over many loopback hosts.
///
/// A port that a closed connection used rests for a minute. Thousands of connections in a
/// second would use up one host's ports, and the kernel's search for a free one would take
/// longer and longer.
pub struct SourceAddresses {
    host: Cell<u8>,
    port: Cell<u16>,
}

impl SourceAddresses {
    pub fn new() -> Self {
        // A run that follows another one starts elsewhere.
        let hosts = u32::from(HOSTS.end - HOSTS.start);
        Self {
            host: Cell::new(HOSTS.start + (std::process::id() % hosts) as u8),
            port: Cell::new(PORTS.start),
        }
    }

    pub fn next(&self) -> SocketAddrV4 {
        let port = self.port.get() + 1;
        self.port.set(port);
        if port == PORTS.end {
            self.port.set(PORTS.start);
            let host = self.host.get() + 1;
            self.host
                .set(if host == HOSTS.end { HOSTS.start } else { host });
        }
        let host = Ipv4Addr::new(127, 0, 0, self.host.get());
        SocketAddrV4::new(host, self.port.get())
    }
}
