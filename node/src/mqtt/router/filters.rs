//! The subscription tree: who subscribes to which filter, and what takes a topic.

use std::sync::Arc;

use causeway_protocol::mqtt::{SubscriptionOptions, topic};
use hashbrown::HashMap;
use smallvec::SmallVec;

use super::SinkId;
use crate::{
    flow::MessageSink,
    mqtt::{
        inbox::Inbox,
        level_tree::{LevelTree, ROOT},
        publication::Via,
        route::RouteSubscriber,
        share::Group,
    },
};

#[derive(Clone)]
pub(super) struct Subscription {
    pub(super) inbox: Arc<Inbox>,
    pub(super) options: SubscriptionOptions,
    pub(super) identifier: Option<u32>,
}

impl Subscription {
    pub(super) fn as_route(&self) -> RouteSubscriber {
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
pub(super) enum Subscribers {
    Few(Vec<Subscription>),
    Many(HashMap<u64, Subscription>),
}

const FEW: usize = 16;

impl Subscribers {
    /// True where the session had no subscription here.
    pub(super) fn insert(&mut self, subscription: Subscription) -> bool {
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

    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Few(few) => few.is_empty(),
            Self::Many(many) => many.is_empty(),
        }
    }

    pub(super) fn for_each(&self, each: impl FnMut(&Subscription)) {
        match self {
            Self::Few(few) => few.iter().for_each(each),
            Self::Many(many) => many.values().for_each(each),
        }
    }
}

pub(super) struct Leaf {
    pub(super) subscribers: Subscribers,
    pub(super) groups: Vec<Arc<Group>>,
    pub(super) sinks: Vec<(SinkId, Arc<dyn MessageSink>)>,
}

impl Leaf {
    pub(super) fn new() -> Self {
        Self { subscribers: Subscribers::Few(Vec::new()), groups: Vec::new(), sinks: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.subscribers.is_empty() && self.groups.is_empty() && self.sinks.is_empty()
    }

    /// The group of this name, which is empty where it is new.
    pub(super) fn group(&mut self, name: &str) -> Arc<Group> {
        let known = self.groups.iter().find(|group| group.name() == name).cloned();
        known.unwrap_or_else(|| {
            let group = Group::new(name);
            self.groups.push(group.clone());
            group
        })
    }

    /// A session joins the group of this name; true where it is new there. `filter` is the client's, with the
    /// name.
    pub(super) fn join(&mut self, name: &str, filter: &str, subscription: &Subscription) -> bool {
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
pub(super) struct Filters {
    pub(super) tree: LevelTree<Leaf>,
    pub(super) sinks: HashMap<u64, Box<str>>,
}

impl Filters {
    /// `filter` as the client wrote it, with or without a share name.
    pub(super) fn remove_session(&mut self, id: u64, filter: &str) -> bool {
        match topic::parse_shared(filter) {
            Some((name, filter)) => self.change(filter, |leaf| leaf.leave(name, id)),
            None => self.change(filter, |leaf| leaf.subscribers.remove(id)),
        }
    }

    /// Changes the leaf of a filter, and removes it when nothing is left in it.
    pub(super) fn change(&mut self, filter: &str, change: impl FnOnce(&mut Leaf) -> bool) -> bool {
        let Some(node) = self.tree.find(filter) else { return false };
        let Some(leaf) = self.tree.value_mut(node) else { return false };
        let changed = change(leaf);
        if leaf.is_empty() {
            self.tree.prune(node);
        }
        changed
    }

    /// Visits every leaf whose filter matches `topic` (MQTT-5.0 4.7). Each node at most once.
    pub(super) fn for_each_match<'a>(&'a self, topic: &str, mut visit: impl FnMut(&'a Leaf)) {
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
