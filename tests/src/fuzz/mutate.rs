//! What is done to legal packets.

use rand::rngs::StdRng;
use rand::{Rng, RngExt};

use super::corpus::pick;
use crate::mqtt::wire::variable_byte_integer;

/// Bytes that mean something somewhere.
const TELLING: [u8; 12] = [0, 1, 2, 0x7F, 0x80, 0xFF, b'+', b'#', b'/', b'$', 0x26, 0x0B];

/// Length of the fixed header.
fn header(packet: &[u8]) -> usize {
    1 + packet.iter().skip(1).take(4).take_while(|byte| **byte >= 0x80).count() + 1
}

/// Gives a packet the remaining length that it has.
fn fit(packet: &[u8]) -> Vec<u8> {
    let Some((first, rest)) = packet.split_first() else { return Vec::new() };
    let body = rest.get(header(packet) - 1..).unwrap_or_default();
    [&[*first][..], &variable_byte_integer(body.len() as u32), body].concat()
}

/// A change after which most packets are still legal: bytes towards the end of it, where payloads and texts
/// are.
pub(super) fn mildly(random: &mut StdRng, packet: &mut [u8]) {
    let from = (header(packet) + 4).min(packet.len());
    if from >= packet.len() {
        // Nothing but a fixed header and an identifier: another identifier.
        if let Some(last) = packet.last_mut().filter(|last| **last > 0) {
            *last = random.random_range(1..=255);
        }
        return;
    }
    let at = random.random_range(from..packet.len());
    // Letters stay letters, so that most texts stay texts.
    let byte = &mut packet[at];
    *byte = if byte.is_ascii_alphanumeric() { random.random_range(b'a'..=b'z') } else { *byte };
}

/// Any damage at all, with other packets to splice in.
pub(super) fn wildly(random: &mut StdRng, packet: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = packet.to_vec();
    for _ in 0..random.random_range(1..4) {
        if bytes.is_empty() {
            break;
        }
        // The front of a packet is where its structure is.
        let reach = if random.random_bool(0.7) { bytes.len().min(24) } else { bytes.len() };
        let at = random.random_range(0..reach);
        match random.random_range(0..12) {
            0 => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes[at] = random.random(),
            2 => bytes[at] = pick(random, &TELLING),
            3 => bytes.insert(at, random.random()),
            4 => drop(bytes.remove(at)),
            5 => bytes.truncate(at),
            6 => {
                let end = random.random_range(at..=bytes.len().min(at + 16));
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            7 => bytes[at] = bytes[at].wrapping_add(1),
            8 if !other.is_empty() => {
                let from = random.random_range(0..other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            9 if bytes.len() > at + 1 => {
                // A length that lies.
                let lie = pick(random, &[0_u16, 1, 0xFF, 0x7FFF, 0xFFFF]);
                bytes[at..at + 2].copy_from_slice(&lie.to_be_bytes());
            }
            10 => {
                let lie = pick(random, &[0, 1, 127, 128, 16_383, 268_435_455]);
                let body = bytes.split_off(header(&bytes).min(bytes.len()));
                bytes.truncate(1);
                bytes.extend(variable_byte_integer(lie));
                bytes.extend(body);
            }
            _ => {
                let mut noise = vec![0; random.random_range(1..8)];
                random.fill_bytes(&mut noise);
                bytes.splice(at..at, noise);
            }
        }
    }
    // Half the time the remaining length is made to fit again, so that the damage is looked at.
    if random.random_bool(0.5) { fit(&bytes) } else { bytes }
}

/// What is done to a session: packets leave, come twice, change places, or come from another one.
pub(super) fn session(random: &mut StdRng, packets: &mut Vec<Vec<u8>>, other: &[Vec<u8>]) {
    for _ in 0..random.random_range(1..4) {
        if packets.is_empty() {
            return;
        }
        let at = random.random_range(0..packets.len());
        match random.random_range(0..7) {
            0 => drop(packets.remove(at)),
            1 => packets.insert(at, packets[at].clone()),
            2 => {
                let with = random.random_range(0..packets.len());
                packets.swap(at, with);
            }
            3 => packets.insert(at, pick(random, other)),
            4 => {
                let spliced = pick(random, other);
                packets[at] = wildly(random, &packets[at], &spliced);
            }
            5 => packets.truncate(at),
            _ => {
                let from = random.random_range(0..other.len());
                packets.extend_from_slice(&other[from..]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_packet_gets_the_length_that_it_has() {
        assert_eq!(fit(&[0x30, 5, 1, 2]), [0x30, 2, 1, 2]);
        assert_eq!(fit(&[0x30]), [0x30, 0]);
        assert_eq!(fit(&[0x30, 0x80, 0x01, 7]), [0x30, 1, 7]);
        assert!(fit(&[]).is_empty());
    }

    #[test]
    fn every_damage_is_possible_everywhere() {
        for seed in 0..20_000 {
            let mut random = StdRng::seed_from_u64(seed);
            let packet: Vec<u8> = (0..random.random_range(0..9)).map(|_| random.random()).collect();
            let other: Vec<u8> = (0..random.random_range(0..9)).map(|_| random.random()).collect();
            wildly(&mut random, &packet, &other);
            mildly(&mut random, &mut packet.clone());
            session(&mut random, &mut vec![packet; 2], &[other]);
        }
    }
}
