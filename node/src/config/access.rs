//! The sections `authentication` and `authorization`: who may connect, and what they may do then.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value as Json;

use super::Config;
use super::connection::not_empty;
use super::kind::{DefaultDoc, FieldDoc, Kind, Secrets};
use super::kind_numbers::{integer, millis, seconds};
use super::kind_values::{Choice, Parsed, boolean, choice, parsed, secret, text};
use super::section::{Section, choices, list, named, nested, section};
use super::tree::{Node, Object, Walk};
use crate::access::passwords::Cost;
use crate::access::rules::{self, Network, TopicPattern};
use crate::access::{self, BackendOptions};
use crate::secret::Secret;

section! {
    /// Who may connect.
    pub struct AuthenticationConfig {
        /// Whether a client without user name and password may connect. Unset: only where no backends are
        /// listed. Without backends a user name is taken as it is told.
        allow_anonymous: Option<bool> => boolean().optional();
        /// Backends that know the clients, asked in this order; the first one that knows a client decides.
        /// EMQX's spelling (`mechanism` and `backend`) is read, too, and so is a list in place of the whole
        /// section.
        backends: Vec<BackendConfig> => list(BackendKind).or(Vec::new());
        /// How passwords, and signatures of tokens, are checked.
        password_checks: PasswordChecksConfig => nested();
        /// Consequences of repeated failures to log in from one address.
        ban: BanConfig => nested();
        /// How often password files, key files and the file of rules are looked at for changes.
        reload_interval: Duration => seconds().within(Duration::from_secs(1)..=Duration::from_hours(1))
            .or(Duration::from_secs(5));
    }
}

impl AuthenticationConfig {
    /// Whether a client that says nothing about itself may connect.
    pub fn anonymous_is_allowed(&self) -> bool {
        self.allow_anonymous.unwrap_or(self.backends.is_empty())
    }
}

/// Kind of the whole section, which may be EMQX's list of authenticators.
pub(super) struct AuthenticationKind;

impl Kind for AuthenticationKind {
    type Out = AuthenticationConfig;

    fn read(&self, node: &Node<'_>, walk: &mut Walk) -> Option<AuthenticationConfig> {
        if node.value.as_list().is_none() {
            return nested().read(node, walk);
        }
        let backends = list(BackendKind).read(node, walk)?;
        let empty = Object { entries: Vec::new(), path: node.path.clone(), place: node.place };
        Some(AuthenticationConfig { backends, ..AuthenticationConfig::read_object(&empty, walk)? })
    }

    fn missing(&self, object: &Object<'_>, key: &str, walk: &mut Walk) -> Option<AuthenticationConfig> {
        nested().missing(object, key, walk)
    }

    fn json(&self, value: &AuthenticationConfig, secrets: Secrets) -> Json {
        value.to_json(secrets)
    }

    fn name(&self) -> String {
        "object".into()
    }

    fn docs(&self, key: &'static str, meaning: &str) -> Vec<FieldDoc> {
        nested::<AuthenticationConfig>().docs(key, meaning)
    }
}

section! {
    /// How passwords are checked, and the signatures of tokens with RSA and elliptic curves. A password takes
    /// about 20 ms of a core, by design.
    pub struct PasswordChecksConfig {
        /// Checks at one time; 0: half of the cores, at least one.
        max_concurrent: u16 => integer(0..=1024).or(0);
        /// Clients that wait for a check. One more is told that the server is busy (0x89).
        max_waiting: u32 => integer(0..=1_000_000).or(1000);
        /// How long a right password or token is remembered, as a keyed hash in memory, so that a client that
        /// comes back costs no new check. 0 remembers nothing.
        remember: Duration => seconds().within(Duration::ZERO..=Duration::from_hours(24)).or(Duration::from_mins(5));
    }
}

section! {
    /// Consequences of repeated failures to log in from one address (of IPv6: one /64).
    pub struct BanConfig {
        /// Failures within `window_time` that lead to a ban; 0 bans nobody. Count the devices that share an
        /// address, behind one router for example.
        max_failures: u32 => integer(0..=1_000_000).or(50);
        /// How long failures are added up.
        window_time: Duration => seconds().within(Duration::from_secs(1)..=Duration::from_hours(24))
            .or(Duration::from_mins(1));
        /// How long a ban lasts. Connections from the address are closed unread until then.
        ban_time: Duration => seconds().within(Duration::from_secs(1)..=Duration::from_hours(24))
            .or(Duration::from_mins(5));
        /// By how much each further failure is answered later, up to 5 s.
        delay: Duration => millis().within(Duration::ZERO..=Duration::from_secs(5)).or(Duration::from_millis(100));
    }
}

/// A backend that knows clients.
#[derive(Debug, Clone, PartialEq)]
pub enum BackendConfig {
    /// Users that `causeway ctl users` manages.
    BuiltInDatabase(BuiltInDatabaseConfig),
    /// A file of users and password hashes.
    PasswordFile(PasswordFileConfig),
    /// JSON Web Tokens.
    Jwt(Box<JwtConfig>),
    /// Certificates that were verified in the TLS handshake.
    ClientCertificate(ClientCertificateConfig),
}

section! {
    /// Users that `causeway ctl users` manages, in `users.redb` in the data directory.
    pub struct BuiltInDatabaseConfig {
        /// Whether MQTT 5 clients may log in with SCRAM-SHA-256, too. Users get what it needs when their
        /// password is set while this is on. It is easier to attack than argon2id, should the database be
        /// stolen.
        scram: bool => boolean().or(false);
        /// Iterations of PBKDF2 for SCRAM; the client computes them, too.
        scram_iterations: u32 => integer(4096..=10_000_000).or(100_000);
    }
    ignored { "user_id_type" "password_hash_algorithm" "enable" }
}

section! {
    /// A file with lines `USER:HASH`.
    pub struct PasswordFileConfig {
        /// Path of the file; read anew when it changes.
        path: PathBuf => path();
    }
}

choices! {
    /// Which field of CONNECT holds the token.
    pub enum TokenField {
        /// The password.
        Password = "password";
        /// The user name; the user is then called by the claim `sub`.
        Username = "username";
    }
}

choices! {
    /// An algorithm of JSON Web Signatures (RFC 7518 3.1).
    pub enum TokenAlgorithm {
        /// HMAC with SHA-256.
        Hs256 = "HS256";
        /// HMAC with SHA-384.
        Hs384 = "HS384";
        /// HMAC with SHA-512.
        Hs512 = "HS512";
        /// RSA PKCS #1 with SHA-256.
        Rs256 = "RS256";
        /// RSA PKCS #1 with SHA-384.
        Rs384 = "RS384";
        /// RSA PKCS #1 with SHA-512.
        Rs512 = "RS512";
        /// RSA PSS with SHA-256.
        Ps256 = "PS256";
        /// RSA PSS with SHA-384.
        Ps384 = "PS384";
        /// RSA PSS with SHA-512.
        Ps512 = "PS512";
        /// ECDSA on P-256.
        Es256 = "ES256";
        /// ECDSA on P-384.
        Es384 = "ES384";
    }
}

section! {
    /// JSON Web Tokens (RFC 7519). Exactly one of `secret`, `public_key` and `jwks_file` is given.
    pub struct JwtConfig {
        /// Which field of CONNECT holds the token.
        from: TokenField => choice().or(TokenField::Password);
        /// Shared secret, for HS256, HS384 and HS512.
        secret: Option<Secret> => secret().optional();
        /// Whether the secret is written in Base64.
        secret_base64_encoded: bool => boolean().or(false);
        /// File with a public key (PEM): RSA for RS* and PS*, P-256 for ES256, P-384 for ES384. Read anew
        /// when it changes.
        public_key: Option<PathBuf> => path().optional();
        /// File with a JSON Web Key Set; a token's `kid` chooses the key. Read anew when it changes.
        jwks_file: Option<PathBuf> => path().optional();
        /// Algorithms that are taken; empty: all that fit the keys.
        algorithms: Vec<TokenAlgorithm> => list(choice()).or(Vec::new());
        /// Claims that a token must have, with their values; `${clientid}` and `${username}` stand for those
        /// of the CONNECT. In a claim that is a list one entry has to fit.
        verify_claims: std::collections::BTreeMap<String, String> => named(text(), |_| Ok(()));
        /// How far clocks may be apart.
        leeway: Duration => seconds().within(Duration::ZERO..=Duration::from_hours(1)).or(Duration::from_secs(10));
        /// Whether a connection is closed (0xA0) when its token expires.
        disconnect_after_expire: bool => boolean().or(true);
        /// The claim that may hold rules for the client.
        acl_claim_name: String => text().check(|name| not_empty(name)).or("acl".into());
    }
    ignored { "algorithm" "use_jwks" "enable" }
    validate check_jwt;
}

choices! {
    /// Part of a certificate that becomes the user name.
    pub enum CertificateName {
        /// The common name of the subject.
        CommonName = "common_name" | "cn";
        /// The whole subject, such as `CN=meter-17,O=Example`.
        Subject = "subject" | "dn";
    }
}

section! {
    /// Certificates that were verified in the TLS handshake: the listener has to ask for them.
    pub struct ClientCertificateConfig {
        /// Part of the certificate that becomes the user name.
        username: CertificateName => choice().or(CertificateName::CommonName);
    }
}

/// Kind of a [`BackendConfig`]: an object that names its `type`.
struct BackendKind;

const TYPES: &str = "built_in_database, password_file, jwt, client_certificate";

/// EMQX's words for a backend.
fn emqx_type<'a>(object: &mut Object<'a>, node: &Node<'a>, walk: &mut Walk) -> Option<String> {
    let mechanism = object.take("mechanism")?;
    let backend = object.take("backend");
    match (mechanism.scalar(), backend.as_ref().and_then(Node::scalar)) {
        (Some("password_based"), Some("built_in_database")) => Some("built_in_database".into()),
        (Some("jwt"), None) => Some("jwt".into()),
        (Some("scram"), _) => walk.wrong(
            &mechanism,
            "SCRAM is a part of the user database here; write { type = built_in_database, scram = true }",
        ),
        _ => walk.wrong(node, format!("this pair of mechanism and backend is not supported; types: {TYPES}")),
    }
}

impl Kind for BackendKind {
    type Out = BackendConfig;

    fn read(&self, node: &Node<'_>, walk: &mut Walk) -> Option<BackendConfig> {
        let mut object = walk.object(node)?;
        let word = match object.take("type") {
            Some(word) => word.scalar().unwrap_or_default().to_owned(),
            None if object.get("mechanism").is_some() => emqx_type(&mut object, node, walk)?,
            None => return walk.wrong(node, format!("lacks its type; allowed: {TYPES}")),
        };
        match word.as_str() {
            "built_in_database" => Section::read_object(&object, walk).map(BackendConfig::BuiltInDatabase),
            "password_file" => Section::read_object(&object, walk).map(BackendConfig::PasswordFile),
            "jwt" => Section::read_object(&object, walk).map(|jwt| BackendConfig::Jwt(Box::new(jwt))),
            "client_certificate" => Section::read_object(&object, walk).map(BackendConfig::ClientCertificate),
            other => {
                let near = super::tree::nearest(other, TYPES.split(", "));
                let hint = near.map_or_else(String::new, |near| format!("; did you mean {near}?"));
                walk.wrong(node, format!("the type {other:?} is not known; allowed: {TYPES}{hint}"))
            }
        }
    }

    fn json(&self, value: &BackendConfig, secrets: Secrets) -> Json {
        let (name, mut json) = match value {
            BackendConfig::BuiltInDatabase(config) => ("built_in_database", config.to_json(secrets)),
            BackendConfig::PasswordFile(config) => ("password_file", config.to_json(secrets)),
            BackendConfig::Jwt(config) => ("jwt", config.to_json(secrets)),
            BackendConfig::ClientCertificate(config) => ("client_certificate", config.to_json(secrets)),
        };
        if let Some(fields) = json.as_object_mut() {
            fields.insert("type".into(), name.into());
        }
        json
    }

    fn name(&self) -> String {
        "object".into()
    }

    fn docs(&self, _: &'static str, _: &str) -> Vec<FieldDoc> {
        let all = [
            ("built_in_database", BuiltInDatabaseConfig::docs()),
            ("password_file", PasswordFileConfig::docs()),
            ("jwt", JwtConfig::docs()),
            ("client_certificate", ClientCertificateConfig::docs()),
        ];
        let word = FieldDoc {
            key: ".type".into(),
            kind: "word".into(),
            default: DefaultDoc::Required,
            allowed: TYPES.into(),
            meaning: "What kind of backend it is; the keys below are for the type they name.".into(),
        };
        let fields = all.into_iter().flat_map(|(name, docs)| {
            docs.into_iter().map(move |doc| FieldDoc {
                key: format!(".{}", doc.key),
                meaning: format!("With `{name}`: {}", doc.meaning),
                ..doc
            })
        });
        std::iter::once(word).chain(fields).collect()
    }
}

fn check_jwt(jwt: &JwtConfig, object: &Object<'_>, walk: &mut Walk) {
    let given = [jwt.secret.is_some(), jwt.public_key.is_some(), jwt.jwks_file.is_some()];
    if given.into_iter().filter(|given| *given).count() != 1 {
        walk.wrong_at::<()>(
            &object.path,
            object.place,
            "a token is checked with one of secret, public_key and jwks_file; give exactly one of them",
        );
    }
    let has = |placeholder: &str| jwt.verify_claims.values().any(|value| value.contains(placeholder));
    if jwt.from == TokenField::Username && has("${username}") {
        walk.wrong_under(
            object,
            &["verify_claims"],
            "with from = username the user name is the token itself; only ${clientid} can be asked for",
        );
    }
    if jwt.from == TokenField::Password && !has("${username}") && !has("${clientid}") {
        walk.warn_at(
            &object.path,
            object.place,
            "nothing ties a token to its client: whoever has one can take any client id and user name; \
             verify_claims { sub = \"${username}\" } ties them",
        );
    }
}

choices! {
    /// Verdict where no rule fits.
    pub enum NoMatch {
        /// It may be done.
        Allow = "allow";
        /// It may not.
        Deny = "deny";
    }
}

choices! {
    /// Consequence of a publication or subscription that is not allowed.
    pub enum DenyActionWord {
        /// It is not done. An MQTT 5 client is told (0x87), an MQTT 3 client is acknowledged.
        Ignore = "ignore";
        /// The connection is closed.
        Disconnect = "disconnect";
    }
}

section! {
    /// Rights of clients.
    pub struct AuthorizationConfig {
        /// Verdict where no rule fits.
        no_match: NoMatch => choice().or(NoMatch::Allow);
        /// Consequence of a publication or subscription that is not allowed.
        deny_action: DenyActionWord => choice().or(DenyActionWord::Ignore);
        /// Rules; the first one that fits decides.
        rules: Vec<RuleConfig> => list(nested()).or(Vec::new());
        /// File with further rules, as `rules = [ .. ]`; they come behind those above. Read anew when it
        /// changes.
        file: Option<PathBuf> => path().optional();
    }
    validate check_authorization;
}

fn check_authorization(authorization: &AuthorizationConfig, object: &Object<'_>, walk: &mut Walk) {
    let AuthorizationConfig { no_match, rules, file, .. } = authorization;
    if *no_match == NoMatch::Deny && rules.is_empty() && file.is_none() {
        walk.warn_at(
            &object.path,
            object.place,
            "no rules and no_match = deny: nobody but superusers and tokens with rules can publish or subscribe",
        );
    }
}

choices! {
    /// Verdict of a rule.
    pub enum PermissionWord {
        /// It may be done.
        Allow = "allow";
        /// It may not.
        Deny = "deny";
    }
}

choices! {
    /// Action that a rule is about.
    pub enum ActionWord {
        /// PUBLISH, and the will.
        Publish = "publish";
        /// SUBSCRIBE.
        Subscribe = "subscribe";
        /// Both.
        All = "all";
    }
}

choices! {
    /// Retain flags of publications.
    pub enum RetainWord {
        /// Both.
        All = "all";
        /// Set.
        True = "true";
        /// Not set.
        False = "false";
    }
}

section! {
    /// One rule. It is for clients that all of `username`, `clientid`, `ipaddr` and `listener` fit, as far as
    /// they are given; each is one value or a list.
    pub struct RuleConfig {
        /// Verdict.
        permission: PermissionWord => choice();
        /// Action.
        action: ActionWord => choice().or(ActionWord::All);
        /// User names it is for.
        username: Vec<String> => one_or_list(text()).or(Vec::new());
        /// Client ids it is for.
        clientid: Vec<String> => one_or_list(text()).or(Vec::new());
        /// Addresses and networks it is for, such as `10.0.0.0/8`.
        ipaddr: Vec<Network> => one_or_list(network()).or(Vec::new());
        /// Listeners it is for, by kind and name, such as `tcp:default`.
        listener: Vec<String> => one_or_list(text()).or(Vec::new());
        /// Topic filters, with `${clientid}` and `${username}`; `eq ` before one takes it by the letter.
        /// Empty: every topic. A subscription is allowed where a filter covers it, and denied where one
        /// overlaps with it.
        topics: Vec<TopicPattern> => one_or_list(topic()).or(Vec::new()).also(&["topic"]);
        /// QoS levels it is for.
        qos: Vec<u8> => one_or_list(integer(0..=2)).check(|levels| some_level(levels)).or(vec![0, 1, 2]);
        /// Publications it is for, by their retain flag.
        retain: RetainWord => choice().or(RetainWord::All);
    }
}

section! {
    /// The file of rules.
    pub struct RulesFile {
        /// Rules; the first one that fits decides.
        rules: Vec<RuleConfig> => list(nested());
    }
}

impl RuleConfig {
    /// The rule as the node takes it.
    pub fn rule(&self) -> rules::Rule {
        let Self { permission, action, username, clientid, ipaddr, listener, topics, qos, retain } =
            self.clone();
        rules::Rule {
            permission: match permission {
                PermissionWord::Allow => rules::Permission::Allow,
                PermissionWord::Deny => rules::Permission::Deny,
            },
            action: match action {
                ActionWord::Publish => rules::Action::Publish,
                ActionWord::Subscribe => rules::Action::Subscribe,
                ActionWord::All => rules::Action::All,
            },
            usernames: username,
            client_ids: clientid,
            networks: ipaddr,
            listeners: listener,
            topics,
            qos: qos.iter().fold(0, |levels, level| levels | 1 << level),
            retain: match retain {
                RetainWord::All => None,
                RetainWord::True => Some(true),
                RetainWord::False => Some(false),
            },
        }
    }
}

fn some_level(levels: &[u8]) -> Result<(), String> {
    if levels.is_empty() {
        Err("no level: the rule would never fit; allowed: 0, 1, 2".into())
    } else {
        Ok(())
    }
}

fn path() -> Parsed<PathBuf> {
    parsed(
        "path",
        |text| {
            if text.trim().is_empty() {
                Err("empty; write the path of a file".into())
            } else {
                Ok(text.into())
            }
        },
        |path| path.display().to_string().into(),
    )
}

fn network() -> Parsed<Network> {
    parsed("address or network", Network::read, |network| network.to_string().into())
}

fn topic() -> Parsed<TopicPattern> {
    parsed("topic filter", TopicPattern::read, |topic| topic.to_string().into())
}

/// Kind of a list that may be a single value.
struct OneOrList<K>(K);

fn one_or_list<K: Kind>(kind: K) -> OneOrList<K> {
    OneOrList(kind)
}

impl<K: Kind> Kind for OneOrList<K> {
    type Out = Vec<K::Out>;

    fn read(&self, node: &Node<'_>, walk: &mut Walk) -> Option<Self::Out> {
        let Some(items) = walk.items(node) else { return Some(vec![self.0.read(node, walk)?]) };
        let read: Vec<Option<K::Out>> = items.iter().map(|item| self.0.read(item, walk)).collect();
        read.into_iter().collect()
    }

    fn json(&self, value: &Self::Out, secrets: Secrets) -> Json {
        value.iter().map(|value| self.0.json(value, secrets)).collect()
    }

    fn name(&self) -> String {
        format!("{} or a list", self.0.name())
    }

    fn allowed(&self) -> String {
        self.0.allowed()
    }
}

/// Checks the authentication of a whole configuration.
pub(super) fn check_access(config: &Config, object: &Object<'_>, walk: &mut Walk) {
    let authentication = &config.authentication;
    let databases = authentication.backends.iter();
    if databases.filter(|backend| matches!(backend, BackendConfig::BuiltInDatabase(_))).count() > 1 {
        walk.wrong_under(
            object,
            &["authentication", "backends"],
            "built_in_database is there twice; once is enough",
        );
    }
    if !authentication.anonymous_is_allowed() && authentication.backends.is_empty() {
        walk.wrong_under(
            object,
            &["authentication", "allow_anonymous"],
            "no client can connect: anonymous ones may not, and no backends know any other; \
             backends = [{ type = built_in_database }] has users that `causeway ctl users add` makes",
        );
    }
}

impl Config {
    /// Settings of access control; the user database is in `data_dir`.
    pub fn access_options(&self, data_dir: &Path) -> access::Options {
        // Taken apart, so that a key without effect does not compile.
        let AuthenticationConfig { allow_anonymous: _, backends, password_checks, ban, reload_interval } =
            &self.authentication;
        let PasswordChecksConfig { max_concurrent, max_waiting, remember } = *password_checks;
        let BanConfig { max_failures, window_time, ban_time, delay } = *ban;
        let AuthorizationConfig { no_match, deny_action, rules, file } = &self.authorization;
        access::Options {
            anonymous: self.authentication.anonymous_is_allowed(),
            backends: backends.iter().map(|backend| backend.options(data_dir)).collect(),
            checks: access::CheckOptions { max_concurrent, max_waiting, remember },
            bans: access::BanLimits { max_failures, window: window_time, ban: ban_time, delay },
            rules: rules.iter().map(RuleConfig::rule).collect(),
            rules_file: file.clone().map(|path| access::RulesFile { path, read: read_rules }),
            no_match: match no_match {
                NoMatch::Allow => rules::Permission::Allow,
                NoMatch::Deny => rules::Permission::Deny,
            },
            deny_action: match deny_action {
                DenyActionWord::Ignore => access::DenyAction::Ignore,
                DenyActionWord::Disconnect => access::DenyAction::Disconnect,
            },
            reload_interval: *reload_interval,
            cost: Cost::RECOMMENDED,
        }
    }
}

fn read_rules(path: &Path) -> Result<Vec<rules::Rule>, String> {
    let loaded = super::load_rules(path).map_err(|errors| errors.to_string())?;
    Ok(loaded.value.rules.iter().map(RuleConfig::rule).collect())
}

impl BackendConfig {
    fn options(&self, data_dir: &Path) -> BackendOptions {
        match self {
            Self::BuiltInDatabase(BuiltInDatabaseConfig { scram, scram_iterations }) => {
                BackendOptions::Users {
                    path: data_dir.join(access::USERS_FILE),
                    scram_iterations: scram.then_some(*scram_iterations),
                }
            }
            Self::PasswordFile(PasswordFileConfig { path }) => BackendOptions::PasswordFile(path.clone()),
            Self::Jwt(config) => BackendOptions::Jwt(Box::new(config.options())),
            Self::ClientCertificate(ClientCertificateConfig { username }) => {
                BackendOptions::Certificate { common_name: *username == CertificateName::CommonName }
            }
        }
    }
}

impl JwtConfig {
    fn options(&self) -> access::JwtOptions {
        let Self {
            from,
            secret,
            secret_base64_encoded,
            public_key,
            jwks_file,
            algorithms,
            verify_claims,
            leeway,
            disconnect_after_expire,
            acl_claim_name,
        } = self.clone();
        let keys = match (secret, public_key) {
            (Some(secret), _) => access::KeySource::Shared { secret, base64: secret_base64_encoded },
            (None, Some(path)) => access::KeySource::Pem(path),
            (None, None) => access::KeySource::Jwks(jwks_file.unwrap_or_default()),
        };
        access::JwtOptions {
            field: match from {
                TokenField::Password => access::TokenField::Password,
                TokenField::Username => access::TokenField::Username,
            },
            keys,
            algorithms: algorithms.iter().filter_map(|algorithm| algorithm.word().parse().ok()).collect(),
            verify_claims: verify_claims.into_iter().collect(),
            leeway,
            disconnect_after_expire,
            acl_claim: acl_claim_name,
        }
    }
}
