//! Messages the node publishes on behalf of clients that are gone: wills, and the rest of a publication
//! whose connection died while a sink had no room.

use std::sync::Arc;

use causeway_protocol::mqtt::{PublishPropertiesBuf, QoS, ReasonCode, Will as WillPacket};

use super::{
    memory::{Held, Memory},
    outbox::Outbox,
    route::Route,
    router::{PublishProgress, Published, Router},
    stats::Tally,
    store::Op,
};
use crate::flow::{HandOver, IgnoreAcks, Message, Origin, Ticket, WakeList};

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

/// Bytes of a will or an errand beside its message.
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
            hops: 0,
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
#[expect(clippy::large_enum_variant, reason = "there are few at a time, and nearly all that wait are wills")]
pub(crate) enum DeferredPublish {
    /// A will.
    Will { message: OwnedMessage, progress: PublishProgress, hand_over: Option<Arc<HandOver>> },
    /// Work that a connection could not finish.
    UnfinishedPublish(Box<UnfinishedPublish>),
}

/// A publication that some sinks have and others had no room for when its connection died. It goes on as the
/// connection would have done: sinks are waited for, sessions are not, and with what goes to stored ones goes
/// the packet identifier.
pub(crate) struct UnfinishedPublish {
    pub(crate) message: OwnedMessage,
    pub(crate) route: Arc<Route>,
    /// Sinks of the route before this one have it.
    pub(crate) next_sink: usize,
    /// Sessions have it from before a restart.
    pub(crate) sinks_only: bool,
    /// The session that published it: its inbox.
    pub(crate) publisher: u64,
    /// Store operation, with QoS 2 of a stored session.
    pub(crate) received: Option<Op>,
    /// Complete when sinks and disk have it.
    pub(crate) hand_over: Arc<HandOver>,
}

impl UnfinishedPublish {
    /// True when it is done.
    fn advance(&mut self, router: &Router, wakes: &mut WakeList) -> bool {
        let Self { message, route, next_sink, sinks_only, publisher, received, hand_over } = self;
        message.with(|message| {
            if route.offer_to_sinks(message, Some(hand_over), next_sink, wakes).is_some() {
                return false;
            }
            if *sinks_only {
                return true;
            }
            let reliable = message.qos != QoS::AtMostOnce;
            let stored = reliable && (received.is_some() || message.retain || route.stored > 0);
            let store = router.store().filter(|_| stored);
            if store.is_some_and(|store| !store.has_room()) {
                return false;
            }
            let (mut outbox, mut tally) = (Outbox::default(), Tally::default());
            router.dispatch(message, route, *publisher, &mut outbox);
            if let Some(store) = store {
                outbox.hand_over_when_stored(store, hand_over, received.take());
            }
            outbox.flush(wakes, &mut tally);
            tally.flush(router.stats());
            true
        })
    }
}

impl DeferredPublish {
    /// The publication of a will. Its acknowledgement is not waited for, but with QoS 1 and 2 sinks are
    /// waited for.
    pub(crate) fn will(will: Will, now: i64) -> Self {
        let mut message = will.message;
        message.received_at = now;
        let hand_over =
            (message.qos != QoS::AtMostOnce).then(|| HandOver::new(Ticket::new(Arc::new(IgnoreAcks), 0)));
        Self::Will { message, progress: PublishProgress::default(), hand_over }
    }

    /// Delivers it to the remaining receivers; true when all have it.
    pub(crate) fn advance(&mut self, router: &Router) -> bool {
        let mut wakes = WakeList::default();
        match self {
            Self::Will { message, progress, hand_over } => message.with(|message| {
                let published = router.publish(message, hand_over.as_ref(), progress, &mut wakes);
                matches!(published, Published::Done { .. })
            }),
            Self::UnfinishedPublish(rest) => rest.advance(router, &mut wakes),
        }
    }

    /// Too many wait: it is given up, and the caller is told so.
    pub(crate) fn give_up(self) {
        if let Self::UnfinishedPublish(rest) = self {
            rest.hand_over.fail(ReasonCode::QuotaExceeded);
        }
    }
}
