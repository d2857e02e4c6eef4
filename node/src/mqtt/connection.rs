//! A connection: one task, one socket, one session at a time.
//!
//! The wake-up and the system call cost, not the message. So a turn takes all mail, reads what is
//! there, decodes all of it, groups what goes to each session, and ends with one write. Buffers belong to
//! the thread: an idle connection holds none.
//!
//! It goes through the phases of [`Phase`]; the MQTT work of each is in its own file (`handshake`,
//! `publisher`, `requests`), the session's in [`super::session`].
//!
//! Invariants:
//! * A turn is bounded: at most [`ROUNDS`] rounds of one read each, then others have their turn.
//! * Bytes that a client does not read are bounded: beyond [`OUT_LIMIT`] nothing more is read from it.
//! * Packets of a client are acted on in their order, with one exception: while a publication waits for room,
//!   other packets overtake it and the publications behind it ([`ReadAhead`]).
//! * However it ends, its session goes back to the keeper: the lease sees to it.

mod closing;

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use causeway_protocol::mqtt::{Decoded, Decoder, Packet, Publish, QoS, ReasonCode, Role, Version};
use smallvec::SmallVec;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::futures::OwnedNotified,
    time::{Instant, Sleep},
};

use super::{
    authentication::Authenticating,
    clock,
    handshake::Claiming,
    inbox::{Filling, Inbox, Mail},
    listener::ListenerSlot,
    memory::{self, Held, Pressure},
    options::{CertificateUsername, QueueFull},
    out_buffer::{OutBuffer, Queue},
    outbox::Outbox,
    publisher::{Block, LOOK},
    rate::{ClientRates, Limited},
    read_ahead::ReadAhead,
    requests,
    session::{Output, Session},
    shared::{Client, Shared},
    standstill::Standing,
    stats::Tally,
    transport::{Peer, Transport},
};
use crate::flow::WakeList;

/// Bytes read at once: some hundred small messages, and as much as a socket usually has.
const READ: usize = 64 << 10;

/// Rounds of a turn, before the other connections of the thread have theirs.
const ROUNDS: usize = 4;

/// How long a connection that must end still reads: what its client sent before is not lost because somebody
/// else (often the same client, a moment later) was heard first.
const LAST_WORDS: Duration = Duration::from_millis(20);

/// Bytes on their way to a client beyond which nothing is read from it: its own requests cause them.
const OUT_LIMIT: usize = 1 << 20;

/// Issuers of hand-overs that are asked whether they wait for a client, in one look.
const ISSUERS: usize = 16;

/// How long a client that closed its half of the connection may still be waited for: what it sent before may
/// get through.
const HALF_CLOSED: Duration = Duration::from_secs(2);

/// Buffers of a thread, used by whichever connection has its turn.
struct Scratch {
    read: Box<[u8]>,
    write: Option<Box<Queue>>,
    mails: VecDeque<Mail>,
    work: Work,
}

/// Work that a turn collects.
#[derive(Default)]
pub(crate) struct Work {
    pub(crate) outbox: Outbox,
    pub(crate) wakes: WakeList,
    pub(crate) tally: Tally,
    /// Milliseconds since the Unix epoch, taken once per turn.
    pub(crate) wall: i64,
    /// The steady clock at the same moment.
    pub(crate) steady: i64,
    /// The largest packet that the client of a CONNECT of this turn takes.
    pub(crate) client_maximum: Option<u32>,
    /// Words for the fault of a packet of this turn.
    pub(crate) explanation: Option<String>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        read: vec![0; READ].into_boxed_slice(),
        write: None,
        mails: VecDeque::new(),
        work: Work::default(),
    });
}

/// Where a connection stands.
pub(crate) enum Phase {
    /// CONNECT has not arrived.
    Connecting { deadline: Instant, stop: Pin<Box<OwnedNotified>> },
    /// The client is being authenticated.
    Authenticating(Box<Authenticating>),
    /// Another connection is letting go of the session.
    Claiming(Box<Claiming>),
    /// CONNACK is sent.
    Running,
    /// The reason is on its way to the client; then its end of the connection is waited for.
    Closing { deadline: Instant, shut: bool },
}

/// Why a connection ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum End {
    /// The client or the network closed it.
    Gone,
    /// DISCONNECT: nothing more is owed.
    Disconnected,
    /// We close it, and tell an MQTT 5 client why.
    Refused(ReasonCode),
    /// We close it with a CONNACK.
    NotConnected(ReasonCode, Version),
}

/// A connection of an MQTT client.
pub(crate) struct Connection {
    pub(super) shared: Arc<Shared>,
    socket: Transport,
    pub(super) peer: Peer,
    /// The listener it came through, and its place there.
    place: ListenerSlot,
    pub(super) decoder: Decoder,
    pub(super) phase: Phase,
    /// The client's publications that wait, and why, while there are any.
    pub(super) ahead: Option<Box<ReadAhead>>,
    /// The client is read from, or would be.
    heard: bool,
    pub(super) client: Option<Box<Client>>,
    /// Bytes that were read and not decoded.
    input: Vec<u8>,
    pub(super) out: OutBuffer,
    timer: Option<Pin<Box<Sleep>>>,
    last_activity: Instant,
    held: Held,
    /// Limits of its listener for what it sends.
    rates: Option<Box<ClientRates>>,
}

impl Connection {
    pub(crate) fn new(shared: Arc<Shared>, place: ListenerSlot, socket: Transport, peer: Peer) -> Self {
        let now = Instant::now();
        let mut decoder = Decoder::new(Role::Server, shared.options.max_packet_size);
        decoder.max_topic_levels = shared.options.max_topic_levels;
        let deadline = now + shared.options.connect_timeout;
        let stop = Box::pin(shared.stop.clone().notified_owned());
        let held = Held::new(shared.router.memory(), memory::CONNECTION);
        let listener = place.listener();
        let rates = ClientRates::new(listener.messages_rate, listener.bytes_rate, now);
        Self {
            held,
            shared,
            socket,
            peer,
            place,
            decoder,
            phase: Phase::Connecting { deadline, stop },
            ahead: None,
            heard: true,
            client: None,
            input: Vec::new(),
            out: OutBuffer::default(),
            timer: None,
            last_activity: now,
            rates,
        }
    }

    /// The listener it came through, such as `ssl:default`.
    pub(super) fn listener(&self) -> &str {
        self.place.listener().id()
    }

    /// The part of the client's certificate that takes the place of its user name.
    pub(super) fn certificate_username(&self) -> CertificateUsername {
        self.place.listener().certificate_username
    }

    /// One round: true when there may be more to do at once.
    fn round(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch, now: Instant) -> Result<bool, End> {
        let mut more = false;
        match &mut self.phase {
            Phase::Closing { .. } => return self.close_round(cx, scratch, now),
            Phase::Claiming(claiming) => {
                let answer = Pin::new(&mut claiming.granted).poll(cx);
                if let Poll::Ready(answer) = answer {
                    self.claimed(answer.ok(), &mut scratch.work)?;
                    self.last_activity = now;
                    self.decode_set_aside(scratch)?;
                    more = true;
                }
            }
            Phase::Authenticating(_) => {
                if self.poll_authentication(cx, &mut scratch.work)? {
                    self.last_activity = now;
                    self.decode_set_aside(scratch)?;
                    more = true;
                }
            }
            Phase::Connecting { stop, .. } => {
                let stops = stop.as_mut().poll(cx).is_ready();
                if stops || self.shared.stopping.load(Ordering::Acquire) {
                    return Err(End::Gone);
                }
            }
            Phase::Running => {}
        }
        if self.ahead.is_some() {
            self.look_after(now);
        }
        more |= self.take_mail(cx, scratch, now)?;
        more |= self.go_on(cx, scratch, now)?;
        if let Some((end, deadline)) = self.client.as_ref().and_then(|client| client.farewell())
            && (self.ahead.is_none() || now >= deadline)
        {
            return Err(end);
        }
        more |= self.read(cx, scratch, now)?;
        more |= self.answer(scratch, now)?;
        let mut written = 0;
        let delivers = self.out.holds_publish();
        let result = self.out.poll_write(&mut self.socket, cx, &mut written);
        scratch.work.tally.counts().bytes_sent += written;
        if let Poll::Ready(Err(_)) = result {
            return Err(End::Gone);
        }
        self.watch(delivers && written > 0, &mut scratch.work.tally, now)?;
        if self.socket.wants_flush()
            && let Poll::Ready(Err(_)) = Pin::new(&mut self.socket).poll_flush(cx)
        {
            return Err(End::Gone);
        }
        if written > 0 && self.out.len() > OUT_LIMIT {
            // It is not read from; that it takes what we write is its sign of life.
            self.last_activity = now;
        }
        // Room on the way out may let waiting deliveries through.
        Ok(more || (written > 0 && result.is_ready()))
    }

    /// Takes everything out of the inbox.
    fn take_mail(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch, now: Instant) -> Result<bool, End> {
        let Some(client) = self.client.as_deref_mut() else { return Ok(false) };
        let Scratch { mails, work, .. } = scratch;
        let version = client.limits.version;
        let Client { inbox, lease, departure, .. } = client;
        let Some(session) = lease.session() else { return Err(End::Gone) };
        if inbox.poll_take(cx, mails, &mut session.released).is_pending() {
            return Ok(false);
        }
        let mut close = None;
        let mut out = Output { buffer: &mut self.out, tally: &mut work.tally, now: work.steady };
        let rest = Unread { mails, inbox };
        while let Some(mail) = rest.mails.pop_front() {
            match mail {
                Mail::Delivery(delivery) => session.deliver(delivery, &mut out),
                Mail::Acknowledged(range, outcome) => session.tracker.complete(range, outcome),
                Mail::Forgotten(release) => session.forgotten(release, version, &mut out),
                Mail::Awaited => session.awaited = true,
                Mail::Close(reason) => close = Some(reason),
            }
        }
        drop(rest);
        let excess = inbox.excess();
        if !excess.is_empty() {
            session.shed(excess, &mut work.tally);
        }
        if mails.capacity() > 4096 {
            *mails = VecDeque::new();
        }
        match close {
            Some(ReasonCode::ServerShuttingDown) => {
                let departure = departure.get_or_insert_default();
                departure.draining.get_or_insert(now + self.shared.options.shutdown_drain);
                Ok(true)
            }
            Some(reason) => {
                departure.get_or_insert_default().leaving.get_or_insert((reason, now + LAST_WORDS));
                Ok(true)
            }
            None => Ok(true),
        }
    }

    /// Reads once, if the client may be heard.
    fn read(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch, now: Instant) -> Result<bool, End> {
        let heard = match &self.phase {
            Phase::Connecting { .. } => true,
            Phase::Authenticating(authenticating) => authenticating.listens(),
            Phase::Running => {
                let stops = self.stops_decoding();
                let client = self.client.as_deref_mut().filter(|client| client.draining().is_none());
                // Publications that wait for the disk are bounded as well.
                let held = |session: &mut Session| session.holds_much();
                let heard = !stops && client.is_some_and(|client| !client.lease.session().is_some_and(held));
                if heard && !self.heard {
                    // It could not be heard until now.
                    self.last_activity = now;
                }
                self.heard = heard;
                heard
            }
            Phase::Claiming(_) | Phase::Closing { .. } => false,
        };
        if !heard || self.out.len() > OUT_LIMIT {
            return Ok(false);
        }
        if self.input.len() > READ && self.shared.router.memory().pressure() == Pressure::Full {
            // Packets of many clients, each nearly complete, would be what fills the memory.
            scratch.work.tally.counts().disconnected_memory += 1;
            return Err(End::Refused(ReasonCode::QuotaExceeded));
        }
        // A short rest of the last read goes in front of what is read now; a long one is added to.
        let tail = self.input.len();
        let in_front = if tail <= READ / 2 { tail } else { 0 };
        let Some(space) = scratch.read.get_mut(in_front..) else { return Ok(false) };
        let mut buffer = ReadBuf::new(space);
        match Pin::new(&mut self.socket).poll_read(cx, &mut buffer) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Err(_)) => return Err(End::Gone),
            Poll::Ready(Ok(())) => {}
        }
        let count = buffer.filled().len();
        if count == 0 {
            self.say_farewell(End::Gone, now)?;
            return Ok(true);
        }
        self.last_activity = now;
        scratch.work.tally.counts().bytes_received += count as u64;
        let Scratch { read, work, .. } = scratch;
        let mut input = std::mem::take(&mut self.input);
        if in_front == tail {
            let Some(data) = read.get_mut(..tail + count) else { return Ok(false) };
            if let Some(front) = data.get_mut(..tail) {
                front.copy_from_slice(&input);
            }
            let consumed = self.decode(data, work)?;
            let rest = data.get(consumed..).unwrap_or_default();
            input.clear();
            if rest.is_empty() {
                input = Vec::new();
            } else {
                input.extend_from_slice(rest);
            }
        } else {
            input.extend_from_slice(read.get(..count).unwrap_or_default());
            let consumed = self.decode(&input, work)?;
            input.drain(..consumed);
        }
        self.input = input;
        Ok(true)
    }

    /// Goes on with publications and input that were set aside, if the reason for that is gone.
    fn go_on(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch, now: Instant) -> Result<bool, End> {
        let mut went_on = self.rates.as_mut().is_some_and(|rates| rates.end_pause(now));
        // Twice: one who waits for room looks again after it has taken its place in the queue.
        for _ in 0..3 {
            if !self.may_decode() || !self.may_go_on(cx, now) {
                break;
            }
            went_on = true;
            self.publish_ahead(&mut scratch.work)?;
        }
        if went_on && !self.input.is_empty() {
            self.decode_set_aside(scratch)?;
        }
        Ok(went_on)
    }

    /// Goes on with publications that wait, until one has to wait again. A turn is bounded: the rest has the
    /// next.
    fn publish_ahead(&mut self, work: &mut Work) -> Result<(), End> {
        let Some(mut ahead) = self.ahead.take() else { return Ok(()) };
        let mut done = 0;
        while done < READ
            && let Some(packet) = ahead.first()
        {
            let Some(client) = self.client.as_deref_mut() else { return Err(End::Gone) };
            let Ok(Decoded::Packet { packet: Packet::Publish(publish), .. }) = self.decoder.decode(packet)
            else {
                return Err(End::Gone);
            };
            match client.publish(&self.shared, &publish, work)? {
                Block::No => done += ahead.pop(),
                block => {
                    ahead.block = block;
                    break;
                }
            }
        }
        self.ahead = Some(ahead).filter(|ahead| !ahead.is_empty());
        Ok(())
    }

    /// Sets a publication aside that has to wait, or that others before it wait for; false where there is no
    /// room. One that is there already is not taken twice.
    fn set_aside(&mut self, publish: &Publish<'_>, packet: &[u8], work: &mut Work) -> bool {
        let ahead = self.ahead.get_or_insert_default();
        if publish.dup && publish.qos != QoS::AtMostOnce {
            let identifier = publish.packet_identifier;
            let mut session = self.client.as_deref_mut().and_then(|client| client.lease.session());
            let under_way = publish.qos == QoS::AtLeastOnce
                && session.as_mut().is_some_and(|session| session.tracker.is_under_way(identifier));
            // The one that waits in front is under way as well, and has to get in here first.
            if ahead.holds(identifier) || (under_way && !ahead.is_empty()) {
                work.tally.counts().received_duplicates += 1;
                return true;
            }
        }
        ahead.push(publish, packet, self.shared.options.read_ahead, self.shared.router.memory().pressure())
    }

    /// The client has said its last word. Where publications wait they have a moment to get through.
    fn say_farewell(&mut self, end: End, now: Instant) -> Result<(), End> {
        if self.ahead.is_none() {
            return Err(end);
        }
        let Some(client) = self.client.as_deref_mut() else { return Err(end) };
        if matches!(end, End::Disconnected) {
            client.lease.ending().will = None;
        }
        client.departure().farewell.get_or_insert((end, now + HALF_CLOSED));
        Ok(())
    }

    /// True while nothing more of the client's input is acted on.
    fn stops_decoding(&self) -> bool {
        self.paused().is_some()
            || self.ahead.as_ref().is_some_and(|ahead| ahead.is_full())
            || self.client.as_ref().is_some_and(|client| client.farewell().is_some())
    }

    /// Until when nothing is read because the client is over its rates.
    fn paused(&self) -> Option<Instant> {
        self.rates.as_ref()?.paused()
    }

    /// Decodes input that was set aside.
    fn decode_set_aside(&mut self, scratch: &mut Scratch) -> Result<(), End> {
        let mut input = std::mem::take(&mut self.input);
        let consumed = self.decode(&input, &mut scratch.work)?;
        input.drain(..consumed);
        self.input = if input.is_empty() { Vec::new() } else { input };
        Ok(())
    }

    /// False while a CONNECT waits for something else than the client.
    fn may_decode(&self) -> bool {
        match &self.phase {
            Phase::Claiming(_) => false,
            Phase::Authenticating(authenticating) => authenticating.listens(),
            Phase::Connecting { .. } | Phase::Running | Phase::Closing { .. } => true,
        }
    }

    /// Decodes and acts on everything in `data`; how much of it is dealt with.
    fn decode(&mut self, data: &[u8], work: &mut Work) -> Result<usize, End> {
        let mut at = 0;
        while self.may_decode() && !self.stops_decoding() {
            let rest = data.get(at..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            match self.decoder.decode(rest) {
                Ok(Decoded::Incomplete { .. }) => break,
                Ok(Decoded::Packet { packet, consumed }) => {
                    let publish = matches!(packet, Packet::Publish(_));
                    if self.rates.is_some() && self.is_over_rates(work) {
                        break;
                    }
                    if self.handle(packet, rest.get(..consumed).unwrap_or_default(), work)? {
                        at += consumed;
                        if let Some(rates) = &mut self.rates {
                            rates.count(publish, consumed, Instant::now());
                        }
                    }
                }
                Err(error) => {
                    tracing::debug!(peer = %self.peer.address, %error, "packet refused");
                    work.tally.counts().protocol_errors += 1;
                    work.explanation = Some(error.to_string());
                    return Err(match (&self.phase, error.version) {
                        (Phase::Running, _) => End::Refused(error.reason),
                        (_, Some(version)) => End::NotConnected(error.reason, version),
                        (_, None) => End::Gone,
                    });
                }
            }
        }
        Ok(at)
    }

    /// True when the client's next packet has to wait in front: [`Self::paused`] says how long.
    fn is_over_rates(&mut self, work: &mut Work) -> bool {
        let limited = self.rates.as_mut().and_then(|rates| rates.pause(Instant::now()));
        let Some(limited) = limited else { return false };
        match limited {
            Limited::Messages => work.tally.counts().paused_messages_rate += 1,
            Limited::Bytes => work.tally.counts().paused_bytes_rate += 1,
        }
        true
    }

    /// Acts on one packet, encoded as `bytes`. False: not now, it stays in front.
    fn handle(&mut self, packet: Packet<'_>, bytes: &[u8], work: &mut Work) -> Result<bool, End> {
        let publish = match packet {
            Packet::Publish(publish) => publish,
            Packet::Connect(connect) => {
                self.connect(&connect, work)?;
                return Ok(true);
            }
            other if matches!(self.phase, Phase::Authenticating(_)) => {
                self.handle_before_connack(&other, work)?;
                return Ok(true);
            }
            Packet::Auth(auth) => {
                self.handle_auth(&auth, work)?;
                return Ok(true);
            }
            other => {
                let Some(client) = self.client.as_deref_mut() else { return Err(End::Gone) };
                let disconnects = matches!(other, Packet::Disconnect(_));
                match requests::handle(&self.shared, client, &mut self.out, work, other) {
                    Err(end @ (End::Disconnected | End::Gone)) if disconnects => {
                        self.say_farewell(end, Instant::now())?;
                    }
                    done => done?,
                }
                return Ok(true);
            }
        };
        #[cfg(test)]
        assert_ne!(publish.topic, super::supervisor::tests::PANIC, "as the test wants it");
        let Some(client) = self.client.as_deref_mut() else {
            self.handle_before_connack(&Packet::Publish(publish), work)?;
            return Ok(true);
        };
        if self.ahead.is_some() {
            return Ok(self.set_aside(&publish, bytes, work));
        }
        match client.publish(&self.shared, &publish, work)? {
            Block::No => Ok(true),
            block => {
                self.ahead.get_or_insert_default().block = block;
                Ok(self.set_aside(&publish, bytes, work))
            }
        }
    }

    /// A client that is not read from may go away unheard: what it has sent is in front of the end. Where it
    /// has closed its half, it is given a moment for what waits to get through.
    fn look_after(&mut self, now: Instant) {
        let Some(ahead) = &mut self.ahead else { return };
        match &mut ahead.block {
            Block::Limit { look } if now >= *look => *look = now + LOOK,
            Block::Limit { .. } | Block::Room { .. } => {}
            Block::No => return,
        }
        let Some(client) = self.client.as_deref_mut() else { return };
        if !self.heard && client.farewell().is_none() && self.socket.is_half_closed() {
            tracing::debug!(peer = %self.peer.address, "closed while it had to wait");
            client.departure().farewell = Some((End::Gone, now + HALF_CLOSED));
        }
    }

    /// The end of a round: hands over what was collected, answers, sends what waits. True when there is more
    /// to send.
    fn answer(&mut self, scratch: &mut Scratch, now: Instant) -> Result<bool, End> {
        let Scratch { work, .. } = scratch;
        work.outbox.flush(&mut work.wakes, &mut work.tally);
        work.wakes.wake_all();
        let Some(client) = self.client.as_deref_mut() else { return Ok(false) };
        if !matches!(self.phase, Phase::Running) {
            return Ok(false);
        }
        client.release_acknowledgements(&self.shared, &mut self.out, work);
        let Some(session) = client.lease.session() else { return Err(End::Gone) };
        let held = session.tracker.held() + session.holding();
        if session.wants_retained() {
            requests::feed_retained(&self.shared.router, session, work.steady);
        }
        session.pump(&mut Output { buffer: &mut self.out, tally: &mut work.tally, now: work.steady });
        let draining = client.draining();
        let Some(session) = client.lease.session() else { return Err(End::Gone) };
        match draining {
            Some(deadline) if held == 0 || now >= deadline => {
                Err(End::Refused(ReasonCode::ServerShuttingDown))
            }
            _ => Ok(session.wants_retained()),
        }
    }

    /// Follows whether the client goes on while others wait for it; `took`: some of a publication was
    /// written.
    fn watch(&mut self, took: bool, tally: &mut Tally, now: Instant) -> Result<(), End> {
        let Some(client) = self.client.as_deref_mut() else { return Ok(()) };
        let Client { inbox, lease, watch, .. } = client;
        let Some(session) = lease.session() else { return Ok(()) };
        let went_on = std::mem::take(&mut session.went_on) || took;
        if !session.awaited && !watch.as_ref().is_some_and(|watch| watch.is_on()) {
            return Ok(());
        }
        let timeout = self.shared.options.slow_subscriber_timeout;
        let watch = watch.get_or_insert_default();
        if went_on {
            inbox.end_standstill();
            if watch.went_on(now) {
                inbox.set_overdue(false);
                tracing::info!(client_id = inbox.client_id(), "subscriber takes messages again");
            }
        }
        if session.awaited {
            watch.begin(now, timeout, inbox.is_awaited());
        }
        if watch.deadline().is_none_or(|look| now < look) {
            return Ok(());
        }
        let awaited = inbox.take_awaited();
        let standstill = inbox.begin_standstill(watch.since().unwrap_or(now));
        let mut asked: SmallVec<[*const (); 8]> = SmallVec::new();
        let (mut holds, mut waited) = (false, awaited);
        for hand_over in session.hand_overs().chain(self.out.hand_overs()) {
            holds = true;
            let sink = hand_over.sink();
            let address = Arc::as_ptr(sink).cast::<()>();
            if waited || asked.len() == ISSUERS {
                break;
            }
            if !asked.contains(&address) {
                asked.push(address);
                waited = sink.waits_for(&standstill);
            }
        }
        session.awaited = holds || awaited;
        match watch.look(now, timeout, holds, waited) {
            Standing::Fine => inbox.end_standstill(),
            Standing::Still(_) => {}
            Standing::Overdue(since) => {
                let Filling { queued, inflight, .. } = inbox.filling();
                tally.counts().slow_subscribers += 1;
                tracing::warn!(
                    client_id = inbox.client_id(),
                    seconds = (now - since).as_secs(),
                    queued = queued.items,
                    inflight,
                    "subscriber takes nothing while others wait for it: its queue counts as full"
                );
                inbox.end_standstill();
                if inbox.queue_full() == QueueFull::Disconnect {
                    tally.counts().disconnected_queue_full += 1;
                    return Err(End::Refused(ReasonCode::QuotaExceeded));
                }
                inbox.set_overdue(true);
                session.let_go();
                self.out.let_go();
            }
        }
        Ok(())
    }

    /// The next moment at which something is due without any event.
    fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Connecting { deadline, .. } | Phase::Closing { deadline, .. } => Some(*deadline),
            Phase::Authenticating(authenticating) => Some(authenticating.deadline()),
            Phase::Claiming(claiming) => Some(claiming.deadline),
            Phase::Running => {
                let client = self.client.as_ref()?;
                let silence = self.silence_ends();
                let again = self.ahead.as_ref().and_then(|ahead| match &ahead.block {
                    Block::Room { retry } => Some(*retry),
                    Block::Limit { look } => Some(*look),
                    Block::No => None,
                });
                let ends = client.departure.as_ref().and_then(|departure| departure.deadline());
                let access = client.access.as_ref().and_then(|access| access.deadline());
                let look = client.watch.as_ref().and_then(|watch| watch.deadline());
                [silence, again, ends, access, look, self.paused()].into_iter().flatten().min()
            }
        }
    }

    /// When the client has been silent for too long. One that is not read from cannot be blamed for silence.
    fn silence_ends(&self) -> Option<Instant> {
        let client = self.client.as_ref().filter(|client| client.draining().is_none())?;
        let keep_alive = client.keep_alive.filter(|_| self.heard)?;
        Some(self.last_activity + keep_alive)
    }

    /// Makes sure that the task is polled at the next deadline. True: it is over already.
    fn arm(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(deadline) = self.deadline() else {
            // One that is still running is cheaper than one that is made anew for every message.
            if self.timer.as_ref().is_some_and(|timer| timer.is_elapsed()) {
                self.timer = None;
            }
            return false;
        };
        // A timer that fires too early is cheaper than one that is moved with every packet.
        match &mut self.timer {
            Some(timer) if timer.deadline() <= deadline && !timer.is_elapsed() => {}
            Some(timer) => timer.as_mut().reset(deadline),
            none => *none = Some(Box::pin(tokio::time::sleep_until(deadline))),
        }
        self.timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready())
    }

    /// Ends the connection where a deadline has passed.
    fn check_time(&mut self, now: Instant) -> Result<(), End> {
        let Some(deadline) = self.deadline() else { return Ok(()) };
        if now < deadline {
            return Ok(());
        }
        let departure = self.client.as_ref().and_then(|client| client.departure.as_ref());
        let leaving = departure.and_then(|departure| departure.leaving);
        match &self.phase {
            Phase::Connecting { .. } => Err(End::Gone),
            Phase::Authenticating(authenticating) => Err(authenticating.timed_out()),
            Phase::Running
                if let Some((reason, deadline)) = leaving
                    && now >= deadline =>
            {
                Err(End::Refused(reason))
            }
            Phase::Claiming(claiming) => {
                Err(End::NotConnected(ReasonCode::ServerBusy, claiming.connect.version))
            }
            Phase::Running => {
                let Some(client) = &self.client else { return Ok(()) };
                if let Some(access) = &client.access {
                    access.check_time(now)?;
                }
                match self.silence_ends() {
                    Some(end) if now >= end => Err(End::Refused(ReasonCode::KeepAliveTimeout)),
                    _ => Ok(()),
                }
            }
            Phase::Closing { .. } => Ok(()),
        }
    }

    fn turn(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Poll<()> {
        let mut now = Instant::now();
        scratch.work.wall = clock::unix_millis();
        scratch.work.steady = clock::steady_millis(now);
        scratch.work.client_maximum = None;
        if !scratch.work.outbox.is_empty() {
            // The turn before this one panicked. What it had taken on goes out, and stays its own.
            scratch.work.outbox.flush(&mut scratch.work.wakes, &mut scratch.work.tally);
        }
        self.out.lend(&mut scratch.write);
        let mut rounds = 0;
        let done = loop {
            let result = self.check_time(now).and_then(|()| self.round(cx, scratch, now));
            let more = match result {
                Ok(more) => more,
                Err(end) => {
                    if self.close(end, now, &mut scratch.work) {
                        break true;
                    }
                    true
                }
            };
            rounds += 1;
            if !more && !self.arm(cx) {
                break false;
            }
            if rounds == ROUNDS {
                cx.waker().wake_by_ref();
                break false;
            }
            now = Instant::now();
        };
        scratch.work.outbox.flush(&mut scratch.work.wakes, &mut scratch.work.tally);
        scratch.work.wakes.wake_all();
        self.out.give_back(&mut scratch.write);
        if !done
            && self.out.is_empty()
            && let Some(session) = self.client.as_deref_mut().and_then(|client| client.lease.session())
        {
            session.rest();
        }
        let ahead = self.ahead.as_ref().map_or(0, |ahead| ahead.footprint());
        self.held.set(memory::CONNECTION + self.input.capacity() + self.out.footprint() + ahead);
        scratch.work.tally.flush(&self.shared.stats);
        if done { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// Mail of a turn. After a panic what is left of it goes back to the session.
struct Unread<'a> {
    mails: &'a mut VecDeque<Mail>,
    inbox: &'a Inbox,
}

impl Drop for Unread<'_> {
    fn drop(&mut self) {
        if !self.mails.is_empty() {
            self.inbox.return_mail(std::mem::take(self.mails));
        }
    }
}

impl Future for Connection {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        SCRATCH.with_borrow_mut(|scratch| self.turn(cx, scratch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_connection_is_small() {
        // mimalloc gives blocks of 192, 224, 256, 320 and 384 bytes here. The connection has its task's state
        // in front.
        assert!(size_of::<Connection>() <= 256, "{}", size_of::<Connection>());
        assert!(size_of::<Client>() <= 192, "{}", size_of::<Client>());
        assert!(size_of::<Session>() <= 320, "{}", size_of::<Session>());
        // With the counters of its `Arc`.
        assert!(size_of::<Inbox>() + 16 <= 224, "{}", size_of::<Inbox>());
    }
}
