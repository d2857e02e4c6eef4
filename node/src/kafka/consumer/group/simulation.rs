//! Whole groups, of static and of dynamic members, against the coordinator of the development Kafka: messages
//! are lost, the coordinator moves, members die and come back with other topics, partitions are added.

use std::collections::BTreeMap;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::dev_kafka::groups::{Answer, Caller, Coordinator, Join, Limits, State, Sync, Token};

const TOPICS: [&str; 3] = ["a", "b", "c"];
/// How often a member looks at its topics.
const LOOK: Duration = Duration::from_secs(5);

struct Member {
    group: Group,
    instance: Option<String>,
    topics: Vec<&'static str>,
    /// Counts the processes that this member has been.
    life: u32,
    up: bool,
    wakes_at: Instant,
    next_look: Instant,
    held: Option<(i32, BTreeSet<TopicPartition>)>,
    revoking: bool,
}

/// A request that waits for its answer.
#[derive(Clone, Copy)]
struct Asked {
    member: usize,
    life: u32,
    attempt: u64,
    answer_is_lost: bool,
}

struct World {
    random: SmallRng,
    seed: u64,
    now: Instant,
    coordinator: Coordinator,
    /// The broker that coordinates.
    broker: i32,
    waiting: HashMap<Token, Asked>,
    next_token: Token,
    counts: BTreeMap<Arc<str>, i32>,
    members: Vec<Member>,
    /// (when, tie-breaker) -> event for a life of a member.
    queue: BTreeMap<(Instant, u64), (usize, u32, Event)>,
    order: u64,
    faulty: bool,
}

fn settings_of(instance: Option<&str>, topics: &[&'static str]) -> Settings {
    let topics = topics.iter().map(|topic| Arc::from(*topic)).collect();
    Settings { topics, ..settings(instance) }
}

fn text(bytes: &StrBytes) -> String {
    bytes.to_string()
}

fn failure(error: kafka_protocol::ResponseError) -> Failure {
    Failure::Code(error)
}

fn caller(identity: &Identity) -> Caller {
    Caller {
        group: "g".into(),
        generation: identity.generation,
        member_id: text(&identity.member_id),
        instance_id: identity.instance_id.as_ref().map(text),
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let now = Instant::now();
        let limits = Limits {
            min_session_timeout: Duration::from_secs(6),
            max_session_timeout: Duration::from_mins(30),
            initial_rebalance_delay: Duration::ZERO,
        };
        let count = random.random_range(1..5);
        let statics = random.random_bool(0.7);
        let members = (0..count).map(|index| {
            let instance = statics.then(|| format!("i{index}"));
            let topics = vec![TOPICS[0]];
            Member {
                group: Group::new(settings_of(instance.as_deref(), &topics), now),
                instance,
                topics,
                life: 0,
                up: true,
                wakes_at: now,
                next_look: now,
                held: None,
                revoking: false,
            }
        });
        let members = members.collect();
        let counts = TOPICS.iter().map(|topic| (Arc::from(*topic), random.random_range(1..5))).collect();
        let salt = random.random();
        Self {
            random,
            seed,
            now,
            coordinator: Coordinator::new(limits, salt),
            broker: 1,
            waiting: HashMap::new(),
            next_token: 0,
            counts,
            members,
            queue: BTreeMap::new(),
            order: 0,
            faulty: true,
        }
    }

    fn later(&mut self, within: u64, member: usize, life: u32, event: Event) {
        self.order += 1;
        let after = Duration::from_millis(self.random.random_range(1..within));
        self.queue.insert((self.now + after, self.order), (member, life, event));
    }

    fn answer(&mut self, asked: Asked, event: Event) {
        if !asked.answer_is_lost {
            self.later(400, asked.member, asked.life, event);
        }
    }

    fn collect(&mut self) {
        for (token, answer) in self.coordinator.take_answers() {
            let Some(asked) = self.waiting.remove(&token) else { continue };
            let attempt = asked.attempt;
            let event = match answer {
                Answer::Join(joined) => {
                    let id = StrBytes::from_string(joined.member_id);
                    let answer = match joined.error {
                        Some(ResponseError::MemberIdRequired) => JoinAnswer::MemberIdRequired(id),
                        Some(error) => JoinAnswer::Failed(failure(error)),
                        None => JoinAnswer::Joined(Joined {
                            generation: joined.generation,
                            member_id: id,
                            leader: StrBytes::from_string(joined.leader),
                            members: joined
                                .members
                                .into_iter()
                                .map(|(id, instance, metadata)| {
                                    (StrBytes::from_string(id), instance.map(StrBytes::from_string), metadata)
                                })
                                .collect(),
                            skip_assignment: joined.skip_assignment,
                        }),
                    };
                    Event::Join { attempt, answer }
                }
                Answer::Sync(synced) => Event::Sync {
                    attempt,
                    assignment: synced.map(|synced| synced.assignment).map_err(failure),
                },
            };
            self.answer(asked, event);
        }
    }

    fn wait(&mut self, asked: Asked) -> Token {
        self.next_token += 1;
        self.waiting.insert(self.next_token, asked);
        self.next_token
    }

    /// The coordinator gets a request.
    fn request(&mut self, asked: Asked, action: Action) {
        let now = self.now.into_std();
        let attempt = asked.attempt;
        let moved = || failure(ResponseError::NotCoordinator);
        match action {
            Action::FindCoordinator => {
                let version = if self.seed.is_multiple_of(5) { 8 } else { 9 };
                self.answer(asked, Event::Coordinator(Ok((self.broker, version))));
            }
            Action::Join { coordinator, identity, subscription, .. } => {
                if coordinator != self.broker {
                    return self.answer(asked, Event::Join { attempt, answer: JoinAnswer::Failed(moved()) });
                }
                let token = self.wait(asked);
                let join = Join {
                    group: "g".into(),
                    member_id: text(&identity.member_id),
                    instance_id: identity.instance_id.as_ref().map(text),
                    client_id: format!("c{}", asked.member),
                    client_host: String::new(),
                    session_timeout: Duration::from_secs(30),
                    rebalance_timeout: Duration::from_secs(30),
                    protocol_type: "consumer".into(),
                    protocols: vec![("roundrobin".into(), subscription)],
                    requires_member_id: true,
                    supports_skip_assignment: !self.seed.is_multiple_of(5),
                };
                self.coordinator.join(now, token, join);
            }
            Action::Sync { identity, assignments, .. } => {
                let token = self.wait(asked);
                let assignments = assignments.into_iter().map(|(id, bytes)| (text(&id), bytes)).collect();
                let sync =
                    Sync { caller: caller(&identity), protocol_type: None, protocol: None, assignments };
                self.coordinator.sync(now, token, sync);
            }
            Action::Heartbeat { coordinator, identity, .. } => {
                let result = if coordinator == self.broker {
                    self.coordinator.heartbeat(now, &caller(&identity)).map_err(failure)
                } else {
                    Err(moved())
                };
                self.answer(asked, Event::Beat { attempt, result });
            }
            Action::Describe { coordinator, .. } => {
                let answer = if coordinator == self.broker { Ok(self.describe()) } else { Err(moved()) };
                self.answer(asked, Event::Described { attempt, answer });
            }
            Action::FetchOffsets { partitions, .. } => {
                let offsets = Ok(partitions.into_iter().map(|partition| (partition, AT_5)).collect());
                self.answer(asked, Event::Offsets { attempt, offsets });
            }
            Action::CountPartitions { topics, .. } => {
                let count = |topic: Arc<str>| {
                    let count = self.counts.get(&topic).copied().unwrap_or(0);
                    (topic, count)
                };
                let counts = Ok(topics.into_iter().map(count).collect());
                self.answer(asked, Event::Counts { attempt, counts });
            }
            other => panic!("seed {}: {other:?} is no request", self.seed),
        }
        self.collect();
    }

    fn describe(&self) -> Described {
        let Some(group) = self.coordinator.groups().get("g") else { return Described::default() };
        let protocol = group.protocol.clone().unwrap_or_default();
        let stable = group.state == State::Stable;
        let members = group.members().iter().map(|(id, member)| DescribedMember {
            member_id: StrBytes::from_string(id.clone()),
            instance_id: member.instance_id.clone().map(StrBytes::from_string),
            subscription: if stable { member.metadata(&protocol) } else { Bytes::new() },
            assignment: if stable { member.assignment.clone() } else { Bytes::new() },
        });
        Described { stable, members: members.collect() }
    }

    fn act(&mut self, index: usize, action: Action) {
        let seed = self.seed;
        let faulty = self.faulty;
        let member = &mut self.members[index];
        let life = member.life;
        let attempt = member.group.attempt();
        match action {
            Action::Assign { generation, partitions } => {
                assert!(member.held.is_none(), "seed {seed}: assigned twice");
                member.held = Some((generation, partitions.into_iter().map(|(name, _)| name).collect()));
            }
            Action::Revoke { attempt } => {
                assert!(member.held.is_some() && !member.revoking, "seed {seed}: nothing to revoke");
                member.revoking = true;
                self.later(3000, index, life, Event::Revoked { attempt });
            }
            Action::Lose => {
                assert!(member.held.take().is_some(), "seed {seed}: nothing to lose");
                member.revoking = false;
            }
            request => {
                if matches!(request, Action::Join { .. }) {
                    // The drain is over: partitions are given back before the join goes out.
                    if std::mem::take(&mut member.revoking) {
                        member.held = None;
                    }
                    assert!(member.held.is_none(), "seed {seed}: joins with partitions in hand");
                }
                let mut asked = Asked { member: index, life, attempt, answer_is_lost: false };
                if faulty && self.random.random_bool(0.05) {
                    // Either the request or only its answer is lost.
                    if let Some(event) = lost(&request) {
                        self.later(400, index, life, event);
                        asked.answer_is_lost = true;
                        if self.random.random_bool(0.5) {
                            return;
                        }
                    }
                }
                self.request(asked, request);
            }
        }
    }

    /// Whatever may happen to a cluster in a bad hour.
    fn mischief(&mut self) {
        if self.random.random_bool(0.002) {
            self.broker = self.random.random_range(1..4);
        }
        if self.random.random_bool(0.001) {
            let topic: Arc<str> = Arc::from(TOPICS[self.random.random_range(0..3)]);
            *self.counts.entry(topic).or_default() += 1;
        }
        for index in 0..self.members.len() {
            if self.members[index].up && self.random.random_bool(0.0008) {
                let down = Duration::from_millis(self.random.random_range(0..50_000));
                self.members[index].up = false;
                self.members[index].held = None;
                self.members[index].revoking = false;
                self.members[index].wakes_at = self.now + down;
                self.members[index].life += 1;
                if self.random.random_bool(0.6) {
                    let mut topics = TOPICS.to_vec();
                    topics.retain(|_| self.random.random_bool(0.6));
                    if topics.is_empty() {
                        topics.push(TOPICS[0]);
                    }
                    self.members[index].topics = topics;
                }
            }
        }
    }

    fn step(&mut self) {
        self.now += Duration::from_millis(100);
        if self.faulty {
            self.mischief();
        }
        self.coordinator.poll(self.now.into_std());
        self.collect();
        let mut due: Vec<(usize, Event)> = Vec::new();
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let (index, life, event) = entry.remove();
            if self.members[index].life == life && self.members[index].up {
                due.push((index, event));
            }
        }
        for (index, member) in self.members.iter_mut().enumerate() {
            if !member.up && member.wakes_at <= self.now {
                member.up = true;
                member.next_look = self.now;
                member.group = Group::new(settings_of(member.instance.as_deref(), &member.topics), self.now);
                due.push((index, Event::Tick));
            }
            if member.up && member.next_look <= self.now {
                member.next_look = self.now + LOOK;
                let seen = self.counts.iter().filter(|(topic, _)| member.topics.contains(&&***topic));
                due.push((
                    index,
                    Event::Topics(seen.map(|(topic, count)| (topic.clone(), *count)).collect()),
                ));
            }
            if member.up && member.group.next_deadline().is_some_and(|at| at <= self.now) {
                due.push((index, Event::Tick));
            }
        }
        for (index, event) in due {
            for action in self.members[index].group.handle(event, self.now) {
                self.act(index, action);
            }
        }
        self.check_owners();
    }

    /// Never do two members hold a partition in one generation.
    fn check_owners(&self) {
        let mut holders: BTreeMap<(i32, &TopicPartition), usize> = BTreeMap::new();
        for (index, member) in self.members.iter().enumerate() {
            let Some((generation, held)) = &member.held else { continue };
            for partition in held {
                if let Some(other) = holders.insert((*generation, partition), index) {
                    panic!("seed {}: {partition} is held by {other} and {index}", self.seed);
                }
            }
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
        Action::Describe { attempt, .. } => Event::Described { attempt: *attempt, answer: Err(failure()) },
        _ => return None,
    })
}

/// Runs a group for some minutes with faults, then without. In the end every partition of every topic that a
/// member wants is held by exactly one member, and all members are well.
fn simulate(seed: u64) {
    let mut world = World::new(seed);
    let start = world.now;
    for index in 0..world.members.len() {
        for action in world.members[index].group.handle(Event::Tick, start) {
            world.act(index, action);
        }
    }
    while world.now < start + Duration::from_mins(6) {
        world.step();
    }
    world.faulty = false;
    while world.now < start + Duration::from_mins(12) {
        world.step();
    }
    let mut wanted: BTreeSet<TopicPartition> = BTreeSet::new();
    let mut held: Vec<TopicPartition> = Vec::new();
    for (index, member) in world.members.iter().enumerate() {
        assert_eq!(member.group.standing(), Standing::Stable, "seed {seed}: member {index}");
        for topic in &member.topics {
            wanted.extend((0..world.counts[*topic]).map(|number| TopicPartition::new(*topic, number)));
        }
        held.extend(member.held.iter().flat_map(|(_, held)| held.iter().cloned()));
    }
    held.sort();
    assert_eq!(held, wanted.into_iter().collect::<Vec<_>>(), "seed {seed}");
}

#[test]
fn groups_come_to_rest_with_every_partition_held_once_whatever_happened() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    for offset in 0..60 {
        simulate(seed.wrapping_add(offset));
    }
}
