//! Requests: which APIs and versions are served, how a request is taken apart and its answer put together.
//!
//! A request that cannot be decoded, or has a version that was not offered, closes its connection, as in
//! Kafka. The one exception is ApiVersions, which answers any unknown version in version 0 with the list of
//! what there is (KIP-511).

#![allow(clippy::needless_pass_by_value, reason = "a handler owns its request")]

mod admin;
mod fetch;
mod group_admin;
mod groups;
mod offsets;
mod produce;
mod sasl;
mod topics;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, ApiVersionsResponse, BrokerId, CreatePartitionsRequest, CreateTopicsRequest,
    DeleteGroupsRequest, DeleteRecordsRequest, DeleteTopicsRequest, DescribeClusterRequest,
    DescribeConfigsRequest, DescribeGroupsRequest, DescribeProducersRequest, FetchRequest,
    FindCoordinatorRequest, HeartbeatRequest, IncrementalAlterConfigsRequest, InitProducerIdRequest,
    JoinGroupRequest, LeaveGroupRequest, ListGroupsRequest, ListOffsetsRequest, MetadataRequest,
    OffsetCommitRequest, OffsetDeleteRequest, OffsetFetchRequest, OffsetForLeaderEpochRequest,
    ProduceRequest, SaslAuthenticateRequest, SaslHandshakeRequest, SyncGroupRequest,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};
use tracing::error;

use super::cluster::Cluster;
use super::faults::{Faults, Plan};
use super::sasl::Session;
use super::topics::{Partition, Topic};

/// Offered APIs: API, lowest and highest version. Clients see exactly this list.
const OFFERED: &[(ApiKey, i16, i16)] = &[
    (ApiKey::Produce, 3, 13),
    (ApiKey::Fetch, 4, 17),
    (ApiKey::ListOffsets, 1, 8),
    (ApiKey::Metadata, 0, 13),
    (ApiKey::OffsetCommit, 2, 9),
    (ApiKey::OffsetFetch, 1, 9),
    (ApiKey::FindCoordinator, 0, 6),
    (ApiKey::JoinGroup, 0, 9),
    (ApiKey::Heartbeat, 0, 4),
    (ApiKey::LeaveGroup, 0, 5),
    (ApiKey::SyncGroup, 0, 5),
    (ApiKey::DescribeGroups, 0, 6),
    (ApiKey::ListGroups, 0, 5),
    (ApiKey::SaslHandshake, 0, 1),
    (ApiKey::ApiVersions, 0, 4),
    (ApiKey::CreateTopics, 2, 7),
    (ApiKey::DeleteTopics, 1, 6),
    (ApiKey::DeleteRecords, 0, 2),
    (ApiKey::InitProducerId, 0, 5),
    (ApiKey::OffsetForLeaderEpoch, 2, 4),
    (ApiKey::DescribeConfigs, 1, 4),
    (ApiKey::SaslAuthenticate, 0, 2),
    (ApiKey::CreatePartitions, 0, 3),
    (ApiKey::DeleteGroups, 0, 2),
    (ApiKey::IncrementalAlterConfigs, 0, 1),
    (ApiKey::OffsetDelete, 0, 0),
    (ApiKey::DescribeCluster, 0, 2),
    (ApiKey::DescribeProducers, 0, 0),
];

/// One connection's view of the cluster, and of the request that is being served.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) cluster: Arc<Cluster>,
    /// The broker that the connection reached.
    pub(super) broker: i32,
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    version: i16,
    client_id: StrBytes,
    plan: Plan,
    mute: Duration,
    sasl: Session,
    /// Set by an answer that is the last one.
    close_after_answer: bool,
}

impl Clone for Context {
    /// A context for another connection: nothing of a request in progress goes along.
    fn clone(&self) -> Self {
        let mut new = Self::new(self.cluster.clone(), self.broker);
        new.local = self.local;
        new.peer = self.peer;
        new
    }
}

impl Context {
    pub(super) fn new(cluster: Arc<Cluster>, broker: i32) -> Self {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let plan = cluster.faults.plan(ApiKey::ApiVersions, -1);
        Self {
            cluster,
            broker,
            local: nowhere,
            peer: nowhere,
            version: 0,
            client_id: StrBytes::new(),
            plan,
            mute: Duration::ZERO,
            sasl: Session::new(),
            close_after_answer: false,
        }
    }

    fn faults(&self) -> &Faults {
        &self.cluster.faults
    }

    /// Whether faults are waiting for requests, so that answers must not linger.
    pub(super) fn meets_faults(&self) -> bool {
        self.faults().pending() > 0
    }

    /// The error that a fault wants for this topic and partition.
    fn fault(&mut self, topic: &str, partition: i32) -> Option<i16> {
        self.plan.error(topic, partition)
    }

    /// The error that a fault wants for a request without partitions, 0 for none.
    fn request_fault(&mut self) -> i16 {
        self.plan.error("", -1).unwrap_or(0)
    }

    /// Whether this broker coordinates the groups, unless a fault says something else.
    fn check_coordinator(&mut self) -> Result<(), i16> {
        match self.request_fault() {
            0 if self.cluster.coordinator() != self.broker => Err(ResponseError::NotCoordinator.code()),
            0 => Ok(()),
            code => Err(code),
        }
    }

    /// Counts bytes against the throttle; the answer's `throttle_time_ms`.
    fn throttle(&mut self, bytes: usize) -> i32 {
        let time = self.faults().throttled(bytes);
        self.mute = self.mute.max(time);
        i32::try_from(time.as_millis()).unwrap_or(i32::MAX)
    }

    /// Where clients reach a broker: its own address, or where this client came in when that is a wildcard.
    fn endpoint(&self, broker: i32) -> Option<(StrBytes, i32)> {
        let index = usize::try_from(broker).ok()?.checked_sub(1)?;
        let address = self.cluster.brokers.get(index)?;
        let ip = if address.ip().is_unspecified() { self.local.ip() } else { address.ip() };
        Some((StrBytes::from_string(ip.to_canonical().to_string()), i32::from(address.port())))
    }

    /// Whether this broker may serve the partition for a client that knows `epoch` (-1: does not say),
    /// KIP-320.
    fn check_leader(&self, partition: &Partition, epoch: i32) -> Result<(), ResponseError> {
        let leader = partition.leader();
        if leader.broker != self.broker {
            Err(ResponseError::NotLeaderOrFollower)
        } else if epoch >= 0 && epoch < leader.epoch {
            Err(ResponseError::FencedLeaderEpoch)
        } else if epoch > leader.epoch {
            Err(ResponseError::UnknownLeaderEpoch)
        } else {
            Ok(())
        }
    }

    /// The topic of a request that names it, or in newer versions gives its id.
    fn find_topic(&self, name: &str, id: uuid::Uuid) -> Result<Arc<Topic>, ResponseError> {
        let unknown =
            if id.is_nil() { ResponseError::UnknownTopicOrPartition } else { ResponseError::UnknownTopicId };
        self.cluster.topic_by(name, id).ok_or(unknown)
    }
}

/// How serving a request ended.
#[derive(Debug)]
pub(super) enum Served {
    /// The answer, if there is one, is in the output; the connection is not read for `mute`.
    Answered { mute: Duration },
    /// The connection is to be closed.
    Close { reason: &'static str },
}

/// An answer, none at all (acks=0), or the reason to close the connection.
type Reply<T> = Result<Option<T>, &'static str>;

/// Topics and partitions that a request is about, for faults that look at them.
type Targets = Vec<(StrBytes, i32)>;

/// Whether serving this request may take its time, so that earlier answers have to leave first.
pub(super) fn may_wait(frame: &[u8]) -> bool {
    let key = frame.first_chunk::<2>().map(|key| i16::from_be_bytes(*key));
    [ApiKey::Fetch, ApiKey::JoinGroup, ApiKey::SyncGroup].iter().any(|api| Some(*api as i16) == key)
}

struct Head {
    api: i16,
    version: i16,
    correlation_id: i32,
}

fn no_targets<T>(_: &Context, _: &T) -> Targets {
    vec![(StrBytes::new(), -1)]
}

/// Serves one request frame and puts the answer into `output`.
pub(super) async fn serve(context: &mut Context, mut frame: Bytes, output: &mut BytesMut) -> Served {
    if context.sasl.raw {
        return sasl::raw_token(context, &frame, output);
    }
    if frame.len() < 8 {
        return Served::Close { reason: "a request without a header" };
    }
    let head = Head { api: frame.get_i16(), version: frame.get_i16(), correlation_id: frame.get_i32() };
    let known = OFFERED.iter().find(|(api, _, _)| *api as i16 == head.api);
    let Some(&(api, min, max)) = known else {
        return Served::Close { reason: "an API that is not offered" };
    };
    if !(min..=max).contains(&head.version) {
        if api == ApiKey::ApiVersions {
            let answer = api_versions(ResponseError::UnsupportedVersion.code());
            return encode(&Head { version: 0, ..head }, &answer, output);
        }
        return Served::Close { reason: "an API version that is not offered" };
    }
    let Some(client_id) = rest_of_header(&mut frame, api.request_header_version(head.version)) else {
        return Served::Close { reason: "a malformed request header" };
    };
    let open = matches!(api, ApiKey::ApiVersions | ApiKey::SaslHandshake | ApiKey::SaslAuthenticate);
    if !open && context.cluster.options.sasl.is_some() && !context.sasl.is_authenticated(Instant::now()) {
        return Served::Close { reason: "a request without authentication" };
    }
    context.client_id = client_id;
    context.version = head.version;
    context.mute = Duration::ZERO;
    context.plan = context.faults().plan(api, context.broker);
    dispatch(context, api, &head, frame, output).await
}

async fn dispatch(
    context: &mut Context,
    api: ApiKey,
    head: &Head,
    mut body: Bytes,
    output: &mut BytesMut,
) -> Served {
    macro_rules! answer {
        ($type:ty, |$request:ident| $reply:expr) => {
            answer!($type, no_targets, |$request| $reply)
        };
        ($type:ty, $targets:expr, |$request:ident| $response:expr) => {
            answer!($type, $targets, reply | $request | Ok(Some($response)))
        };
        ($type:ty, $targets:expr, reply |$request:ident| $reply:expr) => {{
            let Ok($request) = <$type as Decodable>::decode(&mut body, head.version) else {
                return Served::Close { reason: "a malformed request" };
            };
            let targets = if context.plan.is_empty() { Targets::new() } else { $targets(context, &$request) };
            if targets.iter().any(|(topic, partition)| context.plan.drops_before(topic, *partition)) {
                return Served::Close { reason: "a fault drops the request" };
            }
            let reply: Reply<<$type as Request>::Response> = $reply;
            if targets.iter().any(|(topic, partition)| context.plan.drops_after(topic, *partition)) {
                return Served::Close { reason: "a fault drops the answer" };
            }
            let delay = targets.iter().find_map(|(topic, partition)| context.plan.delay(topic, *partition));
            if let Some(delay) = delay {
                tokio::time::sleep(delay).await;
            }
            match reply {
                Ok(Some(response)) => match encode(head, &response, output) {
                    Served::Answered { .. } if context.close_after_answer => {
                        Served::Close { reason: "authentication failed" }
                    }
                    Served::Answered { .. } => Served::Answered { mute: context.mute },
                    close => close,
                },
                Ok(None) => Served::Answered { mute: context.mute },
                Err(reason) => Served::Close { reason },
            }
        }};
    }
    match api {
        ApiKey::Produce => {
            answer!(ProduceRequest, produce::targets, reply | request | produce::produce(context, request))
        }
        ApiKey::Fetch => {
            answer!(FetchRequest, fetch::targets, |request| fetch::fetch(context, request).await)
        }
        ApiKey::ListOffsets => {
            answer!(ListOffsetsRequest, offsets::targets, |request| offsets::list_offsets(context, request))
        }
        ApiKey::Metadata => answer!(MetadataRequest, |request| topics::metadata(context, request)),
        ApiKey::ApiVersions => answer!(ApiVersionsRequest, |_request| api_versions(context.request_fault())),
        ApiKey::CreateTopics => {
            answer!(CreateTopicsRequest, |request| topics::create_topics(context, request))
        }
        ApiKey::DeleteTopics => {
            answer!(DeleteTopicsRequest, |request| topics::delete_topics(context, request))
        }
        ApiKey::CreatePartitions => {
            answer!(CreatePartitionsRequest, |request| topics::create_partitions(context, request))
        }
        ApiKey::DeleteRecords => {
            answer!(DeleteRecordsRequest, |request| offsets::delete_records(context, request))
        }
        ApiKey::OffsetForLeaderEpoch => {
            answer!(OffsetForLeaderEpochRequest, |request| offsets::offset_for_leader_epoch(context, request))
        }
        ApiKey::InitProducerId => {
            answer!(InitProducerIdRequest, |request| produce::init_producer_id(context, request))
        }
        ApiKey::DescribeProducers => {
            answer!(DescribeProducersRequest, |request| produce::describe_producers(context, request))
        }
        ApiKey::DescribeConfigs => {
            answer!(DescribeConfigsRequest, |request| admin::describe_configs(context, request))
        }
        ApiKey::IncrementalAlterConfigs => {
            answer!(IncrementalAlterConfigsRequest, |request| admin::incremental_alter_configs(
                context, request
            ))
        }
        ApiKey::DescribeCluster => {
            answer!(DescribeClusterRequest, |request| admin::describe_cluster(context, request))
        }
        ApiKey::SaslHandshake => answer!(SaslHandshakeRequest, |request| sasl::handshake(context, request)),
        ApiKey::SaslAuthenticate => {
            answer!(SaslAuthenticateRequest, |request| sasl::authenticate(context, request))
        }
        ApiKey::FindCoordinator => {
            answer!(FindCoordinatorRequest, |request| groups::find_coordinator(context, request))
        }
        ApiKey::JoinGroup => answer!(JoinGroupRequest, |request| groups::join(context, request).await),
        ApiKey::SyncGroup => answer!(SyncGroupRequest, |request| groups::sync(context, request).await),
        ApiKey::Heartbeat => answer!(HeartbeatRequest, |request| groups::heartbeat(context, request)),
        ApiKey::LeaveGroup => answer!(LeaveGroupRequest, |request| groups::leave(context, request)),
        ApiKey::OffsetCommit => {
            answer!(OffsetCommitRequest, group_admin::commit_targets, |request| group_admin::offset_commit(
                context, request
            ))
        }
        ApiKey::OffsetFetch => {
            answer!(OffsetFetchRequest, |request| group_admin::offset_fetch(context, request))
        }
        ApiKey::OffsetDelete => {
            answer!(OffsetDeleteRequest, |request| group_admin::offset_delete(context, request))
        }
        ApiKey::ListGroups => {
            answer!(ListGroupsRequest, |request| group_admin::list_groups(context, request))
        }
        ApiKey::DescribeGroups => {
            answer!(DescribeGroupsRequest, |request| group_admin::describe_groups(context, request))
        }
        ApiKey::DeleteGroups => {
            answer!(DeleteGroupsRequest, |request| group_admin::delete_groups(context, request))
        }
        _ => Served::Close { reason: "an API that is not offered" },
    }
}

/// Reads client id and, in flexible headers, skips tagged fields.
fn rest_of_header(frame: &mut Bytes, header_version: i16) -> Option<StrBytes> {
    let length = frame.try_get_i16().ok()?;
    let mut client_id = StrBytes::new();
    if let Ok(length) = usize::try_from(length) {
        if frame.len() < length {
            return None;
        }
        client_id = StrBytes::from_utf8(frame.split_to(length)).ok()?;
    }
    if header_version >= 2 {
        for _ in 0..unsigned_varint(frame)? {
            unsigned_varint(frame)?;
            let size = unsigned_varint(frame)? as usize;
            if frame.len() < size {
                return None;
            }
            frame.advance(size);
        }
    }
    Some(client_id)
}

fn unsigned_varint(frame: &mut Bytes) -> Option<u32> {
    let mut value = 0u32;
    for shift in (0..35).step_by(7) {
        let byte = frame.try_get_u8().ok()?;
        value |= u32::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn encode<T: Encodable + HeaderVersion>(head: &Head, response: &T, output: &mut BytesMut) -> Served {
    let start = output.len();
    output.put_i32(0);
    output.put_i32(head.correlation_id);
    if T::header_version(head.version) >= 1 {
        output.put_u8(0);
    }
    if let Err(problem) = response.encode(output, head.version) {
        error!(api = head.api, version = head.version, %problem, "cannot encode an answer");
        output.truncate(start);
        return Served::Close { reason: "an answer that cannot be encoded" };
    }
    let length = (output.len() - start - 4) as u32;
    if let Some(place) = output.get_mut(start..start + 4) {
        place.copy_from_slice(&length.to_be_bytes());
    }
    Served::Answered { mute: Duration::ZERO }
}

fn api_versions(error_code: i16) -> ApiVersionsResponse {
    let entry = |&(api, min, max): &(ApiKey, i16, i16)| {
        ApiVersion::default().with_api_key(api as i16).with_min_version(min).with_max_version(max)
    };
    ApiVersionsResponse::default()
        .with_error_code(error_code)
        .with_api_keys(OFFERED.iter().map(entry).collect())
}

/// The broker id as the messages have it.
fn broker_id(broker: i32) -> BrokerId {
    BrokerId(broker)
}
