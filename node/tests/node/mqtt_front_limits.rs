//! What happens when something is full: a session's queue, the memory of the device side.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod standstill;

use std::time::Duration;

use crate::mqtt_front::*;
use causeway::{
    flow::mailbox::Capacity,
    mqtt::{Options, QueueFull},
};
use causeway_protocol::mqtt::{AckKind, Connect, Packet, Publish, QoS, ReasonCode, Version};
use tokio::io::AsyncWriteExt;

fn full(queue_full: QueueFull, items: usize) -> impl FnOnce(&mut Options) {
    move |options| {
        options.queue_full = queue_full;
        options.session_queue = Capacity { bytes: 1 << 20, items };
    }
}

async fn returning(broker: &Broker, version: Version, client_id: &str) -> Client {
    let mut client = Client::open(broker.address, version).await;
    assert_eq!(client.connect(&persistent(version, client_id)).await.0, ReasonCode::Success);
    client
}

/// Publishes one message a number, and waits for all acknowledgements.
async fn publish_numbers(publisher: &mut Client, numbers: std::ops::Range<u8>) {
    for number in numbers.clone() {
        publisher.publish("t", &[number], QoS::AtLeastOnce, u16::from(number) + 1).await;
    }
    for _ in numbers {
        assert!(matches!(publisher.next().await, Seen::Ack("PUBACK", ..)));
    }
}

async fn receive_numbers(client: &mut Client) -> Vec<u8> {
    let mut numbers = Vec::new();
    while let Ok(seen) = tokio::time::timeout(Duration::from_millis(300), client.try_next()).await {
        let Seen::Publish { payload, identifier, .. } = seen else { panic!("{seen:?}") };
        numbers.push(payload[0]);
        client.ack(AckKind::PubAck, identifier).await;
    }
    numbers
}

#[tokio::test]
async fn the_queue_of_a_client_that_is_away_keeps_the_first_or_the_last() {
    for (policy, expected) in [
        (QueueFull::DropNewest, [0, 1, 2, 3]),
        (QueueFull::DropOldest, [6, 7, 8, 9]),
        (QueueFull::Disconnect, [0, 1, 2, 3]),
    ] {
        let broker = broker_with(full(policy, 4)).await;
        let mut client = returning(&broker, Version::V5, "s").await;
        client.subscribe("t", QoS::AtLeastOnce).await;
        drop(client);
        broker.until(|stats| stats.connections == 0).await;
        let mut publisher = broker.client(Version::V5, "p").await;
        publish_numbers(&mut publisher, 0..10).await;
        let row = broker.front.clients().get("s").expect("a session");
        assert_eq!((row.connected, row.queued, row.dropped), (false, 4, 6), "{policy:?}");
        assert_eq!(broker.front.stats().dropped_offline_full, 6);
        let mut client = returning(&broker, Version::V5, "s").await;
        assert_eq!(receive_numbers(&mut client).await, expected, "{policy:?}");
        let row = broker.front.clients().get("s").expect("a session");
        assert_eq!((row.connected, row.queued, row.inflight, row.dropped), (true, 0, 0, 6));
    }
}

#[tokio::test]
async fn the_queue_of_a_slow_client_keeps_the_first_or_the_last() {
    for (policy, expected) in
        [(QueueFull::DropNewest, vec![0, 1, 2, 3, 4]), (QueueFull::DropOldest, vec![0, 6, 7, 8, 9])]
    {
        let broker = broker_with(full(policy, 4)).await;
        let mut slow = Client::open(broker.address, Version::V5).await;
        slow.connect(&Connect { receive_maximum: 1, ..connect(Version::V5, "s") }).await;
        slow.subscribe("t", QoS::AtLeastOnce).await;
        let mut publisher = broker.client(Version::V311, "p").await;
        for number in 0..10 {
            // One by one, so that the connection takes each out of the queue.
            publish_numbers(&mut publisher, number..number + 1).await;
            slow.send(&Packet::PingReq).await;
            let mut seen = slow.next().await;
            if number == 0 {
                assert!(matches!(seen, Seen::Publish { identifier: 1, .. }));
                assert_eq!(broker.front.clients().get("s").expect("a session").inflight, 1);
                seen = slow.next().await;
            }
            assert_eq!(seen, Seen::PingResp);
        }
        slow.ack(AckKind::PubAck, 1).await;
        assert_eq!([vec![0], receive_numbers(&mut slow).await].concat(), expected, "{policy:?}");
        assert_eq!(broker.front.clients().get("s").expect("a session").dropped, 5);
        assert_eq!(broker.front.stats().dropped_queue_full, 5);
    }
}

#[tokio::test]
async fn a_client_whose_queue_is_full_is_disconnected_where_that_is_wanted() {
    for version in [Version::V311, Version::V5] {
        let broker = broker_with(|options| {
            full(QueueFull::Disconnect, 2)(options);
            options.max_inflight = 1;
        })
        .await;
        let mut slow = returning(&broker, version, "s").await;
        slow.subscribe("t", QoS::AtLeastOnce).await;
        let mut publisher = broker.client(Version::V5, "p").await;
        for number in 0..3 {
            publish_numbers(&mut publisher, number..number + 1).await;
            slow.send(&Packet::PingReq).await;
            if number == 0 {
                assert!(matches!(slow.next().await, Seen::Publish { .. }));
            }
            assert_eq!(slow.next().await, Seen::PingResp);
        }
        publish_numbers(&mut publisher, 3..6).await;
        if version == Version::V5 {
            assert_eq!(slow.next().await, Seen::Disconnect(ReasonCode::QuotaExceeded));
        }
        assert_eq!(slow.next().await, Seen::Closed);
        drop(slow);
        broker.until(|stats| stats.connections == 1).await;
        let stats = broker.front.stats();
        assert_eq!((stats.disconnected_queue_full, stats.sessions), (1, 2));
        let row = broker.front.clients().get("s").expect("the session stays");
        assert_eq!((row.connected, row.inflight + row.queued, row.dropped), (false, 3, 3));
    }
}

#[tokio::test]
async fn without_memory_the_old_go_on_and_the_new_are_refused() {
    let broker = broker_with(|options| {
        options.max_memory = 16 << 20;
        options.session_queue = Capacity { bytes: 1 << 30, items: 1_000_000 };
    })
    .await;
    let mut fast = broker.client(Version::V5, "fast").await;
    fast.subscribe("t", QoS::AtLeastOnce).await;
    let mut away = returning(&broker, Version::V5, "away").await;
    away.subscribe("t", QoS::AtLeastOnce).await;
    drop(away);
    broker.until(|stats| stats.connections == 1).await;
    let mut publisher = broker.client(Version::V5, "p").await;
    let mut staller = broker.client(Version::V5, "staller").await;
    let body = vec![0; 100_000];
    let mut sent = 0;
    while broker.front.stats().dropped_memory < 50 {
        sent += 1;
        assert!(sent < 1000, "no memory was ever missing");
        publisher.publish("t", &body, QoS::AtLeastOnce, 1).await;
        assert_eq!(publisher.next().await, Seen::Ack("PUBACK", 1, ReasonCode::Success));
        // The one that keeps up gets everything.
        let Seen::Publish { identifier, .. } = fast.next().await else { panic!("a delivery") };
        fast.ack(AckKind::PubAck, identifier).await;
        fast.nothing().await;
    }
    assert!(broker.router.memory_used() <= 17 << 20, "{}", broker.router.memory_used());
    // A packet that stays incomplete keeps it above 7/8.
    let mut partial = bytes::BytesMut::new();
    let large = vec![0; 900_000];
    let packet = Packet::Publish(publish("t", &large, QoS::AtMostOnce, 0));
    packet.encode(Version::V5, &mut partial).expect("a legal packet");
    staller.socket.write_all(&partial[..partial.len() - 1]).await.expect("the broker reads");
    let before = broker.router.memory_used();
    let counted = async {
        while broker.router.memory_used() < before + 500_000 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, counted).await.expect("what a connection has read is counted");
    let packet = Publish { retain: true, ..publish("r", &body, QoS::AtLeastOnce, 1) };
    publisher.send(&Packet::Publish(packet)).await;
    publisher.next().await;
    assert_eq!(broker.front.stats().retained_refused, 1);
    assert!(broker.router.memory_used() <= 17 << 20, "{}", broker.router.memory_used());
    let mut new = Client::open(broker.address, Version::V5).await;
    assert_eq!(new.connect(&connect(Version::V5, "new")).await.0, ReasonCode::QuotaExceeded);
    let mut new = Client::open(broker.address, Version::V311).await;
    assert_eq!(new.connect(&connect(Version::V311, "new")).await.0, ReasonCode::ServerUnavailable);
    assert_eq!(broker.front.stats().refused_memory, 2);
    assert_eq!(fast.subscribe("more", QoS::AtMostOnce).await, [ReasonCode::QuotaExceeded]);
    // Whoever has a session comes back and takes what waits; then there is room again.
    drop(staller);
    let mut away = returning(&broker, Version::V5, "away").await;
    let waiting = sent - broker.front.stats().dropped_memory;
    for _ in 0..waiting {
        let Seen::Publish { identifier, .. } = away.next().await else { panic!("a delivery") };
        away.ack(AckKind::PubAck, identifier).await;
    }
    away.nothing().await;
    let new = async {
        loop {
            let mut new = Client::open(broker.address, Version::V5).await;
            if new.connect(&connect(Version::V5, "new")).await.0 == ReasonCode::Success {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, new).await.expect("room for one more");
}

#[tokio::test]
async fn nearly_complete_packets_of_many_clients_do_not_fill_the_memory() {
    let broker = broker_with(|options| options.max_memory = 16 << 20).await;
    let mut clients = Vec::new();
    for number in 0..40 {
        let mut client = Client::open(broker.address, Version::V5).await;
        let mut packet = bytes::BytesMut::new();
        let (id, body) = (number.to_string(), vec![0; 1_000_000]);
        Packet::Connect(Box::new(connect(Version::V5, &id)))
            .encode(Version::V5, &mut packet)
            .expect("a legal packet");
        Packet::Publish(publish("t", &body, QoS::AtLeastOnce, 1))
            .encode(Version::V5, &mut packet)
            .expect("a legal packet");
        // All but the last byte; who is cut off meanwhile is.
        let _ = client.socket.write_all(&packet[..packet.len() - 1]).await;
        clients.push(client);
    }
    broker.until(|stats| stats.disconnected_memory + stats.refused_memory > 10).await;
    assert!(broker.router.memory_used() < 20 << 20, "{}", broker.router.memory_used());
    drop(clients);
    broker.until(|stats| stats.connections == 0).await;
}
