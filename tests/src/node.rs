//! The real binary: built once, started with a configuration, killed, and asked for its books.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use causeway::flow::ledger::Ledger;
use causeway::probe::Step;
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{self, Process};
use crate::{eventually, need};

/// How long a node may take until its listeners are open.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How long an orderly end may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a command of the command line may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// The binary: `CAUSEWAY_BINARY` if that is set, else built once, with the profile and in the target
/// directory of this test.
pub fn binary() -> Result<&'static Path> {
    static BINARY: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    let built = BINARY.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    built.as_deref().map_err(|error| anyhow!("{error}"))
}

fn build() -> Result<PathBuf> {
    if let Some(binary) = std::env::var_os("CAUSEWAY_BINARY").filter(|value| !value.is_empty()) {
        let binary = PathBuf::from(binary);
        ensure!(binary.exists(), "there is no CAUSEWAY_BINARY={}", binary.display());
        return Ok(binary);
    }
    // TARGET/PROFILE/deps/test-1234, or TARGET/PROFILE/tool
    let test = std::env::current_exe()?;
    let folder = test.parent().context("a test lies in a folder")?;
    let directory = if folder.ends_with("deps") { folder.parent() } else { Some(folder) };
    let directory = directory.context("a test lies in a profile's folder")?;
    let target = directory.parent().context("a profile's folder lies in the target directory")?;
    let profile = match directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(name) => name,
        None => bail!("{} has no profile in its path", test.display()),
    };
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        // With this package beside it, features are chosen as for this test, and nothing is built twice.
        .args(["build", "--quiet", "--locked", "--package", "causeway", "--package", "causeway-tests"])
        .args(["--bin", "causeway"])
        .args(if cfg!(feature = "gssapi") { &["--features", "causeway/gssapi"][..] } else { &[] })
        .args(["--profile", profile, "--target-dir"])
        .arg(target)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    process::run(&mut cargo, b"", Duration::from_mins(15))?.successful().context("cannot build causeway")?;
    let binary = directory.join("causeway");
    ensure!(binary.exists(), "cargo built no {}", binary.display());
    Ok(binary)
}

/// How long a command may take that changes bridges: they drain first.
const CHANGE_TIMEOUT: Duration = Duration::from_mins(2);

/// `causeway ARGUMENTS` to its end.
pub fn causeway(arguments: &[&str]) -> Result<process::Finished> {
    process::run(Command::new(binary()?).args(arguments), b"", COMMAND_TIMEOUT)
}

/// Reads the address of a listener of this kind from a line of the node's output.
fn address(kind: &'static str) -> impl Fn(&str) -> Option<String> {
    move |line| {
        let (said, rest) = line.strip_prefix("listening ")?.split_once(' ')?;
        rest.split_whitespace().next().filter(|_| said == kind).map(str::to_owned)
    }
}

fn stats_at(admin: &str) -> Result<Value> {
    let answer = causeway(&["ctl", "stats", "--admin", admin, "--json"])?.successful()?;
    Ok(serde_json::from_str(&answer.stdout)?)
}

/// A node with a data directory of its own.
pub struct Node {
    name: String,
    bridges: String,
    environment: Vec<(String, String)>,
    data: Option<PathBuf>,
    directory: TempDir,
    process: Option<Process>,
    mqtt: String,
    admin: String,
}

impl Node {
    /// Starts a node with these sections in its configuration (bridges, and what else is not about its
    /// name, listeners and folders), and waits until its listeners are open.
    pub fn start(bridges: &str) -> Result<Self> {
        Self::start_as("node-1", bridges)
    }

    /// The same, with a node name.
    pub fn start_as(name: &str, bridges: &str) -> Result<Self> {
        Self::start_with(name, bridges, &[])
    }

    /// The same, with variables of its environment.
    pub fn start_with(name: &str, bridges: &str, environment: &[(&str, &str)]) -> Result<Self> {
        let mut node = Self::prepare(name, bridges, environment)?;
        node.start_again()?;
        Ok(node)
    }

    /// The same, with its data in `data`, if that is said.
    pub fn start_in(data: Option<&Path>, bridges: &str) -> Result<Self> {
        let mut node = Self::prepare("node-1", bridges, &[])?;
        node.data = data.map(Path::to_owned);
        node.start_again()?;
        Ok(node)
    }

    fn prepare(name: &str, bridges: &str, environment: &[(&str, &str)]) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("causeway-node-").tempdir()?;
        process::remove_at_exit(directory.path());
        let [mqtt, admin] = crate::kafka::free_ports()?;
        Ok(Self {
            name: name.to_owned(),
            bridges: bridges.to_owned(),
            environment: environment
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            data: None,
            directory,
            process: None,
            mqtt: format!("127.0.0.1:{mqtt}"),
            admin: format!("127.0.0.1:{admin}"),
        })
    }

    /// Starts it again, on the same ports and data. Kills it first if it runs.
    pub fn start_again(&mut self) -> Result<()> {
        self.process = None;
        let file = self.directory.path().join("causeway.conf");
        let data = self.data();
        let text = format!(
            "node {{ name = \"{}\", data_dir = \"{}\" }}\n\
             listeners.tcp.default {{ bind = \"{}\" }}\n\
             admin {{ bind = \"{}\" }}\n\
             {}\n",
            self.name,
            data.display(),
            self.mqtt,
            self.admin,
            self.bridges
        );
        std::fs::write(&file, text)?;
        let process = Process::spawn(
            &format!("causeway {}", self.name),
            Command::new(binary()?)
                .arg("start")
                .arg("--config")
                .arg(&file)
                .envs(self.environment.iter().map(|(key, value)| (key, value)))
                .stdin(std::process::Stdio::null()),
        )?;
        self.mqtt = process.wait_for(START_TIMEOUT, address("mqtt"))?;
        self.admin = process.wait_for(START_TIMEOUT, address("admin"))?;
        self.process = Some(process);
        Ok(())
    }

    /// Changes the configuration that the next start takes.
    pub fn configure(&mut self, bridges: &str) {
        bridges.clone_into(&mut self.bridges);
    }

    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        self.data.clone().unwrap_or_else(|| self.directory.path().join("data"))
    }

    /// Where MQTT clients connect, `127.0.0.1:PORT`.
    pub fn mqtt(&self) -> &str {
        &self.mqtt
    }

    /// Where clients connect to the listener of another kind: `mqtts`, `ws` or `wss`.
    pub fn listener(&self, scheme: &'static str) -> Result<String> {
        let process = self.process.as_ref().context("this node does not run")?;
        process.wait_for(START_TIMEOUT, address(scheme))
    }

    /// `causeway ctl users add` with this password.
    pub fn add_user(&self, name: &str, password: &str) -> Result<process::Finished> {
        let mut command = Command::new(binary()?);
        command.args(["ctl", "users", "add", name, "--admin", &self.admin]);
        process::run(&mut command, format!("{password}\n").as_bytes(), COMMAND_TIMEOUT)
    }

    /// `causeway ctl ARGUMENTS` on it, to its end, with this standard input.
    pub fn ctl(&self, arguments: &[&str], input: &str) -> Result<process::Finished> {
        let mut command = Command::new(binary()?);
        command.arg("ctl").args(arguments).args(["--admin", &self.admin]);
        process::run(&mut command, input.as_bytes(), CHANGE_TIMEOUT)
    }

    /// `causeway ctl bridges probe` of a bridge: its steps. The exit code must say whether one of them
    /// failed.
    pub fn probe(&self, id: &str) -> Result<Vec<Step>> {
        let told = self.ctl(&["bridges", "probe", id, "--json"], "")?;
        let mut walks: Value =
            serde_json::from_str(&told.stdout).with_context(|| format!("{}{}", told.stdout, told.stderr))?;
        let steps: Vec<Step> = serde_json::from_value(walks[0]["steps"].take())?;
        let code = i32::from(causeway::probe::has_failed(&steps));
        ensure!(told.status.code() == Some(code), "exit status {} of {steps:#?}", told.status);
        Ok(steps)
    }

    /// Changes bridges while it runs.
    pub fn change_bridges(&self, bridges: &str) -> Result<()> {
        self.ctl(&["bridges", "change", "-"], bridges)?.successful()?;
        Ok(())
    }

    /// Sends it SIGHUP.
    pub fn hang_up(&self) -> Result<()> {
        self.process.as_ref().context("this node does not run")?.hang_up()
    }

    /// Port of it.
    pub fn mqtt_port(&self) -> &str {
        self.mqtt.rsplit(':').next().unwrap_or_default()
    }

    /// Where `causeway ctl` connects.
    pub fn admin(&self) -> &str {
        &self.admin
    }

    /// Process id.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.process.as_ref().context("this node does not run")?.pid())
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("this node does not run")?.kill();
        Ok(())
    }

    /// Ends it in order (SIGTERM); its exit status must be 0.
    pub fn stop(&mut self) -> Result<()> {
        let status = self.process.take().context("this node does not run")?.terminate(STOP_TIMEOUT)?;
        ensure!(status.success(), "the node ended with {status} on SIGTERM");
        Ok(())
    }

    /// Whether its process is there (paused or not).
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
    }

    /// Stops it where it stands: its sockets stay open, nothing is answered until [`Self::resume`].
    pub fn pause(&self) -> Result<()> {
        self.process.as_ref().context("this node does not run")?.pause()
    }

    /// Lets a paused node go on.
    pub fn resume(&self) -> Result<()> {
        self.process.as_ref().context("this node does not run")?.resume()
    }

    /// What it logged last, for the text of a failure.
    pub fn log_tail(&self) -> String {
        self.process.as_ref().map(|process| process.tail(60)).unwrap_or_default()
    }

    /// The lines of its output and log that contain a text.
    pub fn log_lines_with(&self, text: &str) -> Vec<String> {
        self.process.as_ref().map(|process| process.lines_with(text)).unwrap_or_default()
    }

    /// Waits for a line of its output or log.
    pub fn wait_for_line(&self, patience: Duration, text: &str) -> Result<()> {
        let process = self.process.as_ref().context("this node does not run")?;
        process.wait_for(patience, |line| line.contains(text).then_some(()))
    }

    /// `causeway ctl stats --json`.
    pub fn stats(&self) -> Result<Value> {
        stats_at(&self.admin)
    }

    /// Status and reason of a bridge by its id.
    pub fn status(&self, id: &str) -> Result<(String, String)> {
        let stats = self.stats()?;
        let bridges = stats["bridges"].as_array().context("no list of bridges")?;
        let bridge =
            bridges.iter().find(|bridge| bridge["id"] == id).with_context(|| format!("no bridge {id}"))?;
        let text = |field: &str| bridge[field].as_str().unwrap_or_default().to_owned();
        Ok((text("status"), text("reason")))
    }

    /// The counters of the MQTT front: `causeway ctl mqtt --json`.
    pub fn mqtt_counters(&self) -> Result<BTreeMap<String, u64>> {
        let answer = causeway(&["ctl", "mqtt", "--admin", &self.admin, "--json"])?.successful()?;
        Ok(serde_json::from_str(&answer.stdout)?)
    }

    /// The books of every bridge by its id, such as `kafka:NAME` or `kafka_consumer:NAME`, and those of past
    /// bridges as `past:kafka` and `past:kafka_consumer`.
    pub fn ledgers(&self) -> Result<BTreeMap<String, Ledger>> {
        Self::ledgers_at(&self.admin)
    }

    /// The same of the node that answers at this admin address.
    pub fn ledgers_at(admin: &str) -> Result<BTreeMap<String, Ledger>> {
        let stats = stats_at(admin)?;
        let bridges = stats["bridges"].as_array().with_context(|| format!("no list of bridges: {stats}"))?;
        let past = stats["past"].as_object().with_context(|| format!("no past: {stats}"))?;
        let entry = |bridge: &Value| {
            let id = bridge["id"].as_str().with_context(|| format!("no id in {bridge}"))?;
            let ledger = serde_json::from_value(bridge["counters"].clone())
                .with_context(|| format!("no counters in {bridge}"))?;
            Ok((id.to_owned(), ledger))
        };
        let past = past
            .iter()
            .map(|(kind, counters)| Ok((format!("past:{kind}"), serde_json::from_value(counters.clone())?)));
        bridges.iter().map(entry).chain(past).collect()
    }

    /// The books of one bridge.
    pub fn ledger(&self, id: &str) -> Result<Ledger> {
        self.ledgers()?.remove(id).with_context(|| format!("no bridge {id} in the stats"))
    }

    /// The law of every bridge's books, whatever it is doing at the moment.
    pub fn check_books(&self) -> Result<()> {
        for (bridge, ledger) in self.ledgers()? {
            ensure!(ledger.imbalance() == 0, "the books of {bridge} do not balance: {ledger:?}");
        }
        Ok(())
    }

    /// Waits until nothing is queued or on its way in any bridge, checking the law each time; then returns
    /// the books of the bridge with this id.
    pub fn settled(&self, id: &str, patience: Duration) -> Result<Ledger> {
        eventually(patience, || {
            let ledgers = self.ledgers()?;
            for (bridge, ledger) in &ledgers {
                assert_eq!(ledger.imbalance(), 0, "the books of {bridge} do not balance: {ledger:?}");
                need(ledger.queuing == 0 && ledger.inflight == 0, || {
                    format!("{bridge} is busy: {ledger:?}")
                })?;
            }
            ledgers.get(id).copied().with_context(|| format!("no bridge {id} in the stats"))
        })
    }
}

thread_local! {
    static LOGS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// What the nodes that this thread has dropped logged last; forgets it.
pub(crate) fn take_logs() -> Vec<String> {
    LOGS.take()
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            LOGS.with_borrow_mut(|logs| logs.push(format!("--- log of {}\n{}", self.name, process.tail(60))));
        }
        if std::fs::remove_dir_all(self.directory.path()).is_ok() {
            process::removed(self.directory.path());
        }
    }
}
