//! What CONNACK announces and reasons explain: switches, keep-alive, response information, topic aliases
//! towards clients, and clients that go away while they have to wait.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use crate::mqtt_front::*;
use causeway::mqtt::Options;
use causeway_protocol::mqtt::{
    Connect, Packet, Publish, PublishProperties, QoS, ReasonCode, UserPropertiesBuf, Version, Will,
};

async fn switched(change: impl FnOnce(&mut Options)) -> (Broker, Client) {
    let broker = broker_with(change).await;
    let client = broker.client(Version::V5, "c").await;
    (broker, client)
}

#[tokio::test]
async fn the_highest_qos_is_announced_and_kept_to() {
    let (broker, mut client) = switched(|options| options.max_qos = QoS::AtLeastOnce).await;
    assert_eq!(client.switches, (Some(QoS::AtLeastOnce), None, None));
    assert_eq!(client.subscribe("t", QoS::ExactlyOnce).await, [ReasonCode::GrantedQoS1]);
    client.publish("t", b"1", QoS::AtLeastOnce, 1).await;
    assert!(matches!(client.next().await, Seen::Publish { qos: QoS::AtLeastOnce, .. } | Seen::Ack(..)));
    assert!(matches!(client.next().await, Seen::Publish { qos: QoS::AtLeastOnce, .. } | Seen::Ack(..)));
    client.publish("t", b"2", QoS::ExactlyOnce, 2).await;
    assert_eq!(client.next().await, Seen::Disconnect(ReasonCode::QoSNotSupported));
    assert!(client.reason_string.as_ref().is_some_and(|text| text.contains("max_qos_allowed")));
    let mut client = Client::open(broker.address, Version::V5).await;
    let above =
        Connect { will: Some(Will { qos: QoS::ExactlyOnce, ..will("w", b"") }), ..connect(Version::V5, "c") };
    assert_eq!(client.connect(&above).await.0, ReasonCode::QoSNotSupported);
    let mut old = broker.client(Version::V311, "old").await;
    old.publish("t", b"2", QoS::ExactlyOnce, 2).await;
    assert_eq!(old.next().await, Seen::Closed);
}

#[tokio::test]
async fn retained_messages_can_be_switched_off() {
    let (broker, mut client) = switched(|options| options.retain_available = false).await;
    assert_eq!(client.switches, (None, Some(false), None));
    let retained = Publish { retain: true, ..publish("t", b"x", QoS::AtMostOnce, 0) };
    client.send(&Packet::Publish(retained)).await;
    assert_eq!(client.next().await, Seen::Disconnect(ReasonCode::RetainNotSupported));
    let mut client = Client::open(broker.address, Version::V5).await;
    let retained =
        Connect { will: Some(Will { retain: true, ..will("w", b"") }), ..connect(Version::V5, "c") };
    assert_eq!(client.connect(&retained).await.0, ReasonCode::RetainNotSupported);
    assert!(client.reason_string.is_some());
}

#[tokio::test]
async fn wildcards_and_shared_subscriptions_can_be_switched_off() {
    let (broker, mut client) = switched(|options| {
        options.wildcard_subscription = false;
        options.shared_subscription = false;
    })
    .await;
    assert_eq!((client.switches, client.shared_available), ((None, None, Some(false)), Some(false)));
    let wildcard = [ReasonCode::WildcardSubscriptionsNotSupported];
    assert_eq!(client.subscribe("a/+", QoS::AtMostOnce).await, wildcard);
    assert_eq!(
        client.reason_string.as_deref(),
        Some("a/+: wildcards are switched off (mqtt.wildcard_subscription)")
    );
    let shared = [ReasonCode::SharedSubscriptionsNotSupported];
    assert_eq!(client.subscribe("$share/g/a", QoS::AtMostOnce).await, shared);
    assert_eq!(client.subscribe("a/b", QoS::AtMostOnce).await, [ReasonCode::Success]);
    let mut silent = Client::open(broker.address, Version::V5).await;
    silent.connect(&Connect { request_problem_information: false, ..connect(Version::V5, "s") }).await;
    assert_eq!(silent.subscribe("a/+", QoS::AtMostOnce).await, wildcard);
    assert_eq!(silent.reason_string, None, "it asked for none");
    let mut small = Client::open(broker.address, Version::V5).await;
    small.connect(&Connect { maximum_packet_size: Some(40), ..connect(Version::V5, "m") }).await;
    assert_eq!(small.subscribe("a/+", QoS::AtMostOnce).await, wildcard);
    assert_eq!(small.reason_string, None, "it does not fit");
}

#[tokio::test]
async fn a_long_keep_alive_is_shortened_and_kept_to() {
    let (broker, client) = switched(|options| options.max_keep_alive = 1).await;
    assert_eq!(client.server_keep_alive, Some(1), "it asked for none");
    let mut client = client;
    let start = Instant::now();
    assert_eq!(client.next().await, Seen::Disconnect(ReasonCode::KeepAliveTimeout));
    assert!(start.elapsed().as_millis() >= 1400);
    let mut modest = Client::open(broker.address, Version::V5).await;
    modest.connect(&Connect { keep_alive: 1, ..connect(Version::V5, "m") }).await;
    assert_eq!(modest.server_keep_alive, None);
}

#[tokio::test]
async fn response_information_is_given_to_those_who_ask() {
    let (broker, client) = switched(|options| options.response_information = "replies/".to_owned()).await;
    assert_eq!(client.response_information, None);
    let mut asking = Client::open(broker.address, Version::V5).await;
    asking.connect(&Connect { request_response_information: true, ..connect(Version::V5, "a") }).await;
    assert_eq!(asking.response_information.as_deref(), Some("replies/"));
}

#[tokio::test]
async fn text_that_is_none_is_refused_where_that_is_wanted() {
    for validate in [false, true] {
        let (broker, mut client) = switched(|options| options.payload_format_validation = validate).await;
        client.subscribe("t", QoS::AtMostOnce).await;
        let properties =
            || PublishProperties { payload_format_indicator: Some(1), ..PublishProperties::default() };
        let packet = |qos, identifier| {
            Packet::Publish(Publish { properties: properties(), ..publish("t", b"\xff", qos, identifier) })
        };
        client.send(&packet(QoS::AtMostOnce, 0)).await;
        if !validate {
            assert_eq!(client.next().await, published("t", b"\xff"));
            continue;
        }
        client.send(&packet(QoS::AtLeastOnce, 1)).await;
        assert_eq!(client.next().await, Seen::Ack("PUBACK", 1, ReasonCode::PayloadFormatInvalid));
        assert!(client.reason_string.is_some());
        client.send(&packet(QoS::ExactlyOnce, 2)).await;
        assert_eq!(client.next().await, Seen::Ack("PUBREC", 2, ReasonCode::PayloadFormatInvalid));
        client.nothing().await;
        assert_eq!(broker.front.stats().dropped_invalid_payload, 3);
    }
}

#[tokio::test]
async fn a_malformed_packet_is_explained() {
    use tokio::io::AsyncWriteExt;
    let (_broker, mut client) = switched(|_| {}).await;
    client.socket.write_all(&[0xC1, 0]).await.expect("an open connection");
    assert_eq!(client.next().await, Seen::Disconnect(ReasonCode::MalformedPacket));
    assert!(
        client.reason_string.as_ref().is_some_and(|text| text.contains("flags")),
        "{:?}",
        client.reason_string
    );
}

#[tokio::test]
async fn clients_that_take_aliases_get_topics_by_alias() {
    let broker = broker().await;
    let mut with = Client::open(broker.address, Version::V5).await;
    with.connect(&Connect { topic_alias_maximum: 2, ..connect(Version::V5, "with") }).await;
    let mut without = broker.client(Version::V5, "without").await;
    let mut publisher = broker.client(Version::V5, "p").await;
    for client in [&mut with, &mut without] {
        client.subscribe("topics/#", QoS::AtMostOnce).await;
    }
    let mut properties = PublishProperties::default();
    let mut user = UserPropertiesBuf::new();
    for (name, value) in [("b", "1"), ("a", "2"), ("b", "1")] {
        user.push(name, value).expect("a legal property");
    }
    properties.user_properties = user.borrow();
    for number in 0..30u8 {
        // Three topics for two aliases, with and without properties, small and large.
        let topic = format!("topics/{}", number % 3);
        let body = vec![number; if number % 5 == 0 { 20_000 } else { 10 }];
        let packet = Publish { properties: properties.clone(), ..publish(&topic, &body, QoS::AtMostOnce, 0) };
        let packet = if number % 2 == 0 { packet } else { publish(&topic, &body, QoS::AtMostOnce, 0) };
        publisher.send(&Packet::Publish(packet)).await;
        assert_eq!(with.next().await, published(&topic, &body));
        assert_eq!(without.next().await, published(&topic, &body));
    }
    assert_eq!((with.by_alias, without.by_alias), (18, 0));
}

#[tokio::test]
async fn a_client_that_leaves_while_a_sink_has_no_room_is_noticed() {
    for version in [Version::V311, Version::V5] {
        let broker = broker_with(|options| options.receive_maximum = 2).await;
        let sink = Arc::new(Sink::default());
        broker.router.add_sink("t", sink.clone());
        sink.full.store(true, Ordering::SeqCst);
        let mut watcher = broker.client(Version::V5, "w").await;
        watcher.subscribe("will", QoS::AtMostOnce).await;
        let mut client = Client::open(broker.address, version).await;
        client.connect(&Connect { will: Some(will("will", b"gone")), ..connect(version, "c") }).await;
        client.publish("t", b"1", QoS::AtLeastOnce, 1).await;
        client.publish("t", b"behind it", QoS::AtLeastOnce, 2).await;
        let left = Instant::now();
        drop(client);
        assert_eq!(watcher.next().await, published("will", b"gone"), "{version:?}");
        assert!(left.elapsed().as_millis() >= 1900, "what it sent may still get through for a while");
        broker.until(|stats| stats.connections == 1).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_at_the_receive_maximum_is_noticed() {
    let broker = broker_with(|options| options.receive_maximum = 1).await;
    let sink = Arc::new(Sink::default());
    broker.router.add_sink("t", sink.clone());
    let mut client = broker.client(Version::V311, "c").await;
    client.publish("t", b"1", QoS::AtLeastOnce, 1).await;
    client.publish("t", b"2", QoS::AtLeastOnce, 2).await;
    sink.has(1).await;
    drop(client);
    broker.until(|stats| stats.connections == 0).await;
}
