//! TLS over a socket, with rustls (RFC 8446, RFC 5246).
//!
//! The protocol is rustls' own; buffers are ours. They belong to the thread while a record is decrypted or
//! encrypted, so that an idle connection holds none: only what has arrived of a record, and what the
//! socket did not take, stays with the connection.
//!
//! Invariants:
//! * What `poll_write` took is encrypted; it is with the system when `poll_flush` is ready. While some
//!   of it is not, nothing more is taken.
//! * What is kept of input is at most [`HANDSHAKE_LIMIT`] before the handshake is done, and less than a
//!   record after it.
//! * The handshake does its arithmetic while it holds a permit of [`Arithmetic`]: however many are under way,
//!   few of them have the processor.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    sync::Semaphore,
};
use tokio_rustls::rustls::{
    self, CertificateError, ServerConfig,
    pki_types::CertificateDer,
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic},
};

/// Bytes of handshake messages that may wait for their rest: a chain of client certificates and more.
const HANDSHAKE_LIMIT: usize = 64 << 10;

/// Bytes of a record at most, with its header (RFC 5246 6.2.3, the larger of the two).
const RECORD: usize = 5 + (16 << 10) + 2048;

/// Bytes of ciphertext that are looked at in one go.
const READ: usize = 32 << 10;

/// Bytes of plaintext that are encrypted in one go.
const WRITE: usize = 64 << 10;

/// Bytes that encryption may add to those: a header, a nonce and a tag for each of its records.
const OVERHEAD: usize = 256;

/// How many handshakes may do their arithmetic at once.
pub(crate) type Arithmetic = Semaphore;

struct Scratch {
    read: Box<[u8]>,
    /// Plaintext that is gathered from many slices.
    gather: Vec<u8>,
    write: Box<[u8]>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        read: vec![0; RECORD + READ].into_boxed_slice(),
        gather: Vec::new(),
        write: vec![0; WRITE + OVERHEAD].into_boxed_slice(),
    });
}

/// A TLS stream whose buffers belong to the thread.
pub(crate) struct TlsStream {
    socket: TcpStream,
    session: UnbufferedServerConnection,
    /// Received, and not a whole record yet.
    incoming: Vec<u8>,
    /// Decrypted, and not taken yet: what did not fit where it was read to.
    plain: Vec<u8>,
    /// Encrypted, and not taken by the socket yet.
    outgoing: Vec<u8>,
    /// Bytes of `outgoing` that the socket has.
    sent: usize,
    /// The client says that nothing more comes.
    ended: bool,
    /// Our close_notify is in `outgoing`, or sent.
    closed: bool,
    /// An error has ended the session; its alert is in `outgoing`, or sent.
    failed: bool,
}

/// Where [`advance`] stopped.
enum Stop {
    /// More has to come before the handshake goes on.
    Handshaking,
    /// The handshake is done, and all input dealt with.
    Open,
}

impl TlsStream {
    pub(crate) fn new(socket: TcpStream, config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        Ok(Self {
            socket,
            session: UnbufferedServerConnection::new(config)?,
            incoming: Vec::new(),
            plain: Vec::new(),
            outgoing: Vec::new(),
            sent: 0,
            ended: false,
            closed: false,
            failed: false,
        })
    }

    /// Brings the handshake to its end. On an error the client is told by an alert, as far as it takes it.
    pub(crate) async fn handshake(&mut self, arithmetic: &Arithmetic) -> io::Result<()> {
        loop {
            if self.incoming.len() >= HANDSHAKE_LIMIT {
                return Err(invalid("the handshake is larger than 64 KB"));
            }
            let mut received = [0; 4096];
            let count = self.socket.read(&mut received).await?;
            if count == 0 || self.ended {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.incoming.extend_from_slice(received.get(..count).unwrap_or_default());
            let permit = arithmetic.acquire().await.map_err(io::Error::other)?;
            let (mut incoming, mut plain) = (std::mem::take(&mut self.incoming), Vec::new());
            let (consumed, result) = self.advance(&mut incoming, |data| plain.extend_from_slice(data));
            drop(permit);
            self.plain.append(&mut plain);
            incoming.drain(..consumed.min(incoming.len()));
            if !incoming.is_empty() {
                self.incoming = incoming;
            }
            // Answers, or the alert that says what was wrong.
            let written = self.socket.write_all(&self.outgoing).await;
            self.outgoing = Vec::new();
            match result? {
                // TLS 1.3 may write before the client has proved who it is.
                Stop::Open if !self.session.is_handshaking() => return written,
                Stop::Open | Stop::Handshaking => written?,
            }
        }
    }

    /// The client's certificates, its own first, where it was asked for them and sent them.
    pub(crate) fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        self.session.peer_certificates()
    }

    pub(super) fn socket(&mut self) -> &mut TcpStream {
        &mut self.socket
    }

    /// Something waits to be sent.
    pub(crate) fn wants_flush(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Lets rustls work on `incoming`: plaintext goes to `take`, what is to be sent to `outgoing`. Answers
    /// how many bytes of `incoming` are dealt with.
    fn advance(
        &mut self,
        incoming: &mut [u8],
        mut take: impl FnMut(&[u8]),
    ) -> (usize, Result<Stop, io::Error>) {
        let mut consumed = 0;
        let mut failed = None;
        if self.failed {
            return (0, Err(io::ErrorKind::BrokenPipe.into()));
        }
        loop {
            if self.failed && !self.session.wants_write() {
                // The alert is taken. The input that caused it would cause a second one.
                return (consumed, failed.map_or(Ok(Stop::Open), Err));
            }
            let rest = incoming.get_mut(consumed..).unwrap_or_default();
            let UnbufferedStatus { mut discard, state, .. } = self.session.process_tls_records(rest);
            let stop = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
                    match traffic.next_record() {
                        Some(Ok(record)) => {
                            discard += record.discard;
                            take(record.payload);
                        }
                        Some(Err(error)) => break Some(Err(tls_error(error))),
                        None => break None,
                    }
                },
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(&mut self.outgoing, |space| match data.encode(space) {
                        Ok(count) => Ok(count),
                        Err(EncodeError::InsufficientSize(error)) => Err(error.required_size),
                        Err(EncodeError::AlreadyEncoded) => Ok(0),
                    });
                    None
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    // It is in `outgoing`, and everything leaves in its order.
                    data.done();
                    None
                }
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                    self.ended = true;
                    Some(Ok(Stop::Open))
                }
                Ok(ConnectionState::BlockedHandshake) => Some(Ok(Stop::Handshaking)),
                Ok(ConnectionState::WriteTraffic(_)) => Some(Ok(Stop::Open)),
                // Early data is not offered.
                Ok(_) => Some(Err(invalid("an unexpected state of TLS"))),
                Err(error) => {
                    self.failed = true;
                    failed = Some(tls_error(error));
                    None
                }
            };
            consumed += discard;
            if let Some(stop) = stop {
                return (consumed, failed.map_or(stop, Err));
            }
        }
    }

    /// Hands rustls what there is to write; false where the session writes nothing any more.
    fn write_traffic(
        &mut self,
        write: impl FnOnce(WriteTraffic<'_, ServerConnectionData>),
    ) -> io::Result<()> {
        let mut incoming = std::mem::take(&mut self.incoming);
        let mut plain = Vec::new();
        // `incoming` holds no whole record: this deals with key updates and tickets of ours.
        let (consumed, result) = self.advance(&mut incoming, |data| plain.extend_from_slice(data));
        incoming.drain(..consumed.min(incoming.len()));
        if !plain.is_empty() {
            self.plain.append(&mut plain);
        }
        let state = match result {
            Ok(Stop::Open) => self.session.process_tls_records(&mut incoming).state,
            Ok(Stop::Handshaking) => return Err(io::ErrorKind::NotConnected.into()),
            Err(error) => return Err(error),
        };
        let written = match state {
            Ok(ConnectionState::WriteTraffic(traffic)) => {
                write(traffic);
                Ok(())
            }
            Ok(_) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(error) => Err(tls_error(error)),
        };
        if !incoming.is_empty() {
            self.incoming = incoming;
        }
        written
    }

    /// Brings what is encrypted to the socket.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.outgoing.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match Pin::new(&mut self.socket).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => self.sent += count,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        self.outgoing = Vec::new();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    /// Encrypts `data` and sends it; what the socket does not take stays in `outgoing`, which is empty
    /// before.
    fn encrypt(&mut self, cx: &mut Context<'_>, data: &[u8], space: &mut [u8]) -> io::Result<()> {
        let mut result = Err(EncryptError::EncryptExhausted);
        self.write_traffic(|mut traffic| result = traffic.encrypt(data, space))?;
        let count = result.map_err(io::Error::other)?;
        let mut ciphertext = space.get(..count).unwrap_or_default();
        // A ticket or key update that came to be sent with it goes first.
        if self.outgoing.is_empty() {
            while !ciphertext.is_empty() {
                match Pin::new(&mut self.socket).poll_write(cx, ciphertext) {
                    Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(count)) => ciphertext = ciphertext.get(count..).unwrap_or_default(),
                    Poll::Ready(Err(error)) => return Err(error),
                    Poll::Pending => break,
                }
            }
        }
        self.outgoing.extend_from_slice(ciphertext);
        Ok(())
    }

    fn take_plain(&mut self, buffer: &mut ReadBuf<'_>) {
        let count = self.plain.len().min(buffer.remaining());
        buffer.put_slice(self.plain.get(..count).unwrap_or_default());
        self.plain.drain(..count);
        if self.plain.is_empty() {
            self.plain = Vec::new();
        }
    }

    /// Reads ciphertext once and decrypts what is there.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
        space: &mut [u8],
    ) -> Poll<io::Result<()>> {
        let kept = self.incoming.len();
        // Plaintext is shorter than its ciphertext: what is read so fits `buffer`, but for a record that had
        // begun before.
        let limit = (kept + buffer.remaining().max(1024)).min(space.len());
        let Some(free) = space.get_mut(kept..limit).filter(|free| !free.is_empty()) else {
            return Poll::Ready(Err(invalid("a record that is too long")));
        };
        let mut received = ReadBuf::new(free);
        match Pin::new(&mut self.socket).poll_read(cx, &mut received) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(result) => result?,
        }
        let count = received.filled().len();
        if count == 0 {
            // Without a close_notify; the MQTT packets say by themselves whether one is missing a part.
            self.ended = true;
            return Poll::Ready(Ok(()));
        }
        let Some(data) = space.get_mut(..kept + count) else { return Poll::Ready(Ok(())) };
        if let Some(front) = data.get_mut(..kept) {
            front.copy_from_slice(&self.incoming);
        }
        let mut plain = std::mem::take(&mut self.plain);
        let (consumed, result) = self.advance(data, |record| {
            let fits = if plain.is_empty() { record.len().min(buffer.remaining()) } else { 0 };
            let (now, later) = record.split_at_checked(fits).unwrap_or((record, &[]));
            buffer.put_slice(now);
            plain.extend_from_slice(later);
        });
        self.plain = plain;
        let rest = data.get(consumed..).unwrap_or_default();
        if rest.is_empty() {
            self.incoming = Vec::new();
        } else {
            self.incoming.clear();
            self.incoming.extend_from_slice(rest);
        }
        Poll::Ready(result.map(|_| ()))
    }
}

/// Grows `buffer` by what `write` puts in; an error of it is the size that it needs.
fn encode(buffer: &mut Vec<u8>, mut write: impl FnMut(&mut [u8]) -> Result<usize, usize>) {
    let start = buffer.len();
    let mut size = 512;
    // The second time it fits.
    for _ in 0..2 {
        buffer.resize(start + size, 0);
        match write(buffer.get_mut(start..).unwrap_or_default()) {
            Ok(count) => {
                buffer.truncate(start + count);
                return;
            }
            Err(required) => size = required,
        }
    }
    buffer.truncate(start);
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// An error of TLS. Where its own words do not tell how to mend it, others do.
fn tls_error(error: rustls::Error) -> io::Error {
    if let rustls::Error::InvalidCertificate(CertificateError::Other(other)) = &error
        // The library behind rustls names its errors and exports no type for them.
        && other.to_string().contains("UnsupportedCertVersion")
    {
        return invalid(
            "the client's certificate has X.509 version 1, which is not taken: make a certificate of version 3 \
             (openssl x509 -req makes version 1 without -extfile)",
        );
    }
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl AsyncRead for TlsStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        loop {
            if !this.plain.is_empty() {
                this.take_plain(buffer);
                return Poll::Ready(Ok(()));
            }
            if this.ended || buffer.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            let received =
                SCRATCH.with_borrow_mut(|scratch| this.poll_receive(cx, buffer, &mut scratch.read));
            match received {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) if buffer.filled().len() > before => return Poll::Ready(Ok(())),
                // A part of a record, or one that is not data.
                Poll::Ready(Ok(())) => {}
            }
        }
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.poll_send(cx)?.is_pending() {
            return Poll::Pending;
        }
        let data = data.get(..WRITE).unwrap_or(data);
        SCRATCH.with_borrow_mut(|scratch| this.encrypt(cx, data, &mut scratch.write))?;
        Poll::Ready(Ok(data.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.poll_send(cx)?.is_pending() {
            return Poll::Pending;
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { gather, write, .. } = scratch;
            gather.clear();
            for slice in slices {
                let room = WRITE - gather.len();
                gather.extend_from_slice(slice.get(..room).unwrap_or(slice));
            }
            let count = gather.len();
            this.encrypt(cx, gather, write)?;
            Poll::Ready(Ok(count))
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.closed {
            this.closed = true;
            let mut notify = Vec::new();
            // A session that has failed has its alert in `outgoing` instead.
            let _ = this.write_traffic(|mut traffic| {
                encode(&mut notify, |space| match traffic.queue_close_notify(space) {
                    Ok(count) => Ok(count),
                    Err(EncryptError::InsufficientSize(error)) => Err(error.required_size),
                    Err(EncryptError::EncryptExhausted) => Ok(0),
                });
            });
            this.outgoing.append(&mut notify);
        }
        match this.poll_send(cx) {
            Poll::Ready(Ok(())) => Pin::new(&mut this.socket).poll_shutdown(cx),
            other => other,
        }
    }
}
