//! How a bridge connects to Kafka: the fields that producer and consumer bridges share.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value as Json;

use super::address::{HostPort, read_bootstrap_hosts};
use super::kafka_names::check_kafka_topic;
use super::kind::{DefaultDoc, FieldDoc, Kind, Secrets};
use super::kind_numbers::{bytes, integer, millis};
use super::kind_values::{Parsed, boolean, choice, parsed, secret, text};
use super::pem_text::{PemText, pem_text};
use super::section::{Section, choices, list, named, nested, section};
use super::tree::{Node, Object, Walk};
use super::units::ByteSize;
use crate::kafka::client::{self, CipherVersion};
use crate::secret::Secret;

section! {
    /// Connection to a Kafka cluster.
    pub struct ConnectionConfig {
        /// Brokers to ask first, as `host:port` separated by commas; the others are learned from them. The
        /// port is 9092 where none is written, IPv6 addresses stand in brackets.
        bootstrap_hosts: Vec<HostPort> => bootstrap_hosts();
        /// Budget for connecting: TCP, TLS and authentication together.
        connect_timeout: Duration => millis().at_least(Duration::from_millis(1)).or(Duration::from_secs(5));
        /// Shortest time between two refreshes of the metadata of a topic.
        min_metadata_refresh_interval: Duration => millis().or(Duration::from_secs(3));
        /// How long an answer to a metadata request may take.
        metadata_request_timeout: Duration => millis().at_least(Duration::from_millis(1)).or(Duration::from_secs(5));
        /// How old the oldest request without an answer may be before the connection counts as dead and is
        /// made again.
        request_timeout: Duration => millis().at_least(Duration::from_millis(1)).or(Duration::from_secs(30));
        /// How the bridge proves who it is: `none`, or an object with `mechanism`, `username` and `password`,
        /// one with `mechanism = oauth` and where tokens come from, or one with `kerberos_principal` and
        /// `kerberos_keytab_file`.
        authentication: Authentication => AuthenticationKind;
        /// Options of the TCP connections.
        socket_opts: SocketOptions => nested();
        /// TLS.
        ssl: SslConfig => nested();
        /// Topic that a health check asks for. Unset, a topic that need not exist is asked for, and only the
        /// connection counts.
        health_check_topic: Option<String> => text().check(|topic| check_kafka_topic(topic)).optional()
            .without_effect("the state of the connections is the health check");
        /// Whether asking for a topic may create it; the broker has to allow it, too.
        allow_auto_topic_creation: bool => boolean().or(false);
        /// Health checks and start.
        resource_opts: ResourceOptions => nested();
    }
}

impl ConnectionConfig {
    /// Takes the secrets of `stored` where this configuration has only their mask.
    pub(super) fn keep_secrets_of(&mut self, stored: &Self) {
        match (&mut self.authentication, &stored.authentication) {
            (Authentication::Password(new), Authentication::Password(old)) if new.password.is_mask() => {
                new.password = old.password.clone();
            }
            (Authentication::Oauth(new), Authentication::Oauth(old))
                if new.client_secret.as_ref().is_some_and(Secret::is_mask) =>
            {
                new.client_secret.clone_from(&old.client_secret);
            }
            _ => {}
        }
        if self.ssl.password.as_ref().is_some_and(Secret::is_mask) {
            self.ssl.password.clone_from(&stored.ssl.password);
        }
        if self.ssl.keyfile.as_ref().is_some_and(PemText::is_mask) {
            self.ssl.keyfile.clone_from(&stored.ssl.keyfile);
        }
    }
}

choices! {
    /// A SASL mechanism with user name and password.
    pub enum SaslMechanism {
        /// The password as it is (RFC 4616); use it over TLS only.
        Plain = "plain";
        /// Challenge and response with SHA-256 (RFC 7677).
        ScramSha256 = "scram_sha_256";
        /// Challenge and response with SHA-512.
        ScramSha512 = "scram_sha_512";
    }
}

/// How a bridge proves who it is.
#[derive(Debug, Clone, PartialEq)]
pub enum Authentication {
    /// Not at all.
    None,
    /// With user name and password.
    Password(PasswordAuthentication),
    /// With a Kerberos key table.
    Kerberos(KerberosAuthentication),
    /// With a token.
    Oauth(Box<OauthAuthentication>),
}

section! {
    /// SASL with user name and password.
    pub struct PasswordAuthentication {
        /// SASL mechanism.
        mechanism: SaslMechanism => choice();
        /// User name.
        username: String => text().check(|text| not_empty(text));
        /// Password.
        password: Secret => secret();
    }
}

section! {
    /// SASL with Kerberos (GSSAPI); needs a build with the feature `gssapi`.
    pub struct KerberosAuthentication {
        /// Principal, such as `causeway@EXAMPLE.ORG`.
        kerberos_principal: String => text().check(|text| not_empty(text));
        /// Path of the key table on this node. Needs a build with the feature `gssapi`.
        kerberos_keytab_file: String => text().check(|text| not_empty(text));
    }
}

choices! {
    /// The SASL mechanism with tokens.
    pub enum OauthMechanism {
        /// A token that another service gives out (OAUTHBEARER, RFC 7628).
        Oauth = "oauth";
    }
}

choices! {
    /// Where tokens come from.
    pub enum GrantType {
        /// From a token endpoint, for the client's credentials (RFC 6749 section 4.4).
        ClientCredentials = "client_credentials";
        /// From the file in `token_file`, which something else keeps up to date.
        TokenFile = "token_file";
    }
}

section! {
    /// SASL with a token (OAUTHBEARER).
    pub struct OauthAuthentication {
        /// SASL mechanism.
        mechanism: OauthMechanism => choice();
        /// Where tokens come from. They are renewed at the login that comes when four fifths of their life
        /// are over.
        grant_type: GrantType => choice().or(GrantType::ClientCredentials);
        /// URL of the token endpoint, `https://HOST/PATH`; `http` only where the network is trusted. It has 5
        /// s to answer.
        endpoint_uri: Option<String> => text().check(|uri| client::check_endpoint(uri)).optional();
        /// Client id at the token endpoint.
        client_id: Option<String> => text().check(|text| not_empty(text)).optional();
        /// Client secret at the token endpoint.
        client_secret: Option<Secret> => secret().optional();
        /// Scope to ask for.
        scope: Option<String> => text().check(|text| not_empty(text)).optional();
        /// Certificates of authorities for an https endpoint; unset, those that the system trusts.
        endpoint_cacertfile: Option<PemText> => pem_text().optional();
        /// File with the token; read at each login.
        token_file: Option<String> => text().check(|text| not_empty(text)).optional();
        /// Extensions that the broker wants beside the token (KIP-342), such as `logicalCluster`.
        extensions: BTreeMap<String, String> => named(text(), |_| Ok(()));
    }
    validate check_oauth;
}

fn check_oauth(oauth: &OauthAuthentication, object: &Object<'_>, walk: &mut Walk) {
    let of_endpoint = [
        ("endpoint_uri", oauth.endpoint_uri.is_some()),
        ("client_id", oauth.client_id.is_some()),
        ("client_secret", oauth.client_secret.is_some()),
    ];
    let from_endpoint = oauth.grant_type == GrantType::ClientCredentials;
    for (key, given) in of_endpoint {
        if from_endpoint && !given {
            walk.wrong_at::<()>(
                &object.path,
                object.place,
                format!("{key} is required with grant_type = client_credentials"),
            );
        } else if !from_endpoint && given {
            walk.wrong_under(object, &[key], "has no meaning with grant_type = token_file");
        }
    }
    match (from_endpoint, oauth.token_file.is_some()) {
        (true, true) => {
            walk.wrong_under(object, &["token_file"], "has a meaning with grant_type = token_file only");
        }
        (false, false) => {
            walk.wrong_at::<()>(
                &object.path,
                object.place,
                "token_file is required with grant_type = token_file",
            );
        }
        _ => {}
    }
    let name_problem = oauth.extensions.iter().find_map(|(name, value)| {
        client::check_extension(name, value).err().map(|problem| (name.as_str(), problem))
    });
    if let Some((name, problem)) = name_problem {
        walk.wrong_under(object, &["extensions", name], &problem);
    }
}

/// Kind of [`Authentication`].
struct AuthenticationKind;

const AUTHENTICATION_SHAPES: &str = "write none, an object with mechanism (plain, scram_sha_256, scram_sha_512), username \
     and password, one with mechanism oauth, or one with kerberos_principal and kerberos_keytab_file";

impl Kind for AuthenticationKind {
    type Out = Authentication;

    fn read(&self, node: &Node<'_>, walk: &mut Walk) -> Option<Authentication> {
        if node.scalar() == Some("none") {
            return Some(Authentication::None);
        }
        // Whatever stands here may hold a password: it is not shown.
        if node.value.as_object().is_none() {
            return walk.wrong_at(&node.path, node.place, format!("not known; {AUTHENTICATION_SHAPES}"));
        }
        let object = walk.object(node)?;
        if object.get("mechanism").is_some_and(|mechanism| mechanism.scalar() == Some("oauth")) {
            return OauthAuthentication::read_object(&object, walk).map(Box::new).map(Authentication::Oauth);
        }
        if object.get("mechanism").is_some() {
            return PasswordAuthentication::read_object(&object, walk).map(Authentication::Password);
        }
        if object.entries.iter().any(|(key, _)| key.starts_with("kerberos")) {
            return KerberosAuthentication::read_object(&object, walk).map(Authentication::Kerberos);
        }
        walk.wrong_at(&node.path, node.place, format!("lacks its mechanism; {AUTHENTICATION_SHAPES}"))
    }

    fn missing(&self, _: &Object<'_>, _: &str, _: &mut Walk) -> Option<Authentication> {
        Some(Authentication::None)
    }

    fn json(&self, value: &Authentication, secrets: Secrets) -> Json {
        match value {
            Authentication::None => "none".into(),
            Authentication::Password(password) => password.to_json(secrets),
            Authentication::Kerberos(kerberos) => kerberos.to_json(secrets),
            Authentication::Oauth(oauth) => oauth.to_json(secrets),
        }
    }

    fn name(&self) -> String {
        "object or `none`".into()
    }

    fn default_doc(&self) -> DefaultDoc {
        DefaultDoc::Value("none".into())
    }

    fn docs(&self, key: &'static str, meaning: &str) -> Vec<FieldDoc> {
        let mut docs = vec![FieldDoc {
            key: key.to_owned(),
            kind: self.name(),
            default: self.default_doc(),
            allowed: String::new(),
            meaning: meaning.to_owned(),
        }];
        let nested = PasswordAuthentication::docs()
            .into_iter()
            .chain(OauthAuthentication::docs())
            .chain(KerberosAuthentication::docs());
        docs.extend(nested.map(|doc| FieldDoc { key: format!("{key}.{}", doc.key), ..doc }));
        docs
    }
}

section! {
    /// Options of TCP connections.
    pub struct SocketOptions {
        /// Send buffer of the socket.
        sndbuf: ByteSize => bytes().within(ByteSize(1024)..=ByteSize::gb(1)).or(ByteSize::mb(1));
        /// Receive buffer of the socket.
        recbuf: ByteSize => bytes().within(ByteSize(1024)..=ByteSize::gb(1)).or(ByteSize::mb(1));
        /// Send small requests at once (TCP_NODELAY).
        nodelay: bool => boolean().or(true);
        /// Probes on idle connections.
        tcp_keepalive: Option<TcpKeepalive> => tcp_keepalive().or_word("none");
    }
}

/// Probes on an idle connection, written `Idle,Interval,Probes` with seconds, such as `240,30,5`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpKeepalive {
    /// Idle time before the first probe.
    pub idle: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Probes without an answer before the connection counts as dead.
    pub probes: u32,
}

fn tcp_keepalive() -> super::kind::Allowing<Parsed<TcpKeepalive>> {
    parsed("text", read_tcp_keepalive, |value| {
        format!("{},{},{}", value.idle.as_secs(), value.interval.as_secs(), value.probes).into()
    })
    .allowing("`Idle,Interval,Probes`: seconds from 1 to 32767 twice, probes from 1 to 127")
}

fn read_tcp_keepalive(text: &str) -> Result<TcpKeepalive, String> {
    let numbers: Vec<Option<u16>> = text.split(',').map(|part| part.trim().parse().ok()).collect();
    let [Some(idle), Some(interval), Some(probes)] = numbers[..] else {
        return Err("write none, or three whole numbers Idle,Interval,Probes, such as 240,30,5".into());
    };
    // What Linux accepts: MAX_TCP_KEEPIDLE, MAX_TCP_KEEPINTVL, MAX_TCP_KEEPCNT.
    for (what, value, most) in
        [("idle time", idle, 32_767), ("interval", interval, 32_767), ("number of probes", probes, 127)]
    {
        if !(1..=most).contains(&value) {
            return Err(format!("the {what} is out of range; allowed: 1 to {most}"));
        }
    }
    let seconds = |value| Duration::from_secs(u64::from(value));
    Ok(TcpKeepalive { idle: seconds(idle), interval: seconds(interval), probes: u32::from(probes) })
}

choices! {
    /// Whether the broker's certificate is checked.
    pub enum Verify {
        /// Any certificate is taken.
        None = "verify_none";
        /// It has to be signed by an authority in `cacertfile` (unset: one that the system trusts), or to
        /// stand there itself, and to name the host.
        Peer = "verify_peer";
    }
}

choices! {
    /// A version of TLS.
    pub enum TlsVersion {
        /// TLS 1.3 (RFC 8446).
        V1_3 = "tlsv1.3";
        /// TLS 1.2 (RFC 5246).
        V1_2 = "tlsv1.2";
        /// Read, and left out: too old to be safe.
        V1_1 = "tlsv1.1";
        /// Read, and left out: too old to be safe.
        V1_0 = "tlsv1";
    }
}

/// Which name is sent as server name indication (RFC 6066) and looked for in the certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerName {
    /// Each broker's own host name.
    Auto,
    /// None is sent.
    Disable,
    /// This one.
    Name(String),
}

section! {
    /// TLS towards Kafka.
    pub struct SslConfig {
        /// Whether connections use TLS.
        enable: bool => boolean().or(false);
        /// Whether the broker's certificate is checked.
        verify: Verify => choice().or(Verify::None);
        /// Certificates of authorities; unset, those that the system trusts (the file in `SSL_CERT_FILE`, or
        /// the distribution's).
        cacertfile: Option<PemText> => pem_text().optional();
        /// This client's certificate and the chain above it, for brokers that want one.
        certfile: Option<PemText> => pem_text().optional();
        /// Key of this client's certificate.
        keyfile: Option<PemText> => pem_text().optional();
        /// Password of the key, where it is an encrypted PKCS#8 one (`openssl pkcs8 -topk8`).
        password: Option<Secret> => secret().optional();
        /// Most certificates between the broker's and an authority's; more than 6 are never taken.
        depth: u8 => integer(0..=255).or(10);
        /// Versions of TLS that may be used; those below 1.2 are left out with a warning.
        versions: Vec<TlsVersion> => list(choice().advise(|version| old_tls(*version))).or(vec![TlsVersion::V1_3, TlsVersion::V1_2]);
        /// Cipher suites that may be used, by the names of OpenSSL or IANA; others are left out with a
        /// warning. Empty: all that are safe.
        ciphers: Vec<String> => list(text().advise(|name| unknown_cipher(name))).or(Vec::new());
        /// Host name that is sent to the broker and looked for in its certificate.
        server_name_indication: ServerName => server_name().or(ServerName::Auto);
    }
    ignored {
        "hibernate_after" "honor_cipher_order" "log_level" "partial_chain" "reuse_sessions" "secure_renegotiate"
        "user_lookup_fun" "verify_peer_ext_key_usage"
    }
    validate check_ssl;
}

fn unknown_cipher(name: &str) -> Option<String> {
    client::cipher_version(name).is_none().then(|| "not supported here, this cipher suite is left out".into())
}

pub(super) fn old_tls(version: TlsVersion) -> Option<String> {
    matches!(version, TlsVersion::V1_1 | TlsVersion::V1_0)
        .then(|| "TLS below 1.2 is not supported, this version is left out".into())
}

fn check_ssl(ssl: &SslConfig, object: &Object<'_>, walk: &mut Walk) {
    if ssl.certfile.is_some() != ssl.keyfile.is_some() {
        walk.wrong_at::<()>(
            &object.path,
            object.place,
            "certfile and keyfile are given together or not at all",
        );
    }
    let speaks = |version| {
        let cipher = match version {
            TlsVersion::V1_3 => CipherVersion::Tls13,
            TlsVersion::V1_2 => CipherVersion::Tls12,
            TlsVersion::V1_1 | TlsVersion::V1_0 => return false,
        };
        ssl.ciphers.iter().any(|name| client::cipher_version(name) == Some(cipher))
    };
    if ssl.enable && !ssl.ciphers.is_empty() && !ssl.versions.iter().copied().any(speaks) {
        let known = client::cipher_names().collect::<Vec<_>>().join(", ");
        walk.wrong_under(
            object,
            &["ciphers"],
            format!("none of them is supported with the versions; leave it empty, or write some of {known}"),
        );
    }
    if ssl.enable && ssl.verify == Verify::Peer && ssl.server_name_indication == ServerName::Disable {
        walk.warn_at(
            &object.path,
            object.place,
            "with server_name_indication = disable a certificate may name anybody: whoever has one of the authority is taken for the broker",
        );
    }
    if ssl.enable && !ssl.versions.iter().any(|v| matches!(v, TlsVersion::V1_3 | TlsVersion::V1_2)) {
        walk.wrong_under(
            object,
            &["versions"],
            "no version that is supported is left; allowed: tlsv1.3, tlsv1.2",
        );
    }
}

fn server_name() -> super::kind::Allowing<Parsed<ServerName>> {
    parsed(
        "text",
        |text| match text {
            "auto" => Ok(ServerName::Auto),
            "disable" => Ok(ServerName::Disable),
            name => super::address::read_host_port(name, 1)
                .and_then(|host| {
                    if host.to_string() == format!("{name}:1") {
                        Ok(ServerName::Name(host.host))
                    } else {
                        Err(String::new())
                    }
                })
                .map_err(|_| "not a host name; write auto, disable or a host name".into()),
        },
        |value| match value {
            ServerName::Auto => "auto".into(),
            ServerName::Disable => "disable".into(),
            ServerName::Name(name) => name.as_str().into(),
        },
    )
    .allowing(
        "`auto`: the host name of each broker; `disable`: none is sent, and any name will do; or a host name",
    )
}

section! {
    /// Health checks and start of a bridge.
    pub struct ResourceOptions {
        /// Time between health checks.
        health_check_interval: Duration => millis().within(Duration::from_secs(1)..=Duration::from_hours(1))
            .or(Duration::from_secs(15)).without_effect("the state of the connections is the health check");
        /// How long a health check may take.
        health_check_timeout: Option<Duration> => millis().or_word("infinity").or(Some(Duration::from_mins(1)))
            .without_effect("the state of the connections is the health check");
        /// Whether the bridge starts as soon as it is created.
        start_after_created: bool => boolean().or(true).without_effect("a bridge that is enabled starts");
        /// How long creating a bridge waits for its first connection.
        start_timeout: Duration => millis().or(Duration::from_secs(5)).without_effect("starting a bridge waits for nothing");
    }
}

fn bootstrap_hosts() -> Parsed<Vec<HostPort>> {
    parsed("text", read_bootstrap_hosts, |hosts| {
        hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(",").into()
    })
}

/// A text that says something.
pub(super) fn not_empty(text: &str) -> Result<(), String> {
    if text.trim().is_empty() { Err("empty; a text is expected".into()) } else { Ok(()) }
}
