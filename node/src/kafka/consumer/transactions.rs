//! Reading only what was committed (KIP-98): which batches of a fetch belong to aborted transactions.
//!
//! The broker names the aborted transactions that begin in or before a fetched range, each by producer id
//! and first offset; the transaction's end is the abort marker in the data.

use std::collections::HashSet;

use causeway_protocol::kafka::batch::{Batch, ControlRecord};

/// A marker is a few bytes; what claims more is not read.
const MARKER_LIMIT: usize = 64 * 1024;

/// Walks the batches of one fetched range in order.
#[derive(Debug)]
pub(super) struct CommittedOnly {
    /// (first offset, producer id), last one first.
    aborted: Vec<(i64, i64)>,
    /// Producers whose present transaction will be aborted.
    open: HashSet<i64>,
}

impl CommittedOnly {
    /// `aborted` are (first offset, producer id) in any order.
    pub(super) fn new(mut aborted: Vec<(i64, i64)>) -> Self {
        aborted.sort_unstable_by(|a, b| b.cmp(a));
        Self { aborted, open: HashSet::new() }
    }

    /// True where the batch holds records for readers.
    pub(super) fn admits(&mut self, batch: &Batch) -> bool {
        let header = batch.header();
        while let Some((_, producer)) = self.aborted.pop_if(|(first, _)| *first <= header.last_offset()) {
            self.open.insert(producer);
        }
        let producer = header.identity.producer_id;
        if header.is_control() {
            if is_abort(batch) {
                self.open.remove(&producer);
            }
            return false;
        }
        !(header.is_transactional() && self.open.contains(&producer))
    }
}

fn is_abort(batch: &Batch) -> bool {
    let Ok(records) = batch.records(MARKER_LIMIT) else { return false };
    let marker = records.iter().next().and_then(Result::ok);
    marker.is_some_and(|record| ControlRecord::parse(record.key) == Some(ControlRecord::Abort))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use causeway_protocol::kafka::batch::{
        BatchBuilder, BatchHeader, BatchStamp, Compression, HEADER_LEN, Record, batches,
    };

    use super::*;

    /// A batch of `count` records; `attributes` are added to those of the format.
    fn batch(base_offset: i64, count: usize, producer_id: i64, attributes: i16, key: &[u8]) -> Batch {
        let mut builder = BatchBuilder::new();
        for _ in 0..count {
            builder.append(&Record { timestamp: 1, key: Some(key), value: None, headers: &[] });
        }
        let identity = BatchStamp { producer_id, producer_epoch: 0, base_sequence: 0 };
        let sealed = builder.seal(Compression::None, identity).unwrap();
        let mut bytes = sealed.bytes().to_vec();
        let mut header = BatchHeader::parse(&bytes).unwrap();
        header.base_offset = base_offset;
        header.attributes |= attributes;
        bytes[..HEADER_LEN].copy_from_slice(&header.to_bytes());
        header.crc = crc32c(&bytes[21..]);
        bytes[..HEADER_LEN].copy_from_slice(&header.to_bytes());
        batches(Bytes::from(bytes)).next().unwrap().unwrap()
    }

    /// CRC32C, bit by bit: a second opinion.
    fn crc32c(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, byte| {
            (0..8)
                .fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
        })
    }

    const TRANSACTIONAL: i16 = 0x10;
    const MARKER: i16 = 0x30;
    const ABORT: &[u8] = &[0, 0, 0, 0];
    const COMMIT: &[u8] = &[0, 0, 0, 1];

    #[test]
    fn aborted_transactions_and_markers_are_passed_over() {
        let mut reader = CommittedOnly::new(vec![(10, 1), (30, 1)]);
        let mut admits = |base, count, producer, attributes, key| {
            reader.admits(&batch(base, count, producer, attributes, key))
        };
        assert!(admits(0, 10, -1, 0, b"k"), "no transaction");
        assert!(!admits(10, 5, 1, TRANSACTIONAL, b"k"), "aborted");
        assert!(admits(15, 5, 2, TRANSACTIONAL, b"k"), "another producer's, committed");
        assert!(admits(20, 1, 1, 0, b"k"), "the same producer outside of a transaction");
        assert!(!admits(21, 1, 1, MARKER, ABORT), "the abort marker");
        assert!(admits(22, 5, 1, TRANSACTIONAL, b"k"), "its next transaction is committed");
        assert!(!admits(27, 1, 1, MARKER, COMMIT), "the commit marker");
        assert!(!admits(30, 5, 1, TRANSACTIONAL, b"k"), "and the one after is aborted again");
    }
}
