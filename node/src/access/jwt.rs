//! JSON Web Tokens (RFC 7519) as credentials.
//!
//! Invariants:
//! * A key decides which algorithms it may be used with, never the token: a token that names an algorithm of
//!   another family, or `none`, is refused before anything is computed (RFC 8725 3.1).
//! * Keys from a file are taken anew when it changes; a file that cannot be read changes nothing.
//! * No part of a token is logged.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use base64::{Engine, prelude::BASE64_STANDARD};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, Validation, jwk};
use serde_json::{Map, Value};

use super::{
    permissions::TokenRules,
    rules::{Action, Permission, Rule, RuleSet, TopicPattern},
};
use crate::{byte_order_mark, secret::Secret};

/// A longer token is refused unread.
const LONGEST: usize = 16 << 10;

/// Rules that a token may bring.
const MOST_RULES: usize = 256;

/// Source of the keys.
#[derive(Debug, Clone)]
pub enum KeySource {
    /// A shared secret.
    Shared {
        /// The secret, or `file://PATH`.
        secret: Secret,
        /// Whether it is written in Base64.
        base64: bool,
    },
    /// A file with a public key (PEM).
    Pem(PathBuf),
    /// A file with a JSON Web Key Set (RFC 7517).
    Jwks(PathBuf),
}

/// Field of CONNECT that holds the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// The password.
    Password,
    /// The user name; the user is then called by the claim `sub`.
    Username,
}

/// Settings of logins with JSON Web Tokens.
#[derive(Debug, Clone)]
pub struct JwtOptions {
    /// Field of CONNECT that holds the token.
    pub field: Field,
    /// Source of the keys.
    pub keys: KeySource,
    /// Narrows what the keys allow; empty: does not.
    pub algorithms: Vec<Algorithm>,
    /// Claims and the values they need, with `${clientid}` and `${username}`.
    pub verify_claims: Vec<(String, String)>,
    /// Tolerated difference of clocks.
    pub leeway: Duration,
    /// Whether a connection ends with its token.
    pub disconnect_after_expire: bool,
    /// The claim that holds rules.
    pub acl_claim: String,
}

struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    verifier: DecodingKey,
}

/// Verifier of JSON Web Tokens.
pub(super) struct Jwt {
    options: JwtOptions,
    keys: ArcSwap<Vec<Key>>,
    /// How often keys were taken.
    generation: AtomicU64,
}

/// The claims of a token.
pub(super) type Claims = Map<String, Value>;

/// Rights and end of a token.
pub(super) struct Grant {
    /// The subject.
    pub(super) subject: Option<Box<str>>,
    /// How long the connection may last.
    pub(super) lasts: Option<Duration>,
    /// Its own rules.
    pub(super) rules: Option<TokenRules>,
}

/// Why a token is refused: for the log of the operator, never for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("the token is malformed")]
    Malformed,
    #[error("the token's algorithm is not known or not allowed")]
    Algorithm,
    #[error("no key of this node fits the token's key id and algorithm")]
    NoKey,
    #[error("the token's signature is wrong")]
    Signature,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    TooEarly,
    #[error("the claim {0:?} is not what it has to be")]
    Claim(String),
}

/// Whether a text has the form of a token: then its verdict counts.
pub(super) fn looks_like_a_token(text: &str) -> bool {
    let mut parts = text.split('.');
    let base64 =
        |part: &str| part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    let [Some(header), Some(claims), Some(signature), None] =
        [parts.next(), parts.next(), parts.next(), parts.next()]
    else {
        return false;
    };
    // A header is JSON: it begins with a brace.
    header.starts_with("ey") && !claims.is_empty() && [header, claims, signature].into_iter().all(base64)
}

fn algorithms_of(key: &DecodingKey) -> Vec<Algorithm> {
    match key.family() {
        AlgorithmFamily::Ec => match key.try_get_as_bytes().map(<[u8]>::len) {
            Ok(65) => vec![Algorithm::ES256],
            Ok(97) => vec![Algorithm::ES384],
            _ => Vec::new(),
        },
        AlgorithmFamily::Ed => Vec::new(),
        family => family.algorithms().to_vec(),
    }
}

fn read_pem(text: &[u8]) -> Result<Key, String> {
    let key = DecodingKey::from_rsa_pem(text).or_else(|_| DecodingKey::from_ec_pem(text));
    let key = key.map_err(|_| {
        "not a public key of RSA or of the curves P-256 or P-384 in PEM; such as `openssl pkey -pubout` prints".to_owned()
    })?;
    let algorithms = algorithms_of(&key);
    if algorithms.is_empty() {
        return Err("a public key of a curve that is not supported; P-256 and P-384 are".into());
    }
    Ok(Key { id: None, algorithms, verifier: key })
}

fn read_jwks(text: &[u8], name: &Path) -> Result<Vec<Key>, String> {
    let set: Value = serde_json::from_slice(text).map_err(|error| format!("not JSON: {error}"))?;
    let keys =
        set.get("keys").and_then(Value::as_array).ok_or("no JSON Web Key Set: it has no list `keys`")?;
    let mut known = Vec::new();
    for (at, key) in keys.iter().enumerate() {
        match read_jwk(key) {
            Ok(key) => known.push(key),
            Err(why) => {
                tracing::warn!(file = %name.display(), key = at, why, "a key of the JSON Web Key Set is left out");
            }
        }
    }
    if known.is_empty() {
        Err("no key in it can be used: RSA, EC (P-256, P-384) and oct keys can".into())
    } else {
        Ok(known)
    }
}

fn read_jwk(value: &Value) -> Result<Key, &'static str> {
    if value.get("use").and_then(Value::as_str).is_some_and(|purpose| purpose != "sig") {
        return Err("it is not for signatures");
    }
    let key: jwk::Jwk =
        serde_json::from_value(value.clone()).map_err(|_| "it is malformed or of another type")?;
    let decoding = DecodingKey::from_jwk(&key).map_err(|_| "it is malformed or of another type")?;
    let mut algorithms = match (&key.algorithm, algorithms_of(&decoding)) {
        (jwk::AlgorithmParameters::EllipticCurve(parameters), _) => match parameters.curve {
            jwk::EllipticCurve::P256 => vec![Algorithm::ES256],
            jwk::EllipticCurve::P384 => vec![Algorithm::ES384],
            _ => Vec::new(),
        },
        (_, algorithms) => algorithms,
    };
    if let Some(only) = value.get("alg").and_then(Value::as_str) {
        algorithms.retain(|algorithm| only.parse() == Ok(*algorithm));
    }
    if algorithms.is_empty() {
        return Err("its algorithm is not supported");
    }
    Ok(Key { id: key.common.key_id, algorithms, verifier: decoding })
}

impl KeySource {
    /// The file, if it is one.
    pub(super) fn path(&self) -> Option<&Path> {
        match self {
            Self::Shared { .. } => None,
            Self::Pem(path) | Self::Jwks(path) => Some(path),
        }
    }

    fn load(&self) -> Result<Vec<Key>, String> {
        let read = |path: &Path| {
            std::fs::read(path).map(byte_order_mark::skip_bytes).map_err(|error| error.to_string())
        };
        match self {
            Self::Shared { secret, base64 } => {
                let text = secret.resolve().map_err(|error| error.to_string())?;
                let text = text.reveal();
                let bytes = if *base64 {
                    BASE64_STANDARD.decode(text.trim()).map_err(|_| "the secret is no Base64".to_owned())?
                } else {
                    text.as_bytes().to_vec()
                };
                if bytes.is_empty() {
                    return Err("the secret is empty".into());
                }
                let key = DecodingKey::from_secret(&bytes);
                Ok(vec![Key { id: None, algorithms: algorithms_of(&key), verifier: key }])
            }
            Self::Pem(path) => Ok(vec![read_pem(&read(path)?)?]),
            Self::Jwks(path) => read_jwks(&read(path)?, path),
        }
    }
}

/// The text that a claim must be, for one client. One walk: what a client calls itself is never looked at for
/// placeholders. `None` where a user name is wanted and there is none.
fn expand(wanted: &str, client_id: &str, username: Option<&str>) -> Option<String> {
    const CLIENT_ID: &str = "${clientid}";
    const USERNAME: &str = "${username}";
    let mut text = String::with_capacity(wanted.len() + client_id.len());
    let mut rest = wanted;
    while let Some((before, placeholder)) = rest.find("${").and_then(|at| rest.split_at_checked(at)) {
        text.push_str(before);
        rest = if let Some(behind) = placeholder.strip_prefix(CLIENT_ID) {
            text.push_str(client_id);
            behind
        } else if let Some(behind) = placeholder.strip_prefix(USERNAME) {
            text.push_str(username?);
            behind
        } else {
            text.push_str("${");
            placeholder.strip_prefix("${")?
        };
    }
    text.push_str(rest);
    Some(text)
}

impl Jwt {
    pub(super) fn new(options: JwtOptions) -> Result<Self, String> {
        let keys = ArcSwap::from_pointee(options.keys.load()?);
        Ok(Self { options, keys, generation: AtomicU64::new(0) })
    }

    pub(super) fn options(&self) -> &JwtOptions {
        &self.options
    }

    /// Takes the keys anew.
    pub(super) fn reload(&self) -> Result<(), String> {
        self.keys.store(std::sync::Arc::new(self.options.keys.load()?));
        // Tokens verified with older keys are verified again.
        self.generation.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// A number that changes with the keys.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether the signature of a token costs so much that it is not to be checked in passing: RSA and
    /// elliptic curves, where there is a key for them.
    pub(super) fn costs(&self, token: &str) -> bool {
        let Some(algorithm) = header(token).and_then(|header| algorithm(&header)) else { return false };
        !AlgorithmFamily::Hmac.algorithms().contains(&algorithm)
            && self.keys.load().iter().any(|key| key.algorithms.contains(&algorithm))
    }

    /// Judges the claims of a token whose signature is right.
    pub(super) fn judge(
        &self,
        claims: &Claims,
        client_id: &str,
        username: Option<&str>,
        now: SystemTime,
    ) -> Result<Grant, Refused> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let leeway = self.options.leeway.as_secs_f64();
        let time = |name: &str| match claims.get(name) {
            None => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or_else(|| Refused::Claim(name.into())),
        };
        if time("nbf")?.is_some_and(|start| now + leeway < start) {
            return Err(Refused::TooEarly);
        }
        let expires = time("exp")?;
        if expires.is_some_and(|end| now >= end + leeway) {
            return Err(Refused::Expired);
        }
        for (name, wanted) in &self.options.verify_claims {
            let wrong = || Refused::Claim(name.clone());
            let wanted = expand(wanted, client_id, username).ok_or_else(wrong)?;
            let is = |value: &Value| match value {
                Value::String(text) => *text == wanted,
                Value::Number(number) => number.to_string() == wanted,
                Value::Bool(flag) => flag.to_string() == wanted,
                _ => false,
            };
            let fits = match claims.get(name) {
                Some(Value::Array(values)) => values.iter().any(is),
                Some(value) => is(value),
                None => false,
            };
            if !fits {
                return Err(wrong());
            }
        }
        let acl = &self.options.acl_claim;
        let rules = claims.get(acl).map(|value| read_rules(value).ok_or_else(|| Refused::Claim(acl.clone())));
        let lasts = expires.filter(|_| self.options.disconnect_after_expire);
        Ok(Grant {
            subject: claims.get("sub").and_then(Value::as_str).map(Box::from),
            lasts: lasts.and_then(|end| Duration::try_from_secs_f64(end + leeway - now).ok()),
            rules: rules.transpose()?,
        })
    }

    /// The claims of a token if its signature is right.
    pub(super) fn verify(&self, token: &str) -> Result<Claims, Refused> {
        let header = header(token).ok_or(Refused::Malformed)?;
        // A header that is said to be critical has to be understood, and nothing of it is (RFC 7515 4.1.11).
        if header.contains_key("crit") {
            return Err(Refused::Malformed);
        }
        let algorithm = algorithm(&header).ok_or(Refused::Algorithm)?;
        let allowed = &self.options.algorithms;
        if !allowed.is_empty() && !allowed.contains(&algorithm) {
            return Err(Refused::Algorithm);
        }
        let id = header.get("kid").and_then(Value::as_str);
        let keys = self.keys.load();
        let fits = |key: &&Key| {
            key.algorithms.contains(&algorithm)
                && id.is_none_or(|id| key.id.as_deref().is_none_or(|known| known == id))
        };
        let mut validation = Validation::new(algorithm);
        // Times and claims are looked at above.
        (validation.validate_exp, validation.validate_aud) = (false, false);
        validation.required_spec_claims.clear();
        let mut refused = Refused::NoKey;
        for key in keys.iter().filter(fits) {
            match jsonwebtoken::decode::<Map<String, Value>>(token, &key.verifier, &validation) {
                Ok(token) => return Ok(token.claims),
                Err(error) => {
                    refused = match error.kind() {
                        jsonwebtoken::errors::ErrorKind::InvalidSignature => Refused::Signature,
                        _ => Refused::Malformed,
                    }
                }
            }
        }
        Err(refused)
    }
}

/// A part of a token, by its place.
fn part(token: &str, place: usize) -> Option<Map<String, Value>> {
    let part = Some(token).filter(|token| token.len() <= LONGEST)?.split('.').nth(place)?;
    let json = base64::prelude::BASE64_URL_SAFE_NO_PAD.decode(part).ok()?;
    serde_json::from_slice(&json).ok()
}

fn header(token: &str) -> Option<Map<String, Value>> {
    part(token, 0)
}

fn algorithm(header: &Map<String, Value>) -> Option<Algorithm> {
    header.get("alg")?.as_str()?.parse().ok()
}

/// The claims of a token, whatever its signature is.
pub(super) fn claims(token: &str) -> Option<Claims> {
    part(token, 1)
}

/// Rules of a token: `{"pub": [..], "sub": [..], "all": [..]}`, which is then all that is allowed, or a list
/// of `{"permission", "action", "topic", "qos", "retain"}` that goes before the node's own rules.
fn read_rules(value: &Value) -> Option<TokenRules> {
    let mut rules = Vec::new();
    let alone = match value {
        Value::Object(lists) => {
            for (name, topics) in lists {
                let action = match name.as_str() {
                    "pub" => Action::Publish,
                    "sub" => Action::Subscribe,
                    "all" => Action::All,
                    _ => return None,
                };
                let topics = read_topics(topics)?;
                // No topic at all is no rule, not one for every topic.
                if !topics.is_empty() {
                    rules.push(Rule { action, topics, ..Rule::new(Permission::Allow) });
                }
            }
            true
        }
        Value::Array(list) => {
            for entry in list {
                rules.push(read_rule(entry.as_object()?)?);
            }
            false
        }
        _ => return None,
    };
    (rules.len() <= MOST_RULES).then(|| TokenRules { rules: RuleSet::new(rules), alone })
}

fn read_topics(value: &Value) -> Option<Vec<TopicPattern>> {
    let read = |value: &Value| TopicPattern::read(value.as_str()?).ok();
    match value {
        Value::Array(topics) if topics.len() <= MOST_RULES => topics.iter().map(read).collect(),
        Value::String(_) => Some(vec![read(value)?]),
        _ => None,
    }
}

fn read_rule(entry: &Map<String, Value>) -> Option<Rule> {
    let permission = match entry.get("permission")?.as_str()? {
        "allow" => Permission::Allow,
        "deny" => Permission::Deny,
        _ => return None,
    };
    let mut rule = Rule::new(permission);
    for (name, value) in entry {
        match name.as_str() {
            "permission" => {}
            "action" => {
                rule.action = match value.as_str()? {
                    "publish" => Action::Publish,
                    "subscribe" => Action::Subscribe,
                    "all" => Action::All,
                    _ => return None,
                }
            }
            "topic" | "topics" => rule.topics = read_topics(value).filter(|topics| !topics.is_empty())?,
            "qos" => {
                let levels = value.as_array().map_or_else(|| vec![value], |levels| levels.iter().collect());
                rule.qos = 0;
                for level in levels {
                    rule.qos |= 1 << level.as_u64().filter(|level| *level <= 2)?;
                }
            }
            "retain" => {
                rule.retain = match value {
                    Value::Bool(retain) => Some(*retain),
                    Value::String(all) if all == "all" => None,
                    _ => return None,
                }
            }
            _ => return None,
        }
    }
    (!rule.topics.is_empty()).then_some(rule)
}

#[cfg(test)]
#[path = "jwt_tests.rs"]
mod tests;
