//! Answers as brokers encode them, shortened ones and damaged ones.

use bytes::BytesMut;
use kafka_protocol::messages::fetch_response::{
    AbortedTransaction, FetchableTopicResponse, LeaderIdAndEpoch, PartitionData,
};
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Decodable, Encodable, Message, Request, StrBytes};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::super::wire::our_versions;
use super::*;

fn text(text: &'static str) -> StrBytes {
    StrBytes::from_static_str(text)
}

fn encode<T: Encodable>(answer: &T, version: i16) -> BytesMut {
    let mut bytes = BytesMut::new();
    answer.encode(&mut bytes, version).unwrap_or_else(|error| panic!("version {version}: {error}"));
    bytes
}

/// Every version that we may speak, answered with whatever fields `make` fills in: the walk must end
/// exactly where the answer ends, and must refuse every shortened answer.
fn fits<R: Request>(make: impl Fn(i16) -> R::Response)
where
    R::Response: Encodable + Decodable,
{
    let ours = our_versions(R::KEY, R::VERSIONS);
    let theirs = <R::Response as Message>::VERSIONS;
    for version in ours.min.max(theirs.min)..=ours.max.min(theirs.max) {
        let bytes = encode(&make(version), version);
        let (shape, flexible_since, _) = shape_of(R::KEY).unwrap();
        let mut walker = Walker { rest: &bytes, version, flexible: version >= flexible_since };
        walker.shape(shape).unwrap_or_else(|misfit| panic!("api {} v{version}: {misfit}", R::KEY));
        assert!(walker.rest.is_empty(), "api {} v{version}: {} bytes left", R::KEY, walker.rest.len());
        assert_eq!(check(R::KEY, version, &bytes), Ok(()), "api {} v{version}", R::KEY);
        for length in 0..bytes.len() {
            assert!(check(R::KEY, version, &bytes[..length]).is_err(), "v{version} cut to {length}");
        }
    }
}

fn metadata(version: i16) -> MetadataResponse {
    let mut topic = MetadataResponseTopic::default().with_name(Some(TopicName(text("topic"))));
    topic.partitions = vec![
        MetadataResponsePartition::default()
            .with_replica_nodes(vec![1.into(), 2.into()])
            .with_isr_nodes(vec![1.into()]);
        3
    ];
    let broker = MetadataResponseBroker::default().with_host(text("host")).with_port(9092);
    let mut answer = MetadataResponse::default().with_brokers(vec![broker; 2]).with_topics(vec![topic; 2]);
    if version >= 2 {
        answer.cluster_id = Some(text("cluster"));
    }
    answer
}

fn fetch(version: i16) -> FetchResponse {
    let aborted = AbortedTransaction::default().with_producer_id(5.into());
    let mut partition = PartitionData::default()
        .with_aborted_transactions(Some(vec![aborted; 2]))
        .with_records(Some(Bytes::from_static(b"records")));
    if version >= 12 {
        partition.current_leader = LeaderIdAndEpoch::default().with_leader_id(3.into());
    }
    let mut topic = FetchableTopicResponse::default().with_partitions(vec![partition; 2]);
    if version >= 13 {
        topic.topic_id = uuid::Uuid::from_u128(7);
    } else {
        topic.topic = TopicName(text("topic"));
    }
    FetchResponse::default().with_responses(vec![topic; 2])
}

#[test]
fn every_answer_we_may_get_fits_its_shape_and_no_shortened_one_does() {
    fits::<ApiVersionsRequest>(|_| {
        ApiVersionsResponse::default().with_api_keys(vec![api_versions_response::ApiVersion::default(); 3])
    });
    fits::<MetadataRequest>(metadata);
    fits::<FetchRequest>(fetch);
    fits::<FindCoordinatorRequest>(|version| {
        let answer = FindCoordinatorResponse::default().with_host(text("host")).with_port(1);
        if version >= 1 { answer.with_error_message(Some(text("why"))) } else { answer }
    });
    fits::<ListOffsetsRequest>(|_| {
        let partition = list_offsets_response::ListOffsetsPartitionResponse::default();
        let topic = list_offsets_response::ListOffsetsTopicResponse::default()
            .with_name(TopicName(text("topic")))
            .with_partitions(vec![partition; 2]);
        ListOffsetsResponse::default().with_topics(vec![topic])
    });
    fits::<DescribeConfigsRequest>(|_| {
        let config = describe_configs_response::DescribeConfigsResourceResult::default()
            .with_name(text("max.message.bytes"))
            .with_value(Some(text("1048588")));
        let result = describe_configs_response::DescribeConfigsResult::default()
            .with_resource_name(text("topic"))
            .with_configs(vec![config; 2]);
        DescribeConfigsResponse::default().with_results(vec![result; 2])
    });
    fits::<DescribeGroupsRequest>(|_| {
        let member = describe_groups_response::DescribedGroupMember::default()
            .with_member_id(text("member"))
            .with_member_metadata(bytes::Bytes::from_static(b"data"));
        let group = describe_groups_response::DescribedGroup::default()
            .with_group_state(text("Stable"))
            .with_members(vec![member; 2]);
        DescribeGroupsResponse::default().with_groups(vec![group; 2])
    });
    fits::<InitProducerIdRequest>(|_| InitProducerIdResponse::default());
    fits::<ProduceRequest>(|version| {
        let mut partition = produce_response::PartitionProduceResponse::default();
        if version >= 8 {
            let error = produce_response::BatchIndexAndErrorMessage::default()
                .with_batch_index_error_message(Some(text("bad")));
            partition.record_errors = vec![error];
            partition.error_message = Some(text("worse"));
        }
        if version >= 10 {
            partition.current_leader = produce_response::LeaderIdAndEpoch::default().with_leader_id(4.into());
        }
        let topic = produce_response::TopicProduceResponse::default()
            .with_name(TopicName(text("topic")))
            .with_partition_responses(vec![partition; 2]);
        let answer = ProduceResponse::default().with_responses(vec![topic; 2]);
        if version >= 10 {
            let node = produce_response::NodeEndpoint::default().with_host(text("host"));
            answer.with_node_endpoints(vec![node; 2])
        } else {
            answer
        }
    });
    fits::<JoinGroupRequest>(|version| {
        let mut member = join_group_response::JoinGroupResponseMember::default()
            .with_member_id(text("member"))
            .with_metadata(Bytes::from_static(b"metadata"));
        if version >= 5 {
            member.group_instance_id = Some(text("instance"));
        }
        JoinGroupResponse::default()
            .with_protocol_name(Some(text("range")))
            .with_leader(text("member"))
            .with_members(vec![member; 2])
    });
    fits::<SyncGroupRequest>(|_| {
        SyncGroupResponse::default().with_assignment(Bytes::from_static(b"assignment"))
    });
    fits::<HeartbeatRequest>(|_| HeartbeatResponse::default());
    fits::<LeaveGroupRequest>(|version| {
        let answer = LeaveGroupResponse::default();
        if version >= 3 {
            let member = leave_group_response::MemberResponse::default().with_member_id(text("member"));
            answer.with_members(vec![member; 2])
        } else {
            answer
        }
    });
    fits::<OffsetCommitRequest>(|_| {
        let partition = offset_commit_response::OffsetCommitResponsePartition::default();
        let topic = offset_commit_response::OffsetCommitResponseTopic::default()
            .with_name(TopicName(text("topic")))
            .with_partitions(vec![partition; 2]);
        OffsetCommitResponse::default().with_topics(vec![topic])
    });
    fits::<OffsetFetchRequest>(|_| {
        let partition = offset_fetch_response::OffsetFetchResponsePartition::default();
        let topic = offset_fetch_response::OffsetFetchResponseTopic::default()
            .with_name(TopicName(text("topic")))
            .with_partitions(vec![partition; 2]);
        OffsetFetchResponse::default().with_topics(vec![topic])
    });
    fits::<SaslHandshakeRequest>(|_| {
        SaslHandshakeResponse::default().with_mechanisms(vec![text("PLAIN"), text("GSSAPI")])
    });
    fits::<SaslAuthenticateRequest>(|_| {
        SaslAuthenticateResponse::default().with_error_message(Some(text("no")))
    });
    fits::<DescribeProducersRequest>(|_| {
        let partition = describe_producers_response::PartitionResponse::default()
            .with_active_producers(vec![describe_producers_response::ProducerState::default(); 2]);
        let topic = describe_producers_response::TopicResponse::default()
            .with_name(TopicName(text("topic")))
            .with_partitions(vec![partition]);
        DescribeProducersResponse::default().with_topics(vec![topic])
    });
    fits::<DescribeQuorumRequest>(|version| {
        let replica = describe_quorum_response::ReplicaState::default();
        let partition = describe_quorum_response::PartitionData::default()
            .with_current_voters(vec![replica.clone(); 2])
            .with_observers(vec![replica]);
        let topic = describe_quorum_response::TopicData::default()
            .with_topic_name(TopicName(text("topic")))
            .with_partitions(vec![partition]);
        let answer = DescribeQuorumResponse::default().with_topics(vec![topic]);
        if version < 2 {
            return answer;
        }
        let listener =
            describe_quorum_response::Listener::default().with_name(text("A")).with_host(text("h"));
        let node = describe_quorum_response::Node::default().with_listeners(vec![listener]);
        answer.with_error_message(Some(text("no"))).with_nodes(vec![node])
    });
}

#[test]
fn a_declared_count_beyond_what_is_there_is_refused() {
    // Metadata 7: throttle time, then 2,147,483,647 brokers.
    assert_eq!(check(MetadataRequest::KEY, 7, &[0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff]), Err(Misfit::Short));
    // Metadata 12: throttle time, then 4,294,967,294 brokers.
    let flexible = [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f];
    assert_eq!(check(MetadataRequest::KEY, 12, &flexible), Err(Misfit::Short));
    assert_eq!(check(MetadataRequest::KEY, 7, &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xfe]), Err(Misfit::Length));
}

#[test]
fn damaged_answers_never_panic_and_what_passes_is_safe_to_decode() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    for _ in 0..20_000 {
        let (api, version, mut bytes) = if random.random() {
            let version = random.random_range(0..=12);
            (MetadataRequest::KEY, version, encode(&metadata(version), version))
        } else {
            let version = random.random_range(4..=13);
            (FetchRequest::KEY, version, encode(&fetch(version), version))
        };
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
        if check(api, version, &bytes).is_ok() {
            let mut bytes = bytes.freeze();
            if api == MetadataRequest::KEY {
                let _ = MetadataResponse::decode(&mut bytes, version);
            } else {
                let _ = FetchResponse::decode(&mut bytes, version);
            }
        }
    }
}
