//! Inboxes by hand: what is queued, dropped, handed over and counted.

use parking_lot::Mutex;

use super::{
    super::{outbox::Outbox, publication::tests::publication},
    *,
};
use crate::flow::{HandOver, Ticket};

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
    connected(Inbox::new(1, "c", &Arc::new(rules), None))
}

/// As its connection makes it.
pub(crate) fn connected(inbox: Arc<Inbox>) -> Arc<Inbox> {
    inbox.attach();
    inbox
}

/// Rules without a limit of memory.
pub(crate) fn rules(capacity: Capacity, stats: Arc<Stats>) -> Rules {
    Rules { capacity, full: QueueFull::DropNewest, memory: memory::MemoryCounter::new(u64::MAX), stats }
}

fn delivery(qos: QoS, hand_over: Option<Arc<HandOver>>) -> Delivery {
    let publication = Arc::new(publication("t", b"x", qos, false));
    Delivery { hand_over, ..Delivery::new(publication, qos) }
}

fn hand_over(completed: &Arc<Completed>, sequence: u64) -> Arc<HandOver> {
    HandOver::new(Ticket::new(completed.clone(), sequence))
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
fn nobody_is_connected_until_a_connection_says_so() {
    let rules = rules(Capacity { bytes: 1 << 20, items: 1 }, Arc::default());
    let inbox = Inbox::new(1, "c", &Arc::new(rules), None);
    assert!(!inbox.is_connected());
    assert!(matches!(inbox.offer(delivery(QoS::AtMostOnce, None)), Offered::Dropped));
    inbox.close_connection(ReasonCode::SessionTakenOver);
    assert!(inbox.take().is_empty(), "there is no connection to close");
    inbox.attach();
    assert!(inbox.is_connected());
    assert!(matches!(inbox.offer(delivery(QoS::AtMostOnce, None)), Offered::Queued(_)));
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
        let memory = memory::MemoryCounter::new(64 << 10);
        let rules = Rules { full, memory, ..rules(Capacity { bytes: 1 << 20, items: 100 }, Arc::default()) };
        let inbox = connected(Inbox::new(1, "c", &Arc::new(rules), None));
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
    let memory = memory::MemoryCounter::new(1 << 30);
    let capacity = Capacity { bytes: 1 << 20, items: 10 };
    let rules = Arc::new(Rules { full: QueueFull::DropOldest, memory, ..rules(capacity, Arc::default()) });
    let inbox = Inbox::new(1, "client", &rules, None);
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
    inbox.acknowledge(&[SequenceRange { first: 105, count: 1 }], Outcome::Failed(ReasonCode::QuotaExceeded));
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
            connected(Inbox::new(id, "c", &Arc::new(rules), None))
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
