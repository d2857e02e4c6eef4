//! Damaged packets: refused or read, never a panic, and what is read can be written again.

use bytes::BytesMut;
use causeway_protocol::mqtt::{Decoded, Packet, Role, Version};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::generate::{Generator, ROLES, VERSIONS};
use crate::wire;

const ROUNDS: u64 = 300_000;

/// Rounds, or what `CAUSEWAY_MUTATION_ROUNDS` says: for a long run now and then.
fn rounds() -> u64 {
    let wanted = std::env::var("CAUSEWAY_MUTATION_ROUNDS").ok();
    wanted.and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS)
}

#[test]
fn damaged_packets_neither_panic_nor_change_on_the_way_through() {
    let (mut accepted, mut refused, mut incomplete) = (0_u32, 0_u32, 0_u32);
    let mut corpus = Vec::new();
    for version in VERSIONS {
        for role in ROLES {
            for seed in 0..300 {
                let packet = Generator::new(seed, version, role).packet();
                let mut buffer = BytesMut::new();
                packet.encode(version, &mut buffer).unwrap();
                // Long ones show nothing more and cost time.
                if buffer.len() < 3000 {
                    corpus.push((version, role, matches!(packet, Packet::Connect(_)), buffer.to_vec()));
                }
            }
        }
    }
    for seed in 0..rounds() {
        let mut rng = StdRng::seed_from_u64(seed);
        let (version, role, connect, packet) = &corpus[rng.random_range(0..corpus.len())];
        let damaged = damage(&mut rng, packet);
        // Mostly what the packet is for; now and then another context.
        let version = if rng.random_bool(0.05) { VERSIONS[rng.random_range(0..3)] } else { *version };
        let version = (*connect == rng.random_bool(0.02)).then_some(version);
        match decode_and_check(version, *role, &damaged, seed) {
            Outcome::Accepted => accepted += 1,
            Outcome::Refused => refused += 1,
            Outcome::Incomplete => incomplete += 1,
        }
    }
    // Each way out has been taken often, so the damage is neither too mild nor too wild.
    for (what, count) in [("accepted", accepted), ("refused", refused), ("incomplete", incomplete)] {
        assert!(count > 10_000, "only {count} {what}");
    }
}

#[test]
fn random_bytes_never_panic() {
    for seed in 0..rounds() / 6 {
        let mut rng = StdRng::seed_from_u64(seed);
        let length = rng.random_range(0..200);
        let mut bytes: Vec<u8> = (0..length).map(|_| rng.random()).collect();
        // A remaining length that fits lets the body be looked at.
        if bytes.len() > 2 {
            bytes[1] = bytes.len() as u8 - 2;
            bytes[0] &= if rng.random_bool(0.5) { 0xF0 } else { 0xFF };
        }
        let version =
            [None, Some(Version::V31), Some(Version::V311), Some(Version::V5)][rng.random_range(0..4)];
        let role = ROLES[rng.random_range(0..2)];
        decode_and_check(version, role, &bytes, seed);
    }
}

enum Outcome {
    Accepted,
    Refused,
    Incomplete,
}

fn decode_and_check(version: Option<Version>, role: Role, bytes: &[u8], seed: u64) -> Outcome {
    let (packet, consumed) = match wire::decoder(version, role).decode(bytes) {
        Ok(Decoded::Packet { packet, consumed }) => (packet, consumed),
        Ok(Decoded::Incomplete { needed }) => {
            assert!(needed > bytes.len(), "seed {seed}: {needed} needed of {}", bytes.len());
            return Outcome::Incomplete;
        }
        Err(error) => {
            assert!(error.reason.is_error(), "seed {seed}: {error}");
            return Outcome::Refused;
        }
    };
    assert!((2..=bytes.len()).contains(&consumed), "seed {seed}: {consumed} consumed of {}", bytes.len());
    let written_in = match &packet {
        Packet::Connect(connect) => connect.version,
        _ => version.unwrap(),
    };
    let mut again = BytesMut::new();
    packet
        .encode(written_in, &mut again)
        .unwrap_or_else(|error| panic!("seed {seed}: {error} writing {packet:?} of {bytes:02x?}"));
    assert!(again.len() <= consumed, "seed {seed}: {} bytes became {}: {packet:?}", consumed, again.len());
    assert_eq!(
        wire::decoder(version, role).decode(&again),
        Ok(Decoded::Packet { packet, consumed: again.len() }),
        "seed {seed}, {version:?}, {role:?}: {bytes:02x?}"
    );
    Outcome::Accepted
}

fn damage(rng: &mut StdRng, packet: &[u8]) -> Vec<u8> {
    let mut bytes = packet.to_vec();
    for _ in 0..rng.random_range(1..4) {
        if bytes.is_empty() {
            break;
        }
        // The front of a packet is where its structure is.
        let reach = if rng.random_bool(0.7) { bytes.len().min(24) } else { bytes.len() };
        let at = rng.random_range(0..reach);
        match rng.random_range(0..8) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = rng.random(),
            2 => bytes[at] = [0, 1, 2, 0x7F, 0x80, 0xFF, b'+', b'#', b'/', 0x26][rng.random_range(0..10)],
            3 => bytes.insert(at, rng.random()),
            4 => {
                bytes.remove(at);
            }
            5 => bytes.truncate(at),
            6 => {
                let end = rng.random_range(at..=bytes.len().min(at + 16));
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => bytes[at] = bytes[at].wrapping_add(1),
        }
    }
    // Half the time the remaining length is made to fit again, so that the damage is looked at.
    if rng.random_bool(0.5) && bytes.len() >= 2 && packet.len() < 128 {
        bytes[1] = (bytes.len() - 2).min(127) as u8;
    }
    bytes
}
