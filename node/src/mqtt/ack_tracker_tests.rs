//! The tracker by hand, and by seeds against what the standard promises.

use std::collections::BTreeMap;

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};

use super::*;

fn one(first: u64) -> SequenceRange {
    SequenceRange { first, count: 1 }
}

#[test]
fn acknowledgements_leave_in_the_order_of_the_publications() {
    let mut tracker = AckTracker::default();
    let first = tracker.begin_at_least_once(10);
    tracker.ticket_taken(first);
    tracker.dispatched(first, true);
    let second = tracker.begin_at_least_once(11);
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
    let sequence = tracker.begin_at_least_once(1);
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
    let sequence = tracker.begin_at_least_once(1);
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
                        tracker.begin_at_least_once(identifier)
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
                40..=84 => {
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
