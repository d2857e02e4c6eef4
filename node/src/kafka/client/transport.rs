//! The byte stream below a connection: TCP, or TLS over it. Nothing above knows which.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};

use super::{Address, ClientOptions, Error, SocketOptions, tls};
use crate::dial::{self, dial, resolve};

/// Reading half.
pub(super) type ReadHalf = Box<dyn AsyncRead + Send + Unpin>;
/// Writing half.
pub(super) type WriteHalf = Box<dyn AsyncWrite + Send + Unpin>;

/// A frame's buffer starts no larger than this and grows with what really arrives.
const FIRST_FRAME_BUFFER: usize = 256 * 1024;

/// A TLS record that carries an alert, version 3.x: what a TLS port answers when it does not understand us.
const TLS_ALERT: [u8; 2] = [0x15, 0x03];

/// How far a connection is while it comes up: for the text of a timeout, and to know which address it failed
/// at.
#[derive(Debug, Default)]
pub(super) struct Stage {
    at: AtomicU8,
    peer: OnceLock<SocketAddr>,
}

impl Stage {
    const WORDS: [&str; 5] = [
        "the question for credentials",
        "connecting (TCP)",
        "the TLS handshake (does this port speak TLS?)",
        "ApiVersions",
        "the login",
    ];
    pub(super) const CREDENTIALS: u8 = 0;
    pub(super) const TCP: u8 = 1;
    pub(super) const TLS: u8 = 2;
    pub(super) const VERSIONS: u8 = 3;
    pub(super) const LOGIN: u8 = 4;

    pub(super) fn enter(&self, stage: u8) {
        self.at.store(stage, Ordering::Relaxed);
    }

    /// The address that is connected, once TCP is.
    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.peer.get().copied()
    }

    pub(super) fn words(&self) -> &'static str {
        Self::WORDS.get(usize::from(self.at.load(Ordering::Relaxed))).copied().unwrap_or("connecting")
    }
}

/// Opens a stream to `address`, trying every address that the name stands for, and speaks TLS over it where
/// the options say so. The caller bounds the time.
pub(super) async fn open(
    address: &Address,
    options: &ClientOptions,
    stage: &Stage,
) -> Result<(ReadHalf, WriteHalf), Error> {
    let stream = connect(address, &options.socket, options.connect_timeout).await?;
    if let Ok(peer) = stream.peer_addr() {
        let _ = stage.peer.set(peer);
    }
    let Some(tls) = &options.tls else {
        let (read, write) = stream.into_split();
        return Ok((Box::new(read), Box::new(write)));
    };
    stage.enter(Stage::TLS);
    let stream = tls.connect(stream, address).await?;
    let has_identity = tls.has_identity();
    let (read, write) = tokio::io::split(stream);
    Ok((Box::new(Explained { read, has_identity }), Box::new(write)))
}

/// Opens a TCP connection to `address`, trying every address that the name stands for. The caller bounds the
/// time, by `budget`.
pub(super) async fn connect(
    address: &Address,
    options: &SocketOptions,
    budget: Duration,
) -> Result<TcpStream, Error> {
    let attempt = async {
        let addresses = resolve(&address.host, address.port).await?;
        let connect = |to| connect_to(to, options.clone());
        dial(&address.host, address.port, addresses, budget, connect).await
    };
    attempt.await.map_err(|error| match error {
        error if error.is_refused() => Error::Refused { address: address.clone() },
        dial::Error::Unresolvable(reason) => {
            Error::Unresolvable { address: address.clone(), reason: reason.to_string().into() }
        }
        dial::Error::Failed(_, reason) => {
            Error::Unreachable { address: address.clone(), reason: reason.to_string().into() }
        }
    })
}

/// Reads from TLS; what goes wrong is told in our words.
struct Explained<R> {
    read: R,
    has_identity: bool,
}

impl<R: AsyncRead + Unpin> AsyncRead for Explained<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let has_identity = self.has_identity;
        Pin::new(&mut self.read).poll_read(context, buffer).map_err(|error| {
            match tls::messages::broken(&error, has_identity) {
                Some(words) => io::Error::new(error.kind(), words),
                None => error,
            }
        })
    }
}

async fn connect_to(to: SocketAddr, options: SocketOptions) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Buffer sizes go before connect: the window scale is agreed in the handshake.
    if let Some(size) = options.send_buffer {
        socket.set_send_buffer_size(size)?;
    }
    if let Some(size) = options.receive_buffer {
        socket.set_recv_buffer_size(size)?;
    }
    socket.set_nodelay(options.nodelay)?;
    if let Some(keepalive) = options.keepalive {
        let at_least_a_second = |time: Duration| time.max(Duration::from_secs(1));
        let settings = TcpKeepalive::new()
            .with_time(at_least_a_second(keepalive.idle))
            .with_interval(at_least_a_second(keepalive.interval))
            .with_retries(keepalive.probes);
        SockRef::from(&socket).set_tcp_keepalive(&settings)?;
    }
    let stream = socket.connect(to).await?;
    // A connect to an unused port of the ephemeral range can, by TCP's simultaneous open, reach itself.
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(stream)
}

/// One frame without its length; `None` at the end of the stream between two frames.
pub(super) async fn read_frame<R: AsyncRead + Unpin>(
    read: &mut R,
    address: &Address,
    limit: usize,
) -> Result<Option<Bytes>, Error> {
    let lost = |error: io::Error| {
        let reason = match error.kind() {
            io::ErrorKind::UnexpectedEof => "closed by the broker in the middle of an answer".to_owned(),
            _ => error.to_string(),
        };
        Error::Disconnected { address: address.clone(), reason: reason.into() }
    };
    let mut prefix = [0; 4];
    let first = match read.read(&mut prefix).await {
        // TLS that ends without its farewell: between two frames nothing can have been cut off.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
        other => other.map_err(lost)?,
    };
    if first == 0 {
        return Ok(None);
    }
    read.read_exact(prefix.get_mut(first..).unwrap_or_default()).await.map_err(lost)?;
    if prefix.starts_with(&TLS_ALERT) {
        return Err(Error::SpeaksTls { address: address.clone() });
    }
    let declared = u32::from_be_bytes(prefix);
    let size = declared as usize;
    if size > limit {
        return Err(Error::AnswerTooLarge { address: address.clone(), size: declared.into(), limit });
    }
    let mut frame = BytesMut::with_capacity(size.min(FIRST_FRAME_BUFFER));
    while frame.len() < size {
        if frame.capacity() == frame.len() {
            // Twice what has come so far, never more than is still to come.
            frame.reserve(frame.len().min(size - frame.len()));
        }
        let mut rest = (&mut *read).take((size - frame.len()) as u64);
        if rest.read_buf(&mut frame).await.map_err(lost)? == 0 {
            return Err(lost(io::ErrorKind::UnexpectedEof.into()));
        }
    }
    Ok(Some(frame.freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::client::Keepalive;

    /// L24
    #[tokio::test]
    async fn every_socket_option_is_set_on_the_socket() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::new("127.0.0.1", listener.local_addr().unwrap().port());
        let (idle, interval) = (Duration::from_secs(50), Duration::from_secs(6));
        for nodelay in [false, true] {
            let options = SocketOptions {
                nodelay,
                send_buffer: Some(64 * 1024),
                receive_buffer: Some(32 * 1024),
                keepalive: nodelay.then_some(Keepalive { idle, interval, probes: 7 }),
            };
            let stream = connect(&address, &options, Duration::from_mins(1)).await.unwrap();
            assert_eq!(stream.nodelay().unwrap(), nodelay);
            let socket = SockRef::from(&stream);
            // Linux counts its own book-keeping in and reports twice what was asked for.
            let (sent, received) = (socket.send_buffer_size().unwrap(), socket.recv_buffer_size().unwrap());
            assert!((64 * 1024..=128 * 1024).contains(&sent), "{sent}");
            assert!((32 * 1024..=64 * 1024).contains(&received), "{received}");
            assert_eq!(socket.keepalive().unwrap(), nodelay);
            if nodelay {
                assert_eq!(socket.tcp_keepalive_time().unwrap(), idle);
                assert_eq!(socket.tcp_keepalive_interval().unwrap(), interval);
                assert_eq!(socket.tcp_keepalive_retries().unwrap(), 7);
            }
        }
    }
}
