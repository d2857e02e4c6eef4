//! A group member's requests, from the state machine's words into Kafka's and back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    DescribeGroupsRequest, GroupId, HeartbeatRequest, JoinGroupRequest, LeaveGroupRequest,
    OffsetCommitRequest, OffsetFetchRequest, SyncGroupRequest, TopicName,
};
use kafka_protocol::protocol::StrBytes;

use super::TopicPartition;
use super::assignor::PROTOCOL;
use super::group::{Described, DescribedMember, Failure, Identity, JoinAnswer, Joined, Settings};
use super::topics::{CommittedOffset, Origin};
use crate::kafka::client::{BrokerConnection, Client, Error, Purpose, ResponseError};

/// The kind of group that Kafka's consumers form.
const PROTOCOL_TYPE: &str = "consumer";

/// A join is answered when the rebalance is over; the network gets this much on top.
const JOIN_MARGIN: Duration = Duration::from_secs(5);

/// An offset to commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Commit {
    pub partition: TopicPartition,
    pub offset: i64,
    pub origin: Origin,
}

/// Sends a member's requests over its own connection to the coordinator.
#[derive(Clone)]
pub(super) struct Requests {
    pub client: Client,
    pub lane: u32,
    pub settings: Arc<Settings>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Broker { code, .. } => Self::Code(code),
            other => Self::Lost(other.to_string()),
        }
    }
}

fn checked(code: i16) -> Result<(), Failure> {
    ResponseError::try_from_code(code).map_or(Ok(()), |code| Err(Failure::Code(code)))
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn by_topic<T>(items: impl IntoIterator<Item = (TopicPartition, T)>) -> BTreeMap<Arc<str>, Vec<(i32, T)>> {
    let mut topics: BTreeMap<Arc<str>, Vec<(i32, T)>> = BTreeMap::new();
    for (partition, item) in items {
        topics.entry(partition.topic).or_default().push((partition.partition, item));
    }
    topics
}

impl Requests {
    fn group_id(&self) -> GroupId {
        GroupId(text(&self.settings.group_id))
    }

    async fn connection(&self, coordinator: i32) -> Result<Arc<BrokerConnection>, Failure> {
        Ok(self.client.broker(coordinator, Purpose::Coordinator(self.lane)).await?)
    }

    /// The coordinator's broker id and its version of JoinGroup.
    pub(super) async fn find_coordinator(&self) -> Result<(i32, i16), Failure> {
        let coordinator = self.client.find_coordinator(&self.settings.group_id).await?;
        let connection = self.connection(coordinator.id).await?;
        Ok((coordinator.id, connection.version::<JoinGroupRequest>()?))
    }

    pub(super) async fn join(&self, coordinator: i32, identity: Identity, subscription: Bytes) -> JoinAnswer {
        match self.try_join(coordinator, identity, subscription).await {
            Ok(answer) => answer,
            Err(failure) => JoinAnswer::Failed(failure),
        }
    }

    async fn try_join(
        &self,
        coordinator: i32,
        identity: Identity,
        subscription: Bytes,
    ) -> Result<JoinAnswer, Failure> {
        let connection = self.connection(coordinator).await?;
        let protocol = JoinGroupRequestProtocol::default()
            .with_name(StrBytes::from_static_str(PROTOCOL))
            .with_metadata(subscription);
        let request = JoinGroupRequest::default()
            .with_group_id(self.group_id())
            .with_session_timeout_ms(millis(self.settings.session_timeout))
            .with_rebalance_timeout_ms(millis(self.settings.rebalance_timeout))
            .with_member_id(identity.member_id)
            .with_group_instance_id(identity.instance_id)
            .with_protocol_type(StrBytes::from_static_str(PROTOCOL_TYPE))
            .with_protocols(vec![protocol]);
        let timeout =
            self.settings.rebalance_timeout.max(self.client.options().request_timeout) + JOIN_MARGIN;
        let answer = connection.call_within(&request, Some(timeout)).await?;
        if ResponseError::try_from_code(answer.error_code) == Some(ResponseError::MemberIdRequired) {
            return Ok(JoinAnswer::MemberIdRequired(answer.member_id));
        }
        checked(answer.error_code)?;
        let members = answer.members.into_iter();
        Ok(JoinAnswer::Joined(Joined {
            generation: answer.generation_id,
            member_id: answer.member_id,
            leader: answer.leader,
            members: members
                .map(|member| (member.member_id, member.group_instance_id, member.metadata))
                .collect(),
            skip_assignment: answer.skip_assignment,
        }))
    }

    pub(super) async fn sync(
        &self,
        coordinator: i32,
        identity: Identity,
        assignments: Vec<(StrBytes, Bytes)>,
    ) -> Result<Bytes, Failure> {
        let connection = self.connection(coordinator).await?;
        let assignments = assignments.into_iter().map(|(member, assignment)| {
            SyncGroupRequestAssignment::default().with_member_id(member).with_assignment(assignment)
        });
        let mut request = SyncGroupRequest::default()
            .with_group_id(self.group_id())
            .with_generation_id(identity.generation)
            .with_member_id(identity.member_id)
            .with_group_instance_id(identity.instance_id)
            .with_assignments(assignments.collect());
        if connection.version::<SyncGroupRequest>()? >= 5 {
            request.protocol_type = Some(StrBytes::from_static_str(PROTOCOL_TYPE));
            request.protocol_name = Some(StrBytes::from_static_str(PROTOCOL));
        }
        let timeout =
            self.settings.rebalance_timeout.max(self.client.options().request_timeout) + JOIN_MARGIN;
        let answer = connection.call_within(&request, Some(timeout)).await?;
        checked(answer.error_code)?;
        Ok(answer.assignment)
    }

    pub(super) async fn heartbeat(&self, coordinator: i32, identity: Identity) -> Result<(), Failure> {
        let connection = self.connection(coordinator).await?;
        let request = HeartbeatRequest::default()
            .with_group_id(self.group_id())
            .with_generation_id(identity.generation)
            .with_member_id(identity.member_id)
            .with_group_instance_id(identity.instance_id);
        // A heartbeat that takes as long as a session is of no use.
        let timeout = self.settings.session_timeout.min(self.client.options().request_timeout);
        checked(connection.call_within(&request, Some(timeout)).await?.error_code)
    }

    /// The offsets that the group committed in these partitions.
    pub(super) async fn committed(
        &self,
        coordinator: i32,
        partitions: impl IntoIterator<Item = TopicPartition>,
    ) -> Result<BTreeMap<TopicPartition, CommittedOffset>, Failure> {
        let topics = by_topic(partitions.into_iter().map(|partition| (partition, ())));
        let mut found = BTreeMap::new();
        if topics.is_empty() {
            return Ok(found);
        }
        let connection = self.connection(coordinator).await?;
        let topics = topics.into_iter().map(|(topic, partitions)| {
            OffsetFetchRequestTopic::default()
                .with_name(TopicName(text(&topic)))
                .with_partition_indexes(partitions.into_iter().map(|(partition, ())| partition).collect())
        });
        let request =
            OffsetFetchRequest::default().with_group_id(self.group_id()).with_topics(Some(topics.collect()));
        let answer = connection.call(&request).await?;
        checked(answer.error_code)?;
        for topic in &answer.topics {
            for partition in &topic.partitions {
                checked(partition.error_code)?;
                if partition.committed_offset >= 0 {
                    let name = TopicPartition::new(topic.name.as_str(), partition.partition_index);
                    let origin = partition.metadata.as_deref().and_then(Origin::parse);
                    found.insert(name, CommittedOffset { offset: partition.committed_offset, origin });
                }
            }
        }
        Ok(found)
    }

    /// Commits offsets. Returns those that Kafka took; where it took none, or struck us off, the reason.
    pub(super) async fn commit(
        &self,
        coordinator: i32,
        identity: Identity,
        offsets: Vec<Commit>,
    ) -> (Vec<Commit>, Result<(), Failure>) {
        match self.try_commit(coordinator, identity, offsets).await {
            Ok(outcome) => outcome,
            Err(failure) => (Vec::new(), Err(failure)),
        }
    }

    async fn try_commit(
        &self,
        coordinator: i32,
        identity: Identity,
        offsets: Vec<Commit>,
    ) -> Result<(Vec<Commit>, Result<(), Failure>), Failure> {
        let connection = self.connection(coordinator).await?;
        let named = offsets.iter().map(|commit| (commit.partition.clone(), commit));
        let topics = by_topic(named).into_iter().map(|(topic, partitions)| {
            let partitions = partitions.into_iter().map(|(partition, commit)| {
                OffsetCommitRequestPartition::default()
                    .with_partition_index(partition)
                    .with_committed_offset(commit.offset)
                    .with_committed_metadata(Some(StrBytes::from_string(commit.origin.to_string())))
            });
            OffsetCommitRequestTopic::default()
                .with_name(TopicName(text(&topic)))
                .with_partitions(partitions.collect())
        });
        let request = OffsetCommitRequest::default()
            .with_group_id(self.group_id())
            .with_generation_id_or_member_epoch(identity.generation)
            .with_member_id(identity.member_id)
            .with_group_instance_id(identity.instance_id)
            .with_topics(topics.collect());
        let answer = connection.call(&request).await?;
        let mut refused: BTreeMap<TopicPartition, ResponseError> = BTreeMap::new();
        for topic in &answer.topics {
            for partition in &topic.partitions {
                if let Some(code) = ResponseError::try_from_code(partition.error_code) {
                    let name = TopicPartition::new(topic.name.as_str(), partition.partition_index);
                    refused.insert(name, code);
                }
            }
        }
        let reason = refused.values().next().copied();
        let taken = offsets.into_iter().filter(|commit| !refused.contains_key(&commit.partition)).collect();
        Ok((taken, reason.map_or(Ok(()), |code| Err(Failure::Code(code)))))
    }

    pub(super) async fn leave(&self, coordinator: i32, identity: Identity) -> Result<(), Failure> {
        let connection = self.connection(coordinator).await?;
        let mut request = LeaveGroupRequest::default().with_group_id(self.group_id());
        if connection.version::<LeaveGroupRequest>()? >= 3 {
            request.members = vec![
                MemberIdentity::default()
                    .with_member_id(identity.member_id)
                    .with_group_instance_id(identity.instance_id),
            ];
        } else if identity.instance_id.is_none() {
            request.member_id = identity.member_id;
        } else {
            // Before Kafka 2.4 a static member can only wait out its session.
            return Ok(());
        }
        checked(connection.call(&request).await?.error_code)
    }
}

impl Requests {
    /// Who is in the group and who has which partitions.
    pub(super) async fn describe(&self, coordinator: i32) -> Result<Described, Failure> {
        let connection = self.connection(coordinator).await?;
        let request = DescribeGroupsRequest::default().with_groups(vec![self.group_id()]);
        let answer = match connection.call(&request).await {
            Err(Error::UnsupportedVersion { .. }) => {
                return Err(Failure::Code(ResponseError::UnsupportedVersion));
            }
            answer => answer?,
        };
        let Some(group) =
            answer.groups.into_iter().find(|group| *group.group_id.0 == *self.settings.group_id)
        else {
            return Err(Failure::Lost("the coordinator described another group".to_owned()));
        };
        checked(group.error_code)?;
        let members = group.members.into_iter().map(|member| DescribedMember {
            member_id: member.member_id,
            instance_id: member.group_instance_id,
            subscription: member.member_metadata,
            assignment: member.member_assignment,
        });
        Ok(Described { stable: &*group.group_state == "Stable", members: members.collect() })
    }

    /// Removes the static member `instance_id`, whatever its member id. Coordinators can do so since Kafka
    /// 2.4.
    pub(super) async fn remove_former(&self, coordinator: i32, instance_id: &str) -> Result<(), Failure> {
        let connection = self.connection(coordinator).await?;
        if connection.version::<LeaveGroupRequest>()? < 3 {
            return Ok(());
        }
        let former = MemberIdentity::default().with_group_instance_id(Some(text(instance_id)));
        let request = LeaveGroupRequest::default().with_group_id(self.group_id()).with_members(vec![former]);
        let answer = connection.call(&request).await?;
        checked(answer.error_code)?;
        match answer.members.first().map(|member| member.error_code) {
            Some(0) => {
                tracing::info!(
                    group = &*self.settings.group_id,
                    instance = instance_id,
                    "removed the member of an earlier release from the group"
                );
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}
