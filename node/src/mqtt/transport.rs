//! The byte stream below a connection, and who is at its other end. Nothing above knows which kind it is.
//!
//! ```text
//! listener -> opening: PROXY header -> TLS -> WebSocket -> connection
//! ```
//!
//! Invariants:
//! * A [`Transport`] is ready for MQTT: what has to come before is over ([`opening`]).
//! * What `poll_write` took is sent when `poll_flush` is ready, not before.

mod certificates;
mod frames;
pub(crate) mod opening;
mod proxy;
mod tls;
mod tls_stream;
mod upgrade;
mod websocket;

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

pub(crate) use certificates::{Certificates, keep_up_to_date};
pub use tls::{TlsError, check};
pub(crate) use tls_stream::Arithmetic;
use tls_stream::TlsStream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use websocket::WebSocket;

/// The other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its address; behind a proxy that tells, the one the proxy told.
    pub address: SocketAddr,
    /// The certificate that it proved to own.
    pub certificate: Option<Arc<ClientCertificate>>,
}

/// A client's certificate, verified against the listener's authorities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The common name of its subject, where it has one.
    pub common_name: Option<Box<str>>,
    /// Its subject as text, such as `O=Example, CN=meter-17`.
    pub subject: Box<str>,
}

/// Byte stream of a connection.
pub(crate) enum Transport {
    /// TCP, or TLS over it.
    Plain(Stream),
    /// WebSocket over one of them.
    WebSocket(Box<WebSocket>),
}

/// A stream of bytes that frames nothing.
pub(crate) enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// TLS over TCP.
    Tls(Box<TlsStream>),
}

impl Stream {
    fn wants_flush(&self) -> bool {
        match self {
            Self::Tcp(_) => false,
            Self::Tls(tls) => tls.wants_flush(),
        }
    }

    fn socket(&mut self) -> &mut TcpStream {
        match self {
            Self::Tcp(socket) => socket,
            Self::Tls(tls) => tls.socket(),
        }
    }
}

impl Transport {
    /// True for one that says goodbye in a way of its own: a close_notify, a close frame.
    pub(crate) fn has_farewell(&self) -> bool {
        !matches!(self, Self::Plain(Stream::Tcp(_)))
    }

    /// Something waits to be sent that `poll_write` has taken, or that the transport itself has to say.
    pub(crate) fn wants_flush(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.wants_flush(),
            Self::WebSocket(websocket) => websocket.wants_flush(),
        }
    }

    /// True once the other side has closed its half of the connection, also where data before that waits to
    /// be read. Consumes nothing and wakes no task.
    pub(crate) fn is_half_closed(&mut self) -> bool {
        let socket = match self {
            Self::Plain(stream) => stream.socket(),
            Self::WebSocket(websocket) => websocket.stream().socket(),
        };
        let ready = std::pin::pin!(socket.ready(tokio::io::Interest::READABLE));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        matches!(ready.poll(&mut cx), Poll::Ready(Ok(ready)) if ready.is_read_closed())
    }

    /// Reads what still comes after a shutdown, to be thrown away: nothing of it is looked at. Nothing read
    /// is the end.
    pub(crate) fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let socket = match self {
            Self::Plain(stream) => stream.socket(),
            Self::WebSocket(websocket) => websocket.stream().socket(),
        };
        Pin::new(socket).poll_read(cx, buffer)
    }
}

macro_rules! forward {
    ($name:ty: $($variant:ident),*) => {
        impl AsyncRead for $name {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buffer: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $(Self::$variant(inner) => Pin::new(inner).poll_read(cx, buffer),)*
                }
            }
        }

        impl AsyncWrite for $name {
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    $(Self::$variant(inner) => Pin::new(inner).poll_write(cx, data),)*
                }
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                data: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    $(Self::$variant(inner) => Pin::new(inner).poll_write_vectored(cx, data),)*
                }
            }

            fn is_write_vectored(&self) -> bool {
                match self {
                    $(Self::$variant(inner) => inner.is_write_vectored(),)*
                }
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $(Self::$variant(inner) => Pin::new(inner).poll_flush(cx),)*
                }
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $(Self::$variant(inner) => Pin::new(inner).poll_shutdown(cx),)*
                }
            }
        }
    };
}

forward!(Stream: Tcp, Tls);
forward!(Transport: Plain, WebSocket);
