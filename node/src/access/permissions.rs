//! Rights of one client: a pointer that is shared by all clients of a listener.
//!
//! Nothing is compiled per client. A question is answered from the rules as they are now, when a route is
//! looked up or a filter is subscribed; the answer for a topic is kept beside its route.

use std::sync::Arc;

use arc_swap::ArcSwap;
use causeway_protocol::mqtt::{QoS, topic};

use super::rules::{Allowed, Decided, Permission, RuleSet, Who};
use crate::flow::Origin;

/// The rules in force.
pub(super) struct Rules {
    pub(super) current: ArcSwap<RuleSet>,
    pub(super) no_match: Permission,
}

/// State that clients of one kind share.
pub(super) struct Standing {
    pub(super) rules: Arc<Rules>,
    pub(super) listener: Arc<str>,
    /// Rules of the client's own token, asked first.
    pub(super) token: Option<TokenRules>,
}

/// Rules that a token brought.
pub(super) struct TokenRules {
    pub(super) rules: RuleSet,
    /// They are all there is: what they do not allow is refused.
    pub(super) alone: bool,
}

/// Rights of one client. The default permits everything.
#[derive(Clone, Default)]
pub struct Permissions(pub(super) Option<Arc<Standing>>);

impl Permissions {
    /// Whether everything is permitted, whatever rules there are.
    pub fn are_all(&self) -> bool {
        self.0.is_none()
    }

    /// Verdict on the client's publications to `topic`.
    pub fn publish(&self, origin: &Origin, topic: &str) -> Allowed {
        let Some(standing) = &self.0 else { return Allowed::ALL };
        let who = standing.who(origin);
        let mut decided = Decided::nothing();
        if let Some(token) = &standing.token {
            token.rules.publish(&who, topic, &mut decided);
            if token.alone {
                return decided.or(Permission::Deny);
            }
        }
        standing.rules.current.load().publish(&who, topic, &mut decided);
        decided.or(standing.rules.no_match)
    }

    /// Whether the client may subscribe to `filter` with `qos`; a shared subscription is judged by its
    /// filter.
    pub fn may_subscribe(&self, origin: &Origin, filter: &str, qos: QoS) -> bool {
        let Some(standing) = &self.0 else { return true };
        let who = standing.who(origin);
        let filter = topic::parse_shared(filter).map_or(filter, |(_, filter)| filter);
        let of_token = standing.token.as_ref().and_then(|token| {
            let verdict = token.rules.subscribe(&who, filter, qos);
            verdict.or(token.alone.then_some(Permission::Deny))
        });
        let verdict = of_token.or_else(|| standing.rules.current.load().subscribe(&who, filter, qos));
        verdict.unwrap_or(standing.rules.no_match) == Permission::Allow
    }
}

impl Standing {
    fn who<'a>(&'a self, origin: &'a Origin) -> Who<'a> {
        Who {
            client_id: &origin.client_id,
            username: origin.username.as_deref(),
            address: origin.peer.map(|peer| peer.ip()),
            listener: &self.listener,
        }
    }
}
