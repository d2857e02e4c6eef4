//! A bridge with a disk buffer answers its publishers when their messages are on the disk: they must be in
//! Kafka in the end, once and in order, whatever became of the node and of Kafka.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use causeway_tests::faults::disk::SmallDisk;
use causeway_tests::mqtt::wire::{ack, first};
use causeway_tests::mqtt::{Client, Connect, Publish, Trace, Version};
use causeway_tests::node::Node;
use causeway_tests::oracle::{Oracle, Running, load};
use causeway_tests::{eventually, on_every_kafka, say, unique};

use crate::sections::producer;

const CLIENTS: u32 = 20;
const EACH: u64 = 1_000;
const TOTAL: u64 = EACH * CLIENTS as u64;
const PATIENCE: Duration = Duration::from_mins(2);
const ROUNDS: u64 = 6;
const DISK: &str = "buffer { mode = disk, segment_bytes = 256KB }\nreconnect_delay = 200ms";

/// So many records, no two of them alike: a payload holds its number and the moment it was sent.
fn each_once(oracle: &Oracle, count: u64) -> Result<()> {
    let records = oracle.records()?;
    let different: HashSet<_> =
        records.iter().map(|(_, record)| (record.record.key.clone(), record.record.value.clone())).collect();
    ensure!(
        records.len() as u64 == count && different.len() as u64 == count,
        "{} records, {} of them different, instead of {count}",
        records.len(),
        different.len()
    );
    Ok(())
}

on_every_kafka! {
    /// W10. Kafka is away, everything is acknowledged, the node is killed with -9, and Kafka comes back.
    fn what_was_acknowledged_without_kafka_is_there_once_after_kill_9(target) {
        let mut kafka = target.own()?;
        let topic = unique("disk");
        kafka.create_topic(&topic, 3)?;
        let oracle = Oracle::watch(&kafka.bootstrap(), &topic)?;
        kafka.stop()?;
        let mut node = Node::start(&producer("disk", &kafka.bootstrap(), "d/#", &topic, DISK))?;
        let published = Running::start(load(node.mqtt(), "device-", "d/{client}", CLIENTS, EACH)).join()?;
        let acknowledged: u64 = published.iter().map(|client| client.acknowledged.len()).sum();
        assert_eq!(acknowledged, TOTAL, "all are acknowledged without Kafka");
        let books = node.ledger("kafka:disk")?;
        assert_eq!((books.queuing, books.imbalance()), (TOTAL, 0), "{books:?}");
        node.kill()?;
        node.start_again()?;
        let books = node.ledger("kafka:disk")?;
        assert_eq!((books.matched, books.queuing, books.imbalance()), (TOTAL, TOTAL, 0), "{books:?}");
        // Once more, with what a start has changed.
        node.kill()?;
        kafka.start_again()?;
        node.start_again()?;
        let records = oracle.wait_for(TOTAL, PATIENCE)?;
        assert_eq!(records.len() as u64, TOTAL);
        let books = node.settled("kafka:disk", PATIENCE)?;
        assert_eq!(books.success, TOTAL, "{books:?}");
        let verdict = oracle.judge("device-", &published)?;
        ensure!(verdict.is_perfect() && verdict.arrived == TOTAL, "{verdict}");
        // Batches whose end was not on the disk yet are sent again, and Kafka knows them.
        node.kill()?;
        node.start_again()?;
        node.settled("kafka:disk", PATIENCE)?;
        each_once(&oracle, TOTAL)
    }

    /// P18. Messages that name their topic, without Kafka and with it, and a node that is killed.
    fn topics_that_messages_name_are_on_the_disk_as_well(target) {
        const TOPICS: u32 = 6;
        let mut kafka = target.own()?;
        let topic = unique("disk");
        let mut oracles = Vec::new();
        for number in 0..TOPICS {
            let topic = format!("{topic}-device-{number}");
            kafka.create_topic(&topic, 2)?;
            oracles.push(Oracle::watch(&kafka.bootstrap(), &topic)?);
        }
        kafka.stop()?;
        let named = format!("{topic}-${{clientid}}");
        let more = format!("{DISK}\ndead_letter_topic = {topic}-dead");
        let mut node = Node::start(&producer("disk", &kafka.bootstrap(), "d/#", &named, &more))?;
        let mut settings = load(node.mqtt(), "device-", "d/{client}", TOPICS, 2 * EACH);
        settings.resend = true;
        settings.rate = Some(4_000.0);
        let load = Running::start(settings);
        let total = 2 * EACH * u64::from(TOPICS);
        for kill in 1..=3 {
            load.wait_for(total * kill / 4, PATIENCE)?;
            node.check_books()?;
            node.kill()?;
            if kill == 2 {
                kafka.start_again()?;
            }
            node.start_again()?;
        }
        let published = load.join()?;
        node.settled("kafka:disk", PATIENCE)?;
        let verdict = Oracle::judge_in_turn(&oracles.iter().collect::<Vec<_>>(), "device-", &published)?;
        say(&format!("six topics on the disk, three kills on {target}: {verdict}"));
        ensure!(verdict.is_whole() && verdict.unacknowledged == 0, "{verdict}");
        Ok(())
    }

    /// Killed with batches under way: Kafka recognises them when they come again.
    fn batches_under_way_at_a_kill_9_are_not_doubled(target) {
        let kafka = target.shared()?;
        let topic = unique("disk");
        kafka.create_topic(&topic, 3)?;
        let oracle = Oracle::watch(&kafka.bootstrap(), &topic)?;
        let mut node = Node::start(&producer("disk", &kafka.bootstrap(), "d/#", &topic, DISK))?;
        for round in 0..ROUNDS {
            let prefix = format!("round-{round}-");
            Running::start(load(node.mqtt(), &prefix, "d/{client}", CLIENTS, EACH)).join()?;
            // All is acknowledged, and some of it on its way to Kafka at this moment.
            node.kill()?;
            node.start_again()?;
        }
        node.settled("kafka:disk", PATIENCE)?;
        each_once(&oracle, ROUNDS * TOTAL)
    }

    /// Devices that send again what was not acknowledged, and a node that is killed under their load.
    fn nothing_acknowledged_is_missing_after_kill_9_under_load(target) {
        let kafka = target.shared()?;
        let topic = unique("disk");
        kafka.create_topic(&topic, 3)?;
        let oracle = Oracle::watch(&kafka.bootstrap(), &topic)?;
        let mut node = Node::start(&producer("disk", &kafka.bootstrap(), "d/#", &topic, DISK))?;
        let mut settings = load(node.mqtt(), "device-", "d/{client}", CLIENTS, 2 * EACH);
        settings.resend = true;
        settings.rate = Some(10_000.0);
        let load = Running::start(settings);
        for kill in 1..=3 {
            load.wait_for(2 * TOTAL * kill / 5, PATIENCE)?;
            node.check_books()?;
            node.kill()?;
            node.start_again()?;
        }
        let published = load.join()?;
        node.settled("kafka:disk", PATIENCE)?;
        let verdict = oracle.judge("device-", &published)?;
        say(&format!("disk buffer, three kills on {target}: {verdict}"));
        ensure!(verdict.is_whole() && verdict.unacknowledged == 0, "{verdict}");
        Ok(())
    }

    /// A device that did not get its PUBREC sends again; a device that has its PUBCOMP uses the identifier
    /// again.
    fn qos_2_is_written_once_though_the_node_dies_before_pubrec_and_before_pubcomp(target) {
        let kafka = target.shared()?;
        let topic = unique("disk");
        kafka.create_topic(&topic, 1)?;
        let oracle = Oracle::watch(&kafka.bootstrap(), &topic)?;
        let mut node = Node::start(&producer("disk", &kafka.bootstrap(), "d/#", &topic, DISK))?;
        let device = |node: &Node| -> Result<Client> {
            let mut device = Client::open(node.mqtt(), "device", Version::V5, &Trace::default())?;
            device.set_patience(PATIENCE);
            device.connect(&Connect::new(Version::V5, "device").lasting(3600))?;
            Ok(device)
        };
        for round in 0_u64..4 {
            let payload = format!("{round}");
            let mut publish = Publish::new(Version::V5, "d/1", payload.as_bytes()).qos(2, 7);
            device(&node)?.send(&publish.bytes())?;
            oracle.wait_for(round + 1, PATIENCE)?;
            // It is in Kafka; whether a PUBREC was on its way the device does not know.
            node.kill()?;
            node.start_again()?;
            publish.dup = true;
            let mut connected = device(&node)?;
            connected.send(&publish.bytes())?;
            connected.acked(first::PUBREC, 7)?;
            connected.send(&ack(first::PUBREL, 7))?;
            if round % 2 == 0 {
                // Nor does it know of a PUBCOMP.
                node.kill()?;
                node.start_again()?;
                connected = device(&node)?;
                connected.send(&ack(first::PUBREL, 7))?;
            }
            let packet = connected.packet()?;
            ensure!(packet.first & 0xF0 == first::PUBCOMP, "{packet}");
        }
        node.settled("kafka:disk", PATIENCE)?;
        each_once(&oracle, 4)
    }

    /// The disk fills up while a batch is open. Kafka comes back first: it gets all that was acknowledged;
    /// room comes later.
    fn what_was_acknowledged_before_the_disk_was_full_does_not_wait_for_room(target) {
        let disk = match SmallDisk::mount(64) {
            Ok(disk) => disk,
            Err(error) => {
                say(&format!("no disk is filled: {error:#}"));
                return Ok(());
            }
        };
        let mut kafka = target.own()?;
        let topic = unique("disk");
        kafka.create_topic(&topic, 3)?;
        let oracle = Oracle::watch(&kafka.bootstrap(), &topic)?;
        kafka.stop()?;
        // One file only, so that a backlog that leaves does not make room.
        let settings = "buffer { mode = disk, segment_bytes = 60MB }\nreconnect_delay = 200ms";
        let bridge = producer("disk", &kafka.bootstrap(), "d/#", &topic, settings);
        let node = Node::start_in(Some(&disk.data()), &bridge)?;
        Running::start(load(node.mqtt(), "first-", "d/{client}", CLIENTS, EACH)).join()?;
        disk.fill()?;
        let late = 50 * u64::from(CLIENTS);
        let running = Running::start(load(node.mqtt(), "late-", "d/{client}", CLIENTS, 50));
        eventually(PATIENCE, || {
            let books = node.ledger("kafka:disk")?;
            ensure!(books.queuing == TOTAL + late, "{books:?}");
            Ok(())
        })?;
        kafka.start_again()?;
        eventually(PATIENCE, || {
            let records = oracle.records()?;
            let is_first = |key: &Option<Vec<u8>>| key.as_ref().is_some_and(|key| key.starts_with(b"first-"));
            let first = records.iter().filter(|(_, record)| is_first(&record.record.key)).count();
            ensure!(first as u64 == TOTAL, "{first} of those acknowledged first");
            Ok(())
        })?;
        node.check_books()?;
        ensure!(running.acknowledged() < late, "the disk was not full");
        disk.empty()?;
        running.join()?;
        let books = node.settled("kafka:disk", PATIENCE)?;
        ensure!(books.success == TOTAL + late, "{books:?}");
        each_once(&oracle, TOTAL + late)
    }

    /// W10. An orderly stop leaves in the buffer what Kafka did not take.
    fn an_orderly_restart_without_kafka_keeps_what_is_held(target) {
        let mut kafka = target.own()?;
        let topic = unique("disk");
        kafka.create_topic(&topic, 3)?;
        let oracle = Oracle::watch(&kafka.bootstrap(), &topic)?;
        let mut node = Node::start(&producer("disk", &kafka.bootstrap(), "d/#", &topic, DISK))?;
        Running::start(load(node.mqtt(), "first-", "d/{client}", CLIENTS, EACH)).join()?;
        node.settled("kafka:disk", PATIENCE)?;
        kafka.stop()?;
        Running::start(load(node.mqtt(), "second-", "d/{client}", CLIENTS, EACH)).join()?;
        node.stop()?;
        kafka.start_again()?;
        node.start_again()?;
        oracle.wait_for(2 * TOTAL, PATIENCE)?;
        node.settled("kafka:disk", PATIENCE)?;
        each_once(&oracle, 2 * TOTAL)
    }
}
