//! The group coordinator: classic consumer groups as a pure state machine.
//!
//! Time is an argument, nothing here waits: a join or sync that has to wait is kept with its [`Token`], and
//! its answer appears in [`Coordinator::take_answers`] later, through what another member does or through
//! [`Coordinator::poll`]. The shell around it is `coordinator.rs`.
//!
//! Invariants, as in Kafka's GroupCoordinator: a generation is complete when all members have joined or the
//! rebalance timeout took those who did not; only the leader's assignment ends a rebalance; a member that
//! sends neither heartbeat nor join within its session timeout is removed; a static member (KIP-345) that
//! comes back keeps its place, and the one it replaces is fenced; every token is answered once.

mod group;
mod offsets;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::ResponseError;

pub(crate) use group::{Group, State};
pub(crate) use offsets::Commit;
pub use offsets::CommittedOffset;

/// Stands for one request that waits for its answer.
pub(crate) type Token = u64;

/// Limits of a coordinator, as in Kafka's `group.*` settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) min_session_timeout: Duration,
    pub(crate) max_session_timeout: Duration,
    /// How long the first join of an empty group waits for others.
    pub(crate) initial_rebalance_delay: Duration,
}

/// Request of a member to join.
#[derive(Debug, Clone, Default)]
pub(crate) struct Join {
    pub(crate) group: String,
    /// Empty for a new member.
    pub(crate) member_id: String,
    pub(crate) instance_id: Option<String>,
    pub(crate) client_id: String,
    pub(crate) client_host: String,
    pub(crate) session_timeout: Duration,
    pub(crate) rebalance_timeout: Duration,
    pub(crate) protocol_type: String,
    /// Assignors with their metadata, the preferred one first.
    pub(crate) protocols: Vec<(String, Bytes)>,
    /// Whether a new member first gets an id and has to join again with it (KIP-394).
    pub(crate) requires_member_id: bool,
    /// Whether the leader may be told to keep the assignment (KIP-814).
    pub(crate) supports_skip_assignment: bool,
}

/// The answer to a join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Joined {
    pub(crate) error: Option<ResponseError>,
    pub(crate) generation: i32,
    pub(crate) protocol_type: Option<String>,
    pub(crate) protocol: Option<String>,
    pub(crate) leader: String,
    pub(crate) skip_assignment: bool,
    pub(crate) member_id: String,
    /// For the leader only: member id, instance id, metadata.
    pub(crate) members: Vec<(String, Option<String>, Bytes)>,
}

impl Joined {
    pub(crate) fn failed(error: ResponseError, member_id: &str) -> Self {
        Self {
            error: Some(error),
            generation: -1,
            protocol_type: None,
            protocol: None,
            leader: String::new(),
            skip_assignment: false,
            member_id: member_id.to_owned(),
            members: Vec::new(),
        }
    }
}

/// Which member speaks, and in which generation it believes to be.
#[derive(Debug, Clone, Default)]
pub(crate) struct Caller {
    pub(crate) group: String,
    pub(crate) generation: i32,
    pub(crate) member_id: String,
    pub(crate) instance_id: Option<String>,
}

/// Request of a member for its assignment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sync {
    pub(crate) caller: Caller,
    /// Only checked when they are given.
    pub(crate) protocol_type: Option<String>,
    pub(crate) protocol: Option<String>,
    /// From the leader: member id and assignment.
    pub(crate) assignments: Vec<(String, Bytes)>,
}

/// The answer to a sync.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Synced {
    pub(crate) protocol_type: Option<String>,
    pub(crate) protocol: Option<String>,
    pub(crate) assignment: Bytes,
}

/// An answer to a request that waited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Join(Joined),
    Sync(Result<Synced, ResponseError>),
}

/// All groups.
#[derive(Debug)]
pub(crate) struct Coordinator {
    limits: Limits,
    groups: BTreeMap<String, Group>,
    answers: Vec<(Token, Answer)>,
    /// Makes member ids unique.
    members_named: u64,
    /// Makes them differ from those of another run.
    salt: u64,
}

impl Coordinator {
    pub(crate) fn new(limits: Limits, salt: u64) -> Self {
        Self { limits, groups: BTreeMap::new(), answers: Vec::new(), members_named: 0, salt }
    }

    /// The answers that became ready, in order.
    pub(crate) fn take_answers(&mut self) -> Vec<(Token, Answer)> {
        std::mem::take(&mut self.answers)
    }

    /// When [`Self::poll`] has something to do next.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.groups.values().filter_map(Group::next_deadline).min()
    }

    /// Does what time alone brings about: removes silent members, completes rebalances.
    pub(crate) fn poll(&mut self, now: Instant) {
        for group in self.groups.values_mut() {
            group.poll(now, &mut self.answers);
        }
    }

    /// JoinGroup. The answer comes by [`Self::take_answers`], possibly at once.
    pub(crate) fn join(&mut self, now: Instant, token: Token, join: Join) {
        let refused = |error| Answer::Join(Joined::failed(error, &join.member_id));
        let timeouts = self.limits.min_session_timeout..=self.limits.max_session_timeout;
        let problem = if join.group.is_empty() {
            Some(ResponseError::InvalidGroupId)
        } else if !timeouts.contains(&join.session_timeout) {
            Some(ResponseError::InvalidSessionTimeout)
        } else if join.protocol_type.is_empty() || join.protocols.is_empty() {
            Some(ResponseError::InconsistentGroupProtocol)
        } else if !self.groups.contains_key(&join.group) && !join.member_id.is_empty() {
            Some(ResponseError::UnknownMemberId)
        } else {
            None
        };
        if let Some(error) = problem {
            self.answers.push((token, refused(error)));
            return;
        }
        self.members_named += 1;
        let front = join.instance_id.as_deref().unwrap_or(&join.client_id);
        let new_id = format!("{front}-{:016x}-{}", self.salt, self.members_named);
        let delay = self.limits.initial_rebalance_delay;
        let group = self.groups.entry(join.group.clone()).or_insert_with(|| Group::new(delay));
        group.join(now, token, join, new_id, &mut self.answers);
    }

    /// SyncGroup. The answer comes by [`Self::take_answers`], possibly at once.
    pub(crate) fn sync(&mut self, now: Instant, token: Token, sync: Sync) {
        let result = match self.groups.get_mut(&sync.caller.group) {
            Some(group) => group.sync(now, token, sync, &mut self.answers),
            None if sync.caller.group.is_empty() => Err(ResponseError::InvalidGroupId),
            None => Err(ResponseError::UnknownMemberId),
        };
        if let Err(error) = result {
            self.answers.push((token, Answer::Sync(Err(error))));
        }
    }

    /// Heartbeat.
    pub(crate) fn heartbeat(&mut self, now: Instant, caller: &Caller) -> Result<(), ResponseError> {
        match self.groups.get_mut(&caller.group) {
            Some(group) => group.heartbeat(now, caller),
            None if caller.group.is_empty() => Err(ResponseError::InvalidGroupId),
            None => Err(ResponseError::UnknownMemberId),
        }
    }

    /// LeaveGroup of one member, by member id or by instance id with an empty member id. Answers the id of
    /// the member that left.
    pub(crate) fn leave(&mut self, now: Instant, caller: &Caller) -> Result<String, ResponseError> {
        match self.groups.get_mut(&caller.group) {
            Some(group) => {
                group.leave(now, &caller.member_id, caller.instance_id.as_deref(), &mut self.answers)
            }
            None if caller.group.is_empty() => Err(ResponseError::InvalidGroupId),
            None => Err(ResponseError::UnknownMemberId),
        }
    }

    /// Deletes a group without members, with its offsets.
    pub(crate) fn delete(&mut self, group: &str) -> Result<Group, ResponseError> {
        match self.groups.get(group) {
            Some(found) if found.is_empty() => {
                self.groups.remove(group).ok_or(ResponseError::GroupIdNotFound)
            }
            Some(_) => Err(ResponseError::NonEmptyGroup),
            None => Err(ResponseError::GroupIdNotFound),
        }
    }

    /// All groups by name.
    pub(crate) fn groups(&self) -> &BTreeMap<String, Group> {
        &self.groups
    }

    /// Checks an OffsetCommit's caller, and makes a group that only stores offsets.
    pub(crate) fn check_commit(
        &mut self,
        now: Instant,
        caller: &Caller,
    ) -> Result<&mut Group, ResponseError> {
        if caller.group.is_empty() {
            return Err(ResponseError::InvalidGroupId);
        }
        if !self.groups.contains_key(&caller.group) {
            if caller.generation >= 0 {
                return Err(ResponseError::IllegalGeneration);
            }
            let delay = self.limits.initial_rebalance_delay;
            self.groups.insert(caller.group.clone(), Group::new(delay));
        }
        let group = self.groups.get_mut(&caller.group).ok_or(ResponseError::CoordinatorNotAvailable)?;
        group.check_commit(now, caller)?;
        Ok(group)
    }

    /// The group called `name`, made when it is missing: for offsets from the data directory.
    pub(crate) fn restore(&mut self, name: &str) -> &mut Group {
        let delay = self.limits.initial_rebalance_delay;
        self.groups.entry(name.to_owned()).or_insert_with(|| Group::new(delay))
    }

    /// The group called `name`.
    pub(crate) fn group_mut(&mut self, name: &str) -> Option<&mut Group> {
        self.groups.get_mut(name)
    }
}
