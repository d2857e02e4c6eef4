//! Pipelined publishers.
//!
//! A publisher keeps up to `window` messages unacknowledged. Packet identifiers rise by one from message
//! to message, so the place of an acknowledgement in the window follows from its identifier.
//!
//! Invariants:
//! * A place is counted as acknowledged exactly when its PUBACK (QoS 1) or PUBREC (QoS 2) has come, and
//!   with QoS 0 when it is on its way to the socket.
//! * With `resend`, what is unacknowledged when a connection ends is sent again on the next one, in
//!   order, before anything new.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::{BufMut, BytesMut};
use mqttbytes::QoS;
use mqttbytes::v4::{self, Packet};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Meter;
use super::ahead::Ahead;
use super::endpoint::Endpoint;
use super::link::Link;
use crate::judge::Published;
use crate::stamp::{self, Stamp};

/// What is encoded ahead of the socket: enough to fill a write, little enough to keep stamps fresh.
const OUT_BYTES: usize = 32 << 10;

/// How long one who is too far ahead waits before it looks again: the resolution of the timer.
const AHEAD_PAUSE: Duration = Duration::from_millis(1);

/// Connections opened at the same time.
const CONNECTING: usize = 64;

/// What to publish.
#[derive(Debug, Clone)]
pub struct Publishing {
    /// The server.
    pub broker: Endpoint,
    /// Number of publishers.
    pub clients: u32,
    /// Client ids are this and a number.
    pub prefix: String,
    /// Topic; `{client}` becomes the client's number, `{n}` counts through `topics_per_client`.
    pub topic: String,
    /// Topics each client goes round.
    pub topics_per_client: u32,
    /// QoS of every message.
    pub qos: QoS,
    /// Payload size in bytes, at least [`stamp::HEAD`].
    pub payload: usize,
    /// Messages unacknowledged per client.
    pub window: u16,
    /// Messages of each client.
    pub messages: u64,
    /// Place of the first one.
    pub first_sequence: u64,
    /// Messages per second of all clients together; `None` is as fast as acknowledgements come.
    pub rate: Option<f64>,
    /// Stamp a message with the moment it is written, not the one it was due: latencies without what the
    /// generator itself was late, which its timer's resolution (1 ms) makes it at any rate.
    pub stamp_at_write: bool,
    /// Do not run further ahead of the subscribers than this allows.
    pub ahead: Option<Arc<Ahead>>,
    /// Keep the session, connect again and send again what was not acknowledged.
    pub resend: bool,
    /// When to give up on what is still unacknowledged.
    pub patience: Duration,
}

/// One message on its way.
#[derive(Debug, Clone, Copy)]
struct Sent {
    sequence: u64,
    /// When it was meant to be sent, see [`stamp::now`].
    due: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Published,
    /// PUBREL sent, PUBCOMP awaited (QoS 2).
    Released,
    Done,
}

/// The messages of one client between their PUBLISH and their end.
#[derive(Debug, Default)]
struct Window {
    sent: VecDeque<Sent>,
    /// Packet identifier of the front; 1 to 65,535.
    front: u16,
}

/// Identifiers run from 1 to 65,535: 0 is none.
const IDENTIFIERS: u32 = 65_535;

impl Window {
    fn identifier(&self, at: usize) -> u16 {
        ((u32::from(self.front) - 1 + at as u32) % IDENTIFIERS + 1) as u16
    }

    fn push(&mut self, sequence: u64, due: u64) -> u16 {
        self.front = self.front.max(1);
        self.sent.push_back(Sent { sequence, due, state: State::Published });
        self.identifier(self.sent.len() - 1)
    }

    fn get(&mut self, identifier: u16) -> Option<&mut Sent> {
        if identifier == 0 || self.front == 0 {
            return None;
        }
        let at = (u32::from(identifier) + IDENTIFIERS - u32::from(self.front)) % IDENTIFIERS;
        self.sent.get_mut(at as usize)
    }

    fn drop_done(&mut self) {
        while self.sent.front().is_some_and(|sent| sent.state == State::Done) {
            self.sent.pop_front();
            self.front = (u32::from(self.front) % IDENTIFIERS + 1) as u16;
        }
    }
}

struct Publisher {
    settings: Arc<Publishing>,
    meter: Arc<Meter>,
    stop: Arc<AtomicBool>,
    id: String,
    topics: Vec<String>,
    window: Window,
    /// Messages made so far.
    made: u64,
    /// When the first one was due, see [`stamp::now`].
    start: u64,
    deadline: Instant,
    published: Published,
    latencies: Vec<u64>,
}

/// Connects all publishers, then lets them run to their end (or until `stop` is set, or until the
/// settings' patience is over). What was acknowledged is in the results; latencies are in `meter`.
pub async fn publish(
    settings: &Arc<Publishing>,
    meter: &Arc<Meter>,
    stop: &Arc<AtomicBool>,
) -> Result<Vec<Published>> {
    if settings.payload < stamp::HEAD {
        bail!("payloads have at least {} bytes, not {}", stamp::HEAD, settings.payload);
    }
    let links = connect(settings).await?;
    let start = stamp::now();
    let deadline = Instant::now() + settings.patience;
    let mut tasks = JoinSet::new();
    for (number, link) in links {
        let topics = (0..settings.topics_per_client.max(1))
            .map(|n| settings.topic.replace("{client}", &number.to_string()).replace("{n}", &n.to_string()));
        let publisher = Publisher {
            settings: Arc::clone(settings),
            meter: Arc::clone(meter),
            stop: Arc::clone(stop),
            id: format!("{}{number}", settings.prefix),
            topics: topics.collect(),
            window: Window::default(),
            made: 0,
            start,
            deadline,
            published: Published { client: number, ..Published::default() },
            latencies: Vec::new(),
        };
        tasks.spawn(publisher.run(link));
    }
    let mut results = Vec::new();
    while let Some(result) = tasks.join_next().await {
        results.push(result.map_err(|error| anyhow!("a publisher failed: {error}"))??);
    }
    results.sort_by_key(|published| published.client);
    Ok(results)
}

async fn connect(settings: &Arc<Publishing>) -> Result<Vec<(u32, Link)>> {
    let mut links = Vec::new();
    let mut tasks = JoinSet::new();
    for number in 0..settings.clients {
        if tasks.len() == CONNECTING
            && let Some(link) = tasks.join_next().await
        {
            links.push(link??);
        }
        let settings = Arc::clone(settings);
        tasks.spawn(async move {
            let id = format!("{}{number}", settings.prefix);
            let link =
                Link::connect(&settings.broker, &id, !settings.resend, Duration::from_secs(30)).await?;
            anyhow::Ok((number, link))
        });
    }
    while let Some(link) = tasks.join_next().await {
        links.push(link??);
    }
    Ok(links)
}

impl Publisher {
    async fn run(mut self, mut link: Link) -> Result<Published> {
        loop {
            match self.drive(&mut link).await {
                Ok(()) => {
                    if self.window.sent.is_empty() {
                        link.close().await?;
                    }
                    return Ok(self.published);
                }
                Err(error) if self.settings.resend => match self.reconnect(error).await? {
                    Some(new) => link = new,
                    None => return Ok(self.published),
                },
                Err(error) => return Err(error.context(format!("publisher {}", self.id))),
            }
        }
    }

    /// `None` at the deadline.
    async fn reconnect(&mut self, error: anyhow::Error) -> Result<Option<Link>> {
        let mut pause = Duration::from_millis(20);
        let mut last = error;
        while Instant::now() < self.deadline {
            let patience = Duration::from_secs(5);
            match Link::connect(&self.settings.broker, &self.id, false, patience).await {
                Ok(mut link) => {
                    self.published.reconnects += 1;
                    self.send_again(&mut link.out)?;
                    return Ok(Some(link));
                }
                Err(error) => last = error,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
        if self.published.reconnects == 0 && self.published.acknowledged.is_empty() {
            return Err(last.context(format!("publisher {} never got through", self.id)));
        }
        Ok(None)
    }

    fn send_again(&mut self, out: &mut BytesMut) -> Result<()> {
        self.window.drop_done();
        for at in 0..self.window.sent.len() {
            let (identifier, sent) = (self.window.identifier(at), self.window.sent[at]);
            match sent.state {
                State::Published => self.encode(identifier, sent.sequence, sent.due, true, out)?,
                State::Released => {
                    v4::PubRel::new(identifier).write(out).map_err(|error| anyhow!("{error:?}"))?;
                }
                State::Done => {}
            }
        }
        Ok(())
    }

    async fn drive(&mut self, link: &mut Link) -> Result<()> {
        loop {
            let mut moment = self.fill(&mut link.out)?;
            if link.out.is_empty() && self.window.sent.is_empty() && moment.is_none() {
                return Ok(());
            }
            if Instant::now() >= self.deadline {
                return Ok(());
            }
            // The deadline is looked at now and then, also when nothing comes.
            let look = Instant::now() + Duration::from_secs(1);
            moment = Some(moment.map_or(look, |moment| moment.min(look)));
            link.turn(moment).await?;
            self.take(link)?;
        }
    }

    /// Encodes what is due. Returns when the next message is due, if that is later and there is one.
    fn fill(&mut self, out: &mut BytesMut) -> Result<Option<Instant>> {
        let moment = self.encode_due(out)?;
        self.record();
        Ok(moment)
    }

    fn record(&mut self) {
        if !self.latencies.is_empty() {
            self.meter.record(self.latencies.drain(..));
        }
    }

    fn encode_due(&mut self, out: &mut BytesMut) -> Result<Option<Instant>> {
        let now = stamp::now();
        let qos0 = self.settings.qos == QoS::AtMostOnce;
        while self.made < self.settings.messages && !self.stop.load(Ordering::Relaxed) {
            if out.len() >= OUT_BYTES || self.window.sent.len() >= usize::from(self.settings.window) {
                // Bytes or acknowledgements on their way will call again.
                return Ok(None);
            }
            let due = match self.settings.rate {
                None => now,
                Some(rate) => {
                    // Clients take turns: message n of client c is number n * clients + c of all.
                    let clients = u64::from(self.settings.clients);
                    let place = self.made * clients + u64::from(self.published.client);
                    self.start + (place as f64 * 1e9 / rate) as u64
                }
            };
            if due > now {
                return Ok(Some(Instant::now() + Duration::from_nanos(due - now)));
            }
            if let Some(ahead) = &self.settings.ahead
                && !ahead.may_send(Instant::now())
            {
                return Ok(Some(Instant::now() + AHEAD_PAUSE));
            }
            let sequence = self.settings.first_sequence + self.made;
            let identifier = if qos0 { 0 } else { self.window.push(sequence, due) };
            let stamp = if self.settings.stamp_at_write { stamp::now() } else { due };
            self.encode(identifier, sequence, stamp, false, out)?;
            self.made += 1;
            self.published.sent = sequence + 1;
            if qos0 {
                self.published.acknowledged.insert(sequence);
                self.latencies.push(now.saturating_sub(due));
            }
        }
        Ok(None)
    }

    fn encode(
        &self,
        identifier: u16,
        sequence: u64,
        due: u64,
        again: bool,
        out: &mut BytesMut,
    ) -> Result<()> {
        let topic = &self.topics[(sequence % self.topics.len() as u64) as usize];
        let qos = self.settings.qos;
        let identifier_bytes = if qos == QoS::AtMostOnce { 0 } else { 2 };
        let mut remaining = 2 + topic.len() + identifier_bytes + self.settings.payload;
        out.reserve(remaining + 5);
        out.put_u8(0x30 | (qos as u8) << 1 | u8::from(again) << 3);
        loop {
            let byte = (remaining & 127) as u8;
            remaining >>= 7;
            if remaining == 0 {
                out.put_u8(byte);
                break;
            }
            out.put_u8(byte | 128);
        }
        out.put_u16(u16::try_from(topic.len()).context("a topic name has at most 65,535 bytes")?);
        out.put_slice(topic.as_bytes());
        if identifier_bytes != 0 {
            out.put_u16(identifier);
        }
        Stamp { client: self.published.client, sequence, sent: due }.append(self.settings.payload, out);
        Ok(())
    }

    fn take(&mut self, link: &mut Link) -> Result<()> {
        let now = stamp::now();
        while let Some(packet) = link.take()? {
            let (identifier, from, to) = match &packet {
                Packet::PubAck(ack) => (ack.pkid, State::Published, State::Done),
                Packet::PubRec(ack) => (ack.pkid, State::Published, State::Released),
                Packet::PubComp(ack) => (ack.pkid, State::Released, State::Done),
                other => bail!("a publisher got {other:?}"),
            };
            // A PUBREC may come again: for the first PUBLISH and for its repetition on a new connection.
            let fits = |sent: &&mut Sent| sent.state == from || (to == State::Released && sent.state == to);
            let Some(sent) = self.window.get(identifier).filter(fits) else {
                bail!("an acknowledgement that nothing awaits: {packet:?}");
            };
            let first = sent.state == State::Published;
            sent.state = to;
            if first {
                self.published.acknowledged.insert(sent.sequence);
                self.latencies.push(now.saturating_sub(sent.due));
            }
            if to == State::Released {
                v4::PubRel::new(identifier).write(&mut link.out).map_err(|error| anyhow!("{error:?}"))?;
            }
        }
        self.window.drop_done();
        self.record();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_find_their_message_across_the_wrap() {
        let mut window = Window::default();
        for sequence in 0..200_000 {
            let identifier = window.push(sequence, 0);
            assert_ne!(identifier, 0);
            assert_eq!(window.get(identifier).unwrap().sequence, sequence);
            if sequence >= 2 {
                // The oldest but one ends first, then the oldest: both leave.
                for at in [1, 0] {
                    let identifier = window.identifier(at);
                    if let Some(sent) = window.get(identifier) {
                        sent.state = State::Done;
                    }
                }
                window.drop_done();
            }
        }
        assert!(window.sent.len() < 3);
        assert!(window.get(0).is_none());
    }

    /// A server of one connection after the other: acknowledges what `answer` says, and hangs up when it
    /// says nothing. Returns all PUBLISHes as (connection, again, sequence).
    async fn serve(
        listener: tokio::net::TcpListener,
        connections: usize,
        answer: impl Fn(usize, u64) -> Option<()>,
    ) -> Vec<(usize, bool, u64)> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut seen = Vec::new();
        for connection in 0..connections {
            let (mut socket, _) = listener.accept().await.unwrap();
            let (mut inbox, mut out) = (BytesMut::new(), BytesMut::new());
            'connection: while matches!(socket.read_buf(&mut inbox).await, Ok(1..)) {
                while let Ok(packet) = v4::read(&mut inbox, 1 << 20) {
                    match packet {
                        Packet::Connect(_) => {
                            v4::ConnAck::new(v4::ConnectReturnCode::Success, false).write(&mut out).unwrap();
                        }
                        Packet::Publish(publish) => {
                            let stamp = Stamp::read(&publish.payload).unwrap();
                            seen.push((connection, publish.dup, stamp.sequence));
                            if answer(connection, stamp.sequence).is_none() {
                                socket.write_all_buf(&mut out).await.unwrap();
                                break 'connection;
                            }
                            v4::PubAck::new(publish.pkid).write(&mut out).unwrap();
                        }
                        _ => {}
                    }
                }
                if socket.write_all_buf(&mut out).await.is_err() {
                    break;
                }
            }
        }
        seen
    }

    #[tokio::test]
    async fn what_was_not_acknowledged_is_sent_again_in_order_and_before_anything_new() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let settings = Publishing {
            broker: listener.local_addr().unwrap().to_string().into(),
            clients: 1,
            prefix: "c".to_owned(),
            topic: "t/{client}/{n}".to_owned(),
            topics_per_client: 2,
            qos: QoS::AtLeastOnce,
            payload: 40,
            window: 8,
            messages: 30,
            first_sequence: 0,
            rate: None,
            stamp_at_write: false,
            ahead: None,
            resend: true,
            patience: Duration::from_secs(20),
        };
        // The first connection acknowledges 10 messages and ends at the next one, the second takes all.
        let server = tokio::spawn(serve(listener, 2, |connection, sequence| {
            (connection == 1 || sequence < 10).then_some(())
        }));
        let meter = Arc::new(Meter::default());
        let published = publish(&Arc::new(settings), &meter, &Arc::default()).await.unwrap();
        let seen = server.await.unwrap();
        let [client] = &published[..] else { panic!("one client: {published:?}") };
        assert_eq!((client.acknowledged.len(), client.reconnects), (30, 1));
        assert_eq!(meter.count(), 30);
        let second: Vec<_> = seen.iter().filter(|(connection, ..)| *connection == 1).collect();
        let sequences: Vec<u64> = second.iter().map(|(_, _, sequence)| *sequence).collect();
        let first = *sequences.first().unwrap();
        assert!(first <= 10, "{seen:?}");
        assert_eq!(sequences, (first..30).collect::<Vec<_>>());
        assert!(second.iter().any(|(_, again, _)| *again), "{seen:?}");
        let again = second.iter().take_while(|(_, again, _)| *again).count();
        assert!(second.iter().skip(again).all(|(_, again, _)| !again), "{seen:?}");
    }

    #[tokio::test]
    async fn an_open_loop_keeps_its_rate_and_counts_latency_from_the_moment_a_message_was_due() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let settings = Publishing {
            broker: listener.local_addr().unwrap().to_string().into(),
            clients: 1,
            prefix: "c".to_owned(),
            topic: "t".to_owned(),
            topics_per_client: 1,
            qos: QoS::AtLeastOnce,
            payload: 40,
            window: 4,
            messages: 100,
            first_sequence: 0,
            rate: Some(1000.0),
            stamp_at_write: false,
            ahead: None,
            resend: false,
            patience: Duration::from_secs(20),
        };
        // The server stands still for 60 ms in the middle. Only 4 messages are on their way then, but some
        // 60 fall due, and all of those are late.
        let server = tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let listener = listener.into_std().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                serve(listener, 1, |_, sequence| {
                    if sequence == 30 {
                        std::thread::sleep(Duration::from_millis(60));
                    }
                    Some(())
                })
                .await
            })
        });
        let meter = Arc::new(Meter::default());
        let start = Instant::now();
        publish(&Arc::new(settings), &meter, &Arc::default()).await.unwrap();
        assert!(start.elapsed() >= Duration::from_millis(99), "{:?}", start.elapsed());
        assert_eq!(server.await.unwrap().len(), 100);
        let latency = meter.latency();
        assert!(latency.max_us >= 60_000.0, "{latency}");
        assert!(latency.p90_us >= 30_000.0, "{latency}");
    }
}
