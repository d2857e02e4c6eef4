//! Version 1 of the admin messages.
//!
//! The bytes on the link follow from the order of variants and fields, so from the first release on
//! nothing here changes but by adding a variant at an end; anything else is a `v2` beside it. A test
//! holds the layout.

use std::fmt;
use std::ops::RangeInclusive;

use causeway_protocol::wire::{MAX_HEADER_LEN, Protocol};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::v1_access::{AccessAnswer, AccessRequest};
use super::v1_bridges::{BridgeAnswer, BridgeRequest};
use crate::flow::ledger::Ledger;

/// The version that these messages are sent as.
pub const VERSION: u16 = 1;
/// The versions that this build understands.
pub const VERSIONS: RangeInclusive<u16> = 1..=VERSION;

/// Kind number of a frame whose header is a [`Request`].
pub const KIND_REQUEST: u16 = 1;
/// Kind number of a frame whose header is an [`Answer`].
pub const KIND_ANSWER: u16 = 2;
/// Kind number of a frame whose header is an [`AdminError`].
pub const KIND_ERROR: u16 = 3;

/// Frames that a node accepts: requests are short, but for the text of bridges with certificates in it.
pub(super) fn requests() -> Protocol {
    protocol(1024 * 1024)
}

/// Frames that a client accepts: tables of many partitions.
pub(super) fn answers() -> Protocol {
    protocol(MAX_HEADER_LEN)
}

fn protocol(max_header: usize) -> Protocol {
    Protocol { name: "admin", magic: *b"CWad", versions: VERSIONS, flags: 0, max_header, max_payload: 0 }
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// [`NodeInfo`].
    Node,
    /// All [`BridgeInfo`]s.
    Bridges,
    /// [`BridgeStats`].
    Stats {
        /// One bridge's id; `None`: all.
        bridge: Option<String>,
        /// Whether rows per partition are wanted.
        partitions: bool,
    },
    /// Stop and start.
    BridgeRestart {
        /// The bridge's id.
        id: String,
    },
    /// Start or stop for good.
    BridgeEnable {
        /// The bridge's id.
        id: String,
        /// Start (true) or stop.
        on: bool,
    },
    /// A [`ClientsPage`].
    Clients {
        /// This client alone.
        client_id: Option<String>,
        /// Those behind this one.
        after: Option<String>,
        /// Most clients of the answer; never more than [`CLIENTS_PAGE`].
        limit: u32,
    },
    /// All counters of the MQTT front.
    Mqtt,
    /// Users and bans.
    Access(AccessRequest),
    /// Other operations on bridges.
    Bridge(BridgeRequest),
}

/// Most clients in one answer.
pub const CLIENTS_PAGE: u32 = 1000;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Request::Node`].
    Node(NodeInfo),
    /// To [`Request::Bridges`].
    Bridges(Vec<BridgeInfo>),
    /// To [`Request::Stats`].
    Stats(StatsAnswer),
    /// To [`Request::BridgeRestart`] and [`Request::BridgeEnable`]: the bridge as it is now.
    Bridge(BridgeInfo),
    /// To [`Request::Clients`].
    Clients(ClientsPage),
    /// To [`Request::Mqtt`].
    Mqtt(Vec<Counter>),
    /// To [`Request::Access`].
    Access(AccessAnswer),
    /// To [`Request::Bridge`].
    BridgeDone(BridgeAnswer),
}

/// A counter by its name, so that more of them do not change the layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    /// Its name.
    pub name: String,
    /// Its value now.
    pub value: u64,
}

/// Counts by their names, so that one more of them does not change the layout.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters(pub Vec<Counter>);

impl From<Ledger> for Counters {
    /// Counts of 0 are left out.
    fn from(ledger: Ledger) -> Self {
        let counts = ledger.counts().filter(|(_, value)| *value > 0);
        Self(counts.map(|(name, value)| Counter { name: name.to_owned(), value }).collect())
    }
}

impl From<&Counters> for Ledger {
    /// Counts that this build does not know, from a later one, are left out; those that are missing are 0.
    fn from(counters: &Counters) -> Self {
        let mut ledger = Self::default();
        for Counter { name, value } in &counters.0 {
            ledger.set(name, *value);
        }
        ledger
    }
}

/// Some of the clients that have a session, by client identifier.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientsPage {
    /// The clients.
    pub clients: Vec<ClientInfo>,
    /// Whether there are more behind the last one.
    pub more: bool,
}

/// A client with its session.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientInfo {
    /// Client identifier.
    pub client_id: String,
    /// Whether it is connected.
    pub connected: bool,
    /// Messages that wait for it.
    pub queued: u64,
    /// Bytes they are charged with.
    pub queued_bytes: u64,
    /// QoS 1 and 2 messages sent to it and not acknowledged.
    pub inflight: u64,
    /// Messages for it that were dropped since its session began.
    pub dropped: u64,
}

/// A node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// `node.name`.
    pub name: String,
    /// Of the program.
    pub version: String,
    /// Milliseconds since start.
    pub uptime_ms: u64,
    /// Where clients connect.
    pub listeners: Vec<ListenerInfo>,
    /// MQTT connections (now).
    pub connections: u64,
    /// MQTT sessions, connected or not (now).
    pub sessions: u64,
    /// PUBLISH packets taken in since start.
    pub messages_in: u64,
    /// PUBLISH packets sent out since start.
    pub messages_out: u64,
    /// Bytes of memory that all producer bridges together have taken for what waits for Kafka (now).
    pub buffer_memory: u64,
    /// `node.max_buffer_memory`: how many they may take.
    pub max_buffer_memory: u64,
    /// Memory is short (`sysmon.os.sysmem_high_watermark`).
    pub memory_short: bool,
}

/// A listener of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerInfo {
    /// `TYPE:NAME`, such as `tcp:default`.
    pub name: String,
    /// Address it is bound to.
    pub bind: String,
    /// Its connections (now).
    pub connections: u64,
    /// Its limit.
    pub max_connections: u64,
}

/// Which way a bridge goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BridgeKind {
    /// MQTT into Kafka.
    #[serde(rename = "kafka")]
    Producer,
    /// Kafka into MQTT.
    #[serde(rename = "kafka_consumer")]
    Consumer,
}

impl fmt::Display for BridgeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Producer => "kafka",
            Self::Consumer => "kafka_consumer",
        })
    }
}

/// How a bridge is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BridgeStatus {
    /// It reaches Kafka and what it needs there.
    Connected,
    /// It is on its way there, for the first time or again.
    Connecting,
    /// It cannot get there until something changes; see the reason.
    Disconnected,
    /// It is not enabled.
    Stopped,
}

impl fmt::Display for BridgeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Connected => "connected",
            Self::Connecting => "connecting",
            Self::Disconnected => "disconnected",
            Self::Stopped => "stopped",
        })
    }
}

/// A bridge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeInfo {
    /// `KIND:NAME`.
    pub id: String,
    /// Name in the configuration.
    pub name: String,
    /// Which way it goes.
    pub kind: BridgeKind,
    /// Whether it is meant to run.
    pub enabled: bool,
    /// How it is.
    pub status: BridgeStatus,
    /// Why it is so, where that is not plain.
    pub reason: Option<String>,
}

/// Counters of bridges.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatsAnswer {
    /// The bridges asked for, by id.
    pub bridges: Vec<BridgeStats>,
    /// Counts of bridges that were disabled or deleted since the node started. Empty where one bridge was
    /// asked for.
    pub past: Vec<PastStats>,
}

/// Counts of bridges of one kind that were disabled or deleted, from their last run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastStats {
    /// Kind of the bridges.
    pub kind: BridgeKind,
    /// Sum of their counts.
    pub counters: Counters,
}

/// A bridge with its counters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeStats {
    /// The bridge.
    pub bridge: BridgeInfo,
    /// Sum of its counts.
    pub counters: Counters,
    /// Bytes of the files of its disk buffer (now), whose partitions share them; 0 without.
    pub disk_bytes: u64,
    /// Counts of its partitions, without what never reached a partition. Empty unless asked for.
    pub partitions: Vec<PartitionStats>,
}

/// One partition's counters in a bridge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionStats {
    /// Kafka topic.
    pub topic: String,
    /// Partition of it.
    pub partition: i32,
    /// Its counts.
    pub counters: Counters,
}

/// Why an operation was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum AdminError {
    /// There is no such bridge.
    #[error("there is no bridge {id}{}", known_names(id, known))]
    NotFound {
        /// The id that was asked for.
        id: String,
        /// The ids that there are.
        known: Vec<String>,
    },
    /// It was tried and failed.
    #[error("{reason}")]
    Failed {
        /// Cause.
        reason: String,
    },
    /// It is not done yet; it goes on.
    #[error("the node is still at it after {seconds} s; the operation goes on")]
    Timeout {
        /// How long the node waited for it.
        seconds: u64,
    },
    /// Too much at one time.
    #[error("the node has {limit} {what} already, try again later")]
    Busy {
        /// Name of the limited resource.
        what: String,
        /// How many are allowed.
        limit: u64,
    },
    /// The request cannot be read.
    #[error("the node cannot read the request: {detail}")]
    Malformed {
        /// Its fault.
        detail: String,
    },
    /// The node speaks other versions.
    #[error("the node speaks versions {first} to {last} of the admin protocol, not {got}")]
    Version {
        /// Version of the request.
        got: u16,
        /// First version it speaks.
        first: u16,
        /// Last version it speaks.
        last: u16,
    },
}

impl AdminError {
    /// There is no bridge `id` among those `known`.
    pub fn no_bridge(id: impl Into<String>, known: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self::NotFound { id: id.into(), known: known.into_iter().map(Into::into).collect() }
    }

    /// It failed for `reason`.
    pub fn failed(reason: impl fmt::Display) -> Self {
        Self::Failed { reason: reason.to_string() }
    }
}

/// Shown in an error before the list is cut.
const KNOWN_SHOWN: usize = 20;

fn known_names(id: &str, known: &[String]) -> String {
    if known.is_empty() {
        return ": this node has no bridges".into();
    }
    // `main` for `kafka:main` is the likeliest slip, a typo the next.
    let by_name = known.iter().find(|known| known.split_once(':').is_some_and(|(_, name)| name == id));
    let nearest = || {
        known
            .iter()
            .map(|known| (strsim::jaro_winkler(known, id), known))
            .filter(|(likeness, _)| *likeness > 0.85)
            .max_by(|one, other| one.0.total_cmp(&other.0))
            .map(|(_, known)| known)
    };
    let hint = by_name.or_else(nearest).map(|known| format!(", did you mean {known}?")).unwrap_or_default();
    let listed = known.iter().take(KNOWN_SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = match known.len().saturating_sub(KNOWN_SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{hint} (known: {listed}{more})")
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use causeway_protocol::wire;

    use super::super::v1_access::{Password, UserInfo};
    use super::super::v1_bridges::{DeletedInfo, ProbeStep, ProbeVerdict, Put};
    use super::*;

    #[test]
    fn a_bridge_that_is_not_there_is_answered_with_those_that_are() {
        let known = ["kafka:main", "kafka_consumer:back"];
        assert_eq!(
            AdminError::no_bridge("main", known).to_string(),
            "there is no bridge main, did you mean kafka:main? (known: kafka:main, kafka_consumer:back)"
        );
        assert_eq!(
            AdminError::no_bridge("kafka_consumer:bakc", known).to_string(),
            "there is no bridge kafka_consumer:bakc, did you mean kafka_consumer:back? (known: kafka:main, kafka_consumer:back)"
        );
        assert_eq!(
            AdminError::no_bridge("x", Vec::<String>::new()).to_string(),
            "there is no bridge x: this node has no bridges"
        );
        let many: Vec<String> = (0..50).map(|index| format!("kafka:b{index}")).collect();
        assert!(AdminError::no_bridge("x", many).to_string().ends_with("kafka:b19 and 30 more)"));
    }

    /// The headers in hexadecimal, one a line.
    fn encoded<T: Serialize>(headers: &[T]) -> String {
        let line = |header| {
            let mut out = BytesMut::new();
            wire::encode(&answers(), VERSION, KIND_ANSWER, header, 0, &mut out).unwrap();
            let bytes: Vec<String> =
                out.iter().skip(wire::ENVELOPE_LEN).map(|byte| format!("{byte:02x}")).collect();
            bytes.concat()
        };
        headers.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn counts_of_a_later_build_and_missing_ones_do_no_harm() {
        let counter = |name: &str, value| Counter { name: name.into(), value };
        let counters =
            Counters(vec![counter("matched", 3), counter("of_a_later_build", 7), counter("success", 2)]);
        let ledger = Ledger { matched: 3, success: 2, ..Ledger::default() };
        assert_eq!(Ledger::from(&counters), ledger);
        assert_eq!(Ledger::from(&Counters::from(ledger)), ledger);
    }

    /// When this fails, a node and a `causeway ctl` of different builds no longer understand each other:
    /// add a version instead. (Until the first release the expected bytes may be replaced.)
    #[test]
    fn the_layout_of_version_1_stays_as_it_is() {
        let requests = [
            Request::Node,
            Request::Bridges,
            Request::Stats { bridge: Some("a".into()), partitions: true },
            Request::BridgeRestart { id: "b".into() },
            Request::BridgeEnable { id: "c".into(), on: true },
            Request::Clients { client_id: None, after: Some("d".into()), limit: 9 },
            Request::Mqtt,
            Request::Access(AccessRequest::UserAdd {
                name: "e".into(),
                password: Password(b"p".to_vec()),
                superuser: true,
            }),
            Request::Bridge(BridgeRequest::Put { how: Put::Change, source: "s".into(), text: "t".into() }),
            Request::Bridge(BridgeRequest::Delete { id: "i".into(), force: true }),
            Request::Bridge(BridgeRequest::Show { id: "i".into() }),
            Request::Bridge(BridgeRequest::Partitions {
                id: "i".into(),
                after: Some(("t".into(), 1)),
                limit: 2,
            }),
            Request::Bridge(BridgeRequest::Probe { id: "i".into() }),
        ];
        assert_eq!(encoded(&requests), LAYOUT_OF_REQUESTS);
        let bridge = BridgeInfo {
            id: "kafka:a".into(),
            name: "a".into(),
            kind: BridgeKind::Consumer,
            enabled: true,
            status: BridgeStatus::Disconnected,
            reason: Some("r".into()),
        };
        let ledger = Ledger {
            matched: 1,
            success: 2,
            failed: 3,
            dropped_queue_full: 4,
            dropped_expired: 5,
            dropped_resource_stopped: 6,
            ..Ledger::default()
        };
        let counters = Counters(Counters::from(ledger).0.into_iter().take(6).collect());
        let node = NodeInfo {
            name: "n".into(),
            version: "v".into(),
            uptime_ms: 1,
            listeners: vec![ListenerInfo {
                name: "l".into(),
                bind: "b".into(),
                connections: 2,
                max_connections: 3,
            }],
            connections: 4,
            sessions: 5,
            messages_in: 6,
            messages_out: 7,
            buffer_memory: 8,
            max_buffer_memory: 9,
            memory_short: true,
        };
        let partitions = vec![PartitionStats { topic: "t".into(), partition: 1, counters: counters.clone() }];
        let answers = [
            Answer::Node(node),
            Answer::Bridges(vec![bridge.clone()]),
            Answer::Stats(StatsAnswer {
                bridges: vec![BridgeStats {
                    bridge: bridge.clone(),
                    counters: counters.clone(),
                    disk_bytes: 18,
                    partitions,
                }],
                past: vec![PastStats { kind: BridgeKind::Producer, counters }],
            }),
            Answer::Bridge(bridge),
            Answer::Clients(ClientsPage {
                clients: vec![ClientInfo {
                    client_id: "c".into(),
                    connected: true,
                    queued: 1,
                    queued_bytes: 2,
                    inflight: 3,
                    dropped: 4,
                }],
                more: false,
            }),
            Answer::Mqtt(vec![Counter { name: "n".into(), value: 1 }]),
            Answer::Access(AccessAnswer::User(UserInfo { name: "e".into(), superuser: true, scram: false })),
            Answer::BridgeDone(BridgeAnswer::Probed(vec![ProbeStep {
                step: "s".into(),
                about: "a".into(),
                verdict: ProbeVerdict::Fail,
                found: "f".into(),
                fix: Some("x".into()),
            }])),
            Answer::BridgeDone(BridgeAnswer::Deleted(DeletedInfo {
                id: "i".into(),
                records: 1,
                bytes: 2,
                dropped: 3,
                failed: 4,
            })),
        ];
        assert_eq!(encoded(&answers), LAYOUT_OF_ANSWERS);
        let errors = [
            AdminError::no_bridge("a", ["b"]),
            AdminError::failed("r"),
            AdminError::Timeout { seconds: 1 },
            AdminError::Busy { what: "w".into(), limit: 1 },
            AdminError::Malformed { detail: "d".into() },
            AdminError::Version { got: 1, first: 2, last: 3 },
        ];
        assert_eq!(encoded(&errors), LAYOUT_OF_ERRORS);
    }

    const LAYOUT_OF_REQUESTS: &str = "\
00
01
0201016101
030162
04016301
050001016409
06
07010165017001
08000101730174
0801016901
08020169
080301690101740202
08040169";
    const LAYOUT_OF_ANSWERS: &str = "\
00016e01760101016c0162020304050607080901
0101076b61666b613a610161010102010172
0201076b61666b613a61016101010201017206076d61746368656401077375636365737302066661696c6564031264726f707065645f71756575655f66756c6c040f64726f707065645f65787069726564051864726f707065645f7265736f757263655f73746f7070656406120101740206076d61746368656401077375636365737302066661696c6564031264726f707065645f71756575655f66756c6c040f64726f707065645f65787069726564051864726f707065645f7265736f757263655f73746f7070656406010006076d61746368656401077375636365737302066661696c6564031264726f707065645f71756575655f66756c6c040f64726f707065645f65787069726564051864726f707065645f7265736f757263655f73746f7070656406
03076b61666b613a610161010102010172
04010163010102030400
0501016e01
060101650100
07040101730161020166010178
0701016901020304";
    const LAYOUT_OF_ERRORS: &str = "\
000161010162
010172
0201
03017701
040164
05010203";
}
