//! The development Kafka seen by rskafka, which shares no code with it.

#![allow(clippy::unwrap_used, reason = "a test")]
use std::sync::Arc;
use std::time::{Duration, Instant};

use causeway::dev_kafka::{DevKafka, Options, TopicSpec};
use rskafka::chrono::{DateTime, Utc};
use rskafka::client::partition::{Compression, OffsetAt, PartitionClient, UnknownTopicHandling};
use rskafka::client::{Client, ClientBuilder};
use rskafka::record::Record;

async fn client(kafka: &DevKafka) -> Client {
    ClientBuilder::new(vec![kafka.bootstrap()]).build().await.unwrap()
}

async fn partition(kafka: &DevKafka, topic: &str) -> PartitionClient {
    client(kafka).await.partition_client(topic, 0, UnknownTopicHandling::Error).await.unwrap()
}

fn record(value: String, millis: i64) -> Record {
    Record {
        key: None,
        value: Some(value.into_bytes()),
        headers: std::collections::BTreeMap::default(),
        timestamp: DateTime::<Utc>::from_timestamp_millis(millis).unwrap(),
    }
}

fn text(record: &Record) -> String {
    String::from_utf8(record.value.clone().unwrap()).unwrap()
}

#[tokio::test]
async fn records_come_back_from_the_middle_of_a_batch_in_every_codec() {
    let kafka = DevKafka::start(Options::default().topic(TopicSpec::new("t", 1))).await.unwrap();
    let partition = partition(&kafka, "t").await;
    let codecs = [
        Compression::NoCompression,
        Compression::Gzip,
        Compression::Lz4,
        Compression::Snappy,
        Compression::Zstd,
    ];
    for (round, codec) in codecs.into_iter().enumerate() {
        let records = (0..10).map(|i| record(format!("{round}-{i}"), 1_000 + i)).collect();
        let offsets = partition.produce(records, codec).await.unwrap();
        assert_eq!(offsets, (0..10).map(|i| (round * 10 + i) as i64).collect::<Vec<_>>());
    }
    for from in [0, 5, 13, 49] {
        let (records, high_watermark) = partition.fetch_records(from, 1..1_000_000, 1_000).await.unwrap();
        assert_eq!(high_watermark, 50);
        assert_eq!(records[0].offset, from);
        assert_eq!(text(&records[0].record), format!("{}-{}", from / 10, from % 10));
    }
    assert_eq!(kafka.high_watermark("t", 0), Some(50));
    kafka.stop().await;
}

#[tokio::test]
async fn a_long_poll_is_woken_at_once_by_a_produce() {
    let kafka = DevKafka::start(Options::default().topic(TopicSpec::new("t", 1))).await.unwrap();
    let reader = Arc::new(partition(&kafka, "t").await);
    let writer = partition(&kafka, "t").await;
    let waiting = tokio::spawn({
        let reader = reader.clone();
        async move { reader.fetch_records(0, 1..1_000_000, 20_000).await.unwrap() }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    let began = Instant::now();
    writer.produce(vec![record("x".into(), 1)], Compression::NoCompression).await.unwrap();
    let (records, _) = waiting.await.unwrap();
    assert_eq!(records.len(), 1);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn offsets_are_found_by_position_and_topics_are_created() {
    let kafka = DevKafka::start(Options::default()).await.unwrap();
    let client = client(&kafka).await;
    client.controller_client().unwrap().create_topic("made", 3, 1, 1_000).await.unwrap();
    let topics = client.list_topics().await.unwrap();
    assert_eq!(topics.len(), 1);
    assert_eq!((topics[0].name.as_str(), topics[0].partitions.len()), ("made", 3));
    let partition = client.partition_client("made", 2, UnknownTopicHandling::Error).await.unwrap();
    assert_eq!(partition.get_offset(OffsetAt::Latest).await.unwrap(), 0);
    let records = (0..7).map(|i| record(i.to_string(), i)).collect();
    partition.produce(records, Compression::NoCompression).await.unwrap();
    assert_eq!(partition.get_offset(OffsetAt::Earliest).await.unwrap(), 0);
    assert_eq!(partition.get_offset(OffsetAt::Latest).await.unwrap(), 7);
    partition.delete_records(3, 1_000).await.unwrap();
    assert_eq!(partition.get_offset(OffsetAt::Earliest).await.unwrap(), 3);
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let kafka = DevKafka::start(Options::default()).await.unwrap();
    let address = kafka.addresses()[0];
    let second = DevKafka::start(Options { bind: vec![address], ..Options::default() }).await;
    assert!(
        matches!(second, Err(causeway::dev_kafka::Error::PortInUse { address: taken }) if taken == address)
    );
}
