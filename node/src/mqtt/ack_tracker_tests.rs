//! The tracker by hand, and by seeds against what the standard promises.

use std::collections::BTreeMap;

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};

use super::*;

fn one(first: u64) -> SequenceRange {
    SequenceRange { first, count: 1 }
}

fn at_least_once(tracker: &mut AckTracker, identifier: u16) -> u64 {
    match tracker.begin_at_least_once(identifier, false) {
        AtLeastOnce::New(sequence) => sequence,
        AtLeastOnce::Repeated => panic!("without DUP it is another publication"),
    }
}

#[test]
fn acknowledgements_leave_in_the_order_of_the_publications() {
    let mut tracker = AckTracker::default();
    let first = at_least_once(&mut tracker, 10);
    tracker.ticket_taken(first);
    tracker.dispatched(first, true);
    let second = at_least_once(&mut tracker, 11);
    tracker.dispatched(second, false);
    assert_eq!(tracker.release(), None, "the first is held, so is the second");
    tracker.complete(one(first), Outcome::Success);
    let release = |identifier, reason| Some(Release { kind: AckKind::PubAck, identifier, reason });
    assert_eq!(tracker.release(), release(10, ReasonCode::Success));
    assert_eq!(tracker.release(), release(11, ReasonCode::NoMatchingSubscribers));
    assert_eq!(tracker.release(), None);
    assert_eq!((tracker.outstanding(), tracker.held()), (0, 0));
}

#[test]
fn the_worst_outcome_is_the_answer() {
    let mut tracker = AckTracker::default();
    let sequence = at_least_once(&mut tracker, 1);
    for _ in 0..3 {
        tracker.ticket_taken(sequence);
    }
    tracker.done_at_once(sequence, Outcome::Success);
    tracker.dispatched(sequence, true);
    tracker.complete(one(sequence), Outcome::Success);
    tracker.complete(one(sequence), Outcome::Failed(ReasonCode::QuotaExceeded));
    assert_eq!(tracker.release(), None);
    tracker.complete(one(sequence), Outcome::Failed(ReasonCode::UnspecifiedError));
    assert_eq!(tracker.release().unwrap().reason, ReasonCode::QuotaExceeded);
}

#[test]
fn a_publication_completes_only_when_its_dispatch_is_over() {
    let mut tracker = AckTracker::default();
    let sequence = at_least_once(&mut tracker, 1);
    tracker.ticket_taken(sequence);
    tracker.complete(one(sequence), Outcome::Success);
    assert_eq!(tracker.release(), None, "another sink is still to be asked");
    tracker.dispatched(sequence, true);
    assert!(tracker.release().is_some());
}

#[test]
fn a_repeated_qos_2_publication_waits_for_the_first() {
    let mut tracker = AckTracker::default();
    let ExactlyOnce::New(sequence) = tracker.begin_exactly_once(7) else { panic!("repeated") };
    tracker.ticket_taken(sequence);
    tracker.dispatched(sequence, true);
    assert_eq!(tracker.released(7), Released::TooEarly);
    tracker.disconnected();
    assert_eq!(tracker.begin_exactly_once(7), ExactlyOnce::Repeated);
    assert_eq!(tracker.release(), None);
    tracker.complete(one(sequence), Outcome::Success);
    assert_eq!(tracker.release().unwrap().kind, AckKind::PubRec);
    assert_eq!(tracker.released(7), Released::Known);
    assert_eq!(tracker.released(7), Released::Unknown);
    assert!(matches!(tracker.begin_exactly_once(7), ExactlyOnce::New(_)));
}

#[test]
fn a_repeated_qos_1_publication_waits_for_the_first_through_reconnects() {
    let mut tracker = AckTracker::default();
    let [first, second, third] = [1, 2, 3].map(|identifier| {
        let sequence = at_least_once(&mut tracker, identifier);
        tracker.ticket_taken(sequence);
        tracker.dispatched(sequence, true);
        sequence
    });
    assert!(tracker.is_under_way(2) && !tracker.is_under_way(4));
    // Complete, and its PUBACK behind that of the first.
    tracker.complete(one(third), Outcome::Failed(ReasonCode::QuotaExceeded));
    for _ in 0..2 {
        tracker.disconnected();
        assert!(!tracker.is_under_way(1));
        for identifier in [1, 2, 3] {
            assert_eq!(tracker.begin_at_least_once(identifier, true), AtLeastOnce::Repeated);
        }
        assert!(tracker.is_under_way(1));
        assert_eq!((tracker.outstanding(), tracker.release()), (3, None));
    }
    tracker.complete(one(first), Outcome::Success);
    let release = |identifier, reason| Some(Release { kind: AckKind::PubAck, identifier, reason });
    assert_eq!(tracker.release(), release(1, ReasonCode::Success));
    assert_eq!(tracker.release(), None);
    // What is without DUP is another publication, and the end of the earlier one says nothing about it.
    tracker.disconnected();
    let other = at_least_once(&mut tracker, 2);
    tracker.ticket_taken(other);
    tracker.dispatched(other, true);
    tracker.complete(one(second), Outcome::Success);
    assert_eq!(tracker.begin_at_least_once(3, true), AtLeastOnce::Repeated);
    assert_eq!(tracker.release(), None);
    tracker.complete(one(other), Outcome::Success);
    assert_eq!(tracker.release(), release(2, ReasonCode::Success));
    assert_eq!(tracker.release(), release(3, ReasonCode::QuotaExceeded));
    assert_eq!((tracker.outstanding(), tracker.held()), (0, 0));
    assert!(tracker.earlier.is_empty() && tracker.orphans.is_empty());
}

#[test]
fn an_abandoned_publication_may_come_again() {
    let mut tracker = AckTracker::default();
    let ExactlyOnce::New(sequence) = tracker.begin_exactly_once(7) else { panic!("repeated") };
    tracker.abandon(sequence, false);
    tracker.disconnected();
    assert!(matches!(tracker.begin_exactly_once(7), ExactlyOnce::New(_)));
}

#[test]
fn an_abandoned_repetition_for_sinks_may_come_again_for_them_alone() {
    let mut tracker = AckTracker::default();
    tracker.restore(&[(7, true)]);
    let ExactlyOnce::Sinks(sequence) = tracker.begin_exactly_once(7) else { panic!("sinks need it") };
    tracker.abandon(sequence, true);
    tracker.disconnected();
    assert!(matches!(tracker.begin_exactly_once(7), ExactlyOnce::Sinks(_)));
}

/// What the test's client and sinks know.
#[derive(Default)]
struct World {
    /// Publications of this connection in order, without their acknowledgement yet.
    expected: VecDeque<(u16, bool)>,
    /// Tickets that sinks hold, by sequence.
    tickets: BTreeMap<u64, u32>,
    /// QoS 2 identifiers with their sequence, until PUBREL.
    exactly_once: BTreeMap<u16, u64>,
    /// QoS 1 identifiers with their sequence, until PUBACK.
    at_least_once: BTreeMap<u16, u64>,
    /// QoS 2 identifiers for which PUBREC arrived.
    received: Vec<u16>,
    dispatches: BTreeMap<u64, u32>,
}

fn identifier(random: &mut impl Rng, in_use: impl Fn(u16) -> bool) -> Option<u16> {
    (0..10).map(|_| random.random_range(1..40)).find(|identifier| !in_use(*identifier))
}

/// Random publications, completions, repetitions, releases and reconnects.
#[test]
fn random_interleavings_keep_the_promises() {
    for round in 0..200 {
        let seed: u64 = rand::random();
        let mut random = StdRng::seed_from_u64(seed);
        let mut tracker = AckTracker::default();
        let mut world = World::default();
        for _ in 0..400 {
            match random.random_range(0..100) {
                0..=29 => {
                    let in_use = |identifier| world.expected.iter().any(|(known, _)| *known == identifier);
                    let taken =
                        |identifier| in_use(identifier) || world.exactly_once.contains_key(&identifier);
                    let Some(identifier) = identifier(&mut random, taken) else { continue };
                    let exactly_once = random.random_bool(0.5);
                    let sequence = if exactly_once {
                        let begun = tracker.begin_exactly_once(identifier);
                        let ExactlyOnce::New(sequence) = begun else {
                            panic!("identifier {identifier} is free, seed {seed}")
                        };
                        sequence
                    } else {
                        let sequence = at_least_once(&mut tracker, identifier);
                        world.at_least_once.insert(identifier, sequence);
                        sequence
                    };
                    for _ in 0..random.random_range(0..3) {
                        tracker.ticket_taken(sequence);
                        *world.tickets.entry(sequence).or_default() += 1;
                    }
                    tracker.dispatched(sequence, true);
                    *world.dispatches.entry(sequence).or_default() += 1;
                    if exactly_once {
                        world.exactly_once.insert(identifier, sequence);
                    }
                    world.expected.push_back((identifier, exactly_once));
                }
                30..=39 => {
                    let mut known: Vec<_> = world.exactly_once.keys().copied().collect();
                    known.shuffle(&mut random);
                    if let Some(identifier) = known.first() {
                        let begun = tracker.begin_exactly_once(*identifier);
                        assert_eq!(begun, ExactlyOnce::Repeated, "seed {seed}");
                        world.expected.push_back((*identifier, true));
                    }
                }
                40..=49 => {
                    let in_use = |identifier| world.expected.iter().any(|(known, _)| *known == identifier);
                    let mut known: Vec<_> = world.at_least_once.keys().copied().collect();
                    known.retain(|known| !in_use(*known) && !world.exactly_once.contains_key(known));
                    known.shuffle(&mut random);
                    if let Some(identifier) = known.first() {
                        let begun = tracker.begin_at_least_once(*identifier, true);
                        assert_eq!(begun, AtLeastOnce::Repeated, "seed {seed}");
                        world.expected.push_back((*identifier, false));
                    }
                }
                50..=84 => {
                    let known: Vec<_> = world.tickets.keys().copied().collect();
                    if known.is_empty() {
                        continue;
                    }
                    let sequence = known[random.random_range(0..known.len())];
                    tracker.complete(one(sequence), Outcome::Success);
                    let left = world.tickets.get_mut(&sequence).unwrap();
                    *left -= 1;
                    if *left == 0 {
                        world.tickets.remove(&sequence);
                    }
                }
                85..=94 => {
                    world.received.shuffle(&mut random);
                    if let Some(identifier) = world.received.pop() {
                        let repeated = world.expected.iter().any(|(known, _)| *known == identifier);
                        if repeated {
                            world.received.push(identifier);
                            continue;
                        }
                        assert_eq!(tracker.released(identifier), Released::Known, "seed {seed}");
                        world.exactly_once.remove(&identifier);
                    }
                }
                _ => {
                    tracker.disconnected();
                    world.expected.clear();
                }
            }
            while let Some(release) = tracker.release() {
                let (identifier, exactly_once) =
                    world.expected.pop_front().expect("an answer nobody waits for");
                assert_eq!(release.identifier, identifier, "out of order, seed {seed}");
                let kind = if exactly_once { AckKind::PubRec } else { AckKind::PubAck };
                assert_eq!(release.kind, kind, "seed {seed}");
                if !exactly_once {
                    let sequence = world.at_least_once.remove(&identifier).unwrap();
                    assert!(!world.tickets.contains_key(&sequence), "before it is complete, seed {seed}");
                }
                if exactly_once {
                    let sequence = world.exactly_once[&identifier];
                    assert!(!world.tickets.contains_key(&sequence), "before it is complete, seed {seed}");
                    if !world.received.contains(&identifier) {
                        world.received.push(identifier);
                    }
                }
            }
        }
        // When every sink has answered, nothing is held any more.
        for (sequence, count) in std::mem::take(&mut world.tickets) {
            for _ in 0..count {
                tracker.complete(one(sequence), Outcome::Success);
            }
        }
        while tracker.release().is_some() {
            world.expected.pop_front();
        }
        assert!(world.expected.is_empty() && tracker.held() == 0, "seed {seed}, round {round}");
        assert!(tracker.orphans.is_empty(), "seed {seed}");
        assert!(world.dispatches.values().all(|count| *count == 1), "seed {seed}");
        assert!(world.exactly_once.keys().all(|identifier| tracker.knows(*identifier)), "seed {seed}");
    }
}

#[test]
fn what_a_store_had_is_not_dispatched_twice() {
    let mut tracker = AckTracker::default();
    tracker.restore(&[(5, false), (6, true)]);
    assert_eq!(tracker.begin_exactly_once(5), ExactlyOnce::Repeated);
    let release = |identifier| Release { kind: AckKind::PubRec, identifier, reason: ReasonCode::Success };
    assert_eq!(tracker.release(), Some(release(5)));
    assert_eq!(tracker.released(5), Released::Known);
    let ExactlyOnce::Sinks(sequence) = tracker.begin_exactly_once(6) else { panic!("sinks need it") };
    tracker.dispatched(sequence, true);
    assert_eq!(tracker.release(), Some(release(6)));
    assert_eq!((tracker.released(6), tracker.released(6)), (Released::Known, Released::Unknown));
}
