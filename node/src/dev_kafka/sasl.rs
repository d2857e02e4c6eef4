//! The server side of SASL: PLAIN (RFC 4616) and SCRAM-SHA-256 and -512 (RFC 5802), one exchange per
//! connection.
//!
//! Invariants: a connection is authenticated only after a whole exchange succeeded; a failed one ends the
//! connection; an error does not tell whether the user or the password was wrong. With a session lifetime
//! (KIP-368) an authenticated connection has to go through another exchange in time, which may be with the
//! same user only.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256, Sha512};

/// PBKDF2 rounds: Kafka's minimum, since a development broker should not burn CPU.
const ITERATIONS: u32 = 4096;
/// Most bytes that a client offers in one step.
const MAX_TOKEN: usize = 8 << 10;

/// Who may connect.
#[derive(Clone, Default)]
pub struct Sasl {
    /// Passwords by user.
    pub users: BTreeMap<String, String>,
    /// After this time a client has to authenticate again (KIP-368). Default: never.
    pub session_lifetime: Option<Duration>,
}

impl Sasl {
    /// One user.
    pub fn user(name: impl Into<String>, password: impl Into<String>) -> Self {
        Self { users: BTreeMap::from([(name.into(), password.into())]), session_lifetime: None }
    }
}

impl std::fmt::Debug for Sasl {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let users: Vec<_> = self.users.keys().collect();
        out.debug_struct("Sasl")
            .field("users", &users)
            .field("session_lifetime", &self.session_lifetime)
            .finish()
    }
}

/// A mechanism, by its registered name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mechanism {
    Plain,
    ScramSha256,
    ScramSha512,
}

impl Mechanism {
    pub(super) const ALL: [Self; 3] = [Self::Plain, Self::ScramSha256, Self::ScramSha512];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }

    pub(super) fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mechanism| mechanism.name() == name)
    }

    fn hmac(self, key: &[u8], message: &[u8]) -> Vec<u8> {
        fn run<M: Mac + KeyInit>(key: &[u8], message: &[u8]) -> Vec<u8> {
            // HMAC takes keys of any length.
            let Ok(mut mac) = <M as KeyInit>::new_from_slice(key) else { return Vec::new() };
            mac.update(message);
            mac.finalize().into_bytes().to_vec()
        }
        match self {
            Self::ScramSha512 => run::<Hmac<Sha512>>(key, message),
            Self::Plain | Self::ScramSha256 => run::<Hmac<Sha256>>(key, message),
        }
    }

    fn hash(self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::ScramSha512 => Sha512::digest(message).to_vec(),
            Self::Plain | Self::ScramSha256 => Sha256::digest(message).to_vec(),
        }
    }

    fn salted_password(self, password: &str, salt: &[u8]) -> Vec<u8> {
        match self {
            Self::ScramSha512 => {
                pbkdf2::pbkdf2_hmac_array::<Sha512, 64>(password.as_bytes(), salt, ITERATIONS).to_vec()
            }
            Self::Plain | Self::ScramSha256 => {
                pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(password.as_bytes(), salt, ITERATIONS).to_vec()
            }
        }
    }
}

/// Why an exchange failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    /// Wrong user or password.
    #[error("Authentication failed: Invalid username or password")]
    Credentials,
    /// The token breaks the mechanism's rules.
    #[error("Authentication failed: the token is malformed")]
    Malformed,
    /// No handshake before, or a token after the end.
    #[error("Unexpected SASL token: no exchange is under way")]
    State,
}

/// After the client's first SCRAM message.
#[derive(Debug, Clone)]
struct Scram {
    user: String,
    nonce: String,
    salted_password: Option<Vec<u8>>,
    /// First messages of both sides, as the signature covers them.
    auth_message: String,
}

#[derive(Debug, Clone)]
enum Step {
    Idle,
    Chosen(Mechanism),
    Scram(Mechanism, Box<Scram>),
}

/// One connection's authentication.
#[derive(Debug, Clone)]
pub(super) struct Session {
    step: Step,
    user: Option<String>,
    expires: Option<Instant>,
    /// After a handshake of version 0 tokens come without request headers.
    pub(super) raw: bool,
}

impl Session {
    pub(super) fn new() -> Self {
        Self { step: Step::Idle, user: None, expires: None, raw: false }
    }

    /// Whether other requests are served.
    pub(super) fn is_authenticated(&self, now: Instant) -> bool {
        self.user.is_some() && self.expires.is_none_or(|at| now < at)
    }

    /// Starts an exchange.
    pub(super) fn handshake(&mut self, mechanism: Mechanism) {
        self.step = Step::Chosen(mechanism);
    }

    /// Takes one token; answers the server's. Whether that was the last shows in [`Self::is_done`].
    pub(super) fn authenticate(&mut self, sasl: &Sasl, token: &[u8], now: Instant) -> Result<Vec<u8>, Error> {
        let text =
            std::str::from_utf8(token).ok().filter(|text| text.len() <= MAX_TOKEN).ok_or(Error::Malformed)?;
        match std::mem::replace(&mut self.step, Step::Idle) {
            Step::Idle => Err(Error::State),
            Step::Chosen(Mechanism::Plain) => {
                let mut parts = text.split('\0');
                let (Some(_), Some(user), Some(password), None) =
                    (parts.next(), parts.next(), parts.next(), parts.next())
                else {
                    return Err(Error::Malformed);
                };
                if sasl.users.get(user).is_none_or(|known| known != password) {
                    return Err(Error::Credentials);
                }
                self.finish(user, sasl, now)?;
                Ok(Vec::new())
            }
            Step::Chosen(mechanism) => {
                let (scram, answer) = scram_first(mechanism, sasl, text)?;
                self.step = Step::Scram(mechanism, Box::new(scram));
                Ok(answer.into_bytes())
            }
            Step::Scram(mechanism, scram) => {
                let answer = scram_final(mechanism, &scram, text)?;
                self.finish(&scram.user, sasl, now)?;
                Ok(answer.into_bytes())
            }
        }
    }

    fn finish(&mut self, user: &str, sasl: &Sasl, now: Instant) -> Result<(), Error> {
        if self.user.as_ref().is_some_and(|before| before != user) {
            return Err(Error::Credentials);
        }
        self.user = Some(user.to_owned());
        self.expires = sasl.session_lifetime.map(|lifetime| now + lifetime);
        self.raw = false;
        Ok(())
    }

    /// Whether no exchange is under way.
    pub(super) fn is_done(&self) -> bool {
        matches!(self.step, Step::Idle)
    }
}

/// The value of attribute `name` in a comma-separated SCRAM message.
fn attribute(message: &str, name: char) -> Option<&str> {
    message.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
}

fn scram_first(mechanism: Mechanism, sasl: &Sasl, message: &str) -> Result<(Scram, String), Error> {
    // GS2 header: no channel binding, an authorization id that we do not use.
    let rest = message.strip_prefix("n,").or_else(|| message.strip_prefix("y,")).ok_or(Error::Malformed)?;
    let (_, bare) = rest.split_once(',').ok_or(Error::Malformed)?;
    let user = attribute(bare, 'n').ok_or(Error::Malformed)?.replace("=2C", ",").replace("=3D", "=");
    let client_nonce = attribute(bare, 'r').filter(|nonce| !nonce.is_empty()).ok_or(Error::Malformed)?;
    let salt: [u8; 16] = rand::random();
    let nonce = format!("{client_nonce}{}", BASE64_STANDARD.encode(rand::random::<[u8; 18]>()));
    let answer = format!("r={nonce},s={},i={ITERATIONS}", BASE64_STANDARD.encode(salt));
    // An unknown user fails at the end, like a wrong password.
    let salted_password = sasl.users.get(&user).map(|password| mechanism.salted_password(password, &salt));
    let auth_message = format!("{bare},{answer}");
    Ok((Scram { user, nonce, salted_password, auth_message }, answer))
}

fn scram_final(mechanism: Mechanism, scram: &Scram, message: &str) -> Result<String, Error> {
    let (without_proof, proof) = message.rsplit_once(",p=").ok_or(Error::Malformed)?;
    let proof = BASE64_STANDARD.decode(proof).map_err(|_| Error::Malformed)?;
    // As Kafka does: older librdkafka puts its own nonce in front once more.
    if !attribute(without_proof, 'r').is_some_and(|nonce| nonce.ends_with(&scram.nonce)) {
        return Err(Error::Malformed);
    }
    let salted = scram.salted_password.as_ref().ok_or(Error::Credentials)?;
    let auth_message = format!("{},{without_proof}", scram.auth_message);
    let stored_key = mechanism.hash(&mechanism.hmac(salted, b"Client Key"));
    let signature = mechanism.hmac(&stored_key, auth_message.as_bytes());
    if proof.len() != signature.len() {
        return Err(Error::Credentials);
    }
    let client_key: Vec<u8> =
        proof.iter().zip(&signature).map(|(proof, signature)| proof ^ signature).collect();
    if mechanism.hash(&client_key) != stored_key {
        return Err(Error::Credentials);
    }
    let server_key = mechanism.hmac(salted, b"Server Key");
    let verifier = mechanism.hmac(&server_key, auth_message.as_bytes());
    Ok(format!("v={}", BASE64_STANDARD.encode(verifier)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(session: &mut Session, sasl: &Sasl, text: &str) -> Result<String, Error> {
        session
            .authenticate(sasl, text.as_bytes(), Instant::now())
            .map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn plain_takes_the_right_password_only() {
        let sasl = Sasl::user("me", "secret");
        for (password, right) in [("secret", true), ("Secret", false), ("", false)] {
            let mut session = Session::new();
            session.handshake(Mechanism::Plain);
            assert_eq!(token(&mut session, &sasl, &format!("\0me\0{password}")).is_ok(), right);
            assert_eq!(session.is_authenticated(Instant::now()), right);
        }
    }

    #[test]
    fn a_session_ends_with_its_lifetime_and_keeps_its_user() {
        let mut sasl = Sasl::user("me", "secret");
        sasl.users.insert("you".into(), "secret".into());
        sasl.session_lifetime = Some(Duration::from_secs(10));
        let mut session = Session::new();
        session.handshake(Mechanism::Plain);
        token(&mut session, &sasl, "\0me\0secret").unwrap();
        let now = Instant::now();
        assert!(session.is_authenticated(now));
        assert!(!session.is_authenticated(now + Duration::from_secs(11)));
        session.handshake(Mechanism::Plain);
        assert_eq!(token(&mut session, &sasl, "\0you\0secret"), Err(Error::Credentials));
    }

    #[test]
    fn a_scram_exchange_needs_the_password_and_this_nonce() {
        for mechanism in [Mechanism::ScramSha256, Mechanism::ScramSha512] {
            for (password, right) in [("secret", true), ("wrong", false)] {
                let sasl = Sasl::user("a,b", "secret");
                let mut session = Session::new();
                session.handshake(mechanism);
                let first = "n=a=2Cb,r=abc";
                let server_first = token(&mut session, &sasl, &format!("n,,{first}")).unwrap();
                let nonce = attribute(&server_first, 'r').unwrap();
                assert!(nonce.starts_with("abc"));
                let salt = BASE64_STANDARD.decode(attribute(&server_first, 's').unwrap()).unwrap();
                let salted = mechanism.salted_password(password, &salt);
                let client_key = mechanism.hmac(&salted, b"Client Key");
                let without_proof = format!("c=biws,r={nonce}");
                let message = format!("{first},{server_first},{without_proof}");
                let signature = mechanism.hmac(&mechanism.hash(&client_key), message.as_bytes());
                let proof: Vec<u8> = client_key.iter().zip(&signature).map(|(a, b)| a ^ b).collect();
                let last = format!("{without_proof},p={}", BASE64_STANDARD.encode(proof));
                let answer = token(&mut session, &sasl, &last);
                assert_eq!(answer.is_ok(), right, "{mechanism:?}");
                assert_eq!(session.is_authenticated(Instant::now()), right);
            }
        }
    }
}
