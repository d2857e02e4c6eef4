//! Logging in: SASL, one mechanism a variant. A mechanism is a small conversation that says what to send
//! next; the exchange itself (SaslHandshake, SaslAuthenticate) is the connection's.

use super::Secret;

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
}

impl Authentication {
    /// A new conversation; `None` where no login is wanted.
    pub(super) fn start(&self) -> Option<Conversation> {
        match self {
            Self::None => None,
            Self::Plain { username, password } => {
                let mut token = Vec::with_capacity(username.len() + password.reveal().len() + 2);
                token.push(0);
                token.extend_from_slice(username.as_bytes());
                token.push(0);
                token.extend_from_slice(password.reveal().as_bytes());
                Some(Conversation::Plain { token: Some(token) })
            }
        }
    }
}

/// One login under way.
pub(super) enum Conversation {
    /// Says everything at once.
    Plain {
        /// What to say, until it is said.
        token: Option<Vec<u8>>,
    },
}

/// What a conversation wants.
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
        }
    }
}
