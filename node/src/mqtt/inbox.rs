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
//! Full is a queue at its capacity, and one with something in it while memory is short ([`Pressure`]).
//! Acknowledgements and control messages are always taken: the tickets bound the former.
//!
//! A stored session's QoS 1 and 2 deliveries go to the [`Store`] in the same breath, and a hand-over is complete
//! when they are on the disk; see [`super::stored`].
//!
//! While the client is away everything that waits for it is in the queue here, the packets in flight excepted.

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

use super::{
    memory::{self, Held, Memory, Pressure},
    options::QueueFull,
    publication::{Delivery, Via},
    stats::{Stats, StatsSnapshot, Tally},
    store::{Entry, Op, Presence, Record, Store, StoredWill, message_bytes},
    stored::StoredSession,
    will::Will,
};
use crate::{
    flow::{AckSink, HandOver, Outcome, Room, SequenceRange, Wake, WakeList},
    mailbox::{Batch, Capacity, Charge, Mailbox, Refused},
};

/// What comes out of an inbox.
pub(crate) enum Mail {
    /// A publication for the client.
    Delivery(Delivery),
    /// The outcome of publications of the client.
    Acknowledged(SequenceRange, Outcome),
    /// The connection must end: another took over (0x8E), shutdown (0x8B), an administrator (0x98), a full
    /// queue (0x97).
    Close(ReasonCode),
}

/// What holds for the inboxes of all sessions.
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
    owner: OnceLock<Box<str>>,
    mailbox: Mailbox<Mail>,
    rules: Arc<Rules>,
    /// Deliveries of this session that were dropped, for whatever reason.
    dropped: AtomicU64,
    /// QoS 1 and 2 deliveries sent and not acknowledged, as its connection last said.
    inflight: AtomicU32,
    /// The connection was told to end because the queue is full.
    ending: AtomicBool,
    /// A connection drains it; a hint for those who choose between several.
    connected: AtomicBool,
    /// Where its session is stored, if it is.
    stored: Option<Arc<StoredSession>>,
    _held: Held,
}

/// What became of an offered delivery.
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
    /// What waits, with the deliveries that its connection has taken out and not sent.
    pub(crate) queued: Charge,
    pub(crate) inflight: u32,
    pub(crate) dropped: u64,
}

impl Inbox {
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
            connected: AtomicBool::new(true),
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

    /// User name of the client that the session belongs to; none: nobody's.
    pub(crate) fn owner(&self) -> Option<&str> {
        self.owner.get().map(|owner| &**owner)
    }

    /// Makes it the session of a user, if it is nobody's.
    pub(crate) fn belongs_to(&self, username: Option<&str>) {
        if let Some(username) = username {
            self.owner.get_or_init(|| username.into());
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

    /// What is in it and what was lost.
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

    /// What is charged, for tests.
    #[cfg(test)]
    pub(crate) fn charge(&self) -> Charge {
        self.mailbox.charge()
    }

    /// What its connection has to drop, oldest first, so that the newest have room.
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
        if mandatory && !(batch.has_room(delivery.weight()) && offering.may_wait(&batch)) {
            return Offered::Full(batch.room());
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

    /// Gives a delivery of a shared subscription to another member of its group. This session is chosen last; it
    /// may be over.
    pub(crate) fn pass_on(&self, delivery: Delivery, wakes: &mut WakeList) {
        let Some(group) = delivery.group() else { return };
        match group.pass_on(delivery, self.id, wakes) {
            Ok(()) => Stats::add(&self.rules.stats.shared_passed_on, 1),
            Err(delivery) if self.mailbox.lock().is_open() => self.offer_finally(delivery),
            // Everybody else is full; whose turn it would be drops it, or nobody is left.
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
    pub(crate) fn offer_retained(&self, deliveries: impl Iterator<Item = Delivery>) {
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
        stored.store.append(ops.into_iter(), None);
        if batch.finish() {
            self.mailbox.wake();
        }
    }

    /// Queues what the store had, whatever the capacity is now.
    pub(crate) fn restore(&self, deliveries: impl Iterator<Item = Delivery>) {
        let mut batch = self.mailbox.lock();
        let before = batch.charge().items;
        for delivery in deliveries {
            let weight = delivery.weight();
            batch.push_anyway(Mail::Delivery(delivery), weight);
        }
        self.rules.memory.take((batch.charge().items - before) * memory::PLACE);
        let _ = batch.finish();
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
    /// What was inside comes out; what of it stays is to be put back.
    pub(crate) fn detach(&self) -> VecDeque<Mail> {
        self.connected.store(false, Ordering::Relaxed);
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
        self.mailbox.set_attached(true);
        self.connected.store(true, Ordering::Relaxed);
    }

    /// The session is over. What was inside comes out.
    pub(crate) fn end(&self) -> VecDeque<Mail> {
        self.connected.store(false, Ordering::Relaxed);
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

/// What happens while deliveries are put into one inbox.
struct Offering<'a> {
    inbox: &'a Inbox,
    pressure: Pressure,
    counts: Dropped,
    /// Complete; its end may call others, so it is dropped when the lock is free.
    completed: Option<Arc<HandOver>>,
    /// Not taken, and others of its group may.
    passed_on: Vec<Delivery>,
    /// Complete when what is put in is on the disk.
    stored: Option<Arc<HandOver>>,
    ops: Vec<Op>,
}

#[derive(Default)]
struct Dropped {
    slow: u64,
    queue_full: u64,
    offline: u64,
    offline_full: u64,
    memory: u64,
    disconnected: u64,
}

impl<'a> Offering<'a> {
    fn new(inbox: &'a Inbox) -> Self {
        let pressure = inbox.rules.memory.pressure();
        let counts = Dropped::default();
        Self {
            inbox,
            pressure,
            counts,
            completed: None,
            passed_on: Vec::new(),
            stored: None,
            ops: Vec::new(),
        }
    }

    /// True where memory allows one more delivery to wait.
    fn may_wait(&self, batch: &Batch<'_, Mail>) -> bool {
        self.pressure == Pressure::None || !self.pressure.refuses(batch.charge().bytes)
    }

    /// Takes a delivery; false where it was dropped. What a stored session takes goes to the store as well,
    /// which has its hand-over from now on.
    fn put(&mut self, batch: &mut Batch<'_, Mail>, mut delivery: Delivery) -> bool {
        let reliable = delivery.qos != QoS::AtMostOnce;
        let Some(stored) = self.inbox.stored.as_ref().filter(|_| reliable && batch.is_open()) else {
            return self.put_in(batch, delivery);
        };
        let hand_over = delivery.hand_over.take();
        let position = stored.next();
        delivery.position = position as u32;
        let entry = Entry::of(&delivery);
        let passed_on = self.passed_on.len();
        if !self.put_in(batch, delivery) {
            match self.passed_on.get_mut(passed_on) {
                Some(delivery) => delivery.hand_over = hand_over,
                None => self.completed = hand_over,
            }
            return false;
        }
        stored.advance();
        self.ops.push(Op::Append { session: stored.number, position, entry });
        self.stored = hand_over;
        true
    }

    /// The inbox is locked: a connection cannot acknowledge what is not in the store yet.
    fn store(&mut self) {
        if let Some(stored) = &self.inbox.stored
            && !self.ops.is_empty()
        {
            stored.store.append(self.ops.drain(..), self.stored.take());
        }
    }

    /// Takes a delivery by the table at the top; false where it was dropped.
    fn put_in(&mut self, batch: &mut Batch<'_, Mail>, mut delivery: Delivery) -> bool {
        if !batch.is_open() {
            if delivery.group().is_some() {
                self.passed_on.push(delivery);
            } else {
                self.completed = delivery.hand_over.take();
            }
            return false;
        }
        let attached = batch.is_attached();
        let unreliable = delivery.qos == QoS::AtMostOnce;
        if !attached {
            self.completed = delivery.hand_over.take();
            if unreliable && delivery.group().is_some_and(|group| group.has_connected()) {
                self.passed_on.push(delivery);
                return false;
            }
            if unreliable {
                self.counts.offline += 1;
                return false;
            }
        }
        let weight = delivery.weight();
        let may_wait = self.may_wait(batch);
        let mut refused = if may_wait {
            match batch.push(Mail::Delivery(delivery), weight) {
                Ok(()) => return true,
                Err(Refused::Full(mail) | Refused::Closed(mail)) => mail,
            }
        } else {
            Mail::Delivery(delivery)
        };
        if !unreliable && self.inbox.rules.full == QueueFull::DropOldest {
            match self.put_for_oldest(batch, refused, weight, may_wait) {
                Ok(()) => return true,
                Err(mail) => refused = mail,
            }
        }
        if let Mail::Delivery(mut delivery) = refused {
            if delivery.group().is_some() {
                self.passed_on.push(delivery);
                return false;
            }
            if let Some(hand_over) = delivery.hand_over.take() {
                self.completed = Some(hand_over);
            }
        }
        match (may_wait, attached, unreliable) {
            (false, ..) => self.counts.memory += 1,
            (true, true, true) => self.counts.slow += 1,
            (true, true, false) => self.counts.queue_full += 1,
            (true, false, _) => self.counts.offline_full += 1,
        }
        if attached
            && !unreliable
            && self.inbox.rules.full == QueueFull::Disconnect
            && !self.inbox.ending.swap(true, Ordering::Relaxed)
        {
            self.counts.disconnected += 1;
            batch.push_uncharged(Mail::Close(ReasonCode::QuotaExceeded));
        }
        false
    }

    /// Makes room by dropping the oldest deliveries. A connection may have taken them out: the queue is then
    /// overdrawn, and the connection drops them. Those that must be handed over stay.
    fn put_for_oldest(
        &mut self,
        batch: &mut Batch<'_, Mail>,
        mut mail: Mail,
        weight: usize,
        may_wait: bool,
    ) -> Result<(), Mail> {
        let attached = batch.is_attached();
        let mut may_put = may_wait;
        loop {
            if may_put {
                let put = if attached { batch.overdraw(mail, weight) } else { batch.push(mail, weight) };
                mail = match put {
                    Ok(()) => return Ok(()),
                    Err(Refused::Full(mail) | Refused::Closed(mail)) => mail,
                };
            }
            let oldest = batch.evict(|mail| match mail {
                Mail::Delivery(delivery) if delivery.hand_over.is_none() && delivery.charged => {
                    Some(delivery.weight())
                }
                _ => None,
            });
            let Some(oldest) = oldest else { return Err(mail) };
            if let (Some(stored), Mail::Delivery(delivery)) = (&self.inbox.stored, &oldest)
                && delivery.qos != QoS::AtMostOnce
            {
                self.ops.push(stored.done(delivery.position));
            }
            may_put = true;
            let unreliable = matches!(oldest, Mail::Delivery(delivery) if delivery.qos == QoS::AtMostOnce);
            match (may_wait, attached, unreliable) {
                (false, ..) => self.counts.memory += 1,
                (true, true, true) => self.counts.slow += 1,
                (true, true, false) => self.counts.queue_full += 1,
                (true, false, _) => self.counts.offline_full += 1,
            }
        }
    }

    fn count_places(&self, before: usize, after: usize) {
        let memory = self.inbox.rules.memory;
        if after >= before {
            memory.take((after - before) * memory::PLACE);
        } else {
            memory.give_back((before - after) * memory::PLACE);
        }
    }

    /// The lock is free: counts what was dropped and lets go of it.
    fn finish(self, tally: &mut Tally) {
        let Dropped { slow, queue_full, offline, offline_full, memory, disconnected } = self.counts;
        let dropped = slow + queue_full + offline + offline_full + memory;
        if dropped + disconnected > 0 {
            self.inbox.count_dropped(dropped);
            let counts: &mut StatsSnapshot = tally.counts();
            counts.dropped_slow += slow;
            counts.dropped_queue_full += queue_full;
            counts.dropped_offline += offline;
            counts.dropped_offline_full += offline_full;
            counts.dropped_memory += memory;
            counts.disconnected_queue_full += disconnected;
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
}

/// Deliveries of one read batch, grouped by session: one lock a session, one wake-up a session.
#[derive(Default)]
pub(crate) struct Outbox {
    slots: Vec<(Arc<Inbox>, Vec<Delivery>)>,
    index: hashbrown::HashMap<u64, usize>,
    spare: Vec<Vec<Delivery>>,
    last: usize,
    /// Set where something of this batch is to be stored.
    store: Option<Arc<Store>>,
    /// Whose publications wait for that, and which.
    publisher: Option<Arc<Inbox>>,
    sequences: Vec<SequenceRange>,
    /// Complete then, in place of a publisher.
    hand_over: Option<Arc<HandOver>>,
    ops: Vec<Op>,
}

impl Outbox {
    /// A hand-over is complete when everything of this batch is on the disk, with `op`.
    pub(crate) fn hand_over_when_stored(
        &mut self,
        store: &Arc<Store>,
        hand_over: &Arc<HandOver>,
        op: Option<Op>,
    ) {
        self.store = Some(store.clone());
        self.hand_over = Some(hand_over.clone());
        self.ops.extend(op);
    }

    /// A publication is acknowledged when everything of this batch is on the disk, with `op`.
    pub(crate) fn await_store(
        &mut self,
        store: &Arc<Store>,
        publisher: &Arc<Inbox>,
        sequence: u64,
        op: Option<Op>,
    ) {
        if self.store.is_none() {
            self.store = Some(store.clone());
            self.publisher = Some(publisher.clone());
        }
        match self.sequences.last_mut() {
            Some(last) if last.first + u64::from(last.count) == sequence && last.count < u32::MAX => {
                last.count += 1;
            }
            _ => self.sequences.push(SequenceRange { first: sequence, count: 1 }),
        }
        self.ops.extend(op);
    }

    /// Adds a delivery for a session.
    pub(crate) fn push(&mut self, inbox: &Arc<Inbox>, delivery: Delivery) {
        if let Some((last, deliveries)) = self.slots.get_mut(self.last)
            && last.id == inbox.id
        {
            deliveries.push(delivery);
            return;
        }
        let next = self.slots.len();
        let slot = if next < 8 {
            // A few are found faster by looking than by hashing.
            self.slots.iter().position(|(known, _)| known.id == inbox.id).unwrap_or(next)
        } else {
            if self.index.is_empty() {
                self.index.extend(self.slots.iter().enumerate().map(|(slot, (known, _))| (known.id, slot)));
            }
            *self.index.entry(inbox.id).or_insert(next)
        };
        if slot == next {
            self.slots.push((inbox.clone(), self.spare.pop().unwrap_or_default()));
        }
        self.last = slot;
        if let Some((_, deliveries)) = self.slots.get_mut(slot) {
            deliveries.push(delivery);
        }
    }

    /// True where there is nothing to hand over.
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.store.is_none()
    }

    /// Hands everything over; who must be woken goes on `wakes`.
    pub(crate) fn flush(&mut self, wakes: &mut WakeList, tally: &mut Tally) {
        /// Buffers kept for the next batch; more or larger ones are given back.
        const SPARE: usize = 32;
        self.last = 0;
        self.index.clear();
        let store = self.store.take();
        let gate = store.as_ref().map(|store| store.gate());
        for (inbox, mut deliveries) in self.slots.drain(..) {
            if inbox.offer_all(&mut deliveries, tally) {
                wakes.push(inbox);
            }
            if self.spare.len() < SPARE && deliveries.capacity() <= 2048 {
                self.spare.push(deliveries);
            }
        }
        let Some(gate) = gate else { return };
        if let Some(publisher) = self.publisher.take() {
            gate.finish(self.ops.drain(..), &publisher, &self.sequences);
            self.sequences.clear();
        } else if let Some(hand_over) = self.hand_over.take() {
            gate.hand_over(self.ops.drain(..), hand_over);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use parking_lot::Mutex;

    use super::{super::publication::tests::publication, *};
    use crate::flow::Ticket;

    #[derive(Default)]
    struct Completed(Mutex<Vec<u64>>);

    impl AckSink for Completed {
        fn acknowledge(&self, ranges: &[SequenceRange], _: Outcome) {
            self.0.lock().extend(ranges.iter().map(|range| range.first));
        }
    }

    fn inbox(items: usize) -> Arc<Inbox> {
        inbox_that(QueueFull::DropNewest, items)
    }

    fn inbox_that(full: QueueFull, items: usize) -> Arc<Inbox> {
        let rules = Rules { full, ..rules(Capacity { bytes: 1 << 20, items }, Arc::default()) };
        Inbox::new(1, "c", &Arc::new(rules), None)
    }

    /// Rules without a limit of memory.
    pub(crate) fn rules(capacity: Capacity, stats: Arc<Stats>) -> Rules {
        Rules { capacity, full: QueueFull::DropNewest, memory: memory::Ledger::new(u64::MAX), stats }
    }

    fn delivery(qos: QoS, hand_over: Option<Arc<HandOver>>) -> Delivery {
        let publication = Arc::new(publication("t", b"x", qos, false));
        Delivery { hand_over, ..Delivery::new(publication, qos) }
    }

    fn hand_over(completed: &Arc<Completed>, sequence: u64) -> Arc<HandOver> {
        HandOver::new(Ticket { sink: completed.clone(), sequence })
    }

    #[test]
    fn a_client_that_is_away_gets_no_qos_0_and_stored_messages_are_handed_over() {
        let inbox = inbox(1);
        let completed = Arc::new(Completed::default());
        assert!(inbox.detach().is_empty());
        let offered = inbox.offer(delivery(QoS::AtMostOnce, Some(hand_over(&completed, 1))));
        assert!(matches!(offered, Offered::Dropped));
        let offered = inbox.offer(delivery(QoS::AtLeastOnce, Some(hand_over(&completed, 2))));
        assert!(matches!(offered, Offered::Queued(false)));
        let offered = inbox.offer(delivery(QoS::AtLeastOnce, Some(hand_over(&completed, 3))));
        assert!(matches!(offered, Offered::Dropped));
        assert_eq!(*completed.0.lock(), [1, 2, 3]);
        let stats = inbox.rules.stats.snapshot();
        assert_eq!((stats.dropped_offline, stats.dropped_offline_full), (1, 1));
    }

    #[test]
    fn a_full_queue_of_a_connected_client_holds_only_what_must_be_handed_over() {
        let inbox = inbox(1);
        let completed = Arc::new(Completed::default());
        assert!(matches!(inbox.offer(delivery(QoS::AtMostOnce, None)), Offered::Queued(_)));
        let offered = inbox.offer(delivery(QoS::AtMostOnce, Some(hand_over(&completed, 1))));
        assert!(matches!(offered, Offered::Full(_)));
        assert!(matches!(inbox.offer(delivery(QoS::AtLeastOnce, None)), Offered::Dropped));
        assert!(matches!(inbox.offer(delivery(QoS::AtMostOnce, None)), Offered::Dropped));
        let stats = inbox.rules.stats.snapshot();
        assert_eq!((stats.dropped_slow, stats.dropped_queue_full), (1, 1));
    }

    fn numbered(number: u8, qos: QoS, hand_over: Option<Arc<HandOver>>) -> Delivery {
        let publication = Arc::new(publication("t", &[number], qos, false));
        Delivery { hand_over, ..Delivery::new(publication, qos) }
    }

    fn numbers(inbox: &Inbox) -> Vec<u8> {
        let mails = inbox.take();
        let delivered = mails.iter().filter_map(|mail| match mail {
            Mail::Delivery(delivery) => delivery.publication.payload().first().copied(),
            _ => None,
        });
        delivered.collect()
    }

    #[test]
    fn drop_oldest_keeps_the_newest_and_what_must_be_handed_over() {
        let inbox = inbox_that(QueueFull::DropOldest, 3);
        let completed = Arc::new(Completed::default());
        let number = |number, qos| inbox.offer(numbered(number, qos, None));
        assert!(matches!(
            inbox.offer(numbered(0, QoS::AtLeastOnce, Some(hand_over(&completed, 1)))),
            Offered::Queued(_)
        ));
        for next in 1..6 {
            assert!(matches!(number(next, QoS::AtLeastOnce), Offered::Queued(_)), "{next}");
        }
        assert!(matches!(number(9, QoS::AtMostOnce), Offered::Dropped), "QoS 0 pushes nobody out");
        assert!(completed.0.lock().is_empty());
        assert_eq!(numbers(&inbox), [0, 4, 5]);
        assert_eq!(inbox.filling().dropped, 4);
        let stats = inbox.rules.stats.snapshot();
        assert_eq!((stats.dropped_queue_full, stats.dropped_slow), (3, 1));
    }

    #[test]
    fn drop_oldest_reaches_what_the_connection_has_taken_out() {
        let inbox = inbox_that(QueueFull::DropOldest, 4);
        let number = |number| inbox.offer(numbered(number, QoS::AtLeastOnce, None));
        for next in 0..4 {
            number(next);
        }
        let taken = inbox.take();
        assert_eq!((taken.len(), inbox.excess()), (4, Charge::default()));
        assert!(matches!(number(4), Offered::Queued(_)));
        assert_eq!(inbox.excess().items, 1, "the connection is to drop one");
        assert!(matches!(number(5), Offered::Queued(_)), "no more than a quarter is overdrawn");
        assert_eq!(numbers(&inbox), [5]);
        assert_eq!(inbox.filling().dropped, 1);
    }

    #[test]
    fn disconnect_tells_the_connection_once() {
        let inbox = inbox_that(QueueFull::Disconnect, 1);
        let number = |number, qos| inbox.offer(numbered(number, qos, None));
        number(0, QoS::AtLeastOnce);
        number(1, QoS::AtMostOnce);
        assert_eq!(inbox.take().len(), 1, "a lost QoS 0 message is no reason");
        for next in 2..5 {
            assert!(matches!(number(next, QoS::AtLeastOnce), Offered::Dropped));
        }
        let mails = inbox.take();
        assert!(matches!(mails.front(), Some(Mail::Close(ReasonCode::QuotaExceeded))) && mails.len() == 1);
        let stats = inbox.rules.stats.snapshot();
        assert_eq!((stats.dropped_queue_full, stats.dropped_slow, stats.disconnected_queue_full), (3, 1, 1));
        inbox.detach();
        inbox.attach();
        number(6, QoS::AtLeastOnce);
        assert_eq!(inbox.take().len(), 1, "its next connection is told again");
    }

    #[test]
    fn without_memory_a_session_gets_one_message_at_a_time() {
        for full in [QueueFull::DropNewest, QueueFull::DropOldest] {
            let memory = memory::Ledger::new(64 << 10);
            let rules =
                Rules { full, memory, ..rules(Capacity { bytes: 1 << 20, items: 100 }, Arc::default()) };
            let inbox = Inbox::new(1, "c", &Arc::new(rules), None);
            let _full = Held::new(memory, 64 << 10);
            memory::settle();
            let completed = Arc::new(Completed::default());
            assert!(matches!(inbox.offer(numbered(0, QoS::AtLeastOnce, None)), Offered::Queued(_)));
            assert!(matches!(inbox.offer(numbered(1, QoS::AtMostOnce, None)), Offered::Dropped));
            let waits = inbox.offer(numbered(2, QoS::AtLeastOnce, Some(hand_over(&completed, 1))));
            assert!(matches!(waits, Offered::Full(_)));
            inbox.offer(numbered(3, QoS::AtLeastOnce, None));
            assert_eq!(numbers(&inbox), [if full == QueueFull::DropOldest { 3 } else { 0 }]);
            assert_eq!((inbox.filling().dropped, inbox.rules.stats.snapshot().dropped_memory), (2, 2));
            inbox.release(Charge { bytes: inbox.filling().queued.bytes, items: 1 });
            assert!(matches!(inbox.offer(numbered(4, QoS::AtMostOnce, None)), Offered::Queued(_)));
        }
    }

    #[test]
    fn everything_counted_is_given_back() {
        let memory = memory::Ledger::new(1 << 30);
        let capacity = Capacity { bytes: 1 << 20, items: 10 };
        let rules =
            Arc::new(Rules { full: QueueFull::DropOldest, memory, ..rules(capacity, Arc::default()) });
        let inbox = Inbox::new(1, "client", &rules, None);
        inbox.detach();
        for next in 0..30 {
            inbox.offer(numbered(next, QoS::AtLeastOnce, None));
        }
        memory::settle();
        assert_eq!(memory.used() as usize, memory::SESSION + 6 + 10 * memory::PLACE);
        let mut released = Charge::default();
        for mail in inbox.take().drain(..4) {
            let Mail::Delivery(delivery) = mail else { panic!("only deliveries") };
            released.add(delivery.weight());
        }
        inbox.release(released);
        memory::settle();
        assert_eq!(memory.used() as usize, memory::SESSION + 6 + 6 * memory::PLACE);
        inbox.end();
        drop(inbox);
        memory::settle();
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn acknowledgements_one_by_one_become_one_mail() {
        let inbox = inbox(1);
        for first in 5..105 {
            inbox.acknowledge(&[SequenceRange { first, count: 1 }], Outcome::Success);
        }
        inbox.acknowledge(
            &[SequenceRange { first: 105, count: 1 }],
            Outcome::Failed(ReasonCode::QuotaExceeded),
        );
        let mails = inbox.take();
        let ranges: Vec<_> = mails
            .iter()
            .map(|mail| match mail {
                Mail::Acknowledged(range, outcome) => (range.first, range.count, *outcome),
                _ => panic!("not an acknowledgement"),
            })
            .collect();
        let expected = [(5, 100, Outcome::Success), (105, 1, Outcome::Failed(ReasonCode::QuotaExceeded))];
        assert_eq!(ranges, expected);
    }

    #[test]
    fn an_outbox_keeps_the_order_of_each_session() {
        let inboxes: Vec<_> = (0..20)
            .map(|id| {
                let rules = rules(Capacity { bytes: 1 << 20, items: 1000 }, Arc::default());
                Inbox::new(id, "c", &Arc::new(rules), None)
            })
            .collect();
        let mut outbox = Outbox::default();
        for round in 0..10u8 {
            for inbox in &inboxes {
                let publication = Arc::new(publication("t", &[round], QoS::AtMostOnce, false));
                let delivery = Delivery::new(publication, QoS::AtMostOnce);
                outbox.push(inbox, delivery);
            }
        }
        outbox.flush(&mut WakeList::default(), &mut Tally::default());
        for inbox in &inboxes {
            let rounds: Vec<u8> = inbox
                .take()
                .iter()
                .map(|mail| match mail {
                    Mail::Delivery(delivery) => delivery.publication.payload()[0],
                    _ => panic!("not a delivery"),
                })
                .collect();
            assert_eq!(rounds, (0..10).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_mail_stays_small() {
        assert!(size_of::<Mail>() <= 40, "{}", size_of::<Mail>());
    }
}
