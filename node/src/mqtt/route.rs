//! Where messages of one topic go, worked out once and cached by each publisher.

use std::{hash::BuildHasher, sync::Arc};

use causeway_protocol::mqtt::QoS;
use hashbrown::{DefaultHashBuilder, HashTable};

use super::{
    inbox::Inbox,
    memory::{Held, Pressure},
    router::Router,
};
use crate::flow::MessageSink;

/// All who take messages of one topic. Immutable: a change of subscriptions makes a new one.
pub struct Route {
    pub(crate) topic: Box<str>,
    pub(crate) subscribers: Box<[RouteSubscriber]>,
    pub(crate) sinks: Box<[RouteSink]>,
    pub(crate) _held: Held,
}

impl Route {
    /// Sessions that take the topic.
    pub fn subscribers(&self) -> usize {
        self.subscribers.len()
    }

    /// Message sinks that take the topic.
    pub fn sinks(&self) -> usize {
        self.sinks.len()
    }

    /// True where nobody takes the topic.
    pub fn is_empty(&self) -> bool {
        self.subscribers.is_empty() && self.sinks.is_empty()
    }
}

/// One session, its overlapping subscriptions merged (MQTT-5.0 3.3.4): one delivery with the highest QoS
/// and every subscription identifier.
pub(crate) struct RouteSubscriber {
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) identifiers: Option<Arc<[u32]>>,
    pub(crate) qos: QoS,
    /// Set only where every matching subscription asks for it.
    pub(crate) no_local: bool,
    pub(crate) retain_as_published: bool,
}

pub(crate) struct RouteSink {
    pub(crate) sink: Arc<dyn MessageSink>,
    pub(crate) holds_acknowledgement: bool,
}

/// Routes that one publisher used lately. Valid for one generation of the router's subscriptions.
pub struct RouteCache {
    generation: u64,
    capacity: usize,
    routes: HashTable<Arc<Route>>,
    last: Option<Arc<Route>>,
    hasher: DefaultHashBuilder,
}

/// Longer topics are looked up each time, so that the cache is bounded in bytes as well.
const LONGEST: usize = 512;

impl RouteCache {
    /// Topics a publisher's cache holds unless told otherwise: a gateway's few hundred devices.
    pub const DEFAULT_CAPACITY: usize = 512;

    /// An empty cache for up to `capacity` topics.
    pub fn new(capacity: usize) -> Self {
        Self {
            generation: 0,
            capacity,
            routes: HashTable::new(),
            last: None,
            hasher: DefaultHashBuilder::default(),
        }
    }

    /// The route of `topic`, which must be a valid topic name.
    pub fn route(&mut self, router: &Router, topic: &str) -> Arc<Route> {
        let generation = router.generation();
        if generation != self.generation {
            self.routes.clear();
            self.last = None;
            self.generation = generation;
        }
        if let Some(last) = &self.last
            && *last.topic == *topic
        {
            return last.clone();
        }
        let hash = self.hasher.hash_one(topic);
        let route = if let Some(route) = self.routes.find(hash, |route| *route.topic == *topic) {
            route.clone()
        } else {
            let route = router.find_route(topic);
            if topic.len() > LONGEST {
                return route;
            }
            if router.memory().pressure() != Pressure::None {
                // What can be worked out again is the first to go.
                self.routes = HashTable::new();
                self.last = None;
                return route;
            }
            if self.routes.len() >= self.capacity {
                self.routes.clear();
            }
            let hasher = &self.hasher;
            self.routes.insert_unique(hash, route.clone(), |route| hasher.hash_one(&*route.topic));
            route
        };
        self.last = Some(route.clone());
        route
    }
}

impl Default for RouteCache {
    fn default() -> Self {
        Self::new(Self::DEFAULT_CAPACITY)
    }
}
