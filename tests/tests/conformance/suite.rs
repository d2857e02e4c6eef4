//! What a case is, and how they are run: many at once, each over connections, client identifiers and topics
//! of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use causeway_tests::certificates::Certificates;
use causeway_tests::mqtt::road::{Framing, tls_client};
use causeway_tests::mqtt::wire::ConnAck;
use causeway_tests::mqtt::{Client, Connect, Road, Trace, Version};
use causeway_tests::node::Node;
use tokio_rustls::rustls::version::{TLS12, TLS13};

/// Cases at once. Most of the time they wait: for timers of the protocol, or for the node.
const WORKERS: usize = 24;

/// Which node a case speaks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Instance {
    /// As it comes, or the server of `CAUSEWAY_CONFORMANCE_ADDRESS`.
    Default,
    /// With low limits: see [`Instance::configuration`].
    Small,
    /// With users and rules: see [`Instance::configuration`] and [`USERS`].
    Access,
}

/// Users of [`Instance::Access`] with their passwords.
pub(crate) const USERS: [(&str, &str); 2] = [("ann", "ann's own"), ("eve", "eve's own")];

/// How a case reaches its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Transport {
    Tcp,
    /// TLS 1.3.
    Tls,
    /// Every send is one frame.
    WebSocket,
    /// TLS 1.2, and what is sent is cut into frames anywhere.
    SecureWebSocket,
}

impl Transport {
    /// Those that the cases over TCP are repeated over.
    pub(crate) const OTHERS: [Self; 3] = [Self::Tls, Self::WebSocket, Self::SecureWebSocket];

    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Tls => "TLS",
            Self::WebSocket => "WebSocket",
            Self::SecureWebSocket => "secure WebSocket",
        }
    }
}

impl Instance {
    /// What is in its configuration beside name, listener and folder.
    fn configuration(self, certificates: &Certificates) -> String {
        let text = match self {
            Self::Default => {
                let secure = certificates.ssl_options("");
                return format!(
                    "listeners.ssl.a {{ bind = \"127.0.0.1:0\", {secure} }}
                     listeners.ws.a {{ bind = \"127.0.0.1:0\" }}
                     listeners.wss.a {{ bind = \"127.0.0.1:0\", {secure} }}"
                );
            }
            Self::Access => {
                r#"mqtt.connect_timeout = 4s
                authentication {
                  backends = [ { type = built_in_database, scram = true, scram_iterations = 4096 } ]
                  ban { max_failures = 0, delay = 0 }
                }
                authorization {
                  no_match = allow
                  rules = [
                    { permission = allow, topics = ["+/own/${username}/#", "+/device/${clientid}/#"] }
                    { permission = deny, topics = ["+/own/#", "+/device/#", "+/denied/#"] }
                    { permission = deny, action = subscribe, topics = ["+/unread/#"] }
                    { permission = deny, action = publish, topics = ["+/mute/#"] }
                    { permission = deny, action = publish, qos = [2], topics = ["+/low/#"] }
                    { permission = deny, action = publish, retain = true, topics = ["+/live/#"] }
                  ]
                }"#
            }
            Self::Small => {
                "mqtt {
                  max_packet_size = 2KB, receive_maximum = 4, max_topic_levels = 8, max_topic_alias = 3
                  max_subscriptions = 5, connect_timeout = 500ms, session_expiry_interval = 1s
                  max_session_expiry_interval = 2s, max_inflight = 3, max_mqueue = 6
                  retain { max_messages = 40 }
                }"
            }
        };
        text.to_owned()
    }
}

type Run = Arc<dyn Fn(&Bench) -> Result<()> + Send + Sync>;

/// One case.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) version: Version,
    /// Section of the standard, and statements where it numbers them.
    pub(crate) section: &'static str,
    pub(crate) name: String,
    instance: Instance,
    transport: Transport,
    /// It is a case over TCP once more.
    repeated: bool,
    run: Run,
}

impl Case {
    pub(crate) fn title(&self) -> String {
        let over = if self.repeated { format!(", over {}", self.transport.name()) } else { String::new() };
        format!("{} {}: {}{over}", self.version.name(), self.section, self.name)
    }

    /// Chapter and section without what is below: `3.1`.
    pub(crate) fn chapter(&self) -> &str {
        let section = self.section.split_whitespace().next().unwrap_or_default();
        section.match_indices('.').nth(1).map_or(section, |(at, _)| &section[..at])
    }
}

/// All cases.
pub(crate) struct Suite {
    pub(crate) cases: Vec<Case>,
    instance: Instance,
    transport: Transport,
}

impl Suite {
    pub(crate) fn new() -> Self {
        Self { cases: Vec::new(), instance: Instance::Default, transport: Transport::Tcp }
    }

    /// What is added by `add` is about this transport.
    pub(crate) fn over(&mut self, transport: Transport, add: impl FnOnce(&mut Self)) {
        let before = std::mem::replace(&mut self.transport, transport);
        add(self);
        self.transport = before;
    }

    /// Every case that speaks to the default node over TCP, once more over each other transport: the same
    /// bytes.
    pub(crate) fn repeat_over_other_transports(&mut self) {
        let own = |case: &&Case| case.instance == Instance::Default && case.transport == Transport::Tcp;
        let cases: Vec<Case> = self.cases.iter().filter(own).cloned().collect();
        for transport in Transport::OTHERS {
            let again = |case: &Case| Case { transport, repeated: true, ..case.clone() };
            self.cases.extend(cases.iter().map(again));
        }
    }

    /// What is added by `add` speaks to this instance.
    pub(crate) fn on(&mut self, instance: Instance, add: impl FnOnce(&mut Self)) {
        let before = std::mem::replace(&mut self.instance, instance);
        add(self);
        self.instance = before;
    }

    /// A case of one version.
    pub(crate) fn add(
        &mut self,
        version: Version,
        section: &'static str,
        name: impl Into<String>,
        run: impl Fn(&Bench) -> Result<()> + Send + Sync + 'static,
    ) {
        self.push(version, section, name.into(), Arc::new(run));
    }

    fn push(&mut self, version: Version, section: &'static str, name: String, run: Run) {
        let (instance, transport) = (self.instance, self.transport);
        self.cases.push(Case { version, section, name, instance, transport, repeated: false, run });
    }

    /// A case of 5.0.
    pub(crate) fn v5(
        &mut self,
        section: &'static str,
        name: impl Into<String>,
        run: impl Fn(&Bench) -> Result<()> + Send + Sync + 'static,
    ) {
        self.add(Version::V5, section, name, run);
    }

    /// A case of 3.1.1.
    pub(crate) fn v4(
        &mut self,
        section: &'static str,
        name: impl Into<String>,
        run: impl Fn(&Bench) -> Result<()> + Send + Sync + 'static,
    ) {
        self.add(Version::V311, section, name, run);
    }

    /// A case of 3.1.
    pub(crate) fn v3(
        &mut self,
        section: &'static str,
        name: impl Into<String>,
        run: impl Fn(&Bench) -> Result<()> + Send + Sync + 'static,
    ) {
        self.add(Version::V31, section, name, run);
    }

    /// A case of 3.1.1 and one of 5.0, with the section of each.
    pub(crate) fn both(
        &mut self,
        v4: &'static str,
        v5: &'static str,
        name: impl Into<String>,
        run: impl Fn(&Bench) -> Result<()> + Send + Sync + 'static,
    ) {
        let (name, run): (String, Run) = (name.into(), Arc::new(run));
        for (version, section) in [(Version::V311, v4), (Version::V5, v5)] {
            self.push(version, section, name.clone(), run.clone());
        }
    }
}

/// Where cases of an instance connect.
pub(crate) struct Instances {
    foreign: Option<String>,
    lenient: bool,
    certificates: Certificates,
    nodes: [OnceLock<Result<Node, String>>; 3],
}

impl Instances {
    pub(crate) fn new(foreign: Option<String>, lenient: bool) -> Result<Self> {
        let certificates = Certificates::new()?;
        Ok(Self { foreign, lenient, certificates, nodes: [const { OnceLock::new() }; 3] })
    }

    /// True where the server is not ours: its limits are unknown.
    pub(crate) fn is_foreign(&self) -> bool {
        self.foreign.is_some()
    }

    fn start(&self, instance: Instance) -> Result<Node> {
        let node = Node::start(&instance.configuration(&self.certificates))?;
        if instance == Instance::Access {
            for (user, password) in USERS {
                node.add_user(user, password)?.successful()?;
            }
        }
        Ok(node)
    }

    /// The way to a case's server; `None`: there is none.
    fn road(&self, case: &Case, number: usize) -> Result<Option<Road>> {
        if let Some(address) = &self.foreign {
            let there = case.instance == Instance::Default && case.transport == Transport::Tcp;
            return Ok(there.then(|| Road::tcp(address)));
        }
        let node = self.nodes[case.instance as usize]
            .get_or_init(|| self.start(case.instance).map_err(|error| format!("{error:#}")));
        let node = node.as_ref().map_err(|error| anyhow!("{error}"))?;
        let authority = self.certificates.path("ca.pem");
        Ok(Some(match case.transport {
            Transport::Tcp => Road::tcp(node.mqtt()),
            Transport::Tls => Road::tcp(&node.listener("mqtts")?).tls(tls_client(&authority, &TLS13)?),
            Transport::WebSocket => Road::tcp(&node.listener("ws")?).websocket(Framing::Whole),
            Transport::SecureWebSocket => {
                let cut = Framing::Cut(0x9E37_79B9_7F4A_7C15 ^ number as u64);
                Road::tcp(&node.listener("wss")?).tls(tls_client(&authority, &TLS12)?).websocket(cut)
            }
        }))
    }

    /// Every node still runs, no connection of it panicked, and it ends in order.
    pub(crate) fn stop(self) -> Result<()> {
        for node in self.nodes.into_iter().filter_map(OnceLock::into_inner).flatten() {
            let mut node = node;
            let panics = node.log_lines_with("panicked");
            ensure!(panics.is_empty(), "a connection panicked:\n{}", panics.join("\n"));
            node.stop()?;
        }
        Ok(())
    }
}

/// Names of one run are not those of another: a server that is not ours may have been there for both.
fn run_number() -> u32 {
    std::process::id() % 100_000
}

/// What a case works with.
pub(crate) struct Bench {
    pub(crate) version: Version,
    road: Road,
    number: usize,
    trace: Trace,
}

impl Bench {
    /// True in cases of 5.0.
    pub(crate) fn is_v5(&self) -> bool {
        self.version == Version::V5
    }

    /// A client identifier that no other case has.
    pub(crate) fn id(&self, name: &str) -> String {
        format!("c{}x{}{name}", run_number(), self.number)
    }

    /// A topic that no other case has; letters and digits, no levels above it.
    pub(crate) fn topic(&self, rest: &str) -> String {
        format!("t{}x{}{rest}", run_number(), self.number)
    }

    /// A connection.
    pub(crate) fn open(&self, name: &str) -> Result<Client> {
        self.open_as(name, self.version)
    }

    /// A connection of a client of another version.
    pub(crate) fn open_as(&self, name: &str, version: Version) -> Result<Client> {
        Client::open_over(&self.road, name, version, &self.trace)
    }

    /// `HOST:PORT` of the listener.
    pub(crate) fn address(&self) -> &str {
        self.road.address()
    }

    /// CONNECT of a client of this case.
    pub(crate) fn connector(&self, name: &str) -> Connect {
        Connect::new(self.version, &self.id(name))
    }

    /// Connects; the CONNACK must say success.
    pub(crate) fn with(&self, name: &str, connect: &Connect) -> Result<(Client, ConnAck)> {
        let mut client = self.open(name)?;
        let connack = client.connect(connect)?;
        ensure!(connack.reason == 0, "{name} is not connected: {:#04x}", connack.reason);
        Ok((client, connack))
    }

    /// A client with a clean session.
    pub(crate) fn client(&self, name: &str) -> Result<Client> {
        Ok(self.with(name, &self.connector(name))?.0)
    }

    /// A client that has subscribed.
    pub(crate) fn subscriber(&self, name: &str, filter: &str, options: u8) -> Result<Client> {
        let mut client = self.client(name)?;
        client.subscribe(filter, options)?;
        Ok(client)
    }
}

/// How a run went.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) passed: usize,
    pub(crate) left_out: usize,
    pub(crate) failed: Vec<(String, String)>,
    pub(crate) slowest: Option<(Duration, String)>,
}

enum Verdict {
    Passed,
    LeftOut,
    Failed(String),
}

fn judge(case: &Case, number: usize, instances: &Instances) -> Verdict {
    let road = match instances.road(case, number) {
        Ok(Some(road)) => road,
        Ok(None) => return Verdict::LeftOut,
        Err(error) => return Verdict::Failed(format!("{error:#}")),
    };
    let trace = if instances.lenient { Trace::lenient() } else { Trace::default() };
    let bench = Bench { version: case.version, road, number, trace: trace.clone() };
    let failure = match catch_unwind(AssertUnwindSafe(|| (case.run)(&bench))) {
        Ok(Ok(())) => return Verdict::Passed,
        Ok(Err(error)) => format!("{error:#}"),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unknown");
            format!("panicked: {text}")
        }
    };
    Verdict::Failed(format!("{failure}\n{}", trace.tail(40)))
}

/// Runs cases, saying what became of each.
pub(crate) fn run(cases: &[Case], instances: &Instances) -> Outcome {
    let next = AtomicUsize::new(0);
    let outcome = Mutex::new(Outcome::default());
    // What waits for timers first: the others fill the time.
    let mut order: Vec<usize> = (0..cases.len()).collect();
    order.sort_by_key(|&index| !cases[index].name.contains("after"));
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(&index) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let case = &cases[index];
                    let started = Instant::now();
                    let verdict = judge(case, index, instances);
                    let took = started.elapsed();
                    let title = case.title();
                    let mut outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner);
                    let word = match verdict {
                        Verdict::Passed => {
                            outcome.passed += 1;
                            "ok"
                        }
                        Verdict::LeftOut => {
                            outcome.left_out += 1;
                            "left out"
                        }
                        Verdict::Failed(why) => {
                            outcome.failed.push((title.clone(), why));
                            "FAILED"
                        }
                    };
                    println!("test {title} ... {word}");
                    if outcome.slowest.as_ref().is_none_or(|(slowest, _)| *slowest < took) {
                        outcome.slowest = Some((took, title));
                    }
                }
            });
        }
    });
    outcome.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Two cases of one title could hide each other.
pub(crate) fn doubled(cases: &[Case]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    cases.iter().map(Case::title).filter(|title| !seen.insert(title.clone())).collect()
}

/// Cases by chapter and version, as the table of `docs/mqtt-conformance.md`.
pub(crate) fn table(cases: &[Case]) -> String {
    let mut counts: BTreeMap<(Vec<u32>, String), BTreeMap<Version, usize>> = BTreeMap::new();
    let (repeated, own): (Vec<&Case>, Vec<&Case>) = cases.iter().partition(|case| case.repeated);
    for case in &own {
        let chapter = case.chapter().to_owned();
        let numbers = chapter.split('.').map(|part| part.parse().unwrap_or(0)).collect();
        *counts.entry((numbers, chapter)).or_default().entry(case.version).or_default() += 1;
    }
    let cell = |counts: &BTreeMap<Version, usize>, version| {
        counts.get(&version).map_or(String::new(), usize::to_string)
    };
    let row = |name: &str, title: &str, counts: &BTreeMap<Version, usize>| {
        let [a, b, c] = [Version::V31, Version::V311, Version::V5].map(|version| cell(counts, version));
        format!("| {name} | {title} | {a} | {b} | {c} |\n")
    };
    let mut text = String::from("| section | about | 3.1 | 3.1.1 | 5.0 |\n|---|---|---:|---:|---:|\n");
    let mut all: BTreeMap<Version, usize> = BTreeMap::new();
    for ((_, chapter), counts) in &counts {
        text += &row(chapter, title_of(chapter), counts);
        for (version, count) in counts {
            *all.entry(*version).or_default() += count;
        }
    }
    text += &row("", &format!("all: {}", own.len()), &all);
    for transport in Transport::OTHERS {
        let again = || repeated.iter().filter(|case| case.transport == transport);
        let mut counts = BTreeMap::new();
        again().for_each(|case| *counts.entry(case.version).or_default() += 1);
        text += &row("", &format!("once more over {}: {}", transport.name(), again().count()), &counts);
    }
    text
}

/// What a section is about. Where the two standards number differently, both.
fn title_of(chapter: &str) -> &'static str {
    match chapter {
        "1.5" => "data representation: UTF-8, integers, binary data",
        "2.1" => "fixed header, packet types, flags (3.1: also DUP, QoS, RETAIN)",
        "2.2" => "3.1.1: fixed header and its flags; 5.0: packet identifiers and properties",
        "2.3" => "packet identifiers",
        "2.4" => "3.1: message identifiers",
        "2.5" => "3.1: strings",
        "3.1" => "CONNECT",
        "3.2" => "CONNACK",
        "3.3" => "PUBLISH",
        "3.4" => "PUBACK",
        "3.5" => "PUBREC",
        "3.6" => "PUBREL",
        "3.7" => "PUBCOMP",
        "3.8" => "SUBSCRIBE",
        "3.9" => "SUBACK",
        "3.10" => "UNSUBSCRIBE",
        "3.11" => "UNSUBACK",
        "3.12" => "PINGREQ and PINGRESP",
        "3.14" => "DISCONNECT",
        "3.15" => "AUTH",
        "4.1" => "session state (3.1: QoS flows)",
        "4.2" => "network connections: framing, fragments",
        "4.3" => "QoS levels and their flows",
        "4.4" => "delivery again after a reconnect",
        "4.5" => "receipt of messages",
        "4.6" => "order of messages",
        "4.7" => "topic names and filters",
        "4.8" => "3.1.1: handling errors; 5.0: subscriptions, shared ones",
        "4.9" => "flow control",
        "4.10" => "request and response",
        "4.12" => "enhanced authentication",
        "4.13" => "handling errors",
        "5.4" => "access control: who may connect, publish and subscribe",
        "6" | "6.0" => "MQTT over WebSocket",
        _ => "",
    }
}
