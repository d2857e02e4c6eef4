//! Frames over a socket, each with its time limit.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use causeway_protocol::wire::{self, Frame, FrameDecoder, Protocol};
use serde::Serialize;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

/// Room for a read: requests are shorter, long answers reserve what their envelope says.
const READ_ROOM: usize = 4096;
/// Read and thrown away, at most, of what the other side sends after the last frame.
const LINGER_BYTES: usize = 256 * 1024;
const LINGER: Duration = Duration::from_secs(1);

/// Why a frame did not come or go. The connection is of no use afterwards.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The bytes are no frame.
    #[error(transparent)]
    Wire(#[from] wire::Error),
    /// The socket failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// Nothing came or went for too long.
    #[error("nothing {done} for {after:?}")]
    Timeout {
        /// "came" or "could be sent".
        done: &'static str,
        /// The limit.
        after: Duration,
    },
    /// The other side closed in the middle of a frame.
    #[error("the other side closed the connection in the middle of a frame")]
    Cut,
}

/// How long to wait for a frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For its first byte.
    pub(super) first: Duration,
    /// For the rest of it.
    pub(super) rest: Duration,
}

/// One side of a connection.
pub(super) struct Link {
    stream: TcpStream,
    decoder: FrameDecoder,
    outgoing: Protocol,
    input: BytesMut,
}

impl Link {
    /// Reads frames of `incoming` and writes those of `outgoing`.
    pub(super) fn new(stream: TcpStream, incoming: Protocol, outgoing: Protocol) -> Self {
        // Frames are written whole: waiting for more only delays them.
        let _ = stream.set_nodelay(true);
        Self { stream, decoder: FrameDecoder::new(incoming), outgoing, input: BytesMut::new() }
    }

    /// The socket, once its connection has ended.
    pub(super) fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// The next frame; `None` when the other side closed between two.
    pub(super) async fn receive(&mut self, patience: Patience) -> Result<Option<Frame>, LinkError> {
        let mut after = if self.input.is_empty() { patience.first } else { patience.rest };
        let mut deadline = Instant::now() + after;
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.input)? {
                return Ok(Some(frame));
            }
            let begun = !self.input.is_empty();
            self.input.reserve(READ_ROOM);
            let read = timeout_at(deadline, self.stream.read_buf(&mut self.input)).await;
            match read.map_err(|_| LinkError::Timeout { done: "came", after })?? {
                0 if begun => return Err(LinkError::Cut),
                0 => return Ok(None),
                _ if begun => {}
                _ => {
                    after = patience.rest;
                    deadline = Instant::now() + after;
                }
            }
        }
    }

    /// Sends a frame.
    pub(super) async fn send<T: Serialize>(
        &mut self,
        version: u16,
        kind: u16,
        header: &T,
        after: Duration,
    ) -> Result<(), LinkError> {
        let mut out = BytesMut::new();
        wire::encode(&self.outgoing, version, kind, header, 0, &mut out)?;
        let written = timeout(after, self.stream.write_all(&out)).await;
        Ok(written.map_err(|_| LinkError::Timeout { done: "could be sent", after })??)
    }

    /// Ends the connection so that the last frame arrives: closing a socket with unread input would
    /// reset it, and the other side would lose what it has not read yet.
    pub(super) async fn close(&mut self) {
        let drain = async {
            self.stream.shutdown().await?;
            let mut seen = 0;
            while seen < LINGER_BYTES {
                self.input.clear();
                self.input.reserve(READ_ROOM);
                match self.stream.read_buf(&mut self.input).await? {
                    0 => break,
                    read => seen += read,
                }
            }
            io::Result::Ok(())
        };
        if let Ok(Err(error)) = timeout(LINGER, drain).await {
            tracing::trace!(%error, "admin connection ended before it was closed");
        }
    }
}
