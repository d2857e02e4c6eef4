//! What the development Kafka keeps: its data directory over restarts, and its memory limit.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::path::Path;

use causeway::dev_kafka::{DevKafka, Options, TopicSpec};
use rskafka::chrono::{DateTime, Utc};
use rskafka::client::ClientBuilder;
use rskafka::client::partition::{Compression, PartitionClient, UnknownTopicHandling};
use rskafka::record::Record;

fn options(data_dir: &Path) -> Options {
    Options { data_dir: Some(data_dir.to_owned()), ..Options::default() }.topic(TopicSpec::new("t", 1))
}

async fn partition(kafka: &DevKafka) -> PartitionClient {
    let client = ClientBuilder::new(vec![kafka.bootstrap()]).build().await.unwrap();
    client.partition_client("t", 0, UnknownTopicHandling::Error).await.unwrap()
}

/// Appends `count` batches of one record; the value is the record's offset.
async fn append(kafka: &DevKafka, count: usize, size: usize) {
    let partition = partition(kafka).await;
    for _ in 0..count {
        let next = kafka.high_watermark("t", 0).unwrap();
        let record = Record {
            key: None,
            value: Some(format!("{next:0size$}").into_bytes()),
            headers: std::collections::BTreeMap::default(),
            timestamp: DateTime::<Utc>::from_timestamp_millis(next).unwrap(),
        };
        partition.produce(vec![record], Compression::NoCompression).await.unwrap();
    }
}

async fn offsets_and_values(kafka: &DevKafka, from: i64) -> Vec<(i64, i64)> {
    let (records, _) = partition(kafka).await.fetch_records(from, 1..10_000_000, 1_000).await.unwrap();
    let number = |value: &[u8]| std::str::from_utf8(value).unwrap().parse().unwrap();
    records.iter().map(|r| (r.offset, number(r.record.value.as_deref().unwrap()))).collect()
}

#[tokio::test]
async fn records_come_back_after_a_restart_and_a_torn_tail_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let kafka = DevKafka::start(options(dir.path())).await.unwrap();
    append(&kafka, 10, 5).await;
    kafka.stop().await;

    let kafka = DevKafka::start(options(dir.path())).await.unwrap();
    assert_eq!(offsets_and_values(&kafka, 0).await, (0..10).map(|n| (n, n)).collect::<Vec<_>>());
    append(&kafka, 2, 5).await;
    kafka.stop().await;

    let log = dir.path().join("t-0");
    let file = fs::read_dir(log).unwrap().next().unwrap().unwrap().path();
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 3]).unwrap();
    let kafka = DevKafka::start(options(dir.path())).await.unwrap();
    assert_eq!(kafka.high_watermark("t", 0), Some(11), "the torn batch is gone, the others are not");
    append(&kafka, 1, 5).await;
    assert_eq!(offsets_and_values(&kafka, 9).await, [(9, 9), (10, 10), (11, 11)]);
    kafka.stop().await;
}

#[tokio::test]
async fn a_second_process_is_kept_out_of_the_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    let kafka = DevKafka::start(options(dir.path())).await.unwrap();
    let error = DevKafka::start(options(dir.path())).await.err().map(|error| error.to_string());
    assert!(error.is_some_and(|text| text.contains(&dir.path().display().to_string())));
    kafka.stop().await;
}

#[tokio::test]
async fn the_oldest_records_go_when_the_memory_limit_is_reached() {
    let kafka = DevKafka::start(
        Options { retention_bytes: 100_000, ..Options::default() }.topic(TopicSpec::new("t", 1)),
    )
    .await
    .unwrap();
    append(&kafka, 40, 10_000).await;
    let start = kafka.log_start_offset("t", 0).unwrap();
    assert!((20..40).contains(&start), "log start offset {start}");
    let left = offsets_and_values(&kafka, start).await;
    assert_eq!(left, (start..40).map(|n| (n, n)).collect::<Vec<_>>());
    kafka.stop().await;
}
