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
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use bytes::BytesMut;
use mqttbytes::v4;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, HandshakeKind, Stream};

use super::Meter;
use super::endpoint::{Endpoint, server_name};

/// Addresses of the server.
const ADDRESSES: u32 = 32;

/// CONNACK of MQTT 3.1.1: accepted, no session.
const ACCEPTED: [u8; 4] = [0x20, 2, 0, 0];

/// What to open.
#[derive(Debug, Clone)]
pub struct Churning {
    /// The server, by address, over TCP or TLS; 127.0.0.1 stands for several addresses of the loopback
    /// network.
    pub server: Endpoint,
    /// Connections open at the same time, each with a thread.
    pub concurrency: u32,
    /// For how long.
    pub duration: Duration,
    /// Client ids are this and a number.
    pub prefix: String,
    /// Resume TLS sessions where the server offers it, each thread its own.
    pub resume: bool,
}

/// Opens and closes connections for the settings' time; latencies, from the first step of TCP to the CONNACK,
/// go to `meter`. Connections are numbered from `first` on, for their user names. Says how many resumed a TLS
/// session. Blocks.
pub fn churn(settings: &Churning, first: u64, meter: &Meter) -> Result<u64> {
    let end = Instant::now() + settings.duration;
    let (next, resumed) = (AtomicU64::new(first), AtomicU64::new(0));
    let address: SocketAddr = settings
        .server
        .address
        .parse()
        .with_context(|| format!("{} is no address and port", settings.server.address))?;
    if settings.server.websocket {
        bail!("connections that come and go speak no WebSocket");
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..settings.concurrency)
            .map(|thread| {
                let client = Client {
                    settings,
                    address: spread(address, thread),
                    tls: settings.server.tls.as_ref().map(|tls| own_config(tls, settings.resume)),
                    resumed: &resumed,
                };
                let next = &next;
                scope.spawn(move || client.come_and_go(next, end, meter))
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a client panicked"))?)
    })?;
    Ok(resumed.into_inner())
}

/// A configuration with sessions of its own, so that threads do not take each other's tickets.
fn own_config(tls: &ClientConfig, resume: bool) -> Arc<ClientConfig> {
    let mut own = tls.clone();
    own.resumption = if resume { Resumption::in_memory_sessions(8) } else { Resumption::disabled() };
    Arc::new(own)
}

struct Client<'a> {
    settings: &'a Churning,
    address: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
    resumed: &'a AtomicU64,
}

impl Client<'_> {
    fn come_and_go(&self, next: &AtomicU64, end: Instant, meter: &Meter) -> Result<()> {
        let mut packet = BytesMut::new();
        let mut latencies = Vec::new();
        while Instant::now() < end {
            let number = next.fetch_add(1, Ordering::Relaxed);
            packet.clear();
            let mut connect = v4::Connect::new(format!("{}{number}", self.settings.prefix));
            connect.keep_alive = 60;
            connect.clean_session = true;
            if let Some((username, password)) = self.settings.server.login_of(number) {
                connect.set_login(username, password);
            }
            connect.write(&mut packet).map_err(|error| anyhow!("mqttbytes: {error:?}"))?;
            latencies.push(self.once(&packet)?);
        }
        meter.record(latencies);
        Ok(())
    }

    /// Nanoseconds to the CONNACK.
    fn once(&self, packet: &[u8]) -> Result<u64> {
        let start = Instant::now();
        let mut stream = TcpStream::connect(self.address)
            .with_context(|| format!("cannot connect to {}", self.address))?;
        match &self.tls {
            None => greet(&mut stream, packet)?,
            Some(config) => {
                let mut tls = ClientConnection::new(Arc::clone(config), server_name()?)?;
                greet(&mut Stream::new(&mut tls, &mut stream), packet)?;
                let resumed = tls.handshake_kind() == Some(HandshakeKind::Resumed);
                self.resumed.fetch_add(u64::from(resumed), Ordering::Relaxed);
                // An end without it is an error to some servers, which they log.
                tls.send_close_notify();
                tls.complete_io(&mut stream)?;
            }
        }
        Ok(start.elapsed().as_nanos() as u64)
    }
}

fn greet(stream: &mut (impl Read + Write), packet: &[u8]) -> Result<()> {
    stream.write_all(packet)?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).context("the server closed the connection instead of CONNACK")?;
    if answer != ACCEPTED {
        bail!("the server answers CONNECT with {answer:02x?}");
    }
    Ok(())
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
