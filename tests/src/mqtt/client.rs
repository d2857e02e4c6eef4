//! One connection of a case.
//!
//! Every wait has a deadline, and everything that went over the connection is in the [`Trace`], which is
//! shown when the case fails.

use std::io::ErrorKind;
use std::net::Shutdown;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::road::{Road, Stream};
use super::wire::{
    Answer, ConnAck, Connect, PINGREQ, Packet, Publish, Published, SubAck, Version, ack, first, hex,
    subscribe, subscribe_with, unsubscribe,
};

/// How long an answer may take: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What went over the connections of a case, in order.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    lines: Arc<Mutex<Vec<String>>>,
    lenient: bool,
}

impl Trace {
    /// For servers that end connections somehow: a refusal is any end, whatever is said before it, and a
    /// reset as well. What is left are differences in what they do.
    pub fn lenient() -> Self {
        Self { lenient: true, ..Self::default() }
    }

    fn add(&self, line: String) {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    /// The last lines.
    pub fn tail(&self, count: usize) -> String {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines[lines.len().saturating_sub(count)..].join("\n")
    }
}

/// See the module.
#[derive(Debug)]
pub struct Client {
    name: String,
    version: Version,
    stream: Box<dyn Stream>,
    input: Vec<u8>,
    trace: Trace,
    next_identifier: u16,
    patience: Duration,
}

impl Client {
    /// A TCP connection, nothing sent.
    pub fn open(address: &str, name: &str, version: Version, trace: &Trace) -> Result<Self> {
        Self::open_over(&Road::tcp(address), name, version, trace)
    }

    /// A connection over this road, nothing of MQTT sent.
    pub fn open_over(road: &Road, name: &str, version: Version, trace: &Trace) -> Result<Self> {
        let stream = road.open()?;
        let (name, trace) = (name.to_owned(), trace.clone());
        Ok(Self { name, version, stream, input: Vec::new(), trace, next_identifier: 1, patience: PATIENCE })
    }

    /// Sends CONNECT and takes the CONNACK, whatever it says.
    pub fn connect(&mut self, connect: &Connect) -> Result<ConnAck> {
        self.send(&connect.bytes())?;
        self.connack()
    }

    /// The version it speaks.
    pub fn version(&self) -> Version {
        self.version
    }

    /// How long it waits for a packet from now on.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Sends bytes, whatever they are.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.trace.add(format!("{:>8} > {}", self.name, hex(bytes)));
        self.stream.socket().set_write_timeout(Some(self.patience))?;
        self.stream.write_all(bytes).with_context(|| format!("{} cannot send", self.name))
    }

    /// Sends bytes that the server may not want to read any more: it may have closed the connection.
    pub fn push(&mut self, bytes: &[u8]) {
        self.trace.add(format!("{:>8} > {}", self.name, hex(bytes)));
        // A failure shows in what is read next.
        drop(self.stream.write_all(bytes));
    }

    /// Closes our half.
    pub fn finish(&mut self) -> Result<()> {
        self.trace.add(format!("{:>8} > FIN", self.name));
        self.stream.finish()?;
        Ok(())
    }

    /// Drops the connection without DISCONNECT and waits until the server has noticed, if it closes its half.
    pub fn vanish(mut self) -> Result<()> {
        self.finish()?;
        self.patience = Duration::from_secs(5);
        while let Some(packet) = self.next()? {
            self.trace.add(format!("{:>8}   (left unread: {packet})", self.name));
        }
        Ok(())
    }

    /// A normal end: DISCONNECT, and the server closes.
    pub fn disconnect(mut self) -> Result<()> {
        self.send(&super::wire::DISCONNECT)?;
        self.closed()
    }

    /// Ends in any way, with a reset where the system can: nothing is read any more.
    pub fn reset(self) -> Result<()> {
        self.trace.add(format!("{:>8} > RST", self.name));
        // Closing with unread input resets; without it this is an orderly close.
        self.stream.socket().shutdown(Shutdown::Both)?;
        Ok(())
    }

    /// The next packet; `None` where the server has closed its half in order.
    fn next(&mut self) -> Result<Option<Packet>> {
        let deadline = Instant::now() + self.patience;
        loop {
            if let Some(packet) = Packet::take(&mut self.input)? {
                self.trace.add(format!("{:>8} < {packet}", self.name));
                return Ok(Some(packet));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("{} got nothing within {:?}", self.name, self.patience);
            }
            self.stream.socket().set_read_timeout(Some(left))?;
            let mut buffer = [0; 16 << 10];
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    self.trace.add(format!("{:>8} < FIN", self.name));
                    ensure!(self.input.is_empty(), "closed inside a packet: {}", hex(&self.input));
                    return Ok(None);
                }
                Ok(count) => self.input.extend_from_slice(&buffer[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.trace.add(format!("{:>8} < {error}", self.name));
                    return Err(error).with_context(|| format!("the connection of {} broke", self.name));
                }
            }
        }
    }

    /// The next packet.
    pub fn packet(&mut self) -> Result<Packet> {
        self.next()?.with_context(|| format!("{} was closed where a packet was expected", self.name))
    }

    /// The next packet is exactly this.
    pub fn expect(&mut self, bytes: &[u8]) -> Result<()> {
        let packet = self.packet()?;
        ensure!(packet.bytes() == bytes, "{} expected [{}], got {packet}", self.name, hex(bytes));
        Ok(())
    }

    /// Any end at all.
    fn ended(&mut self) -> Result<()> {
        loop {
            match self.next() {
                Ok(None) => return Ok(()),
                Ok(Some(packet)) if matches!(packet.first, first::DISCONNECT | first::CONNACK) => {}
                Ok(Some(packet)) => bail!("{} expected the end of the connection, got {packet}", self.name),
                Err(error) if error.downcast_ref::<std::io::Error>().is_some() => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// The server closes in order, without another packet.
    pub fn closed(&mut self) -> Result<()> {
        if self.trace.lenient {
            return self.ended();
        }
        match self.next()? {
            None => Ok(()),
            Some(packet) => bail!("{} expected the end of the connection, got {packet}", self.name),
        }
    }

    /// The server ends a running connection for this reason: before 5.0 it just closes, in 5.0 it says so in
    /// a DISCONNECT (MQTT-5.0 4.13, MQTT-3.1.1 4.8).
    pub fn refused(&mut self, reason: u8) -> Result<()> {
        if self.version == Version::V5 && !self.trace.lenient {
            let answer = self.packet()?.disconnect()?;
            ensure!(
                answer.reason == reason,
                "{} expected DISCONNECT {reason:#04x}, got {:#04x}",
                self.name,
                answer.reason
            );
        }
        self.closed()
    }

    /// The server refuses a CONNECT: in 5.0 with a CONNACK that has this reason code, before with this return
    /// code, or by closing where there is none.
    pub fn not_connected(&mut self, return_code: Option<u8>, reason: u8) -> Result<()> {
        let wanted = if self.version == Version::V5 { Some(reason) } else { return_code };
        if let Some(wanted) = wanted
            && !self.trace.lenient
        {
            let connack = self.connack()?;
            ensure!(
                connack.reason == wanted,
                "{} expected CONNACK {wanted:#04x}, got {:#04x}",
                self.name,
                connack.reason
            );
        }
        self.closed()
    }

    /// The next packet is CONNACK.
    pub fn connack(&mut self) -> Result<ConnAck> {
        self.packet()?.connack(self.version)
    }

    /// The next packet is PUBLISH.
    pub fn published(&mut self) -> Result<Published> {
        self.packet()?.publish(self.version)
    }

    /// The next packet is PUBLISH with this topic and payload.
    pub fn receives(&mut self, topic: &str, payload: impl AsRef<[u8]>) -> Result<Published> {
        let published = self.published()?;
        ensure!(published.topic == topic, "{}: topic {}, not {topic}", self.name, published.topic);
        ensure!(
            published.payload == payload.as_ref(),
            "{}: payload {}, not {}",
            self.name,
            hex(&published.payload),
            hex(payload.as_ref())
        );
        Ok(published)
    }

    /// The next packet is this acknowledgement for this identifier; its reason.
    pub fn acked(&mut self, first: u8, packet_identifier: u16) -> Result<u8> {
        let answer: Answer = self.packet()?.ack(self.version, first)?;
        ensure!(
            answer.packet_identifier == packet_identifier,
            "{} expected identifier {packet_identifier}, got {}",
            self.name,
            answer.packet_identifier
        );
        Ok(answer.reason)
    }

    /// Everything that was sent so far is dealt with, and nothing has come: PINGREQ is answered by PINGRESP
    /// at once.
    pub fn quiet(&mut self) -> Result<()> {
        self.send(&PINGREQ)?;
        self.expect(&[first::PINGRESP, 0])
    }

    /// A packet identifier that was not used before.
    pub fn identifier(&mut self) -> u16 {
        let identifier = self.next_identifier;
        self.next_identifier += 1;
        identifier
    }

    /// Subscribes and wants what is granted to be what was asked for.
    pub fn subscribe(&mut self, filter: &str, options: u8) -> Result<()> {
        self.subscribe_with(&[], filter, options)
    }

    /// The same with properties.
    pub fn subscribe_with(&mut self, properties: &[Vec<u8>], filter: &str, options: u8) -> Result<()> {
        let identifier = self.identifier();
        self.send(&subscribe_with(self.version, identifier, properties, &[(filter, options)]))?;
        let suback = self.suback(identifier)?;
        ensure!(suback.reasons == [options & 3], "SUBACK {:02x?} for options {options:#04x}", suback.reasons);
        Ok(())
    }

    /// Subscribes; the reason codes of the SUBACK.
    pub fn try_subscribe(&mut self, filters: &[(&str, u8)]) -> Result<Vec<u8>> {
        let identifier = self.identifier();
        self.send(&subscribe(self.version, identifier, filters))?;
        Ok(self.suback(identifier)?.reasons)
    }

    /// The next packet is SUBACK for this identifier.
    pub fn suback(&mut self, packet_identifier: u16) -> Result<SubAck> {
        let suback = self.packet()?.suback(self.version)?;
        ensure!(suback.packet_identifier == packet_identifier, "{suback:?}, not {packet_identifier}");
        Ok(suback)
    }

    /// Unsubscribes; the reason codes of the UNSUBACK, none before 5.0.
    pub fn unsubscribe(&mut self, filters: &[&str]) -> Result<Vec<u8>> {
        let identifier = self.identifier();
        self.send(&unsubscribe(self.version, identifier, filters))?;
        let unsuback = self.packet()?.unsuback(self.version)?;
        ensure!(unsuback.packet_identifier == identifier, "{unsuback:?}, not {identifier}");
        Ok(unsuback.reasons)
    }

    /// Publishes with QoS 0, 1 or 2 and goes through with it; in the end everybody who takes it has it in his
    /// queue.
    pub fn publish(&mut self, topic: &str, payload: impl AsRef<[u8]>, qos: u8) -> Result<()> {
        self.deliver(Publish::new(self.version, topic, payload), qos)
    }

    /// The same, retained.
    pub fn publish_retained(&mut self, topic: &str, payload: impl AsRef<[u8]>, qos: u8) -> Result<()> {
        self.deliver(Publish::new(self.version, topic, payload).retain(), qos)
    }

    /// Sends it with this QoS and a new identifier and goes through with it.
    pub fn deliver(&mut self, publish: Publish, qos: u8) -> Result<()> {
        let identifier = if qos > 0 { self.identifier() } else { 0 };
        self.send(&publish.qos(qos, identifier).bytes())?;
        match qos {
            0 => return self.quiet(),
            1 => {
                let reason = self.acked(first::PUBACK, identifier)?;
                ensure!(reason < 0x80, "PUBACK {reason:#04x}");
            }
            _ => {
                let reason = self.acked(first::PUBREC, identifier)?;
                ensure!(reason < 0x80, "PUBREC {reason:#04x}");
                self.send(&ack(first::PUBREL, identifier))?;
                let reason = self.acked(first::PUBCOMP, identifier)?;
                ensure!(reason == 0, "PUBCOMP {reason:#04x}");
            }
        }
        Ok(())
    }

    /// Acknowledges a delivery to its end.
    pub fn acknowledge(&mut self, published: &Published) -> Result<()> {
        let identifier = published.packet_identifier;
        match published.qos {
            0 => {}
            1 => self.send(&ack(first::PUBACK, identifier))?,
            _ => {
                self.send(&ack(first::PUBREC, identifier))?;
                let reason = self.acked(first::PUBREL, identifier)?;
                ensure!(reason == 0, "PUBREL {reason:#04x}");
                self.send(&ack(first::PUBCOMP, identifier))?;
            }
        }
        Ok(())
    }
}
