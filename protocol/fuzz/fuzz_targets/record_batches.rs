//! Whatever bytes a fetch answer holds: no panic, no endless loop, no output beyond the limit.
//!
//! `cargo +nightly fuzz run record_batches` in `protocol/`. The first input byte chooses whether the
//! CRC is made right, so that the fuzzer gets past it.

#![no_main]

use bytes::Bytes;
use causeway_protocol::kafka::batch::{HEADER_LEN, SealedBatch, batches};
use libfuzzer_sys::fuzz_target;

const LIMIT: usize = 1 << 20;

fuzz_target!(|input: &[u8]| {
    let Some((choice, input)) = input.split_first() else { return };
    let mut bytes = input.to_vec();
    if choice & 1 == 1 && bytes.len() >= HEADER_LEN {
        let length = (bytes.len() - 12) as i32;
        bytes[8..12].copy_from_slice(&length.to_be_bytes());
        bytes[16] = 2;
        let crc = crc32c::crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    }
    let bytes = Bytes::from(bytes);
    for batch in batches(bytes.clone()).flatten() {
        let Ok(records) = batch.records(LIMIT) else { continue };
        let compressed = batch.header().compression().is_ok_and(|codec| codec.id() != 0);
        assert!(!compressed || records.byte_len() <= LIMIT);
        let mut lens = 0;
        for record in records.iter().flatten() {
            lens += record.encoded_len();
            assert_eq!(record.headers().count(), record.header_count());
        }
        assert!(lens <= records.byte_len());
    }
    if let Ok(sealed) = SealedBatch::from_bytes(bytes)
        && let Ok(parts) = sealed.split(2, LIMIT)
    {
        let count: usize = parts.iter().map(|part| part.count()).sum();
        assert_eq!(count, sealed.count());
    }
});
