//! The brain of a classic consumer group member: pure, with time as an argument.
//!
//! [`Group`] takes [`Event`]s (answers of the coordinator, the clock, wishes of its owner) and returns
//! [`Action`]s. It sends nothing itself. The protocol is the eager one: partitions are given back, their
//! offsets committed, then the group is joined anew; the leader gives members what they had.
//!
//! Invariants:
//! * Partitions are held ([`Action::Assign`]) only in the generation in which they were assigned, and are
//!   always taken back ([`Action::Revoke`] or [`Action::Lose`]) before the group is joined again.
//! * An answer that belongs to an earlier attempt (see [`Group::attempt`]) changes nothing.
//! * At most one heartbeat, one search for the coordinator and one join is outstanding.
//! * A member that another one fenced (KIP-345) joins again only when no member of the group has its instance
//!   id: two members of one id would otherwise fence each other for ever.
//! * [`Standing::Stable`] means that every partition of our topics, as far as Kafka has told us of it, has
//!   exactly one owner in the group. While that is not so a member makes the group assign anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::protocol::StrBytes;
use tokio::time::Instant;

use super::TopicPartition;
use super::assignor::{
    Member, assign, decode_assignment, decode_subscription, encode_assignment, encode_subscription,
};
use super::topics::Position;
use crate::kafka::client::{Backoff, ResponseError};

mod coverage;
mod types;

use coverage::Coverage;
pub(super) use types::{
    Action, Described, DescribedMember, Event, Failure, Identity, JoinAnswer, Joined, Settings, Standing,
};

/// First version of JoinGroup with static members (Kafka 2.3).
const STATIC_JOIN_VERSION: i16 = 5;

/// Between attempts that only an operator can make succeed (no permission, wrong settings).
const OPERATOR_PAUSE: Duration = Duration::from_secs(10);

/// Between attempts to make the group assign anew that changed nothing: each one stops all members for a
/// moment.
const REASSIGN_BACKOFF: Backoff = Backoff { first: Duration::from_secs(2), max: Duration::from_mins(5) };

/// So many attempts to get every partition assigned are in vain before the member says that it needs help.
const FRUITLESS_REASSIGNMENTS: u32 = 4;

#[derive(Debug)]
enum Phase {
    /// Removes the member that an earlier release left behind.
    RemovingFormer,
    /// Wants to join, not before this moment.
    WantJoin(Instant),
    Joining,
    Counting(Joined),
    Syncing,
    /// Has partitions, asks where to start, not before this moment; true while asking.
    Positioning(Instant, bool),
    Stable,
    Revoking(Then),
    Leaving,
    /// Another member has our instance id; looks whether it is still there, not before this moment; true
    /// while asking.
    Fenced(Instant, bool),
    Stopped,
}

/// Knowledge about the group's assignment.
#[derive(Debug)]
enum Check {
    /// Nothing yet: the coordinator is asked, not before this moment; true while asking.
    Due(Instant, bool),
    Done(Coverage),
    /// The coordinator does not describe the group to us.
    Refused,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Join,
    Stop { leave: bool },
}

/// The state machine.
#[derive(Debug)]
pub(super) struct Group {
    settings: Settings,
    phase: Phase,
    coordinator: Option<i32>,
    finding: bool,
    find_at: Instant,
    static_member: bool,
    /// We made (or, as a restarted static member, could have made) the assignment.
    leads: bool,
    member_id: StrBytes,
    generation: i32,
    assignment: Vec<TopicPartition>,
    /// Last assignment, for the leader to give it back.
    former: Vec<TopicPartition>,
    attempt: u64,
    failures: u32,
    /// Failures and fruitless attempts since the member was last well, for the log.
    setbacks: u32,
    trouble: Option<String>,
    /// Our topics with the number of their partitions; `None` before the first look.
    topics: Option<BTreeMap<Arc<str>, i32>>,
    /// The assignment that we make for the group in this generation.
    made: Option<Coverage>,
    check: Check,
    /// Our assignment has partitions that we did not subscribe to, which another member may want.
    stray: bool,
    /// The assignment was not compared with the topics since we joined.
    fresh: bool,
    /// When the group is made to assign anew.
    reassign_at: Option<Instant>,
    /// Attempts at that without success.
    fruitless: u32,
    /// Counts the times that we, as a follower, made the group assign anew.
    revision: u32,
    former_instance: Option<Arc<str>>,
    beating: bool,
    next_beat: Instant,
    last_contact: Instant,
}

impl Group {
    /// A member that wants to join at once.
    pub(super) fn new(settings: Settings, now: Instant) -> Self {
        Self {
            phase: Phase::WantJoin(now),
            coordinator: None,
            finding: false,
            find_at: now,
            static_member: false,
            leads: false,
            member_id: StrBytes::new(),
            generation: -1,
            assignment: Vec::new(),
            former: Vec::new(),
            attempt: 0,
            failures: 0,
            setbacks: 0,
            trouble: None,
            topics: None,
            made: None,
            check: Check::Due(now, false),
            stray: false,
            fresh: true,
            reassign_at: None,
            fruitless: 0,
            revision: 0,
            former_instance: settings.former_instance_id.clone(),
            beating: false,
            next_beat: now,
            last_contact: now,
            settings,
        }
    }

    /// Identifies the present membership or attempt at one. Answers carry the number of their question.
    pub(super) fn attempt(&self) -> u64 {
        self.attempt
    }

    /// The broker to send commits to, where it is known.
    pub(super) fn coordinator(&self) -> Option<i32> {
        self.coordinator
    }

    /// Failures and fruitless attempts since the member was last well.
    pub(super) fn setbacks(&self) -> u32 {
        self.setbacks
    }

    /// How requests name us now.
    pub(super) fn identity(&self) -> Identity {
        let instance = self.settings.instance_id.as_ref().filter(|_| self.static_member);
        Identity {
            member_id: self.member_id.clone(),
            generation: self.generation,
            instance_id: instance.map(|id| StrBytes::from_string(id.to_string())),
        }
    }

    /// How it is doing, for people.
    pub(super) fn standing(&self) -> Standing {
        let group = &self.settings.group_id;
        let text = |doing: &str| match &self.trouble {
            Some(trouble) => format!("group {group:?}: {doing} ({trouble})"),
            None => format!("group {group:?}: {doing}"),
        };
        match &self.phase {
            Phase::Stable => match (&self.check, self.topics.is_some(), self.gap()) {
                (Check::Refused, ..) | (Check::Done(_), true, None) => Standing::Stable,
                (_, true, Some(gap)) if self.fruitless >= FRUITLESS_REASSIGNMENTS => {
                    Standing::Out(text(&format!("{gap}, although the group was asked to assign it")))
                }
                (_, true, Some(gap)) => Standing::Joining(text(&format!("{gap} yet"))),
                _ => Standing::Joining(text("checking that every partition has an owner")),
            },
            Phase::Fenced(..) => Standing::Out(format!(
                "group {group:?}: fenced: another member joined with the same group.instance.id {:?}; two nodes must \
                 not have one name; joins again when that member has left the group",
                self.settings.instance_id.as_deref().unwrap_or_default()
            )),
            Phase::RemovingFormer => Standing::Joining(text("removing the member of an earlier release")),
            Phase::Stopped | Phase::Leaving => Standing::Out(text("stopped")),
            _ if self.trouble.is_some() && self.failures > self.settings.max_rejoin_attempts => {
                Standing::Out(text("cannot join"))
            }
            Phase::WantJoin(_) if self.coordinator.is_none() => {
                Standing::Joining(text("looking for the coordinator"))
            }
            Phase::WantJoin(_) | Phase::Joining => Standing::Joining(text("joining")),
            Phase::Counting(_) | Phase::Syncing => Standing::Joining(text("waiting for an assignment")),
            Phase::Positioning(..) => Standing::Joining(text("asking for committed offsets")),
            Phase::Revoking(_) => Standing::Joining(text("rebalancing")),
        }
    }

    /// When [`Event::Tick`] is due.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let find = (self.wants_coordinator() && !self.finding).then_some(self.find_at);
        let has_coordinator = self.coordinator.is_some();
        let own = match self.phase {
            Phase::WantJoin(at) | Phase::Positioning(at, false) | Phase::Fenced(at, false)
                if has_coordinator =>
            {
                Some(at)
            }
            _ => None,
        };
        let check = match self.check {
            Check::Due(at, false) if self.has_assignment() && has_coordinator => Some(at),
            _ => None,
        };
        let reassign = self.reassign_at.filter(|_| matches!(self.phase, Phase::Stable));
        let beat = (self.is_member() && has_coordinator && !self.beating).then_some(self.next_beat);
        let session = self.is_member().then(|| self.last_contact + self.settings.session_timeout);
        [find, own, check, reassign, beat, session].into_iter().flatten().min()
    }

    /// True while the coordinator counts us in: heartbeats are due.
    fn is_member(&self) -> bool {
        matches!(self.phase, Phase::Positioning(..) | Phase::Stable | Phase::Revoking(_))
    }

    fn has_assignment(&self) -> bool {
        matches!(self.phase, Phase::Positioning(..) | Phase::Stable)
    }

    fn wants_coordinator(&self) -> bool {
        self.coordinator.is_none()
            && (self.is_member() || matches!(self.phase, Phase::WantJoin(_) | Phase::Fenced(..)))
    }

    /// The first difference between the group's assignment and our topics, in words.
    fn gap(&self) -> Option<String> {
        let (Check::Done(coverage), Some(topics)) = (&self.check, &self.topics) else { return None };
        if self.stray {
            return Some(
                "partitions of topics that this member no longer reads are assigned to it".to_owned(),
            );
        }
        coverage.gap(topics)
    }

    /// Takes an event in and returns what to do, in order.
    pub(super) fn handle(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Tick => {}
            Event::Coordinator(answer) => self.on_coordinator(answer, now),
            Event::Stop { leave } => self.on_stop(leave, &mut actions),
            Event::Left => {
                if matches!(self.phase, Phase::Leaving) {
                    self.phase = Phase::Stopped;
                    actions.push(Action::Stopped);
                }
            }
            Event::Topics(topics) => self.topics = Some(topics),
            Event::Described { attempt, answer } => {
                if attempt == self.attempt {
                    self.on_described(answer, now, &mut actions);
                }
            }
            Event::FormerRemoved { attempt, result } => {
                if attempt == self.attempt && matches!(self.phase, Phase::RemovingFormer) {
                    self.on_former_removed(result, now);
                }
            }
            Event::Join { attempt, answer } => {
                if attempt == self.attempt && matches!(self.phase, Phase::Joining) {
                    self.on_join(answer, now, &mut actions);
                }
            }
            Event::Counts { attempt, counts } => {
                if attempt == self.attempt {
                    self.on_counts(counts, now, &mut actions);
                }
            }
            Event::Sync { attempt, assignment } => {
                if attempt == self.attempt && matches!(self.phase, Phase::Syncing) {
                    self.on_sync(assignment, now);
                }
            }
            Event::Beat { attempt, result } => {
                if attempt == self.attempt {
                    self.beating = false;
                    self.on_beat(result, now, &mut actions);
                }
            }
            Event::Offsets { attempt, offsets } => {
                if attempt == self.attempt && matches!(self.phase, Phase::Positioning(_, true)) {
                    self.on_offsets(offsets, now, &mut actions);
                }
            }
            Event::Commit { attempt, result } => {
                if attempt == self.attempt && self.is_member() {
                    self.on_commit(result, now, &mut actions);
                }
            }
            Event::Revoked { attempt } => {
                if attempt == self.attempt
                    && let Phase::Revoking(then) = self.phase
                {
                    self.assignment.clear();
                    match then {
                        Then::Join => self.want_join(now),
                        Then::Stop { leave } => self.end(leave, &mut actions),
                    }
                }
            }
        }
        self.drive(now, &mut actions);
        actions
    }

    /// Does what is due.
    fn drive(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.is_member() && now >= self.last_contact + self.settings.session_timeout {
            self.trouble =
                Some(format!("no heartbeat was answered within {:?}", self.settings.session_timeout));
            self.coordinator = None;
            self.lose(now, actions);
        }
        if self.wants_coordinator() && !self.finding && now >= self.find_at {
            self.finding = true;
            actions.push(Action::FindCoordinator);
        }
        self.mind_the_gap(now, actions);
        let Some(coordinator) = self.coordinator else { return };
        match self.phase {
            Phase::WantJoin(at) if now >= at && self.static_member && self.former_instance.is_some() => {
                self.phase = Phase::RemovingFormer;
                let instance_id = self.former_instance.clone().unwrap_or_default();
                actions.push(Action::RemoveFormer { attempt: self.attempt, coordinator, instance_id });
            }
            Phase::Fenced(at, false) if now >= at => {
                self.phase = Phase::Fenced(at, true);
                actions.push(Action::Describe { attempt: self.attempt, coordinator });
            }
            Phase::WantJoin(at) if now >= at => {
                self.phase = Phase::Joining;
                self.generation = -1;
                actions.push(Action::Join {
                    attempt: self.attempt,
                    coordinator,
                    identity: self.identity(),
                    subscription: encode_subscription(&self.settings.topics, &self.former, self.revision),
                });
            }
            Phase::Positioning(at, false) if now >= at => {
                self.phase = Phase::Positioning(at, true);
                actions.push(Action::FetchOffsets {
                    attempt: self.attempt,
                    coordinator,
                    partitions: self.assignment.clone(),
                });
            }
            _ => {}
        }
        if let Check::Due(at, false) = self.check
            && self.has_assignment()
            && now >= at
        {
            self.check = Check::Due(at, true);
            actions.push(Action::Describe { attempt: self.attempt, coordinator });
        }
        if self.is_member() && !self.beating && now >= self.next_beat {
            self.beating = true;
            self.next_beat = now + self.settings.heartbeat_interval;
            actions.push(Action::Heartbeat { attempt: self.attempt, coordinator, identity: self.identity() });
        }
    }

    /// Makes the group assign anew while its assignment is not what our topics ask for. The leader acts at
    /// once, and so does a member that has just joined: the others may have no reason to look. Else the
    /// leader is left some time to notice.
    fn mind_the_gap(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if !matches!(self.phase, Phase::Stable) {
            return;
        }
        let refused = match self.check {
            Check::Due(..) => return,
            Check::Done(_) if self.topics.is_none() => return,
            Check::Done(_) => false,
            Check::Refused => true,
        };
        let restarted_blind = refused && self.fresh && self.leads;
        let Some(gap) = self.gap().or(restarted_blind.then(|| "the assignment is unknown".to_owned())) else {
            self.reassign_at = None;
            self.fresh = false;
            self.fruitless = 0;
            self.setbacks = 0;
            return;
        };
        let at = *self.reassign_at.get_or_insert_with(|| {
            let pause = REASSIGN_BACKOFF.jittered(self.fruitless);
            match self.fruitless {
                0 if self.fresh || self.leads => now,
                0 => now + self.settings.leader_patience,
                _ => now + pause,
            }
        });
        if now >= at {
            tracing::info!(
                group = &*self.settings.group_id,
                reason = gap,
                "the assignment is not what the topics ask for, joining anew"
            );
            self.reassign_at = None;
            self.fruitless = self.fruitless.saturating_add(1);
            self.setbacks = self.setbacks.saturating_add(u32::from(self.fruitless > 1));
            self.revision = self.revision.wrapping_add(1).max(1);
            self.revoke(Then::Join, actions);
        }
    }

    fn on_described(&mut self, answer: Result<Described, Failure>, now: Instant, actions: &mut Vec<Action>) {
        if let Phase::Fenced(_, true) = self.phase {
            let taken = match &answer {
                Ok(group) => group.members.iter().any(|member| self.has_our_instance(member)),
                Err(failure) => {
                    self.forget_coordinator_after(failure, now);
                    true
                }
            };
            if taken {
                self.failures = self.failures.saturating_add(1);
                self.setbacks = self.setbacks.saturating_add(1);
                self.phase = Phase::Fenced(now + self.pause(false), false);
            } else {
                self.member_id = StrBytes::new();
                self.want_join(now);
            }
            return;
        }
        if !matches!(self.check, Check::Due(_, true)) || !self.is_member() {
            return;
        }
        self.check = match answer {
            Ok(group) if group.stable => Check::Done(Coverage::of(&group)),
            // A rebalance is under way; the next heartbeat tells.
            Ok(_) => Check::Due(now + self.settings.heartbeat_interval, false),
            Err(failure) if is_expulsion(&failure) => return self.expelled(&failure, now, actions),
            Err(failure) if is_no_description(&failure) => {
                tracing::warn!(
                    group = &*self.settings.group_id,
                    %failure,
                    "the group is not described to its member: partitions without an owner go unnoticed"
                );
                Check::Refused
            }
            Err(failure) => {
                self.forget_coordinator_after(&failure, now);
                Check::Due(now + self.settings.rejoin_backoff.jittered(1), false)
            }
        };
    }

    /// Whether `member` has our instance id. Before Kafka 2.4 only its member id shows it: coordinators make
    /// that of the instance id and a UUID.
    fn has_our_instance(&self, member: &DescribedMember) -> bool {
        const UUID: usize = 36;

        let Some(ours) = self.settings.instance_id.as_deref() else { return false };
        match &member.instance_id {
            Some(instance) => **instance == *ours,
            None => member
                .member_id
                .strip_prefix(ours)
                .and_then(|rest| rest.strip_prefix('-'))
                .is_some_and(|rest| rest.len() == UUID),
        }
    }

    fn on_former_removed(&mut self, result: Result<(), Failure>, now: Instant) {
        match result {
            Err(
                failure @ (Failure::Lost(_)
                | Failure::Code(
                    ResponseError::NotCoordinator
                    | ResponseError::CoordinatorNotAvailable
                    | ResponseError::CoordinatorLoadInProgress,
                )),
            ) => self.join_failed(&failure, now),
            // Where it may not be removed it waits out its session.
            Ok(()) | Err(Failure::Code(_)) => {
                self.former_instance = None;
                self.want_join(now);
            }
        }
    }

    fn on_coordinator(&mut self, answer: Result<(i32, i16), Failure>, now: Instant) {
        self.finding = false;
        match answer {
            Ok((broker, join_version)) => {
                self.coordinator = Some(broker);
                self.static_member =
                    self.settings.instance_id.is_some() && join_version >= STATIC_JOIN_VERSION;
                if self.is_member() {
                    self.next_beat = now;
                }
            }
            Err(failure) => {
                let needs_operator = is_for_operator(&failure);
                self.failed(&failure);
                self.find_at = now + self.pause(needs_operator);
            }
        }
    }

    fn on_join(&mut self, answer: JoinAnswer, now: Instant, actions: &mut Vec<Action>) {
        match answer {
            JoinAnswer::MemberIdRequired(member_id) => {
                self.member_id = member_id;
                self.want_join(now);
            }
            JoinAnswer::Joined(mut joined) => {
                self.generation = joined.generation;
                self.member_id = joined.member_id.clone();
                self.leads = joined.leader == joined.member_id;
                if !self.leads || joined.skip_assignment {
                    joined.members.clear();
                    self.sync(Vec::new(), now, actions);
                    return;
                }
                let mut topics: BTreeSet<Arc<str>> = self.settings.topics.iter().cloned().collect();
                for (_, _, subscription) in &joined.members {
                    if let Some((wanted, _)) = decode_subscription(subscription.clone()) {
                        topics.extend(wanted);
                    }
                }
                self.phase = Phase::Counting(joined);
                actions.push(Action::CountPartitions { attempt: self.attempt, topics });
            }
            JoinAnswer::Failed(failure) => self.join_failed(&failure, now),
        }
    }

    fn on_counts(
        &mut self,
        counts: Result<HashMap<Arc<str>, i32>, Failure>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let Phase::Counting(joined) = &self.phase else { return };
        match counts {
            Ok(counts) => {
                let members: Vec<Member> = joined.members.iter().filter_map(member).collect();
                let assigned = assign(&members, &counts);
                let mut coverage = Coverage::default();
                for partitions in &assigned {
                    coverage.add(partitions.iter().cloned());
                }
                self.made = Some(coverage);
                let assignments = members.into_iter().zip(assigned);
                let assignments =
                    assignments.map(|(member, partitions)| (member.id, encode_assignment(&partitions)));
                let assignments = assignments.collect();
                self.sync(assignments, now, actions);
            }
            Err(failure) => self.join_failed(&failure, now),
        }
    }

    fn sync(&mut self, assignments: Vec<(StrBytes, Bytes)>, now: Instant, actions: &mut Vec<Action>) {
        let Some(coordinator) = self.coordinator else { return self.want_join(now) };
        self.phase = Phase::Syncing;
        let identity = self.identity();
        actions.push(Action::Sync { attempt: self.attempt, coordinator, identity, assignments });
    }

    fn on_sync(&mut self, assignment: Result<Bytes, Failure>, now: Instant) {
        let assignment = match assignment {
            Ok(assignment) => assignment,
            Err(Failure::Code(ResponseError::RebalanceInProgress)) => return self.want_join(now),
            Err(failure) => return self.join_failed(&failure, now),
        };
        let Some(partitions) = decode_assignment(assignment) else {
            let failure = Failure::Lost("the group's leader sent a malformed assignment".to_owned());
            return self.join_failed(&failure, now);
        };
        // A former assignment, or a leader, may name topics that we do not ask for: they are not ours to
        // read.
        let topics: BTreeSet<&Arc<str>> = self.settings.topics.iter().collect();
        let assigned = partitions.len();
        self.assignment =
            partitions.into_iter().filter(|assigned| topics.contains(&assigned.topic)).collect();
        self.stray = self.assignment.len() < assigned;
        self.check = self.made.take().map_or(Check::Due(now, false), Check::Done);
        self.reassign_at = None;
        self.fresh = true;
        self.former.clone_from(&self.assignment);
        self.phase = Phase::Positioning(now, false);
        self.last_contact = now;
        self.next_beat = now + self.settings.heartbeat_interval;
        self.beating = false;
    }

    fn on_offsets(
        &mut self,
        offsets: Result<Vec<(TopicPartition, Position)>, Failure>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        match offsets {
            Ok(partitions) => {
                self.phase = Phase::Stable;
                self.failures = 0;
                self.trouble = None;
                actions.push(Action::Assign { generation: self.generation, partitions });
            }
            Err(failure) if is_expulsion(&failure) => self.expelled(&failure, now, actions),
            Err(failure) => {
                self.forget_coordinator_after(&failure, now);
                self.failed(&failure);
                let pause = self.pause(is_for_operator(&failure));
                self.phase = Phase::Positioning(now + pause, false);
            }
        }
    }

    fn on_beat(&mut self, result: Result<(), Failure>, now: Instant, actions: &mut Vec<Action>) {
        if !self.is_member() {
            return;
        }
        match result {
            Ok(()) => self.last_contact = now,
            Err(Failure::Code(ResponseError::RebalanceInProgress)) => {
                self.last_contact = now;
                match self.phase {
                    Phase::Stable => self.revoke(Then::Join, actions),
                    // Nothing was begun yet, so nothing has to be given back.
                    Phase::Positioning(..) => {
                        self.assignment.clear();
                        self.want_join(now);
                    }
                    _ => {}
                }
            }
            Err(failure) if is_expulsion(&failure) => self.expelled(&failure, now, actions),
            Err(failure) => self.forget_coordinator_after(&failure, now),
        }
    }

    fn on_commit(&mut self, result: Result<(), Failure>, now: Instant, actions: &mut Vec<Action>) {
        match result {
            Ok(()) => {}
            Err(Failure::Code(ResponseError::RebalanceInProgress)) => {
                if matches!(self.phase, Phase::Stable) {
                    self.revoke(Then::Join, actions);
                }
            }
            Err(failure) if is_expulsion(&failure) => self.expelled(&failure, now, actions),
            Err(failure) => self.forget_coordinator_after(&failure, now),
        }
    }

    fn on_stop(&mut self, leave: bool, actions: &mut Vec<Action>) {
        match self.phase {
            Phase::Stopped | Phase::Leaving => {}
            Phase::Stable => self.revoke(Then::Stop { leave }, actions),
            Phase::Revoking(_) => self.phase = Phase::Revoking(Then::Stop { leave }),
            _ => self.end(leave, actions),
        }
    }

    fn end(&mut self, leave: bool, actions: &mut Vec<Action>) {
        self.assignment.clear();
        self.attempt += 1;
        match self.coordinator {
            Some(coordinator)
                if leave && !self.member_id.is_empty() && !matches!(self.phase, Phase::Fenced(..)) =>
            {
                self.phase = Phase::Leaving;
                actions.push(Action::Leave { coordinator, identity: self.identity() });
            }
            _ => {
                self.phase = Phase::Stopped;
                actions.push(Action::Stopped);
            }
        }
    }

    fn revoke(&mut self, then: Then, actions: &mut Vec<Action>) {
        self.phase = Phase::Revoking(then);
        actions.push(Action::Revoke { attempt: self.attempt });
    }

    /// The next attempt begins: answers to this one no longer count.
    fn want_join(&mut self, at: Instant) {
        self.attempt += 1;
        self.beating = false;
        self.made = None;
        self.phase = Phase::WantJoin(at);
    }

    /// The partitions are no longer ours.
    fn lose(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let then = if let Phase::Revoking(then) = self.phase { then } else { Then::Join };
        if matches!(self.phase, Phase::Stable | Phase::Revoking(_)) {
            actions.push(Action::Lose);
        }
        self.assignment.clear();
        self.failures = self.failures.saturating_add(1);
        self.setbacks = self.setbacks.saturating_add(1);
        match then {
            Then::Join => {
                let pause = self.pause(false);
                self.want_join(now + pause);
            }
            Then::Stop { .. } => self.end(false, actions),
        }
    }

    /// The coordinator no longer counts us in.
    fn expelled(&mut self, failure: &Failure, now: Instant, actions: &mut Vec<Action>) {
        self.trouble = Some(failure.to_string());
        if matches!(failure, Failure::Code(ResponseError::FencedInstanceId)) {
            if matches!(self.phase, Phase::Stable | Phase::Revoking(_)) {
                actions.push(Action::Lose);
            }
            return self.fence(now, actions);
        }
        if matches!(failure, Failure::Code(ResponseError::UnknownMemberId)) {
            self.member_id = StrBytes::new();
        }
        self.lose(now, actions);
    }

    fn fence(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.assignment.clear();
        self.attempt += 1;
        self.failures = self.failures.saturating_add(1);
        self.setbacks = self.setbacks.saturating_add(1);
        let stopping = matches!(self.phase, Phase::Revoking(Then::Stop { .. }));
        self.phase = Phase::Fenced(now + self.pause(false), false);
        if stopping {
            self.phase = Phase::Stopped;
            actions.push(Action::Stopped);
        }
    }

    /// An attempt to join failed before partitions were assigned.
    fn join_failed(&mut self, failure: &Failure, now: Instant) {
        self.failed(failure);
        match failure {
            Failure::Code(ResponseError::FencedInstanceId) => return self.fence(now, &mut Vec::new()),
            Failure::Code(ResponseError::UnknownMemberId) => self.member_id = StrBytes::new(),
            _ => self.forget_coordinator_after(failure, now),
        }
        let pause = self.pause(is_for_operator(failure));
        self.want_join(now + pause);
    }

    fn failed(&mut self, failure: &Failure) {
        self.failures = self.failures.saturating_add(1);
        self.setbacks = self.setbacks.saturating_add(1);
        if is_for_operator(failure) {
            self.failures = self.failures.max(self.settings.max_rejoin_attempts + 1);
        }
        self.trouble = Some(failure.to_string());
    }

    fn pause(&self, for_operator: bool) -> Duration {
        let backoff = self.settings.rejoin_backoff.jittered(self.failures.max(1));
        if for_operator { backoff.max(OPERATOR_PAUSE) } else { backoff }
    }

    /// After this failure the coordinator may be elsewhere.
    fn forget_coordinator_after(&mut self, failure: &Failure, now: Instant) {
        use ResponseError::{CoordinatorNotAvailable, NotCoordinator};

        if matches!(failure, Failure::Lost(_) | Failure::Code(CoordinatorNotAvailable | NotCoordinator)) {
            self.coordinator = None;
            self.find_at = now + self.settings.rejoin_backoff.jittered(1);
        }
    }
}

fn member((id, instance, subscription): &(StrBytes, Option<StrBytes>, Bytes)) -> Option<Member> {
    let Some((topics, owned)) = decode_subscription(subscription.clone()) else {
        tracing::warn!(member = %id, "a group member's subscription is malformed, it gets no partitions");
        return None;
    };
    let stable_name = instance.clone().unwrap_or_else(|| id.clone());
    Some(Member { id: id.clone(), stable_name, topics, owned })
}

/// The coordinator has removed this member, or another one has its place.
fn is_expulsion(failure: &Failure) -> bool {
    use ResponseError::{FencedInstanceId, IllegalGeneration, UnknownMemberId};

    matches!(failure, Failure::Code(FencedInstanceId | IllegalGeneration | UnknownMemberId))
}

/// The coordinator will not describe the group to us, now or later.
fn is_no_description(failure: &Failure) -> bool {
    use ResponseError::{GroupAuthorizationFailed, GroupIdNotFound, InvalidGroupId, UnsupportedVersion};

    matches!(
        failure,
        Failure::Code(GroupAuthorizationFailed | GroupIdNotFound | InvalidGroupId | UnsupportedVersion)
    )
}

/// Trying again soon will not help.
fn is_for_operator(failure: &Failure) -> bool {
    use ResponseError::{
        GroupAuthorizationFailed, GroupMaxSizeReached, InconsistentGroupProtocol, InvalidGroupId,
        InvalidSessionTimeout, SaslAuthenticationFailed, TopicAuthorizationFailed, UnsupportedVersion,
    };

    matches!(
        failure,
        Failure::Code(
            GroupAuthorizationFailed
                | GroupMaxSizeReached
                | InconsistentGroupProtocol
                | InvalidGroupId
                | InvalidSessionTimeout
                | SaslAuthenticationFailed
                | TopicAuthorizationFailed
                | UnsupportedVersion
        )
    )
}

#[cfg(test)]
mod tests;
