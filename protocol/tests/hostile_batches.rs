//! Damaged and hostile record batches: no panic, no endless loop, no memory beyond what the bytes and
//! the caller's limit justify.
//!
//! The memory is measured by an allocator that counts this thread's bytes; what a C library takes (zstd)
//! is not seen by it.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use causeway_protocol::kafka::batch::{
    BatchBuilder, BatchHeader, BatchStamp, Compression, ControlRecord, Error, HEADER_LEN, Header, Record,
    SealedBatch, batches,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

mod counting {
    //! Counts the bytes that the current thread holds and their peak.
    #![allow(unsafe_code)]

    use std::alloc::{GlobalAlloc, Layout, System};
    use std::cell::Cell;

    thread_local! {
        static HELD: Cell<usize> = const { Cell::new(0) };
        static PEAK: Cell<usize> = const { Cell::new(0) };
    }

    struct Counting;

    #[global_allocator]
    static ALLOCATOR: Counting = Counting;

    fn add(bytes: usize) {
        // `try_with`: allocations also happen while a thread's locals are torn down.
        let _ = HELD.try_with(|held| {
            held.set(held.get().saturating_add(bytes));
            let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
        });
    }

    fn remove(bytes: usize) {
        let _ = HELD.try_with(|held| held.set(held.get().saturating_sub(bytes)));
    }

    // SAFETY: every call goes to `System` with the arguments it came with; the counting beside it
    // touches thread-local cells that need no allocation and no destructor.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            add(layout.size());
            // SAFETY: as promised by the caller.
            unsafe { System.alloc(layout) }
        }

        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            add(layout.size());
            // SAFETY: as promised by the caller.
            unsafe { System.alloc_zeroed(layout) }
        }

        unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
            remove(layout.size());
            // SAFETY: as promised by the caller.
            unsafe { System.dealloc(pointer, layout) }
        }

        unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
            add(size);
            remove(layout.size());
            // SAFETY: as promised by the caller.
            unsafe { System.realloc(pointer, layout, size) }
        }
    }

    /// Most bytes that `work` holds at one time, beyond those held before.
    pub(super) fn peak(work: impl FnOnce()) -> usize {
        let before = HELD.get();
        PEAK.set(before);
        work();
        PEAK.get() - before
    }
}

/// Most bytes that decompression may yield here.
const LIMIT: usize = 256 * 1024;
/// `LIMIT`, doubled by a growing buffer and once more while it moves, and the codecs' own tables: the
/// largest block of an LZ4 frame (8 MB in its legacy form) with as much input.
const PEAK: usize = 4 * LIMIT + 24 * 1024 * 1024;

/// Reads all that can be read and checks what a reader relies on.
fn exercise(input: &[u8]) {
    let bytes = Bytes::copy_from_slice(input);
    let mut all = batches(bytes.clone());
    let mut seen = 0;
    for batch in &mut all {
        let Ok(batch) = batch else { continue };
        seen += batch.bytes().len();
        let Ok(records) = batch.records(LIMIT) else { continue };
        let (mut found, mut lens) = (0, 0);
        for record in &records {
            let Ok(record) = record else { break };
            found += 1;
            lens += record.encoded_len();
            assert!(record.offset >= batch.header().base_offset);
            assert_eq!(record.headers().count(), record.header_count());
            let parts = record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len);
            let headers: usize =
                record.headers().map(|(key, value)| key.len() + value.map_or(0, <[u8]>::len)).sum();
            assert!(parts + headers < record.encoded_len());
            let _ = ControlRecord::parse(record.key);
        }
        assert!(found <= records.count());
        assert!(lens <= records.byte_len());
    }
    assert!(seen <= input.len());
    assert!(all.next().is_none());
    if let Ok(sealed) = SealedBatch::from_bytes(bytes) {
        let _ = sealed.split(3, LIMIT).map(|parts| parts.len());
    }
}

fn sample(rng: &mut StdRng, compression: Compression) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    for index in 0..rng.random_range(1..40) {
        let value = vec![b'a' + index as u8; rng.random_range(0..200)];
        let headers = [Header { key: "trace", value: Some(b"1") }, Header { key: "trace", value: None }];
        builder.append(&Record {
            timestamp: 1_700_000_000_000 + rng.random_range(-500..500),
            key: rng.random_bool(0.7).then_some(b"device-1"),
            value: rng.random_bool(0.9).then_some(&value),
            headers: &headers[..rng.random_range(0..=2)],
        });
    }
    builder.seal(compression, BatchStamp::NONE).unwrap().bytes().to_vec()
}

/// Numbers that parsers stumble over.
const EDGES: [i64; 10] = [0, -1, 1, 7, 49, 0x7f, 0x80, i32::MAX as i64, i32::MIN as i64, 0x4000_0000];

fn mutate(rng: &mut StdRng, bytes: &mut Vec<u8>) {
    for _ in 0..rng.random_range(1..4) {
        let at = rng.random_range(0..bytes.len());
        match rng.random_range(0..6) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = [0, 1, 2, 0x7f, 0x80, 0xff][rng.random_range(0..6)],
            2 => {
                let edge = (EDGES[rng.random_range(0..EDGES.len())] as i32).to_be_bytes();
                for (to, from) in bytes.iter_mut().skip(at).zip(edge) {
                    *to = from;
                }
            }
            3 => bytes.truncate(at.max(1)),
            4 => bytes.insert(at, rng.random()),
            _ => {
                let part = bytes[at..].to_vec();
                bytes.extend_from_slice(&part[..part.len().min(64)]);
            }
        }
    }
}

/// Makes length and CRC right again, so that the damage is met further inside.
fn repair(bytes: &mut [u8]) {
    if bytes.len() >= HEADER_LEN {
        let length = (bytes.len() - 12) as i32;
        bytes[8..12].copy_from_slice(&length.to_be_bytes());
        bytes[16] = 2;
        let crc = crc32c::crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    }
}

#[test]
fn damaged_batches_are_read_without_panic_and_within_bounds() {
    let rounds =
        std::env::var("CAUSEWAY_FUZZ_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(6000);
    let mut reached_records = 0;
    for seed in 0..rounds {
        let mut rng = StdRng::seed_from_u64(seed);
        let compression = Compression::ALL[rng.random_range(0..5)];
        let mut bytes = sample(&mut rng, compression);
        mutate(&mut rng, &mut bytes);
        if rng.random_bool(0.9) {
            repair(&mut bytes);
        }
        if rng.random_bool(0.2) {
            let other = sample(&mut rng, compression);
            bytes.extend_from_slice(&other);
        }
        reached_records += usize::from(BatchHeader::parse(&bytes).is_ok());
        let outcome = std::panic::catch_unwind(|| counting::peak(|| exercise(&bytes)));
        let peak = outcome.unwrap_or_else(|_| panic!("panic with seed {seed}"));
        assert!(peak <= PEAK, "seed {seed}, {compression}: {peak} bytes held at one time");
    }
    assert!(reached_records > rounds as usize / 2, "most inputs must get past the header");
}

#[test]
fn a_bomb_is_stopped_at_the_limit() {
    let zeros = vec![0u8; 32 << 20];
    for compression in [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
        let mut builder = BatchBuilder::new();
        builder.append(&Record { timestamp: 0, key: None, value: Some(&zeros), headers: &[] });
        let sealed = builder.seal(compression, BatchStamp::NONE).unwrap();
        let bytes = sealed.bytes().clone();
        let peak = counting::peak(|| {
            let batch = batches(bytes).next().unwrap().unwrap();
            let error = batch.records(LIMIT).unwrap_err();
            assert_eq!(error, Error::OutputLimit { codec: compression, limit: LIMIT });
        });
        assert!(peak <= 4 * LIMIT + (2 << 20), "{compression}: {peak} bytes held at one time");
    }
}

/// A batch around `body` with a right length and CRC.
fn around(attributes: i16, count: i32, body: &[u8]) -> Vec<u8> {
    let header = BatchHeader {
        base_offset: i64::MAX - 1,
        batch_length: 0,
        partition_leader_epoch: 0,
        crc: 0,
        attributes,
        last_offset_delta: 0,
        base_timestamp: i64::MAX,
        max_timestamp: i64::MIN,
        identity: BatchStamp::NONE,
        records_count: count,
    };
    let mut bytes = header.to_bytes().to_vec();
    bytes.extend_from_slice(body);
    repair(&mut bytes);
    bytes
}

fn first_error(bytes: Vec<u8>) -> Error {
    let batch = batches(Bytes::from(bytes)).next().unwrap().unwrap();
    let records = match batch.records(LIMIT) {
        Ok(records) => records,
        Err(error) => return error,
    };
    records.iter().find_map(Result::err).unwrap()
}

#[test]
fn lengths_and_counts_that_lie_are_named() {
    let malformed = |what| Error::Malformed { index: 0, what };
    // length, attributes, timestamp delta, offset delta, key, value, header count
    let whole = [12, 0, 0, 0, 1, 1, 0];
    assert_eq!(
        first_error(around(0, i32::MAX, &whole)),
        Error::Count { declared: i32::MAX, what: "more than its bytes can hold" }
    );
    assert_eq!(
        first_error(around(0, -1, &whole)),
        Error::Count { declared: -1, what: "more than its bytes can hold" }
    );
    assert_eq!(
        first_error(around(0, 0, &whole)),
        Error::Count { declared: 0, what: "and more bytes follow" }
    );
    let long = [14, 0, 0, 0, 1, 3, 7, 0];
    assert_eq!(
        first_error(around(0, 1, &long)),
        malformed("the length of its value is not within the record")
    );
    for (body, what) in [
        ([11, 0, 0, 0, 1, 1, 0], "its length is not within the batch"),
        ([14, 0, 0, 0, 1, 1, 0], "its length is not within the batch"),
        ([12, 0, 0x80, 0x80, 0x80, 0x80, 0x80], "its timestamp delta is no varint"),
        ([12, 0, 0, 1, 1, 1, 0], "its offset delta is not within the offsets"),
        ([12, 0, 0, 4, 1, 1, 0], "its offset delta is not within the offsets"),
        ([12, 0, 0, 0, 3, 1, 0], "the length of its key is not within the record"),
        ([12, 0, 0, 0, 1, 1, 2], "its header count is not within the record"),
        ([12, 0, 0, 0, 1, 1, 1], "its header count is not within the record"),
    ] {
        assert_eq!(first_error(around(0, 1, &body)), malformed(what), "{body:?}");
    }
    let left = [14, 0, 0, 0, 1, 1, 0, 9];
    assert_eq!(first_error(around(0, 1, &left)), malformed("bytes are left behind its headers"));
    let header_key = [16, 0, 0, 0, 1, 1, 2, 8, 1];
    assert_eq!(
        first_error(around(0, 1, &header_key)),
        malformed("the length of a header key is not within the record")
    );
    let header_value = [16, 0, 0, 0, 1, 1, 2, 0, 3];
    assert_eq!(
        first_error(around(0, 1, &header_value)),
        malformed("the length of a header value is not within the record")
    );
    assert_eq!(first_error(around(5, 1, &whole)), Error::UnknownCompression { id: 5 });
    for codec in 1..=4 {
        assert!(matches!(first_error(around(codec, 1, &whole)), Error::Decompress { .. }), "codec {codec}");
    }
}

#[test]
fn a_snappy_block_that_declares_what_it_cannot_hold_is_refused() {
    // A raw snappy block of 5 bytes that declares 200,000 bytes of output.
    let raw = [0xc0, 0x9a, 0x0c, 0, 0];
    let peak = counting::peak(|| {
        assert!(matches!(first_error(around(2, 1, &raw)), Error::Decompress { .. }));
    });
    assert!(peak < 4096, "{peak} bytes held at one time");
}

#[test]
fn a_batch_length_that_cannot_be_ends_the_iteration() {
    for length in [i32::MIN, -1, 0, 4] {
        let mut bytes = vec![0; 8];
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&[0; 200]);
        let mut all = batches(Bytes::from(bytes));
        assert_eq!(all.next().unwrap().unwrap_err(), Error::BadLength { base_offset: 0, length });
        assert!(all.next().is_none());
        assert_eq!(all.truncated(), None);
    }
}
