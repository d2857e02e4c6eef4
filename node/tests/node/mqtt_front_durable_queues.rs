//! What waits in stored sessions: passed on to others of a group, and counted as memory.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use crate::mqtt_front::{lasting::*, *};
use causeway_protocol::mqtt::{
    AckKind, Connect, Packet, Publish, QoS, ReasonCode, SubscriptionOptions, Version,
};

const SHARED: &str = "$share/workers/jobs/+";

/// Members `first` and `second` of a group, both away; three jobs wait for the first one.
async fn jobs_for_the_first(lasting: &Lasting, expiry: u32) -> Broker {
    let broker = lasting.start().await;
    for member in ["first", "second"] {
        let expiry = if member == "first" { expiry } else { 600 };
        let mut client = Client::open(broker.address, Version::V5).await;
        client.connect(&Connect { session_expiry_interval: expiry, ..persistent(Version::V5, member) }).await;
        client
            .subscribe_with(
                SHARED,
                SubscriptionOptions { qos: QoS::AtLeastOnce, ..SubscriptionOptions::default() },
                Some(7),
            )
            .await;
        client.disconnect(ReasonCode::Success).await;
    }
    broker.until(|stats| stats.connections == 0).await;
    let mut publisher = broker.client(Version::V5, "p").await;
    for number in 1..=3u16 {
        publisher.publish("jobs/a", &[number as u8], QoS::AtLeastOnce, number).await;
        assert_eq!(publisher.next().await, Seen::Ack("PUBACK", number, ReasonCode::Success));
    }
    broker
}

/// The next packets are the three jobs, through a subscription with its identifier.
async fn has_the_jobs(client: &mut Client, dup: bool) {
    for number in 1..=3u8 {
        match client.next().await {
            Seen::Publish { payload, identifiers, dup: seen, .. } => {
                assert_eq!((payload, identifiers, seen), (vec![number], vec![7], dup));
            }
            other => panic!("no PUBLISH: {other:?}"),
        }
    }
    client.nothing().await;
}

#[tokio::test]
async fn what_a_session_holds_for_its_group_goes_to_another_member_after_a_restart() {
    let lasting = Lasting::new();
    let broker = jobs_for_the_first(&lasting, 600).await;
    let broker = lasting.again(broker).await;
    let (mut second, present) = resume(&broker, Version::V5, "second").await;
    assert!(present);
    second.nothing().await;
    // The first one comes, takes the jobs, acknowledges none, and comes back without a session.
    let (mut first, present) = resume(&broker, Version::V5, "first").await;
    assert!(present);
    has_the_jobs(&mut first, false).await;
    drop(first);
    drop(broker.client(Version::V5, "first").await);
    has_the_jobs(&mut second, false).await;
    assert_eq!(broker.front.stats().shared_passed_on, 3);
    // They are stored with the new holder.
    drop(second);
    let broker = lasting.again(broker).await;
    let (mut second, _) = resume(&broker, Version::V5, "second").await;
    has_the_jobs(&mut second, true).await;
    broker.front.stop().await;
}

#[tokio::test]
async fn what_a_session_held_that_expired_meanwhile_goes_to_another_member() {
    let lasting = Lasting::new();
    let broker = jobs_for_the_first(&lasting, 1).await;
    tokio::time::timeout(PATIENCE, broker.front.stop()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let broker = lasting.start().await;
    let stats = broker.front.stats();
    assert_eq!((stats.sessions_restored, stats.sessions_expired, stats.sessions), (1, 1, 1));
    let (mut second, _) = resume(&broker, Version::V5, "second").await;
    has_the_jobs(&mut second, false).await;
    for identifier in 1..=3 {
        second.ack(AckKind::PubAck, identifier).await;
    }
    second.nothing().await;
    drop(second);
    let broker = lasting.again(broker).await;
    let (mut second, _) = resume(&broker, Version::V5, "second").await;
    second.nothing().await;
    broker.front.stop().await;
}

#[tokio::test]
async fn retained_messages_that_wait_in_a_stored_session_are_counted_as_memory() {
    const MESSAGES: u64 = 5_000;
    /// Below what the front lets a client have in flight.
    const IN_FLIGHT: usize = 20;
    /// Bytes of one place in a queue, about.
    const PLACE: u64 = 40;
    let lasting = Lasting::new();
    let broker = lasting.start().await;
    let mut publisher = broker.client(Version::V5, "p").await;
    for start in (0..MESSAGES).step_by(IN_FLIGHT) {
        for number in start..start + IN_FLIGHT as u64 {
            let id = u16::try_from(number - start + 1).unwrap();
            let topic = format!("r/{number}");
            let packet = Publish { retain: true, ..publish(&topic, b"x", QoS::AtLeastOnce, id) };
            publisher.send(&Packet::Publish(packet)).await;
        }
        for id in 1..=IN_FLIGHT as u16 {
            let seen = publisher.next().await;
            assert!(matches!(seen, Seen::Ack("PUBACK", seen, _) if seen == id), "{seen:?}");
        }
    }
    assert_eq!(broker.front.stats().retained_messages, MESSAGES);
    let before = broker.router.memory_used();
    // It takes one at a time.
    let mut subscriber = Client::open(broker.address, Version::V5).await;
    subscriber.connect(&Connect { receive_maximum: 1, ..persistent(Version::V5, "s") }).await;
    subscriber.subscribe("r/#", QoS::AtLeastOnce).await;
    assert!(matches!(subscriber.next().await, Seen::Publish { .. }));
    subscriber.nothing().await;
    let waiting = broker.router.memory_used();
    assert!(waiting > before + MESSAGES * PLACE, "{before} {waiting}");
    // They stay so while the client is away, and go with the session.
    drop(subscriber);
    broker.until(|stats| stats.connections == 1).await;
    assert!(broker.router.memory_used() > before + MESSAGES * PLACE);
    drop(broker.client(Version::V5, "s").await);
    broker.until(|stats| stats.connections == 1).await;
    let after = broker.router.memory_used();
    assert!(after < before + MESSAGES * PLACE / 2, "{before} {after}");
    broker.front.stop().await;
}
