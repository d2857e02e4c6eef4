//! The brain of a partition producer: which batch goes when, and what an answer means. Pure: no sockets, no
//! clock, no tasks; events and the time come in through methods, [`Output`]s come out.
//!
//! Invariants (with idempotence, that is `required_acks = all_isr`):
//! * Batches are numbered without gaps per (producer id, epoch); a record's sequence is the base sequence of
//!   its batch plus its place, and a split keeps it.
//! * At most [`IDEMPOTENT_WINDOW`] batches lie beyond the oldest one without an answer: a broker recognises a
//!   resend only among the last five it appended.
//! * After any answer but success nothing is sent until every outstanding answer is in or given up for lost;
//!   then all that is unacknowledged goes again, in order, with the sequences it had.
//! * Until the broker has acknowledged something under the current producer id and epoch (and again after an
//!   error or a minute of silence) only one batch is outstanding. A broker that knows nothing of a producer
//!   id takes any first sequence (KIP-360): were two under way and the first refused, the second would be
//!   appended before it.
//! * Without idempotence only one batch is outstanding: a broker appends what is behind a batch that it
//!   refuses, and the halves or the resend of that batch would come out behind it.
//! * A batch is given up (retries used up, too old) only while it is the oldest and no attempt of it is in
//!   doubt; without idempotence there is nothing that could end a doubt, and it is not waited for.
//! * Sequences are given anew (next epoch, or a new producer id) only when the fate of all that carried the
//!   old ones is known; where the broker has forgotten it, the records are reported as
//!   [`Output::PossibleDuplicates`].
//!
//! With a disk buffer ([`Options::stored`]):
//! * No batch is sent before a seal with its present stamp is durable ([`Output::WriteSeals`],
//!   [`PartitionCore::seals_durable`]).
//! * The window is counted from the oldest batch whose end is not durable: after a crash all that may have
//!   been appended is among the last five that the broker remembers.
//! * Batches from before a crash go first, with the stamps they had, also where the broker does not know
//!   their producer id: a request of before the crash may still lie in its queue. Not known, they are
//!   reported as [`Output::PossibleDuplicates`]. What is new gets a new producer id
//!   ([`PartitionCore::resume`]).
//! * Batches are taken and sealed ahead of the window, so that several seals, and the ends of those before,
//!   share a sync.
//!
//! Transitions for the sequence errors, all taken for the oldest unacknowledged batch only (for those behind
//! it the error merely follows from what happened before them):
//!
//! | code | meaning | transition |
//! |---|---|---|
//! | 46 `DUPLICATE_SEQUENCE_NUMBER` | appended before | success |
//! | 45 `OUT_OF_ORDER_SEQUENCE_NUMBER` | the broker lost what it had acknowledged, or expects us after a gap | next epoch, sequences from 0, resend |
//! | 47 `INVALID_PRODUCER_EPOCH`, 90 `PRODUCER_FENCED` | another holds our producer id | new producer id, sequences from 0, resend |
//! | 59 `UNKNOWN_PRODUCER_ID` | the broker forgot us (retention, before Kafka 2.5) | new producer id, sequences from 0, resend |

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use causeway_protocol::kafka::batch::BatchStamp;
use causeway_protocol::mqtt::ReasonCode;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::verdict::{CORRUPT_ATTEMPTS, TOO_LARGE, Verdict, verdict};

/// Batches of one partition under way at once with idempotence: as many as a broker remembers.
pub const IDEMPOTENT_WINDOW: usize = 5;

/// An answer older than this no longer proves that the broker knows our producer id. Kafka forgets after
/// `producer.id.expiration.ms`, a day unless set lower; the price of being wrong on this side is one round
/// trip.
const CONFIRMED_FOR: Duration = Duration::from_mins(1);

/// First pause after an error: a leader election on a healthy cluster is over in about this time.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
/// Longest pause: the delay after an outage ends.
const BACKOFF_LAST: Duration = Duration::from_secs(2);

/// A sealed batch, as far as the core looks into it.
pub trait Batch: Sized {
    /// Form of the batch that the transport takes; cheap to make.
    type Wire;

    /// Records in it, at least 1.
    fn records(&self) -> u32;

    /// Bytes before compression.
    fn weight(&self) -> usize;

    /// When all of its records are too old to be sent; `None` where they never are.
    fn expires_at(&self) -> Option<Instant> {
        None
    }

    /// Gives it another producer id, epoch and sequence; record bytes stay.
    fn restamp(&mut self, stamp: BatchStamp);

    /// Two batches with the same records in order, the first with `Self::records() / 2` of them; the
    /// caller restamps them. Gives itself back where it cannot be split.
    fn split(self) -> Result<(Self, Self), Self>;

    /// Mends timestamps that Kafka refuses, as far as possible.
    fn mend_timestamps(&mut self) -> Remedy {
        Remedy::None
    }

    /// The bytes to send.
    fn wire(&self) -> Self::Wire;
}

/// Remedy for a timestamp that Kafka refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing: the record is given up.
    None,
    /// The same record will be taken later, once clocks agree.
    Wait,
    /// The batch has other timestamps now.
    Restamped,
}

/// Settings that stay.
#[derive(Debug, Clone)]
pub struct Options {
    /// Producer ids and sequences: only with acks from all in-sync replicas.
    pub idempotent: bool,
    /// Batches under way at once; at most [`IDEMPOTENT_WINDOW`] count with idempotence, and one without.
    pub max_in_flight: usize,
    /// A batch that Kafka has refused more often than this is given up.
    pub max_retries: Option<u32>,
    /// Nothing is sent before its seal is durable; only with `idempotent`.
    pub stored: bool,
    /// Seed of the jitter.
    pub seed: u64,
}

/// Final fate of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// In the log.
    Success,
    /// Kafka will never take it.
    Refused {
        /// Reason code for its publishers.
        reason: ReasonCode,
        /// The broker's error code.
        code: i16,
    },
    /// Kafka has refused it for the time being, more often than [`Options::max_retries`] allows.
    RetriesUsedUp {
        /// The last error code.
        code: i16,
    },
    /// Too old, and not in the log.
    Expired,
}

/// How a send attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The broker answered with this error code; 0 is success. Without acks: 0 once it is written.
    Code(i16),
    /// No answer will come (connection lost, request timeout): it may or may not have been appended.
    Lost,
    /// It was never written to a connection.
    NotSent,
}

/// Instruction to the shell.
#[derive(Debug, PartialEq, Eq)]
pub enum Output<B, W> {
    /// Send to the leader; exactly one [`Answer`] with this attempt is owed.
    Send {
        /// Names the attempt.
        attempt: u64,
        /// Broker id of the leader.
        leader: i32,
        /// The bytes.
        wire: W,
        /// Records in it.
        records: u32,
        /// Not its first attempt.
        again: bool,
    },
    /// The fate of a batch is known.
    Complete {
        /// The batch, for its tickets and counts.
        batch: B,
        /// Its fate.
        fate: Fate,
    },
    /// Fresh metadata is wanted.
    NeedMetadata,
    /// A producer id is wanted, another one than this.
    NeedProducerId {
        /// The id that cannot be used any longer.
        instead_of: Option<i64>,
    },
    /// Write the stamps of all batches held ([`PartitionCore::batches`]) to the disk, after the ends of those
    /// that were completed before; [`PartitionCore::seals_durable`] with this number is owed.
    WriteSeals {
        /// Rises.
        generation: u64,
    },
    /// Ask Kafka whether it knows this producer id in this partition; [`PartitionCore::producer_is_known`] is
    /// owed.
    AskForProducer {
        /// The leader, which knows.
        leader: i32,
        /// The producer id.
        id: i64,
    },
    /// Close batches earlier: at this many bytes.
    LimitBatchBytes(usize),
    /// This many records are sent again although an earlier attempt may have appended them and the
    /// broker can no longer tell.
    PossibleDuplicates(u32),
}

/// How much must be waiting in the inbox for it to be worth taking a batch now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appetite {
    /// Nothing can be sent now.
    Nothing,
    /// The line is busy: only a batch of some size.
    Bulk,
    /// The line is idle: anything.
    Anything,
}

/// Why the partition is not moving, for its status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The last answer was this error code.
    Code(i16),
    /// The last answer did not come.
    Lost,
}

struct Producer {
    id: i64,
    epoch: i16,
    /// Sequence of the next record.
    next: i32,
    /// When something was last acknowledged under this id and epoch, with no error since.
    confirmed_at: Option<Instant>,
}

struct Entry<B> {
    /// `None` once complete: it keeps its place until all before it are complete too.
    batch: Option<B>,
    base_sequence: i32,
    /// The attempt whose answer is outstanding.
    attempt: Option<u64>,
    attempts: u32,
    corrupt: u32,
    /// Answers that refused it for the time being.
    refusals: u32,
    /// The last error code.
    code: i16,
    /// An attempt may have been appended although no success was told.
    in_doubt: bool,
    /// An answer that is acted upon once all are in.
    verdict: Option<Verdict>,
    /// The seals that hold its present stamp; [`UNSEALED`] where none do.
    sealed_in: u64,
}

/// No seals hold the stamp yet.
const UNSEALED: u64 = u64::MAX;

/// Whether Kafka knows the producer id of batches from before a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Replay {
    /// There are none.
    No,
    /// It has not been asked.
    Unasked,
    /// The answer is on its way.
    Asked,
    /// It does: they are sent.
    Under,
}

/// Pure state machine of one partition producer; the module documentation lists its invariants.
pub struct PartitionCore<B: Batch> {
    options: Options,
    leader: Option<i32>,
    producer: Option<Producer>,
    entries: VecDeque<Entry<B>>,
    in_flight: usize,
    /// The broker that those in flight were sent to.
    sent_to: Option<i32>,
    /// An error came in; nothing is sent until `in_flight` is 0.
    recovering: bool,
    /// Errors in a row.
    failures: u32,
    resume_at: Option<Instant>,
    trouble: Option<Trouble>,
    next_attempt: u64,
    batch_bytes: usize,
    /// Of the seals ordered last.
    generation: u64,
    /// Of those that are durable.
    durable: u64,
    /// For each batch that is complete, the seals with which its end will be durable.
    settling: VecDeque<u64>,
    replay: Replay,
    rng: SmallRng,
    outputs: Vec<Output<B, B::Wire>>,
}

impl<B: Batch> PartitionCore<B> {
    /// A core without a leader; with idempotence it asks for its producer id at once.
    pub fn new(options: Options) -> Self {
        let rng = SmallRng::seed_from_u64(options.seed);
        let mut core = Self {
            options,
            leader: None,
            producer: None,
            entries: VecDeque::new(),
            in_flight: 0,
            sent_to: None,
            recovering: false,
            failures: 0,
            resume_at: None,
            trouble: None,
            next_attempt: 1,
            batch_bytes: usize::MAX,
            generation: 0,
            durable: 0,
            settling: VecDeque::new(),
            replay: Replay::No,
            rng,
            outputs: Vec::new(),
        };
        if core.options.idempotent {
            core.outputs.push(Output::NeedProducerId { instead_of: None });
        }
        core
    }

    /// A core that goes on with batches that were sealed before a crash, all by one producer id and epoch and
    /// without a gap. Each may have been appended.
    pub fn resume(options: Options, first: BatchStamp, batches: impl IntoIterator<Item = B>) -> Self {
        let mut core = Self::new(options);
        core.outputs.clear();
        core.replay = Replay::Unasked;
        let (id, epoch) = (first.producer_id, first.producer_epoch);
        core.producer = Some(Producer { id, epoch, next: first.base_sequence, confirmed_at: None });
        for batch in batches {
            core.hold(batch, 0);
        }
        for entry in &mut core.entries {
            (entry.in_doubt, entry.attempts) = (true, 1);
        }
        core
    }

    /// As [`Self::resume`], where it is not known whether the batches' seals became durable: none is sent
    /// before they are.
    pub fn resume_unsealed(
        options: Options,
        first: BatchStamp,
        batches: impl IntoIterator<Item = B>,
    ) -> Self {
        let mut core = Self::resume(options, first, batches);
        for entry in &mut core.entries {
            entry.sealed_in = UNSEALED;
        }
        core
    }

    /// The answer to [`Output::AskForProducer`]; `None`: it cannot be known now, ask again.
    pub fn producer_is_known(&mut self, now: Instant, known: Option<bool>) {
        if self.replay != Replay::Asked {
            return;
        }
        match known {
            None => {
                self.replay = Replay::Unasked;
                self.outputs.push(Output::NeedMetadata);
                self.resume_at = Some(now + BACKOFF_LAST);
            }
            Some(true) => self.replay = Replay::Under,
            Some(false) => {
                self.report_possible_duplicates();
                // A request of before may still lie in a broker's queue: under their own stamps both are one.
                self.replay = Replay::Under;
            }
        }
        self.pump(now);
    }

    /// The batches held, in order.
    pub fn batches(&self) -> impl Iterator<Item = &B> {
        self.entries.iter().filter_map(|entry| entry.batch.as_ref())
    }

    /// The seals of this and all earlier generations are durable, and the ends that were ordered before them.
    pub fn seals_durable(&mut self, now: Instant, generation: u64) {
        self.durable = self.durable.max(generation);
        while self.settling.front().is_some_and(|wanted| *wanted <= self.durable) {
            self.settling.pop_front();
        }
        self.pump(now);
    }

    /// Takes the outputs, in order.
    pub fn take_outputs(&mut self) -> Vec<Output<B, B::Wire>> {
        std::mem::take(&mut self.outputs)
    }

    /// When [`Self::tick`] wants to be called.
    pub fn deadline(&self) -> Option<Instant> {
        [self.resume_at, self.oldest_expires_at()].into_iter().flatten().min()
    }

    /// Batches whose answer is outstanding.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// True while it holds no batch.
    pub fn is_idle(&self) -> bool {
        self.entries.is_empty()
    }

    /// Why it is not moving; `None` where all is well.
    pub fn trouble(&self) -> Option<Trouble> {
        self.trouble
    }

    /// The leader it sends to.
    pub fn leader(&self) -> Option<i32> {
        self.leader
    }

    /// How much it wants now.
    pub fn appetite(&self, now: Instant) -> Appetite {
        if self.is_held() || self.replay != Replay::No {
            return Appetite::Nothing;
        }
        match self.entries.len() {
            0 => Appetite::Anything,
            n if n < self.most_held(now) => Appetite::Bulk,
            _ => Appetite::Nothing,
        }
    }

    /// The stamp that the next batch must be sealed with. `None` while [`Self::appetite`] is nothing for want
    /// of a producer id.
    pub fn next_stamp(&self) -> Option<BatchStamp> {
        if !self.options.idempotent {
            return Some(BatchStamp::NONE);
        }
        let producer = self.producer.as_ref()?;
        Some(BatchStamp {
            producer_id: producer.id,
            producer_epoch: producer.epoch,
            base_sequence: producer.next,
        })
    }

    /// Takes a batch sealed with [`Self::next_stamp`] and sends it as soon as it may.
    pub fn push(&mut self, now: Instant, batch: B) {
        let sealed_in = if self.options.stored { UNSEALED } else { 0 };
        self.hold(batch, sealed_in);
        self.pump(now);
    }

    fn hold(&mut self, batch: B, sealed_in: u64) {
        let mut base_sequence = -1;
        if let Some(producer) = &mut self.producer {
            base_sequence = producer.next;
            producer.next = advance(producer.next, batch.records());
        }
        self.entries.push_back(Entry {
            batch: Some(batch),
            base_sequence,
            attempt: None,
            attempts: 0,
            corrupt: 0,
            refusals: 0,
            code: 0,
            in_doubt: false,
            verdict: None,
            sealed_in,
        });
    }

    /// The answer to an attempt. Answers to attempts that are no longer of interest do nothing.
    pub fn answered(&mut self, now: Instant, attempt: u64, answer: Answer) {
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.attempt == Some(attempt)) else {
            return;
        };
        entry.attempt = None;
        self.in_flight -= 1;
        let verdict = match answer {
            Answer::Code(code) => verdict(code),
            Answer::Lost => Verdict::Retry { in_doubt: true, refresh: true },
            Answer::NotSent => Verdict::Retry { in_doubt: false, refresh: true },
        };
        if verdict == Verdict::Appended {
            if let Some(batch) = entry.batch.take() {
                self.outputs.push(Output::Complete { batch, fate: Fate::Success });
                if self.options.stored {
                    self.settling.push_back(self.generation + 1);
                }
            }
            while self.entries.front().is_some_and(|entry| entry.batch.is_none()) {
                self.entries.pop_front();
            }
            if !self.recovering {
                self.failures = 0;
                self.trouble = None;
                if let Some(producer) = &mut self.producer {
                    producer.confirmed_at = Some(now);
                }
            }
        } else {
            if let Answer::Code(code) = answer {
                entry.code = code;
                entry.refusals += u32::from(matches!(verdict, Verdict::Retry { .. }));
            }
            entry.verdict = Some(verdict);
            self.recovering = true;
            self.trouble = Some(match answer {
                Answer::Code(code) => Trouble::Code(code),
                Answer::Lost | Answer::NotSent => Trouble::Lost,
            });
        }
        self.settle(now);
    }

    /// Metadata names this leader. A change ends a pause, and gives up waiting for the old leader's answers
    /// where a resend is harmless.
    pub fn leader_is(&mut self, now: Instant, leader: Option<i32>) {
        if self.leader == leader {
            return;
        }
        self.leader = leader;
        if self.options.idempotent {
            for entry in self.entries.iter_mut().filter(|entry| entry.attempt.is_some()) {
                entry.attempt = None;
                entry.verdict = Some(Verdict::Retry { in_doubt: true, refresh: false });
                self.recovering = true;
            }
            self.in_flight = 0;
        }
        self.settle(now);
        self.resume_at = None;
        self.pump(now);
    }

    /// The producer id asked for. Everything held is stamped anew with it.
    pub fn producer_id_is(&mut self, now: Instant, id: i64, epoch: i16) {
        if self.producer.is_some() || !self.options.idempotent {
            return;
        }
        self.renumber(id, epoch);
        self.pump(now);
    }

    /// To be called at [`Self::deadline`].
    pub fn tick(&mut self, now: Instant) {
        if self.resume_at.is_some_and(|at| at <= now) {
            self.resume_at = None;
        }
        self.pump(now);
    }

    /// Gives up everything, whatever its fate: in order, with whether it was ever sent.
    pub fn abandon(&mut self) -> Vec<(B, bool)> {
        self.in_flight = 0;
        self.recovering = false;
        self.entries.drain(..).filter_map(|entry| Some((entry.batch?, entry.attempts > 0))).collect()
    }

    fn is_held(&self) -> bool {
        self.recovering
            || self.resume_at.is_some()
            || self.leader.is_none()
            || (self.in_flight > 0 && self.sent_to != self.leader)
            || (self.options.idempotent && self.producer.is_none())
    }

    /// Batches that may lie beyond the oldest unanswered one.
    fn window(&self, now: Instant) -> usize {
        let remembered = IDEMPOTENT_WINDOW.saturating_sub(self.settling.len());
        let window = self.window_without_disk(now);
        if self.options.stored { window.min(remembered) } else { window }
    }

    fn window_without_disk(&self, now: Instant) -> usize {
        let most = self.options.max_in_flight.max(1);
        if !self.options.idempotent {
            return 1;
        }
        if self.is_confirmed(now) { most.min(IDEMPOTENT_WINDOW) } else { 1 }
    }

    /// Batches taken, sent or not. With a disk buffer more than may be sent: a batch whose seal and whose
    /// predecessors' ends are durable by the time that its turn comes need not wait for a sync of its own.
    fn most_held(&self, now: Instant) -> usize {
        if self.options.stored && self.is_confirmed(now) {
            IDEMPOTENT_WINDOW
        } else {
            self.window_without_disk(now)
        }
    }

    /// Whether the broker knows the producer id and epoch.
    fn is_confirmed(&self, now: Instant) -> bool {
        let confirmed_at = self.producer.as_ref().and_then(|producer| producer.confirmed_at);
        confirmed_at.is_some_and(|at| now.saturating_duration_since(at) < CONFIRMED_FOR)
    }

    fn settle(&mut self, now: Instant) {
        if self.recovering && self.in_flight == 0 {
            self.recover(now);
        }
        self.pump(now);
    }

    /// When the oldest batch is to be given up for its age, as far as its fate is known.
    fn oldest_expires_at(&self) -> Option<Instant> {
        let oldest = self.entries.front().filter(|_| self.in_flight == 0 && !self.recovering)?;
        let known = !(oldest.in_doubt && self.options.idempotent);
        oldest.batch.as_ref().filter(|_| known)?.expires_at()
    }

    /// Gives up what is too old and in no doubt.
    fn expire(&mut self, now: Instant) {
        let mut gap = false;
        while self.oldest_expires_at().is_some_and(|at| at <= now) {
            self.give_up_oldest(Fate::Expired);
            gap = true;
        }
        if gap && self.options.idempotent {
            self.next_epoch();
        }
    }

    fn pump(&mut self, now: Instant) {
        self.expire(now);
        if self.replay == Replay::Under && self.entries.is_empty() {
            self.replay = Replay::No;
            self.new_producer_id();
        }
        self.send(now);
        self.order_seals();
    }

    /// Orders seals where a stamp is in none, or where batches wait for an end to become durable.
    fn order_seals(&mut self) {
        // Without a producer id all stamps are about to change.
        if !self.options.stored || self.producer.is_none() {
            return;
        }
        let unsealed = self.entries.iter().any(|entry| entry.batch.is_some() && entry.sealed_in == UNSEALED);
        let unsent = self.entries.iter().any(|entry| entry.batch.is_some() && entry.attempt.is_none());
        let unsettled = self.settling.back().is_some_and(|wanted| *wanted > self.generation);
        if unsealed || (unsent && unsettled) {
            self.generation += 1;
            for entry in self.entries.iter_mut().filter(|entry| entry.sealed_in == UNSEALED) {
                entry.sealed_in = self.generation;
            }
            self.outputs.push(Output::WriteSeals { generation: self.generation });
        }
    }

    fn send(&mut self, now: Instant) {
        if self.is_held() {
            return;
        }
        let (window, Some(leader)) = (self.window(now), self.leader) else { return };
        if self.replay == Replay::Unasked
            && let Some(producer) = &self.producer
        {
            self.replay = Replay::Asked;
            self.outputs.push(Output::AskForProducer { leader, id: producer.id });
        }
        if self.replay == Replay::Asked {
            return;
        }
        let durable = self.durable;
        // Counted from the oldest unanswered batch: complete ones behind it still take a broker's memory.
        for entry in self.entries.iter_mut().take(window) {
            let Some(batch) = &entry.batch else { continue };
            if entry.attempt.is_some() {
                continue;
            }
            if entry.sealed_in > durable {
                break;
            }
            let attempt = self.next_attempt;
            self.next_attempt += 1;
            entry.attempt = Some(attempt);
            self.outputs.push(Output::Send {
                attempt,
                leader,
                wire: batch.wire(),
                records: batch.records(),
                again: entry.attempts > 0,
            });
            entry.attempts = entry.attempts.saturating_add(1);
            self.in_flight += 1;
            self.sent_to = Some(leader);
        }
    }

    /// All answers are in, at least one of them bad: decides what happens to each batch.
    fn recover(&mut self, now: Instant) {
        self.recovering = false;
        if let Some(producer) = &mut self.producer {
            producer.confirmed_at = None;
        }
        let (mut refresh, mut pause, mut gap) = (false, false, false);
        let mut sequence_error = None;
        let mut index = 0;
        while let Some(entry) = self.entries.get_mut(index) {
            let Some(verdict) = entry.verdict.take() else {
                index += 1;
                continue;
            };
            let oldest = index == 0;
            let remedy = match (&verdict, &mut entry.batch) {
                (Verdict::BadTimestamp, Some(batch)) => batch.mend_timestamps(),
                _ => Remedy::None,
            };
            match verdict {
                Verdict::Appended => {}
                Verdict::BadTimestamp if remedy == Remedy::Restamped => {
                    // The same stamp for other bytes: nothing with it was appended.
                    entry.sealed_in = if self.options.stored { UNSEALED } else { 0 };
                }
                Verdict::BadTimestamp if remedy == Remedy::Wait => {
                    entry.refusals += 1;
                    pause = true;
                    if oldest && self.options.max_retries.is_some_and(|most| entry.refusals > most) {
                        let fate = Fate::RetriesUsedUp { code: entry.code };
                        self.give_up_oldest(fate);
                        gap = true;
                        continue;
                    }
                }
                Verdict::Retry { in_doubt, refresh: wanted } => {
                    entry.in_doubt |= in_doubt;
                    refresh |= wanted;
                    pause = true;
                    let known = !(entry.in_doubt && self.options.idempotent);
                    if oldest && known && self.options.max_retries.is_some_and(|most| entry.refusals > most) {
                        let fate = Fate::RetriesUsedUp { code: entry.code };
                        self.give_up_oldest(fate);
                        gap = true;
                        continue;
                    }
                }
                Verdict::TooLarge | Verdict::BadRecord(_) | Verdict::BadTimestamp => {
                    let reason = match verdict {
                        Verdict::TooLarge => {
                            self.limit_batch_bytes(index);
                            TOO_LARGE
                        }
                        Verdict::BadRecord(reason) => reason,
                        _ => ReasonCode::PayloadFormatInvalid,
                    };
                    let code = self.entries.get(index).map_or(0, |entry| entry.code);
                    if self.split(index) {
                        index += 2;
                        continue;
                    }
                    if oldest {
                        self.give_up_oldest(Fate::Refused { reason, code });
                        gap = true;
                        continue;
                    }
                    pause = true;
                }
                Verdict::BadBatch(reason) => {
                    if oldest {
                        let code = entry.code;
                        self.give_up_oldest(Fate::Refused { reason, code });
                        gap = true;
                        continue;
                    }
                    pause = true;
                }
                Verdict::Corrupt => {
                    entry.corrupt += 1;
                    // Other attempts may have arrived undamaged: only a batch whose every attempt was refused
                    // goes.
                    if oldest && entry.corrupt >= CORRUPT_ATTEMPTS && !entry.in_doubt {
                        let (reason, code) = (ReasonCode::ImplementationSpecificError, entry.code);
                        self.give_up_oldest(Fate::Refused { reason, code });
                        gap = true;
                        continue;
                    }
                    pause = true;
                }
                Verdict::OutOfOrder | Verdict::Fenced | Verdict::Forgotten => {
                    if oldest && self.options.idempotent {
                        sequence_error = Some(verdict);
                    }
                    pause = true;
                }
            }
            index += 1;
        }
        if self.options.idempotent {
            // Whatever is behind a batch that was never appended was not appended either: its fate is known.
            match sequence_error {
                _ if gap => self.next_epoch(),
                Some(Verdict::OutOfOrder) => {
                    self.report_possible_duplicates();
                    self.next_epoch();
                }
                Some(_) => {
                    self.report_possible_duplicates();
                    self.new_producer_id();
                }
                None => {}
            }
        }
        if refresh {
            self.outputs.push(Output::NeedMetadata);
        }
        if pause {
            self.failures = self.failures.saturating_add(1);
            let full = BACKOFF_FIRST.saturating_mul(1 << (self.failures - 1).min(16)).min(BACKOFF_LAST);
            self.resume_at = Some(now + full.mul_f64(self.rng.random_range(0.5..1.0)));
        }
    }

    fn limit_batch_bytes(&mut self, index: usize) {
        let Some(batch) = self.entries.get(index).and_then(|entry| entry.batch.as_ref()) else { return };
        // Half of what was refused, so that several refused batches of one size halve the limit once.
        let limit = (batch.weight() / 2).max(1);
        if batch.records() > 1 && limit < self.batch_bytes {
            self.batch_bytes = limit;
            self.outputs.push(Output::LimitBatchBytes(limit));
        }
    }

    /// Replaces a batch of several records by its halves; the sequence of each record stays.
    fn split(&mut self, index: usize) -> bool {
        let Some(entry) = self.entries.get_mut(index) else { return false };
        let Some(batch) = entry.batch.take() else { return false };
        if batch.records() < 2 {
            entry.batch = Some(batch);
            return false;
        }
        match batch.split() {
            Ok((mut first, mut second)) => {
                let base = entry.base_sequence;
                let middle = if base < 0 { -1 } else { advance(base, first.records()) };
                if let Some(producer) = &self.producer {
                    let stamp = BatchStamp {
                        producer_id: producer.id,
                        producer_epoch: producer.epoch,
                        base_sequence: base,
                    };
                    first.restamp(stamp);
                    second.restamp(BatchStamp { base_sequence: middle, ..stamp });
                }
                entry.batch = Some(first);
                entry.sealed_in = if self.options.stored { UNSEALED } else { 0 };
                let sealed_in = entry.sealed_in;
                let (attempts, in_doubt, code) = (entry.attempts, entry.in_doubt, entry.code);
                self.entries.insert(
                    index + 1,
                    Entry {
                        batch: Some(second),
                        base_sequence: middle,
                        attempt: None,
                        attempts,
                        corrupt: 0,
                        refusals: 0,
                        code,
                        in_doubt,
                        verdict: None,
                        sealed_in,
                    },
                );
                true
            }
            Err(whole) => {
                entry.batch = Some(whole);
                false
            }
        }
    }

    fn give_up_oldest(&mut self, fate: Fate) {
        if let Some(batch) = self.entries.pop_front().and_then(|entry| entry.batch) {
            self.outputs.push(Output::Complete { batch, fate });
        }
        while self.entries.front().is_some_and(|entry| entry.batch.is_none()) {
            self.entries.pop_front();
        }
        if self.entries.is_empty() {
            // There is nothing left that does not move.
            self.trouble = None;
        }
    }

    fn report_possible_duplicates(&mut self) {
        let records: u32 = self
            .entries
            .iter()
            .filter(|entry| entry.in_doubt)
            .filter_map(|entry| entry.batch.as_ref())
            .map(Batch::records)
            .sum();
        if records > 0 {
            self.outputs.push(Output::PossibleDuplicates(records));
        }
    }

    fn next_epoch(&mut self) {
        match &self.producer {
            Some(producer) if producer.epoch < i16::MAX => {
                let (id, epoch) = (producer.id, producer.epoch + 1);
                self.renumber(id, epoch);
            }
            _ => self.new_producer_id(),
        }
    }

    fn new_producer_id(&mut self) {
        if let Some(old) = self.producer.take() {
            self.outputs.push(Output::NeedProducerId { instead_of: Some(old.id) });
        }
    }

    fn renumber(&mut self, id: i64, epoch: i16) {
        let mut next = 0;
        for entry in &mut self.entries {
            let Some(batch) = &mut entry.batch else { continue };
            batch.restamp(BatchStamp { producer_id: id, producer_epoch: epoch, base_sequence: next });
            entry.base_sequence = next;
            entry.in_doubt = false;
            entry.sealed_in = if self.options.stored { UNSEALED } else { 0 };
            next = advance(next, batch.records());
        }
        self.producer = Some(Producer { id, epoch, next, confirmed_at: None });
    }
}

/// The sequence `records` after `sequence`.
fn advance(sequence: i32, records: u32) -> i32 {
    BatchStamp::sequence_after(sequence, records as usize)
}

#[cfg(test)]
#[path = "core_simulation.rs"]
mod simulation;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_wrap_to_zero_after_their_highest_value() {
        assert_eq!(advance(i32::MAX, 1), 0);
        assert_eq!(advance(i32::MAX - 1, 1), i32::MAX);
        assert_eq!(advance(i32::MAX - 2, 10), 7);
    }
}
