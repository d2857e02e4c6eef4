//! Where messages of one topic go, worked out once and cached by each publisher.

use std::{hash::BuildHasher, sync::Arc};

use causeway_protocol::mqtt::QoS;
use hashbrown::{DefaultHashBuilder, HashTable};

use super::{
    inbox::Inbox,
    memory::{Held, Pressure},
    publication::Via,
    router::Router,
    share::{Choice, Group},
    stamps::Places,
};
use crate::{access::Allowed, flow::MessageSink};

/// All who take messages of one topic. Immutable: a change of subscriptions makes a new one.
pub struct Route {
    pub(crate) topic: Box<str>,
    pub(crate) subscribers: Box<[RouteSubscriber]>,
    pub(crate) groups: Box<[RouteGroup]>,
    pub(crate) sinks: Box<[RouteSink]>,
    /// Where changes that concern it show, and how that was when it was worked out.
    pub(crate) places: Places,
    pub(crate) stamp: u64,
    /// Subscribers whose messages go to the disk.
    pub(crate) stored: u32,
    pub(crate) _held: Held,
}

impl Route {
    /// Sessions that take the topic, each shared subscription counted as one.
    pub fn subscribers(&self) -> usize {
        self.subscribers.len() + self.groups.len()
    }

    /// Message sinks that take the topic.
    pub fn sinks(&self) -> usize {
        self.sinks.len()
    }

    /// True where the topic has no receiver.
    pub fn is_empty(&self) -> bool {
        self.subscribers.is_empty() && self.groups.is_empty() && self.sinks.is_empty()
    }
}

/// One session, its overlapping subscriptions merged (MQTT-5.0 3.3.4): one delivery with the highest QoS
/// and every subscription identifier.
#[derive(Clone)]
pub(crate) struct RouteSubscriber {
    pub(crate) inbox: Arc<Inbox>,
    /// Identifiers of the subscriptions, and the group of a shared one.
    pub(crate) via: Option<Arc<Via>>,
    pub(crate) qos: QoS,
    /// Set only where every matching subscription asks for it.
    pub(crate) no_local: bool,
    pub(crate) retain_as_published: bool,
}

/// A shared subscription with its members: one of them gets each message.
pub(crate) struct RouteGroup {
    pub(crate) group: Arc<Group>,
    pub(crate) members: Arc<[RouteSubscriber]>,
}

impl RouteGroup {
    /// Who gets this message.
    pub(crate) fn choose(&self, choice: &Choice<'_>) -> Option<&RouteSubscriber> {
        self.group.choose(&self.members, choice).and_then(|at| self.members.get(at))
    }
}

pub(crate) struct RouteSink {
    pub(crate) sink: Arc<dyn MessageSink>,
    pub(crate) holds_acknowledgement: bool,
}

/// Routes that one publisher used lately, each with what the publisher may publish there. Used as long as its
/// stamp is that of the router; a change of access rules changes all stamps, too.
pub struct RouteCache {
    capacity: usize,
    routes: HashTable<Cached>,
    last: Option<Cached>,
    hasher: DefaultHashBuilder,
}

#[derive(Clone)]
struct Cached {
    route: Arc<Route>,
    allowed: Allowed,
}

/// Longer topics are looked up each time, so that the cache is bounded in bytes as well.
const LONGEST: usize = 512;

impl RouteCache {
    /// Topics a publisher's cache holds unless told otherwise: a gateway's few hundred devices.
    pub const DEFAULT_CAPACITY: usize = 512;

    /// An empty cache for up to `capacity` topics.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, routes: HashTable::new(), last: None, hasher: DefaultHashBuilder::default() }
    }

    /// The route of `topic`, which must be a valid topic name, for a publisher who may do everything.
    pub fn route(&mut self, router: &Router, topic: &str) -> Arc<Route> {
        self.checked_route(router, topic, || Allowed::ALL).0
    }

    /// The route of `topic`, which must be a valid topic name, and what may be published there: `allowed` is
    /// asked where that is not known.
    pub fn checked_route(
        &mut self,
        router: &Router,
        topic: &str,
        allowed: impl FnOnce() -> Allowed,
    ) -> (Arc<Route>, Allowed) {
        if let Some(last) = &self.last
            && *last.route.topic == *topic
            && router.is_current(&last.route)
        {
            return (last.route.clone(), last.allowed);
        }
        let hash = self.hasher.hash_one(topic);
        let cached = if let Some(cached) = self.routes.find_mut(hash, |cached| *cached.route.topic == *topic)
        {
            if !router.is_current(&cached.route) {
                *cached = Cached { route: router.find_route(topic), allowed: allowed() };
            }
            cached.clone()
        } else {
            let (route, allowed) = (router.find_route(topic), allowed());
            if topic.len() > LONGEST {
                return (route, allowed);
            }
            if router.memory().pressure() != Pressure::None {
                // The routes, which can be worked out again, are the first to go.
                self.routes = HashTable::new();
                self.last = None;
                return (route, allowed);
            }
            let cached = Cached { route, allowed };
            if self.routes.len() >= self.capacity {
                self.routes.clear();
            }
            let hasher = &self.hasher;
            self.routes.insert_unique(hash, cached.clone(), |cached| hasher.hash_one(&*cached.route.topic));
            cached
        };
        let Cached { route, allowed } = &cached;
        let found = (route.clone(), *allowed);
        self.last = Some(cached);
        found
    }
}

impl Default for RouteCache {
    fn default() -> Self {
        Self::new(Self::DEFAULT_CAPACITY)
    }
}
