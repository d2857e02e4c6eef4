//! What an MQTT packet costs: read from a buffer, written to one.
//!
//! `cargo bench -p causeway-benches --bench mqtt`. CPU time of the thread, per packet; the read buffer of
//! 64 packets is shown per packet too. `mqttbytes` stands beside ours, for 3.1.1: it takes its packets out
//! of a `BytesMut`, which is filled outside the measurement, and copies topics into `String`s.

#![allow(clippy::expect_used, reason = "a bench of a packet that is not legal measures nothing")]

use std::hint::black_box;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use causeway_benches::cpu;
use causeway_protocol::mqtt::{
    Ack, AckKind, Decoded, Decoder, Packet, Publish, QoS, ReasonCode, Role, UserPropertiesBuf, Version,
    encode_ack, encode_publish,
};
use criterion::measurement::{Measurement, ValueFormatter};
use criterion::{BatchSize, Criterion, Throughput};
use mqttbytes::v4;

const TOPIC: &str = "devices/sensor-000017/telemetry";
const MAXIMUM: usize = 1024 * 1024;
/// Packets of a read buffer.
const COUNT: usize = 64;

fn main() {
    let mut criterion = Criterion::default().with_measurement(CpuTime).configure_from_args();
    decode(&mut criterion);
    decode_buffer(&mut criterion);
    encode(&mut criterion);
    acknowledgements(&mut criterion);
    criterion.final_summary();
}

/// Topic and payload are so long that the whole QoS 0 packet of 3.1.1 has `size` bytes.
fn payload(size: usize) -> Vec<u8> {
    let text = br#"{"device":"sensor-000017","temperature":21.57,"unit":"C","state":"ok"}"#;
    let header = if size < 130 { 2 } else { 3 };
    text.iter().copied().cycle().take(size - header - 2 - TOPIC.len()).collect()
}

fn publish(qos: QoS, payload: &[u8]) -> Publish<'_> {
    let packet_identifier = if qos == QoS::AtMostOnce { 0 } else { 7 };
    Publish { qos, topic: TOPIC, packet_identifier, payload, ..Publish::default() }
}

fn their_publish(publish: &Publish<'_>) -> v4::Publish {
    let qos =
        if publish.qos == QoS::AtMostOnce { mqttbytes::QoS::AtMostOnce } else { mqttbytes::QoS::AtLeastOnce };
    let mut theirs = v4::Publish::from_bytes(publish.topic, qos, Bytes::copy_from_slice(publish.payload));
    theirs.pkid = publish.packet_identifier;
    theirs
}

fn encoded(version: Version, publish: &Publish<'_>) -> BytesMut {
    let mut buffer = BytesMut::new();
    encode_publish(&mut buffer, version, publish).expect("a legal packet");
    buffer
}

fn decoder(version: Version) -> Decoder {
    let mut decoder = Decoder::new(Role::Server, MAXIMUM as u32);
    decoder.version = Some(version);
    decoder
}

/// Reads all packets and adds up what they hold, so that nothing can be left out.
fn read_all(decoder: Decoder, mut rest: &[u8]) -> usize {
    let mut bytes = 0;
    loop {
        match decoder.decode(rest) {
            Ok(Decoded::Packet { packet, consumed }) => {
                if let Packet::Publish(publish) = &packet {
                    bytes += publish.topic.len() + publish.payload.len();
                }
                black_box(&packet);
                rest = &rest[consumed..];
            }
            Ok(Decoded::Incomplete { .. }) => return bytes,
            Err(error) => panic!("{error}"),
        }
    }
}

fn decode(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("decode PUBLISH");
    for (name, size) in [("100 B", 100), ("1 KiB", 1024)] {
        let payload = payload(size);
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce] {
            let publish = publish(qos, &payload);
            for version in [Version::V311, Version::V5] {
                let bytes = encoded(version, &publish);
                let decoder = decoder(version);
                group.bench_function(format!("ours {version:?} {qos:?} {name}"), |bencher| {
                    bencher.iter(|| black_box(decoder.decode(black_box(&bytes))).is_ok());
                });
            }
            let bytes = encoded(Version::V311, &publish);
            group.bench_function(format!("mqttbytes V311 {qos:?} {name}"), |bencher| {
                bencher.iter_batched_ref(
                    || BytesMut::from(&bytes[..]),
                    |buffer| black_box(v4::read(buffer, MAXIMUM)),
                    BatchSize::SmallInput,
                );
            });
        }
        let mut properties = UserPropertiesBuf::new();
        properties.push("trace", "0123456789abcdef").expect("a short property");
        let mut with_properties = publish(QoS::AtLeastOnce, &payload);
        with_properties.properties.message_expiry_interval = Some(60);
        with_properties.properties.content_type = Some("application/json");
        with_properties.properties.user_properties = properties.borrow();
        let bytes = encoded(Version::V5, &with_properties);
        let decoder = decoder(Version::V5);
        group.bench_function(format!("ours V5 AtLeastOnce {name}, 3 properties"), |bencher| {
            bencher.iter(|| black_box(decoder.decode(black_box(&bytes))).is_ok());
        });
    }
    group.finish();
}

fn decode_buffer(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("decode 64 PUBLISH of a read buffer");
    group.throughput(Throughput::Elements(COUNT as u64));
    for (name, size) in [("100 B", 100), ("1 KiB", 1024)] {
        let payload = payload(size);
        let publish = publish(QoS::AtLeastOnce, &payload);
        let bytes = encoded(Version::V311, &publish).repeat(COUNT);
        let decoder = decoder(Version::V311);
        assert_eq!(read_all(decoder, &bytes), COUNT * (TOPIC.len() + payload.len()));
        group.bench_function(format!("ours V311 AtLeastOnce {name}"), |bencher| {
            bencher.iter(|| read_all(decoder, black_box(&bytes)));
        });
        group.bench_function(format!("mqttbytes V311 AtLeastOnce {name}"), |bencher| {
            bencher.iter_batched_ref(
                || BytesMut::from(&bytes[..]),
                |buffer| {
                    let mut bytes = 0;
                    while let Ok(v4::Packet::Publish(publish)) = v4::read(buffer, MAXIMUM) {
                        bytes += publish.topic.len() + publish.payload.len();
                        black_box(&publish);
                    }
                    bytes
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn encode(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("encode PUBLISH");
    for (name, size) in [("100 B", 100), ("1 KiB", 1024)] {
        let payload = payload(size);
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce] {
            let publish = publish(qos, &payload);
            let mut buffer = BytesMut::with_capacity(4096);
            for version in [Version::V311, Version::V5] {
                group.bench_function(format!("ours {version:?} {qos:?} {name}"), |bencher| {
                    bencher.iter(|| {
                        buffer.clear();
                        encode_publish(&mut buffer, version, black_box(&publish)).is_ok()
                    });
                });
            }
            let theirs = their_publish(&publish);
            group.bench_function(format!("mqttbytes V311 {qos:?} {name}"), |bencher| {
                bencher.iter(|| {
                    buffer.clear();
                    black_box(&theirs).write(&mut buffer).is_ok()
                });
            });
        }
    }
    group.finish();
}

fn acknowledgements(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("PUBACK");
    let mut buffer = BytesMut::with_capacity(64);
    let ack = Packet::PubAck(Ack { packet_identifier: 7, ..Ack::default() });
    for version in [Version::V311, Version::V5] {
        let mut bytes = BytesMut::new();
        ack.encode(version, &mut bytes).expect("a legal packet");
        let decoder = decoder(version);
        group.bench_function(format!("decode, ours {version:?}"), |bencher| {
            bencher.iter(|| black_box(decoder.decode(black_box(&bytes))).is_ok());
        });
        group.bench_function(format!("encode, ours {version:?}"), |bencher| {
            bencher.iter(|| {
                buffer.clear();
                encode_ack(&mut buffer, version, AckKind::PubAck, black_box(7), ReasonCode::Success);
            });
        });
    }
    let theirs = v4::PubAck::new(7);
    group.bench_function("encode, mqttbytes V311", |bencher| {
        bencher.iter(|| {
            buffer.clear();
            black_box(&theirs).write(&mut buffer).is_ok()
        });
    });
    let mut bytes = BytesMut::new();
    theirs.write(&mut bytes).expect("a legal packet");
    group.bench_function("decode, mqttbytes V311", |bencher| {
        bencher.iter_batched_ref(
            || bytes.clone(),
            |buffer| black_box(v4::read(buffer, MAXIMUM)),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

/// CPU time of the measuring thread: what others do on the machine does not count.
struct CpuTime;

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
        &Nanoseconds
    }
}

/// Shows nanoseconds, of an iteration and of an element.
struct Nanoseconds;

impl ValueFormatter for Nanoseconds {
    fn scale_values(&self, _typical: f64, _values: &mut [f64]) -> &'static str {
        "ns"
    }

    fn scale_throughputs(&self, _typical: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        let (Throughput::Elements(count) | Throughput::Bytes(count)) = *throughput else {
            return "ns";
        };
        for value in values {
            *value /= count as f64;
        }
        "ns each"
    }

    fn scale_for_machines(&self, _values: &mut [f64]) -> &'static str {
        "ns"
    }
}
