//! Bytes arrive in pieces: a prefix of a legal packet is never an error.

use bytes::BytesMut;
use causeway_protocol::mqtt::{Decoded, Packet};

use crate::generate::{Generator, ROLES, VERSIONS};
use crate::wire;

#[test]
fn every_prefix_of_a_packet_is_incomplete() {
    for version in VERSIONS {
        for role in ROLES {
            let mut lengths = 0;
            for seed in 0..1500 {
                let packet = Generator::new(seed, version, role).packet();
                let mut buffer = BytesMut::new();
                packet.encode(version, &mut buffer).unwrap();
                let decoder = wire::decoder((!matches!(packet, Packet::Connect(_))).then_some(version), role);
                // All prefixes of short packets, both ends of long ones.
                let interesting =
                    (0..buffer.len()).filter(|&length| length < 600 || length + 20 > buffer.len());
                for length in interesting {
                    lengths += 1;
                    match decoder.decode(&buffer[..length]) {
                        Ok(Decoded::Incomplete { needed }) => {
                            assert!(
                                needed > length && needed <= buffer.len(),
                                "{needed} needed with {length} of {}, seed {seed}, {version:?}, {role:?}",
                                buffer.len()
                            );
                            // From the end of the fixed header on, the answer is exact.
                            if length >= 5 {
                                assert_eq!(needed, buffer.len(), "seed {seed}, {version:?}, {role:?}");
                            }
                        }
                        other => {
                            panic!(
                                "{other:?} for {length} bytes, seed {seed}, {version:?}, {role:?}: {packet:?}"
                            )
                        }
                    }
                }
            }
            assert!(lengths > 10_000, "only {lengths} prefixes for {version:?}, {role:?}");
        }
    }
}

#[test]
fn following_the_hint_reads_a_packet_in_few_steps() {
    for version in VERSIONS {
        for role in ROLES {
            for seed in 0..500 {
                let packet = Generator::new(seed, version, role).packet();
                let mut buffer = BytesMut::new();
                packet.encode(version, &mut buffer).unwrap();
                let decoder = wire::decoder((!matches!(packet, Packet::Connect(_))).then_some(version), role);
                let mut have = 0;
                let mut steps = 0;
                while let Decoded::Incomplete { needed } = decoder.decode(&buffer[..have]).unwrap() {
                    have = needed;
                    steps += 1;
                }
                assert_eq!(have, buffer.len());
                // Two bytes, up to three more of the remaining length, the rest.
                assert!(steps <= 5, "{steps} steps, seed {seed}, {version:?}, {role:?}");
            }
        }
    }
}
