//! From the configuration to a working [`Access`], and what the node asks of it beside the MQTT front.

use std::{path::Path, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use jsonwebtoken::Algorithm;
use parking_lot::RwLock;

use super::{
    Access, DenyAction,
    authenticator::{Authenticator, Backend},
    bans::{Bans, Limits},
    checks::{CheckLimits, Checks},
    files::{Purpose, Watched},
    jwt::{Field, Jwt, JwtOptions, KeySource},
    password_file::PasswordFile,
    passwords::{Cost, PasswordHash},
    permissions::Rules,
    revoked::Revoked,
    rules::{Permission, Rule, RuleSet},
    users::{UserRow, Users, UsersError, UsersOptions},
};
use crate::config::{
    AuthenticationConfig, AuthorizationConfig, BackendConfig, BanConfig, CertificateName, Choice,
    DenyActionWord, Errors, JwtConfig, NoMatch, PasswordChecksConfig, RuleConfig, TokenAlgorithm, TokenField,
    load_rules,
};

/// The file of the user database, in the data directory.
const USERS_FILE: &str = "users.redb";

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
        /// What is wrong with it.
        reason: String,
    },
    /// The secret of tokens cannot be used.
    #[error("authentication.backends: jwt: {0}")]
    Secret(String),
    /// The file of rules has errors.
    #[error("authorization.file:\n{0}")]
    Rules(Errors),
    /// The user database.
    #[error("{path}: {source}")]
    Users {
        /// The file.
        path: String,
        /// What is wrong.
        source: UsersError,
    },
}

fn open_jwt(config: &JwtConfig) -> Result<Jwt, Error> {
    let JwtConfig {
        from,
        secret,
        secret_base64_encoded,
        public_key,
        jwks_file,
        algorithms,
        verify_claims,
        leeway,
        disconnect_after_expire,
        acl_claim_name,
    } = config;
    let keys = if let Some(secret) = secret {
        let text = secret.resolve().map_err(|error| Error::Secret(error.to_string()))?;
        let text = text.reveal();
        if *secret_base64_encoded {
            KeySource::secret_in_base64(text).map_err(Error::Secret)?
        } else {
            KeySource::Secret(text.as_bytes().to_vec())
        }
    } else if let Some(path) = public_key {
        KeySource::Pem(path.clone())
    } else {
        KeySource::Jwks(jwks_file.clone().unwrap_or_default())
    };
    let key = if public_key.is_some() {
        "authentication.backends: public_key"
    } else {
        "authentication.backends: jwks_file"
    };
    let path = keys.path().map(|path| path.display().to_string());
    Jwt::new(JwtOptions {
        field: match from {
            TokenField::Password => Field::Password,
            TokenField::Username => Field::Username,
        },
        keys,
        algorithms: algorithms.iter().filter_map(|algorithm| algorithm_of(*algorithm)).collect(),
        verify_claims: verify_claims.clone().into_iter().collect(),
        leeway: *leeway,
        disconnect_after_expire: *disconnect_after_expire,
        acl_claim: acl_claim_name.clone(),
    })
    .map_err(|reason| match path {
        Some(path) => Error::File { key, path, reason },
        None => Error::Secret(reason),
    })
}

fn algorithm_of(word: TokenAlgorithm) -> Option<Algorithm> {
    word.word().parse().ok()
}

fn open_password_file(path: &Path) -> Result<PasswordFile, Error> {
    PasswordFile::open(path).map_err(|reason| Error::File {
        key: "authentication.backends: password_file",
        path: path.display().to_string(),
        reason,
    })
}

fn rules_of(configured: &[RuleConfig]) -> impl Iterator<Item = Rule> {
    configured.iter().map(RuleConfig::rule)
}

fn read_rules(path: &Path) -> Result<Vec<Rule>, Errors> {
    Ok(rules_of(&load_rules(path)?.value.rules).collect())
}

/// Everything that is wrong with the files that the two sections name, as `causeway check` says it.
pub fn check(authentication: &AuthenticationConfig, authorization: &AuthorizationConfig) -> Vec<Error> {
    let mut errors = Vec::new();
    for backend in &authentication.backends {
        errors.extend(match backend {
            BackendConfig::PasswordFile(config) => open_password_file(&config.path).err(),
            BackendConfig::Jwt(config) => open_jwt(config).err(),
            BackendConfig::BuiltInDatabase(_) | BackendConfig::ClientCertificate(_) => None,
        });
    }
    if let Some(path) = &authorization.file {
        errors.extend(read_rules(path).err().map(Error::Rules));
    }
    errors
}

impl Access {
    /// Access as configured. Reads files, and opens the user database where it is asked for.
    pub fn start(
        authentication: &AuthenticationConfig,
        authorization: &AuthorizationConfig,
        data_dir: &Path,
    ) -> Result<Arc<Self>, Error> {
        Self::start_with(authentication, authorization, data_dir, Cost::RECOMMENDED)
    }

    /// [`Self::start`] with another cost of new password hashes.
    pub fn start_with(
        authentication: &AuthenticationConfig,
        authorization: &AuthorizationConfig,
        data_dir: &Path,
        cost: Cost,
    ) -> Result<Arc<Self>, Error> {
        // Taken apart, so that a field that reaches nothing does not compile.
        let AuthenticationConfig { allow_anonymous: _, backends, password_checks, ban, reload_interval } =
            authentication;
        let PasswordChecksConfig { max_concurrent, max_waiting, remember } = *password_checks;
        let BanConfig { max_failures, window_time, ban_time, delay } = *ban;
        let AuthorizationConfig { no_match, deny_action, rules, file } = authorization;
        let mut watched = Vec::new();
        let mut known = Vec::new();
        for backend in backends {
            known.push(match backend {
                BackendConfig::BuiltInDatabase(config) => {
                    let path = data_dir.join(USERS_FILE);
                    let options =
                        UsersOptions { cost, scram: config.scram.then_some(config.scram_iterations) };
                    let users = Users::open(&path, options);
                    let users =
                        users.map_err(|source| Error::Users { path: path.display().to_string(), source })?;
                    Backend::Users(Arc::new(users))
                }
                BackendConfig::PasswordFile(config) => {
                    let file = Arc::new(open_password_file(&config.path)?);
                    watched.push(Watched::new(file.path(), Purpose::Passwords(file.clone())));
                    Backend::PasswordFile(file)
                }
                BackendConfig::Jwt(config) => {
                    let jwt = Arc::new(open_jwt(config)?);
                    if let Some(path) = jwt.options().keys.path() {
                        watched.push(Watched::new(path, Purpose::Keys(jwt.clone())));
                    }
                    Backend::Jwt(jwt)
                }
                BackendConfig::ClientCertificate(config) => {
                    Backend::Certificate(config.username == CertificateName::CommonName)
                }
            });
        }
        let configured: Vec<Rule> = rules_of(rules).collect();
        let mut all = configured.clone();
        if let Some(path) = file {
            watched.push(Watched::new(path, Purpose::Rules));
            all.extend(read_rules(path).map_err(Error::Rules)?);
        }
        let no_match = match no_match {
            NoMatch::Allow => Permission::Allow,
            NoMatch::Deny => Permission::Deny,
        };
        // Without rules there is nothing to ask, now or later.
        let asked = !all.is_empty() || file.is_some() || no_match == Permission::Deny;
        let rules =
            asked.then(|| Arc::new(Rules { current: ArcSwap::from_pointee(RuleSet::new(all)), no_match }));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let running = if max_concurrent == 0 { (cores / 2).max(1) } else { usize::from(max_concurrent) };
        Ok(Arc::new(Self {
            authenticator: Authenticator {
                backends: known,
                anonymous: authentication.anonymous_is_allowed(),
                checks: Checks::new(CheckLimits { running, waiting: max_waiting as usize, remember }),
                nobody: Arc::new(PasswordHash::of_nobody(cost)),
            },
            bans: Bans::new(Limits { max_failures, window: window_time, ban: ban_time, delay }),
            rules,
            configured,
            standings: RwLock::default(),
            deny_action: match deny_action {
                DenyActionWord::Ignore => DenyAction::Ignore,
                DenyActionWord::Disconnect => DenyAction::Disconnect,
            },
            on_reload: RwLock::default(),
            on_revoke: RwLock::default(),
            revoked: Revoked::default(),
            watched,
            reload_interval: *reload_interval,
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
                // A file on a slow disk or on another machine holds up nobody.
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
                Purpose::Rules => {
                    let mut rules = self.configured.clone();
                    rules.extend(read_rules(path).map_err(|errors| errors.to_string())?);
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
