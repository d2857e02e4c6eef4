//! A publication on its way to sessions: owned, immutable, shared by all its deliveries.

use std::sync::{Arc, Weak};

use causeway_protocol::mqtt::{PublishProperties, PublishPropertiesBuf, QoS};
use smallvec::SmallVec;

use super::{clock, memory::Memory, share::Group};
use crate::flow::{HandOver, Message};

/// Bytes of one copy beside its contents: the structures around it.
const OVERHEAD: usize = 128;

/// Bytes of the length before a topic.
const LENGTH: usize = 2;

/// One message, shared by all its receivers.
pub(crate) struct Publication {
    /// The topic as it stands in a PUBLISH, two bytes of length before it, and the payload, in one piece.
    body: Box<[u8]>,
    /// Where the payload begins.
    topic_end: usize,
    properties: PublishPropertiesBuf,
    /// QoS it was published with.
    pub(crate) qos: QoS,
    /// Retain flag it was published with.
    pub(crate) retain: bool,
    /// When it reached this node: milliseconds since the Unix epoch.
    pub(crate) received_at: i64,
    /// The same on the steady clock, for a message with an expiry interval.
    pub(crate) arrived_at: i64,
    /// See [`Self::number`].
    number: u64,
    memory: Memory,
}

impl Drop for Publication {
    fn drop(&mut self) {
        self.memory.give_back(self.weight());
    }
}

impl Publication {
    /// Copies a message out of wherever it was borrowed from. Counted in `memory` as long as it is there.
    pub(crate) fn new(message: &Message<'_>, memory: Memory) -> Self {
        let arrived_at = match message.properties.message_expiry_interval {
            Some(_) => clock::steady_at(message.received_at),
            None => message.received_at,
        };
        Self::arrived(message, memory, arrived_at)
    }

    fn arrived(message: &Message<'_>, memory: Memory, arrived_at: i64) -> Self {
        let mut body = Vec::with_capacity(LENGTH + message.topic.len() + message.payload.len());
        // A longer one is no topic; its length is not asked for, see `wire_topic`.
        let length = u16::try_from(message.topic.len()).unwrap_or(u16::MAX);
        body.extend_from_slice(&length.to_be_bytes());
        body.extend_from_slice(message.topic.as_bytes());
        body.extend_from_slice(message.payload);
        let publication = Self {
            body: body.into_boxed_slice(),
            topic_end: LENGTH + message.topic.len(),
            properties: PublishPropertiesBuf::from(message.properties),
            qos: message.qos,
            retain: message.retain,
            received_at: message.received_at,
            arrived_at,
            number: 0,
            memory,
        };
        memory.take(publication.weight());
        publication
    }

    /// Gives it the number that the store of sessions keeps it under.
    pub(crate) fn stored_as(mut self, number: u64) -> Self {
        self.number = number;
        self
    }

    /// The number of a retained message: later ones have higher numbers. Also the number under which the
    /// store, if there is one, keeps a message that more than one of its rows refers to. Else 0.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Topic name.
    pub(crate) fn topic(&self) -> &str {
        self.body
            .get(LENGTH..self.topic_end)
            .and_then(|topic| std::str::from_utf8(topic).ok())
            .unwrap_or_default()
    }

    /// The topic as it stands in a PUBLISH, with its length.
    pub(crate) fn wire_topic(&self) -> Option<&[u8]> {
        self.body.get(..self.topic_end).filter(|topic| topic.len() <= LENGTH + usize::from(u16::MAX))
    }

    /// Payload.
    pub(crate) fn payload(&self) -> &[u8] {
        self.body.get(self.topic_end..).unwrap_or_default()
    }

    /// Bytes it is charged with in a queue.
    pub(crate) fn weight(&self) -> usize {
        OVERHEAD + self.body.len() - LENGTH + self.properties.heap_size()
    }

    /// Properties as they were published; none for most messages.
    pub(crate) fn properties(&self) -> &PublishPropertiesBuf {
        &self.properties
    }

    /// Properties as they are sent on at `now` (on the steady clock): the expiry interval is what remains of
    /// it (MQTT-5.0 3.3.2.3.3). `None` when the message has expired.
    pub(crate) fn properties_at(&self, now: i64) -> Option<PublishProperties<'_>> {
        let mut properties = self.properties.borrow();
        properties.subscription_identifiers.clear();
        if let Some(interval) = properties.message_expiry_interval {
            properties.message_expiry_interval = Some(self.remaining(interval, now)?);
        }
        Some(properties)
    }

    /// True once its expiry interval has passed.
    pub(crate) fn is_expired(&self, now: i64) -> bool {
        self.properties
            .message_expiry_interval()
            .is_some_and(|interval| self.remaining(interval, now).is_none())
    }

    /// When it expires, on the steady clock.
    pub(crate) fn expires_at(&self) -> Option<i64> {
        let interval = self.properties.message_expiry_interval()?;
        Some(self.arrived_at.saturating_add(i64::from(interval) * 1000))
    }

    fn remaining(&self, interval: u32, now: i64) -> Option<u32> {
        let waited = u64::try_from(now.saturating_sub(self.arrived_at)).unwrap_or(0) / 1000;
        let remaining = u64::from(interval).checked_sub(waited).filter(|&remaining| remaining > 0)?;
        u32::try_from(remaining).ok()
    }
}

/// One publication for one session.
#[derive(Clone)]
pub(crate) struct Delivery {
    pub(crate) publication: Arc<Publication>,
    /// The subscriptions it goes through, where there is more to know about them.
    pub(crate) via: Option<Arc<Via>>,
    /// Kept until the message is handed over; see [`HandOver`].
    pub(crate) hand_over: Option<Arc<HandOver>>,
    /// The lower of the publication's QoS and the subscription's.
    pub(crate) qos: QoS,
    /// The retain flag to send.
    pub(crate) retain: bool,
    /// False where it is not charged to the queue it is in: a retained message that all share.
    pub(crate) charged: bool,
    /// With QoS 1 and 2 in a stored session: the lower half of its position there.
    pub(crate) position: u32,
}

/// Properties of the subscriptions that a delivery goes through.
#[derive(Default)]
pub(crate) struct Via {
    /// Their identifiers.
    pub(crate) identifiers: SmallVec<[u32; 2]>,
    /// The group of a shared subscription.
    pub(crate) group: Weak<Group>,
    /// Its filter, share name and all: what the group is found by after a restart.
    pub(crate) share: Option<Box<str>>,
}

impl Via {
    /// Through subscriptions with these identifiers; none needs no [`Via`].
    pub(crate) fn identified(identifiers: impl IntoIterator<Item = u32>) -> Option<Arc<Self>> {
        let identifiers: SmallVec<_> = identifiers.into_iter().collect();
        (!identifiers.is_empty()).then(|| Arc::new(Self { identifiers, ..Self::default() }))
    }
}

impl Delivery {
    /// The plain delivery of a publication.
    pub(crate) fn new(publication: Arc<Publication>, qos: QoS) -> Self {
        Self { publication, via: None, hand_over: None, qos, retain: false, charged: true, position: 0 }
    }

    /// Identifiers of the subscriptions that matched.
    pub(crate) fn identifiers(&self) -> &[u32] {
        self.via.as_ref().map_or(&[], |via| &via.identifiers)
    }

    /// The group that it went to this session for, if it goes through a shared subscription that still is.
    pub(crate) fn group(&self) -> Option<Arc<Group>> {
        self.via.as_ref()?.group.upgrade()
    }

    pub(crate) fn weight(&self) -> usize {
        self.publication.weight()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{super::memory::MemoryCounter, *};
    use crate::flow::Origin;

    pub(crate) fn publication(topic: &str, payload: &[u8], qos: QoS, retain: bool) -> Publication {
        with_expiry(topic, payload, qos, retain, None)
    }

    pub(crate) fn with_expiry(
        topic: &str,
        payload: &[u8],
        qos: QoS,
        retain: bool,
        message_expiry_interval: Option<u32>,
    ) -> Publication {
        let origin = Arc::new(Origin { client_id: "test".into(), username: None, peer: None });
        let properties = PublishProperties { message_expiry_interval, ..PublishProperties::default() };
        let message = Message {
            origin: &origin,
            topic,
            payload,
            qos,
            retain,
            dup: false,
            properties: &properties,
            received_at: 0,
            hops: 0,
        };
        Publication::arrived(&message, MemoryCounter::new(u64::MAX), 0)
    }

    #[test]
    fn the_expiry_interval_runs_down_and_out() {
        let publication = with_expiry("t", b"x", QoS::AtMostOnce, false, Some(3));
        let interval = |now| publication.properties_at(now).map(|p| p.message_expiry_interval);
        assert_eq!(interval(999), Some(Some(3)));
        assert_eq!(interval(1000), Some(Some(2)));
        assert_eq!(interval(2999), Some(Some(1)));
        assert_eq!(interval(3000), None);
        assert!(publication.is_expired(3000) && !publication.is_expired(2999));
    }

    #[test]
    fn a_delivery_stays_small() {
        assert!(size_of::<Delivery>() <= 40, "{}", size_of::<Delivery>());
    }
}
