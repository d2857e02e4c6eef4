//! The session by hand, and by seeds against a client that follows the standard.

use causeway_protocol::mqtt::{Decoded, Decoder, Packet, Role};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    super::{
        inbox::{Offered, tests::rules},
        publication::tests::{publication, with_expiry},
    },
    *,
};
use crate::{
    flow::mailbox::Capacity,
    flow::{AckSink, HandOver, Outcome, SequenceRange, SessionId, Ticket},
};

/// A session with its ways in and out.
struct World {
    session: Session,
    buffer: OutBuffer,
    tally: Tally,
    now: i64,
}

/// What the client sees.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Publish { identifier: u16, payload: Vec<u8>, qos: QoS, dup: bool },
    PubRel(u16, ReasonCode),
    PubComp(u16, ReasonCode),
}

fn limits(version: Version, window: usize) -> ClientLimits {
    ClientLimits { version, maximum_packet_size: u32::MAX, window }
}

impl World {
    fn new(version: Version, window: usize) -> Self {
        let capacity = Capacity { bytes: 64 << 20, items: 1_000_000 };
        let rules = rules(capacity, Arc::default());
        let mut session = Session::new(Inbox::new(1, "c", &Arc::new(rules), None));
        session.connected(limits(version, window));
        Self { session, buffer: OutBuffer::default(), tally: Tally::default(), now: 0 }
    }

    fn with<T>(&mut self, act: impl FnOnce(&mut Session, &mut Output<'_>) -> T) -> T {
        let mut out = Output { buffer: &mut self.buffer, tally: &mut self.tally, now: self.now };
        act(&mut self.session, &mut out)
    }

    /// Offers a delivery to the inbox and, while connected, lets the session take it.
    fn deliver(&mut self, payload: &[u8], qos: QoS) {
        self.offer(payload, qos, None);
        self.drain();
    }

    fn offer(&mut self, payload: &[u8], qos: QoS, hand_over: Option<Arc<HandOver>>) {
        let publication = Arc::new(publication("t", payload, qos, false));
        let delivery = Delivery { hand_over, ..Delivery::new(publication, qos) };
        let offered = self.session.inbox.offer(delivery);
        assert!(!matches!(offered, Offered::Full(_)));
    }

    fn drain(&mut self) {
        for mail in self.session.inbox.take() {
            match mail {
                Mail::Delivery(delivery) => self.with(|session, out| session.deliver(delivery, out)),
                Mail::Acknowledged(..) | Mail::Forgotten(_) | Mail::Close(_) | Mail::Awaited => {
                    panic!("only deliveries here")
                }
            }
        }
        self.with(Session::pump);
        let released = std::mem::take(&mut self.session.released);
        self.session.inbox.release(released);
    }

    fn seen(&mut self) -> Vec<Seen> {
        let bytes = self.buffer.take();
        let mut decoder = Decoder::new(Role::Client, u32::MAX);
        decoder.version = Some(self.session.limits.version);
        let mut at = 0;
        let mut seen = Vec::new();
        while at < bytes.len() {
            let Ok(Decoded::Packet { packet, consumed }) = decoder.decode(&bytes[at..]) else {
                panic!("an undecodable packet at {at}")
            };
            at += consumed;
            seen.push(match packet {
                Packet::Publish(publish) => Seen::Publish {
                    identifier: publish.packet_identifier,
                    payload: publish.payload.to_vec(),
                    qos: publish.qos,
                    dup: publish.dup,
                },
                Packet::PubRel(ack) => Seen::PubRel(ack.packet_identifier, ack.reason),
                Packet::PubComp(ack) => Seen::PubComp(ack.packet_identifier, ack.reason),
                other => panic!("unexpected {other:?}"),
            });
        }
        seen
    }

    fn reconnect(&mut self, window: usize) {
        self.session.disconnected(&mut self.tally);
        self.buffer = OutBuffer::default();
        self.session.connected(limits(self.session.limits.version, window));
        self.drain();
    }
}

fn sent(identifier: u16, payload: &[u8], qos: QoS, dup: bool) -> Seen {
    Seen::Publish { identifier, payload: payload.to_vec(), qos, dup }
}

#[test]
fn the_window_bounds_what_is_unacknowledged_and_order_is_kept() {
    let mut world = World::new(Version::V5, 2);
    for payload in [b"1", b"2", b"3", b"4"] {
        world.deliver(payload, QoS::AtLeastOnce);
    }
    let publish = |identifier, payload| sent(identifier, payload, QoS::AtLeastOnce, false);
    assert_eq!(world.seen(), [publish(1, b"1"), publish(2, b"2")]);
    world.session.puback(2, ReasonCode::Success).unwrap();
    world.drain();
    assert_eq!(world.seen(), [publish(3, b"3")]);
    world.session.puback(2, ReasonCode::Success).unwrap();
    world.session.puback(9, ReasonCode::Success).unwrap();
    world.drain();
    assert_eq!(world.seen(), [], "nothing was acknowledged by that");
    world.session.puback(1, ReasonCode::Success).unwrap();
    world.session.puback(3, ReasonCode::Success).unwrap();
    world.drain();
    assert_eq!(world.seen(), [publish(4, b"4")]);
    world.session.puback(4, ReasonCode::Success).unwrap();
    assert!(world.session.is_idle());
    assert!(world.session.inbox.charge().is_empty());
}

#[test]
fn a_resumed_session_repeats_with_the_old_identifiers_before_anything_new() {
    let mut world = World::new(Version::V311, 3);
    for payload in [b"1", b"2", b"3", b"4"] {
        world.deliver(payload, QoS::ExactlyOnce);
    }
    world.seen();
    world.with(|session, out| session.pubrec(2, ReasonCode::Success, out).unwrap());
    assert_eq!(world.seen(), [Seen::PubRel(2, ReasonCode::Success)]);
    world.session.disconnected(&mut Tally::default());
    world.offer(b"5", QoS::AtLeastOnce, None);
    world.offer(b"-", QoS::AtMostOnce, None);
    world.session.connected(limits(Version::V311, 5));
    world.drain();
    let again = |identifier, payload| sent(identifier, payload, QoS::ExactlyOnce, true);
    assert_eq!(
        world.seen(),
        [
            again(1, b"1"),
            Seen::PubRel(2, ReasonCode::Success),
            again(3, b"3"),
            sent(4, b"4", QoS::ExactlyOnce, false),
            sent(5, b"5", QoS::AtLeastOnce, false),
        ]
    );
}

#[test]
fn a_delivery_that_is_not_acknowledged_takes_one_place_of_the_window_and_no_more() {
    let mut world = World::new(Version::V5, 2);
    world.deliver(b"first", QoS::AtLeastOnce);
    assert_eq!(world.seen(), [sent(1, b"first", QoS::AtLeastOnce, false)]);
    for identifier in 2..=65_534 {
        world.deliver(b"next", QoS::AtLeastOnce);
        assert_eq!(world.seen(), [sent(identifier, b"next", QoS::AtLeastOnce, false)]);
        if identifier == 20_000 {
            // So it is on the next connection.
            world.reconnect(2);
            let again =
                [sent(1, b"first", QoS::AtLeastOnce, true), sent(20_000, b"next", QoS::AtLeastOnce, true)];
            assert_eq!(world.seen(), again);
        }
        assert_eq!(world.session.inbox.filling().inflight, 2);
        world.session.puback(identifier, ReasonCode::Success).unwrap();
    }
    // There are no more identifiers than that.
    world.deliver(b"last", QoS::AtLeastOnce);
    assert_eq!(world.seen(), []);
    assert!(world.session.exhausted);
    world.session.puback(1, ReasonCode::Success).unwrap();
    world.drain();
    assert_eq!(world.seen(), [sent(65_535, b"last", QoS::AtLeastOnce, false)]);
    world.session.puback(65_535, ReasonCode::Success).unwrap();
    assert!(world.session.is_idle() && !world.session.exhausted);
    world.drain();
    assert_eq!(world.session.inbox.filling().inflight, 0);
}

#[test]
fn a_smaller_window_after_a_reconnect_is_kept_to() {
    let mut world = World::new(Version::V5, 10);
    for payload in 0..10u8 {
        world.deliver(&[payload], QoS::AtLeastOnce);
    }
    assert_eq!(world.seen().len(), 10);
    world.reconnect(2);
    assert_eq!(world.seen().len(), 2);
    world.session.puback(1, ReasonCode::Success).unwrap();
    world.drain();
    assert_eq!(world.seen(), [sent(3, &[2], QoS::AtLeastOnce, true)]);
}

#[test]
fn an_acknowledgement_of_the_wrong_kind_is_refused_and_a_late_one_ignored() {
    let mut world = World::new(Version::V5, 4);
    world.deliver(b"1", QoS::AtLeastOnce);
    world.deliver(b"2", QoS::ExactlyOnce);
    let refused = Err(OutOfPlace);
    world.with(|session, out| assert_eq!(session.pubrec(1, ReasonCode::Success, out), refused));
    assert_eq!(world.session.pubcomp(1), refused);
    assert_eq!(world.session.puback(2, ReasonCode::Success), refused);
    assert_eq!(world.session.pubcomp(2), refused, "not released yet");
    world.with(|session, out| session.pubrec(2, ReasonCode::Success, out).unwrap());
    assert_eq!(world.session.puback(2, ReasonCode::Success), refused);
    world.session.pubcomp(2).unwrap();
    // Done, behind the first one that is not: repetitions of its acknowledgements change nothing.
    world.session.pubcomp(2).unwrap();
    world.session.puback(1, ReasonCode::Success).unwrap();
    world.session.puback(1, ReasonCode::Success).unwrap();
    assert!(world.session.is_idle());
}

#[test]
fn an_unknown_pubrec_is_answered_and_a_refusing_one_ends_the_delivery() {
    let mut world = World::new(Version::V5, 10);
    world.with(|session, out| session.pubrec(77, ReasonCode::Success, out).unwrap());
    assert_eq!(world.seen(), [Seen::PubRel(77, ReasonCode::PacketIdentifierNotFound)]);
    world.deliver(b"1", QoS::ExactlyOnce);
    world.seen();
    world.with(|session, out| session.pubrec(1, ReasonCode::QuotaExceeded, out).unwrap());
    assert_eq!(world.seen(), []);
    assert!(world.session.is_idle());
}

#[test]
fn packet_identifiers_go_round_without_zero() {
    let mut world = World::new(Version::V311, 3);
    world.session.next_identifier = u16::MAX;
    for payload in [b"1", b"2", b"3"] {
        world.deliver(payload, QoS::AtLeastOnce);
    }
    let identifiers: Vec<_> = world
        .seen()
        .into_iter()
        .map(|seen| if let Seen::Publish { identifier, .. } = seen { identifier } else { 0 })
        .collect();
    assert_eq!(identifiers, [u16::MAX, 1, 2]);
    for identifier in identifiers.into_iter().rev() {
        world.session.puback(identifier, ReasonCode::Success).unwrap();
    }
    assert!(world.session.is_idle());
}

#[test]
fn what_is_expired_or_too_large_is_not_sent_and_counted() {
    let mut world = World::new(Version::V5, 3);
    world.session.limits.maximum_packet_size = 50;
    world.now = 2000;
    let expired = Arc::new(with_expiry("t", b"1", QoS::AtLeastOnce, false, Some(2)));
    let delivery = Delivery::new(expired, QoS::AtLeastOnce);
    world.with(|session, out| session.deliver(delivery, out));
    world.deliver(&[0; 50], QoS::AtLeastOnce);
    world.deliver(b"2", QoS::AtLeastOnce);
    assert_eq!(world.seen(), [sent(1, b"2", QoS::AtLeastOnce, false)]);
    let counts = world.tally.counts();
    assert_eq!((counts.dropped_expired, counts.dropped_too_large, counts.sent_qos1), (1, 1, 1));
}

#[derive(Default)]
struct Completed(parking_lot::Mutex<Vec<(u64, Outcome)>>);

impl AckSink for Completed {
    fn acknowledge(&self, ranges: &[SequenceRange], outcome: Outcome) {
        self.0.lock().extend(ranges.iter().map(|range| (range.first, outcome)));
    }
}

#[test]
fn a_hand_over_is_complete_when_written_acknowledged_stored_or_refused() {
    let completed = Arc::new(Completed::default());
    let hand_over = |sequence| Some(HandOver::new(Ticket::new(completed.clone(), sequence)));
    let done = || std::mem::take(&mut *completed.0.lock());
    let mut world = World::new(Version::V5, 2);
    world.offer(b"0", QoS::AtMostOnce, hand_over(0));
    for (sequence, qos) in [(1, QoS::AtLeastOnce), (2, QoS::ExactlyOnce), (3, QoS::AtLeastOnce)] {
        world.offer(b"x", qos, hand_over(sequence));
    }
    world.drain();
    assert_eq!(done(), []);
    world.seen();
    assert_eq!(done(), [(0, Outcome::Success)], "QoS 0 is written");
    world.with(|session, out| session.pubrec(2, ReasonCode::Success, out).unwrap());
    assert_eq!(done(), [(2, Outcome::Success)]);
    world.session.puback(1, ReasonCode::QuotaExceeded).unwrap();
    assert_eq!(done(), [(1, Outcome::Failed(ReasonCode::QuotaExceeded))]);
    world.drain();
    assert_eq!(done(), []);
    world.session.disconnected(&mut Tally::default());
    assert_eq!(done(), [(3, Outcome::Success)], "stored");
    world.offer(b"x", QoS::AtLeastOnce, hand_over(4));
    assert_eq!(done(), [(4, Outcome::Success)], "stored while away");
}

#[test]
fn a_slow_client_keeps_its_backlog_where_it_is_bounded() {
    let mut world = World::new(Version::V311, 100);
    let payload = vec![0; 10_000];
    for _ in 0..100 {
        world.deliver(&payload, QoS::AtMostOnce);
    }
    assert!(world.buffer.len() < OUT_HIGH + 20_000, "{}", world.buffer.len());
    let charge = world.session.inbox.charge();
    assert!(charge.items > 60, "{charge:?}");
    let mut received = 0;
    while !world.buffer.is_empty() {
        received += world.seen().len();
        world.drain();
    }
    assert_eq!(received, 100);
    assert!(world.session.inbox.charge().is_empty());
}

/// The client side of QoS 1 and 2, with all it may do: acknowledge late and out of order, lose packets with
/// the connection.
#[derive(Default)]
struct Client {
    /// QoS 1 and 2 payloads in the order they were first received.
    received: Vec<(QoS, u32)>,
    /// QoS 2 identifiers between PUBLISH and PUBREL.
    exactly_once: hashbrown::HashSet<u16>,
    unacknowledged: Vec<(u16, QoS)>,
    released: Vec<u16>,
}

impl Client {
    fn receive(&mut self, seen: &[Seen], seed: u64) {
        for seen in seen {
            match seen {
                Seen::Publish { identifier, payload, qos, .. } => {
                    let number = u32::from_be_bytes(payload.as_slice().try_into().expect("four bytes"));
                    let known = self.received.contains(&(*qos, number));
                    match qos {
                        QoS::AtMostOnce => continue,
                        QoS::AtLeastOnce if known => {}
                        QoS::AtLeastOnce => self.received.push((*qos, number)),
                        QoS::ExactlyOnce => {
                            if self.exactly_once.insert(*identifier) {
                                assert!(!known, "{number} twice, seed {seed}");
                                self.received.push((*qos, number));
                            }
                        }
                    }
                    self.unacknowledged.push((*identifier, *qos));
                }
                Seen::PubComp(..) => panic!("the client publishes nothing, seed {seed}"),
                Seen::PubRel(identifier, reason) => {
                    assert_eq!(*reason, ReasonCode::Success, "seed {seed}");
                    self.exactly_once.remove(identifier);
                    self.released.push(*identifier);
                }
            }
        }
    }
}

#[test]
fn random_exchanges_lose_nothing_and_double_no_qos_2() {
    for _ in 0..100 {
        let seed: u64 = rand::random();
        let mut random = StdRng::seed_from_u64(seed);
        let mut world = World::new(Version::V5, random.random_range(1..20));
        let mut client = Client::default();
        let mut offered = Vec::new();
        let mut away = false;
        for step in 0..4000u32 {
            // The last steps bring nothing new and lose nothing: all that was offered must arrive.
            let tail = step >= 500;
            match random.random_range(0..10) {
                0..=3 if !tail => {
                    let qos =
                        [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][random.random_range(0..3)];
                    world.offer(&step.to_be_bytes(), qos, None);
                    if qos != QoS::AtMostOnce {
                        offered.push((qos, step));
                    }
                }
                4 if !tail && !away => {
                    // Some of what is on the way still arrives.
                    let seen = world.seen();
                    let arrives = random.random_range(0..=seen.len());
                    client.receive(&seen[..arrives], seed);
                    world.session.disconnected(&mut world.tally);
                    world.buffer = OutBuffer::default();
                    client.unacknowledged.clear();
                    client.released.clear();
                    away = true;
                }
                4..=5 if away => {
                    world.session.connected(limits(Version::V5, random.random_range(1..20)));
                    away = false;
                }
                6 if !away => {
                    let seen = world.seen();
                    client.receive(&seen, seed);
                }
                _ if !away => {
                    if !client.unacknowledged.is_empty() {
                        let index = random.random_range(0..client.unacknowledged.len());
                        let (identifier, qos) = client.unacknowledged.remove(index);
                        if qos == QoS::AtLeastOnce {
                            world.session.puback(identifier, ReasonCode::Success).unwrap();
                        } else {
                            world.with(|session, out| {
                                session.pubrec(identifier, ReasonCode::Success, out).unwrap();
                            });
                        }
                    }
                    if let Some(identifier) = client.released.pop() {
                        world.session.pubcomp(identifier).unwrap();
                    }
                }
                _ => {}
            }
            if !away {
                world.drain();
                assert!(world.session.unacknowledged <= world.session.limits.window, "seed {seed}");
            }
        }
        assert!(world.session.is_idle(), "seed {seed}");
        assert_eq!(client.received, offered, "each once and in order, seed {seed}");
        assert!(world.session.inbox.charge().is_empty(), "seed {seed}");
    }
}

/// A stored session whose next position is `next`, with its store.
fn stored_world(next: u64, window: usize) -> (World, Arc<super::super::store::Store>, tempfile::TempDir) {
    use super::super::{store::Store, stored::StoredSession};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sessions.redb");
    let memory = super::super::memory::MemoryCounter::new(u64::MAX);
    let (store, _) = Store::open(&path, None, memory, Arc::default()).unwrap();
    let rules = rules(Capacity { bytes: 64 << 20, items: 1_000_000 }, Arc::default());
    let stored = StoredSession::restored(store.clone(), store.new_session(), SessionId::random(), next);
    let mut session = Session::new(Inbox::new(1, "c", &Arc::new(rules), Some(stored)));
    session.connected(limits(Version::V5, window));
    (World { session, buffer: OutBuffer::default(), tally: Tally::default(), now: 0 }, store, folder)
}

#[test]
fn identifiers_of_a_stored_session_follow_from_positions_round_the_end() {
    let (mut world, store, _folder) = stored_world(65_533, 10);
    for number in 0..4u8 {
        world.deliver(&[number], QoS::AtLeastOnce);
    }
    let expected: Vec<_> = [(65_534, 0), (65_535, 1), (1, 2), (2, 3)]
        .map(|(identifier, number)| sent(identifier, &[number], QoS::AtLeastOnce, false))
        .to_vec();
    assert_eq!(world.seen(), expected);
    for identifier in [1, 65_534, 2, 65_535] {
        world.session.puback(identifier, ReasonCode::Success).unwrap();
    }
    assert!(world.session.is_idle());
    // A hole: what was dropped had a position.
    let dropped = world.session.inbox.stored().unwrap();
    dropped.advance();
    world.deliver(b"a", QoS::AtLeastOnce);
    world.session.inbox.stored().unwrap().advance();
    world.deliver(b"b", QoS::AtLeastOnce);
    let expected = [sent(4, b"a", QoS::AtLeastOnce, false), sent(6, b"b", QoS::AtLeastOnce, false)];
    assert_eq!(world.seen(), expected);
    world.session.puback(6, ReasonCode::Success).unwrap();
    world.session.puback(4, ReasonCode::Success).unwrap();
    assert!(world.session.is_idle());
    store.close_and_wait();
}

#[test]
fn only_the_latest_pubrel_is_answered_and_once() {
    let (mut world, store, _folder) = stored_world(0, 10);
    let durable = world.session.durable.as_mut().unwrap();
    let (first, other) = (durable.begin_release(7), durable.begin_release(8));
    let again = durable.begin_release(7);
    assert_eq!([first, again].map(|release| durable.end_release(release)), [None, Some(7)]);
    // The identifier is used anew.
    let new = durable.begin_release(7);
    let ends = [again, new, new, other].map(|release| durable.end_release(release));
    assert_eq!(ends, [None, Some(7), None, Some(8)]);
    // Of an earlier connection, and the one that follows need not wait: one answer.
    let early = durable.begin_release(9);
    world.with(|session, out| session.released(9, Version::V5, out));
    let durable = world.session.durable.as_mut().unwrap();
    assert_eq!(durable.end_release(early), None);
    // Nor does the next connection get the answer of the one before.
    let before = durable.begin_release(9);
    durable.disconnected(&world.session.inbox);
    assert_eq!(durable.end_release(before), None);
    store.close_and_wait();
}

#[test]
fn a_repeated_pubrel_is_answered_when_the_release_is_on_the_disk() {
    let (mut world, store, _folder) = stored_world(0, 10);
    world.session.tracker.restore(&[(7, false)]);
    let turn = store.gate();
    world.with(|session, out| session.released(7, Version::V5, out));
    world.with(Session::pump);
    // The connection ends before the disk has it, and the client releases again on the next one. Were it told
    // that all is done, it could use the identifier for another message, which a crash would make a
    // repetition.
    world.session.disconnected(&mut world.tally);
    world.session.connected(limits(Version::V5, 10));
    world.with(|session, out| session.released(7, Version::V5, out));
    world.with(Session::pump);
    assert_eq!(world.seen(), []);
    drop(turn);
    settle(&mut world, &store);
    assert_eq!(world.seen(), [Seen::PubComp(7, ReasonCode::PacketIdentifierNotFound)]);
    // Nothing to wait for.
    world.with(|session, out| session.released(7, Version::V5, out));
    assert_eq!(world.seen(), [Seen::PubComp(7, ReasonCode::PacketIdentifierNotFound)]);
    store.close_and_wait();
}

#[test]
fn a_resumed_session_delivers_when_the_store_knows_that_it_is_connected() {
    let (mut world, store, _folder) = stored_world(0, 10);
    world.deliver(b"1", QoS::AtLeastOnce);
    assert_eq!(world.seen(), [sent(1, b"1", QoS::AtLeastOnce, false)]);
    world.session.disconnected(&mut world.tally);
    world.offer(b"2", QoS::AtLeastOnce, None);
    let turn = store.gate();
    world.session.connected(limits(Version::V5, 10));
    world.session.resumed();
    world.drain();
    world.deliver(b"3", QoS::AtLeastOnce);
    world.deliver(b"4", QoS::AtMostOnce);
    assert_eq!(world.seen(), [sent(0, b"4", QoS::AtMostOnce, false)], "QoS 0 is never repeated");
    drop(turn);
    settle(&mut world, &store);
    let expected = [(1, b"1", true), (2, b"2", false), (3, b"3", false)];
    assert_eq!(world.seen(), expected.map(|(id, payload, dup)| sent(id, payload, QoS::AtLeastOnce, dup)));
    store.close_and_wait();
}

/// Waits until all that was handed to the store is on the disk, and lets the session go on.
fn settle(world: &mut World, store: &super::super::store::Store) {
    let stamp = store.wake_at(&world.session.inbox);
    while !store.is_committed(stamp) {
        std::thread::yield_now();
    }
    world.with(Session::pump);
}

#[test]
fn a_stored_session_sends_qos_2_and_pubrel_when_they_are_on_the_disk() {
    let (mut world, store, _folder) = stored_world(0, 10);
    // While a turn is open nothing is written.
    let turn = store.gate();
    world.deliver(b"1", QoS::AtLeastOnce);
    world.deliver(b"2", QoS::ExactlyOnce);
    world.deliver(b"3", QoS::AtLeastOnce);
    assert_eq!(world.seen(), [sent(1, b"1", QoS::AtLeastOnce, false)]);
    drop(turn);
    settle(&mut world, &store);
    let expected = [sent(2, b"2", QoS::ExactlyOnce, false), sent(3, b"3", QoS::AtLeastOnce, false)];
    assert_eq!(world.seen(), expected);
    let turn = store.gate();
    world.with(|session, out| session.pubrec(2, ReasonCode::Success, out)).unwrap();
    world.with(Session::pump);
    assert_eq!(world.seen(), []);
    drop(turn);
    settle(&mut world, &store);
    assert_eq!(world.seen(), [Seen::PubRel(2, ReasonCode::Success)]);
    store.close_and_wait();
}
