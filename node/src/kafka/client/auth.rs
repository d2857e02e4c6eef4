//! Logging in: SASL, one mechanism a variant. A mechanism is a small conversation that says what to send
//! next; the exchange itself (SaslHandshake, SaslAuthenticate) is [`super::login`]'s.

use super::Secret;
#[cfg(feature = "gssapi")]
use super::kerberos::KerberosConversation;
use super::kerberos::KerberosLogin;
#[cfg(not(feature = "gssapi"))]
use super::kerberos::NO_KERBEROS;
use super::oauth::OauthTokens;
use super::scram::{Scram, ScramHash};

/// How a client proves who it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum Authentication {
    /// Not at all.
    #[default]
    None,
    /// SASL/PLAIN (RFC 4616).
    Plain {
        /// User name.
        username: Box<str>,
        /// Password.
        password: Secret,
    },
    /// SASL/SCRAM (RFC 5802).
    Scram {
        /// SHA-256 or SHA-512.
        hash: ScramHash,
        /// User name.
        username: Box<str>,
        /// Password.
        password: Secret,
    },
    /// SASL/OAUTHBEARER (RFC 7628, KIP-255).
    OauthBearer(OauthTokens),
    /// SASL/GSSAPI with Kerberos (RFC 4752); needs a build with the feature `gssapi`.
    Kerberos(KerberosLogin),
}

impl Authentication {
    /// Name of the mechanism; empty where no login is wanted.
    pub fn mechanism(&self) -> &'static str {
        match self {
            Self::None => "",
            Self::Plain { .. } => "PLAIN",
            Self::Scram { hash, .. } => hash.mechanism(),
            Self::OauthBearer(_) => "OAUTHBEARER",
            Self::Kerberos(_) => "GSSAPI",
        }
    }

    /// A new conversation with the broker on `host`; `None` where no login is wanted. May take time: a token
    /// is got where there is none that will last.
    pub(super) async fn start(&self, host: &str) -> Result<Option<Conversation>, String> {
        Ok(Some(match self {
            Self::None => return Ok(None),
            Self::Plain { username, password } => {
                let mut token = Vec::with_capacity(username.len() + password.reveal().len() + 2);
                token.push(0);
                token.extend_from_slice(username.as_bytes());
                token.push(0);
                token.extend_from_slice(password.reveal().as_bytes());
                Conversation::Plain { token: Some(token) }
            }
            Self::Scram { hash, username, password } => {
                Conversation::Scram(Scram::new(*hash, username, password.reveal())?)
            }
            Self::OauthBearer(tokens) => Conversation::Bearer(Bearer::New(tokens.message().await?)),
            #[cfg(feature = "gssapi")]
            Self::Kerberos(login) => Conversation::Kerberos(Box::new(KerberosConversation::new(login, host))),
            #[cfg(not(feature = "gssapi"))]
            Self::Kerberos(_) => return Err(format!("no Kerberos towards {host}: {NO_KERBEROS}")),
        }))
    }
}

/// One login under way.
pub(super) enum Conversation {
    /// Says everything at once.
    Plain {
        /// Token, until it is sent.
        token: Option<Vec<u8>>,
    },
    /// Challenge and response.
    Scram(Scram),
    /// A token, and an answer where it is refused.
    Bearer(Bearer),
    /// Tickets.
    #[cfg(feature = "gssapi")]
    Kerberos(Box<KerberosConversation>),
}

/// Where a login with a token stands.
pub(super) enum Bearer {
    /// This is to be said.
    New(Vec<u8>),
    /// It was said.
    Said,
    /// The broker refused it with this text and was told that we heard it.
    Refused(String),
}

/// Next step of a conversation.
pub(super) enum Step {
    /// Send this and come back with the answer.
    Send(Vec<u8>),
    /// Both sides are satisfied.
    Done,
}

impl Conversation {
    /// Name in SaslHandshake.
    pub(super) fn mechanism(&self) -> &'static str {
        match self {
            Self::Plain { .. } => "PLAIN",
            Self::Scram(scram) => scram.mechanism(),
            Self::Bearer(_) => "OAUTHBEARER",
            #[cfg(feature = "gssapi")]
            Self::Kerberos(_) => "GSSAPI",
        }
    }

    /// The next step after the broker's `challenge` (empty before the first). An error text means that
    /// the broker did not prove what the mechanism asks of it.
    pub(super) fn step(&mut self, challenge: &[u8]) -> Result<Step, String> {
        match self {
            Self::Plain { token } => match token.take() {
                Some(token) => Ok(Step::Send(token)),
                None if challenge.is_empty() => Ok(Step::Done),
                None => Err(format!("unexpected challenge of {} bytes", challenge.len())),
            },
            Self::Scram(scram) => scram.step(challenge),
            #[cfg(feature = "gssapi")]
            Self::Kerberos(kerberos) => kerberos.step(challenge),
            Self::Bearer(bearer) => match std::mem::replace(bearer, Bearer::Said) {
                Bearer::New(message) => Ok(Step::Send(message)),
                Bearer::Said if challenge.is_empty() => Ok(Step::Done),
                // RFC 7628 section 3.2.3: a refusal comes as a challenge and is acknowledged with one byte.
                Bearer::Said => {
                    let text = String::from_utf8_lossy(challenge);
                    let text = text.chars().take(500).filter(|c| !c.is_control()).collect();
                    *bearer = Bearer::Refused(text);
                    Ok(Step::Send(vec![1]))
                }
                Bearer::Refused(text) => Err(format!("the broker refused the token: {text}")),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_token_is_acknowledged_and_never_taken_for_a_login() {
        let mut conversation = Conversation::Bearer(Bearer::New(b"token".to_vec()));
        assert!(matches!(conversation.step(b""), Ok(Step::Send(message)) if message == b"token"));
        assert!(matches!(
            conversation.step(br#"{"status":"invalid_token"}"#),
            Ok(Step::Send(message)) if message == [1]
        ));
        let Err(error) = conversation.step(b"") else { panic!("taken for a login") };
        assert!(error.contains("invalid_token"), "{error}");
    }

    #[test]
    fn a_token_that_is_taken_ends_the_login() {
        let mut conversation = Conversation::Bearer(Bearer::New(b"token".to_vec()));
        conversation.step(b"").unwrap_or(Step::Done);
        assert!(matches!(conversation.step(b""), Ok(Step::Done)));
    }
}
