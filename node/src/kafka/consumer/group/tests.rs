//! Single transitions first, then whole groups against a model of Kafka's coordinator that loses
//! messages, forgets members and moves.

use std::collections::BTreeMap;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::kafka::client::Backoff;

fn settings(instance: Option<&str>) -> Settings {
    Settings {
        group_id: Arc::from("g"),
        instance_id: instance.map(Arc::from),
        topics: vec![Arc::from("t")],
        session_timeout: Duration::from_secs(30),
        rebalance_timeout: Duration::from_secs(30),
        heartbeat_interval: Duration::from_secs(5),
        rejoin_backoff: Backoff { first: Duration::from_secs(1), max: Duration::from_secs(5) },
        max_rejoin_attempts: 5,
    }
}

fn code(code: ResponseError) -> Failure {
    Failure::Code(code)
}

fn partitions(of: &[i32]) -> Vec<TopicPartition> {
    of.iter().map(|partition| TopicPartition::new("t", *partition)).collect()
}

/// A member brought to `Stable` in generation 1 with partitions 0 and 1, as a follower.
fn stable(instance: Option<&str>, now: Instant) -> Group {
    let mut group = Group::new(settings(instance), now);
    assert_eq!(group.handle(Event::Tick, now), [Action::FindCoordinator]);
    let actions = group.handle(Event::Coordinator(Ok((7, 9))), now);
    assert!(matches!(&actions[..], [Action::Join { coordinator: 7, .. }]), "{actions:?}");
    let required = JoinAnswer::MemberIdRequired(StrBytes::from_static_str("me"));
    let actions = group.handle(Event::Join { attempt: group.attempt(), answer: required }, now);
    assert!(matches!(&actions[..], [Action::Join { identity, .. }] if &*identity.member_id == "me"));
    let joined = Joined {
        generation: 1,
        member_id: StrBytes::from_static_str("me"),
        leader: StrBytes::from_static_str("other"),
        members: vec![],
        skip_assignment: false,
    };
    let answer = JoinAnswer::Joined(joined);
    let actions = group.handle(Event::Join { attempt: group.attempt(), answer }, now);
    assert!(matches!(&actions[..], [Action::Sync { assignments, .. }] if assignments.is_empty()));
    let assignment = Ok(encode_assignment(&partitions(&[0, 1])));
    let actions = group.handle(Event::Sync { attempt: group.attempt(), assignment }, now);
    assert!(matches!(&actions[..], [Action::FetchOffsets { .. }]), "{actions:?}");
    let offsets = partitions(&[0, 1]).into_iter().map(|partition| (partition, Some(5))).collect();
    let actions = group.handle(Event::Offsets { attempt: group.attempt(), offsets: Ok(offsets) }, now);
    assert!(matches!(&actions[..], [Action::Assign { generation: 1, .. }]), "{actions:?}");
    assert_eq!(group.standing(), Standing::Stable);
    group
}

fn beat(group: &mut Group, result: Result<(), Failure>, now: Instant) -> Vec<Action> {
    group.handle(Event::Beat { attempt: group.attempt(), result }, now)
}

#[test]
fn a_rebalance_gives_partitions_back_before_joining_again() {
    let start = Instant::now();
    let mut group = stable(None, start);
    let attempt = group.attempt();
    let now = start + Duration::from_secs(5);
    assert!(matches!(&group.handle(Event::Tick, now)[..], [Action::Heartbeat { .. }]));
    let actions = beat(&mut group, Err(code(ResponseError::RebalanceInProgress)), now);
    assert_eq!(actions, [Action::Revoke { attempt }]);
    // Heartbeats go on while the partitions drain, and the same answer changes nothing.
    let now = now + Duration::from_secs(5);
    assert!(matches!(&group.handle(Event::Tick, now)[..], [Action::Heartbeat { .. }]));
    assert_eq!(beat(&mut group, Err(code(ResponseError::RebalanceInProgress)), now), []);
    let actions = group.handle(Event::Revoked { attempt }, now);
    assert!(matches!(&actions[..], [Action::Join { identity, .. }] if &*identity.member_id == "me"));
    assert!(group.assignment.is_empty());
    // The first revocation is over: hearing of it again does nothing.
    assert_eq!(group.handle(Event::Revoked { attempt }, now), []);
}

#[test]
fn an_expelled_member_drops_its_partitions_without_a_commit() {
    for error in [ResponseError::UnknownMemberId, ResponseError::IllegalGeneration] {
        let now = Instant::now();
        let mut group = stable(None, now);
        assert_eq!(beat(&mut group, Err(code(error)), now), [Action::Lose]);
        let later = now + Duration::from_secs(2);
        let actions = group.handle(Event::Tick, later);
        let keeps_id = error == ResponseError::IllegalGeneration;
        assert!(
            matches!(&actions[..], [Action::Join { identity, .. }]
                if identity.member_id.is_empty() != keeps_id && identity.generation == -1),
            "{actions:?}"
        );
    }
}

#[test]
fn a_fenced_static_member_stays_out_and_says_why() {
    let now = Instant::now();
    let mut group = stable(Some("node-1"), now);
    assert_eq!(group.identity().instance_id.as_deref(), Some("node-1"));
    assert_eq!(beat(&mut group, Err(code(ResponseError::FencedInstanceId)), now), [Action::Lose]);
    let Standing::Out(reason) = group.standing() else { panic!("{:?}", group.standing()) };
    assert!(reason.contains("node-1"), "{reason}");
    assert_eq!(group.next_deadline(), None);
    assert_eq!(group.handle(Event::Tick, now + Duration::from_hours(1)), []);
    assert_eq!(group.handle(Event::Stop { leave: true }, now), [Action::Stopped]);
}

#[test]
fn an_old_coordinator_makes_a_static_member_dynamic() {
    let now = Instant::now();
    let mut group = Group::new(settings(Some("node-1")), now);
    group.handle(Event::Tick, now);
    group.handle(Event::Coordinator(Ok((1, 4))), now);
    assert_eq!(group.identity().instance_id, None);
}

#[test]
fn a_lost_coordinator_is_looked_for_while_the_partitions_stay() {
    let now = Instant::now();
    let mut group = stable(None, now);
    assert_eq!(beat(&mut group, Err(Failure::Lost("gone".to_owned())), now), []);
    let now = now + Duration::from_secs(1);
    assert_eq!(group.handle(Event::Tick, now), [Action::FindCoordinator]);
    let actions = group.handle(Event::Coordinator(Ok((8, 9))), now);
    assert!(matches!(&actions[..], [Action::Heartbeat { coordinator: 8, .. }]), "{actions:?}");
    assert_eq!(group.standing(), Standing::Stable);
}

#[test]
fn a_session_without_an_answered_heartbeat_ends_on_our_side_too() {
    let now = Instant::now();
    let mut group = stable(None, now);
    let end = now + Duration::from_secs(30);
    assert!(group.handle(Event::Tick, end).contains(&Action::Lose));
    assert!(group.assignment.is_empty());
}

#[test]
fn a_stop_drains_commits_and_leaves_and_a_restart_does_not_leave() {
    for leave in [true, false] {
        let now = Instant::now();
        let mut group = stable(None, now);
        let attempt = group.attempt();
        assert_eq!(group.handle(Event::Stop { leave }, now), [Action::Revoke { attempt }]);
        let actions = group.handle(Event::Revoked { attempt }, now);
        if leave {
            assert!(matches!(&actions[..], [Action::Leave { identity, .. }] if &*identity.member_id == "me"));
            assert_eq!(group.handle(Event::Left, now), [Action::Stopped]);
        } else {
            assert_eq!(actions, [Action::Stopped]);
        }
    }
}

#[test]
fn failures_that_only_an_operator_can_mend_are_shown_at_once_and_tried_slowly() {
    let now = Instant::now();
    let mut group = Group::new(settings(None), now);
    group.handle(Event::Tick, now);
    group.handle(Event::Coordinator(Ok((1, 9))), now);
    let answer = JoinAnswer::Failed(code(ResponseError::GroupAuthorizationFailed));
    group.handle(Event::Join { attempt: group.attempt(), answer }, now);
    assert!(matches!(group.standing(), Standing::Out(reason) if reason.contains("GroupAuthorizationFailed")));
    assert!(group.next_deadline().unwrap() >= now + OPERATOR_PAUSE);
}

#[test]
fn an_answer_to_an_earlier_attempt_changes_nothing() {
    let now = Instant::now();
    let mut group = stable(None, now);
    let stale = group.attempt() - 1;
    assert_eq!(
        group.handle(Event::Beat { attempt: stale, result: Err(code(ResponseError::UnknownMemberId)) }, now),
        []
    );
    assert_eq!(
        group.handle(
            Event::Commit { attempt: stale, result: Err(code(ResponseError::IllegalGeneration)) },
            now
        ),
        []
    );
    assert_eq!(group.standing(), Standing::Stable);
}

// ---- whole groups ----

#[derive(Clone)]
struct Seat {
    instance: Option<StrBytes>,
    subscription: Bytes,
    last_seen: Instant,
    /// Who waits for an answer to a join, in this round.
    joining: Option<(usize, u64)>,
    syncing: Option<(usize, u64)>,
}

#[derive(PartialEq, Clone, Copy, Debug)]
enum State {
    Empty,
    Preparing(Instant),
    Completing,
    Stable,
}

/// Kafka's group coordinator, as far as members can tell.
struct Coordinator {
    seats: BTreeMap<StrBytes, Seat>,
    state: State,
    generation: i32,
    leader: StrBytes,
    assignments: HashMap<StrBytes, Bytes>,
    next_id: u32,
    broker: i32,
}

const JOIN_WINDOW: Duration = Duration::from_secs(12);

impl Coordinator {
    fn begin_rebalance(&mut self, now: Instant, out: &mut Vec<(usize, Event)>) {
        for seat in self.seats.values_mut() {
            if let Some((node, attempt)) = seat.syncing.take() {
                let assignment = Err(code(ResponseError::RebalanceInProgress));
                out.push((node, Event::Sync { attempt, assignment }));
            }
        }
        if !matches!(self.state, State::Preparing(_)) {
            self.state = State::Preparing(now + JOIN_WINDOW);
        }
    }

    fn tick(&mut self, now: Instant, out: &mut Vec<(usize, Event)>) {
        let expired: Vec<StrBytes> = self
            .seats
            .iter()
            .filter(|(_, seat)| seat.joining.is_none() && seat.last_seen + Duration::from_secs(30) <= now)
            .map(|(id, _)| id.clone())
            .collect();
        for id in expired {
            self.seats.remove(&id);
            self.begin_rebalance(now, out);
        }
        if self.seats.is_empty() {
            self.state = State::Empty;
        }
        if let State::Preparing(until) = self.state {
            let all_here = self.seats.values().all(|seat| seat.joining.is_some());
            if all_here || now >= until {
                self.seats.retain(|_, seat| seat.joining.is_some());
                if self.seats.is_empty() {
                    self.state = State::Empty;
                    return;
                }
                self.generation += 1;
                self.state = State::Completing;
                self.assignments.clear();
                if !self.seats.contains_key(&self.leader) {
                    self.leader = self.seats.keys().next().unwrap().clone();
                }
                let members: Vec<_> = self
                    .seats
                    .iter()
                    .map(|(id, seat)| (id.clone(), seat.instance.clone(), seat.subscription.clone()))
                    .collect();
                for (id, seat) in &mut self.seats {
                    seat.last_seen = now;
                    if let Some((node, attempt)) = seat.joining.take() {
                        let leads = *id == self.leader;
                        let joined = Joined {
                            generation: self.generation,
                            member_id: id.clone(),
                            leader: self.leader.clone(),
                            members: if leads { members.clone() } else { vec![] },
                            skip_assignment: false,
                        };
                        out.push((node, Event::Join { attempt, answer: JoinAnswer::Joined(joined) }));
                    }
                }
            }
        }
    }

    fn valid(&self, identity: &Identity) -> Result<(), ResponseError> {
        match self.seats.get(&identity.member_id) {
            None => Err(ResponseError::UnknownMemberId),
            Some(_) if identity.generation != self.generation => Err(ResponseError::IllegalGeneration),
            Some(_) => Ok(()),
        }
    }

    /// What a member gets back at once; joins and syncs may wait.
    fn take(&mut self, node: usize, action: Action, now: Instant, out: &mut Vec<(usize, Event)>) {
        match action {
            Action::FindCoordinator => out.push((node, Event::Coordinator(Ok((self.broker, 9))))),
            Action::Join { attempt, coordinator, identity, subscription } => {
                let refuse = |error| (node, Event::Join { attempt, answer: JoinAnswer::Failed(code(error)) });
                if coordinator != self.broker {
                    return out.push(refuse(ResponseError::NotCoordinator));
                }
                let mut id = identity.member_id;
                if id.is_empty() {
                    self.next_id += 1;
                    id = StrBytes::from_string(format!("member-{}", self.next_id));
                    if identity.instance_id.is_none() {
                        let answer = JoinAnswer::MemberIdRequired(id);
                        return out.push((node, Event::Join { attempt, answer }));
                    }
                }
                let seat = Seat {
                    instance: identity.instance_id,
                    subscription,
                    last_seen: now,
                    joining: Some((node, attempt)),
                    syncing: None,
                };
                self.seats.insert(id, seat);
                self.begin_rebalance(now, out);
            }
            Action::Sync { attempt, identity, assignments, .. } => {
                let answer = |assignment| (node, Event::Sync { attempt, assignment });
                if let Err(error) = self.valid(&identity) {
                    return out.push(answer(Err(code(error))));
                }
                match self.state {
                    State::Preparing(_) | State::Empty => {
                        return out.push(answer(Err(code(ResponseError::RebalanceInProgress))));
                    }
                    State::Completing if identity.member_id == self.leader => {
                        self.assignments = assignments.into_iter().collect();
                        self.state = State::Stable;
                    }
                    State::Completing | State::Stable => {}
                }
                if let Some(seat) = self.seats.get_mut(&identity.member_id) {
                    seat.last_seen = now;
                    seat.syncing = Some((node, attempt));
                }
                if self.state == State::Stable {
                    for (id, seat) in &mut self.seats {
                        if let Some((node, attempt)) = seat.syncing.take() {
                            let assignment = Ok(self.assignments.get(id).cloned().unwrap_or_default());
                            out.push((node, Event::Sync { attempt, assignment }));
                        }
                    }
                }
            }
            Action::Heartbeat { attempt, coordinator, identity } => {
                let result = if coordinator == self.broker {
                    self.valid(&identity).and(match self.state {
                        State::Stable | State::Completing => Ok(()),
                        _ => Err(ResponseError::RebalanceInProgress),
                    })
                } else {
                    Err(ResponseError::NotCoordinator)
                };
                if result != Err(ResponseError::NotCoordinator)
                    && let Some(seat) = self.seats.get_mut(&identity.member_id)
                {
                    seat.last_seen = now;
                }
                out.push((node, Event::Beat { attempt, result: result.map_err(code) }));
            }
            Action::FetchOffsets { attempt, partitions, .. } => {
                let offsets = Ok(partitions.into_iter().map(|partition| (partition, None)).collect());
                out.push((node, Event::Offsets { attempt, offsets }));
            }
            Action::Leave { identity, .. } => {
                if self.seats.remove(&identity.member_id).is_some() {
                    self.begin_rebalance(now, out);
                }
                out.push((node, Event::Left));
            }
            Action::CountPartitions { attempt, topics } => {
                let counts = Ok(topics.into_iter().map(|topic| (topic, 7)).collect());
                out.push((node, Event::Counts { attempt, counts }));
            }
            Action::Assign { .. } | Action::Revoke { .. } | Action::Lose | Action::Stopped => unreachable!(),
        }
    }
}

/// What fails when a request or its answer is lost.
fn lost(action: &Action) -> Option<Event> {
    let failure = || Failure::Lost("connection lost".to_owned());
    Some(match action {
        Action::FindCoordinator => Event::Coordinator(Err(failure())),
        Action::Join { attempt, .. } => {
            Event::Join { attempt: *attempt, answer: JoinAnswer::Failed(failure()) }
        }
        Action::Sync { attempt, .. } => Event::Sync { attempt: *attempt, assignment: Err(failure()) },
        Action::Heartbeat { attempt, .. } => Event::Beat { attempt: *attempt, result: Err(failure()) },
        Action::FetchOffsets { attempt, .. } => Event::Offsets { attempt: *attempt, offsets: Err(failure()) },
        Action::CountPartitions { attempt, .. } => {
            Event::Counts { attempt: *attempt, counts: Err(failure()) }
        }
        _ => return None,
    })
}

struct Node {
    group: Group,
    held: Option<(i32, BTreeSet<TopicPartition>)>,
    revoking: bool,
}

/// Runs a group of `count` members for a while with faults, then without, and checks that in the end all
/// partitions are held by exactly one member each. Never do two members hold a partition in one generation.
fn simulate(seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let start = Instant::now();
    let count = random.random_range(1..5);
    let statics = random.random_bool(0.3);
    let mut nodes: Vec<Node> = (0..count)
        .map(|index| {
            let instance = statics.then(|| format!("i{index}"));
            let group = Group::new(settings(instance.as_deref()), start);
            Node { group, held: None, revoking: false }
        })
        .collect();
    let mut coordinator = Coordinator {
        seats: BTreeMap::new(),
        state: State::Empty,
        generation: 0,
        leader: StrBytes::new(),
        assignments: HashMap::new(),
        next_id: 0,
        broker: 1,
    };
    // (when, tie-breaker) -> event for a node.
    let mut queue: BTreeMap<(Instant, u64), (usize, Event)> = BTreeMap::new();
    let mut order = 0;
    let faults_end = start + Duration::from_mins(5);
    let end = faults_end + Duration::from_mins(3);
    let mut now = start;
    while now < end {
        now += Duration::from_millis(100);
        let faulty = now < faults_end;
        if faulty && random.random_bool(0.002) {
            coordinator.broker = random.random_range(1..4);
        }
        let mut due: Vec<(usize, Event)> = Vec::new();
        while let Some(entry) = queue.first_entry() {
            if entry.key().0 > now {
                break;
            }
            due.push(entry.remove());
        }
        for (index, node) in nodes.iter().enumerate() {
            if node.group.next_deadline().is_some_and(|at| at <= now) {
                due.push((index, Event::Tick));
            }
            if faulty && random.random_bool(0.001) {
                due.push((index, Event::TopicsChanged));
            }
        }
        let mut answers: Vec<(usize, Event)> = Vec::new();
        coordinator.tick(now, &mut answers);
        for (index, event) in due {
            let node = &mut nodes[index];
            for action in node.group.handle(event, now) {
                match action {
                    Action::Assign { generation, partitions } => {
                        assert!(node.held.is_none(), "seed {seed}: assigned twice");
                        node.held = Some((generation, partitions.into_iter().map(|(p, _)| p).collect()));
                    }
                    Action::Revoke { attempt } => {
                        assert!(node.held.is_some() && !node.revoking, "seed {seed}: nothing to revoke");
                        node.revoking = true;
                        order += 1;
                        let after = Duration::from_millis(random.random_range(0..3000));
                        queue.insert((now + after, order), (index, Event::Revoked { attempt }));
                    }
                    Action::Lose => {
                        assert!(node.held.take().is_some(), "seed {seed}: nothing to lose");
                        node.revoking = false;
                    }
                    Action::Join { .. } if node.revoking => {
                        // The drain is over: partitions are given back before the join goes out.
                        node.revoking = false;
                        node.held = None;
                        order += 1;
                        coordinator.take(index, action, now, &mut answers);
                    }
                    action => {
                        assert!(
                            !matches!(action, Action::Join { .. }) || node.held.is_none(),
                            "seed {seed}: joins with partitions in hand"
                        );
                        if faulty && random.random_bool(0.05) {
                            // Either the request or only its answer is lost.
                            if random.random_bool(0.5) {
                                let mut told = Vec::new();
                                coordinator.take(index, action.clone(), now, &mut told);
                                answers.extend(told.into_iter().filter(|(node, _)| *node != index));
                            }
                            if let Some(event) = lost(&action) {
                                answers.push((index, event));
                            }
                        } else {
                            coordinator.take(index, action, now, &mut answers);
                        }
                    }
                }
            }
        }
        for (index, event) in answers {
            order += 1;
            let latency = Duration::from_millis(random.random_range(1..400));
            queue.insert((now + latency, order), (index, event));
        }
        let mut holders: BTreeMap<(i32, &TopicPartition), usize> = BTreeMap::new();
        for (index, node) in nodes.iter().enumerate() {
            for partition in node.held.iter().flat_map(|(_, held)| held) {
                let generation = node.held.as_ref().map_or(0, |(generation, _)| *generation);
                if let Some(other) = holders.insert((generation, partition), index) {
                    panic!("seed {seed}: {partition} is held by {other} and {index}");
                }
            }
        }
    }
    let mut held: Vec<TopicPartition> = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        assert_eq!(node.group.standing(), Standing::Stable, "seed {seed}: member {index}");
        held.extend(node.held.iter().flat_map(|(_, held)| held.iter().cloned()));
    }
    held.sort();
    assert_eq!(held, partitions(&[0, 1, 2, 3, 4, 5, 6]), "seed {seed}");
}

#[test]
fn groups_come_to_rest_with_every_partition_held_once_whatever_was_lost() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    for offset in 0..60 {
        simulate(seed.wrapping_add(offset));
    }
}
