//! A file descriptor kept for the administrator of a node that has no other one left.
//!
//! A connection that was let in with it gives its socket back when it ends, without a moment at which the
//! descriptor is free: clients that wait to be accepted would take it, and the next `causeway ctl` would find
//! none.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// Pause after an `accept` that failed for want of a file descriptor while the reserve is in use: an
/// immediate retry would spin.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The descriptor, while it is not in use. One connection at a time is enough for an administrator.
pub(super) struct Reserve(Option<OwnedFd>);

impl Reserve {
    /// A full reserve, as far as the system allows it.
    pub(super) fn take() -> Self {
        Self(std::fs::File::open("/dev/null").ok().map(OwnedFd::from))
    }

    /// Tries again, with the reserve, an `accept` that ended with `error`. Returns `error` where no
    /// descriptor was missing, or the reserve is in use.
    pub(super) async fn accept(&mut self, listener: &TcpListener, error: io::Error) -> io::Result<TcpStream> {
        // EMFILE, ENFILE: of the process, of the machine.
        if !matches!(error.raw_os_error(), Some(24 | 23)) || self.0.take().is_none() {
            return Err(error);
        }
        // A connection is waiting: accepting it is what failed.
        let accepted = timeout(ACCEPT_PAUSE, listener.accept()).await;
        match accepted {
            Ok(Ok((stream, _))) => Ok(stream),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(error),
        }
    }

    /// Ends a connection. Its socket becomes the reserve where there is none.
    pub(super) fn keep(&mut self, stream: TcpStream) {
        if self.0.is_none() {
            // A peer that is gone already has nothing to be told.
            let _ = SockRef::from(&stream).shutdown(std::net::Shutdown::Both);
            self.0 = stream.into_std().ok().map(OwnedFd::from);
        }
    }

    /// Fills an empty reserve, as far as the system allows it.
    pub(super) fn fill(&mut self) {
        if self.0.is_none() {
            *self = Self::take();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn the_reserve_lets_one_in_when_there_is_no_file_descriptor_and_is_filled_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut reserve = Reserve::take();
        let none_left = |code| io::Error::from_raw_os_error(code);
        for code in [24, 23] {
            let mut waits = TcpStream::connect(address).await.unwrap();
            let stream = reserve.accept(&listener, none_left(code)).await.unwrap();
            assert_eq!(stream.peer_addr().unwrap(), waits.local_addr().unwrap());
            assert!(reserve.0.is_none());
            // While it is in use, no other connection is let in with it.
            let error = reserve.accept(&listener, none_left(code)).await.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(code));
            // The socket is the reserve as soon as its connection has ended, and the peer sees the end.
            reserve.keep(stream);
            assert!(reserve.0.is_some());
            assert_eq!(waits.read(&mut [0; 1]).await.unwrap(), 0);
        }
        // Nor is it used for another reason.
        let error = reserve.accept(&listener, io::ErrorKind::ConnectionAborted.into()).await.unwrap_err();
        assert!(error.kind() == io::ErrorKind::ConnectionAborted && reserve.0.is_some());
    }
}
