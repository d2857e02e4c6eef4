//! The producer while things go wrong: lost requests and answers, errors by code, moving leaders, brokers
//! that vanish, partitions that come.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use crate::producer_support::*;
use causeway::dev_kafka::{ApiKey, DevKafka, Match, Options, TopicSpec};
use causeway::flow::Outcome;
use causeway::kafka::producer::{Partitioner, Status, TopicProducerHandle, TopicProducerOptions};
use causeway_protocol::mqtt::ReasonCode;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// One task publishes `each` numbers for every key, a little at a time.
fn publish_slowly(
    producer: &Arc<TopicProducerHandle>,
    publisher: &Arc<Publisher>,
    keys: usize,
    each: usize,
) -> tokio::task::JoinHandle<()> {
    let (producer, publisher) = (producer.clone(), publisher.clone());
    tokio::spawn(async move {
        for number in 0..each {
            for key in 0..keys {
                publisher.publish(&producer, &key.to_string(), &number.to_string()).await;
            }
            if number % 10 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    })
}

/// L12, W4
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn lost_requests_and_lost_answers_are_resent_once_and_in_order() {
    let kafka = kafka(1, 3).await;
    let producer = Arc::new(start(&kafka, options()));
    let publisher = Arc::new(Publisher::default());
    let publishing = publish_slowly(&producer, &publisher, 10, 1000);
    for _ in 0..10 {
        kafka.faults().drop_before(Match::api(ApiKey::Produce), 1);
        kafka.faults().drop_after(Match::api(ApiKey::Produce), 1);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    publishing.await.unwrap();
    publisher.all_succeed().await;
    judge(&kafka, 3, 10, 1000);
    assert_books(&producer, 10_000, 10_000);
    assert!(producer.ledger().retried > 0);
    assert!(producer.partitions().iter().all(|row| row.ledger.possible_duplicates == 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn transient_errors_are_waited_out() {
    let kafka = kafka(1, 2).await;
    let producer = Arc::new(start(&kafka, options()));
    let publisher = Arc::new(Publisher::default());
    let mut number = 0;
    for code in [-1, 2, 3, 5, 6, 7, 9, 19, 20, 29, 45, 47, 56, 59, 72, 74, 100] {
        kafka.faults().error(Match::api(ApiKey::Produce), code, 2);
        for _ in 0..20 {
            publisher.publish(&producer, "key", &number.to_string()).await;
            number += 1;
        }
        publisher.all_succeed().await;
        assert_eq!(kafka.faults().pending(), 0, "code {code}");
    }
    judge(&kafka, 2, 1, number);
    assert_books(&producer, number as u64, number as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_missing_permission_holds_records_and_shows() {
    let kafka = kafka(1, 1).await;
    let producer = start(&kafka, options());
    let publisher = Arc::new(Publisher::default());
    kafka.faults().error(Match::api(ApiKey::Produce), 29, 1000);
    publisher.publish(&producer, "k", "0").await;
    let status = wait_for(&producer, |status| matches!(status, Status::Disconnected { .. })).await;
    let Status::Disconnected { reason } = status else { unreachable!() };
    assert!(reason.contains("not authorized"), "{reason}");
    assert_eq!(publisher.told(), 0);
    kafka.faults().clear();
    publisher.all_succeed().await;
    wait_for(&producer, |status| *status == Status::Connected).await;
}

/// A partition without records says nothing about Kafka.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn partitions_that_nobody_writes_to_do_not_hide_that_nothing_is_written() {
    let kafka = kafka(1, 3).await;
    let producer = start(&kafka, options());
    let publisher = Arc::new(Publisher::default());
    publisher.publish(&producer, "k", "0").await;
    publisher.all_succeed().await;
    wait_for(&producer, |status| *status == Status::Connected).await;
    kafka.faults().error(Match::api(ApiKey::Produce), 19, 1000);
    publisher.publish(&producer, "k", "1").await;
    let status = wait_for(&producer, |status| matches!(status, Status::Disconnected { .. })).await;
    let Status::Disconnected { reason } = status else { unreachable!() };
    assert!(reason.contains("min.insync.replicas"), "{reason}");
    kafka.faults().clear();
    publisher.all_succeed().await;
    wait_for(&producer, |status| *status == Status::Connected).await;
}

/// P14
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_batch_too_large_is_split_and_only_a_record_too_large_fails() {
    let options_kafka = Options { auto_create: false, ..Options::default() };
    let topic = TopicSpec::new(TOPIC, 1).config("max.message.bytes", "1000");
    let kafka = DevKafka::start(options_kafka.topic(topic)).await.unwrap();
    let producer = start(&kafka, options());
    let publisher = Arc::new(Publisher::default());
    let (large, small) = ("x".repeat(2000), "y".repeat(50));
    for number in 0..200 {
        let value = if number == 77 { &large } else { &small };
        publisher.publish(&producer, &number.to_string(), value).await;
    }
    let outcomes = publisher.outcomes().await;
    let failed: Vec<_> = outcomes.iter().filter(|(_, outcome)| **outcome != Outcome::Success).collect();
    assert_eq!(failed, [(&77, &Outcome::Failed(ReasonCode::QuotaExceeded))]);
    let keys: Vec<usize> = read(&kafka, 0).iter().map(|(key, _)| key.parse().unwrap()).collect();
    assert_eq!(keys, (0..200).filter(|key| *key != 77).collect::<Vec<_>>());
    let ledger = producer.ledger();
    assert_eq!((ledger.matched, ledger.success, ledger.failed, ledger.imbalance()), (200, 199, 1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_record_that_kafka_calls_invalid_fails_alone() {
    let kafka = kafka(1, 1).await;
    let producer = start(&kafka, options());
    let publisher = Arc::new(Publisher::default());
    kafka.faults().error(Match::api(ApiKey::Produce), 87, 1);
    publisher.publish(&producer, "k", "bad").await;
    let outcomes = publisher.outcomes().await;
    assert_eq!(outcomes[&0], Outcome::Failed(ReasonCode::PayloadFormatInvalid));
    publisher.publish(&producer, "k", "good").await;
    assert_eq!(publisher.outcomes().await[&1], Outcome::Success);
    assert_eq!(read(&kafka, 0), [("k".to_owned(), "good".to_owned())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn leaders_that_move_lose_nothing() {
    let kafka = kafka(3, 3).await;
    let producer = Arc::new(start(&kafka, options()));
    let publisher = Arc::new(Publisher::default());
    let publishing = publish_slowly(&producer, &publisher, 10, 1500);
    for turn in 0..12 {
        tokio::time::sleep(Duration::from_millis(30)).await;
        kafka.move_leader(TOPIC, turn % 3, 1 + (turn + turn / 3) % 3).unwrap();
    }
    publishing.await.unwrap();
    publisher.all_succeed().await;
    judge(&kafka, 3, 10, 1500);
    assert_books(&producer, 15_000, 15_000);
}

/// W12
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_broker_that_goes_and_comes_back_is_waited_for() {
    let kafka = kafka(2, 4).await;
    let producer = Arc::new(start(&kafka, options()));
    let publisher = Arc::new(Publisher::default());
    let publishing = publish_slowly(&producer, &publisher, 10, 1000);
    for broker in [1, 2] {
        tokio::time::sleep(Duration::from_millis(30)).await;
        kafka.faults().pause_broker(broker).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        kafka.faults().resume_broker(broker).await.unwrap();
    }
    publishing.await.unwrap();
    publisher.all_succeed().await;
    judge(&kafka, 4, 10, 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn random_goes_around_a_broker_that_is_away() {
    let kafka = kafka(2, 2).await;
    let away = kafka.leader(TOPIC, 1).unwrap().0;
    assert_ne!(away, kafka.leader(TOPIC, 0).unwrap().0);
    let producer = start(&kafka, TopicProducerOptions { partitioner: Partitioner::Random, ..options() });
    wait_for(&producer, |status| *status == Status::Connected).await;
    kafka.faults().pause_broker(away).await.unwrap();
    let publisher = Arc::new(Publisher::default());
    // At most what was sent before the outage was noticed waits for the broker.
    tokio::time::timeout(LONG, async {
        while publisher.told() < 200 {
            publisher.publish(&producer, "k", "v").await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap();
    assert!(read(&kafka, 0).len() >= 200);
    assert_eq!(*producer.status().borrow(), Status::Connected, "one partition is enough");
    kafka.faults().resume_broker(away).await.unwrap();
    publisher.all_succeed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_forgotten_producer_id_is_no_obstacle() {
    let kafka = kafka(1, 1).await;
    let producer = start(&kafka, options());
    let publisher = Arc::new(Publisher::default());
    for number in 0..50 {
        publisher.publish(&producer, "k", &number.to_string()).await;
        publisher.all_succeed().await;
        if number % 10 == 9 {
            for (id, _) in kafka.producers(TOPIC, 0).unwrap() {
                assert!(kafka.forget_producer(TOPIC, 0, id));
            }
        }
    }
    judge(&kafka, 1, 1, 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn records_that_may_be_there_twice_are_counted() {
    let kafka = kafka(1, 1).await;
    let producer = start(&kafka, options());
    let publisher = Arc::new(Publisher::default());
    publisher.publish(&producer, "k", "0").await;
    publisher.all_succeed().await;
    assert_eq!(producer.ledger().possible_duplicates, 0);
    // The first answer is lost, so that nobody knows; then the broker says that it expected us elsewhere.
    kafka.faults().drop_after(Match::api(ApiKey::Produce), 1);
    kafka.faults().error(Match::api(ApiKey::Produce), 45, 2);
    publisher.publish(&producer, "k", "1").await;
    publisher.all_succeed().await;
    assert_eq!(producer.ledger().possible_duplicates, 1);
    assert_eq!(producer.partitions()[0].ledger.possible_duplicates, 1);
}

/// The whole storm, by seed.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_storm_of_faults_leaves_every_record_once_and_in_order() {
    let seed = rand::random::<u32>();
    eprintln!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed.into());
    let kafka = kafka(3, 4).await;
    let producer = Arc::new(start(&kafka, TopicProducerOptions { max_batch_bytes: 4096, ..options() }));
    let publisher = Arc::new(Publisher::default());
    let publishing = publish_slowly(&producer, &publisher, 12, 1500);
    for _ in 0..60 {
        let produce = Match::api(ApiKey::Produce);
        match rng.random_range(0..7) {
            0 => kafka.faults().drop_before(produce, 1),
            1 => kafka.faults().drop_after(produce, 1),
            2 => kafka.faults().delay(produce, Duration::from_millis(20), 2),
            3 => kafka.faults().error(produce, [6, 7, 19, 20, 3, 2][rng.random_range(0..6)], 1),
            4 => kafka.move_leader(TOPIC, rng.random_range(0..4), rng.random_range(1..4)).unwrap(),
            5 => kafka.faults().close_connections(),
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(1..25))).await;
    }
    kafka.faults().clear();
    publishing.await.unwrap();
    publisher.all_succeed().await;
    judge(&kafka, 4, 12, 1500);
    assert_books(&producer, 18_000, 18_000);
    assert!(producer.partitions().iter().all(|row| row.ledger.possible_duplicates == 0));
}
