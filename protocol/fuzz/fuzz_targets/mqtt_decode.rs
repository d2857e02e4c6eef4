//! Whatever bytes a socket brings: no panic, an answer that fits the input, and a packet that is accepted
//! can be written again and reads the same.
//!
//! `cargo +nightly fuzz run mqtt_decode` in `protocol/`. The first input byte chooses version and role.

#![no_main]

use bytes::BytesMut;
use causeway_protocol::mqtt::{Decoded, Decoder, Packet, PublishPropertiesBuf, Role, Version};
use libfuzzer_sys::fuzz_target;

const LIMIT: u32 = 1 << 20;

fuzz_target!(|input: &[u8]| {
    let Some((choice, input)) = input.split_first() else { return };
    let role = if choice & 1 == 0 { Role::Server } else { Role::Client };
    let mut decoder = Decoder::new(role, LIMIT);
    decoder.version =
        [None, Some(Version::V31), Some(Version::V311), Some(Version::V5)][usize::from(choice >> 1 & 3)];
    let mut rest = input;
    loop {
        let (packet, consumed) = match decoder.decode(rest) {
            Ok(Decoded::Packet { packet, consumed }) => (packet, consumed),
            Ok(Decoded::Incomplete { needed }) => {
                assert!(needed > rest.len() && needed <= LIMIT as usize);
                return;
            }
            Err(error) => {
                assert!(error.reason.is_error());
                return;
            }
        };
        assert!(consumed >= 2 && consumed <= rest.len());
        let mut reading = decoder;
        let version = match &packet {
            Packet::Connect(connect) => {
                decoder.version = Some(connect.version);
                connect.version
            }
            _ => decoder.version.expect("only CONNECT is read without a version"),
        };
        let mut again = BytesMut::new();
        packet.encode(version, &mut again).expect("what was read can be written");
        assert!(again.len() <= consumed);
        reading.max_packet_size = consumed as u32;
        assert_eq!(
            reading.decode(&again),
            Ok(Decoded::Packet { packet: packet.clone(), consumed: again.len() })
        );
        for length in 0..again.len().min(64) {
            assert!(matches!(reading.decode(&again[..length]), Ok(Decoded::Incomplete { .. })));
        }
        if let Packet::Publish(publish) = &packet {
            let mut expected = publish.properties.clone();
            expected.topic_alias = None;
            assert_eq!(PublishPropertiesBuf::from(&publish.properties).borrow(), expected);
        }
        rest = &rest[consumed..];
    }
});
