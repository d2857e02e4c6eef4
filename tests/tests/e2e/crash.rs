//! The node is killed with -9 while devices publish; the devices do what MQTT tells them: connect again and
//! send again what was not acknowledged.

use std::time::Duration;

use anyhow::ensure;
use causeway_tests::node::Node;
use causeway_tests::oracle::{Oracle, Running, load};
use causeway_tests::{on_every_kafka, say, unique};

use crate::sections::producer;

const CLIENTS: u32 = 20;
const EACH: u64 = 3_000;
const TOTAL: u64 = EACH * CLIENTS as u64;

on_every_kafka! {
    /// Nothing acknowledged is missing, and the first copy of everything is in order.
    fn nothing_acknowledged_is_missing_after_kill_9(target) {
        let kafka = target.shared()?;
        let topic = unique("crash");
        kafka.create_topic(&topic, 3)?;
        let oracle = Oracle::watch(&kafka.bootstrap(), &topic)?;
        let mut node = Node::start(&producer("crash", &kafka.bootstrap(), "c/#", &topic, ""))?;
        let mut settings = load(node.mqtt(), "device-", "c/{client}", CLIENTS, EACH);
        settings.resend = true;
        settings.rate = Some(15_000.0);
        let load = Running::start(settings);
        for kill in 1..=3 {
            load.wait_for(TOTAL * kill / 5, Duration::from_mins(2))?;
            node.check_books()?;
            let before = load.acknowledged();
            ensure!(before < TOTAL, "kill {kill} comes after the last message");
            node.kill()?;
            node.start_again()?;
        }
        let published = load.join()?;
        // One that still waits to try again when the next kill comes has missed a node: not every client sees
        // all.
        for client in &published {
            ensure!(client.reconnects > 0, "client {} never lost its connection", client.client);
        }
        let verdict = oracle.judge("device-", &published)?;
        say(&format!("after three kills on {target}: {verdict}"));
        ensure!(verdict.is_whole() && verdict.unacknowledged == 0, "{verdict}");
        let acknowledged: u64 = published.iter().map(|client| client.acknowledged.len()).sum();
        assert_eq!(acknowledged, TOTAL, "everything is acknowledged in the end");
        node.settled("kafka:crash", Duration::from_secs(30))?;
        Ok(())
    }
}
