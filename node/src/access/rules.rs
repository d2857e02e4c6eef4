//! Authorization rules: who may publish and subscribe what.
//!
//! The first rule that fits decides, in the order they are written; where none does, `no_match` decides.
//!
//! Invariants:
//! * A subscription is allowed only by a rule that covers all of it, and refused by a deny rule that overlaps
//!   with it: no filter reaches a topic that the rules keep from the client.
//! * What a client calls itself never widens a rule: where its client id or user name holds `+`, `#` or `/`,
//!   or would begin a filter with `$`, an allow rule with that placeholder is not for it.
//! * A rule set never changes. A reload makes another one.

use std::net::IpAddr;

use causeway_protocol::mqtt::{QoS, topic};
use hashbrown::HashMap;

use super::filters::{covers, overlap};

/// Verdict of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Permission {
    /// It may be done.
    #[default]
    Allow,
    /// It may not.
    Deny,
}

/// Action that a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// PUBLISH, and the will.
    Publish,
    /// SUBSCRIBE.
    Subscribe,
    /// Both.
    All,
}

/// Addresses `address/length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    length: u8,
}

impl Network {
    /// Reads `192.168.1.0/24`, `10.0.0.7` or the same for IPv6.
    pub fn read(text: &str) -> Result<Self, String> {
        const RIGHT: &str =
            "write an address such as 10.0.0.7, or a network such as 192.168.1.0/24 or fd00::/8";
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.trim().parse().map_err(|_| format!("not an address; {RIGHT}"))?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            None => bits,
            Some(length) => length
                .parse()
                .ok()
                .filter(|length| *length <= bits)
                .ok_or_else(|| format!("the length of the network is not in 0 to {bits}; {RIGHT}"))?,
        };
        let network = Self { address, length };
        if network.masked(address) != address {
            return Err(format!(
                "the address has bits beyond the length of the network; did you mean {}/{length}?",
                network.masked(address)
            ));
        }
        Ok(network)
    }

    fn masked(self, address: IpAddr) -> IpAddr {
        match address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.length)).unwrap_or(0);
                IpAddr::from((address.to_bits() & mask).to_be_bytes())
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.length)).unwrap_or(0);
                IpAddr::from((address.to_bits() & mask).to_be_bytes())
            }
        }
    }

    /// Whether an address is one of these. An IPv4 address that came over an IPv6 socket counts as what it
    /// is.
    pub fn contains(self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && self.masked(address) == self.address
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bits = if self.address.is_ipv4() { 32 } else { 128 };
        if self.length == bits {
            write!(f, "{}", self.address)
        } else {
            write!(f, "{}/{}", self.address, self.length)
        }
    }
}

/// One rule, as it is written. An empty list of names or addresses means: any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its verdict.
    pub permission: Permission,
    /// Its action.
    pub action: Action,
    /// User names.
    pub usernames: Vec<String>,
    /// Client ids.
    pub client_ids: Vec<String>,
    /// Where clients come from.
    pub networks: Vec<Network>,
    /// Names of listeners.
    pub listeners: Vec<String>,
    /// Topic filters, see [`TopicPattern`]. Empty: every topic.
    pub topics: Vec<TopicPattern>,
    /// QoS levels of publications and subscriptions; bit n is QoS n.
    pub qos: u8,
    /// Only publications with this retain flag.
    pub retain: Option<bool>,
}

/// Every QoS level.
pub const ANY_QOS: u8 = 0b111;

impl Rule {
    /// A rule for all clients, every topic and both actions.
    pub fn new(permission: Permission) -> Self {
        Self {
            permission,
            action: Action::All,
            usernames: Vec::new(),
            client_ids: Vec::new(),
            networks: Vec::new(),
            listeners: Vec::new(),
            topics: Vec::new(),
            qos: ANY_QOS,
            retain: None,
        }
    }

    fn is_for(&self, who: &Who<'_>) -> bool {
        let any = |names: &[String], name: Option<&str>| {
            names.is_empty() || name.is_some_and(|name| names.iter().any(|known| known == name))
        };
        any(&self.usernames, who.username)
            && any(&self.client_ids, Some(who.client_id))
            && any(&self.listeners, Some(who.listener))
            && (self.networks.is_empty()
                || who
                    .address
                    .is_some_and(|address| self.networks.iter().any(|network| network.contains(address))))
    }

    /// Publications that it is about.
    fn publications(&self) -> Allowed {
        if self.action == Action::Subscribe {
            return Allowed::NOTHING;
        }
        let plain = if self.retain == Some(true) { 0 } else { self.qos & ANY_QOS };
        let retained = if self.retain == Some(false) { 0 } else { self.qos & ANY_QOS };
        Allowed(plain | retained << 3)
    }
}

const CLIENT_ID: &str = "${clientid}";
const USERNAME: &str = "${username}";

/// A topic filter of a rule: with `${clientid}` and `${username}`, or after `eq ` taken by the letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicPattern {
    /// The filter.
    text: Box<str>,
    literal: bool,
    placeholders: bool,
}

impl TopicPattern {
    /// Reads `t/#`, `t/${clientid}/+` or `eq t/#`.
    pub fn read(text: &str) -> Result<Self, String> {
        let (filter, literal) = match text.strip_prefix("eq ") {
            Some(filter) => (filter.trim_start(), true),
            None => (text, false),
        };
        let plain = filter.replace(CLIENT_ID, "x").replace(USERNAME, "x");
        if let Some(at) = plain.find("${") {
            let name = plain.get(at..).unwrap_or_default();
            let name = name.split_inclusive('}').next().unwrap_or(name);
            return Err(format!(
                "the placeholder {name} is not known here; allowed: {CLIENT_ID}, {USERNAME}"
            ));
        }
        topic::validate_topic_filter(&plain, u16::MAX).map_err(|error| error.to_string())?;
        if topic::is_shared(filter) {
            return Err("a rule names the filter behind $share/NAME/, without that prefix".into());
        }
        let placeholders = plain != filter;
        Ok(Self { text: filter.into(), literal, placeholders })
    }

    /// The filter for one client. Without a value that may stand there an allow rule has none; a deny rule
    /// takes the value by the letter, which can only refuse more.
    fn resolve<'t>(&'t self, who: &Who<'_>, permission: Permission) -> Option<std::borrow::Cow<'t, str>> {
        if !self.placeholders {
            return Some((&*self.text).into());
        }
        let mut filter = String::with_capacity(self.text.len() + who.client_id.len());
        let mut rest = &*self.text;
        while let Some(at) = rest.find("${") {
            let (before, placeholder) = rest.split_at_checked(at)?;
            filter.push_str(before);
            let (value, behind) = if let Some(behind) = placeholder.strip_prefix(CLIENT_ID) {
                (who.client_id, behind)
            } else {
                (who.username?, placeholder.strip_prefix(USERNAME)?)
            };
            let harmful = value.is_empty()
                || value.contains(['+', '#', '/'])
                || (filter.is_empty() && value.starts_with('$'));
            if permission == Permission::Allow && harmful {
                return None;
            }
            filter.push_str(value);
            rest = behind;
        }
        filter.push_str(rest);
        Some(filter.into())
    }

    fn fits_topic(&self, who: &Who<'_>, permission: Permission, topic: &str) -> bool {
        self.resolve(who, permission)
            .is_some_and(|filter| if self.literal { filter == topic } else { topic::matches(&filter, topic) })
    }

    fn fits_filter(&self, who: &Who<'_>, permission: Permission, wanted: &str) -> bool {
        self.resolve(who, permission).is_some_and(|filter| match (self.literal, permission) {
            (true, _) => filter == wanted,
            (false, Permission::Allow) => covers(&filter, wanted),
            (false, Permission::Deny) => overlap(&filter, wanted),
        })
    }
}

impl std::fmt::Display for TopicPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", if self.literal { "eq " } else { "" }, self.text)
    }
}

/// The client that a rule is asked about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Who<'a> {
    pub(super) client_id: &'a str,
    pub(super) username: Option<&'a str>,
    pub(super) address: Option<IpAddr>,
    pub(super) listener: &'a str,
}

/// Which publications to one topic are allowed, by QoS and retain flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed(u8);

impl Allowed {
    /// Every publication.
    pub const ALL: Self = Self(0b11_1111);
    /// None.
    pub(crate) const NOTHING: Self = Self(0);

    /// Whether a publication with this QoS and retain flag is.
    #[inline]
    pub fn contains(self, qos: QoS, retain: bool) -> bool {
        self.0 >> (qos as u8 + if retain { 3 } else { 0 }) & 1 != 0
    }
}

/// Compiled rules.
#[derive(Debug, Default)]
pub(super) struct RuleSet {
    rules: Box<[Rule]>,
    /// Rules that name users, those that name client ids and no users, and the others; by position.
    by_username: HashMap<Box<str>, Vec<u32>>,
    by_client_id: HashMap<Box<str>, Vec<u32>>,
    general: Vec<u32>,
}

impl RuleSet {
    pub(super) fn new(rules: Vec<Rule>) -> Self {
        let mut set = Self { rules: rules.into_boxed_slice(), ..Self::default() };
        for (at, rule) in (0..).zip(&set.rules) {
            let (index, names) = if !rule.usernames.is_empty() {
                (&mut set.by_username, &rule.usernames)
            } else if !rule.client_ids.is_empty() {
                (&mut set.by_client_id, &rule.client_ids)
            } else {
                set.general.push(at);
                continue;
            };
            for name in names {
                let places = index.entry(name.as_str().into()).or_default();
                if places.last() != Some(&at) {
                    places.push(at);
                }
            }
        }
        set
    }

    /// The rules for a client, in order.
    fn rules_for<'s>(&'s self, who: &Who<'s>) -> impl Iterator<Item = &'s Rule> {
        let places = |index: &'s HashMap<Box<str>, Vec<u32>>, name: &str| {
            index.get(name).map_or(&[][..], Vec::as_slice)
        };
        let mut heads = [
            &*self.general,
            who.username.map_or(&[][..], |name| places(&self.by_username, name)),
            places(&self.by_client_id, who.client_id),
        ];
        let who = *who;
        std::iter::from_fn(move || {
            let next =
                heads.iter_mut().filter(|head| !head.is_empty()).min_by_key(|head| head.first().copied())?;
            let (first, rest) = next.split_first()?;
            *next = rest;
            self.rules.get(*first as usize)
        })
        .filter(move |rule| rule.is_for(&who))
    }

    /// Decides on a client's publications to `topic`, as far as that is open.
    pub(super) fn publish(&self, who: &Who<'_>, topic: &str, decided: &mut Decided) {
        for rule in self.rules_for(who) {
            if decided.open == 0 {
                break;
            }
            let decides = rule.publications().0 & decided.open;
            let fits = |pattern: &TopicPattern| pattern.fits_topic(who, rule.permission, topic);
            if decides == 0 || !(rule.topics.is_empty() || rule.topics.iter().any(fits)) {
                continue;
            }
            if rule.permission == Permission::Allow {
                decided.allowed |= decides;
            }
            decided.open &= !decides;
        }
    }

    /// Whether a client may subscribe to `filter`, which is without its `$share/NAME/`; `None` where no rule
    /// says so.
    pub(super) fn subscribe(&self, who: &Who<'_>, filter: &str, qos: QoS) -> Option<Permission> {
        let mut rules = self.rules_for(who);
        let rule = rules.find(|rule| {
            let fits = |pattern: &TopicPattern| pattern.fits_filter(who, rule.permission, filter);
            rule.action != Action::Publish
                && rule.qos >> (qos as u8) & 1 != 0
                && (rule.topics.is_empty() || rule.topics.iter().any(fits))
        });
        rule.map(|rule| rule.permission)
    }
}

/// Decisions of rules about the publications to one topic, and what is still open.
pub(super) struct Decided {
    allowed: u8,
    open: u8,
}

impl Decided {
    pub(super) fn nothing() -> Self {
        Self { allowed: 0, open: Allowed::ALL.0 }
    }

    /// With what holds where no rule fits.
    pub(super) fn or(self, no_match: Permission) -> Allowed {
        match no_match {
            Permission::Allow => Allowed(self.allowed | self.open),
            Permission::Deny => Allowed(self.allowed),
        }
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
