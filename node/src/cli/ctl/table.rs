//! The tables that `causeway ctl` prints.
//!
//! Names and reasons come from configurations and from Kafka: control characters in them are shown
//! escaped, so that no text can move the cursor.

use std::fmt::Write as _;

use crate::admin::v1::{BridgeInfo, BridgeStats, ClientsPage, NodeInfo, PastStats};
use crate::admin::v1_access::{BanInfo, UserInfo};
use crate::flow::ledger::Ledger;

pub(super) enum Align {
    Left,
    Right,
}

/// Rows of text under a heading, columns two spaces apart.
pub(super) struct Table {
    pub(super) columns: Vec<(&'static str, Align)>,
    pub(super) rows: Vec<Vec<String>>,
}

pub(super) fn plain(text: &str) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escape).collect()
}

impl Table {
    pub(super) fn render(&self) -> String {
        let width = |column: usize, heading: &str| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.chain([heading.len()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> =
            self.columns.iter().enumerate().map(|(index, (heading, _))| width(index, heading)).collect();
        let mut out = String::new();
        let headings = self.columns.iter().map(|(heading, _)| *heading).collect::<Vec<_>>();
        self.line(&mut out, &headings, &widths);
        for row in &self.rows {
            self.line(&mut out, &row.iter().map(String::as_str).collect::<Vec<_>>(), &widths);
        }
        out
    }

    fn line(&self, out: &mut String, cells: &[&str], widths: &[usize]) {
        let mut line = String::new();
        for ((cell, width), (_, align)) in cells.iter().zip(widths).zip(&self.columns) {
            // Writing to a String cannot fail.
            let _ = match align {
                Align::Left => write!(line, "{cell:<width$}  "),
                Align::Right => write!(line, "{cell:>width$}  "),
            };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

/// Users of the built-in database.
pub(super) fn users(users: &[UserInfo]) -> String {
    let yes = |flag: bool| if flag { "yes" } else { "" }.to_owned();
    Table {
        columns: vec![("NAME", Align::Left), ("SUPERUSER", Align::Left), ("SCRAM", Align::Left)],
        rows: users
            .iter()
            .map(|user| vec![plain(&user.name), yes(user.superuser), yes(user.scram)])
            .collect(),
    }
    .render()
}

/// Banned addresses.
pub(super) fn bans(bans: &[BanInfo]) -> String {
    let row =
        |ban: &BanInfo| vec![plain(&ban.address), format!("{} s", ban.remaining_s), ban.failures.to_string()];
    Table {
        columns: vec![("ADDRESS", Align::Left), ("REMAINING", Align::Right), ("FAILURES", Align::Right)],
        rows: bans.iter().map(row).collect(),
    }
    .render()
}

/// A column of counters: its heading, and the number to show.
type Counter = (&'static str, fn(&Ledger) -> String);

const COUNTERS: [Counter; 9] = [
    ("MATCHED", |ledger| ledger.matched.to_string()),
    ("SUCCESS", |ledger| ledger.success.to_string()),
    ("FAILED", |ledger| ledger.failed.to_string()),
    ("DROPPED", |ledger| ledger.dropped().to_string()),
    ("QUEUING", |ledger| ledger.queuing.to_string()),
    ("BYTES", |ledger| ledger.queuing_bytes.to_string()),
    ("INFLIGHT", |ledger| ledger.inflight.to_string()),
    ("RETRIED", |ledger| ledger.retried.to_string()),
    ("RECEIVED", |ledger| ledger.received.to_string()),
];

/// Shown only where it is not zero anywhere: then it is the news.
const IMBALANCE: Counter = ("IMBALANCE", |ledger| format!("{:+}", ledger.imbalance()));

fn ledgers(stats: &BridgeStats) -> impl Iterator<Item = Ledger> {
    let partitions = stats.partitions.iter().map(|partition| &partition.counters);
    std::iter::once(&stats.counters).chain(partitions).map(Ledger::from)
}

/// Counters of bridges, with the law that they obey, and of bridges that were disabled or deleted.
pub(super) fn stats(all: &[BridgeStats], past: &[PastStats]) -> String {
    if all.is_empty() && past.is_empty() {
        return "this node has no bridges\n".into();
    }
    let past: Vec<_> = past.iter().map(|past| (past.kind, Ledger::from(&past.counters))).collect();
    let all_ledgers = all.iter().flat_map(ledgers).chain(past.iter().map(|(_, ledger)| *ledger));
    let broken = all_ledgers.into_iter().any(|ledger| ledger.imbalance() != 0);
    let mut counters = COUNTERS.to_vec();
    if broken {
        counters.push(IMBALANCE);
    }
    let mut columns = vec![("BRIDGE", Align::Left), ("STATUS", Align::Left)];
    columns.extend(counters.iter().map(|(heading, _)| (*heading, Align::Right)));
    let row = |name: String, status: String, ledger: &Ledger| {
        [name, status].into_iter().chain(counters.iter().map(|(_, show)| show(ledger))).collect()
    };
    let mut rows: Vec<Vec<String>> = Vec::new();
    for BridgeStats { bridge, counters, partitions, .. } in all {
        rows.push(row(plain(&bridge.id), bridge.status.to_string(), &counters.into()));
        for partition in partitions {
            let name = format!("  {}/{}", plain(&partition.topic), partition.partition);
            rows.push(row(name, String::new(), &(&partition.counters).into()));
        }
    }
    for (kind, ledger) in &past {
        rows.push(row(format!("past, {kind}"), String::new(), ledger));
    }
    let mut out = Table { columns, rows }.render();
    out.push('\n');
    let law = "matched = success + failed + dropped + queuing + inflight";
    let _ = if broken {
        writeln!(out, "{law} DOES NOT HOLD: see IMBALANCE (matched less the rest)")
    } else {
        writeln!(out, "{law}: holds for every row")
    };
    details(&mut out, all);
    if !past.is_empty() {
        out.push_str("past: counts of bridges that were disabled or deleted since the node started\n");
    }
    out
}

/// Says that not all partitions of these bridges are shown.
pub(super) fn cut(bridges: &[String]) -> String {
    let mut out = String::new();
    for id in bridges {
        let _ = writeln!(out, "{}: there are more partitions: --limit N", plain(id));
    }
    out
}

/// The numbers that are rarely not zero, and the reasons.
fn details(out: &mut String, all: &[BridgeStats]) {
    for BridgeStats { bridge, counters, disk_bytes, .. } in all {
        let (id, ledger) = (plain(&bridge.id), Ledger::from(counters));
        let dropped = [
            ("queue full", ledger.dropped_queue_full),
            ("expired", ledger.dropped_expired),
            ("bridge stopped", ledger.dropped_resource_stopped),
        ];
        let dropped: Vec<String> = dropped
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(why, count)| format!("{count} {why}"))
            .collect();
        if !dropped.is_empty() {
            let _ = writeln!(out, "{id}: dropped {}", dropped.join(", "));
        }
        if ledger.late_reply > 0 {
            let _ = writeln!(out, "{id}: {} answers came too late for their callers", ledger.late_reply);
        }
        if ledger.dead_lettered + ledger.dead_letters_lost > 0 {
            let (written, lost) = (ledger.dead_lettered, ledger.dead_letters_lost);
            let _ = writeln!(
                out,
                "{id}: {written} given up are in the dead-letter topic, {lost} could not be written there"
            );
        }
        if *disk_bytes > 0 {
            let _ = writeln!(out, "{id}: {disk_bytes} bytes of files in its disk buffer");
        }
        if ledger.possible_duplicates > 0 {
            let twice = ledger.possible_duplicates;
            let _ = writeln!(
                out,
                "{id}: {twice} records may be in Kafka twice: it no longer knew who had sent them"
            );
        }
        if let Some(reason) = &bridge.reason {
            let _ = writeln!(out, "{id}: {}", plain(reason));
        }
    }
}

/// The bridges, without counters.
pub(super) fn bridges(all: &[BridgeInfo]) -> String {
    if all.is_empty() {
        return "this node has no bridges\n".into();
    }
    let columns = ["BRIDGE", "ENABLED", "STATUS", "REASON"].map(|heading| (heading, Align::Left)).into();
    let rows = all
        .iter()
        .map(|bridge| {
            let enabled = if bridge.enabled { "yes" } else { "no" };
            let reason = bridge.reason.as_deref().map(plain).unwrap_or_default();
            vec![plain(&bridge.id), enabled.into(), bridge.status.to_string(), reason]
        })
        .collect();
    Table { columns, rows }.render()
}

/// A node and its listeners.
pub(super) fn node(node: &NodeInfo) -> String {
    let mut out = String::new();
    let short = if node.memory_short { "; memory is short" } else { "" };
    let facts = [
        ("node", plain(&node.name)),
        ("version", plain(&node.version)),
        ("uptime", uptime(node.uptime_ms)),
        ("connections", node.connections.to_string()),
        ("sessions", node.sessions.to_string()),
        ("messages in", node.messages_in.to_string()),
        ("messages out", node.messages_out.to_string()),
        ("buffers", format!("{} of {} bytes{short}", node.buffer_memory, node.max_buffer_memory)),
    ];
    for (name, value) in facts {
        let _ = writeln!(out, "{name:<13} {value}");
    }
    if !node.listeners.is_empty() {
        let columns = vec![
            ("LISTENER", Align::Left),
            ("BIND", Align::Left),
            ("CONNECTIONS", Align::Right),
            ("LIMIT", Align::Right),
        ];
        let rows = node
            .listeners
            .iter()
            .map(|listener| {
                let counts = [listener.connections.to_string(), listener.max_connections.to_string()];
                [plain(&listener.name), plain(&listener.bind)].into_iter().chain(counts).collect()
            })
            .collect();
        out.push('\n');
        out.push_str(&Table { columns, rows }.render());
    }
    out
}

/// Sessions with what waits for them.
pub(super) fn clients(page: &ClientsPage) -> String {
    if page.clients.is_empty() {
        return "no such clients\n".into();
    }
    let columns = vec![
        ("CLIENT", Align::Left),
        ("CONNECTED", Align::Left),
        ("QUEUED", Align::Right),
        ("BYTES", Align::Right),
        ("INFLIGHT", Align::Right),
        ("DROPPED", Align::Right),
    ];
    let row = |client: &crate::admin::v1::ClientInfo| {
        let connected = if client.connected { "yes" } else { "no" };
        let counts = [client.queued, client.queued_bytes, client.inflight, client.dropped];
        let names = [plain(&client.client_id), connected.to_owned()].into_iter();
        names.chain(counts.map(|count| count.to_string())).collect()
    };
    let mut out = Table { columns, rows: page.clients.iter().map(row).collect() }.render();
    if page.more
        && let Some(last) = page.clients.last()
    {
        let _ = writeln!(out, "\nthere are more: --after {}", plain(&last.client_id));
    }
    out
}

/// Counters of the MQTT front.
pub(super) fn mqtt(counters: &[crate::admin::v1::Counter]) -> String {
    let columns = vec![("COUNTER", Align::Left), ("VALUE", Align::Right)];
    let row = |counter: &crate::admin::v1::Counter| vec![plain(&counter.name), counter.value.to_string()];
    Table { columns, rows: counters.iter().map(row).collect() }.render()
}

fn uptime(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    let clock = format!("{hours:02}:{minutes:02}:{:02}", seconds % 60);
    if days == 0 { clock } else { format!("{days}d {clock}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::v1::{BridgeKind, BridgeStatus, ListenerInfo, PartitionStats};

    fn sample(id: &str, ledger: Ledger) -> BridgeStats {
        let bridge = BridgeInfo {
            id: id.into(),
            name: "n".into(),
            kind: BridgeKind::Producer,
            enabled: true,
            status: BridgeStatus::Connected,
            reason: None,
        };
        BridgeStats { bridge, counters: ledger.into(), disk_bytes: 0, partitions: vec![] }
    }

    fn balanced() -> Ledger {
        Ledger {
            matched: 1_000_000,
            success: 999_990,
            failed: 1,
            dropped_expired: 2,
            queuing: 3,
            queuing_bytes: 345,
            inflight: 4,
            ..Ledger::default()
        }
    }

    #[test]
    fn the_table_shows_each_bridge_and_that_the_law_holds() {
        let mut back = sample("kafka_consumer:back", Ledger { received: 7, ..Ledger::default() });
        back.bridge.status = BridgeStatus::Disconnected;
        back.bridge.reason = Some("kafka does not know the topic \x1b[2J".into());
        let mut main = sample("kafka:main", balanced());
        let partition =
            PartitionStats { topic: "t".into(), partition: 11, counters: Ledger::default().into() };
        main.partitions.push(partition);
        let expected = "\
BRIDGE               STATUS        MATCHED  SUCCESS  FAILED  DROPPED  QUEUING  BYTES  INFLIGHT  RETRIED  RECEIVED
kafka:main           connected     1000000   999990       1        2        3    345         4        0         0
  t/11                                   0        0       0        0        0      0         0        0         0
kafka_consumer:back  disconnected        0        0       0        0        0      0         0        0         7
past, kafka                              9        9       0        0        0      0         0        0         0

matched = success + failed + dropped + queuing + inflight: holds for every row
kafka:main: dropped 2 expired
kafka_consumer:back: kafka does not know the topic \\u{1b}[2J
past: counts of bridges that were disabled or deleted since the node started
";
        let gone = Ledger { matched: 9, success: 9, ..Ledger::default() };
        let past = PastStats { kind: BridgeKind::Producer, counters: gone.into() };
        assert_eq!(stats(&[main, back], &[past]), expected);
    }

    #[test]
    fn the_size_of_a_disk_buffer_and_possible_duplicates_are_told() {
        let ledger = Ledger { possible_duplicates: 3, ..balanced() };
        let stored = BridgeStats { disk_bytes: 4096, ..sample("kafka:out", ledger) };
        let told = stats(std::slice::from_ref(&stored), &[]);
        assert!(told.contains("kafka:out: 4096 bytes of files in its disk buffer\n"), "{told}");
        assert!(told.contains("kafka:out: 3 records may be in Kafka twice"), "{told}");
        let json = &super::super::stats_json(&[stored], &[])["bridges"][0];
        assert_eq!(
            (&json["disk_bytes"], &json["counters"]["possible_duplicates"]),
            (&4096.into(), &3.into())
        );
    }

    #[test]
    fn an_imbalance_gets_a_column_of_its_own() {
        let fine = sample("kafka:fine", balanced());
        assert!(!stats(std::slice::from_ref(&fine), &[]).contains("IMBALANCE"));
        let lost = sample("kafka:lost", Ledger { matched: 5, success: 3, ..Ledger::default() });
        let twice = sample("kafka:twice", Ledger { matched: 5, success: 6, ..Ledger::default() });
        let table = stats(&[fine.clone(), lost, twice], &[]);
        let last = |id: &str| {
            let line = table.lines().find(|line| line.starts_with(id)).unwrap();
            line.split_whitespace().last().unwrap().to_owned()
        };
        assert_eq!([last("BRIDGE"), last("kafka:fine")], ["IMBALANCE", "+0"]);
        assert_eq!([last("kafka:lost"), last("kafka:twice")], ["+2", "-1"]);
        assert!(table.contains("DOES NOT HOLD"));
        let mut inside = fine;
        let ledger = Ledger { queuing: 1, ..Ledger::default() };
        inside.partitions.push(PartitionStats { topic: "t".into(), partition: 0, counters: ledger.into() });
        assert!(stats(&[inside], &[]).contains("IMBALANCE"), "a partition's counts are looked at as well");
        let past = PastStats { kind: BridgeKind::Consumer, counters: ledger.into() };
        assert!(stats(&[], &[past]).contains("IMBALANCE"), "and those of past bridges");
    }

    #[test]
    fn clients_are_shown_with_what_waits_for_them() {
        let client = |client_id: &str, connected, dropped| crate::admin::v1::ClientInfo {
            client_id: client_id.into(),
            connected,
            queued: 2,
            queued_bytes: 300,
            inflight: 1,
            dropped,
        };
        let clients_of =
            |more| ClientsPage { clients: vec![client("a", true, 0), client("b\t", false, 7)], more };
        let expected = "\
CLIENT  CONNECTED  QUEUED  BYTES  INFLIGHT  DROPPED
a       yes             2    300         1        0
b\\t     no              2    300         1        7
";
        assert_eq!(clients(&clients_of(false)), expected);
        assert_eq!(clients(&clients_of(true)), format!("{expected}\nthere are more: --after b\\t\n"));
        assert_eq!(clients(&ClientsPage::default()), "no such clients\n");
    }

    #[test]
    fn a_node_is_shown_with_its_listeners() {
        let info = NodeInfo {
            name: "n1".into(),
            version: "0.1.0".into(),
            uptime_ms: 93_784_500,
            listeners: vec![ListenerInfo {
                name: "tcp:default".into(),
                bind: "127.0.0.1:1883".into(),
                connections: 2,
                max_connections: 1024,
            }],
            connections: 2,
            sessions: 3,
            messages_in: 4,
            messages_out: 5,
            buffer_memory: 65536,
            max_buffer_memory: 1 << 20,
            memory_short: true,
        };
        let expected = "\
node          n1
version       0.1.0
uptime        1d 02:03:04
connections   2
sessions      3
messages in   4
messages out  5
buffers       65536 of 1048576 bytes; memory is short

LISTENER     BIND            CONNECTIONS  LIMIT
tcp:default  127.0.0.1:1883            2   1024
";
        assert_eq!(node(&info), expected);
    }
}
