//! Single transitions. Whole groups are in [`simulation`].

use super::super::topics::Start;
use super::*;
use crate::kafka::client::Backoff;

const AT_5: Position = Position { start: Start::At(5), topic_id: [0; 16] };

#[path = "simulation.rs"]
mod simulation;

fn settings(instance: Option<&str>) -> Settings {
    Settings {
        group_id: Arc::from("g"),
        instance_id: instance.map(Arc::from),
        former_instance_id: None,
        topics: vec![Arc::from("t")],
        session_timeout: Duration::from_secs(30),
        rebalance_timeout: Duration::from_secs(30),
        heartbeat_interval: Duration::from_secs(5),
        rejoin_backoff: Backoff { first: Duration::from_secs(1), max: Duration::from_secs(5) },
        leader_patience: Duration::from_secs(10),
        max_rejoin_attempts: 5,
    }
}

/// What Kafka tells of topic `t`.
fn topics(count: i32) -> Event {
    Event::Topics(BTreeMap::from([(Arc::from("t"), count)]))
}

/// A group in which each of these members reads topic `t` and has these partitions.
fn described(members: &[(&str, Option<&str>, &[i32])]) -> Described {
    let members = members.iter().map(|(id, instance, held)| DescribedMember {
        member_id: StrBytes::from_string((*id).to_owned()),
        instance_id: instance.map(|instance| StrBytes::from_string(instance.to_owned())),
        subscription: encode_subscription(&[Arc::from("t")], &[], 0),
        assignment: encode_assignment(&partitions(held)),
    });
    Described { stable: true, members: members.collect() }
}

fn describe(group: &mut Group, members: &[(&str, Option<&str>, &[i32])], now: Instant) -> Vec<Action> {
    let answer = Ok(described(members));
    group.handle(Event::Described { attempt: group.attempt(), answer }, now)
}

/// Brings a member to its first join.
fn joining(instance: Option<&str>, now: Instant) -> Group {
    let mut group = Group::new(settings(instance), now);
    assert_eq!(group.handle(Event::Tick, now), [Action::FindCoordinator]);
    let actions = group.handle(Event::Coordinator(Ok((7, 9))), now);
    assert!(matches!(&actions[..], [Action::Join { coordinator: 7, .. }]), "{actions:?}");
    group
}

/// Takes a member from a join that was answered to its partitions, which the coordinator has from before.
fn back_with(group: &mut Group, held: &[i32], leads: bool, now: Instant) -> Vec<Action> {
    let me = StrBytes::from_static_str("me");
    let joined = Joined {
        generation: 4,
        member_id: me.clone(),
        leader: if leads { me.clone() } else { StrBytes::from_static_str("other") },
        members: if leads {
            vec![(me, None, encode_subscription(&[Arc::from("t")], &[], 0))]
        } else {
            vec![]
        },
        skip_assignment: leads,
    };
    let answer = JoinAnswer::Joined(joined);
    let actions = group.handle(Event::Join { attempt: group.attempt(), answer }, now);
    assert!(
        matches!(&actions[..], [Action::Sync { assignments, .. }] if assignments.is_empty()),
        "{actions:?}"
    );
    let assignment = Ok(encode_assignment(&partitions(held)));
    let actions = group.handle(Event::Sync { attempt: group.attempt(), assignment }, now);
    assert!(matches!(&actions[..], [Action::FetchOffsets { .. }, Action::Describe { .. }]), "{actions:?}");
    let offsets = partitions(held).into_iter().map(|partition| (partition, AT_5)).collect();
    group.handle(Event::Offsets { attempt: group.attempt(), offsets: Ok(offsets) }, now)
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
    assert!(matches!(&actions[..], [Action::FetchOffsets { .. }, Action::Describe { .. }]), "{actions:?}");
    let offsets = partitions(&[0, 1]).into_iter().map(|partition| (partition, AT_5)).collect();
    let actions = group.handle(Event::Offsets { attempt: group.attempt(), offsets: Ok(offsets) }, now);
    assert!(matches!(&actions[..], [Action::Assign { generation: 1, .. }]), "{actions:?}");
    assert_eq!(group.handle(topics(3), now), []);
    assert!(matches!(group.standing(), Standing::Joining(_)), "nothing is known of the group yet");
    assert_eq!(describe(&mut group, &[("me", instance, &[0, 1]), ("other", None, &[2])], now), []);
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
fn a_fenced_static_member_says_why_and_joins_again_when_its_id_is_free() {
    let mut now = Instant::now();
    let mut group = stable(Some("node-1"), now);
    assert_eq!(group.identity().instance_id.as_deref(), Some("node-1"));
    assert_eq!(beat(&mut group, Err(code(ResponseError::FencedInstanceId)), now), [Action::Lose]);
    assert_eq!(group.setbacks(), 1);
    // It looks again and again, in vain at first, in every form in which coordinators tell who is there.
    let by_id = format!("node-1-{}", "0".repeat(36));
    for other in [("them", Some("node-1")), (by_id.as_str(), None)] {
        let Standing::Out(reason) = group.standing() else { panic!("{:?}", group.standing()) };
        assert!(reason.contains("node-1") && reason.contains("fenced"), "{reason}");
        assert_eq!(group.handle(Event::Tick, now), []);
        now = group.next_deadline().unwrap();
        assert!(matches!(&group.handle(Event::Tick, now)[..], [Action::Describe { .. }]));
        assert_eq!(describe(&mut group, &[(other.0, other.1, &[0, 1, 2])], now), []);
    }
    assert_eq!(group.setbacks(), 3);
    // Looking does not work either.
    now = group.next_deadline().unwrap();
    assert!(matches!(&group.handle(Event::Tick, now)[..], [Action::Describe { .. }]));
    let lost = Err(Failure::Lost("gone".to_owned()));
    assert_eq!(group.handle(Event::Described { attempt: group.attempt(), answer: lost }, now), []);
    now = group.next_deadline().unwrap();
    assert_eq!(group.handle(Event::Tick, now), [Action::FindCoordinator]);
    group.handle(Event::Coordinator(Ok((8, 9))), now);
    // Members with similar ids are not in the way.
    now = group.next_deadline().unwrap().max(now);
    assert!(matches!(&group.handle(Event::Tick, now)[..], [Action::Describe { coordinator: 8, .. }]));
    let actions = describe(&mut group, &[("node-1-short", None, &[0]), ("x", Some("node-10"), &[1, 2])], now);
    assert!(
        matches!(&actions[..], [Action::Join { identity, .. }] if identity.member_id.is_empty()),
        "{actions:?}"
    );
}

#[test]
fn a_fenced_member_stops_without_leaving_for_the_other_one() {
    let now = Instant::now();
    let mut group = stable(Some("node-1"), now);
    beat(&mut group, Err(code(ResponseError::FencedInstanceId)), now);
    assert_eq!(group.handle(Event::Stop { leave: true }, now), [Action::Stopped]);
}

#[test]
fn the_member_of_an_earlier_release_is_removed_once_before_the_first_join() {
    let mut now = Instant::now();
    let settings = Settings { former_instance_id: Some(Arc::from("old")), ..settings(Some("new")) };
    let mut group = Group::new(settings, now);
    group.handle(Event::Tick, now);
    let actions = group.handle(Event::Coordinator(Ok((7, 9))), now);
    assert!(
        matches!(&actions[..], [Action::RemoveFormer { instance_id, coordinator: 7, .. }] if &**instance_id == "old"),
        "{actions:?}"
    );
    // The coordinator moved meanwhile: the next one is asked.
    let result = Err(code(ResponseError::NotCoordinator));
    assert_eq!(group.handle(Event::FormerRemoved { attempt: group.attempt(), result }, now), []);
    now += Duration::from_secs(10);
    assert_eq!(group.handle(Event::Tick, now), [Action::FindCoordinator]);
    let actions = group.handle(Event::Coordinator(Ok((8, 9))), now);
    assert!(matches!(&actions[..], [Action::RemoveFormer { coordinator: 8, .. }]), "{actions:?}");
    let result = Err(code(ResponseError::UnknownMemberId));
    let actions = group.handle(Event::FormerRemoved { attempt: group.attempt(), result }, now);
    assert!(matches!(&actions[..], [Action::Join { .. }]), "{actions:?}");
    // Not a second time.
    let answer = JoinAnswer::Failed(code(ResponseError::UnknownMemberId));
    group.handle(Event::Join { attempt: group.attempt(), answer }, now);
    let actions = group.handle(Event::Tick, now + Duration::from_mins(1));
    assert!(matches!(&actions[..], [Action::Join { .. }]), "{actions:?}");
}

#[test]
fn a_member_that_comes_back_to_an_assignment_without_a_partition_makes_the_group_assign_anew() {
    for leads in [true, false] {
        let now = Instant::now();
        let mut group = joining(Some("node-1"), now);
        group.handle(topics(3), now);
        let actions = back_with(&mut group, &[0, 1], leads, now);
        assert!(matches!(&actions[..], [Action::Assign { .. }]), "{actions:?}");
        assert!(matches!(group.standing(), Standing::Joining(_)), "{:?}", group.standing());
        let attempt = group.attempt();
        let actions = describe(&mut group, &[("me", Some("node-1"), &[0, 1])], now);
        assert_eq!(actions, [Action::Revoke { attempt }], "leads: {leads}");
        let actions = group.handle(Event::Revoked { attempt }, now);
        let [Action::Join { identity, subscription, .. }] = &actions[..] else { panic!("{actions:?}") };
        // The id makes it a rebalance for a leader, the changed subscription for a follower.
        assert_eq!(&*identity.member_id, "me");
        assert_ne!(*subscription, encode_subscription(&[Arc::from("t")], &[], 0));
        assert_ne!(*subscription, encode_subscription(&[Arc::from("t")], &partitions(&[0, 1]), 0));
    }
}

#[test]
fn a_member_that_comes_back_to_a_complete_assignment_keeps_it() {
    for leads in [true, false] {
        let now = Instant::now();
        let mut group = joining(Some("node-1"), now);
        group.handle(topics(3), now);
        back_with(&mut group, &[0, 1], leads, now);
        assert_eq!(describe(&mut group, &[("me", Some("node-1"), &[0, 1]), ("other", None, &[2])], now), []);
        assert_eq!(group.standing(), Standing::Stable);
    }
}

#[test]
fn partitions_of_topics_that_a_member_no_longer_reads_are_given_to_the_others() {
    let now = Instant::now();
    let mut group = joining(Some("node-1"), now);
    group.handle(topics(1), now);
    let answer = JoinAnswer::Joined(Joined {
        generation: 4,
        member_id: StrBytes::from_static_str("me"),
        leader: StrBytes::from_static_str("other"),
        members: vec![],
        skip_assignment: false,
    });
    group.handle(Event::Join { attempt: group.attempt(), answer }, now);
    let both = [TopicPartition::new("former", 0), TopicPartition::new("t", 0)];
    let assignment = Ok(encode_assignment(&both));
    group.handle(Event::Sync { attempt: group.attempt(), assignment }, now);
    let offsets = vec![(TopicPartition::new("t", 0), AT_5)];
    let attempt = group.attempt();
    let actions = group.handle(Event::Offsets { attempt, offsets: Ok(offsets.clone()) }, now);
    assert_eq!(actions, [Action::Assign { generation: 4, partitions: offsets }]);
    assert_eq!(describe(&mut group, &[("me", Some("node-1"), &[0])], now), [Action::Revoke { attempt }]);
}

#[test]
fn a_follower_leaves_a_new_partition_to_the_leader_for_a_while_and_is_not_well_meanwhile() {
    let mut now = Instant::now();
    let mut group = stable(None, now);
    assert_eq!(group.handle(topics(4), now), []);
    let Standing::Joining(reason) = group.standing() else { panic!("{:?}", group.standing()) };
    assert!(reason.contains("t-3"), "{reason}");
    now += Duration::from_secs(9);
    group.handle(Event::Tick, now);
    beat(&mut group, Ok(()), now);
    now += Duration::from_secs(1);
    assert!(group.next_deadline().unwrap() <= now);
    let attempt = group.attempt();
    assert_eq!(group.handle(Event::Tick, now), [Action::Revoke { attempt }]);
}

#[test]
fn a_leader_assigns_a_new_partition_at_once() {
    let now = Instant::now();
    let mut group = joining(None, now);
    group.handle(topics(3), now);
    back_with(&mut group, &[0, 1, 2], true, now);
    describe(&mut group, &[("me", None, &[0, 1, 2])], now);
    assert_eq!(group.standing(), Standing::Stable);
    let attempt = group.attempt();
    assert_eq!(group.handle(topics(4), now), [Action::Revoke { attempt }]);
}

#[test]
fn a_group_that_leaves_a_partition_out_is_asked_again_ever_more_rarely_and_then_that_is_said() {
    let mut now = Instant::now();
    let mut group = joining(Some("node-1"), now);
    group.handle(topics(3), now);
    let mut pauses = Vec::new();
    for _ in 0..6 {
        back_with(&mut group, &[0], false, now);
        let joined = now;
        let mut actions = describe(&mut group, &[("me", Some("node-1"), &[0]), ("other", None, &[1])], now);
        while !matches!(&actions[..], [.., Action::Revoke { .. }]) {
            now = group.next_deadline().unwrap();
            actions = group.handle(Event::Tick, now);
            actions.extend(beat(&mut group, Ok(()), now));
        }
        pauses.push(now - joined);
        let actions = group.handle(Event::Revoked { attempt: group.attempt() }, now);
        assert!(matches!(&actions[..], [Action::Join { .. }]), "{actions:?}");
    }
    assert_eq!(pauses[0], Duration::ZERO);
    assert!(pauses[5] > Duration::from_secs(10) && pauses[5] > pauses[3], "{pauses:?}");
    back_with(&mut group, &[0], false, now);
    describe(&mut group, &[("me", Some("node-1"), &[0]), ("other", None, &[1])], now);
    let Standing::Out(reason) = group.standing() else { panic!("{:?}", group.standing()) };
    assert!(reason.contains("t-2"), "{reason}");
    assert!(group.setbacks() > 1);
    // Assigned at last.
    let actions = beat(&mut group, Err(code(ResponseError::RebalanceInProgress)), now);
    assert!(matches!(&actions[..], [Action::Revoke { .. }]), "{actions:?}");
    group.handle(Event::Revoked { attempt: group.attempt() }, now);
    back_with(&mut group, &[0, 2], false, now);
    describe(&mut group, &[("me", Some("node-1"), &[0, 2]), ("other", None, &[1])], now);
    assert_eq!((group.standing(), group.setbacks()), (Standing::Stable, 0));
}

#[test]
fn a_coordinator_that_does_not_describe_the_group_is_believed_but_a_returning_leader_assigns_anew() {
    for leads in [true, false] {
        let now = Instant::now();
        let mut group = joining(Some("node-1"), now);
        group.handle(topics(3), now);
        back_with(&mut group, &[0, 1], leads, now);
        let attempt = group.attempt();
        let answer = Err(code(ResponseError::GroupAuthorizationFailed));
        let actions = group.handle(Event::Described { attempt, answer }, now);
        if leads {
            assert_eq!(actions, [Action::Revoke { attempt }]);
        } else {
            assert_eq!((actions, group.standing()), (vec![], Standing::Stable));
        }
    }
}

#[test]
fn a_rebalance_under_way_shows_no_assignment_to_compare() {
    let now = Instant::now();
    let mut group = joining(Some("node-1"), now);
    group.handle(topics(3), now);
    back_with(&mut group, &[0, 1], false, now);
    let answer = Ok(Described { stable: false, members: vec![] });
    assert_eq!(group.handle(Event::Described { attempt: group.attempt(), answer }, now), []);
    assert!(matches!(group.standing(), Standing::Joining(_)));
    let later = now + Duration::from_secs(5);
    let actions = group.handle(Event::Tick, later);
    assert!(matches!(&actions[..], [Action::Describe { .. }, Action::Heartbeat { .. }]), "{actions:?}");
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
