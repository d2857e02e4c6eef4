//! The way into a session: everything that reaches it from outside goes through its [`Inbox`].
//!
//! An inbox belongs to the session, not to the connection: publishers keep putting deliveries in while
//! the client is away, sinks keep completing tickets. What it does with a delivery depends on whether
//! a connection drains it:
//!
//! | | connected | away |
//! |---|---|---|
//! | QoS 0, room | queued | dropped, counted |
//! | QoS 0, full | dropped, counted; *full* if it must be handed over | dropped, counted |
//! | QoS 1/2, room | queued | queued, which completes its hand-over |
//! | QoS 1/2, full | by [`QueueFull`], counted; *full* if it must be handed over | by [`QueueFull`], counted |
//!
//! Full is a queue at its capacity, and one with something in it while memory is short ([`Pressure`]). A
//! connected client that is not waited for any longer ([`super::standstill`]) makes no publisher wait: what
//! is queued for it is handed over with that, and what it has no room for is dropped by [`QueueFull`].
//! Acknowledgements and control messages are always taken: the tickets bound the former.
//!
//! A stored session's QoS 1 and 2 deliveries go to the [`Store`] in the same breath, and a hand-over is
//! complete when they are on the disk; see [`super::stored`].
//!
//! While the client is away everything that waits for it is in the queue here, the packets in flight
//! excepted.

mod offering;

use std::{
    collections::VecDeque,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use causeway_protocol::mqtt::{QoS, ReasonCode};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    memory::{self, Held, Memory},
    options::QueueFull,
    publication::{Delivery, Via},
    stats::{Stats, Tally},
    store::{Entry, Op, Presence, Record, StoredWill, message_bytes},
    stored::StoredSession,
    will::Will,
};
use crate::{
    flow::mailbox::{Capacity, Charge, Mailbox},
    flow::{AckSink, Outcome, Room, SequenceRange, SessionId, Standstill, Wake, WakeList},
};

use offering::Offering;

/// Content of an inbox.
pub(crate) enum Mail {
    /// A publication for the client.
    Delivery(Delivery),
    /// The outcome of publications of the client.
    Acknowledged(SequenceRange, Outcome),
    /// A publisher waits for room.
    Awaited,
    /// A QoS 2 publication is forgotten everywhere: PUBCOMP may follow. Names the PUBREL, see
    /// [`Durable::begin_release`](super::stored::Durable::begin_release).
    Forgotten(u64),
    /// The connection must end: another took over (0x8E), shutdown (0x8B), an administrator (0x98), a full
    /// queue (0x97).
    Close(ReasonCode),
}

/// Rules for the inboxes of all sessions.
pub(crate) struct Rules {
    pub(crate) capacity: Capacity,
    pub(crate) full: QueueFull,
    pub(crate) memory: Memory,
    pub(crate) stats: Arc<Stats>,
}

/// The outside of a session.
pub(crate) struct Inbox {
    id: u64,
    client_id: Box<str>,
    /// User name of the client that made the session; set once, by the first one with a user name.
    owner: OnceLock<Box<Box<str>>>,
    mailbox: Mailbox<Mail>,
    rules: Arc<Rules>,
    /// Deliveries of this session that were dropped, for whatever reason.
    dropped: AtomicU64,
    /// QoS 1 and 2 deliveries sent and not acknowledged, as its connection last said.
    inflight: AtomicU32,
    /// The connection was told to end because the queue is full.
    ending: AtomicBool,
    /// A connection drains it, and is waited for; a hint for those who choose between several.
    connected: AtomicBool,
    /// A publisher was turned away for lack of room since its connection last looked.
    awaited: AtomicBool,
    /// Its client is not waited for.
    overdue: AtomicBool,
    /// Set while others wait and its client takes nothing.
    standstill: Mutex<Option<Arc<Standstill>>>,
    /// Where its session is stored, if it is.
    stored: Option<Arc<StoredSession>>,
    _held: Held,
}

/// Fate of an offered delivery.
pub(crate) enum Offered {
    /// Queued; true: the caller owes a wake-up.
    Queued(bool),
    /// Dropped and counted.
    Dropped,
    /// No room for a delivery that must be handed over; it was not taken.
    Full(Room),
}

/// An inbox from the outside, for administrators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Filling {
    /// Charge of what waits, with the deliveries that its connection has taken out and not sent.
    pub(crate) queued: Charge,
    pub(crate) inflight: u32,
    pub(crate) dropped: u64,
}

impl Inbox {
    /// An empty inbox whose client is away, until a connection drains it ([`Self::attach`]).
    pub(crate) fn new(
        id: u64,
        client_id: &str,
        rules: &Arc<Rules>,
        stored: Option<Arc<StoredSession>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            stored,
            id,
            client_id: client_id.into(),
            owner: OnceLock::new(),
            mailbox: Mailbox::new(rules.capacity),
            rules: rules.clone(),
            dropped: AtomicU64::new(0),
            inflight: AtomicU32::new(0),
            ending: AtomicBool::new(false),
            connected: AtomicBool::new(false),
            awaited: AtomicBool::new(false),
            overdue: AtomicBool::new(false),
            standstill: Mutex::new(None),
            _held: Held::new(rules.memory, memory::SESSION + client_id.len()),
        })
    }

    /// Distinguishes sessions, also of one client id, within this process.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// The client identifier.
    pub(crate) fn client_id(&self) -> &str {
        &self.client_id
    }

    /// User name of the client that the session belongs to; none: no user's.
    pub(crate) fn owner(&self) -> Option<&str> {
        self.owner.get().map(|owner| &***owner)
    }

    /// Makes it the session of a user, if it has none.
    pub(crate) fn belongs_to(&self, username: Option<&str>) {
        if let Some(username) = username {
            self.owner.get_or_init(|| Box::new(username.into()));
        }
    }

    /// Where its session is stored, if it is.
    pub(crate) fn stored(&self) -> Option<&Arc<StoredSession>> {
        self.stored.as_ref()
    }

    /// Puts down what is known of its session, if it is stored.
    pub(crate) fn record(&self, expiry: Option<Duration>, presence: Presence, will: Option<&Will>) {
        let Some(stored) = &self.stored else { return };
        let expiry = expiry.map_or(0, |expiry| u64::try_from(expiry.as_millis()).unwrap_or(u64::MAX));
        let record = Record {
            id: stored.id,
            client_id: self.client_id.clone(),
            // Where names are claims, a will may be another's than the session.
            username: will
                .and_then(|will| will.message.origin.username.clone())
                .or_else(|| self.owner().map(Box::from)),
            expiry,
            presence,
            will: will
                .map(|will| StoredWill { delay: will.delay, message: will.message.with(message_bytes) }),
        };
        stored.store.put(Op::Session { session: stored.number, record: Box::new(record) });
    }

    /// Where its memory is counted.
    pub(crate) fn memory(&self) -> Memory {
        self.rules.memory
    }

    /// True while a connection drains it. Without the lock: it may just be over.
    pub(crate) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Numbers of waiting and of lost messages.
    pub(crate) fn filling(&self) -> Filling {
        Filling {
            queued: self.mailbox.charge(),
            inflight: self.inflight.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }

    /// The connection says how many deliveries are in flight.
    pub(crate) fn set_inflight(&self, count: usize) {
        self.inflight.store(u32::try_from(count).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// Counts deliveries of this session that were dropped outside of the queue.
    pub(crate) fn count_dropped(&self, count: u64) {
        self.dropped.fetch_add(count, Ordering::Relaxed);
    }

    /// Takes everything out and gives back what `released` names; pending when there is nothing.
    pub(crate) fn poll_take(
        &self,
        cx: &mut Context<'_>,
        into: &mut VecDeque<Mail>,
        released: &mut Charge,
    ) -> Poll<()> {
        if released.items > 0 {
            self.rules.memory.give_back(released.items * memory::PLACE);
        }
        self.mailbox.poll_take(cx, into, released)
    }

    /// Takes everything out, for tests.
    #[cfg(test)]
    pub(crate) fn take(&self) -> VecDeque<Mail> {
        self.mailbox.take()
    }

    /// Current charge, for tests.
    #[cfg(test)]
    pub(crate) fn charge(&self) -> Charge {
        self.mailbox.charge()
    }

    /// True where a publisher was turned away for lack of room since [`Self::take_awaited`].
    pub(crate) fn is_awaited(&self) -> bool {
        self.awaited.load(Ordering::Relaxed)
    }

    /// True where a publisher was turned away for lack of room since the last call.
    pub(crate) fn take_awaited(&self) -> bool {
        self.awaited.swap(false, Ordering::Relaxed)
    }

    /// True while its client is not waited for, see [`super::standstill`].
    pub(crate) fn is_overdue(&self) -> bool {
        self.overdue.load(Ordering::Relaxed)
    }

    /// Its client is waited for no longer, or again.
    pub(crate) fn set_overdue(&self, overdue: bool) {
        self.overdue.store(overdue, Ordering::Relaxed);
        self.connected.store(!overdue, Ordering::Relaxed);
        if overdue {
            self.mailbox.ask_again();
        }
    }

    /// Others wait and its client has taken nothing since then.
    pub(crate) fn begin_standstill(&self, since: Instant) -> Arc<Standstill> {
        let mut standstill = self.standstill.lock();
        if let Some(known) = standstill.as_ref().filter(|known| known.since == since) {
            return known.clone();
        }
        standstill.insert(Arc::new(Standstill { client_id: self.client_id.clone(), since })).clone()
    }

    /// Ends a standstill: nothing waits, or its client has gone on.
    pub(crate) fn end_standstill(&self) {
        *self.standstill.lock() = None;
    }

    /// That others wait and its client takes nothing, if it is so.
    pub(crate) fn standstill(&self) -> Option<Arc<Standstill>> {
        self.standstill.lock().clone()
    }

    /// Policy for a full queue.
    pub(crate) fn queue_full(&self) -> QueueFull {
        self.rules.full
    }

    /// Charge that its connection has to drop, oldest first, so that the newest have room.
    pub(crate) fn excess(&self) -> Charge {
        match self.rules.full {
            QueueFull::DropOldest => self.mailbox.excess(),
            QueueFull::DropNewest | QueueFull::Disconnect => Charge::default(),
        }
    }

    /// Offers one delivery.
    pub(crate) fn offer(&self, delivery: Delivery) -> Offered {
        let mut offering = Offering::new(self);
        let mut batch = self.mailbox.lock();
        let before = batch.charge().items;
        let mandatory = delivery.hand_over.is_some() && batch.is_attached() && batch.is_open();
        if mandatory
            && !(batch.has_room(delivery.weight()) && offering.may_wait(&batch))
            && !self.is_overdue()
        {
            let room = batch.room();
            if !self.awaited.swap(true, Ordering::Relaxed) {
                batch.push_uncharged(Mail::Awaited);
                if batch.finish() {
                    self.mailbox.wake();
                }
            }
            return Offered::Full(room);
        }
        let queued = offering.put(&mut batch, delivery);
        offering.count_places(before, batch.charge().items);
        offering.store();
        let wake = batch.finish();
        // The lock is free here: completing a hand-over may call anybody, this inbox included.
        let mut tally = Tally::default();
        self.finish(offering, &mut tally);
        tally.flush(&self.rules.stats);
        if queued {
            return Offered::Queued(wake);
        }
        if wake {
            self.mailbox.wake();
        }
        Offered::Dropped
    }

    /// Offers one delivery of a shared subscription that another member has not taken. `Some`: it was taken,
    /// true: the caller owes a wake-up.
    pub(crate) fn offer_if_room(&self, delivery: Delivery) -> Option<bool> {
        let mut offering = Offering::new(self);
        let mut batch = self.mailbox.lock();
        let before = batch.charge().items;
        let lost = delivery.qos == QoS::AtMostOnce && !batch.is_attached();
        if lost || !batch.is_open() || !batch.has_room(delivery.weight()) || !offering.may_wait(&batch) {
            return None;
        }
        offering.put(&mut batch, delivery);
        offering.count_places(before, batch.charge().items);
        offering.store();
        let wake = batch.finish();
        self.finish(offering, &mut Tally::default());
        Some(wake)
    }

    /// Offers one delivery of a shared subscription that no other member has room for: what is too much is
    /// dropped here.
    fn offer_finally(&self, mut delivery: Delivery) {
        let hand_over = delivery.hand_over.take();
        delivery.via = Via::identified(delivery.identifiers().iter().copied());
        if let Offered::Dropped = self.offer(delivery)
            && let Some(hand_over) = hand_over
        {
            hand_over.fail(ReasonCode::QuotaExceeded);
        }
        self.mailbox.wake();
    }

    /// Gives a delivery of a shared subscription to another member of its group. This session is chosen last;
    /// it may be over.
    pub(crate) fn pass_on(&self, delivery: Delivery, wakes: &mut WakeList) {
        let Some(group) = delivery.group() else { return };
        match group.pass_on(delivery, self.id, wakes) {
            Ok(()) => Stats::add(&self.rules.stats.shared_passed_on, 1),
            Err(delivery) if self.mailbox.lock().is_open() => self.offer_finally(delivery),
            // All others are full; the member whose turn it would be drops it, or no member is left.
            Err(mut delivery) => {
                if let Some(heir) = group.picture().first() {
                    let hand_over = delivery.hand_over.take();
                    heir.inbox.offer_finally(heir.delivery(&delivery.publication, hand_over));
                }
            }
        }
    }

    /// The lock is free: counts what was dropped, lets go of it, and passes on what others may take.
    fn finish(&self, mut offering: Offering<'_>, tally: &mut Tally) {
        let passed_on = std::mem::take(&mut offering.passed_on);
        offering.finish(tally);
        let mut wakes = WakeList::default();
        for delivery in passed_on {
            self.pass_on(delivery, &mut wakes);
        }
    }

    /// Offers what one read batch holds for this session; nothing in it is to be handed over. True: the
    /// caller owes a wake-up.
    pub(crate) fn offer_all(&self, deliveries: &mut Vec<Delivery>, tally: &mut Tally) -> bool {
        let mut offering = Offering::new(self);
        let mut batch = self.mailbox.lock();
        let before = batch.charge().items;
        batch.reserve(deliveries.len());
        for delivery in deliveries.drain(..) {
            debug_assert!(delivery.hand_over.is_none(), "handed-over deliveries are offered one by one");
            offering.put(&mut batch, delivery);
        }
        offering.count_places(before, batch.charge().items);
        offering.store();
        let wake = batch.finish();
        self.finish(offering, tally);
        wake
    }

    /// Queues retained messages with QoS 1 and 2 for the client of a stored session. They are not charged:
    /// all share them with the router, whose bounds hold.
    /// With them `op` is on the disk.
    pub(crate) fn offer_retained(&self, deliveries: impl Iterator<Item = Delivery>, op: Option<Op>) {
        let Some(stored) = &self.stored else { return };
        let mut ops = Vec::new();
        let mut batch = self.mailbox.lock();
        for mut delivery in deliveries {
            let position = stored.next();
            (delivery.charged, delivery.position) = (false, position as u32);
            ops.push(Op::Append { session: stored.number, position, entry: Entry::of(&delivery) });
            stored.advance();
            batch.push_uncharged(Mail::Delivery(delivery));
        }
        stored.store.append(ops.into_iter().chain(op), None);
        if batch.finish() {
            self.mailbox.wake();
        }
    }

    /// Queues what the store had, whatever the capacity is now; the number of deliveries that are not
    /// charged.
    pub(crate) fn restore(&self, deliveries: impl Iterator<Item = Delivery>) -> usize {
        let mut batch = self.mailbox.lock();
        let before = batch.charge().items;
        let mut uncharged = 0;
        for delivery in deliveries {
            if delivery.charged {
                let weight = delivery.weight();
                batch.push_anyway(Mail::Delivery(delivery), weight);
            } else {
                uncharged += 1;
                batch.push_uncharged(Mail::Delivery(delivery));
            }
        }
        self.rules.memory.take((batch.charge().items - before) * memory::PLACE);
        let _ = batch.finish();
        uncharged
    }

    /// Asks the connection, if there is one, to end.
    pub(crate) fn close_connection(&self, reason: ReasonCode) {
        let mut batch = self.mailbox.lock();
        if batch.is_attached() {
            batch.push_uncharged(Mail::Close(reason));
        }
        if batch.finish() {
            self.mailbox.wake();
        }
    }

    /// The connection has gone, the session stays: from now on it is offered to as one whose client is away.
    /// Takes everything out; the caller puts back what stays.
    pub(crate) fn detach(&self) -> VecDeque<Mail> {
        self.connected.store(false, Ordering::Relaxed);
        self.end_standstill();
        self.mailbox.set_attached(false);
        self.mailbox.take()
    }

    /// Puts deliveries back that came out of it and are still charged, in front of the others.
    pub(crate) fn put_back(&self, deliveries: VecDeque<Delivery>) {
        if !deliveries.is_empty() {
            self.mailbox.put_back(deliveries.into_iter().map(Mail::Delivery).collect());
        }
    }

    /// Puts mail back that was taken out and not looked at.
    pub(crate) fn return_mail(&self, mails: VecDeque<Mail>) {
        self.mailbox.put_back(mails);
    }

    /// A connection drains it from now on.
    pub(crate) fn attach(&self) {
        self.ending.store(false, Ordering::Relaxed);
        self.awaited.store(false, Ordering::Relaxed);
        self.overdue.store(false, Ordering::Relaxed);
        self.mailbox.set_attached(true);
        self.connected.store(true, Ordering::Relaxed);
    }

    /// The session is over. What was inside comes out.
    pub(crate) fn end(&self) -> VecDeque<Mail> {
        self.connected.store(false, Ordering::Relaxed);
        self.end_standstill();
        let (mails, charge) = self.mailbox.close();
        self.rules.memory.give_back(charge.items * memory::PLACE);
        mails
    }

    /// Gives back what deliveries were charged.
    pub(crate) fn release(&self, charge: Charge) {
        if !charge.is_empty() {
            self.rules.memory.give_back(charge.items * memory::PLACE);
            self.mailbox.release(charge);
        }
    }
}

impl Wake for Inbox {
    fn wake(&self) {
        self.mailbox.wake();
    }
}

impl AckSink for Inbox {
    fn acknowledge(&self, ranges: &[SequenceRange], outcome: Outcome) {
        let mut batch = self.mailbox.lock();
        for &range in ranges {
            // One at a time is how hand-overs complete: runs of them become one mail.
            if let Some(Mail::Acknowledged(last, known)) = batch.last_mut()
                && *known == outcome
                && last.first + u64::from(last.count) == range.first
                && let Some(count) = last.count.checked_add(range.count)
            {
                last.count = count;
                continue;
            }
            batch.push_uncharged(Mail::Acknowledged(range, outcome));
        }
        if batch.finish() {
            self.mailbox.wake();
        }
    }

    fn session(&self) -> Option<SessionId> {
        self.stored().map(|stored| stored.id)
    }
}

/// Learns that those who remembered QoS 2 publications have forgotten them: sequences name PUBRELs.
pub(crate) struct Forgotten(pub(crate) Arc<Inbox>);

impl AckSink for Forgotten {
    fn acknowledge(&self, ranges: &[SequenceRange], _: Outcome) {
        let mut batch = self.0.mailbox.lock();
        for range in ranges {
            batch.push_uncharged(Mail::Forgotten(range.first));
        }
        if batch.finish() {
            self.0.mailbox.wake();
        }
    }
}

#[cfg(test)]
#[path = "inbox_tests.rs"]
pub(crate) mod tests;
