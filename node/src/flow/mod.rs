//! The seam between those who bring messages in and those who carry them on.
//!
//! A publisher (an MQTT connection, a Kafka consumer, an API call) offers a [`Message`] to each
//! [`MessageSink`] whose topic filter matches it. A sink that needs time to finish keeps a
//! [`Ticket`]; when the fate of the message is known it tells the ticket's [`AckSink`], many
//! sequences at a time. Neither side of this path knows the type of the other.
//!
//! Invariants:
//! * A ticket that was taken is completed exactly once. A sink that goes away completes what it holds.
//! * [`MessageSink::accept`] never blocks and never waits: a sink without room says [`Accepted::Full`]
//!   and has then taken nothing.
//! * Sequences of one publisher are consecutive and rise in the order of its publications.

pub mod ledger;
pub mod mailbox;

use std::sync::Arc;

use causeway_protocol::mqtt::{PublishProperties, QoS, ReasonCode};
use smallvec::SmallVec;

/// Who published: constant for the life of a connection, shared by all its messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Client identifier; for internal publishers their own name, such as `kafka_consumer:NAME`.
    pub client_id: Box<str>,
    /// User name, where the client gave one.
    pub username: Option<Box<str>>,
    /// Address of the client; `None` for internal publishers.
    pub peer: Option<std::net::SocketAddr>,
}

/// One publication, borrowed from wherever it arrived.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// Who published it.
    pub origin: &'a Arc<Origin>,
    /// Topic name, valid, aliases resolved.
    pub topic: &'a str,
    /// Payload as it came.
    pub payload: &'a [u8],
    /// QoS it was published with.
    pub qos: QoS,
    /// Retain flag.
    pub retain: bool,
    /// DUP flag.
    pub dup: bool,
    /// MQTT 5 properties; empty for older clients.
    pub properties: &'a PublishProperties<'a>,
    /// When it reached this node: milliseconds since the Unix epoch.
    pub received_at: i64,
    /// How often it has passed Kafka; 0 for a message of a device.
    pub hops: u8,
}

/// Fate of a message in one sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Carried on as far as the sink promises.
    Success,
    /// Given up for good, with the reason that an MQTT 5 publisher is told (0x80, 0x83, 0x87, 0x90, 0x97,
    /// 0x99).
    Failed(ReasonCode),
}

/// Consecutive sequences of one publisher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceRange {
    /// First sequence.
    pub first: u64,
    /// How many, at least 1.
    pub count: u32,
}

/// Learns what became of tickets. Called from any thread; must not block.
pub trait AckSink: Send + Sync {
    /// The outcome of all sequences in `ranges`, which are in the order the sink finished them.
    fn acknowledge(&self, ranges: &[SequenceRange], outcome: Outcome);

    /// The session that publishes, where that outlives the process.
    fn session(&self) -> Option<SessionId> {
        None
    }

    /// True where the issuer of the tickets brings nothing more until some of them are complete. `standstill`
    /// names a client that keeps one of them; it may be shown to people as long as it lives.
    fn waits_for(&self, _standstill: &Arc<Standstill>) -> bool {
        false
    }
}

/// Ignores the outcomes of tickets, for publications without an acknowledgement.
#[derive(Debug, Clone, Copy, Default)]
pub struct IgnoreAcks;

impl AckSink for IgnoreAcks {
    fn acknowledge(&self, _: &[SequenceRange], _: Outcome) {}
}

/// A connected client that takes nothing while others wait for it. It lives as long as that is so.
#[derive(Debug)]
pub struct Standstill {
    /// Client identifier.
    pub client_id: Box<str>,
    /// Since when.
    pub since: tokio::time::Instant,
}

/// The obligation to report one message's outcome.
#[derive(Clone)]
pub struct Ticket {
    /// Whom to tell.
    pub sink: Arc<dyn AckSink>,
    /// Which message of that publisher.
    pub sequence: u64,
    /// Packet identifier of a QoS 2 publication of a session that outlives the process; 0: of none.
    pub identifier: u16,
}

impl Ticket {
    /// A ticket for this message.
    pub fn new(sink: Arc<dyn AckSink>, sequence: u64) -> Self {
        Self { sink, sequence, identifier: 0 }
    }

    /// Name of the publication until its PUBREL.
    pub fn mark(&self) -> Option<Mark> {
        let identifier = self.identifier;
        (identifier != 0).then_some(())?;
        Some(Mark { session: self.sink.session()?, identifier })
    }
}

/// The identity of a session that outlives the process: 128 random bits, made with the session and stored
/// with it. Never given out twice, by any node: not after a crash, nor by a node that goes on from a backup
/// or a copy of its data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub [u8; 16]);

impl SessionId {
    /// The identity of a new session.
    pub fn random() -> Self {
        Self(rand::random())
    }
}

/// Lives of the node: one from each start to the next. Each has a random number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lives {
    /// The one before this, where all that is kept on disk is known to be from its end.
    pub before: Option<u64>,
    /// This one; never 0.
    pub now: u64,
}

/// A QoS 2 publication from its PUBLISH to its PUBREL, for those who remember it longer than the process
/// lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark {
    /// The session that publishes.
    pub session: SessionId,
    /// Packet identifier.
    pub identifier: u16,
}

/// Remembers marks on a disk together with the messages, so that one that is sent again after a crash is not
/// taken again.
///
/// A mark stands for its publication only as long as every release of its packet identifier has been heard.
/// So what is on the disk carries the life of the node that heard the releases, and counts for the next life
/// alone.
pub trait Remembers: Send + Sync {
    /// The life in which the marks that were found at the start were kept up to date.
    fn life(&self) -> Option<u64>;

    /// Hears of all releases from now on, in the life `now`. Of the marks that were found those count that
    /// are `meant`; the others are never believed again.
    fn believe(&self, now: u64, meant: &dyn Fn(Mark) -> bool);

    /// Whether it has this one.
    fn remembers(&self, mark: Mark) -> bool;

    /// The client has released it: forgets it for good, and holds `then` until that is durable.
    fn forget(&self, mark: Mark, then: Arc<HandOver>);

    /// The session has ended.
    fn session_ended(&self, session: SessionId);

    /// Forgets what it found of sessions that do not exist.
    fn keep_sessions(&self, exists: &dyn Fn(SessionId) -> bool);
}

/// A message sink's answer.
pub enum Accepted {
    /// Taken; the ticket, if there was one, will be completed.
    Taken,
    /// Finished on the spot; the ticket will not be completed.
    Done(Outcome),
    /// No room, nothing was taken. Only where a ticket was offered: without one the sink makes room
    /// by dropping its oldest message without a ticket, and counts it.
    Full(Room),
}

/// Wakes one who was turned away when it is worth trying again.
pub type Room = Arc<tokio::sync::Notify>;

/// Takes messages that match its topic filter: a producer bridge, later a rule.
pub trait MessageSink: Send + Sync {
    /// Offers a message. Tasks to wake because of it go on `wakes`, once for a whole read batch.
    fn accept(&self, message: &Message<'_>, ticket: Option<&Ticket>, wakes: &mut WakeList) -> Accepted;

    /// False for a sink that acknowledgements do not wait for (`ack_wait = false`): it gets no ticket.
    fn holds_acknowledgement(&self) -> bool {
        true
    }
}

/// Something that sleeps until it has work.
pub trait Wake: Send + Sync {
    /// Wakes it. Cheap, never blocks, may be called more than once.
    fn wake(&self);
}

/// Wake-ups owed at the end of a read batch: one a sleeper, however many messages went to it.
#[derive(Default)]
pub struct WakeList {
    sleepers: SmallVec<[Arc<dyn Wake>; 8]>,
}

impl WakeList {
    /// Adds a sleeper. The caller makes sure (with a flag of its own) that one sleeper is not added for
    /// every message.
    pub fn push(&mut self, sleeper: Arc<dyn Wake>) {
        self.sleepers.push(sleeper);
    }

    /// Wakes all and forgets them.
    pub fn wake_all(&mut self) {
        for sleeper in self.sleepers.drain(..) {
            sleeper.wake();
        }
    }
}

impl Drop for WakeList {
    fn drop(&mut self) {
        self.wake_all();
    }
}

/// A message's hand-over to every session (and sink) that it matched: complete when the last clone of
/// its `Arc` is dropped. A delivery holds a clone until it is written (QoS 0), acknowledged by the
/// client, or stored in a session that outlives its connection.
pub struct HandOver {
    ticket: Ticket,
    fate: parking_lot::Mutex<Fate>,
}

enum Fate {
    Success,
    Failed(ReasonCode),
    Abandoned,
}

impl HandOver {
    /// A hand-over that completes `ticket`.
    pub fn new(ticket: Ticket) -> Arc<Self> {
        Arc::new(Self { ticket, fate: parking_lot::Mutex::new(Fate::Success) })
    }

    /// Receives the outcome.
    pub(crate) fn sink(&self) -> &Arc<dyn AckSink> {
        &self.ticket.sink
    }

    /// Makes the outcome a failure; the first reason stays.
    pub fn fail(&self, reason: ReasonCode) {
        let mut fate = self.fate.lock();
        if matches!(*fate, Fate::Success) {
            *fate = Fate::Failed(reason);
        }
    }

    /// Gives the message back to the issuer of the ticket: it has not reached every receiver and will not
    /// from here. The ticket is never completed.
    pub fn abandon(&self) {
        *self.fate.lock() = Fate::Abandoned;
    }
}

impl Drop for HandOver {
    fn drop(&mut self) {
        let outcome = match *self.fate.get_mut() {
            Fate::Success => Outcome::Success,
            Fate::Failed(reason) => Outcome::Failed(reason),
            Fate::Abandoned => return,
        };
        let range = SequenceRange { first: self.ticket.sequence, count: 1 };
        self.ticket.sink.acknowledge(&[range], outcome);
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[derive(Default)]
    struct Told(Mutex<Vec<(u64, Outcome)>>);

    impl AckSink for Told {
        fn acknowledge(&self, ranges: &[SequenceRange], outcome: Outcome) {
            self.0.lock().extend(ranges.iter().map(|range| (range.first, outcome)));
        }
    }

    fn hand_over(told: &Arc<Told>) -> Arc<HandOver> {
        HandOver::new(Ticket::new(told.clone(), 7))
    }

    #[test]
    fn a_hand_over_is_complete_with_its_last_clone() {
        let told = Arc::new(Told::default());
        let first = hand_over(&told);
        let second = first.clone();
        drop(first);
        assert!(told.0.lock().is_empty());
        drop(second);
        assert_eq!(*told.0.lock(), [(7, Outcome::Success)]);
    }

    #[test]
    fn the_first_failure_is_the_outcome() {
        let told = Arc::new(Told::default());
        let hand_over = hand_over(&told);
        hand_over.fail(ReasonCode::TopicNameInvalid);
        hand_over.fail(ReasonCode::QuotaExceeded);
        drop(hand_over);
        assert_eq!(*told.0.lock(), [(7, Outcome::Failed(ReasonCode::TopicNameInvalid))]);
    }

    #[test]
    fn an_abandoned_hand_over_completes_nothing() {
        let told = Arc::new(Told::default());
        hand_over(&told).abandon();
        assert!(told.0.lock().is_empty());
    }
}
