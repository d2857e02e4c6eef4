//! `causeway ctl bridges probe` and `causeway doctor` against a real Kafka: each fault is named by its step
//! and with what to do about it, and whoever looks leaves nothing behind.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use causeway::probe::{Step, Verdict, has_failed};
use causeway_tests::broker::{Target, run};
use causeway_tests::kafka::{Extras, Listener, RealKafka, SASL_USER};
use causeway_tests::kafka_admin::{ACCESS_CONTROL, Operation, Resource};
use causeway_tests::node::{Node, causeway};
use causeway_tests::oracle::{Running, load};
use causeway_tests::{eventually, need, say};

const PATIENCE: Duration = Duration::from_mins(2);

/// A port where nobody listens.
fn nowhere() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn kafka(target: &Target, away: u16) -> Result<RealKafka> {
    let Target::Apache(version) = target else { bail!("this wants a real Kafka") };
    let extras = Extras {
        listeners: vec![Listener { name: "AWAY", protocol: "PLAINTEXT" }],
        advertised: vec![("AWAY", away)],
        properties: ACCESS_CONTROL.to_owned(),
        ..Extras::default()
    };
    RealKafka::start_with(version, &extras)
}

fn producer(name: &str, bootstrap: &str, topic: &str, more: &str) -> String {
    format!(
        "bridges.kafka.{name} {{ bootstrap_hosts = \"{bootstrap}\", local_topic = \"{name}/#\", connect_timeout = 5s
           {more}
           kafka {{ topic = \"{topic}\", max_batch_bytes = 900KB, reconnect_delay = 200ms }} }}\n"
    )
}

fn consumer(name: &str, bootstrap: &str, topic: &str, more: &str) -> String {
    format!(
        "bridges.kafka_consumer.{name} {{ bootstrap_hosts = \"{bootstrap}\", enable = false
           {more}
           topic_mapping = [{{ kafka_topic = \"{topic}\", mqtt_topic = \"back\", payload_template = \"${{.value}}\" }}] }}\n"
    )
}

fn login(password: &str) -> String {
    let user = SASL_USER.0;
    format!("authentication {{ mechanism = plain, username = {user}, password = \"{password}\" }}")
}

/// A bridge with the step at which its walk has to stumble, how badly, and words of what is found and of the
/// fix.
struct Case {
    id: &'static str,
    config: String,
    step: &'static str,
    verdict: Verdict,
    found: &'static str,
    fix: &'static str,
}

fn failing(
    id: &'static str,
    config: String,
    step: &'static str,
    found: &'static str,
    fix: &'static str,
) -> Case {
    Case { id, config, step, verdict: Verdict::Fail, found, fix }
}

fn cases(kafka: &RealKafka) -> Result<Vec<Case>> {
    let (user, password) = SASL_USER;
    for topic in ["open", "seen", "hidden"] {
        kafka.create_topic_with(topic, 2, &[])?;
    }
    kafka.create_topic_with("narrow", 1, &[("max.message.bytes", "50000")])?;
    kafka.create_topic_with("strict", 1, &[("min.insync.replicas", "2")])?;
    for operation in [Operation::Write, Operation::Describe, Operation::Read] {
        kafka.allow(user, operation, Resource::Topic, "open")?;
    }
    kafka.allow(user, Operation::Describe, Resource::Topic, "seen")?;
    let (plain, sasl) = (kafka.bootstrap(), kafka.sasl_bootstrap());
    let closed = format!("127.0.0.1:{}", nowhere()?);
    let (right, wrong) = (login(password), login("guess"));
    let scram = right.replace("plain", "scram_sha_256");
    Ok(vec![
        failing(
            "kafka:name",
            producer("name", "no-such-host.invalid:9092", "open", ""),
            "dns",
            "no address",
            "spelling",
        ),
        failing("kafka:port", producer("port", &closed, "open", ""), "tcp", "refused", "is Kafka running"),
        failing(
            "kafka:nologin",
            producer("nologin", &sasl, "open", ""),
            "login",
            "connection lost",
            "set authentication",
        ),
        failing(
            "kafka:login",
            producer("login", &plain, "open", &right),
            "login",
            "takes no login",
            "set authentication = none",
        ),
        failing("kafka:password", producer("password", &sasl, "open", &wrong), "login", "failed", "password"),
        failing(
            "kafka:mechanism",
            producer("mechanism", &sasl, "open", &scram),
            "login",
            "it offers PLAIN",
            "mechanism",
        ),
        failing(
            "kafka:tls",
            producer("tls", &plain, "open", "ssl.enable = true"),
            "tls",
            "",
            "ssl.enable = false",
        ),
        failing(
            "kafka:away",
            producer("away", &kafka.listener("AWAY"), "open", ""),
            "brokers",
            "not all can be reached there",
            "advertised.listeners",
        ),
        failing(
            "kafka:missing",
            producer("missing", &plain, "no-such-topic", ""),
            "topic",
            "not there",
            "--create --topic no-such-topic",
        ),
        failing(
            "kafka:hidden",
            producer("hidden", &sasl, "hidden", &right),
            "acl",
            "may not: Describe",
            "--operation Describe --topic hidden",
        ),
        failing(
            "kafka:seen",
            producer("seen", &sasl, "seen", &right),
            "acl",
            "may not: Write",
            "--operation Write --topic seen",
        ),
        failing(
            "kafka:strict",
            producer("strict", &plain, "strict", ""),
            "min.insync.replicas",
            "every write is refused",
            "2 replicas",
        ),
        Case {
            id: "kafka:narrow",
            config: producer("narrow", &plain, "narrow", ""),
            step: "max.message.bytes",
            verdict: Verdict::Warn,
            found: "50000, and kafka.max_batch_bytes is 921600",
            fix: "at most 50000",
        },
        failing(
            "kafka_consumer:hidden",
            consumer("hidden", &sasl, "hidden", &right),
            "acl",
            "may not",
            "--topic hidden",
        ),
        failing(
            "kafka_consumer:nogroup",
            consumer("nogroup", &sasl, "open", &right),
            "acl",
            "may not: Read",
            "--group causeway-kafka-consumer-nogroup",
        ),
        failing(
            "kafka_consumer:port",
            consumer("port", &closed, "open", ""),
            "tcp",
            "refused",
            "is Kafka running",
        ),
    ])
}

fn stumbles(case: &Case, steps: &[Step]) -> Result<()> {
    let is_it = |step: &&Step| {
        let fix = step.fix.as_deref().unwrap_or_default();
        step.step == case.step
            && step.verdict == case.verdict
            && step.found.contains(case.found)
            && fix.contains(case.fix)
    };
    let step = steps.iter().find(is_it).with_context(|| {
        format!("{}: no step {} with {:?} and {:?}: {steps:#?}", case.id, case.step, case.found, case.fix)
    })?;
    ensure!(!steps.iter().any(|step| step.found.contains("guess")), "a password is told");
    say(&format!(
        "{}: {}: {} -> {}",
        case.id,
        step.step,
        step.found,
        step.fix.as_deref().unwrap_or_default()
    ));
    Ok(())
}

/// Inodes of the sockets through which a process is connected to a port of this machine.
fn sockets(process: u32, port: &str) -> Result<BTreeSet<String>> {
    let port = format!(":{:04X}", port.parse::<u16>()?);
    let mut connected = BTreeSet::new();
    for table in ["tcp", "tcp6"] {
        for line in std::fs::read_to_string(format!("/proc/{process}/net/{table}"))?.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // Remote address, state, inode.
            if let [_, _, remote, "01", _, _, _, _, _, inode, ..] = fields[..]
                && remote.ends_with(&port)
            {
                connected.insert(format!("socket:[{inode}]"));
            }
        }
    }
    let mut own = BTreeSet::new();
    for open in std::fs::read_dir(format!("/proc/{process}/fd"))? {
        // One that was closed meanwhile is none.
        if let Ok(to) = std::fs::read_link(open?.path())
            && connected.contains(&*to.to_string_lossy())
        {
            own.insert(to.to_string_lossy().into_owned());
        }
    }
    Ok(own)
}

fn port_of(bootstrap: &str) -> &str {
    bootstrap.rsplit(':').next().unwrap_or_default()
}

/// L20, L22. Every fault, twice each: the second walk finds the same, and nothing of either is left.
fn faults_are_named_and_nothing_is_left_behind(target: &Target) -> Result<()> {
    let away = nowhere()?;
    let kafka = kafka(target, away)?;
    let (user, password) = SASL_USER;
    let cases = cases(&kafka)?;
    let (plain, sasl) = (kafka.bootstrap(), kafka.sasl_bootstrap());
    let mut text = producer("fine", &plain, "open", "");
    text.push_str(&producer("allowed", &sasl, "open", &login(password)));
    text.push_str(&consumer("fine", &plain, "open", ""));
    // What the tests are about is the walk; a bridge that runs would knock at the door all the time.
    for case in &cases {
        let disabled = case.config.replacen("bootstrap_hosts", "enable = false, bootstrap_hosts", 1);
        text.push_str(if case.config.contains("enable = false") { &case.config } else { &disabled });
    }
    let node = Node::start(&text)?;
    for bridge in ["kafka:fine", "kafka:allowed"] {
        eventually(PATIENCE, || {
            let (status, reason) = node.status(bridge)?;
            need(status == "connected", || format!("{bridge} is {status}: {reason}"))
        })?;
    }
    // Kafka makes its topic of offsets when it is first asked for a group, and takes its time where the
    // machine is busy.
    eventually(PATIENCE, || {
        let steps = node.probe("kafka_consumer:fine")?;
        need(!has_failed(&steps), || format!("{steps:#?}"))
    })?;
    let topics = || -> Result<Vec<String>> {
        let all = kafka.topics()?.into_iter();
        // Kafka's own, which it makes when somebody first asks for a group.
        Ok(all.filter(|topic| topic != "__consumer_offsets").collect())
    };
    let before_topics = topics()?;
    let before = sockets(node.pid()?, port_of(&plain))?;
    for _ in 0..2 {
        for case in &cases {
            stumbles(case, &node.probe(case.id)?)?;
        }
        for bridge in ["kafka:fine", "kafka:allowed", "kafka_consumer:fine"] {
            let steps = node.probe(bridge)?;
            ensure!(!has_failed(&steps), "{bridge}: {steps:#?}");
            ensure!(
                steps.iter().any(|step| step.step == "brokers" && step.found.contains("1 of 1")),
                "{steps:#?}"
            );
        }
        // Who may not read a topic's settings is told so; records do not need it.
        let steps = node.probe("kafka:allowed")?;
        let unread =
            steps.iter().any(|step| step.verdict == Verdict::Warn && step.found.contains("cannot be read"));
        ensure!(unread, "{steps:#?}");
    }
    ensure!(topics()? == before_topics, "probes have created a topic");
    let groups = kafka.groups()?;
    ensure!(groups.is_empty(), "probes have created groups: {groups:?}");
    eventually(PATIENCE, || {
        let now = sockets(node.pid()?, port_of(&plain))?;
        let left: Vec<_> = now.difference(&before).collect();
        need(left.is_empty(), || format!("connections of probes are left: {left:?}"))
    })?;
    for bridge in ["kafka:fine", "kafka:allowed"] {
        ensure!(node.status(bridge)?.0 == "connected", "a probe disturbed {bridge}");
    }
    // With another right the same walk goes through.
    kafka.allow(user, Operation::Write, Resource::Topic, "seen")?;
    kafka.allow(user, Operation::DescribeConfigs, Resource::Topic, "seen")?;
    eventually(PATIENCE, || {
        let steps = node.probe("kafka:seen")?;
        need(!has_failed(&steps), || format!("{steps:#?}"))
    })?;
    doctor(&cases, &text)
}

/// The same walks without a node.
fn doctor(cases: &[Case], text: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("causeway.conf");
    std::fs::write(&file, text)?;
    let file = file.to_str().context("a path of this test")?;
    let right = causeway(&["doctor", file, "--bridge", "kafka:fine"])?.successful()?;
    ensure!(right.stdout.contains("kafka:fine: nothing stands in its way"), "{}", right.stdout);
    for case in cases.iter().filter(|case| case.verdict == Verdict::Fail && case.id != "kafka:seen") {
        let told = causeway(&["doctor", file, "--bridge", case.id])?;
        let mut end = String::new();
        write!(end, "{}: the bridge cannot work like this", case.id)?;
        ensure!(
            told.status.code() == Some(1) && told.stdout.contains(&end),
            "{}{}",
            told.stdout,
            told.stderr
        );
        ensure!(told.stdout.contains(case.found) && told.stdout.contains(case.fix), "{}", told.stdout);
    }
    Ok(())
}

/// Connections that Kafka closes because nothing happens on them are no alarm, and the next message goes.
fn idle_connections_that_kafka_closes_are_no_alarm(target: &Target) -> Result<()> {
    let Target::Apache(version) = target else { bail!("this wants a real Kafka") };
    let properties = "connections.max.idle.ms=1500".to_owned();
    let kafka = RealKafka::start_with(version, &Extras { properties, ..Extras::default() })?;
    kafka.create_topic_with("idle", 3, &[])?;
    let node = Node::start(&producer("idle", &kafka.bootstrap(), "idle", ""))?;
    let publish = |prefix: &str| Running::start(load(node.mqtt(), prefix, "idle/{client}", 5, 20)).join();
    for round in 1..=3 {
        let published = publish(&format!("round-{round}-"))?;
        ensure!(published.iter().all(|client| client.acknowledged.len() == 20), "{published:?}");
        let books = node.settled("kafka:idle", PATIENCE)?;
        ensure!((books.success, books.retried) == (100 * round, 0), "{books:?}");
        let open = sockets(node.pid()?, port_of(&kafka.bootstrap()))?;
        eventually(PATIENCE, || {
            let (status, reason) = node.status("kafka:idle")?;
            assert_eq!(status, "connected", "{reason}");
            let now = sockets(node.pid()?, port_of(&kafka.bootstrap()))?;
            need(now.is_disjoint(&open), || format!("Kafka has not closed all of {open:?}"))
        })?;
        ensure!(node.status("kafka:idle")?.0 == "connected", "an idle connection is an alarm");
    }
    let alarms = node.log_lines_with("held up");
    ensure!(alarms.is_empty(), "{alarms:?}");
    Ok(())
}

fn scenario(target: &Target) -> Result<()> {
    faults_are_named_and_nothing_is_left_behind(target)?;
    idle_connections_that_kafka_closes_are_no_alarm(target)
}

#[test]
fn probes_of_apache_kafka_3_3() -> Result<()> {
    run("probes", Target::apache("3.3")?, scenario)
}

#[test]
fn probes_of_apache_kafka_3_9() -> Result<()> {
    run("probes", Target::apache("3.9")?, scenario)
}

#[test]
fn probes_of_apache_kafka_4() -> Result<()> {
    run("probes", Target::apache("4")?, scenario)
}
