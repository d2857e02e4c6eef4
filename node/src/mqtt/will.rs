//! Messages the node publishes on behalf of clients that are gone: wills, and the rest of a publication
//! whose connection died while a sink had no room.

use std::sync::Arc;

use causeway_protocol::mqtt::{PublishPropertiesBuf, QoS, Will as WillPacket};

use super::{
    memory::{Held, Memory},
    router::PublishProgress,
};
use crate::flow::{AckSink, HandOver, Message, Origin, Outcome, SequenceRange, Ticket};

/// A message that owns its parts.
pub(crate) struct OwnedMessage {
    pub(crate) origin: Arc<Origin>,
    pub(crate) topic: Box<str>,
    pub(crate) payload: Box<[u8]>,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) dup: bool,
    pub(crate) properties: PublishPropertiesBuf,
    pub(crate) received_at: i64,
    _held: Held,
}

/// What a will or an errand costs beside its message.
const OVERHEAD: usize = 256;

impl OwnedMessage {
    /// Copies a message.
    pub(crate) fn copy(message: &Message<'_>, memory: Memory) -> Self {
        Self {
            _held: Held::new(memory, OVERHEAD + message.topic.len() + message.payload.len()),
            origin: message.origin.clone(),
            topic: message.topic.into(),
            payload: message.payload.into(),
            qos: message.qos,
            retain: message.retain,
            dup: message.dup,
            properties: PublishPropertiesBuf::from(message.properties),
            received_at: message.received_at,
        }
    }

    /// Lends it as a message.
    pub(crate) fn with<T>(&self, then: impl FnOnce(&Message<'_>) -> T) -> T {
        let properties = self.properties.borrow();
        then(&Message {
            origin: &self.origin,
            topic: &self.topic,
            payload: &self.payload,
            qos: self.qos,
            retain: self.retain,
            dup: self.dup,
            properties: &properties,
            received_at: self.received_at,
        })
    }
}

/// The will of a connection (MQTT-5.0 3.1.2.5).
pub(crate) struct Will {
    pub(crate) message: OwnedMessage,
    /// Seconds between the end of the connection and the publication.
    pub(crate) delay: u32,
}

impl Will {
    pub(crate) fn new(will: &WillPacket<'_>, origin: &Arc<Origin>, memory: Memory) -> Self {
        Self {
            message: OwnedMessage {
                _held: Held::new(memory, OVERHEAD + will.topic.len() + will.payload.len()),
                origin: origin.clone(),
                topic: will.topic.into(),
                payload: will.payload.into(),
                qos: will.qos,
                retain: will.retain,
                dup: false,
                properties: PublishPropertiesBuf::from(&will.properties),
                received_at: 0,
            },
            delay: will.delay_interval,
        }
    }
}

/// A publication that the keeper brings to its end.
pub(crate) struct Errand {
    pub(crate) message: OwnedMessage,
    pub(crate) progress: PublishProgress,
    pub(crate) hand_over: Option<Arc<HandOver>>,
}

impl Errand {
    /// The publication of a will. Nobody waits for its acknowledgement, but with QoS 1 and 2 sinks are
    /// waited for.
    pub(crate) fn will(will: Will, now: i64) -> Self {
        struct Nobody;
        impl AckSink for Nobody {
            fn acknowledge(&self, _: &[SequenceRange], _: Outcome) {}
        }
        let mut message = will.message;
        message.received_at = now;
        let hand_over = (message.qos != QoS::AtMostOnce)
            .then(|| HandOver::new(Ticket { sink: Arc::new(Nobody), sequence: 0 }));
        Self { message, progress: PublishProgress::default(), hand_over }
    }
}
