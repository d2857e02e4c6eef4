//! `mqttbytes` is another codec for MQTT 3.1.1, written by others: on well-formed packets both agree.

use bytes::{Bytes, BytesMut};
use causeway_protocol::mqtt::{Packet, QoS, Role, Version, encode_publish};
use mqttbytes::v4;

use crate::generate::{Generator, ROLES};
use crate::wire;

fn their_qos(qos: QoS) -> mqttbytes::QoS {
    match qos {
        QoS::AtMostOnce => mqttbytes::QoS::AtMostOnce,
        QoS::AtLeastOnce => mqttbytes::QoS::AtLeastOnce,
        QoS::ExactlyOnce => mqttbytes::QoS::ExactlyOnce,
    }
}

#[test]
fn publishes_are_read_and_written_alike_by_another_codec() {
    for role in ROLES {
        for seed in 0..3000 {
            let packet = Generator::new(seed, Version::V311, role).publish();
            let Packet::Publish(ours) = &packet else { panic!("not a PUBLISH") };
            let theirs = v4::Publish {
                dup: ours.dup,
                qos: their_qos(ours.qos),
                retain: ours.retain,
                topic: ours.topic.to_owned(),
                pkid: ours.packet_identifier,
                payload: Bytes::copy_from_slice(ours.payload),
            };
            let mut our_bytes = BytesMut::new();
            encode_publish(&mut our_bytes, Version::V311, ours).unwrap();
            let mut their_bytes = BytesMut::new();
            theirs.write(&mut their_bytes).unwrap();
            assert_eq!(our_bytes, their_bytes, "seed {seed}");
            assert_eq!(
                wire::decode(Some(Version::V311), role, &their_bytes),
                Ok(packet.clone()),
                "seed {seed}"
            );
            let read = v4::read(&mut our_bytes, 1_000_000).unwrap();
            assert_eq!(read, v4::Packet::Publish(theirs), "seed {seed}");
        }
    }
}

#[test]
fn acknowledgements_and_subscriptions_are_read_by_another_codec() {
    let mut seen = 0;
    for seed in 0..3000 {
        let packet = Generator::new(seed, Version::V311, Role::Server).packet();
        let mut bytes = BytesMut::new();
        packet.encode(Version::V311, &mut bytes).unwrap();
        if !matches!(packet, Packet::PubAck(_) | Packet::PubRec(_) | Packet::PubRel(_) | Packet::Subscribe(_))
        {
            continue;
        }
        seen += 1;
        match (&packet, v4::read(&mut bytes, 1_000_000).unwrap()) {
            (Packet::PubAck(ours), v4::Packet::PubAck(theirs)) => {
                assert_eq!(ours.packet_identifier, theirs.pkid);
            }
            (Packet::PubRec(ours), v4::Packet::PubRec(theirs)) => {
                assert_eq!(ours.packet_identifier, theirs.pkid);
            }
            (Packet::PubRel(ours), v4::Packet::PubRel(theirs)) => {
                assert_eq!(ours.packet_identifier, theirs.pkid);
            }
            (Packet::Subscribe(ours), v4::Packet::Subscribe(theirs)) => {
                assert_eq!(ours.packet_identifier, theirs.pkid);
                let ours: Vec<_> = ours
                    .filters
                    .iter()
                    .map(|entry| (entry.filter.to_owned(), their_qos(entry.options.qos)))
                    .collect();
                let theirs: Vec<_> =
                    theirs.filters.into_iter().map(|entry| (entry.path, entry.qos)).collect();
                assert_eq!(ours, theirs, "seed {seed}");
            }
            (ours, theirs) => panic!("seed {seed}: {ours:?} was read as {theirs:?}"),
        }
    }
    assert!(seen > 500, "only {seen} packets compared");
}
