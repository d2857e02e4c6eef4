//! QoS 2 publications into a bridge with a disk buffer, through restarts after which the bridge is not what
//! it was: what a client has released, or another session sent, is never taken for a repetition, and what is
//! one is recognised where that can be known.

use std::{
    fs::File,
    path::{Path, PathBuf},
    time::Duration,
};

use causeway::{
    bridge::service::{BridgeId, Definition, Kind},
    config::{load_text, parse_producer_bridge},
    dev_kafka::{DevKafka, Options, TopicSpec},
    node::Node,
};
use causeway_protocol::kafka::batch::batches;
use tempfile::TempDir;

use super::*;

/// A patience that only a hang exceeds.
const LONG: Duration = Duration::from_mins(1);

struct World {
    kafka: DevKafka,
    folder: TempDir,
}

/// How the node is configured for a life.
#[derive(Clone, Copy)]
struct Life {
    enable: bool,
    mode: &'static str,
    sessions: &'static str,
}

const USUAL: Life = Life { enable: true, mode: "disk", sessions: "disk" };

impl World {
    async fn new() -> Self {
        let options = Options { auto_create: false, ..Options::default() };
        let kafka = DevKafka::start(options.topic(TopicSpec::new("in", 1))).await.unwrap();
        Self { kafka, folder: tempfile::tempdir().unwrap() }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn bridge(&self, life: Life) -> String {
        let Life { enable, mode, .. } = life;
        format!(
            "enable = {enable}, bootstrap_hosts = \"{}\", local_topic = \"t/#\", min_metadata_refresh_interval = 50ms\n\
             kafka {{ topic = in, buffer.mode = {mode}, message {{ key = \"${{.clientid}}\", value = \"${{.payload}}\" }} }}",
            self.kafka.bootstrap()
        )
    }

    async fn start(&self, life: Life) -> Node {
        self.start_in(&self.data(), life).await
    }

    async fn start_in(&self, data: &Path, life: Life) -> Node {
        let text = format!(
            "node {{ name = n, data_dir = \"{}\" }}\n listeners.tcp.default.bind = \"127.0.0.1:0\"\n admin.enable = false\n\
             mqtt.session_store = {}\n bridges.kafka.out {{ {} }}",
            data.display(),
            life.sessions,
            self.bridge(life)
        );
        let config = load_text("test", &text).unwrap_or_else(|errors| panic!("{errors}")).value;
        tokio::time::timeout(LONG, Node::start(config)).await.unwrap().unwrap()
    }

    /// Puts another bridge in the place of the one there is, at run time.
    async fn change(&self, node: &Node, life: Life) {
        let config =
            parse_producer_bridge("out", &self.bridge(life)).unwrap_or_else(|errors| panic!("{errors}"));
        node.bridges().put("out", Definition::Producer(Box::new(config.value))).await.unwrap();
    }

    /// What a crash at this moment leaves behind. Nothing is being written to the stored sessions.
    fn crashed(&self) -> PathBuf {
        let copy = self.folder.path().join("crashed");
        copy_folder(&self.data(), &copy);
        copy
    }

    /// Values in Kafka, when there are so many.
    async fn values(&self, count: usize) -> Vec<String> {
        let read = || {
            let mut values = Vec::new();
            for bytes in self.kafka.batches("in", 0, 0).unwrap_or_default() {
                for batch in batches(bytes) {
                    for record in &batch.unwrap().records(usize::MAX).unwrap() {
                        values.push(String::from_utf8(record.unwrap().value.unwrap().to_vec()).unwrap());
                    }
                }
            }
            values
        };
        let wait = async {
            while read().len() < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(LONG, wait).await;
        read()
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn out() -> BridgeId {
    BridgeId { kind: Kind::Producer, name: "out".to_owned() }
}

async fn stop(node: Node) {
    tokio::time::timeout(LONG, node.stop()).await.unwrap();
}

/// The client with the session that it has, or a new one that lasts; and which of the two.
async fn resumed(node: &Node, client_id: &str) -> (Client, bool) {
    connected(node, &persistent(Version::V5, client_id)).await
}

async fn connected(node: &Node, connect: &Connect<'_>) -> (Client, bool) {
    let mut client = Client::open(node.mqtt_addresses()[0].1, Version::V5).await;
    let (reason, present) = client.connect(connect).await;
    assert_eq!(reason, ReasonCode::Success);
    (client, present)
}

async fn next(client: &mut Client) -> Seen {
    tokio::time::timeout(LONG, client.try_next()).await.unwrap()
}

/// Publishes with QoS 2 and waits for PUBREC.
async fn send(client: &mut Client, payload: &str, identifier: u16) {
    client.publish("t/1", payload.as_bytes(), QoS::ExactlyOnce, identifier).await;
    assert!(matches!(next(client).await, Seen::Ack("PUBREC", id, _) if id == identifier));
}

/// As [`send`], for a publication that was sent before.
async fn send_again(client: &mut Client, payload: &str, identifier: u16) {
    let publish = publish("t/1", payload.as_bytes(), QoS::ExactlyOnce, identifier);
    client.send(&Packet::Publish(Publish { dup: true, ..publish })).await;
    assert!(matches!(next(client).await, Seen::Ack("PUBREC", id, _) if id == identifier));
}

/// Sends PUBREL and waits for PUBCOMP.
async fn release(client: &mut Client, identifier: u16) {
    client.ack(AckKind::PubRel, identifier).await;
    assert!(matches!(next(client).await, Seen::Ack("PUBCOMP", id, _) if id == identifier));
}

/// A life in which clients `a` and `b` have sent one message each, which are in Kafka and not released. Their
/// connections end with the node.
async fn first_life(world: &World) -> (Node, Client, Client) {
    let node = world.start(USUAL).await;
    let (mut a, _) = resumed(&node, "a").await;
    send(&mut a, "a1", 1).await;
    let (mut b, _) = resumed(&node, "b").await;
    send(&mut b, "b1", 1).await;
    assert_eq!(world.values(2).await, ["a1", "b1"]);
    (node, a, b)
}

#[tokio::test]
async fn a_new_session_never_has_the_memory_of_one_that_ended_before_a_stop_a_crash_or_without_its_file() {
    for how in ["stop", "kill", "move"] {
        let world = World::new().await;
        let (node, _a, mut b) = first_life(&world).await;
        let (mut last, _) = resumed(&node, "z").await;
        send(&mut last, "z1", 1).await;
        assert_eq!(world.values(3).await.last().unwrap(), "z1");
        // The session that began last ends, and with it what it has not released. The bridge has nothing else
        // to write.
        let (_z, present) = connected(&node, &connect(Version::V5, "z")).await;
        assert!(!present);
        // Behind the end of that session on the disk.
        b.subscribe("other", QoS::AtMostOnce).await;
        let node = if how == "kill" {
            let data = world.crashed();
            stop(node).await;
            world.start_in(&data, USUAL).await
        } else {
            stop(node).await;
            if how == "move" {
                let sessions = world.data().join("sessions.redb");
                std::fs::rename(&sessions, sessions.with_extension("moved")).unwrap();
            }
            world.start(USUAL).await
        };
        // Whichever number a session had, some of these would have got it.
        for number in 0..4 {
            let (mut new, present) = resumed(&node, &format!("new{number}")).await;
            assert!(!present);
            send(&mut new, &format!("n{number}"), 1).await;
            release(&mut new, 1).await;
        }
        let values = world.values(7).await;
        assert_eq!(values, ["a1", "b1", "z1", "n0", "n1", "n2", "n3"], "{how}");
        stop(node).await;
    }
}

#[tokio::test]
async fn after_a_crash_a_repetition_is_recognised_and_a_new_message_is_not_one() {
    let world = World::new().await;
    let (node, _a, _b) = first_life(&world).await;
    let data = world.crashed();
    stop(node).await;
    let node = world.start_in(&data, USUAL).await;
    let (mut a, present) = resumed(&node, "a").await;
    assert!(present);
    release(&mut a, 1).await;
    send(&mut a, "a2", 1).await;
    let (mut b, _) = resumed(&node, "b").await;
    send_again(&mut b, "b1", 1).await;
    send(&mut b, "b2", 2).await;
    assert_eq!(world.values(4).await, ["a1", "b1", "a2", "b2"]);
    stop(node).await;
}

/// In the second life of the node `a` has released its message before the bridge opened its buffer, which is
/// now.
async fn opened_late(world: &World, node: &Node, a: &mut Client) {
    send(a, "a2", 1).await;
    release(a, 1).await;
    send(a, "a3", 1).await;
    let (mut b, present) = resumed(node, "b").await;
    assert!(present);
    send_again(&mut b, "b1", 1).await;
    release(&mut b, 1).await;
    send(&mut b, "b2", 1).await;
    assert_eq!(world.values(5).await, ["a1", "b1", "a2", "a3", "b2"]);
}

/// The second life, in which `a` releases its message.
async fn released(world: &World, life: Life) -> (Node, Client) {
    let (node, ..) = first_life(world).await;
    stop(node).await;
    let node = world.start(life).await;
    let (mut a, present) = resumed(&node, "a").await;
    assert!(present);
    release(&mut a, 1).await;
    (node, a)
}

#[tokio::test]
async fn a_bridge_that_is_enabled_later_believes_what_is_still_meant_and_nothing_else() {
    let world = World::new().await;
    let (node, mut a) = released(&world, Life { enable: false, ..USUAL }).await;
    node.bridges().enable(out(), true).await.unwrap();
    opened_late(&world, &node, &mut a).await;
    stop(node).await;
}

#[tokio::test]
async fn a_bridge_whose_first_start_fails_believes_what_is_still_meant_and_nothing_else() {
    let world = World::new().await;
    let (node, ..) = first_life(&world).await;
    stop(node).await;
    // Somebody else has its buffer for a while.
    let lock = File::create(world.data().join("buffers/out/lock")).unwrap();
    lock.try_lock().unwrap();
    let node = world.start(USUAL).await;
    let (mut a, present) = resumed(&node, "a").await;
    assert!(present);
    release(&mut a, 1).await;
    drop(lock);
    opened_late(&world, &node, &mut a).await;
    stop(node).await;
}

#[tokio::test]
async fn a_buffer_that_was_left_for_memory_and_is_used_again_believes_what_is_still_meant_and_nothing_else() {
    let world = World::new().await;
    let (node, mut a) = released(&world, Life { mode: "memory", ..USUAL }).await;
    world.change(&node, USUAL).await;
    opened_late(&world, &node, &mut a).await;
    // And once more within one life: nothing of it is old enough to be believed.
    world.change(&node, Life { mode: "memory", ..USUAL }).await;
    release(&mut a, 1).await;
    world.change(&node, USUAL).await;
    send(&mut a, "a4", 1).await;
    assert_eq!(world.values(6).await.last().unwrap(), "a4");
    stop(node).await;
}

#[tokio::test]
async fn a_bridge_that_a_whole_life_did_without_believes_nothing() {
    for life in [Life { enable: false, ..USUAL }, Life { mode: "memory", ..USUAL }] {
        let world = World::new().await;
        let (node, a) = released(&world, life).await;
        drop(a);
        stop(node).await;
        let node = world.start(USUAL).await;
        let (mut a, _) = resumed(&node, "a").await;
        send(&mut a, "a2", 1).await;
        assert_eq!(world.values(3).await, ["a1", "b1", "a2"]);
        stop(node).await;
    }
}

/// Stopped, and started again with the node: what it did not hear in between is not believed.
#[tokio::test]
async fn a_bridge_that_is_disabled_and_enabled_with_the_next_start_believes_nothing() {
    let world = World::new().await;
    let (node, mut a, _b) = first_life(&world).await;
    node.bridges().enable(out(), false).await.unwrap();
    release(&mut a, 1).await;
    drop(a);
    stop(node).await;
    let node = world.start(USUAL).await;
    // In the overlay it is disabled.
    let _ = node.bridges().enable(out(), true).await;
    let (mut a, _) = resumed(&node, "a").await;
    send(&mut a, "a2", 1).await;
    assert_eq!(world.values(3).await, ["a1", "b1", "a2"]);
    stop(node).await;
}

#[tokio::test]
async fn a_bridge_that_is_deleted_and_created_again_has_no_memory() {
    let world = World::new().await;
    let (node, mut a, _b) = first_life(&world).await;
    node.bridges().delete(out(), true).await.unwrap();
    release(&mut a, 1).await;
    world.change(&node, USUAL).await;
    send(&mut a, "a2", 1).await;
    assert_eq!(world.values(3).await, ["a1", "b1", "a2"]);
    stop(node).await;
}

/// One of the two is from the end of an earlier life: the sessions, or the buffer.
#[tokio::test]
async fn neither_sessions_nor_a_buffer_from_a_backup_are_believed() {
    for part in ["sessions.redb", "buffers"] {
        let world = World::new().await;
        let (node, ..) = first_life(&world).await;
        stop(node).await;
        let backup = world.folder.path().join("backup");
        copy_folder(&world.data(), &backup);
        let node = world.start(USUAL).await;
        for client_id in ["a", "b"] {
            let (mut client, present) = resumed(&node, client_id).await;
            assert!(present);
            release(&mut client, 1).await;
        }
        let (mut a, _) = resumed(&node, "a").await;
        send(&mut a, "a2", 1).await;
        assert_eq!(world.values(3).await, ["a1", "b1", "a2"]);
        drop(a);
        stop(node).await;
        let restored = world.data().join(part);
        if restored.is_dir() {
            std::fs::remove_dir_all(&restored).unwrap();
            copy_folder(&backup.join(part), &restored);
        } else {
            std::fs::copy(backup.join(part), &restored).unwrap();
        }
        let node = world.start(USUAL).await;
        let (mut b, present) = resumed(&node, "b").await;
        assert!(present);
        send(&mut b, "b2", 1).await;
        let (mut a, _) = resumed(&node, "a").await;
        release(&mut a, 1).await;
        send(&mut a, "a3", 1).await;
        let values = world.values(5).await;
        assert_eq!(values[3..], ["b2", "a3"], "{part}");
        drop((a, b));
        stop(node).await;
        // The next life believes again, and only what this one knew.
        let node = world.start(USUAL).await;
        let (mut a, _) = resumed(&node, "a").await;
        send_again(&mut a, "a3", 1).await;
        release(&mut a, 1).await;
        send(&mut a, "a4", 1).await;
        assert_eq!(world.values(6).await[5..], ["a4"], "{part}");
        stop(node).await;
    }
}

/// Clients began anew in a life with sessions in memory; then the old file is there again.
#[tokio::test]
async fn stored_sessions_that_a_life_did_without_are_not_believed() {
    let world = World::new().await;
    let (node, ..) = first_life(&world).await;
    stop(node).await;
    let node = world.start(Life { sessions: "memory", ..USUAL }).await;
    let (mut a, present) = resumed(&node, "a").await;
    assert!(!present);
    send(&mut a, "a2", 1).await;
    release(&mut a, 1).await;
    drop(a);
    stop(node).await;
    let node = world.start(USUAL).await;
    let (mut a, present) = resumed(&node, "a").await;
    assert!(present);
    let (mut subscriber, _) = connected(&node, &connect(Version::V5, "s")).await;
    subscriber.subscribe("t/#", QoS::AtMostOnce).await;
    send(&mut a, "a3", 1).await;
    assert_eq!(world.values(4).await, ["a1", "b1", "a2", "a3"]);
    assert_eq!(next(&mut subscriber).await, published("t/1", b"a3"));
    stop(node).await;
}

/// `life` is what says that files belong together: without it none does.
#[tokio::test]
async fn without_the_number_of_the_life_before_nothing_is_believed() {
    let world = World::new().await;
    let (node, ..) = first_life(&world).await;
    stop(node).await;
    std::fs::remove_file(world.data().join("life")).unwrap();
    let node = world.start(USUAL).await;
    let (mut a, present) = resumed(&node, "a").await;
    assert!(present);
    send(&mut a, "a2", 1).await;
    assert_eq!(world.values(3).await, ["a1", "b1", "a2"]);
    stop(node).await;
}
