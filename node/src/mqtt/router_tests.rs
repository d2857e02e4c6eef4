//! The router against a naive model, and internal publishing against sinks and queues without room.

use std::collections::BTreeMap;

use causeway_protocol::mqtt::{PublishProperties, QoS, ReasonCode, topic::matches};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    flow::mailbox::{Capacity, Charge},
    flow::{Accepted, AckSink, Origin, Outcome, Room, SequenceRange, Ticket, WakeList},
    mqtt::{
        inbox::{
            Mail,
            tests::{connected, rules},
        },
        publication::Delivery,
        route::RouteCache,
    },
};

fn router() -> Arc<Router> {
    Router::new(RetainedLimits::default())
}

fn inbox(router: &Router, items: usize) -> Arc<Inbox> {
    let rules = rules(Capacity { bytes: 1 << 20, items }, router.stats().clone());
    connected(Inbox::new(router.next_inbox_id(), "c", &Arc::new(rules), None))
}

fn options(qos: QoS) -> SubscriptionOptions {
    SubscriptionOptions { qos, ..SubscriptionOptions::default() }
}

/// A sink that takes `room` messages and remembers them and their tickets.
#[derive(Default)]
struct Sink {
    room: AtomicU64,
    taken: Mutex<Vec<(String, Option<Ticket>)>>,
    wake: Room,
}

impl MessageSink for Sink {
    fn accept(&self, message: &Message<'_>, ticket: Option<&Ticket>, _: &mut WakeList) -> Accepted {
        if self.room.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |room| room.checked_sub(1)).is_err() {
            return Accepted::Full(self.wake.clone());
        }
        self.taken.lock().push((message.topic.to_owned(), ticket.cloned()));
        Accepted::Taken
    }
}

#[derive(Default)]
struct Completed(Mutex<Vec<Outcome>>);

impl AckSink for Completed {
    fn acknowledge(&self, _: &[SequenceRange], outcome: Outcome) {
        self.0.lock().push(outcome);
    }
}

fn with_message<T>(topic: &str, qos: QoS, retain: bool, then: impl FnOnce(&Message<'_>) -> T) -> T {
    let origin = Arc::new(Origin { client_id: "test".into(), username: None, peer: None });
    then(&Message {
        origin: &origin,
        topic,
        payload: b"x",
        qos,
        retain,
        dup: false,
        properties: &PublishProperties::default(),
        received_at: 0,
        hops: 0,
    })
}

fn publish(
    router: &Router,
    topic: &str,
    qos: QoS,
    hand_over: Option<&Arc<HandOver>>,
    progress: &mut PublishProgress,
) -> Option<usize> {
    let published = with_message(topic, qos, false, |message| {
        router.publish(message, hand_over, progress, &mut WakeList::default())
    });
    match published {
        Published::Done { matched } => Some(matched),
        Published::Full(_) => None,
    }
}

fn deliveries(inbox: &Inbox) -> Vec<Delivery> {
    let mails = inbox.take();
    mails
        .into_iter()
        .filter_map(|mail| if let Mail::Delivery(delivery) = mail { Some(delivery) } else { None })
        .collect()
}

#[test]
fn random_subscriptions_route_like_a_naive_model() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let router = router();
    let inboxes: Vec<_> = (0..30).map(|_| inbox(&router, 10)).collect();
    let names = ["a", "b", "", "$s", "é"];
    let parts = ["a", "b", "", "$s", "é", "+", "+"];
    // (session, filter) -> (QoS, identifier)
    let mut model: BTreeMap<(usize, String), (QoS, u32)> = BTreeMap::new();
    let mut cache = RouteCache::new(8);
    for step in 1..4000u32 {
        let mut levels: Vec<_> =
            (0..random.random_range(1..4)).map(|_| parts[random.random_range(0..parts.len())]).collect();
        if random.random_bool(0.3) {
            levels.push("#");
        }
        let filter = levels.join("/");
        let session = random.random_range(0..inboxes.len());
        if !filter.is_empty() {
            if random.random_bool(0.4) {
                let known = model.remove(&(session, filter.clone())).is_some();
                assert_eq!(router.unsubscribe(inboxes[session].id(), &filter), known, "seed {seed}");
            } else {
                let qos = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][random.random_range(0..3)];
                let new = model.insert((session, filter.clone()), (qos, step)).is_none();
                assert_eq!(router.subscribe(&inboxes[session], &filter, options(qos), Some(step)), new);
            }
        }
        let levels: Vec<_> =
            (0..random.random_range(1..5)).map(|_| names[random.random_range(0..names.len())]).collect();
        let topic = levels.join("/");
        let mut expected: BTreeMap<u64, (QoS, Vec<u32>)> = BTreeMap::new();
        for ((session, filter), (qos, identifier)) in &model {
            if matches(filter, &topic) {
                let entry = expected.entry(inboxes[*session].id()).or_default();
                entry.0 = entry.0.max(*qos);
                entry.1.push(*identifier);
                entry.1.sort_unstable();
            }
        }
        let route = cache.route(&router, &topic);
        let found: BTreeMap<u64, (QoS, Vec<u32>)> = route
            .subscribers
            .iter()
            .map(|subscriber| {
                let mut identifiers = subscriber.identifiers().to_vec();
                identifiers.sort_unstable();
                (subscriber.inbox.id(), (subscriber.qos, identifiers))
            })
            .collect();
        assert_eq!(found.len(), route.subscribers.len(), "one delivery a session, seed {seed}");
        assert_eq!(found, expected, "topic {topic}, seed {seed}");
        assert_eq!(router.stats().snapshot().subscriptions, model.len() as u64, "seed {seed}");
    }
    for (session, filter) in model.into_keys() {
        assert!(router.unsubscribe(inboxes[session].id(), &filter));
    }
    assert_eq!(router.filters.read().tree.len(), 1, "nothing is left behind");
}

#[test]
fn a_filter_with_many_subscribers_loses_each_once() {
    let router = router();
    let inboxes: Vec<_> = (0..100).map(|_| inbox(&router, 10)).collect();
    for inbox in &inboxes {
        assert!(router.subscribe(inbox, "a/+", options(QoS::AtMostOnce), None));
        assert!(!router.subscribe(inbox, "a/+", options(QoS::AtLeastOnce), None));
    }
    assert_eq!(router.find_route("a/b").subscribers(), 100);
    for inbox in &inboxes {
        assert!(router.unsubscribe(inbox.id(), "a/+"));
        assert!(!router.unsubscribe(inbox.id(), "a/+"));
    }
    assert!(router.find_route("a/b").is_empty());
}

#[test]
fn a_filter_made_of_slashes_costs_no_stack() {
    let router = router();
    let inbox = inbox(&router, 1);
    let filter = "/".repeat(65_535);
    assert!(router.subscribe(&inbox, &filter, options(QoS::AtMostOnce), None));
    assert_eq!(router.find_route(&filter).subscribers(), 1);
    drop(router);
}

#[test]
fn a_cached_route_sees_the_next_subscription_at_once() {
    let router = router();
    let mut cache = RouteCache::default();
    assert!(cache.route(&router, "a").is_empty());
    let id = router.add_sink("a/#", Arc::new(Sink::default()));
    assert_eq!(cache.route(&router, "a").sinks(), 1);
    assert!(router.remove_sink(id) && !router.remove_sink(id));
    assert!(cache.route(&router, "a").is_empty());
}

#[test]
fn a_publication_that_found_no_room_goes_on_where_it_stopped() {
    let router = router();
    let sinks: Vec<_> = (0..3).map(|_| Arc::new(Sink::default())).collect();
    for sink in &sinks {
        router.add_sink("t", sink.clone());
    }
    let small = inbox(&router, 1);
    let large = inbox(&router, 10);
    router.subscribe(&small, "t", options(QoS::AtLeastOnce), None);
    router.subscribe(&large, "t", options(QoS::AtMostOnce), None);
    let mut progress = PublishProgress::default();
    for sink in &sinks {
        sink.room.store(100, Ordering::SeqCst);
    }
    assert_eq!(publish(&router, "t", QoS::AtLeastOnce, None, &mut progress), Some(5));
    sinks[1].room.store(0, Ordering::SeqCst);

    let completed = Arc::new(Completed::default());
    let hand_over = HandOver::new(Ticket::new(completed.clone(), 1));
    assert_eq!(publish(&router, "t", QoS::AtLeastOnce, Some(&hand_over), &mut progress), None);
    assert_eq!(publish(&router, "t", QoS::AtLeastOnce, Some(&hand_over), &mut progress), None);
    sinks[1].room.store(1, Ordering::SeqCst);
    assert_eq!(publish(&router, "t", QoS::AtLeastOnce, Some(&hand_over), &mut progress), None, "queue full");
    assert_eq!(deliveries(&small).len(), 1);
    small.release(Charge { bytes: 1 << 20, items: 1 });
    assert_eq!(publish(&router, "t", QoS::AtLeastOnce, Some(&hand_over), &mut progress), Some(5));
    drop(hand_over);

    for sink in &sinks {
        let mut taken = sink.taken.lock();
        assert_eq!(taken.len(), 2, "each sink takes it once");
        assert!(taken[0].1.is_none());
        assert!(completed.0.lock().is_empty(), "not complete before everyone is");
        let ticket = taken.remove(1).1.expect("a handed-over message has a ticket");
        ticket.sink.acknowledge(&[SequenceRange { first: ticket.sequence, count: 1 }], Outcome::Success);
    }
    assert_eq!(deliveries(&small).len(), 1);
    assert!(completed.0.lock().is_empty());
    assert_eq!(deliveries(&large).len(), 2);
    assert_eq!(*completed.0.lock(), [Outcome::Success]);
}

#[test]
fn a_sink_that_fails_makes_the_hand_over_fail() {
    let router = router();
    let sink = Arc::new(Sink::default());
    sink.room.store(1, Ordering::SeqCst);
    router.add_sink("#", sink.clone());
    let completed = Arc::new(Completed::default());
    let hand_over = HandOver::new(Ticket::new(completed.clone(), 1));
    let mut progress = PublishProgress::default();
    assert_eq!(publish(&router, "t", QoS::AtLeastOnce, Some(&hand_over), &mut progress), Some(1));
    drop(hand_over);
    let ticket = sink.taken.lock().remove(0).1.expect("a ticket");
    let failed = Outcome::Failed(ReasonCode::QuotaExceeded);
    ticket.sink.acknowledge(&[SequenceRange { first: ticket.sequence, count: 1 }], failed);
    assert_eq!(*completed.0.lock(), [failed]);
}

#[test]
fn an_internal_publication_may_be_retained() {
    let router = router();
    let mut progress = PublishProgress::default();
    with_message("a/b", QoS::AtLeastOnce, true, |message| {
        router.publish(message, None, &mut progress, &mut WakeList::default());
    });
    let found = router.retained_matching("+/b", u64::MAX, 0, usize::MAX);
    assert_eq!(found.map(|found| found.len()), Some(1));
    assert_eq!(router.stats().snapshot().retained_messages, 1);
}

#[test]
fn a_publication_to_a_filter_reaches_nobody() {
    let router = router();
    let sink = Arc::new(Sink::default());
    router.add_sink("#", sink.clone());
    let mut progress = PublishProgress::default();
    assert_eq!(publish(&router, "a/+", QoS::AtMostOnce, None, &mut progress), Some(0));
    assert_eq!(router.stats().snapshot().dropped_invalid_topic, 1);
}
