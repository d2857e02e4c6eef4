//! Listeners and connections: one task per broker listener, one per connection.
//!
//! Invariants: requests of one connection are served and answered in order, one at a time, as Kafka does; a
//! frame is never buffered beyond its checked length; an answer that is ready is written before anything that
//! may wait. A connection ends with its broker's generation (pause, `close_connections`, stop), whatever it
//! waits for.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::api::{self, Context, Served};
use super::faults::Wanted;

/// Largest request taken: Kafka's default of `socket.request.max.bytes`.
const MAX_REQUEST: usize = 100 << 20;
/// Bytes by which the read buffer grows at least.
const READ_CHUNK: usize = 16 << 10;
/// Bytes read at once at most for one large frame, so that a declared length alone allocates little.
const MAX_READ_CHUNK: usize = 1 << 20;
/// Answers are collected up to this many bytes while further requests lie in the read buffer.
const WRITE_CHUNK: usize = 256 << 10;
/// Between attempts to bind the port of a resumed broker again.
const REBIND_PAUSE: Duration = Duration::from_millis(20);

/// Accepts connections for one broker until it is stopped; `context` is what each of them starts with.
pub(super) async fn listen(
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    context: Context,
) {
    let Some(switch) = context.cluster.faults.switch(context.broker) else { return };
    let mut wanted = switch.wanted.subscribe();
    let mut connections = JoinSet::new();
    let mut listener = Some(listener);
    loop {
        let now = *wanted.borrow_and_update();
        if now.stopped {
            break;
        }
        if now.paused {
            listener = None;
            connections.shutdown().await;
        } else if listener.is_none() {
            listener = TcpListener::bind(address).await.ok();
        }
        switch.listening.send_replace(listener.is_some());
        let accept = async {
            match &listener {
                Some(listener) => listener.accept().await.map(Some),
                None if now.paused => std::future::pending().await,
                None => {
                    tokio::time::sleep(REBIND_PAUSE).await;
                    Ok(None)
                }
            }
        };
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { break },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = accept => match accepted {
                Ok(Some((stream, peer))) => {
                    connections.spawn(connection(stream, peer, tls.clone(), context.clone(), wanted.clone()));
                }
                Ok(None) => {}
                Err(error) => {
                    warn!(%address, %error, "cannot accept a connection");
                    tokio::time::sleep(REBIND_PAUSE).await;
                }
            },
        }
    }
    connections.shutdown().await;
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    mut context: Context,
    mut wanted: watch::Receiver<Wanted>,
) {
    let (generation, broker) = (wanted.borrow().generation, context.broker);
    let ended = async move {
        // A closed channel ends the connection too: its cluster is gone.
        let _ = wanted.wait_for(|now| now.generation != generation || now.stopped).await;
    };
    if let (Ok(local), Ok(())) = (stream.local_addr(), stream.set_nodelay(true)) {
        context.local = local;
        context.peer = peer;
        let conversation = async {
            match tls {
                None => converse(stream, &mut context).await,
                Some(tls) => converse(tls.accept(stream).await?, &mut context).await,
            }
        };
        tokio::select! {
            () = ended => {}
            result = conversation => {
                if let Err(error) = result {
                    debug!(%peer, broker, %error, "connection ended");
                }
            }
        }
    }
}

/// Takes one whole frame off `input`, without its length field.
fn split_frame(input: &mut BytesMut) -> io::Result<Option<Bytes>> {
    let Some(prefix) = input.first_chunk::<4>() else { return Ok(None) };
    let length = i32::from_be_bytes(*prefix);
    let length = usize::try_from(length).ok().filter(|length| (1..=MAX_REQUEST).contains(length));
    let Some(length) = length else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a request must have 1 to {MAX_REQUEST} bytes"),
        ));
    };
    if input.len() < 4 + length {
        let missing = 4 + length - input.len();
        input.reserve(missing.clamp(READ_CHUNK, MAX_READ_CHUNK));
        return Ok(None);
    }
    input.advance(4);
    Ok(Some(input.split_to(length).freeze()))
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, context: &mut Context) -> io::Result<()> {
    let mut input = BytesMut::with_capacity(READ_CHUNK);
    let mut output = BytesMut::new();
    loop {
        let Some(frame) = split_frame(&mut input)? else {
            flush(&mut stream, &mut output).await?;
            input.reserve(1);
            if stream.read_buf(&mut input).await? == 0 {
                return Ok(());
            }
            continue;
        };
        if output.len() > WRITE_CHUNK || api::may_wait(&frame) || context.meets_faults() {
            flush(&mut stream, &mut output).await?;
        }
        match api::serve(context, frame, &mut output).await {
            Served::Answered { mute } if mute.is_zero() => {}
            Served::Answered { mute } => {
                flush(&mut stream, &mut output).await?;
                tokio::time::sleep(mute).await;
            }
            Served::Close { reason } => {
                flush(&mut stream, &mut output).await?;
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, reason));
            }
        }
    }
}

async fn flush<S: AsyncWrite + Unpin>(stream: &mut S, output: &mut BytesMut) -> io::Result<()> {
    if !output.is_empty() {
        stream.write_all(output).await?;
        // TLS keeps what the socket did not take.
        stream.flush().await?;
        output.clear();
        if output.capacity() > 4 * WRITE_CHUNK {
            *output = BytesMut::new();
        }
    }
    Ok(())
}

/// Binds all addresses, each with a port of its own.
pub(super) async fn bind(addresses: &[SocketAddr]) -> Result<Vec<(TcpListener, SocketAddr)>, super::Error> {
    let mut bound = Vec::with_capacity(addresses.len());
    for &address in addresses {
        let listener = TcpListener::bind(address).await.map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => super::Error::PortInUse { address },
            _ => super::Error::Bind { address, source },
        })?;
        let local = listener.local_addr().map_err(|source| super::Error::Bind { address, source })?;
        bound.push((listener, local));
    }
    Ok(bound)
}

/// A handle to tasks that are aborted when it goes away.
#[derive(Debug, Default)]
pub(super) struct Tasks(pub(super) JoinSet<()>);

impl Tasks {
    /// Waits for all of them.
    pub(super) async fn finish(mut self) {
        while self.0.join_next().await.is_some() {}
    }
}
