//! A subscriber whose session lasts: it comes and goes, does what MQTT tells a receiver, and remembers every
//! delivery.
//!
//! It subscribes once, before the first fault. Two kinds: *present* ones leave for moments only and are back
//! as soon as the faults stop; *absentees* are away most of the time, also when the faults stop, until they
//! are called home.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::net::TcpStream;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use causeway_benches::stamp::Stamp;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::device::{EXPIRY, connack, next_packet};
use super::signals::Signals;
use crate::mqtt::wire::{Connect, DISCONNECT, Packet, Published, Version, ack, first, subscribe};

/// How long a read waits for something to come.
const TURN: Duration = Duration::from_millis(10);

/// How long SUBACK, and the end of a connection that was ended in order, may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The packet identifier of its SUBSCRIBE.
const SUBSCRIBE: u16 = 1;

/// What a subscriber is like.
#[derive(Debug, Clone)]
pub struct Tastes {
    /// Client identifier.
    pub name: String,
    /// Protocol.
    pub version: Version,
    /// Filters with their QoS; no two of them match the same topic.
    pub filters: Vec<(String, u8)>,
    /// The group in which it shares them.
    pub group: Option<&'static str>,
    /// Away most of the time.
    pub is_absentee: bool,
    /// How long it stays connected, on average; `None`: it never leaves by itself.
    pub stays: Option<Duration>,
    /// How long it stays away, on average.
    pub away: Duration,
    /// Seed of its own.
    pub seed: u64,
}

impl Tastes {
    /// The QoS of its subscription that matches a topic, if one does.
    pub fn qos_of(&self, topic: &str) -> Option<u8> {
        let matches = |filter: &str| match filter.strip_suffix('#') {
            Some(prefix) => topic.starts_with(prefix),
            None => filter == topic,
        };
        self.filters.iter().find(|(filter, _)| matches(filter)).map(|(_, qos)| *qos)
    }
}

/// Where a message comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// This message of a device.
    Device {
        /// Number of the device.
        number: u32,
        /// Number of the message.
        message: u64,
    },
    /// This record of Kafka.
    Record {
        /// Place of its topic in the consumer bridge's mappings.
        topic: usize,
        /// Partition.
        partition: i32,
        /// Offset.
        offset: i64,
    },
}

/// A message that was delivered. A QoS 2 message that is sent again before its release is not delivered
/// again.
#[derive(Debug, Clone, Copy)]
pub struct Delivery {
    /// Since the beginning of the episode.
    pub at: Duration,
    /// Number of the connection.
    pub connection: usize,
    /// The message.
    pub origin: Origin,
    /// With this QoS.
    pub qos: u8,
    /// DUP flag.
    pub dup: bool,
}

/// A connection of a subscriber.
#[derive(Debug, Clone, Copy)]
pub struct Attendance {
    /// Since when it tried to connect.
    pub tried: Duration,
    /// CONNACK came; after the first connection SUBACK.
    pub began: Duration,
    /// The life of the node that answered, or a later one.
    pub life: u32,
    /// When it ended.
    pub ended: Option<Duration>,
    /// It ended with DISCONNECT, and the node has closed it.
    pub is_known: bool,
}

/// All that a subscriber knows.
#[derive(Debug)]
pub struct Reception {
    /// What it is like.
    pub tastes: Tastes,
    /// Its connections.
    pub connections: Vec<Attendance>,
    /// Since when it tries to connect again.
    pub trying: Option<Duration>,
    /// Every delivery, in order.
    pub deliveries: Vec<Delivery>,
    /// What was delivered at all.
    pub seen: HashSet<Origin>,
    /// The highest offset of each partition (place of the topic, partition) that was delivered.
    pub highest: HashMap<(usize, i32), i64>,
    /// What the node must not have done.
    pub complaints: Vec<(Duration, String)>,
    /// How often the node ended while it was away.
    pub missed_restarts: u64,
}

impl Reception {
    /// Of a subscriber that has not connected yet.
    pub fn new(tastes: Tastes) -> Self {
        Self {
            tastes,
            connections: Vec::new(),
            trying: None,
            deliveries: Vec::new(),
            seen: HashSet::new(),
            highest: HashMap::new(),
            complaints: Vec::new(),
            missed_restarts: 0,
        }
    }

    /// Every delivery of a message, for people.
    pub fn deliveries_of(&self, origin: Origin) -> Vec<String> {
        let tell = |delivery: &Delivery| {
            let connection = self.connections.get(delivery.connection);
            format!(
                "    {:8.3} s  to {} on connection {:2} (from {:.3?} s to {:.3?} s, life {:?}), QoS {}, DUP {}",
                delivery.at.as_secs_f64(),
                self.tastes.name,
                delivery.connection,
                connection.map(|connection| connection.began.as_secs_f64()),
                connection.and_then(|connection| Some(connection.ended?.as_secs_f64())),
                connection.map(|connection| connection.life),
                delivery.qos,
                delivery.dup
            )
        };
        self.deliveries.iter().filter(|delivery| delivery.origin == origin).map(tell).collect()
    }
}

struct Link {
    stream: TcpStream,
    input: Vec<u8>,
    leaves_at: Option<Instant>,
}

/// How a connection ended.
enum End {
    /// With DISCONNECT, and the node has closed it.
    InOrder,
    /// In another way.
    Otherwise,
}

/// See the module.
pub struct Subscriber<'a> {
    tastes: Tastes,
    signals: &'a Signals,
    reception: &'a Mutex<Reception>,
    rng: StdRng,
    /// QoS 2: identifiers that were received and are not released.
    received: HashMap<u16, Origin>,
}

impl<'a> Subscriber<'a> {
    /// A subscriber that has not connected yet.
    pub fn new(reception: &'a Mutex<Reception>, signals: &'a Signals) -> Self {
        let tastes = reception.lock().unwrap_or_else(PoisonError::into_inner).tastes.clone();
        let rng = StdRng::seed_from_u64(tastes.seed);
        Self { tastes, signals, reception, rng, received: HashMap::new() }
    }

    fn note<T>(&self, note: impl FnOnce(&mut Reception) -> T) -> T {
        note(&mut self.reception.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn complain(&self, complaint: impl Into<String>) {
        let at = self.signals.now();
        self.note(|reception| reception.complaints.push((at, complaint.into())));
    }

    /// Lives until the end of the episode.
    pub fn live(mut self) {
        while !self.signals.is_over() {
            let now = self.signals.now();
            self.note(|reception| *reception.trying.get_or_insert(now));
            let Ok(mut link) = self.connect() else {
                thread::sleep(Duration::from_millis(self.rng.random_range(10..150)));
                continue;
            };
            if self.tastes.is_absentee {
                self.signals.absentee_came();
            }
            let end = self.converse(&mut link);
            let at = self.signals.now();
            drop(link);
            if self.tastes.is_absentee {
                self.signals.absentee_left();
            }
            self.note(|reception| {
                if let Some(connection) = reception.connections.last_mut() {
                    connection.ended = Some(at);
                    connection.is_known = matches!(end, Ok(End::InOrder));
                }
            });
            self.stay_away();
        }
    }

    fn must_be_away(&self) -> bool {
        self.tastes.is_absentee && self.signals.is_calm() && !self.signals.is_homecoming()
    }

    fn stay_away(&mut self) {
        let life = self.signals.life();
        let until = Instant::now() + self.tastes.away.mul_f64(self.rng.random_range(0.3..2.0));
        let is_absentee = self.tastes.is_absentee;
        if is_absentee {
            self.signals.log(format!("{} goes away", self.tastes.name));
        }
        while !self.signals.is_over() {
            let may_return = if is_absentee { self.signals.is_homecoming() } else { self.signals.is_calm() };
            if may_return || Instant::now() >= until && !self.must_be_away() {
                break;
            }
            thread::sleep(TURN);
        }
        let missed = u64::from(self.signals.life().saturating_sub(life));
        if is_absentee {
            self.signals.log(format!("{} comes back, {missed} restarts later", self.tastes.name));
            self.note(|reception| reception.missed_restarts += missed);
        }
    }

    fn connect(&mut self) -> Result<Link> {
        let stream = TcpStream::connect(self.signals.mqtt())?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TURN))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut link = Link { stream, input: Vec::new(), leaves_at: None };
        let version = self.tastes.version;
        let connect = Connect::new(version, &self.tastes.name).keep_alive(0).lasting(EXPIRY);
        link.stream.write_all(&connect.bytes())?;
        let connack = connack(&mut link.stream, &mut link.input, version, self.signals)?;
        let life = self.signals.life();
        let is_first = self.note(|reception| reception.connections.is_empty());
        if !is_first && !connack.session_present {
            self.complain("its session was lost");
        }
        if is_first {
            self.subscribe(&mut link)?;
        }
        link.leaves_at =
            self.tastes.stays.map(|stays| Instant::now() + stays.mul_f64(self.rng.random_range(0.1..2.0)));
        let began = self.signals.now();
        self.note(|reception| {
            let tried = reception.trying.take().unwrap_or(began);
            let attendance = Attendance { tried, began, life, ended: None, is_known: false };
            reception.connections.push(attendance);
        });
        Ok(link)
    }

    fn subscribe(&self, link: &mut Link) -> Result<()> {
        let shared = |filter: &str| match self.tastes.group {
            Some(group) => format!("$share/{group}/{filter}"),
            None => filter.to_owned(),
        };
        let filters: Vec<(String, u8)> =
            self.tastes.filters.iter().map(|(filter, qos)| (shared(filter), *qos)).collect();
        let filters: Vec<(&str, u8)> = filters.iter().map(|(filter, qos)| (filter.as_str(), *qos)).collect();
        link.stream.write_all(&subscribe(self.tastes.version, SUBSCRIBE, &filters))?;
        let deadline = Instant::now() + PATIENCE;
        // No device has begun: nothing else can come.
        loop {
            if let Some(packet) = next_packet(&mut link.stream, &mut link.input)? {
                let granted = packet.suback(self.tastes.version)?.reasons;
                let wanted: Vec<u8> = filters.iter().map(|(_, qos)| *qos).collect();
                ensure!(granted == wanted, "SUBACK {granted:?} for {filters:?}");
                return Ok(());
            }
            ensure!(Instant::now() < deadline && !self.signals.is_over(), "no SUBACK");
        }
    }

    fn converse(&mut self, link: &mut Link) -> Result<End> {
        loop {
            if self.signals.is_over() {
                return Ok(End::Otherwise);
            }
            let leaves = link.leaves_at.is_some_and(|at| at <= Instant::now()) && !self.signals.is_calm();
            if leaves || self.must_be_away() {
                if !self.tastes.is_absentee && self.rng.random_bool(0.7) {
                    return Ok(End::Otherwise);
                }
                return self.leave(link);
            }
            while let Some(packet) = next_packet(&mut link.stream, &mut link.input)? {
                self.take(link, &packet)?;
            }
        }
    }

    /// DISCONNECT, until the node has closed the connection; what comes meanwhile is not taken.
    fn leave(&self, link: &mut Link) -> Result<End> {
        link.stream.write_all(&DISCONNECT)?;
        let deadline = Instant::now() + PATIENCE;
        while next_packet(&mut link.stream, &mut link.input).is_ok() {
            ensure!(Instant::now() < deadline && !self.signals.is_over(), "not closed by the node");
        }
        Ok(End::InOrder)
    }

    fn take(&mut self, link: &mut Link, packet: &Packet) -> Result<()> {
        match packet.first & 0xF0 {
            first::DISCONNECT => {
                let reason = packet.disconnect()?.reason;
                // 0x8B: the server is being stopped, which the test does.
                if reason != 0x8B {
                    self.complain(format!("it was sent away with {reason:#04x}"));
                }
                bail!("DISCONNECT {reason:#04x}");
            }
            first::PUBLISH => {
                let publish = match packet.publish(self.tastes.version) {
                    Ok(publish) => publish,
                    Err(error) => {
                        self.complain(format!("{packet}: {error:#}"));
                        return Err(error);
                    }
                };
                self.take_publish(link, &publish)
            }
            // Type and flags: PUBREL alone has flags.
            _ if packet.first == first::PUBREL => {
                let identifier = packet.ack(self.tastes.version, first::PUBREL)?.packet_identifier;
                self.received.remove(&identifier);
                link.stream.write_all(&ack(first::PUBCOMP, identifier))?;
                Ok(())
            }
            _ => {
                self.complain(format!("not for a subscriber: {packet}"));
                bail!("not for a subscriber: {packet}");
            }
        }
    }

    fn take_publish(&mut self, link: &mut Link, publish: &Published) -> Result<()> {
        let identifier = publish.packet_identifier;
        let Some(origin) = origin(publish) else {
            let payload = String::from_utf8_lossy(&publish.payload[..publish.payload.len().min(60)]);
            self.complain(format!("it was given what was never sent, topic {}: {payload:?}", publish.topic));
            bail!("a message that was never sent");
        };
        if publish.qos == 2 {
            if let Some(before) = self.received.get(&identifier) {
                if *before != origin || !publish.dup {
                    self.complain(format!(
                        "identifier {identifier} came with {origin:?} (DUP {}) before {before:?} was released",
                        publish.dup
                    ));
                }
                link.stream.write_all(&ack(first::PUBREC, identifier))?;
                return Ok(());
            }
            self.received.insert(identifier, origin);
        }
        let at = self.signals.now();
        self.note(|reception| {
            let connection = reception.connections.len().saturating_sub(1);
            let (qos, dup) = (publish.qos, publish.dup);
            reception.deliveries.push(Delivery { at, connection, origin, qos, dup });
            reception.seen.insert(origin);
            if let Origin::Record { topic, partition, offset } = origin {
                let highest = reception.highest.entry((topic, partition)).or_insert(offset);
                *highest = offset.max(*highest);
            }
        });
        match publish.qos {
            0 => {}
            1 => link.stream.write_all(&ack(first::PUBACK, identifier))?,
            _ => link.stream.write_all(&ack(first::PUBREC, identifier))?,
        }
        Ok(())
    }
}

/// Where a message comes from, by its topic and payload.
fn origin(publish: &Published) -> Option<Origin> {
    let (kind, end) = publish.topic.split_once('/')?;
    if kind == "down" {
        let text = std::str::from_utf8(&publish.payload).ok()?;
        let mut words = text.split(' ');
        return Some(Origin::Record {
            topic: end.parse().ok()?,
            offset: words.next()?.parse().ok()?,
            partition: words.next()?.parse().ok()?,
        });
    }
    let stamp = Stamp::read(&publish.payload)?;
    (end.parse() == Ok(stamp.client))
        .then_some(Origin::Device { number: stamp.client, message: stamp.sequence })
}

/// Waits until all have subscribed.
pub fn all_are_there(receptions: &[Mutex<Reception>]) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let is_there = |reception: &Mutex<Reception>| {
        !reception.lock().unwrap_or_else(PoisonError::into_inner).connections.is_empty()
    };
    while !receptions.iter().all(is_there) {
        ensure!(Instant::now() < deadline, "not all subscribers have connected");
        thread::sleep(TURN);
    }
    Ok(())
}
