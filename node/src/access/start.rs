//! Starts an [`Access`], and what the node asks of it beside the MQTT front.

use std::{path::Path, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use parking_lot::RwLock;

use super::{
    Access, DenyAction,
    authenticator::{Authenticator, Backend},
    bans::{Bans, Limits},
    checks::{CheckLimits, Checks},
    files::{Purpose, Watched},
    jwt::{Jwt, JwtOptions, KeySource},
    options::{BackendOptions, CheckOptions, Options, RulesFile},
    password_file::PasswordFile,
    passwords::{Cost, PasswordHash},
    permissions::Rules,
    revoked::Revoked,
    rules::{Permission, RuleSet},
    users::{UserRow, Users, UsersError, UsersOptions},
};

/// Name of the user database's file.
pub const USERS_FILE: &str = "users.redb";

/// Why access control did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be used.
    #[error("{key}: {path}: {reason}")]
    File {
        /// The key that names it.
        key: &'static str,
        /// The file.
        path: String,
        /// Its fault.
        reason: String,
    },
    /// The secret of tokens cannot be used.
    #[error("authentication.backends: jwt: {0}")]
    Secret(String),
    /// The file of rules has errors.
    #[error("authorization.file:\n{0}")]
    Rules(String),
    /// The user database.
    #[error("{path}: {source}")]
    Users {
        /// The file.
        path: String,
        /// Fault.
        source: UsersError,
    },
}

fn open_jwt(options: &JwtOptions) -> Result<Jwt, Error> {
    let key = match &options.keys {
        KeySource::Shared { .. } => None,
        KeySource::Pem(path) => Some(("authentication.backends: public_key", path)),
        KeySource::Jwks(path) => Some(("authentication.backends: jwks_file", path)),
    };
    Jwt::new(options.clone()).map_err(|reason| match key {
        Some((key, path)) => Error::File { key, path: path.display().to_string(), reason },
        None => Error::Secret(reason),
    })
}

fn open_password_file(path: &Path) -> Result<PasswordFile, Error> {
    PasswordFile::open(path).map_err(|reason| Error::File {
        key: "authentication.backends: password_file",
        path: path.display().to_string(),
        reason,
    })
}

/// Everything that is wrong with the files that the options name, as `causeway check` says it.
pub fn check(options: &Options) -> Vec<Error> {
    let mut errors = Vec::new();
    for backend in &options.backends {
        errors.extend(match backend {
            BackendOptions::PasswordFile(path) => open_password_file(path).err(),
            BackendOptions::Jwt(jwt) => open_jwt(jwt).err(),
            BackendOptions::Users { .. } | BackendOptions::Certificate { .. } => None,
        });
    }
    if let Some(RulesFile { path, read }) = &options.rules_file {
        errors.extend(read(path).err().map(Error::Rules));
    }
    errors
}

impl Access {
    /// Starts access control: reads the files, and opens the user database where one is asked for.
    ///
    /// # Errors
    /// A file or secret that cannot be used.
    pub fn start(options: Options) -> Result<Arc<Self>, Error> {
        // Taken apart, so that an option without effect does not compile.
        let Options {
            anonymous,
            backends,
            checks: CheckOptions { max_concurrent, max_waiting, remember },
            bans,
            rules,
            rules_file,
            no_match,
            deny_action,
            reload_interval,
            cost,
        } = options;
        let mut watched = Vec::new();
        let mut known = Vec::new();
        for backend in backends {
            known.push(match backend {
                BackendOptions::Users { path, scram_iterations } => {
                    let users = Users::open(&path, UsersOptions { cost, scram: scram_iterations });
                    let users =
                        users.map_err(|source| Error::Users { path: path.display().to_string(), source })?;
                    Backend::Users(Arc::new(users))
                }
                BackendOptions::PasswordFile(path) => {
                    let file = Arc::new(open_password_file(&path)?);
                    watched.push(Watched::new(file.path(), Purpose::Passwords(file.clone())));
                    Backend::PasswordFile(file)
                }
                BackendOptions::Jwt(jwt) => {
                    let jwt = Arc::new(open_jwt(&jwt)?);
                    if let Some(path) = jwt.options().keys.path() {
                        watched.push(Watched::new(path, Purpose::Keys(jwt.clone())));
                    }
                    Backend::Jwt(jwt)
                }
                BackendOptions::Certificate { common_name } => Backend::Certificate(common_name),
            });
        }
        let configured = rules;
        let mut all = configured.clone();
        if let Some(RulesFile { path, read }) = &rules_file {
            watched.push(Watched::new(path, Purpose::Rules(*read)));
            all.extend(read(path).map_err(Error::Rules)?);
        }
        // Without rules there is nothing to ask, now or later.
        let asked = !all.is_empty() || rules_file.is_some() || no_match == Permission::Deny;
        let rules =
            asked.then(|| Arc::new(Rules { current: ArcSwap::from_pointee(RuleSet::new(all)), no_match }));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let running = if max_concurrent == 0 { (cores / 2).max(1) } else { usize::from(max_concurrent) };
        Ok(Arc::new(Self {
            authenticator: Authenticator {
                backends: known,
                anonymous,
                checks: Checks::new(CheckLimits { running, waiting: max_waiting as usize, remember }),
                nobody: Arc::new(PasswordHash::of_nobody(cost)),
            },
            bans: Bans::new(bans),
            rules,
            configured,
            standings: RwLock::default(),
            deny_action,
            on_reload: RwLock::default(),
            on_revoke: RwLock::default(),
            revoked: Revoked::default(),
            watched,
            reload_interval,
        }))
    }

    /// Looks at the files now and then, as long as the value lives.
    pub fn watch(self: &Arc<Self>) {
        if self.watched.is_empty() {
            return;
        }
        let (access, interval) = (Arc::downgrade(self), self.reload_interval);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(interval).await;
                let Some(access) = access.upgrade() else { return };
                // A file on a slow disk or on another machine holds up no client.
                let _ = tokio::task::spawn_blocking(move || access.look()).await;
            }
        });
    }

    /// Reads the files that have changed.
    pub fn look(&self) {
        for watched in &self.watched {
            watched.look(|purpose, path| match purpose {
                Purpose::Passwords(file) => file.reload().map(|()| file.len()),
                Purpose::Keys(jwt) => jwt.reload().map(|()| 1),
                Purpose::Rules(read) => {
                    let mut rules = self.configured.clone();
                    rules.extend(read(path)?);
                    let count = rules.len();
                    self.replace_rules(rules);
                    Ok(count)
                }
            });
        }
    }

    fn users(&self) -> Result<Arc<Users>, UserError> {
        self.authenticator.users().cloned().ok_or(UserError::NoDatabase)
    }

    async fn with_users<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Users) -> Result<T, UsersError> + Send + 'static,
    ) -> Result<T, UserError> {
        let users = self.users()?;
        let done = self.authenticator.checks.run(move || work(&users)).await;
        Ok(done.ok_or(UserError::Interrupted)??)
    }

    /// Adds a user to the built-in database.
    pub async fn add_user(
        &self,
        name: String,
        password: Vec<u8>,
        superuser: bool,
    ) -> Result<UserRow, UserError> {
        self.with_users(move |users| users.add(&name, &password, superuser)).await
    }

    /// Gives a user another password, and ends its connections.
    pub async fn set_password(&self, name: String, password: Vec<u8>) -> Result<UserRow, UserError> {
        let row = self.with_users(move |users| users.set_password(&name, &password)).await?;
        self.revoke(&row.name);
        Ok(row)
    }

    /// Removes a user, and ends its connections.
    pub async fn delete_user(&self, name: String) -> Result<(), UserError> {
        let deleted = name.clone();
        self.with_users(move |users| users.delete(&deleted)).await?;
        self.revoke(&name);
        Ok(())
    }

    /// Up to `limit` users behind `after`, by name, and how many there are in all.
    pub async fn list_users(
        &self,
        after: Option<String>,
        limit: usize,
    ) -> Result<(Vec<UserRow>, u64), UserError> {
        self.with_users(move |users| users.list(after.as_deref(), limit)).await
    }
}

/// Why something with the users was not done.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// There is no database.
    #[error(
        "this node has no user database; add {{ type = built_in_database }} to authentication.backends in its \
         configuration and start it again"
    )]
    NoDatabase,
    /// The node stops.
    #[error("the node is stopping")]
    Interrupted,
    /// The database says no.
    #[error(transparent)]
    Users(#[from] UsersError),
}

impl Access {
    /// An [`Access`] without backends or limits.
    pub(super) fn bare(rules: Option<Arc<Rules>>, deny_action: DenyAction) -> Arc<Self> {
        let (window, ban, delay) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
        Arc::new(Self {
            authenticator: Authenticator {
                backends: Vec::new(),
                anonymous: true,
                checks: Checks::new(CheckLimits { running: 1, waiting: 0, remember: Duration::ZERO }),
                nobody: Arc::new(PasswordHash::of_nobody(Cost::LEAST)),
            },
            bans: Bans::new(Limits { max_failures: 0, window, ban, delay }),
            rules,
            configured: Vec::new(),
            standings: RwLock::default(),
            deny_action,
            on_reload: RwLock::default(),
            on_revoke: RwLock::default(),
            revoked: Revoked::default(),
            watched: Vec::new(),
            reload_interval: Duration::MAX,
        })
    }
}
