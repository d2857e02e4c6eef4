//! The backends in their order, and what their verdicts mean for a CONNECT.
//!
//! The first backend that knows a client decides. A password is hashed once an attempt, whichever backend
//! knows the user and whether anybody does, so that time tells nothing.

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use causeway_protocol::mqtt::ReasonCode;
use tokio::time::Instant;

use super::{
    Access, Admitted, Answer, Credentials, Exchange, Permissions, Refusal, Step, Verdict,
    checks::{Checked, Checks, Outcome},
    jwt::{Claims, Field, Grant, Jwt, Refused, claims, looks_like_a_token},
    password_file::PasswordFile,
    passwords::{LONGEST_PASSWORD, PasswordHash},
    scram::{ClientFirst, SCRAM_SHA_256},
    users::Users,
};

/// A backend that knows clients.
pub(super) enum Backend {
    Users(Arc<Users>),
    PasswordFile(Arc<PasswordFile>),
    Jwt(Arc<Jwt>),
    /// True: the common name is the user name; false: the whole subject.
    Certificate(bool),
}

/// The backends together, in their order.
pub(super) struct Authenticator {
    pub(super) backends: Vec<Backend>,
    pub(super) anonymous: bool,
    pub(super) checks: Arc<Checks>,
    /// The hash of those whom no backend knows.
    pub(super) nobody: Arc<PasswordHash>,
}

impl Authenticator {
    pub(super) fn users(&self) -> Option<&Arc<Users>> {
        self.backends.iter().find_map(|backend| match backend {
            Backend::Users(users) => Some(users),
            _ => None,
        })
    }
}

impl Access {
    /// Whether anybody's name is more than a claim: some backend knows who it belongs to.
    pub fn knows_users(&self) -> bool {
        !self.authenticator.backends.is_empty()
    }

    /// Whether a user name may be a token.
    pub(crate) fn has_tokens_for_usernames(&self) -> bool {
        let takes = |backend: &Backend| match backend {
            Backend::Jwt(jwt) => jwt.options().field == Field::Username,
            _ => false,
        };
        self.authenticator.backends.iter().any(takes)
    }

    /// Decides about a CONNECT without an authentication method.
    pub fn authenticate(self: &Arc<Self>, credentials: &Credentials<'_>) -> Answer {
        let Credentials { username, password, certificate, listener, .. } = *credentials;
        let address = credentials.peer.ip();
        if self.is_banned(address) {
            return Answer::Now(Err(Refusal::at_once(ReasonCode::Banned)));
        }
        let Authenticator { backends, anonymous, nobody, .. } = &self.authenticator;
        let admitted = || Admitted { permissions: self.permissions(listener), ..Admitted::default() };
        let mut passwords = false;
        for backend in backends {
            let stored = match backend {
                Backend::Certificate(common_name) => {
                    let name = certificate
                        .and_then(|names| if *common_name { names.common_name } else { Some(names.subject) });
                    let Some(name) = name.filter(|name| !name.is_empty()) else { continue };
                    return Answer::Now(Ok(Admitted { username: Some(Some(name.into())), ..admitted() }));
                }
                Backend::Jwt(jwt) => {
                    let token = match jwt.options().field {
                        Field::Password => password.and_then(|password| std::str::from_utf8(password).ok()),
                        Field::Username => username,
                    };
                    let Some(token) = token.filter(|token| looks_like_a_token(token)) else { continue };
                    return self.check_token(jwt, token, credentials);
                }
                Backend::Users(users) => {
                    passwords = true;
                    match username.map(|name| users.get(name)).transpose() {
                        Ok(user) => user.flatten().map(|user| (user.hash, user.superuser)),
                        Err(error) => {
                            tracing::error!(%error, "a client was refused");
                            return Answer::Now(Err(Refusal::at_once(ReasonCode::ServerUnavailable)));
                        }
                    }
                }
                Backend::PasswordFile(file) => {
                    passwords = true;
                    username.and_then(|name| file.get(name)).map(|hash| (hash, false))
                }
            };
            if let (Some((hash, superuser)), Some(name)) = (stored, username) {
                let permissions = if superuser { Permissions::default() } else { self.permissions(listener) };
                return self.check_password(
                    name,
                    hash,
                    password.unwrap_or_default(),
                    permissions,
                    credentials,
                );
            }
        }
        match (username, password) {
            // There are no backends: a client that is let in at all is taken at its word.
            _ if backends.is_empty() && *anonymous => Answer::Now(Ok(admitted())),
            (None, None) if *anonymous => Answer::Now(Ok(admitted())),
            (None, None) => Answer::Now(Err(self.failed(address, ReasonCode::NotAuthorized))),
            (Some(name), Some(password)) if passwords => {
                self.check_password(name, nobody.clone(), password, Permissions::default(), credentials)
            }
            _ => Answer::Now(Err(self.failed(address, ReasonCode::BadUserNameOrPassword))),
        }
    }

    fn check_password(
        self: &Arc<Self>,
        name: &str,
        stored: Arc<PasswordHash>,
        password: &[u8],
        permissions: Permissions,
        credentials: &Credentials<'_>,
    ) -> Answer {
        let address = credentials.peer.ip();
        if password.is_empty() || password.len() > LONGEST_PASSWORD {
            return Answer::Now(Err(self.failed(address, ReasonCode::BadUserNameOrPassword)));
        }
        let access = self.clone();
        let verdict = move |outcome| match outcome {
            Outcome::Right => Ok(Admitted { permissions, ..Admitted::default() }),
            Outcome::Wrong => Err(access.failed(address, ReasonCode::BadUserNameOrPassword)),
            Outcome::Busy => Err(Refusal::at_once(ReasonCode::ServerBusy)),
            Outcome::Failed => Err(Refusal::at_once(ReasonCode::ServerUnavailable)),
        };
        match self.authenticator.checks.check(name, stored, password) {
            Checked::Now(outcome) => Answer::Now(verdict(outcome)),
            Checked::Later(check) => Answer::Later(Box::pin(async move { verdict(check.await) })),
        }
    }

    /// A signature that costs is checked where passwords are, and remembered as they are: the rest of the
    /// token is looked at each time.
    fn check_token(self: &Arc<Self>, jwt: &Arc<Jwt>, token: &str, credentials: &Credentials<'_>) -> Answer {
        if !jwt.costs(token) {
            return Answer::Now(self.judge_token(jwt, jwt.verify(token), credentials));
        }
        let checks = &self.authenticator.checks;
        let digest = checks.token(jwt.generation(), token);
        if digest.is_some_and(|digest| checks.knows(&digest)) {
            return Answer::Now(self.judge_token(jwt, claims(token).ok_or(Refused::Malformed), credentials));
        }
        let (access, jwt, asked) = (self.clone(), jwt.clone(), Asked::of(credentials));
        let (verifier, token) = (jwt.clone(), Box::<str>::from(token));
        match checks.check_with(digest, move || verifier.verify(&token)) {
            Some(check) => Answer::Later(Box::pin(async move {
                match check.await {
                    Some(claims) => access.judge_token(&jwt, claims, &asked.credentials()),
                    None => Err(Refusal::at_once(ReasonCode::ServerUnavailable)),
                }
            })),
            None => Answer::Now(Err(Refusal::at_once(ReasonCode::ServerBusy))),
        }
    }

    fn judge_token(
        &self,
        jwt: &Jwt,
        claims: Result<Claims, Refused>,
        credentials: &Credentials<'_>,
    ) -> Verdict {
        let Credentials { client_id, username, listener, .. } = *credentials;
        let by_name = jwt.options().field == Field::Username;
        let named = username.filter(|_| !by_name);
        match claims.and_then(|claims| jwt.judge(&claims, client_id, named, SystemTime::now())) {
            Ok(Grant { subject, lasts, rules }) => Ok(Admitted {
                permissions: match rules {
                    None => self.permissions(listener),
                    Some(rules) => self.permissions_of_token(listener, rules),
                },
                // The token is a secret, and no name.
                username: by_name.then_some(subject),
                expires: lasts.and_then(|lasts| Instant::now().checked_add(lasts)),
            }),
            Err(error) => {
                tracing::debug!(client_id, %error, "token refused");
                Err(self.failed(credentials.peer.ip(), ReasonCode::BadUserNameOrPassword))
            }
        }
    }

    /// Begins the conversation of a CONNECT with an authentication method, or of an AUTH that asks to
    /// authenticate again (MQTT-5.0 4.12).
    pub fn begin(
        self: &Arc<Self>,
        method: &str,
        data: Option<&[u8]>,
        credentials: &Credentials<'_>,
    ) -> Result<Step, Refusal> {
        if self.is_banned(credentials.peer.ip()) {
            return Err(Refusal::at_once(ReasonCode::Banned));
        }
        let users = self.authenticator.users().filter(|users| method == SCRAM_SHA_256 && users.has_scram());
        let Some(users) = users else { return Err(Refusal::at_once(ReasonCode::BadAuthenticationMethod)) };
        let talk = Talk {
            access: self.clone(),
            users: users.clone(),
            listener: credentials.listener.into(),
            peer: credentials.peer.ip(),
        };
        match data {
            Some(data) => talk.first(data),
            // The client waits to be asked (RFC 4422 5.1).
            None => Ok(Step::Continue(
                Exchange::new(move |data| talk.first(data.unwrap_or_default())),
                Vec::new(),
            )),
        }
    }
}

/// Parts of [`Credentials`] that the verdict on a token needs, while its signature is checked.
struct Asked {
    client_id: Box<str>,
    username: Option<Box<str>>,
    peer: SocketAddr,
    listener: Box<str>,
}

impl Asked {
    fn of(credentials: &Credentials<'_>) -> Self {
        let Credentials { client_id, username, peer, listener, .. } = *credentials;
        Self {
            client_id: client_id.into(),
            username: username.map(Box::from),
            peer,
            listener: listener.into(),
        }
    }

    fn credentials(&self) -> Credentials<'_> {
        Credentials {
            client_id: &self.client_id,
            username: self.username.as_deref(),
            password: None,
            peer: self.peer,
            listener: &self.listener,
            certificate: None,
        }
    }
}

/// A SCRAM conversation.
struct Talk {
    access: Arc<Access>,
    users: Arc<Users>,
    listener: Box<str>,
    peer: std::net::IpAddr,
}

impl Talk {
    fn failed(&self, error: &super::scram::Error) -> Refusal {
        tracing::debug!(%error, "SCRAM failed");
        self.access.failed(self.peer, ReasonCode::NotAuthorized)
    }

    fn first(self, message: &[u8]) -> Result<Step, Refusal> {
        let first = ClientFirst::read(message).map_err(|error| self.failed(&error))?;
        let user = self.users.get(&first.user).map_err(|error| {
            tracing::error!(%error, "a client was refused");
            Refusal::at_once(ReasonCode::ServerUnavailable)
        })?;
        let superuser = user.as_ref().is_some_and(|user| user.superuser);
        let verifier = user.and_then(|user| user.scram).unwrap_or_else(|| self.users.stranger(&first.user));
        let nonce = format!("{:032x}", rand::random::<u128>());
        let (last, challenge) = first.challenge(verifier, &nonce);
        let exchange = Exchange::new(move |data| {
            let word = last.verify(data.unwrap_or_default()).map_err(|error| self.failed(&error))?;
            let permissions =
                if superuser { Permissions::default() } else { self.access.permissions(&self.listener) };
            let username = Some(Some(last.user.as_str().into()));
            Ok(Step::Done(Admitted { permissions, username, expires: None }, word.into_bytes()))
        });
        Ok(Step::Continue(exchange, challenge.into_bytes()))
    }
}
