//! Sockets that listen.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};

/// A non-blocking TCP socket for listening on `address`, not bound yet.
///
/// One for IPv6 takes no IPv4 (`IPV6_V6ONLY`), whatever the system's default is: `[::]:1883` and
/// `0.0.0.0:1883` are two listeners that do not meet.
pub(crate) fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
