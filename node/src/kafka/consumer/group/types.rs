//! Events and actions of the state machine.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::protocol::StrBytes;

use crate::kafka::client::{Backoff, ResponseError};
use crate::kafka::consumer::TopicPartition;
use crate::kafka::consumer::topics::Position;

/// Settings of a member of a group.
#[derive(Debug, Clone)]
pub(in crate::kafka::consumer) struct Settings {
    pub group_id: Arc<str>,
    pub instance_id: Option<Arc<str>>,
    /// A static member that an earlier release left behind under another id, removed before the first join.
    pub former_instance_id: Option<Arc<str>>,
    pub topics: Vec<Arc<str>>,
    pub session_timeout: Duration,
    pub rebalance_timeout: Duration,
    pub heartbeat_interval: Duration,
    pub rejoin_backoff: Backoff,
    /// How long the group's leader has for noticing that a partition has no owner before another member makes
    /// the group assign anew.
    pub leader_patience: Duration,
    /// Failed attempts in a row after which the state is called disconnected; attempts go on.
    pub max_rejoin_attempts: u32,
}

/// Who we are to the coordinator, as every request says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::kafka::consumer) struct Identity {
    pub member_id: StrBytes,
    pub generation: i32,
    /// Set only where the coordinator knows static members.
    pub instance_id: Option<StrBytes>,
}

/// Why a request failed.
#[derive(Debug, Clone)]
pub(in crate::kafka::consumer) enum Failure {
    /// The coordinator answered a code.
    Code(ResponseError),
    /// No (usable) answer: what happened, in words.
    Lost(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "Kafka answered {code}"),
            Self::Lost(reason) => f.write_str(reason),
        }
    }
}

/// A good answer to JoinGroup.
#[derive(Debug, Clone)]
pub(in crate::kafka::consumer) struct Joined {
    pub generation: i32,
    pub member_id: StrBytes,
    pub leader: StrBytes,
    /// For the leader: id, instance id and subscription of each member.
    pub members: Vec<(StrBytes, Option<StrBytes>, Bytes)>,
    /// KIP-814: a restarted static leader need not assign.
    pub skip_assignment: bool,
}

/// The group as its coordinator describes it (DescribeGroups).
#[derive(Debug, Clone, Default)]
pub(in crate::kafka::consumer) struct Described {
    /// False during a rebalance, when the coordinator tells no assignments.
    pub stable: bool,
    pub members: Vec<DescribedMember>,
}

/// A member in the description of its group.
#[derive(Debug, Clone)]
pub(in crate::kafka::consumer) struct DescribedMember {
    pub member_id: StrBytes,
    /// Told by Kafka 2.4 and later.
    pub instance_id: Option<StrBytes>,
    pub subscription: Bytes,
    pub assignment: Bytes,
}

/// An answer to JoinGroup.
#[derive(Debug, Clone)]
pub(in crate::kafka::consumer) enum JoinAnswer {
    Joined(Joined),
    /// KIP-394: come again with this member id.
    MemberIdRequired(StrBytes),
    Failed(Failure),
}

/// Something that happened.
#[derive(Debug)]
pub(in crate::kafka::consumer) enum Event {
    /// The clock reached [`super::Group::next_deadline`].
    Tick,
    /// Answer to [`Action::FindCoordinator`]: broker id and the version of JoinGroup spoken there.
    Coordinator(Result<(i32, i16), Failure>),
    /// Answer to [`Action::Join`].
    Join { attempt: u64, answer: JoinAnswer },
    /// Answer to [`Action::CountPartitions`].
    Counts { attempt: u64, counts: Result<HashMap<Arc<str>, i32>, Failure> },
    /// Answer to [`Action::Sync`].
    Sync { attempt: u64, assignment: Result<Bytes, Failure> },
    /// Answer to [`Action::Heartbeat`].
    Beat { attempt: u64, result: Result<(), Failure> },
    /// Answer to [`Action::FetchOffsets`].
    Offsets { attempt: u64, offsets: Result<Vec<(TopicPartition, Position)>, Failure> },
    /// How a commit went.
    Commit { attempt: u64, result: Result<(), Failure> },
    /// [`Action::Revoke`] is done: drained and committed as far as possible.
    Revoked { attempt: u64 },
    /// Number of partitions of each of our topics that Kafka has.
    Topics(BTreeMap<Arc<str>, i32>),
    /// Answer to [`Action::Describe`].
    Described { attempt: u64, answer: Result<Described, Failure> },
    /// Answer to [`Action::RemoveFormer`].
    FormerRemoved { attempt: u64, result: Result<(), Failure> },
    /// Come to an end. With `leave` the group is told at once, otherwise it waits out the session.
    Stop { leave: bool },
    /// [`Action::Leave`] was answered, or not in time.
    Left,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::kafka::consumer) enum Action {
    FindCoordinator,
    Join {
        attempt: u64,
        coordinator: i32,
        identity: Identity,
        subscription: Bytes,
    },
    /// The leader needs to know how many partitions these topics have.
    CountPartitions {
        attempt: u64,
        topics: BTreeSet<Arc<str>>,
    },
    Sync {
        attempt: u64,
        coordinator: i32,
        identity: Identity,
        assignments: Vec<(StrBytes, Bytes)>,
    },
    FetchOffsets {
        attempt: u64,
        coordinator: i32,
        partitions: Vec<TopicPartition>,
    },
    Heartbeat {
        attempt: u64,
        coordinator: i32,
        identity: Identity,
    },
    /// Ask who is in the group and who has which partitions.
    Describe {
        attempt: u64,
        coordinator: i32,
    },
    /// Remove the static member of this instance id from the group, if it is there (KIP-345).
    RemoveFormer {
        attempt: u64,
        coordinator: i32,
        instance_id: Arc<str>,
    },
    /// Start reading these.
    Assign {
        generation: i32,
        partitions: Vec<(TopicPartition, Position)>,
    },
    /// Stop delivering, wait for what is out, commit, then say [`Event::Revoked`].
    Revoke {
        attempt: u64,
    },
    /// The partitions belong to others by now: drop them, commit nothing.
    Lose,
    Leave {
        coordinator: i32,
        identity: Identity,
    },
    /// Nothing more will come.
    Stopped,
}

/// How the member is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::kafka::consumer) enum Standing {
    /// It has its partitions.
    Stable,
    /// It is on its way: what for.
    Joining(String),
    /// It cannot get there without help.
    Out(String),
}
