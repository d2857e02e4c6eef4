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
//! | QoS 1/2, full | dropped, counted; *full* if it must be handed over | dropped, counted |
//!
//! Acknowledgements and control messages are always taken: the tickets bound the former.

use std::sync::Arc;

use causeway_protocol::mqtt::{QoS, ReasonCode};

use super::{
    publication::Delivery,
    stats::{Stats, Tally},
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
    /// The connection must end: another took over (0x8E), shutdown (0x8B), an administrator (0x98).
    Close(ReasonCode),
}

/// The outside of a session.
pub(crate) struct Inbox {
    id: u64,
    client_id: Box<str>,
    mailbox: Mailbox<Mail>,
    stats: Arc<Stats>,
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

impl Inbox {
    pub(crate) fn new(id: u64, client_id: &str, capacity: Capacity, stats: Arc<Stats>) -> Arc<Self> {
        Arc::new(Self { id, client_id: client_id.into(), mailbox: Mailbox::new(capacity), stats })
    }

    /// Distinguishes sessions, also of one client id, within this process.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// The client identifier.
    pub(crate) fn client_id(&self) -> &str {
        &self.client_id
    }

    pub(crate) fn mailbox(&self) -> &Mailbox<Mail> {
        &self.mailbox
    }

    /// Offers one delivery.
    pub(crate) fn offer(&self, delivery: Delivery) -> Offered {
        let mut tally = Tally::default();
        let mut released = None;
        let mut batch = self.mailbox.lock();
        let mandatory = delivery.hand_over.is_some() && batch.is_attached() && batch.is_open();
        let offered = if mandatory && !batch.has_room(delivery.weight()) {
            Offered::Full(batch.room())
        } else if put(&mut batch, delivery, &mut tally, &mut released) {
            Offered::Queued(batch.finish())
        } else {
            Offered::Dropped
        };
        // The lock is free here: completing a hand-over may call anybody, this inbox included.
        drop(released);
        tally.flush(&self.stats);
        offered
    }

    /// Offers what one read batch holds for this session; nothing in it is to be handed over. True: the
    /// caller owes a wake-up.
    pub(crate) fn offer_all(&self, deliveries: &mut Vec<Delivery>, tally: &mut Tally) -> bool {
        let mut batch = self.mailbox.lock();
        batch.reserve(deliveries.len());
        for delivery in deliveries.drain(..) {
            debug_assert!(delivery.hand_over.is_none(), "handed-over deliveries are offered one by one");
            put(&mut batch, delivery, tally, &mut None);
        }
        batch.finish()
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

    /// The connection has gone, the session stays: what cannot wait is dropped, what waits counts as
    /// handed over. Acknowledgements stay inside.
    pub(crate) fn detach(&self) -> Vec<Mail> {
        self.mailbox.set_attached(false);
        self.mailbox.take()
    }

    /// A connection drains it from now on.
    pub(crate) fn attach(&self) {
        self.mailbox.set_attached(true);
    }

    /// The session is over.
    pub(crate) fn end(&self) {
        drop(self.mailbox.close());
    }

    /// Gives back what deliveries were charged.
    pub(crate) fn release(&self, charge: Charge) {
        if !charge.is_empty() {
            self.mailbox.release(charge);
        }
    }
}

/// Takes a delivery by the table at the top; false where it was dropped. A hand-over that is complete
/// comes back in `released`, to be dropped when the lock is free.
fn put(
    batch: &mut Batch<'_, Mail>,
    mut delivery: Delivery,
    tally: &mut Tally,
    released: &mut Option<Arc<HandOver>>,
) -> bool {
    if !batch.is_open() {
        *released = delivery.hand_over.take();
        return false;
    }
    let attached = batch.is_attached();
    let unreliable = delivery.qos == QoS::AtMostOnce;
    if !attached {
        *released = delivery.hand_over.take();
        if unreliable {
            tally.counts().dropped_offline += 1;
            return false;
        }
    }
    let weight = delivery.weight();
    match batch.push(Mail::Delivery(delivery), weight) {
        Ok(()) => true,
        Err(Refused::Full(mail) | Refused::Closed(mail)) => {
            if let Mail::Delivery(mut delivery) = mail
                && let Some(hand_over) = delivery.hand_over.take()
            {
                *released = Some(hand_over);
            }
            let counts = tally.counts();
            match (attached, unreliable) {
                (true, true) => counts.dropped_slow += 1,
                (true, false) => counts.dropped_queue_full += 1,
                (false, _) => counts.dropped_offline_full += 1,
            }
            false
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
}

impl Outbox {
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

    /// Hands everything over; who must be woken goes on `wakes`.
    pub(crate) fn flush(&mut self, wakes: &mut WakeList, tally: &mut Tally) {
        /// Buffers kept for the next batch; more or larger ones are given back.
        const SPARE: usize = 32;
        self.last = 0;
        self.index.clear();
        for (inbox, mut deliveries) in self.slots.drain(..) {
            if inbox.offer_all(&mut deliveries, tally) {
                wakes.push(inbox);
            }
            if self.spare.len() < SPARE && deliveries.capacity() <= 2048 {
                self.spare.push(deliveries);
            }
        }
    }
}

#[cfg(test)]
mod tests {
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
        Inbox::new(1, "c", Capacity { bytes: 1 << 20, items }, Arc::default())
    }

    fn delivery(qos: QoS, hand_over: Option<Arc<HandOver>>) -> Delivery {
        let publication = Arc::new(publication("t", b"x", qos, false));
        Delivery { publication, identifiers: None, hand_over, qos, retain: false }
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
        let stats = inbox.stats.snapshot();
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
        let stats = inbox.stats.snapshot();
        assert_eq!((stats.dropped_slow, stats.dropped_queue_full), (1, 1));
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
        let mails = inbox.mailbox.take();
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
            .map(|id| Inbox::new(id, "c", Capacity { bytes: 1 << 20, items: 1000 }, Arc::default()))
            .collect();
        let mut outbox = Outbox::default();
        for round in 0..10u8 {
            for inbox in &inboxes {
                let publication = Arc::new(publication("t", &[round], QoS::AtMostOnce, false));
                let delivery = Delivery {
                    publication,
                    identifiers: None,
                    hand_over: None,
                    qos: QoS::AtMostOnce,
                    retain: false,
                };
                outbox.push(inbox, delivery);
            }
        }
        outbox.flush(&mut WakeList::default(), &mut Tally::default());
        for inbox in &inboxes {
            let rounds: Vec<u8> = inbox
                .mailbox
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
