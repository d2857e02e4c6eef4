//! The producer while the number of partitions changes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use crate::producer_support::*;
use bytes::BytesMut;
use causeway::dev_kafka::{ApiKey, Match, TopicSpec};
use causeway::flow::Outcome;
use causeway::kafka::client::RawRequest;
use causeway::kafka::producer::{
    DeadLetters, Dispatchers, Partitioner, TopicProducer, TopicProducerHandle, TopicProducerOptions,
};
use causeway_protocol::kafka::batch::Record;
use causeway_protocol::kafka::partitioner::KeyHash;
use causeway_protocol::mqtt::ReasonCode;
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::{CreatePartitionsRequest, TopicName};
use kafka_protocol::protocol::{Decodable, Request, StrBytes};

fn topic_name() -> TopicName {
    TopicName(StrBytes::from_static_str(TOPIC))
}

/// A request of an API that the client has no business with, decoded here.
async fn administer<R: Request>(bootstrap: &str, request: &R) -> R::Response {
    let connection = client_to(bootstrap).any_broker().await.unwrap();
    let version = connection.version::<R>().unwrap();
    let mut body = BytesMut::new();
    request.encode(&mut body, version).unwrap();
    let raw = RawRequest { api_key: R::KEY, version, body: vec![body.freeze()], timeout: None };
    let mut answer = connection.submit(raw).await.unwrap().await.unwrap();
    R::Response::decode(&mut answer, version).unwrap()
}

async fn add_partitions(bootstrap: &str, count: i32) {
    let topic =
        CreatePartitionsTopic::default().with_name(topic_name()).with_count(count).with_assignments(None);
    let request = CreatePartitionsRequest::default().with_timeout_ms(10_000).with_topics(vec![topic]);
    assert_eq!(administer(bootstrap, &request).await.results[0].error_code, 0);
}

fn quick_refresh(partitioner: Partitioner) -> TopicProducerOptions {
    TopicProducerOptions {
        partitioner,
        partition_count_refresh_interval: Some(Duration::from_millis(100)),
        ..options()
    }
}

async fn until_partitions(producer: &TopicProducerHandle, count: usize) {
    tokio::time::timeout(LONG, async {
        while producer.partitions().len() != count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{count} partitions never came: {:?}", producer.partitions()));
}

/// P20, P23
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn added_partitions_get_their_keys_once_the_old_ones_have_run_dry() {
    let kafka = Arc::new(kafka(1, 2).await);
    let producer = Arc::new(start(&kafka, quick_refresh(Partitioner::Murmur2)));
    let publisher = Arc::new(Publisher::default());
    let publishing = {
        let (producer, publisher) = (producer.clone(), publisher.clone());
        tokio::spawn(async move {
            let mut number = 0;
            // Until a while after the change.
            while producer.partitions().len() < 7 || number % 100 != 0 {
                for key in 0..20 {
                    publisher.publish(&producer, &key.to_string(), &number.to_string()).await;
                }
                number += 1;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            number
        })
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    // The old partitions take their time to run dry.
    kafka.faults().delay(Match::api(ApiKey::Produce), Duration::from_millis(200), 2);
    add_partitions(&kafka.bootstrap(), 7).await;
    // What the old partitions hold when the first record shows in a new one.
    let kafka_seen = kafka.clone();
    let old_at_first_new = tokio::spawn(async move {
        while (2..7).all(|partition| kafka_seen.high_watermark(TOPIC, partition) == Some(0)) {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        [read(&kafka_seen, 0), read(&kafka_seen, 1)]
    });
    let each = tokio::time::timeout(LONG, publishing).await.unwrap().unwrap();
    publisher.all_succeed().await;
    assert_books(&producer, 20 * each as u64, 20 * each as u64);
    let old_at_first_new = old_at_first_new.await.unwrap();
    // Per key: a first part in its old partition, the rest in its new one, all in order.
    for key in 0..20 {
        let key = key.to_string();
        let partition_among = |count| KeyHash::Murmur2.partition(key.as_bytes(), count).unwrap() as i32;
        let (old, new) = (partition_among(2), partition_among(7));
        let of_key = |partition| -> Vec<usize> {
            let all = read(&kafka, partition);
            all.iter().filter(|(of, _)| *of == key).map(|(_, value)| value.parse().unwrap()).collect()
        };
        let mut values = of_key(old);
        if new != old {
            let then = old_at_first_new[old as usize].iter().filter(|(of, _)| *of == key).count();
            assert_eq!(then, values.len(), "key {key} was not finished in its old partition");
            values.extend(of_key(new));
        }
        assert_eq!(values, (0..each).collect::<Vec<_>>(), "key {key}");
    }
}

/// P21, P23
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn random_uses_added_partitions() {
    let kafka = kafka(1, 1).await;
    let producer = start(&kafka, quick_refresh(Partitioner::Random));
    let publisher = Arc::new(Publisher::default());
    until_partitions(&producer, 1).await;
    add_partitions(&kafka.bootstrap(), 3).await;
    until_partitions(&producer, 3).await;
    for number in 0..100 {
        publisher.publish(&producer, "k", &number.to_string()).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    publisher.all_succeed().await;
    assert!((0..3).all(|partition| !read(&kafka, partition).is_empty()));
}

/// P24
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn records_for_a_partition_that_is_gone_fail_where_their_key_binds_them_and_move_where_not() {
    for partitioner in [Partitioner::Murmur2, Partitioner::Random] {
        let kafka = kafka(1, 3).await;
        kafka.create_topic(&TopicSpec::new("dead", 1)).unwrap();
        let dispatchers = Dispatchers::new(client_to(&kafka.bootstrap()));
        let letters = DeadLetters::start("b", dispatchers.clone(), TopicProducerOptions::new("dead"));
        let options =
            TopicProducerOptions { dead_letters: Some(letters.clone()), ..quick_refresh(partitioner) };
        let producer = TopicProducer::start_shared(dispatchers, options);
        let publisher = Arc::new(Publisher::default());
        publisher.publish(&producer, "k", "first").await;
        publisher.all_succeed().await;
        kafka.delete_topic(TOPIC).unwrap();
        for key in 0..30 {
            publisher.publish(&producer, &key.to_string(), "v").await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        kafka.create_topic(&TopicSpec::new(TOPIC, 1)).unwrap();
        until_partitions(&producer, 1).await;
        let outcomes = publisher.outcomes().await;
        let failed = outcomes.values().filter(|outcome| **outcome != Outcome::Success).count();
        if partitioner.is_keyed() {
            let lost = (0..30)
                .filter(|key: &i32| KeyHash::Murmur2.partition(key.to_string().as_bytes(), 3) != Some(0));
            assert_eq!(failed, lost.count());
            let reason = Outcome::Failed(ReasonCode::ImplementationSpecificError);
            assert!(outcomes.values().all(|outcome| *outcome == Outcome::Success || *outcome == reason));
        } else {
            assert_eq!(failed, 0);
        }
        assert_eq!(read(&kafka, 0).len(), 30 - failed);
        assert_eq!((letters.written(), letters.lost()), (failed as u64, 0));
        assert_eq!(read_topic(&kafka, "dead", 0).len(), failed);
        let ledger = producer.ledger();
        assert_eq!((ledger.matched, ledger.failed, ledger.imbalance()), (31, failed as u64, 0));
        publisher.publish(&producer, "again", "v").await;
        assert_eq!(publisher.outcomes().await[&31], Outcome::Success);
    }
}

/// P24. A broker whose own metadata is not complete is no reason to give anything up.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn partitions_that_metadata_lacks_for_a_while_keep_what_they_hold() {
    for partitioner in [Partitioner::Murmur2, Partitioner::Random] {
        let kafka = kafka(1, 3).await;
        let producer = start(&kafka, quick_refresh(partitioner));
        let publisher = Arc::new(Publisher::default());
        until_partitions(&producer, 3).await;
        // What waits meanwhile: the leaders are said to be others.
        kafka.faults().error(Match::api(ApiKey::Produce), 6, 3);
        kafka.faults().hide(Match::api(ApiKey::Metadata).partition(2), 5);
        for key in 0..30 {
            publisher.publish(&producer, &key.to_string(), "0").await;
        }
        publisher.all_succeed().await;
        tokio::time::timeout(LONG, async {
            while kafka.faults().pending() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .expect("all answers that lack a partition");
        assert_eq!(producer.partitions().len(), 3);
        for key in 0..30 {
            publisher.publish(&producer, &key.to_string(), "1").await;
        }
        publisher.all_succeed().await;
        if partitioner.is_keyed() {
            judge(&kafka, 3, 30, 2);
        }
        assert_eq!((0..3).map(|partition| read(&kafka, partition).len()).sum::<usize>(), 60);
        assert_books(&producer, 60, 60);
    }
}

/// P24
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn records_without_a_key_outlast_their_partition() {
    let kafka = kafka(1, 3).await;
    let producer = start(&kafka, quick_refresh(Partitioner::Murmur2));
    let publisher = Arc::new(Publisher::default());
    until_partitions(&producer, 3).await;
    kafka.delete_topic(TOPIC).unwrap();
    // Some are under way, the others wait; without a key they go to one partition after another.
    for number in 0..60 {
        let keyed = number % 2 == 0;
        let (key, value) = (number.to_string(), number.to_string());
        let record = Record { key: keyed.then_some(key.as_bytes()), ..record("", &value) };
        publisher.publish_record(&producer, &record).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    kafka.create_topic(&TopicSpec::new(TOPIC, 1)).unwrap();
    let outcomes = publisher.outcomes().await;
    let binds = |number: u64| {
        number.is_multiple_of(2) && KeyHash::Murmur2.partition(number.to_string().as_bytes(), 3) != Some(0)
    };
    for (number, outcome) in &outcomes {
        assert_eq!(*outcome == Outcome::Success, !binds(*number), "{number}");
    }
    let failed = (0..60).filter(|number| binds(*number)).count();
    assert_eq!(read(&kafka, 0).len(), 60 - failed);
    let ledger = producer.ledger();
    assert_eq!((ledger.matched, ledger.failed, ledger.imbalance()), (60, failed as u64, 0));
}
