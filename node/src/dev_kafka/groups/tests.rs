//! The coordinator under the control of the test: its clock, its order of events.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

const SESSION: Duration = Duration::from_secs(10);
const REBALANCE: Duration = Duration::from_secs(30);

struct World {
    coordinator: Coordinator,
    now: Instant,
    next_token: Token,
    answers: BTreeMap<Token, Answer>,
}

impl World {
    fn new() -> Self {
        let limits = Limits {
            min_session_timeout: Duration::from_secs(6),
            max_session_timeout: Duration::from_mins(30),
            initial_rebalance_delay: Duration::ZERO,
        };
        let coordinator = Coordinator::new(limits, 1);
        Self { coordinator, now: Instant::now(), next_token: 0, answers: BTreeMap::new() }
    }

    fn collect(&mut self) {
        for (token, answer) in self.coordinator.take_answers() {
            assert!(self.answers.insert(token, answer).is_none(), "token {token} was answered twice");
        }
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(at) = self.coordinator.next_deadline().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.coordinator.poll(self.now);
            self.collect();
        }
        self.now = until;
    }

    fn join_with(&mut self, change: impl FnOnce(&mut Join)) -> Token {
        self.next_token += 1;
        let mut join = Join {
            group: "g".into(),
            client_id: "c".into(),
            session_timeout: SESSION,
            rebalance_timeout: REBALANCE,
            protocol_type: "consumer".into(),
            protocols: vec![("range".into(), Bytes::from_static(b"m"))],
            ..Join::default()
        };
        change(&mut join);
        self.coordinator.join(self.now, self.next_token, join);
        self.collect();
        self.next_token
    }

    fn join(&mut self, member_id: &str) -> Token {
        self.join_with(|join| join.member_id = member_id.into())
    }

    fn joined(&self, token: Token) -> Joined {
        match self.answers.get(&token) {
            Some(Answer::Join(joined)) => joined.clone(),
            other => panic!("token {token} has {other:?}"),
        }
    }

    fn waits(&self, token: Token) -> bool {
        !self.answers.contains_key(&token)
    }

    fn sync(&mut self, member: &Joined, assignments: &[(&str, &'static str)]) -> Token {
        self.next_token += 1;
        let caller = Caller {
            group: "g".into(),
            generation: member.generation,
            member_id: member.member_id.clone(),
            instance_id: None,
        };
        let assignments =
            assignments.iter().map(|(id, text)| ((*id).to_owned(), Bytes::from_static(text.as_bytes())));
        let sync = Sync { caller, protocol_type: None, protocol: None, assignments: assignments.collect() };
        self.coordinator.sync(self.now, self.next_token, sync);
        self.collect();
        self.next_token
    }

    fn synced(&self, token: Token) -> Result<Bytes, ResponseError> {
        match self.answers.get(&token) {
            Some(Answer::Sync(synced)) => synced.clone().map(|synced| synced.assignment),
            other => panic!("token {token} has {other:?}"),
        }
    }

    fn heartbeat(&mut self, member: &Joined) -> Result<(), ResponseError> {
        let caller = Caller {
            group: "g".into(),
            generation: member.generation,
            member_id: member.member_id.clone(),
            instance_id: None,
        };
        let result = self.coordinator.heartbeat(self.now, &caller);
        self.collect();
        result
    }

    fn leave(&mut self, member_id: &str, instance_id: Option<&str>) -> Result<String, ResponseError> {
        let caller = Caller {
            group: "g".into(),
            generation: -1,
            member_id: member_id.into(),
            instance_id: instance_id.map(Into::into),
        };
        let result = self.coordinator.leave(self.now, &caller);
        self.collect();
        result
    }

    /// Two members in a stable group: the leader first.
    fn pair(&mut self) -> (Joined, Joined) {
        let first = self.join("");
        let first = self.joined(first);
        let second = self.join("");
        assert!(self.waits(second), "the second has to wait for the first to join again");
        assert_eq!(self.heartbeat(&first), Err(ResponseError::RebalanceInProgress));
        let again = self.join(&first.member_id);
        let (leader, follower) = (self.joined(again), self.joined(second));
        assert_eq!(leader.leader, leader.member_id);
        assert_eq!(leader.members.len(), 2);
        assert!(follower.members.is_empty());
        let waiting = self.sync(&follower, &[]);
        assert!(self.waits(waiting));
        let assignments = [(leader.member_id.as_str(), "one"), (follower.member_id.as_str(), "two")];
        let done = self.sync(&leader, &assignments);
        assert_eq!(self.synced(done), Ok(Bytes::from_static(b"one")));
        assert_eq!(self.synced(waiting), Ok(Bytes::from_static(b"two")));
        (leader, follower)
    }
}

#[test]
fn two_members_share_a_generation_and_get_their_assignments() {
    let mut world = World::new();
    let (leader, follower) = world.pair();
    assert_eq!(leader.generation, follower.generation);
    assert_eq!(world.heartbeat(&leader), Ok(()));
    assert_eq!(world.heartbeat(&follower), Ok(()));
}

#[test]
fn a_new_member_is_sent_back_for_its_id_and_forgotten_if_it_does_not_return() {
    let mut world = World::new();
    let refused = world.join_with(|join| join.requires_member_id = true);
    let refused = world.joined(refused);
    assert_eq!(refused.error, Some(ResponseError::MemberIdRequired));
    assert!(!refused.member_id.is_empty());
    world.pass(SESSION + Duration::from_secs(1));
    let late = world.join(&refused.member_id);
    assert_eq!(world.joined(late).error, Some(ResponseError::UnknownMemberId));
}

#[test]
fn a_silent_member_is_removed_and_the_other_takes_over() {
    let mut world = World::new();
    let (leader, follower) = world.pair();
    for _ in 0..3 {
        world.pass(SESSION / 2);
        let heard = world.heartbeat(&follower);
        assert!(heard.is_ok() || heard == Err(ResponseError::RebalanceInProgress), "{heard:?}");
    }
    assert_eq!(world.heartbeat(&leader), Err(ResponseError::UnknownMemberId));
    let again = world.join(&follower.member_id);
    let again = world.joined(again);
    assert_eq!((again.leader.as_str(), again.members.len()), (follower.member_id.as_str(), 1));
}

#[test]
fn a_member_that_does_not_rejoin_in_time_is_left_behind() {
    let mut world = World::new();
    let (leader, follower) = world.pair();
    let third = world.join("");
    let again = world.join(&follower.member_id);
    for _ in 0..4 {
        world.pass(REBALANCE / 5);
        assert_eq!(world.heartbeat(&leader), Err(ResponseError::RebalanceInProgress));
    }
    assert!(world.waits(third) && world.waits(again));
    world.pass(REBALANCE / 5 + Duration::from_secs(1));
    let members = [world.joined(third), world.joined(again)];
    assert!(
        members.iter().all(|member| member.error.is_none() && member.generation == leader.generation + 1)
    );
    assert_eq!(world.heartbeat(&leader), Err(ResponseError::UnknownMemberId));
}

#[test]
fn a_leader_that_never_syncs_is_removed_after_the_rebalance_timeout() {
    let mut world = World::new();
    let first = world.join("");
    let first = world.joined(first);
    for _ in 0..REBALANCE.as_secs() / 5 {
        world.pass(Duration::from_secs(5));
        let _ = world.heartbeat(&first);
    }
    world.pass(Duration::from_secs(1));
    assert_eq!(world.heartbeat(&first), Err(ResponseError::UnknownMemberId));
}

#[test]
fn a_static_member_that_comes_back_keeps_its_assignment_without_a_rebalance() {
    let mut world = World::new();
    let first = world.join_with(|join| join.instance_id = Some("i".into()));
    let first = world.joined(first);
    let done = world.sync(&first, &[(&first.member_id, "mine")]);
    assert!(world.synced(done).is_ok());
    let back = world.join_with(|join| {
        join.instance_id = Some("i".into());
        join.supports_skip_assignment = true;
    });
    let back = world.joined(back);
    assert_eq!((back.error, back.generation, back.skip_assignment), (None, first.generation, true));
    assert_ne!(back.member_id, first.member_id);
    let assignment = world.sync(&back, &[]);
    assert_eq!(world.synced(assignment), Ok(Bytes::from_static(b"mine")));
    let fenced = world.join_with(|join| {
        join.instance_id = Some("i".into());
        join.member_id.clone_from(&first.member_id);
    });
    assert_eq!(world.joined(fenced).error, Some(ResponseError::FencedInstanceId));
    assert_eq!(world.leave("", Some("i")), Ok(back.member_id));
    assert!(world.coordinator.groups()["g"].is_empty());
}

#[test]
fn a_static_member_that_comes_back_with_another_subscription_keeps_its_assignment_too() {
    for supports_skip_assignment in [false, true] {
        let mut world = World::new();
        let first = world.join_with(|join| join.instance_id = Some("i".into()));
        let first = world.joined(first);
        let done = world.sync(&first, &[(&first.member_id, "mine")]);
        assert!(world.synced(done).is_ok());
        let changed = Bytes::from_static(b"other topics");
        let back = world.join_with(|join| {
            join.instance_id = Some("i".into());
            join.protocols = vec![("range".into(), changed.clone())];
            join.supports_skip_assignment = supports_skip_assignment;
        });
        let back = world.joined(back);
        assert_eq!((back.error, back.generation), (None, first.generation));
        assert_eq!(
            back.leader == back.member_id,
            supports_skip_assignment,
            "an older leader is not told that it leads"
        );
        let assignment = world.sync(&back, &[]);
        assert_eq!(world.synced(assignment), Ok(Bytes::from_static(b"mine")));
        // Joined again under its new id, as the leader, it starts a rebalance.
        let again = world.join_with(|join| {
            join.instance_id = Some("i".into());
            join.member_id.clone_from(&back.member_id);
            join.protocols = vec![("range".into(), changed)];
        });
        let again = world.joined(again);
        assert_eq!((again.error, again.generation), (None, first.generation + 1));
        assert_eq!((again.leader.as_str(), again.skip_assignment), (again.member_id.as_str(), false));
    }
}

#[test]
fn a_member_with_other_assignors_is_refused() {
    let mut world = World::new();
    world.pair();
    let other = world.join_with(|join| join.protocols = vec![("sticky".into(), Bytes::new())]);
    assert_eq!(world.joined(other).error, Some(ResponseError::InconsistentGroupProtocol));
    let other = world.join_with(|join| join.protocol_type = "connect".into());
    assert_eq!(world.joined(other).error, Some(ResponseError::InconsistentGroupProtocol));
}

#[test]
fn commits_are_checked_against_generation_and_state() {
    let mut world = World::new();
    let now = world.now;
    let caller = |generation, member: &str| Caller {
        group: "g".into(),
        generation,
        member_id: member.into(),
        instance_id: None,
    };
    assert!(
        world.coordinator.check_commit(now, &caller(-1, "")).is_ok(),
        "an empty group stores offsets for anyone"
    );
    let (leader, follower) = world.pair();
    let mut check = |generation, member: &str| {
        world.coordinator.check_commit(now, &caller(generation, member)).map(|_| ())
    };
    assert_eq!(check(leader.generation, &leader.member_id), Ok(()));
    assert_eq!(check(leader.generation - 1, &leader.member_id), Err(ResponseError::IllegalGeneration));
    assert_eq!(check(leader.generation, "nobody"), Err(ResponseError::UnknownMemberId));
    assert_eq!(check(-1, ""), Err(ResponseError::UnknownMemberId));
    world.join(&leader.member_id);
    let rejoined = world.join(&follower.member_id);
    let generation = world.joined(rejoined).generation;
    let in_between = world.coordinator.check_commit(now, &caller(generation, &leader.member_id)).map(|_| ());
    assert_eq!(in_between, Err(ResponseError::RebalanceInProgress));
}

/// Members that join, sync, heartbeat, fall silent and leave in any order: whoever keeps to the protocol ends
/// in one stable group.
#[test]
fn whatever_happened_before_those_who_stay_end_in_one_stable_generation() {
    for seed in 0..300 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut world = World::new();
        let mut members: Vec<(Joined, Option<Token>)> = Vec::new();
        for _ in 0..60 {
            match random.random_range(0..6) {
                0 => {
                    let token = world.join("");
                    members.push((Joined::failed(ResponseError::UnknownServerError, ""), Some(token)));
                }
                1 if !members.is_empty() => {
                    members.swap_remove(random.random_range(0..members.len()));
                }
                2 if !members.is_empty() => {
                    let (gone, _) = members.swap_remove(random.random_range(0..members.len()));
                    let _ = world.leave(&gone.member_id, None);
                }
                3 => world.pass(Duration::from_millis(random.random_range(0..20_000))),
                _ => step(&mut world, &mut members),
            }
        }
        for _ in 0..400 {
            step(&mut world, &mut members);
            world.pass(Duration::from_secs(1));
        }
        let group = world.coordinator.groups().get("g");
        let in_group = group.map_or(0, |group| group.members().len());
        assert_eq!(in_group, members.len(), "seed {seed}");
        if members.is_empty() {
            continue;
        }
        let group = group.expect("there are members");
        assert_eq!(group.state, State::Stable, "seed {seed}");
        for (member, _) in &members {
            assert_eq!(member.generation, group.generation, "seed {seed}");
            assert!(group.members().contains_key(&member.member_id), "seed {seed}");
        }
    }
}

/// Everybody does what the protocol wants next.
fn step(world: &mut World, members: &mut [(Joined, Option<Token>)]) {
    for (member, waiting) in members {
        if let Some(token) = *waiting {
            match world.answers.get(&token) {
                None => {}
                Some(Answer::Join(joined)) if joined.error.is_none() => {
                    *member = joined.clone();
                    let ids: Vec<_> = joined.members.iter().map(|(id, _, _)| (id.clone(), "a")).collect();
                    let assignments: Vec<_> = ids.iter().map(|(id, text)| (id.as_str(), *text)).collect();
                    *waiting = Some(world.sync(&member.clone(), &assignments));
                }
                Some(Answer::Sync(Ok(_))) => *waiting = None,
                Some(
                    Answer::Join(Joined { error: Some(ResponseError::UnknownMemberId), .. })
                    | Answer::Sync(Err(ResponseError::UnknownMemberId)),
                ) => *waiting = Some(world.join("")),
                Some(_) => *waiting = Some(world.join(&member.member_id.clone())),
            }
            continue;
        }
        match world.heartbeat(&member.clone()) {
            Ok(()) => {}
            Err(ResponseError::UnknownMemberId) => *waiting = Some(world.join("")),
            Err(_) => *waiting = Some(world.join(&member.member_id.clone())),
        }
    }
}
