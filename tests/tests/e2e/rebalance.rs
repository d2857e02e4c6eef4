//! Two nodes share the partitions of a consumer bridge; one comes, one goes, and one is killed.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use causeway_benches::topic;
use causeway_tests::clients::Client;
use causeway_tests::kafka::{Tool, run_tool};
use causeway_tests::node::Node;
use causeway_tests::oracle::record;
use causeway_tests::process::Process;
use causeway_tests::{block_on, eventually, need, on_every_kafka, unique};
use rskafka::client::partition::{Compression, UnknownTopicHandling};

use crate::sections::{consumer, mapping};

const SOON: Duration = Duration::from_mins(1);
const PARTITIONS: i32 = 4;

fn produce(bootstrap: &str, topic: &str, numbers: std::ops::Range<u32>) -> Result<()> {
    block_on(async {
        let client = topic::client(bootstrap, SOON).await?;
        for partition in 0..PARTITIONS {
            let records = numbers
                .clone()
                .map(|n| record(Some(&partition.to_string()), &format!("{partition}-{n:05}"), &[]));
            let partition = client.partition_client(topic, partition, UnknownTopicHandling::Retry).await?;
            partition.produce(records.collect(), Compression::NoCompression).await?;
        }
        Ok(())
    })
}

fn subscriber(node: &Node) -> Result<Option<Process>> {
    let Some(mut command) = Client::MosquittoSub.command()? else { return Ok(None) };
    command.args([
        "-t",
        "shared",
        "-q",
        "1",
        "-d",
        "-F",
        "got %p",
        "-h",
        "127.0.0.1",
        "-p",
        node.mqtt_port(),
    ]);
    let process = Process::spawn("mosquitto_sub", &mut command)?;
    process.wait_for(SOON, |line| line.contains("SUBACK").then_some(()))?;
    Ok(Some(process))
}

/// What a subscriber has got, by partition.
fn got(process: &Process) -> BTreeMap<String, Vec<String>> {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for payload in process.tail(usize::MAX).lines().filter_map(|line| line.strip_prefix("got ")) {
        if let Some((partition, number)) = payload.split_once('-') {
            all.entry(partition.to_owned()).or_default().push(number.to_owned());
        }
    }
    all
}

/// Waits until every number of every partition has come to one of the subscribers.
fn wait_for_all(subscribers: &[&Process], count: u32) -> Result<()> {
    eventually(SOON, || {
        for partition in 0..PARTITIONS {
            let mut there = std::collections::BTreeSet::new();
            for process in subscribers {
                there.extend(got(process).remove(&partition.to_string()).unwrap_or_default());
            }
            let missing = (0..count).find(|n| !there.contains(&format!("{n:05}")));
            need(missing.is_none(), || format!("partition {partition} lacks {missing:?}"))?;
        }
        Ok(())
    })
}

on_every_kafka! {
    /// Everything reaches a subscriber of one node or the other, through joining, leaving and dying.
    fn two_nodes_share_a_consumer_bridge_through_joining_leaving_and_dying(target) {
        let kafka = target.shared()?;
        let bootstrap = kafka.bootstrap();
        let topic = unique("shared");
        let bridge = unique("shared");
        let group = format!("causeway-kafka-consumer-{bridge}");
        kafka.create_topic(&topic, PARTITIONS as u32)?;
        // A node that comes back must not publish to nobody before its subscriber is there.
        let config = consumer(&bridge, &bootstrap, &[mapping(&topic, "shared", 1, "${.value}")])
            .replace("topic_mapping", "when_no_subscriber = hold\n topic_mapping");

        let mut one = Node::start_as("one", &config)?;
        let Some(at_one) = subscriber(&one)? else { return Ok(()) };
        produce(&bootstrap, &topic, 0..200)?;
        wait_for_all(&[&at_one], 200)?;

        let mut two = Node::start_as("two", &config)?;
        let Some(at_two) = subscriber(&two)? else { return Ok(()) };
        produce(&bootstrap, &topic, 200..400)?;
        wait_for_all(&[&at_one, &at_two], 400)?;
        // Both have a part: new records keep coming, a few at a time, until the second has got one.
        let mut count = 400;
        eventually(SOON, || {
            produce(&bootstrap, &topic, count..count + 1)?;
            count += 1;
            std::thread::sleep(Duration::from_millis(100));
            need(!got(&at_two).is_empty(), || "the second node gets nothing".to_owned())
        })?;
        wait_for_all(&[&at_one, &at_two], count)?;
        if let Some(tools) = kafka.tools()? {
            // Visible in Kafka's own tool, with both members.
            let arguments = ["--describe", "--group", &group, "--members"];
            let answer = run_tool(&tools, Tool::ConsumerGroups, &bootstrap, &arguments, b"")?.successful()?;
            let members = answer.stdout.lines().filter(|line| line.starts_with(&group)).count();
            assert_eq!(members, 2, "{}", answer.stdout);
        }
        one.check_books()?;
        two.check_books()?;

        // One leaves in order: the other has everything, and what was committed does not come again.
        one.stop()?;
        let before = got(&at_two).values().map(Vec::len).sum::<usize>();
        produce(&bootstrap, &topic, count..count + 100)?;
        count += 100;
        wait_for_all(&[&at_one, &at_two], count)?;
        let after = got(&at_two).values().map(Vec::len).sum::<usize>();
        assert_eq!(after - before, 100 * PARTITIONS as usize, "records came again after an orderly stop");

        // The other dies; its successor under the same name goes on from the last commit.
        two.kill()?;
        produce(&bootstrap, &topic, count..count + 100)?;
        count += 100;
        two.start_again()?;
        let Some(at_successor) = subscriber(&two)? else { return Ok(()) };
        wait_for_all(&[&at_one, &at_two, &at_successor], count)?;
        two.check_books()
    }

    /// A topic that is added to the mapping while the node restarts, within its session timeout: Kafka gives
    /// the node the assignment that it had, alone and beside another node.
    fn a_topic_added_during_a_restart_is_read(target) {
        let kafka = target.shared()?;
        let bootstrap = kafka.bootstrap();
        let [first, second] = [unique("first"), unique("second")];
        for topic in [&first, &second] {
            kafka.create_topic(topic, PARTITIONS as u32)?;
        }
        for alone in [true, false] {
            let bridge = unique("added");
            let id = format!("kafka_consumer:{bridge}");
            let config = |topics: &[&String]| {
                let mappings: Vec<_> =
                    topics.iter().map(|topic| mapping(topic, "shared", 1, "${.value}")).collect();
                consumer(&bridge, &bootstrap, &mappings)
            };
            let connected = |node: &Node| {
                let (status, reason) = node.status(&id)?;
                need(status == "connected", || format!("{status}: {reason}"))
            };
            let other = if alone { None } else { Some(Node::start_as("other", &config(&[&first, &second]))?) };
            if let Some(other) = &other {
                eventually(SOON, || connected(other))?;
            }
            let mut node = Node::start_as("restarted", &config(&[&first]))?;
            eventually(SOON, || connected(&node))?;
            node.stop()?;
            node.configure(&config(&[&first, &second]));
            node.start_again()?;
            eventually(SOON, || connected(&node))?;
            let received = || {
                let nodes = [Some(&node), other.as_ref()];
                nodes.into_iter().flatten().map(|node| Ok(node.ledger(&id)?.received)).sum::<Result<u64>>()
            };
            let before = received()?;
            for topic in [&first, &second] {
                produce(&bootstrap, topic, 0..10)?;
            }
            let expected = before + 2 * 10 * PARTITIONS as u64;
            eventually(SOON, || {
                let now = received()?;
                need(now == expected, || format!("{now} of {expected} records"))
            })?;
        }
        Ok(())
    }
}
