//! The core against a simulated broker that keeps Kafka's rules for idempotent producers, over a network that
//! loses, delays and repeats. Every schedule comes from one seed, which is printed when an invariant breaks.
//!
//! What the broker does follows `ProducerAppendInfo.checkSequence`, `ProducerStateEntry` and KIP-360: a
//! resend of one of the last five batches succeeds, another sequence than the next is refused, and a producer
//! id that it does not know may start anywhere.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque};

use super::*;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Sheaf {
    ids: Vec<u32>,
    stamp: BatchStamp,
    expires_at: Option<Instant>,
    /// Once, if it is to be restamped.
    remedy: Remedy,
}

/// Ids that the broker finds too large alone, or bad.
fn is_too_large(id: u32) -> bool {
    id % 41 == 7
}
fn is_bad(id: u32) -> bool {
    id % 43 == 11
}

impl Batch for Sheaf {
    type Wire = Self;

    fn records(&self) -> u32 {
        self.ids.len() as u32
    }

    fn weight(&self) -> usize {
        self.ids.len() * 100
    }

    fn expires_at(&self) -> Option<Instant> {
        self.expires_at
    }

    fn restamp(&mut self, stamp: BatchStamp) {
        self.stamp = stamp;
    }

    fn split(mut self) -> Result<(Self, Self), Self> {
        let second = self.ids.split_off(self.ids.len() / 2);
        let second = Self { ids: second, ..self };
        Ok((Self { ids: self.ids, ..second }, second))
    }

    fn mend_timestamps(&mut self) -> Remedy {
        if self.remedy == Remedy::Restamped {
            std::mem::replace(&mut self.remedy, Remedy::None)
        } else {
            self.remedy
        }
    }

    fn wire(&self) -> Self {
        self.clone()
    }
}

#[derive(Default)]
struct ProducerState {
    epoch: i16,
    /// (first, last) sequence of the newest five.
    recent: VecDeque<(i32, i32)>,
}

struct Request {
    attempt: u64,
    sheaf: Sheaf,
    broker: i32,
    connection: u64,
}

enum Event {
    /// The next record comes in.
    Publish,
    /// A request reaches the broker.
    Arrive(Request),
    /// A response reaches the producer.
    Answer {
        attempt: u64,
        broker: i32,
        connection: u64,
        code: i16,
    },
    /// An answer is given up for lost.
    GiveUp {
        attempt: u64,
    },
    Metadata,
    ProducerId,
    /// Seals are on the disk.
    Sealed {
        generation: u64,
    },
    Cut,
    MoveLeader,
    Tick,
}

/// What goes wrong, out of 1000 at each opportunity.
#[derive(Clone, Copy)]
struct Faults {
    error_before: u32,
    error_after: u32,
    lose_answer: u32,
    cuts: u32,
    moves: u32,
    bad_records: bool,
}

struct World {
    rng: SmallRng,
    start: Instant,
    now: u64,
    order: u64,
    events: BinaryHeap<(Reverse<(u64, u64)>, usize)>,
    store: Vec<Option<Event>>,
    core: PartitionCore<Sheaf>,
    idempotent: bool,
    faults: Faults,
    faults_until: u64,
    batch_limit: usize,
    broker_limit: usize,
    /// Before Kafka 2.5: an unknown producer id must start at 0.
    strict_start: bool,
    leader: i32,
    log: Vec<(Sheaf, bool)>,
    producers: HashMap<i64, ProducerState>,
    next_producer_id: i64,
    connections: BTreeMap<i32, u64>,
    outstanding: BTreeMap<u64, (i32, u64)>,
    last_arrival: BTreeMap<i32, u64>,
    last_answer: BTreeMap<i32, u64>,
    inbox: VecDeque<u32>,
    published: u32,
    done: BTreeMap<u32, bool>,
    possible_duplicates: u32,
    max_age: Option<u64>,
    expired: u32,
    retries_used_up: u32,
}

/// When batches are given up.
#[derive(Clone, Copy, Default)]
struct Patience {
    max_retries: Option<u32>,
    max_age_ms: Option<u64>,
}

impl World {
    fn new(seed: u64, idempotent: bool, faults: Faults) -> Self {
        Self::with_patience(seed, idempotent, faults, Patience::default())
    }

    fn with_patience(seed: u64, idempotent: bool, faults: Faults, patience: Patience) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let core = PartitionCore::new(Options {
            idempotent,
            max_in_flight: rng.random_range(1..=10),
            max_retries: patience.max_retries,
            stored: idempotent && seed % 2 == 1,
            seed: rng.random(),
        });
        let (batch_limit, broker_limit) = (rng.random_range(1..=9), rng.random_range(1..=9));
        let strict_start = rng.random_range(0..4) == 0;
        Self {
            rng,
            start: Instant::now(),
            now: 0,
            order: 0,
            events: BinaryHeap::new(),
            store: Vec::new(),
            core,
            idempotent,
            faults,
            faults_until: 3_000,
            batch_limit,
            broker_limit,
            strict_start,
            leader: 1,
            log: Vec::new(),
            producers: HashMap::new(),
            next_producer_id: 1000,
            connections: BTreeMap::new(),
            outstanding: BTreeMap::new(),
            last_arrival: BTreeMap::new(),
            last_answer: BTreeMap::new(),
            inbox: VecDeque::new(),
            published: 0,
            done: BTreeMap::new(),
            possible_duplicates: 0,
            max_age: patience.max_age_ms,
            expired: 0,
            retries_used_up: 0,
        }
    }

    fn at(&self) -> Instant {
        self.start + Duration::from_millis(self.now)
    }

    fn schedule(&mut self, at: u64, event: Event) {
        self.order += 1;
        self.store.push(Some(event));
        self.events.push((Reverse((at, self.order)), self.store.len() - 1));
    }

    fn later(&mut self, most: u64, event: Event) {
        let at = self.now + self.rng.random_range(0..=most);
        self.schedule(at, event);
    }

    fn unlucky(&mut self, per_thousand: u32) -> bool {
        self.now < self.faults_until && self.rng.random_range(0..1000) < per_thousand
    }

    fn run(mut self, records: u32) -> Self {
        for _ in 0..records {
            let at = self.rng.random_range(0..2_500);
            self.schedule(at, Event::Publish);
        }
        for at in (0..self.faults_until).step_by(100) {
            if self.unlucky(self.faults.cuts) {
                self.schedule(at + 3, Event::Cut);
            }
            if self.unlucky(self.faults.moves) {
                self.schedule(at + 7, Event::MoveLeader);
            }
        }
        self.schedule(1, Event::Metadata);
        self.turn();
        while let Some((Reverse((at, _)), place)) = self.events.pop() {
            assert!(at < 200_000, "nothing comes to rest");
            self.now = at;
            if let Some(event) = self.store[place].take() {
                self.handle(event);
                self.turn();
            }
        }
        self
    }

    fn handle(&mut self, event: Event) {
        let now = self.at();
        match event {
            Event::Publish => {
                self.inbox.push_back(self.published);
                self.published += 1;
            }
            Event::Arrive(request) => self.arrive(&request),
            Event::Answer { attempt, broker, connection, code } => {
                if self.connections.get(&broker).copied().unwrap_or(0) == connection {
                    self.outstanding.remove(&attempt);
                    self.core.answered(now, attempt, Answer::Code(code));
                }
            }
            Event::GiveUp { attempt } => {
                if let Some((broker, _)) = self.outstanding.get(&attempt).copied() {
                    self.cut(broker);
                }
            }
            Event::Metadata => {
                let leader = if self.unlucky(50) { None } else { Some(self.leader) };
                self.core.leader_is(now, leader);
                if leader.is_none() {
                    self.later(100, Event::Metadata);
                }
            }
            Event::ProducerId => {
                self.next_producer_id += 1;
                self.core.producer_id_is(now, self.next_producer_id, 0);
            }
            Event::Cut => {
                let broker = self.rng.random_range(1..=2);
                self.cut(broker);
            }
            Event::MoveLeader => self.move_leader(),
            Event::Sealed { generation } => self.core.seals_durable(now, generation),
            Event::Tick => self.core.tick(now),
        }
    }

    /// The connection breaks: what has not arrived may still arrive, no answer will.
    fn cut(&mut self, broker: i32) {
        *self.connections.entry(broker).or_default() += 1;
        let lost: Vec<u64> = self
            .outstanding
            .iter()
            .filter(|(_, (to, _))| *to == broker)
            .map(|(attempt, _)| *attempt)
            .collect();
        for attempt in lost {
            self.outstanding.remove(&attempt);
            let now = self.at();
            self.core.answered(now, attempt, Answer::Lost);
        }
    }

    fn move_leader(&mut self) {
        self.leader = 3 - self.leader;
        if self.rng.random_range(0..2) == 0 {
            // What was not acknowledged may be gone with the old leader.
            let keep = self.log.iter().rposition(|(_, committed)| *committed).map_or(0, |last| last + 1);
            self.log.truncate(keep);
        }
        self.producers.clear();
        for (sheaf, _) in &self.log {
            remember(&mut self.producers, sheaf);
        }
        if self.rng.random_range(0..2) == 0 {
            self.later(200, Event::Metadata);
        }
    }

    fn arrive(&mut self, request: &Request) {
        let alive = self.connections.get(&request.broker).copied().unwrap_or(0) == request.connection;
        if !alive && self.rng.random_range(0..2) == 0 {
            return;
        }
        let code = self.process(request);
        if alive && !self.unlucky(self.faults.lose_answer) {
            let first = self.last_answer.get(&request.broker).copied().unwrap_or(0).max(self.now);
            let at = first + self.rng.random_range(0..=8);
            self.last_answer.insert(request.broker, at);
            let Request { attempt, broker, connection, .. } = *request;
            self.schedule(at, Event::Answer { attempt, broker, connection, code });
        } else {
            self.later(120, Event::GiveUp { attempt: request.attempt });
        }
    }

    fn process(&mut self, request: &Request) -> i16 {
        if request.broker != self.leader {
            return 6;
        }
        if self.unlucky(self.faults.error_before) {
            return [6, 19, 3, 5, 2, 56, 29][self.rng.random_range(0..7)];
        }
        let sheaf = &request.sheaf;
        if self.faults.bad_records {
            if sheaf.ids.len() > self.broker_limit || sheaf.ids.iter().any(|id| is_too_large(*id)) {
                return 10;
            }
            if sheaf.ids.iter().any(|id| is_bad(*id)) {
                return 87;
            }
        }
        if sheaf.stamp.producer_id >= 0 {
            let (first, last) =
                (sheaf.stamp.base_sequence, advance(sheaf.stamp.base_sequence, sheaf.records() - 1));
            match self.producers.get(&sheaf.stamp.producer_id) {
                Some(known) if sheaf.stamp.producer_epoch < known.epoch => return 47,
                Some(known) if sheaf.stamp.producer_epoch == known.epoch => {
                    if known.recent.contains(&(first, last)) {
                        for (_, committed) in &mut self.log {
                            *committed = true;
                        }
                        return 0;
                    }
                    if known.recent.back().is_some_and(|(_, before)| advance(*before, 1) != first) {
                        return 45;
                    }
                }
                Some(_) if first != 0 => return 45,
                None if self.strict_start && first != 0 => return 59,
                Some(_) | None => {}
            }
            remember(&mut self.producers, sheaf);
        }
        self.log.push((sheaf.clone(), false));
        if self.unlucky(self.faults.error_after) {
            return [6, 7, 20][self.rng.random_range(0..3)];
        }
        for (_, committed) in &mut self.log {
            *committed = true;
        }
        0
    }

    /// What the shell does after every event.
    fn turn(&mut self) {
        loop {
            let now = self.at();
            let least = match self.core.appetite(now) {
                Appetite::Nothing => usize::MAX,
                Appetite::Bulk => 3,
                Appetite::Anything => 1,
            };
            let outputs = self.core.take_outputs();
            if self.inbox.len() < least && outputs.is_empty() {
                break;
            }
            for output in outputs {
                self.output(output);
            }
            let now = self.at();
            if self.inbox.len() >= least && self.core.appetite(now) != Appetite::Nothing {
                let stamp = self.core.next_stamp().expect("a stamp where there is appetite");
                let count = self.inbox.len().min(self.batch_limit);
                let ids = self.inbox.drain(..count).collect();
                let expires_at = self.max_age.map(|age| now + Duration::from_millis(age));
                self.core.push(now, Sheaf { ids, stamp, expires_at, remedy: Remedy::None });
            }
            let held = self.core.in_flight();
            assert!(!self.idempotent || held <= IDEMPOTENT_WINDOW, "{held} in flight");
        }
        if let Some(at) = self.core.deadline() {
            let at = (at - self.start).as_millis() as u64 + 1;
            self.schedule(at.max(self.now), Event::Tick);
        }
    }

    fn output(&mut self, output: Output<Sheaf, Sheaf>) {
        match output {
            Output::Send { attempt, leader, wire, .. } => {
                let connection = self.connections.get(&leader).copied().unwrap_or(0);
                let first = self.last_arrival.get(&leader).copied().unwrap_or(0).max(self.now);
                let at = first + self.rng.random_range(0..=8);
                self.last_arrival.insert(leader, at);
                self.outstanding.insert(attempt, (leader, connection));
                self.schedule(
                    at,
                    Event::Arrive(Request { attempt, sheaf: wire, broker: leader, connection }),
                );
            }
            Output::Complete { batch, fate } => {
                self.expired += u32::from(fate == Fate::Expired);
                self.retries_used_up += u32::from(matches!(fate, Fate::RetriesUsedUp { .. }));
                for id in batch.ids {
                    if fate == Fate::Success {
                        assert!(
                            self.log.iter().any(|(sheaf, committed)| *committed && sheaf.ids.contains(&id)),
                            "record {id} acknowledged before it was appended"
                        );
                    }
                    let before = self.done.insert(id, fate == Fate::Success);
                    assert!(before.is_none(), "record {id} completed twice");
                }
            }
            Output::WriteSeals { generation } => self.later(20, Event::Sealed { generation }),
            Output::AskForProducer { .. } => unreachable!("nothing was there before"),
            Output::NeedMetadata => self.later(60, Event::Metadata),
            Output::NeedProducerId { .. } => self.later(60, Event::ProducerId),
            Output::LimitBatchBytes(bytes) => self.batch_limit = (bytes / 100).max(1),
            Output::PossibleDuplicates(records) => self.possible_duplicates += records,
        }
    }

    fn logged(&self) -> Vec<u32> {
        self.log.iter().flat_map(|(sheaf, _)| sheaf.ids.iter().copied()).collect()
    }
}

fn remember(producers: &mut HashMap<i64, ProducerState>, sheaf: &Sheaf) {
    let known = producers.entry(sheaf.stamp.producer_id).or_default();
    if known.epoch != sheaf.stamp.producer_epoch {
        *known = ProducerState { epoch: sheaf.stamp.producer_epoch, recent: VecDeque::new() };
    }
    let last = advance(sheaf.stamp.base_sequence, sheaf.records() - 1);
    known.recent.push_back((sheaf.stamp.base_sequence, last));
    if known.recent.len() > 5 {
        known.recent.pop_front();
    }
}

/// Prints the seed of the schedule that failed.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}", self.0);
        }
    }
}

fn faults(rng: &mut SmallRng) -> Faults {
    Faults {
        error_before: rng.random_range(0..300),
        error_after: rng.random_range(0..200),
        lose_answer: rng.random_range(0..100),
        cuts: rng.random_range(0..300),
        moves: rng.random_range(0..200),
        bad_records: rng.random_range(0..3) == 0,
    }
}

/// Schedules of a test: a quarter of `most` by default, all of them with `CAUSEWAY_FULL=1`, as in CI.
fn schedules(most: u64) -> std::ops::Range<u64> {
    let full = std::env::var_os("CAUSEWAY_FULL").is_some_and(|value| value == "1");
    0..if full { most } else { most / 4 }
}

/// W4
#[test]
fn every_record_is_appended_once_and_in_order_whatever_fails() {
    const RECORDS: u32 = 50;
    for seed in schedules(80_000) {
        let _printed_on_failure = Seed(seed);
        let faults = faults(&mut SmallRng::seed_from_u64(seed));
        let world = World::new(seed, true, faults).run(RECORDS);
        let refused = |id: &u32| faults.bad_records && (is_too_large(*id) || is_bad(*id));
        let wanted: Vec<u32> = (0..RECORDS).filter(|id| !refused(id)).collect();
        assert_eq!(world.logged(), wanted);
        assert_eq!(world.done.len(), RECORDS as usize, "not everything was completed");
        assert!(world.done.iter().all(|(id, success)| *success != refused(id)));
        assert!(world.core.is_idle());
        assert_eq!(world.possible_duplicates, 0);
    }
}

#[test]
fn what_is_given_up_was_never_appended_and_the_rest_is_there_once_and_in_order() {
    const RECORDS: u32 = 50;
    let (mut expired, mut retries_used_up) = (0, 0);
    for seed in schedules(40_000) {
        let _printed_on_failure = Seed(seed);
        let rng = &mut SmallRng::seed_from_u64(seed);
        let faults = faults(rng);
        let patience = Patience {
            max_retries: (rng.random_range(0..3) > 0).then(|| rng.random_range(0..4)),
            max_age_ms: (rng.random_range(0..3) > 0).then(|| rng.random_range(1..800)),
        };
        let world = World::with_patience(seed, true, faults, patience).run(RECORDS);
        assert_eq!(world.done.len(), RECORDS as usize, "not everything was completed");
        let succeeded: Vec<u32> =
            world.done.iter().filter(|(_, success)| **success).map(|(id, _)| *id).collect();
        assert_eq!(world.logged(), succeeded);
        assert!(world.core.is_idle());
        assert_eq!(world.possible_duplicates, 0);
        expired += world.expired;
        retries_used_up += world.retries_used_up;
    }
    assert!(expired > 1000 && retries_used_up > 1000, "{expired} {retries_used_up}");
}

#[test]
fn retries_are_counted_by_refusals_alone_and_a_doubt_outlasts_them() {
    for doubt in [false, true] {
        let now = Instant::now();
        let mut core = PartitionCore::new(Options { max_retries: Some(1), ..OPTIONS });
        core.leader_is(now, Some(1));
        core.producer_id_is(now, 7, 0);
        push(&mut core, now, &[2]);
        // NOT_ENOUGH_REPLICAS is told before the append, NOT_ENOUGH_REPLICAS_AFTER_APPEND is not.
        let answers =
            [Answer::NotSent, Answer::Code(19), Answer::NotSent, Answer::Code(if doubt { 20 } else { 19 })];
        let mut now = now;
        for (index, answer) in answers.into_iter().enumerate() {
            let sent = sends(&mut core);
            assert_eq!(sent.len(), 1, "attempt {index}");
            core.answered(now, sent[0].0, answer);
            if index < 3 {
                now += BACKOFF_LAST;
                core.tick(now);
            }
        }
        let outputs = core.take_outputs();
        let given_up = Fate::RetriesUsedUp { code: 19 };
        let is_given_up = |output: &Output<Sheaf, Sheaf>| matches!(output, Output::Complete { fate, .. } if *fate == given_up);
        assert_eq!(outputs.iter().any(is_given_up), !doubt, "{outputs:?}");
        if !doubt {
            push(&mut core, now, &[3]);
            core.tick(now + BACKOFF_LAST);
            let stamp = BatchStamp { producer_id: 7, producer_epoch: 1, base_sequence: 0 };
            assert_eq!(sends(&mut core)[0].1, stamp, "the next one leaves no gap");
        }
    }
}

#[test]
fn a_batch_that_could_not_be_sent_expires_and_one_that_may_be_in_the_log_does_not() {
    for lost in [false, true] {
        let now = Instant::now();
        let mut core = PartitionCore::new(OPTIONS);
        core.leader_is(now, Some(1));
        core.producer_id_is(now, 7, 0);
        let expires_at = now + Duration::from_mins(1);
        let stamp = core.next_stamp().expect("a stamp");
        core.push(now, Sheaf { ids: vec![1], stamp, expires_at: Some(expires_at), remedy: Remedy::None });
        let sent = sends(&mut core);
        assert_eq!(core.deadline(), None, "it is on its way");
        core.answered(now, sent[0].0, if lost { Answer::Lost } else { Answer::NotSent });
        core.leader_is(now, None);
        assert_eq!(core.deadline(), (!lost).then_some(expires_at));
        core.tick(expires_at);
        let expired = core
            .take_outputs()
            .iter()
            .any(|output| matches!(output, Output::Complete { fate: Fate::Expired, .. }));
        assert_eq!((expired, core.is_idle()), (!lost, !lost));
    }
}

/// What a broker refuses, or refuses for a while, does not change the order of what it takes. (What may be
/// there twice because an answer was lost can turn up late: it is the first appearance that counts.)
#[test]
fn without_idempotence_nothing_is_lost_and_the_first_appearances_are_in_order() {
    const RECORDS: u32 = 50;
    let mut refused = 0;
    for seed in schedules(8_000) {
        let _printed_on_failure = Seed(seed);
        let faults = faults(&mut SmallRng::seed_from_u64(seed));
        let world = World::new(seed, false, faults).run(RECORDS);
        refused += world.done.values().filter(|success| !**success).count();
        let mut seen = BTreeSet::new();
        let mut first = world.logged();
        first.retain(|id| seen.insert(*id));
        assert!(first.is_sorted(), "{first:?}");
        let logged: BTreeSet<u32> = world.logged().into_iter().collect();
        assert_eq!(world.done.len(), RECORDS as usize, "not everything was completed");
        for (id, success) in &world.done {
            assert_eq!(*success, logged.contains(id), "record {id}");
        }
    }
    assert!(refused > 1000, "{refused}");
}

#[test]
fn without_idempotence_nothing_is_sent_behind_a_batch_that_may_be_refused() {
    let now = Instant::now();
    let mut core = PartitionCore::new(Options { idempotent: false, ..OPTIONS });
    core.leader_is(now, Some(1));
    push(&mut core, now, &[0, 1, 2, 3]);
    assert_eq!(core.appetite(now), Appetite::Nothing);
    let sent = sends(&mut core);
    core.answered(now, sent[0].0, Answer::Code(87));
    let mut order: Vec<u32> = Vec::new();
    loop {
        let next = core.take_outputs().into_iter().find_map(|output| match output {
            Output::Send { attempt, wire, .. } => Some((attempt, wire.ids)),
            _ => None,
        });
        let Some((attempt, ids)) = next else { break };
        assert_eq!(core.in_flight(), 1);
        let bad = ids.contains(&1);
        order.extend(ids.iter().copied().filter(|_| !bad));
        core.answered(now, attempt, Answer::Code(if bad { 87 } else { 0 }));
    }
    assert_eq!(order, [0, 2, 3]);
}

/// A batch that a broker refuses for its timestamps.
fn refused_for_time(remedy: Remedy, options: Options) -> (PartitionCore<Sheaf>, Instant, u64) {
    let now = Instant::now();
    let mut core = PartitionCore::new(options);
    core.leader_is(now, Some(1));
    core.producer_id_is(now, 7, 0);
    let stamp = core.next_stamp().expect("a stamp");
    core.push(now, Sheaf { ids: vec![1, 2], stamp, expires_at: None, remedy });
    // Only where there are seals.
    core.seals_durable(now, 1);
    let sent = sends(&mut core);
    core.answered(now, sent[0].0, Answer::Code(32));
    (core, now, sent[0].0)
}

#[test]
fn a_batch_that_waits_for_a_clock_is_sent_again_whole_and_holds_what_is_behind_it() {
    let (mut core, mut now, _) = refused_for_time(Remedy::Wait, OPTIONS);
    for _ in 0..20 {
        assert_eq!(core.trouble(), Some(Trouble::Code(32)));
        assert_eq!(core.appetite(now), Appetite::Nothing);
        now += BACKOFF_LAST;
        core.tick(now);
        let sent = sends(&mut core);
        assert_eq!(sent.len(), 1, "neither split nor given up");
        core.answered(now, sent[0].0, Answer::Code(32));
    }
    now += BACKOFF_LAST;
    core.tick(now);
    let sent = sends(&mut core);
    assert_eq!(sent[0].1.base_sequence, 0);
    core.answered(now, sent[0].0, Answer::Code(0));
    assert!(core.is_idle() && core.trouble().is_none());

    // Who sets max_retries wants no end of waiting.
    let (mut core, now, _) = refused_for_time(Remedy::Wait, Options { max_retries: Some(0), ..OPTIONS });
    let given_up = Fate::RetriesUsedUp { code: 32 };
    let is_given_up =
        |output: &Output<Sheaf, Sheaf>| matches!(output, Output::Complete { fate, .. } if *fate == given_up);
    assert!(core.take_outputs().iter().any(is_given_up));
    assert_eq!(core.in_flight(), 0);
    core.tick(now + BACKOFF_LAST);
    assert!(core.is_idle());
}

#[test]
fn a_batch_with_other_timestamps_goes_at_once_under_the_same_stamp() {
    let (mut core, now, first) = refused_for_time(Remedy::Restamped, OPTIONS);
    let sent = sends(&mut core);
    assert_eq!((sent.len(), sent[0].1.base_sequence), (1, 0));
    assert_ne!(sent[0].0, first);
    // Once, in this test: then it is refused as any bad record.
    core.answered(now, sent[0].0, Answer::Code(32));
    let halves = sends(&mut core);
    assert_eq!(halves.len(), 1, "one at a time until the broker knows the producer id");
    let (mut core, now, _) = refused_for_time(Remedy::Restamped, Options { stored: true, ..OPTIONS });
    assert!(sends(&mut core).is_empty(), "its seal must be durable first");
    let _ = now;
}

const OPTIONS: Options =
    Options { idempotent: true, max_in_flight: 5, max_retries: None, stored: false, seed: 1 };

/// A core with one acknowledged batch behind it, and what it sent.
fn warmed_up() -> (PartitionCore<Sheaf>, Instant) {
    let now = Instant::now();
    let mut core = PartitionCore::new(OPTIONS);
    core.leader_is(now, Some(1));
    core.producer_id_is(now, 7, 0);
    push(&mut core, now, &[0, 1]);
    let sent = sends(&mut core);
    core.answered(now, sent[0].0, Answer::Code(0));
    core.take_outputs();
    (core, now)
}

fn push(core: &mut PartitionCore<Sheaf>, now: Instant, ids: &[u32]) {
    let stamp = core.next_stamp().expect("a stamp");
    core.push(now, Sheaf { ids: ids.to_vec(), stamp, expires_at: None, remedy: Remedy::None });
}

fn sends(core: &mut PartitionCore<Sheaf>) -> Vec<(u64, BatchStamp)> {
    let sends = core.take_outputs().into_iter().filter_map(|output| match output {
        Output::Send { attempt, wire, .. } => Some((attempt, wire.stamp)),
        _ => None,
    });
    sends.collect()
}

#[test]
fn a_broker_that_lost_acknowledged_records_is_met_with_a_new_epoch() {
    let (mut core, now) = warmed_up();
    push(&mut core, now, &[2, 3]);
    push(&mut core, now, &[4]);
    let sent = sends(&mut core);
    assert_eq!(sent[1].1, BatchStamp { producer_id: 7, producer_epoch: 0, base_sequence: 4 });
    core.answered(now, sent[0].0, Answer::Code(45));
    core.answered(now, sent[1].0, Answer::Code(45));
    core.tick(now + BACKOFF_LAST);
    let again = sends(&mut core);
    assert_eq!(again.len(), 1, "one at a time until the broker knows the new epoch");
    assert_eq!(again[0].1, BatchStamp { producer_id: 7, producer_epoch: 1, base_sequence: 0 });
    core.answered(now, again[0].0, Answer::Code(0));
    assert_eq!(sends(&mut core)[0].1.base_sequence, 2);
}

#[test]
fn a_forgotten_or_fenced_producer_id_is_replaced_and_doubtful_records_are_reported() {
    for code in [47, 59, 90] {
        let (mut core, now) = warmed_up();
        push(&mut core, now, &[2, 3]);
        let sent = sends(&mut core);
        core.answered(now, sent[0].0, Answer::Lost);
        core.tick(now + BACKOFF_LAST);
        let sent = sends(&mut core);
        core.answered(now, sent[0].0, Answer::Code(code));
        let outputs = core.take_outputs();
        assert!(outputs.contains(&Output::PossibleDuplicates(2)), "code {code}");
        assert!(outputs.contains(&Output::NeedProducerId { instead_of: Some(7) }));
        core.tick(now + BACKOFF_LAST);
        assert!(sends(&mut core).is_empty(), "nothing goes without a producer id");
        core.producer_id_is(now, 8, 3);
        let stamp = BatchStamp { producer_id: 8, producer_epoch: 3, base_sequence: 0 };
        assert_eq!(sends(&mut core)[0].1, stamp);
    }
}

#[test]
fn a_duplicate_sequence_number_is_success() {
    let (mut core, now) = warmed_up();
    push(&mut core, now, &[2]);
    let sent = sends(&mut core);
    core.answered(now, sent[0].0, Answer::Code(46));
    let outputs = core.take_outputs();
    assert!(matches!(&outputs[..], [Output::Complete { fate: Fate::Success, .. }]), "{outputs:?}");
}

#[test]
fn an_epoch_that_can_rise_no_further_is_followed_by_a_new_producer_id() {
    let now = Instant::now();
    let mut core = PartitionCore::new(OPTIONS);
    core.leader_is(now, Some(1));
    core.producer_id_is(now, 7, i16::MAX);
    push(&mut core, now, &[7]);
    let sent = sends(&mut core);
    core.answered(now, sent[0].0, Answer::Code(10));
    assert!(core.take_outputs().contains(&Output::NeedProducerId { instead_of: Some(7) }));
}

#[test]
fn a_damaged_batch_is_given_up_after_a_few_tries_unless_one_of_them_is_in_doubt() {
    for doubt in [false, true] {
        let (mut core, mut now) = warmed_up();
        push(&mut core, now, &[2]);
        if doubt {
            let sent = sends(&mut core);
            core.answered(now, sent[0].0, Answer::Lost);
        }
        let mut failed = false;
        for _ in 0..20 {
            now += BACKOFF_LAST;
            core.tick(now);
            for output in core.take_outputs() {
                match output {
                    Output::Send { attempt, .. } => core.answered(now, attempt, Answer::Code(2)),
                    Output::Complete { fate, .. } => failed = fate != Fate::Success,
                    _ => {}
                }
            }
        }
        for output in core.take_outputs() {
            failed |= matches!(output, Output::Complete { .. });
        }
        assert_eq!(failed, !doubt);
    }
}

fn stored() -> (PartitionCore<Sheaf>, Instant) {
    let now = Instant::now();
    let mut core = PartitionCore::new(Options { stored: true, ..OPTIONS });
    core.leader_is(now, Some(1));
    core.producer_id_is(now, 7, 0);
    core.take_outputs();
    (core, now)
}

fn offer(core: &mut PartitionCore<Sheaf>, now: Instant, id: u32) {
    let stamp = core.next_stamp().unwrap();
    core.push(now, Sheaf { ids: vec![id], stamp, expires_at: None, remedy: Remedy::None });
}

/// Attempts and generations in the outputs.
fn sent_and_sealed(core: &mut PartitionCore<Sheaf>) -> (Vec<u64>, Vec<u64>) {
    let (mut sent, mut sealed) = (Vec::new(), Vec::new());
    for output in core.take_outputs() {
        match output {
            Output::Send { attempt, .. } => sent.push(attempt),
            Output::WriteSeals { generation } => sealed.push(generation),
            _ => {}
        }
    }
    (sent, sealed)
}

#[test]
fn a_stored_batch_is_sent_when_its_seal_is_durable_and_not_before() {
    let (mut core, now) = stored();
    offer(&mut core, now, 1);
    let (sent, sealed) = sent_and_sealed(&mut core);
    assert!(sent.is_empty());
    assert_eq!(sealed, [1]);
    core.tick(now);
    assert_eq!(sent_and_sealed(&mut core), (vec![], vec![]), "sealed once");
    core.seals_durable(now, 1);
    let (sent, _) = sent_and_sealed(&mut core);
    assert_eq!(sent.len(), 1);
    // Another epoch is another stamp.
    core.answered(now, sent[0], Answer::Code(45));
    core.tick(now + Duration::from_secs(5));
    let (sent, sealed) = sent_and_sealed(&mut core);
    assert!(sent.is_empty(), "sent with a stamp that is not on the disk");
    assert_eq!(sealed, [2]);
    core.seals_durable(now + Duration::from_secs(5), 2);
    assert_eq!(sent_and_sealed(&mut core).0.len(), 1);
}

#[test]
fn batches_of_a_backlog_share_a_sync_whatever_may_be_under_way_at_once() {
    for max_in_flight in [1, 5] {
        let now = Instant::now();
        let mut core = PartitionCore::new(Options { stored: true, max_in_flight, ..OPTIONS });
        core.leader_is(now, Some(1));
        core.producer_id_is(now, 7, 0);
        let (mut syncs, mut done, mut next) = (0, 0, 0);
        // A sync takes longer than all answers together.
        while done < 101 {
            let mut wanted = None;
            loop {
                while core.appetite(now) != Appetite::Nothing {
                    offer(&mut core, now, next);
                    next += 1;
                }
                let (sent, sealed) = sent_and_sealed(&mut core);
                wanted = wanted.max(sealed.last().copied());
                let unsettled = core.settling.len();
                assert!(
                    core.in_flight() <= max_in_flight && core.in_flight() + unsettled <= IDEMPOTENT_WINDOW
                );
                if sent.is_empty() {
                    break;
                }
                for attempt in sent {
                    core.answered(now, attempt, Answer::Code(0));
                    done += 1;
                }
            }
            syncs += 1;
            core.seals_durable(now, wanted.expect("something to wait for"));
        }
        // The first goes alone, until Kafka has confirmed the producer.
        assert!(syncs <= 24, "{syncs} syncs for {done} batches, {max_in_flight} under way at once");
    }
}

#[test]
fn ends_that_are_not_durable_keep_their_place_among_the_five() {
    let (mut core, now) = stored();
    let mut under_way = VecDeque::new();
    // Seals become durable, ends do not: their generation is the next one.
    for id in 0..5 {
        offer(&mut core, now, id);
        let (_, sealed) = sent_and_sealed(&mut core);
        let settling = std::mem::take(&mut core.settling);
        core.seals_durable(now, sealed[0]);
        core.settling = settling;
        core.pump(now);
        under_way.extend(sent_and_sealed(&mut core).0);
        assert_eq!(under_way.len(), 1, "batch {id}");
        core.answered(now, under_way.pop_front().unwrap(), Answer::Code(0));
        core.take_outputs();
    }
    offer(&mut core, now, 5);
    let (sent, sealed) = sent_and_sealed(&mut core);
    assert!(sent.is_empty(), "six may have been appended beyond the durable end");
    core.seals_durable(now, sealed[0]);
    assert_eq!(sent_and_sealed(&mut core).0.len(), 1);
}

fn resumed() -> (PartitionCore<Sheaf>, Instant) {
    let now = Instant::now();
    let stamp = |base_sequence| BatchStamp { producer_id: 7, producer_epoch: 3, base_sequence };
    let batch = |id, sequence| Sheaf {
        ids: vec![id],
        stamp: stamp(sequence),
        expires_at: None,
        remedy: Remedy::None,
    };
    let batches = [batch(1, 40), batch(2, 41)];
    let mut core = PartitionCore::resume(Options { stored: true, ..OPTIONS }, stamp(40), batches);
    core.leader_is(now, Some(1));
    assert_eq!(core.take_outputs(), [Output::AskForProducer { leader: 1, id: 7 }]);
    assert_eq!(core.appetite(now), Appetite::Nothing);
    (core, now)
}

#[test]
fn batches_from_before_a_crash_go_first_with_the_stamps_they_had() {
    let (mut core, now) = resumed();
    core.producer_is_known(now, Some(true));
    let sends = |core: &mut PartitionCore<Sheaf>| -> Vec<(u64, BatchStamp)> {
        let of = |output: Output<Sheaf, Sheaf>| match output {
            Output::Send { attempt, wire, again: true, .. } => Some((attempt, wire.stamp)),
            _ => None,
        };
        core.take_outputs().into_iter().filter_map(of).collect()
    };
    let first = sends(&mut core);
    assert_eq!(first.len(), 1, "one until Kafka has confirmed the producer");
    assert_eq!((first[0].1.base_sequence, first[0].1.producer_epoch), (40, 3));
    core.answered(now, first[0].0, Answer::Code(46));
    let second = sends(&mut core);
    assert_eq!(second[0].1.base_sequence, 41);
    core.answered(now, second[0].0, Answer::Code(0));
    assert!(core.take_outputs().contains(&Output::NeedProducerId { instead_of: Some(7) }));
    assert_eq!(core.next_stamp(), None, "new records take a new producer id");
}

#[test]
fn batches_whose_seals_may_be_missing_go_when_they_are_durable() {
    let now = Instant::now();
    let stamp = BatchStamp { producer_id: 7, producer_epoch: 3, base_sequence: 40 };
    let batches = [Sheaf { ids: vec![1], stamp, expires_at: None, remedy: Remedy::None }];
    let mut core = PartitionCore::resume_unsealed(Options { stored: true, ..OPTIONS }, stamp, batches);
    core.leader_is(now, Some(1));
    core.producer_is_known(now, Some(true));
    assert_eq!(sent_and_sealed(&mut core), (vec![], vec![1]));
    core.seals_durable(now, 1);
    assert_eq!(sent_and_sealed(&mut core).0.len(), 1);
}

#[test]
fn batches_of_a_producer_that_kafka_has_forgotten_are_possible_duplicates() {
    let (mut core, now) = resumed();
    core.producer_is_known(now, Some(false));
    let outputs = core.take_outputs();
    assert!(outputs.contains(&Output::PossibleDuplicates(2)), "{outputs:?}");
    // A request of before may still be on its way: only under the same stamp the two become one.
    let sent = outputs.iter().find_map(|output| match output {
        Output::Send { attempt, wire, .. } => Some((*attempt, wire.stamp)),
        _ => None,
    });
    let (attempt, stamp) = sent.unwrap();
    assert_eq!((stamp.producer_id, stamp.base_sequence), (7, 40));
    // An old Kafka takes no sequence but 0 from a producer that it does not know.
    core.answered(now, attempt, Answer::Code(59));
    assert!(core.take_outputs().contains(&Output::NeedProducerId { instead_of: Some(7) }));
    core.producer_id_is(now, 8, 0);
    let (sent, sealed) = sent_and_sealed(&mut core);
    assert!(sent.is_empty() && sealed.len() == 1, "its new stamp must be durable first");
}
