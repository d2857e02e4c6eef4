//! Publications that were read while an earlier one of the same client waits for room.
//!
//! A client that must wait with its publications is still heard: PINGREQ, acknowledgements, SUBSCRIBE,
//! UNSUBSCRIBE and DISCONNECT behind them are acted on. The publications are kept here, encoded and in their
//! order, beginning with the one that waits for room.
//!
//! Invariants:
//! * It is bounded in bytes and packets, and by memory pressure. An empty one takes one packet of any size,
//!   which is in memory anyway. A publication that it refuses stays unread, with everything behind it.
//! * It holds only publications that are not acknowledged. When the connection is lost, the client sends them
//!   again, those with QoS 0 excepted.

use std::collections::VecDeque;

use causeway_protocol::mqtt::{Publish, QoS};

use super::{memory::Pressure, publisher::Block};
use crate::flow::mailbox::Capacity;

struct Entry {
    length: u32,
    /// 0 with QoS 0.
    identifier: u16,
}

/// Publications of one connection, in their order.
#[derive(Default)]
pub(crate) struct ReadAhead {
    bytes: Vec<u8>,
    /// Where the first packet begins in `bytes`.
    at: usize,
    entries: VecDeque<Entry>,
    /// A publication was refused, and none has left since.
    full: bool,
    /// Why the first one waits.
    pub(crate) block: Block,
}

impl ReadAhead {
    /// Takes a publication, encoded as `packet`; false where there is no room.
    pub(crate) fn push(
        &mut self,
        publish: &Publish<'_>,
        packet: &[u8],
        capacity: Capacity,
        pressure: Pressure,
    ) -> bool {
        let waiting = self.bytes.len() - self.at;
        let fits = self.entries.len() < capacity.items
            && waiting.saturating_add(packet.len()) <= capacity.bytes
            && !pressure.refuses(waiting);
        let Ok(length) = u32::try_from(packet.len()) else { return false };
        if !fits && !self.entries.is_empty() {
            self.full = true;
            return false;
        }
        if self.at > self.bytes.len() / 2 {
            // Moves less than has left since the last time.
            self.bytes.drain(..self.at);
            self.at = 0;
        }
        self.bytes.extend_from_slice(packet);
        let identifier = if publish.qos == QoS::AtMostOnce { 0 } else { publish.packet_identifier };
        self.entries.push_back(Entry { length, identifier });
        true
    }

    /// The first publication, encoded.
    pub(crate) fn first(&self) -> Option<&[u8]> {
        let length = self.entries.front()?.length as usize;
        self.bytes.get(self.at..self.at + length)
    }

    /// Removes the first publication, which has gone on, and returns its size in bytes.
    pub(crate) fn pop(&mut self) -> usize {
        self.full = false;
        let length = self.entries.pop_front().map_or(0, |entry| entry.length as usize);
        self.at += length;
        length
    }

    /// True where a publication with QoS 1 or 2 and this packet identifier waits.
    pub(crate) fn holds(&self, identifier: u16) -> bool {
        self.entries.iter().any(|entry| entry.identifier == identifier)
    }

    /// Number of publications with QoS 0: their client does not send them again.
    pub(crate) fn unreliable(&self) -> usize {
        self.entries.iter().filter(|entry| entry.identifier == 0).count()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// True while nothing more is read.
    pub(crate) fn is_full(&self) -> bool {
        self.full
    }

    /// Bytes of memory that it takes.
    pub(crate) fn footprint(&self) -> usize {
        self.bytes.capacity() + self.entries.capacity() * size_of::<Entry>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: Capacity = Capacity { bytes: 10, items: 3 };

    fn push(ahead: &mut ReadAhead, identifier: u16, packet: &[u8], pressure: Pressure) -> bool {
        let qos = if identifier == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
        let publish = Publish { qos, packet_identifier: identifier, ..Publish::default() };
        ahead.push(&publish, packet, CAPACITY, pressure)
    }

    fn leave(ahead: &mut ReadAhead) -> Vec<u8> {
        let first = ahead.first().unwrap_or_default().to_vec();
        assert_eq!(ahead.pop(), first.len());
        first
    }

    #[test]
    fn publications_leave_in_their_order_and_are_bounded_in_bytes_and_number() {
        let mut ahead = ReadAhead::default();
        assert!(push(&mut ahead, 1, b"longer than the room", Pressure::Full), "an empty one takes any");
        assert!(!push(&mut ahead, 2, b"x", Pressure::None) && ahead.is_full());
        assert_eq!(leave(&mut ahead), b"longer than the room");
        assert!(ahead.is_empty() && !ahead.is_full());
        for (identifier, packet) in [(3, b"abc"), (0, b"def"), (5, b"ghi")] {
            assert!(push(&mut ahead, identifier, packet, Pressure::None));
        }
        assert!(!push(&mut ahead, 6, b"", Pressure::None), "three are the most");
        assert!(ahead.holds(3) && ahead.holds(5) && !ahead.holds(6));
        assert_eq!(ahead.unreliable(), 1);
        assert_eq!([leave(&mut ahead), leave(&mut ahead)], [b"abc", b"def"]);
        assert!(!push(&mut ahead, 6, b"12345678", Pressure::None), "ten bytes are the most");
        assert!(!push(&mut ahead, 6, b"1", Pressure::Full), "no memory");
        assert!(push(&mut ahead, 6, b"1234567", Pressure::High));
        assert!(!ahead.holds(3));
        assert_eq!(leave(&mut ahead), b"ghi");
        assert_eq!(leave(&mut ahead), b"1234567");
        assert_eq!(ahead.first(), None);
    }

    #[test]
    fn memory_is_bounded_however_long_it_goes_on() {
        let mut ahead = ReadAhead::default();
        for round in 0..10_000u16 {
            assert!(push(&mut ahead, round + 1, b"abc", Pressure::None));
            if round > 0 {
                assert_eq!(leave(&mut ahead), b"abc");
            }
        }
        assert!(ahead.footprint() < 200, "{}", ahead.footprint());
    }
}
