//! Static members: what they find when they come back, and two of one name.

use std::sync::Arc;

use causeway::kafka::consumer::{
    ConsumerHandle, ConsumerOptions, ConsumerStatus, GroupConsumer, Leave, PartitionSnapshot,
};
use causeway_protocol::kafka::batch::Compression;

use super::harness::{Kafka, Sink, at_last, eventually, options, values};

fn named(instance: &str, group: &str, topics: &[&str]) -> ConsumerOptions {
    ConsumerOptions {
        group_id: format!("group-of-{group}").into(),
        group_instance_id: Some(Arc::from(instance)),
        topics: topics.iter().map(|topic| Arc::from(*topic)).collect(),
        ..options(group)
    }
}

async fn start(kafka: &Kafka, options: ConsumerOptions, sink: &Arc<Sink>) -> ConsumerHandle {
    GroupConsumer::start(kafka.new_client(), options, sink.clone(), None).await.unwrap()
}

/// Waits until these members are well and have so many partitions in all.
async fn settled(members: &[&ConsumerHandle], partitions: usize) {
    let explain = || {
        let show = |member: &&ConsumerHandle| (member.status(), member.partitions().len());
        format!("{:?}", members.iter().map(show).collect::<Vec<_>>())
    };
    let count = || members.iter().map(|member| member.partitions().len()).sum::<usize>();
    eventually(
        || count() == partitions && members.iter().all(|member| member.status() == ConsumerStatus::Connected),
        explain,
    )
    .await;
}

/// A member that is alone, or that follows another, comes back within its session with one topic more, and
/// with a partition more in the first one.
#[tokio::test(flavor = "multi_thread")]
async fn a_static_member_that_comes_back_reads_what_was_added_meanwhile() {
    for alone in [true, false] {
        let kafka = Kafka::start(1).await;
        let first = kafka.topic("first", 2).await;
        let second = kafka.topic("second", 2).await;
        let sink = Sink::finishing();
        let mut others = Vec::new();
        if !alone {
            others.push(start(&kafka, named("zero", &first, &[&first]), &sink).await);
            settled(&others.iter().collect::<Vec<_>>(), 2).await;
        }
        let one = start(&kafka, named("one", &first, &[&first]), &sink).await;
        settled(&others.iter().chain([&one]).collect::<Vec<_>>(), 2).await;
        one.stop(Leave::Restart).await;
        kafka.add_partitions(&first, 3).await;
        let one = start(&kafka, named("one", &first, &[&first, &second]), &sink).await;
        settled(&others.iter().chain([&one]).collect::<Vec<_>>(), 5).await;
        kafka.client().refresh(&first, false).await.unwrap();
        for (topic, partitions) in [(&first, 3), (&second, 2)] {
            for partition in 0..partitions {
                let texts = values(&format!("{topic}-{partition}-"), 5);
                kafka.produce(topic, partition, &texts, Compression::None).await;
            }
        }
        eventually(|| sink.count() == 25, || format!("{} of 25, alone: {alone}", sink.count())).await;
        // With one topic less its partitions are nobody's business any more, and the member is well.
        one.stop(Leave::Restart).await;
        let one = start(&kafka, named("one", &first, &[&second]), &sink).await;
        let expected = if alone { 2 } else { 5 };
        settled(&others.iter().chain([&one]).collect::<Vec<_>>(), expected).await;
        one.stop(Leave::Final).await;
        for member in others {
            member.stop(Leave::Final).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_added_is_read_soon_whoever_leads() {
    let kafka = Kafka::start(1).await;
    let topic = kafka.topic("grows", 1).await;
    let sink = Sink::finishing();
    let one = start(&kafka, named("one", &topic, &[&topic]), &sink).await;
    settled(&[&one], 1).await;
    let two = start(&kafka, named("two", &topic, &[&topic]), &sink).await;
    settled(&[&one, &two], 1).await;
    // The leader comes back and is told that it need not assign.
    one.stop(Leave::Restart).await;
    let one = start(&kafka, named("one", &topic, &[&topic]), &sink).await;
    settled(&[&one, &two], 1).await;
    kafka.add_partitions(&topic, 4).await;
    settled(&[&one, &two], 4).await;
    for member in [one, two] {
        member.stop(Leave::Final).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_member_says_so_and_takes_over_when_the_other_one_has_gone() {
    let kafka = Kafka::start(1).await;
    let topic = kafka.topic("fenced", 3).await;
    let sink = Sink::finishing();
    for leave in [Leave::Final, Leave::Restart] {
        let earlier = start(&kafka, named("same", &topic, &[&topic]), &sink).await;
        settled(&[&earlier], 3).await;
        let later = start(&kafka, named("same", &topic, &[&topic]), &sink).await;
        settled(&[&later], 3).await;
        eventually(
            || matches!(earlier.status(), ConsumerStatus::Disconnected { reason } if reason.contains("\"same\"")),
            || format!("{:?}", earlier.status()),
        )
        .await;
        // It looks at the group and does not fence the other one.
        let mut statuses = later.watch_status();
        statuses.mark_unchanged();
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        assert!(!statuses.has_changed().unwrap(), "{:?}", later.status());
        later.stop(leave).await;
        settled(&[&earlier], 3).await;
        earlier.stop(Leave::Final).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_consumers_of_one_group_with_topics_of_their_own_read_both() {
    let kafka = Kafka::start(1).await;
    let [first, second] = [kafka.topic("mine", 2).await, kafka.topic("yours", 2).await];
    let sinks = [Sink::finishing(), Sink::finishing()];
    let one = start(&kafka, named("one", &first, &[&first]), &sinks[0]).await;
    let two = start(&kafka, named("two", &first, &[&second]), &sinks[1]).await;
    settled(&[&one, &two], 4).await;
    let topics = |member: &ConsumerHandle| {
        let topic = |snapshot: PartitionSnapshot| snapshot.partition.topic.to_string();
        member.partitions().into_iter().map(topic).collect::<Vec<_>>()
    };
    assert_eq!((topics(&one), topics(&two)), (vec![first.clone(); 2], vec![second.clone(); 2]));
    for topic in [&first, &second] {
        kafka.produce(topic, 1, &values(topic, 5), Compression::None).await;
    }
    at_last(|| sinks[0].values(1) == values(&first, 5) && sinks[1].values(1) == values(&second, 5)).await;
    for member in [one, two] {
        member.stop(Leave::Final).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_removes_the_member_of_the_former_name_at_once() {
    let kafka = Kafka::start(1).await;
    let topic = kafka.topic("upgraded", 3).await;
    let sink = Sink::finishing();
    let patient = |instance: &str| ConsumerOptions {
        session_timeout: std::time::Duration::from_mins(5),
        ..named(instance, &topic, &[&topic])
    };
    let former = start(&kafka, patient("former"), &sink).await;
    settled(&[&former], 3).await;
    former.stop(Leave::Restart).await;
    let options = ConsumerOptions { former_instance_id: Some(Arc::from("former")), ..patient("new") };
    let new = start(&kafka, options, &sink).await;
    settled(&[&new], 3).await;
    if let Some(dev) = kafka.dev() {
        let (_, members) = dev.group(&format!("group-of-{topic}")).unwrap();
        assert_eq!(members.len(), 1, "{members:?}");
    }
    new.stop(Leave::Final).await;
}
