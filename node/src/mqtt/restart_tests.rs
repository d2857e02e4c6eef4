//! Sessions over restarts: the same random history with a restart in it and without one must look the same to
//! every client and in every counter.
//!
//! A restart ends all connections. So what is compared is a history in which all connections are lost at some
//! point with one in which the process ends there as well, in order or by a crash.
//!
//! What differs by design, and how it is dealt with here:
//!
//! | by design | here |
//! |---|---|
//! | counters begin at nothing | those of earlier lives are added |
//! | whose turn it is in a group is forgotten | forgotten at the loss of the connections, too |
//! | QoS 0 that waits is dropped | it is by the loss of a connection, too |
//! | after a crash: sessions that end with their connection leave no will, and give nothing to their group | where there are crashes, sessions last |
//! | after a crash: everything counts as sent, with DUP, and not as queued | where there are crashes, DUP, packet identifiers and PUBREL are not looked at, nor how much is queued and how much in flight, and queues are large |
//! | after a crash: what may have been sent is not dropped when it expires | where there are crashes, messages have no expiry interval |
//! | what was read from the disk need not wait for it: QoS 2 goes out a moment earlier | QoS 0, QoS 1 and 2, and PUBREL are looked at apart |
//! | retained messages of several topics have no order | they have one in tests |

use std::{
    collections::{BTreeMap, VecDeque},
    task::{Context, Waker},
};

use causeway_protocol::mqtt::{
    Decoded, Decoder, Packet, PublishProperties, QoS, RetainHandling, Role, SubscribeFilter,
    SubscriptionOptions, Version, Will as WillPacket,
};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::*;
use crate::{
    flow::mailbox::Charge,
    flow::{AckSink, HandOver, Message, Outcome, SequenceRange, Ticket, Wake},
    mqtt::{
        inbox::Mail,
        memory::{self, Held},
        out_buffer::OutBuffer,
        outbox::Outbox,
        requests,
        retained::RetainedLimits,
        router::{PublishProgress, Published},
        session::{ClientLimits, Output},
        share::ShareStrategy,
        store::double::Disk,
    },
};

const CLIENTS: [&str; 5] = ["0", "1", "2", "3", "4"];

const GROUP: &str = "$share/g/t/+";

const FILTERS: [&str; 6] = ["t/1", "t/+", "#", "w/#", GROUP, "$share/g/t/+"];

#[derive(Debug, Clone)]
enum Step {
    Connect { client: usize, clean_start: bool, expiry: u64, will: Option<(u32, QoS, bool)>, window: usize },
    Disconnect { client: usize, normally: bool },
    Subscribe { client: usize, filter: &'static str, options: SubscriptionOptions, identifier: Option<u32> },
    Unsubscribe { client: usize, filter: &'static str },
    Publish { topic: u8, qos: QoS, retain: bool, empty: bool, expires: bool, handed_over: bool },
    Acknowledge { client: usize, count: usize },
    Pass { seconds: u64 },
}

/// Rules of a history.
#[derive(Debug, Clone, Copy)]
struct Setup {
    crashes: bool,
    full: QueueFull,
    strategy: ShareStrategy,
}

fn history(random: &mut StdRng, setup: Setup) -> Vec<Step> {
    let qos =
        |random: &mut StdRng| *[QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce].choose(random).unwrap();
    (0..random.random_range(20..70))
        .map(|_| {
            let client = random.random_range(0..CLIENTS.len());
            match random.random_range(0..100) {
                0..18 => Step::Connect {
                    client,
                    clean_start: random.random_bool(0.15),
                    expiry: if setup.crashes || random.random_bool(0.85) {
                        *[95, 995, 995, 9995].choose(random).unwrap()
                    } else {
                        0
                    },
                    will: random.random_bool(0.4).then(|| {
                        (*[0, 5, 25, 2005].choose(random).unwrap(), qos(random), random.random_bool(0.3))
                    }),
                    window: random.random_range(1..5),
                },
                18..28 => Step::Disconnect { client, normally: random.random_bool(0.5) },
                28..43 => Step::Subscribe {
                    client,
                    filter: FILTERS.choose(random).unwrap(),
                    options: SubscriptionOptions {
                        qos: qos(random),
                        retain_as_published: random.random_bool(0.5),
                        retain_handling: *[
                            RetainHandling::Send,
                            RetainHandling::SendIfNew,
                            RetainHandling::DoNotSend,
                        ]
                        .choose(random)
                        .unwrap(),
                        ..SubscriptionOptions::default()
                    },
                    identifier: random.random_bool(0.3).then(|| random.random_range(1..300)),
                },
                43..46 => Step::Unsubscribe { client, filter: FILTERS.choose(random).unwrap() },
                46..80 => Step::Publish {
                    topic: random.random_range(0..4),
                    qos: qos(random),
                    retain: random.random_bool(0.3),
                    empty: random.random_bool(0.1),
                    expires: random.random_bool(0.1) && !setup.crashes,
                    handed_over: random.random_bool(0.3),
                },
                80..95 => Step::Acknowledge { client, count: random.random_range(1..6) },
                _ => Step::Pass { seconds: 10 * random.random_range(1..15) },
            }
        })
        .collect()
}

/// What a client was sent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Seen {
    Publish {
        topic: String,
        payload: String,
        qos: u8,
        retain: bool,
        identifiers: Vec<u32>,
        sent_as: Option<(u16, bool)>,
    },
    Release(u16),
    Closed(u8),
    Present(bool),
}

/// What a session looks like from outside.
#[derive(Debug, PartialEq, Eq)]
struct Outside {
    connected: bool,
    drained: bool,
    queued: (usize, usize),
    inflight: usize,
    dropped: u64,
}

#[derive(Debug, PartialEq, Eq)]
struct Observed {
    seen: Vec<(usize, Vec<Seen>)>,
    sessions: BTreeMap<String, Outside>,
    counters: BTreeMap<&'static str, u64>,
}

/// One connection with its client.
struct Device {
    lease: Lease,
    buffer: OutBuffer,
    limits: ClientLimits,
    /// What the client has not acknowledged; true: PUBREL has come.
    owes: VecDeque<(u16, QoS, bool)>,
    /// Its will goes when it is lost.
    will: Option<Box<Will>>,
    expiry: Option<Duration>,
}

struct Nobody;

impl Wake for Nobody {
    fn wake(&self) {}
}

impl AckSink for Nobody {
    fn acknowledge(&self, _: &[SequenceRange], _: Outcome) {}
}

struct World {
    setup: Setup,
    disk: Disk,
    memory: Held,
    store: Arc<Store>,
    router: Arc<Router>,
    keeper: Arc<Keeper>,
    devices: BTreeMap<usize, Device>,
    /// Counters of earlier lives.
    before: BTreeMap<&'static str, u64>,
    dropped_before: BTreeMap<String, u64>,
    step: usize,
    seen: BTreeMap<usize, Vec<Seen>>,
    ahead: Duration,
}

/// Counters that say how many there are, not how many there were.
const GAUGES: [&str; 4] = ["sessions", "subscriptions", "retained_messages", "retained_bytes"];

/// Counters that count on over a restart.
const COUNTERS: [&str; 17] = [
    "sessions_expired",
    "sessions_resumed",
    "unmatched",
    "sent_qos0",
    "sent_qos1",
    "sent_qos2",
    "dropped_slow",
    "dropped_queue_full",
    "dropped_offline",
    "dropped_offline_full",
    "dropped_expired",
    "dropped_too_large",
    "dropped_memory",
    "disconnected_queue_full",
    "shared_passed_on",
    "wills_published",
    "wills_dropped",
];

/// What every ledger begins with, so that too much given back shows.
const BASE: usize = 1 << 40;

fn open(disk: &Disk, setup: Setup) -> (Held, Arc<Store>, Arc<Router>, Arc<Keeper>) {
    let router = Router::new(RetainedLimits::default());
    router.set_share_strategy(setup.strategy);
    let memory = Held::new(router.memory(), BASE);
    let (store, loaded) = disk.open(router.memory(), router.stats().clone()).unwrap();
    router.use_store(&store, loaded.retained, clock::steady_now());
    let capacity = if setup.crashes {
        Capacity { bytes: 1 << 20, items: 10_000 }
    } else {
        Capacity { bytes: 3000, items: 8 }
    };
    let keeper = Keeper::new(router.clone(), capacity, setup.full, 100);
    keeper.restore(&store, loaded.sessions);
    (memory, store, router, keeper)
}

impl World {
    fn new(setup: Setup) -> Self {
        clock::tests::set_ahead(Duration::ZERO);
        let disk = Disk::default();
        let (memory, store, router, keeper) = open(&disk, setup);
        Self {
            setup,
            disk,
            memory,
            store,
            router,
            keeper,
            devices: BTreeMap::new(),
            before: BTreeMap::new(),
            dropped_before: BTreeMap::new(),
            step: 0,
            seen: BTreeMap::new(),
            ahead: Duration::ZERO,
        }
    }

    fn see(&mut self, client: usize, seen: Seen) {
        self.seen.entry(client).or_default().push(seen);
    }

    fn act(&mut self, step: &Step) {
        self.step += 1;
        match *step {
            Step::Connect { client, clean_start, expiry, will, window } => {
                if !self.devices.contains_key(&client) {
                    self.connect(client, clean_start, expiry, will, window);
                }
            }
            Step::Disconnect { client, normally } => {
                if let Some(mut device) = self.devices.remove(&client) {
                    if normally {
                        device.will = None;
                    }
                    lose(device);
                }
            }
            Step::Subscribe { client, filter, options, identifier } => {
                if let Some(session) = self.devices.get_mut(&client).and_then(|device| device.lease.session())
                {
                    let wanted = SubscribeFilter { filter, options };
                    requests::subscribe(&self.router, session, &wanted, identifier, clock::steady_now());
                }
            }
            Step::Unsubscribe { client, filter } => {
                if let Some(session) = self.devices.get_mut(&client).and_then(|device| device.lease.session())
                {
                    requests::unsubscribe(&self.router, session, filter);
                }
            }
            Step::Publish { topic, qos, retain, empty, expires, handed_over } => {
                let payload = if empty { String::new() } else { format!("{:0>100}", self.step) };
                let properties = PublishProperties {
                    message_expiry_interval: expires.then_some(15),
                    ..PublishProperties::default()
                };
                self.publish(
                    &Message {
                        origin: &Arc::new(Origin {
                            client_id: "publisher".into(),
                            username: None,
                            peer: None,
                        }),
                        topic: &format!("t/{topic}"),
                        payload: payload.as_bytes(),
                        qos,
                        retain,
                        dup: false,
                        properties: &properties,
                        received_at: clock::unix_millis(),
                        hops: 0,
                    },
                    handed_over,
                );
            }
            Step::Acknowledge { client, count } => self.acknowledge(client, count),
            Step::Pass { seconds } => {
                self.ahead += Duration::from_secs(seconds);
                clock::tests::set_ahead(self.ahead);
                self.pass();
            }
        }
        self.settle();
    }

    /// What the keeper does when time has passed.
    fn pass(&mut self) {
        self.keeper.expire(clock::now());
        self.router.expire_retained(clock::steady_now());
    }

    fn connect(
        &mut self,
        client: usize,
        clean_start: bool,
        expiry: u64,
        will: Option<(u32, QoS, bool)>,
        window: usize,
    ) {
        let client_id = CLIENTS[client];
        let claimed = Claimed { client_id, username: None, known: true, clean_start, lasts: expiry > 0 };
        let Granted { mut lease, present } = match self.keeper.claim(&claimed) {
            Claim::Granted(granted) => granted,
            Claim::Wait(answer) if clean_start => answer.blocking_recv().unwrap(),
            Claim::Wait(_) | Claim::Refused | Claim::NotYours => panic!("the session is free"),
        };
        if !present {
            self.dropped_before.remove(client_id);
        }
        self.see(client, Seen::Present(present));
        let limits = ClientLimits { version: Version::V5, maximum_packet_size: u32::MAX, window };
        let expiry = (expiry > 0).then(|| Duration::from_secs(expiry));
        let origin = Arc::new(Origin { client_id: client_id.into(), username: None, peer: None });
        let (topic, payload) = (format!("w/{client_id}"), format!("{:0>100}", self.step));
        let will = will.map(|(delay_interval, qos, retain)| {
            let packet = WillPacket {
                topic: &topic,
                payload: payload.as_bytes(),
                qos,
                retain,
                delay_interval,
                properties: PublishProperties::default(),
            };
            Box::new(Will::new(&packet, &origin, self.router.memory()))
        });
        let session = lease.session().unwrap();
        session.connected(limits);
        session.inbox.record(expiry, Presence::Connected, will.as_deref());
        let device =
            Device { lease, buffer: OutBuffer::default(), limits, owes: VecDeque::new(), will, expiry };
        self.devices.insert(client, device);
    }

    fn publish(&mut self, message: &Message<'_>, handed_over: bool) {
        let mut wakes = WakeList::default();
        if !handed_over {
            let (mut outbox, mut tally) = (Outbox::default(), Tally::default());
            let route = self.router.find_route(message.topic);
            if !self.router.dispatch(message, &route, 0, &mut outbox) {
                Stats::add(&self.router.stats().unmatched, 1);
            }
            outbox.flush(&mut wakes, &mut tally);
            tally.flush(self.router.stats());
            return;
        }
        let hand_over = HandOver::new(Ticket::new(Arc::new(Nobody), 0));
        let mut progress = PublishProgress::default();
        let mut waited = false;
        while let Published::Full(_) =
            self.router.publish(message, Some(&hand_over), &mut progress, &mut wakes)
        {
            // Only those who are there are waited for, and they take what there is.
            waited = true;
            self.drain();
        }
        if waited {
            self.drain();
        }
    }

    /// All clients take and acknowledge everything.
    fn drain(&mut self) {
        for _ in 0..10_000 {
            self.settle();
            if self.devices.values().all(|device| device.owes.is_empty()) {
                return;
            }
            for client in 0..CLIENTS.len() {
                self.acknowledge(client, usize::MAX);
            }
        }
        panic!("clients that acknowledge everything never have everything");
    }

    fn acknowledge(&mut self, client: usize, count: usize) {
        let Some(device) = self.devices.get_mut(&client) else { return };
        let Some(session) = device.lease.session() else { return };
        let mut tally = Tally::default();
        let mut out = Output { buffer: &mut device.buffer, tally: &mut tally, now: clock::steady_now() };
        // In the order of the deliveries: when PUBREL comes depends on the disk.
        device.owes.make_contiguous().sort_unstable_by_key(|(identifier, ..)| *identifier);
        let owed: Vec<_> = device.owes.drain(..count.min(device.owes.len())).collect();
        for (identifier, qos, released) in owed {
            match (qos, released) {
                (QoS::ExactlyOnce, false) => {
                    session.pubrec(identifier, ReasonCode::Success, &mut out).unwrap();
                }
                (QoS::ExactlyOnce, true) => session.pubcomp(identifier).unwrap(),
                _ => session.puback(identifier, ReasonCode::Success).unwrap(),
            }
        }
    }

    /// Until nothing moves any more and everything is on the disk.
    fn settle(&mut self) {
        let mut quiet = 0;
        while quiet < 3 {
            self.keeper.run_errands();
            let stamp = self.store.wake_at(&Arc::new(Nobody));
            while !self.store.is_committed(stamp) {
                assert!(!self.store.has_failed());
                std::thread::yield_now();
            }
            let mut moved = false;
            for client in 0..CLIENTS.len() {
                moved |= self.turn(client);
            }
            quiet = if moved { 0 } else { quiet + 1 };
        }
    }

    /// A turn of a connection; true where it did something.
    fn turn(&mut self, client: usize) -> bool {
        let Some(device) = self.devices.get_mut(&client) else { return false };
        let session = device.lease.session().unwrap();
        let (mut mails, mut tally, mut close) = (VecDeque::new(), Tally::default(), None);
        let mut out = Output { buffer: &mut device.buffer, tally: &mut tally, now: clock::steady_now() };
        let inbox = session.inbox.clone();
        let taken =
            inbox.poll_take(&mut Context::from_waker(Waker::noop()), &mut mails, &mut session.released);
        for mail in mails {
            match mail {
                Mail::Delivery(delivery) => session.deliver(delivery, &mut out),
                Mail::Close(reason) => close = Some(reason),
                Mail::Acknowledged(..) | Mail::Forgotten(_) | Mail::Awaited => {}
            }
        }
        if taken.is_ready() {
            let excess = inbox.excess();
            if !excess.is_empty() {
                session.shed(excess, out.tally);
            }
        }
        requests::feed_retained(&self.router, session, clock::steady_now());
        session.pump(&mut out);
        inbox.release(std::mem::take(&mut session.released));
        let wants_more = session.wants_retained();
        tally.flush(self.router.stats());
        let seen = read(device, self.setup.crashes);
        let moved = taken.is_ready() || !seen.is_empty() || wants_more;
        let crashes = self.setup.crashes;
        for seen in seen.into_iter().filter(|seen| !crashes || !matches!(seen, Seen::Release(_))) {
            self.see(client, seen);
        }
        if let Some(reason) = close {
            self.see(client, Seen::Closed(reason as u8));
            if let Some(device) = self.devices.remove(&client) {
                lose(device);
            }
        }
        moved
    }

    /// All connections are lost at once.
    fn lose_all(&mut self) {
        for (_, device) in std::mem::take(&mut self.devices) {
            lose(device);
        }
        if let Some(group) = self.router.group(GROUP) {
            group.forget_turns();
        }
        self.pass();
        self.settle();
    }

    /// The process ends and another begins. In order: connections are lost before.
    fn restart(&mut self, seed: u64) {
        if self.setup.crashes {
            self.disk.die_in(0);
            for (_, device) in std::mem::take(&mut self.devices) {
                std::mem::forget(device.lease);
            }
        } else {
            self.lose_all();
        }
        self.store.close_and_wait();
        for view in self.keeper.sessions() {
            *self.dropped_before.entry(view.client_id().to_owned()).or_default() += view.filling().dropped;
        }
        for (name, count) in self.router.stats().snapshot().by_name() {
            *self.before.entry(name).or_default() += count;
        }
        self.disk.restart(seed);
        (self.memory, self.store, self.router, self.keeper) = open(&self.disk, self.setup);
        self.pass();
        self.settle();
    }

    /// What there is to see since the last call.
    fn observe(&mut self) -> Observed {
        let stats: BTreeMap<_, _> = self.router.stats().snapshot().by_name().into_iter().collect();
        let before = |name| self.before.get(name).copied().unwrap_or_default();
        let counters = COUNTERS.iter().map(|name| (*name, stats[name] + before(name)));
        let gauges = GAUGES.iter().map(|name| (*name, stats[name]));
        let mut sessions = BTreeMap::new();
        for view in self.keeper.sessions() {
            let filling = view.filling();
            let Charge { bytes, items } = filling.queued;
            let dropped = self.dropped_before.get(view.client_id()).copied().unwrap_or_default();
            let mut outside = Outside {
                connected: view.connected,
                drained: view.inbox.is_connected(),
                queued: (items, bytes),
                inflight: filling.inflight as usize,
                dropped: filling.dropped + dropped,
            };
            if self.setup.crashes {
                (outside.queued, outside.inflight) = ((0, 0), 0);
            }
            sessions.insert(view.client_id().to_owned(), outside);
        }
        self.dropped_before.retain(|client_id, _| sessions.contains_key(client_id));
        let mut seen: Vec<_> = std::mem::take(&mut self.seen).into_iter().collect();
        for (_, seen) in &mut seen {
            seen.sort_by_key(|seen| match seen {
                Seen::Publish { qos: 0, .. } | Seen::Present(_) => 0,
                Seen::Publish { .. } | Seen::Closed(_) => 1,
                Seen::Release(_) => 2,
            });
        }
        Observed { seen, sessions, counters: counters.chain(gauges).collect() }
    }

    /// All come back and take what waits for them; then everything ends, and with it what was counted.
    fn end(mut self) -> Observed {
        for client in 0..CLIENTS.len() {
            if !self.devices.contains_key(&client) {
                self.connect(client, false, 95, None, 3);
            }
        }
        self.drain();
        let observed = self.observe();
        for client in 0..CLIENTS.len() {
            self.act(&Step::Disconnect { client, normally: true });
        }
        for topic in
            (0..10).map(|topic| format!("t/{topic}")).chain(CLIENTS.map(|client| format!("w/{client}")))
        {
            let publication =
                crate::mqtt::publication::tests::publication(&topic, b"", QoS::AtMostOnce, true);
            self.router.retain(&Arc::new(publication), None);
        }
        self.act(&Step::Pass { seconds: 10_000 });
        self.act(&Step::Pass { seconds: 10_000 });
        self.store.close_and_wait();
        assert_eq!(self.keeper.sessions().len(), 0);
        let ledger = self.router.memory();
        drop((self.keeper, self.store));
        memory::settle();
        assert_eq!(ledger.used(), BASE as u64, "what sessions held was given back");
        drop(self.memory);
        observed
    }
}

/// The connection of a device is lost.
fn lose(device: Device) {
    let Device { mut lease, will, expiry, .. } = device;
    *lease.ending() = Ending { expiry, will };
}

/// What a client reads, and owes an answer to.
fn read(device: &mut Device, crashes: bool) -> Vec<Seen> {
    let bytes = device.buffer.take();
    let mut decoder = Decoder::new(Role::Client, u32::MAX);
    decoder.version = Some(device.limits.version);
    let (mut at, mut all) = (0, Vec::new());
    while at < bytes.len() {
        let Ok(Decoded::Packet { packet, consumed }) = decoder.decode(&bytes[at..]) else {
            panic!("an undecodable packet at {at}")
        };
        at += consumed;
        all.push(match packet {
            Packet::Publish(publish) => {
                if publish.qos != QoS::AtMostOnce {
                    device.owes.push_back((publish.packet_identifier, publish.qos, false));
                }
                Seen::Publish {
                    topic: publish.topic.to_owned(),
                    payload: String::from_utf8(publish.payload.to_vec()).unwrap(),
                    qos: publish.qos as u8,
                    retain: publish.retain,
                    identifiers: publish.properties.subscription_identifiers.to_vec(),
                    sent_as: (!crashes).then_some((publish.packet_identifier, publish.dup)),
                }
            }
            Packet::PubRel(ack) => {
                device.owes.push_back((ack.packet_identifier, QoS::ExactlyOnce, true));
                Seen::Release(ack.packet_identifier)
            }
            other => panic!("unexpected {other:?}"),
        });
    }
    all
}

/// Plays a history; at these steps all connections are lost, and the process with them.
fn play(setup: Setup, history: &[Step], at: &[usize], restarts: bool, seed: u64) -> Vec<Observed> {
    let mut world = World::new(setup);
    let mut all = Vec::new();
    for (number, step) in history.iter().enumerate() {
        if at.contains(&number) {
            if restarts {
                world.restart(seed);
            } else {
                world.lose_all();
            }
            all.push(world.observe());
        }
        world.act(step);
        all.push(world.observe());
    }
    all.push(world.end());
    all
}

/// Compares a history with and without restarts at some of its steps, by a seed.
fn compare(seed: u64, crashes: bool) {
    let mut random = StdRng::seed_from_u64(seed);
    let full = if crashes {
        QueueFull::DropNewest
    } else {
        *[QueueFull::DropNewest, QueueFull::DropOldest, QueueFull::Disconnect].choose(&mut random).unwrap()
    };
    let strategy = *[ShareStrategy::RoundRobin, ShareStrategy::Sticky].choose(&mut random).unwrap();
    let setup = Setup { crashes, full, strategy };
    let history = history(&mut random, setup);
    let one = random.random_range(0..history.len());
    let several: Vec<_> = (0..history.len()).filter(|_| random.random_bool(0.2)).collect();
    for at in [vec![one], several, (0..history.len()).collect()] {
        let without = play(setup, &history, &at, false, seed);
        let with = play(setup, &history, &at, true, seed);
        for (number, (with, without)) in with.iter().zip(&without).enumerate() {
            if with != without {
                println!("seed {seed}, {setup:?}, restarts before {at:?}");
                let mut steps = Vec::new();
                for (number, step) in history.iter().enumerate() {
                    if at.contains(&number) {
                        steps.push(String::from("restart"));
                    }
                    steps.push(format!("{step:?}"));
                }
                for (at, step) in steps.iter().enumerate().take(number + 1) {
                    println!("{at}: {step}");
                }
            }
            assert_eq!(with, without, "seed {seed}, observation {number}: with (left) and without restarts");
        }
    }
}

fn seeds(count: usize) -> Vec<u64> {
    let seed = std::env::var("CAUSEWAY_SEED").ok().and_then(|seed| seed.parse().ok());
    seed.map_or_else(|| (0..count).map(|_| rand::random()).collect(), |seed| vec![seed])
}

/// A client with more retained messages under way than one more subscription is served beside.
fn held_back() -> World {
    let mut world = World::new(Setup {
        crashes: false,
        full: QueueFull::DropNewest,
        strategy: ShareStrategy::RoundRobin,
    });
    for topic in 0..10 {
        world.act(&publish(topic, true));
    }
    world.act(&connect());
    for filter in ["t/+", "#", "t/1", "w/#"] {
        world.act(&subscribe(filter));
    }
    world
}

fn connect() -> Step {
    Step::Connect { client: 0, clean_start: false, expiry: 995, will: None, window: 1 }
}

fn publish(topic: u8, retain: bool) -> Step {
    let qos = QoS::AtLeastOnce;
    Step::Publish { topic, qos, retain, empty: false, expires: false, handed_over: false }
}

fn subscribe(filter: &'static str) -> Step {
    let options = SubscriptionOptions { qos: QoS::AtLeastOnce, ..SubscriptionOptions::default() };
    Step::Subscribe { client: 0, filter, options, identifier: None }
}

/// Everything that the client got since the last call, once it has acknowledged all of it: topics, and
/// whether as retained messages. Repetitions are left out.
fn taken(world: &mut World) -> Vec<(String, bool)> {
    world.drain();
    let seen = world.observe().seen.into_iter().flat_map(|(_, seen)| seen);
    let delivered = seen.filter_map(|seen| match seen {
        Seen::Publish { topic, retain, .. } => Some((topic, retain)),
        Seen::Present(_) | Seen::Release(_) | Seen::Closed(_) => None,
    });
    let mut taken: Vec<_> = delivered.collect();
    taken.dedup();
    taken
}

fn retained(topics: impl Iterator<Item = u8>) -> Vec<(String, bool)> {
    topics.map(|topic| (format!("t/{topic}"), true)).collect()
}

#[test]
fn retained_messages_are_held_back_and_no_subscription_is_refused() {
    for restarts in [false, true] {
        let mut world = held_back();
        // Not among what is held back: the client gets it because it is subscribed by now.
        world.act(&publish(3, true));
        if restarts {
            world.restart(1);
            world.act(&connect());
        }
        let session = world.devices.get_mut(&0).unwrap().lease.session().unwrap();
        assert_eq!(session.filters.len(), 4);
        assert!(!session.wants_retained(), "what is under way comes first");
        let mut expected = retained(0..10);
        expected.extend(retained([1].into_iter()));
        expected.push((String::from("t/3"), false));
        expected.extend(retained((0..10).filter(|topic| *topic != 3)));
        assert_eq!(taken(&mut world), expected, "restarts: {restarts}");
        // Once, also if the process ends again.
        world.restart(2);
        world.act(&connect());
        assert_eq!(taken(&mut world), []);
        world.end();
    }
}

#[test]
fn who_unsubscribes_gets_nothing_that_was_held_back() {
    for restarts in [false, true] {
        let mut world = held_back();
        world.act(&Step::Unsubscribe { client: 0, filter: "#" });
        if restarts {
            world.restart(1);
            world.act(&connect());
        }
        assert_eq!(taken(&mut world).len(), 11, "restarts: {restarts}");
        world.end();
    }
}

#[test]
fn what_is_held_back_is_served_in_turn_and_once_for_each_filter() {
    let mut world = held_back();
    for filter in ["t/#", "#", "+/+"] {
        world.act(&subscribe(filter));
    }
    // Asked for again, `#` is behind `t/#`.
    assert_eq!(taken(&mut world).len(), 10 + 1 + 3 * 10);
    world.end();
}

#[test]
fn a_restart_changes_nothing_that_a_lost_connection_does_not() {
    for seed in seeds(12) {
        println!("seed {seed}");
        compare(seed, false);
    }
}

#[test]
fn a_crash_changes_nothing_but_what_may_have_been_sent() {
    for seed in seeds(12) {
        println!("seed {seed}");
        compare(seed, true);
    }
}
