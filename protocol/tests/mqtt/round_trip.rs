//! What the encoder writes, the decoder reads back.

use bytes::BytesMut;
use causeway_protocol::mqtt::{
    Decoded, Packet, PublishProperties, PublishPropertiesBuf, Version, encode_publish, encode_publish_head,
};

use crate::generate::{Generator, ROLES, VERSIONS};
use crate::wire;

#[test]
fn every_packet_of_every_version_comes_back_as_it_was() {
    for version in VERSIONS {
        for role in ROLES {
            for seed in 0..4000 {
                let packet = Generator::new(seed, version, role).packet();
                let context = format!("seed {seed}, {version:?}, {role:?}: {packet:?}");
                let mut buffer = BytesMut::from(&b"in front"[..]);
                packet.encode(version, &mut buffer).unwrap_or_else(|error| panic!("{error}: {context}"));
                let bytes = &buffer[8..];
                assert_eq!(packet.encoded_len(version), Ok(bytes.len()), "{context}");
                let decoder = wire::decoder((!matches!(packet, Packet::Connect(_))).then_some(version), role);
                match decoder.decode(bytes) {
                    Ok(Decoded::Packet { packet: decoded, consumed }) => {
                        assert_eq!(decoded, packet, "{context}");
                        assert_eq!(consumed, bytes.len(), "{context}");
                    }
                    other => panic!("{other:?}: {context}"),
                }
            }
        }
    }
}

#[test]
fn a_stream_of_packets_is_taken_apart_where_it_was_put_together() {
    for version in VERSIONS {
        for role in ROLES {
            for seed in 0..100 {
                let mut generator = Generator::new(seed, version, role);
                let packets: Vec<_> = std::iter::repeat_with(|| generator.packet())
                    .filter(|packet| !matches!(packet, Packet::Connect(_)))
                    .take(20)
                    .collect();
                let mut buffer = BytesMut::new();
                for packet in &packets {
                    packet.encode(version, &mut buffer).unwrap();
                }
                let decoder = wire::decoder(Some(version), role);
                let mut rest = &buffer[..];
                for packet in &packets {
                    let Ok(Decoded::Packet { packet: decoded, consumed }) = decoder.decode(rest) else {
                        panic!("no packet: seed {seed}, {version:?}, {role:?}: {packet:?}");
                    };
                    assert_eq!(&decoded, packet, "seed {seed}, {version:?}, {role:?}");
                    rest = &rest[consumed..];
                }
                assert_eq!(decoder.decode(rest), Ok(Decoded::Incomplete { needed: 2 }));
            }
        }
    }
}

#[test]
fn the_short_way_for_publish_writes_the_same_bytes_and_knows_its_layout() {
    for version in VERSIONS {
        for role in ROLES {
            for seed in 0..2000 {
                let packet = Generator::new(seed, version, role).publish();
                let Packet::Publish(publish) = &packet else { panic!("not a PUBLISH") };
                let context = format!("seed {seed}, {version:?}, {role:?}: {publish:?}");
                let mut long_way = BytesMut::new();
                packet.encode(version, &mut long_way).unwrap();

                let mut buffer = BytesMut::from(&b"in front"[..]);
                let layout = encode_publish(&mut buffer, version, publish).unwrap();
                assert_eq!((layout.start, layout.end), (8, buffer.len()), "{context}");
                assert_eq!(buffer[8..], long_way[..], "{context}");

                let mut head = BytesMut::new();
                let head_layout = encode_publish_head(&mut head, version, publish).unwrap();
                assert_eq!(head_layout.end, head.len());
                head.extend_from_slice(publish.payload);
                assert_eq!(head, long_way, "{context}");

                // Another identifier, set in a copy, is all that changes.
                let mut copy = buffer[layout.start..layout.end].to_vec();
                layout.set_packet_identifier(&mut copy, 0xBEEF).unwrap();
                layout.set_dup(&mut copy);
                let mut expected = publish.clone();
                if layout.packet_identifier.is_some() {
                    expected.packet_identifier = 0xBEEF;
                    expected.dup = true;
                }
                let decoded = wire::decode(Some(version), role, &copy).unwrap();
                assert_eq!(decoded, Packet::Publish(expected), "{context}");
            }
        }
    }
}

#[test]
fn owned_publish_properties_say_what_the_borrowed_ones_said() {
    for role in ROLES {
        for seed in 0..2000 {
            let packet = Generator::new(seed, Version::V5, role).publish();
            let Packet::Publish(publish) = &packet else { panic!("not a PUBLISH") };
            // Through the wire, so that the section holds other properties between the user properties.
            let mut buffer = BytesMut::new();
            packet.encode(Version::V5, &mut buffer).unwrap();
            let owned = {
                let decoded = wire::decode(Some(Version::V5), role, &buffer).unwrap();
                let Packet::Publish(decoded) = decoded else { panic!("not a PUBLISH") };
                PublishPropertiesBuf::from(&decoded.properties)
            };
            let expected = PublishProperties { topic_alias: None, ..publish.properties.clone() };
            assert_eq!(owned.borrow(), expected, "seed {seed}, {role:?}");
            assert_eq!(owned.is_empty(), expected.is_empty(), "seed {seed}, {role:?}");
            assert_eq!(owned.heap_size() == 0, expected.is_empty(), "seed {seed}, {role:?}");
            assert_eq!(owned.message_expiry_interval(), expected.message_expiry_interval);
        }
    }
}

#[test]
fn without_properties_nothing_is_owned() {
    assert_eq!(size_of::<PublishPropertiesBuf>(), size_of::<usize>());
    assert_eq!(PublishPropertiesBuf::from(&PublishProperties::default()).heap_size(), 0);
    let only_alias = PublishProperties { topic_alias: Some(3), ..PublishProperties::default() };
    assert!(PublishPropertiesBuf::from(&only_alias).is_empty());
}
