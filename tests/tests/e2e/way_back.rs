//! From Kafka to devices, with each QoS and with three subscribers that other people wrote.

use std::time::Duration;

use anyhow::Result;
use causeway_benches::topic;
use causeway_tests::clients::Client;
use causeway_tests::node::Node;
use causeway_tests::oracle::record;
use causeway_tests::process::Process;
use causeway_tests::{block_on, eventually, need, on_every_kafka, unique};
use rskafka::client::partition::{Compression, UnknownTopicHandling};
use rskafka::record::Record;

use crate::sections::{consumer, mapping};

const SOON: Duration = Duration::from_secs(30);
const EACH: usize = 200;

/// Each prints `ready` when its subscription is granted, then `got QOS TOPIC PAYLOAD` for each message.
const PAHO: &str = r#"
import sys
import paho.mqtt.client as mqtt
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="paho", protocol=mqtt.MQTTv5)
client.on_connect = lambda c, *_: c.subscribe("back/#", qos=2)
client.on_subscribe = lambda *_: print("ready", flush=True)
client.on_message = lambda c, u, m: print("got", m.qos, m.topic, m.payload.decode(), flush=True)
client.connect("127.0.0.1", int(sys.argv[1]))
client.loop_forever()
"#;

const AIOMQTT: &str = r#"
import asyncio, sys
import aiomqtt
async def main():
    async with aiomqtt.Client("127.0.0.1", int(sys.argv[1]), identifier="aiomqtt") as client:
        await client.subscribe("back/#", qos=2)
        print("ready", flush=True)
        async for m in client.messages:
            print("got", m.qos, m.topic, m.payload.decode(), flush=True)
asyncio.run(main())
"#;

/// Starts a subscriber and waits until it is subscribed.
fn subscribe(name: &str, node: &Node) -> Result<Option<Process>> {
    let command = match name {
        "mosquitto_sub" => Client::MosquittoSub.command()?.map(|mut command| {
            let arguments = ["-t", "back/#", "-q", "2", "-d", "-F", "got %q %t %p", "-h", "127.0.0.1", "-p"];
            command.args(arguments).arg(node.mqtt_port());
            command
        }),
        script => Client::Python.command()?.map(|mut command| {
            let script = if script == "paho" { PAHO } else { AIOMQTT };
            command.args(["-c", script, node.mqtt_port()]);
            command
        }),
    };
    let Some(mut command) = command else { return Ok(None) };
    let process = Process::spawn(name, &mut command)?;
    process.wait_for(SOON, |line| (line == "ready" || line.contains("SUBACK")).then_some(()))?;
    Ok(Some(process))
}

fn records(prefix: &str) -> Vec<Record> {
    (0..EACH).map(|n| record(Some(&format!("{prefix}{}", n % 3)), &format!("{prefix}-{n:04}"), &[])).collect()
}

on_every_kafka! {
    /// QoS 0, 1 and 2: every subscriber gets every record once, in the order of its partition.
    fn every_qos_reaches_every_subscriber_once_and_in_order(target) {
        let kafka = target.shared()?;
        let topics: Vec<String> = (0..=2).map(|qos| unique(&format!("back-{qos}"))).collect();
        let mappings: Vec<String> = (0_u8..=2)
            .zip(&topics)
            .map(|(qos, topic)| mapping(topic, &format!("back/{qos}"), qos, "${.value}"))
            .collect();
        for topic in &topics {
            kafka.create_topic(topic, 1)?;
        }
        let node = Node::start(&consumer("back", &kafka.bootstrap(), &mappings))?;
        let mut subscribers = Vec::new();
        for name in ["mosquitto_sub", "paho", "aiomqtt"] {
            subscribers.extend(subscribe(name, &node)?.map(|process| (name, process)));
        }
        block_on(async {
            let client = topic::client(&kafka.bootstrap(), SOON).await?;
            for (qos, topic) in topics.iter().enumerate() {
                let partition = client.partition_client(topic, 0, UnknownTopicHandling::Retry).await?;
                for batch in records(&format!("q{qos}")).chunks(23) {
                    partition.produce(batch.to_vec(), Compression::NoCompression).await?;
                }
            }
            anyhow::Ok(())
        })?;
        for (name, process) in &subscribers {
            for qos in 0..=2 {
                let begin = format!("got {qos} back/{qos} ");
                let got = || -> Vec<String> {
                    process.tail(usize::MAX).lines().filter_map(|line| Some(line.strip_prefix(&begin)?.to_owned())).collect()
                };
                eventually(SOON, || need(got().len() >= EACH, || format!("{name} got {} with QoS {qos}", got().len())))?;
                let wanted: Vec<String> = (0..EACH).map(|n| format!("q{qos}-{n:04}")).collect();
                assert_eq!(got(), wanted, "{name}, QoS {qos}");
            }
        }
        let total = 3 * EACH as u64;
        let books = eventually(SOON, || {
            let books = node.settled("kafka_consumer:back", SOON)?;
            need(books.success == total, || format!("{books:?}"))?;
            Ok(books)
        })?;
        assert_eq!((books.received, books.matched), (total, total), "{books:?}");

        // What was handed over is committed: a restart brings nothing again.
        drop(subscribers);
        let mut node = node;
        node.stop()?;
        node.start_again()?;
        let again = subscribe("mosquitto_sub", &node)?;
        block_on(async {
            let client = topic::client(&kafka.bootstrap(), SOON).await?;
            let topic = topics.first().map_or("", String::as_str);
            let partition = client.partition_client(topic, 0, UnknownTopicHandling::Retry).await?;
            let mut last = records("last");
            last.truncate(1);
            partition.produce(last, Compression::NoCompression).await?;
            anyhow::Ok(())
        })?;
        if let Some(process) = again {
            let first = process.wait_for(SOON, |line| line.starts_with("got ").then(|| line.to_owned()))?;
            assert_eq!(first, "got 0 back/0 last-0000");
        }
        node.check_books()
    }
}
