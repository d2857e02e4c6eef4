//! The link from end to end, against a service that is told what to say.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use causeway_protocol::wire::{self, FrameDecoder};
use clap::Parser;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::v1::{self, Request};
use super::v1_access::{AccessAnswer, AccessRequest, BanInfo, Password, UserInfo, UsersPage};
use super::v1_bridges::{BridgeAnswer, BridgeRequest, PartitionsPage};
use super::*;
use crate::cli::ctl::Ctl;
use crate::flow::ledger::Ledger;

/// Longer than anything here takes, on a busy machine too.
const SOON: Duration = Duration::from_secs(20);

/// Two bridges; a restart waits until it is allowed to end.
#[derive(Default)]
struct Fake {
    disabled: Mutex<Vec<String>>,
    restart_may_end: Notify,
    restarts_begun: AtomicUsize,
    restarts_ended: AtomicUsize,
    huge: AtomicBool,
}

const IDS: [&str; 2] = ["kafka:main", "kafka_consumer:back"];

impl Fake {
    fn info(&self, id: &str) -> Result<BridgeInfo, AdminError> {
        let (kind, name) =
            id.split_once(':').filter(|_| IDS.contains(&id)).ok_or_else(|| AdminError::no_bridge(id, IDS))?;
        let enabled = !self.disabled.lock().iter().any(|disabled| disabled == id);
        Ok(BridgeInfo {
            id: id.into(),
            name: name.into(),
            kind: if kind == "kafka" { BridgeKind::Producer } else { BridgeKind::Consumer },
            enabled,
            status: if enabled { BridgeStatus::Connected } else { BridgeStatus::Stopped },
            reason: None,
        })
    }
}

impl AdminService for Fake {
    fn node(&self) -> Pending<'_, NodeInfo> {
        Box::pin(async { Ok(NodeInfo { name: "one".into(), messages_in: 17, ..NodeInfo::default() }) })
    }

    fn bridges(&self) -> Pending<'_, Vec<BridgeInfo>> {
        Box::pin(async { IDS.iter().map(|id| self.info(id)).collect() })
    }

    fn stats(&self, bridge: Option<String>, partitions: bool) -> Pending<'_, StatsAnswer> {
        Box::pin(async move {
            let ids = bridge.as_deref().map_or(IDS.to_vec(), |id| vec![id]);
            let ledger = Ledger { matched: 3, success: 2, dropped_expired: 1, ..Ledger::default() };
            let counters = Counters::from(ledger);
            let rows = if self.huge.load(Ordering::Relaxed) { 400_000 } else { 2 };
            let row = |partition| PartitionStats {
                topic: "testtopic-in".into(),
                partition,
                counters: counters.clone(),
            };
            let bridges = ids
                .into_iter()
                .map(|id| {
                    let partitions = if partitions { (0..rows).map(row).collect() } else { vec![] };
                    let counters = counters.clone();
                    Ok(BridgeStats { bridge: self.info(id)?, counters, disk_bytes: 0, partitions })
                })
                .collect::<Result<_, _>>()?;
            Ok(StatsAnswer { bridges, past: Vec::new() })
        })
    }

    fn clients(
        &self,
        client_id: Option<String>,
        after: Option<String>,
        limit: u32,
    ) -> Pending<'_, ClientsPage> {
        let all = (0..2500).map(|number| format!("c{number:04}"));
        let mut clients: Vec<_> = all
            .filter(|id| client_id.as_ref().is_none_or(|wanted| wanted == id))
            .filter(|id| after.as_ref().is_none_or(|after| id > after))
            .map(|client_id| ClientInfo { client_id, ..ClientInfo::default() })
            .collect();
        let more = clients.len() > limit as usize;
        clients.truncate(limit as usize);
        Box::pin(async move { Ok(ClientsPage { clients, more }) })
    }

    fn mqtt(&self) -> Pending<'_, Vec<Counter>> {
        let counter = |name: &str, value| Counter { name: name.into(), value };
        Box::pin(async move { Ok(vec![counter("connections", 12_345), counter("sessions", 6)]) })
    }

    fn access(&self, request: AccessRequest) -> Pending<'_, AccessAnswer> {
        Box::pin(async move {
            let user = |name: &str| UserInfo { name: name.into(), superuser: name == "root", scram: false };
            Ok(match request {
                AccessRequest::Users { after: None, .. } => {
                    AccessAnswer::Users(UsersPage { users: vec![user("ann"), user("root")], total: 2 })
                }
                AccessRequest::Users { .. } => AccessAnswer::Users(UsersPage { users: vec![], total: 2 }),
                AccessRequest::UserAdd { name, .. } | AccessRequest::UserPassword { name, .. } => {
                    AccessAnswer::User(user(&name))
                }
                AccessRequest::UserDelete { name } => {
                    return Err(AdminError::failed(format_args!("there is no user {name:?}")));
                }
                AccessRequest::Bans => AccessAnswer::Bans(vec![BanInfo {
                    address: "192.0.2.1".into(),
                    remaining_s: 17,
                    failures: 50,
                }]),
                AccessRequest::BansClear { .. } => AccessAnswer::Cleared(1),
            })
        })
    }

    fn bridge(&self, request: BridgeRequest) -> Pending<'_, BridgeAnswer> {
        Box::pin(async move {
            match request {
                BridgeRequest::Partitions { id, after, limit } => {
                    self.info(&id)?;
                    let rows = if self.huge.load(Ordering::Relaxed) { 400_000 } else { 2 };
                    let from = after.map_or(0, |(_, partition)| partition + 1);
                    let row = |partition| PartitionStats {
                        topic: "testtopic-in".into(),
                        partition,
                        counters: Ledger { matched: 3, success: 2, dropped_expired: 1, ..Ledger::default() }
                            .into(),
                    };
                    let partitions: Vec<_> = (from..rows).take(limit as usize).map(row).collect();
                    let more = partitions.last().is_some_and(|last| last.partition + 1 < rows);
                    Ok(BridgeAnswer::Partitions(PartitionsPage { partitions, more }))
                }
                other => Err(AdminError::failed(format_args!("not here: {other:?}"))),
            }
        })
    }

    fn restart_bridge(&self, id: String) -> Pending<'_, BridgeInfo> {
        Box::pin(async move {
            let info = self.info(&id)?;
            self.restarts_begun.fetch_add(1, Ordering::SeqCst);
            self.restart_may_end.notified().await;
            self.restarts_ended.fetch_add(1, Ordering::SeqCst);
            Ok(info)
        })
    }

    fn enable_bridge(&self, id: String, on: bool) -> Pending<'_, BridgeInfo> {
        Box::pin(async move {
            self.info(&id)?;
            assert_ne!(id, "kafka_consumer:back", "this one panics");
            let mut disabled = self.disabled.lock();
            disabled.retain(|other| *other != id);
            if !on {
                disabled.push(id.clone());
            }
            drop(disabled);
            self.info(&id)
        })
    }
}

struct Stage {
    fake: Arc<Fake>,
    server: AdminHandle,
    address: String,
}

async fn stage_with(options: AdminOptions) -> Stage {
    let fake = Arc::new(Fake::default());
    let service: Arc<dyn AdminService> = Arc::clone(&fake) as _;
    let bind = "127.0.0.1:0".parse().unwrap();
    let server = AdminServer::start_with(bind, service, options).await.unwrap();
    let address = server.local_addr().to_string();
    Stage { fake, server, address }
}

async fn stage() -> Stage {
    stage_with(AdminOptions::default()).await
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(timeout(SOON, wait).await.is_ok(), "never came true: {what}");
}

fn refused(error: ClientError) -> AdminError {
    match error {
        ClientError::Refused(error) => error,
        other => panic!("the node was expected to refuse: {other}"),
    }
}

#[tokio::test]
async fn every_operation_is_answered_over_one_connection() {
    let stage = stage().await;
    let mut client = AdminClient::connect(&stage.address).await.unwrap();
    assert_eq!(client.node().await.unwrap().messages_in, 17);
    assert_eq!(client.bridges().await.unwrap().len(), 2);
    assert_eq!(client.stats(None, false).await.unwrap().bridges.len(), 2);
    let one = client.stats(Some("kafka:main".into()), true).await.unwrap();
    let [one] = &one.bridges[..] else { panic!("one bridge: {one:?}") };
    assert_eq!((one.partitions.len(), Ledger::from(&one.counters).imbalance()), (2, 0));
    let off = client.enable_bridge("kafka:main".into(), false).await.unwrap();
    assert_eq!((off.enabled, off.status), (false, BridgeStatus::Stopped));
    assert!(client.enable_bridge("kafka:main".into(), true).await.unwrap().enabled);
    stage.fake.restart_may_end.notify_one();
    assert_eq!(client.restart_bridge("kafka:main".into()).await.unwrap().id, "kafka:main");
    stage.server.shutdown().await;
}

#[tokio::test]
async fn a_refusal_names_the_known_bridges_and_leaves_the_connection_usable() {
    let stage = stage().await;
    let mut client = AdminClient::connect(&stage.address).await.unwrap();
    for error in [
        client.restart_bridge("kafka:mian".into()).await.unwrap_err(),
        client.enable_bridge("kafka:mian".into(), true).await.unwrap_err(),
        client.stats(Some("kafka:mian".into()), false).await.unwrap_err(),
    ] {
        assert_eq!(refused(error), AdminError::no_bridge("kafka:mian", IDS));
    }
    assert!(client.node().await.is_ok());
}

#[tokio::test]
async fn clients_come_in_as_many_pages_as_it_takes_and_counters_by_name() {
    let stage = stage().await;
    let ask = async |arguments: &[&str]| {
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            ctl: Ctl,
        }
        let line = ["ctl", "--admin", &stage.address].into_iter().chain(arguments.iter().copied());
        Line::try_parse_from(line).unwrap().ctl.output(None).await.unwrap()
    };
    let count = |text: &str| text.lines().filter(|line| line.starts_with('c')).count();
    let all = ask(&["clients", "--limit", "9999"]).await;
    assert_eq!(count(&all), 2500);
    assert!(!all.contains("there are more"));
    let some = ask(&["sessions", "--limit", "1500", "--after", "c0009"]).await;
    assert_eq!(count(&some), 1500);
    assert!(some.contains("\nc0010 ") && some.ends_with("there are more: --after c1509\n"), "{some}");
    assert_eq!(count(&ask(&["clients", "c0007"]).await), 1);
    let counters = ask(&["mqtt"]).await;
    assert_eq!(counters, "COUNTER      VALUE\nconnections  12345\nsessions         6\n");
    let counters = ask(&["mqtt", "--json"]).await;
    assert_eq!(counters, "{\n  \"connections\": 12345,\n  \"sessions\": 6\n}\n");
}

#[tokio::test]
async fn an_address_that_others_can_reach_is_refused() {
    for bind in ["0.0.0.0:0", "[::]:0", "192.0.2.1:8081", "[::ffff:192.0.2.1]:0"] {
        let service = Arc::new(Fake::default());
        let error = AdminServer::start(bind.parse().unwrap(), service).await.unwrap_err();
        assert!(matches!(error, StartError::NotLoopback(_)), "{bind}");
        assert!(error.to_string().contains("is not on loopback"));
    }
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let stage = stage().await;
    let bind = stage.server.local_addr();
    let error = AdminServer::start(bind, Arc::new(Fake::default())).await.unwrap_err();
    assert!(error.to_string().starts_with(&format!("cannot listen for the admin link on {bind}: ")));
}

/// Sends raw bytes and reads frames until the node closes.
async fn raw(address: &str, bytes: &[u8]) -> Vec<wire::Frame> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut input = BytesMut::new();
    timeout(SOON, async { while stream.read_buf(&mut input).await.unwrap() > 0 {} }).await.unwrap();
    let decoder = FrameDecoder::new(v1::answers());
    let mut frames = Vec::new();
    while let Some(frame) = decoder.decode(&mut input).unwrap() {
        frames.push(frame);
    }
    assert!(input.is_empty());
    frames
}

fn request_bytes(kind: u16, request: &Request) -> BytesMut {
    let mut out = BytesMut::new();
    wire::encode(&v1::requests(), v1::VERSION, kind, request, 0, &mut out).unwrap();
    out
}

#[tokio::test]
async fn a_frame_that_cannot_be_read_is_answered_with_an_error_and_the_connection_ends() {
    let stage = stage().await;
    let whole = request_bytes(v1::KIND_REQUEST, &Request::Node);
    let changed = |at: usize, to: u8| {
        let mut bytes = whole.clone();
        bytes[at] = to;
        // More behind it, unread: the error must still arrive.
        bytes.put_bytes(0, 10_000);
        bytes
    };
    let cases = [
        (BytesMut::from(&b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..]), "is this the right port?"),
        (changed(7, 9), "kind 9 is no request, 1 is"),
        (changed(8, 1), "unknown flags 0x0100"),
        (changed(10, 0xff), "header of"),
        (changed(14, 1), "payload of 16777216 bytes, at most 0"),
        (changed(18, 99), "header of a Request frame cannot be read"),
    ];
    for (bytes, expected) in cases {
        let frames = raw(&stage.address, &bytes).await;
        assert_eq!(frames.len(), 1, "{expected}");
        assert_eq!(frames[0].envelope.kind, v1::KIND_ERROR);
        let error: AdminError = frames[0].header().unwrap();
        assert!(matches!(error, AdminError::Malformed { .. }));
        assert!(error.to_string().contains(expected), "{error} does not say {expected}");
    }
    let frames = raw(&stage.address, &changed(5, 9)).await;
    assert_eq!(frames[0].header(), Ok(AdminError::Version { got: 9, first: 1, last: 1 }));
}

#[tokio::test]
async fn requests_that_come_together_are_answered_one_after_the_other() {
    let stage = stage().await;
    let mut bytes = request_bytes(v1::KIND_REQUEST, &Request::Node);
    bytes.put_slice(&request_bytes(v1::KIND_REQUEST, &Request::Bridges));
    let mut stream = TcpStream::connect(&stage.address).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut input = BytesMut::new();
    timeout(SOON, async { while stream.read_buf(&mut input).await.unwrap() > 0 {} }).await.unwrap();
    let decoder = FrameDecoder::new(v1::answers());
    let first: v1::Answer = decoder.decode(&mut input).unwrap().unwrap().header().unwrap();
    let second: v1::Answer = decoder.decode(&mut input).unwrap().unwrap().header().unwrap();
    assert!(matches!((first, second), (v1::Answer::Node(_), v1::Answer::Bridges(_))));
}

#[tokio::test]
async fn a_request_that_does_not_end_and_a_silent_connection_are_closed() {
    let short = Duration::from_millis(50);
    let stage = stage_with(AdminOptions { idle: short, read: short, ..AdminOptions::default() }).await;
    let whole = request_bytes(v1::KIND_REQUEST, &Request::Node);
    for bytes in [&whole[..0], &whole[..3], &whole[..whole.len() - 1]] {
        assert_eq!(raw(&stage.address, bytes).await, [], "{} bytes", bytes.len());
    }
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let stage = stage_with(AdminOptions { max_connections: 2, ..AdminOptions::default() }).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut client = AdminClient::connect(&stage.address).await.unwrap();
        client.node().await.unwrap();
        held.push(client);
    }
    let mut third = AdminClient::connect(&stage.address).await.unwrap();
    let busy = AdminError::Busy { what: "admin connections".into(), limit: 2 };
    assert_eq!(refused(third.node().await.unwrap_err()), busy);
    drop(held);
    let again = async {
        loop {
            let mut client = AdminClient::connect(&stage.address).await.unwrap();
            if client.node().await.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, again).await.unwrap();
}

#[tokio::test]
async fn an_operation_goes_on_when_its_caller_has_waited_long_enough_or_is_gone() {
    let operation = Duration::from_millis(50);
    let stage = stage_with(AdminOptions { operation, max_operations: 2, ..AdminOptions::default() }).await;
    let mut client = AdminClient::connect(&stage.address).await.unwrap();
    let error = client.restart_bridge("kafka:main".into()).await.unwrap_err();
    assert_eq!(refused(error), AdminError::Timeout { seconds: 0 });
    let mut gone = TcpStream::connect(&stage.address).await.unwrap();
    let request = Request::BridgeRestart { id: "kafka:main".into() };
    gone.write_all(&request_bytes(v1::KIND_REQUEST, &request)).await.unwrap();
    eventually("the second restart begins", || stage.fake.restarts_begun.load(Ordering::SeqCst) == 2).await;
    drop(gone);

    let error = client.node().await.unwrap_err();
    assert_eq!(refused(error), AdminError::Busy { what: "admin operations".into(), limit: 2 });

    stage.fake.restart_may_end.notify_waiters();
    eventually("both restarts end", || stage.fake.restarts_ended.load(Ordering::SeqCst) == 2).await;
    let free = async { while client.node().await.is_err() {} };
    timeout(SOON, free).await.unwrap();
}

#[tokio::test]
async fn a_panic_in_an_operation_is_answered_and_the_node_goes_on() {
    let stage = stage().await;
    let mut client = AdminClient::connect(&stage.address).await.unwrap();
    let error = client.enable_bridge("kafka_consumer:back".into(), true).await.unwrap_err();
    assert!(refused(error).to_string().contains("the operation ended badly"));
    assert!(client.node().await.is_ok());
}

#[tokio::test]
async fn an_answer_beyond_the_frame_limit_becomes_an_error() {
    let stage = stage().await;
    stage.fake.huge.store(true, Ordering::Relaxed);
    let mut client = AdminClient::connect(&stage.address).await.unwrap();
    let error = refused(client.stats(None, true).await.unwrap_err());
    assert!(error.to_string().contains("ask for less at one time"), "{error}");
    assert!(client.stats(None, false).await.is_ok());
}

#[tokio::test]
async fn a_stop_ends_the_connections_and_frees_the_address() {
    let stage = stage().await;
    let mut client = AdminClient::connect(&stage.address).await.unwrap();
    client.node().await.unwrap();
    let bind = stage.server.local_addr();
    stage.server.shutdown().await;
    assert!(client.node().await.is_err());
    let again = AdminServer::start(bind, Arc::new(Fake::default())).await.unwrap();
    drop(again);
    let refused = async { while TcpStream::connect(bind).await.is_ok() {} };
    assert!(timeout(SOON, refused).await.is_ok(), "a dropped handle stops the link as well");
}

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    ctl: Ctl,
}

async fn ctl(line: &str, variable: Option<&str>) -> anyhow::Result<String> {
    Line::try_parse_from(line.split_whitespace())?.ctl.output(variable).await
}

#[tokio::test]
async fn the_command_line_prints_tables_and_json() {
    let stage = stage().await;
    let address = stage.address.as_str();
    let table = ctl(&format!("ctl stats --admin {address}"), None).await.unwrap();
    assert!(table.contains("kafka:main") && table.contains("holds for every row"), "{table}");
    let json = ctl("ctl --json stats kafka:main --partitions", Some(address)).await.unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["past"], serde_json::json!({}));
    let json = &json["bridges"];
    assert_eq!(json[0]["id"], "kafka:main");
    assert_eq!(json[0]["kind"], "kafka");
    assert_eq!(json[0]["status"], "connected");
    assert_eq!(json[0]["counters"]["matched"], 3);
    assert_eq!(json[0]["counters"]["dropped"], 1);
    assert_eq!(json[0]["counters"]["imbalance"], 0);
    assert_eq!(json[0]["partitions"][1]["partition"], 1);
    assert!(ctl("ctl node", Some(address)).await.unwrap().contains("messages in   17"));
    assert!(ctl("ctl bridges", Some(address)).await.unwrap().contains("kafka_consumer:back"));
    assert!(ctl("ctl disable kafka:main", Some(address)).await.unwrap().contains("stopped"));
    assert!(ctl("ctl enable kafka:main", Some(address)).await.unwrap().contains("connected"));
    let error = ctl("ctl restart main", Some(address)).await.unwrap_err();
    assert!(error.to_string().contains("did you mean kafka:main?"), "{error}");
}

#[tokio::test]
async fn the_command_line_says_how_to_find_the_node_when_none_is_there() {
    let stage = stage().await;
    let address = stage.address.clone();
    stage.server.shutdown().await;
    let error = ctl("ctl node", Some(&address)).await.unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains(&address) && text.contains("--admin HOST:PORT"), "{text}");
    assert!(text.contains("onnection refused"), "{text}");
}

#[tokio::test]
async fn users_and_bans_are_shown() {
    let server = AdminServer::start("127.0.0.1:0".parse().unwrap(), Arc::new(Fake::default())).await.unwrap();
    let address = server.local_addr().to_string();
    let ctl = async |arguments: &[&str]| {
        let words = ["ctl", "--admin", &address].into_iter().chain(arguments.iter().copied());
        Line::try_parse_from(words).unwrap().ctl.output(None).await.map_err(|error| format!("{error:#}"))
    };
    let users = ctl(&["users", "list"]).await.unwrap();
    assert_eq!(users, "NAME  SUPERUSER  SCRAM\nann\nroot  yes\n");
    let bans = ctl(&["bans", "list"]).await.unwrap();
    assert_eq!(bans, "ADDRESS    REMAINING  FAILURES\n192.0.2.1       17 s        50\n");
    assert_eq!(ctl(&["bans", "clear"]).await.unwrap(), "1 ended\n");
    assert_eq!(ctl(&["users", "delete", "eve"]).await.unwrap_err(), "there is no user \"eve\"");
    let request = Request::Access(AccessRequest::UserPassword {
        name: "ann".into(),
        password: Password(b"tiger".to_vec()),
    });
    assert!(!format!("{request:?}").contains("tiger"));
}
