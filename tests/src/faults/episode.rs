//! One episode: everything that its seed chooses, and its course.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::configuration::{Bridge, Buffer, Configuration, Consumer, Limits, Mapping};
use super::deliveries::{self, Books, Due, Lane};
use super::device::{Device, Habits};
use super::disk::SmallDisk;
use super::history::History;
use super::kafka_hand::Kafka;
use super::kinds::Kind;
use super::node_hand::{NodeHand, panics};
use super::signals::Signals;
use super::subscriber::{Reception, Subscriber, Tastes, all_are_there};
use super::verdict::{Law, Verdict};
use super::way_back::{self, Source};
use super::{Options, Report, Tally, Where};
use crate::mqtt::Version;
use crate::node::Node;
use crate::{say, unique};

/// What is open when the hands rest must have ended by then.
const PATIENCE: Duration = Duration::from_secs(90);

/// Size of the node's disk in MB: room for its sessions and buffers, and soon filled.
const DISK: u32 = 96;

/// The device that publishes slowly to a topic that no bridge takes has this number.
const SLOW: u32 = 100;

/// Partitions of a topic for the way back, at first.
const WAY_BACK_PARTITIONS: usize = 2;

/// When no delivery has come for as long, none comes any more.
const QUIET: Duration = Duration::from_millis(300);

/// Places of the mappings of the consumer bridge: with QoS 1, with QoS 0; the third is added later, with
/// QoS 1.
const TELEMETRY: usize = 1;

/// Records of a round for each partition of the topic with QoS 0.
const TELEMETRY_RECORDS: usize = 15;

/// See the module.
pub struct Episode {
    seed: u64,
    place: Where,
    length: Duration,
    /// Brokers of a development Kafka.
    pub brokers: usize,
    node_may_die: bool,
    kinds: Vec<Kind>,
    bridges: Vec<Bridge>,
    /// Topics for the way back: the two that are mapped from the beginning, and the one that may be added.
    sources: Vec<Source>,
    least_queue: u32,
    devices: Vec<Habits>,
    subscribers: Vec<Tastes>,
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
            None => Buffer::ALL.to_vec(),
        };
        let is_real = options.place != Where::Development;
        let mut length = Duration::from_secs(rng.random_range(if is_real { 35..50 } else { 12..25 }));
        let brokers = rng.random_range(1..=3);
        // What only the death of the node may do must not hide what nothing may do.
        let mut node_may_die = rng.random_bool(0.6);
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
                is_enabled: true,
                wrong_bootstrap: None,
            }
        };
        let bridges = vec![
            bridge("keyed", "k/#", |topic| topic.starts_with("k/"), true, &mut rng),
            bridge("random", "r/#", |topic| topic.starts_with("r/"), false, &mut rng),
            bridge("both_keyed", "b/#", |topic| topic.starts_with("b/"), true, &mut rng),
            bridge("both_random", "b/#", |topic| topic.starts_with("b/"), false, &mut rng),
        ];
        let mut kinds: Vec<Kind> = match &options.kinds {
            Some(kinds) => kinds.clone(),
            None => Kind::ALL.into_iter().filter(|_| rng.random_bool(0.4)).collect(),
        };
        if options.kinds.is_some() {
            node_may_die |= !kinds.is_empty();
        } else if !node_may_die {
            kinds.retain(|kind| *kind != Kind::Configuration);
        }
        let has = |kind| kinds.contains(&kind);
        let count = rng.random_range(6..14);
        let mut devices: Vec<Habits> = (1..=count)
            .map(|number| {
                // Identifiers of messages that are received and not released yet are what these two are
                // about.
                let is_about_identifiers = has(Kind::SessionEnd) || has(Kind::LateBridge);
                let window = pick(&mut rng, &[1, 5, 20, 60]);
                let mut habits = Habits {
                    number,
                    version: pick(&mut rng, &[Version::V311, Version::V5, Version::V5]),
                    qos: if is_about_identifiers {
                        pick(&mut rng, &[1, 2, 2])
                    } else {
                        pick(&mut rng, &[1, 2])
                    },
                    topic: format!("{}/{number}", pick(&mut rng, &["k", "k", "r", "b"])),
                    window,
                    pause: Duration::from_micros(pick(&mut rng, &[2_000, 5_000, 10_000, 30_000])),
                    stays: rng.random_bool(0.7).then(|| Duration::from_millis(rng.random_range(500..8000))),
                    identifiers: if rng.random_bool(0.3) { u16::MAX } else { window as u16 + 3 },
                    releases_late: rng.random_bool(if is_about_identifiers { 0.7 } else { 0.3 }),
                    ends_sessions: has(Kind::SessionEnd) && rng.random_bool(0.5),
                    seed: rng.random(),
                };
                if habits.ends_sessions {
                    habits.stays = Some(Duration::from_millis(rng.random_range(300..2000)));
                }
                habits
            })
            .collect();
        let mut sources = Vec::new();
        if has(Kind::WayBack) {
            for (name, records) in [("commands", 1), ("telemetry", TELEMETRY_RECORDS), ("more", 1)] {
                sources.push(Source { topic: unique(name), records, goes_on: name == "telemetry" });
            }
        }
        let mut subscribers = Vec::new();
        // Small enough that messages with QoS 0 would fill it, or large enough for all that devices send.
        let least_queue = pick(&mut rng, &[1000, 50_000]);
        if has(Kind::WayBack) {
            let filters = vec![("down/#".to_owned(), 1)];
            subscribers.push(Self::subscriber("present", filters, None, false, &mut rng));
        }
        if has(Kind::Absence) {
            // The restart at the end, and what comes after it.
            length -= Duration::from_secs(3);
            for number in [SLOW, SLOW + 1] {
                devices.push(Habits {
                    number,
                    version: Version::V5,
                    qos: 1 + (number % 2) as u8,
                    topic: format!("s/{number}"),
                    window: 20,
                    pause: Duration::from_millis(50),
                    stays: Some(Duration::from_secs(4)),
                    identifiers: 23,
                    releases_late: false,
                    ends_sessions: false,
                    seed: rng.random(),
                });
            }
            let everything = |filters: &[(&str, u8)]| {
                filters.iter().map(|(filter, qos)| ((*filter).to_owned(), *qos)).collect::<Vec<_>>()
            };
            // QoS 0 of much, QoS 1 of little: the first must not push the second out.
            let mixed = [("k/#", 0), ("r/#", 0), ("b/#", 0), ("down/1", 0), ("s/#", 1), ("down/0", 1)];
            subscribers.push(Self::subscriber("mixed", everything(&mixed), None, true, &mut rng));
            subscribers.push(Self::subscriber(
                "once",
                everything(&[("k/#", 2), ("s/#", 2)]),
                None,
                true,
                &mut rng,
            ));
            let most = everything(&[("b/#", 1), ("s/#", 2), ("down/2", 1)]);
            subscribers.push(Self::subscriber("here", most, None, false, &mut rng));
            let shared = vec![("r/#".to_owned(), pick(&mut rng, &[1, 2]))];
            for (name, is_absentee) in [("member-1", false), ("member-2", true), ("member-3", false)] {
                subscribers.push(Self::subscriber(
                    name,
                    shared.clone(),
                    Some("share"),
                    is_absentee,
                    &mut rng,
                ));
            }
        }
        let place = options.place.clone();
        Ok(Self {
            seed,
            place,
            length,
            brokers,
            node_may_die,
            kinds,
            bridges,
            sources,
            least_queue,
            devices,
            subscribers,
            rng,
        })
    }

    fn subscriber(
        name: &str,
        filters: Vec<(String, u8)>,
        group: Option<&'static str>,
        is_absentee: bool,
        rng: &mut StdRng,
    ) -> Tastes {
        Tastes {
            name: name.to_owned(),
            version: pick(rng, &[Version::V311, Version::V5, Version::V5]),
            filters,
            group,
            is_absentee,
            stays: Some(Duration::from_millis(if is_absentee {
                rng.random_range(200..1500)
            } else {
                rng.random_range(3000..8000)
            })),
            away: Duration::from_millis(if is_absentee { rng.random_range(3000..8000) } else { 100 }),
            seed: rng.random(),
        }
    }

    fn configuration(&self, bootstrap: String, rng: &mut StdRng) -> Configuration {
        let mapping = |(place, source): (usize, &Source)| Mapping {
            topic: source.topic.clone(),
            qos: u8::from(place != TELEMETRY),
        };
        let mut mappings: Vec<Mapping> = self.sources.iter().enumerate().map(mapping).collect();
        if self.may_add_topic() {
            mappings.pop();
        }
        Configuration {
            bootstrap,
            request_timeout: pick(rng, &["2s", "5s", "30s"]),
            refresh: pick(rng, &["50ms", "500ms", "3s"]),
            bridges: self.bridges.clone(),
            consumer: (!mappings.is_empty()).then(|| Consumer {
                group: unique("group"),
                is_enabled: true,
                mappings,
            }),
            limits: Limits {
                queue: self.least_queue,
                least_queue: self.least_queue,
                inflight: 128,
                partition: "8MB",
            },
        }
    }

    /// Whether the third topic is added to the consumer bridge in the course of the episode, if at all.
    fn may_add_topic(&self) -> bool {
        self.kinds.contains(&Kind::Configuration) && self.kinds.contains(&Kind::WayBack)
    }

    /// Plays it. A conviction is an error with the schedule of faults and the first offenders.
    pub fn play(mut self, kafka: &mut Kafka) -> Result<Report> {
        for bridge in &self.bridges {
            kafka.create_topic(&bridge.topic, bridge.partitions)?;
        }
        for source in &self.sources {
            kafka.create_topic(&source.topic, WAY_BACK_PARTITIONS)?;
        }
        let disk = match SmallDisk::mount(DISK) {
            Ok(disk) => Some(disk),
            Err(error) => {
                say(&format!("faults: no disk is filled: {error:#}"));
                None
            }
        };
        let mut rng = StdRng::seed_from_u64(self.rng.random());
        let configuration = self.configuration(kafka.bootstrap(), &mut rng);
        let data = disk.as_ref().map(SmallDisk::data);
        let node = Node::start_in(data.as_deref(), &configuration.text())?;
        let signals = Signals::new(node.mqtt());
        let admin = node.admin().to_owned();
        let data = node.data();
        let node = Mutex::new(node);
        let direct = kafka.direct();
        let mut topics: Vec<_> =
            self.bridges.iter().map(|bridge| (bridge.topic.clone(), bridge.partitions)).collect();
        topics.extend(self.sources.iter().map(|source| (source.topic.clone(), WAY_BACK_PARTITIONS)));
        let (mut node_rng, mut kafka_rng) =
            (StdRng::seed_from_u64(rng.random()), StdRng::seed_from_u64(rng.random()));
        let more = self.sources.last().filter(|_| self.may_add_topic());
        let mut hand = NodeHand {
            node: &node,
            disk: disk.as_ref(),
            may_die: self.node_may_die,
            signals: &signals,
            kinds: &self.kinds,
            configuration,
            data,
            direct: direct.clone(),
            more: more.map(|source| Mapping { topic: source.topic.clone(), qos: 1 }),
            sessions_end: self.devices.iter().filter(|habits| habits.ends_sessions).count(),
            growing: self.sources.first().map(|source| (source.topic.clone(), WAY_BACK_PARTITIONS)),
        };
        let receptions: Vec<Mutex<Reception>> =
            self.subscribers.iter().map(|tastes| Mutex::new(Reception::new(tastes.clone()))).collect();

        let (mut node_tally, mut kafka_tally) = (Tally::default(), Tally::default());
        let course = thread::scope(|scope| {
            let subscribers: Vec<_> = receptions
                .iter()
                .map(|reception| scope.spawn(|| Subscriber::new(reception, &signals).live()))
                .collect();
            if let Err(error) = all_are_there(&receptions) {
                signals.call_over();
                return Err(error);
            }
            let devices: Vec<_> = self
                .devices
                .iter()
                .map(|habits| scope.spawn(|| Device::new(habits.clone(), &signals).live()))
                .collect();
            let books = scope.spawn(|| watch_books(&admin, &signals));
            if !self.sources.is_empty() {
                scope.spawn(|| way_back::produce(&direct, &self.sources, &signals));
            }
            let (hand, tally) = (&mut hand, &mut node_tally);
            let node_hand = scope.spawn(move || hand.strike_on(&mut node_rng, tally));
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
            if !devices.iter().all(thread::ScopedJoinHandle::is_finished) {
                signals.call_over();
            }
            let histories: Vec<History> =
                devices.into_iter().filter_map(|device| device.join().ok()).collect();
            let has_struck = struck.iter().all(|outcome| matches!(outcome, Ok(Ok(()))));
            let given = if has_struck && !signals.is_over() {
                self.follow_deliveries(&receptions, &histories, &direct, &signals)
            } else {
                Ok(Given::default())
            };
            signals.call_over();
            let books = books.join();
            let subscribers = subscribers.into_iter().all(|subscriber| subscriber.join().is_ok());
            for outcome in struck.into_iter().chain([books]) {
                outcome.map_err(|_| anyhow!("a hand of the test panicked"))??;
            }
            ensure!(histories.len() == self.devices.len(), "a device of the test panicked");
            ensure!(subscribers, "a subscriber of the test panicked");
            Ok((histories, given?))
        });
        let told = |error: anyhow::Error| {
            error.context(format!("{self}\nschedule of faults:\n{}", signals.schedule()))
        };
        let (histories, given) = course.map_err(told)?;
        let node = node.into_inner().map_err(|_| anyhow!("a hand of the test panicked"))?;
        let mut verdict = self.judge(kafka, &node, &histories, &signals).map_err(told)?;
        let books = Books { histories: &histories, lanes: &given.lanes, queue: u64::from(self.least_queue) };
        verdict.add(books.judge(&receptions, &given.missing, &given.held_up));
        if let Some(stalled) = given.stalled {
            verdict.held_up += 1;
            verdict.told.push(stalled);
        }
        if !verdict.is_innocent() {
            let log = node.log_tail();
            let status = node.ctl(&["bridges"], "").map(|told| told.stdout).unwrap_or_default();
            bail!(
                "{verdict}\n{}\n{status}\nlog of the node:\n{log}\n{self}\nschedule of faults:\n{}",
                verdict.told.join("\n"),
                signals.schedule()
            );
        }
        node_tally.add(&kafka_tally);
        for reception in &receptions {
            let missed = reception.lock().unwrap_or_else(PoisonError::into_inner).missed_restarts;
            node_tally.count_many("absences over a restart", missed);
        }
        let ended = histories.iter().map(|history| history.sessions_ended).sum();
        node_tally.count_many("sessions ended", ended);
        let reconnects =
            histories.iter().map(|history| history.connections.len().saturating_sub(1) as u64).sum();
        Ok(Report { episodes: 1, time: self.length, faults: node_tally, reconnects, verdict })
    }

    /// First those who are there get all that is theirs, while absentees are away; then these come back.
    fn follow_deliveries(
        &self,
        receptions: &[Mutex<Reception>],
        histories: &[History],
        direct: &str,
        signals: &Signals,
    ) -> Result<Given> {
        let mut lanes = Vec::new();
        for (place, source) in self.sources.iter().enumerate() {
            lanes.push(Lane {
                topic: format!("down/{place}"),
                qos: u8::from(place != TELEMETRY),
                ends: way_back::ends(direct, &source.topic, PATIENCE)?,
            });
        }
        // Where the topic was not added after all, it leads nowhere.
        if self.may_add_topic() && !signals.has_added_topic() {
            lanes.pop();
        }
        let books = Books { histories, lanes: &lanes, queue: u64::from(self.least_queue) };
        let present = receptions.iter().find(|reception| {
            let reception = reception.lock().unwrap_or_else(PoisonError::into_inner);
            !reception.tastes.is_absentee && reception.tastes.qos_of("down/1").is_some()
        });
        // Records with QoS 0 may have been missed; those from now on cannot be.
        let telemetry_flows = || {
            let (Some(lane), Some(present)) = (lanes.get(TELEMETRY), present) else { return true };
            let present = present.lock().unwrap_or_else(PoisonError::into_inner);
            lane.ends
                .iter()
                .all(|(partition, end)| present.highest.get(&(TELEMETRY, *partition)) >= Some(end))
        };
        let due = books.due_to_present(receptions);
        let held_up = deliveries::wait_for(receptions, due, PATIENCE, Duration::ZERO, telemetry_flows);
        let stalled = (!telemetry_flows()).then(|| {
            format!(
                "HELD UP: records with QoS 0 from {:?} on do not reach a subscriber that is there",
                lanes.get(TELEMETRY).map(|lane| &lane.ends)
            )
        });
        signals.log("those who are away come back");
        signals.call_home();
        let due = books.due(receptions);
        let missing = deliveries::wait_for(receptions, due, PATIENCE, QUIET, || true);
        Ok(Given { lanes, missing, held_up, stalled })
    }

    fn laws(&self, signals: &Signals) -> Vec<Law> {
        let law = |bridge: &Bridge| {
            let leniency = signals.leniency(bridge.name);
            Law {
                bridge: format!("bridge {} ({})", bridge.name, bridge.buffer.name()),
                takes: bridge.takes,
                is_keyed: bridge.is_keyed,
                // A disk buffer keeps the packet identifier of a message with its record.
                may_double_by_death: bridge.buffer != Buffer::Disk || leniency.may_double_by_death,
                may_reorder: leniency.may_reorder,
                off: signals.off(bridge.name),
            }
        };
        self.bridges.iter().map(law).collect()
    }

    fn judge(&self, kafka: &Kafka, node: &Node, histories: &[History], signals: &Signals) -> Result<Verdict> {
        panics(node)?;
        let laws = self.laws(signals);
        let mut verdict = Verdict::of_devices(&laws, histories);
        for (bridge, law) in self.bridges.iter().zip(&laws) {
            // First, so that nothing is on its way any more when Kafka is read.
            let books = match verdict.open {
                0 => Some(node.settled(&format!("kafka:{}", bridge.name), PATIENCE)?),
                _ => None,
            };
            let records = kafka.read(&bridge.topic)?;
            verdict.add(Verdict::of(law, histories, &records));
            let Some(books) = books else { continue };
            let found = records.len() as u64;
            // Of what an earlier life wrote this one's books say nothing.
            let counts_anew = signals.leniency(bridge.name).may_recount;
            let all = signals.life() == 1 && !counts_anew;
            let fits = if all { books.success == found } else { books.success <= found };
            if !fits || !counts_anew && (books.failed > 0 || books.dropped() > 0) {
                verdict.books += 1;
                let name = bridge.name;
                verdict.told.push(format!("BOOKS of {name}, where Kafka has {found} records: {books:?}"));
            }
        }
        Ok(verdict)
    }
}

/// What came of the deliveries.
#[derive(Default)]
struct Given {
    lanes: Vec<Lane>,
    missing: Vec<Due>,
    held_up: Vec<Due>,
    stalled: Option<String>,
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
        if !self.kinds.is_empty() {
            let kinds: Vec<&str> = self.kinds.iter().map(|kind| kind.name()).collect();
            write!(out, "; {}", kinds.join(", "))?;
        }
        if !self.node_may_die {
            out.write_str("; the node does not die")?;
        }
        Ok(())
    }
}
