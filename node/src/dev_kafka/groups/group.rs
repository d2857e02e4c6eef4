//! One group: its members, its state, its timers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::ResponseError;

use super::{Answer, Caller, Commit, CommittedOffset, Join, Joined, Sync, Synced, Token};

type Answers = Vec<(Token, Answer)>;

/// States of a group, with Kafka's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Empty,
    PreparingRebalance,
    CompletingRebalance,
    Stable,
}

impl State {
    /// As tools show it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::PreparingRebalance => "PreparingRebalance",
            Self::CompletingRebalance => "CompletingRebalance",
            Self::Stable => "Stable",
        }
    }
}

/// A member.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) instance_id: Option<String>,
    pub(crate) client_id: String,
    pub(crate) client_host: String,
    session_timeout: Duration,
    rebalance_timeout: Duration,
    protocols: Vec<(String, Bytes)>,
    pub(crate) assignment: Bytes,
    joining: Option<Token>,
    syncing: Option<Token>,
    /// When it is removed unless it speaks before. Not while it waits for an answer.
    expires: Instant,
    /// Whether it sent a sync in this generation.
    synced: bool,
    order: u64,
}

impl Member {
    /// Metadata that it sent for an assignor.
    pub(crate) fn metadata(&self, protocol: &str) -> Bytes {
        let found = self.protocols.iter().find(|(name, _)| name == protocol);
        found.map(|(_, metadata)| metadata.clone()).unwrap_or_default()
    }

    fn waits(&self) -> bool {
        self.joining.is_some() || self.syncing.is_some()
    }
}

/// A group.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) state: State,
    pub(crate) generation: i32,
    pub(crate) protocol_type: Option<String>,
    pub(crate) protocol: Option<String>,
    leader: Option<String>,
    members: BTreeMap<String, Member>,
    static_members: BTreeMap<String, String>,
    /// Ids that were handed out and not used yet, until when.
    pending: BTreeMap<String, Instant>,
    /// End of the current join or sync phase.
    phase_ends: Option<Instant>,
    /// While set, a rebalance is not completed before `phase_ends` even when all have joined.
    holds_for_more: bool,
    initial_delay: Duration,
    joined_ever: u64,
    offsets: BTreeMap<(String, i32), CommittedOffset>,
}

impl Group {
    pub(super) fn new(initial_delay: Duration) -> Self {
        Self {
            state: State::Empty,
            generation: 0,
            protocol_type: None,
            protocol: None,
            leader: None,
            members: BTreeMap::new(),
            static_members: BTreeMap::new(),
            pending: BTreeMap::new(),
            phase_ends: None,
            holds_for_more: false,
            initial_delay,
            joined_ever: 0,
            offsets: BTreeMap::new(),
        }
    }

    /// Members by id.
    pub(crate) fn members(&self) -> &BTreeMap<String, Member> {
        &self.members
    }

    /// Whether it has no members.
    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Committed offsets by topic and partition.
    pub(crate) fn offsets(&self) -> &BTreeMap<(String, i32), CommittedOffset> {
        &self.offsets
    }

    /// Stores a committed offset.
    pub(crate) fn commit(&mut self, commit: Commit) {
        self.offsets.insert((commit.topic, commit.partition), commit.committed);
    }

    /// Forgets committed offsets; answers those that were there.
    pub(crate) fn forget(&mut self, wanted: impl Fn(&str, i32) -> bool) -> Vec<(String, i32)> {
        let gone: Vec<_> =
            self.offsets.keys().filter(|(topic, partition)| wanted(topic, *partition)).cloned().collect();
        self.offsets.retain(|(topic, partition), _| !wanted(topic, *partition));
        gone
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let sessions = self.members.values().filter(|member| !member.waits()).map(|member| member.expires);
        sessions.chain(self.pending.values().copied()).chain(self.phase_ends).min()
    }

    pub(super) fn poll(&mut self, now: Instant, answers: &mut Answers) {
        let overdue = |id: &str, at: Instant| (at <= now).then(|| id.to_owned());
        let pending: Vec<_> = self.pending.iter().filter_map(|(id, at)| overdue(id, *at)).collect();
        for id in pending {
            self.pending.remove(&id);
            self.complete_if_all_joined(now, answers);
        }
        let silent = self.members.iter().filter(|(_, member)| !member.waits());
        let silent: Vec<_> = silent.filter_map(|(id, member)| overdue(id, member.expires)).collect();
        for id in silent {
            self.remove_and_update(now, &id, answers);
        }
        if self.phase_ends.is_some_and(|at| at <= now) {
            match self.state {
                State::PreparingRebalance => self.complete_join(now, answers),
                State::CompletingRebalance => {
                    let late = self.members.iter().filter(|(_, member)| !member.synced);
                    let late: Vec<_> = late.map(|(id, _)| id.clone()).collect();
                    self.phase_ends = None;
                    for id in &late {
                        self.remove(id, answers);
                    }
                    self.prepare_rebalance(now, answers);
                }
                State::Empty | State::Stable => self.phase_ends = None,
            }
        }
    }

    fn check_protocols(&self, join: &Join) -> Result<(), ResponseError> {
        if self.members.is_empty() {
            return Ok(());
        }
        let same_type = self.protocol_type.as_deref() == Some(&join.protocol_type);
        let common = join.protocols.iter().any(|(name, _)| self.all_support(name));
        if same_type && common { Ok(()) } else { Err(ResponseError::InconsistentGroupProtocol) }
    }

    fn all_support(&self, protocol: &str) -> bool {
        self.members.values().all(|member| member.protocols.iter().any(|(name, _)| name == protocol))
    }

    /// Whether a member may speak for its instance id.
    fn check_identity(&self, member_id: &str, instance_id: Option<&str>) -> Result<(), ResponseError> {
        match instance_id {
            Some(instance) => match self.static_members.get(instance) {
                None => Err(ResponseError::UnknownMemberId),
                Some(current) if current != member_id => Err(ResponseError::FencedInstanceId),
                Some(_) => Ok(()),
            },
            None if self.members.contains_key(member_id) => Ok(()),
            None => Err(ResponseError::UnknownMemberId),
        }
    }

    pub(super) fn join(
        &mut self,
        now: Instant,
        token: Token,
        join: Join,
        new_id: String,
        answers: &mut Answers,
    ) {
        let refuse = |error, id: &str| (token, Answer::Join(Joined::failed(error, id)));
        if let Err(error) = self.check_protocols(&join) {
            answers.push(refuse(error, &join.member_id));
            return;
        }
        if join.member_id.is_empty() {
            if join.instance_id.is_some() {
                self.join_static(now, token, join, new_id, answers);
            } else if join.requires_member_id {
                answers.push(refuse(ResponseError::MemberIdRequired, &new_id));
                self.pending.insert(new_id, now + join.session_timeout);
            } else {
                self.add(now, token, join, new_id, answers);
            }
            return;
        }
        if self.pending.contains_key(&join.member_id) {
            if join.instance_id.is_some() {
                answers.push(refuse(ResponseError::UnknownMemberId, &join.member_id));
            } else {
                let id = join.member_id.clone();
                self.add(now, token, join, id, answers);
            }
            return;
        }
        let id = join.member_id.clone();
        if let Err(error) = self.check_identity(&id, join.instance_id.as_deref()) {
            answers.push(refuse(error, &id));
            return;
        }
        self.rejoin(now, token, join, &id, answers);
    }

    /// A known member joins again.
    fn rejoin(&mut self, now: Instant, token: Token, join: Join, id: &str, answers: &mut Answers) {
        let unchanged = self.members.get(id).is_some_and(|member| member.protocols == join.protocols);
        let is_leader = self.leader.as_deref() == Some(id);
        let answer_now = match self.state {
            State::PreparingRebalance | State::Empty => false,
            State::CompletingRebalance => unchanged,
            State::Stable => unchanged && !is_leader,
        };
        self.update(now, id, join, answers);
        if answer_now {
            let joined = self.joined(id);
            answers.push((token, Answer::Join(joined)));
            return;
        }
        if let Some(member) = self.members.get_mut(id) {
            member.joining = Some(token);
        }
        if self.state == State::PreparingRebalance {
            self.complete_if_all_joined(now, answers);
        } else {
            self.prepare_rebalance(now, answers);
        }
    }

    /// Takes what a member sent with its join; an earlier join or sync of it that still waits is answered.
    fn update(&mut self, now: Instant, id: &str, join: Join, answers: &mut Answers) {
        let Some(member) = self.members.get_mut(id) else { return };
        if let Some(token) = member.joining.take() {
            answers.push((token, Answer::Join(Joined::failed(ResponseError::UnknownMemberId, id))));
        }
        if let Some(token) = member.syncing.take() {
            answers.push((token, Answer::Sync(Err(ResponseError::RebalanceInProgress))));
        }
        member.client_id = join.client_id;
        member.client_host = join.client_host;
        member.session_timeout = join.session_timeout;
        member.rebalance_timeout = join.rebalance_timeout;
        member.protocols = join.protocols;
        member.expires = now + join.session_timeout;
    }

    fn add(&mut self, now: Instant, token: Token, join: Join, id: String, answers: &mut Answers) {
        self.pending.remove(&id);
        if self.members.is_empty() {
            self.protocol_type = Some(join.protocol_type);
        }
        if let Some(instance) = &join.instance_id {
            self.static_members.insert(instance.clone(), id.clone());
        }
        self.joined_ever += 1;
        let member = Member {
            instance_id: join.instance_id,
            client_id: join.client_id,
            client_host: join.client_host,
            session_timeout: join.session_timeout,
            rebalance_timeout: join.rebalance_timeout,
            protocols: join.protocols,
            assignment: Bytes::new(),
            joining: Some(token),
            syncing: None,
            expires: now + join.session_timeout,
            synced: false,
            order: self.joined_ever,
        };
        self.members.insert(id.clone(), member);
        self.leader.get_or_insert(id);
        self.prepare_rebalance(now, answers);
    }

    /// A static member without member id: new, or back after a restart (KIP-345).
    fn join_static(&mut self, now: Instant, token: Token, join: Join, new_id: String, answers: &mut Answers) {
        let known = join.instance_id.as_ref().and_then(|instance| self.static_members.get(instance)).cloned();
        let Some(old_id) = known else {
            self.add(now, token, join, new_id, answers);
            return;
        };
        let Some(mut member) = self.members.remove(&old_id) else { return };
        let fenced = ResponseError::FencedInstanceId;
        if let Some(waiting) = member.joining.take() {
            answers.push((waiting, Answer::Join(Joined::failed(fenced, &old_id))));
        }
        if let Some(waiting) = member.syncing.take() {
            answers.push((waiting, Answer::Sync(Err(fenced))));
        }
        let selected = self.protocol.clone().unwrap_or_default();
        let was_leader = self.leader.as_ref() == Some(&old_id);
        if was_leader {
            self.leader = Some(new_id.clone());
        }
        self.members.insert(new_id.clone(), member);
        self.static_members.extend(join.instance_id.clone().map(|instance| (instance, new_id.clone())));
        let skip = join.supports_skip_assignment;
        self.update(now, &new_id, join, answers);
        if self.state == State::Stable && self.select_protocol().as_deref() == Some(&selected) {
            // The assignment stands, as in Kafka, even if the member wants other topics than before. A leader
            // of an old version must not compute one: it is told the old id leads.
            let mut joined = self.joined(&new_id);
            joined.skip_assignment = was_leader && skip;
            if was_leader && !skip {
                joined.leader = old_id;
                joined.members = Vec::new();
            }
            answers.push((token, Answer::Join(joined)));
            return;
        }
        if let Some(member) = self.members.get_mut(&new_id) {
            member.joining = Some(token);
        }
        if self.state == State::PreparingRebalance {
            self.complete_if_all_joined(now, answers);
        } else {
            self.prepare_rebalance(now, answers);
        }
    }

    fn select_protocol(&self) -> Option<String> {
        // Each member votes for the first of its assignors that all support; ties go to the name, so that the
        // choice is stable.
        let mut votes = BTreeMap::new();
        for member in self.members.values() {
            let vote = member.protocols.iter().find(|(name, _)| self.all_support(name));
            *votes.entry(vote.map(|(name, _)| name.clone())?).or_insert(0usize) += 1;
        }
        let most = votes.values().copied().max()?;
        votes.into_iter().find(|(_, count)| *count == most).map(|(name, _)| name)
    }

    fn prepare_rebalance(&mut self, now: Instant, answers: &mut Answers) {
        if self.state == State::CompletingRebalance {
            for member in self.members.values_mut() {
                member.assignment = Bytes::new();
                if let Some(token) = member.syncing.take() {
                    member.expires = now + member.session_timeout;
                    answers.push((token, Answer::Sync(Err(ResponseError::RebalanceInProgress))));
                }
            }
        }
        if self.state != State::PreparingRebalance {
            let first = self.state == State::Empty && !self.initial_delay.is_zero();
            let longest =
                self.members.values().map(|member| member.rebalance_timeout).max().unwrap_or_default();
            self.holds_for_more = first;
            self.phase_ends = Some(now + if first { self.initial_delay.min(longest) } else { longest });
            self.state = State::PreparingRebalance;
        }
        self.complete_if_all_joined(now, answers);
    }

    fn complete_if_all_joined(&mut self, now: Instant, answers: &mut Answers) {
        let all = self.pending.is_empty() && self.members.values().all(|member| member.joining.is_some());
        if self.state == State::PreparingRebalance && all && !self.holds_for_more {
            self.complete_join(now, answers);
        }
    }

    fn complete_join(&mut self, now: Instant, answers: &mut Answers) {
        self.holds_for_more = false;
        let absent = self
            .members
            .iter()
            .filter(|(_, member)| member.joining.is_none() && member.instance_id.is_none());
        let absent: Vec<_> = absent.map(|(id, _)| id.clone()).collect();
        for id in &absent {
            self.remove(id, answers);
        }
        let leader_joined =
            self.leader.as_ref().is_some_and(|id| self.members.get(id).is_some_and(|m| m.joining.is_some()));
        if !leader_joined {
            let joined = self.members.iter().filter(|(_, member)| member.joining.is_some());
            let new = joined.min_by_key(|(_, member)| member.order).map(|(id, _)| id.clone());
            if new.is_none() && !self.members.is_empty() {
                // Only static members, none of them back yet: their sessions decide.
                let longest =
                    self.members.values().map(|member| member.rebalance_timeout).max().unwrap_or_default();
                self.phase_ends = Some(now + longest.max(Duration::from_millis(1)));
                return;
            }
            self.leader = new;
        }
        self.generation += 1;
        self.phase_ends = None;
        if self.members.is_empty() {
            self.state = State::Empty;
            self.protocol = None;
            self.leader = None;
            return;
        }
        self.protocol = self.select_protocol();
        self.state = State::CompletingRebalance;
        let longest = self.members.values().map(|member| member.rebalance_timeout).max().unwrap_or_default();
        self.phase_ends = Some(now + longest);
        let mut waiting = Vec::new();
        for (id, member) in &mut self.members {
            member.expires = now + member.session_timeout;
            member.synced = false;
            waiting.extend(member.joining.take().map(|token| (id.clone(), token)));
        }
        for (id, token) in waiting {
            answers.push((token, Answer::Join(self.joined(&id))));
        }
    }

    /// The answer to a join in this generation.
    fn joined(&self, id: &str) -> Joined {
        let leader = self.leader.clone().unwrap_or_default();
        let protocol = self.protocol.clone().unwrap_or_default();
        let members = if leader == id {
            let listed = self.members.iter();
            listed
                .map(|(id, member)| (id.clone(), member.instance_id.clone(), member.metadata(&protocol)))
                .collect()
        } else {
            Vec::new()
        };
        Joined {
            error: None,
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader,
            skip_assignment: false,
            member_id: id.to_owned(),
            members,
        }
    }

    fn synced(&self, assignment: Bytes) -> Synced {
        Synced { protocol_type: self.protocol_type.clone(), protocol: self.protocol.clone(), assignment }
    }

    pub(super) fn sync(
        &mut self,
        now: Instant,
        token: Token,
        sync: Sync,
        answers: &mut Answers,
    ) -> Result<(), ResponseError> {
        let id = sync.caller.member_id;
        self.check_identity(&id, sync.caller.instance_id.as_deref())?;
        if sync.caller.generation != self.generation {
            return Err(ResponseError::IllegalGeneration);
        }
        let differs = |sent: &Option<String>, ours: &Option<String>| sent.is_some() && sent != ours;
        if differs(&sync.protocol_type, &self.protocol_type) || differs(&sync.protocol, &self.protocol) {
            return Err(ResponseError::InconsistentGroupProtocol);
        }
        let Some(member) = self.members.get_mut(&id) else { return Err(ResponseError::UnknownMemberId) };
        match self.state {
            State::Empty => Err(ResponseError::UnknownMemberId),
            State::PreparingRebalance => Err(ResponseError::RebalanceInProgress),
            State::Stable => {
                member.expires = now + member.session_timeout;
                let assignment = member.assignment.clone();
                answers.push((token, Answer::Sync(Ok(self.synced(assignment)))));
                Ok(())
            }
            State::CompletingRebalance => {
                member.synced = true;
                if let Some(earlier) = member.syncing.replace(token) {
                    answers.push((earlier, Answer::Sync(Err(ResponseError::RebalanceInProgress))));
                }
                if self.leader.as_ref() == Some(&id) {
                    self.assign(now, sync.assignments, answers);
                }
                Ok(())
            }
        }
    }

    /// The leader's assignment ends the rebalance.
    fn assign(&mut self, now: Instant, assignments: Vec<(String, Bytes)>, answers: &mut Answers) {
        let mut assignments: BTreeMap<_, _> = assignments.into_iter().collect();
        self.state = State::Stable;
        // Members that have not asked yet get theirs when they do; their sessions watch over them from here
        // on.
        self.phase_ends = None;
        let mut waiting = Vec::new();
        for (id, member) in &mut self.members {
            member.assignment = assignments.remove(id).unwrap_or_default();
            member.expires = now + member.session_timeout;
            waiting.extend(member.syncing.take().map(|token| (token, member.assignment.clone())));
        }
        for (token, assignment) in waiting {
            answers.push((token, Answer::Sync(Ok(self.synced(assignment)))));
        }
    }

    pub(super) fn heartbeat(&mut self, now: Instant, caller: &Caller) -> Result<(), ResponseError> {
        self.check_identity(&caller.member_id, caller.instance_id.as_deref())?;
        if caller.generation != self.generation {
            return Err(ResponseError::IllegalGeneration);
        }
        let member = self.members.get_mut(&caller.member_id).ok_or(ResponseError::UnknownMemberId)?;
        member.expires = now + member.session_timeout;
        match self.state {
            State::Empty => Err(ResponseError::UnknownMemberId),
            State::PreparingRebalance => Err(ResponseError::RebalanceInProgress),
            State::CompletingRebalance | State::Stable => Ok(()),
        }
    }

    pub(super) fn leave(
        &mut self,
        now: Instant,
        member_id: &str,
        instance_id: Option<&str>,
        answers: &mut Answers,
    ) -> Result<String, ResponseError> {
        let by_instance =
            member_id.is_empty().then(|| instance_id.and_then(|instance| self.static_members.get(instance)));
        let id = by_instance.flatten().cloned().unwrap_or_else(|| member_id.to_owned());
        if self.pending.remove(&id).is_some() {
            self.complete_if_all_joined(now, answers);
            return Ok(id);
        }
        self.check_identity(&id, instance_id)?;
        self.remove_and_update(now, &id, answers);
        Ok(id)
    }

    pub(super) fn check_commit(&mut self, now: Instant, caller: &Caller) -> Result<(), ResponseError> {
        if caller.generation < 0 && self.members.is_empty() {
            return Ok(());
        }
        if caller.generation < 0 && caller.member_id.is_empty() && caller.instance_id.is_none() {
            return Err(ResponseError::UnknownMemberId);
        }
        self.check_identity(&caller.member_id, caller.instance_id.as_deref())?;
        if caller.generation != self.generation {
            return Err(ResponseError::IllegalGeneration);
        }
        if let Some(member) = self.members.get_mut(&caller.member_id) {
            member.expires = now + member.session_timeout;
        }
        if self.state == State::CompletingRebalance {
            Err(ResponseError::RebalanceInProgress)
        } else {
            Ok(())
        }
    }

    /// Removes a member and starts or goes on with the rebalance that this makes necessary.
    fn remove_and_update(&mut self, now: Instant, id: &str, answers: &mut Answers) {
        self.remove(id, answers);
        match self.state {
            State::Empty => {}
            State::PreparingRebalance => self.complete_if_all_joined(now, answers),
            State::Stable | State::CompletingRebalance => self.prepare_rebalance(now, answers),
        }
    }

    fn remove(&mut self, id: &str, answers: &mut Answers) {
        let Some(member) = self.members.remove(id) else { return };
        if let Some(token) = member.joining {
            answers.push((token, Answer::Join(Joined::failed(ResponseError::UnknownMemberId, id))));
        }
        if let Some(token) = member.syncing {
            answers.push((token, Answer::Sync(Err(ResponseError::UnknownMemberId))));
        }
        if let Some(instance) = member.instance_id {
            self.static_members.remove(&instance);
        }
        if self.leader.as_deref() == Some(id) {
            let next = self.members.iter().min_by_key(|(_, member)| member.order);
            self.leader = next.map(|(id, _)| id.clone());
        }
    }
}
