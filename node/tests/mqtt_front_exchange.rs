//! Publishing and subscribing through a real socket, in every version and QoS.

mod mqtt_front;

use causeway_protocol::mqtt::{AckKind, QoS, ReasonCode, Version};
use mqtt_front::*;

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
