//! Clients that share no code with ours read what we wrote, and we read what they wrote.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use causeway_benches::topic;
use causeway_tests::clients::Client;
use causeway_tests::kafka::console_produce;
use causeway_tests::node::Node;
use causeway_tests::oracle::{Oracle, Running, load, record};
use causeway_tests::process::{self, Process};
use causeway_tests::{block_on, on_every_kafka, unique};
use rskafka::client::partition::{Compression, UnknownTopicHandling};
use serde_json::{Value, json};

use crate::sections::{consumer, mapping, producer};

const SOON: Duration = Duration::from_secs(30);

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64
}

/// A subscriber that prints payloads, subscribed.
fn subscribe(node: &Node, filter: &str) -> Result<Option<Process>> {
    let Some(mut command) = Client::MosquittoSub.command()? else { return Ok(None) };
    command.args(["-t", filter, "-q", "1", "-d", "-F", "got %p", "-h", "127.0.0.1", "-p", node.mqtt_port()]);
    let process = Process::spawn("mosquitto_sub", &mut command)?;
    process.wait_for(SOON, |line| line.contains("SUBACK").then_some(()))?;
    Ok(Some(process))
}

on_every_kafka! {
    /// All codecs: rskafka and kcat find the same keys, values and timestamps.
    fn rskafka_and_kcat_read_every_codec_that_we_write(target) {
        let kafka = target.shared()?;
        for codec in ["no_compression", "gzip", "snappy", "lz4", "zstd"] {
            let topic = unique("codec");
            kafka.create_topic(&topic, 1)?;
            let oracle = Oracle::watch(&kafka.bootstrap(), &topic)?;
            let more = format!("compression = \"{codec}\"");
            let node = Node::start(&producer("codec", &kafka.bootstrap(), "c/#", &topic, &more))?;
            let before = now_ms();
            let published = Running::start(load(node.mqtt(), "device-", "c/{client}", 5, 200)).join()?;
            let verdict = oracle.judge("device-", &published)?;
            ensure!(verdict.is_perfect() && verdict.arrived == 1000, "{codec}: {verdict}");
            let after = now_ms();
            for (_, record) in oracle.records()? {
                let at = record.record.timestamp.timestamp_millis();
                ensure!((before..=after).contains(&at), "{codec}: a record of {at}, not {before} to {after}");
            }
            let books = node.settled("kafka:codec", SOON)?;
            assert_eq!(books.success, 1000, "{codec}: {books:?}");

            let Some(mut kcat) = Client::Kcat.command()? else { continue };
            kcat.args(["-C", "-b", &kafka.bootstrap(), "-t", &topic, "-e", "-q", "-f", "%k %T %s\n"]);
            let read = process::run(&mut kcat, b"", SOON)?.successful()?;
            let ours = oracle.records()?.into_iter().map(|(_, record)| {
                let text = |bytes: Option<Vec<u8>>| String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned();
                let at = record.record.timestamp.timestamp_millis();
                format!("{} {at} {}", text(record.record.key), text(record.record.value))
            });
            assert_eq!(read.stdout.lines().map(str::to_owned).collect::<Vec<_>>(), ours.collect::<Vec<_>>(), "{codec}");
        }
        Ok(())
    }

    /// A key template that renders nothing.
    fn a_message_without_a_key_is_readable(target) {
        let kafka = target.shared()?;
        let topic = unique("keyless");
        kafka.create_topic(&topic, 1)?;
        let oracle = Oracle::watch(&kafka.bootstrap(), &topic)?;
        let bridge = producer("keyless", &kafka.bootstrap(), "k/#", &topic, "partition_strategy = random")
            .replace("${.clientid}", "${.pub_props.no_such_property}");
        let node = Node::start(&bridge)?;
        Running::start(load(node.mqtt(), "device-", "k/{client}", 1, 10)).join()?;
        let records = oracle.wait_for(10, SOON)?;
        assert_eq!(records.len(), 10);
        for (_, record) in &records {
            ensure!(record.record.key.as_ref().is_none_or(Vec::is_empty), "{record:?}");
        }
        if let Some(mut kcat) = Client::Kcat.command()? {
            kcat.args(["-C", "-b", &kafka.bootstrap(), "-t", &topic, "-e", "-q", "-f", "%s\n"]);
            let read = process::run(&mut kcat, b"", SOON)?.successful()?;
            assert_eq!(read.stdout.lines().count(), 10, "{}", read.stdout);
        }
        node.settled("kafka:keyless", SOON)?;
        Ok(())
    }

    /// kcat, rskafka and the console producer write with each codec; a subscriber gets all of it.
    fn we_read_what_kcat_rskafka_and_the_console_producer_wrote(target) {
        let kafka = target.shared()?;
        let bootstrap = kafka.bootstrap();
        let topic = unique("theirs");
        kafka.create_topic(&topic, 1)?;
        let node = Node::start(&consumer("theirs", &bootstrap, &[mapping(&topic, "theirs", 1, "${.}")]))?;
        let Some(subscriber) = subscribe(&node, "theirs")? else { return Ok(()) };
        let mut wanted: Vec<Value> = Vec::new();

        block_on(async {
            let client = topic::client(&bootstrap, SOON).await?;
            let partition = client.partition_client(&topic, 0, UnknownTopicHandling::Retry).await?;
            let codecs = [Compression::NoCompression, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];
            for (number, codec) in codecs.into_iter().enumerate() {
                let value = |n: usize| format!("rskafka {number} {n} {}", "x".repeat(n * 50));
                let records =
                    (0..20).map(|n| record((n % 2 == 0).then_some("even"), &value(n), &[("h", "v")]));
                partition.produce(records.collect(), codec).await?;
                wanted.extend((0..20).map(|n| {
                    let key = if n % 2 == 0 { json!("even") } else { Value::Null };
                    json!({ "key": key, "value": value(n), "headers": { "h": "v" } })
                }));
            }
            anyhow::Ok(())
        })?;
        for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
            let Some(mut kcat) = Client::Kcat.command()? else { break };
            kcat.args(["-P", "-b", &bootstrap, "-t", &topic, "-z", codec, "-K", ":", "-H", "a=1", "-H", "b=2"]);
            let lines: Vec<String> = (0..20).map(|n| format!("key{n}:kcat {codec} {n} {}", "y".repeat(n * 40))).collect();
            process::run(&mut kcat, lines.join("\n").as_bytes(), SOON)?.successful()?;
            wanted.extend(lines.iter().filter_map(|line| {
                let (key, value) = line.split_once(':')?;
                Some(json!({ "key": key, "value": value, "headers": { "a": "1", "b": "2" } }))
            }));
        }
        if let Some(tools) = kafka.tools()? {
            console_produce(&tools, &bootstrap, &topic, &["ck:console value"], Some(":"))?;
            wanted.push(json!({ "key": "ck", "value": "console value", "headers": {} }));
        }

        let mut offset = 0;
        for wanted in wanted {
            let begin = format!("\"offset\":{offset},");
            let line = subscriber
                .wait_for(SOON, |line| (line.starts_with("got ") && line.contains(&begin)).then(|| line.to_owned()))?;
            let message: Value = serde_json::from_str(line.strip_prefix("got ").unwrap_or_default()).context(line)?;
            for field in ["key", "value", "headers"] {
                assert_eq!(message[field], wanted[field], "{field} of offset {offset}");
            }
            assert_eq!(message["ts_type"], "create");
            offset += 1;
        }
        let books = node.settled("kafka_consumer:theirs", SOON)?;
        assert_eq!(books.success, offset, "{books:?}");
        Ok(())
    }
}
