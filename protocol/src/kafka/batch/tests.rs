//! What is written is read back, whatever the records, the codec and the damage.

use bytes::BytesMut;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

const LIMIT: usize = 64 << 20;

/// A record that owns its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Owned {
    timestamp: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Owned {
    fn append_to(&self, builder: &mut BatchBuilder) -> usize {
        let headers: Vec<_> =
            self.headers.iter().map(|(key, value)| Header { key, value: value.as_deref() }).collect();
        let record = Record {
            timestamp: self.timestamp,
            key: self.key.as_deref(),
            value: self.value.as_deref(),
            headers: &headers,
        };
        let before = builder.len();
        let added = builder.append(&record);
        assert_eq!(builder.len() - before, added);
        assert!(added <= BatchBuilder::encoded_len(&record));
        added
    }
}

impl From<RecordRef<'_>> for Owned {
    fn from(record: RecordRef<'_>) -> Self {
        let text = |key: &[u8]| String::from_utf8(key.to_vec()).unwrap();
        Self {
            timestamp: record.timestamp,
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: record.headers().map(|(key, value)| (text(key), value.map(<[u8]>::to_vec))).collect(),
        }
    }
}

fn random_bytes(rng: &mut StdRng, most: usize) -> Option<Vec<u8>> {
    if rng.random_ratio(1, 6) {
        return None;
    }
    let len = rng.random_range(0..=most);
    // Few symbols, so that the codecs find something.
    Some((0..len).map(|_| b"abcdefgh"[rng.random_range(0..8)]).collect())
}

fn random_records(rng: &mut StdRng) -> Vec<Owned> {
    let count = if rng.random_ratio(1, 20) { 3000 } else { rng.random_range(1..200) };
    let start = rng.random_range(-5_000_000_000..5_000_000_000_000_i64);
    (0..count)
        .map(|_| Owned {
            timestamp: start + rng.random_range(-70_000..70_000),
            key: random_bytes(rng, 40),
            value: random_bytes(rng, 300),
            headers: (0..rng.random_range(0..4))
                .map(|_| (["a", "b", "größe"][rng.random_range(0..3)].to_owned(), random_bytes(rng, 20)))
                .collect(),
        })
        .collect()
}

fn build(records: &[Owned]) -> BatchBuilder {
    let mut builder = BatchBuilder::new();
    for record in records {
        record.append_to(&mut builder);
    }
    builder
}

fn read(sealed: &SealedBatch) -> Vec<Owned> {
    let mut all = batches(sealed.bytes().clone());
    let batch = all.next().unwrap().unwrap();
    assert!(all.next().is_none());
    assert_eq!(all.truncated(), None);
    let records = batch.records(LIMIT).unwrap();
    let mut offset = batch.header().base_offset;
    let read = records
        .iter()
        .map(|record| {
            let record = record.unwrap();
            assert_eq!(record.offset, offset);
            offset += 1;
            record.into()
        })
        .collect();
    assert_eq!(batch.header().last_offset() + 1, offset);
    read
}

#[test]
fn every_codec_reads_back_what_was_written() {
    for seed in 0..60 {
        let mut rng = StdRng::seed_from_u64(seed);
        let records = random_records(&mut rng);
        let identity = BatchStamp { producer_id: 4000, producer_epoch: 3, base_sequence: 17 };
        for compression in Compression::ALL {
            let sealed = build(&records).seal(compression, identity).unwrap();
            assert_eq!(sealed.count(), records.len());
            assert_eq!(sealed.identity(), identity);
            assert_eq!(Some(sealed.max_timestamp()), records.iter().map(|record| record.timestamp).max());
            assert_eq!(sealed.header().compression(), Ok(compression));
            assert_eq!(read(&sealed), records, "seed {seed}, {compression}");
            assert_eq!(SealedBatch::from_bytes(sealed.bytes().clone()), Ok(sealed), "seed {seed}");
        }
    }
}

#[test]
fn uncompressed_sealing_keeps_the_buffer() {
    let mut builder = BatchBuilder::with_capacity(4096);
    Owned { timestamp: 1, key: None, value: Some(vec![7; 100]), headers: vec![] }.append_to(&mut builder);
    let address = builder.records().next().unwrap().unwrap().value.unwrap().as_ptr();
    let mut sealed = builder.seal(Compression::None, BatchStamp::NONE).unwrap();
    let range = sealed.bytes().as_ptr_range();
    assert!(range.contains(&address));
    sealed.restamp(BatchStamp { producer_id: 1, producer_epoch: 0, base_sequence: 0 });
    assert_eq!(sealed.bytes().as_ptr_range(), range, "restamping copied bytes that nobody else holds");
}

#[test]
fn restamping_changes_the_identity_and_no_record_byte() {
    let records = random_records(&mut StdRng::seed_from_u64(1));
    for compression in Compression::ALL {
        let mut sealed = build(&records).seal(compression, BatchStamp::NONE).unwrap();
        let before = sealed.bytes().clone();
        let identity = BatchStamp { producer_id: 9, producer_epoch: 2, base_sequence: i32::MAX };
        sealed.restamp(identity);
        assert_eq!(sealed.bytes()[HEADER_LEN..], before[HEADER_LEN..]);
        assert_eq!(BatchHeader::parse(sealed.bytes()).unwrap().identity, identity);
        assert_eq!(
            BatchHeader::parse(&before).unwrap().identity,
            BatchStamp::NONE,
            "a holder's bytes changed"
        );
        assert_eq!(read(&sealed), records);
    }
}

#[test]
fn a_batch_splits_into_parts_with_the_same_records_in_order() {
    let records = random_records(&mut StdRng::seed_from_u64(2));
    for compression in Compression::ALL {
        let sealed = build(&records).seal(compression, BatchStamp::NONE).unwrap();
        for most in [0, 1, 7, records.len().div_ceil(2), records.len()] {
            let parts = sealed.split(most, LIMIT).unwrap();
            assert_eq!(parts.len(), records.len().div_ceil(most.max(1)));
            let mut back = Vec::new();
            for part in parts {
                assert!(part.count() <= most.max(1));
                let base = part.base_timestamp();
                let part = read(&part.seal(Compression::None, BatchStamp::NONE).unwrap());
                assert_eq!(base, Some(part[0].timestamp));
                back.extend(part);
            }
            assert_eq!(back, records);
        }
    }
}

#[test]
fn refused_records_leave_as_if_they_had_never_been_appended() {
    for seed in 0..40 {
        let mut rng = StdRng::seed_from_u64(seed);
        let records = random_records(&mut rng);
        let keep: Vec<bool> = records.iter().map(|_| rng.random_bool(0.6)).collect();
        let kept: Vec<Owned> =
            records.iter().zip(&keep).filter(|(_, keep)| **keep).map(|(record, _)| record.clone()).collect();
        let mut builder = build(&records);
        assert_eq!(builder.retain(|index| keep[index]), records.len() - kept.len());
        let fresh = build(&kept);
        assert_eq!((builder.count(), builder.len()), (fresh.count(), fresh.len()), "seed {seed}");
        assert_eq!(builder.max_timestamp(), fresh.max_timestamp());
        assert_eq!(
            builder.seal(Compression::None, BatchStamp::NONE).ok(),
            fresh.seal(Compression::None, BatchStamp::NONE).ok(),
            "seed {seed}"
        );
    }
}

#[test]
fn record_lengths_walk_the_batch_without_looking_into_it() {
    let records = random_records(&mut StdRng::seed_from_u64(5));
    let mut builder = BatchBuilder::new();
    let added: Vec<usize> = records.iter().map(|record| record.append_to(&mut builder)).collect();
    assert_eq!(builder.record_lens().collect::<Vec<_>>(), added);
    assert_eq!(builder.records().map(|record| record.unwrap().encoded_len()).collect::<Vec<_>>(), added);
    assert_eq!(HEADER_LEN + added.iter().sum::<usize>(), builder.len());
}

#[test]
fn an_empty_batch_is_not_sealed_and_comes_back() {
    let error = BatchBuilder::new().seal(Compression::Lz4, BatchStamp::NONE).unwrap_err();
    assert_eq!(error.error, Error::Empty);
    assert!(error.builder.is_empty());
}

#[test]
fn a_cut_off_last_batch_is_reported_and_no_error() {
    let records = random_records(&mut StdRng::seed_from_u64(8));
    let one = build(&records).seal(Compression::None, BatchStamp::NONE).unwrap();
    let mut answer = BytesMut::from(&one.bytes()[..]);
    answer.extend_from_slice(one.bytes());
    for end in one.len()..=answer.len() {
        let mut all = batches(answer.clone().freeze().slice(..end));
        assert!(all.next().unwrap().is_ok());
        assert!(end == answer.len() || all.next().is_none(), "at {end}");
        let have = end - one.len();
        let expected = Truncated {
            have,
            need: (have >= 12).then_some(one.len()),
            base_offset: (have >= 8).then_some(0),
        };
        assert_eq!(all.truncated(), (have > 0 && end < answer.len()).then_some(expected));
    }
}

#[test]
fn a_damaged_batch_is_an_error_and_the_next_one_is_still_read() {
    let one = build(&random_records(&mut StdRng::seed_from_u64(9)));
    let one = one.seal(Compression::None, BatchStamp::NONE).unwrap();
    let mut answer = BytesMut::from(&one.bytes()[..]);
    answer.extend_from_slice(one.bytes());
    answer[HEADER_LEN + 1] ^= 1;
    let mut all = batches(answer.freeze());
    assert!(matches!(all.next(), Some(Err(Error::Crc { base_offset: 0, .. }))));
    assert!(matches!(all.next(), Some(Ok(_))));
    assert!(all.next().is_none());
}

#[test]
fn the_formats_before_v2_are_named_in_the_error() {
    let mut old = BytesMut::new();
    old.extend_from_slice(&42i64.to_be_bytes());
    old.extend_from_slice(&14i32.to_be_bytes());
    old.extend_from_slice(&[0, 0, 0, 0, 1, 0, 255, 255, 255, 255, 255, 255, 255, 255]);
    let error = batches(old.freeze()).next().unwrap().unwrap_err();
    assert_eq!(error, Error::UnsupportedMagic { magic: 1, base_offset: 42 });
}
