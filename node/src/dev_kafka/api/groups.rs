//! FindCoordinator and what members of a group ask: JoinGroup, SyncGroup, Heartbeat, LeaveGroup.

use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::{
    FindCoordinatorRequest, FindCoordinatorResponse, HeartbeatRequest, HeartbeatResponse, JoinGroupRequest,
    JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse, SyncGroupRequest, SyncGroupResponse,
};
use kafka_protocol::protocol::StrBytes;

use super::{Context, broker_id};
use crate::dev_kafka::groups::{Caller, Join, Sync};

/// Coordinator key type of consumer groups; transactions and share groups have none here.
const GROUP_KEY: i8 = 0;
/// First version that asks for several coordinators (KIP-699).
const BATCHED_COORDINATORS_SINCE: i16 = 4;
/// First version in which a new member is sent back for an id (KIP-394).
const MEMBER_ID_SINCE: i16 = 4;
/// First version with a nullable protocol name.
const NULLABLE_PROTOCOL_SINCE: i16 = 7;
/// First version in which the leader may be told to skip the assignment (KIP-814).
const SKIP_ASSIGNMENT_SINCE: i16 = 9;
/// First version in which several members leave at once (KIP-345).
const BATCHED_LEAVE_SINCE: i16 = 3;

pub(super) fn text(value: impl Into<String>) -> StrBytes {
    StrBytes::from_string(value.into())
}

fn owned(value: Option<&StrBytes>) -> Option<String> {
    value.map(ToString::to_string)
}

fn millis(value: i32) -> Duration {
    Duration::from_millis(u64::try_from(value).unwrap_or(0))
}

pub(super) fn code(result: Result<(), ResponseError>) -> i16 {
    result.err().map_or(0, |error| error.code())
}

pub(super) fn find_coordinator(
    context: &mut Context,
    request: FindCoordinatorRequest,
) -> FindCoordinatorResponse {
    let fault = context.request_fault();
    let problem = match fault {
        0 if request.key_type == GROUP_KEY => None,
        0 => Some((
            ResponseError::InvalidRequest.code(),
            "this development Kafka coordinates only consumer groups",
        )),
        code => Some((code, "a fault was asked for")),
    };
    let broker = context.cluster.coordinator();
    let (host, port) =
        context.endpoint(broker).filter(|_| problem.is_none()).unwrap_or((StrBytes::new(), -1));
    let node = broker_id(if problem.is_none() { broker } else { -1 });
    let error_code = problem.map_or(0, |(code, _)| code);
    let message = problem.map(|(_, reason)| StrBytes::from_static_str(reason));
    if context.version < BATCHED_COORDINATORS_SINCE {
        return FindCoordinatorResponse::default()
            .with_error_code(error_code)
            .with_error_message(message)
            .with_node_id(node)
            .with_host(host)
            .with_port(port);
    }
    let coordinators = request.coordinator_keys.into_iter().map(|key| {
        Coordinator::default()
            .with_key(key)
            .with_node_id(node)
            .with_host(host.clone())
            .with_port(port)
            .with_error_code(error_code)
            .with_error_message(message.clone())
    });
    FindCoordinatorResponse::default().with_coordinators(coordinators.collect())
}

pub(super) async fn join(context: &mut Context, request: JoinGroupRequest) -> JoinGroupResponse {
    let failed = |code: i16, version: i16| {
        JoinGroupResponse::default()
            .with_error_code(code)
            .with_generation_id(-1)
            .with_member_id(request.member_id.clone())
            .with_protocol_name((version < NULLABLE_PROTOCOL_SINCE).then(StrBytes::new))
    };
    if let Err(code) = context.check_coordinator() {
        return failed(code, context.version);
    }
    let session_timeout = millis(request.session_timeout_ms);
    let join = Join {
        group: request.group_id.to_string(),
        member_id: request.member_id.to_string(),
        instance_id: owned(request.group_instance_id.as_ref()),
        client_id: context.client_id.to_string(),
        client_host: format!("/{}", context.peer.ip().to_canonical()),
        session_timeout,
        rebalance_timeout: if context.version == 0 {
            session_timeout
        } else {
            millis(request.rebalance_timeout_ms)
        },
        protocol_type: request.protocol_type.to_string(),
        protocols: request
            .protocols
            .into_iter()
            .map(|protocol| (protocol.name.to_string(), protocol.metadata))
            .collect(),
        requires_member_id: context.version >= MEMBER_ID_SINCE,
        supports_skip_assignment: context.version >= SKIP_ASSIGNMENT_SINCE,
    };
    let joined = context.cluster.groups.join(join).await;
    let protocol = joined.protocol.map(text);
    let nullable = context.version >= NULLABLE_PROTOCOL_SINCE;
    let members = joined.members.into_iter().map(|(id, instance, metadata)| {
        JoinGroupResponseMember::default()
            .with_member_id(text(id))
            .with_group_instance_id(instance.map(text))
            .with_metadata(metadata)
    });
    JoinGroupResponse::default()
        .with_error_code(joined.error.map_or(0, |error| error.code()))
        .with_generation_id(joined.generation)
        .with_protocol_type(joined.protocol_type.map(text))
        .with_protocol_name(if nullable { protocol } else { Some(protocol.unwrap_or_default()) })
        .with_leader(text(joined.leader))
        .with_skip_assignment(joined.skip_assignment)
        .with_member_id(text(joined.member_id))
        .with_members(members.collect())
}

pub(super) async fn sync(context: &mut Context, request: SyncGroupRequest) -> SyncGroupResponse {
    if let Err(code) = context.check_coordinator() {
        return SyncGroupResponse::default().with_error_code(code);
    }
    let caller = Caller {
        group: request.group_id.to_string(),
        generation: request.generation_id,
        member_id: request.member_id.to_string(),
        instance_id: owned(request.group_instance_id.as_ref()),
    };
    let sync = Sync {
        caller,
        protocol_type: owned(request.protocol_type.as_ref()),
        protocol: owned(request.protocol_name.as_ref()),
        assignments: request
            .assignments
            .into_iter()
            .map(|one| (one.member_id.to_string(), one.assignment))
            .collect(),
    };
    match context.cluster.groups.sync(sync).await {
        Ok(synced) => SyncGroupResponse::default()
            .with_protocol_type(synced.protocol_type.map(text))
            .with_protocol_name(synced.protocol.map(text))
            .with_assignment(synced.assignment),
        Err(error) => SyncGroupResponse::default().with_error_code(error.code()),
    }
}

pub(super) fn heartbeat(context: &mut Context, request: HeartbeatRequest) -> HeartbeatResponse {
    let caller = Caller {
        group: request.group_id.to_string(),
        generation: request.generation_id,
        member_id: request.member_id.to_string(),
        instance_id: owned(request.group_instance_id.as_ref()),
    };
    let checked = context.check_coordinator();
    let error_code = checked.map_or_else(|code| code, |()| code(context.cluster.groups.heartbeat(&caller)));
    HeartbeatResponse::default().with_error_code(error_code)
}

pub(super) fn leave(context: &mut Context, request: LeaveGroupRequest) -> LeaveGroupResponse {
    if let Err(code) = context.check_coordinator() {
        return LeaveGroupResponse::default().with_error_code(code);
    }
    let group = request.group_id.to_string();
    let leave = |member_id: &StrBytes, instance_id: Option<&StrBytes>| {
        let caller = Caller {
            group: group.clone(),
            generation: -1,
            member_id: member_id.to_string(),
            instance_id: owned(instance_id),
        };
        code(context.cluster.groups.leave(&caller).map(|_| ()))
    };
    if context.version < BATCHED_LEAVE_SINCE {
        return LeaveGroupResponse::default().with_error_code(leave(&request.member_id, None));
    }
    if group.is_empty() {
        return LeaveGroupResponse::default().with_error_code(ResponseError::InvalidGroupId.code());
    }
    let members = request.members.into_iter().map(|member| {
        let error_code = leave(&member.member_id, member.group_instance_id.as_ref());
        MemberResponse::default()
            .with_member_id(member.member_id)
            .with_group_instance_id(member.group_instance_id)
            .with_error_code(error_code)
    });
    LeaveGroupResponse::default().with_members(members.collect())
}
