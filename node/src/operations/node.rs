//! The admin operations of a node: thin, over the bridges and the MQTT front.

use std::sync::Arc;
use std::time::Instant;

use crate::access::{Access, UserError, UserRow};
use crate::admin::v1_access::{AccessAnswer, AccessRequest, BanInfo, USERS_PAGE, UserInfo, UsersPage};
use crate::admin::v1_bridges::{BridgeAnswer, BridgeRequest};
use crate::admin::{
    AdminError, AdminService, BridgeInfo, BridgeKind, BridgeStats, BridgeStatus, CLIENTS_PAGE, ClientInfo,
    ClientsPage, Counter, ListenerInfo, NodeInfo, PartitionStats, PastStats, Pending, StatsAnswer,
};
use crate::bridge::service::{BridgeId, Bridges, Error, Kind, Row, Status};
use crate::flow::ledger::Ledger;
use crate::mqtt::{ClientRow, Clients, FrontHandle, Listener, Stats};

/// Answers the admin link of one node.
pub struct NodeAdmin {
    name: String,
    started: Instant,
    pub(super) bridges: Bridges,
    listeners: Vec<Listener>,
    stats: Arc<Stats>,
    clients: Clients,
    access: Arc<Access>,
}

impl NodeAdmin {
    /// The operations of the node called `name`.
    pub fn new(name: String, bridges: Bridges, front: &FrontHandle, stats: Arc<Stats>) -> Self {
        Self {
            name,
            started: Instant::now(),
            bridges,
            listeners: front.listeners().to_vec(),
            stats,
            clients: front.clients(),
            access: front.access(),
        }
    }

    /// The bridge that `text` names: by its id, or by its name where no other kind has one of that name.
    pub(super) fn id(&self, text: &str) -> Result<BridgeId, AdminError> {
        text.parse().or_else(|_| {
            let mut named = self.bridges.rows().into_iter().map(|row| row.id).filter(|id| id.name == text);
            match (named.next(), named.next()) {
                (Some(only), None) => Ok(only),
                _ => Err(AdminError::no_bridge(text, self.ids())),
            }
        })
    }

    fn ids(&self) -> Vec<String> {
        self.bridges.rows().iter().map(|row| row.id.to_string()).collect()
    }

    pub(super) fn error(&self, error: Error) -> AdminError {
        match error {
            Error::NotFound { id } => AdminError::no_bridge(id.to_string(), self.ids()),
            other => AdminError::failed(other),
        }
    }

    pub(super) fn info_of(&self, id: &BridgeId) -> Result<BridgeInfo, AdminError> {
        self.bridges.row(id).map(|row| info(&row)).map_err(|error| self.error(error))
    }
}

impl AdminService for NodeAdmin {
    fn access(&self, request: AccessRequest) -> Pending<'_, AccessAnswer> {
        Box::pin(access(&self.access, request))
    }

    fn bridge(&self, request: BridgeRequest) -> Pending<'_, BridgeAnswer> {
        Box::pin(self.on_bridges(request))
    }

    fn node(&self) -> Pending<'_, NodeInfo> {
        let stats = self.stats.snapshot();
        let listener = |listener: &Listener| ListenerInfo {
            name: listener.id().to_owned(),
            bind: listener.address.to_string(),
            connections: listener.connections() as u64,
            max_connections: listener.max_connections as u64,
        };
        let info = NodeInfo {
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            listeners: self.listeners.iter().map(listener).collect(),
            connections: stats.connections,
            sessions: stats.sessions,
            messages_in: stats.received_qos0 + stats.received_qos1 + stats.received_qos2,
            messages_out: stats.sent_qos0 + stats.sent_qos1 + stats.sent_qos2,
            buffer_memory: self.bridges.memory().used() as u64,
            max_buffer_memory: self.bridges.memory().limit() as u64,
            memory_short: self.bridges.memory().is_short(),
        };
        Box::pin(async move { Ok(info) })
    }

    fn bridges(&self) -> Pending<'_, Vec<BridgeInfo>> {
        let infos = self.bridges.rows().iter().map(info).collect();
        Box::pin(async move { Ok(infos) })
    }

    fn stats(&self, bridge: Option<String>, partitions: bool) -> Pending<'_, StatsAnswer> {
        Box::pin(async move {
            if let Some(text) = bridge {
                let id = self.id(&text)?;
                let row = self.bridges.row(&id).map_err(|error| self.error(error))?;
                return Ok(StatsAnswer { bridges: vec![stats(row, partitions)], past: Vec::new() });
            }
            let bridges = self.bridges.rows().into_iter().map(|row| stats(row, partitions)).collect();
            let past = self.bridges.retired().into_iter().filter(|(_, ledger)| *ledger != Ledger::default());
            let past =
                past.map(|(kind, ledger)| PastStats { kind: bridge_kind(kind), counters: ledger.into() });
            Ok(StatsAnswer { bridges, past: past.collect() })
        })
    }

    fn restart_bridge(&self, id: String) -> Pending<'_, BridgeInfo> {
        Box::pin(async move {
            let id = self.id(&id)?;
            self.bridges.restart(id.clone()).await.map_err(|error| self.error(error))?;
            self.info_of(&id)
        })
    }

    fn enable_bridge(&self, id: String, on: bool) -> Pending<'_, BridgeInfo> {
        Box::pin(async move {
            let id = self.id(&id)?;
            self.bridges.enable(id.clone(), on).await.map_err(|error| self.error(error))?;
            self.info_of(&id)
        })
    }

    fn mqtt(&self) -> Pending<'_, Vec<Counter>> {
        let counter = |(name, value): (&str, u64)| Counter { name: name.to_owned(), value };
        let counters = self.stats.snapshot().by_name().into_iter().map(counter).collect();
        Box::pin(async move { Ok(counters) })
    }

    fn clients(
        &self,
        client_id: Option<String>,
        after: Option<String>,
        limit: u32,
    ) -> Pending<'_, ClientsPage> {
        let clients = self.clients.clone();
        Box::pin(async move {
            if let Some(client_id) = client_id {
                let found = clients.get(&client_id).into_iter().map(client);
                return Ok(ClientsPage { clients: found.collect(), more: false });
            }
            let page = clients.page(after.as_deref(), limit.min(CLIENTS_PAGE) as usize);
            Ok(ClientsPage { clients: page.rows.into_iter().map(client).collect(), more: page.more })
        })
    }
}

fn client(row: ClientRow) -> ClientInfo {
    ClientInfo {
        client_id: row.client_id,
        connected: row.connected,
        queued: row.queued as u64,
        queued_bytes: row.queued_bytes as u64,
        inflight: row.inflight as u64,
        dropped: row.dropped,
    }
}

async fn access(access: &Access, request: AccessRequest) -> Result<AccessAnswer, AdminError> {
    let user = |row: UserRow| UserInfo { name: row.name, superuser: row.superuser, scram: row.scram };
    let failed = |error: UserError| AdminError::failed(error);
    Ok(match request {
        AccessRequest::Users { after, limit } => {
            let limit = limit.min(USERS_PAGE) as usize;
            let (rows, total) = access.list_users(after, limit).await.map_err(failed)?;
            AccessAnswer::Users(UsersPage { users: rows.into_iter().map(user).collect(), total })
        }
        AccessRequest::UserAdd { name, password, superuser } => {
            let row = access.add_user(name, password.0, superuser).await.map_err(failed)?;
            tracing::info!(user = row.name, superuser, "user added");
            AccessAnswer::User(user(row))
        }
        AccessRequest::UserPassword { name, password } => {
            let row = access.set_password(name, password.0).await.map_err(failed)?;
            tracing::info!(user = row.name, "password set");
            AccessAnswer::User(user(row))
        }
        AccessRequest::UserDelete { name } => {
            access.delete_user(name.clone()).await.map_err(failed)?;
            tracing::info!(user = name, "user deleted");
            AccessAnswer::Deleted
        }
        AccessRequest::Bans => AccessAnswer::Bans(
            access
                .bans()
                .into_iter()
                .map(|ban| BanInfo {
                    address: ban.address,
                    remaining_s: ban.remaining.as_secs(),
                    failures: ban.failures,
                })
                .collect(),
        ),
        AccessRequest::BansClear { address } => {
            let wrong = || AdminError::failed("not an address; write one such as 192.0.2.1 or 2001:db8::");
            let address = match address {
                Some(text) => {
                    let text = text.strip_suffix("/64").unwrap_or(&text);
                    Some(text.parse().map_err(|_| wrong())?)
                }
                None => None,
            };
            AccessAnswer::Cleared(access.clear_bans(address) as u64)
        }
    })
}

pub(super) fn info(row: &Row) -> BridgeInfo {
    let (status, reason) = match &row.status {
        Status::Connected => (BridgeStatus::Connected, row.waits.clone()),
        Status::Connecting(reason) => (BridgeStatus::Connecting, Some(reason.clone())),
        Status::Disconnected(reason) => (BridgeStatus::Disconnected, Some(reason.clone())),
        Status::Stopped if row.ledger.queuing > 0 => {
            let reason =
                format!("{} records wait in its disk buffer until it is enabled", row.ledger.queuing);
            (BridgeStatus::Stopped, Some(reason))
        }
        Status::Stopped => (BridgeStatus::Stopped, None),
    };
    BridgeInfo {
        id: row.id.to_string(),
        name: row.id.name.clone(),
        kind: bridge_kind(row.id.kind),
        enabled: row.enabled,
        status,
        reason,
    }
}

fn bridge_kind(kind: Kind) -> BridgeKind {
    match kind {
        Kind::Producer => BridgeKind::Producer,
        Kind::Consumer => BridgeKind::Consumer,
    }
}

pub(super) fn stats(row: Row, partitions: bool) -> BridgeStats {
    let bridge = info(&row);
    let places = if partitions { row.places } else { Vec::new() };
    let partition = |place: crate::bridge::service::BridgePartition| PartitionStats {
        topic: place.topic,
        partition: place.partition,
        counters: place.ledger.into(),
    };
    let partitions = places.into_iter().map(partition).collect();
    BridgeStats { bridge, counters: row.ledger.into(), disk_bytes: row.disk_bytes, partitions }
}
