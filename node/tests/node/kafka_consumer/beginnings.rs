//! Where a consumer begins: in new partitions, in new topics, and in topics that were deleted and made again.

use std::sync::Arc;

use causeway::kafka::consumer::{
    ConsumerHandle, ConsumerOptions, ConsumerStatus, GroupConsumer, Leave, OffsetReset,
};
use causeway_protocol::kafka::batch::Compression;

use super::harness::{Kafka, Sink, at_last, eventually, options, values};

fn latest(topic: &str) -> ConsumerOptions {
    ConsumerOptions {
        offset_reset: OffsetReset::Latest,
        group_instance_id: Some(Arc::from("one")),
        ..options(topic)
    }
}

async fn start(kafka: &Kafka, options: ConsumerOptions, sink: &Arc<Sink>) -> ConsumerHandle {
    GroupConsumer::start(kafka.new_client(), options, sink.clone(), None).await.unwrap()
}

async fn reads(member: &ConsumerHandle, partitions: usize) {
    eventually(
        || {
            let all = member.partitions();
            all.len() == partitions
                && all.iter().all(|partition| partition.committed.is_some())
                && member.status() == ConsumerStatus::Connected
        },
        || format!("{:?} {:?}", member.status(), member.partitions()),
    )
    .await;
}

async fn produce(kafka: &Kafka, topic: &str, partition: i32, prefix: &str, count: usize) {
    kafka.client().refresh(topic, false).await.unwrap();
    kafka.produce(topic, partition, &values(prefix, count), Compression::None).await;
}

/// Waits until Kafka shows so many partitions, each with a leader.
async fn grown(kafka: &Kafka, topic: &str, count: i32) {
    kafka.add_partitions(topic, count).await;
    for _ in 0..100 {
        let view = kafka.client().refresh(topic, false).await.unwrap();
        let led = view.partitions.iter().filter(|partition| partition.leader >= 0).count();
        if led == usize::try_from(count).unwrap() {
            return;
        }
    }
    panic!("topic {topic} did not grow to {count} partitions");
}

#[tokio::test(flavor = "multi_thread")]
async fn latest_skips_what_was_there_and_nothing_of_what_appears_later() {
    let kafka = Kafka::start(1).await;
    let topic = kafka.topic("appears", 2).await;
    for partition in 0..2 {
        produce(&kafka, &topic, partition, "before-", 5).await;
    }
    let sink = Sink::finishing();
    let one = start(&kafka, latest(&topic), &sink).await;
    reads(&one, 2).await;
    // A partition that is written to before anybody has noticed it.
    grown(&kafka, &topic, 3).await;
    produce(&kafka, &topic, 2, "while-", 5).await;
    eventually(|| sink.count() == 5, || format!("{:?}", one.partitions())).await;
    assert_eq!(sink.values(2), values("while-", 5));
    reads(&one, 3).await;
    // One that appears while the consumer is away.
    one.stop(Leave::Restart).await;
    grown(&kafka, &topic, 4).await;
    produce(&kafka, &topic, 3, "away-", 5).await;
    let one = start(&kafka, latest(&topic), &sink).await;
    eventually(|| sink.count() == 10, || format!("{:?}", one.partitions())).await;
    assert_eq!(sink.values(3), values("away-", 5));
    reads(&one, 4).await;
    // Another member does not take what was there before for new.
    let other = ConsumerOptions { group_instance_id: Some(Arc::from("two")), ..latest(&topic) };
    let two = start(&kafka, other, &sink).await;
    at_last(|| one.partitions().len() == 2 && two.partitions().len() == 2).await;
    for partition in 0..4 {
        produce(&kafka, &topic, partition, "after-", 1).await;
    }
    eventually(|| sink.count() == 14, || format!("{}", sink.count())).await;
    assert!(sink.all_values().iter().all(|value| !value.starts_with("before-")), "{:?}", sink.all_values());
    for member in [one, two] {
        member.stop(Leave::Final).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_start_together_leave_out_what_was_there_before_them() {
    let kafka = Kafka::start(1).await;
    let topic = kafka.topic("together", 4).await;
    for partition in 0..4 {
        produce(&kafka, &topic, partition, "before-", 5).await;
    }
    let sink = Sink::finishing();
    // The first has committed its partitions long before the second gets any.
    let one = start(&kafka, latest(&topic), &sink).await;
    let other = ConsumerOptions { group_instance_id: Some(Arc::from("two")), ..latest(&topic) };
    let two = start(&kafka, other, &sink).await;
    reads(&one, 2).await;
    reads(&two, 2).await;
    for partition in 0..4 {
        produce(&kafka, &topic, partition, "after-", 1).await;
    }
    eventually(|| sink.count() == 4, || format!("{:?}", sink.all_values())).await;
    assert_eq!(sink.all_values(), vec!["after-0"; 4]);
    for member in [one, two] {
        member.stop(Leave::Final).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_a_consumer_waited_for_is_read_from_its_beginning() {
    let kafka = Kafka::start(1).await;
    let topic = format!("awaited-{:08x}", rand::random::<u32>());
    let sink = Sink::finishing();
    let one = start(&kafka, latest(&topic), &sink).await;
    eventually(
        || matches!(one.status(), ConsumerStatus::Disconnected { reason } if reason.contains(&topic)),
        || format!("{:?}", one.status()),
    )
    .await;
    kafka.create(&topic, 2).await;
    produce(&kafka, &topic, 1, "first-", 5).await;
    eventually(|| sink.count() == 5, || format!("{:?} {:?}", one.status(), one.partitions())).await;
    one.stop(Leave::Final).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_made_again_is_read_from_its_beginning_and_gets_no_commit_of_the_former_one() {
    for (offset_reset, partitions) in [(OffsetReset::Latest, 1), (OffsetReset::Earliest, 3)] {
        let kafka = Kafka::start(1).await;
        let topic = kafka.topic("again", 3).await;
        let sink = Sink::holding();
        let options = ConsumerOptions { offset_reset, ..latest(&topic) };
        let one = start(&kafka, options.clone(), &sink).await;
        reads(&one, 3).await;
        produce(&kafka, &topic, 0, "former-", 10).await;
        eventually(|| sink.count() == 10, || format!("{}", sink.count())).await;
        sink.finish(|offset| offset < 8);
        at_last(|| one.partitions().iter().any(|partition| partition.committed == Some(8))).await;
        kafka.delete(&topic).await;
        kafka.create(&topic, partitions).await;
        produce(&kafka, &topic, 0, "new-", 20).await;
        eventually(|| sink.count() >= 30, || format!("{} {:?}", sink.count(), one.partitions())).await;
        assert_eq!(sink.values(0)[10..], values("new-", 20), "{offset_reset:?}");
        // The last two of the former topic are handed over late: that moves nothing.
        sink.finish(|offset| offset == 8 || offset == 9);
        reads(&one, partitions as usize).await;
        let snapshots = one.partitions();
        let first = snapshots.iter().find(|snapshot| snapshot.partition.partition == 0).unwrap();
        assert!(first.position < 8 && first.committed == Some(first.position), "{first:?}");
        one.stop(Leave::Restart).await;
        // Everything new that was not finished comes again, and nothing else.
        let again = Sink::finishing();
        let one = start(&kafka, options, &again).await;
        let left = 20 - usize::try_from(first.position).unwrap();
        eventually(|| again.count() == left, || format!("{} {:?}", again.count(), one.partitions())).await;
        one.stop(Leave::Final).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_that_was_committed_in_a_former_topic_is_not_used_after_a_restart() {
    let kafka = Kafka::start(1).await;
    let topic = kafka.topic("former", 1).await;
    let sink = Sink::finishing();
    let one = start(&kafka, latest(&topic), &sink).await;
    reads(&one, 1).await;
    produce(&kafka, &topic, 0, "former-", 10).await;
    at_last(|| one.partitions().iter().any(|partition| partition.committed == Some(10))).await;
    // Dies; the development Kafka keeps the offsets of deleted topics, as a late commit would bring them
    // back.
    drop(one);
    kafka.delete(&topic).await;
    kafka.create(&topic, 1).await;
    produce(&kafka, &topic, 0, "new-", 20).await;
    if kafka.dev().is_none() {
        // Kafka itself forgets them, and with them that the group was there before.
        return;
    }
    let one = start(&kafka, latest(&topic), &sink).await;
    eventually(|| sink.count() == 30, || format!("{} {:?}", sink.count(), one.partitions())).await;
    assert_eq!(sink.values(0)[10..], values("new-", 20));
    one.stop(Leave::Final).await;
}
