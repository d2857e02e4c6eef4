//! The rows of the comparison: what each load asks of the broker, how the generator is called for it, and
//! which figure is shown.

use anyhow::Result;
use causeway_benches::brokers::Broker;
use causeway_benches::setup::{Door, Login, Materials, PASSWORD, Setup, USER};
use clap::ValueEnum;
use serde::Serialize;

use crate::connect::{RESIDENT, RESUMED};
use crate::load::{QUEUED_COST, QUEUED_PER_SECOND};
use crate::report::Report;

/// Rows that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Table {
    /// Plain TCP, clean sessions, everybody may do everything.
    Plain,
    /// TLS and WebSocket.
    Transports,
    /// Sessions that outlive their connections.
    Sessions,
    /// Who may connect and who may do what.
    Access,
}

/// A row of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
pub(crate) enum Load {
    /// 100 publishers, 1 subscriber, QoS 0, saturated.
    FanInQos0,
    /// The same with QoS 1.
    FanInQos1,
    /// 1 publisher, 100 subscribers, QoS 0, saturated.
    FanOut,
    /// Fan-in, QoS 0, each publisher at most 100 messages ahead.
    FanInWindowQos0,
    /// The same with QoS 1.
    FanInWindowQos1,
    /// Fan-in, QoS 0, each publisher at most one message ahead.
    FanInSingleQos0,
    /// The same with QoS 1.
    FanInSingleQos1,
    /// Fan-out, the publisher at most 20 messages ahead.
    FanOutWindow,
    /// 100 pairs of publisher and subscriber, 20,000 messages a second together, QoS 0.
    OneByOne,
    /// Memory of 10,000 idle connections.
    Idle,
    /// Connections that come and go.
    Connects,
    /// Fan-in, QoS 0, all over TLS.
    TlsQos0,
    /// Fan-in, QoS 1, all over TLS.
    TlsQos1,
    /// Fan-in, QoS 0, all over WebSocket.
    WebSocketQos0,
    /// Fan-in, QoS 1, all over WebSocket.
    WebSocketQos1,
    /// Fan-in, QoS 0, all over WebSocket and TLS.
    SecureWebSocketQos0,
    /// Fan-in, QoS 1, all over WebSocket and TLS.
    SecureWebSocketQos1,
    /// Memory of 10,000 idle connections over TLS.
    IdleTls,
    /// The same over WebSocket.
    IdleWebSocket,
    /// The same over WebSocket and TLS.
    IdleSecureWebSocket,
    /// Connections that come and go, each with a full TLS handshake.
    ConnectsTls,
    /// The same, each resuming a TLS session.
    ConnectsTlsResumed,
    /// 100 publishers, QoS 1, to one subscriber whose session is stored, saturated.
    StoredConnected,
    /// The same to a subscriber that is away and comes back.
    StoredAbsent,
    /// Connections that come and go, each with the password of a user not seen before.
    ConnectsPasswordFirst,
    /// The same with the password of one user.
    ConnectsPasswordKnown,
    /// The same with a token, HS256.
    ConnectsTokenHmac,
    /// The same with a token, RS256.
    ConnectsTokenRsa,
    /// The same with a token, ES256.
    ConnectsTokenEc,
    /// Memory of 10,000 idle connections that may only do what rules allow.
    IdleRules,
}

/// Messages for an absent subscriber.
const QUEUED: u32 = 300_000;

impl Load {
    pub(crate) fn table(self) -> Table {
        match self {
            Self::FanInQos0
            | Self::FanInQos1
            | Self::FanOut
            | Self::FanInWindowQos0
            | Self::FanInWindowQos1
            | Self::FanInSingleQos0
            | Self::FanInSingleQos1
            | Self::FanOutWindow
            | Self::OneByOne
            | Self::Idle
            | Self::Connects => Table::Plain,
            Self::StoredConnected | Self::StoredAbsent => Table::Sessions,
            Self::ConnectsPasswordFirst
            | Self::ConnectsPasswordKnown
            | Self::ConnectsTokenHmac
            | Self::ConnectsTokenRsa
            | Self::ConnectsTokenEc
            | Self::IdleRules => Table::Access,
            _ => Table::Transports,
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::FanInQos0 => "fan-in 100 to 1, QoS 0: CPU s per million delivered",
            Self::FanInQos1 => "fan-in 100 to 1, QoS 1: CPU s per million delivered",
            Self::FanOut => "fan-out 1 to 100, QoS 0: CPU s per million delivered",
            Self::FanInWindowQos0 => "fan-in 100 to 1, QoS 0, 100 ahead each: CPU s per million delivered",
            Self::FanInWindowQos1 => "fan-in 100 to 1, QoS 1, 100 ahead each: CPU s per million delivered",
            Self::FanInSingleQos0 => "fan-in 100 to 1, QoS 0, 1 ahead each: CPU s per million delivered",
            Self::FanInSingleQos1 => "fan-in 100 to 1, QoS 1, 1 ahead each: CPU s per million delivered",
            Self::FanOutWindow => "fan-out 1 to 100, QoS 0, 20 ahead: CPU s per million delivered",
            Self::OneByOne => "one by one, 20,000/s, QoS 0: CPU s per million delivered (p50 / p99 ms)",
            Self::Idle => "idle connection: KiB resident",
            Self::Connects => "connects per second (CPU s per million)",
            Self::TlsQos0 => "fan-in over TLS, QoS 0: CPU s per million delivered",
            Self::TlsQos1 => "fan-in over TLS, QoS 1: CPU s per million delivered",
            Self::WebSocketQos0 => "fan-in over WebSocket, QoS 0: CPU s per million delivered",
            Self::WebSocketQos1 => "fan-in over WebSocket, QoS 1: CPU s per million delivered",
            Self::SecureWebSocketQos0 => "fan-in over secure WebSocket, QoS 0: CPU s per million delivered",
            Self::SecureWebSocketQos1 => "fan-in over secure WebSocket, QoS 1: CPU s per million delivered",
            Self::IdleTls => "idle connection over TLS: KiB resident",
            Self::IdleWebSocket => "idle connection over WebSocket: KiB resident",
            Self::IdleSecureWebSocket => "idle connection over secure WebSocket: KiB resident",
            Self::ConnectsTls => "TLS, full handshake: connects per second (CPU s per million)",
            Self::ConnectsTlsResumed => "TLS, session resumed: connects per second (CPU s per million)",
            Self::StoredConnected => {
                "fan-in 100 to 1 stored session, QoS 1: CPU s per million delivered (per second)"
            }
            Self::StoredAbsent => {
                "fan-in 100 to 1 absent stored session, QoS 1: CPU s per million queued (per second), then drained \
                 (per second)"
            }
            Self::ConnectsPasswordFirst => {
                "password, never seen before: connects per second (CPU s per million)"
            }
            Self::ConnectsPasswordKnown => "password, seen before: connects per second (CPU s per million)",
            Self::ConnectsTokenHmac => "token, HS256: connects per second (CPU s per million)",
            Self::ConnectsTokenRsa => "token, RS256: connects per second (CPU s per million)",
            Self::ConnectsTokenEc => "token, ES256: connects per second (CPU s per million)",
            Self::IdleRules => "idle connection under rules: KiB resident",
        }
    }

    /// What the broker is set up for.
    pub(crate) fn setup(self) -> Setup {
        let door = match self {
            Self::TlsQos0 | Self::TlsQos1 | Self::IdleTls | Self::ConnectsTls | Self::ConnectsTlsResumed => {
                Door::Tls
            }
            Self::WebSocketQos0 | Self::WebSocketQos1 | Self::IdleWebSocket => Door::WebSocket,
            Self::SecureWebSocketQos0 | Self::SecureWebSocketQos1 | Self::IdleSecureWebSocket => {
                Door::SecureWebSocket
            }
            _ => Door::Tcp,
        };
        let login = match self {
            Self::ConnectsPasswordFirst | Self::ConnectsPasswordKnown => Login::Password,
            Self::ConnectsTokenHmac => Login::TokenHmac,
            Self::ConnectsTokenRsa => Login::TokenRsa,
            Self::ConnectsTokenEc => Login::TokenEc,
            _ => Login::Anonymous,
        };
        let stored = matches!(self, Self::StoredConnected | Self::StoredAbsent);
        Setup { door, login, stored, rules: self == Self::IdleRules }
    }

    pub(crate) fn arguments(
        self,
        broker: &Broker,
        materials: &Materials,
        seconds: f64,
    ) -> Result<Vec<String>> {
        // 20,000 ahead fill every queue on the way, and fit into every broker's.
        const SATURATED: u32 = 20_000;
        let fan_in_ahead = |qos: u8, ahead: u32| {
            format!(
                "mqtt-to-mqtt --clients 100 --qos {qos} --subscription-qos {qos} --ahead {ahead} \
                 --messages 1000000000 --warmup {ahead} --seconds {seconds}"
            )
        };
        let fan_in = |qos: u8| fan_in_ahead(qos, SATURATED);
        let fan_out_ahead = |ahead: u32| {
            format!(
                "mqtt-to-mqtt --clients 1 --subscribers 100 --qos 0 --subscription-qos 0 --ahead {ahead} \
                 --messages 1000000000 --warmup {ahead} --seconds {seconds}"
            )
        };
        let text = match self {
            Self::FanInQos0 | Self::TlsQos0 | Self::WebSocketQos0 | Self::SecureWebSocketQos0 => fan_in(0),
            Self::FanInQos1 | Self::TlsQos1 | Self::WebSocketQos1 | Self::SecureWebSocketQos1 => fan_in(1),
            Self::StoredConnected => fan_in(1) + " --lasting",
            Self::StoredAbsent => {
                format!("mqtt-to-mqtt --clients 100 --messages {QUEUED} --lasting --absent")
            }
            Self::FanInWindowQos0 => fan_in_ahead(0, 10_000),
            Self::FanInWindowQos1 => fan_in_ahead(1, 10_000),
            Self::FanInSingleQos0 => fan_in_ahead(0, 100),
            Self::FanInSingleQos1 => fan_in_ahead(1, 100),
            Self::FanOut => fan_out_ahead(2_000),
            Self::FanOutWindow => fan_out_ahead(20),
            Self::OneByOne => format!(
                "mqtt-to-mqtt --clients 100 --subscribers 100 --filter bench/{{client}}/+ --qos 0 \
                 --subscription-qos 0 --stamp-at-write --rate 20000 --warmup 20000 --messages {}",
                (20_000.0 * seconds) as u64
            ),
            Self::Idle
            | Self::IdleTls
            | Self::IdleWebSocket
            | Self::IdleSecureWebSocket
            | Self::IdleRules => "connect --clients 10000 --hold 3".into(),
            Self::ConnectsTlsResumed => format!("churn --seconds {seconds} --resume"),
            // More at once would wait for each other's checks, and find the queue full.
            Self::ConnectsPasswordFirst => format!("churn --seconds {seconds} --concurrency 16"),
            Self::Connects
            | Self::ConnectsTls
            | Self::ConnectsPasswordKnown
            | Self::ConnectsTokenHmac
            | Self::ConnectsTokenRsa
            | Self::ConnectsTokenEc => format!("churn --seconds {seconds}"),
        };
        let setup = self.setup();
        let (scheme, address) = match setup.door {
            Door::Tcp => ("tcp", broker.address()),
            Door::Tls => ("tls", broker.second_address()),
            Door::WebSocket => ("ws", broker.second_address()),
            Door::SecureWebSocket => ("wss", broker.second_address()),
        };
        let ca = materials.ca().to_string_lossy().into_owned();
        let own = ["--json", "--server-pid", &broker.pid().to_string(), "--ca", &ca, "--broker"];
        let mut arguments: Vec<_> = text.split_ascii_whitespace().chain(own).map(String::from).collect();
        arguments.push(format!("{scheme}://{address}"));
        let login = match self {
            Self::ConnectsPasswordFirst => Some(("user-{n}".to_owned(), PASSWORD.to_owned())),
            Self::ConnectsPasswordKnown => Some((USER.to_owned(), PASSWORD.to_owned())),
            _ => materials.token(setup.login)?.map(|token| (USER.to_owned(), token)),
        };
        if let Some((user, password)) = login {
            arguments.extend(["--username".into(), user, "--password".into(), password]);
        }
        Ok(arguments)
    }

    /// The figure that repetitions are ordered by.
    pub(crate) fn figure(self, report: &Report) -> f64 {
        let setting = |name: &str| report.settings.get(name).and_then(serde_json::Value::as_f64);
        match self {
            Self::Idle
            | Self::IdleTls
            | Self::IdleWebSocket
            | Self::IdleSecureWebSocket
            | Self::IdleRules => setting(RESIDENT).unwrap_or(f64::NAN),
            Self::StoredAbsent => setting(QUEUED_COST).unwrap_or(f64::NAN),
            _ if report.delivered.is_some() => delivered_cost(report),
            _ => report.per_second,
        }
    }

    pub(crate) fn cell(self, report: &Report) -> String {
        let figure = self.figure(report);
        let rate = report.delivered_per_second.unwrap_or(report.per_second);
        let cell = match self {
            Self::OneByOne => {
                let latency = report.end_to_end.unwrap_or_default();
                format!("{figure:.1} ({:.2} / {:.2})", latency.p50_us / 1e3, latency.p99_us / 1e3)
            }
            Self::Idle
            | Self::IdleTls
            | Self::IdleWebSocket
            | Self::IdleSecureWebSocket
            | Self::IdleRules => format!("{:.2}", figure / 1024.0),
            Self::StoredConnected => format!("{figure:.2} ({rate:.0}/s)"),
            Self::StoredAbsent => {
                let queued = report.settings.get(QUEUED_PER_SECOND).and_then(serde_json::Value::as_f64);
                let drained = delivered_cost(report);
                format!("{figure:.2} ({:.0}/s), {drained:.2} ({rate:.0}/s)", queued.unwrap_or(f64::NAN))
            }
            _ if report.delivered.is_some() => format!("{figure:.2}"),
            _ => {
                let cost = report.server.as_ref().map_or(f64::NAN, |server| server.cpu_seconds_per_million);
                let resumed = report.settings.get(RESUMED).and_then(serde_json::Value::as_u64);
                let share = resumed.unwrap_or_default() as f64 / report.count.max(1) as f64;
                let cell = format!("{figure:.0} ({cost:.1})");
                match self {
                    Self::ConnectsTlsResumed if share < 0.99 => {
                        format!("{cell}, {:.0} % resumed", share * 100.0)
                    }
                    _ => cell,
                }
            }
        };
        let lost = report.lost();
        if lost == 0 {
            return cell;
        }
        let sent = lost + report.delivered.unwrap_or_default();
        format!("{cell}, loses {:.2} %", lost as f64 * 100.0 / sent as f64)
    }
}

fn delivered_cost(report: &Report) -> f64 {
    report.server.as_ref().and_then(|server| server.cpu_seconds_per_million_delivered).unwrap_or(f64::NAN)
}
