//! Publications on their way to sinks and sessions: from inside the node, where a caller may wait for them,
//! and from clients.

use std::sync::Arc;

use causeway_protocol::mqtt::{QoS, topic};
use parking_lot::Mutex;

use super::Router;
use crate::{
    flow::{
        Accepted, AckSink, HandOver, Message, Outcome, Room, SequenceRange, Standstill, Ticket, WakeList,
    },
    mqtt::{
        inbox::{Inbox, Offered},
        outbox::Outbox,
        publication::{Delivery, Publication},
        route::{Route, RouteCache, RouteGroup, RouteSubscriber},
        share::Choice,
        stats::Stats,
    },
};

/// Result of [`Router::publish`].
pub enum Published {
    /// The message is with all receivers.
    Done {
        /// Sessions and sinks that it matched.
        matched: usize,
    },
    /// A receiver has no room. Call again with the same progress when `Room` is notified, and now and then
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
    /// The session that has no room for it.
    full: Option<Arc<Inbox>>,
}

impl PublishProgress {
    /// Forgets a publication that was begun: the next call starts another.
    pub fn abandon(&mut self) {
        self.current = None;
    }

    /// The client that keeps it waiting, after [`Published::Full`], where that client has taken nothing for a
    /// moment.
    pub fn standstill(&self) -> Option<Arc<Standstill>> {
        self.current.as_ref()?.full.as_ref()?.standstill()
    }
}

impl Router {
    /// Publishes a message from inside the node: a Kafka consumer, an API call, a will.
    ///
    /// With a hand-over each sink and each delivery keeps a clone of it until its part is done, and one
    /// without room is waited for ([`Published::Full`]). Without one no receiver is waited for: sinks and
    /// queues drop by their policy, and count it.
    ///
    /// A topic that is not a valid topic name reaches no receiver and is counted as `dropped_invalid_topic`.
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
                    full: None,
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

    /// Puts a client's publication into `outbox` for the sessions that take it, and keeps it where it is to
    /// be retained; `publisher` is the client's own session. True where there is a receiver.
    ///
    /// Waits for no receiver: a message that a queue has no room for is dropped by its policy.
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
        current.full = None;
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
                Offered::Full(room) => {
                    current.full = Some(subscriber.inbox.clone());
                    return Some(room);
                }
            }
            current.matched += 1;
            current.next_subscriber += 1;
        }
        while let Some(group) = current.route.groups.get(current.next_group) {
            if let Some((inbox, room)) = self.offer_to_one(group, message, publication, hand_over, wakes) {
                current.full = Some(inbox);
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
    /// and has room. `Some`: it must be handed over, which has not been done.
    fn offer_to_one(
        &self,
        route: &RouteGroup,
        message: &Message<'_>,
        publication: &Arc<Publication>,
        hand_over: Option<&Arc<HandOver>>,
        wakes: &mut WakeList,
    ) -> Option<(Arc<Inbox>, Room)> {
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
                    full.get_or_insert((member.inbox.clone(), room));
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

/// A sink's part of a hand-over.
struct SinkPart {
    hand_over: Mutex<Option<Arc<HandOver>>>,
}

impl SinkPart {
    fn ticket(hand_over: &Arc<HandOver>) -> Ticket {
        Ticket::new(Arc::new(Self { hand_over: Mutex::new(Some(hand_over.clone())) }), 0)
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
