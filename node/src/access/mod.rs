//! Who may connect, and what they may do then.
//!
//! ```text
//! CONNECT -> Access::authenticate -> password, token, certificate, SCRAM -> Permissions -> PUBLISH, SUBSCRIBE
//!                  |                        |
//!                bans                    checks (bounded, remembered)
//! ```
//!
//! The MQTT front asks [`Access`] once a CONNECT and gets [`Permissions`]: one pointer, nothing compiled for
//! the client. Verdicts on topics are kept by the publisher beside its routes.
//!
//! Invariants:
//! * What is not known fails: an error in a backend refuses, it never lets in.
//! * A failure does not tell which part was wrong, and an unknown user costs what a wrong password costs.
//! * No secret reaches a log, an error text or an answer.

mod authenticator;
mod bans;
mod checks;
mod exchange;
mod files;
mod filters;
mod jwt;
mod options;
mod password_file;
pub mod passwords;
mod permissions;
mod revoked;
pub mod rules;
mod scram;
mod start;
mod users;

use std::{
    fmt,
    future::Future,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use authenticator::Authenticator;
pub use bans::{Ban, Limits as BanLimits};
use bans::{Bans, Consequence};
use causeway_protocol::mqtt::ReasonCode;
pub use exchange::{Exchange, Step};
use files::Watched;
use hashbrown::HashMap;
pub use jsonwebtoken::Algorithm;
pub use jwt::{Field as TokenField, JwtOptions, KeySource};
pub use options::{BackendOptions, CheckOptions, Options, RulesFile};
use parking_lot::RwLock;
pub use permissions::Permissions;
use permissions::{Rules, Standing, TokenRules};
use revoked::Revoked;
use rules::RuleSet;
pub use rules::{Allowed, Permission, Rule};
pub use scram::SCRAM_SHA_256;
pub use start::{Error, USERS_FILE, UserError, check};
use tokio::time::Instant;
pub use users::{UserRow, UsersError};

/// Identity that a CONNECT claims, and knowledge about its connection.
#[derive(Clone, Copy)]
pub struct Credentials<'a> {
    /// Client id, or the one that was assigned.
    pub client_id: &'a str,
    /// User name.
    pub username: Option<&'a str>,
    /// Password.
    pub password: Option<&'a [u8]>,
    /// Address of the client.
    pub peer: SocketAddr,
    /// Name of the listener.
    pub listener: &'a str,
    /// The client's certificate, where it was verified.
    pub certificate: Option<CertificateNames<'a>>,
}

impl fmt::Debug for Credentials<'_> {
    /// Without the password, and without the user name, which may be a token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client_id, peer, .. } = self;
        f.debug_struct("Credentials")
            .field("client_id", client_id)
            .field("peer", peer)
            .finish_non_exhaustive()
    }
}

/// The names in a verified client certificate.
#[derive(Debug, Clone, Copy)]
pub struct CertificateNames<'a> {
    /// Common name of the subject.
    pub common_name: Option<&'a str>,
    /// The whole subject.
    pub subject: &'a str,
}

/// A client that may come in.
#[derive(Default)]
pub struct Admitted {
    /// Its rights.
    pub permissions: Permissions,
    /// Its user name where it is not the one of the CONNECT: `Some(None)` for none.
    pub username: Option<Option<Box<str>>>,
    /// When it has to go.
    pub expires: Option<Instant>,
}

/// A client that may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Reason code for the client.
    pub reason: ReasonCode,
    /// How long the answer waits.
    pub delay: Duration,
}

impl Refusal {
    fn at_once(reason: ReasonCode) -> Self {
        Self { reason, delay: Duration::ZERO }
    }
}

/// The end of an authentication.
pub type Verdict = Result<Admitted, Refusal>;

/// An authentication under way. Dropping it gives its place to others.
pub type Pending = Pin<Box<dyn Future<Output = Verdict> + Send>>;

/// The answer to a CONNECT.
pub enum Answer {
    /// It is clear already.
    Now(Verdict),
    /// It takes a while.
    Later(Pending),
}

/// Consequence of a publication or subscription that is not allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DenyAction {
    /// It is not done, and an MQTT 5 client is told so; an MQTT 3 client is acknowledged.
    #[default]
    Ignore,
    /// The connection is closed.
    Disconnect,
}

type Hook = Box<dyn Fn() + Send + Sync>;
type UserHook = Box<dyn Fn(&str) + Send + Sync>;

/// Rights of clients.
#[derive(Debug, Clone, Default)]
pub struct Authorization {
    /// The rules; `None`: everything is allowed to all clients, and nothing is asked.
    pub rules: Option<Vec<Rule>>,
    /// Verdict where no rule fits.
    pub no_match: Permission,
    /// Consequence of a publication or subscription that is not allowed.
    pub deny_action: DenyAction,
}

/// Authentication and authorization of a node.
pub struct Access {
    authenticator: Authenticator,
    bans: Bans,
    rules: Option<Arc<Rules>>,
    /// The rules of the configuration, which those of the file come behind.
    configured: Vec<Rule>,
    /// One a listener.
    standings: RwLock<HashMap<Box<str>, Permissions>>,
    deny_action: DenyAction,
    on_reload: RwLock<Vec<Hook>>,
    on_revoke: RwLock<Vec<UserHook>>,
    revoked: Revoked,
    watched: Vec<Watched>,
    reload_interval: Duration,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Access")
    }
}

impl Access {
    /// All clients may connect and do everything.
    pub fn open() -> Arc<Self> {
        Self::with_rules(Authorization::default())
    }

    /// All clients may connect and do what the rules allow.
    pub fn with_rules(authorization: Authorization) -> Arc<Self> {
        let Authorization { rules, no_match, deny_action } = authorization;
        let rules = rules
            .map(|rules| Arc::new(Rules { current: ArcSwap::from_pointee(RuleSet::new(rules)), no_match }));
        Self::bare(rules, deny_action)
    }

    /// Rights of clients of a listener.
    fn permissions(&self, listener: &str) -> Permissions {
        let Some(rules) = &self.rules else { return Permissions::default() };
        if let Some(known) = self.standings.read().get(listener) {
            return known.clone();
        }
        let standing = Standing { rules: rules.clone(), listener: listener.into(), token: None };
        let permissions = Permissions(Some(Arc::new(standing)));
        self.standings.write().entry(listener.into()).or_insert(permissions).clone()
    }

    /// Rights of a client with a token that has rules.
    fn permissions_of_token(&self, listener: &str, token: TokenRules) -> Permissions {
        let rules = self
            .rules
            .clone()
            .unwrap_or_else(|| Arc::new(Rules { current: ArcSwap::default(), no_match: Permission::Allow }));
        Permissions(Some(Arc::new(Standing { rules, listener: listener.into(), token: Some(token) })))
    }

    /// Puts other rules in force, for publications from now on and new subscriptions.
    pub fn replace_rules(&self, rules: Vec<Rule>) {
        if let Some(known) = &self.rules {
            known.current.store(Arc::new(RuleSet::new(rules)));
            for hook in &*self.on_reload.read() {
                hook();
            }
        }
    }

    /// Whether connections from `address` are to be closed before anything is read.
    pub fn is_banned(&self, address: IpAddr) -> bool {
        self.bans.is_banned(address, Instant::now())
    }

    /// The refusal of a client from `address` that could not prove who it is.
    fn failed(&self, address: IpAddr, reason: ReasonCode) -> Refusal {
        match self.bans.failed(address, Instant::now()) {
            Consequence::Delay(delay) => Refusal { reason, delay },
            Consequence::Banned => Refusal::at_once(ReasonCode::Banned),
        }
    }

    /// Consequence of a publication or subscription that is not allowed.
    pub fn deny_action(&self) -> DenyAction {
        self.deny_action
    }

    /// Calls `hook` whenever rules have changed, so that verdicts that were kept are forgotten.
    pub fn on_reload(&self, hook: impl Fn() + Send + Sync + 'static) {
        self.on_reload.write().push(Box::new(hook));
    }

    /// Calls `hook` with the name of each user whose connections are to end: it was deleted, or has another
    /// password.
    pub fn on_revoke(&self, hook: impl Fn(&str) + Send + Sync + 'static) {
        self.on_revoke.write().push(Box::new(hook));
    }

    /// How often a user's rights were taken away so far; for [`Self::is_revoked_since`].
    pub fn revocations(&self) -> u64 {
        self.revoked.count()
    }

    /// Whether that happened to this user since there were `count` of them. Where that is forgotten, it did.
    pub fn is_revoked_since(&self, count: u64, user: &str) -> bool {
        self.revoked.since(count, user)
    }

    /// Ends the validity of what a user was let in by.
    fn revoke(&self, user: &str) {
        // First for those who are coming in, then for those who are in: no client slips through in between.
        self.revoked.add(user);
        for hook in &*self.on_revoke.read() {
            hook(user);
        }
    }

    /// The bans of now.
    pub fn bans(&self) -> Vec<Ban> {
        self.bans.list(Instant::now())
    }

    /// Ends the bans of one address or all, and forgets the failures; how many bans ended.
    pub fn clear_bans(&self, address: Option<IpAddr>) -> usize {
        self.bans.clear(address, Instant::now())
    }
}

#[cfg(test)]
mod tests;
