//! Payloads that can be judged: a fixed head in hexadecimal, and filler that follows from it.
//!
//! `client` (8 digits), `sequence` (12), `sent` (16), then printable filler up to the wanted size. The
//! whole is ASCII, so it survives templates, JSON and console tools unchanged.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Who sent a message, in which place, and when it was meant to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Number of the publishing client.
    pub client: u32,
    /// Place among that client's messages; below 2^48.
    pub sequence: u64,
    /// Nanoseconds since the Unix epoch, see [`now`].
    pub sent: u64,
}

/// Smallest payload, in bytes.
pub const HEAD: usize = 36;

const DIGITS: &[u8; 16] = b"0123456789abcdef";
/// Twice the same 64 characters: any run of up to 64 from a start below 64 is there in one piece.
const FILLER: &[u8; 128] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_\
ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

impl Stamp {
    /// Appends a payload of `size` bytes, at least [`HEAD`].
    pub fn append(&self, size: usize, out: &mut impl Extend<u8>) {
        let mut head = [0; HEAD];
        for (range, value) in [(0..8, u64::from(self.client)), (8..20, self.sequence), (20..HEAD, self.sent)]
        {
            let mut value = value;
            for digit in head[range].iter_mut().rev() {
                *digit = DIGITS[(value & 15) as usize];
                value >>= 4;
            }
        }
        out.extend(head);
        let mut left = size.saturating_sub(HEAD);
        let start = self.filler_start();
        while left > 0 {
            let run = left.min(64);
            out.extend(FILLER[start..start + run].iter().copied());
            left -= run;
        }
    }

    /// Reads a payload; `None` if a single byte of it is not what [`Self::append`] wrote.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let (head, filler) = payload.split_at_checked(HEAD)?;
        let number = |digits: &[u8]| {
            digits.iter().try_fold(0_u64, |value, &digit| {
                let digit = match digit {
                    b'0'..=b'9' => digit - b'0',
                    b'a'..=b'f' => digit - b'a' + 10,
                    _ => return None,
                };
                Some(value << 4 | u64::from(digit))
            })
        };
        let stamp = Self {
            client: u32::try_from(number(&head[..8])?).ok()?,
            sequence: number(&head[8..20])?,
            sent: number(&head[20..])?,
        };
        let start = stamp.filler_start();
        filler.chunks(64).all(|run| run == &FILLER[start..start + run.len()]).then_some(stamp)
    }

    fn filler_start(&self) -> usize {
        (u64::from(self.client).wrapping_mul(31).wrapping_add(self.sequence) & 63) as usize
    }
}

/// Nanoseconds since the Unix epoch that never step back within a process: the wall clock read once,
/// the monotonic clock from there.
pub fn now() -> u64 {
    static ANCHOR: OnceLock<(Instant, u64)> = OnceLock::new();
    let (start, epoch) = ANCHOR.get_or_init(|| {
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (Instant::now(), epoch.as_nanos() as u64)
    });
    epoch + start.elapsed().as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_reads_back_at_every_size() {
        for size in [HEAD, HEAD + 1, 100, 163, 164, 165, 1000] {
            let stamp = Stamp { client: u32::MAX, sequence: size as u64 * 7, sent: now() };
            let mut payload = Vec::new();
            stamp.append(size, &mut payload);
            assert_eq!(payload.len(), size);
            assert!(payload.is_ascii());
            assert_eq!(Stamp::read(&payload), Some(stamp));
        }
    }

    #[test]
    fn a_changed_byte_is_noticed_or_reads_as_another_stamp() {
        let stamp = Stamp { client: 3, sequence: 9, sent: 1 };
        let mut payload = Vec::new();
        stamp.append(150, &mut payload);
        for at in 0..payload.len() {
            let mut damaged = payload.clone();
            damaged[at] ^= 1;
            assert_ne!(Stamp::read(&damaged), Some(stamp), "byte {at}");
        }
        assert_eq!(Stamp::read(&payload[..HEAD - 1]), None);
    }
}
