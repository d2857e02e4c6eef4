//! A device that publishes numbered messages and remembers precisely what it did and what it was told.
//!
//! It keeps one session through all its connections (MQTT 5: expiry; before: clean session off) and does what
//! the standard tells it after each of them: PUBLISH again with DUP what was not answered, PUBREL again what
//! was (MQTT-4.4.0-1), in the order of the first time. It also leaves by itself: without a word, with answers
//! unread. What the node must not do in an answer is written down as a [`Complaint`].
//!
//! Some devices end their session now and then (clean start), give up what is open, and begin another one
//! with the packet identifiers of the first.

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
use crate::mqtt::wire::{ConnAck, Connect, DISCONNECT, Packet, Publish, Version, ack, first};

/// How long a CONNECT may wait for its answer before the device tries again.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// How long a read waits for something to come before the device looks at its other duties.
const TURN: Duration = Duration::from_millis(4);

/// Seconds that its session outlives a connection.
pub(super) const EXPIRY: u32 = 3600;

/// A session that has been there this long is on the disk, unless the disk was full.
const SURELY_STORED: Duration = Duration::from_secs(5);

/// How long a device that has ended its session waits for the node to die before it comes back.
const LONGEST_REST: Duration = Duration::from_secs(3);

/// How long messages that are released late wait for others.
const RELEASE_PAUSE: Duration = Duration::from_millis(150);

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
    /// Packet identifiers that it uses in turn, from 1; more than the window.
    pub identifiers: u16,
    /// QoS 2: whether it releases messages (PUBREL) several at a time instead of at once.
    pub releases_late: bool,
    /// Whether it ends its session now and then.
    pub ends_sessions: bool,
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
    /// Places of messages whose PUBACK or PUBREC is due, in the order in which they have to come
    /// (MQTT-4.6.0-2).
    due: VecDeque<usize>,
    /// As many PUBLISHes may be unanswered (QoS 2: until PUBCOMP).
    receive_maximum: usize,
    leaves_at: Option<Instant>,
    /// QoS 2: places of messages whose PUBREL is due, in order.
    unreleased: VecDeque<usize>,
    released_at: Instant,
}

/// The session that the device expects to find. A life is the one from before the CONNECT, so the node has
/// not died since if it is still the same.
#[derive(Debug, Clone, Copy)]
enum Session {
    /// None, there has never been one.
    Never,
    /// None: it was ended in this life of the node. The end is not waited for: with a death of the node the
    /// session may be there again.
    Ended { life: u32 },
    /// One, or none, or an old one, because a CONNECT was not answered: it has to be ended.
    Unknown,
    /// The one begun in this life. Its beginning is not waited for: until it is known to be on the disk, a
    /// death of the node may take it.
    Lasting { life: u32, began: Instant, is_stored: bool },
}

/// How a connection begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// With the session that is there.
    Resume,
    /// With a new session that lasts (MQTT 5).
    Afresh,
    /// With a new session that ends with the connection.
    Visit,
}

/// The next packet, or none within the stream's read timeout.
pub(super) fn next_packet(stream: &mut TcpStream, input: &mut Vec<u8>) -> Result<Option<Packet>> {
    if let Some(packet) = Packet::take(input)? {
        return Ok(Some(packet));
    }
    let mut buffer = [0; 16 << 10];
    match stream.read(&mut buffer) {
        Ok(0) => bail!("closed by the node"),
        Ok(count) => input.extend_from_slice(&buffer[..count]),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
            ) => {}
        Err(error) => return Err(error.into()),
    }
    Packet::take(input)
}

/// The answer to a CONNECT, which must be a success.
pub(super) fn connack(
    stream: &mut TcpStream,
    input: &mut Vec<u8>,
    version: Version,
    signals: &Signals,
) -> Result<ConnAck> {
    let deadline = Instant::now() + CONNECT_PATIENCE;
    loop {
        if let Some(packet) = next_packet(stream, input)? {
            let connack = packet.connack(version)?;
            ensure!(connack.reason == 0, "CONNACK {:#04x}", connack.reason);
            return Ok(connack);
        }
        ensure!(Instant::now() < deadline && !signals.is_over(), "no CONNACK");
    }
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
    session: Session,
}

impl<'a> Device<'a> {
    /// A device that has not connected yet.
    pub fn new(habits: Habits, signals: &'a Signals) -> Self {
        let rng = StdRng::seed_from_u64(habits.seed);
        let history = History::new(habits.clone());
        let next_at = Instant::now();
        Self {
            habits,
            signals,
            rng,
            history,
            open: Vec::new(),
            next_identifier: 0,
            next_at,
            session: Session::Never,
        }
    }

    /// Lives until it is told to begin nothing new and all is done, or until it is told to give up.
    pub fn live(mut self) -> History {
        while !(self.signals.is_over() || self.signals.is_last_call() && self.open.is_empty()) {
            let start = self.next_start();
            match self.connect(start) {
                Ok(Some(mut link)) => {
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
                Ok(None) => {}
                Err(_) => std::thread::sleep(Duration::from_millis(self.rng.random_range(10..150))),
            }
        }
        self.history
    }

    fn next_start(&mut self) -> Start {
        let may_end = self.habits.ends_sessions && !self.signals.is_last_call();
        match self.session {
            Session::Unknown => Start::Visit,
            Session::Lasting { .. } if may_end && self.signals.sessions_end() => Start::Visit,
            Session::Lasting { .. } if may_end && self.rng.random_bool(0.4) => {
                if self.habits.version == Version::V5 && self.rng.random_bool(0.25) {
                    Start::Afresh
                } else {
                    Start::Visit
                }
            }
            _ => Start::Resume,
        }
    }

    /// The session is gone, and with it what was open.
    fn abandon(&mut self) {
        let connection = self.history.connections.len().saturating_sub(1) as u16;
        let event = Event { at: self.signals.now(), connection, what: What::Abandoned };
        for place in std::mem::take(&mut self.open) {
            self.history.messages[place].events.push(event);
            self.history.messages[place].payload = Vec::new();
        }
        self.next_identifier = 0;
    }

    fn complain(&mut self, complaint: Complaint) {
        let at = self.signals.now();
        self.history.complaints.push((at, complaint));
    }

    /// A connection on which messages are sent; none where the session was ended or has to be ended first.
    fn connect(&mut self, start: Start) -> Result<Option<Link>> {
        let stream = TcpStream::connect(self.signals.mqtt())?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TURN))?;
        stream.set_write_timeout(Some(CONNECT_PATIENCE))?;
        let number = u16::try_from(self.history.connections.len()).context("too many connections")?;
        let mut link = Link {
            stream,
            input: Vec::new(),
            number,
            due: VecDeque::new(),
            receive_maximum: usize::MAX,
            leaves_at: None,
            unreleased: VecDeque::new(),
            released_at: Instant::now(),
        };
        let mut connect = Connect::new(self.habits.version, &self.habits.name()).keep_alive(0);
        if start != Start::Visit {
            connect = connect.lasting(EXPIRY).clean(start == Start::Afresh);
        }
        let expected = self.session;
        if start != Start::Resume {
            self.abandon();
        }
        if start != Start::Resume || matches!(expected, Session::Ended { .. }) {
            // Until there is an answer.
            self.session = Session::Unknown;
        }
        let life_before = self.signals.life();
        link.stream.write_all(&connect.bytes())?;
        let connack = connack(&mut link.stream, &mut link.input, self.habits.version, self.signals)?;
        // After the CONNACK: whoever has answered runs now, or has run under this number or an earlier one.
        let life = self.signals.life();
        if start != Start::Resume {
            self.history.sessions_ended += 1;
        }
        let begun = Session::Lasting { life: life_before, began: Instant::now(), is_stored: false };
        match (start, connack.session_present, expected) {
            (Start::Visit | Start::Afresh, true, _) => self.complain(Complaint::SessionFromNowhere),
            (Start::Visit, false, _) => return self.leave_for_good(&mut link, life_before),
            (Start::Afresh, false, _) | (Start::Resume, false, Session::Ended { .. }) => self.session = begun,
            (Start::Resume, true, Session::Ended { life: ended }) => {
                if ended == life {
                    self.complain(Complaint::SessionFromNowhere);
                }
                // MQTT-5.0 3.2.2.1.1: a client without session state has to start clean.
                return Ok(None);
            }
            (Start::Resume, present, Session::Never) => {
                if present {
                    self.complain(Complaint::SessionFromNowhere);
                }
                // The first one begins long before the first fault.
                self.session = Session::Lasting { life, began: Instant::now(), is_stored: true };
            }
            (Start::Resume, false, Session::Lasting { life: began, is_stored, .. }) => {
                if is_stored || began == life {
                    self.complain(Complaint::SessionLost);
                } else {
                    self.abandon();
                    self.session = begun;
                }
            }
            (Start::Resume, _, Session::Lasting { .. } | Session::Unknown) => {}
        }
        if let Some(maximum) = connack.properties.number(id::RECEIVE_MAXIMUM) {
            link.receive_maximum = usize::try_from(maximum)?;
        }
        link.leaves_at =
            self.habits.stays.map(|stays| Instant::now() + stays.mul_f64(self.rng.random_range(0.05..2.0)));
        self.history.connected(self.signals.now(), life);
        Ok(Some(link))
    }

    /// Ends a connection whose session ends with it, and rests: for a moment, or until the node has died, so
    /// that the next session may be the first of the node's next life.
    fn leave_for_good(&mut self, link: &mut Link, life: u32) -> Result<Option<Link>> {
        link.stream.write_all(&DISCONNECT)?;
        let until = Instant::now() + CONNECT_PATIENCE;
        // Until the node closes it; then it knows.
        while next_packet(&mut link.stream, &mut link.input).is_ok() {
            ensure!(Instant::now() < until && !self.signals.is_over(), "not closed by the node");
        }
        self.session = Session::Ended { life };
        let longest = if self.rng.random_bool(0.5) { LONGEST_REST } else { Duration::from_millis(200) };
        let until = Instant::now() + longest;
        self.signals.session_ended();
        while self.signals.life() == life
            && (Instant::now() < until || self.signals.sessions_end())
            && !self.signals.is_calm()
        {
            std::thread::sleep(TURN);
        }
        self.signals.has_rested();
        Ok(None)
    }

    /// The session that it has is on the disk.
    fn session_is_stored(&mut self) {
        if let Session::Lasting { is_stored, .. } = &mut self.session {
            *is_stored = true;
        }
    }

    /// One connection to its end, which is told in words.
    fn converse(&mut self, link: &mut Link) -> Result<&'static str> {
        // PUBREL first or PUBLISH first is the same to the standard; each kind in the order of the first
        // time.
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
            let life_now = self.signals.life();
            if matches!(self.session, Session::Lasting { life, began, .. } if life == life_now && began.elapsed() > SURELY_STORED)
            {
                self.session_is_stored();
            }
            if self.habits.ends_sessions && self.signals.sessions_end() && !self.signals.is_last_call() {
                return Ok("left to end its session");
            }
            self.begin_new(link)?;
            while let Some(packet) = next_packet(&mut link.stream, &mut link.input)? {
                self.take(link, &packet)?;
                self.begin_new(link)?;
            }
            self.release_late(link)?;
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
            self.next_identifier = self.next_identifier % self.habits.identifiers + 1;
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

    /// Releases what has waited for its release, when it is enough, long enough ago, or the end.
    fn release_late(&mut self, link: &mut Link) -> Result<()> {
        let is_due = link.unreleased.len() * 2 >= self.habits.window
            || link.released_at.elapsed() >= RELEASE_PAUSE
            || self.signals.is_last_call();
        if is_due {
            link.released_at = Instant::now();
            while let Some(place) = link.unreleased.pop_front() {
                self.release(link, place)?;
            }
        }
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
        if answer.reason == 0x10 {
            // A success with which nothing takes the message: wrong while its bridge is enabled.
            self.complain(Complaint::Refused { message: place as u64, reason: answer.reason });
        }
        if answer.reason >= 0x80 {
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
        // The identifier is on the disk before its PUBREC, and so is its session.
        self.session_is_stored();
        if self.habits.releases_late {
            link.unreleased.push_back(place);
            return Ok(());
        }
        self.release(link, place)
    }
}
