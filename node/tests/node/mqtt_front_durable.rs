//! Stored sessions: the front stops and starts again on the same file.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod qos2_memory;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use crate::mqtt_front::{lasting::*, *};
use causeway::{
    flow::{AckSink, HandOver, Message, Origin, Outcome, SequenceRange, Ticket, WakeList},
    mqtt::{PublishProgress, Published},
};
use causeway_protocol::mqtt::{
    AckKind, Connect, Packet, Publish, PublishProperties, QoS, ReasonCode, SubscriptionOptions, Version,
};

const QOS: [QoS; 2] = [QoS::AtLeastOnce, QoS::ExactlyOnce];

#[tokio::test]
async fn what_waits_for_a_session_survives_a_restart() {
    for version in [Version::V311, Version::V5] {
        let lasting = Lasting::new();
        let broker = lasting.start().await;
        let (mut subscriber, present) = resume(&broker, version, "s").await;
        assert!(!present);
        assert_eq!(subscriber.subscribe("t/+", QoS::ExactlyOnce).await, [ReasonCode::GrantedQoS2]);
        drop(subscriber);
        broker.until(|stats| stats.connections == 0).await;
        let mut publisher = broker.client(Version::V5, "p").await;
        for (number, qos) in (1u16..=6).zip(QOS.into_iter().cycle()) {
            publisher.publish("t/a", &[number as u8], qos, number).await;
            let kind = if qos == QoS::AtLeastOnce { "PUBACK" } else { "PUBREC" };
            assert_eq!(publisher.next().await, Seen::Ack(kind, number, ReasonCode::Success));
        }
        let broker = lasting.again(broker).await;
        assert_eq!(broker.front.stats().sessions_restored, 1);
        let (mut subscriber, present) = resume(&broker, version, "s").await;
        assert!(present);
        for (number, qos) in (1u16..=6).zip(QOS.into_iter().cycle()) {
            assert_eq!(delivery(&mut subscriber).await, (vec![number as u8], qos, false, number));
        }
        // The subscription is there as well.
        let mut publisher = broker.client(Version::V5, "p").await;
        publisher.publish("t/b", b"new", QoS::AtLeastOnce, 1).await;
        assert_eq!(delivery(&mut subscriber).await, (b"new".to_vec(), QoS::AtLeastOnce, false, 7));
        broker.front.stop().await;
    }
}

/// A client may acknowledge and leave with one write: its acknowledgements count.
#[tokio::test]
async fn what_is_acknowledged_right_before_disconnect_is_acknowledged() {
    for restart in [false, true] {
        let lasting = Lasting::new();
        let mut broker = lasting.start().await;
        let (mut subscriber, _) = resume(&broker, Version::V311, "s").await;
        subscriber.subscribe("t", QoS::ExactlyOnce).await;
        let mut publisher = broker.client(Version::V311, "p").await;
        publisher.publish("t", b"1", QoS::AtLeastOnce, 1).await;
        publisher.publish("t", b"2", QoS::ExactlyOnce, 2).await;
        let (_, _, _, first) = delivery(&mut subscriber).await;
        let (_, _, _, second) = delivery(&mut subscriber).await;
        let ([a, b], [c, d]) = (first.to_be_bytes(), second.to_be_bytes());
        // PUBACK, PUBREC, DISCONNECT.
        subscriber.send_bytes(&[0x40, 2, a, b, 0x50, 2, c, d, 0xE0, 0]).await;
        assert_eq!(subscriber.next().await, Seen::Closed);
        if restart {
            broker = lasting.again(broker).await;
        }
        let mut publisher = broker.client(Version::V311, "q").await;
        publisher.publish("t", b"3", QoS::ExactlyOnce, 3).await;
        let (mut subscriber, present) = resume(&broker, Version::V311, "s").await;
        assert!(present);
        assert_eq!(subscriber.next().await, Seen::Ack("PUBREL", second, ReasonCode::Success), "{restart}");
        subscriber.ack(AckKind::PubComp, second).await;
        let (payload, qos, dup, _) = delivery(&mut subscriber).await;
        assert_eq!((&*payload, qos, dup), (&b"3"[..], QoS::ExactlyOnce, false), "{restart}");
        broker.front.stop().await;
    }
}

/// Acknowledgements reach the disk a little later than the client; until then it has room for further
/// deliveries.
#[tokio::test]
async fn after_a_crash_deliveries_beyond_one_window_are_marked_as_repetitions_too() {
    let lasting = Lasting::new();
    let broker = lasting.start().await;
    let narrow = Connect { receive_maximum: 2, ..persistent(Version::V5, "s") };
    let mut subscriber = Client::open(broker.address, Version::V5).await;
    subscriber.connect(&narrow).await;
    subscriber.subscribe("t", QoS::ExactlyOnce).await;
    let mut publisher = broker.client(Version::V5, "p").await;
    for number in 1..=6u16 {
        publisher.publish("t", &[number as u8], QoS::AtLeastOnce, number).await;
        assert_eq!(publisher.next().await, Seen::Ack("PUBACK", number, ReasonCode::Success));
    }
    // The node dies when the client has acknowledged all of them and the disk has not heard of it.
    let crashed = lasting.copy();
    drop((publisher, subscriber));
    tokio::time::timeout(PATIENCE, broker.front.stop()).await.unwrap();
    let mut broker = crashed.start().await;
    for round in 0..2 {
        let mut subscriber = Client::open(broker.address, Version::V5).await;
        assert_eq!(subscriber.connect(&narrow).await, (ReasonCode::Success, true));
        for number in 1..=6u8 {
            let (payload, _, dup, identifier) = delivery(&mut subscriber).await;
            assert_eq!((payload, dup), (vec![number], true), "round {round}");
            if round > 0 {
                subscriber.ack(AckKind::PubAck, identifier).await;
            } else if number == 2 {
                break;
            }
        }
        drop(subscriber);
        // Through an orderly restart before they are acknowledged as well.
        broker = crashed.again(broker).await;
    }
    broker.front.stop().await;
}

#[tokio::test]
async fn packets_in_flight_keep_their_identifiers() {
    let lasting = Lasting::new();
    let broker = lasting.start().await;
    let (mut subscriber, _) = resume(&broker, Version::V5, "s").await;
    subscriber.subscribe("t", QoS::ExactlyOnce).await;
    let mut publisher = broker.client(Version::V5, "p").await;
    for number in 1..=5u16 {
        publisher.publish("t", &[number as u8], QOS[usize::from(number % 2 == 0)], number).await;
    }
    let mut identifiers = Vec::new();
    for number in 1..=5u8 {
        let (payload, _, dup, identifier) = delivery(&mut subscriber).await;
        assert_eq!((payload, dup), (vec![number], false));
        identifiers.push(identifier);
    }
    // 1 is acknowledged, 2 released, 3 not acknowledged, 4 complete, 5 not acknowledged.
    subscriber.ack(AckKind::PubAck, identifiers[0]).await;
    subscriber.ack(AckKind::PubRec, identifiers[1]).await;
    assert_eq!(subscriber.next().await, Seen::Ack("PUBREL", identifiers[1], ReasonCode::Success));
    subscriber.ack(AckKind::PubRec, identifiers[3]).await;
    assert_eq!(subscriber.next().await, Seen::Ack("PUBREL", identifiers[3], ReasonCode::Success));
    subscriber.ack(AckKind::PubComp, identifiers[3]).await;
    subscriber.nothing().await;
    drop(subscriber);
    let broker = lasting.again(broker).await;
    let (mut subscriber, present) = resume(&broker, Version::V5, "s").await;
    assert!(present);
    assert_eq!(subscriber.next().await, Seen::Ack("PUBREL", identifiers[1], ReasonCode::Success));
    assert_eq!(delivery(&mut subscriber).await, (vec![3], QoS::AtLeastOnce, true, identifiers[2]));
    assert_eq!(delivery(&mut subscriber).await, (vec![5], QoS::AtLeastOnce, true, identifiers[4]));
    subscriber.ack(AckKind::PubComp, identifiers[1]).await;
    subscriber.ack(AckKind::PubAck, identifiers[2]).await;
    subscriber.ack(AckKind::PubAck, identifiers[4]).await;
    subscriber.nothing().await;
    drop(subscriber);
    let broker = lasting.again(broker).await;
    let (mut subscriber, _) = resume(&broker, Version::V5, "s").await;
    subscriber.nothing().await;
    broker.front.stop().await;
}

#[tokio::test]
async fn a_qos_2_publication_is_dispatched_once_through_a_restart() {
    let lasting = Lasting::new();
    let broker = lasting.start().await;
    let (mut subscriber, _) = resume(&broker, Version::V5, "s").await;
    subscriber.subscribe("t", QoS::AtLeastOnce).await;
    drop(subscriber);
    let (mut publisher, _) = resume(&broker, Version::V311, "p").await;
    publisher.publish("t", b"once", QoS::ExactlyOnce, 9).await;
    assert_eq!(publisher.next().await, Seen::Ack("PUBREC", 9, ReasonCode::Success));
    drop(publisher);
    let broker = lasting.again(broker).await;
    let (mut publisher, present) = resume(&broker, Version::V311, "p").await;
    assert!(present);
    publisher
        .send(&Packet::Publish(Publish { dup: true, ..publish("t", b"once", QoS::ExactlyOnce, 9) }))
        .await;
    assert_eq!(publisher.next().await, Seen::Ack("PUBREC", 9, ReasonCode::Success));
    publisher.ack(AckKind::PubRel, 9).await;
    assert_eq!(publisher.next().await, Seen::Ack("PUBCOMP", 9, ReasonCode::Success));
    // The identifier is free again, also after another restart.
    drop(publisher);
    let broker = lasting.again(broker).await;
    let (mut publisher, _) = resume(&broker, Version::V311, "p").await;
    publisher.publish("t", b"again", QoS::ExactlyOnce, 9).await;
    assert_eq!(publisher.next().await, Seen::Ack("PUBREC", 9, ReasonCode::Success));
    let (mut subscriber, _) = resume(&broker, Version::V5, "s").await;
    assert_eq!(delivery(&mut subscriber).await.0, b"once");
    assert_eq!(delivery(&mut subscriber).await.0, b"again");
    subscriber.nothing().await;
    broker.front.stop().await;
}

#[tokio::test]
async fn sinks_get_again_what_they_had_not_finished_and_sessions_do_not() {
    let lasting = Lasting::new();
    let broker = lasting.start().await;
    let sink = Arc::new(Sink::default());
    broker.router.add_sink("t", sink.clone());
    let (mut subscriber, _) = resume(&broker, Version::V5, "s").await;
    subscriber.subscribe("t", QoS::AtLeastOnce).await;
    let (mut publisher, _) = resume(&broker, Version::V5, "p").await;
    publisher.publish("t", b"x", QoS::ExactlyOnce, 9).await;
    assert_eq!(delivery(&mut subscriber).await.0, b"x");
    subscriber.ack(AckKind::PubAck, 1).await;
    subscriber.nothing().await;
    publisher.nothing().await;
    drop((publisher, subscriber));
    let broker = lasting.again(broker).await;
    let sink = Arc::new(Sink::default());
    broker.router.add_sink("t", sink.clone());
    let (mut subscriber, _) = resume(&broker, Version::V5, "s").await;
    let (mut publisher, _) = resume(&broker, Version::V5, "p").await;
    publisher.send(&Packet::Publish(Publish { dup: true, ..publish("t", b"x", QoS::ExactlyOnce, 9) })).await;
    sink.has(1).await;
    publisher.nothing().await;
    sink.complete(0, Outcome::Success);
    assert_eq!(publisher.next().await, Seen::Ack("PUBREC", 9, ReasonCode::Success));
    subscriber.nothing().await;
    broker.front.stop().await;
}

/// Publishes QoS 2 with identifier 9 to a sink that takes it and another that is full, and goes.
async fn parked_and_gone(broker: &Broker) -> (Arc<Sink>, Arc<Sink>) {
    let (quick, full) = (Arc::new(Sink::default()), Arc::new(Sink::default()));
    broker.router.add_sink("t", quick.clone());
    broker.router.add_sink("t", full.clone());
    full.full.store(true, Ordering::SeqCst);
    let connections = broker.front.stats().connections;
    let (mut publisher, _) = resume(broker, Version::V5, "p").await;
    publisher.publish("t", b"once", QoS::ExactlyOnce, 9).await;
    quick.has(1).await;
    while full.refused.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(publisher);
    broker.until(|stats| stats.connections == connections).await;
    (quick, full)
}

#[tokio::test]
async fn a_publication_that_the_keeper_finishes_is_dispatched_once_through_a_crash() {
    let lasting = Lasting::new();
    let broker = lasting.start().await;
    let (mut subscriber, _) = resume(&broker, Version::V5, "s").await;
    let options = SubscriptionOptions { qos: QoS::AtLeastOnce, ..SubscriptionOptions::default() };
    subscriber.subscribe_with("t", options, None).await;
    let (mut own, _) = resume(&broker, Version::V5, "p").await;
    own.subscribe_with("t", SubscriptionOptions { no_local: true, ..options }, None).await;
    drop(own);
    broker.until(|stats| stats.connections == 1).await;
    let (quick, full) = parked_and_gone(&broker).await;
    subscriber.nothing().await;
    full.full.store(false, Ordering::SeqCst);
    full.room.notify_waiters();
    full.has(1).await;
    assert_eq!(delivery(&mut subscriber).await.0, b"once");
    // Its sinks take their time: no PUBREC before they have finished.
    let (mut publisher, present) = resume(&broker, Version::V5, "p").await;
    assert!(present);
    let again = Publish { dup: true, ..publish("t", b"once", QoS::ExactlyOnce, 9) };
    publisher.send(&Packet::Publish(again.clone())).await;
    publisher.nothing().await;
    quick.complete(0, Outcome::Success);
    full.complete(0, Outcome::Success);
    assert_eq!(publisher.next().await, Seen::Ack("PUBREC", 9, ReasonCode::Success));
    assert_eq!((quick.len(), full.len()), (1, 1));
    // The node dies here: what is in the file now is all that is left of it.
    let crashed = lasting.copy();
    drop((publisher, subscriber));
    tokio::time::timeout(PATIENCE, broker.front.stop()).await.unwrap();
    let broker = crashed.start().await;
    let (mut subscriber, _) = resume(&broker, Version::V5, "s").await;
    let (mut publisher, _) = resume(&broker, Version::V5, "p").await;
    publisher.send(&Packet::Publish(again)).await;
    assert_eq!(publisher.next().await, Seen::Ack("PUBREC", 9, ReasonCode::Success));
    publisher.ack(AckKind::PubRel, 9).await;
    assert_eq!(publisher.next().await, Seen::Ack("PUBCOMP", 9, ReasonCode::Success));
    // Sent before the crash and not acknowledged, so with DUP; once.
    assert_eq!(delivery(&mut subscriber).await, (b"once".to_vec(), QoS::AtLeastOnce, true, 1));
    subscriber.nothing().await;
    broker.front.stop().await;
}

#[tokio::test]
async fn a_repetition_for_sinks_alone_stays_one_when_it_is_parked_again() {
    let lasting = Lasting::new();
    let broker = lasting.start().await;
    let sink = Arc::new(Sink::default());
    broker.router.add_sink("t", sink.clone());
    let (mut subscriber, _) = resume(&broker, Version::V5, "s").await;
    subscriber.subscribe("t", QoS::AtLeastOnce).await;
    let (mut publisher, _) = resume(&broker, Version::V5, "p").await;
    publisher.publish("t", b"once", QoS::ExactlyOnce, 9).await;
    assert_eq!(delivery(&mut subscriber).await.0, b"once");
    subscriber.ack(AckKind::PubAck, 1).await;
    subscriber.nothing().await;
    publisher.nothing().await;
    drop((publisher, subscriber));
    let broker = lasting.again(broker).await;
    let (mut subscriber, _) = resume(&broker, Version::V5, "s").await;
    let sink = Arc::new(Sink::default());
    broker.router.add_sink("t", sink.clone());
    sink.full.store(true, Ordering::SeqCst);
    let again = Publish { dup: true, ..publish("t", b"once", QoS::ExactlyOnce, 9) };
    // Parked with nobody having it, and gone; then parked behind a sink that has it, and gone.
    for quick in [false, true] {
        let first = Arc::new(Sink::default());
        if quick {
            broker.router.add_sink("+", first.clone());
        }
        let refused = sink.refused.load(Ordering::SeqCst);
        let (mut publisher, _) = resume(&broker, Version::V5, "p").await;
        publisher.send(&Packet::Publish(again.clone())).await;
        while sink.refused.load(Ordering::SeqCst) == refused {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(publisher);
        broker.until(|stats| stats.connections == 1).await;
    }
    sink.full.store(false, Ordering::SeqCst);
    sink.room.notify_waiters();
    sink.has(1).await;
    sink.complete(0, Outcome::Success);
    subscriber.nothing().await;
    broker.front.stop().await;
}

#[tokio::test]
async fn sessions_end_by_the_clock_on_the_wall_and_by_clean_start() {
    let lasting = Lasting::new();
    let broker = lasting.start().await;
    for (client_id, expiry) in [("short", 1), ("long", 600), ("cleaned", 600)] {
        let mut client = Client::open(broker.address, Version::V5).await;
        let connect = Connect { session_expiry_interval: expiry, ..persistent(Version::V5, client_id) };
        client.connect(&connect).await;
        client.subscribe("t", QoS::AtLeastOnce).await;
        client.disconnect(ReasonCode::Success).await;
    }
    // One that is to end with its connection, on the session that was to last.
    let mut client = Client::open(broker.address, Version::V5).await;
    client.connect(&connect(Version::V5, "cleaned")).await;
    broker.until(|stats| stats.connections == 1).await;
    tokio::time::timeout(PATIENCE, broker.front.stop()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let broker = lasting.start().await;
    let stats = broker.front.stats();
    assert_eq!((stats.sessions_restored, stats.sessions_expired, stats.subscriptions), (1, 1, 1));
    assert!(!resume(&broker, Version::V5, "short").await.1);
    assert!(!resume(&broker, Version::V5, "cleaned").await.1);
    assert!(resume(&broker, Version::V5, "long").await.1);
    broker.front.stop().await;
}

#[tokio::test]
async fn unsubscribed_filters_stay_so_and_retained_messages_stay() {
    let lasting = Lasting::new();
    let broker = lasting.start().await;
    let (mut subscriber, _) = resume(&broker, Version::V5, "s").await;
    subscriber.subscribe("a", QoS::AtLeastOnce).await;
    subscriber.subscribe("b", QoS::AtLeastOnce).await;
    assert_eq!(subscriber.unsubscribe("a").await, [ReasonCode::Success]);
    let mut publisher = broker.client(Version::V5, "p").await;
    let retain = |topic, payload, qos, identifier| {
        Packet::Publish(Publish { retain: true, ..publish(topic, payload, qos, identifier) })
    };
    publisher.send(&retain("r/1", b"old", QoS::AtLeastOnce, 1)).await;
    publisher.next().await;
    publisher.send(&retain("r/1", b"new", QoS::AtLeastOnce, 1)).await;
    publisher.next().await;
    publisher.send(&retain("r/2", b"gone", QoS::AtLeastOnce, 1)).await;
    publisher.next().await;
    publisher.send(&retain("r/2", b"", QoS::AtLeastOnce, 1)).await;
    publisher.next().await;
    publisher.send(&retain("r/3", b"unreliable", QoS::AtMostOnce, 0)).await;
    publisher.send(&retain("b", b"both", QoS::AtLeastOnce, 1)).await;
    publisher.next().await;
    drop((publisher, subscriber));
    let broker = lasting.again(broker).await;
    assert_eq!(broker.front.stats().retained_messages, 3);
    let (mut subscriber, _) = resume(&broker, Version::V5, "s").await;
    assert_eq!(delivery(&mut subscriber).await.0, b"both");
    let mut publisher = broker.client(Version::V5, "p").await;
    publisher.publish("a", b"x", QoS::AtLeastOnce, 1).await;
    assert_eq!(publisher.next().await, Seen::Ack("PUBACK", 1, ReasonCode::NoMatchingSubscribers));
    subscriber.nothing().await;
    // Retained messages follow a SUBACK, with identifiers that are stored like others.
    subscriber.subscribe("r/#", QoS::ExactlyOnce).await;
    let mut seen = [delivery(&mut subscriber).await, delivery(&mut subscriber).await];
    seen.sort();
    assert_eq!(
        (&seen[0].0[..], seen[0].1, &seen[1].0[..]),
        (&b"new"[..], QoS::AtLeastOnce, &b"unreliable"[..])
    );
    broker.front.stop().await;
}

#[tokio::test]
async fn a_delayed_will_is_published_after_a_restart_once() {
    let lasting = Lasting::new();
    let broker = lasting.start().await;
    let (mut watcher, _) = resume(&broker, Version::V5, "watcher").await;
    watcher.subscribe("will/#", QoS::AtLeastOnce).await;
    let mut client = Client::open(broker.address, Version::V5).await;
    let mut last = will("will/delayed", b"late");
    last.delay_interval = 1;
    client.connect(&Connect { will: Some(last), ..persistent(Version::V5, "c") }).await;
    drop(client);
    broker.until(|stats| stats.connections == 1).await;
    drop(watcher);
    let broker = lasting.again(broker).await;
    let (mut watcher, _) = resume(&broker, Version::V5, "watcher").await;
    assert_eq!(delivery(&mut watcher).await.0, b"late");
    watcher.ack(AckKind::PubAck, 1).await;
    watcher.nothing().await;
    drop(watcher);
    let broker = lasting.again(broker).await;
    let (mut watcher, _) = resume(&broker, Version::V5, "watcher").await;
    watcher.nothing().await;
    assert_eq!(broker.front.stats().wills_published, 0);
    broker.front.stop().await;
}

#[derive(Default)]
struct Told(parking_lot::Mutex<Vec<Outcome>>);

impl AckSink for Told {
    fn acknowledge(&self, _: &[SequenceRange], outcome: Outcome) {
        self.0.lock().push(outcome);
    }
}

#[tokio::test]
async fn a_hand_over_is_complete_when_the_message_is_stored() {
    let lasting = Lasting::new();
    let broker = lasting.start().await;
    let (mut subscriber, _) = resume(&broker, Version::V5, "s").await;
    subscriber.subscribe("t", QoS::AtLeastOnce).await;
    let told = Arc::new(Told::default());
    let origin = Arc::new(Origin { client_id: "kafka".into(), username: None, peer: None });
    {
        let hand_over = HandOver::new(Ticket::new(told.clone(), 0));
        let message = Message {
            origin: &origin,
            topic: "t",
            payload: b"from kafka",
            qos: QoS::AtLeastOnce,
            retain: false,
            dup: false,
            properties: &PublishProperties::default(),
            received_at: 0,
            hops: 0,
        };
        let mut progress = PublishProgress::default();
        let published =
            broker.router.publish(&message, Some(&hand_over), &mut progress, &mut WakeList::default());
        assert!(matches!(published, Published::Done { matched: 1 }));
    }
    // Not acknowledged by the client, and yet handed over.
    assert_eq!(delivery(&mut subscriber).await.0, b"from kafka");
    let wait = async {
        while told.0.lock().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap();
    drop(subscriber);
    let broker = lasting.again(broker).await;
    let (mut subscriber, _) = resume(&broker, Version::V5, "s").await;
    assert_eq!(delivery(&mut subscriber).await, (b"from kafka".to_vec(), QoS::AtLeastOnce, true, 1));
    broker.front.stop().await;
}

#[tokio::test]
async fn many_messages_one_after_the_other_keep_their_order_and_leave_the_file() {
    let lasting = Lasting::new();
    let broker = lasting.start().await;
    let (mut subscriber, _) = resume(&broker, Version::V311, "s").await;
    subscriber.subscribe("t", QoS::ExactlyOnce).await;
    let (mut publisher, _) = resume(&broker, Version::V5, "p").await;
    // A few commits long, with both QoS in one order.
    let (mut published, mut expected) = (0u32, 0u32);
    let mut window = 0;
    while expected < 6_000 {
        while window < 200 && published < 6_000 {
            let qos = if published.is_multiple_of(1000) { QoS::ExactlyOnce } else { QoS::AtLeastOnce };
            publisher.publish("t", &published.to_be_bytes(), qos, (published % 60_000) as u16 + 1).await;
            published += 1;
            window += 1;
        }
        match subscriber.next().await {
            Seen::Publish { payload, qos, identifier, .. } => {
                assert_eq!(payload, expected.to_be_bytes());
                assert_eq!(u32::from(identifier), expected % 65_535 + 1);
                let kind = if qos == QoS::ExactlyOnce { AckKind::PubRec } else { AckKind::PubAck };
                subscriber.ack(kind, identifier).await;
                expected += 1;
                window -= 1;
            }
            Seen::Ack("PUBREL", identifier, _) => subscriber.ack(AckKind::PubComp, identifier).await,
            other => panic!("{other:?}"),
        }
        while let Ok(seen) = tokio::time::timeout(Duration::ZERO, publisher.try_next()).await {
            if let Seen::Ack("PUBREC", identifier, _) = seen {
                publisher.ack(AckKind::PubRel, identifier).await;
            }
        }
    }
    subscriber.nothing_but_acks().await;
    drop(subscriber);
    let broker = lasting.again(broker).await;
    let (mut subscriber, _) = resume(&broker, Version::V311, "s").await;
    subscriber.nothing_but_acks().await;
    broker.front.stop().await;
    let length = lasting.folder.path().join("sessions.redb").metadata().unwrap().len();
    assert!(length < 8 << 20, "{length}");
}
