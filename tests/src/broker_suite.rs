//! What a Kafka broker has to do, in raw requests: the one suite that the development Kafka and Apache Kafka
//! both pass.
//!
//! Each function is one scenario against a bootstrap address. They make topics and groups of their own, so
//! that they can share a broker.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use causeway_protocol::kafka::batch::{self, Batch, BatchBuilder, BatchStamp, Compression, Record};
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::produce_response::PartitionProduceResponse;
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, ApiVersionsResponse, CreateTopicsRequest, FetchRequest,
    FindCoordinatorRequest, GroupId, HeartbeatRequest, InitProducerIdRequest, JoinGroupRequest,
    JoinGroupResponse, LeaveGroupRequest, ListOffsetsRequest, MetadataRequest, OffsetCommitRequest,
    OffsetFetchRequest, ProduceRequest, ResponseHeader, SyncGroupRequest, TopicName,
};
use kafka_protocol::protocol::{Decodable, StrBytes};

use crate::kafka_wire::{PATIENCE, Wire, name};
use crate::unique;

/// COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE, NOT_COORDINATOR.
const NOT_READY: [i16; 3] = [14, 15, 16];

/// Creates a topic with one partition and waits until it has a leader.
fn topic(wire: &mut Wire, configs: &[(&str, &str)]) -> Result<TopicName> {
    let topic = TopicName(name(&unique("suite")));
    let configs = configs.iter().map(|(key, value)| {
        CreatableTopicConfig::default().with_name(name(key)).with_value(Some(name(value)))
    });
    let wanted = CreatableTopic::default()
        .with_name(topic.clone())
        .with_num_partitions(1)
        .with_replication_factor(1)
        .with_configs(configs.collect());
    let request = CreateTopicsRequest::default().with_topics(vec![wanted]).with_timeout_ms(30_000);
    let made = wire.call(5, &request)?;
    let code = made.topics.first().context("an answer per topic")?.error_code;
    ensure!(code == 0, "creating a topic: error {code}");
    let wanted = kafka_protocol::messages::metadata_request::MetadataRequestTopic::default()
        .with_name(Some(topic.clone()));
    let request = MetadataRequest::default().with_topics(Some(vec![wanted]));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let metadata = wire.call(9, &request)?;
        let partition = metadata.topics.first().and_then(|topic| topic.partitions.first());
        if partition.is_some_and(|partition| partition.error_code == 0 && partition.leader_id.0 >= 0) {
            break;
        }
        ensure!(Instant::now() < deadline, "the topic has no leader");
        thread::sleep(Duration::from_millis(20));
    }
    // The leader may not have taken over yet, although the metadata names it.
    while offset_at(wire, &topic, -1)?.0 != 0 {
        ensure!(Instant::now() < deadline, "the leader does not serve");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(topic)
}

/// A batch of records with the timestamps given.
fn records(timestamps: &[i64], compression: Compression, identity: BatchStamp) -> Result<Bytes> {
    let mut builder = BatchBuilder::new();
    for timestamp in timestamps {
        let value = timestamp.to_string();
        builder.append(&Record {
            timestamp: *timestamp,
            key: None,
            value: Some(value.as_bytes()),
            headers: &[],
        });
    }
    let sealed = builder.seal(compression, identity).map_err(|failed| failed.error)?;
    Ok(sealed.bytes().clone())
}

fn plain(timestamps: &[i64]) -> Result<Bytes> {
    records(timestamps, Compression::None, BatchStamp::NONE)
}

fn produce_request(topic: &TopicName, records: Bytes, acks: i16) -> ProduceRequest {
    let partition = PartitionProduceData::default().with_index(0).with_records(Some(records));
    let data = TopicProduceData::default().with_name(topic.clone()).with_partition_data(vec![partition]);
    ProduceRequest::default().with_acks(acks).with_timeout_ms(10_000).with_topic_data(vec![data])
}

fn produce(wire: &mut Wire, topic: &TopicName, records: Bytes) -> Result<PartitionProduceResponse> {
    let mut response = wire.call(7, &produce_request(topic, records, -1))?;
    let mut topic = response.responses.pop().context("an answer per topic")?;
    topic.partition_responses.pop().context("an answer per partition")
}

/// Produces and wants success; the base offset.
fn append(wire: &mut Wire, topic: &TopicName, records: Bytes) -> Result<i64> {
    let answer = produce(wire, topic, records)?;
    ensure!(answer.error_code == 0, "produce: error {}", answer.error_code);
    Ok(answer.base_offset)
}

fn fetch_request(
    topic: &TopicName,
    offset: i64,
    min_bytes: i32,
    wait_ms: i32,
    partition_max: i32,
) -> FetchRequest {
    let partition = FetchPartition::default()
        .with_partition(0)
        .with_fetch_offset(offset)
        .with_current_leader_epoch(-1)
        .with_partition_max_bytes(partition_max);
    FetchRequest::default()
        .with_replica_id((-1).into())
        .with_max_wait_ms(wait_ms)
        .with_min_bytes(min_bytes)
        .with_max_bytes(10_000_000)
        .with_session_epoch(-1)
        .with_topics(vec![FetchTopic::default().with_topic(topic.clone()).with_partitions(vec![partition])])
}

fn fetch(wire: &mut Wire, request: &FetchRequest) -> Result<PartitionData> {
    let mut response = wire.call(11, request)?;
    ensure!(response.error_code == 0, "fetch: error {}", response.error_code);
    let mut topic = response.responses.pop().context("an answer per topic")?;
    topic.partitions.pop().context("an answer per partition")
}

fn batches(data: &PartitionData) -> Result<Vec<Batch>> {
    Ok(batch::batches(data.records.clone().unwrap_or_default()).collect::<Result<_, _>>()?)
}

/// `(error code, timestamp, offset)`.
fn offset_at(wire: &mut Wire, topic: &TopicName, timestamp: i64) -> Result<(i16, i64, i64)> {
    let partition = ListOffsetsPartition::default()
        .with_partition_index(0)
        .with_current_leader_epoch(-1)
        .with_timestamp(timestamp);
    let wanted = ListOffsetsTopic::default().with_name(topic.clone()).with_partitions(vec![partition]);
    let request = ListOffsetsRequest::default().with_replica_id((-1).into()).with_topics(vec![wanted]);
    let mut response = wire.call(7, &request)?;
    let mut topic = response.topics.pop().context("an answer per topic")?;
    let answer = topic.partitions.pop().context("an answer per partition")?;
    Ok((answer.error_code, answer.timestamp, answer.offset))
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, got: &T, wanted: &T) -> Result<()> {
    ensure!(got == wanted, "{what}: {got:?} and not {wanted:?}");
    Ok(())
}

/// ApiVersions of an unknown version is answered in version 0 with error 35 and a list (KIP-511).
pub fn an_unknown_version_of_api_versions_is_answered_in_version_0(bootstrap: &str) -> Result<()> {
    let mut wire = Wire::connect(bootstrap)?;
    let mut frame = BytesMut::new();
    // API key 18, version 99, correlation 5, client id "c", no tagged fields.
    frame.put_slice(b"\0\0\0\x0c\0\x12\0\x63\0\0\0\x05\0\x01c\0");
    wire.send_frame(&frame)?;
    let mut answer = wire.receive_frame()?;
    let header = ResponseHeader::decode(&mut answer, 0)?;
    let response = ApiVersionsResponse::decode(&mut answer, 0)?;
    expect("correlation", &header.correlation_id, &5)?;
    expect("error", &response.error_code, &35)?;
    ensure!(
        response.api_keys.iter().any(|api| api.api_key == ApiKey::ApiVersions as i16),
        "no versions are listed"
    );
    let known = wire.call(
        3,
        &ApiVersionsRequest::default()
            .with_client_software_name(name("suite"))
            .with_client_software_version(name("1")),
    )?;
    for api in [ApiKey::Produce, ApiKey::Fetch, ApiKey::Metadata, ApiKey::JoinGroup, ApiKey::InitProducerId] {
        ensure!(known.api_keys.iter().any(|one| one.api_key == api as i16), "{api:?} is not offered");
    }
    Ok(())
}

/// A fetch from inside a batch gets that batch whole, however small the limit, and the high watermark.
pub fn a_fetch_from_the_middle_of_a_batch_gets_it_whole(bootstrap: &str) -> Result<()> {
    let mut wire = Wire::connect(bootstrap)?;
    let topic = topic(&mut wire, &[])?;
    for (round, compression) in Compression::ALL.into_iter().enumerate() {
        let base = append(
            &mut wire,
            &topic,
            records(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], compression, BatchStamp::NONE)?,
        )?;
        expect("base offset", &base, &(round as i64 * 10))?;
    }
    for (offset, base) in [(0, 0), (5, 0), (10, 10), (19, 10), (37, 30), (49, 40)] {
        let data = fetch(&mut wire, &fetch_request(&topic, offset, 1, 1_000, 1))?;
        let found = batches(&data)?;
        expect("high watermark", &data.high_watermark, &50)?;
        expect("batches", &found.len(), &1)?;
        expect("base offset", &found.first().map(|batch| batch.header().base_offset), &Some(base))?;
    }
    let all = batches(&fetch(&mut wire, &fetch_request(&topic, 7, 1, 1_000, 1_000_000))?)?;
    let bases: Vec<_> = all.iter().map(|batch| batch.header().base_offset).collect();
    expect("batches from the middle on", &bases, &vec![0, 10, 20, 30, 40])?;
    expect("beyond the end", &fetch(&mut wire, &fetch_request(&topic, 51, 1, 100, 1_000))?.error_code, &1)?;
    expect("before the start", &fetch(&mut wire, &fetch_request(&topic, -5, 1, 100, 1_000))?.error_code, &1)?;
    Ok(())
}

/// A fetch at the end waits its time, and an append ends the wait at once.
pub fn a_long_poll_waits_and_an_append_wakes_it(bootstrap: &str) -> Result<()> {
    let mut wire = Wire::connect(bootstrap)?;
    let topic = topic(&mut wire, &[])?;
    let began = Instant::now();
    let data = fetch(&mut wire, &fetch_request(&topic, 0, 1, 700, 1_000_000))?;
    expect("records", &data.records.unwrap_or_default().len(), &0)?;
    ensure!(began.elapsed() >= Duration::from_millis(650), "the wait ended after {:?}", began.elapsed());
    let request = fetch_request(&topic, 0, 1, 25_000, 1_000_000);
    let correlation = wire.send(11, &request)?;
    let mut other = Wire::connect(bootstrap)?;
    thread::sleep(Duration::from_millis(200));
    let began = Instant::now();
    append(&mut other, &topic, plain(&[1])?)?;
    let response = wire.receive::<FetchRequest>(11, correlation)?;
    ensure!(began.elapsed() < Duration::from_secs(10), "woken after {:?}", began.elapsed());
    let data =
        response.responses.first().and_then(|topic| topic.partitions.first()).context("a partition")?;
    expect("batches", &batches(data)?.len(), &1)
}

/// Offsets by position and by time, to the record within a batch.
pub fn offsets_are_found_by_position_and_time(bootstrap: &str) -> Result<()> {
    let mut wire = Wire::connect(bootstrap)?;
    let topic = topic(&mut wire, &[("retention.ms", "-1")])?;
    for (timestamps, compression) in [
        ([1_000, 1_010, 1_020], Compression::None),
        ([5_000, 4_000, 6_000], Compression::Gzip),
        ([2_000, 2_010, 2_020], Compression::Zstd),
    ] {
        append(&mut wire, &topic, records(&timestamps, compression, BatchStamp::NONE)?)?;
    }
    expect("latest", &offset_at(&mut wire, &topic, -1)?, &(0, -1, 9))?;
    expect("earliest", &offset_at(&mut wire, &topic, -2)?, &(0, -1, 0))?;
    expect("largest timestamp", &offset_at(&mut wire, &topic, -3)?, &(0, 6_000, 5))?;
    for (wanted, found) in [
        (0, (1_000, 0)),
        (1_005, (1_010, 1)),
        (1_020, (1_020, 2)),
        (1_021, (5_000, 3)),
        (5_500, (6_000, 5)),
        (6_001, (-1, -1)),
    ] {
        expect(&format!("at {wanted}"), &offset_at(&mut wire, &topic, wanted)?, &(0, found.0, found.1))?;
    }
    Ok(())
}

/// Log-append time replaces the producer's.
pub fn log_append_time_is_the_brokers(bootstrap: &str) -> Result<()> {
    let mut wire = Wire::connect(bootstrap)?;
    let topic = topic(&mut wire, &[("message.timestamp.type", "LogAppendTime")])?;
    let answer = produce(&mut wire, &topic, records(&[1, 2, 3], Compression::Snappy, BatchStamp::NONE)?)?;
    expect("error", &answer.error_code, &0)?;
    ensure!(answer.log_append_time_ms > 1_500_000_000_000, "log-append time {}", answer.log_append_time_ms);
    let found = batches(&fetch(&mut wire, &fetch_request(&topic, 0, 1, 1_000, 1_000_000))?)?;
    let batch = found.first().context("a batch")?;
    for record in &batch.records(1 << 20)? {
        expect("timestamp", &record?.timestamp, &answer.log_append_time_ms)?;
    }
    let time = answer.log_append_time_ms;
    expect("by time", &offset_at(&mut wire, &topic, time)?, &(0, time, 0))?;
    expect("later", &offset_at(&mut wire, &topic, time + 1)?, &(0, -1, -1))
}

/// acks=0 is never answered: the next answer on the connection belongs to the next request.
pub fn a_produce_without_acks_is_not_answered(bootstrap: &str) -> Result<()> {
    let mut wire = Wire::connect(bootstrap)?;
    let topic = topic(&mut wire, &[])?;
    for timestamp in 1..=3 {
        wire.send(7, &produce_request(&topic, plain(&[timestamp])?, 0))?;
    }
    expect(
        "error",
        &wire.call(9, &MetadataRequest::default().with_topics(Some(Vec::new())))?.topics.len(),
        &0,
    )?;
    expect("latest", &offset_at(&mut wire, &topic, -1)?, &(0, -1, 3))
}

/// What must not be appended is refused with the right code.
pub fn a_bad_produce_is_refused_with_its_code(bootstrap: &str) -> Result<()> {
    let mut wire = Wire::connect(bootstrap)?;
    let topic = topic(&mut wire, &[("max.message.bytes", "1000")])?;
    let mut damaged = BytesMut::from(plain(&[1])?.as_ref());
    let last = damaged.len() - 1;
    *damaged.get_mut(last).context("a byte")? ^= 1;
    expect("damaged", &produce(&mut wire, &topic, damaged.freeze())?.error_code, &2)?;
    expect("too large", &produce(&mut wire, &topic, plain(&[1_000_000; 200])?)?.error_code, &10)?;
    let twice = [plain(&[1])?, plain(&[2])?].concat();
    expect("two batches", &produce(&mut wire, &topic, twice.into())?.error_code, &87)?;
    let nowhere = TopicName(name(&unique("nowhere")));
    expect("unknown topic", &produce(&mut wire, &nowhere, plain(&[1])?)?.error_code, &3)?;
    let response = wire.call(7, &produce_request(&topic, plain(&[1])?, 2))?;
    let code = response
        .responses
        .first()
        .and_then(|topic| topic.partition_responses.first())
        .map(|answer| answer.error_code);
    expect("acks=2", &code, &Some(21))?;
    expect("latest", &offset_at(&mut wire, &topic, -1)?, &(0, -1, 0))
}

/// Idempotent producers: resends, gaps, epochs, unknown ids.
pub fn an_idempotent_producer_is_deduplicated_within_five_batches(bootstrap: &str) -> Result<()> {
    let mut wire = Wire::connect(bootstrap)?;
    let topic = topic(&mut wire, &[])?;
    let request =
        InitProducerIdRequest::default().with_transactional_id(None).with_transaction_timeout_ms(60_000);
    let deadline = Instant::now() + PATIENCE;
    let producer_id = loop {
        let made = wire.call(3, &request)?;
        match made.error_code {
            0 => break made.producer_id.0,
            code => ensure!(Instant::now() < deadline, "InitProducerId: error {code}"),
        }
    };
    let batch = |producer_epoch: i16, base_sequence: i32, count: usize| {
        let identity = BatchStamp { producer_id, producer_epoch, base_sequence };
        records(&vec![1; count], Compression::None, identity)
    };
    for i in 0..6 {
        expect("base offset", &append(&mut wire, &topic, batch(0, i * 2, 2)?)?, &i64::from(i * 2))?;
    }
    for i in 1..6 {
        let answer = produce(&mut wire, &topic, batch(0, i * 2, 2)?)?;
        expect("a resend", &(answer.error_code, answer.base_offset), &(0, i64::from(i * 2)))?;
    }
    expect("latest", &offset_at(&mut wire, &topic, -1)?, &(0, -1, 12))?;
    let code =
        |wire: &mut Wire, records: Bytes| produce(wire, &topic, records).map(|answer| answer.error_code);
    expect("the sixth from the end", &code(&mut wire, batch(0, 0, 2)?)?, &45)?;
    expect("a resend with other bounds", &code(&mut wire, batch(0, 10, 1)?)?, &45)?;
    expect("a gap", &code(&mut wire, batch(0, 13, 1)?)?, &45)?;
    expect("a new epoch that does not start at 0", &code(&mut wire, batch(1, 12, 1)?)?, &45)?;
    expect("a new epoch", &code(&mut wire, batch(1, 0, 1)?)?, &0)?;
    expect("the old epoch", &code(&mut wire, batch(0, 12, 1)?)?, &47)?;
    let stranger = BatchStamp { producer_id: producer_id + 1_000_000, producer_epoch: 0, base_sequence: 5 };
    expect("an unknown id", &code(&mut wire, records(&[1], Compression::None, stranger)?)?, &0)?;
    let wrapping =
        BatchStamp { producer_id: producer_id + 1_000_001, producer_epoch: 0, base_sequence: i32::MAX };
    expect("the last sequence", &code(&mut wire, records(&[1], Compression::None, wrapping)?)?, &0)?;
    let wrapped = BatchStamp { base_sequence: 0, ..wrapping };
    expect("the sequence behind it", &code(&mut wire, records(&[1], Compression::None, wrapped)?)?, &0)
}

struct Member {
    wire: Wire,
    group: GroupId,
    id: StrBytes,
    generation: i32,
}

impl Member {
    fn new(bootstrap: &str, group: &GroupId) -> Result<Self> {
        let mut wire = Wire::connect(bootstrap)?;
        let deadline = Instant::now() + PATIENCE;
        while wire.call(2, &FindCoordinatorRequest::default().with_key(group.0.clone()))?.error_code != 0 {
            ensure!(Instant::now() < deadline, "the group has no coordinator");
            thread::sleep(Duration::from_millis(50));
        }
        // The coordinator of a group that nobody asked for before needs a moment to know that it is it.
        let anything = OffsetFetchRequest::default().with_group_id(group.clone()).with_topics(None);
        while NOT_READY.contains(&wire.call(5, &anything)?.error_code) {
            ensure!(Instant::now() < deadline, "the coordinator is not ready");
            thread::sleep(Duration::from_millis(50));
        }
        Ok(Self { wire, group: group.clone(), id: StrBytes::new(), generation: -1 })
    }

    fn join_request(&self, instance: Option<&str>) -> JoinGroupRequest {
        let protocol = JoinGroupRequestProtocol::default()
            .with_name(name("range"))
            .with_metadata(Bytes::from_static(b"\0\0\0\0\0\0\0\0\0\0"));
        JoinGroupRequest::default()
            .with_group_id(self.group.clone())
            .with_session_timeout_ms(10_000)
            .with_rebalance_timeout_ms(20_000)
            .with_member_id(self.id.clone())
            .with_group_instance_id(instance.map(name))
            .with_protocol_type(name("consumer"))
            .with_protocols(vec![protocol])
    }

    fn joined(&mut self, response: &JoinGroupResponse) -> Result<()> {
        expect("join", &response.error_code, &0)?;
        self.id = response.member_id.clone();
        self.generation = response.generation_id;
        Ok(())
    }

    fn sync(&mut self, assignments: &[(&StrBytes, &'static [u8])]) -> Result<(i16, Bytes)> {
        let assignments = assignments.iter().map(|(id, assignment)| {
            let assignment = Bytes::from_static(assignment);
            SyncGroupRequestAssignment::default().with_member_id((*id).clone()).with_assignment(assignment)
        });
        let request = SyncGroupRequest::default()
            .with_group_id(self.group.clone())
            .with_generation_id(self.generation)
            .with_member_id(self.id.clone())
            .with_assignments(assignments.collect());
        let response = self.wire.call(3, &request)?;
        Ok((response.error_code, response.assignment))
    }

    fn heartbeat(&mut self, generation: i32) -> Result<i16> {
        let request = HeartbeatRequest::default()
            .with_group_id(self.group.clone())
            .with_generation_id(generation)
            .with_member_id(self.id.clone());
        Ok(self.wire.call(3, &request)?.error_code)
    }

    fn commit(&mut self, topic: &TopicName, offset: i64, generation: i32) -> Result<i16> {
        let partition = OffsetCommitRequestPartition::default()
            .with_partition_index(0)
            .with_committed_offset(offset)
            .with_committed_metadata(Some(name("note")));
        let wanted =
            OffsetCommitRequestTopic::default().with_name(topic.clone()).with_partitions(vec![partition]);
        let request = OffsetCommitRequest::default()
            .with_group_id(self.group.clone())
            .with_generation_id_or_member_epoch(generation)
            .with_member_id(if generation < 0 { StrBytes::new() } else { self.id.clone() })
            .with_topics(vec![wanted]);
        let response = self.wire.call(7, &request)?;
        let answer =
            response.topics.first().and_then(|topic| topic.partitions.first()).context("a partition")?;
        Ok(answer.error_code)
    }

    fn committed(&mut self, topic: &TopicName) -> Result<i64> {
        let wanted =
            OffsetFetchRequestTopic::default().with_name(topic.clone()).with_partition_indexes(vec![0]);
        let request =
            OffsetFetchRequest::default().with_group_id(self.group.clone()).with_topics(Some(vec![wanted]));
        let response = self.wire.call(5, &request)?;
        expect("offset fetch", &response.error_code, &0)?;
        let answer =
            response.topics.first().and_then(|topic| topic.partitions.first()).context("a partition")?;
        Ok(answer.committed_offset)
    }
}

/// Join, sync, heartbeat, commit, a second member, leave; and the codes of those who are late or strange.
pub fn a_group_rebalances_and_keeps_its_offsets(bootstrap: &str) -> Result<()> {
    let mut wire = Wire::connect(bootstrap)?;
    let topic = topic(&mut wire, &[])?;
    let group = GroupId(name(&unique("group")));
    let mut first = Member::new(bootstrap, &group)?;
    expect("nothing committed", &first.committed(&topic)?, &-1)?;
    expect("a commit without a group", &first.commit(&topic, 3, -1)?, &0)?;
    expect("committed", &first.committed(&topic)?, &3)?;
    let refused = first.wire.call(5, &first.join_request(None))?;
    expect("a member without id", &refused.error_code, &79)?;
    first.id = refused.member_id;
    let response = first.wire.call(5, &first.join_request(None))?;
    first.joined(&response)?;
    expect("leader", &response.leader, &first.id)?;
    expect("members", &response.members.len(), &1)?;
    expect("a commit before the sync", &first.commit(&topic, 4, first.generation)?, &27)?;
    let own = first.id.clone();
    expect("sync", &first.sync(&[(&own, b"one")])?, &(0, Bytes::from_static(b"one")))?;
    expect("heartbeat", &first.heartbeat(first.generation)?, &0)?;
    expect("heartbeat of an old generation", &first.heartbeat(first.generation - 1)?, &22)?;
    expect("commit", &first.commit(&topic, 5, first.generation)?, &0)?;
    expect("commit of an old generation", &first.commit(&topic, 6, first.generation - 1)?, &22)?;
    expect("commit without generation", &first.commit(&topic, 6, -1)?, &25)?;

    let mut second = Member::new(bootstrap, &group)?;
    let refused = second.wire.call(5, &second.join_request(None))?;
    second.id = refused.member_id;
    let waiting = second.wire.send(5, &second.join_request(None))?;
    let deadline = Instant::now() + PATIENCE;
    while first.heartbeat(first.generation)? != 27 {
        ensure!(Instant::now() < deadline, "the first member does not hear of the rebalance");
        thread::sleep(Duration::from_millis(20));
    }
    let response = first.wire.call(5, &first.join_request(None))?;
    first.joined(&response)?;
    expect("members", &response.members.len(), &2)?;
    let response = second.wire.receive::<JoinGroupRequest>(5, waiting)?;
    second.joined(&response)?;
    expect("generations", &first.generation, &second.generation)?;
    expect("the leader stays", &response.leader, &first.id)?;
    let (one, two) = (first.id.clone(), second.id.clone());
    expect("sync", &first.sync(&[(&one, b"one"), (&two, b"two")])?, &(0, Bytes::from_static(b"one")))?;
    expect("sync", &second.sync(&[])?, &(0, Bytes::from_static(b"two")))?;

    let request = LeaveGroupRequest::default().with_group_id(group.clone()).with_member_id(first.id.clone());
    expect("leave", &first.wire.call(2, &request)?.error_code, &0)?;
    expect("heartbeat of one who left", &first.heartbeat(first.generation)?, &25)?;
    expect("the other is told", &second.heartbeat(second.generation)?, &27)?;
    expect("committed", &second.committed(&topic)?, &5)
}

/// A static member that comes back keeps its assignment without a rebalance, and fences the one before it
/// (KIP-345).
pub fn a_static_member_comes_back_without_a_rebalance(bootstrap: &str) -> Result<()> {
    let group = GroupId(name(&unique("static")));
    let mut member = Member::new(bootstrap, &group)?;
    let response = member.wire.call(5, &member.join_request(Some("instance")))?;
    member.joined(&response)?;
    let own = member.id.clone();
    expect("sync", &member.sync(&[(&own, b"mine")])?.0, &0)?;
    let generation = member.generation;
    let mut back = Member::new(bootstrap, &group)?;
    let response = back.wire.call(5, &back.join_request(Some("instance")))?;
    back.joined(&response)?;
    expect("generation", &back.generation, &generation)?;
    if back.id == member.id {
        bail!("the member id did not change");
    }
    expect("assignment", &back.sync(&[])?, &(0, Bytes::from_static(b"mine")))?;
    expect("the one before", &member.wire.call(5, &member.join_request(Some("instance")))?.error_code, &82)
}
