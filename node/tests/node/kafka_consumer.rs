//! Group consumers against the development Kafka, or against the Kafka named by `KAFKA_BOOTSTRAP`
//! (HOST:PORT) where that is set.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod beginnings;
mod harness;
mod membership;

use std::sync::Arc;
use std::time::Duration;

use causeway::dev_kafka::{ApiKey, Match};
use causeway::kafka::client::{Client, ClientOptions};
use causeway::kafka::consumer::{ConsumerStatus, GroupConsumer, Leave, OffsetReset};
use causeway_protocol::kafka::batch::Compression;
use harness::{Kafka, Sink, at_last, eventually, options, values};

#[tokio::test(flavor = "multi_thread")]
async fn everything_comes_once_and_in_order_with_every_codec() {
    let kafka = Kafka::start(1).await;
    let topic = kafka.topic("codecs", 3).await;
    let mut expected: Vec<Vec<String>> = vec![Vec::new(); 3];
    for (round, codec) in Compression::ALL.into_iter().enumerate() {
        for partition in 0..3 {
            let texts = values(&format!("{codec:?}-{partition}-"), 200 + round);
            kafka.produce(&topic, partition, &texts, codec).await;
            expected[partition as usize].extend(texts);
        }
    }
    let sink = Sink::finishing();
    let consumer = GroupConsumer::start(kafka.client(), options(&topic), sink.clone(), None).await.unwrap();
    let total: usize = expected.iter().map(Vec::len).sum();
    eventually(|| sink.count() == total, || format!("{} of {total} records", sink.count())).await;
    for (partition, texts) in expected.iter().enumerate() {
        assert_eq!(&sink.values(partition as i32), texts, "partition {partition}");
    }
    assert_eq!(consumer.status(), ConsumerStatus::Connected);
    at_last(|| consumer.partitions().iter().all(|partition| partition.lag == Some(0))).await;
    consumer.stop(Leave::Final).await;

    // What was committed is where the next member goes on.
    kafka.produce(&topic, 1, &values("later-", 3), Compression::None).await;
    let again = Sink::finishing();
    let consumer = GroupConsumer::start(kafka.client(), options(&topic), again.clone(), None).await.unwrap();
    eventually(|| again.count() >= 3, || format!("{:?}", again.values(1))).await;
    assert_eq!(again.values(1), values("later-", 3));
    assert_eq!(again.count(), 3);
    consumer.stop(Leave::Final).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_are_committed_only_up_to_the_lowest_unfinished_record() {
    let kafka = Kafka::start(1).await;
    let topic = kafka.topic("held", 1).await;
    kafka.produce(&topic, 0, &values("", 20), Compression::None).await;
    let sink = Sink::holding();
    let consumer = GroupConsumer::start(kafka.client(), options(&topic), sink.clone(), None).await.unwrap();
    eventually(|| sink.count() == 20, || format!("{}", sink.count())).await;
    sink.finish(|offset| offset != 7 && offset != 12);
    at_last(|| consumer.partitions().iter().any(|partition| partition.committed == Some(7))).await;
    sink.finish(|offset| offset == 7);
    at_last(|| consumer.partitions().iter().any(|partition| partition.committed == Some(12))).await;
    // Killed with record 12 unfinished: it and all behind it come again.
    drop(consumer);
    let again = Sink::finishing();
    let consumer = GroupConsumer::start(kafka.client(), options(&topic), again.clone(), None).await.unwrap();
    eventually(|| again.count() == 8, || format!("{:?}", again.values(0))).await;
    assert_eq!(again.values(0), values("", 20)[12..]);
    consumer.stop(Leave::Final).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_without_room_gets_the_same_record_again_and_holds_the_fetch() {
    let kafka = Kafka::start(1).await;
    let topic = kafka.topic("full", 1).await;
    let texts = values("a long enough text to count as bytes in a buffer ", 3000);
    for part in texts.chunks(100) {
        kafka.produce(&topic, 0, part, Compression::None).await;
    }
    let sink = Sink::with_room(10);
    let mut options = options(&topic);
    options.max_batch_bytes = 8 * 1024;
    options.max_outstanding_bytes = 16 * 1024;
    let consumer = GroupConsumer::start(kafka.client(), options, sink.clone(), None).await.unwrap();
    eventually(|| sink.count() == 10, || format!("{}", sink.count())).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(sink.count(), 10, "no room, no records");
    let held = consumer.partitions()[0].clone();
    assert!(held.lag.unwrap() >= 2900, "{held:?}");
    sink.make_room(usize::MAX / 2);
    eventually(|| sink.count() == 3000, || format!("{}", sink.count())).await;
    assert_eq!(sink.values(0), texts);
    consumer.stop(Leave::Final).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_members_share_the_partitions_and_nothing_is_missed_when_one_comes_goes_and_dies() {
    let kafka = Kafka::start(1).await;
    let topic = kafka.topic("shared", 6).await;
    let sink = Sink::finishing();
    let options = options(&topic);
    let start = |options| GroupConsumer::start(kafka.new_client(), options, sink.clone(), None);
    let first = start(options.clone()).await.unwrap();
    at_last(|| first.partitions().len() == 6).await;

    let mut expected = Vec::new();
    let mut round = 0;
    let mut produce_round = async || {
        round += 1;
        for partition in 0..6 {
            let texts = values(&format!("r{round}-p{partition}-"), 50);
            kafka.produce(&topic, partition, &texts, Compression::None).await;
            expected.extend(texts);
        }
    };
    produce_round().await;
    let second = start(options.clone()).await.unwrap();
    at_last(|| first.partitions().len() == 3 && second.partitions().len() == 3).await;
    produce_round().await;
    // A clean stop hands over at once and repeats nothing.
    first.stop(Leave::Final).await;
    at_last(|| second.partitions().len() == 6).await;
    produce_round().await;
    let third = start(options.clone()).await.unwrap();
    at_last(|| second.partitions().len() == 3 && third.partitions().len() == 3).await;
    produce_round().await;
    let total = expected.len();
    eventually(|| sink.count() >= total, || format!("{} of {total}", sink.count())).await;
    let mut seen = sink.all_values();
    seen.sort();
    expected.sort();
    assert_eq!(seen, expected, "a clean hand-over neither loses nor repeats");

    // Death without a word: the group goes on after the session timeout, with repeats allowed.
    drop(second);
    let after_death: Vec<String> =
        (0..6).flat_map(|partition| values(&format!("after-{partition}-"), 20)).collect();
    for partition in 0..6 {
        kafka
            .produce(&topic, partition, &values(&format!("after-{partition}-"), 20), Compression::None)
            .await;
    }
    eventually(
        || {
            let seen = sink.all_values();
            // The dead one may have handed on some of it while it died.
            third.partitions().len() == 6 && after_death.iter().all(|text| seen.contains(text))
        },
        || {
            let seen = sink.all_values();
            let missing: Vec<_> = after_death.iter().filter(|text| !seen.contains(text)).collect();
            format!("{missing:?} {:?}", third.partitions())
        },
    )
    .await;
    third.stop(Leave::Final).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_member_restarts_without_a_rebalance() {
    let kafka = Kafka::start(1).await;
    let topic = kafka.topic("static", 4).await;
    let named = |name: &str| {
        let mut options = options(&topic);
        options.group_instance_id = Some(Arc::from(name));
        options
    };
    let sink = Sink::finishing();
    let start = |options| GroupConsumer::start(kafka.new_client(), options, sink.clone(), None);
    let one = start(named("one")).await.unwrap();
    let two = start(named("two")).await.unwrap();
    at_last(|| one.partitions().len() == 2 && two.partitions().len() == 2).await;
    let names = |partitions: Vec<causeway::kafka::consumer::PartitionSnapshot>| {
        partitions.into_iter().map(|partition| partition.partition).collect::<Vec<_>>()
    };
    let (before_one, before_two) = (names(one.partitions()), names(two.partitions()));
    at_last(|| one.status() == ConsumerStatus::Connected && two.status() == ConsumerStatus::Connected).await;
    let mut statuses = one.watch_status();
    statuses.mark_unchanged();
    two.stop(Leave::Restart).await;
    let two = start(named("two")).await.unwrap();
    at_last(|| two.partitions().len() == 2).await;
    assert_eq!((names(one.partitions()), names(two.partitions())), (before_one, before_two));
    assert!(!statuses.has_changed().unwrap(), "the other member noticed: {:?}", one.status());

    for member in [one, two] {
        member.stop(Leave::Final).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_starts_before_kafka_does_and_before_its_topic_exists() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let client = Client::new(ClientOptions {
        min_metadata_refresh_interval: Duration::from_millis(100),
        ..ClientOptions::new(vec![causeway::kafka::client::Address::new("127.0.0.1", address.port())])
    });
    let sink = Sink::finishing();
    let mut options = options("late");
    options.offset_reset = OffsetReset::Earliest;
    let consumer = GroupConsumer::start(client, options, sink.clone(), None).await.unwrap();
    eventually(
        || matches!(consumer.status(), ConsumerStatus::Connecting { reason } if reason.contains("refused")),
        || format!("{:?}", consumer.status()),
    )
    .await;
    let kafka = Kafka::start_at(address).await;
    eventually(
        || matches!(consumer.status(), ConsumerStatus::Disconnected { reason } if reason.contains("late")),
        || format!("{:?}", consumer.status()),
    )
    .await;
    kafka.create("late", 2).await;
    kafka.produce("late", 1, &values("", 5), Compression::None).await;
    eventually(|| sink.count() == 5, || format!("{:?}", consumer.status())).await;
    assert_eq!(consumer.status(), ConsumerStatus::Connected);
    consumer.stop(Leave::Final).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn moved_leaders_lost_connections_and_errors_change_nothing_for_the_sink() {
    let kafka = Kafka::start(2).await;
    let Some(dev) = kafka.dev() else { return };
    let topic = kafka.topic("faults", 2).await;
    let sink = Sink::finishing();
    let consumer = GroupConsumer::start(kafka.client(), options(&topic), sink.clone(), None).await.unwrap();
    at_last(|| consumer.partitions().len() == 2).await;
    let faults = dev.faults();
    let mut expected: Vec<Vec<String>> = vec![Vec::new(); 2];
    for round in 0..6 {
        match round {
            1 => {
                let (leader, _) = dev.leader(&topic, 0).unwrap();
                let other = dev.leader(&topic, 1).map(|(leader, _)| leader).filter(|other| *other != leader);
                dev.move_leader(&topic, 0, other.unwrap_or(if leader == 1 { 2 } else { 1 })).unwrap();
            }
            2 => faults.close_connections(),
            3 => faults.error(Match::api(ApiKey::Fetch), 6, 2),
            4 => faults.drop_before(Match::api(ApiKey::Fetch), 2),
            5 => faults.error(Match::api(ApiKey::OffsetCommit), 16, 2),
            _ => {}
        }
        for partition in 0..2 {
            let texts = values(&format!("r{round}-p{partition}-"), 30);
            kafka.produce(&topic, partition, &texts, Compression::None).await;
            expected[partition as usize].extend(texts);
        }
        let total: usize = expected.iter().map(Vec::len).sum();
        eventually(|| sink.count() >= total, || format!("round {round}: {} of {total}", sink.count())).await;
    }
    for (partition, texts) in expected.iter().enumerate() {
        assert_eq!(&sink.values(partition as i32), texts, "partition {partition}");
    }
    at_last(|| consumer.status() == ConsumerStatus::Connected).await;
    consumer.stop(Leave::Final).await;
}
