//! One MQTT 3.1.1 connection over TCP, TLS, WebSocket or both: what came in and what is to go out.
//!
//! Invariant: nothing is written but whole packets in the order they were put into [`Link::out`]; a turn
//! either moves bytes or waits for the socket or for the caller's moment.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context as Poller, Poll};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::{Buf, BytesMut};
use mqttbytes::QoS;
use mqttbytes::v4::{self, Packet};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::endpoint::{Endpoint, server_name};
use super::frames::{self, Frames};

/// Largest packet taken, in bytes.
const MAX_PACKET: usize = 16 << 20;

/// Room made for a read.
const READ_BYTES: usize = 64 << 10;

/// Seconds, where nobody says otherwise.
const KEEP_ALIVE: u16 = 3600;

enum Socket {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    fn poll_read(&mut self, cx: &mut Poller<'_>, into: &mut BytesMut) -> Poll<io::Result<usize>> {
        if into.capacity() - into.len() < READ_BYTES / 4 {
            into.reserve(READ_BYTES);
        }
        // Neither future keeps anything between polls, so a new one each time loses nothing.
        match self {
            Self::Tcp(stream) => pin!(stream.read_buf(into)).poll(cx),
            Self::Tls(stream) => pin!(stream.read_buf(into)).poll(cx),
        }
    }

    fn poll_write(&mut self, cx: &mut Poller<'_>, from: &mut BytesMut) -> Poll<io::Result<usize>> {
        let written = match self {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, from),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_write(cx, from),
        };
        if let Poll::Ready(Ok(written)) = written {
            from.advance(written);
        }
        written
    }

    /// TLS keeps records that the socket did not take; nothing else keeps anything.
    fn poll_flush(&mut self, cx: &mut Poller<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(_) => Poll::Ready(Ok(())),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_flush(cx),
        }
    }
}

/// A connected client.
pub struct Link {
    socket: Socket,
    frames: Option<Box<Frames>>,
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
    pub async fn connect(
        server: &Endpoint,
        client_id: &str,
        clean: bool,
        patience: Duration,
    ) -> Result<Self> {
        Self::connect_with(server, client_id, clean, KEEP_ALIVE, patience).await
    }

    /// Connects with a keep-alive in seconds, which the caller must see to, and waits for the CONNACK.
    pub async fn connect_with(
        server: &Endpoint,
        client_id: &str,
        clean: bool,
        keep_alive: u16,
        patience: Duration,
    ) -> Result<Self> {
        let open = async {
            let mut link = Self::open(server).await?;
            let mut connect = v4::Connect::new(client_id);
            connect.keep_alive = keep_alive;
            connect.clean_session = clean;
            if let Some((user, password)) = server.login_of(0) {
                connect.set_login(user, password);
            }
            connect.write(&mut link.out).map_err(|error| refused(&error))?;
            match link.next().await? {
                Packet::ConnAck(ack) if ack.code == v4::ConnectReturnCode::Success => {
                    link.session_present = ack.session_present;
                    Ok(link)
                }
                other => bail!("{client_id}: the server answers CONNECT with {other:?}"),
            }
        };
        let address = &server.address;
        tokio::time::timeout(patience, open)
            .await
            .with_context(|| format!("{client_id}: no CONNACK from {address} within {patience:?}"))?
    }

    /// The connection before its first packet.
    async fn open(server: &Endpoint) -> Result<Self> {
        let address = &server.address;
        let stream =
            TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        let socket = match &server.tls {
            None => Socket::Tcp(stream),
            Some(config) => {
                let connector = TlsConnector::from(Arc::clone(config));
                let stream = connector.connect(server_name()?, stream).await;
                Socket::Tls(Box::new(stream.with_context(|| format!("no TLS with {address}"))?))
            }
        };
        let (inbox, out) = (BytesMut::new(), BytesMut::new());
        let mut link = Self { socket, frames: None, inbox, out, session_present: false };
        if server.websocket {
            let mut frames = Box::<Frames>::default();
            link.out.extend_from_slice(frames::request(address).as_bytes());
            link.flush().await?;
            while !frames.take_answer()? {
                if poll_fn(|cx| link.socket.poll_read(cx, &mut frames.received)).await? == 0 {
                    bail!("{address} closed the connection instead of opening a WebSocket");
                }
            }
            link.frames = Some(frames);
        }
        Ok(link)
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
        let moved = poll_fn(|cx| self.poll_turn(cx));
        match moment {
            None => moved.await,
            Some(moment) => tokio::time::timeout_at(moment, moved).await.unwrap_or(Ok(())),
        }
    }

    fn poll_turn(&mut self, cx: &mut Poller<'_>) -> Poll<Result<()>> {
        let read = match &mut self.frames {
            None => self.socket.poll_read(cx, &mut self.inbox)?,
            Some(frames) => {
                let read = self.socket.poll_read(cx, &mut frames.received)?;
                frames.unwrap_into(&mut self.inbox)?;
                read
            }
        };
        if read == Poll::Ready(0) {
            return Poll::Ready(Err(anyhow!("the server closed the connection")));
        }
        let written = self.poll_send(cx)?;
        if read.is_ready() || written.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Ready when something was taken from [`Self::out`] or by the socket.
    fn poll_send(&mut self, cx: &mut Poller<'_>) -> Poll<io::Result<()>> {
        let mut moved = false;
        let sending = match &mut self.frames {
            None => &mut self.out,
            Some(frames) => {
                if frames.sending.is_empty() && !self.out.is_empty() {
                    frames.wrap(&self.out);
                    self.out.clear();
                    moved = true;
                }
                &mut frames.sending
            }
        };
        if !sending.is_empty() {
            moved |= self.socket.poll_write(cx, sending)?.is_ready();
        }
        // Not waited for: it goes on with the next turn, and wakes this task when the socket has room.
        let _ = self.socket.poll_flush(cx)?;
        if moved { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Writes everything in [`Self::out`].
    pub async fn flush(&mut self) -> Result<()> {
        let sending = |link: &Self| {
            !link.out.is_empty() || link.frames.as_ref().is_some_and(|frames| !frames.sending.is_empty())
        };
        while sending(self) {
            poll_fn(|cx| self.poll_send(cx)).await?;
        }
        poll_fn(|cx| self.socket.poll_flush(cx)).await?;
        Ok(())
    }

    /// Says DISCONNECT and closes.
    pub async fn close(mut self) -> Result<()> {
        v4::Disconnect.write(&mut self.out).map_err(|error| refused(&error))?;
        self.flush().await?;
        match &mut self.socket {
            Socket::Tcp(stream) => stream.shutdown().await?,
            Socket::Tls(stream) => stream.shutdown().await?,
        }
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
