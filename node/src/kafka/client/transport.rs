//! The byte stream below a connection: TCP now, TLS over it later. Nothing above knows which.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};

use super::{Address, Error, SocketOptions};

/// Reading half.
pub(super) type ReadHalf = Box<dyn AsyncRead + Send + Unpin>;
/// Writing half.
pub(super) type WriteHalf = Box<dyn AsyncWrite + Send + Unpin>;

/// A frame's buffer starts no larger than this and grows with what really arrives.
const FIRST_FRAME_BUFFER: usize = 256 * 1024;

/// Opens a stream to `address`, trying every address that the name stands for. The caller bounds the
/// time.
pub(super) async fn open(address: &Address, options: &SocketOptions) -> Result<(ReadHalf, WriteHalf), Error> {
    let resolved = tokio::net::lookup_host((&*address.host, address.port)).await.map_err(|error| {
        Error::Unresolvable { address: address.clone(), reason: error.to_string().into() }
    })?;
    let mut last = None;
    for candidate in resolved {
        match connect(candidate, options).await {
            Ok(stream) => {
                let (read, write) = stream.into_split();
                return Ok((Box::new(read), Box::new(write)));
            }
            Err(error) => last = Some(error),
        }
    }
    Err(match last {
        Some(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Error::Refused { address: address.clone() }
        }
        Some(error) => Error::Unreachable { address: address.clone(), reason: error.to_string().into() },
        None => Error::Unresolvable { address: address.clone(), reason: "the name has no address".into() },
    })
}

async fn connect(to: SocketAddr, options: &SocketOptions) -> io::Result<TcpStream> {
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
    let first = read.read(&mut prefix).await.map_err(lost)?;
    if first == 0 {
        return Ok(None);
    }
    read.read_exact(prefix.get_mut(first..).unwrap_or_default()).await.map_err(lost)?;
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
