//! Damaged packets and sessions against a running node.
//!
//! * A *packet stream* is one connection with some hundred changed packets, most of them still legal, some
//!   damaged in any way; behind each goes a PINGREQ, whose answers say how many packets were dealt with
//!   before one was refused.
//! * A *session* is a conversation whose packets leave, come twice, change places or are damaged, in any
//!   pieces, with one of a few client identifiers, so that sessions are resumed and taken over.
//!
//! All the while the node must live, answer a control client in time, and send nothing but well-formed
//! packets; nothing may panic or hang. At the end connections, sessions and memory must be back where they
//! were.
//!
//! Everything follows from one seed: connection `n` of a run has a seed of its own, and can be run alone.

mod corpus;
mod mutate;

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::mqtt::wire::{PINGREQ, Packet, Version, ack, first, hex};
use crate::mqtt::{Client, Connect, Trace};
use crate::node::Node;
use crate::{eventually, need, process};

/// What the node is told: sessions end soon, and what lasts is bounded, so that all of it can be seen to go
/// away.
pub const CONFIGURATION: &str = "mqtt {
    session_expiry_interval = 1s, max_session_expiry_interval = 1s, connect_timeout = 2s
    max_mqueue = 200, max_mqueue_bytes = 256KB
    retain { max_messages = 500, max_bytes = 1MB }
  }";

/// Packets of a stream.
const STREAM: usize = 150;

/// Of these one in so many is damaged in any way; most damage is refused, which ends the stream.
const WILD: f64 = 0.02;

/// An end that takes longer is a hang.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest a control client may wait for its own message: everything else keeps both cores busy.
const ROUND_TRIP: Duration = Duration::from_secs(5);

/// Resident memory that may stay behind, in MB. What the allocator keeps of a burst is in it.
const RESIDENT_GROWTH: u64 = 96;

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Changed packets to be dealt with.
    pub packets: u64,
    /// Changed sessions.
    pub sessions: u64,
    /// Where everything follows from.
    pub seed: u64,
    /// Connections at once.
    pub workers: usize,
    /// The packet stream of this number alone.
    pub only_stream: Option<u64>,
    /// The session of this number alone.
    pub only_session: Option<u64>,
    /// No more is begun after this time.
    pub time: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            packets: 100_000,
            sessions: 1000,
            seed: 1,
            workers: 16,
            only_stream: None,
            only_session: None,
            time: Duration::from_hours(1),
        }
    }
}

/// What was done.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Packets dealt with.
    pub packets: u64,
    /// Streams, each a connection.
    pub streams: u64,
    /// Streams that ended with a refusal.
    pub refused: u64,
    /// Sessions.
    pub sessions: u64,
    /// Sessions whose CONNECT was accepted.
    pub connected: u64,
    /// Longest round trip of the control client.
    pub slowest: Duration,
    /// Its 99th percentile.
    pub p99: Duration,
    /// Resident memory before, at most, and after, in MB.
    pub resident: [u64; 3],
    /// How long it took.
    pub took: Duration,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { packets, streams, refused, sessions, connected, slowest, p99, resident, took } = self;
        let [before, most, after] = resident;
        write!(
            f,
            "{packets} packets over {streams} connections ({refused} refused), {sessions} sessions ({connected} connected) in {:.0} s; \
             control client p99 {:.1} ms, longest {:.0} ms; resident memory {before} MB before, {most} MB at most, {after} MB after; no panic",
            took.as_secs_f32(),
            p99.as_secs_f32() * 1000.0,
            slowest.as_secs_f32() * 1000.0,
        )
    }
}

/// Counts while it runs.
#[derive(Default)]
struct Totals {
    packets: AtomicU64,
    streams: AtomicU64,
    refused: AtomicU64,
    sessions: AtomicU64,
    connected: AtomicU64,
    /// Which connection had which port: a panic is reported with it.
    ports: Mutex<VecDeque<(u16, String)>>,
    failure: Mutex<Option<anyhow::Error>>,
    over: AtomicBool,
}

impl Totals {
    fn fail(&self, error: anyhow::Error) {
        self.over.store(true, Ordering::Relaxed);
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    fn remember(&self, stream: &TcpStream, name: String) {
        const KEPT: usize = 50_000;
        if let Ok(address) = stream.local_addr() {
            let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
            if ports.len() == KEPT {
                ports.pop_front();
            }
            ports.push_back((address.port(), name));
        }
    }

    /// Which connections had the ports that a log names.
    fn culprits(&self, log: &str) -> Vec<String> {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let named = |port: u16| log.contains(&format!("127.0.0.1:{port}"));
        ports.iter().filter(|(port, _)| named(*port)).map(|(_, name)| name.clone()).collect()
    }
}

/// The generator of connection `number` of a kind.
fn random_of(seed: u64, kind: u64, number: u64) -> StdRng {
    StdRng::seed_from_u64(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (kind << 60) ^ number)
}

/// Runs it against a node of its own.
pub fn run(options: &Options) -> Result<Report> {
    let node = Node::start(CONFIGURATION)?;
    run_against(&node, options).with_context(|| format!("seed {}\n{}", options.seed, node.log_tail()))
}

fn run_against(node: &Node, options: &Options) -> Result<Report> {
    let started = Instant::now();
    // What a burst leaves in pools and thread-local buffers is there before the measurement.
    let warm = Options { packets: 20_000, sessions: 200, seed: !options.seed, ..options.clone() };
    if options.only_stream.is_none() && options.only_session.is_none() {
        rounds(node, &warm, &Totals::default())?;
        at_rest(node)?;
    }
    let before = process::resident_mb(node.pid()?)?;
    let totals = Totals::default();
    let watched = rounds(node, options, &totals)?;
    at_rest(node)?;
    let after = process::resident_mb(node.pid()?)?;
    ensure!(
        after <= before + RESIDENT_GROWTH,
        "resident memory was {before} MB and is {after} MB, {} MB at most",
        watched.most
    );
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    Ok(Report {
        packets: read(&totals.packets),
        streams: read(&totals.streams),
        refused: read(&totals.refused),
        sessions: read(&totals.sessions),
        connected: read(&totals.connected),
        slowest: watched.round_trips.last().copied().unwrap_or_default(),
        p99: watched
            .round_trips
            .get(watched.round_trips.len().saturating_sub(1) * 99 / 100)
            .copied()
            .unwrap_or_default(),
        resident: [before, watched.most, after],
        took: started.elapsed(),
    })
}

/// Nothing is left of what was there: no connection, no session, no panic.
fn at_rest(node: &Node) -> Result<()> {
    eventually(Duration::from_mins(1), || {
        let counters = node.mqtt_counters()?;
        let now = |name: &str| counters.get(name).copied().with_context(|| format!("no counter {name}"));
        for gauge in ["connections", "sessions", "subscriptions"] {
            let left = now(gauge)?;
            need(left == 0, || format!("{left} {gauge} are left"))?;
        }
        let panicked = now("connections_panicked")?;
        need(panicked == 0, || format!("{panicked} connections panicked"))
    })
}

/// What the watch saw.
struct Watched {
    /// In ascending order.
    round_trips: Vec<Duration>,
    /// MB.
    most: u64,
}

/// Runs the workers and the watch.
fn rounds(node: &Node, options: &Options, totals: &Totals) -> Result<Watched> {
    let deadline = Instant::now() + options.time;
    let (next_stream, next_session) = (AtomicU64::new(0), AtomicU64::new(0));
    let working = AtomicU64::new(options.workers as u64);
    let watched = std::thread::scope(|scope| {
        for _ in 0..options.workers {
            scope.spawn(|| {
                if let Err(error) = work(node, options, totals, &next_stream, &next_session, deadline) {
                    totals.fail(error);
                }
                working.fetch_sub(1, Ordering::Relaxed);
            });
        }
        let watched = watch(node, &working);
        if watched.is_err() {
            totals.over.store(true, Ordering::Relaxed);
        }
        watched
    });
    let counters = node.mqtt_counters().context("the node does not answer any more")?;
    let panics = node.log_lines_with("panicked");
    if counters.get("connections_panicked").is_some_and(|count| *count > 0) || !panics.is_empty() {
        let log = panics.join("\n");
        bail!("a connection panicked: {:?}\n{log}", totals.culprits(&log));
    }
    if let Some(error) = totals.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(error);
    }
    watched
}

fn work(
    node: &Node,
    options: &Options,
    totals: &Totals,
    next_stream: &AtomicU64,
    next_session: &AtomicU64,
    deadline: Instant,
) -> Result<()> {
    let address = node.mqtt();
    let go_on = || !totals.over.load(Ordering::Relaxed) && Instant::now() < deadline;
    if options.only_stream.is_some() || options.only_session.is_some() {
        // One worker does all of it.
        if next_stream.fetch_add(1, Ordering::Relaxed) > 0 {
            return Ok(());
        }
        if let Some(number) = options.only_stream {
            stream(address, options.seed, number, totals)?;
        }
        if let Some(number) = options.only_session {
            session(address, options.seed, number, totals)?;
        }
        return Ok(());
    }
    // Both kinds side by side, in proportion.
    loop {
        let (packets, sessions) =
            (totals.packets.load(Ordering::Relaxed), next_session.load(Ordering::Relaxed));
        let streams_left = packets < options.packets;
        let sessions_left = sessions < options.sessions;
        if !(streams_left || sessions_left) || !go_on() {
            return Ok(());
        }
        let ahead = u128::from(packets) * u128::from(options.sessions)
            > u128::from(sessions) * u128::from(options.packets);
        if sessions_left && (ahead || !streams_left) {
            let number = next_session.fetch_add(1, Ordering::Relaxed);
            if number < options.sessions {
                let result = session(address, options.seed, number, totals);
                result.with_context(|| {
                    format!("session {number}: --seed {} --only-session {number}", options.seed)
                })?;
            }
        } else {
            let number = next_stream.fetch_add(1, Ordering::Relaxed);
            let result = stream(address, options.seed, number, totals);
            result.with_context(|| {
                format!("stream {number}: --seed {} --only-stream {number}", options.seed)
            })?;
        }
    }
}

/// Connects; a node that is busy with accepting is given time.
fn open(address: &str) -> Result<TcpStream> {
    let stream = eventually(PATIENCE, || Ok(TcpStream::connect(address)?)).context("cannot connect")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// True for errors that mean the other side has closed.
fn is_end(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted)
}

/// Sends what the other side still takes; false where it has closed.
fn send(stream: &mut TcpStream, bytes: &[u8]) -> Result<bool> {
    match stream.write_all(bytes) {
        Ok(()) => Ok(true),
        Err(error) if is_end(&error) => Ok(false),
        Err(error) => Err(error).context("it does not read any more"),
    }
}

/// Reads to the end of the connection, packet by packet. Each must be one that a server sends, and
/// well-formed.
fn read_all(
    stream: &mut TcpStream,
    version: Version,
    mut each: impl FnMut(&Packet) -> Result<()>,
) -> Result<()> {
    let mut input = Vec::new();
    let mut buffer = [0; 8 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => input.extend_from_slice(&buffer[..count]),
            Err(error) if is_end(&error) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context("no end of the connection: a hang"),
        }
        let mut at = 0;
        while let Some(length) = length_of(&input[at..])? {
            let mut one = input[at..at + length].to_vec();
            at += length;
            if let Some(packet) = Packet::take(&mut one)? {
                check(&packet, version)
                    .with_context(|| format!("the node sent [{}]", hex(&packet.bytes())))?;
                each(&packet)?;
            }
        }
        input.drain(..at);
    }
}

/// Length of the packet in front, once all of it is there.
fn length_of(input: &[u8]) -> Result<Option<usize>> {
    let mut remaining = 0;
    for (index, byte) in input.iter().skip(1).take(4).enumerate() {
        remaining |= usize::from(byte & 0x7F) << (7 * index);
        if *byte < 0x80 {
            let length = 2 + index + remaining;
            return Ok((input.len() >= length).then_some(length));
        }
    }
    ensure!(input.len() < 5, "a remaining length of more than four bytes");
    Ok(None)
}

fn check(packet: &Packet, version: Version) -> Result<()> {
    match packet.first {
        first::CONNACK => drop(packet.connack(version)?),
        first::PUBACK | first::PUBREC | first::PUBREL | first::PUBCOMP => {
            drop(packet.ack(version, packet.first)?);
        }
        first::SUBACK => drop(packet.suback(version)?),
        first::UNSUBACK => drop(packet.unsuback(version)?),
        first::PINGRESP => ensure!(packet.body.is_empty(), "a PINGRESP with a body"),
        first::DISCONNECT => {
            ensure!(version == Version::V5, "DISCONNECT before 5.0");
            packet.disconnect()?;
        }
        other if other >> 4 == 3 => drop(packet.publish(version)?),
        other => bail!("no server sends a packet that begins with {other:#04x}"),
    }
    Ok(())
}

/// One connection with changed packets.
fn stream(address: &str, seed: u64, number: u64, totals: &Totals) -> Result<()> {
    let random = &mut random_of(seed, 1, number);
    let version = corpus::version(random);
    // A topic tree of its own: publications find few others.
    let root = format!("f{number}");
    let mut bytes = Connect::new(version, &root).bytes();
    let mut previous = Vec::new();
    for _ in 0..STREAM {
        let mut packet = corpus::packet(random, version, &root);
        if random.random_bool(WILD) {
            bytes.extend(mutate::wildly(random, &packet, &previous));
        } else {
            mutate::mildly(random, &mut packet);
            bytes.extend_from_slice(&packet);
        }
        bytes.extend(PINGREQ);
        previous = packet;
    }
    let mut socket = open(address)?;
    totals.remember(&socket, format!("--seed {seed} --only-stream {number}"));
    let (mut dealt_with, mut refused) = (0, false);
    if send(&mut socket, &bytes)? {
        drop(socket.shutdown(Shutdown::Write));
    }
    read_all(&mut socket, version, |packet| {
        dealt_with += u64::from(packet.first == first::PINGRESP);
        refused |= packet.first == first::DISCONNECT;
        Ok(())
    })?;
    // The one that was refused was dealt with as well.
    refused |= dealt_with < STREAM as u64;
    totals.packets.fetch_add(dealt_with + u64::from(refused), Ordering::Relaxed);
    totals.refused.fetch_add(u64::from(refused), Ordering::Relaxed);
    totals.streams.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// One changed conversation.
fn session(address: &str, seed: u64, number: u64, totals: &Totals) -> Result<()> {
    /// Client identifiers in all: sessions meet.
    const CLIENTS: u64 = 40;
    let random = &mut random_of(seed, 2, number);
    let version = corpus::version(random);
    let client = random.random_range(0..CLIENTS);
    // Four clients share a tree, so that they get each other's messages.
    let root = format!("s{}", client / 4);
    let conversation = |random: &mut StdRng| -> Vec<Vec<u8>> {
        let mut packets = vec![corpus::connect(random, version, &format!("fuzz{client}"), &root).bytes()];
        packets.push(corpus::subscribe(random, version, &root));
        for _ in 0..random.random_range(0..20) {
            packets.push(corpus::packet(random, version, &root));
        }
        if random.random_bool(0.5) {
            packets.push(corpus::disconnect(random, version));
        }
        packets
    };
    let mut packets = conversation(random);
    let other = conversation(random);
    let legal = packets[0].clone();
    mutate::session(random, &mut packets, &other);
    let bytes = packets.concat();
    let mut socket = open(address)?;
    totals.remember(&socket, format!("--seed {seed} --only-session {number}"));
    // Whole, in pieces, in bytes, or in bytes with time between them.
    let piece = match random.random_range(0..20) {
        0 => 1,
        1..5 => random.random_range(2..40),
        _ => bytes.len().max(1),
    };
    let slow = piece == 1 && random.random_bool(0.1);
    let mut whole = true;
    for part in bytes.chunks(piece) {
        whole = send(&mut socket, part)?;
        if !whole {
            break;
        }
        if slow {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let mut answers = socket.try_clone()?;
    let end = random.random_range(0..10);
    if end == 0 {
        // Gone with everything unread: a reset.
        totals.sessions.fetch_add(1, Ordering::Relaxed);
        return Ok(());
    }
    if end < 7 && whole {
        drop(socket.shutdown(Shutdown::Write));
    } else if whole {
        // One that acknowledges what it gets, before it goes.
        drop(socket.set_read_timeout(Some(Duration::from_millis(5))));
    }
    let mut connected = false;
    let mut after = |packet: &Packet| {
        connected |= packet.first == first::CONNACK && packet.body.get(1) == Some(&0);
        if end >= 7
            && packet.first >> 4 == 3
            && let Ok(published) = packet.publish(version)
            && published.qos > 0
        {
            let kind = if published.qos == 1 { first::PUBACK } else { first::PUBREC };
            // The other side may have gone.
            drop(answers.write_all(&ack(kind, published.packet_identifier)));
        }
        Ok(())
    };
    // After what was done to a CONNECT the version on the wire may be another one: then only frames are read.
    let sane = packets.first() == Some(&legal);
    let result = if sane { read_all(&mut socket, version, &mut after) } else { read_frames(&mut socket) };
    if let Err(error) = result {
        // With a short time out the end is ours.
        let ours = end >= 7 && whole && error.downcast_ref::<std::io::Error>().is_some();
        if !ours {
            return Err(error);
        }
        drop(socket.shutdown(Shutdown::Write));
        socket.set_read_timeout(Some(PATIENCE))?;
        read_frames(&mut socket)?;
    }
    totals.connected.fetch_add(u64::from(connected), Ordering::Relaxed);
    totals.sessions.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// Reads to the end, looking at frames alone.
fn read_frames(stream: &mut TcpStream) -> Result<()> {
    let mut buffer = [0; 8 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if is_end(&error) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("no end of the connection: a hang"),
        }
    }
}

/// Looks after the node until the workers are done: it lives, and a client is served in time.
fn watch(node: &Node, working: &AtomicU64) -> Result<Watched> {
    let pid = node.pid()?;
    let trace = Trace::default();
    let mut client = Client::open(node.mqtt(), "control", Version::V5, &trace)?;
    client.set_patience(ROUND_TRIP);
    let connack = client.connect(&Connect::new(Version::V5, "control").keep_alive(0))?;
    ensure!(connack.reason == 0, "the control client is not connected: {connack:?}");
    client.subscribe("control/topic", 1)?;
    let (mut round_trips, mut most, mut turn) = (Vec::new(), 0, 0_u32);
    while working.load(Ordering::Relaxed) > 0 {
        let started = Instant::now();
        round_trip(&mut client, turn).with_context(|| format!("the control client, turn {turn}"))?;
        round_trips.push(started.elapsed());
        most = most.max(process::resident_mb(pid).context("the node has ended")?);
        turn += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    client.disconnect()?;
    round_trips.sort_unstable();
    Ok(Watched { round_trips, most })
}

/// A message of QoS 1 to itself.
fn round_trip(client: &mut Client, turn: u32) -> Result<()> {
    use crate::mqtt::Publish;
    let number = (turn % 60_000) as u16 + 1;
    let payload = turn.to_string();
    client.send(&Publish::new(Version::V5, "control/topic", &payload).qos(1, number).bytes())?;
    let (mut acknowledged, mut delivered) = (false, false);
    while !(acknowledged && delivered) {
        let packet = client.packet()?;
        if packet.first == first::PUBACK {
            acknowledged = true;
            continue;
        }
        let published = packet.publish(Version::V5)?;
        // Damaged packets may find this topic as well, if hardly ever.
        delivered |= published.payload == payload.as_bytes();
        client.acknowledge(&published)?;
    }
    Ok(())
}
