//! One episode: everything that its seed chooses, and its course.

use std::fmt;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::device::{Device, Habits};
use super::disk::SmallDisk;
use super::history::History;
use super::kafka_hand::Kafka;
use super::node_hand::{NodeHand, panics};
use super::signals::Signals;
use super::verdict::{Law, Verdict};
use super::{Options, Report, Tally, Where};
use crate::mqtt::Version;
use crate::node::Node;
use crate::{say, unique};

/// What is open when the hands rest must have ended by then.
const PATIENCE: Duration = Duration::from_secs(90);

/// Size of the node's disk in MB: room for its sessions and buffers, and soon filled.
const DISK: u32 = 64;

/// Where records wait for Kafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Buffer {
    /// In memory.
    Memory,
    /// In files, fsynced before the acknowledgement.
    Disk,
    /// In memory and beyond a bound in files.
    Hybrid,
}

impl Buffer {
    /// As the configuration has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Hybrid => "hybrid",
        }
    }
}

/// The buffers that there are.
const BUFFERS: [Buffer; 3] = [Buffer::Memory, Buffer::Disk, Buffer::Hybrid];

/// One bridge of an episode.
#[derive(Debug, Clone)]
struct Bridge {
    name: &'static str,
    filter: &'static str,
    takes: fn(&str) -> bool,
    is_keyed: bool,
    buffer: Buffer,
    /// Lines of its `kafka` section.
    settings: String,
    topic: String,
    partitions: usize,
}

/// See the module.
pub struct Episode {
    seed: u64,
    place: Where,
    length: Duration,
    /// Brokers of a development Kafka.
    pub brokers: usize,
    node_may_die: bool,
    bridges: Vec<Bridge>,
    devices: Vec<Habits>,
    rng: StdRng,
}

fn pick<T: Copy>(rng: &mut StdRng, from: &[T]) -> T {
    from[rng.random_range(0..from.len())]
}

impl Episode {
    /// The one with this seed.
    pub fn of(seed: u64, options: &Options) -> Result<Self> {
        let mut rng = StdRng::seed_from_u64(seed);
        let known = match options.buffer {
            Some(buffer) => vec![buffer],
            None => BUFFERS.to_vec(),
        };
        let is_real = options.place != Where::Development;
        let length = Duration::from_secs(rng.random_range(if is_real { 35..50 } else { 12..25 }));
        let brokers = rng.random_range(1..=3);
        // What only the death of the node may do must not hide what nothing may do.
        let node_may_die = rng.random_bool(0.6);
        let bridge = |name: &'static str,
                      filter: &'static str,
                      takes: fn(&str) -> bool,
                      is_keyed: bool,
                      rng: &mut StdRng| {
            let settings = [
                format!("max_batch_bytes = {}", pick(rng, &["600B", "2KB", "16KB", "896KB"])),
                format!("max_inflight = {}", pick(rng, &[1, 2, 5, 10])),
                format!("max_linger_time = {}", pick(rng, &["0ms", "0ms", "5ms", "50ms"])),
                format!("compression = {}", pick(rng, &["no_compression", "lz4", "zstd", "snappy", "gzip"])),
                format!("reconnect_delay = {}", pick(rng, &["20ms", "200ms", "1s"])),
                "partition_count_refresh_interval = 5s".to_owned(),
            ];
            Bridge {
                name,
                filter,
                takes,
                is_keyed,
                buffer: pick(rng, &known),
                settings: settings.join("\n"),
                topic: unique(name),
                partitions: pick(rng, &[1, 3, 6]),
            }
        };
        let bridges = vec![
            bridge("keyed", "k/#", |topic| topic.starts_with("k/"), true, &mut rng),
            bridge("random", "r/#", |topic| topic.starts_with("r/"), false, &mut rng),
            bridge("both_keyed", "b/#", |topic| topic.starts_with("b/"), true, &mut rng),
            bridge("both_random", "b/#", |topic| topic.starts_with("b/"), false, &mut rng),
        ];
        let devices = (1..=rng.random_range(6..14))
            .map(|number| Habits {
                number,
                version: pick(&mut rng, &[Version::V311, Version::V5, Version::V5]),
                qos: pick(&mut rng, &[1, 2]),
                topic: format!("{}/{number}", pick(&mut rng, &["k", "k", "r", "b"])),
                window: pick(&mut rng, &[1, 5, 20, 60]),
                pause: Duration::from_micros(pick(&mut rng, &[2_000, 5_000, 10_000, 30_000])),
                stays: rng.random_bool(0.7).then(|| Duration::from_millis(rng.random_range(500..8000))),
                seed: rng.random(),
            })
            .collect();
        let place = options.place.clone();
        Ok(Self { seed, place, length, brokers, node_may_die, bridges, devices, rng })
    }

    fn configuration(&self, bootstrap: &str, rng: &mut StdRng) -> String {
        let request_timeout = pick(rng, &["2s", "5s", "30s"]);
        let refresh = pick(rng, &["50ms", "500ms", "3s"]);
        let bridge = |bridge: &Bridge| {
            format!(
                r#"bridges.kafka.{} {{
                  bootstrap_hosts = "{bootstrap}"
                  local_topic = "{}"
                  connect_timeout = 2s, metadata_request_timeout = 2s, request_timeout = {request_timeout}
                  min_metadata_refresh_interval = {refresh}
                  kafka {{
                    topic = "{}"
                    partition_strategy = {}
                    message {{ key = "${{.clientid}}", value = "${{.payload}}" }}
                    buffer {{ mode = {}, per_partition_limit = 8MB{} }}
                    {}
                  }}
                }}
                "#,
                bridge.name,
                bridge.filter,
                bridge.topic,
                if bridge.is_keyed { "key_dispatch" } else { "random" },
                bridge.buffer.name(),
                if bridge.buffer == Buffer::Memory { "" } else { ", segment_bytes = 256KB" },
                bridge.settings,
            )
        };
        self.bridges.iter().map(bridge).collect()
    }

    /// Plays it. A conviction is an error with the schedule of faults and the first offenders.
    pub fn play(mut self, kafka: &mut Kafka) -> Result<Report> {
        for bridge in &self.bridges {
            kafka.create_topic(&bridge.topic, bridge.partitions)?;
        }
        let disk = match SmallDisk::mount(DISK) {
            Ok(disk) => Some(disk),
            Err(error) => {
                say(&format!("faults: no disk is filled: {error:#}"));
                None
            }
        };
        let mut rng = StdRng::seed_from_u64(self.rng.random());
        let configuration = self.configuration(&kafka.bootstrap(), &mut rng);
        let data = disk.as_ref().map(SmallDisk::data);
        let node = Node::start_in(data.as_deref(), &configuration)?;
        let signals = Signals::new(node.mqtt());
        let admin = node.admin().to_owned();
        let node = Mutex::new(node);
        let topics: Vec<_> =
            self.bridges.iter().map(|bridge| (bridge.topic.clone(), bridge.partitions)).collect();
        let (mut node_rng, mut kafka_rng) =
            (StdRng::seed_from_u64(rng.random()), StdRng::seed_from_u64(rng.random()));
        let hand =
            NodeHand { node: &node, disk: disk.as_ref(), may_die: self.node_may_die, signals: &signals };

        let (mut node_tally, mut kafka_tally) = (Tally::default(), Tally::default());
        let course = thread::scope(|scope| {
            let devices: Vec<_> = self
                .devices
                .iter()
                .map(|habits| scope.spawn(|| Device::new(habits.clone(), &signals).live()))
                .collect();
            let books = scope.spawn(|| watch_books(&admin, &signals));
            let node_hand = scope.spawn(|| hand.strike_on(&mut node_rng, &mut node_tally));
            let kafka_hand =
                scope.spawn(|| kafka.strike_on(&mut kafka_rng, &topics, &signals, &mut kafka_tally));
            let end = Instant::now() + self.length;
            while Instant::now() < end && !node_hand.is_finished() && !kafka_hand.is_finished() {
                thread::sleep(Duration::from_millis(20));
            }
            signals.call_calm();
            let struck = [node_hand.join(), kafka_hand.join()];
            signals.log("the faults have stopped");
            signals.call_last();
            let end = Instant::now() + PATIENCE;
            while Instant::now() < end && !devices.iter().all(thread::ScopedJoinHandle::is_finished) {
                thread::sleep(Duration::from_millis(20));
            }
            signals.call_over();
            let books = books.join();
            let histories: Vec<History> =
                devices.into_iter().filter_map(|device| device.join().ok()).collect();
            for outcome in struck.into_iter().chain([books]) {
                outcome.map_err(|_| anyhow!("a hand of the test panicked"))??;
            }
            ensure!(histories.len() == self.devices.len(), "a device of the test panicked");
            Ok(histories)
        });
        let told = |error: anyhow::Error| {
            error.context(format!("{self}\nschedule of faults:\n{}", signals.schedule()))
        };
        let histories = course.map_err(told)?;
        let node = node.into_inner().map_err(|_| anyhow!("a hand of the test panicked"))?;
        let verdict = self.judge(kafka, &node, &histories, &signals).map_err(told)?;
        if !verdict.is_innocent() {
            let log = node.log_tail();
            bail!(
                "{verdict}\n{}\nlog of the node:\n{log}\n{self}\nschedule of faults:\n{}",
                verdict.told.join("\n"),
                signals.schedule()
            );
        }
        node_tally.add(&kafka_tally);
        let reconnects =
            histories.iter().map(|history| history.connections.len().saturating_sub(1) as u64).sum();
        Ok(Report { episodes: 1, time: self.length, faults: node_tally, reconnects, verdict })
    }

    fn judge(&self, kafka: &Kafka, node: &Node, histories: &[History], signals: &Signals) -> Result<Verdict> {
        panics(node)?;
        let mut verdict = Verdict::of_devices(histories);
        for bridge in &self.bridges {
            // First, so that nothing is on its way any more when Kafka is read.
            let books = match verdict.open {
                0 => Some(node.settled(&format!("kafka:{}", bridge.name), PATIENCE)?),
                _ => None,
            };
            let records = kafka.read(&bridge.topic)?;
            let law = Law {
                bridge: format!("bridge {} ({})", bridge.name, bridge.buffer.name()),
                takes: bridge.takes,
                is_keyed: bridge.is_keyed,
                // A disk buffer keeps the packet identifier of a message with its record.
                may_double_by_death: bridge.buffer != Buffer::Disk,
            };
            verdict.add(Verdict::of(&law, histories, &records));
            let Some(books) = books else { continue };
            let found = records.len() as u64;
            // Of what an earlier life wrote this one's books say nothing.
            let fits = if signals.life() == 1 { books.success == found } else { books.success <= found };
            if !fits || books.failed > 0 || books.dropped() > 0 {
                verdict.books += 1;
                let name = bridge.name;
                verdict.told.push(format!("BOOKS of {name}, where Kafka has {found} records: {books:?}"));
            }
        }
        Ok(verdict)
    }
}

/// The law of the books, looked at all the time; while the node is away nothing can be said.
fn watch_books(admin: &str, signals: &Signals) -> Result<()> {
    while !signals.is_over() && !signals.is_last_call() {
        thread::sleep(Duration::from_millis(300));
        let life = signals.life();
        let Ok(ledgers) = Node::ledgers_at(admin) else { continue };
        for (bridge, ledger) in ledgers {
            ensure!(ledger.imbalance() == 0, "life {life}: the books of {bridge} do not balance: {ledger:?}");
        }
    }
    Ok(())
}

impl fmt::Display for Episode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |qos| self.devices.iter().filter(|habits| habits.qos == qos).count();
        let brokers = if self.place == Where::Development { self.brokers } else { 3 };
        write!(
            out,
            "seed {}, Kafka: {} ({brokers} brokers), {} s, devices: {} with QoS 1, {} with QoS 2; bridges:",
            self.seed,
            self.place,
            self.length.as_secs(),
            count(1),
            count(2)
        )?;
        for bridge in &self.bridges {
            write!(out, " {} ({}, {} partitions)", bridge.name, bridge.buffer.name(), bridge.partitions)?;
        }
        if !self.node_may_die {
            out.write_str("; the node does not die")?;
        }
        Ok(())
    }
}
