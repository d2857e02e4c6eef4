//! A device that publishes numbered messages and remembers precisely what it did and what it was told.
//!
//! It keeps one session through all its connections (MQTT 5: expiry; before: clean session off) and does what the
//! standard tells it after each of them: PUBLISH again with DUP what was not answered, PUBREL again what was
//! (MQTT-4.4.0-1), in the order of the first time. It also leaves by itself: without a word, with answers unread. What
//! the node must not do in an answer is written down as a [`Complaint`].

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use causeway_benches::stamp::{self, Stamp};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::history::{Complaint, Event, History, Message, What};
use super::signals::Signals;
use crate::mqtt::property::{Properties, id};
use crate::mqtt::wire::{Connect, DISCONNECT, Packet, Publish, Version, ack, first};

/// How long a CONNECT may wait for its answer before the device tries again.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// How long a read waits for something to come before the device looks at its other duties.
const TURN: Duration = Duration::from_millis(4);

/// Seconds that its session outlives a connection.
const EXPIRY: u32 = 3600;

/// What a device is like.
#[derive(Debug, Clone)]
pub struct Habits {
    /// Number, which is in every payload.
    pub number: u32,
    /// Protocol.
    pub version: Version,
    /// 1 or 2.
    pub qos: u8,
    /// Topic, which decides which bridges take its messages.
    pub topic: String,
    /// Messages that may be on their way at once.
    pub window: usize,
    /// Between two new messages, on average.
    pub pause: Duration,
    /// How long it stays connected by itself, on average; `None`: it never leaves.
    pub stays: Option<Duration>,
    /// Seed of its own.
    pub seed: u64,
}

impl Habits {
    /// Client identifier.
    pub fn name(&self) -> String {
        format!("device-{}", self.number)
    }
}

struct Link {
    stream: TcpStream,
    input: Vec<u8>,
    number: u16,
    /// Places of messages whose PUBACK or PUBREC is due, in the order in which they have to come (MQTT-4.6.0-2).
    due: VecDeque<usize>,
    /// As many PUBLISHes may be unanswered (QoS 2: until PUBCOMP).
    receive_maximum: usize,
    leaves_at: Option<Instant>,
}

/// See the module.
pub struct Device<'a> {
    habits: Habits,
    signals: &'a Signals,
    rng: StdRng,
    history: History,
    /// Places in the history of what is not done.
    open: Vec<usize>,
    next_identifier: u16,
    next_at: Instant,
}

impl<'a> Device<'a> {
    /// A device that has not connected yet.
    pub fn new(habits: Habits, signals: &'a Signals) -> Self {
        let rng = StdRng::seed_from_u64(habits.seed);
        let history = History::new(habits.clone());
        let next_at = Instant::now();
        Self { habits, signals, rng, history, open: Vec::new(), next_identifier: 0, next_at }
    }

    /// Lives until it is told to begin nothing new and all is done, or until it is told to give up.
    pub fn live(mut self) -> History {
        while !(self.signals.is_over() || self.signals.is_last_call() && self.open.is_empty()) {
            match self.connect() {
                Ok(mut link) => {
                    let end = self.converse(&mut link);
                    let at = self.signals.now();
                    let why = match end {
                        Ok(why) => why.to_owned(),
                        Err(error) => format!("{error:#}"),
                    };
                    if let Some(connection) = self.history.connections.last_mut() {
                        connection.ended = Some((at, why));
                    }
                }
                Err(_) => std::thread::sleep(Duration::from_millis(self.rng.random_range(10..150))),
            }
        }
        self.history
    }

    fn complain(&mut self, complaint: Complaint) {
        let at = self.signals.now();
        self.history.complaints.push((at, complaint));
    }

    fn connect(&mut self) -> Result<Link> {
        let stream = TcpStream::connect(self.signals.mqtt())?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TURN))?;
        stream.set_write_timeout(Some(CONNECT_PATIENCE))?;
        let number = u16::try_from(self.history.connections.len()).context("too many connections")?;
        let (due, input) = (VecDeque::new(), Vec::new());
        let mut link = Link { stream, input, number, due, receive_maximum: usize::MAX, leaves_at: None };
        let connect = Connect::new(self.habits.version, &self.habits.name()).keep_alive(0).lasting(EXPIRY);
        link.stream.write_all(&connect.bytes())?;
        let deadline = Instant::now() + CONNECT_PATIENCE;
        let connack = loop {
            if let Some(packet) = Self::read(&mut link)? {
                break packet.connack(self.habits.version)?;
            }
            ensure!(Instant::now() < deadline && !self.signals.is_over(), "no CONNACK");
        };
        ensure!(connack.reason == 0, "CONNACK {:#04x}", connack.reason);
        // After the CONNACK: whoever has answered runs now, or has run under this number or an earlier one.
        let life = self.signals.life();
        let has_been_here = !self.history.connections.is_empty();
        if has_been_here != connack.session_present {
            self.complain(if has_been_here { Complaint::SessionLost } else { Complaint::SessionFromNowhere });
        }
        if let Some(maximum) = connack.properties.number(id::RECEIVE_MAXIMUM) {
            link.receive_maximum = usize::try_from(maximum)?;
        }
        link.leaves_at =
            self.habits.stays.map(|stays| Instant::now() + stays.mul_f64(self.rng.random_range(0.05..2.0)));
        self.history.connected(self.signals.now(), life);
        Ok(link)
    }

    /// What has come, or nothing within a turn.
    fn read(link: &mut Link) -> Result<Option<Packet>> {
        if let Some(packet) = Packet::take(&mut link.input)? {
            return Ok(Some(packet));
        }
        let mut buffer = [0; 16 << 10];
        match link.stream.read(&mut buffer) {
            Ok(0) => bail!("closed by the node"),
            Ok(count) => link.input.extend_from_slice(&buffer[..count]),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(error.into()),
        }
        Packet::take(&mut link.input)
    }

    /// One connection to its end, which is told in words.
    fn converse(&mut self, link: &mut Link) -> Result<&'static str> {
        // PUBREL first or PUBLISH first is the same to the standard; each kind in the order of the first time.
        for place in self.open.clone() {
            if self.history.messages[place].is_received {
                self.release(link, place)?;
            } else {
                self.publish(link, place)?;
            }
        }
        loop {
            if self.signals.is_over() {
                return Ok("given up");
            }
            if link.leaves_at.is_some_and(|at| at <= Instant::now()) && !self.signals.is_last_call() {
                if self.rng.random_bool(0.3) {
                    link.stream.write_all(&DISCONNECT)?;
                    return Ok("left in order");
                }
                // With answers unread, which makes the system reset the connection.
                return Ok("left without a word");
            }
            if self.signals.is_last_call() && self.open.is_empty() {
                link.stream.write_all(&DISCONNECT)?;
                return Ok("done");
            }
            self.begin_new(link)?;
            while let Some(packet) = Self::read(link)? {
                self.take(link, &packet)?;
                self.begin_new(link)?;
            }
        }
    }

    fn begin_new(&mut self, link: &mut Link) -> Result<()> {
        let window = self.habits.window.min(link.receive_maximum);
        while !self.signals.is_last_call() && self.open.len() < window && self.next_at <= Instant::now() {
            self.next_at =
                self.next_at.max(Instant::now().checked_sub(self.habits.pause * 4).unwrap_or(self.next_at))
                    + self.habits.pause.mul_f64(self.rng.random_range(0.0..2.0));
            let identifier = self.free_identifier();
            let size = match self.rng.random_range(0..100) {
                0 => self.rng.random_range(4_000..20_000),
                _ => self.rng.random_range(stamp::HEAD..400),
            };
            let sequence = self.history.messages.len() as u64;
            let mut payload = Vec::with_capacity(size);
            Stamp { client: self.habits.number, sequence, sent: stamp::now() }.append(size, &mut payload);
            let place = self.history.messages.len();
            self.history.messages.push(Message::new(identifier, payload));
            self.open.push(place);
            self.publish(link, place)?;
        }
        Ok(())
    }

    fn free_identifier(&mut self) -> u16 {
        loop {
            self.next_identifier = self.next_identifier.checked_add(1).unwrap_or(1);
            let identifier = self.next_identifier;
            if self.open.iter().all(|&place| self.history.messages[place].identifier != identifier) {
                return identifier;
            }
        }
    }

    fn note(&mut self, link: &Link, place: usize, what: What) {
        let event = Event { at: self.signals.now(), connection: link.number, what };
        self.history.messages[place].events.push(event);
    }

    fn publish(&mut self, link: &mut Link, place: usize) -> Result<()> {
        let again = !self.history.messages[place].events.is_empty();
        // Before it is written: what fails half-way may have arrived.
        self.note(link, place, if again { What::SentAgain } else { What::Sent });
        let message = &self.history.messages[place];
        let mut publish = Publish::new(self.habits.version, &self.habits.topic, &message.payload)
            .qos(self.habits.qos, message.identifier);
        publish.dup = again;
        link.due.push_back(place);
        link.stream.write_all(&publish.bytes())?;
        Ok(())
    }

    fn release(&mut self, link: &mut Link, place: usize) -> Result<()> {
        self.note(link, place, What::Released);
        link.stream.write_all(&ack(first::PUBREL, self.history.messages[place].identifier))?;
        Ok(())
    }

    fn done(&mut self, place: usize) {
        self.open.retain(|open| *open != place);
        // Not needed any more.
        self.history.messages[place].payload = Vec::new();
    }

    fn take(&mut self, link: &mut Link, packet: &Packet) -> Result<()> {
        let kind = packet.first & 0xF0;
        if kind == first::DISCONNECT {
            let reason = packet.disconnect()?.reason;
            // 0x8B: the server is being stopped, which the test does.
            if reason != 0x8B {
                self.complain(Complaint::SentAway(reason));
            }
            bail!("DISCONNECT {reason:#04x}");
        }
        let expected = match (kind, self.habits.qos) {
            (first::PUBACK, 1) | (first::PUBREC | first::PUBCOMP, 2) => kind,
            _ => {
                self.complain(Complaint::NotAnAnswer(packet.to_string()));
                bail!("not an answer: {packet}");
            }
        };
        let answer = match packet.ack(self.habits.version, expected) {
            Ok(answer) => answer,
            Err(error) => {
                self.complain(Complaint::NotAnAnswer(format!("{packet}: {error:#}")));
                return Err(error);
            }
        };
        let identifier = answer.packet_identifier;
        if expected == first::PUBCOMP {
            let released = |&&place: &&usize| {
                let message = &self.history.messages[place];
                message.identifier == identifier && message.is_received
            };
            let Some(place) = self.open.iter().find(released).copied() else {
                self.complain(Complaint::NotAnAnswer(format!("PUBCOMP for nothing: {packet}")));
                bail!("PUBCOMP for nothing");
            };
            // 0x92 answers a PUBREL that is sent again after its first PUBCOMP was lost.
            self.note(link, place, What::Completed(answer.reason));
            self.done(place);
            return Ok(());
        }
        let Some(place) = link.due.pop_front() else {
            self.complain(Complaint::NotAnAnswer(format!("nothing is due: {packet}")));
            bail!("nothing is due");
        };
        if self.history.messages[place].identifier != identifier {
            self.complain(Complaint::OutOfTurn { message: place as u64, packet: packet.to_string() });
            bail!("answered out of turn");
        }
        if answer.reason >= 0x80 || answer.reason == 0x10 {
            self.note(link, place, What::Refused(answer.reason));
            self.complain(Complaint::Refused { message: place as u64, reason: answer.reason });
            self.done(place);
            return Ok(());
        }
        if expected == first::PUBACK {
            self.note(link, place, What::Acknowledged);
            self.done(place);
            return Ok(());
        }
        self.note(link, place, What::Received);
        self.history.messages[place].is_received = true;
        self.release(link, place)
    }
}
