//! Bridges that are created, changed and deleted while messages flow.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::bridge_support::*;
use causeway::bridge::overlay::{Change, FILE, Overlay};
use causeway::bridge::service::{Apply, BridgeContext, BridgeId, Bridges, Definition, Error, Kind, Status};
use causeway::config::{BridgesConfig, Secrets, load_text, parse_producer_bridge};
use causeway::dev_kafka::{ApiKey, DevKafka, TopicSpec};
use causeway::flow::Outcome;
use causeway::mqtt::{RetainedLimits, Router};

const KEYED: &str = r#"topic = "in", partition_strategy = key_dispatch, message.key = "${topic}", message.value = "${payload}""#;

fn definition(bootstrap: &str, more: &str, kafka: &str) -> Definition {
    let text = format!(
        "bootstrap_hosts = \"{bootstrap}\", local_topic = \"t/#\", min_metadata_refresh_interval = 50ms\n{more}\n\
         kafka {{ {kafka} }}"
    );
    let config = parse_producer_bridge("out", &text).unwrap_or_else(|errors| panic!("{errors}")).value;
    Definition::Producer(Box::new(config))
}

async fn change(node: &Node, definition: Definition) -> Result<(), Error> {
    node.bridges.apply(Apply::Change, vec![("out".to_owned(), definition)]).await
}

/// Values by key, in the order of the log.
fn by_key(kafka: &DevKafka, topic: &str, partitions: i32) -> BTreeMap<String, Vec<u32>> {
    let mut keys = BTreeMap::<String, Vec<u32>>::new();
    for record in read(kafka, topic, partitions) {
        keys.entry(record.key.unwrap()).or_default().push(record.value.unwrap().parse().unwrap());
    }
    keys
}

/// An address where nobody answers.
fn nowhere() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_under_load_lose_double_and_reorder_nothing() {
    const KEYS: u32 = 6;
    const EACH: u32 = 1500;
    let kafka = kafka(&[TopicSpec::new("in", 3)]).await;
    let node = Arc::new(Node::start(&kafka.bootstrap(), KEYED).await);
    node.connected().await;
    let devices: Vec<_> = (0..KEYS)
        .map(|key| {
            let node = node.clone();
            tokio::spawn(async move {
                let mut held = Vec::new();
                for value in 0..EACH {
                    held.push(node.begin(&format!("t/{key}"), value.to_string().as_bytes()).await);
                    if value % 20 == 0 {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
                held
            })
        })
        .collect();
    let mut changes = 0_u32;
    while !devices.iter().all(tokio::task::JoinHandle::is_finished) {
        let linger = changes % 3;
        let filter = if changes.is_multiple_of(2) { "t/#" } else { "t/+" };
        kafka.faults().delay(ApiKey::Produce, Duration::from_millis(20), 3);
        let text = format!("{KEYED}, max_linger_time = {linger}ms");
        let more = format!("local_topic = \"{filter}\"");
        change(&node, definition(&kafka.bootstrap(), &more, &text)).await.unwrap();
        node.ledger();
        changes += 1;
    }
    assert!(changes >= 5, "{changes}");
    for device in devices {
        for publication in device.await.unwrap() {
            assert_eq!(node.outcome(publication).await, Outcome::Success);
        }
    }
    let found = by_key(&kafka, "in", 3);
    assert_eq!(found.len(), KEYS as usize);
    for (key, values) in found {
        assert!(values.iter().copied().eq(0..EACH), "{key}: {} of {EACH}", values.len());
    }
    let ledger = node.ledger();
    let total = u64::from(KEYS * EACH);
    assert_eq!((ledger.matched, ledger.success, ledger.failed), (total, total, 0), "kept through changes");
    node.stop().await;
    kafka.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_sent_goes_where_the_changed_bridge_leads_in_order() {
    let kafka = kafka(&[TopicSpec::new("in", 3)]).await;
    let node = Arc::new(Node::start(&nowhere(), KEYED).await);
    let mut held = Vec::new();
    for value in 0..300 {
        held.push(node.begin(&format!("t/{}", value % 3), value.to_string().as_bytes()).await);
    }
    // Publications that come while the hand-over is under way go behind what was there.
    let changing = tokio::spawn({
        let (node, bootstrap) = (node.clone(), kafka.bootstrap());
        async move { change(&node, definition(&bootstrap, "", KEYED)).await }
    });
    for value in 300..600 {
        held.push(node.begin(&format!("t/{}", value % 3), value.to_string().as_bytes()).await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    changing.await.unwrap().unwrap();
    for publication in held {
        assert_eq!(node.outcome(publication).await, Outcome::Success);
    }
    for (key, values) in by_key(&kafka, "in", 3) {
        assert!(values.is_sorted() && values.len() == 200, "{key}: {values:?}");
    }
    let ledger = node.ledger();
    assert_eq!((ledger.matched, ledger.success), (600, 600));
    node.stop().await;
    kafka.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_flight_is_waited_for_where_the_bridge_leads_to_the_same_place() {
    let kafka = kafka(&[TopicSpec::new("in", 1)]).await;
    let node = Node::start(&kafka.bootstrap(), &format!("{KEYED}, reconnect_delay = 50ms")).await;
    node.connected().await;
    // Appended, and the answer is lost, again and again.
    kafka.faults().drop_after(ApiKey::Produce, 10_000);
    let first = node.begin("t/1", b"0").await;
    until("it is in the log", || read(&kafka, "in", 1).len() == 1).await;
    let second = node.begin("t/1", b"1").await;
    change(&node, definition(&kafka.bootstrap(), "", &format!("{KEYED}, max_inflight = 1"))).await.unwrap();
    let third = node.begin("t/1", b"2").await;
    assert!(
        matches!(node.row().status, Status::Connecting(reason) | Status::Disconnected(reason) if reason.contains("before the change"))
    );
    assert_eq!([first, second, third].map(|publication| node.told(publication)), [None; 3]);
    kafka.faults().clear();
    for publication in [first, second, third] {
        assert_eq!(node.outcome(publication).await, Outcome::Success);
    }
    assert_eq!(by_key(&kafka, "in", 1)["t/1"], [0, 1, 2], "once, in order");
    node.connected().await;
    assert_eq!(node.ledger().success, 3);
    node.stop().await;
    kafka.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_holds_messages_is_deleted_only_by_force_which_counts_them() {
    let node = Node::start(&nowhere(), KEYED).await;
    let waiting = node.begin("t/1", b"0").await;
    node.publish_unacknowledged("t/1", b"1").await;
    let Err(Error::NotEmpty { records, bytes, .. }) = node.bridges.delete(Node::id(), false).await else {
        panic!("deleted")
    };
    assert!(records == 2 && bytes > 0, "{records} {bytes}");
    // It goes on as before.
    let another = node.begin("t/1", b"2").await;
    assert_eq!((node.ledger().queuing, node.told(waiting)), (3, None));
    let deleted = node.bridges.delete(Node::id(), true).await.unwrap();
    assert_eq!((deleted.records, deleted.dropped, deleted.failed), (3, 1, 2));
    for publication in [waiting, another] {
        assert!(matches!(node.outcome(publication).await, Outcome::Failed(_)));
    }
    assert!(node.bridges.row(&Node::id()).is_err());
    assert_eq!(node.router.find_route("t/1").sinks(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_bridge_goes_on_with_its_disk_buffer_and_a_disabled_one_keeps_it() {
    let kafka = kafka(&[TopicSpec::new("in", 3)]).await;
    let stored = format!("{KEYED}, buffer.mode = disk");
    let node = Arc::new(Node::start(&nowhere(), &stored).await);
    for value in 0..300 {
        let told = node.publish(&format!("t/{}", value % 3), value.to_string().as_bytes()).await;
        assert_eq!(told, Outcome::Success, "without Kafka");
    }
    // Not to another topic: these would go to the wrong one. It goes on as before.
    let elsewhere = stored.replace("topic = \"in\"", "topic = \"elsewhere\"");
    let refused = change(&node, definition(&nowhere(), "", &elsewhere)).await.unwrap_err().to_string();
    assert!(refused.contains("records for the topic it has now"), "{refused}");
    assert_eq!(node.publish("t/0", b"300").await, Outcome::Success);
    // By another way, and with publications that come meanwhile.
    change(&node, definition(&nowhere(), "", &stored)).await.unwrap();
    assert_eq!((node.ledger().matched, node.ledger().queuing), (301, 301));
    node.bridges.enable(Node::id(), false).await.unwrap();
    node.bridges.enable(Node::id(), true).await.unwrap();
    assert_eq!((node.ledger().matched, node.ledger().queuing), (301, 301));
    let publishing = tokio::spawn({
        let node = node.clone();
        async move {
            for value in 301..600 {
                let told = node.publish(&format!("t/{}", value % 3), value.to_string().as_bytes()).await;
                assert_eq!(told, Outcome::Success);
            }
        }
    });
    change(&node, definition(&kafka.bootstrap(), "", &stored)).await.unwrap();
    publishing.await.unwrap();
    until("all is sent", || node.ledger().success == 600).await;
    for (key, values) in by_key(&kafka, "in", 3) {
        assert!(values.is_sorted() && values.len() == 200, "{key}: {values:?}");
    }
    // Now it is empty, and may lead somewhere else.
    change(&node, definition(&kafka.bootstrap(), "", &elsewhere)).await.unwrap();
    node.stop().await;
    kafka.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_buffer_is_deleted_with_its_bridge_by_force_only() {
    let stored = format!("{KEYED}, buffer.mode = disk");
    let node = Node::start(&nowhere(), &stored).await;
    let folder = node.data_dir.path().join("buffers").join("out");
    for value in 0..10 {
        assert_eq!(node.publish("t/1", value.to_string().as_bytes()).await, Outcome::Success);
    }
    let refused = node.bridges.delete(Node::id(), false).await;
    assert!(matches!(refused, Err(Error::NotEmpty { records: 10, .. })), "{refused:?}");
    let on_disk = || -> u64 {
        let files = std::fs::read_dir(&folder).unwrap().map(Result::unwrap);
        let segments = files.filter(|file| file.file_name().to_string_lossy().ends_with(".buffer"));
        segments.map(|file| file.metadata().unwrap().len()).sum()
    };
    until("the size of the files", || node.row().disk_bytes == on_disk()).await;
    // Nor when it does not run.
    node.bridges.enable(Node::id(), false).await.unwrap();
    assert!(on_disk() > 100 && node.row().disk_bytes == on_disk());
    let refused = node.bridges.delete(Node::id(), false).await;
    assert!(matches!(refused, Err(Error::NotEmpty { records: 10, .. })), "{refused:?}");
    assert!(folder.exists());
    let deleted = node.bridges.delete(Node::id(), true).await.unwrap();
    assert_eq!((deleted.records, deleted.dropped, deleted.failed), (10, 10, 0));
    assert!(!folder.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_disk_buffer_does_not_come_back_though_the_node_dies_before_it_is_removed() {
    let node = Node::start(&nowhere(), &format!("{KEYED}, buffer.mode = disk")).await;
    for value in 0..10 {
        assert_eq!(node.publish("t/1", value.to_string().as_bytes()).await, Outcome::Success);
    }
    node.bridges.stop_all(Kind::Producer).await.unwrap();
    let (data, folder) = (node.data_dir.path(), node.data_dir.path().join("buffers").join("out"));
    let says =
        r#"bridges.kafka.out { bootstrap_hosts = "127.0.0.1:1", local_topic = "t/#", kafka.topic = in }"#;
    // Missing in the configuration is not deleted.
    let (overlay, wanted) = Overlay::open(data, file("")).unwrap();
    assert!(wanted.is_empty() && folder.exists());
    drop(overlay);
    let delete = || {
        let (mut overlay, _) = Overlay::open(data, file(says)).unwrap();
        overlay.store(&[(out(), Change::Deleted)]).unwrap();
        assert!(folder.exists(), "somebody may have it open");
        // The node dies here.
        overlay
    };
    // As it is, and with a bridge of that name that is new in the file.
    for then in [says.to_owned(), says.replace("topic = in", "topic = other")] {
        std::fs::create_dir_all(&folder).unwrap();
        drop(delete());
        let (_, wanted) = Overlay::open(data, file(&then)).unwrap();
        assert_eq!((wanted.len(), folder.exists()), (usize::from(then != says), false), "{then}");
        // What is there at a later start belongs to another bridge.
        std::fs::create_dir_all(&folder).unwrap();
        Overlay::open(data, file(&then)).unwrap();
        assert!(folder.exists());
    }
    // Where it could not be removed it goes before there is another one.
    let mut overlay = delete();
    overlay.store(&[(out(), Change::Defined(Box::new(definition("127.0.0.1:1", "", KEYED))))]).unwrap();
    assert!(!folder.exists());
    std::fs::create_dir_all(&folder).unwrap();
    drop(overlay);
    Overlay::open(data, file(says)).unwrap();
    assert!(folder.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_bridge_is_deleted_without_force() {
    let kafka = kafka(&[TopicSpec::new("in", 1)]).await;
    let node = Node::start(&kafka.bootstrap(), KEYED).await;
    assert_eq!(node.publish("t/1", b"0").await, Outcome::Success);
    let deleted = node.bridges.delete(Node::id(), false).await.unwrap();
    assert_eq!((deleted.records, deleted.dropped, deleted.failed), (0, 0, 0));
    kafka.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_whose_certificate_is_missing_holds_and_starts_when_it_is_there() {
    let kafka = kafka(&[TopicSpec::new("in", 1)]).await;
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    let router = Router::new(RetainedLimits::default());
    let node = Arc::new(Node::with(router, "n1").await);
    let login = format!(
        "authentication {{ mechanism = plain, username = u, password = \"file://{}\" }}",
        secret.display()
    );
    let failed = node.bridges.put("out", definition(&kafka.bootstrap(), &login, KEYED)).await;
    assert!(matches!(failed, Err(Error::Start { .. })));
    let Status::Disconnected(reason) = node.row().status else { panic!("{:?}", node.row().status) };
    assert!(reason.contains("tried again") && reason.contains("secret"), "{reason}");
    // Whoever waits for an answer is kept waiting; what nobody waits for is counted.
    let waiting = tokio::spawn({
        let node = node.clone();
        async move { node.begin("t/1", b"0").await }
    });
    node.publish_unacknowledged("t/1", b"1").await;
    let ledger = node.ledger();
    assert_eq!((ledger.matched, ledger.dropped_resource_stopped), (1, 1));
    assert!(!waiting.is_finished());
    std::fs::write(&secret, "p").unwrap();
    until(
        "it was started",
        || !matches!(node.row().status, Status::Disconnected(reason) if reason.contains("tried again")),
    )
    .await;
    waiting.await.unwrap();
    assert_eq!(node.ledger().queuing, 1);
    // The development Kafka wants no login; without one the record arrives.
    change(&node, definition(&kafka.bootstrap(), "", KEYED)).await.unwrap();
    until("it arrives", || read(&kafka, "in", 1).len() == 1).await;
    node.stop().await;
    kafka.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_one_of_several_bridges_changes_none() {
    let kafka = kafka(&[TopicSpec::new("in", 1)]).await;
    let node = Node::start(&kafka.bootstrap(), KEYED).await;
    let good = definition(&kafka.bootstrap(), "", KEYED);
    let no_file = definition(
        &kafka.bootstrap(),
        "authentication { mechanism = plain, username = u, password = \"file:///nowhere/secret\" }",
        KEYED,
    );
    let both = vec![("one".to_owned(), good.clone()), ("two".to_owned(), no_file), ("out".to_owned(), good)];
    let Err(Error::Refused(wrong)) = node.bridges.apply(Apply::Create, both).await else { panic!("done") };
    assert_eq!(wrong.len(), 2, "{wrong:?}");
    assert!(wrong.iter().any(|line| line.contains("bridges.kafka.two") && line.contains("/nowhere/secret")));
    assert!(wrong.iter().any(|line| line.contains("there is a bridge kafka:out already")));
    assert_eq!(node.bridges.rows().len(), 1);
    let missing = vec![("three".to_owned(), definition(&kafka.bootstrap(), "", KEYED))];
    let error = node.bridges.apply(Apply::Change, missing).await.unwrap_err();
    assert!(error.to_string().contains("there is no bridge kafka:three"), "{error}");
    node.stop().await;
    kafka.stop().await;
}

fn file(text: &str) -> BridgesConfig {
    load_text("causeway.conf", text).unwrap_or_else(|errors| panic!("{errors}")).value.bridges
}

fn out() -> BridgeId {
    BridgeId { kind: Kind::Producer, name: "out".to_owned() }
}

async fn bridges_of(overlay: Overlay, wanted: BTreeMap<BridgeId, Definition>) -> Bridges {
    let data_dir = tempfile::tempdir().unwrap();
    let surroundings = BridgeContext {
        router: Router::new(RetainedLimits::default()),
        clients: Arc::default(),
        node: "n1".into(),
        data_dir: data_dir.path().into(),
        lives: causeway::flow::Lives::default(),
        memory: causeway::kafka::producer::NodeMemory::new(usize::MAX),
        drain: Duration::from_secs(1),
    };
    let bridges = Bridges::start_with(surroundings, Some(overlay)).await.unwrap();
    for (id, definition) in wanted {
        bridges.put(&id.name, definition).await.unwrap();
    }
    bridges
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_at_run_time_outlasts_a_restart_until_the_file_says_something_new() {
    const FILE_SAYS: &str = r#"bridges.kafka { out { bootstrap_hosts = "127.0.0.1:1", local_topic = "t/1", kafka.topic = a,
             authentication { mechanism = plain, username = u, password = hunter2 } }
             gone { bootstrap_hosts = "127.0.0.1:1", local_topic = "t/2", kafka.topic = b }
             off { bootstrap_hosts = "127.0.0.1:1", local_topic = "t/3", kafka.topic = c } }"#;
    let data = tempfile::tempdir().unwrap();
    let (overlay, wanted) = Overlay::open(data.path(), file(FILE_SAYS)).unwrap();
    let bridges = bridges_of(overlay, wanted).await;
    let other = |topic: &str| {
        let text = format!(
            "bootstrap_hosts = \"127.0.0.1:1\", local_topic = \"t/9\", kafka.topic = {topic}
             authentication {{ mechanism = plain, username = u, password = \"******\" }}"
        );
        Definition::Producer(Box::new(parse_producer_bridge("out", &text).unwrap().value))
    };
    bridges.apply(Apply::Change, vec![("out".to_owned(), other("changed"))]).await.unwrap();
    let new = definition("127.0.0.1:1", "", KEYED);
    bridges.apply(Apply::Create, vec![("new".to_owned(), new)]).await.unwrap();
    bridges.delete(BridgeId { name: "gone".into(), ..out() }, false).await.unwrap();
    bridges.enable(BridgeId { name: "off".into(), ..out() }, false).await.unwrap();
    bridges.stop_all(Kind::Producer).await.unwrap();

    let (mut overlay, wanted) = Overlay::open(data.path(), file(FILE_SAYS)).unwrap();
    let names: Vec<_> = wanted.keys().map(|id| id.name.as_str()).collect();
    assert_eq!(names, ["new", "off", "out"]);
    assert!(!wanted[&BridgeId { name: "off".into(), ..out() }].enabled());
    let json = wanted[&out()].canonical_json(Secrets::Revealed).to_string();
    assert!(json.contains("changed") && json.contains("hunter2"), "the masked secret is the stored one");
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(data.path().join(FILE)).unwrap());
    assert_eq!(mode & 0o777, 0o600, "it holds secrets");

    // Deleted what was created, enabled what was disabled: as the file says, so nothing is kept of them.
    let off = file(FILE_SAYS).kafka["off"].clone();
    overlay
        .store(&[
            (BridgeId { name: "new".into(), ..out() }, Change::Deleted),
            (
                BridgeId { name: "off".into(), ..out() },
                Change::Defined(Box::new(Definition::Producer(Box::new(off)))),
            ),
        ])
        .unwrap();
    let stored = std::fs::read_to_string(data.path().join(FILE)).unwrap();
    assert!(!stored.contains("kafka:new") && !stored.contains("kafka:off"), "{stored}");

    // The file says something new about two of them since.
    let edited = FILE_SAYS
        .replace("kafka.topic = a", "kafka.topic = edited")
        .replace("kafka.topic = b", "kafka.topic = d");
    let (_, wanted) = Overlay::open(data.path(), file(&edited)).unwrap();
    let names: Vec<_> = wanted.keys().map(|id| id.name.as_str()).collect();
    assert_eq!(names, ["gone", "off", "out"]);
    assert!(wanted[&out()].canonical_json(Secrets::Masked).to_string().contains("edited"));

    std::fs::write(data.path().join(FILE), "{ \"version\": 1, \"bridges\": {\"kafka:out\"").unwrap();
    let error = Overlay::open(data.path(), file(FILE_SAYS)).unwrap_err().to_string();
    assert!(error.contains(FILE) && error.contains("move it away"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_cannot_be_stored_is_not_made() {
    let data = tempfile::tempdir().unwrap();
    let folder = data.path().join("data");
    std::fs::create_dir(&folder).unwrap();
    let (overlay, _) = Overlay::open(&folder, file("")).unwrap();
    let bridges = bridges_of(overlay, BTreeMap::new()).await;
    std::fs::remove_dir(&folder).unwrap();
    let new = vec![("new".to_owned(), definition("127.0.0.1:1", "", KEYED))];
    let error = bridges.apply(Apply::Create, new).await.unwrap_err();
    assert!(
        matches!(&error, Error::Store(_)) && error.to_string().contains("nothing was changed"),
        "{error}"
    );
    assert!(bridges.rows().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn rates_latency_and_the_age_of_what_waits_are_shown() {
    let kafka = kafka(&[TopicSpec::new("in", 1)]).await;
    let small = format!("{KEYED}, max_inflight = 1, max_batch_bytes = 60KB");
    let node = Node::start(&kafka.bootstrap(), &small).await;
    node.connected().await;
    kafka.faults().delay(ApiKey::Produce, Duration::from_millis(100), 1);
    assert_eq!(node.publish("t/1", b"0").await, Outcome::Success);
    let latency = node.row().latency.unwrap();
    assert_eq!(latency.batches, 1);
    assert!(latency.p50 >= Duration::from_millis(100) && latency.max == latency.p50, "{latency:?}");
    assert_eq!(node.row().oldest, None);
    kafka.faults().error(ApiKey::Produce, 7, 1000);
    for value in 0..20 {
        node.begin("t/1", &vec![b'0' + value % 10; 50_000]).await;
    }
    until("something waits", || node.row().oldest.is_some_and(|age| age > Duration::from_millis(200))).await;
    until("a rate is seen", || node.row().rates.max > 0).await;
    kafka.faults().clear();
    until("all is sent", || node.ledger().success == 21).await;
    assert_eq!(node.row().oldest, None);
    node.stop().await;
    kafka.stop().await;
}
