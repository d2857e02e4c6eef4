//! The judge: devices publish numbered messages while everything that can break breaks at random; then an
//! independent client reads Kafka, and every acknowledgement is held against what is there.
//!
//! * An *episode* is a Kafka, a node, some devices and some bridges, for half a minute or so; everything
//!   about it that can be chosen follows from one seed ([`Episode`]). When things happen depends on the
//!   machine, so a seed that convicts once may need a few runs to do so again.
//! * Subscribers with sessions that last come and go; some are away while the node is restarted
//!   ([`subscriber`]). Records come from Kafka as well ([`way_back`]).
//! * Two hands strike at once: one at the node its configuration ([`changes`]) and its disk ([`node_hand`]),
//!   one at Kafka and the way to it ([`kafka_hand`]). Devices leave by themselves as well ([`device`]).
//! * When the hands rest, devices begin nothing new; what is open must come to its end. Then subscribers that
//!   are there must have been given what is theirs, and at last those that come back.
//! * [`verdict`] says what is lost, twice, out of order, astray, damaged or open, with the history of the
//!   first offenders; [`deliveries`] says so of what subscribers were given. The books of the bridges must
//!   balance all the time.

mod changes;
pub mod configuration;
pub mod deliveries;
pub mod device;
pub mod disk;
mod episode;
pub mod history;
pub mod kafka_hand;
pub mod kinds;
pub mod node_hand;
pub mod proxy;
pub mod signals;
pub mod subscriber;
pub mod verdict;
pub mod way_back;

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub use configuration::Buffer;
pub use episode::Episode;
use kafka_hand::Kafka;
pub use kinds::Kind;
use verdict::Verdict;

use crate::say;

/// Episodes on one Apache Kafka before it is started afresh.
const EPISODES_A_CLUSTER: u32 = 4;

/// Which Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Where {
    /// The one inside Causeway.
    Development,
    /// Three brokers of a release of Apache Kafka, by its number.
    Apache(String),
}

impl fmt::Display for Where {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Development => out.write_str("development"),
            Self::Apache(name) => out.write_str(name),
        }
    }
}

/// Faults by kind.
#[derive(Debug, Clone, Default)]
pub struct Tally(BTreeMap<&'static str, u64>);

impl Tally {
    /// One more.
    pub fn count(&mut self, kind: &'static str) {
        self.count_many(kind, 1);
    }

    /// So many more.
    pub fn count_many(&mut self, kind: &'static str, count: u64) {
        if count > 0 {
            *self.0.entry(kind).or_default() += count;
        }
    }

    /// Adds another one.
    pub fn add(&mut self, other: &Self) {
        for (kind, count) in &other.0 {
            *self.0.entry(kind).or_default() += count;
        }
    }

    /// All faults.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<String> = self.0.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        out.write_str(&kinds.join(", "))
    }
}

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// No episode is begun after this time.
    pub time: Duration,
    /// Seed of the first episode; the next one has the next number.
    pub seed: u64,
    /// No more episodes than this.
    pub episodes: Option<u32>,
    /// Which Kafka.
    pub place: Where,
    /// Only bridges with this buffer. `None`: whatever the seed says, of those that the node has.
    pub buffer: Option<Buffer>,
    /// These kinds of trouble beside faults of Kafka, of the node's process and of its disk. `None`: whatever
    /// the seed says.
    pub kinds: Option<Vec<Kind>>,
}

/// What came of one episode or several.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Episodes.
    pub episodes: u64,
    /// Time under faults.
    pub time: Duration,
    /// Faults.
    pub faults: Tally,
    /// How often a device connected again.
    pub reconnects: u64,
    /// The verdict.
    pub verdict: Verdict,
}

impl Report {
    /// Adds another one.
    pub fn add(&mut self, other: Self) {
        self.episodes += other.episodes;
        self.time += other.time;
        self.faults.add(&other.faults);
        self.reconnects += other.reconnects;
        self.verdict.add(other.verdict);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} s under {} faults ({}), {} reconnects of devices; {}",
            self.time.as_secs(),
            self.faults.total(),
            self.faults,
            self.reconnects,
            self.verdict
        )
    }
}

/// Runs episode after episode until the time is over. The first that convicts is an error with all that is
/// known.
pub fn run(options: &Options) -> Result<Report> {
    let began = Instant::now();
    let mut report = Report::default();
    let mut kafka: Option<Kafka> = None;
    for number in 0..options.episodes.unwrap_or(u32::MAX) {
        if began.elapsed() >= options.time {
            break;
        }
        let seed = options.seed.wrapping_add(u64::from(number));
        let episode = Episode::of(seed, options)?;
        say(&format!("faults: {episode}"));
        let fresh = match &options.place {
            Where::Development => true,
            Where::Apache(_) => number.is_multiple_of(EPISODES_A_CLUSTER),
        };
        if fresh || kafka.is_none() {
            // The old one ends before the new one begins.
            drop(kafka.take());
            kafka = Some(Kafka::start(&options.place, episode.brokers)?);
        }
        let Some(kafka) = &mut kafka else { bail!("no Kafka") };
        let one = episode.play(kafka).with_context(|| {
            format!(
                "tests/faults/run --kafka {} --seed {seed} --episodes 1{}{}   plays this episode again",
                options.place,
                options.buffer.map_or(String::new(), |buffer| format!(" --buffer {}", buffer.name())),
                options.kinds.as_ref().map_or(String::new(), |kinds| {
                    let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
                    format!(
                        " --faults {}",
                        if names.is_empty() { "none".to_owned() } else { names.join(",") }
                    )
                })
            )
        })?;
        say(&format!("faults: seed {seed}: {one}"));
        report.add(one);
    }
    Ok(report)
}
