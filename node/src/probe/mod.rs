//! The way of a bridge to Kafka, walked step by step as an operator would: names, ports, TLS, login, brokers,
//! topics, rights, limits, clocks, group.
//!
//! Invariants:
//! * Nothing is written, created, joined or committed. (Kafka itself makes its topic of offsets when somebody
//!   first asks for a group.)
//! * A step that makes the later ones pointless is the last one; each has a time limit, and so has the walk
//!   ([`TOTAL`]), which is shorter than callers of the admin link wait.
//! * What is found is said in plain words, with what to do about it; secrets are in none of them.

mod clock;
mod reach;
mod topics;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::bridge::service::Definition;
use crate::kafka::client::ClientOptions;

/// A walk takes no longer.
pub const TOTAL: Duration = Duration::from_secs(25);

/// One attempt to connect takes no longer, whatever `connect_timeout` says.
const CONNECT: Duration = Duration::from_secs(5);

/// How a step went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should.
    Ok,
    /// The bridge works, but hardly as meant.
    Warn,
    /// The bridge cannot work like this.
    Fail,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Subject of the step: `settings`, `dns`, `tcp`, `tls`, `login`, `brokers`, `topic`, `acl`,
    /// `max.message.bytes`, `min.insync.replicas`, `producer id`, `clock`, `group`, `time`.
    pub step: String,
    /// Whose: a host, a topic, a group.
    pub about: String,
    /// How it went.
    pub verdict: Verdict,
    /// Finding.
    pub found: String,
    /// Remedy.
    pub fix: Option<String>,
}

/// Whether a bridge that was walked like this cannot work.
pub fn has_failed(steps: &[Step]) -> bool {
    steps.iter().any(|step| step.verdict == Verdict::Fail)
}

/// Where steps are noted as they are made.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<Step>>>);

impl Notes {
    fn note(&self, step: &str, about: &str, verdict: Verdict, found: impl Into<String>, fix: Option<String>) {
        self.0.lock().push(Step {
            step: step.to_owned(),
            about: about.to_owned(),
            verdict,
            found: found.into(),
            fix,
        });
    }

    fn ok(&self, step: &str, about: &str, found: impl Into<String>) {
        self.note(step, about, Verdict::Ok, found, None);
    }

    fn warn(&self, step: &str, about: &str, found: impl Into<String>, fix: impl Into<String>) {
        self.note(step, about, Verdict::Warn, found, Some(fix.into()));
    }

    fn fail(&self, step: &str, about: &str, found: impl Into<String>, fix: impl Into<String>) {
        self.note(step, about, Verdict::Fail, found, Some(fix.into()));
    }
}

/// Walks the way of the bridge called `name`.
pub async fn walk(name: &str, definition: &Definition) -> Vec<Step> {
    walk_within(name, definition, TOTAL).await
}

/// [`walk`] with another time limit.
pub async fn walk_within(name: &str, definition: &Definition, limit: Duration) -> Vec<Step> {
    let notes = Notes::default();
    if tokio::time::timeout(limit, steps(name, definition, &notes)).await.is_err() {
        notes.fail(
            "time",
            name,
            format!("not at the end after {limit:?}"),
            "see which step is missing; a firewall that swallows packets looks like this",
        );
    }
    std::mem::take(&mut *notes.0.lock())
}

async fn steps(name: &str, definition: &Definition, notes: &Notes) {
    let connection = definition.connection();
    let options = match connection.client_options("causeway-probe", None) {
        Ok(options) => options,
        Err(error) => {
            return notes.fail(
                "settings",
                name,
                error.to_string(),
                "correct the file or value; it must be readable for the user that the node runs as",
            );
        }
    };
    notes.ok("settings", name, "certificates, keys and passwords can be read");
    let options = ClientOptions { connect_timeout: options.connect_timeout.min(CONNECT), ..options };
    let Some(broker) = reach::bootstrap(&options, notes).await else { return };
    let Some(cluster) = reach::cluster(&broker, definition, &options, notes).await else { return };
    topics::walk(name, definition, &options, &broker, &cluster, notes).await;
}
