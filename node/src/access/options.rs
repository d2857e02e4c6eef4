//! Settings of access control, free of the syntax of a configuration file.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    DenyAction,
    bans::Limits,
    jwt::JwtOptions,
    passwords::Cost,
    rules::{Permission, Rule},
};

/// Settings of [`Access`](super::Access).
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether a client without user name and password may connect.
    pub anonymous: bool,
    /// Backends that know the clients, asked in this order.
    pub backends: Vec<BackendOptions>,
    /// Limits of password and signature checks.
    pub checks: CheckOptions,
    /// When an address is slowed down and banned.
    pub bans: Limits,
    /// Rules for publishing and subscribing; the first one that fits decides.
    pub rules: Vec<Rule>,
    /// File of further rules, which come behind those above. Read again when it changes.
    pub rules_file: Option<RulesFile>,
    /// Verdict where no rule fits.
    pub no_match: Permission,
    /// Consequence of a publication or subscription that is not allowed.
    pub deny_action: DenyAction,
    /// Interval between looks at the files.
    pub reload_interval: Duration,
    /// Cost of new password hashes.
    pub cost: Cost,
}

/// Limits of password and signature checks.
#[derive(Debug, Clone, Copy)]
pub struct CheckOptions {
    /// Checks at one time; 0: half of the cores, at least one.
    pub max_concurrent: u16,
    /// Clients that wait for a check. One more is told that the server is busy.
    pub max_waiting: u32,
    /// How long a right password or token is remembered.
    pub remember: Duration,
}

/// A file of rules and its reader.
#[derive(Clone)]
pub struct RulesFile {
    /// Path of the file.
    pub path: PathBuf,
    /// Reads the rules of such a file; the error is for people and has a line per fault.
    pub read: fn(&Path) -> Result<Vec<Rule>, String>,
}

impl fmt::Debug for RulesFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RulesFile").field("path", &self.path).finish_non_exhaustive()
    }
}

/// A backend that knows clients.
#[derive(Debug, Clone)]
pub enum BackendOptions {
    /// The user database that `causeway ctl users` manages.
    Users {
        /// Its file; made where there is none.
        path: PathBuf,
        /// Iterations of PBKDF2 for SCRAM; `None`: no login with SCRAM.
        scram_iterations: Option<u32>,
    },
    /// A file of users and password hashes.
    PasswordFile(PathBuf),
    /// JSON Web Tokens.
    Jwt(Box<JwtOptions>),
    /// Certificates that were verified in the TLS handshake.
    Certificate {
        /// The user name is the common name of the subject; otherwise the whole subject.
        common_name: bool,
    },
}
