//! What a record may have beside key and value: headers, nulls, timestamps; and where it may go: topics that
//! messages name, the dead-letter topic. Written by the node or its producer, read by rskafka and kcat.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use causeway::dev_kafka::TopicSpec;
use causeway::flow::{Accepted, WakeList};
use causeway::kafka::client::{Address, Client as Kafka, ClientOptions};
use causeway::kafka::producer::{TopicProducer, TopicProducerOptions};
use causeway_benches::topic;
use causeway_protocol::kafka::batch::{Compression, Header, Record};
use causeway_tests::broker::Broker;
use causeway_tests::clients::Client;
use causeway_tests::mqtt::wire::first;
use causeway_tests::mqtt::{Client as Mqtt, Connect, Publish, Trace, Version};
use causeway_tests::node::Node;
use causeway_tests::oracle::Oracle;
use causeway_tests::{block_on, on_every_kafka, process, unique};
use rskafka::client::partition::UnknownTopicHandling;

use crate::sections::producer;

const SOON: Duration = Duration::from_secs(30);

/// Appends records in one batch and waits until Kafka has them.
fn write(bootstrap: &str, topic: &str, compression: Compression, records: &[Record<'_>]) -> Result<()> {
    let (host, port) = bootstrap.rsplit_once(':').context("HOST:PORT")?;
    let address = Address::new(host, port.parse()?);
    block_on(async {
        let client = Kafka::new(ClientOptions::new(vec![address]));
        let options = TopicProducerOptions { compression, ..TopicProducerOptions::new(topic) };
        let producer = TopicProducer::start(client, options);
        let mut wakes = WakeList::default();
        for record in records {
            ensure!(matches!(producer.append(record, None, &mut wakes), Accepted::Taken), "not taken");
        }
        wakes.wake_all();
        let written = async {
            while producer.ledger().success < records.len() as u64 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(SOON, written).await.with_context(|| format!("{:?}", producer.ledger()))?;
        Ok(())
    })
}

/// Publishes with MQTT 5 and these user properties; false where there is no client that can.
fn publish(node: &Node, topic: &str, payload: &str, properties: &[(&str, &str)]) -> Result<bool> {
    let Some(mut client) = Client::MosquittoPub.command()? else { return Ok(false) };
    client.args([
        "-V",
        "5",
        "-q",
        "1",
        "-i",
        "device",
        "-t",
        topic,
        "-h",
        "127.0.0.1",
        "-p",
        node.mqtt_port(),
    ]);
    if payload.is_empty() {
        client.arg("-n")
    } else {
        client.args(["-m", payload])
    };
    for (name, value) in properties {
        client.args(["-D", "publish", "user-property", name, value]);
    }
    process::run(&mut client, b"", SOON)?;
    Ok(true)
}

/// All records of a topic by kcat, in a format of its own; `None` where there is no kcat.
fn kcat(bootstrap: &str, topic: &str, format: &str) -> Result<Option<Vec<String>>> {
    let Some(mut kcat) = Client::Kcat.command()? else { return Ok(None) };
    kcat.args(["-C", "-b", bootstrap, "-t", topic, "-e", "-q", "-f", format]);
    let read = process::run(&mut kcat, b"", SOON)?.successful()?;
    Ok(Some(read.stdout.lines().map(str::to_owned).collect()))
}

/// Creates a topic that takes timestamps which are at most so many milliseconds before and after the broker's
/// time.
fn create_within(kafka: &Broker, topic: &str, before: i64, after: i64) -> Result<()> {
    let (before, after) = (before.to_string(), after.to_string());
    let settings = [
        ("message.timestamp.before.max.ms", before.as_str()),
        ("message.timestamp.after.max.ms", after.as_str()),
    ];
    match kafka {
        Broker::Development(kafka) => {
            let spec = TopicSpec::new(topic, 1);
            let spec = settings.iter().fold(spec, |spec, (name, value)| spec.config(*name, *value));
            kafka.create_topic(&spec)?;
            Ok(())
        }
        // One setting for both sides.
        Broker::Apache(kafka) if kafka.version().is_older_than(3, 6) => {
            kafka.create_topic_with(topic, 1, &[("message.timestamp.difference.max.ms", &after)])
        }
        Broker::Apache(kafka) => kafka.create_topic_with(topic, 1, &settings),
    }
}

fn header<'a>(key: &'a str, value: Option<&'a [u8]>) -> Header<'a> {
    Header { key, value }
}

on_every_kafka! {
    /// rskafka, whose headers are a map, sees each; kcat sees order, duplicates and nulls as well.
    fn headers_nulls_and_timestamps_are_read_as_they_were_written(target) {
        let kafka = target.shared()?;
        let bootstrap = kafka.bootstrap();
        for compression in [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
            let topic = unique("parts");
            kafka.create_topic(&topic, 1)?;
            let headers = [header("a", Some(b"1")), header("empty", Some(b"")), header("z", Some("grün".as_bytes()))];
            let records = [
                Record { timestamp: 1_700_000_000_123, key: None, value: Some(b"no key"), headers: &headers },
                Record { timestamp: 1_600_000_000_000, key: Some(b"k"), value: None, headers: &[] },
                Record { timestamp: 1_700_000_000_124, key: Some(b""), value: Some(b""), headers: &headers[..1] },
            ];
            write(&bootstrap, &topic, compression, &records)?;
            let read = block_on(async {
                let client = topic::client(&bootstrap, SOON).await?;
                let partition = client.partition_client(&topic, 0, UnknownTopicHandling::Retry).await?;
                anyhow::Ok(partition.fetch_records(0, 1..1_000_000, 5_000).await?.0)
            })?;
            assert_eq!(read.len(), records.len(), "{compression:?}");
            for (read, written) in read.iter().zip(&records) {
                assert_eq!(read.record.timestamp.timestamp_millis(), written.timestamp, "{compression:?}");
                assert_eq!(read.record.key.as_deref(), written.key, "{compression:?}");
                assert_eq!(read.record.value.as_deref(), written.value, "{compression:?}");
                let wanted = written.headers.iter().map(|h| (h.key.to_owned(), h.value.unwrap_or_default().to_vec()));
                assert!(read.record.headers.clone().into_iter().eq(wanted), "{compression:?}: {:?}", read.record.headers);
            }

            let Some(mut kcat) = Client::Kcat.command()? else { continue };
            let topic = unique("parts");
            kafka.create_topic(&topic, 1)?;
            let headers = [header("x", Some(b"1")), header("n", None), header("x", Some(b"2"))];
            let record = Record { headers: &headers, ..records[0] };
            write(&bootstrap, &topic, compression, &[record, records[1]])?;
            // Lengths of key and value are -1 where they are null.
            kcat.args(["-C", "-b", &bootstrap, "-t", &topic, "-e", "-q", "-f", "%o|%K|%k|%S|%s|%T|%h\n"]);
            let read = process::run(&mut kcat, b"", SOON)?.successful()?;
            let lines: Vec<&str> = read.stdout.lines().collect();
            assert_eq!(
                lines,
                ["0|-1||6|no key|1700000000123|x=1,n=NULL,x=2", "1|1|k|-1||1600000000000|"],
                "{compression:?}"
            );
        }
        Ok(())
    }

    /// P8. A device's user properties, a tombstone and a timestamp from the payload, as kcat sees them.
    fn headers_of_a_device_arrive_in_order_and_an_empty_payload_is_a_tombstone(target) {
        let kafka = target.shared()?;
        let topic = unique("records");
        kafka.create_topic(&topic, 1)?;
        let more = r#"
            message { timestamp = "${payload.at}", empty_value_is_null = true }
            kafka_headers = "${pub_props.User-Property-Pairs}"
            kafka_ext_headers = [{ kafka_ext_header_key = "from ${clientid}", kafka_ext_header_value = "${topic}" }]
        "#;
        let node = Node::start(&producer("records", &kafka.bootstrap(), "r/#", &topic, more))?;
        let properties = [("b", "1"), ("a", "2"), ("b", "3")];
        if !publish(&node, "r/1", r#"{"at": 1600000000123}"#, &properties)? || !publish(&node, "r/2", "", &[])? {
            return Ok(());
        }
        assert_eq!(node.settled("kafka:records", SOON)?.success, 2);
        let Some(lines) = kcat(&kafka.bootstrap(), &topic, "%S|%s|%h\n")? else { return Ok(()) };
        assert_eq!(
            lines,
            [r#"21|{"at": 1600000000123}|b=1,a=2,b=3,from device=r/1"#, "-1||from device=r/2"]
        );
        let Some(times) = kcat(&kafka.bootstrap(), &topic, "%T\n")? else { return Ok(()) };
        assert_eq!(times[0], "1600000000123");
        Ok(())
    }

    /// P11. What cannot become the record that is wanted is in the dead-letter topic, with the reason.
    fn a_message_that_cannot_become_a_record_is_in_the_dead_letter_topic(target) {
        let kafka = target.shared()?;
        let (topic, dead) = (unique("records"), unique("dead"));
        kafka.create_topic(&topic, 1)?;
        kafka.create_topic(&dead, 1)?;
        let more = format!(r#"dead_letter_topic = "{dead}", kafka_headers = "${{payload}}""#);
        let node = Node::start(&producer("records", &kafka.bootstrap(), "r/#", &topic, &more))?;
        if !publish(&node, "r/1", "no headers in here", &[])? || !publish(&node, "r/1", "{}", &[])? {
            return Ok(());
        }
        let books = node.settled("kafka:records", SOON)?;
        assert_eq!((books.success, books.failed, books.dead_lettered), (1, 1, 1));
        let Some(lines) = kcat(&kafka.bootstrap(), &dead, "%k|%s|%h\n")? else { return Ok(()) };
        let [line] = lines.as_slice() else { anyhow::bail!("{lines:?}") };
        let wanted = format!("device|no headers in here|dead_letter.bridge=records,dead_letter.topic={topic},dead_letter.reason=");
        ensure!(line.starts_with(&wanted), "{line}");
        Ok(())
    }

    /// P13. What real brokers do with timestamps that are out of a topic's range, and with none: a dead
    /// letter is written in any case.
    fn a_record_with_a_timestamp_that_kafka_refuses_is_in_the_dead_letter_topic(target) {
        let kafka = target.shared()?;
        let (topic, dead) = (unique("records"), unique("dead"));
        create_within(&kafka, &topic, i64::MAX, 3_600_000)?;
        // No time but that of its broker, to the millisecond.
        create_within(&kafka, &dead, 0, 0)?;
        let (records, letters) = (Oracle::watch(&kafka.bootstrap(), &topic)?, Oracle::watch(&kafka.bootstrap(), &dead)?);
        let bootstrap = kafka.bootstrap();
        let config = format!(
            r#"bridges.kafka.records {{
                 bootstrap_hosts = "{bootstrap}", local_topic = "r/#"
                 kafka {{ topic = "{topic}", dead_letter_topic = "{dead}", message {{ value = "${{payload}}", timestamp = "${{payload.at}}" }} }}
               }}"#
        );
        let node = Node::start(&config)?;
        let mut client = Mqtt::open(node.mqtt(), "device", Version::V311, &Trace::default())?;
        client.connect(&Connect::new(Version::V311, "device"))?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis() as i64;
        // By a clock that is right; in microseconds; by one that is two hours ahead.
        let times = [now, now * 1000, now + 2 * 3_600_000];
        for (identifier, at) in (1..).zip(times) {
            let publish = Publish::new(Version::V311, "r/1", format!(r#"{{"at": {at}}}"#)).qos(1, identifier);
            client.send(&publish.bytes())?;
            client.acked(first::PUBACK, identifier)?;
        }
        let books = node.settled("kafka:records", SOON)?;
        assert_eq!((books.success, books.failed, books.dead_lettered, books.dead_letters_lost), (1, 2, 2, 0));
        assert_eq!(records.wait_for(1, SOON)?.len(), 1);
        for ((_, letter), at) in letters.wait_for(2, SOON)?.into_iter().zip(&times[1..]) {
            let record = letter.record;
            let header = |name: &str| record.headers.get(name).map(|value| String::from_utf8_lossy(value).into_owned());
            assert_eq!(header("dead_letter.timestamp"), Some(at.to_string()));
            assert_eq!(header("dead_letter.error_code"), Some("32".to_owned()));
            // None, unless it came within the millisecond.
            let time = record.timestamp.timestamp_millis();
            ensure!(time == -1 || (now..now + 600_000).contains(&time), "{time}");
        }
        Ok(())
    }
}
