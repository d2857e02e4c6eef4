//! A bridge with a hybrid buffer: what does not fit into the memory waits in files, is sent in order, and
//! publishers are answered when Kafka has it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use causeway_tests::node::Node;
use causeway_tests::oracle::{Oracle, Running, load};
use causeway_tests::{eventually, need, on_every_kafka, unique};

use crate::sections::producer;

const CLIENTS: u32 = 20;
const EACH: u64 = 400;
const TOTAL: u64 = EACH * CLIENTS as u64;
const PATIENCE: Duration = Duration::from_mins(2);
/// 64 KB in memory for each of three partitions; the windows of the publishers are 4 MB.
const HYBRID: &str =
    "buffer { mode = hybrid, segment_bytes = 64KB }\nmax_batch_bytes = 16KB\nreconnect_delay = 200ms";
const IN_FILES: u64 = 2_000_000;

fn publishers(node: &Node) -> causeway_benches::load::publisher::Publishing {
    let mut settings = load(node.mqtt(), "device-", "h/{client}", CLIENTS, EACH);
    settings.payload = 2000;
    settings
}

/// Waits until files have what the memory has no room for.
fn spilled(node: &Node) -> Result<()> {
    eventually(PATIENCE, || {
        node.check_books()?;
        let books = node.ledger("kafka:hybrid")?;
        let in_memory = books.queuing_bytes - books.queuing_in_files;
        need(books.queuing_in_files > IN_FILES && in_memory <= 3 * 128 * 1024, || format!("{books:?}"))
    })
}

/// Files in the folder of the bridge.
fn files(data: &Path) -> usize {
    std::fs::read_dir(data.join("spill/hybrid")).map_or(0, Iterator::count)
}

on_every_kafka! {
    /// W11. Kafka goes while messages come, and comes back.
    fn what_does_not_fit_into_the_memory_waits_in_files_and_arrives_once_and_in_order(target) {
        let mut kafka = target.own()?;
        let topic = unique("hybrid");
        kafka.create_topic(&topic, 3)?;
        let oracle = Oracle::watch(&kafka.bootstrap(), &topic)?;
        let data = tempfile::tempdir()?;
        let bridge = producer("hybrid", &kafka.bootstrap(), "h/#", &topic, HYBRID);
        let mut node = Node::start_in(Some(data.path()), &bridge)?;
        let load = Running::start(publishers(&node));
        load.wait_for(TOTAL / 20, PATIENCE)?;
        kafka.stop()?;
        spilled(&node)?;
        ensure!(files(data.path()) > 0 && load.acknowledged() < TOTAL, "nothing is answered that is not in Kafka");
        kafka.start_again()?;
        let published = load.join()?;
        let books = node.settled("kafka:hybrid", PATIENCE)?;
        assert_eq!((books.matched, books.success, books.queuing_in_files), (TOTAL, TOTAL, 0), "{books:?}");
        let verdict = oracle.judge("device-", &published)?;
        ensure!(verdict.is_perfect() && verdict.arrived == TOTAL && verdict.unacknowledged == 0, "{verdict}");
        eventually(PATIENCE, || need(files(data.path()) == 0, || "files stay".to_owned()))?;
        node.stop()
    }

    /// Files are for room: what a node that dies has in them was not answered, and its publishers send it
    /// again.
    fn what_was_in_files_at_a_kill_9_is_sent_again_by_its_publishers(target) {
        let mut kafka = target.own()?;
        let topic = unique("hybrid");
        kafka.create_topic(&topic, 3)?;
        let oracle = Oracle::watch(&kafka.bootstrap(), &topic)?;
        let data = tempfile::tempdir()?;
        let bridge = producer("hybrid", &kafka.bootstrap(), "h/#", &topic, HYBRID);
        let mut node = Node::start_in(Some(data.path()), &bridge)?;
        let mut settings = publishers(&node);
        settings.resend = true;
        let load = Running::start(settings);
        load.wait_for(TOTAL / 20, PATIENCE)?;
        kafka.stop()?;
        spilled(&node)?;
        node.kill()?;
        ensure!(files(data.path()) > 0, "the files are gone");
        node.start_again()?;
        node.wait_for_line(PATIENCE, "files of a hybrid buffer were left by a node")?;
        kafka.start_again()?;
        let published = load.join()?;
        node.settled("kafka:hybrid", PATIENCE)?;
        let verdict = oracle.judge("device-", &published)?;
        ensure!(verdict.is_whole() && verdict.unacknowledged == 0, "{verdict}");
        eventually(PATIENCE, || need(files(data.path()) == 0, || "files stay".to_owned()))
    }
}
