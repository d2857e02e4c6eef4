//! Bridges at run time, with the development Kafka and sinks in place of MQTT clients.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::mqtt_front::{Client, Seen, broker_with, connect};
use causeway::bridge::service::{BridgeContext, BridgeId, Bridges, Definition, Error, Kind, Row, Status};
use causeway::config::{parse_consumer_bridge, parse_producer_bridge};
use causeway::dev_kafka::{DevKafka, Options, TopicSpec};
use causeway::flow::mailbox::Capacity;
use causeway::flow::{Accepted, Message, MessageSink, Outcome, Room, SequenceRange, Ticket, WakeList};
use causeway::mqtt::{RetainedLimits, Router};
use causeway_protocol::mqtt::{AckKind, Connect, QoS, Version};
use parking_lot::Mutex;
use rskafka::chrono::{DateTime, Utc};
use rskafka::client::ClientBuilder;
use rskafka::client::partition::{Compression, UnknownTopicHandling};
use rskafka::record::Record;

const LONG: Duration = Duration::from_secs(30);

/// Takes messages as it is told, and keeps their tickets.
#[derive(Default)]
struct Taker {
    state: Mutex<TakerState>,
    room: Room,
}

#[derive(Default)]
struct TakerState {
    /// So many offers are turned away first.
    full: usize,
    /// Tickets are completed at once.
    finishing: bool,
    /// So many offers panic first.
    panics: usize,
    taken: Vec<(String, String)>,
    held: Vec<Ticket>,
}

impl MessageSink for Taker {
    fn accept(&self, message: &Message<'_>, ticket: Option<&Ticket>, _: &mut WakeList) -> Accepted {
        let mut state = self.state.lock();
        if state.panics > 0 {
            state.panics -= 1;
            drop(state);
            // Without the hook, which would print a backtrace.
            std::panic::resume_unwind(Box::new("on purpose"));
        }
        if state.full > 0 && ticket.is_some() {
            state.full -= 1;
            self.room.notify_one();
            return Accepted::Full(self.room.clone());
        }
        let payload = String::from_utf8(message.payload.to_vec()).unwrap();
        state.taken.push((message.topic.to_owned(), payload));
        if state.finishing {
            return Accepted::Done(Outcome::Success);
        }
        state.held.extend(ticket.cloned());
        Accepted::Taken
    }
}

impl Taker {
    fn taken(&self) -> usize {
        self.state.lock().taken.len()
    }

    fn finish_all(&self) {
        for ticket in std::mem::take(&mut self.state.lock().held) {
            let range = SequenceRange { first: ticket.sequence, count: 1 };
            ticket.sink.acknowledge(&[range], Outcome::Success);
        }
    }
}

async fn until(what: &str, mut met: impl FnMut() -> bool) {
    let waiting = async {
        while !met() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

async fn kafka() -> DevKafka {
    DevKafka::start(Options::default().topic(TopicSpec::new("in", 1)).topic(TopicSpec::new("out", 1)))
        .await
        .unwrap()
}

async fn produce(kafka: &DevKafka, values: &[&str]) {
    let client = ClientBuilder::new(vec![kafka.bootstrap()]).build().await.unwrap();
    let partition = client.partition_client("out", 0, UnknownTopicHandling::Error).await.unwrap();
    let record = |value: &&str| Record {
        key: None,
        value: Some(value.as_bytes().to_vec()),
        headers: BTreeMap::default(),
        timestamp: DateTime::<Utc>::from_timestamp_millis(1_700_000_000_000).unwrap(),
    };
    partition.produce(values.iter().map(record).collect(), Compression::NoCompression).await.unwrap();
}

async fn bridges(router: &Arc<Router>) -> Bridges {
    Bridges::start(BridgeContext {
        router: router.clone(),
        clients: Arc::default(),
        node: "n1".into(),
        data_dir: std::env::temp_dir().into(),
        lives: causeway::flow::Lives::default(),
        memory: causeway::kafka::producer::NodeMemory::new(usize::MAX),
        drain: Duration::from_secs(2),
    })
    .await
    .unwrap()
}

fn consumer(kafka: &DevKafka, mqtt_topic: &str) -> Definition {
    consumer_with(kafka, mqtt_topic, "")
}

fn consumer_with(kafka: &DevKafka, mqtt_topic: &str, more: &str) -> Definition {
    let text = format!(
        r#"{{ {more}
              bootstrap_hosts = "{}", kafka {{ offset_reset_policy = earliest, offset_commit_interval_seconds = 1 }}
              topic_mapping = [{{ kafka_topic = out, mqtt_topic = "{mqtt_topic}", qos = 1, payload_template = "${{.value}}" }}] }}"#,
        kafka.bootstrap()
    );
    Definition::Consumer(Box::new(parse_consumer_bridge("back", &text).unwrap().value))
}

fn id(kind: Kind, name: &str) -> BridgeId {
    BridgeId { kind, name: name.to_owned() }
}

fn back(bridges: &Bridges) -> Row {
    bridges.row(&id(Kind::Consumer, "back")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_room_is_offered_again_once_and_in_order() {
    let (kafka, router) = (kafka().await, Router::new(RetainedLimits::default()));
    let taker = Arc::new(Taker::default());
    {
        let mut state = taker.state.lock();
        state.full = 3;
        state.finishing = true;
    }
    router.add_sink("back/#", taker.clone());
    let bridges = bridges(&router).await;
    bridges.put("back", consumer(&kafka, "back/x")).await.unwrap();
    produce(&kafka, &["a", "b", "c", "d", "e"]).await;
    until("all five are taken", || taker.taken() == 5).await;
    let payloads: Vec<_> = taker.state.lock().taken.iter().map(|(_, payload)| payload.clone()).collect();
    assert_eq!(payloads, ["a", "b", "c", "d", "e"]);
    until("the books say so", || back(&bridges).ledger.success == 5).await;
    let books = back(&bridges).ledger;
    assert_eq!((books.received, books.matched, books.inflight, books.imbalance()), (5, 5, 0, 0));
    bridges.stop_all(Kind::Consumer).await.unwrap();
    kafka.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_handed_over_is_not_committed_and_comes_again_after_a_restart() {
    let (kafka, router) = (kafka().await, Router::new(RetainedLimits::default()));
    let taker = Arc::new(Taker::default());
    router.add_sink("back/#", taker.clone());
    let bridges = bridges(&router).await;
    bridges.put("back", consumer(&kafka, "back/x")).await.unwrap();
    produce(&kafka, &["a", "b"]).await;
    until("both are taken", || taker.taken() == 2).await;
    taker.finish_all();
    produce(&kafka, &["c", "d"]).await;
    until("two more are taken", || taker.taken() == 4).await;
    assert_eq!(back(&bridges).ledger.inflight, 2, "their hand-over is not complete");

    // The drain waits for them in vain; what is committed ends before them.
    bridges.restart(id(Kind::Consumer, "back")).await.unwrap();
    until("they come again", || taker.taken() == 6).await;
    let payloads: Vec<_> = taker.state.lock().taken.iter().map(|(_, payload)| payload.clone()).collect();
    assert_eq!(payloads, ["a", "b", "c", "d", "c", "d"]);
    taker.finish_all();
    // Kept through the restart; what was not done then is matched when it comes again.
    until("the books say so", || back(&bridges).ledger.success == 4).await;
    let books = back(&bridges).ledger;
    assert_eq!((books.matched, books.received, books.imbalance()), (4, 6, 0), "{books:?}");
    bridges.remove(id(Kind::Consumer, "back")).await.unwrap();
    assert_eq!(committed(&kafka), Some(4));
    kafka.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_reached_some_and_not_all_comes_again_after_a_restart() {
    let (kafka, router) = (kafka().await, Router::new(RetainedLimits::default()));
    let (open, closed) = (Arc::new(Taker::default()), Arc::new(Taker::default()));
    open.state.lock().finishing = true;
    closed.state.lock().finishing = true;
    closed.state.lock().full = usize::MAX;
    router.add_sink("back/#", open.clone());
    router.add_sink("back/#", closed.clone());
    let bridges = bridges(&router).await;
    bridges.put("back", consumer(&kafka, "back/x")).await.unwrap();
    produce(&kafka, &["a"]).await;
    until("one has it and the other has no room", || {
        open.taken() == 1 && closed.state.lock().full < usize::MAX
    })
    .await;
    // The partition is given back with the record half published.
    bridges.enable(id(Kind::Consumer, "back"), false).await.unwrap();
    assert!(committed(&kafka).is_none_or(|offset| offset == 0), "{:?}", committed(&kafka));
    closed.state.lock().full = 0;
    bridges.enable(id(Kind::Consumer, "back"), true).await.unwrap();
    until("the other has it, too", || closed.taken() == 1).await;
    assert_eq!(open.taken(), 2, "the first one gets it again");
    bridges.remove(id(Kind::Consumer, "back")).await.unwrap();
    assert_eq!(committed(&kafka), Some(1));
    kafka.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_panics_is_started_again_and_loses_no_record() {
    let (kafka, router) = (kafka().await, Router::new(RetainedLimits::default()));
    let (sound, faulty) = (Arc::new(Taker::default()), Arc::new(Taker::default()));
    sound.state.lock().finishing = true;
    faulty.state.lock().finishing = true;
    faulty.state.lock().panics = 2;
    router.add_sink("back/#", sound.clone());
    router.add_sink("back/#", faulty.clone());
    let bridges = bridges(&router).await;
    bridges.put("back", consumer(&kafka, "back/x")).await.unwrap();
    produce(&kafka, &["a", "b"]).await;
    until(
        "its status says that it failed",
        || matches!(back(&bridges).status, Status::Disconnected(reason) if reason.contains("panicked")),
    )
    .await;
    until("all are taken", || faulty.taken() == 2).await;
    let payloads: Vec<_> = faulty.state.lock().taken.iter().map(|(_, payload)| payload.clone()).collect();
    assert_eq!(payloads, ["a", "b"]);
    assert_eq!(sound.taken(), 4, "the first record once for each panic");
    until("it is well again", || back(&bridges).status == Status::Connected).await;
    bridges.stop_all(Kind::Consumer).await.unwrap();
    assert_eq!(committed(&kafka), Some(2));
    // One that failed and was stopped meanwhile stays down.
    faulty.state.lock().panics = 1;
    bridges.restart(id(Kind::Consumer, "back")).await.unwrap();
    produce(&kafka, &["c"]).await;
    until("it failed", || matches!(back(&bridges).status, Status::Disconnected(_))).await;
    bridges.stop_all(Kind::Consumer).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(back(&bridges).status, Status::Stopped);
    kafka.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_whose_topic_is_none_is_counted_and_does_not_hold_up_the_others() {
    let (kafka, router) = (kafka().await, Router::new(RetainedLimits::default()));
    let taker = Arc::new(Taker::default());
    taker.state.lock().finishing = true;
    router.add_sink("back/#", taker.clone());
    let bridges = bridges(&router).await;
    bridges.put("back", consumer(&kafka, "back/${.value}")).await.unwrap();
    produce(&kafka, &["good", "+", "also/good"]).await;
    until("both good ones are taken", || taker.taken() == 2).await;
    let topics: Vec<_> = taker.state.lock().taken.iter().map(|(topic, _)| topic.clone()).collect();
    assert_eq!(topics, ["back/good", "back/also/good"]);
    until("the bad one is counted", || back(&bridges).ledger.failed == 1).await;
    let books = back(&bridges).ledger;
    assert_eq!((books.received, books.success, books.imbalance()), (3, 2, 0));
    bridges.remove(id(Kind::Consumer, "back")).await.unwrap();
    assert_eq!(committed(&kafka), Some(3));
    kafka.stop().await;
}

/// The whole topic comes from the record: `mqtt_topic = "${.value}"`.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_names_a_reserved_topic_a_filter_or_none_is_counted_and_reaches_nobody() {
    const REFUSED: [&str; 9] =
        ["$SYS/brokers/n1/version", "$SYS/", "$share/group/t", "$share/+/t", "", "+", "#", "a/+/b", "a/\0"];
    // Other topics that begin with `$`, and what only looks like the reserved ones.
    const TAKEN: [&str; 5] = ["$SYS", "$SYSTEM/x", "$shared/x", "$other/x", "a/$SYS/b"];
    let (kafka, router) = (kafka().await, Router::new(RetainedLimits::default()));
    let taker = Arc::new(Taker::default());
    taker.state.lock().finishing = true;
    let all = ["#", "$SYS/#", "$share/#", "$SYSTEM/#", "$shared/#", "$other/#"];
    for filter in all {
        router.add_sink(filter, taker.clone());
    }
    let bridges = bridges(&router).await;
    bridges.put("back", consumer(&kafka, "${.value}")).await.unwrap();
    produce(&kafka, &[&REFUSED[..], &TAKEN[..]].concat()).await;
    let all = (REFUSED.len() + TAKEN.len()) as u64;
    until("all are through", || back(&bridges).ledger.received == all).await;
    until("none is under way", || back(&bridges).ledger.inflight == 0).await;
    let topics: Vec<_> = taker.state.lock().taken.iter().map(|(topic, _)| topic.clone()).collect();
    assert_eq!(topics, TAKEN);
    let books = back(&bridges).ledger;
    assert_eq!((books.failed, books.success, books.imbalance()), (9, 5, 0));
    bridges.remove(id(Kind::Consumer, "back")).await.unwrap();
    assert_eq!(committed(&kafka), Some(14));
    kafka.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_held_until_somebody_listens_where_that_is_wanted() {
    let (kafka, router) = (kafka().await, Router::new(RetainedLimits::default()));
    let bridges = bridges(&router).await;
    bridges.put("back", consumer_with(&kafka, "back/x", "when_no_subscriber = hold")).await.unwrap();
    produce(&kafka, &["a", "b"]).await;
    until("the bridge is connected", || back(&bridges).status == Status::Connected).await;
    // Long enough for several offers.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(back(&bridges).ledger.received, 0);
    let taker = Arc::new(Taker::default());
    taker.state.lock().finishing = true;
    router.add_sink("back/#", taker.clone());
    until("both are taken", || taker.taken() == 2).await;
    until("the books say so", || back(&bridges).ledger.success == 2).await;
    bridges.remove(id(Kind::Consumer, "back")).await.unwrap();
    assert_eq!(committed(&kafka), Some(2));
    kafka.stop().await;
}

/// L14, L25
#[tokio::test(flavor = "multi_thread")]
async fn a_producer_bridge_is_disabled_enabled_restarted_and_removed() {
    let (kafka, router) = (kafka().await, Router::new(RetainedLimits::default()));
    let bridges = bridges(&router).await;
    let text =
        format!("bootstrap_hosts = \"{}\", local_topic = \"t/#\", kafka.topic = in", kafka.bootstrap());
    let config = parse_producer_bridge("out", &text).unwrap().value;
    bridges.put("out", Definition::Producer(Box::new(config))).await.unwrap();
    let out = id(Kind::Producer, "out");
    let row = || bridges.row(&out).unwrap();
    until("it is connected", || row().status == Status::Connected).await;
    assert_eq!(router.find_route("t/1").sinks(), 1);

    for _ in 0..2 {
        bridges.enable(out.clone(), false).await.unwrap();
    }
    assert_eq!((row().status, row().enabled, router.find_route("t/1").sinks()), (Status::Stopped, false, 0));
    assert_eq!(bridges.restart(out.clone()).await, Err(Error::Disabled(out.clone())));
    for _ in 0..2 {
        bridges.enable(out.clone(), true).await.unwrap();
    }
    bridges.restart(out.clone()).await.unwrap();
    until("it is connected again", || row().status == Status::Connected).await;
    assert_eq!(router.find_route("t/1").sinks(), 1);
    bridges.remove(out.clone()).await.unwrap();
    assert_eq!(router.find_route("t/1").sinks(), 0);
    assert_eq!(bridges.remove(out.clone()).await, Err(Error::NotFound { id: out.clone() }));
    kafka.stop().await;
}

fn committed(kafka: &DevKafka) -> Option<i64> {
    kafka.committed_offset("causeway-kafka-consumer-back", "out", 0).map(|committed| committed.offset)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_names_the_client_that_it_waits_for() {
    let kafka = kafka().await;
    let broker = broker_with(|options| {
        options.slow_subscriber_timeout = None;
        options.session_queue = Capacity { bytes: 1 << 20, items: 2 };
    })
    .await;
    let mut slow = Client::open(broker.address, Version::V5).await;
    slow.connect(&Connect { receive_maximum: 1, ..connect(Version::V5, "slow one") }).await;
    slow.subscribe("back/#", QoS::AtLeastOnce).await;
    let bridges = bridges(&broker.router).await;
    bridges.put("back", consumer(&kafka, "back/x")).await.unwrap();
    produce(&kafka, &["0", "1", "2", "3", "4", "5", "6", "7"]).await;
    let names =
        |row: Row| row.waits.is_some_and(|waits| waits.starts_with("waits for client \"slow one\", "));
    until("its row names the client", || names(back(&bridges))).await;
    assert_eq!(back(&bridges).status, Status::Connected);
    for number in 0..8 {
        let Seen::Publish { payload, identifier, .. } = slow.next().await else { panic!("a delivery") };
        assert_eq!(payload, number.to_string().into_bytes());
        slow.ack(AckKind::PubAck, identifier).await;
    }
    until("it waits no longer", || back(&bridges).waits.is_none()).await;
    until("the books say so", || back(&bridges).ledger.success == 8).await;
    bridges.stop_all(Kind::Consumer).await.unwrap();
    kafka.stop().await;
}
