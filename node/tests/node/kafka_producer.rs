//! The producer against the development Kafka: throughput, partitions, limits, start and stop.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use crate::producer_support::*;
use causeway::dev_kafka::{DevKafka, Options, TopicSpec};
use causeway::flow::{Accepted, Outcome, WakeList};
use causeway::kafka::producer::{
    Partitioner, RequiredAcks, Status, TopicProducer, TopicProducerHandle, TopicProducerOptions,
};
use causeway_protocol::kafka::batch::Compression;
use causeway_protocol::kafka::partitioner::KeyHash;
use causeway_protocol::mqtt::ReasonCode;

/// Several tasks, each with keys of its own, publish numbers that rise per key.
async fn publish_keys(
    producer: &Arc<TopicProducerHandle>,
    publisher: &Arc<Publisher>,
    tasks: usize,
    keys: usize,
    each: usize,
) {
    let tasks = (0..tasks).map(|task| {
        let (producer, publisher) = (producer.clone(), publisher.clone());
        tokio::spawn(async move {
            for number in 0..each {
                for key in 0..keys {
                    publisher.publish(&producer, &format!("{task}/{key}"), &number.to_string()).await;
                }
                if number % 20 == 0 {
                    tokio::task::yield_now().await;
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
}

/// W1
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_thousand_records_arrive_once_and_in_order_per_key() {
    let kafka = kafka(2, 5).await;
    let producer = Arc::new(start(&kafka, options()));
    let publisher = Arc::new(Publisher::default());
    publish_keys(&producer, &publisher, 4, 25, 1000).await;
    publisher.all_succeed().await;
    judge(&kafka, 5, 100, 1000);
    assert_books(&producer, 100_000, 100_000);
    let rows = producer.partitions();
    assert_eq!(rows.len(), 5);
    assert!(rows.iter().all(|row| row.ledger.success > 0 && row.trouble.is_none()), "{rows:?}");
}

/// P25
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_codec_and_every_kind_of_acks_carries_records() {
    let kafka = kafka(1, 2).await;
    for compression in Compression::ALL {
        for required_acks in [RequiredAcks::AllIsr, RequiredAcks::LeaderOnly, RequiredAcks::None] {
            let topic = format!("{compression:?}-{required_acks:?}");
            kafka.create_topic(&TopicSpec::new(&topic, 2)).unwrap();
            let options = TopicProducerOptions {
                compression,
                required_acks,
                topic: topic.as_str().into(),
                ..options()
            };
            let producer = Arc::new(start(&kafka, options));
            let publisher = Arc::new(Publisher::default());
            publish_keys(&producer, &publisher, 2, 3, 100).await;
            publisher.all_succeed().await;
            assert_books(&producer, 600, 600);
            // Without acks the write is success; what was written arrives a little later.
            let stored =
                || (0..2).map(|partition| read_topic(&kafka, &topic, partition).len()).sum::<usize>();
            tokio::time::timeout(LONG, async {
                while stored() < 600 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await
            .unwrap();
            assert_eq!(stored(), 600, "{topic}");
        }
    }
}

/// P20
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn keys_go_where_java_and_erlang_would_send_them() {
    for (partitioner, hash) in
        [(Partitioner::Murmur2, KeyHash::Murmur2), (Partitioner::Phash2, KeyHash::Phash2)]
    {
        let kafka = kafka(1, 7).await;
        let producer = Arc::new(start(&kafka, TopicProducerOptions { partitioner, ..options() }));
        let publisher = Arc::new(Publisher::default());
        publish_keys(&producer, &publisher, 1, 50, 2).await;
        publisher.all_succeed().await;
        for partition in 0..7 {
            for (key, _) in read(&kafka, partition) {
                assert_eq!(hash.partition(key.as_bytes(), 7), Some(partition as u32));
            }
        }
    }
}

/// P21
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn random_spreads_over_all_partitions_even_when_little_is_published() {
    let kafka = kafka(1, 3).await;
    let options = TopicProducerOptions { partitioner: Partitioner::Random, ..options() };
    let producer = start(&kafka, options);
    let publisher = Arc::new(Publisher::default());
    for number in 0..60 {
        publisher.publish(&producer, "key", &number.to_string()).await;
        publisher.all_succeed().await;
    }
    for partition in 0..3 {
        assert!(!read(&kafka, partition).is_empty(), "partition {partition} got nothing");
    }
}

/// L5, W13
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn records_wait_for_a_kafka_that_is_not_there_yet() {
    // A port that nobody listens on until Kafka comes.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let producer = Arc::new(TopicProducer::start(client_to(&address.to_string()), options()));
    let publisher = Arc::new(Publisher::default());
    let disconnected = wait_for(&producer, |status| matches!(status, Status::Disconnected { .. })).await;
    let Status::Disconnected { reason } = disconnected else { unreachable!() };
    assert!(reason.contains("refused"), "{reason}");
    publish_keys(&producer, &publisher, 2, 10, 100).await;
    assert_eq!(publisher.told(), 0);
    assert_eq!(producer.ledger().queuing, 2000);
    assert_eq!(producer.ledger().imbalance(), 0);
    let options = Options { bind: vec![address], auto_create: false, ..Options::default() };
    let kafka = DevKafka::start(options.topic(TopicSpec::new(TOPIC, 4))).await.unwrap();
    publisher.all_succeed().await;
    judge(&kafka, 4, 20, 100);
    assert_books(&producer, 2000, 2000);
    wait_for(&producer, |status| *status == Status::Connected).await;
}

/// L3
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_unknown_topic_holds_its_records_and_says_why() {
    let kafka = kafka(1, 1).await;
    let producer = start(&kafka, TopicProducerOptions { topic: "later".into(), ..options() });
    let publisher = Arc::new(Publisher::default());
    publisher.publish(&producer, "k", "0").await;
    let status = wait_for(&producer, |status| matches!(status, Status::Disconnected { .. })).await;
    let Status::Disconnected { reason } = status else { unreachable!() };
    assert!(reason.contains("later") && reason.contains("does not know"), "{reason}");
    assert_eq!(publisher.told(), 0);
    kafka.create_topic(&TopicSpec::new("later", 1)).unwrap();
    publisher.all_succeed().await;
    assert_eq!(read_topic(&kafka, "later", 0).len(), 1);
}

/// W6
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_full_inbox_refuses_tickets_and_drops_the_oldest_without() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let options = TopicProducerOptions { per_partition_limit: 10_000, ..options() };
    let producer = TopicProducer::start(client_to(&address.to_string()), options);
    let mut wakes = WakeList::default();
    for number in 0..500 {
        let value = number.to_string();
        let accepted = producer.append(&record("key", &format!("{value:0>100}")), None, &mut wakes);
        assert!(matches!(accepted, Accepted::Taken));
    }
    let ledger = producer.ledger();
    assert_eq!((ledger.matched, ledger.imbalance()), (500, 0));
    assert!(ledger.dropped_queue_full > 400 && ledger.queuing_bytes <= 10_000, "{ledger:?}");
    let kafka = DevKafka::start(
        Options { bind: vec![address], ..Options::default() }.topic(TopicSpec::new(TOPIC, 1)),
    );
    let kafka = kafka.await.unwrap();
    tokio::time::timeout(LONG, async {
        while producer.ledger().success < ledger.queuing {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    let left: Vec<usize> = read(&kafka, 0).iter().map(|(_, value)| value.parse().unwrap()).collect();
    assert_eq!(left, (500 - left.len()..500).collect::<Vec<_>>(), "the newest stay, in order");
}

/// W9
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stop_drains_first() {
    let kafka = kafka(1, 3).await;
    let producer = start(&kafka, options());
    let publisher = Arc::new(Publisher::default());
    for number in 0..5000 {
        publisher.publish(&producer, "k", &number.to_string()).await;
    }
    let report = producer.stop(LONG).await;
    assert_eq!(report.given_up, 0);
    publisher.all_succeed().await;
    judge(&kafka, 3, 1, 5000);
}

/// W9
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stop_without_kafka_gives_everything_up_and_forgets_nothing() {
    let kafka = kafka(1, 2).await;
    let producer = start(&kafka, options());
    wait_for(&producer, |status| *status == Status::Connected).await;
    kafka.faults().pause_broker(1).await.unwrap();
    let publisher = Arc::new(Publisher::default());
    for number in 0..100 {
        publisher.publish(&producer, &number.to_string(), "v").await;
    }
    let mut wakes = WakeList::default();
    for number in 0..10 {
        producer.append(&record(&number.to_string(), "plain"), None, &mut wakes);
    }
    drop(wakes);
    let report = producer.stop(Duration::from_millis(300)).await;
    assert_eq!(report.given_up, 110);
    let outcomes = publisher.outcomes().await;
    assert!(outcomes.values().all(|outcome| *outcome == Outcome::Failed(ReasonCode::UnspecifiedError)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_dropped_handle_ends_what_it_held() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let producer = TopicProducer::start(client_to(&address.to_string()), options());
    let publisher = Arc::new(Publisher::default());
    publisher.publish(&producer, "k", "v").await;
    drop(producer);
    let outcomes = publisher.outcomes().await;
    assert_eq!(outcomes.len(), 1);
}
