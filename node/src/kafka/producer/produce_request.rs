//! ProduceRequest in parts: the record bytes go into the request as they are, by reference.
//!
//! Invariant: at most one batch a partition in a request (Kafka refuses more from version 3 on). Versions 3
//! to 12 are written; 13 names topics by id and brings nothing that is needed here.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::produce_response::PartitionProduceResponse;
use kafka_protocol::messages::{ProduceRequest, ProduceResponse};
use kafka_protocol::protocol::{Request, VersionRange};

/// Versions written here.
pub const VERSIONS: VersionRange = VersionRange { min: 3, max: 12 };

/// First version with compact strings and tagged fields.
const FLEXIBLE: i16 = 9;

/// Number of the API.
pub const API_KEY: i16 = ProduceRequest::KEY;

/// One partition's part of a request.
#[derive(Debug, Clone)]
pub struct Portion {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: i32,
    /// A sealed batch.
    pub batch: Bytes,
}

/// The body of a request, in parts to be written one after another.
pub fn encode<'a>(
    version: i16,
    acks: i16,
    timeout_ms: i32,
    portions: impl Iterator<Item = &'a Portion>,
) -> Vec<Bytes> {
    let mut topics: Vec<(&Arc<str>, Vec<&Portion>)> = Vec::new();
    for portion in portions {
        match topics
            .iter_mut()
            .find(|(topic, _)| Arc::ptr_eq(topic, &portion.topic) || *topic == &portion.topic)
        {
            Some((_, portions)) => portions.push(portion),
            None => topics.push((&portion.topic, vec![portion])),
        }
    }
    let flexible = version >= FLEXIBLE;
    let mut parts = Vec::new();
    let mut out = BytesMut::with_capacity(256);
    // No transactional id.
    if flexible {
        out.put_u8(0);
    } else {
        out.put_i16(-1);
    }
    out.put_i16(acks);
    out.put_i32(timeout_ms);
    put_length(&mut out, flexible, topics.len());
    for (topic, portions) in topics {
        if flexible {
            put_uvarint(&mut out, topic.len() as u64 + 1);
        } else {
            out.put_i16(topic.len() as i16);
        }
        out.put_slice(topic.as_bytes());
        put_length(&mut out, flexible, portions.len());
        for portion in portions {
            out.put_i32(portion.partition);
            put_length(&mut out, flexible, portion.batch.len());
            parts.push(out.split().freeze());
            parts.push(portion.batch.clone());
            if flexible {
                out.put_u8(0);
            }
        }
        if flexible {
            out.put_u8(0);
        }
    }
    if flexible {
        out.put_u8(0);
    }
    parts.push(out.freeze());
    parts
}

/// The answers for single partitions, by topic and partition.
pub fn answers(response: &ProduceResponse) -> HashMap<(&str, i32), &PartitionProduceResponse> {
    let topics = response.responses.iter();
    topics
        .flat_map(|topic| {
            let name = topic.name.0.as_str();
            topic.partition_responses.iter().map(move |partition| ((name, partition.index), partition))
        })
        .collect()
}

/// Most bytes of a broker's text that are kept.
const MOST_TEXT: usize = 500;

/// The broker's text about a refusal: the one about a single record, where there is one.
pub fn refusal(answer: &PartitionProduceResponse) -> Option<Arc<str>> {
    let of_record = answer.record_errors.iter().find_map(|error| error.batch_index_error_message.as_ref());
    let text = of_record.or(answer.error_message.as_ref()).filter(|_| answer.error_code != 0)?;
    Some(text.get(..text.floor_char_boundary(MOST_TEXT))?.into())
}

fn put_length(out: &mut BytesMut, flexible: bool, length: usize) {
    if flexible {
        put_uvarint(out, length as u64 + 1);
    } else {
        out.put_i32(length as i32);
    }
}

fn put_uvarint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

#[cfg(test)]
mod tests {
    use kafka_protocol::protocol::Decodable;

    use super::*;

    #[test]
    fn kafkas_own_schema_reads_what_is_written_in_every_version() {
        let portion = |topic: &str, partition, len| Portion {
            topic: Arc::from(topic),
            partition,
            batch: Bytes::from(vec![partition as u8; len]),
        };
        let portions = [portion("a", 0, 100), portion("b", 1, 20_000), portion("a", 7, 1)];
        for version in VERSIONS.min..=VERSIONS.max {
            let mut body = Bytes::from(encode(version, -1, 10_000, portions.iter()).concat());
            let request = ProduceRequest::decode(&mut body, version).expect("it decodes");
            assert!(body.is_empty(), "version {version}");
            assert_eq!((request.acks, request.timeout_ms), (-1, 10_000));
            assert_eq!(request.transactional_id, None);
            let read: Vec<(&str, i32, Bytes)> = request
                .topic_data
                .iter()
                .flat_map(|topic| topic.partition_data.iter().map(move |data| (topic, data)))
                .map(|(topic, data)| {
                    (topic.name.0.as_str(), data.index, data.records.clone().expect("records"))
                })
                .collect();
            let wanted: Vec<(&str, i32, Bytes)> = [0, 2, 1]
                .map(|index| &portions[index])
                .map(|p| (&*p.topic, p.partition, p.batch.clone()))
                .into();
            assert_eq!(read, wanted, "version {version}");
        }
    }
}
