//! Bridges that log in with Kerberos: a throw-away key distribution centre (MIT krb5), real Kafka, messages
//! both ways, logins renewed meanwhile, and what the status says where something is wrong.
//!
//! Needs `krb5-kdc` and `krb5-admin-server` (Debian) beside what `--features gssapi` needs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use causeway_benches::load::publisher::Publishing;
use causeway_tests::broker::{Target, run};
use causeway_tests::kafka::{Extras, Listener, RealKafka, free_ports};
use causeway_tests::node::Node;
use causeway_tests::oracle::{Oracle, Running, load};
use causeway_tests::process::{self, Process};
use causeway_tests::{eventually, need, say, unique};
use tempfile::TempDir;

const SOON: Duration = Duration::from_mins(1);
const REALM: &str = "CAUSEWAY.TEST";
/// At [`RATE`] the load lasts longer than a login.
const CLIENTS: u32 = 2;
const EACH: u64 = 200;
const RATE: u64 = 25;
const LOGIN_MS: u32 = 3_000;

/// A key distribution centre of its own, on the loopback network.
struct Kdc {
    folder: TempDir,
    process: Option<Process>,
}

impl Kdc {
    /// Starts one that knows a broker on 127.0.0.1 and the principal `bridge`.
    fn start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("causeway-kdc-").tempdir()?;
        process::remove_at_exit(folder.path());
        let [port] = free_ports()?;
        let mut kdc = Self { folder, process: None };
        kdc.write_krb5_conf("krb5.conf", port)?;
        // Nobody listens on port 9: the configuration of a node that cannot reach its centre.
        kdc.write_krb5_conf("nowhere.conf", 9)?;
        let path = |name: &str| kdc.file(name).display().to_string();
        let settings = format!(
            "[kdcdefaults]\n kdc_listen = 127.0.0.1:{port}\n kdc_tcp_listen = 127.0.0.1:{port}\n\
             [realms]\n {REALM} = {{\n  database_name = {}\n  key_stash_file = {}\n  acl_file = {}\n }}\n",
            path("principal"),
            path("stash"),
            path("acl"),
        );
        std::fs::write(kdc.file("kdc.conf"), settings)?;
        std::fs::write(kdc.file("acl"), "")?;
        kdc.admin("kdb5_util", &["create", "-s", "-r", REALM, "-P", "a-master-key"])?;
        for principal in ["kafka/127.0.0.1", "bridge", "stranger"] {
            let keytab = kdc.keytab(principal.split('/').next().unwrap_or(principal));
            kdc.admin("kadmin.local", &["-q", &format!("addprinc -randkey {principal}")])?;
            kdc.admin("kadmin.local", &["-q", &format!("ktadd -k {keytab} -norandkey {principal}")])?;
        }
        let mut daemon = kdc.command("krb5kdc");
        kdc.process = Some(Process::spawn("krb5kdc", daemon.arg("-n").stdin(std::process::Stdio::null()))?);
        eventually(SOON, || Ok(std::net::TcpStream::connect(("127.0.0.1", port)).map(drop)?))
            .context("krb5kdc does not listen")?;
        Ok(kdc)
    }

    fn write_krb5_conf(&self, name: &str, port: u16) -> Result<()> {
        let text = format!(
            "[libdefaults]\n default_realm = {REALM}\n dns_lookup_kdc = false\n dns_lookup_realm = false\n\
             \x20dns_canonicalize_hostname = false\n rdns = false\n udp_preference_limit = 1\n\
             [realms]\n {REALM} = {{\n  kdc = 127.0.0.1:{port}\n }}\n"
        );
        Ok(std::fs::write(self.file(name), text)?)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn keytab(&self, name: &str) -> String {
        self.file(&format!("{name}.keytab")).display().to_string()
    }

    /// One of the centre's programs, which Debian has in a folder for administrators.
    fn command(&self, program: &str) -> Command {
        let beside = Path::new("/usr/sbin").join(program);
        let mut command = Command::new(if beside.exists() { beside.as_os_str() } else { program.as_ref() });
        command.env("KRB5_CONFIG", self.file("krb5.conf")).env("KRB5_KDC_PROFILE", self.file("kdc.conf"));
        command
    }

    fn admin(&self, program: &str, arguments: &[&str]) -> Result<()> {
        let finished = process::run(self.command(program).args(arguments), b"", SOON)
            .with_context(|| format!("cannot run {program}: install krb5-kdc and krb5-admin-server"))?;
        finished.successful()?;
        Ok(())
    }

    /// A Kafka of which one more listener, called KERBEROS, wants a login.
    fn kafka(&self, target: &Target) -> Result<RealKafka> {
        let Target::Apache(version) = target else { bail!("this wants a real Kafka") };
        let properties = format!(
            "listener.name.kerberos.sasl.enabled.mechanisms=GSSAPI\n\
             sasl.kerberos.service.name=kafka\n\
             listener.name.kerberos.gssapi.sasl.jaas.config=com.sun.security.auth.module.Krb5LoginModule required \
             useKeyTab=true storeKey=true keyTab=\"{}\" principal=\"kafka/127.0.0.1@{REALM}\";\n\
             listener.name.kerberos.gssapi.connections.max.reauth.ms={LOGIN_MS}\n",
            self.keytab("kafka")
        );
        RealKafka::start_with(
            version,
            &Extras {
                listeners: vec![Listener { name: "KERBEROS", protocol: "SASL_PLAINTEXT" }],
                properties,
                java: vec![format!("-Djava.security.krb5.conf={}", self.file("krb5.conf").display())],
                ..Extras::default()
            },
        )
    }

    fn node(&self, bridges: &str, settings: &str) -> Result<Node> {
        let settings = self.file(settings).display().to_string();
        Node::start_with("node-1", bridges, &[("KRB5_CONFIG", &settings)])
    }

    fn login(&self, principal: &str, keytab: &str) -> String {
        let keytab = self.keytab(keytab);
        format!(
            "authentication {{ kerberos_principal = \"{principal}\", kerberos_keytab_file = \"{keytab}\" }}"
        )
    }
}

fn producer(name: &str, bootstrap: &str, security: &str, topic: &str) -> String {
    format!(
        r#"
        bridges.kafka.{name} {{
          bootstrap_hosts = "{bootstrap}", local_topic = "{name}/#"
          {security}
          kafka {{
            topic = "{topic}", reconnect_delay = 500ms
            message {{ key = "${{.clientid}}", value = "${{.payload}}" }}
          }}
        }}
        "#
    )
}

/// P3. A producer and a consumer bridge carry everything once, while their logins lapse and are renewed.
fn tickets_carry_everything(kdc: &Kdc, kafka: &RealKafka) -> Result<()> {
    let bootstrap = kafka.listener("KERBEROS");
    let topic = unique("kerberos");
    kafka.create_topic(&topic, 2)?;
    let login = kdc.login(&format!("bridge@{REALM}"), "bridge");
    let consumer = format!(
        r#"
        bridges.kafka_consumer.back {{
          bootstrap_hosts = "{bootstrap}"
          {login}
          topic_mapping = [ {{ kafka_topic = "{topic}", mqtt_topic = "back", qos = 1, payload_template = "${{.value}}" }} ]
          kafka {{ offset_reset_policy = earliest, max_wait_time = 200ms }}
        }}
        "#
    );
    let bridges = format!("log.level = debug\n{}{consumer}", producer("out", &bootstrap, &login, &topic));
    let oracle = Oracle::watch(&kafka.bootstrap(), &topic)?;
    let node = kdc.node(&bridges, "krb5.conf")?;
    let load = load(node.mqtt(), "out-", "out/{client}", CLIENTS, EACH);
    let load = Running::start(Publishing { rate: Some((RATE * u64::from(CLIENTS)) as f64), ..load });
    let verdict = oracle.judge("out-", &load.join()?)?;
    let total = EACH * u64::from(CLIENTS);
    ensure!(verdict.is_perfect() && verdict.arrived == total, "{verdict}\n{}", node.log_tail());
    eventually(SOON, || {
        let books = node.ledger("kafka_consumer:back")?;
        need((books.received, books.success) == (total, total), || format!("{books:?}"))
    })?;
    let renewed = node.log_lines_with("login renewed").len();
    ensure!(renewed >= 2, "{renewed} renewals\n{}", node.log_tail());
    node.check_books()
}

/// Whatever is wrong, the status names it.
fn what_is_wrong_is_said(kdc: &Kdc, kafka: &RealKafka) -> Result<()> {
    let bootstrap = kafka.listener("KERBEROS");
    let by_name = bootstrap.replace("127.0.0.1", "localhost");
    let topic = unique("wrong");
    kafka.create_topic(&topic, 1)?;
    let right = kdc.login(&format!("bridge@{REALM}"), "bridge");
    let wrong = [
        (
            "nobody",
            &bootstrap,
            kdc.login("nobody", "bridge"),
            &["no ticket for nobody", "bridge.keytab holds no current key of nobody"][..],
        ),
        (
            "other",
            &bootstrap,
            kdc.login("bridge", "stranger"),
            &["no ticket for bridge", "stranger.keytab holds no current key of bridge"],
        ),
        (
            "nofile",
            &bootstrap,
            kdc.login("bridge", "none"),
            &["cannot read kerberos_keytab_file", "none.keytab"],
        ),
        (
            "host",
            &by_name,
            right.clone(),
            &["bridge@CAUSEWAY.TEST and kafka/localhost", "must be known there"],
        ),
    ];
    let check = |node: &Node, name: &str, expected: &[&str]| -> Result<()> {
        let reason = eventually(SOON, || {
            let (status, reason) = node.status(&format!("kafka:{name}"))?;
            need(status == "disconnected" && expected.iter().all(|part| reason.contains(part)), || {
                format!("{name} is {status} because of {reason:?}, where {expected:?} is expected")
            })?;
            Ok(reason)
        })?;
        say(&format!("{name}: {reason}"));
        Ok(())
    };
    let bridges: Vec<String> =
        wrong.iter().map(|(name, bootstrap, login, _)| producer(name, bootstrap, login, &topic)).collect();
    let node = kdc.node(&bridges.concat(), "krb5.conf")?;
    for (name, _, _, expected) in &wrong {
        check(&node, name, expected)?;
    }
    let cut_off = kdc.node(&producer("cutoff", &bootstrap, &right, &topic), "nowhere.conf")?;
    check(&cut_off, "cutoff", &["Cannot contact any KDC", "krb5.conf"])
}

fn scenario(target: &Target) -> Result<()> {
    let kdc = Kdc::start()?;
    let kafka = kdc.kafka(target)?;
    tickets_carry_everything(&kdc, &kafka)?;
    what_is_wrong_is_said(&kdc, &kafka)
}

#[test]
fn kerberos_with_apache_kafka_3_3() -> Result<()> {
    run("Kerberos", Target::apache("3.3")?, scenario)
}

#[test]
fn kerberos_with_apache_kafka_3_9() -> Result<()> {
    run("Kerberos", Target::apache("3.9")?, scenario)
}

#[test]
fn kerberos_with_apache_kafka_4() -> Result<()> {
    run("Kerberos", Target::apache("4")?, scenario)
}
