//! Kafka goes away and comes back, connections break, leaders move: publishers wait, and nothing is lost,
//! doubled or reordered.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use causeway::dev_kafka::{ApiKey, DevKafka, Options, TopicSpec};
use causeway_tests::node::Node;
use causeway_tests::oracle::{Oracle, Running, load};
use causeway_tests::{block_on, eventually, need, on_every_kafka, unique};

use crate::sections::producer;

const CLIENTS: u32 = 20;
const EACH: u64 = 2_000;
const TOTAL: u64 = EACH * CLIENTS as u64;
const PATIENCE: Duration = Duration::from_mins(2);

fn finish(node: &Node, bridge: &str, oracle: &Oracle, load: Running) -> Result<()> {
    let published = load.join()?;
    let verdict = oracle.judge("device-", &published)?;
    ensure!(verdict.is_perfect() && verdict.arrived == TOTAL && verdict.unacknowledged == 0, "{verdict}");
    ensure!(published.iter().all(|client| client.reconnects == 0), "a publisher lost its connection");
    let books = node.settled(bridge, Duration::from_secs(30))?;
    assert_eq!((books.matched, books.success), (TOTAL, TOTAL), "{books:?}");
    Ok(())
}

on_every_kafka! {
    /// L6. An orderly restart of Kafka under load.
    fn kafka_stopped_and_started_in_the_middle_loses_and_doubles_nothing(target) {
        let mut kafka = target.own()?;
        let topic = unique("outage");
        kafka.create_topic(&topic, 3)?;
        let oracle = Oracle::watch(&kafka.bootstrap(), &topic)?;
        let node = Node::start(&producer("outage", &kafka.bootstrap(), "o/#", &topic, "reconnect_delay = 200ms"))?;
        // At a rate, so that the outage falls into the middle whatever the machine does.
        let mut settings = load(node.mqtt(), "device-", "o/{client}", CLIENTS, EACH);
        settings.rate = Some(8_000.0);
        let load = Running::start(settings);
        load.wait_for(TOTAL / 10, PATIENCE)?;
        kafka.stop()?;
        // Publishers come to a stand with messages in the bridge.
        let held = eventually(PATIENCE, || {
            node.check_books()?;
            let books = node.ledger("kafka:outage")?;
            need(books.queuing + books.inflight > u64::from(CLIENTS), || format!("too little is held: {books:?}"))?;
            Ok(books)
        })?;
        ensure!(held.success < TOTAL, "the outage came too late: {held:?}");
        kafka.start_again()?;
        finish(&node, "kafka:outage", &oracle, load)
    }

    /// L5. A bridge that is started while Kafka is not there takes messages, and delivers them when it comes.
    fn a_node_that_starts_before_kafka_delivers_later(target) {
        let mut kafka = target.own()?;
        let topic = unique("outage");
        kafka.create_topic(&topic, 3)?;
        let oracle = Oracle::watch(&kafka.bootstrap(), &topic)?;
        kafka.stop()?;
        let node = Node::start(&producer("early", &kafka.bootstrap(), "o/#", &topic, "reconnect_delay = 200ms"))?;
        let load = Running::start(load(node.mqtt(), "device-", "o/{client}", CLIENTS, EACH));
        eventually(PATIENCE, || {
            node.check_books()?;
            let books = node.ledger("kafka:early")?;
            need(books.queuing > 0, || format!("nothing is taken: {books:?}"))
        })?;
        ensure!(load.acknowledged() == 0, "{} are acknowledged without Kafka", load.acknowledged());
        kafka.start_again()?;
        finish(&node, "kafka:early", &oracle, load)
    }
}

/// Three brokers inside this process, a topic, a node and a load on it.
fn on_three_brokers(faults_while: impl Fn(&DevKafka, &str, u64) -> Result<()>) -> Result<()> {
    let topic = unique("faults");
    let options = Options::brokers(3).topic(TopicSpec::new(&topic, 6));
    let kafka = block_on(DevKafka::start(options))?;
    let oracle = Oracle::watch(&kafka.bootstrap(), &topic)?;
    let node = Node::start(&producer("faults", &kafka.bootstrap(), "o/#", &topic, "reconnect_delay = 50ms"))?;
    let mut settings = load(node.mqtt(), "device-", "o/{client}", CLIENTS, EACH);
    settings.rate = Some(10_000.0);
    let load = Running::start(settings);
    for step in 1..=8 {
        load.wait_for(TOTAL * step / 10, PATIENCE)?;
        faults_while(&kafka, &topic, step)?;
        node.check_books()?;
    }
    finish(&node, "kafka:faults", &oracle, load)
}

#[test]
fn connections_that_break_before_and_after_the_append_double_nothing() -> Result<()> {
    on_three_brokers(|kafka, _, step| {
        if step % 2 == 0 {
            kafka.faults().drop_before(ApiKey::Produce, 2);
        } else {
            kafka.faults().drop_after(ApiKey::Produce, 2);
        }
        Ok(())
    })
}

#[test]
fn leaders_that_move_under_load_reorder_nothing() -> Result<()> {
    on_three_brokers(|kafka, topic, step| {
        for partition in 0..6 {
            let (leader, _) = kafka.leader(topic, partition).context("a leader")?;
            kafka.move_leader(topic, partition, (leader + step as i32 % 2) % 3 + 1)?;
        }
        Ok(())
    })
}

#[test]
fn brokers_that_go_and_come_in_turn_lose_nothing() -> Result<()> {
    on_three_brokers(|kafka, _, step| {
        let broker = step as i32 % 3 + 1;
        block_on(kafka.faults().pause_broker(broker))?;
        std::thread::sleep(Duration::from_millis(200));
        block_on(kafka.faults().resume_broker(broker))?;
        Ok(())
    })
}

#[test]
fn errors_that_pass_are_retried_in_order() -> Result<()> {
    // NOT_LEADER_OR_FOLLOWER, REQUEST_TIMED_OUT, NOT_ENOUGH_REPLICAS, KAFKA_STORAGE_ERROR.
    let codes = [6, 7, 19, 56];
    on_three_brokers(move |kafka, _, step| {
        let code = codes[step as usize % codes.len()];
        kafka.faults().error(ApiKey::Produce, code, 3);
        Ok(())
    })
}
