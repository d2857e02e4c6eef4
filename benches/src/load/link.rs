//! One MQTT 3.1.1 connection: a socket, what came in and what is to go out.
//!
//! Invariant: nothing is written but whole packets in the order they were put into [`Link::out`]; a turn
//! either moves bytes or waits for the socket or for the caller's moment.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::{Buf, BytesMut};
use mqttbytes::QoS;
use mqttbytes::v4::{self, Packet};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Largest packet taken, in bytes.
const MAX_PACKET: usize = 16 << 20;

/// Room made for a read.
const READ_BYTES: usize = 64 << 10;

/// Seconds, where nobody says otherwise.
const KEEP_ALIVE: u16 = 3600;

/// A connected client.
pub struct Link {
    stream: TcpStream,
    inbox: BytesMut,
    /// Encoded packets on their way out.
    pub out: BytesMut,
    /// Whether the server had a session for the client.
    pub session_present: bool,
}

fn refused(error: &impl std::fmt::Debug) -> anyhow::Error {
    anyhow!("mqttbytes: {error:?}")
}

impl Link {
    /// Connects and waits for the CONNACK, with a keep-alive so long that nobody need see to it: some
    /// brokers refuse to do without.
    pub async fn connect(broker: &str, client_id: &str, clean: bool, patience: Duration) -> Result<Self> {
        Self::connect_with(broker, client_id, clean, KEEP_ALIVE, patience).await
    }

    /// Connects with a keep-alive in seconds, which the caller must see to, and waits for the CONNACK.
    pub async fn connect_with(
        broker: &str,
        client_id: &str,
        clean: bool,
        keep_alive: u16,
        patience: Duration,
    ) -> Result<Self> {
        let open = async {
            let stream =
                TcpStream::connect(broker).await.with_context(|| format!("cannot connect to {broker}"))?;
            stream.set_nodelay(true)?;
            let mut link =
                Self { stream, inbox: BytesMut::new(), out: BytesMut::new(), session_present: false };
            let mut connect = v4::Connect::new(client_id);
            connect.keep_alive = keep_alive;
            connect.clean_session = clean;
            connect.write(&mut link.out).map_err(|error| refused(&error))?;
            match link.next().await? {
                Packet::ConnAck(ack) if ack.code == v4::ConnectReturnCode::Success => {
                    link.session_present = ack.session_present;
                    Ok(link)
                }
                other => bail!("{client_id}: the server answers CONNECT with {other:?}"),
            }
        };
        tokio::time::timeout(patience, open)
            .await
            .with_context(|| format!("{client_id}: no CONNACK from {broker} within {patience:?}"))?
    }

    /// Subscribes and waits for the SUBACK; the server must grant what was asked for.
    pub async fn subscribe(&mut self, filter: &str, qos: QoS) -> Result<()> {
        let mut subscribe = v4::Subscribe::new(filter, qos);
        subscribe.pkid = u16::MAX;
        subscribe.write(&mut self.out).map_err(|error| refused(&error))?;
        match self.next().await? {
            Packet::SubAck(ack) if ack.return_codes == [v4::SubscribeReasonCode::Success(qos)] => Ok(()),
            other => bail!("the server answers SUBSCRIBE {filter} with {other:?}"),
        }
    }

    /// The next packet that has come in whole, if any.
    pub fn take(&mut self) -> Result<Option<Packet>> {
        match v4::read(&mut self.inbox, MAX_PACKET) {
            Ok(packet) => Ok(Some(packet)),
            Err(mqttbytes::Error::InsufficientBytes(_)) => Ok(None),
            Err(error) => Err(refused(&error)),
        }
    }

    /// Moves bytes: returns after something was read or written, or at `moment`.
    pub async fn turn(&mut self, moment: Option<Instant>) -> Result<()> {
        if self.inbox.capacity() - self.inbox.len() < READ_BYTES / 4 {
            self.inbox.reserve(READ_BYTES);
        }
        let (mut reader, mut writer) = self.stream.split();
        tokio::select! {
            read = reader.read_buf(&mut self.inbox) => {
                if read? == 0 {
                    bail!("the server closed the connection");
                }
            }
            written = writer.write(&self.out), if !self.out.is_empty() => {
                let written = written?;
                self.out.advance(written);
            }
            () = tokio::time::sleep_until(moment.unwrap_or_else(Instant::now)), if moment.is_some() => {}
        }
        Ok(())
    }

    /// Writes everything in [`Self::out`].
    pub async fn flush(&mut self) -> Result<()> {
        self.stream.write_all_buf(&mut self.out).await?;
        Ok(())
    }

    /// Says DISCONNECT and closes.
    pub async fn close(mut self) -> Result<()> {
        v4::Disconnect.write(&mut self.out).map_err(|error| refused(&error))?;
        self.flush().await?;
        self.stream.shutdown().await?;
        Ok(())
    }

    async fn next(&mut self) -> Result<Packet> {
        loop {
            if let Some(packet) = self.take()? {
                return Ok(packet);
            }
            self.turn(None).await?;
        }
    }
}
