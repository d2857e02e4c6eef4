//! `causeway ctl`: asks a running node and prints what it says.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;

mod bridges;
mod table;
pub(crate) mod table_bridges;

use crate::admin::v1::{
    BridgeInfo, BridgeStats, CLIENTS_PAGE, ClientsPage, Counters, PastStats, StatsAnswer,
};
use crate::admin::v1_access::{AccessAnswer, AccessRequest, Password, USERS_PAGE, UserInfo};
use crate::admin::{AdminClient, ClientError, DEFAULT_ADDRESS};
use crate::flow::ledger::Ledger;
use bridges::BridgesCommand;

/// Environment variable that names the admin address where the flag does not.
const ADDRESS_VARIABLE: &str = "CAUSEWAY_ADMIN";

/// Ask a running node.
#[derive(Debug, Clone, Args)]
pub struct Ctl {
    /// Admin address of the node [default: $CAUSEWAY_ADMIN or 127.0.0.1:8081]
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub admin: Option<String>,
    /// Print JSON instead of a table
    #[arg(long, global = true)]
    pub json: bool,
    /// Operation
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommand of `causeway ctl`.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Show the counters of one bridge or of all
    Stats {
        /// Id of a bridge, such as kafka:NAME
        bridge: Option<String>,
        /// Show each partition as well
        #[arg(long)]
        partitions: bool,
        /// How many partitions of a bridge are shown at most
        #[arg(long, default_value_t = 1000)]
        limit: u32,
    },
    /// Show the node: uptime, listeners, connections, messages
    Node,
    /// List the bridges and how they are; show, create, change, delete and probe them
    Bridges {
        /// Operation; defaults to listing them
        #[command(subcommand)]
        what: Option<BridgesCommand>,
    },
    /// Stop and start a bridge, keeping what it has queued
    Restart {
        /// Id of the bridge, such as kafka:NAME
        bridge: String,
    },
    /// Start a bridge that was disabled
    Enable {
        /// Id of the bridge, such as kafka:NAME
        bridge: String,
    },
    /// Stop a bridge until it is enabled again
    Disable {
        /// Id of the bridge, such as kafka:NAME
        bridge: String,
    },
    /// List the clients that have a session: connected or not, what waits for them, what was dropped
    #[command(alias = "sessions")]
    Clients {
        /// Client identifier of one of them
        client_id: Option<String>,
        /// How many are shown at most
        #[arg(long, default_value_t = 1000)]
        limit: u32,
        /// Show those behind this client identifier
        #[arg(long, value_name = "CLIENT_ID")]
        after: Option<String>,
    },
    /// Show all counters of the MQTT front
    Mqtt,
    /// Manage the users of the built-in database
    Users {
        /// Operation
        #[command(subcommand)]
        what: UsersCommand,
    },
    /// Show and end the bans of addresses that failed to log in too often
    Bans {
        /// Operation
        #[command(subcommand)]
        what: BansCommand,
    },
}

/// Subcommand of `causeway ctl users`. Passwords are asked for, or read from the first line of standard
/// input; they are no arguments, which other users of the machine could see.
#[derive(Debug, Clone, Subcommand)]
pub enum UsersCommand {
    /// List them
    List,
    /// Add one; its password is asked for, or read from standard input
    Add {
        /// Name of the user
        name: String,
        /// The authorization rules do not count for this user
        #[arg(long)]
        superuser: bool,
    },
    /// Set another password, which is asked for, or read from standard input
    Passwd {
        /// Name of the user
        name: String,
    },
    /// Remove one, and end its connections
    Delete {
        /// Name of the user
        name: String,
    },
}

/// Subcommand of `causeway ctl bans`.
#[derive(Debug, Clone, Subcommand)]
pub enum BansCommand {
    /// List them
    List,
    /// End all bans, or that of one address
    Clear {
        /// The address
        address: Option<String>,
    },
}

impl Ctl {
    /// Asks and prints to standard output.
    ///
    /// # Errors
    /// The node cannot be reached or refuses.
    pub async fn run(self) -> Result<ExitCode> {
        let variable = std::env::var(ADDRESS_VARIABLE).ok();
        let mut code = ExitCode::SUCCESS;
        let text = match self.output(variable.as_deref()).await {
            // A probe that found something has to say it like any other answer.
            Err(error) => match error.downcast::<bridges::Found>() {
                Ok(found) => {
                    code = ExitCode::FAILURE;
                    found.0
                }
                Err(error) => return Err(error),
            },
            Ok(text) => text,
        };
        // A reader that has seen enough (`| head`) is no failure.
        match std::io::stdout().lock().write_all(text.as_bytes()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(code),
        }
    }

    /// Output of [`run`](Self::run), with the value of the environment variable.
    pub(crate) async fn output(self, variable: Option<&str>) -> Result<String> {
        let variable = variable.filter(|value| !value.is_empty());
        let address = self.admin.as_deref().or(variable).unwrap_or(DEFAULT_ADDRESS);
        let mut client = match AdminClient::connect(address).await {
            Err(error @ ClientError::Connect { .. }) => {
                return Err(error).context(format!(
                    "no node answers at {address}: is it running? --admin HOST:PORT or {ADDRESS_VARIABLE} name another"
                ));
            }
            connected => connected?,
        };
        let json = self.json;
        match self.command {
            Command::Stats { bridge, partitions, limit } => {
                let StatsAnswer { bridges: mut stats, past } = client.stats(bridge, false).await?;
                let mut cut = Vec::new();
                for stats in stats.iter_mut().filter(|_| partitions) {
                    let id = &stats.bridge.id;
                    if bridges::partitions(&mut client, id, limit, &mut stats.partitions).await? {
                        cut.push(id.clone());
                    }
                }
                if json {
                    eprint!("{}", table::cut(&cut));
                    pretty(&stats_json(&stats, &past))
                } else {
                    Ok(table::stats(&stats, &past) + &table::cut(&cut))
                }
            }
            Command::Node => {
                let node = client.node().await?;
                if json { pretty(&node) } else { Ok(table::node(&node)) }
            }
            Command::Bridges { what: None | Some(BridgesCommand::List) } => {
                let bridges = client.bridges().await?;
                if json { pretty(&bridges) } else { Ok(table::bridges(&bridges)) }
            }
            Command::Bridges { what: Some(what) } => bridges::run(&mut client, what, json).await,
            Command::Restart { bridge } => show(&client.restart_bridge(bridge).await?, json),
            Command::Enable { bridge } => show(&client.enable_bridge(bridge, true).await?, json),
            Command::Disable { bridge } => show(&client.enable_bridge(bridge, false).await?, json),
            Command::Clients { client_id, limit, after } => {
                let page = clients(&mut client, client_id, limit, after).await?;
                if json { pretty(&page) } else { Ok(table::clients(&page)) }
            }
            Command::Mqtt => {
                let counters = client.mqtt().await?;
                if !json {
                    return Ok(table::mqtt(&counters));
                }
                let fields = counters.into_iter().map(|counter| (counter.name, json!(counter.value)));
                pretty(&fields.collect::<serde_json::Map<_, _>>())
            }
            Command::Users { what } => users(&mut client, what, json).await,
            Command::Bans { what } => bans(&mut client, what, json).await,
        }
    }
}

/// As many pages as it takes.
async fn clients(
    client: &mut AdminClient,
    client_id: Option<String>,
    limit: u32,
    mut after: Option<String>,
) -> Result<ClientsPage> {
    let mut all = ClientsPage::default();
    loop {
        let left = limit.saturating_sub(u32::try_from(all.clients.len()).unwrap_or(u32::MAX));
        let page = client.clients(client_id.clone(), after.take(), left.min(CLIENTS_PAGE)).await?;
        after = page.clients.last().map(|last| last.client_id.clone());
        all.more = page.more;
        all.clients.extend(page.clients);
        if !all.more || after.is_none() || all.clients.len() as u64 >= u64::from(limit) {
            return Ok(all);
        }
    }
}

async fn users(client: &mut AdminClient, what: UsersCommand, json: bool) -> Result<String> {
    let (request, done) = match what {
        UsersCommand::List => {
            let all = all_users(client).await?;
            return if json { pretty(&all) } else { Ok(table::users(&all)) };
        }
        UsersCommand::Add { name, superuser } => {
            let password = Password(super::prompt::new_password().await?);
            let done = format!("user {name:?} added\n");
            (AccessRequest::UserAdd { name, password, superuser }, done)
        }
        UsersCommand::Passwd { name } => {
            let password = Password(super::prompt::new_password().await?);
            let done = format!("password of {name:?} set\n");
            (AccessRequest::UserPassword { name, password }, done)
        }
        UsersCommand::Delete { name } => {
            let done = format!("user {name:?} deleted\n");
            (AccessRequest::UserDelete { name }, done)
        }
    };
    match client.access(request).await? {
        AccessAnswer::User(user) if json => pretty(&user),
        _ if json => pretty(&json!({})),
        _ => Ok(done),
    }
}

async fn all_users(client: &mut AdminClient) -> Result<Vec<UserInfo>> {
    let mut all: Vec<UserInfo> = Vec::new();
    loop {
        let after = all.last().map(|user| user.name.clone());
        let AccessAnswer::Users(page) =
            client.access(AccessRequest::Users { after, limit: USERS_PAGE }).await?
        else {
            anyhow::bail!("the node answered something else than its users");
        };
        if page.users.is_empty() {
            return Ok(all);
        }
        all.extend(page.users);
    }
}

async fn bans(client: &mut AdminClient, what: BansCommand, json: bool) -> Result<String> {
    let request = match what {
        BansCommand::List => AccessRequest::Bans,
        BansCommand::Clear { address } => AccessRequest::BansClear { address },
    };
    match client.access(request).await? {
        AccessAnswer::Bans(bans) if json => pretty(&bans),
        AccessAnswer::Bans(bans) => Ok(table::bans(&bans)),
        AccessAnswer::Cleared(ended) if json => pretty(&json!({ "ended": ended })),
        AccessAnswer::Cleared(ended) => Ok(format!("{ended} ended\n")),
        other => anyhow::bail!("the node answered something else: {other:?}"),
    }
}

pub(super) fn show(bridge: &BridgeInfo, json: bool) -> Result<String> {
    if json { pretty(bridge) } else { Ok(table::bridges(std::slice::from_ref(bridge))) }
}

pub(super) fn pretty<T: Serialize>(value: &T) -> Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// Counters with what follows from them, so that a script need not add up the drops.
fn counters_json(counters: &Counters) -> serde_json::Value {
    let ledger = Ledger::from(counters);
    let mut value = json!(ledger);
    if let Some(fields) = value.as_object_mut() {
        fields.insert("dropped".into(), json!(ledger.dropped()));
        fields.insert("imbalance".into(), json!(i64::try_from(ledger.imbalance()).unwrap_or(i64::MAX)));
    }
    value
}

/// A bridge with its counters.
pub(super) fn bridge_json(stats: &BridgeStats) -> serde_json::Value {
    let partitions = stats.partitions.iter().map(|partition| {
        let counters = counters_json(&partition.counters);
        json!({ "topic": partition.topic, "partition": partition.partition, "counters": counters })
    });
    let mut value = json!(stats.bridge);
    if let Some(fields) = value.as_object_mut() {
        fields.insert("counters".into(), counters_json(&stats.counters));
        fields.insert("disk_bytes".into(), json!(stats.disk_bytes));
        fields.insert("partitions".into(), partitions.collect());
    }
    value
}

/// `{"bridges": [..], "past": {"kafka": counters, "kafka_consumer": counters}}`.
pub(super) fn stats_json(all: &[BridgeStats], past: &[PastStats]) -> serde_json::Value {
    let past = past.iter().map(|past| (past.kind.to_string(), counters_json(&past.counters)));
    json!({
        "bridges": all.iter().map(bridge_json).collect::<Vec<_>>(),
        "past": past.collect::<serde_json::Map<_, _>>(),
    })
}
