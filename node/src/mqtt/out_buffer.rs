//! Bytes on their way to a client.
//!
//! Small packets are copied one behind the other, so that a turn is one write; a large payload is not
//! copied but sent from the shared publication.
//!
//! Invariants:
//! * Bytes leave in the order they were put in, each once.
//! * A hand-over put in is let go when the bytes before it are written, or when the buffer goes.

use std::{collections::VecDeque, io, io::IoSlice, pin::Pin, sync::Arc, task::Context, task::Poll};

use bytes::BytesMut;
use causeway_protocol::mqtt::{AckKind, EncodeError, Packet, Publish, QoS, ReasonCode, Version};
use tokio::io::AsyncWrite;

use super::{
    publication::{Delivery, Publication},
    topic_aliases::{Naming, TopicAliases},
};
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

/// See the module. An idle connection's is a null pointer: what it needs while it has bytes it borrows from
/// its thread ([`OutBuffer::lend`]).
#[derive(Default)]
pub(crate) struct OutBuffer {
    queue: Option<Box<Queue>>,
    /// For a client that takes topic aliases.
    aliases: Option<Box<TopicAliases>>,
}

/// The bytes of an [`OutBuffer`], and what a thread lends to connections for a turn.
#[derive(Default)]
pub(crate) struct Queue {
    /// Complete segments, before `tail`.
    segments: VecDeque<Segment>,
    tail: BytesMut,
    /// Bytes of the first segment that are written.
    written: usize,
    len: usize,
    /// Bytes that were put in since it was last empty at the begin of a turn.
    position: u64,
    /// Where the last PUBLISH ends.
    publishes_end: u64,
    hand_overs: VecDeque<(u64, Arc<HandOver>)>,
}

/// How a PUBLISH is sent.
#[derive(Clone, Copy)]
struct Sending {
    version: Version,
    maximum_packet_size: u32,
    identifier: u16,
    dup: bool,
    now: i64,
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
        self.queue.as_ref().map_or(0, |queue| queue.len)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory that are its own: those of shared payloads are counted with their publications.
    pub(crate) fn footprint(&self) -> usize {
        let aliases = self.aliases.as_ref().map_or(0, |aliases| aliases.footprint());
        self.queue.as_ref().map_or(0, |queue| queue.footprint()) + aliases
    }

    /// The client takes aliases up to `maximum`.
    pub(crate) fn use_aliases(&mut self, maximum: u16) {
        self.aliases = TopicAliases::new(maximum);
    }

    /// Uses `queue` while it has none of its own.
    pub(crate) fn lend(&mut self, queue: &mut Option<Box<Queue>>) {
        if self.queue.is_none() {
            self.queue = queue.take();
        }
    }

    /// Gives the lent queue back, if it is not needed any more.
    pub(crate) fn give_back(&mut self, queue: &mut Option<Box<Queue>>) {
        if self.is_empty()
            && let Some(mut own) = self.queue.take()
        {
            own.reset();
            if own.tail.capacity() <= KEPT {
                *queue = Some(own);
            }
        }
    }

    fn queue(&mut self) -> &mut Queue {
        self.queue.get_or_insert_default()
    }

    /// Puts in a packet, without its optional parts where the client does not take it otherwise.
    pub(crate) fn packet(
        &mut self,
        version: Version,
        maximum_packet_size: u32,
        packet: &Packet<'_>,
    ) -> Result<(), EncodeError> {
        let queue = self.queue();
        let before = queue.tail.len();
        let result = packet.encode_within(version, maximum_packet_size, &mut queue.tail);
        queue.grown(before);
        result
    }

    /// Puts in an acknowledgement.
    pub(crate) fn ack(&mut self, version: Version, kind: AckKind, identifier: u16, reason: ReasonCode) {
        let queue = self.queue();
        let before = queue.tail.len();
        causeway_protocol::mqtt::encode_ack(&mut queue.tail, version, kind, identifier, reason);
        queue.grown(before);
    }

    /// Puts in a packet that was encoded before.
    pub(crate) fn raw(&mut self, packet: &[u8]) {
        let queue = self.queue();
        let before = queue.tail.len();
        queue.tail.extend_from_slice(packet);
        queue.grown(before);
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
        let queue = self.queue.get_or_insert_default();
        let sending = Sending { version, maximum_packet_size, identifier, dup, now };
        let Some(aliases) = &mut self.aliases else { return queue.publish(sending, delivery, Naming::Plain) };
        let topic = delivery.publication.topic();
        match aliases.name(topic) {
            Naming::Set(alias) => match queue.publish(sending, delivery, Naming::Set(alias)) {
                Ok(()) => {
                    aliases.sent(alias, topic);
                    Ok(())
                }
                // It may fit without the alias.
                Err(_) => queue.publish(sending, delivery, Naming::Plain),
            },
            naming => queue.publish(sending, delivery, naming),
        }
    }

    /// Lets go of a hand-over when everything put in so far is written.
    pub(crate) fn hold(&mut self, hand_over: Arc<HandOver>) {
        let queue = self.queue();
        queue.hand_overs.push_back((queue.position, hand_over));
    }

    /// True while something of a PUBLISH is not written.
    pub(crate) fn holds_publish(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.position - (queue.len as u64) < queue.publishes_end)
    }

    /// Hand-overs of what is not written.
    pub(crate) fn hand_overs(&self) -> impl Iterator<Item = &Arc<HandOver>> {
        self.queue.iter().flat_map(|queue| queue.hand_overs.iter().map(|(_, hand_over)| hand_over))
    }

    /// Lets go of all hand-overs, written or not.
    pub(crate) fn let_go(&mut self) {
        if let Some(queue) = &mut self.queue {
            queue.hand_overs = VecDeque::new();
        }
    }

    /// Writes what it can; ready when nothing is left.
    pub(crate) fn poll_write<W: AsyncWrite + Unpin>(
        &mut self,
        socket: &mut W,
        cx: &mut Context<'_>,
        written: &mut u64,
    ) -> Poll<io::Result<()>> {
        match &mut self.queue {
            Some(queue) => queue.poll_write(socket, cx, written),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Everything not written yet, for tests.
    #[cfg(test)]
    pub(crate) fn take(&mut self) -> Vec<u8> {
        let queue = self.queue();
        let all = queue.segments.iter().map(Segment::bytes).chain(std::iter::once(&*queue.tail));
        let bytes = all.flatten().skip(queue.written).copied().collect();
        queue.consume(queue.len);
        bytes
    }
}

impl Queue {
    fn footprint(&self) -> usize {
        let own = |segment: &Segment| match segment {
            Segment::Bytes(bytes) => bytes.len(),
            Segment::Payload(_) => 0,
        };
        self.tail.capacity() + self.segments.iter().map(own).sum::<usize>()
    }

    /// Makes an empty one as good as new, but for its memory.
    fn reset(&mut self) {
        self.tail.clear();
        self.written = 0;
        self.position = 0;
        self.publishes_end = 0;
        // Everything is written: what was held for it is due.
        self.hand_overs = VecDeque::new();
    }

    fn grown(&mut self, before: usize) {
        let by = self.tail.len() - before;
        self.len += by;
        self.position += by as u64;
    }

    fn publish(&mut self, sending: Sending, delivery: &Delivery, naming: Naming) -> Result<(), Unsendable> {
        let Sending { version, maximum_packet_size, identifier, dup, now } = sending;
        let publication = &delivery.publication;
        if naming == Naming::Plain
            && publication.properties().is_empty()
            && (version != Version::V5 || delivery.identifiers().is_empty())
            && let Some(topic) = publication.wire_topic()
        {
            return self.publish_plain(version, maximum_packet_size, delivery, topic, identifier, dup);
        }
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
            let at = if dup { publication.arrived_at } else { now };
            let properties = publication.properties_at(at).ok_or(Unsendable::Expired)?;
            if version == Version::V5 {
                publish.properties = properties;
            }
        }
        if version == Version::V5
            && let Some(via) = &delivery.via
        {
            publish.properties.subscription_identifiers.clone_from(&via.identifiers);
        }
        match naming {
            Naming::Plain => {}
            Naming::Set(alias) => publish.properties.topic_alias = Some(alias),
            Naming::Known(alias) => {
                publish.properties.topic_alias = Some(alias);
                publish.topic = "";
            }
        }
        let before = self.tail.len();
        let encoded = causeway_protocol::mqtt::encode_publish_head(&mut self.tail, version, &publish);
        let head = encoded.map(|layout| layout.frame_len()).map_err(|_| Unsendable::TooLarge)?;
        let payload = publish.payload;
        if head + payload.len() > maximum_packet_size as usize {
            self.tail.truncate(before);
            return Err(Unsendable::TooLarge);
        }
        self.payload(before, publication);
        Ok(())
    }

    /// The PUBLISH of a message without properties, as most are: what was checked when it came in is copied.
    fn publish_plain(
        &mut self,
        version: Version,
        maximum_packet_size: u32,
        delivery: &Delivery,
        topic: &[u8],
        identifier: u16,
        dup: bool,
    ) -> Result<(), Unsendable> {
        let Delivery { publication, qos, retain, .. } = delivery;
        let payload = publication.payload().len();
        let identifier = (*qos != QoS::AtMostOnce).then_some(identifier);
        let properties = usize::from(version == Version::V5);
        let remaining = topic.len() + identifier.map_or(0, |_| 2) + properties + payload;
        // 268,435,455 is the most that MQTT can say (MQTT-5.0 1.5.5).
        if remaining >= 1 << 28 {
            return Err(Unsendable::TooLarge);
        }
        let mut head = [0; 5];
        let flags = u8::from(dup && identifier.is_some()) << 3 | (*qos as u8) << 1 | u8::from(*retain);
        head[0] = 0x30 | flags;
        let (mut left, mut used) = (remaining, 1);
        for byte in &mut head[1..] {
            *byte = (left & 0x7F) as u8;
            left >>= 7;
            used += 1;
            if left == 0 {
                break;
            }
            *byte |= 0x80;
        }
        if used + remaining > maximum_packet_size as usize {
            return Err(Unsendable::TooLarge);
        }
        let before = self.tail.len();
        let copied = if payload < SHARED_PAYLOAD { payload } else { 0 };
        self.tail.reserve(used + remaining - payload + copied);
        self.tail.extend_from_slice(head.get(..used).unwrap_or_default());
        self.tail.extend_from_slice(topic);
        if let Some(identifier) = identifier {
            self.tail.extend_from_slice(&identifier.to_be_bytes());
        }
        if properties > 0 {
            self.tail.extend_from_slice(&[0]);
        }
        self.payload(before, publication);
        Ok(())
    }

    /// Puts in a payload behind its head, which begins at `before`.
    fn payload(&mut self, before: usize, publication: &Arc<Publication>) {
        let payload = publication.payload();
        if payload.len() < SHARED_PAYLOAD {
            self.tail.extend_from_slice(payload);
            self.grown(before);
            self.publishes_end = self.position;
            return;
        }
        self.grown(before);
        self.segments.push_back(Segment::Bytes(self.tail.split()));
        self.segments.push_back(Segment::Payload(publication.clone()));
        self.len += payload.len();
        self.position += payload.len() as u64;
        self.publishes_end = self.position;
    }

    fn poll_write<W: AsyncWrite + Unpin>(
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
}
