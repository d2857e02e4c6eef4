//! Actors of bridges that panic: what the status says meanwhile, and that nothing acknowledged is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use causeway_protocol::kafka::batch::batches;
use causeway_protocol::mqtt::{PublishProperties, QoS};
use parking_lot::Mutex;

use super::manager::Order;
use super::service::{Apply, BridgeContext, BridgeId, Bridges, Definition, Error, Kind, Status};
use crate::config::{parse_consumer_bridge, parse_producer_bridge};
use crate::dev_kafka::{ApiKey, DevKafka, Match, Options, TopicSpec};
use crate::flow::ledger::Ledger;
use crate::flow::{
    Accepted, AckSink, HandOver, Lives, Message, MessageSink, Origin, Outcome, SequenceRange, Ticket,
    WakeList,
};
use crate::kafka::producer::NodeMemory;
use crate::mqtt::{PublishProgress, Published, RetainedLimits, Router};

/// A patience that only a hang exceeds.
const LONG: Duration = Duration::from_mins(1);

const DISK: &str = "buffer.mode = disk";

async fn until(what: &str, mut met: impl FnMut() -> bool) {
    let waiting = async {
        while !met() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LONG, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[derive(Default)]
struct Told(Mutex<BTreeMap<u64, Outcome>>);

impl AckSink for Told {
    fn acknowledge(&self, ranges: &[SequenceRange], outcome: Outcome) {
        for sequence in ranges.iter().flat_map(|range| range.first..range.first + u64::from(range.count)) {
            assert!(self.0.lock().insert(sequence, outcome).is_none(), "{sequence} is told twice");
        }
    }
}

/// A subscriber that takes everything.
#[derive(Default)]
struct Subscriber(Mutex<BTreeSet<u64>>);

impl MessageSink for Subscriber {
    fn accept(&self, message: &Message<'_>, _: Option<&Ticket>, _: &mut WakeList) -> Accepted {
        self.0.lock().insert(std::str::from_utf8(message.payload).unwrap().parse().unwrap());
        Accepted::Done(Outcome::Success)
    }
}

/// A device, a producer bridge `kafka:out` from `t/#` to the topic `in`, and a device that publishes numbers.
struct Node {
    kafka: DevKafka,
    router: Arc<Router>,
    bridges: Bridges,
    told: Arc<Told>,
    _data_dir: tempfile::TempDir,
}

impl Node {
    async fn start(more: &str) -> Self {
        let options = Options { auto_create: false, ..Options::brokers(1) };
        let kafka = DevKafka::start(options.topic(TopicSpec::new("in", 1)).topic(TopicSpec::new("other", 1)))
            .await
            .unwrap();
        let router = Router::new(RetainedLimits::default());
        let data_dir = tempfile::tempdir().unwrap();
        let bridges = Bridges::start(BridgeContext {
            router: router.clone(),
            clients: Arc::default(),
            node: "n1".into(),
            data_dir: data_dir.path().into(),
            lives: Lives::default(),
            memory: NodeMemory::new(usize::MAX),
            drain: Duration::from_secs(10),
        })
        .await
        .unwrap();
        let node = Self { kafka, router, bridges, told: Arc::default(), _data_dir: data_dir };
        node.bridges.put("out", node.producer(more)).await.unwrap();
        until("connected", || node.status() == Status::Connected).await;
        node
    }

    fn producer(&self, more: &str) -> Definition {
        let text = format!(
            "bootstrap_hosts = \"{}\", local_topic = \"t/#\", min_metadata_refresh_interval = 50ms\n\
             kafka {{ topic = in, message.value = \"${{payload}}\", {more} }}",
            self.kafka.bootstrap()
        );
        Definition::Producer(Box::new(parse_producer_bridge("out", &text).unwrap().value))
    }

    /// A consumer bridge that brings the topic `in` to a subscriber.
    async fn consume(&self) -> Arc<Subscriber> {
        let subscriber = Arc::<Subscriber>::default();
        self.router.add_sink("from/#", subscriber.clone());
        let text = format!(
            "bootstrap_hosts = \"{}\", kafka {{ offset_reset_policy = earliest, offset_commit_interval_seconds = 1 }}\n\
             topic_mapping = [{{ kafka_topic = in, mqtt_topic = from, qos = 1, payload_template = \"${{.value}}\" }}]",
            self.kafka.bootstrap()
        );
        let config = parse_consumer_bridge("back", &text).unwrap().value;
        self.bridges.put("back", Definition::Consumer(Box::new(config))).await.unwrap();
        subscriber
    }

    async fn publish(&self, values: std::ops::Range<u64>) {
        let origin = Arc::new(Origin { client_id: "c1".into(), username: None, peer: None });
        for value in values {
            let payload = value.to_string();
            let message = Message {
                origin: &origin,
                topic: "t/1",
                payload: payload.as_bytes(),
                qos: QoS::AtLeastOnce,
                retain: false,
                dup: false,
                properties: &PublishProperties::default(),
                received_at: 1_700_000_000_000,
                hops: 0,
            };
            let hand_over = HandOver::new(Ticket::new(self.told.clone(), value));
            let mut progress = PublishProgress::default();
            loop {
                let mut wakes = WakeList::default();
                let Published::Full(room) =
                    self.router.publish(&message, Some(&hand_over), &mut progress, &mut wakes)
                else {
                    break;
                };
                drop(wakes);
                let _ = tokio::time::timeout(Duration::from_millis(50), room.notified()).await;
            }
        }
    }

    /// Waits until each of so many publications has an outcome. Those that failed are published again, as
    /// devices do; answers them.
    async fn all_told(&self, count: u64) -> Vec<u64> {
        let told = &self.told.0;
        until("all outcomes", || told.lock().len() as u64 == count).await;
        let failed: Vec<u64> = told
            .lock()
            .iter()
            .filter(|(_, outcome)| **outcome != Outcome::Success)
            .map(|(id, _)| *id)
            .collect();
        for value in &failed {
            told.lock().remove(value);
            self.publish(*value..value + 1).await;
        }
        until("all in Kafka", || told.lock().len() as u64 == count).await;
        assert!(told.lock().values().all(|outcome| *outcome == Outcome::Success));
        failed
    }

    /// The values in Kafka, in the order of the log.
    fn written(&self) -> Vec<u64> {
        self.written_to("in")
    }

    fn written_to(&self, topic: &str) -> Vec<u64> {
        let mut values = Vec::new();
        for batch in self.kafka.batches(topic, 0, 0).unwrap_or_default().into_iter().flat_map(batches) {
            for record in &batch.unwrap().records(1 << 20).unwrap() {
                values.push(std::str::from_utf8(record.unwrap().value.unwrap()).unwrap().parse().unwrap());
            }
        }
        values
    }

    fn out() -> BridgeId {
        BridgeId { kind: Kind::Producer, name: "out".to_owned() }
    }

    fn back() -> BridgeId {
        BridgeId { kind: Kind::Consumer, name: "back".to_owned() }
    }

    fn status(&self) -> Status {
        self.bridges.row(&Self::out()).unwrap().status
    }

    fn ledger(&self) -> Ledger {
        let ledger = self.bridges.row(&Self::out()).unwrap().ledger;
        assert_eq!(ledger.imbalance(), 0, "{ledger:?}");
        ledger
    }

    /// The producer of the bridge.
    fn running(&self) -> Arc<super::producer::RunningProducer> {
        self.bridges.insides().1.read()[&Self::out()].producer()
    }

    async fn shows_failure(&self, id: &BridgeId) {
        let shows = |status: &Status| matches!(status, Status::Disconnected(reason) if reason.contains("started again: ") && reason.contains("on purpose"));
        until("the failure in the status", || shows(&self.bridges.row(id).unwrap().status)).await;
    }

    /// Kafka is away, with something under way and something behind that.
    async fn pause(&self, values: std::ops::Range<u64>) {
        let middle = u64::midpoint(values.start, values.end);
        self.kafka.faults().pause_broker(1).await.unwrap();
        self.publish(values.start..middle).await;
        until("something under way", || self.ledger().inflight > 0).await;
        self.publish(middle..values.end).await;
    }

    async fn resume(&self) {
        self.kafka.faults().resume_broker(1).await.unwrap();
    }

    async fn stop(self) {
        let _ = self.bridges.stop_all(Kind::Consumer).await;
        self.bridges.stop_all(Kind::Producer).await.unwrap();
        self.kafka.stop().await;
    }
}

#[tokio::test]
async fn a_topic_producer_that_panics_says_so_and_its_successor_goes_on_with_what_was_held() {
    for mode in ["", DISK, "buffer.mode = hybrid"] {
        let node = Node::start(mode).await;
        node.publish(0..5).await;
        node.all_told(5).await;
        node.pause(5..15).await;
        node.running().topic_producer().panic();
        node.shows_failure(&Node::out()).await;
        node.publish(15..20).await;
        assert_eq!(node.ledger().matched, 20, "it takes what comes meanwhile");
        node.resume().await;
        let failed = node.all_told(20).await;
        if mode == DISK {
            assert_eq!(failed, [0; 0]);
        } else {
            assert!(
                failed.iter().all(|value| (5..10).contains(value)),
                "only what was under way: {failed:?}"
            );
        }
        until("an empty buffer", || node.ledger().queuing + node.ledger().inflight == 0).await;
        let kept = (0..20).filter(|value| !failed.contains(value));
        let all: Vec<u64> = kept.chain(failed.iter().copied()).collect();
        assert_eq!(node.written(), all, "{mode}");
        until("connected again", || node.status() == Status::Connected).await;
        node.stop().await;
    }
}

#[tokio::test]
async fn records_that_were_appended_without_an_answer_are_not_doubled_by_a_successor_with_a_disk_buffer() {
    let node = Node::start(DISK).await;
    node.publish(0..5).await;
    node.all_told(5).await;
    until("in Kafka", || node.written().len() == 5).await;
    node.kafka.faults().delay(Match::api(ApiKey::Produce), Duration::from_secs(2), 1);
    node.publish(5..10).await;
    until("appended", || node.written().len() == 10 && node.ledger().inflight == 5).await;
    node.running().topic_producer().panic();
    node.shows_failure(&Node::out()).await;
    node.publish(10..15).await;
    node.all_told(15).await;
    until("nothing held", || node.ledger().success == 15).await;
    assert_eq!(node.written(), (0..15).collect::<Vec<u64>>());
    node.stop().await;
}

#[tokio::test]
async fn a_partition_producer_that_panics_again_in_its_start_takes_nothing_with_it() {
    for mode in ["", DISK] {
        let node = Node::start(mode).await;
        node.publish(0..5).await;
        node.all_told(5).await;
        node.pause(5..15).await;
        // Sealing what it is to send again.
        node.running().topic_producer().panic_partition(if mode == DISK { 2 } else { 0 });
        let trouble = || node.running().topic_producer().partitions().swap_remove(0).trouble;
        let wanted = if mode == DISK { "in the start" } else { "on purpose" };
        until("the failure in the table", || trouble().is_some_and(|why| why.contains(wanted))).await;
        node.publish(15..20).await;
        node.resume().await;
        let failed = node.all_told(20).await;
        assert!(mode != DISK || failed.is_empty(), "{failed:?}");
        until("an empty buffer", || node.ledger().queuing + node.ledger().inflight == 0).await;
        let kept = (0..20).filter(|value| !failed.contains(value));
        assert_eq!(node.written(), kept.chain(failed.iter().copied()).collect::<Vec<u64>>(), "{mode}");
        until("connected again", || node.status() == Status::Connected).await;
        node.stop().await;
    }
}

#[tokio::test]
async fn a_bridge_that_is_stopped_or_changed_before_its_producer_is_started_again_loses_nothing() {
    let node = Node::start("").await;
    node.running().topic_producer().panic();
    node.shows_failure(&Node::out()).await;
    node.publish(0..5).await;
    let changed = ("out".to_owned(), node.producer("topic = other"));
    node.bridges.apply(Apply::Change, vec![changed]).await.unwrap();
    assert_eq!(node.all_told(5).await, [0; 0]);
    assert_eq!(node.written(), (0..5).collect::<Vec<u64>>());
    until("connected", || node.status() == Status::Connected).await;
    node.running().topic_producer().panic();
    node.shows_failure(&Node::out()).await;
    node.publish(5..10).await;
    node.bridges.enable(Node::out(), false).await.unwrap();
    assert_eq!(node.all_told(10).await, [0; 0]);
    assert_eq!(node.written_to("other"), (5..10).collect::<Vec<u64>>());
    node.stop().await;
}

#[tokio::test]
async fn a_group_member_that_panics_says_so_and_every_record_arrives() {
    let node = Node::start("").await;
    let subscriber = node.consume().await;
    node.publish(0..5).await;
    until("the first records", || subscriber.0.lock().len() == 5).await;
    let books = || node.bridges.row(&Node::back()).unwrap().ledger;
    until("their end", || books().success == 5).await;
    node.bridges.insides().1.read()[&Node::back()].panic_member();
    node.shows_failure(&Node::back()).await;
    assert!(books().success >= 5, "the books stay: {:?}", books());
    node.publish(5..10).await;
    until("all records", || subscriber.0.lock().len() == 10).await;
    until("connected again", || node.bridges.row(&Node::back()).unwrap().status == Status::Connected).await;
    node.stop().await;
}

#[tokio::test]
async fn a_bridge_service_that_panics_goes_on_with_every_bridge_and_what_it_held() {
    for mode in ["", DISK] {
        let node = Node::start(mode).await;
        let subscriber = node.consume().await;
        node.publish(0..5).await;
        node.all_told(5).await;
        until("the first records", || subscriber.0.lock().len() == 5).await;
        node.pause(5..15).await;
        // An order behind it is not answered by the one that comes after.
        let (manager, _) = node.bridges.insides();
        manager.send_message(Order::Panic).unwrap();
        let lost = node.bridges.restart(Node::out()).await;
        assert!(matches!(lost, Err(Error::Interrupted)), "{lost:?}");
        node.publish(15..20).await;
        node.resume().await;
        let failed = node.all_told(20).await;
        assert!(failed.iter().all(|value| mode != DISK && (5..10).contains(value)), "{mode}: {failed:?}");
        until("an empty buffer", || node.ledger().queuing + node.ledger().inflight == 0).await;
        let kept = (0..20).filter(|value| !failed.contains(value));
        assert_eq!(node.written(), kept.chain(failed.iter().copied()).collect::<Vec<u64>>(), "{mode}");
        until("all records", || subscriber.0.lock().len() == 20).await;
        // What is ordered next is done.
        node.bridges.restart(Node::out()).await.unwrap();
        node.bridges.restart(Node::back()).await.unwrap();
        until("connected again", || node.status() == Status::Connected).await;
        node.publish(20..25).await;
        until("the last records", || subscriber.0.lock().len() == 25).await;
        node.stop().await;
    }
}

#[tokio::test]
async fn an_actor_of_a_bridge_that_panics_says_so_and_concerns_no_other_bridge() {
    for mode in ["", DISK] {
        let node = Node::start(mode).await;
        let subscriber = node.consume().await;
        node.publish(0..5).await;
        node.all_told(5).await;
        until("the first records", || subscriber.0.lock().len() == 5).await;
        let handles = node.bridges.insides().1;
        let actor_of = |id: &BridgeId| handles.read()[id].actor().unwrap().get_id();
        let unharmed = actor_of(&Node::back());
        node.pause(5..15).await;
        handles.read()[&Node::out()].panic();
        node.shows_failure(&Node::out()).await;
        node.publish(15..20).await;
        assert_eq!(node.ledger().matched, 20, "it takes what comes meanwhile");
        node.resume().await;
        let failed = node.all_told(20).await;
        assert!(failed.iter().all(|value| mode != DISK && (5..10).contains(value)), "{mode}: {failed:?}");
        until("an empty buffer", || node.ledger().queuing + node.ledger().inflight == 0).await;
        let kept = (0..20).filter(|value| !failed.contains(value));
        assert_eq!(node.written(), kept.chain(failed.iter().copied()).collect::<Vec<u64>>(), "{mode}");
        until("all records", || subscriber.0.lock().len() == 20).await;
        until("connected again", || node.status() == Status::Connected).await;
        assert_eq!(actor_of(&Node::back()), unharmed);
        // A consumer bridge; the order that comes before the next attempt is carried out at once.
        handles.read()[&Node::back()].panic();
        node.shows_failure(&Node::back()).await;
        node.bridges.restart(Node::back()).await.unwrap();
        node.bridges.restart(Node::out()).await.unwrap();
        node.publish(20..25).await;
        until("the last records", || subscriber.0.lock().len() == 25).await;
        // A disabled one has nothing to show once it has an actor again.
        node.bridges.enable(Node::back(), false).await.unwrap();
        handles.read()[&Node::back()].panic();
        node.shows_failure(&Node::back()).await;
        until("stopped", || node.bridges.row(&Node::back()).unwrap().status == Status::Stopped).await;
        drop(handles);
        node.stop().await;
    }
}

#[tokio::test]
async fn a_bridge_that_drains_delays_no_order_for_another_one() {
    let node = Node::start("").await;
    node.pause(0..10).await;
    let bridges = node.bridges.clone();
    let disabling = tokio::spawn(async move { bridges.enable(Node::out(), false).await });
    until("the drain", || !node.bridges.row(&Node::out()).unwrap().enabled).await;
    let second = || BridgeId { kind: Kind::Producer, name: "second".to_owned() };
    let create = vec![("second".to_owned(), node.producer("topic = other"))];
    node.bridges.apply(Apply::Create, create).await.unwrap();
    node.bridges.restart(second()).await.unwrap();
    assert!(!disabling.is_finished(), "the drain waits for a broker that is away");
    // An order for the bridge that drains waits for its end.
    let bridges = node.bridges.clone();
    let enabling = tokio::spawn(async move { bridges.enable(Node::out(), true).await });
    node.bridges.delete(second(), true).await.unwrap();
    assert!(!disabling.is_finished() && !enabling.is_finished());
    assert!(node.bridges.row(&second()).is_err());
    node.resume().await;
    disabling.await.unwrap().unwrap();
    enabling.await.unwrap().unwrap();
    assert_eq!(node.all_told(10).await, [0; 0]);
    until("connected again", || node.status() == Status::Connected).await;
    node.stop().await;
}

#[tokio::test]
async fn orders_for_one_name_are_carried_out_in_the_order_in_which_they_came() {
    for mode in ["", DISK] {
        let node = Node::start("").await;
        let again = || BridgeId { kind: Kind::Producer, name: "again".to_owned() };
        let create = || vec![("again".to_owned(), node.producer(mode))];
        let (first, deleted, second, refused, gone, missing) = tokio::join!(
            node.bridges.apply(Apply::Create, create()),
            node.bridges.delete(again(), true),
            node.bridges.apply(Apply::Create, create()),
            node.bridges.apply(Apply::Create, create()),
            node.bridges.remove(again()),
            node.bridges.restart(again()),
        );
        first.unwrap();
        deleted.unwrap();
        second.unwrap();
        assert!(
            matches!(&refused, Err(Error::Refused(wrong)) if wrong[0].contains("already")),
            "{refused:?}"
        );
        gone.unwrap();
        assert_eq!(missing, Err(Error::NotFound { id: again() }));
        node.bridges.apply(Apply::Create, create()).await.unwrap();
        node.publish(0..3).await;
        until("outcomes", || node.told.0.lock().len() == 3).await;
        until("all twice", || node.written().len() == 6).await;
        node.stop().await;
    }
}
