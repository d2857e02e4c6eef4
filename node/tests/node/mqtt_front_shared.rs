//! Shared subscriptions (MQTT-5.0 4.8.2) over the wire, and what subscriptions of others cost a publisher.

use std::{sync::Arc, time::Duration};

use crate::mqtt_front::*;
use causeway::{
    flow::mailbox::Capacity,
    flow::{AckSink, HandOver, Message, Origin, Outcome, SequenceRange, Ticket, WakeList},
    mqtt::{PublishProgress, Published, ShareStrategy},
};
use causeway_protocol::mqtt::{
    Ack, AckKind, Packet, Publish, PublishProperties, QoS, ReasonCode, SubscriptionOptions, Version,
};
use parking_lot::Mutex;

const VERSIONS: [Version; 3] = [Version::V31, Version::V311, Version::V5];

async fn returning(broker: &Broker, version: Version, client_id: &str) -> Client {
    let mut client = Client::open(broker.address, version).await;
    assert_eq!(client.connect(&persistent(version, client_id)).await.0, ReasonCode::Success);
    client
}

/// Payload, QoS and identifier of the next packet, which must be a PUBLISH.
async fn delivery(client: &mut Client) -> (Vec<u8>, QoS, u16, bool) {
    match client.next().await {
        Seen::Publish { payload, qos, identifier, dup, .. } => (payload, qos, identifier, dup),
        other => panic!("no delivery: {other:?}"),
    }
}

async fn publish_numbers(publisher: &mut Client, qos: QoS, numbers: std::ops::Range<u8>) {
    for number in numbers {
        publisher
            .publish("t", &[number], qos, if qos == QoS::AtMostOnce { 0 } else { u16::from(number) + 1 })
            .await;
    }
    publisher.nothing_but_acks().await;
}

#[tokio::test]
async fn each_message_goes_to_one_member_of_each_group_in_turn() {
    let broker = broker().await;
    let mut members = Vec::new();
    for version in VERSIONS {
        let mut member = broker.client(version, &format!("{version:?}")).await;
        assert_eq!(member.subscribe("$share/g/t/#", QoS::AtLeastOnce).await, [ReasonCode::GrantedQoS1]);
        members.push(member);
    }
    let mut other = broker.client(Version::V5, "other").await;
    other.subscribe("$share/h/t/#", QoS::AtMostOnce).await;
    other.subscribe("t/+", QoS::AtMostOnce).await;
    assert_eq!(other.shared_available, None, "absent means available (MQTT-5.0 3.2.2.3.13)");
    // Two publishers, so that two route caches are at work.
    let mut publishers = [broker.client(Version::V5, "p").await, broker.client(Version::V311, "q").await];
    for number in 0..12 {
        publishers[usize::from(number % 2)].publish("t/a", &[number], QoS::AtMostOnce, 0).await;
        publishers[usize::from(number % 2)].nothing().await;
        assert_eq!(delivery(&mut other).await.0, [number], "its own subscription");
        assert_eq!(delivery(&mut other).await.0, [number], "its group's");
    }
    for (place, member) in members.iter_mut().enumerate() {
        for turn in 0..4 {
            assert_eq!(delivery(member).await.0, [turn * 3 + place as u8]);
        }
        member.nothing().await;
    }
    // Without its subscription a member is out; the last one leaves nobody behind.
    assert_eq!(members[2].unsubscribe("$share/g/t/#").await, [ReasonCode::Success]);
    publishers[0].publish("t/a", b"x", QoS::AtMostOnce, 0).await;
    publishers[0].publish("t/a", b"y", QoS::AtMostOnce, 0).await;
    publishers[0].nothing().await;
    members[2].nothing().await;
    let (x, y) = (delivery(&mut members[0]).await.0, delivery(&mut members[1]).await.0);
    assert!([x, y].concat().iter().all(|byte| b"xy".contains(byte)));
    let subscriptions = broker.front.stats().subscriptions;
    drop(members);
    broker.until(|stats| stats.subscriptions == subscriptions - 2).await;
    assert_eq!(broker.router.find_route("t/a").subscribers(), 2);
}

#[tokio::test]
async fn a_shared_subscription_gets_no_retained_messages_and_its_own_qos_and_identifier() {
    let broker = broker().await;
    let mut publisher = broker.client(Version::V5, "p").await;
    let retained = Publish { retain: true, ..publish("t", b"kept", QoS::AtMostOnce, 0) };
    publisher.send(&Packet::Publish(retained)).await;
    publisher.nothing().await;
    let mut members = Vec::new();
    for (number, qos) in [(1, QoS::AtMostOnce), (2, QoS::ExactlyOnce)] {
        let mut member = broker.client(Version::V5, &number.to_string()).await;
        let options = SubscriptionOptions { qos, ..SubscriptionOptions::default() };
        member.subscribe_with("$share/g/t", options, Some(number)).await;
        member.nothing().await;
        members.push(member);
    }
    publish_numbers(&mut publisher, QoS::ExactlyOnce, 0..2).await;
    let Seen::Publish { qos: QoS::AtMostOnce, identifiers, .. } = members[0].next().await else {
        panic!("QoS 0")
    };
    assert_eq!(identifiers, [1]);
    let Seen::Publish { qos: QoS::ExactlyOnce, identifiers, .. } = members[1].next().await else {
        panic!("QoS 2")
    };
    assert_eq!(identifiers, [2]);
    // MQTT-3.8.3-4.
    let options = SubscriptionOptions { no_local: true, ..SubscriptionOptions::default() };
    let mut wrong = broker.client(Version::V5, "wrong").await;
    wrong
        .send(&Packet::Subscribe(causeway_protocol::mqtt::Subscribe {
            packet_identifier: 1,
            filters: vec![causeway_protocol::mqtt::SubscribeFilter { filter: "$share/g/t", options }],
            ..Default::default()
        }))
        .await;
    assert_eq!(wrong.next().await, Seen::Disconnect(ReasonCode::ProtocolError));
}

#[tokio::test]
async fn what_a_member_has_not_acknowledged_when_its_session_ends_goes_to_another() {
    for version in VERSIONS {
        let broker = broker_with(|options| options.max_inflight = 2).await;
        let mut first = broker.client(version, "1").await;
        first.subscribe("$share/g/t", QoS::ExactlyOnce).await;
        let mut publisher = broker.client(Version::V5, "p").await;
        publish_numbers(&mut publisher, QoS::AtLeastOnce, 0..1).await;
        publish_numbers(&mut publisher, QoS::ExactlyOnce, 1..4).await;
        // In flight: a QoS 1 and a QoS 2 message; two wait for the window.
        assert_eq!(delivery(&mut first).await.0, [0]);
        assert_eq!(delivery(&mut first).await.0, [1]);
        let mut second = broker.client(version, "2").await;
        second.subscribe("$share/g/t", QoS::ExactlyOnce).await;
        drop(first);
        // The QoS 1 message as a new one, with an identifier of the second's; the QoS 2 message that was
        // under way to the first is not sent to anybody else (MQTT-4.8.2-5).
        let (payload, qos, identifier, dup) = delivery(&mut second).await;
        assert_eq!((payload, qos, identifier, dup), (vec![0], QoS::AtLeastOnce, 1, false), "{version:?}");
        second.ack(AckKind::PubAck, 1).await;
        assert_eq!(delivery(&mut second).await.0, [2]);
        assert_eq!(delivery(&mut second).await.0, [3]);
        assert_eq!(broker.front.stats().shared_passed_on, 3);
    }
}

#[tokio::test]
async fn a_refused_message_goes_to_nobody_else() {
    let broker = broker().await;
    let mut first = broker.client(Version::V5, "1").await;
    first.subscribe("$share/g/t", QoS::AtLeastOnce).await;
    let mut publisher = broker.client(Version::V5, "p").await;
    publish_numbers(&mut publisher, QoS::AtLeastOnce, 0..1).await;
    let identifier = delivery(&mut first).await.2;
    let mut second = broker.client(Version::V5, "2").await;
    second.subscribe("$share/g/t", QoS::AtLeastOnce).await;
    let refusal = Ack { packet_identifier: identifier, reason: ReasonCode::QuotaExceeded, ..Ack::default() };
    first.send(&Packet::PubAck(refusal)).await;
    first.nothing().await;
    drop(first);
    broker.until(|stats| stats.connections == 2).await;
    // MQTT-4.8.2-6.
    second.nothing().await;
}

#[tokio::test]
async fn members_that_last_keep_what_they_have_and_without_any_connected_one_gets_all_in_order() {
    let broker = broker().await;
    let mut clients = Vec::new();
    for id in ["1", "2"] {
        let mut client = returning(&broker, Version::V5, id).await;
        client.subscribe("$share/g/t", QoS::AtLeastOnce).await;
        clients.push(client);
    }
    let mut publisher = broker.client(Version::V5, "p").await;
    publish_numbers(&mut publisher, QoS::AtLeastOnce, 0..2).await;
    assert_eq!(delivery(&mut clients[0]).await.0, [0]);
    assert_eq!(delivery(&mut clients[1]).await.0, [1]);
    // The first leaves without having acknowledged: everything new goes to the second.
    clients.remove(0);
    broker.until(|stats| stats.connections == 2).await;
    publish_numbers(&mut publisher, QoS::AtLeastOnce, 2..5).await;
    for number in 2..5 {
        assert_eq!(delivery(&mut clients[0]).await.0, [number]);
    }
    clients.clear();
    broker.until(|stats| stats.connections == 1).await;
    publish_numbers(&mut publisher, QoS::AtLeastOnce, 5..15).await;
    let mut first = returning(&broker, Version::V5, "1").await;
    assert_eq!(delivery(&mut first).await, (vec![0], QoS::AtLeastOnce, 1, true), "what it had before");
    for number in 5..15 {
        assert_eq!(delivery(&mut first).await.0, [number]);
    }
    let mut second = returning(&broker, Version::V5, "2").await;
    for number in 1..5 {
        assert_eq!(delivery(&mut second).await.0, [number]);
    }
    second.nothing().await;
}

#[tokio::test]
async fn a_member_without_room_does_not_lose_what_others_have_room_for() {
    let broker = broker_with(|options| {
        options.session_queue = Capacity { bytes: 1 << 20, items: 5 };
        options.max_inflight = 1;
    })
    .await;
    let mut slow = broker.client(Version::V5, "slow").await;
    let mut fast = broker.client(Version::V5, "fast").await;
    for client in [&mut slow, &mut fast] {
        client.subscribe("$share/g/t", QoS::AtLeastOnce).await;
    }
    let mut publisher = broker.client(Version::V5, "p").await;
    let mut received = 0;
    for number in 0..40 {
        publish_numbers(&mut publisher, QoS::AtLeastOnce, number..number + 1).await;
        while let Ok(Seen::Publish { identifier, .. }) =
            tokio::time::timeout(Duration::from_millis(20), fast.try_next()).await
        {
            received += 1;
            fast.ack(AckKind::PubAck, identifier).await;
        }
    }
    assert_eq!(received, 34, "the slow one has one in flight and five waiting");
    assert_eq!(broker.front.stats().dropped_queue_full, 0);
}

#[tokio::test]
async fn the_strategy_is_configurable() {
    let broker = broker_with(|options| options.shared_subscription_strategy = ShareStrategy::Sticky).await;
    let mut first = broker.client(Version::V5, "1").await;
    let mut second = broker.client(Version::V5, "2").await;
    for client in [&mut first, &mut second] {
        client.subscribe("$share/g/t", QoS::AtMostOnce).await;
    }
    let mut publisher = broker.client(Version::V5, "p").await;
    publish_numbers(&mut publisher, QoS::AtMostOnce, 0..3).await;
    for number in 0..3 {
        assert_eq!(delivery(&mut first).await.0, [number]);
    }
    drop(first);
    broker.until(|stats| stats.connections == 2).await;
    publish_numbers(&mut publisher, QoS::AtMostOnce, 3..5).await;
    for number in 3..5 {
        assert_eq!(delivery(&mut second).await.0, [number]);
    }
}

#[derive(Default)]
struct Completed(Mutex<Vec<Outcome>>);

impl AckSink for Completed {
    fn acknowledge(&self, _: &[SequenceRange], outcome: Outcome) {
        self.0.lock().push(outcome);
    }
}

/// What a bridge publishes is handed over when a member has acknowledged it, whoever that is in the end.
#[tokio::test]
async fn a_hand_over_moves_with_its_message() {
    let broker = broker().await;
    let mut first = broker.client(Version::V5, "1").await;
    first.subscribe("$share/g/t", QoS::AtLeastOnce).await;
    let completed = Arc::new(Completed::default());
    let hand_over = HandOver::new(Ticket::new(completed.clone(), 1));
    let origin = Arc::new(Origin { client_id: "bridge".into(), username: None, peer: None });
    let message = Message {
        origin: &origin,
        topic: "t",
        payload: b"x",
        qos: QoS::AtLeastOnce,
        retain: false,
        dup: false,
        properties: &PublishProperties::default(),
        received_at: 0,
        hops: 0,
    };
    let published = broker.router.publish(
        &message,
        Some(&hand_over),
        &mut PublishProgress::default(),
        &mut WakeList::default(),
    );
    assert!(matches!(published, Published::Done { matched: 1 }));
    drop(hand_over);
    delivery(&mut first).await;
    let mut second = broker.client(Version::V5, "2").await;
    second.subscribe("$share/g/t", QoS::AtLeastOnce).await;
    drop(first);
    let (_, _, identifier, _) = delivery(&mut second).await;
    assert!(completed.0.lock().is_empty(), "nobody has acknowledged it");
    second.ack(AckKind::PubAck, identifier).await;
    second.nothing().await;
    assert_eq!(*completed.0.lock(), [Outcome::Success]);
}

/// One client subscribes and unsubscribes as fast as it can; the routes of the others stay.
#[tokio::test]
async fn a_flood_of_subscriptions_leaves_the_routes_of_others_alone() {
    let broker = broker().await;
    let mut subscriber = broker.client(Version::V5, "s").await;
    subscriber.subscribe("devices/+/state", QoS::AtMostOnce).await;
    let mut publisher = broker.client(Version::V5, "p").await;
    let mut flood = broker.client(Version::V5, "f").await;
    let topics: Vec<_> = (0..100).map(|number| format!("devices/{number}/state")).collect();
    let before = broker.front.stats().routes_found;
    for round in 0..20 {
        for filter in ["devices/x/cmd", "devices/x/#", "others/+", "$share/g/devices/y/+/z"] {
            flood.subscribe(filter, QoS::AtMostOnce).await;
            flood.unsubscribe(filter).await;
        }
        for topic in &topics {
            publisher.publish(topic, &[round], QoS::AtMostOnce, 0).await;
            assert!(matches!(subscriber.next().await, Seen::Publish { .. }));
        }
    }
    let found = broker.front.stats().routes_found - before;
    assert!(found < 100 + 20 * 4, "{found} routes were worked out for 100 topics");
    // And a subscription that matches is seen by the next publication.
    flood.subscribe("devices/7/+", QoS::AtMostOnce).await;
    publisher.publish("devices/7/state", b"!", QoS::AtMostOnce, 0).await;
    assert_eq!(flood.next().await, published("devices/7/state", b"!"));
}
