//! Bytes on their way to a client.
//!
//! Small packets are copied one behind the other, so that a turn is one write; a large payload is not
//! copied but sent from the publication that everybody shares.
//!
//! Invariants:
//! * Bytes leave in the order they were put in, each once.
//! * A hand-over put in is let go when the bytes before it are written, or when the buffer goes.

use std::{collections::VecDeque, io, io::IoSlice, pin::Pin, sync::Arc, task::Context, task::Poll};

use bytes::BytesMut;
use causeway_protocol::mqtt::{AckKind, EncodeError, Packet, Publish, ReasonCode, Version};
use tokio::io::AsyncWrite;

use super::publication::{Delivery, Publication};
use crate::flow::HandOver;

/// From here on a payload is sent from where it is. Below it a copy is cheaper than one more slice.
const SHARED_PAYLOAD: usize = 16 << 10;

/// The largest buffer a thread keeps for its next connection.
const KEPT: usize = 1 << 20;

/// Slices in one write; what is behind them goes with the next.
const SLICES: usize = 16;

enum Segment {
    Bytes(BytesMut),
    Payload(Arc<Publication>),
}

impl Segment {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Payload(publication) => publication.payload(),
        }
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct OutBuffer {
    /// Complete segments, before `tail`.
    segments: VecDeque<Segment>,
    tail: BytesMut,
    /// Bytes of the first segment that are written.
    written: usize,
    len: usize,
    /// Bytes that were ever put in.
    position: u64,
    hand_overs: VecDeque<(u64, Arc<HandOver>)>,
}

/// A delivery that cannot be sent to this client.
pub(crate) enum Unsendable {
    /// Larger than the client takes (MQTT-3.1.2-24), or than MQTT allows.
    TooLarge,
    /// Its expiry interval has passed.
    Expired,
}

impl OutBuffer {
    /// Bytes not written yet.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory that are its own: those of shared payloads are counted with their publications.
    pub(crate) fn footprint(&self) -> usize {
        let own = |segment: &Segment| match segment {
            Segment::Bytes(bytes) => bytes.len(),
            Segment::Payload(_) => 0,
        };
        self.tail.capacity() + self.segments.iter().map(own).sum::<usize>()
    }

    /// Uses `buffer` while it has none of its own.
    pub(crate) fn lend(&mut self, buffer: &mut BytesMut) {
        if self.len == 0 {
            std::mem::swap(&mut self.tail, buffer);
        }
    }

    /// Gives the lent buffer back, if it is not needed any more.
    pub(crate) fn give_back(&mut self, buffer: &mut BytesMut) {
        if self.len == 0 {
            let mut tail = std::mem::take(&mut self.tail);
            tail.clear();
            if tail.capacity() <= KEPT {
                *buffer = tail;
            }
        }
    }

    fn grown(&mut self, before: usize) {
        let by = self.tail.len() - before;
        self.len += by;
        self.position += by as u64;
    }

    /// Puts in a packet, without its optional parts where the client does not take it otherwise.
    pub(crate) fn packet(
        &mut self,
        version: Version,
        maximum_packet_size: u32,
        packet: &Packet<'_>,
    ) -> Result<(), EncodeError> {
        let before = self.tail.len();
        let result = packet.encode_within(version, maximum_packet_size, &mut self.tail);
        self.grown(before);
        result
    }

    /// Puts in an acknowledgement.
    pub(crate) fn ack(&mut self, version: Version, kind: AckKind, identifier: u16, reason: ReasonCode) {
        let before = self.tail.len();
        causeway_protocol::mqtt::encode_ack(&mut self.tail, version, kind, identifier, reason);
        self.grown(before);
    }

    /// Puts in a PUBLISH. `identifier` is 0 with QoS 0.
    pub(crate) fn publish(
        &mut self,
        version: Version,
        maximum_packet_size: u32,
        delivery: &Delivery,
        identifier: u16,
        dup: bool,
        now: i64,
    ) -> Result<(), Unsendable> {
        let publication = &delivery.publication;
        let mut publish = Publish {
            dup,
            qos: delivery.qos,
            retain: delivery.retain,
            topic: publication.topic(),
            packet_identifier: identifier,
            payload: publication.payload(),
            ..Publish::default()
        };
        if !publication.properties().is_empty() {
            // A re-delivery is finished even if it expired on the way: the client knows the identifier.
            let at = if dup { publication.received_at } else { now };
            let properties = publication.properties_at(at).ok_or(Unsendable::Expired)?;
            if version == Version::V5 {
                publish.properties = properties;
            }
        }
        if version == Version::V5
            && let Some(identifiers) = &delivery.identifiers
        {
            publish.properties.subscription_identifiers = identifiers.iter().copied().collect();
        }
        let before = self.tail.len();
        let encoded = causeway_protocol::mqtt::encode_publish_head(&mut self.tail, version, &publish);
        let head = encoded.map(|layout| layout.frame_len()).map_err(|_| Unsendable::TooLarge)?;
        let payload = publish.payload;
        if head + payload.len() > maximum_packet_size as usize {
            self.tail.truncate(before);
            return Err(Unsendable::TooLarge);
        }
        if payload.len() < SHARED_PAYLOAD {
            self.tail.extend_from_slice(payload);
            self.grown(before);
            return Ok(());
        }
        self.grown(before);
        self.segments.push_back(Segment::Bytes(self.tail.split()));
        self.segments.push_back(Segment::Payload(publication.clone()));
        self.len += payload.len();
        self.position += payload.len() as u64;
        Ok(())
    }

    /// Lets go of a hand-over when everything put in so far is written.
    pub(crate) fn hold(&mut self, hand_over: Arc<HandOver>) {
        self.hand_overs.push_back((self.position, hand_over));
    }

    /// Writes what it can; ready when nothing is left.
    pub(crate) fn poll_write<W: AsyncWrite + Unpin>(
        &mut self,
        socket: &mut W,
        cx: &mut Context<'_>,
        written: &mut u64,
    ) -> Poll<io::Result<()>> {
        while self.len > 0 {
            let result = if self.segments.is_empty() {
                let bytes = self.tail.get(self.written..).unwrap_or_default();
                Pin::new(&mut *socket).poll_write(cx, bytes)
            } else {
                let mut skip = self.written;
                let mut slices = [IoSlice::new(&[]); SLICES];
                let all = self.segments.iter().map(Segment::bytes).chain(std::iter::once(&*self.tail));
                let mut used = 0;
                for (slice, bytes) in slices.iter_mut().zip(all) {
                    *slice = IoSlice::new(bytes.get(skip..).unwrap_or_default());
                    skip = 0;
                    used += 1;
                }
                Pin::new(&mut *socket).poll_write_vectored(cx, slices.get(..used).unwrap_or_default())
            };
            let count = match result {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => count,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            };
            *written += count as u64;
            self.consume(count);
        }
        Poll::Ready(Ok(()))
    }

    fn consume(&mut self, count: usize) {
        self.len -= count.min(self.len);
        self.written += count;
        while let Some(first) = self.segments.front() {
            let length = first.bytes().len();
            if self.written < length {
                break;
            }
            self.written -= length;
            self.segments.pop_front();
        }
        if self.len == 0 {
            self.tail.clear();
            self.written = 0;
            self.segments = VecDeque::new();
        }
        let reached = self.position - self.len as u64;
        while self.hand_overs.front().is_some_and(|(position, _)| *position <= reached) {
            self.hand_overs.pop_front();
        }
        if self.hand_overs.is_empty() {
            self.hand_overs = VecDeque::new();
        }
    }

    /// Everything not written yet, for tests.
    #[cfg(test)]
    pub(crate) fn take(&mut self) -> Vec<u8> {
        let all = self.segments.iter().map(Segment::bytes).chain(std::iter::once(&*self.tail));
        let bytes = all.flatten().skip(self.written).copied().collect();
        self.consume(self.len);
        bytes
    }
}
