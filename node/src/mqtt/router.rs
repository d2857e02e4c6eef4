//! The router: who takes messages of which topic, and the way in for publishers inside the node.
//!
//! It owns the subscription tree (sessions and message sinks by topic filter) and the retained messages.
//! Connections do not come here for every message: they keep a [`RouteCache`] and look again when the stamp of
//! a topic has changed ([`super::stamps`]).
//!
//! Invariants:
//! * A subscription that was confirmed is seen by every publication that is read afterwards: the
//!   stamps of the topics it matches change before the call returns.
//! * [`Router::publish`] gives a message to each sink and each session at most once, however often it is
//!   called again with the same progress.
//! * No lock is held while a sink or a hand-over is called.

use std::collections::BTreeMap;
use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU8, AtomicU64, Ordering},
};

use causeway_protocol::mqtt::{QoS, SubscriptionOptions, topic};
use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;

use super::{
    inbox::{Inbox, Offered, Outbox},
    level_tree::{LevelTree, ROOT},
    memory::{Held, Ledger, Memory, Pressure},
    publication::{Delivery, Publication, Via},
    retained::{Retained, RetainedLimits},
    route::{Route, RouteCache, RouteGroup, RouteSink, RouteSubscriber},
    share::{Choice, Group, ShareStrategy},
    stamps::Stamps,
    stats::Stats,
    store::Store,
    sys,
};
use crate::flow::{
    Accepted, AckSink, HandOver, Message, MessageSink, Outcome, Room, SequenceRange, Ticket, WakeList,
};

/// Names a registered message sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SinkId(u64);

/// What [`Router::publish`] did.
pub enum Published {
    /// The message is with everyone who takes it.
    Done {
        /// Sessions and sinks that it matched.
        matched: usize,
    },
    /// Somebody has no room. Call again with the same progress when `Room` is notified, and now and then
    /// in any case.
    Full(Room),
}

/// How far a publication has come, and the routes its publisher used lately. Ready for the next message
/// once [`Published::Done`] was returned.
#[derive(Default)]
pub struct PublishProgress {
    routes: RouteCache,
    current: Option<Current>,
}

struct Current {
    route: Arc<Route>,
    next_sink: usize,
    next_subscriber: usize,
    next_group: usize,
    stored: bool,
    publication: Option<Arc<Publication>>,
    matched: usize,
}

impl PublishProgress {
    /// Forgets a publication that was begun: the next call starts another.
    pub fn abandon(&mut self) {
        self.current = None;
    }
}

#[derive(Clone)]
struct Subscription {
    inbox: Arc<Inbox>,
    options: SubscriptionOptions,
    identifier: Option<u32>,
}

impl Subscription {
    fn as_route(&self) -> RouteSubscriber {
        RouteSubscriber {
            inbox: self.inbox.clone(),
            via: Via::identified(self.identifier),
            qos: self.options.qos,
            no_local: self.options.no_local,
            retain_as_published: self.options.retain_as_published,
        }
    }
}

/// Subscribers of one filter: most filters have one, some have a hundred thousand.
enum Subscribers {
    Few(Vec<Subscription>),
    Many(HashMap<u64, Subscription>),
}

const FEW: usize = 16;

impl Subscribers {
    /// True where the session had no subscription here.
    fn insert(&mut self, subscription: Subscription) -> bool {
        let id = subscription.inbox.id();
        match self {
            Self::Few(few) => {
                if let Some(known) = few.iter_mut().find(|known| known.inbox.id() == id) {
                    *known = subscription;
                    return false;
                }
                few.push(subscription);
                if few.len() > FEW {
                    *self = Self::Many(few.drain(..).map(|known| (known.inbox.id(), known)).collect());
                }
                true
            }
            Self::Many(many) => many.insert(id, subscription).is_none(),
        }
    }

    fn remove(&mut self, id: u64) -> bool {
        match self {
            Self::Few(few) => {
                let position = few.iter().position(|known| known.inbox.id() == id);
                position.map(|position| few.swap_remove(position)).is_some()
            }
            Self::Many(many) => many.remove(&id).is_some(),
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Few(few) => few.is_empty(),
            Self::Many(many) => many.is_empty(),
        }
    }

    fn for_each(&self, each: impl FnMut(&Subscription)) {
        match self {
            Self::Few(few) => few.iter().for_each(each),
            Self::Many(many) => many.values().for_each(each),
        }
    }
}

struct Leaf {
    subscribers: Subscribers,
    groups: Vec<Arc<Group>>,
    sinks: Vec<(SinkId, Arc<dyn MessageSink>)>,
}

impl Leaf {
    fn new() -> Self {
        Self { subscribers: Subscribers::Few(Vec::new()), groups: Vec::new(), sinks: Vec::new() }
    }

    fn is_empty(&self) -> bool {
        self.subscribers.is_empty() && self.groups.is_empty() && self.sinks.is_empty()
    }

    /// The group of this name, which is empty where it is new.
    fn group(&mut self, name: &str) -> Arc<Group> {
        let known = self.groups.iter().find(|group| group.name() == name).cloned();
        known.unwrap_or_else(|| {
            let group = Group::new(name);
            self.groups.push(group.clone());
            group
        })
    }

    /// A session joins the group of this name; true where it is new there. `filter` is the client's, with the name.
    fn join(&mut self, name: &str, filter: &str, subscription: &Subscription) -> bool {
        let group = self.group(name);
        let via = Via {
            identifiers: subscription.identifier.into_iter().collect(),
            group: Arc::downgrade(&group),
            share: Some(filter.into()),
        };
        group.join(RouteSubscriber { via: Some(Arc::new(via)), ..subscription.as_route() })
    }

    fn leave(&mut self, name: &str, session: u64) -> bool {
        let Some(at) = self.groups.iter().position(|group| group.name() == name) else { return false };
        let Some(group) = self.groups.get(at) else { return false };
        let left = group.leave(session);
        if group.is_empty() {
            self.groups.swap_remove(at);
        }
        left
    }
}

#[derive(Default)]
struct Filters {
    tree: LevelTree<Leaf>,
    sinks: HashMap<u64, Box<str>>,
}

impl Filters {
    /// `filter` as the client wrote it, with or without a share name.
    fn remove_session(&mut self, id: u64, filter: &str) -> bool {
        match topic::parse_shared(filter) {
            Some((name, filter)) => self.change(filter, |leaf| leaf.leave(name, id)),
            None => self.change(filter, |leaf| leaf.subscribers.remove(id)),
        }
    }

    /// Changes the leaf of a filter, and removes it when nothing is left in it.
    fn change(&mut self, filter: &str, change: impl FnOnce(&mut Leaf) -> bool) -> bool {
        let Some(node) = self.tree.find(filter) else { return false };
        let Some(leaf) = self.tree.value_mut(node) else { return false };
        let changed = change(leaf);
        if leaf.is_empty() {
            self.tree.prune(node);
        }
        changed
    }

    /// Visits every leaf whose filter matches `topic` (MQTT-5.0 4.7). Each node at most once.
    fn for_each_match<'a>(&'a self, topic: &str, mut visit: impl FnMut(&'a Leaf)) {
        let levels: SmallVec<[&str; 16]> = topic.split('/').collect();
        let mut open: SmallVec<[(u32, usize); 32]> = SmallVec::new();
        open.push((ROOT, 0));
        while let Some((node, depth)) = open.pop() {
            // A leading wildcard does not match a topic that starts with `$` (MQTT-4.7.2-1).
            let wildcards = depth > 0 || !topic.starts_with('$');
            if wildcards && let Some(leaf) = self.tree.child(node, "#").and_then(|all| self.tree.value(all)) {
                visit(leaf);
            }
            match levels.get(depth) {
                None => {
                    if let Some(leaf) = self.tree.value(node) {
                        visit(leaf);
                    }
                }
                Some(level) => {
                    if let Some(child) = self.tree.child(node, level) {
                        open.push((child, depth + 1));
                    }
                    if wildcards && let Some(child) = self.tree.child(node, "+") {
                        open.push((child, depth + 1));
                    }
                }
            }
        }
    }
}

/// Subscriptions, message sinks and retained messages of the node.
pub struct Router {
    filters: RwLock<Filters>,
    stamps: Stamps,
    share_strategy: AtomicU8,
    next_id: AtomicU64,
    retained: Mutex<Retained>,
    /// The last value of each `$SYS` topic.
    sys: Mutex<BTreeMap<Box<str>, Arc<Publication>>>,
    stats: Arc<Stats>,
    memory: Memory,
    /// Where retained messages are kept, if they outlive the process.
    store: OnceLock<Arc<Store>>,
}

impl Router {
    /// An empty router. Its memory is not limited until a front that serves it says so.
    pub fn new(retained: RetainedLimits) -> Arc<Self> {
        Arc::new(Self {
            filters: RwLock::default(),
            stamps: Stamps::new(),
            share_strategy: AtomicU8::new(ShareStrategy::RoundRobin as u8),
            next_id: AtomicU64::new(1),
            retained: Mutex::new(Retained::new(retained)),
            sys: Mutex::default(),
            stats: Arc::default(),
            memory: Ledger::new(u64::MAX),
            store: OnceLock::new(),
        })
    }

    /// Bytes that sessions, queues, retained messages, wills and connection buffers hold now; what threads
    /// have not settled yet is missing (see `mqtt.max_memory`).
    pub fn memory_used(&self) -> u64 {
        self.memory.used()
    }

    pub(crate) fn memory(&self) -> Memory {
        self.memory
    }

    /// The counters of the MQTT front.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Gives every message whose topic matches `filter` to `sink`, until it is removed. The filter must be
    /// valid; a sink that is registered under several filters gets a message once for each that matches.
    pub fn add_sink(&self, filter: &str, sink: Arc<dyn MessageSink>) -> SinkId {
        let id = SinkId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let mut filters = self.filters.write();
        if let Some(leaf) = filters.tree.entry(filter, Leaf::new) {
            leaf.sinks.push((id, sink));
            filters.sinks.insert(id.0, filter.into());
        }
        self.stamps.changed(filter);
        id
    }

    /// Takes a sink away; false where it is not registered. Publishers that are at work with a route may
    /// still offer it messages for a moment.
    pub fn remove_sink(&self, id: SinkId) -> bool {
        let mut filters = self.filters.write();
        let Some(filter) = filters.sinks.remove(&id.0) else { return false };
        let removed = filters.change(&filter, |leaf| {
            let before = leaf.sinks.len();
            leaf.sinks.retain(|(known, _)| *known != id);
            leaf.sinks.len() < before
        });
        self.stamps.changed(&filter);
        removed
    }

    /// Subscribes a session to a filter, shared or not; true where the subscription is new.
    pub(crate) fn subscribe(
        &self,
        inbox: &Arc<Inbox>,
        filter: &str,
        options: SubscriptionOptions,
        identifier: Option<u32>,
    ) -> bool {
        let subscription = Subscription { inbox: inbox.clone(), options, identifier };
        let written = filter;
        let (share, filter) = match topic::parse_shared(filter) {
            Some((name, filter)) => (Some(name), filter),
            None => (None, filter),
        };
        let mut filters = self.filters.write();
        let leaf = filters.tree.entry(filter, Leaf::new);
        let new = leaf.is_some_and(|leaf| match share {
            Some(name) => leaf.join(name, written, &subscription),
            None => leaf.subscribers.insert(subscription),
        });
        self.stamps.changed(filter);
        drop(filters);
        if new {
            Stats::add(&self.stats.subscriptions, 1);
        }
        new
    }

    /// The group of a shared subscription, where it has members or was opened; `filter` is with its share name.
    pub(crate) fn group(&self, filter: &str) -> Option<Arc<Group>> {
        let (name, filter) = topic::parse_shared(filter)?;
        let filters = self.filters.read();
        let leaf = filters.tree.value(filters.tree.find(filter)?)?;
        leaf.groups.iter().find(|group| group.name() == name).cloned()
    }

    /// Makes the group of a shared subscription known before its first member joins, who has to follow.
    pub(crate) fn open_group(&self, filter: &str) {
        if let Some((name, filter)) = topic::parse_shared(filter)
            && let Some(leaf) = self.filters.write().tree.entry(filter, Leaf::new)
        {
            leaf.group(name);
        }
    }

    /// Ends a subscription; false where there was none.
    pub(crate) fn unsubscribe(&self, inbox: u64, filter: &str) -> bool {
        self.unsubscribe_all(inbox, std::iter::once(filter)) == 1
    }

    /// Ends several subscriptions of a session; how many there were.
    pub(crate) fn unsubscribe_all<'a>(&self, inbox: u64, of: impl Iterator<Item = &'a str>) -> usize {
        let mut filters = self.filters.write();
        let remove = |filter: &&str| {
            let removed = filters.remove_session(inbox, filter);
            if removed {
                self.stamps.changed(topic::parse_shared(filter).map_or(filter, |(_, filter)| filter));
            }
            removed
        };
        let removed = of.filter(remove).count();
        if removed > 0 {
            Stats::subtract(&self.stats.subscriptions, removed as u64);
        }
        removed
    }

    /// Makes every publisher look up its routes again.
    pub(crate) fn changed(&self) {
        self.stamps.all_changed();
    }

    /// A number that no other session of this process has.
    pub(crate) fn next_inbox_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// False once a subscription or sink that `route` may have to do with has changed.
    pub(crate) fn is_current(&self, route: &Route) -> bool {
        self.stamps.stamp(route.places) == route.stamp
    }

    /// Whom messages for shared subscriptions go to.
    pub(crate) fn share_strategy(&self) -> ShareStrategy {
        ShareStrategy::from_u8(self.share_strategy.load(Ordering::Relaxed))
    }

    pub(crate) fn set_share_strategy(&self, strategy: ShareStrategy) {
        self.share_strategy.store(strategy as u8, Ordering::Relaxed);
    }

    /// Works out where messages of `topic` go. Publishers use a [`RouteCache`].
    pub fn find_route(&self, topic: &str) -> Arc<Route> {
        let mut subscribers: Vec<RouteSubscriber> = Vec::new();
        let mut groups: Vec<RouteGroup> = Vec::new();
        let mut sinks: Vec<RouteSink> = Vec::new();
        let mut leaves = 0;
        let places = self.stamps.places(topic);
        let stamp = self.stamps.stamp(places);
        Stats::add(&self.stats.routes_found, 1);
        self.filters.read().for_each_match(topic, |leaf| {
            leaves += usize::from(!leaf.subscribers.is_empty());
            leaf.subscribers.for_each(|subscription| subscribers.push(subscription.as_route()));
            groups.extend(
                leaf.groups.iter().map(|group| RouteGroup { group: group.clone(), members: group.picture() }),
            );
            sinks.extend(leaf.sinks.iter().map(|(_, sink)| RouteSink {
                sink: sink.clone(),
                holds_acknowledgement: sink.holds_acknowledgement(),
            }));
        });
        if leaves > 1 {
            merge(&mut subscribers);
        }
        let bytes = size_of::<Route>()
            + topic.len()
            + subscribers.len() * size_of::<RouteSubscriber>()
            + groups.len() * size_of::<RouteGroup>()
            + sinks.len() * size_of::<RouteSink>();
        let stored = subscribers.iter().filter(|subscriber| subscriber.is_stored()).count()
            + groups.iter().filter(|group| group.members.iter().any(RouteSubscriber::is_stored)).count();
        Arc::new(Route {
            stored: u32::try_from(stored).unwrap_or(u32::MAX),
            _held: Held::new(self.memory, bytes),
            topic: topic.into(),
            subscribers: subscribers.into_boxed_slice(),
            groups: groups.into_boxed_slice(),
            places,
            stamp,
            sinks: sinks.into_boxed_slice(),
        })
    }

    /// Keeps a message as the retained one of its topic, or removes it where the payload is empty
    /// (MQTT-5.0 3.3.1.3).
    ///
    /// Where retained messages are stored, the publication has a number, and the hand-over is complete when
    /// it is on the disk.
    pub(crate) fn retain(&self, publication: &Arc<Publication>, hand_over: Option<&Arc<HandOver>>) {
        let mut retained = self.retained.lock();
        let mut kept = None;
        if publication.payload().is_empty() {
            retained.remove(publication.topic());
        } else if retained.store(publication, publication.received_at, self.memory.pressure()) {
            kept = Some(publication);
        } else {
            Stats::add(&self.stats.retained_refused, 1);
        }
        self.count_retained(&retained);
        if let Some(store) = self.store.get() {
            // Under the lock: in the file the last one must be the last one, too.
            store.retain(kept, retained.take_removed().into_iter(), hand_over);
        }
    }

    /// Keeps retained messages in `store` from now on; `found` is what it has.
    pub(crate) fn use_store(&self, store: &Arc<Store>, found: Vec<Arc<Publication>>, now: i64) {
        let mut retained = self.retained.lock();
        for publication in found {
            if publication.is_expired(now) || !retained.store(&publication, now, Pressure::None) {
                store.retain(None, std::iter::once(publication.number()), None);
            }
        }
        store.retain(None, retained.take_removed().into_iter(), None);
        self.count_retained(&retained);
        // A second front on one router would be a mistake of ours; the first one's store stays.
        let _ = self.store.set(store.clone());
    }

    /// Where retained messages are kept, if they outlive the process.
    pub(crate) fn store(&self) -> Option<&Arc<Store>> {
        self.store.get()
    }

    /// The number that a publication needs, because more than one row of the store will refer to it.
    pub(crate) fn number_for(&self, message: &Message<'_>, route: &Route) -> u64 {
        let Some(store) = self.store.get() else { return 0 };
        let retained = message.retain && !message.payload.is_empty();
        if retained || (route.stored > 1 && message.qos != QoS::AtMostOnce) { store.new_message() } else { 0 }
    }

    /// Retained messages that match `filter` and have not expired.
    pub(crate) fn retained_matching(&self, filter: &str, now: i64) -> Vec<Arc<Publication>> {
        let mut found = self.retained.lock().matching(filter, now);
        if filter.starts_with(sys::PREFIX) {
            let sys = self.sys.lock();
            let matching = sys.iter().filter(|(topic, _)| topic::matches(filter, topic));
            found.extend(matching.map(|(_, publication)| publication.clone()));
        }
        found
    }

    /// Removes retained messages that have expired.
    pub(crate) fn expire_retained(&self, now: i64) {
        let mut retained = self.retained.lock();
        retained.expire(now);
        self.count_retained(&retained);
        let removed = retained.take_removed();
        if let Some(store) = self.store.get().filter(|_| !removed.is_empty()) {
            store.retain(None, removed.into_iter(), None);
        }
    }

    fn count_retained(&self, retained: &Retained) {
        self.stats.retained_messages.store(retained.len() as u64, Ordering::Relaxed);
        self.stats.retained_bytes.store(retained.bytes() as u64, Ordering::Relaxed);
    }

    /// Publishes a message from inside the node: a Kafka consumer, an API call, a will.
    ///
    /// With a hand-over each sink and each delivery keeps a clone of it until its part is done, and one
    /// without room is waited for ([`Published::Full`]). Without one nobody is waited for: sinks and
    /// queues drop by their policy, and count it.
    ///
    /// A topic that is not a valid topic name reaches nobody and is counted as `dropped_invalid_topic`.
    pub fn publish(
        &self,
        message: &Message<'_>,
        hand_over: Option<&Arc<HandOver>>,
        progress: &mut PublishProgress,
        wakes: &mut WakeList,
    ) -> Published {
        let current = match &mut progress.current {
            Some(current) => current,
            none => {
                if topic::validate_topic_name(message.topic, topic::DEFAULT_MAX_LEVELS).is_err() {
                    Stats::add(&self.stats.dropped_invalid_topic, 1);
                    return Published::Done { matched: 0 };
                }
                let route = progress.routes.route(self, message.topic);
                none.insert(Current {
                    route,
                    next_sink: 0,
                    next_subscriber: 0,
                    next_group: 0,
                    stored: false,
                    publication: None,
                    matched: 0,
                })
            }
        };
        if let Some(room) = self.advance(message, hand_over, current, wakes) {
            return Published::Full(room);
        }
        let matched = current.matched;
        progress.current = None;
        if matched == 0 {
            Stats::add(&self.stats.unmatched, 1);
        }
        Published::Done { matched }
    }

    /// Puts a client's publication into `outbox` for the sessions that take it, and keeps it where it is to be
    /// retained; `publisher` is the client's own session. True where somebody takes it.
    ///
    /// Nobody is waited for: what a queue has no room for is dropped by its policy.
    pub(crate) fn dispatch(
        &self,
        message: &Message<'_>,
        route: &Route,
        publisher: u64,
        outbox: &mut Outbox,
    ) -> bool {
        if !message.retain && route.subscribers.is_empty() && route.groups.is_empty() {
            return false;
        }
        let mut matched = false;
        let publication = Publication::new(message, self.memory);
        let publication = Arc::new(publication.stored_as(self.number_for(message, route)));
        if message.retain {
            self.retain(&publication, None);
        }
        for subscriber in &route.subscribers {
            if subscriber.no_local && subscriber.inbox.id() == publisher {
                continue;
            }
            matched = true;
            outbox.push(&subscriber.inbox, subscriber.delivery(&publication, None));
        }
        for group in &route.groups {
            let (strategy, client_id) = (self.share_strategy(), &message.origin.client_id);
            let choice = Choice { strategy, publisher: client_id, topic: message.topic };
            let Some(member) = group.choose(&choice) else { continue };
            matched = true;
            outbox.push(&member.inbox, member.delivery(&publication, None));
        }
        matched
    }

    fn advance(
        &self,
        message: &Message<'_>,
        hand_over: Option<&Arc<HandOver>>,
        current: &mut Current,
        wakes: &mut WakeList,
    ) -> Option<Room> {
        let before = current.next_sink;
        let full = current.route.offer_to_sinks(message, hand_over, &mut current.next_sink, wakes);
        current.matched += current.next_sink - before;
        if full.is_some() {
            return full;
        }
        let Route { subscribers, groups, .. } = &*current.route;
        if subscribers.is_empty() && groups.is_empty() && (!message.retain || current.stored) {
            return None;
        }
        if let Some(store) = self.store.get()
            && hand_over.is_some()
            && message.qos != QoS::AtMostOnce
            && (message.retain || current.route.stored > 0)
            && !store.has_room()
        {
            return Some(store.room());
        }
        let publication = current.publication.get_or_insert_with(|| {
            let number = self.number_for(message, &current.route);
            Arc::new(Publication::new(message, self.memory).stored_as(number))
        });
        if message.retain && !current.stored {
            self.retain(publication, hand_over.filter(|_| message.qos != QoS::AtMostOnce));
            current.stored = true;
        }
        while let Some(subscriber) = current.route.subscribers.get(current.next_subscriber) {
            let delivery = subscriber.delivery(publication, hand_over.cloned());
            match subscriber.inbox.offer(delivery) {
                Offered::Queued(true) => wakes.push(subscriber.inbox.clone()),
                Offered::Queued(false) | Offered::Dropped => {}
                Offered::Full(room) => return Some(room),
            }
            current.matched += 1;
            current.next_subscriber += 1;
        }
        while let Some(group) = current.route.groups.get(current.next_group) {
            if let Some(room) = self.offer_to_one(group, message, publication, hand_over, wakes) {
                return Some(room);
            }
            current.matched += 1;
            current.next_group += 1;
        }
        None
    }

    /// Publishes a `$SYS` message, and keeps it for those who subscribe later where `keep` is set.
    pub(crate) fn publish_sys(&self, message: &Message<'_>, keep: bool) {
        let publication = Arc::new(Publication::new(message, self.memory));
        if keep {
            self.sys.lock().insert(message.topic.into(), publication.clone());
        }
        let route = self.find_route(message.topic);
        let mut wakes = WakeList::default();
        for sink in &route.sinks {
            sink.sink.accept(message, None, &mut wakes);
        }
        for subscriber in &route.subscribers {
            if let Offered::Queued(true) = subscriber.inbox.offer(subscriber.delivery(&publication, None)) {
                wakes.push(subscriber.inbox.clone());
            }
        }
        for group in &route.groups {
            self.offer_to_one(group, message, &publication, None, &mut wakes);
        }
    }

    /// Offers a message to one member of a shared subscription: the chosen one, or another that is connected
    /// and has room. `Some`: it must be handed over, and nobody has.
    fn offer_to_one(
        &self,
        route: &RouteGroup,
        message: &Message<'_>,
        publication: &Arc<Publication>,
        hand_over: Option<&Arc<HandOver>>,
        wakes: &mut WakeList,
    ) -> Option<Room> {
        let choice = Choice {
            strategy: self.share_strategy(),
            publisher: &message.origin.client_id,
            topic: message.topic,
        };
        let chosen = route.group.choose(&route.members, &choice)?;
        let (before, from) = route.members.split_at_checked(chosen)?;
        let (first, behind) = from.split_first()?;
        let others = behind.iter().chain(before).filter(|member| member.inbox.is_connected());
        let mut full = None;
        for member in std::iter::once(first).chain(others) {
            match member.inbox.offer(member.delivery(publication, hand_over.cloned())) {
                Offered::Queued(true) => wakes.push(member.inbox.clone()),
                Offered::Queued(false) | Offered::Dropped => {}
                Offered::Full(room) => {
                    full.get_or_insert(room);
                    continue;
                }
            }
            return None;
        }
        full
    }
}

impl Route {
    /// Gives a message to its sinks from `next` on, each with its part of the hand-over. `Some`: the
    /// one at `next` has no room.
    pub(crate) fn offer_to_sinks(
        &self,
        message: &Message<'_>,
        hand_over: Option<&Arc<HandOver>>,
        next: &mut usize,
        wakes: &mut WakeList,
    ) -> Option<Room> {
        while let Some(sink) = self.sinks.get(*next) {
            let ticket = hand_over.filter(|_| sink.holds_acknowledgement).map(SinkPart::ticket);
            match sink.sink.accept(message, ticket.as_ref(), wakes) {
                Accepted::Taken => {}
                Accepted::Done(outcome) => {
                    if let Some(ticket) = ticket {
                        ticket.sink.acknowledge(&[SequenceRange { first: 0, count: 1 }], outcome);
                    }
                }
                Accepted::Full(room) => return Some(room),
            }
            *next += 1;
        }
        None
    }
}

impl RouteSubscriber {
    /// Identifiers of its subscriptions.
    pub(crate) fn identifiers(&self) -> &[u32] {
        self.via.as_ref().map_or(&[], |via| &via.identifiers)
    }

    /// True where messages with QoS 1 and 2 go to the disk.
    pub(crate) fn is_stored(&self) -> bool {
        self.qos != QoS::AtMostOnce && self.inbox.stored().is_some()
    }

    /// The delivery of a publication to this session.
    pub(crate) fn delivery(
        &self,
        publication: &Arc<Publication>,
        hand_over: Option<Arc<HandOver>>,
    ) -> Delivery {
        Delivery {
            publication: publication.clone(),
            via: self.via.clone(),
            hand_over,
            qos: publication.qos.min(self.qos),
            retain: publication.retain && self.retain_as_published,
            charged: true,
            position: 0,
        }
    }
}

/// Merges the overlapping subscriptions of each session into one delivery.
fn merge(subscribers: &mut Vec<RouteSubscriber>) {
    subscribers.sort_by_key(|subscriber| subscriber.inbox.id());
    subscribers.dedup_by(|other, kept| {
        if other.inbox.id() != kept.inbox.id() {
            return false;
        }
        kept.qos = kept.qos.max(other.qos);
        kept.no_local &= other.no_local;
        kept.retain_as_published |= other.retain_as_published;
        if other.via.is_some() {
            let identifiers = kept.identifiers().iter().chain(other.identifiers()).copied();
            kept.via = Via::identified(identifiers);
        }
        true
    });
}

/// A sink's part of a hand-over.
struct SinkPart {
    hand_over: Mutex<Option<Arc<HandOver>>>,
}

impl SinkPart {
    fn ticket(hand_over: &Arc<HandOver>) -> Ticket {
        Ticket { sink: Arc::new(Self { hand_over: Mutex::new(Some(hand_over.clone())) }), sequence: 0 }
    }
}

impl AckSink for SinkPart {
    fn acknowledge(&self, _: &[SequenceRange], outcome: Outcome) {
        let part = self.hand_over.lock().take();
        if let (Some(hand_over), Outcome::Failed(reason)) = (&part, outcome) {
            hand_over.fail(reason);
        }
    }
}

#[cfg(test)]
#[path = "router_tests.rs"]
mod tests;
