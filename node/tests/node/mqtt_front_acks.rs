//! Acknowledgements that wait for message sinks.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use crate::mqtt_front::*;
use causeway::{flow::Outcome, flow::mailbox::Capacity};
use causeway_protocol::mqtt::{AckKind, Connect, Packet, Publish, QoS, ReasonCode, Version};

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
    let broker = broker_with(|options| {
        options.receive_maximum = 4;
        options.read_ahead = Capacity { bytes: 1 << 20, items: 2 };
    })
    .await;
    let sink = Arc::new(Sink::default());
    broker.router.add_sink("t/#", sink.clone());
    let mut client = broker.client(Version::V5, "5").await;
    assert_eq!(client.receive_maximum, Some(4));
    for identifier in 1..=5 {
        client.publish("t/1", b"x", QoS::AtLeastOnce, identifier).await;
    }
    assert_eq!(client.next().await, Seen::Disconnect(ReasonCode::ReceiveMaximumExceeded));
    assert_eq!(sink.len(), 4);

    let mut client = Client::open(broker.address, Version::V311).await;
    // Not even its keep-alive may end it while it is not read from: what is read ahead is full.
    client.connect(&Connect { keep_alive: 1, ..connect(Version::V311, "3") }).await;
    for identifier in 1..=10 {
        client.publish("t/1", b"x", QoS::AtLeastOnce, identifier).await;
    }
    sink.has(8).await;
    tokio::time::sleep(Duration::from_millis(1700)).await;
    assert_eq!(sink.len(), 8, "nothing is published beyond the receive maximum");
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

/// Waits until a sink has turned somebody away again.
async fn refuses(sink: &Sink) {
    let before = sink.refused.load(Ordering::SeqCst);
    let wait = async {
        while sink.refused.load(Ordering::SeqCst) == before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap();
}

fn make_room(sink: &Sink) {
    sink.full.store(false, Ordering::SeqCst);
    sink.room.notify_waiters();
}

#[tokio::test]
async fn a_client_is_answered_while_its_publications_wait() {
    for version in [Version::V311, Version::V5] {
        let (broker, sink) = with_sink().await;
        let mut client = Client::open(broker.address, version).await;
        client.connect(&Connect { keep_alive: 1, ..connect(version, "c") }).await;
        client.subscribe("in", QoS::ExactlyOnce).await;
        client.publish("t/0", b"0", QoS::ExactlyOnce, 100).await;
        sink.has(1).await;
        sink.complete(0, Outcome::Success);
        assert_eq!(client.next().await, Seen::Ack("PUBREC", 100, ReasonCode::Success));
        sink.full.store(true, Ordering::SeqCst);
        client.publish("t/1", b"1", QoS::AtLeastOnce, 1).await;
        client.publish("t/2", b"2", QoS::AtMostOnce, 0).await;
        let before = broker.router.memory_used();
        client.publish("other", &vec![3; 300_000], QoS::AtLeastOnce, 2).await;
        client.publish("t/4", b"4", QoS::ExactlyOnce, 3).await;
        refuses(&sink).await;
        assert_eq!(client.subscribe("in2", QoS::AtMostOnce).await, [ReasonCode::Success]);
        client.unsubscribe("in2").await;
        client.ack(AckKind::PubRel, 100).await;
        assert_eq!(client.next().await, Seen::Ack("PUBCOMP", 100, ReasonCode::Success));
        let mut other = broker.client(Version::V5, "other").await;
        other.publish("in", b"x", QoS::ExactlyOnce, 1).await;
        let Seen::Publish { identifier, .. } = client.next().await else { panic!("a delivery") };
        client.ack(AckKind::PubRec, identifier).await;
        assert!(matches!(client.next().await, Seen::Ack("PUBREL", ..)));
        client.ack(AckKind::PubComp, identifier).await;
        // As long as it says something it stays connected.
        for _ in 0..8 {
            client.nothing().await;
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        assert_eq!(sink.len(), 1);
        assert!(broker.router.memory_used() > before + 200_000, "what waits is counted");
        make_room(&sink);
        sink.has(4).await;
        let topics: Vec<_> = sink.taken.lock().iter().skip(1).map(|(topic, ..)| topic.clone()).collect();
        assert_eq!(topics, ["t/1", "t/2", "t/4"], "publications keep their order");
        sink.complete(3, Outcome::Success);
        client.nothing().await;
        sink.complete(1, Outcome::Success);
        assert_eq!(client.next().await, Seen::Ack("PUBACK", 1, ReasonCode::Success));
        assert!(matches!(client.next().await, Seen::Ack("PUBACK", 2, _)));
        assert_eq!(client.next().await, Seen::Ack("PUBREC", 3, ReasonCode::Success));
        // One that says nothing does not.
        sink.full.store(true, Ordering::SeqCst);
        client.publish("t/5", b"5", QoS::AtLeastOnce, 5).await;
        if version == Version::V5 {
            assert_eq!(client.next().await, Seen::Disconnect(ReasonCode::KeepAliveTimeout));
        }
        assert_eq!(client.next().await, Seen::Closed);
        assert_eq!(broker.front.stats().keep_alive_timeouts, 1);
    }
}

#[tokio::test]
async fn what_is_read_ahead_is_bounded_and_then_nothing_more_is_read() {
    for (bytes, items) in [(1 << 20, 3), (250, 100)] {
        let broker = broker_with(|options| {
            options.read_ahead = Capacity { bytes, items };
            options.receive_maximum = 2;
        })
        .await;
        let sink = Arc::new(Sink::default());
        broker.router.add_sink("t/#", sink.clone());
        let mut client = Client::open(broker.address, Version::V311).await;
        client.connect(&Connect { keep_alive: 1, ..connect(Version::V311, "c") }).await;
        // Two are under way, three wait for them: 75 bytes each.
        for identifier in 1..=5 {
            client.publish("t/1", &[0; 63], QoS::AtLeastOnce, identifier).await;
        }
        sink.has(2).await;
        client.nothing().await;
        client.publish("t/1", &[0; 63], QoS::AtLeastOnce, 6).await;
        client.send(&Packet::PingReq).await;
        // Neither read nor blamed for silence.
        let silence = tokio::time::timeout(Duration::from_millis(1800), client.try_next()).await;
        assert!(silence.is_err(), "{silence:?}");
        sink.complete(0, Outcome::Success);
        assert_eq!(client.next().await, Seen::Ack("PUBACK", 1, ReasonCode::Success));
        assert_eq!(client.next().await, Seen::PingResp, "there is room for one more");
        for identifier in 2..=6u16 {
            sink.has(usize::from(identifier)).await;
            sink.complete(usize::from(identifier) - 1, Outcome::Success);
            assert_eq!(client.next().await, Seen::Ack("PUBACK", identifier, ReasonCode::Success));
        }
    }
}

#[tokio::test]
async fn what_a_client_sent_before_it_says_goodbye_gets_through() {
    for says_goodbye in [true, false] {
        let (broker, sink) = with_sink().await;
        let mut client = Client::open(broker.address, Version::V311).await;
        let will = Some(will("will", b"w"));
        client.connect(&Connect { will, ..connect(Version::V311, "c") }).await;
        sink.full.store(true, Ordering::SeqCst);
        for number in 1..=3 {
            client.publish("t/1", &[number], QoS::AtLeastOnce, u16::from(number)).await;
        }
        client.publish("t/1", &[4], QoS::AtMostOnce, 0).await;
        refuses(&sink).await;
        if says_goodbye {
            client.disconnect(ReasonCode::Success).await;
        }
        drop(client);
        refuses(&sink).await;
        make_room(&sink);
        sink.has(4).await;
        broker.until(|stats| stats.connections == 0).await;
        let stats = broker.front.stats();
        assert_eq!(stats.wills_published, u64::from(!says_goodbye));
        assert_eq!(stats.dropped_read_ahead, 0);
    }
    // Where there is no room in time, the connection ends, and what is lost is counted.
    let (broker, sink) = with_sink().await;
    let mut client = broker.client(Version::V5, "c").await;
    sink.full.store(true, Ordering::SeqCst);
    client.publish("t/1", b"1", QoS::AtLeastOnce, 1).await;
    client.publish("t/1", b"2", QoS::AtMostOnce, 0).await;
    client.disconnect(ReasonCode::Success).await;
    broker.until(|stats| stats.connections == 0).await;
    assert_eq!((sink.len(), broker.front.stats().dropped_read_ahead), (0, 1));
}

#[tokio::test]
async fn a_qos_1_message_that_is_sent_again_joins_the_one_that_is_under_way() {
    for version in [Version::V311, Version::V5] {
        let (broker, sink) = with_sink().await;
        let mut client = Client::open(broker.address, version).await;
        client.connect(&persistent(version, "c")).await;
        let message = |identifier| publish("t/1", b"x", QoS::AtLeastOnce, identifier);
        for identifier in 1..=3 {
            client.send(&Packet::Publish(message(identifier))).await;
        }
        // Also on the same connection, as clients for MQTT 3.1 do.
        client.send(&again(message(2))).await;
        sink.has(3).await;
        client.nothing().await;
        drop(client);
        broker.until(|stats| stats.connections == 0).await;
        // One is complete while its client is away.
        sink.complete(0, Outcome::Success);
        let mut client = Client::open(broker.address, version).await;
        assert_eq!(client.connect(&persistent(version, "c")).await, (ReasonCode::Success, true));
        for identifier in 1..=3 {
            client.send(&again(message(identifier))).await;
        }
        assert_eq!(client.next().await, Seen::Ack("PUBACK", 1, ReasonCode::Success));
        client.nothing().await;
        sink.complete(2, Outcome::Success);
        sink.complete(1, Outcome::Success);
        assert_eq!(client.next().await, Seen::Ack("PUBACK", 2, ReasonCode::Success));
        assert_eq!(client.next().await, Seen::Ack("PUBACK", 3, ReasonCode::Success));
        assert_eq!((sink.len(), broker.front.stats().received_duplicates), (3, 4));
        // Without DUP it is another message, and so it is after it was acknowledged.
        client.send(&again(message(2))).await;
        sink.has(4).await;
        drop(client);
        broker.until(|stats| stats.connections == 0).await;
        let mut client = Client::open(broker.address, version).await;
        client.connect(&persistent(version, "c")).await;
        client.send(&Packet::Publish(message(2))).await;
        sink.has(5).await;
        sink.complete(3, Outcome::Success);
        client.nothing().await;
        sink.complete(4, Outcome::Success);
        assert_eq!(client.next().await, Seen::Ack("PUBACK", 2, ReasonCode::Success));
    }
}

#[tokio::test]
async fn a_message_that_waits_is_not_taken_twice() {
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let (broker, sink) = with_sink().await;
        let mut client = broker.client(Version::V311, "c").await;
        sink.full.store(true, Ordering::SeqCst);
        for identifier in [1, 2] {
            client.publish("t/1", b"x", qos, identifier).await;
        }
        refuses(&sink).await;
        for identifier in [1, 2] {
            client.send(&again(publish("t/1", b"x", qos, identifier))).await;
        }
        client.nothing().await;
        assert_eq!(broker.front.stats().received_duplicates, 2);
        make_room(&sink);
        sink.has(2).await;
        let kind = if qos == QoS::AtLeastOnce { "PUBACK" } else { "PUBREC" };
        for identifier in 1..=2u16 {
            sink.complete(usize::from(identifier) - 1, Outcome::Success);
            assert_eq!(client.next().await, Seen::Ack(kind, identifier, ReasonCode::Success));
        }
        client.nothing().await;
        assert_eq!(sink.len(), 2);
    }
}

#[tokio::test]
async fn a_message_that_some_sinks_have_is_not_given_to_them_twice_after_a_reconnect() {
    let (broker, first) = with_sink().await;
    let second = Arc::new(Sink::default());
    broker.router.add_sink("t/#", second.clone());
    second.full.store(true, Ordering::SeqCst);
    let mut client = Client::open(broker.address, Version::V311).await;
    client.connect(&persistent(Version::V311, "c")).await;
    client.publish("t/1", b"x", QoS::AtLeastOnce, 1).await;
    client.publish("t/1", b"y", QoS::AtLeastOnce, 2).await;
    refuses(&second).await;
    let mut client = Client::open(broker.address, Version::V311).await;
    assert_eq!(client.connect(&persistent(Version::V311, "c")).await, (ReasonCode::Success, true));
    client.send(&again(publish("t/1", b"x", QoS::AtLeastOnce, 1))).await;
    client.send(&again(publish("t/1", b"y", QoS::AtLeastOnce, 2))).await;
    refuses(&second).await;
    make_room(&second);
    first.has(2).await;
    second.has(2).await;
    for sink in [&first, &second] {
        sink.complete(0, Outcome::Success);
        sink.complete(1, Outcome::Success);
    }
    assert_eq!(client.next().await, Seen::Ack("PUBACK", 1, ReasonCode::Success));
    assert_eq!(client.next().await, Seen::Ack("PUBACK", 2, ReasonCode::Success));
    assert_eq!((first.len(), second.len()), (2, 2));
}
