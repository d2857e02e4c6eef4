//! The end of a connection: the reason goes to the client, the session back to the keeper, and the client's
//! end is waited for, so that no reset eats the reason.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
};

use causeway_protocol::mqtt::{Disconnect, Packet, ReasonCode, UserProperties, Version};
use tokio::{
    io::{AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{Connection, End, Phase, Scratch, Work};
use crate::mqtt::{explain::explain, out_buffer::OutBuffer, stats::Stats, sys};

impl Connection {
    /// Begins to close: the reason goes to the client, the session back to the keeper.
    pub(super) fn close(&mut self, end: End, now: Instant, work: &mut Work) -> bool {
        let version = self.decoder.version;
        let explanation = work.explanation.take();
        let closing = matches!(self.phase, Phase::Closing { .. });
        match end {
            End::Gone => {
                if closing || !self.socket.has_farewell() {
                    return true;
                }
                // Nothing more for the client but its transport's goodbye.
                self.out = OutBuffer::default();
            }
            End::Disconnected => {
                if let Some(client) = &mut self.client {
                    client.lease.ending().will = None;
                }
                if !self.socket.has_farewell() {
                    return true;
                }
                self.out = OutBuffer::default();
            }
            End::Refused(reason) => {
                if reason == ReasonCode::KeepAliveTimeout {
                    work.tally.counts().keep_alive_timeouts += 1;
                }
                let maximum =
                    self.client.as_ref().map_or(u32::MAX, |client| client.limits.maximum_packet_size);
                let disconnect = Packet::Disconnect(Disconnect {
                    reason,
                    session_expiry_interval: None,
                    reason_string: explanation.as_deref().or(explain(reason)),
                    server_reference: None,
                    user_properties: UserProperties::default(),
                });
                if version == Some(Version::V5)
                    && let Err(error) = self.out.packet(Version::V5, maximum, &disconnect)
                {
                    tracing::debug!(%error, "DISCONNECT not sent");
                }
            }
            End::NotConnected(reason, version) => {
                work.tally.counts().handshakes_failed += 1;
                let maximum = match &self.phase {
                    Phase::Claiming(claiming) => Some(claiming.connect.maximum_packet_size()),
                    _ => work.client_maximum,
                };
                self.refuse_connection(reason, version, maximum);
            }
        }
        self.let_go();
        if let Some(rates) = &mut self.rates {
            rates.forget_pause();
        }
        self.input = Vec::new();
        self.phase = Phase::Closing { deadline: now + self.shared.options.linger, shut: false };
        false
    }

    /// Writes the rest, closes our half, and reads until the client closes its own: closing with unread
    /// input would reset the connection, and the reason would not arrive.
    pub(super) fn close_round(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut Scratch,
        now: Instant,
    ) -> Result<bool, End> {
        let Phase::Closing { deadline, shut } = &mut self.phase else { return Ok(false) };
        if now >= *deadline {
            return Err(End::Gone);
        }
        let mut written = 0;
        let result = self.out.poll_write(&mut self.socket, cx, &mut written);
        scratch.work.tally.counts().bytes_sent += written;
        match result {
            Poll::Ready(Ok(())) if !*shut => {
                let closed: Poll<io::Result<()>> = Pin::new(&mut self.socket).poll_shutdown(cx);
                if let Poll::Ready(Err(_)) = closed {
                    return Err(End::Gone);
                }
                *shut = closed.is_ready();
            }
            Poll::Ready(Err(_)) => return Err(End::Gone),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        let mut buffer = ReadBuf::new(&mut scratch.read);
        match self.socket.poll_drain(cx, &mut buffer) {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => Ok(true),
            Poll::Ready(_) => Err(End::Gone),
        }
    }

    /// Gives the session back to the keeper.
    pub(in crate::mqtt) fn let_go(&mut self) {
        if let Some(mut client) = self.client.take() {
            let ahead = self.ahead.take().unwrap_or_default();
            let first = ahead.first().unwrap_or_default();
            Stats::add(&self.shared.stats.dropped_read_ahead, ahead.unreliable() as u64);
            if std::thread::panicking() {
                // The publication at hand may be the cause of the panic.
                let leave = AssertUnwindSafe(|| client.leave(&self.shared, first, self.decoder));
                if catch_unwind(leave).is_err() {
                    tracing::error!(
                        client_id = &*client.origin.client_id,
                        "a publication was not brought to its end"
                    );
                }
            } else {
                client.leave(&self.shared, first, self.decoder);
            }
            sys::client_event(&self.shared, &client.origin, client.version(), sys::Event::Disconnected);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if matches!(self.phase, Phase::Connecting { .. } | Phase::Authenticating(_) | Phase::Claiming(_)) {
            Stats::add(&self.shared.stats.handshakes_failed, 1);
        }
        self.let_go();
    }
}
