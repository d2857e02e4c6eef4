//! Connections that come and go as fast as the server takes them: TCP connect, CONNECT, CONNACK, close,
//! and the next one.
//!
//! Each of them is a thread with blocking sockets: that is the fewest system calls a client can do with, so
//! that on a small machine the server is what is measured.
//!
//! The client closes first, so its port rests in TIME_WAIT. A server on the loopback network is therefore
//! spoken to at several addresses, each with as many ports; it must listen on all of them (0.0.0.0).

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use bytes::BytesMut;
use mqttbytes::v4;

use super::Meter;

/// Addresses of the server.
const ADDRESSES: u32 = 32;

/// CONNACK of MQTT 3.1.1: accepted, no session.
const ACCEPTED: [u8; 4] = [0x20, 2, 0, 0];

/// What to open.
#[derive(Debug, Clone)]
pub struct Churning {
    /// The server; 127.0.0.1 stands for several addresses of the loopback network.
    pub server: SocketAddr,
    /// Connections open at the same time, each with a thread.
    pub concurrency: u32,
    /// For how long.
    pub duration: Duration,
    /// Client ids are this and a number.
    pub prefix: String,
    /// User name and password, where the server wants them.
    pub credentials: Option<(String, String)>,
}

/// Opens and closes connections for the settings' time; latencies, from the first step of TCP to the CONNACK,
/// go to `meter`. Blocks.
pub fn churn(settings: &Churning, meter: &Meter) -> Result<()> {
    let end = Instant::now() + settings.duration;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..settings.concurrency)
            .map(|number| scope.spawn(move || come_and_go(settings, number, end, meter)))
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a client panicked"))?)
    })
}

fn come_and_go(settings: &Churning, number: u32, end: Instant, meter: &Meter) -> Result<()> {
    let server = spread(settings.server, number);
    let mut packet = BytesMut::new();
    let mut latencies = Vec::new();
    let mut round = 0;
    while Instant::now() < end {
        packet.clear();
        let mut connect = v4::Connect::new(format!("{}{number}-{round}", settings.prefix));
        connect.keep_alive = 60;
        connect.clean_session = true;
        if let Some((username, password)) = &settings.credentials {
            connect.set_login(username, password);
        }
        connect.write(&mut packet).map_err(|error| anyhow!("mqttbytes: {error:?}"))?;
        latencies.push(once(server, &packet)?);
        round += 1;
    }
    meter.record(latencies);
    Ok(())
}

/// Nanoseconds to the CONNACK.
fn once(server: SocketAddr, packet: &[u8]) -> Result<u64> {
    let start = Instant::now();
    let mut stream = TcpStream::connect(server).with_context(|| format!("cannot connect to {server}"))?;
    stream.write_all(packet)?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).context("the server closed the connection instead of CONNACK")?;
    if answer != ACCEPTED {
        bail!("the server answers CONNECT with {answer:02x?}");
    }
    Ok(start.elapsed().as_nanos() as u64)
}

/// The server at one of [`ADDRESSES`] addresses, where it is on the loopback network.
fn spread(server: SocketAddr, number: u32) -> SocketAddr {
    if server.ip() == Ipv4Addr::LOCALHOST {
        let host = 1 + (number % ADDRESSES) as u8;
        (Ipv4Addr::new(127, 0, 0, host), server.port()).into()
    } else {
        server
    }
}
