//! Publishing and subscribing through a real socket, in every version and QoS.

use crate::mqtt_front::*;
use causeway_protocol::mqtt::{
    AckKind, Connect, Packet, Publish, PublishProperties, QoS, ReasonCode, RetainHandling,
    SubscriptionOptions, Version,
};

const VERSIONS: [Version; 3] = [Version::V31, Version::V311, Version::V5];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_version_publishes_to_every_other_with_every_qos() {
    let broker = broker().await;
    for from in VERSIONS {
        for to in VERSIONS {
            let mut publisher = broker.client(from, "p").await;
            let mut subscriber = broker.client(to, "s").await;
            assert_eq!(subscriber.subscribe("a/+", QoS::ExactlyOnce).await, [ReasonCode::GrantedQoS2]);

            publisher.publish("a/b", b"0", QoS::AtMostOnce, 0).await;
            assert_eq!(subscriber.next().await, published("a/b", b"0"));

            publisher.publish("a/b", b"1", QoS::AtLeastOnce, 7).await;
            assert_eq!(publisher.next().await, Seen::Ack("PUBACK", 7, ReasonCode::Success));
            let Seen::Publish { qos: QoS::AtLeastOnce, identifier, .. } = subscriber.next().await else {
                panic!("no QoS 1 delivery")
            };
            subscriber.ack(AckKind::PubAck, identifier).await;

            publisher.publish("a/b", b"2", QoS::ExactlyOnce, 8).await;
            assert_eq!(publisher.next().await, Seen::Ack("PUBREC", 8, ReasonCode::Success));
            publisher.ack(AckKind::PubRel, 8).await;
            assert_eq!(publisher.next().await, Seen::Ack("PUBCOMP", 8, ReasonCode::Success));
            let Seen::Publish { qos: QoS::ExactlyOnce, identifier, .. } = subscriber.next().await else {
                panic!("no QoS 2 delivery")
            };
            subscriber.ack(AckKind::PubRec, identifier).await;
            assert_eq!(subscriber.next().await, Seen::Ack("PUBREL", identifier, ReasonCode::Success));
            subscriber.ack(AckKind::PubComp, identifier).await;
            subscriber.nothing().await;
            publisher.nothing().await;
            publisher.disconnect(ReasonCode::Success).await;
            subscriber.disconnect(ReasonCode::Success).await;
            broker.until(|stats| stats.connections == 0).await;
        }
    }
    let stats = broker.front.stats();
    assert_eq!((stats.sent_qos0, stats.sent_qos1, stats.sent_qos2), (9, 9, 9));
    assert_eq!((stats.sessions, stats.subscriptions, stats.connections), (0, 0, 0));
}

fn payload(seen: Seen) -> Vec<u8> {
    match seen {
        Seen::Publish { payload, .. } => payload,
        other => panic!("no PUBLISH: {other:?}"),
    }
}

#[tokio::test]
async fn retained_messages_reach_later_subscribers_until_they_are_cleared() {
    let broker = broker().await;
    let mut publisher = broker.client(Version::V311, "p").await;
    let retained =
        |payload: &'static [u8]| Publish { retain: true, ..publish("a/b", payload, QoS::AtLeastOnce, 1) };
    publisher.send(&Packet::Publish(retained(b"last"))).await;
    assert_eq!(publisher.next().await, Seen::Ack("PUBACK", 1, ReasonCode::Success));
    let mut subscriber = broker.client(Version::V5, "s").await;
    subscriber.subscribe("a/#", QoS::AtMostOnce).await;
    let Seen::Publish { retain: true, payload: last, .. } = subscriber.next().await else {
        panic!("not retained")
    };
    assert_eq!(last, b"last");
    publisher.send(&Packet::Publish(retained(b"live"))).await;
    let Seen::Publish { retain: false, .. } = subscriber.next().await else { panic!("a live message") };

    let again = |retain_handling| SubscriptionOptions { retain_handling, ..SubscriptionOptions::default() };
    subscriber.subscribe_with("a/#", again(RetainHandling::SendIfNew), None).await;
    subscriber.subscribe_with("a/#", again(RetainHandling::DoNotSend), None).await;
    subscriber.nothing().await;
    subscriber.subscribe_with("a/#", again(RetainHandling::Send), None).await;
    assert_eq!(payload(subscriber.next().await), b"live");

    publisher.send(&Packet::Publish(retained(b""))).await;
    assert_eq!(payload(subscriber.next().await), b"");
    subscriber.subscribe_with("a/#", again(RetainHandling::Send), None).await;
    subscriber.nothing().await;
}

#[tokio::test]
async fn overlapping_subscriptions_give_one_delivery_with_every_identifier() {
    let broker = broker().await;
    let mut client = broker.client(Version::V5, "c").await;
    let options = |qos| SubscriptionOptions { qos, ..SubscriptionOptions::default() };
    client.subscribe_with("a/+", options(QoS::AtMostOnce), Some(7)).await;
    client.subscribe_with("a/#", options(QoS::AtLeastOnce), Some(300)).await;
    client.publish("a/b", b"x", QoS::ExactlyOnce, 1).await;
    let mut identifiers = None;
    for _ in 0..2 {
        match client.next().await {
            Seen::Publish { qos, identifiers: mut seen, .. } => {
                assert_eq!(qos, QoS::AtLeastOnce);
                seen.sort_unstable();
                identifiers = Some(seen);
            }
            other => assert_eq!(other, Seen::Ack("PUBREC", 1, ReasonCode::Success)),
        }
    }
    assert_eq!(identifiers, Some(vec![7, 300]));
    client.nothing().await;
}

#[tokio::test]
async fn no_local_and_retain_as_published_are_kept_to() {
    let broker = broker().await;
    let mut client = broker.client(Version::V5, "c").await;
    let mut other = broker.client(Version::V5, "o").await;
    let options =
        SubscriptionOptions { no_local: true, retain_as_published: true, ..SubscriptionOptions::default() };
    client.subscribe_with("t", options, None).await;
    client.publish("t", b"mine", QoS::AtLeastOnce, 1).await;
    assert_eq!(client.next().await, Seen::Ack("PUBACK", 1, ReasonCode::NoMatchingSubscribers));
    other.send(&Packet::Publish(Publish { retain: true, ..publish("t", b"x", QoS::AtMostOnce, 0) })).await;
    let Seen::Publish { retain: true, .. } = client.next().await else { panic!("not as published") };
}

#[tokio::test]
async fn wildcards_leave_out_dollar_topics() {
    let broker = broker().await;
    let mut v5 = broker.client(Version::V5, "a").await;
    let mut v3 = broker.client(Version::V311, "b").await;
    v3.subscribe("#", QoS::AtMostOnce).await;
    v3.publish("$x/t", b"hidden", QoS::AtMostOnce, 0).await;
    v3.nothing().await;
    assert_eq!(v5.unsubscribe("nothing").await, [ReasonCode::NoSubscriptionExisted]);
    v5.subscribe("t", QoS::AtMostOnce).await;
    assert_eq!(v5.unsubscribe("t").await, [ReasonCode::Success]);
    v5.publish("t", b"x", QoS::AtMostOnce, 0).await;
    v5.nothing().await;
}

#[tokio::test]
async fn topic_aliases_are_resolved_and_bad_ones_refused() {
    let broker = broker().await;
    let mut subscriber = broker.client(Version::V5, "s").await;
    subscriber.subscribe("#", QoS::AtMostOnce).await;
    let mut publisher = broker.client(Version::V5, "p").await;
    let with_alias = |topic: &'static str, alias: u16| {
        let properties = PublishProperties { topic_alias: Some(alias), ..PublishProperties::default() };
        Packet::Publish(Publish { properties, ..publish(topic, b"x", QoS::AtMostOnce, 0) })
    };
    for (topic, alias, expected) in [("a", 1, "a"), ("b", 2, "b"), ("", 1, "a"), ("c", 1, "c"), ("", 1, "c")]
    {
        publisher.send(&with_alias(topic, alias)).await;
        assert_eq!(subscriber.next().await, published(expected, b"x"));
    }
    publisher.send(&with_alias("", 3)).await;
    assert_eq!(publisher.next().await, Seen::Disconnect(ReasonCode::ProtocolError));
    assert_eq!(publisher.next().await, Seen::Closed);
    let mut publisher = broker.client(Version::V5, "p").await;
    publisher.send(&with_alias("a", 17)).await;
    assert_eq!(publisher.next().await, Seen::Disconnect(ReasonCode::TopicAliasInvalid));
}

#[tokio::test]
async fn packets_of_every_size_arrive_whole_and_too_large_ones_are_refused() {
    let broker = broker_with(|options| options.max_packet_size = 400_000).await;
    let mut subscriber = broker.client(Version::V311, "s").await;
    let mut limited = Client::open(broker.address, Version::V5).await;
    let limit = Connect { maximum_packet_size: Some(20_000), ..connect(Version::V5, "l") };
    assert_eq!(limited.connect(&limit).await, (ReasonCode::Success, false));
    subscriber.subscribe("t", QoS::AtLeastOnce).await;
    limited.subscribe("t", QoS::AtLeastOnce).await;
    let mut publisher = broker.client(Version::V5, "p").await;
    for (identifier, size) in
        [0, 1, 127, 128, 16_383, 16_384, 65_535, 65_536, 131_072, 399_000].into_iter().enumerate()
    {
        let identifier = identifier as u16 + 1;
        let body: Vec<u8> = (0..size).map(|at: usize| (at % 251) as u8).collect();
        publisher.publish("t", &body, QoS::AtLeastOnce, identifier).await;
        assert_eq!(publisher.next().await, Seen::Ack("PUBACK", identifier, ReasonCode::Success));
        let seen = subscriber.next().await;
        if let Seen::Publish { identifier, .. } = seen {
            subscriber.ack(AckKind::PubAck, identifier).await;
        }
        assert!(payload(seen) == body, "size {size}");
        if size < 20_000 {
            assert_eq!(payload(limited.next().await).len(), size);
        }
    }
    limited.nothing().await;
    assert_eq!(broker.front.stats().dropped_too_large, 4);
    publisher.send(&Packet::Publish(publish("t", &vec![0; 400_000], QoS::AtMostOnce, 0))).await;
    assert_eq!(publisher.next().await, Seen::Disconnect(ReasonCode::PacketTooLarge));
}

#[tokio::test]
async fn a_message_expires_while_its_subscriber_is_away() {
    let broker = broker().await;
    let mut subscriber = Client::open(broker.address, Version::V5).await;
    subscriber.connect(&persistent(Version::V5, "s")).await;
    subscriber.subscribe("t", QoS::AtLeastOnce).await;
    drop(subscriber);
    broker.until(|stats| stats.connections == 0).await;
    let mut publisher = broker.client(Version::V5, "p").await;
    for (identifier, interval) in [(1, 1), (2, 100)] {
        let properties =
            PublishProperties { message_expiry_interval: Some(interval), ..PublishProperties::default() };
        let publish = Publish { properties, ..publish("t", b"x", QoS::AtLeastOnce, identifier) };
        publisher.send(&Packet::Publish(publish)).await;
        assert_eq!(publisher.next().await, Seen::Ack("PUBACK", identifier, ReasonCode::Success));
    }
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let mut subscriber = Client::open(broker.address, Version::V5).await;
    assert_eq!(subscriber.connect(&persistent(Version::V5, "s")).await, (ReasonCode::Success, true));
    let Seen::Publish { expiry: Some(remaining), .. } = subscriber.next().await else { panic!("a delivery") };
    assert!((90..=99).contains(&remaining), "{remaining}");
    subscriber.nothing().await;
    assert_eq!(broker.front.stats().dropped_expired, 1);
}

/// A thousand messages in one write, in every split of the byte stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bursts_keep_their_order() {
    use tokio::io::AsyncWriteExt;
    let broker = broker().await;
    let mut subscriber = broker.client(Version::V311, "s").await;
    subscriber.subscribe("t/+", QoS::AtLeastOnce).await;
    let mut publisher = broker.client(Version::V311, "p").await;
    for chunk in [1, 7, 4096, 1 << 20] {
        let mut bytes = bytes::BytesMut::new();
        for number in 0..1000u16 {
            let (topic, body) = (format!("t/{}", number % 3), number.to_be_bytes());
            let packet = Packet::Publish(publish(&topic, &body, QoS::AtLeastOnce, number + 1));
            packet.encode(Version::V311, &mut bytes).expect("a legal packet");
        }
        for part in bytes.chunks(chunk) {
            publisher.socket.write_all(part).await.expect("the broker reads");
        }
        for number in 0..1000u16 {
            assert_eq!(publisher.next().await, Seen::Ack("PUBACK", number + 1, ReasonCode::Success));
            let Seen::Publish { payload, identifier, dup: false, .. } = subscriber.next().await else {
                panic!("a delivery")
            };
            assert_eq!(payload, number.to_be_bytes());
            subscriber.ack(AckKind::PubAck, identifier).await;
        }
    }
}

/// `mqttbytes` shares no code with the codec under test.
#[tokio::test]
async fn another_codec_understands_us() {
    use mqttbytes::v4;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let broker = broker().await;
    let mut socket = tokio::net::TcpStream::connect(broker.address).await.expect("a listener");
    let mut out = bytes::BytesMut::new();
    v4::Connect::new("other").write(&mut out).expect("a legal packet");
    let mut subscribe = v4::Subscribe::new("t", mqttbytes::QoS::ExactlyOnce);
    subscribe.pkid = 1;
    subscribe.write(&mut out).expect("a legal packet");
    let mut publish = v4::Publish::new("t", mqttbytes::QoS::AtLeastOnce, "hello");
    publish.pkid = 9;
    publish.write(&mut out).expect("a legal packet");
    socket.write_all(&out).await.expect("the broker reads");
    let mut input = bytes::BytesMut::new();
    let mut seen = Vec::new();
    while seen.len() < 4 {
        match v4::read(&mut input, 1 << 20) {
            Ok(packet) => seen.push(packet),
            Err(mqttbytes::Error::InsufficientBytes(_)) => {
                assert!(socket.read_buf(&mut input).await.expect("an open connection") > 0);
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    let has = |wanted: fn(&v4::Packet) -> bool| seen.iter().any(wanted);
    assert!(has(
        |packet| matches!(packet, v4::Packet::ConnAck(ack) if ack.code == v4::ConnectReturnCode::Success)
    ));
    assert!(has(|packet| matches!(packet, v4::Packet::SubAck(_))));
    assert!(has(|packet| matches!(packet, v4::Packet::PubAck(ack) if ack.pkid == 9)));
    assert!(has(|packet| matches!(packet, v4::Packet::Publish(publish) if publish.payload == "hello")));
}
