//! What a device did and was told, message by message: what a verdict is made of.

use std::fmt;
use std::time::Duration;

use super::device::Habits;

/// Something that happened to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// PUBLISH for the first time.
    Sent,
    /// PUBLISH with DUP on a later connection, because there was no answer to the one before.
    SentAgain,
    /// PUBACK.
    Acknowledged,
    /// PUBREC: the node has taken it on.
    Received,
    /// PUBREL.
    Released,
    /// PUBCOMP with this reason.
    Completed(u8),
    /// PUBACK or PUBREC with a failure.
    Refused(u8),
    /// The device ended its session, and with it what was open.
    Abandoned,
}

/// One event.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    /// Since the beginning of the episode.
    pub at: Duration,
    /// Number of the device's connection, from 0.
    pub connection: u16,
    /// What it was.
    pub what: What,
}

impl fmt::Display for Event {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.what {
            What::Sent => "PUBLISH".to_owned(),
            What::SentAgain => "PUBLISH again (DUP), not answered on an earlier connection".to_owned(),
            What::Acknowledged => "PUBACK".to_owned(),
            What::Received => "PUBREC".to_owned(),
            What::Released => "PUBREL".to_owned(),
            What::Completed(reason) => format!("PUBCOMP {reason:#04x}"),
            What::Refused(reason) => format!("refused with {reason:#04x}"),
            What::Abandoned => "abandoned: the device has ended its session".to_owned(),
        };
        write!(out, "{:8.3} s  connection {:2}  {what}", self.at.as_secs_f64(), self.connection)
    }
}

/// One message; its number is its place.
#[derive(Debug)]
pub struct Message {
    /// Packet identifier.
    pub identifier: u16,
    /// Payload, as long as it may have to be sent again.
    pub payload: Vec<u8>,
    /// PUBREC has come.
    pub is_received: bool,
    /// All that happened to it.
    pub events: Vec<Event>,
}

impl Message {
    /// Not sent yet.
    pub fn new(identifier: u16, payload: Vec<u8>) -> Self {
        Self { identifier, payload, is_received: false, events: Vec::new() }
    }

    /// The node has told that it answers for it.
    pub fn is_acknowledged(&self) -> bool {
        self.events.iter().any(|event| matches!(event.what, What::Acknowledged | What::Received))
    }

    /// Nothing is open any more.
    pub fn is_done(&self) -> bool {
        let ends = |event: &Event| {
            matches!(event.what, What::Acknowledged | What::Completed(_) | What::Refused(_) | What::Abandoned)
        };
        self.events.iter().any(ends)
    }

    /// The device gave it up before it knew whether the node has it, which may be or not be.
    pub fn is_unknown(&self) -> bool {
        !self.is_acknowledged() && self.events.iter().any(|event| event.what == What::Abandoned)
    }

    /// From when to when the node may have decided where an acknowledged message goes. QoS 1: a PUBLISH that
    /// is repeated is a new one, unless an earlier one is still held (see [`History::decided`]). QoS 2: only
    /// the first that arrived counts.
    pub fn decided(&self, qos: u8) -> Option<(Duration, Duration)> {
        let is_sent = |event: &&Event| matches!(event.what, What::Sent | What::SentAgain);
        let told =
            |event: &&Event| matches!(event.what, What::Acknowledged | What::Received | What::Refused(_));
        let mut sent = self.events.iter().filter(is_sent);
        let sent = if qos == 1 { sent.next_back() } else { sent.next() };
        Some((sent?.at, self.events.iter().find(told)?.at))
    }

    /// Connections on which PUBLISH was sent, in order.
    pub fn sent_on(&self) -> impl Iterator<Item = u16> {
        self.events
            .iter()
            .filter(|event| matches!(event.what, What::Sent | What::SentAgain))
            .map(|event| event.connection)
    }
}

/// A connection of a device.
#[derive(Debug, Clone)]
pub struct Connection {
    /// CONNACK came.
    pub began: Duration,
    /// Which start of the node answered (or a later one, where that had ended already).
    pub life: u32,
    /// When it ended, and why.
    pub ended: Option<(Duration, String)>,
}

/// Something that the node must never do, seen by a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Complaint {
    /// CONNACK without session present, although there had been one.
    SessionLost,
    /// CONNACK with session present on the first connection, or after the end of the session.
    SessionFromNowhere,
    /// A message was refused though every trouble was one that passes.
    Refused {
        /// Its number.
        message: u64,
        /// Reason code.
        reason: u8,
    },
    /// The oldest PUBLISH was due an answer, another one got it.
    OutOfTurn {
        /// Number of the oldest one.
        message: u64,
        /// What came.
        packet: String,
    },
    /// A packet that cannot come now.
    NotAnAnswer(String),
    /// DISCONNECT with this reason.
    SentAway(u8),
}

impl fmt::Display for Complaint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SessionLost => out.write_str("its session was lost"),
            Self::SessionFromNowhere => out.write_str("a session that it never had was present"),
            Self::Refused { message, reason } => {
                write!(out, "message {message} was refused with {reason:#04x}")
            }
            Self::OutOfTurn { message, packet } => {
                write!(out, "message {message} was due an answer, and {packet} came")
            }
            Self::NotAnAnswer(packet) => out.write_str(packet),
            Self::SentAway(reason) => write!(out, "it was sent away with {reason:#04x}"),
        }
    }
}

/// All that a device knows in the end.
#[derive(Debug)]
pub struct History {
    /// What it is like.
    pub habits: Habits,
    /// Its messages, by number.
    pub messages: Vec<Message>,
    /// Its connections, by number.
    pub connections: Vec<Connection>,
    /// What the node must not have done.
    pub complaints: Vec<(Duration, Complaint)>,
    /// How often it ended its session.
    pub sessions_ended: u64,
}

impl History {
    /// Of a device that did nothing yet.
    pub fn new(habits: Habits) -> Self {
        Self {
            habits,
            messages: Vec::new(),
            connections: Vec::new(),
            complaints: Vec::new(),
            sessions_ended: 0,
        }
    }

    /// A connection was made.
    pub fn connected(&mut self, began: Duration, life: u32) {
        self.connections.push(Connection { began, life, ended: None });
    }

    /// From when to when the node may have decided where an acknowledged message goes: [`Message::decided`],
    /// and for QoS 1 from the first PUBLISH to the same life of the node on, which may have been held when
    /// the repetition came.
    pub fn decided(&self, message: &Message) -> Option<(Duration, Duration)> {
        let (from, to) = message.decided(self.habits.qos)?;
        let life_of = |event: &Event| Some(self.connections.get(usize::from(event.connection))?.life);
        let is_sent = |event: &&Event| matches!(event.what, What::Sent | What::SentAgain);
        let decided_in =
            message.events.iter().filter(is_sent).find(|event| event.at == from).and_then(life_of);
        let held = message.events.iter().filter(is_sent).find(|event| life_of(event) == decided_in);
        Some((held.map_or(from, |held| held.at.min(from)), to))
    }

    /// For each PUBLISH of a message, from when to when the node may have decided where it goes: until an
    /// answer came, or the connection ended.
    pub fn undecided(&self, message: &Message) -> impl Iterator<Item = (Duration, Duration)> {
        let is_answer =
            |event: &&Event| matches!(event.what, What::Acknowledged | What::Received | What::Refused(_));
        let is_sent = |event: &&Event| matches!(event.what, What::Sent | What::SentAgain);
        message.events.iter().filter(is_sent).map(move |sent| {
            let answer =
                message.events.iter().filter(is_answer).find(|answer| answer.connection == sent.connection);
            let ended = self.connections.get(usize::from(sent.connection));
            let ended = ended.and_then(|connection| connection.ended.as_ref()).map(|(at, _)| *at);
            let until = answer.map(|answer| answer.at).or(ended);
            (sent.at, until.unwrap_or(Duration::MAX))
        })
    }

    /// How often PUBLISH was sent.
    pub fn times_sent(&self, message: &Message) -> usize {
        message.sent_on().count()
    }

    /// To how many lives of the node PUBLISH was sent.
    pub fn lives_sent_to(&self, message: &Message) -> usize {
        let mut lives: Vec<u32> = message
            .sent_on()
            .filter_map(|connection| self.connections.get(usize::from(connection)))
            .map(|connection| connection.life)
            .collect();
        // Connections come in order, and so do lives.
        lives.dedup();
        lives.len()
    }

    /// What happened to a message and around it, for people.
    pub fn tell(&self, number: u64) -> String {
        let Some(message) = usize::try_from(number).ok().and_then(|place| self.messages.get(place)) else {
            return format!("    {} never sent a message {number}", self.habits.name());
        };
        let mut lines = vec![format!(
            "    {} (MQTT {}, QoS {}, {}), message {number}, packet identifier {}",
            self.habits.name(),
            self.habits.version.name(),
            self.habits.qos,
            self.habits.topic,
            message.identifier
        )];
        let mut told = None;
        for event in &message.events {
            if told != Some(event.connection) {
                told = Some(event.connection);
                if let Some(connection) = self.connections.get(usize::from(event.connection)) {
                    let end = connection.ended.as_ref().map_or_else(
                        || "open".to_owned(),
                        |(at, why)| format!("ended at {:.3} s: {why}", at.as_secs_f64()),
                    );
                    lines.push(format!(
                        "    {:8.3} s  connection {:2}  CONNACK from life {} of the node; {end}",
                        connection.began.as_secs_f64(),
                        event.connection,
                        connection.life
                    ));
                }
            }
            lines.push(format!("    {event}"));
        }
        lines.join("\n")
    }
}
