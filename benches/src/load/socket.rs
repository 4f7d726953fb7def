//! Sockets of the load generator.

use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, connect, recv, send,
    socket_with,
};

use super::echo_check::EchoCheck;
use super::{PATIENCE, Pattern, SMALL, SourceAddresses};

pub fn new_socket(flags: SocketFlags) -> Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | flags,
        None,
    )?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    Ok(socket)
}

/// A blocking socket whose calls give up after a while.
fn new_patient_socket() -> Result<OwnedFd> {
    let socket = new_socket(SocketFlags::empty())?;
    sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    sockopt::set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    Ok(socket)
}

/// Connects, and returns a blocking socket.
pub fn connect_to(server: SocketAddrV4) -> Result<OwnedFd> {
    let socket = new_patient_socket()?;
    connect(&socket, &server).context("cannot connect")?;
    Ok(socket)
}

/// Connects from the next free source address, and returns a blocking socket.
pub fn connect_from(sources: &SourceAddresses, server: SocketAddrV4) -> Result<OwnedFd> {
    let socket = new_patient_socket()?;
    while let Err(error) = bind(&socket, &sources.next()) {
        // Still resting from an earlier run, or someone else's.
        ensure!(error == Errno::ADDRINUSE, error);
    }
    connect(&socket, &server).context("cannot connect")?;
    Ok(socket)
}

/// Sends a small message from `position` of the pattern on through a blocking socket.
pub fn send_small(socket: &OwnedFd, pattern: &Pattern, position: u64) -> Result<()> {
    let sent = send(socket, pattern.at(position, SMALL), SendFlags::NOSIGNAL)?;
    ensure!(sent == SMALL, "a new connection took {sent} bytes only");
    Ok(())
}

/// Receives the reply to a small message through a blocking socket.
pub fn receive_small(socket: &OwnedFd, pattern: &Pattern, position: u64) -> Result<()> {
    let mut check = EchoCheck::from(position);
    let mut buffer = [0; 2 * SMALL];
    while check.position() < position + SMALL as u64 {
        let (count, _) = recv(socket, &mut buffer[..], RecvFlags::empty()).context("no reply")?;
        ensure!(count > 0, "the server closed the connection");
        check.feed(pattern, &buffer[..count])?;
    }
    ensure!(
        check.end_message()? == SMALL,
        "wrong reply: not the message in one piece"
    );
    Ok(())
}

/// Connects, and makes one small round trip to be sure that the server has accepted.
pub fn connect_and_echo(server: SocketAddrV4, pattern: &Pattern) -> Result<OwnedFd> {
    let socket = connect_to(server)?;
    send_small(&socket, pattern, 0)?;
    receive_small(&socket, pattern, 0)?;
    Ok(socket)
}

/// Connects, makes one small round trip and closes.
pub fn echo_once(server: SocketAddrV4, pattern: &Pattern) -> Result<()> {
    connect_and_echo(server, pattern).map(drop)
}
