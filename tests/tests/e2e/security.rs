//! Bridges towards a Kafka that wants TLS, certificates and logins: through each kind of listener a producer
//! and a consumer bridge, messages counted on both sides, logins renewed meanwhile; and what the status says
//! where something is wrong.
//!
//! Real Kafka only; against the development Kafka the client's own tests do the same.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use causeway::probe::{Verdict, has_failed};
use causeway_benches::load::publisher::Publishing;
use causeway_tests::broker::{Broker, Target, run};
use causeway_tests::kafka::{Extras, Listener, RealKafka};
use causeway_tests::node::Node;
use causeway_tests::oracle::{Oracle, Running, load};
use causeway_tests::{eventually, need, say, unique};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

const SOON: Duration = Duration::from_mins(1);

/// Clients that publish to each bridge, and messages of each: at [`RATE`] they take longer than a login
/// lasts.
const CLIENTS: u32 = 2;
const EACH: u64 = 200;
const RATE: u64 = 25;
/// `connections.max.reauth.ms` of the listeners that limit a login.
const LOGIN_MS: u32 = 3_000;

/// The user of SCRAM. Kafka's tools take neither a comma nor a bracket in a password; what is beyond ASCII
/// shows that both sides make the same bytes of it.
const SCRAM_USER: (&str, &str) = ("a-bridge", "pass=wörd-ⅸ");
const PLAIN_USER: (&str, &str) = ("causeway", "secret");

/// A Kafka with every kind of listener, and what a client needs for them.
struct Ground {
    kafka: Broker,
    folder: TempDir,
    tokens: TokenEndpoint,
    has_scram: bool,
}

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Result<Authority> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

/// Writes a certificate and its key.
fn issue(folder: &Path, name: &str, hosts: &[&str], issuer: &Authority) -> Result<()> {
    issue_expired(folder, name, hosts, issuer, None)
}

/// The same, of a certificate that expired in the beginning of `year`.
fn issue_expired(
    folder: &Path,
    name: &str,
    hosts: &[&str],
    issuer: &Authority,
    year: Option<i32>,
) -> Result<()> {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(year) = year {
        params.not_after = rcgen::date_time_ymd(year, 1, 2);
    }
    let key = KeyPair::generate()?;
    let (certificate, key_pem) = (params.signed_by(&key, issuer)?.pem(), key.serialize_pem());
    std::fs::write(folder.join(format!("{name}.pem")), &certificate)?;
    std::fs::write(folder.join(format!("{name}.key")), &key_pem)?;
    // As Kafka wants a PEM keystore: the key, then the chain.
    std::fs::write(folder.join(format!("{name}.keystore")), format!("{key_pem}{certificate}"))?;
    Ok(())
}

/// A token endpoint for one client, whose tokens are JSON web tokens without a signature: what Kafka takes as
/// long as no key is configured.
struct TokenEndpoint {
    url: String,
    asked: Arc<AtomicU32>,
}

impl TokenEndpoint {
    fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}/token", listener.local_addr()?);
        let asked = Arc::new(AtomicU32::new(0));
        let count = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                count.fetch_add(1, Ordering::SeqCst);
                if let Err(error) = stream.map_err(anyhow::Error::from).and_then(Self::answer) {
                    say(&format!("the token endpoint cannot answer: {error}"));
                }
            }
        });
        Ok(Self { url, asked })
    }

    fn answer(mut stream: std::net::TcpStream) -> Result<()> {
        let mut request = vec![0; 8192];
        let count = stream.read(&mut request)?;
        let request = String::from_utf8_lossy(request.get(..count).unwrap_or_default()).into_owned();
        let basic = format!("Authorization: Basic {}\r\n", BASE64_STANDARD.encode("the-client:its-secret"));
        let (status, body) = if request.contains(&basic) && request.ends_with("&scope=kafka") {
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
            let claims = format!(r#"{{"sub":"the-client","scope":"kafka","iat":{now},"exp":{}}}"#, now + 6);
            let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
            let token = format!("{}.{}.", part(r#"{"alg":"none"}"#), part(&claims));
            (200, format!(r#"{{"access_token":"{token}","token_type":"Bearer","expires_in":6}}"#))
        } else {
            (401, r#"{"error":"invalid_client"}"#.to_owned())
        };
        write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
        Ok(())
    }
}

impl Ground {
    fn start(target: &Target) -> Result<Self> {
        let Target::Apache(version) = target else { bail!("this wants a real Kafka") };
        let folder = tempfile::Builder::new().prefix("causeway-certificates-").tempdir()?;
        let path = folder.path();
        let (brokers, clients) = (authority("the brokers' authority")?, authority("the bridges' authority")?);
        std::fs::write(path.join("brokers.pem"), brokers.pem())?;
        std::fs::write(path.join("clients.pem"), clients.pem())?;
        std::fs::write(path.join("strangers.pem"), authority("strangers")?.pem())?;
        issue(path, "broker", &["127.0.0.1", "localhost"], &brokers)?;
        issue_expired(path, "expired", &["127.0.0.1", "localhost"], &brokers, Some(2020))?;
        issue(path, "bridge", &[], &clients)?;
        issue(path, "stranger", &[], &authority("strangers")?)?;

        // Users for SCRAM can be made with KRaft since 3.5.
        let has_scram = !version.is_older_than(3, 5);
        let listener = |name, protocol| Listener { name, protocol };
        let mut listeners = vec![
            listener("TLS", "SSL"),
            listener("MTLS", "SSL"),
            listener("LOGINTLS", "SASL_SSL"),
            listener("TOKEN", "SASL_PLAINTEXT"),
            listener("EXPIRED", "SSL"),
        ];
        let mut properties = String::new();
        let mut add = |line: String| {
            properties.push_str(&line);
            properties.push('\n');
        };
        for name in ["tls", "mtls", "logintls", "expired"] {
            let keystore = if name == "expired" { "expired.keystore" } else { "broker.keystore" };
            add(format!("listener.name.{name}.ssl.keystore.type=PEM"));
            add(format!("listener.name.{name}.ssl.keystore.location={}", path.join(keystore).display()));
            add(format!("listener.name.{name}.ssl.truststore.type=PEM"));
            add(format!(
                "listener.name.{name}.ssl.truststore.location={}",
                path.join("clients.pem").display()
            ));
        }
        add("listener.name.mtls.ssl.client.auth=required".into());
        let (user, password) = PLAIN_USER;
        let modules = "org.apache.kafka.common.security";
        add(format!(
            "listener.name.logintls.plain.sasl.jaas.config={modules}.plain.PlainLoginModule required username=\"{user}\" \
             password=\"{password}\" user_{user}=\"{password}\";"
        ));
        add(format!("listener.name.logintls.plain.connections.max.reauth.ms={LOGIN_MS}"));
        add("listener.name.token.sasl.enabled.mechanisms=OAUTHBEARER".into());
        add(format!(
            "listener.name.token.oauthbearer.sasl.jaas.config={modules}.oauthbearer.OAuthBearerLoginModule required \
             unsecuredLoginStringClaim_sub=\"broker\";"
        ));
        add(format!("listener.name.token.oauthbearer.connections.max.reauth.ms={LOGIN_MS}"));
        let mut scram = Vec::new();
        if has_scram {
            listeners.push(listener("SCRAM", "SASL_PLAINTEXT"));
            add("listener.name.scram.sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512".into());
            for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
                let lower = mechanism.to_lowercase();
                add(format!(
                    "listener.name.scram.{lower}.sasl.jaas.config={modules}.scram.ScramLoginModule required;"
                ));
                add(format!("listener.name.scram.{lower}.connections.max.reauth.ms={LOGIN_MS}"));
                scram.push(format!("{mechanism}=[name={},password={}]", SCRAM_USER.0, SCRAM_USER.1));
            }
        }
        let kafka =
            RealKafka::start_with(version, &Extras { listeners, properties, scram, ..Extras::default() })?;
        Ok(Self {
            kafka: Broker::Apache(Box::new(kafka)),
            folder,
            tokens: TokenEndpoint::start()?,
            has_scram,
        })
    }

    fn listener(&self, name: &str) -> String {
        match &self.kafka {
            Broker::Apache(kafka) => kafka.listener(name),
            Broker::Development(kafka) => kafka.bootstrap(),
        }
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// `ssl` with the brokers' authority, and more.
    fn ssl(&self, more: &str) -> String {
        let authority = self.file("brokers.pem");
        format!("ssl {{ enable = true, verify = verify_peer, cacertfile = \"{authority}\" {more} }}")
    }

    fn identity(&self, name: &str) -> String {
        let (certificate, key) = (self.file(&format!("{name}.pem")), self.file(&format!("{name}.key")));
        format!(", certfile = \"{certificate}\", keyfile = \"{key}\"")
    }

    fn token(&self, secret: &str) -> String {
        format!(
            "authentication {{ mechanism = oauth, grant_type = client_credentials, endpoint_uri = \"{}\"
               client_id = the-client, client_secret = {secret}, scope = kafka }}",
            self.tokens.url
        )
    }

    /// Each way in: its name, where, and the sections of the bridge.
    fn ways(&self) -> Vec<(&'static str, String, String)> {
        let mut ways = vec![
            ("tls", self.listener("TLS"), self.ssl("")),
            ("tls12", self.listener("TLS"), self.ssl(", versions = [tlsv1.2, tlsv1.1]")),
            ("mtls", self.listener("MTLS"), self.ssl(&self.identity("bridge"))),
            (
                "logintls",
                self.listener("LOGINTLS"),
                format!("{}\n{}", self.ssl(""), login("plain", PLAIN_USER)),
            ),
            ("token", self.listener("TOKEN"), self.token("its-secret")),
        ];
        if self.has_scram {
            ways.push(("scram256", self.listener("SCRAM"), login("scram_sha_256", SCRAM_USER)));
            ways.push(("scram512", self.listener("SCRAM"), login("scram_sha_512", SCRAM_USER)));
        }
        ways
    }
}

fn login(mechanism: &str, (user, password): (&str, &str)) -> String {
    format!("authentication {{ mechanism = {mechanism}, username = \"{user}\", password = \"{password}\" }}")
}

fn producer(name: &str, bootstrap: &str, security: &str, filter: &str, topic: &str) -> String {
    format!(
        r#"
        bridges.kafka.{name} {{
          bootstrap_hosts = "{bootstrap}", local_topic = "{filter}"
          {security}
          kafka {{
            topic = "{topic}", reconnect_delay = 500ms
            message {{ key = "${{.clientid}}", value = "${{.payload}}", timestamp = "${{.timestamp}}" }}
          }}
        }}
        "#
    )
}

fn consumer(name: &str, bootstrap: &str, security: &str, topic: &str) -> String {
    format!(
        r#"
        bridges.kafka_consumer.{name} {{
          bootstrap_hosts = "{bootstrap}"
          {security}
          topic_mapping = [
            {{ kafka_topic = "{topic}", mqtt_topic = "back/{name}", qos = 1, payload_template = "${{.value}}" }}
          ]
          kafka {{ offset_reset_policy = earliest, offset_commit_interval_seconds = 1, max_wait_time = 200ms }}
        }}
        "#
    )
}

/// P3, L21. Every way in carries every message once, in both directions, and logins that lapse are renewed on
/// the way.
fn every_way_in_carries_everything(ground: &Ground) -> Result<()> {
    let plain = ground.kafka.bootstrap();
    let ways = ground.ways();
    let echo = unique("echo");
    ground.kafka.create_topic(&echo, 1)?;
    // What consumer bridges publish goes into one topic over a listener without security, to be read there.
    let mut bridges = format!("log.level = debug\n{}", producer("echo", &plain, "", "back/#", &echo));
    let mut topics = Vec::new();
    for (name, bootstrap, security) in &ways {
        let topic = unique(name);
        ground.kafka.create_topic(&topic, 1)?;
        bridges.push_str(&producer(name, bootstrap, security, &format!("{name}/#"), &topic));
        bridges.push_str(&consumer(name, bootstrap, security, &topic));
        topics.push(topic);
    }
    let oracle_of_echo = Oracle::watch(&plain, &echo)?;
    let oracles: Vec<Oracle> =
        topics.iter().map(|topic| Oracle::watch(&plain, topic)).collect::<Result<_>>()?;
    let node = Node::start(&bridges)?;
    let loads: Vec<Running> = ways
        .iter()
        .map(|(name, ..)| {
            let topic = format!("{name}/{{client}}");
            let load = load(node.mqtt(), &format!("{name}-"), &topic, CLIENTS, EACH);
            Running::start(Publishing { rate: Some((RATE * u64::from(CLIENTS)) as f64), ..load })
        })
        .collect();
    let total = EACH * u64::from(CLIENTS);
    for (((name, ..), oracle), load) in ways.iter().zip(&oracles).zip(loads) {
        let verdict = oracle.judge(&format!("{name}-"), &load.join()?)?;
        ensure!(verdict.is_perfect() && verdict.arrived == total, "{name}: {verdict}");
        let books = eventually(SOON, || {
            let books = node.ledger(&format!("kafka_consumer:{name}"))?;
            need(books.success >= total, || format!("{name}: {books:?}"))?;
            Ok(books)
        })?;
        ensure!((books.received, books.success) == (total, total), "{name}: {books:?}");
        for kind in ["kafka", "kafka_consumer"] {
            assert_eq!(node.status(&format!("{kind}:{name}"))?.0, "connected", "{kind}:{name}");
            let steps = node.probe(&format!("{kind}:{name}"))?;
            ensure!(!has_failed(&steps), "{kind}:{name}: {steps:#?}");
        }
    }
    let all = total * ways.len() as u64;
    let mut came_back: Vec<Vec<u8>> = oracle_of_echo
        .wait_for(all, SOON)?
        .into_iter()
        .map(|(_, record)| record.record.value.unwrap_or_default())
        .collect();
    let mut went_out: Vec<Vec<u8>> = Vec::new();
    for oracle in &oracles {
        went_out
            .extend(oracle.records()?.into_iter().map(|(_, record)| record.record.value.unwrap_or_default()));
    }
    came_back.sort();
    went_out.sort();
    ensure!(came_back == went_out, "{} of {} came back", came_back.len(), went_out.len());

    // The load lasted longer than a login: without renewals Kafka would have closed the connections.
    let renewed = node.log_lines_with("login renewed").len();
    let limited = ways.iter().filter(|(name, ..)| !name.contains("tls") || *name == "logintls").count();
    ensure!(renewed >= 2 * limited, "{renewed} renewals\n{}", node.log_tail());
    // On a machine that stalls for a tenth of such a short life, a request may reach Kafka after its end.
    let failed = node.log_lines_with("login was not renewed");
    ensure!(failed.len() * 10 <= renewed, "{failed:?}");
    ensure!(ground.tokens.asked.load(Ordering::SeqCst) >= 2, "the token was not renewed");
    node.check_books()
}

/// The step of a walk at which what is wrong shows, and words of what is to be done.
fn stumble(wrong: &str) -> Option<(&'static str, &'static str)> {
    Some(match wrong {
        "expired" => ("tls", "renew the broker's certificate"),
        "authority" => ("tls", "set ssl.cacertfile to"),
        "name" => ("tls", "use a name of the broker's certificate"),
        "nocert" | "othercert" => ("tls", "set ssl.certfile and ssl.keyfile"),
        "notls" => ("tls", "set ssl.enable = true"),
        "tls" => ("tls", "set ssl.enable = false"),
        "nologin" => ("login", "set authentication"),
        "login" => ("login", "set authentication = none"),
        "mechanism" | "password" | "client" | "scram" => ("login", "check authentication"),
        "file" => ("settings", "correct the file"),
        _ => return None,
    })
}

/// L20. Whatever is wrong, the status says what it is and names what to change.
fn what_is_wrong_is_said(ground: &Ground) -> Result<()> {
    let plain = ground.kafka.bootstrap();
    let topic = unique("wrong");
    ground.kafka.create_topic(&topic, 1)?;
    let strangers = ground.file("strangers.pem");
    let expired = ground.listener("EXPIRED");
    let mut wrong = vec![
        ("expired", expired, ground.ssl(""), &["expired at", "renew it"][..]),
        (
            "authority",
            ground.listener("TLS"),
            format!("ssl {{ enable = true, verify = verify_peer, cacertfile = \"{strangers}\" }}"),
            &["signed by CN=the brokers' authority", "ssl.cacertfile"],
        ),
        (
            "name",
            ground.listener("TLS"),
            ground.ssl(", server_name_indication = kafka.example.org"),
            &["is for 127.0.0.1, localhost, not for kafka.example.org"],
        ),
        ("nocert", ground.listener("MTLS"), ground.ssl(""), &["certificate of ours", "ssl.certfile"]),
        (
            "othercert",
            ground.listener("MTLS"),
            ground.ssl(&ground.identity("stranger")),
            &["certificate", "ssl.certfile"],
        ),
        ("notls", ground.listener("TLS"), String::new(), &["set ssl.enable = true"]),
        ("tls", plain.clone(), ground.ssl(""), &["does this port speak TLS"]),
        ("nologin", ground.listener("TOKEN"), String::new(), &["want a login"]),
        ("login", plain.clone(), login("plain", PLAIN_USER), &["set authentication = none"]),
        (
            "mechanism",
            ground.listener("TOKEN"),
            login("scram_sha_256", SCRAM_USER),
            &["SCRAM-SHA-256", "it offers OAUTHBEARER"],
        ),
        (
            "password",
            ground.listener("LOGINTLS"),
            format!("{}\n{}", ground.ssl(""), login("plain", (PLAIN_USER.0, "wrong"))),
            &["authentication with PLAIN failed"],
        ),
        ("client", ground.listener("TOKEN"), ground.token("guess"), &["invalid_client", "client_secret"]),
        (
            "file",
            ground.listener("TLS"),
            "ssl { enable = true, cacertfile = \"/none.pem\" }".to_owned(),
            &["cannot read cacertfile /none.pem"],
        ),
    ];
    if ground.has_scram {
        wrong.push((
            "scram",
            ground.listener("SCRAM"),
            login("scram_sha_512", (SCRAM_USER.0, "wrong")),
            &["authentication with SCRAM-SHA-512 failed"],
        ));
    }
    let mut bridges = String::new();
    for (name, bootstrap, security, _) in &wrong {
        bridges.push_str(&producer(name, bootstrap, security, &format!("{name}/#"), &topic));
        bridges.push_str(&consumer(name, bootstrap, security, &topic));
    }
    let node = Node::start(&bridges)?;
    for (name, _, _, expected) in &wrong {
        for kind in ["kafka", "kafka_consumer"] {
            let reason = eventually(SOON, || {
                let (status, reason) = node.status(&format!("{kind}:{name}"))?;
                need(status == "disconnected" && expected.iter().all(|part| reason.contains(part)), || {
                    format!("{kind}:{name} is {status} because of {reason:?}, where {expected:?} is expected")
                })?;
                Ok(reason)
            })?;
            say(&format!("{kind}:{name}: {reason}"));
            ensure!(!reason.contains("wrong\"") && !reason.contains("guess"), "{reason}");
        }
        // Whoever walks the way stumbles there, too, and is told what to do.
        let steps = node.probe(&format!("kafka:{name}"))?;
        let failed = steps.iter().rfind(|step| step.verdict == Verdict::Fail);
        let failed = failed.with_context(|| format!("{name}: {steps:#?}"))?;
        let (step, fix) = stumble(name).with_context(|| format!("no expectation of {name}"))?;
        ensure!(
            failed.step == step && failed.fix.as_deref().unwrap_or_default().contains(fix),
            "{name}: {failed:#?}"
        );
    }
    Ok(())
}

fn scenario(target: &Target) -> Result<()> {
    let ground = Ground::start(target)?;
    every_way_in_carries_everything(&ground)?;
    what_is_wrong_is_said(&ground)
}

#[test]
fn secured_listeners_of_apache_kafka_3_3() -> Result<()> {
    run("secured listeners", Target::apache("3.3")?, scenario)
}

#[test]
fn secured_listeners_of_apache_kafka_3_9() -> Result<()> {
    run("secured listeners", Target::apache("3.9")?, scenario)
}

#[test]
fn secured_listeners_of_apache_kafka_4() -> Result<()> {
    run("secured listeners", Target::apache("4")?, scenario)
}
