//! What a Kafka record costs: appended and sealed, compressed, checked, read back.
//!
//! Everything is measured in CPU time of the thread and shown per million records, in batches of 1,000
//! records with a 16-byte key and a 100-byte value that compresses like JSON telemetry.
//!
//! * `cargo bench -p causeway-benches --bench records`: ours.
//! * `… --features rskafka-internals`: rskafka's writer and reader beside it. What its producer does
//!   for each record is repeated here with its own types: own key, value and headers, build the batch,
//!   write it. Its client adds a task and a channel on top, which are not counted.
//! * `… --features rdkafka`: librdkafka's produce path into its own mock cluster. It works on threads
//!   of its own, so this is CPU time of the process, mock broker and system calls included.

use std::hint::black_box;
use std::time::Duration;

use causeway_benches::cpu;
use causeway_protocol::kafka::batch::{
    BatchBuilder, BatchStamp, Compression, Header, Record, SealedBatch, batches,
};
use criterion::measurement::{Measurement, ValueFormatter};
use criterion::{Criterion, Throughput};

/// CPU time of the measuring thread.
struct CpuTime;

/// Shows CPU seconds per million elements.
struct PerMillion;

impl ValueFormatter for PerMillion {
    fn scale_values(&self, _typical: f64, values: &mut [f64]) -> &'static str {
        for value in values {
            *value /= 1e3;
        }
        "us"
    }

    fn scale_throughputs(&self, _typical: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        let (elements, unit) = match throughput {
            Throughput::Elements(elements) => (*elements, "CPU s per million"),
            Throughput::Bytes(bytes) => (*bytes, "CPU s per million bytes"),
            _ => (1, "CPU s per million runs"),
        };
        for value in values {
            *value /= elements as f64 * 1e3;
        }
        unit
    }

    fn scale_for_machines(&self, _values: &mut [f64]) -> &'static str {
        "ns"
    }
}

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        cpu::thread()
    }

    fn end(&self, start: Duration) -> Duration {
        cpu::thread().saturating_sub(start)
    }

    fn add(&self, one: &Duration, other: &Duration) -> Duration {
        *one + *other
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        &PerMillion
    }
}

/// Records of a batch.
const COUNT: usize = 1000;
/// Bytes of a value.
const VALUE_LEN: usize = 100;
const NOW: i64 = 1_700_000_000_000;

struct Message {
    key: String,
    value: Vec<u8>,
}

fn messages() -> Vec<Message> {
    (0..COUNT)
        .map(|index| {
            let device = index * 37 % 100;
            let text = format!(
                r#"{{"device":"sensor-{device:06}","seq":{:08},"temperature":{}.{:02},"unit":"C","state":"ok""#,
                index * 7919,
                15 + index % 20,
                index * 31 % 100
            );
            let value = format!("{text:<width$}}}", width = VALUE_LEN - 1).into_bytes();
            Message { key: format!("sensor-{device:09}"), value }
        })
        .collect()
}

const HEADERS: [Header<'static>; 2] = [
    Header { key: "mqtt-topic", value: Some(b"t/devices/17") },
    Header { key: "client-id", value: Some(b"sensor-000000017") },
];
const HEADER_CASES: [(&str, &[Header<'static>]); 2] = [("no headers", &[]), ("2 headers", &HEADERS)];

fn append_all(messages: &[Message], headers: &[Header<'_>]) -> BatchBuilder {
    let mut builder = BatchBuilder::new();
    for (index, message) in messages.iter().enumerate() {
        builder.append(&Record {
            timestamp: NOW + (index / 10) as i64,
            key: Some(message.key.as_bytes()),
            value: Some(&message.value),
            headers,
        });
    }
    builder
}

fn seal(builder: BatchBuilder, compression: Compression) -> SealedBatch {
    let identity = BatchStamp { producer_id: 1, producer_epoch: 0, base_sequence: 0 };
    match builder.seal(compression, identity) {
        Ok(sealed) => sealed,
        Err(error) => panic!("the sample cannot be sealed: {error}"),
    }
}

/// Sum of the values' lengths, so that nothing is optimised away.
fn read_all(sealed: &SealedBatch) -> usize {
    let mut sum = 0;
    for batch in batches(sealed.bytes().clone()).flatten() {
        if let Ok(records) = batch.records(1 << 24) {
            for record in records.iter().flatten() {
                sum += record.value.map_or(0, <[u8]>::len);
            }
        }
    }
    assert_eq!(sum, COUNT * VALUE_LEN);
    sum
}

fn ours(criterion: &mut Criterion<CpuTime>) {
    let messages = messages();
    let mut group = criterion.benchmark_group("records");
    group.throughput(Throughput::Elements(COUNT as u64));
    for (name, headers) in HEADER_CASES {
        group.bench_function(format!("causeway/append and seal/{name}"), |bencher| {
            bencher.iter(|| seal(append_all(black_box(&messages), headers), Compression::None));
        });
    }
    for compression in Compression::ALL {
        if compression != Compression::None {
            group.bench_function(format!("causeway/append and seal/{compression}"), |bencher| {
                bencher.iter(|| seal(append_all(black_box(&messages), &[]), compression));
            });
        }
    }
    let plain = seal(append_all(&messages, &[]), Compression::None);
    group.bench_function("causeway/crc32c alone", |bencher| {
        bencher.iter(|| crc32c::crc32c(black_box(plain.bytes())));
    });
    group.bench_function("causeway/restamp", |bencher| {
        let mut sealed = seal(append_all(&messages, &[]), Compression::None);
        let mut base_sequence = 0;
        bencher.iter(|| {
            base_sequence += 1;
            sealed.restamp(BatchStamp { producer_id: 1, producer_epoch: 0, base_sequence });
        });
    });
    for compression in Compression::ALL {
        let sealed = seal(append_all(&messages, &[]), compression);
        group.bench_function(format!("causeway/read back/{compression}"), |bencher| {
            bencher.iter(|| read_all(black_box(&sealed)));
        });
    }
    group.finish();
}

#[cfg(feature = "rskafka-internals")]
mod rskafka_beside {
    //! rskafka's writer and reader.

    use rskafka::protocol::record::{
        ControlBatchOrRecords, Record as TheirRecord, RecordBatch, RecordBatchCompression,
        RecordBatchTimestampType, RecordHeader,
    };
    use rskafka::protocol::traits::{ReadType, WriteType};

    use super::{
        COUNT, Compression, CpuTime, Criterion, HEADER_CASES, HEADERS, Header, Message, NOW, SealedBatch,
        Throughput, VALUE_LEN, append_all, black_box, messages, seal,
    };

    fn write_all(
        messages: &[Message],
        headers: &[Header<'_>],
        compression: RecordBatchCompression,
    ) -> Vec<u8> {
        let records = messages
            .iter()
            .enumerate()
            .map(|(index, message)| TheirRecord {
                timestamp_delta: (index / 10) as i64,
                offset_delta: index as i32,
                key: Some(message.key.as_bytes().to_vec()),
                value: Some(message.value.clone()),
                headers: headers
                    .iter()
                    .map(|header| RecordHeader {
                        key: header.key.to_owned(),
                        value: header.value.map(<[u8]>::to_vec).unwrap_or_default(),
                    })
                    .collect(),
            })
            .collect();
        let batch = RecordBatch {
            base_offset: 0,
            partition_leader_epoch: 0,
            last_offset_delta: COUNT as i32 - 1,
            first_timestamp: NOW,
            max_timestamp: NOW + (COUNT as i64 - 1) / 10,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            records: ControlBatchOrRecords::Records(records),
            compression,
            is_transactional: false,
            timestamp_type: RecordBatchTimestampType::CreateTime,
        };
        let mut out = Vec::new();
        if let Err(error) = batch.write(&mut out) {
            panic!("rskafka cannot write the sample: {error}");
        }
        out
    }

    fn read_all(mut bytes: &[u8]) -> usize {
        let batch = match RecordBatch::read(&mut bytes) {
            Ok(batch) => batch,
            Err(error) => panic!("rskafka cannot read the sample: {error}"),
        };
        let ControlBatchOrRecords::Records(records) = batch.records else { panic!("no records") };
        let sum = records.iter().map(|record| record.value.as_ref().map_or(0, Vec::len)).sum();
        assert_eq!(sum, COUNT * VALUE_LEN);
        sum
    }

    const CODECS: [(Compression, RecordBatchCompression); 5] = [
        (Compression::None, RecordBatchCompression::NoCompression),
        (Compression::Gzip, RecordBatchCompression::Gzip),
        (Compression::Snappy, RecordBatchCompression::Snappy),
        (Compression::Lz4, RecordBatchCompression::Lz4),
        (Compression::Zstd, RecordBatchCompression::Zstd),
    ];

    pub(super) fn run(criterion: &mut Criterion<CpuTime>) {
        let messages = messages();
        let mut group = criterion.benchmark_group("records");
        group.throughput(Throughput::Elements(COUNT as u64));
        for (name, headers) in HEADER_CASES {
            group.bench_function(format!("rskafka/append and seal/{name}"), |bencher| {
                bencher
                    .iter(|| write_all(black_box(&messages), headers, RecordBatchCompression::NoCompression));
            });
        }
        for (ours, theirs) in CODECS {
            if ours != Compression::None {
                group.bench_function(format!("rskafka/append and seal/{ours}"), |bencher| {
                    bencher.iter(|| write_all(black_box(&messages), &[], theirs));
                });
            }
            // Each side reads what the other wrote.
            read_all(seal(append_all(&messages, &HEADERS), ours).bytes());
            match SealedBatch::from_bytes(write_all(&messages, &HEADERS, theirs).into()) {
                Ok(sealed) => super::read_all(&sealed),
                Err(error) => panic!("what rskafka wrote with {ours} cannot be read: {error}"),
            };
            let sealed = seal(append_all(&messages, &[]), ours);
            group.bench_function(format!("rskafka/read back/{ours}"), |bencher| {
                bencher.iter(|| read_all(black_box(sealed.bytes())));
            });
        }
        group.finish();
    }
}

#[cfg(feature = "rdkafka")]
mod librdkafka {
    //! librdkafka's produce path: `produce`, its broker thread, the delivery reports.

    use rdkafka::ClientConfig;
    use rdkafka::message::{Header as TheirHeader, OwnedHeaders};
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

    use super::{COUNT, Duration, HEADER_CASES, Header, NOW, cpu, messages};

    const MESSAGES: usize = 1_000_000;

    pub(super) fn run() {
        for (name, headers) in HEADER_CASES {
            match produce(headers) {
                Ok(seconds) => println!("records/librdkafka/produce/{name}: {seconds:.2} CPU s per million"),
                Err(error) => panic!("librdkafka with its mock cluster: {error}"),
            }
        }
    }

    fn produce(headers: &[Header<'_>]) -> Result<f64, rdkafka::error::KafkaError> {
        let messages = messages();
        let producer: BaseProducer = ClientConfig::new()
            .set("test.mock.num.brokers", "1")
            .set("batch.num.messages", COUNT.to_string())
            .set("linger.ms", "5")
            .create()?;
        // The first message brings connection and metadata.
        let topic = "records";
        if let Err((error, _)) = producer.send(BaseRecord::to(topic).key("warm").payload("up")) {
            return Err(error);
        }
        producer.flush(Duration::from_secs(20))?;
        let start = cpu::process();
        for (index, message) in messages.iter().cycle().take(MESSAGES).enumerate() {
            loop {
                let mut record = BaseRecord::to(topic)
                    .key(message.key.as_bytes())
                    .payload(&message.value)
                    .partition(0)
                    .timestamp(NOW + (index / 10) as i64);
                if !headers.is_empty() {
                    record = record.headers(headers.iter().fold(OwnedHeaders::new(), |all, header| {
                        all.insert(TheirHeader { key: header.key, value: header.value })
                    }));
                }
                if producer.send(record).is_ok() {
                    break;
                }
                // Its queue is full.
                producer.poll(Duration::from_millis(5));
            }
            if index % COUNT == 0 {
                producer.poll(Duration::ZERO);
            }
        }
        producer.flush(Duration::from_secs(60))?;
        Ok(cpu::process().saturating_sub(start).as_secs_f64() * 1e6 / MESSAGES as f64)
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .with_measurement(CpuTime)
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    ours(&mut criterion);
    #[cfg(feature = "rskafka-internals")]
    rskafka_beside::run(&mut criterion);
    #[cfg(feature = "rdkafka")]
    librdkafka::run();
    criterion.final_summary();
}
