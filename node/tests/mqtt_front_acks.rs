//! Acknowledgements that wait for message sinks.

mod mqtt_front;

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use causeway::flow::Outcome;
use causeway_protocol::mqtt::{AckKind, Connect, Packet, Publish, QoS, ReasonCode, Version};
use mqtt_front::*;

async fn with_sink() -> (Broker, Arc<Sink>) {
    let broker = broker_with(|options| options.receive_maximum = 4).await;
    let sink = Arc::new(Sink::default());
    broker.router.add_sink("t/#", sink.clone());
    (broker, sink)
}

const FAILED: Outcome = Outcome::Failed(ReasonCode::QuotaExceeded);

#[tokio::test]
async fn acks_wait_for_the_sink_and_keep_their_order() {
    let (broker, sink) = with_sink().await;
    let mut client = broker.client(Version::V5, "c").await;
    client.publish("t/1", b"x", QoS::AtLeastOnce, 10).await;
    client.publish("t/2", b"x", QoS::ExactlyOnce, 11).await;
    client.publish("other", b"x", QoS::AtLeastOnce, 12).await;
    sink.has(2).await;
    client.nothing().await;
    sink.complete(1, Outcome::Success);
    client.nothing().await;
    sink.complete(0, FAILED);
    assert_eq!(client.next().await, Seen::Ack("PUBACK", 10, ReasonCode::QuotaExceeded));
    assert_eq!(client.next().await, Seen::Ack("PUBREC", 11, ReasonCode::Success));
    assert_eq!(client.next().await, Seen::Ack("PUBACK", 12, ReasonCode::NoMatchingSubscribers));
    client.ack(AckKind::PubRel, 11).await;
    assert_eq!(client.next().await, Seen::Ack("PUBCOMP", 11, ReasonCode::Success));
    client.ack(AckKind::PubRel, 11).await;
    assert_eq!(client.next().await, Seen::Ack("PUBCOMP", 11, ReasonCode::PacketIdentifierNotFound));
}

#[tokio::test]
async fn an_mqtt_3_client_is_acknowledged_whatever_became_of_it() {
    let (broker, sink) = with_sink().await;
    let mut client = broker.client(Version::V311, "c").await;
    client.publish("t/1", b"x", QoS::AtLeastOnce, 1).await;
    sink.has(1).await;
    sink.complete(0, FAILED);
    assert_eq!(client.next().await, Seen::Ack("PUBACK", 1, ReasonCode::Success));
    assert_eq!(broker.front.stats().failed_in_sink, 1);
    client.publish("t/1", b"x", QoS::AtLeastOnce, 2).await;
    sink.has(2).await;
    sink.complete(1, Outcome::Failed(ReasonCode::NotAuthorized));
    assert_eq!(client.next().await, Seen::Ack("PUBACK", 2, ReasonCode::Success));
    assert_eq!(broker.front.stats().failed_in_sink, 2);
}

#[tokio::test]
async fn the_receive_maximum_ends_an_mqtt_5_connection_and_slows_an_mqtt_3_one() {
    let (broker, sink) = with_sink().await;
    let mut client = broker.client(Version::V5, "5").await;
    assert_eq!(client.receive_maximum, Some(4));
    for identifier in 1..=5 {
        client.publish("t/1", b"x", QoS::AtLeastOnce, identifier).await;
    }
    assert_eq!(client.next().await, Seen::Disconnect(ReasonCode::ReceiveMaximumExceeded));
    assert_eq!(sink.len(), 4);

    let mut client = Client::open(broker.address, Version::V311).await;
    // Not even its keep-alive may end it while we do not read.
    client.connect(&Connect { keep_alive: 1, ..connect(Version::V311, "3") }).await;
    for identifier in 1..=10 {
        client.publish("t/1", b"x", QoS::AtLeastOnce, identifier).await;
    }
    sink.has(8).await;
    tokio::time::sleep(Duration::from_millis(1700)).await;
    assert_eq!(sink.len(), 8, "nothing is read beyond the receive maximum");
    for identifier in 1..=10u16 {
        sink.has(usize::from(identifier) + 4).await;
        sink.complete(usize::from(identifier) + 3, Outcome::Success);
        assert_eq!(client.next().await, Seen::Ack("PUBACK", identifier, ReasonCode::Success));
    }
    assert_eq!(sink.len(), 14);
}

#[tokio::test]
async fn a_full_sink_parks_the_connection_until_there_is_room() {
    let (broker, sink) = with_sink().await;
    let second = Arc::new(Sink::default());
    broker.router.add_sink("t/#", second.clone());
    let mut subscriber = broker.client(Version::V5, "s").await;
    subscriber.subscribe("t/#", QoS::AtMostOnce).await;
    let mut client = broker.client(Version::V5, "c").await;
    second.full.store(true, Ordering::SeqCst);
    client.publish("t/1", b"1", QoS::AtLeastOnce, 1).await;
    client.publish("t/1", b"2", QoS::AtLeastOnce, 2).await;
    tokio::time::sleep(Duration::from_millis(350)).await;
    assert_eq!(
        (sink.len(), second.len()),
        (1, 0),
        "given to the first sink once, however often it is retried"
    );
    assert!(second.refused.load(Ordering::SeqCst) >= 3, "asked again now and then");
    subscriber.nothing().await;
    second.full.store(false, Ordering::SeqCst);
    second.room.notify_waiters();
    second.has(2).await;
    assert_eq!(sink.len(), 2);
    for index in 0..2 {
        second.complete(index, Outcome::Success);
        sink.complete(index, Outcome::Success);
    }
    assert_eq!(client.next().await, Seen::Ack("PUBACK", 1, ReasonCode::Success));
    assert_eq!(client.next().await, Seen::Ack("PUBACK", 2, ReasonCode::Success));
    assert_eq!(subscriber.next().await, published("t/1", b"1"));
    assert_eq!(subscriber.next().await, published("t/1", b"2"));
    subscriber.nothing().await;
}

#[tokio::test]
async fn room_is_heard_of_at_once() {
    let (broker, sink) = with_sink().await;
    let mut client = broker.client(Version::V5, "c").await;
    let mut took = Vec::new();
    for round in 1..=20u16 {
        sink.full.store(true, Ordering::SeqCst);
        let refused = sink.refused.load(Ordering::SeqCst);
        client.publish("t/1", b"1", QoS::AtLeastOnce, round).await;
        while sink.refused.load(Ordering::SeqCst) == refused {
            tokio::task::yield_now().await;
        }
        sink.full.store(false, Ordering::SeqCst);
        sink.room.notify_waiters();
        let start = std::time::Instant::now();
        sink.has(usize::from(round)).await;
        took.push(start.elapsed());
        sink.complete(usize::from(round) - 1, Outcome::Success);
        assert_eq!(client.next().await, Seen::Ack("PUBACK", round, ReasonCode::Success));
    }
    // Who looks again from time to time would need its time in every round; a busy machine takes it in some.
    took.sort_unstable();
    assert!(took[took.len() / 4] < Duration::from_millis(80), "{took:?}");
}

fn again(publish: Publish<'_>) -> Packet<'_> {
    Packet::Publish(Publish { dup: true, ..publish })
}

#[tokio::test]
async fn a_qos_2_message_is_dispatched_once_through_reconnects() {
    for complete_while_away in [true, false] {
        let (broker, sink) = with_sink().await;
        let mut client = Client::open(broker.address, Version::V311).await;
        client.connect(&persistent(Version::V311, "c")).await;
        let message = || publish("t/1", b"x", QoS::ExactlyOnce, 5);
        client.send(&Packet::Publish(message())).await;
        client.send(&again(message())).await;
        sink.has(1).await;
        drop(client);
        broker.until(|stats| stats.connections == 0).await;
        if complete_while_away {
            sink.complete(0, Outcome::Success);
        }
        let mut client = Client::open(broker.address, Version::V311).await;
        assert_eq!(client.connect(&persistent(Version::V311, "c")).await, (ReasonCode::Success, true));
        client.send(&again(message())).await;
        if !complete_while_away {
            client.nothing().await;
            sink.complete(0, Outcome::Success);
        }
        assert_eq!(client.next().await, Seen::Ack("PUBREC", 5, ReasonCode::Success));
        client.ack(AckKind::PubRel, 5).await;
        assert_eq!(client.next().await, Seen::Ack("PUBCOMP", 5, ReasonCode::Success));
        assert_eq!(sink.len(), 1);
        client.send(&Packet::Publish(message())).await;
        sink.has(2).await;
    }
}

#[tokio::test]
async fn a_parked_qos_2_message_is_brought_to_its_end_when_its_connection_dies() {
    for first_has_it in [true, false] {
        let (broker, first) = with_sink().await;
        let second = Arc::new(Sink::default());
        broker.router.add_sink("t/#", second.clone());
        if first_has_it { &second } else { &first }.full.store(true, Ordering::SeqCst);
        let mut client = Client::open(broker.address, Version::V5).await;
        client.connect(&persistent(Version::V5, "c")).await;
        let message = || publish("t/1", b"x", QoS::ExactlyOnce, 5);
        client.send(&Packet::Publish(message())).await;
        while first.refused.load(Ordering::SeqCst) + second.refused.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        // While it is parked nothing is read: the takeover ends the connection.
        let mut client = Client::open(broker.address, Version::V5).await;
        assert_eq!(client.connect(&persistent(Version::V5, "c")).await, (ReasonCode::Success, true));
        client.send(&again(message())).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        first.full.store(false, Ordering::SeqCst);
        second.full.store(false, Ordering::SeqCst);
        first.has(1).await;
        second.has(1).await;
        first.complete(0, Outcome::Success);
        second.complete(0, Outcome::Success);
        assert_eq!(client.next().await, Seen::Ack("PUBREC", 5, ReasonCode::Success));
        assert_eq!((first.len(), second.len()), (1, 1));
    }
}

#[tokio::test]
async fn late_completions_of_a_finished_session_are_harmless() {
    let (broker, sink) = with_sink().await;
    let mut client = broker.client(Version::V5, "c").await;
    client.publish("t/1", b"x", QoS::AtLeastOnce, 1).await;
    sink.has(1).await;
    drop(client);
    broker.until(|stats| stats.sessions == 0).await;
    sink.complete(0, Outcome::Success);
    let mut client = broker.client(Version::V5, "c").await;
    client.publish("t/1", b"x", QoS::AtLeastOnce, 1).await;
    sink.has(2).await;
    client.nothing().await;
    sink.complete(1, Outcome::Success);
    assert_eq!(client.next().await, Seen::Ack("PUBACK", 1, ReasonCode::Success));
}

#[tokio::test]
async fn a_stop_waits_for_acknowledgements_and_says_goodbye() {
    let (broker, sink) = with_sink().await;
    let mut waiting = broker.client(Version::V5, "c").await;
    waiting.publish("t/1", b"x", QoS::AtLeastOnce, 1).await;
    let mut idle = broker.client(Version::V5, "i").await;
    let mut silent = Client::open(broker.address, Version::V5).await;
    sink.has(1).await;
    let address = broker.address;
    let stop = tokio::spawn(broker.front.stop());
    assert_eq!(idle.next().await, Seen::Disconnect(ReasonCode::ServerShuttingDown));
    assert_eq!(silent.next().await, Seen::Closed);
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nobody new is let in");
    sink.complete(0, Outcome::Success);
    assert_eq!(waiting.next().await, Seen::Ack("PUBACK", 1, ReasonCode::Success));
    assert_eq!(waiting.next().await, Seen::Disconnect(ReasonCode::ServerShuttingDown));
    drop((waiting, idle, silent));
    tokio::time::timeout(PATIENCE, stop).await.expect("it stops").expect("without a panic");
}

#[tokio::test]
async fn a_stop_does_not_wait_for_ever() {
    let broker = broker_with(|options| options.shutdown_drain = Duration::from_millis(200)).await;
    let sink = Arc::new(Sink::default());
    broker.router.add_sink("#", sink.clone());
    let mut client = broker.client(Version::V5, "c").await;
    client.publish("t", b"x", QoS::AtLeastOnce, 1).await;
    sink.has(1).await;
    let stop = tokio::spawn(broker.front.stop());
    assert_eq!(client.next().await, Seen::Disconnect(ReasonCode::ServerShuttingDown));
    tokio::time::timeout(PATIENCE, stop).await.expect("it stops").expect("without a panic");
}

#[tokio::test]
async fn a_refusal_says_why_also_where_it_waits_for_the_disk() {
    let lasting = lasting::Lasting::new();
    for broker in [broker().await, lasting.start().await] {
        let sink = Arc::new(Sink::default());
        broker.router.add_sink("t", sink.clone());
        for (at, wants) in [true, false].into_iter().enumerate() {
            let mut client = Client::open(broker.address, Version::V5).await;
            let connect = Connect { request_problem_information: wants, ..persistent(Version::V5, "c") };
            client.connect(&connect).await;
            client.publish("t", b"x", QoS::ExactlyOnce, 7).await;
            sink.has(at + 1).await;
            sink.complete(at, FAILED);
            assert_eq!(client.next().await, Seen::Ack("PUBREC", 7, ReasonCode::QuotaExceeded));
            assert_eq!(client.reason_string.is_some(), wants);
        }
        broker.front.stop().await;
    }
}
