//! A connected client that takes nothing while a publisher inside the node waits for it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use causeway::{
    flow::mailbox::Capacity,
    flow::{AckSink, HandOver, Message, Origin, Outcome, SequenceRange, Standstill, Ticket, WakeList},
    mqtt::{Options, PublishProgress, Published, QueueFull, Router},
};
use causeway_protocol::mqtt::{AckKind, Connect, Packet, PublishProperties, QoS, ReasonCode, Version};

use crate::mqtt_front::*;

/// How long a client may take nothing.
const TIMEOUT: Duration = Duration::from_millis(500);

fn options(queue_full: QueueFull, items: usize) -> impl FnOnce(&mut Options) {
    move |options| {
        options.queue_full = queue_full;
        options.slow_subscriber_timeout = Some(TIMEOUT);
        options.session_queue = Capacity { bytes: 1 << 20, items };
    }
}

/// Publishes as a Kafka consumer does: every message is handed over, and who has no room is waited for.
#[derive(Default)]
struct Feed {
    handed_over: AtomicUsize,
    /// It says that it brings nothing more until something is handed over.
    waits: AtomicBool,
}

impl AckSink for Feed {
    fn acknowledge(&self, ranges: &[SequenceRange], _: Outcome) {
        let count: u32 = ranges.iter().map(|range| range.count).sum();
        self.handed_over.fetch_add(count as usize, Ordering::SeqCst);
    }

    fn waits_for(&self, _: &Arc<Standstill>) -> bool {
        self.waits.load(Ordering::SeqCst)
    }
}

impl Feed {
    async fn publish(self: &Arc<Self>, router: &Router, payloads: &[Vec<u8>], qos: QoS) {
        let origin = Arc::new(Origin { client_id: "feed".into(), username: None, peer: None });
        let mut progress = PublishProgress::default();
        for payload in payloads {
            let properties = PublishProperties::default();
            let message = Message {
                origin: &origin,
                topic: "t",
                payload,
                qos,
                retain: false,
                dup: false,
                properties: &properties,
                received_at: 0,
                hops: 0,
            };
            let hand_over = HandOver::new(Ticket::new(self.clone(), 0));
            loop {
                let mut wakes = WakeList::default();
                match router.publish(&message, Some(&hand_over), &mut progress, &mut wakes) {
                    Published::Done { .. } => {
                        // Connections have their turn.
                        wakes.wake_all();
                        tokio::task::yield_now().await;
                        break;
                    }
                    Published::Full(room) => {
                        wakes.wake_all();
                        let _ = tokio::time::timeout(Duration::from_millis(100), room.notified()).await;
                    }
                }
            }
        }
    }

    async fn has_handed_over(&self, count: usize) {
        let wait = async {
            while self.handed_over.load(Ordering::SeqCst) < count {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let waited = tokio::time::timeout(2 * PATIENCE, wait).await;
        assert!(waited.is_ok(), "{} of {count} handed over", self.handed_over.load(Ordering::SeqCst));
    }
}

fn numbers(range: std::ops::Range<u8>) -> Vec<Vec<u8>> {
    range.map(|number| vec![number]).collect()
}

/// Begins to publish without waiting for it.
fn begin(broker: &Broker, feed: &Arc<Feed>, payloads: Vec<Vec<u8>>, qos: QoS) -> tokio::task::JoinHandle<()> {
    let (router, feed) = (broker.router.clone(), feed.clone());
    tokio::spawn(async move { feed.publish(&router, &payloads, qos).await })
}

async fn slow(broker: &Broker, lasts: bool) -> Client {
    let mut slow = Client::open(broker.address, Version::V5).await;
    let asked = if lasts { persistent(Version::V5, "slow") } else { connect(Version::V5, "slow") };
    slow.connect(&Connect { receive_maximum: 1, ..asked }).await;
    slow.subscribe("t", QoS::AtLeastOnce).await;
    slow
}

async fn take(client: &mut Client) -> (Vec<u8>, u16) {
    loop {
        let seen = tokio::time::timeout(2 * PATIENCE, client.try_next()).await;
        match seen.unwrap() {
            Seen::Publish { payload, identifier, .. } => return (payload, identifier),
            // The answer to a PINGREQ that was not waited for to its end.
            Seen::PingResp => {}
            other => panic!("no PUBLISH: {other:?}"),
        }
    }
}

async fn take_and_acknowledge(client: &mut Client, expected: impl IntoIterator<Item = u8>) {
    for number in expected {
        let (payload, identifier) = take(client).await;
        assert_eq!(payload, [number]);
        client.ack(AckKind::PubAck, identifier).await;
    }
}

#[tokio::test]
async fn a_client_that_takes_nothing_holds_the_others_for_the_timeout_and_no_longer() {
    for (policy, kept) in [(QueueFull::DropNewest, 0..5), (QueueFull::DropOldest, 16..20)] {
        for lasts in [false, true] {
            let broker = broker_with(options(policy, 4)).await;
            let mut slow = slow(&broker, lasts).await;
            let mut live = broker.client(Version::V5, "live").await;
            live.subscribe("t", QoS::AtLeastOnce).await;
            let feed = Arc::new(Feed::default());
            let publishing = begin(&broker, &feed, numbers(0..20), QoS::AtLeastOnce);
            assert_eq!(take(&mut slow).await, (vec![0], 1));
            let pinging = async {
                loop {
                    // A sign of life is no progress.
                    slow.nothing().await;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            tokio::select! {
                () = take_and_acknowledge(&mut live, 0..20) => {}
                () = pinging => {}
            }
            tokio::time::timeout(PATIENCE, publishing).await.expect("all is published").expect("no panic");
            feed.has_handed_over(20).await;
            let row = broker.front.clients().get("slow").expect("a session");
            assert_eq!((row.connected, row.dropped), (true, 15), "{policy:?}, {lasts}");
            let stats = broker.front.stats();
            assert_eq!((stats.slow_subscribers, stats.dropped_queue_full), (1, 15), "{policy:?}, {lasts}");
            // It goes on, gets what its queue has kept, and is waited for again.
            slow.ack(AckKind::PubAck, 1).await;
            take_and_acknowledge(&mut slow, kept.clone().filter(|number| *number > 0)).await;
            slow.nothing().await;
            let publishing = begin(&broker, &feed, numbers(20..30), QoS::AtLeastOnce);
            take_and_acknowledge(&mut slow, 20..30).await;
            take_and_acknowledge(&mut live, 20..30).await;
            tokio::time::timeout(PATIENCE, publishing).await.expect("all is published").expect("no panic");
            feed.has_handed_over(30).await;
            assert_eq!(broker.front.clients().get("slow").expect("a session").dropped, 15);
        }
    }
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_disconnected_where_that_is_wanted() {
    let broker = broker_with(options(QueueFull::Disconnect, 4)).await;
    let mut slow = slow(&broker, true).await;
    let mut live = broker.client(Version::V5, "live").await;
    live.subscribe("t", QoS::AtLeastOnce).await;
    let feed = Arc::new(Feed::default());
    let publishing = begin(&broker, &feed, numbers(0..20), QoS::AtLeastOnce);
    take_and_acknowledge(&mut live, 0..20).await;
    tokio::time::timeout(PATIENCE, publishing).await.expect("all is published").expect("no panic");
    assert_eq!(take(&mut slow).await, (vec![0], 1));
    assert_eq!(slow.next().await, Seen::Disconnect(ReasonCode::QuotaExceeded));
    broker.until(|stats| stats.connections == 1).await;
    feed.has_handed_over(20).await;
    let stats = broker.front.stats();
    assert_eq!((stats.slow_subscribers, stats.disconnected_queue_full), (1, 1));
    // The session keeps what its queue takes, as that of any client that is away.
    let row = broker.front.clients().get("slow").expect("the session stays");
    assert_eq!((row.connected, row.queued + row.inflight + row.dropped as usize), (false, 20));
}

#[tokio::test]
async fn a_client_is_waited_for_without_a_limit_where_that_is_wanted() {
    let broker = broker_with(|all| {
        options(QueueFull::DropNewest, 4)(all);
        all.slow_subscriber_timeout = None;
    })
    .await;
    let mut slow = slow(&broker, false).await;
    let feed = Arc::new(Feed::default());
    let publishing = begin(&broker, &feed, numbers(0..20), QoS::AtLeastOnce);
    assert_eq!(take(&mut slow).await, (vec![0], 1));
    tokio::time::sleep(3 * TIMEOUT).await;
    assert!(!publishing.is_finished());
    slow.ack(AckKind::PubAck, 1).await;
    take_and_acknowledge(&mut slow, 1..20).await;
    feed.has_handed_over(20).await;
    let stats = broker.front.stats();
    assert_eq!((stats.slow_subscribers, stats.dropped_queue_full), (0, 0));
}

#[tokio::test]
async fn a_client_that_does_not_read_does_not_hold_qos_0_either() {
    let broker = broker_with(options(QueueFull::DropNewest, 4)).await;
    let mut slow = broker.client(Version::V5, "slow").await;
    slow.subscribe("t", QoS::AtMostOnce).await;
    let feed = Arc::new(Feed::default());
    // More than the sockets and the queue hold.
    let payloads = vec![vec![7; 200_000]; 200];
    let publishing = begin(&broker, &feed, payloads, QoS::AtMostOnce);
    tokio::time::timeout(4 * PATIENCE, publishing).await.expect("all is published").expect("no panic");
    feed.has_handed_over(200).await;
    let stats = broker.front.stats();
    assert_eq!(stats.slow_subscribers, 1);
    let row = broker.front.clients().get("slow").expect("a session");
    assert!(stats.dropped_slow > 0 && row.dropped == stats.dropped_slow, "{row:?}");
}

#[tokio::test]
async fn what_a_client_holds_is_let_go_only_where_its_publisher_waits() {
    let broker = broker_with(options(QueueFull::DropNewest, 100)).await;
    let mut slow = slow(&broker, false).await;
    let feed = Arc::new(Feed::default());
    feed.publish(&broker.router, &numbers(0..3), QoS::AtLeastOnce).await;
    assert_eq!(take(&mut slow).await, (vec![0], 1));
    // There is room for more: a worker that takes its time is given it.
    tokio::time::sleep(3 * TIMEOUT).await;
    assert_eq!((feed.handed_over.load(Ordering::SeqCst), broker.front.stats().slow_subscribers), (0, 0));
    feed.waits.store(true, Ordering::SeqCst);
    feed.has_handed_over(3).await;
    assert_eq!(broker.front.stats().slow_subscribers, 1);
    // Nothing is lost by that.
    slow.ack(AckKind::PubAck, 1).await;
    take_and_acknowledge(&mut slow, 1..3).await;
    assert_eq!(broker.front.clients().get("slow").expect("a session").dropped, 0);
}

#[tokio::test]
async fn a_client_that_goes_on_slowly_is_waited_for() {
    let broker = broker_with(options(QueueFull::DropNewest, 2)).await;
    let mut slow = slow(&broker, false).await;
    let feed = Arc::new(Feed::default());
    let publishing = begin(&broker, &feed, numbers(0..12), QoS::AtLeastOnce);
    for number in 0..12 {
        let (payload, identifier) = take(&mut slow).await;
        assert_eq!(payload, [number]);
        tokio::time::sleep(TIMEOUT / 4).await;
        slow.ack(AckKind::PubAck, identifier).await;
    }
    tokio::time::timeout(PATIENCE, publishing).await.expect("all is published").expect("no panic");
    feed.has_handed_over(12).await;
    assert_eq!(broker.front.clients().get("slow").expect("a session").dropped, 0);
}

#[tokio::test]
async fn a_will_reaches_the_others_although_one_takes_nothing() {
    let broker = broker_with(options(QueueFull::DropNewest, 1)).await;
    let mut slow = slow(&broker, false).await;
    let mut live = broker.client(Version::V5, "live").await;
    live.subscribe("t", QoS::AtLeastOnce).await;
    for number in 0..4u8 {
        let mut dying = Client::open(broker.address, Version::V5).await;
        let will = Some(will("t", std::slice::from_ref(&number)));
        dying.connect(&Connect { will, ..connect(Version::V5, "dying") }).await;
        drop(dying);
        let (payload, identifier) = take(&mut live).await;
        assert_eq!(payload, [number]);
        live.ack(AckKind::PubAck, identifier).await;
        broker.until(|stats| stats.connections == 2).await;
    }
    assert_eq!(take(&mut slow).await, (vec![0], 1));
    let stats = broker.front.stats();
    assert_eq!((stats.slow_subscribers, stats.wills_published), (1, 4));
}

#[tokio::test]
async fn a_group_leaves_out_a_member_that_takes_nothing() {
    let broker = broker_with(options(QueueFull::DropNewest, 2)).await;
    let mut slow = Client::open(broker.address, Version::V5).await;
    slow.connect(&Connect { receive_maximum: 1, ..connect(Version::V5, "slow") }).await;
    slow.subscribe("$share/g/t", QoS::AtLeastOnce).await;
    let feed = Arc::new(Feed::default());
    let publishing = begin(&broker, &feed, numbers(0..6), QoS::AtLeastOnce);
    tokio::time::timeout(2 * PATIENCE, publishing).await.expect("all is published").expect("no panic");
    assert_eq!(take(&mut slow).await, (vec![0], 1));
    let mut live = broker.client(Version::V5, "live").await;
    live.subscribe("$share/g/t", QoS::AtLeastOnce).await;
    let publishing = begin(&broker, &feed, numbers(10..20), QoS::AtLeastOnce);
    take_and_acknowledge(&mut live, 10..20).await;
    tokio::time::timeout(PATIENCE, publishing).await.expect("all is published").expect("no panic");
    assert_eq!(broker.front.stats().slow_subscribers, 1);
    live.send(&Packet::PingReq).await;
    assert_eq!(live.next().await, Seen::PingResp);
}
