//! Record batches against the `kafka-protocol` crate's own reader and writer, which share no code with
//! ours. (Compressed batches meet other readers in the tests that go through a broker.)

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use causeway_protocol::kafka::batch::{BatchBuilder, BatchStamp, Compression, Header, Record, batches};
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records::{
    Compression as TheirCompression, Record as TheirRecord, RecordBatchDecoder, RecordBatchEncoder,
    RecordEncodeOptions, TimestampType,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Unique header keys only: the other side keeps headers in a map.
type Headers = BTreeMap<String, Option<Vec<u8>>>;

struct Sample {
    timestamp: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Headers,
}

fn random_bytes(rng: &mut StdRng, most: usize) -> Option<Vec<u8>> {
    rng.random_bool(0.85).then(|| (0..rng.random_range(0..most)).map(|_| rng.random()).collect())
}

fn samples(rng: &mut StdRng) -> Vec<Sample> {
    (0..rng.random_range(1..300))
        .map(|_| Sample {
            timestamp: 1_700_000_000_000 + rng.random_range(-100_000..100_000),
            key: random_bytes(rng, 30),
            value: random_bytes(rng, 400),
            headers: (0..rng.random_range(0..4))
                .map(|index| (format!("header-{index}"), random_bytes(rng, 20)))
                .collect(),
        })
        .collect()
}

const IDENTITY: BatchStamp = BatchStamp { producer_id: 77, producer_epoch: 4, base_sequence: 1000 };

#[test]
fn kafka_protocol_reads_what_we_wrote() {
    for seed in 0..100 {
        let samples = samples(&mut StdRng::seed_from_u64(seed));
        let mut builder = BatchBuilder::new();
        for sample in &samples {
            let headers: Vec<_> =
                sample.headers.iter().map(|(key, value)| Header { key, value: value.as_deref() }).collect();
            builder.append(&Record {
                timestamp: sample.timestamp,
                key: sample.key.as_deref(),
                value: sample.value.as_deref(),
                headers: &headers,
            });
        }
        let sealed = builder.seal(Compression::None, IDENTITY).unwrap();
        let set = RecordBatchDecoder::decode(&mut sealed.bytes().clone()).unwrap();
        assert_eq!(set.records.len(), samples.len(), "seed {seed}");
        for (index, (record, sample)) in set.records.iter().zip(&samples).enumerate() {
            assert_eq!(record.offset, index as i64, "seed {seed}");
            assert_eq!(record.sequence, 1000 + index as i32, "seed {seed}");
            assert_eq!((record.producer_id, record.producer_epoch), (77, 4));
            assert_eq!(record.timestamp, sample.timestamp, "seed {seed}");
            assert_eq!(record.key.as_deref(), sample.key.as_deref(), "seed {seed}");
            assert_eq!(record.value.as_deref(), sample.value.as_deref(), "seed {seed}");
            let headers: Headers = record
                .headers
                .iter()
                .map(|(key, value)| (key.to_string(), value.as_deref().map(<[u8]>::to_vec)))
                .collect();
            assert_eq!(headers, sample.headers, "seed {seed}");
        }
    }
}

#[test]
fn we_read_what_kafka_protocol_wrote() {
    for seed in 0..100 {
        let samples = samples(&mut StdRng::seed_from_u64(seed));
        let theirs: Vec<TheirRecord> = samples
            .iter()
            .enumerate()
            .map(|(index, sample)| TheirRecord {
                transactional: false,
                control: false,
                delete_horizon: false,
                partition_leader_epoch: 5,
                producer_id: 77,
                producer_epoch: 4,
                timestamp_type: TimestampType::Creation,
                offset: 9000 + index as i64,
                sequence: 1000 + index as i32,
                timestamp: sample.timestamp,
                key: sample.key.clone().map(Bytes::from),
                value: sample.value.clone().map(Bytes::from),
                headers: sample
                    .headers
                    .iter()
                    .map(|(key, value)| (StrBytes::from_string(key.clone()), value.clone().map(Bytes::from)))
                    .collect(),
            })
            .collect();
        let mut bytes = BytesMut::new();
        let options = RecordEncodeOptions { version: 2, compression: TheirCompression::None };
        RecordBatchEncoder::encode(&mut bytes, &theirs, &options).unwrap();

        let mut all = batches(bytes.freeze());
        let batch = all.next().unwrap().unwrap();
        assert!(all.next().is_none());
        let header = batch.header();
        assert_eq!((header.base_offset, header.partition_leader_epoch), (9000, 5));
        assert_eq!(header.identity, IDENTITY);
        let records = batch.records(1 << 20).unwrap();
        assert_eq!(records.count(), samples.len(), "seed {seed}");
        for ((index, record), sample) in records.iter().enumerate().zip(&samples) {
            let record = record.unwrap();
            assert_eq!(record.offset, 9000 + index as i64, "seed {seed}");
            assert_eq!(record.timestamp, sample.timestamp, "seed {seed}");
            assert_eq!(record.key, sample.key.as_deref(), "seed {seed}");
            assert_eq!(record.value, sample.value.as_deref(), "seed {seed}");
            let headers: Headers = record
                .headers()
                .map(|(key, value)| (String::from_utf8(key.to_vec()).unwrap(), value.map(<[u8]>::to_vec)))
                .collect();
            assert_eq!(headers, sample.headers, "seed {seed}");
        }
    }
}
