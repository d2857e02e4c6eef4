//! Connections that come and go as fast as the server takes them: TCP connect, CONNECT, CONNACK, close,
//! and the next one.
//!
//! The client closes first, so its port rests in TIME_WAIT. A server on the loopback network is therefore
//! spoken to at several addresses, each with as many ports; it must listen on all of them (0.0.0.0).

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::BytesMut;
use mqttbytes::v4;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

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
    /// Connections open at the same time.
    pub concurrency: u32,
    /// For how long.
    pub duration: Duration,
    /// Client ids are this and a number.
    pub prefix: String,
    /// User name and password, where the server wants them.
    pub credentials: Option<(String, String)>,
}

/// Opens and closes connections for the settings' time; latencies, from the first step of TCP to the CONNACK,
/// go to `meter`.
pub async fn churn(settings: &Arc<Churning>, meter: &Arc<Meter>) -> Result<()> {
    let end = Instant::now() + settings.duration;
    let mut tasks = JoinSet::new();
    for number in 0..settings.concurrency {
        let (settings, meter) = (Arc::clone(settings), Arc::clone(meter));
        tasks.spawn(async move {
            let mut round = 0;
            let mut packet = BytesMut::new();
            while Instant::now() < end {
                packet.clear();
                let mut connect = v4::Connect::new(format!("{}{number}-{round}", settings.prefix));
                connect.keep_alive = 60;
                connect.clean_session = true;
                if let Some((username, password)) = &settings.credentials {
                    connect.set_login(username, password);
                }
                connect.write(&mut packet).map_err(|error| anyhow::anyhow!("mqttbytes: {error:?}"))?;
                let opened = once(spread(settings.server, number), &packet, &meter);
                tokio::time::timeout(Duration::from_secs(20), opened)
                    .await
                    .context("no CONNACK within 20 s")??;
                round += 1;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

async fn once(server: SocketAddr, packet: &[u8], meter: &Meter) -> Result<()> {
    let start = Instant::now();
    let mut stream =
        TcpStream::connect(server).await.with_context(|| format!("cannot connect to {server}"))?;
    stream.write_all(packet).await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.context("the server closed the connection instead of CONNACK")?;
    if answer != ACCEPTED {
        bail!("the server answers CONNECT with {answer:02x?}");
    }
    meter.record([start.elapsed().as_nanos() as u64]);
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
