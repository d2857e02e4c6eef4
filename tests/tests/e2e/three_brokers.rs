//! Three brokers of Apache Kafka with three replicas: acks from all in-sync replicas through everything that
//! one of them can survive. What was acknowledged is there, once, in order.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use causeway_tests::broker::Target;
use causeway_tests::kafka::Version;
use causeway_tests::kafka_cluster::{BROKERS, KafkaCluster, Plan};
use causeway_tests::node::Node;
use causeway_tests::oracle::{Oracle, Running, load};
use causeway_tests::{eventually, full, need, say, unique};

use crate::sections::producer;

const CLIENTS: u32 = 20;
const EACH: u64 = 2_000;
const TOTAL: u64 = EACH * CLIENTS as u64;
const PARTITIONS: usize = 6;
const PATIENCE: Duration = Duration::from_mins(2);

/// A cluster, a node with one bridge, and publishers at work.
struct Scene {
    kafka: KafkaCluster,
    topic: String,
    oracle: Oracle,
    node: Node,
    load: Running,
}

impl Scene {
    fn set(version: &Version, plan: &Plan, rate: f64) -> Result<Self> {
        let kafka = KafkaCluster::start(version, plan)?;
        let topic = unique("replicated");
        kafka.create_topic(&topic, PARTITIONS, &[])?;
        // A topic is there before every broker knows it.
        let oracle = eventually(PATIENCE, || Oracle::watch(&kafka.bootstrap(), &topic))?;
        let node =
            Node::start(&producer("three", &kafka.bootstrap(), "o/#", &topic, "reconnect_delay = 200ms"))?;
        let mut settings = load(node.mqtt(), "device-", "o/{client}", CLIENTS, EACH);
        settings.rate = Some(rate);
        let load = Running::start(settings);
        load.wait_for(TOTAL / 20, PATIENCE)?;
        Ok(Self { kafka, topic, oracle, node, load })
    }

    fn finish(self) -> Result<()> {
        let published = self.load.join()?;
        let verdict = self.oracle.judge("device-", &published)?;
        ensure!(verdict.is_perfect() && verdict.arrived == TOTAL && verdict.unacknowledged == 0, "{verdict}");
        ensure!(published.iter().all(|client| client.reconnects == 0), "a publisher lost its connection");
        let books = self.node.settled("kafka:three", Duration::from_secs(30))?;
        assert_eq!((books.matched, books.success), (TOTAL, TOTAL), "{books:?}");
        say(&format!("  {verdict}; {} sent again", books.retried));
        Ok(())
    }
}

fn leaders_move(version: &Version) -> Result<()> {
    let scene = Scene::set(version, &Plan::default(), 4_000.0)?;
    for step in 1..=8 {
        scene.load.wait_for(TOTAL * step / 10, PATIENCE)?;
        for (partition, now) in scene.kafka.partitions(&scene.topic)?.iter().enumerate() {
            let to = (now.leader_id.0 as usize + step as usize % 2) % BROKERS + 1;
            scene.kafka.move_leader(&scene.topic, partition, to)?;
        }
        scene.node.check_books()?;
    }
    scene.finish()
}

/// W12
fn brokers_restart_in_turn(version: &Version) -> Result<()> {
    let mut scene = Scene::set(version, &Plan::default(), 2_000.0)?;
    let took = scene.kafka.roll(&[&scene.topic])?;
    say(&format!("  all brokers restarted in {took:.1?}"));
    ensure!(scene.load.acknowledged() > TOTAL / 20, "nothing was acknowledged meanwhile");
    scene.finish()
}

/// Two of three brokers are killed: one replica is left, two are asked for. Nothing is acknowledged until
/// another one is back, and the status tells why.
fn too_few_replicas(version: &Version) -> Result<()> {
    // The controller stays, or nobody could say that there are too few.
    let mut scene = Scene::set(version, &Plan { one_controller: true, ..Plan::default() }, 4_000.0)?;
    scene.kafka.node(2)?.kill()?;
    scene.kafka.node(3)?.kill()?;
    let (status, reason) = eventually(PATIENCE, || {
        let (status, reason) = scene.node.status("kafka:three")?;
        need(reason.contains("min.insync.replicas"), || format!("the status is {status}: {reason}"))?;
        Ok((status, reason))
    })?;
    say(&format!("  {status}: {reason}"));
    let held = scene.load.acknowledged();
    std::thread::sleep(Duration::from_secs(2));
    ensure!(scene.load.acknowledged() == held, "acknowledged with one replica");
    let books = scene.node.ledger("kafka:three")?;
    ensure!(books.queuing + books.inflight > 0 && books.failed == 0, "{books:?}");
    scene.node.check_books()?;
    scene.kafka.node(2)?.restart()?;
    scene.load.wait_for(held + 1, PATIENCE)?;
    scene.kafka.node(3)?.restart()?;
    scene.finish()
}

/// A broker stands still, with its connections open, for 20 s: long enough that others lead its partitions,
/// and that it wakes up with requests before it that it must not take any more.
fn a_broker_stands_still(version: &Version) -> Result<()> {
    let mut scene = Scene::set(version, &Plan::default(), 1_500.0)?;
    let leads = |partitions: Vec<_>| {
        let leads = |partition: &kafka_protocol::messages::metadata_response::MetadataResponsePartition| {
            partition.leader_id.0 == 2
        };
        partitions.iter().filter(|partition| leads(partition)).count()
    };
    ensure!(leads(scene.kafka.partitions(&scene.topic)?) > 0, "broker 2 leads nothing");
    let began = Instant::now();
    scene.kafka.node(2)?.pause()?;
    std::thread::sleep(Duration::from_secs(20));
    let meanwhile = scene.load.acknowledged();
    scene.node.check_books()?;
    scene.kafka.node(2)?.resume()?;
    scene.load.wait_for(meanwhile + 1, PATIENCE)?;
    say(&format!("  {meanwhile} acknowledged when it went on, the next after {:.1?}", began.elapsed()));
    scene.finish()
}

/// One test for the newest release, and one for 3.9 that only a full run takes. Not for 3.3: brokers of 3.3.1
/// give up on replicas now and then (`marked as failed`), and then neither end in order nor come back in
/// sync, whoever writes.
macro_rules! on_three_brokers {
    ($($(#[doc = $doc:literal])* $name:ident: $scenario:ident;)*) => {$(
        $(#[doc = $doc])*
        mod $name {
            use super::*;

            #[test]
            fn on_apache_kafka_4() -> Result<()> {
                on("4", stringify!($name), $scenario)
            }

            #[test]
            fn on_apache_kafka_3_9() -> Result<()> {
                if !full() {
                    say(concat!(stringify!($name), ": Kafka 3.9 only with CAUSEWAY_FULL=1"));
                    return Ok(());
                }
                on("3.9", stringify!($name), $scenario)
            }
        }
    )*};
}

fn on(series: &str, name: &str, scenario: impl FnOnce(&Version) -> Result<()>) -> Result<()> {
    let Some(Target::Apache(version)) = Target::apache(series)? else { return Ok(()) };
    let _one_at_a_time = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    say(&format!("{name}: three brokers of Apache Kafka {version}"));
    let began = Instant::now();
    scenario(&version).with_context(|| format!("{name}, three brokers of Apache Kafka {version}"))?;
    say(&format!("  {:.1?} in all", began.elapsed()));
    Ok(())
}

/// Three brokers are a load; nine would be another test.
static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

on_three_brokers! {
    leaders_that_move_lose_and_double_and_reorder_nothing: leaders_move;
    a_rolling_restart_loses_and_doubles_nothing: brokers_restart_in_turn;
    acknowledgements_wait_for_min_insync_replicas: too_few_replicas;
    a_broker_that_stands_still_for_20_s_loses_and_doubles_nothing: a_broker_stands_still;
}
