//! A great many messages, every one of them checked.

use std::time::Duration;

use anyhow::ensure;
use causeway_tests::broker::Target;
use causeway_tests::node::Node;
use causeway_tests::oracle::{Oracle, Running, load};
use causeway_tests::{full, on_every_kafka, say, unique};

use crate::sections::producer;

const CLIENTS: u32 = 50;

/// In full: a million on the development Kafka and on the newest release; less where it only costs time.
fn messages_each(target: &Target) -> u64 {
    let newest = Target::apache("4").ok().flatten();
    let million = *target == Target::Development || Some(target) == newest.as_ref();
    match (full(), million) {
        (true, true) => 20_000,
        (true, false) => 4_000,
        (false, true) => 2_000,
        (false, false) => 500,
    }
}

on_every_kafka! {
    /// QoS 1 through a producer bridge: every payload whole, once, and in order per key.
    fn a_million_messages_arrive_once_and_in_order(target) {
        let kafka = target.shared()?;
        let topic = unique("million");
        kafka.create_topic(&topic, 6)?;
        let oracle = Oracle::watch(&kafka.bootstrap(), &topic)?;
        let node = Node::start(&producer("million", &kafka.bootstrap(), "m/#", &topic, "max_inflight = 5"))?;
        let each = messages_each(target);
        let total = each * u64::from(CLIENTS);
        let started = std::time::Instant::now();
        let published = Running::start(load(node.mqtt(), "device-", "m/{client}", CLIENTS, each)).join()?;
        say(&format!("{total} messages acknowledged in {:.1?} on {target}", started.elapsed()));

        let verdict = oracle.judge("device-", &published)?;
        ensure!(verdict.is_perfect() && verdict.arrived == total && verdict.unacknowledged == 0, "{verdict}");
        let books = node.settled("kafka:million", Duration::from_secs(30))?;
        assert_eq!((books.matched, books.success), (total, total), "{books:?}");
        Ok(())
    }
}
