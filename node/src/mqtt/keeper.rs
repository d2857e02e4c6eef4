//! The keeper of sessions: who is connected, who is away and for how long, and what is published when
//! a client does not come back.
//!
//! A connection holds its session through a [`Lease`]. However the connection ends, by a packet, an error,
//! a panic, the lease's end brings the session back here: it is kept, handed to the connection that took
//! over, or ended.
//!
//! Invariants:
//! * A client id has one session, and a session one connection (MQTT-5.0 4.1, MQTT-3.1.4-3).
//! * What waits here is bounded: sessions by `max_sessions`, each one's queue by its inbox, errands by
//!   [`ERRANDS`].
//! * Nothing foreign is called while the keeper's lock is held.

use std::{
    collections::{BTreeSet, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use causeway_protocol::mqtt::{ReasonCode, SubscriptionOptions, topic};
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use super::{
    clock,
    inbox::{Filling, Inbox, Rules},
    memory::Pressure,
    options::QueueFull,
    publication::Via,
    router::Router,
    session::{Awaited, Session},
    stats::{Stats, Tally},
    store::{LoadedSession, Op, Presence, Store, read_message},
    stored::StoredSession,
    will::{DeferredPublish, OwnedMessage, Will},
};
use crate::{
    flow::mailbox::Capacity,
    flow::{Origin, Wake, WakeList},
};

/// Wills and the like that wait for sinks without room. More are dropped and counted.
pub(crate) const ERRANDS: usize = 10_000;

/// How long the keeper sleeps at most: expired retained messages are swept that often.
const SWEEP: Duration = Duration::from_secs(10);

/// How often a sink without room is asked again.
const RETRY: Duration = Duration::from_millis(50);

/// A session for a connection.
pub(crate) struct Granted {
    pub(crate) lease: Lease,
    /// The session was there before (MQTT-5.0 3.2.2.1.1).
    pub(crate) present: bool,
}

/// The answer to a CONNECT.
pub(crate) enum Claim {
    /// Here it is.
    Granted(Granted),
    /// Another connection has it and was told to go, or the end of the session before it is on its way to the
    /// disk. An error: a third connection came and got it.
    Wait(oneshot::Receiver<Granted>),
    /// There are too many sessions, or no memory for one more.
    Refused,
    /// The session is another user's.
    NotYours,
}

/// A request for a session.
#[derive(Clone, Copy)]
pub(crate) struct Claimed<'a> {
    pub(crate) client_id: &'a str,
    /// User name, if there is one.
    pub(crate) username: Option<&'a str>,
    /// Whether the user name, or that there is none, is more than a claim: then sessions of other users are
    /// not to be had.
    pub(crate) known: bool,
    pub(crate) clean_start: bool,
    /// It is to outlive the connection.
    pub(crate) lasts: bool,
}

impl Claimed<'_> {
    fn may_have(&self, inbox: &Inbox) -> bool {
        !self.known || inbox.owner().is_none() || inbox.owner() == self.username
    }
}

/// A session, for administrators.
pub(crate) struct SessionView {
    inbox: Arc<Inbox>,
    pub(crate) connected: bool,
}

impl SessionView {
    pub(crate) fn client_id(&self) -> &str {
        self.inbox.client_id()
    }

    pub(crate) fn filling(&self) -> Filling {
        self.inbox.filling()
    }
}

struct Claimant {
    username: Option<Box<str>>,
    clean_start: bool,
    lasts: bool,
    answer: oneshot::Sender<Granted>,
}

/// A session for a client, behind the end of the one before it: until that is on the disk, a crash would
/// bring the ended session back to a client that was told otherwise.
struct Deferred(Mutex<Option<(Granted, oneshot::Sender<Granted>)>>);

impl Deferred {
    fn grant(&self) {
        let waiting = self.0.lock().take();
        if let Some((granted, answer)) = waiting {
            // If the claimant has gone, the lease comes back by being dropped.
            drop(answer.send(granted));
        }
    }
}

impl Wake for Deferred {
    fn wake(&self) {
        self.grant();
    }
}

impl Drop for Deferred {
    fn drop(&mut self) {
        // The store has failed and will never say that the end is on the disk. Sessions that need no disk go
        // on.
        self.grant();
    }
}

enum Entry {
    Connected { inbox: Arc<Inbox>, next: Option<Claimant> },
    Away { session: Box<Session>, ends: Option<Instant>, will: Option<(Instant, Box<Will>)> },
}

#[derive(Default)]
struct State {
    entries: HashMap<Box<str>, Entry>,
    deadlines: BTreeSet<(Instant, Box<str>)>,
    errands: VecDeque<DeferredPublish>,
}

/// Keeper of all sessions, by client identifier.
pub(crate) struct Keeper {
    state: Mutex<State>,
    work: Notify,
    router: Arc<Router>,
    stats: Arc<Stats>,
    rules: Arc<Rules>,
    max_sessions: usize,
}

/// How a connection gives its session back.
pub(crate) struct Ending {
    /// How long the session outlives the connection; `None`: it ends with it.
    pub(crate) expiry: Option<Duration>,
    /// To be published, unless the client took it back.
    pub(crate) will: Option<Box<Will>>,
}

/// A connection's hold on its session.
pub(crate) struct Lease {
    session: Option<Box<Session>>,
    keeper: Arc<Keeper>,
    ending: Ending,
}

impl Lease {
    /// How the session goes on if the connection ends now.
    pub(crate) fn ending(&mut self) -> &mut Ending {
        &mut self.ending
    }

    pub(crate) fn session(&mut self) -> Option<&mut Session> {
        self.session.as_deref_mut()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            let Ending { expiry, will } =
                std::mem::replace(&mut self.ending, Ending { expiry: None, will: None });
            if !std::thread::panicking() {
                self.keeper.give_back(session, expiry, will);
                return;
            }
            // For client and session the connection is lost, and nothing more. Should the session itself be
            // what is broken, it ends.
            let (keeper, inbox) = (self.keeper.clone(), session.inbox.clone());
            let back = AssertUnwindSafe(|| keeper.give_back(session, expiry, will));
            if catch_unwind(back).is_err() {
                keeper.forget(&inbox);
            }
        }
    }
}

impl Keeper {
    pub(crate) fn new(
        router: Arc<Router>,
        capacity: Capacity,
        full: QueueFull,
        max_sessions: usize,
    ) -> Arc<Self> {
        let stats = router.stats().clone();
        let rules = Arc::new(Rules { capacity, full, memory: router.memory(), stats: stats.clone() });
        Arc::new(Self {
            state: Mutex::default(),
            work: Notify::new(),
            router,
            stats,
            rules,
            max_sessions: max_sessions.max(1),
        })
    }

    fn lease(self: &Arc<Self>, session: Box<Session>) -> Lease {
        // Until its connection says otherwise a resumed session goes on as it did.
        let ending = Ending { expiry: session.expiry, will: None };
        Lease { session: Some(session), keeper: self.clone(), ending }
    }

    /// A new session; one that outlives its connection is stored, where sessions are.
    fn new_session(&self, client_id: &str, username: Option<&str>, lasts: bool) -> Box<Session> {
        let store = self.router.store().filter(|_| lasts);
        let stored = store.map(|store| StoredSession::new(store.clone()));
        let session = self.session_with(client_id, stored);
        session.inbox.belongs_to(username);
        session
    }

    fn session_with(&self, client_id: &str, stored: Option<Arc<StoredSession>>) -> Box<Session> {
        Stats::add(&self.stats.sessions, 1);
        let id = self.router.next_inbox_id();
        Box::new(Session::new(Inbox::new(id, client_id, &self.rules, stored)))
    }

    /// A client asks for its session.
    pub(crate) fn claim(self: &Arc<Self>, claimed: &Claimed<'_>) -> Claim {
        let Claimed { client_id, username, clean_start, lasts, .. } = *claimed;
        let mut state = self.state.lock();
        let owned = match state.entries.get(client_id) {
            Some(Entry::Connected { inbox, .. }) => Some(inbox),
            Some(Entry::Away { session, .. }) => Some(&session.inbox),
            None => None,
        };
        if owned.is_some_and(|inbox| !claimed.may_have(inbox)) {
            Stats::add(&self.stats.sessions_denied, 1);
            return Claim::NotYours;
        }
        if let Some(Entry::Connected { inbox, next }) = state.entries.get_mut(client_id) {
            let (answer, granted) = oneshot::channel();
            let inbox = inbox.clone();
            let claimant = Claimant { username: username.map(Box::from), clean_start, lasts, answer };
            let outdone = next.replace(claimant);
            drop(state);
            drop(outdone);
            Stats::add(&self.stats.sessions_taken_over, 1);
            inbox.close_connection(ReasonCode::SessionTakenOver);
            return Claim::Wait(granted);
        }
        let away = match state.entries.remove(client_id) {
            Some(Entry::Away { session, ends, will }) => {
                for at in [ends, will.as_ref().map(|(at, _)| *at)].into_iter().flatten() {
                    state.deadlines.remove(&(at, client_id.into()));
                }
                Some((session, will))
            }
            _ if state.entries.len() >= self.max_sessions => return Claim::Refused,
            // One that has a session may always come back: its queue may be what fills the memory.
            None if self.rules.memory.pressure() != Pressure::None => {
                Stats::add(&self.stats.refused_memory, 1);
                return Claim::Refused;
            }
            _ => None,
        };
        let (session, present, ended) = match away {
            // The will is not published: the client is back before its delay passed (MQTT-3.1.3-9).
            Some((session, _)) if !clean_start => (session, true, None),
            ended => (self.new_session(client_id, username, lasts), false, ended),
        };
        session.inbox.belongs_to(username);
        let entry = Entry::Connected { inbox: session.inbox.clone(), next: None };
        state.entries.insert(client_id.into(), entry);
        drop(state);
        let mut stored = None;
        if let Some((session, will)) = ended {
            stored = session.inbox.stored().cloned();
            self.end(session);
            self.publish_will(will.map(|(_, will)| will));
        }
        if present {
            Stats::add(&self.stats.sessions_resumed, 1);
        }
        let granted = Granted { lease: self.lease(session), present };
        let Some(stored) = stored else { return Claim::Granted(granted) };
        let (answer, answered) = oneshot::channel();
        grant_behind(&stored, granted, answer);
        Claim::Wait(answered)
    }

    fn give_back(
        self: &Arc<Self>,
        mut session: Box<Session>,
        expiry: Option<Duration>,
        will: Option<Box<Will>>,
    ) {
        let client_id: Box<str> = session.inbox.client_id().into();
        let mut tally = Tally::default();
        session.expiry = expiry;
        if expiry.is_some() {
            session.disconnected(&mut tally);
            tally.flush(&self.stats);
        }
        let now = clock::now();
        let mut state = self.state.lock();
        let next = match state.entries.get_mut(&client_id) {
            Some(Entry::Connected { inbox, next }) if inbox.id() == session.inbox.id() => next.take(),
            // The entry is another session's: this one is over already.
            _ => {
                drop(state);
                self.end(session);
                return;
            }
        };
        if let Some(claimant) = next {
            drop(state);
            let resume = expiry.is_some() && !claimant.clean_start;
            self.hand_on(session, resume, will, claimant);
            return;
        }
        let Some(expiry) = expiry else {
            state.entries.remove(&client_id);
            drop(state);
            self.end(session);
            self.publish_will(will);
            return;
        };
        let ends = now.checked_add(expiry);
        let (due, delayed) = match will {
            Some(will) if will.delay > 0 => {
                // The end of the session publishes it, if that is earlier (MQTT-5.0 3.1.3.2.2).
                let at = now.checked_add(Duration::from_secs(u64::from(will.delay)));
                (None, at.map(|at| (at, will)))
            }
            will => (will, None),
        };
        state.deadlines.extend(ends.map(|at| (at, client_id.clone())));
        state.deadlines.extend(delayed.iter().map(|(at, _)| (*at, client_id.clone())));
        let presence = Presence::Away { since: clock::unix_millis(), sent: session.sent_upto() };
        session.inbox.record(Some(expiry), presence, delayed.as_ref().map(|(_, will)| &**will));
        state.entries.insert(client_id, Entry::Away { session, ends, will: delayed });
        drop(state);
        self.publish_will(due);
        self.work.notify_one();
    }

    /// Ends a session of which nothing is left but its inbox.
    fn forget(&self, inbox: &Inbox) {
        let mut state = self.state.lock();
        let own = |entry: &Entry| matches!(entry, Entry::Connected { inbox: known, .. } if known.id() == inbox.id());
        if !state.entries.get(inbox.client_id()).is_some_and(own) {
            return;
        }
        state.entries.remove(inbox.client_id());
        drop(state);
        tracing::error!(client_id = inbox.client_id(), "a session that a panic left broken has ended");
        // Subscriptions that are left lead to a closed inbox.
        inbox.end();
        Stats::subtract(&self.stats.sessions, 1);
        if let Some(stored) = inbox.stored() {
            stored.store.put(Op::End { session: stored.number });
            self.router.releases().session_ended(stored.id);
        }
    }

    /// Gives a session that one connection let go to the one that took over.
    fn hand_on(
        self: &Arc<Self>,
        session: Box<Session>,
        resume: bool,
        will: Option<Box<Will>>,
        claimant: Claimant,
    ) {
        let Claimant { username, lasts, answer, .. } = claimant;
        let mut stored = None;
        let session = if resume {
            session.inbox.belongs_to(username.as_deref());
            // Back before the delay passed: a delayed will is not published (MQTT-3.1.3-9).
            self.publish_will(will.filter(|will| will.delay == 0));
            Stats::add(&self.stats.sessions_resumed, 1);
            session
        } else {
            let client_id: Box<str> = session.inbox.client_id().into();
            let new = self.new_session(&client_id, username.as_deref(), lasts);
            if let Some(Entry::Connected { inbox, .. }) = self.state.lock().entries.get_mut(&client_id) {
                *inbox = new.inbox.clone();
            }
            stored = session.inbox.stored().cloned();
            self.end(session);
            self.publish_will(will);
            new
        };
        let granted = Granted { lease: self.lease(session), present: resume };
        match stored {
            Some(stored) => grant_behind(&stored, granted, answer),
            // If the claimant has gone as well, the lease comes back by being dropped.
            None => drop(answer.send(granted)),
        }
    }

    /// A session is over and cannot be reached any more.
    fn end(&self, mut session: Box<Session>) {
        let inbox = session.inbox.clone();
        let mails = inbox.end();
        self.router.unsubscribe_all(inbox.id(), session.filters.iter().map(AsRef::as_ref));
        Stats::subtract(&self.stats.sessions, 1);
        // Messages that it held for a group go to the others (MQTT-5.0 4.8.2); with the rest go its
        // hand-overs.
        let mut wakes = WakeList::default();
        let undelivered = session.undelivered(mails).filter(|delivery| delivery.group().is_some());
        for delivery in undelivered {
            inbox.pass_on(delivery, &mut wakes);
        }
        if let Some(stored) = inbox.stored() {
            // Behind what others take over: a crash in between doubles it, and does not lose it.
            stored.store.put(Op::End { session: stored.number });
            self.router.releases().session_ended(stored.id);
        }
    }

    fn publish_will(&self, will: Option<Box<Will>>) {
        if let Some(will) = will
            && self.run_errand(DeferredPublish::will(*will, clock::unix_millis()))
        {
            Stats::add(&self.stats.wills_published, 1);
        }
    }

    /// Brings a publication to its end, later if it must be. False: too many wait, it was dropped.
    pub(crate) fn run_errand(&self, mut errand: DeferredPublish) -> bool {
        if errand.advance(&self.router) {
            return true;
        }
        let mut state = self.state.lock();
        if state.errands.len() >= ERRANDS {
            drop(state);
            errand.give_up();
            Stats::add(&self.stats.wills_dropped, 1);
            return false;
        }
        state.errands.push_back(errand);
        drop(state);
        self.work.notify_one();
        true
    }

    /// True when another connection waits for the session of `inbox`. One that was granted a session asks:
    /// the claim may have come while no connection was there to be told.
    pub(crate) fn is_claimed(&self, inbox: &Inbox) -> bool {
        let state = self.state.lock();
        matches!(state.entries.get(inbox.client_id()), Some(Entry::Connected { next: Some(_), .. }))
    }

    /// Looks at every session. In no order.
    pub(crate) fn sessions(&self) -> Vec<SessionView> {
        let state = self.state.lock();
        let view = |entry: &Entry| match entry {
            Entry::Connected { inbox, .. } => SessionView { inbox: inbox.clone(), connected: true },
            Entry::Away { session, .. } => SessionView { inbox: session.inbox.clone(), connected: false },
        };
        state.entries.values().map(view).collect()
    }

    /// Looks at one session.
    pub(crate) fn session(&self, client_id: &str) -> Option<SessionView> {
        let state = self.state.lock();
        Some(match state.entries.get(client_id)? {
            Entry::Connected { inbox, .. } => SessionView { inbox: inbox.clone(), connected: true },
            Entry::Away { session, .. } => SessionView { inbox: session.inbox.clone(), connected: false },
        })
    }

    /// Asks every connection of a user to end.
    pub(crate) fn close_user(&self, username: &str, reason: ReasonCode) {
        self.close_where(|inbox| inbox.owner() == Some(username), reason);
    }

    /// Asks every connection to end.
    pub(crate) fn close_all(&self, reason: ReasonCode) {
        self.close_where(|_| true, reason);
    }

    fn close_where(&self, which: impl Fn(&Inbox) -> bool, reason: ReasonCode) {
        let inboxes: Vec<_> = self
            .state
            .lock()
            .entries
            .values()
            .filter_map(|entry| match entry {
                Entry::Connected { inbox, .. } if which(inbox) => Some(inbox.clone()),
                Entry::Connected { .. } | Entry::Away { .. } => None,
            })
            .collect();
        for inbox in inboxes {
            inbox.close_connection(reason);
        }
    }

    /// Ends sessions and publishes wills whose time has come, and runs errands. Never returns.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            self.expire(clock::now());
            self.router.expire_retained(clock::steady_now());
            let waiting = self.run_errands();
            let next = self.state.lock().deadlines.first().map(|(at, _)| *at);
            let sweep = clock::now() + if waiting { RETRY } else { SWEEP };
            let until = next.map_or(sweep, |next| next.min(sweep));
            // A deadline that is new, or an errand: whichever comes first.
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                () = self.work.notified() => {
                    if waiting {
                        tokio::time::sleep(RETRY / 10).await;
                    }
                }
            }
        }
    }

    /// Tries every errand once; true where some are left.
    fn run_errands(&self) -> bool {
        let count = self.state.lock().errands.len();
        let mut left = false;
        for _ in 0..count {
            let Some(mut errand) = self.state.lock().errands.pop_front() else { break };
            if !errand.advance(&self.router) {
                self.state.lock().errands.push_back(errand);
                left = true;
            }
        }
        left
    }

    /// Deals with every deadline up to `now`.
    pub(crate) fn expire(&self, now: Instant) {
        loop {
            let mut state = self.state.lock();
            let due = state.deadlines.first().is_some_and(|(at, _)| *at <= now);
            let Some((_, client_id)) = (if due { state.deadlines.pop_first() } else { None }) else { return };
            let Some(Entry::Away { ends, will, .. }) = state.entries.get_mut(&client_id) else { continue };
            let over = ends.is_some_and(|ends| ends <= now);
            let due_will =
                if over || will.as_ref().is_some_and(|(at, _)| *at <= now) { will.take() } else { None };
            let ended = if over { state.entries.remove(&client_id) } else { None };
            if over && let Some((at, _)) = &due_will {
                state.deadlines.remove(&(*at, client_id.clone()));
            }
            drop(state);
            if let Some(Entry::Away { session, .. }) = ended {
                Stats::add(&self.stats.sessions_expired, 1);
                self.end(session);
            }
            let had_will = due_will.is_some();
            self.publish_will(due_will.map(|(_, will)| will));
            if had_will && !over {
                self.forget_will(&client_id);
            }
        }
    }

    /// A will was published: a restart must not do so again.
    fn forget_will(&self, client_id: &str) {
        let state = self.state.lock();
        if let Some(Entry::Away { session, will: None, ends }) = state.entries.get(client_id)
            && session.inbox.stored().is_some()
        {
            // How long it has been away follows from when it ends.
            let expiry = session.expiry.unwrap_or_default();
            let left = ends.map_or(expiry, |ends| ends.saturating_duration_since(clock::now()));
            let gone = i64::try_from(expiry.saturating_sub(left).as_millis()).unwrap_or(i64::MAX);
            let since = clock::unix_millis().saturating_sub(gone);
            let presence = Presence::Away { since, sent: session.sent_upto() };
            session.inbox.record(Some(expiry), presence, None);
        }
    }

    /// Takes up the sessions that the store had: all clients are away. What ended meanwhile ends now.
    pub(crate) fn restore(self: &Arc<Self>, store: &Arc<Store>, found: Vec<LoadedSession>) {
        let (now, wall) = (clock::now(), clock::unix_millis());
        let (mut restored, mut over) = (0u64, Vec::new());
        let left = |found: &LoadedSession| {
            let since = match found.record.presence {
                Presence::Away { since, .. } => since,
                Presence::Connected => wall,
            };
            let gone = u64::try_from(wall.saturating_sub(since)).unwrap_or_default();
            found.record.expiry.saturating_sub(gone)
        };
        self.router.releases().sessions_found(found.iter().map(|found| found.record.id));
        // A message that a session holds for a group finds it, whichever of its members comes first.
        for found in found.iter().filter(|found| left(found) > 0) {
            let shared = found.subscriptions.iter().filter(|(filter, ..)| topic::is_shared(filter));
            shared.for_each(|(filter, ..)| self.router.open_group(filter));
        }
        for mut found in found {
            let left = left(&found);
            let (since, sent) = match found.record.presence {
                Presence::Away { since, sent } => (since, sent),
                // The end of the process was the end of its connection. Everything may have been sent: more
                // than one window, since acknowledgements reach the disk later than the client has room for
                // more.
                Presence::Connected => (wall, found.next),
            };
            let will = found.record.will.take().and_then(|will| {
                let origin = Arc::new(Origin {
                    client_id: found.record.client_id.clone(),
                    username: found.record.username.clone(),
                    peer: None,
                });
                let memory = self.router.memory();
                let message =
                    read_message(&will.message, &origin, |message| OwnedMessage::copy(message, memory))?;
                let due = since.saturating_add(i64::from(will.delay) * 1000);
                let left = Duration::from_millis(u64::try_from(due.saturating_sub(wall)).unwrap_or_default());
                Some((left, Box::new(Will { message, delay: will.delay })))
            });
            if left == 0 {
                // Behind the others: they get what it held for them.
                over.push((found, sent, will));
                continue;
            }
            let client_id = found.record.client_id.clone();
            let mut session = self.restored(store, &mut found, sent);
            let expiry = Duration::from_millis(found.record.expiry);
            session.expiry = Some(expiry);
            for (filter, options, identifier) in &found.subscriptions {
                self.router.subscribe(&session.inbox, filter, *options, *identifier);
                session.subscribed(filter);
            }
            for (filter, before) in std::mem::take(&mut found.awaited) {
                let subscription = found.subscriptions.iter().find(|(known, ..)| *known == filter);
                if let Some((_, SubscriptionOptions { qos, .. }, identifier)) = subscription {
                    // Numbers that were given out and never reached the disk are given out again.
                    let before = before.min(store.next_message());
                    let (qos, identifier) = (*qos, *identifier);
                    session.restore_awaited(Awaited { filter, qos, identifier, before });
                }
            }
            if matches!(found.record.presence, Presence::Connected) {
                // Its time runs from now on, also if we end again before it is back.
                let will = will.as_ref().map(|(_, will)| &**will);
                session.inbox.record(Some(expiry), Presence::Away { since, sent: session.sent_upto() }, will);
            }
            let ends = now.checked_add(Duration::from_millis(left));
            let will = will.and_then(|(left, will)| Some((now.checked_add(left)?, will)));
            let mut state = self.state.lock();
            state.deadlines.extend(ends.map(|at| (at, client_id.clone())));
            state.deadlines.extend(will.iter().map(|(at, _)| (*at, client_id.clone())));
            state.entries.insert(client_id, Entry::Away { session, ends, will });
            restored += 1;
        }
        for (mut found, sent, will) in over {
            let session = self.restored(store, &mut found, sent);
            self.end(session);
            Stats::add(&self.stats.sessions_expired, 1);
            self.publish_will(will.map(|(_, will)| will));
        }
        Stats::add(&self.stats.sessions_restored, restored);
    }

    /// A session that the store had, with its queue and without its subscriptions. Positions below `sent`
    /// were sent.
    fn restored(&self, store: &Arc<Store>, found: &mut LoadedSession, sent: u64) -> Box<Session> {
        let stored = StoredSession::restored(store.clone(), found.session, found.record.id, found.next);
        let mut session = self.session_with(&found.record.client_id, Some(stored));
        session.inbox.belongs_to(found.record.username.as_deref());
        // Deliveries of one subscription share what is known about it.
        let mut last: Option<(Arc<Via>, Arc<Via>)> = None;
        for (_, entry) in &mut found.entries {
            let Some(via) = entry.via.as_mut() else { continue };
            let Some(share) = &via.share else { continue };
            if last.as_ref().is_none_or(|(read, _)| !Arc::ptr_eq(read, via)) {
                let group = self.router.group(share).map(|group| Arc::downgrade(&group)).unwrap_or_default();
                let (identifiers, share) = (via.identifiers.clone(), via.share.clone());
                last = Some((via.clone(), Arc::new(Via { identifiers, group, share })));
            }
            if let Some((_, joined)) = &last {
                *via = joined.clone();
            }
        }
        session.restore(found, sent);
        session
    }
}

/// Answers a claim when the end of the session `stored`, which was put in before, is on the disk.
fn grant_behind(stored: &StoredSession, granted: Granted, answer: oneshot::Sender<Granted>) {
    stored.store.wake_at(&Arc::new(Deferred(Mutex::new(Some((granted, answer))))));
}

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "restart_tests.rs"]
mod restart_tests;
