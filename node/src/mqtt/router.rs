//! The router: who takes messages of which topic, and the way in for publishers inside the node.
//!
//! It owns the subscription tree (sessions and message sinks by topic filter) and the retained messages.
//! Connections do not come here for every message: they keep a [`RouteCache`] and look again when the stamp
//! of a topic has changed ([`super::stamps`]).
//!
//! Invariants:
//! * A subscription that was confirmed is seen by every publication that is read afterwards: the
//!   stamps of the topics it matches change before the call returns.
//! * [`Router::publish`] gives a message to each sink and each session at most once, however often it is
//!   called again with the same progress.
//! * No lock is held while a sink or a hand-over is called.

mod filters;
mod publishing;

use std::collections::BTreeMap;
use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU8, AtomicU64, Ordering},
};

use causeway_protocol::mqtt::{QoS, SubscriptionOptions, topic};
use parking_lot::{Mutex, RwLock};

use super::{
    clock,
    inbox::Inbox,
    memory::{Held, Memory, MemoryCounter, Pressure},
    publication::{Publication, Via},
    releases::Releases,
    retained::{Retained, RetainedLimits},
    route::{Route, RouteGroup, RouteSink, RouteSubscriber},
    share::{Group, ShareStrategy},
    stamps::Stamps,
    stats::Stats,
    store::Store,
    sys,
};
use crate::flow::{HandOver, IgnoreAcks, Lives, Mark, Message, MessageSink, Remembers, Ticket};

use filters::{Filters, Leaf, Subscription};
pub use publishing::{PublishProgress, Published};

/// Names a registered message sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SinkId(u64);

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
    /// Who remembers QoS 2 publications beyond the end of the process.
    releases: Releases,
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
            memory: MemoryCounter::new(u64::MAX),
            store: OnceLock::new(),
            releases: Releases::default(),
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

    /// From now on this one hears which QoS 2 publications are released. What it has found of the life before
    /// counts as far as it is still meant.
    pub fn add_remembering(&self, who: Arc<dyn Remembers>, lives: Lives) {
        self.releases.add(who, lives);
    }

    /// Until now.
    pub fn remove_remembering(&self, who: &Arc<dyn Remembers>) {
        self.releases.remove(who);
    }

    /// Hears which QoS 2 publications of stored sessions are released.
    pub(crate) fn releases(&self) -> &Releases {
        &self.releases
    }

    /// A QoS 2 publication is released, and nothing waits for those who remember it.
    pub(crate) fn release_soon(&self, mark: Mark, restored: bool) {
        self.releases.release(mark, restored, || HandOver::new(Ticket::new(Arc::new(IgnoreAcks), 0)));
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

    /// Registers a sink in the place of another one, in one step: a publication finds one of them, never
    /// both, never none.
    pub fn replace_sink(&self, id: SinkId, filter: &str, sink: Arc<dyn MessageSink>) -> SinkId {
        let new = SinkId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let mut filters = self.filters.write();
        let before = filters.sinks.remove(&id.0);
        if let Some(before) = &before {
            filters.change(before, |leaf| {
                leaf.sinks.retain(|(known, _)| *known != id);
                true
            });
        }
        if let Some(leaf) = filters.tree.entry(filter, Leaf::new) {
            leaf.sinks.push((new, sink));
            filters.sinks.insert(new.0, filter.into());
        }
        for filter in before.as_deref().into_iter().chain([filter]) {
            self.stamps.changed(filter);
        }
        new
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

    /// The group of a shared subscription, where it has members or was opened; `filter` is with its share
    /// name.
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
        } else if retained.store(publication, clock::steady_now(), self.memory.pressure()) {
            kept = Some(publication);
        } else {
            Stats::add(&self.stats.retained_refused, 1);
        }
        self.count_retained(&retained);
        let removed = retained.take_removed();
        if let Some(store) = self.store.get() {
            // Under the lock: in the file the last one must be the last one, too.
            store.retain(kept, removed.into_iter(), hand_over);
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

    /// The number that a publication needs, because it is retained or more than one row of the store will
    /// refer to it.
    pub(crate) fn number_for(&self, message: &Message<'_>, route: &Route) -> u64 {
        let retained = message.retain && !message.payload.is_empty();
        if retained || (route.stored > 1 && message.qos != QoS::AtMostOnce) { self.next_number() } else { 0 }
    }

    /// The number that the retained messages of a subscription are below which was just added: later ones
    /// reach the client by the subscription. No two calls give the same.
    pub(crate) fn retained_before(&self) -> u64 {
        self.next_number()
    }

    fn next_number(&self) -> u64 {
        self.store
            .get()
            .map_or_else(|| self.next_id.fetch_add(1, Ordering::Relaxed), |store| store.new_message())
    }

    /// Retained messages with a number below `before` that match `filter` and have not expired; `None` where
    /// there are more than `most`.
    pub(crate) fn retained_matching(
        &self,
        filter: &str,
        before: u64,
        now: i64,
        most: usize,
    ) -> Option<Vec<Arc<Publication>>> {
        let mut found = self.retained.lock().matching(filter, before, now, most)?;
        // There is no order among topics; tests that compare two nodes need one.
        #[cfg(test)]
        found.sort_by(|one, other| one.topic().cmp(other.topic()));
        if filter.starts_with(sys::PREFIX) {
            let sys = self.sys.lock();
            let matching = sys.iter().filter(|(topic, _)| topic::matches(filter, topic));
            found.extend(matching.map(|(_, publication)| publication.clone()));
        }
        (found.len() <= most).then_some(found)
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

#[cfg(test)]
#[path = "router_tests.rs"]
mod tests;
