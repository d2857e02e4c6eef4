//! From a record's key to its partition.
//!
//! * [`murmur2`]: what Java producers do (`DefaultPartitioner`), so that a key's records land where
//!   they would if a Java producer had written them.
//! * [`phash2`]: what EMQX's `key_dispatch` does (Erlang's `erlang:phash2/1` of a binary), for topics
//!   that were written by it before.

/// How a key chooses a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyHash {
    /// Kafka's murmur2.
    Murmur2,
    /// Erlang's phash2.
    Phash2,
}

impl KeyHash {
    /// The partition of `key` among `partitions`, below `partitions`; `None` without partitions.
    pub fn partition(self, key: &[u8], partitions: u32) -> Option<u32> {
        let hash = match self {
            Self::Murmur2 => to_positive(murmur2(key)),
            Self::Phash2 => phash2(key),
        };
        hash.checked_rem(partitions)
    }
}

/// Kafka's `Utils.toPositive`: clears the sign bit.
pub fn to_positive(hash: u32) -> u32 {
    hash & 0x7fff_ffff
}

fn little_endian(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |word, &byte| word << 8 | u32::from(byte))
}

/// Kafka's variant of MurmurHash2, 32 bits (Java's `Utils.murmur2`, there as a signed integer).
pub fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    let mut hash = SEED ^ data.len() as u32;
    let (words, tail) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !tail.is_empty() {
        hash = (hash ^ little_endian(tail)).wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ hash >> 15
}

/// Erlang's `phash2` of a binary, 27 bits: Bob Jenkins' 1996 hash over blocks of 12 bytes.
pub fn phash2(data: &[u8]) -> u32 {
    const GOLDEN: u32 = 0x9e37_79b9;
    const RANGE: u32 = (1 << 27) - 1;
    let mut c = GOLDEN.wrapping_mul(13);
    if data.is_empty() {
        return c & RANGE;
    }
    let (mut a, mut b) = (GOLDEN, GOLDEN);
    let (blocks, tail) = data.as_chunks::<12>();
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        if let [x, y, z] = words {
            a = a.wrapping_add(u32::from_le_bytes(*x));
            b = b.wrapping_add(u32::from_le_bytes(*y));
            c = c.wrapping_add(u32::from_le_bytes(*z));
        }
        (a, b, c) = mix(a, b, c);
    }
    let word = |from: usize| little_endian(tail.get(from..tail.len().min(from + 4)).unwrap_or(&[]));
    c = c.wrapping_add(data.len() as u32);
    a = a.wrapping_add(word(0));
    b = b.wrapping_add(word(4));
    // The lowest byte of `c` holds the length.
    c = c.wrapping_add(word(8) << 8);
    mix(a, b, c).2 & RANGE
}

fn mix(mut a: u32, mut b: u32, mut c: u32) -> (u32, u32, u32) {
    for (right_a, left_b, right_c) in [(13, 8, 13), (12, 16, 5), (3, 10, 15)] {
        a = a.wrapping_sub(b).wrapping_sub(c) ^ (c >> right_a);
        b = b.wrapping_sub(c).wrapping_sub(a) ^ (a << left_b);
        c = c.wrapping_sub(a).wrapping_sub(b) ^ (b >> right_c);
    }
    (a, b, c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn murmur2_agrees_with_java() {
        for (key, expected) in [
            (&b"21"[..], -973_932_308_i32),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            (b"abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key) as i32, expected, "{key:?}");
        }
    }

    /// P20
    #[test]
    fn phash2_agrees_with_erlang() {
        for (key, hash, of_3, of_12) in [
            (&b""[..], 13_708_901, 2, 5),
            (b"a", 112_802_447, 2, 11),
            (b"abc", 98_228_475, 0, 3),
            (b"clientid", 4_962_315, 0, 3),
            (b"emqx_c", 92_604_939, 0, 3),
            (b"sensor-1", 107_917_632, 0, 0),
            (b"sensor-0001", 4_552_470, 0, 6),
            (b"0123456789a", 73_708_536, 0, 0),
            (b"0123456789ab", 115_360_506, 0, 6),
            (b"0123456789abc", 67_923_675, 0, 3),
            (b"0123456789abcdef0123456789abcdef", 22_138_490, 2, 2),
            (b"\x00", 96_315_567, 0, 3),
            (b"\xff\xfe\xfd", 37_558_455, 0, 3),
            (b"\xe7\x95\x8c", 73_895_514, 0, 6),
            (b"mqttx_0c7f1b52", 41_000_934, 0, 6),
        ] {
            assert_eq!(phash2(key), hash, "{key:?}");
            assert_eq!(KeyHash::Phash2.partition(key, 3), Some(of_3), "{key:?}");
            assert_eq!(KeyHash::Phash2.partition(key, 12), Some(of_12), "{key:?}");
        }
    }

    #[test]
    fn a_negative_hash_loses_its_sign_and_not_its_bits() {
        let hash = -790_332_482_i32;
        let expected = (hash & i32::MAX) as u32 % 7;
        assert_eq!(KeyHash::Murmur2.partition(b"foobar", 7), Some(expected));
        assert_eq!(KeyHash::Murmur2.partition(b"foobar", 0), None);
    }
}
