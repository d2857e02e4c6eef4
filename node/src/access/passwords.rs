//! Password hashes: argon2id (RFC 9106), with its parameters beside it.
//!
//! New hashes take the parameters that OWASP recommends (19 MiB, 2 passes, 1 lane). They are written as PHC
//! strings, `$argon2id$v=19$m=19456,t=2,p=1$SALT$HASH`, so that hashes made with other parameters stay good.

use std::{fmt, hint::black_box};

use argon2::{Algorithm, Argon2, Params, Version};
use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};

/// Bytes of a password that are looked at; a longer one is refused before it costs anything.
pub const LONGEST_PASSWORD: usize = 1024;

const HASH: usize = 32;

/// How much work a hash is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Memory in KiB.
    pub memory: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Cost {
    /// Cost of new hashes: OWASP's first choice, about 20 ms on a server core.
    pub const RECOMMENDED: Self = Self { memory: 19_456, passes: 2, lanes: 1 };

    /// The least that argon2 takes, for tests: no protection at all.
    pub const LEAST: Self = Self { memory: 8, passes: 1, lanes: 1 };
}

/// Fault of a hash or a password. Never holds either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    /// The text is something else.
    #[error(
        "not an argon2id hash; write $argon2id$v=19$m=..,t=..,p=..$SALT$HASH, as `causeway passwd` prints it"
    )]
    NotAHash,
    /// Another scheme.
    #[error("a hash of another scheme; only argon2id is supported, `causeway passwd` makes such a line")]
    OtherScheme,
    /// The parameters are out of bounds.
    #[error("argon2id parameters out of range; allowed: m=8 to 1048576, t=1 to 100, p=1 to 64")]
    Parameters,
    /// Nothing to hash.
    #[error("the password is empty")]
    Empty,
    /// Too much to hash.
    #[error("the password is longer than {LONGEST_PASSWORD} bytes")]
    TooLong,
    /// The hash cannot be computed.
    #[error("the password cannot be hashed: {0}")]
    Failed(argon2::Error),
}

/// A stored hash.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash {
    cost: Cost,
    salt: Box<[u8]>,
    hash: Box<[u8]>,
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash")
    }
}

impl fmt::Display for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cost: Cost { memory, passes, lanes }, salt, hash } = self;
        let (salt, hash) = (BASE64_STANDARD_NO_PAD.encode(salt), BASE64_STANDARD_NO_PAD.encode(hash));
        write!(f, "$argon2id$v=19$m={memory},t={passes},p={lanes}${salt}${hash}")
    }
}

fn compute(cost: Cost, salt: &[u8], password: &[u8], hash: &mut [u8]) -> Result<(), PasswordError> {
    let params =
        Params::new(cost.memory, cost.passes, cost.lanes, Some(hash.len())).map_err(PasswordError::Failed)?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon2.hash_password_into(password, salt, hash).map_err(PasswordError::Failed)
}

/// Whether two byte strings are equal, in a time that does not tell where they differ.
pub(super) fn equal(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len()
        && black_box(one.iter().zip(other).fold(0, |differences, (one, other)| differences | (one ^ other)))
            == 0
}

impl PasswordHash {
    /// Hashes a password with a random salt.
    pub fn new(password: &[u8], cost: Cost) -> Result<Self, PasswordError> {
        match password.len() {
            0 => return Err(PasswordError::Empty),
            length if length > LONGEST_PASSWORD => return Err(PasswordError::TooLong),
            _ => {}
        }
        let salt: [u8; 16] = rand::random();
        let mut hash = [0; HASH];
        compute(cost, &salt, password, &mut hash)?;
        Ok(Self { cost, salt: salt.into(), hash: hash.into() })
    }

    /// A hash that no password has, for users that do not exist: checking it costs what checking a real one
    /// costs.
    pub(super) fn of_nobody(cost: Cost) -> Self {
        Self { cost, salt: rand::random::<[u8; 16]>().into(), hash: rand::random::<[u8; HASH]>().into() }
    }

    /// Reads a PHC string.
    pub fn read(text: &str) -> Result<Self, PasswordError> {
        let Some(rest) = text.strip_prefix("$argon2id$") else {
            let other = ["$2", "$argon2", "$5$", "$6$", "$apr1$", "$y$", "$7$", "{SHA"];
            let known = other.iter().any(|scheme| text.starts_with(scheme));
            return Err(if known { PasswordError::OtherScheme } else { PasswordError::NotAHash });
        };
        let rest = rest.strip_prefix("v=19$").ok_or(PasswordError::NotAHash)?;
        let mut parts = rest.split('$');
        let (Some(parameters), Some(salt), Some(hash), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(PasswordError::NotAHash);
        };
        let numbers: Option<Vec<u32>> = parameters
            .split(',')
            .zip(["m=", "t=", "p="])
            .map(|(part, name)| part.strip_prefix(name)?.parse().ok())
            .collect();
        let Some(&[memory, passes, lanes]) = numbers.as_deref() else { return Err(PasswordError::NotAHash) };
        let within = (8..=1 << 20).contains(&memory)
            && (1..=100).contains(&passes)
            && (1..=64).contains(&lanes)
            && memory >= 8 * lanes;
        if parameters.split(',').count() != 3 || !within {
            return Err(PasswordError::Parameters);
        }
        let bytes = |text, range: std::ops::RangeInclusive<usize>| {
            let bytes = BASE64_STANDARD_NO_PAD.decode(text).map_err(|_| PasswordError::NotAHash)?;
            if range.contains(&bytes.len()) {
                Ok(bytes.into_boxed_slice())
            } else {
                Err(PasswordError::NotAHash)
            }
        };
        Ok(Self {
            cost: Cost { memory, passes, lanes },
            salt: bytes(salt, 8..=64)?,
            hash: bytes(hash, 16..=64)?,
        })
    }

    /// Whether this is the password. Takes as long as the hash was meant to take.
    pub fn verify(&self, password: &[u8]) -> Result<bool, PasswordError> {
        let mut hash = vec![0; self.hash.len()];
        compute(self.cost, &self.salt, password, &mut hash)?;
        Ok(equal(&hash, &self.hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_knows_its_password_and_comes_back_from_its_text() {
        let hash = PasswordHash::new(b"correct horse", Cost::LEAST).unwrap();
        let again = PasswordHash::read(&hash.to_string()).unwrap();
        assert!(again == hash && again.verify(b"correct horse").unwrap());
        assert!(!again.verify(b"correct hors").unwrap() && !again.verify(b"").unwrap());
        assert_ne!(hash.to_string(), PasswordHash::new(b"correct horse", Cost::LEAST).unwrap().to_string());
        assert!(!PasswordHash::of_nobody(Cost::LEAST).verify(b"correct horse").unwrap());
    }

    #[test]
    fn a_hash_made_elsewhere_is_understood() {
        // The test vector of the reference implementation (argon2 command: password, somesalt, 64 MiB, 2
        // passes).
        let hash = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        assert!(PasswordHash::read(hash).unwrap().verify(b"password").unwrap());
    }

    #[test]
    fn new_hashes_take_the_recommended_parameters() {
        let hash = PasswordHash::new(b"x", Cost::RECOMMENDED).unwrap().to_string();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
    }

    #[test]
    fn what_is_no_hash_is_refused() {
        let salt = "c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        for (text, error) in [
            ("", PasswordError::NotAHash),
            ("secret", PasswordError::NotAHash),
            ("$2b$12$abcdefghijklmnopqrstuu", PasswordError::OtherScheme),
            ("$argon2i$v=19$m=8,t=1,p=1$c29tZXNhbHQ$x", PasswordError::OtherScheme),
            ("$argon2id$v=16$m=8,t=1,p=1$c29tZXNhbHQ$x", PasswordError::NotAHash),
            ("$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ", PasswordError::NotAHash),
            (&format!("$argon2id$v=19$m=4294967295,t=1,p=1${salt}"), PasswordError::Parameters),
            (&format!("$argon2id$v=19$m=8,t=1,p=0${salt}"), PasswordError::Parameters),
            (&format!("$argon2id$v=19$m=8,t=1,p=1,x=2${salt}"), PasswordError::Parameters),
            (&format!("$argon2id$v=19$t=1,m=8,p=1${salt}"), PasswordError::NotAHash),
        ] {
            assert_eq!(PasswordHash::read(text), Err(error), "{text}");
        }
        assert_eq!(PasswordHash::new(b"", Cost::LEAST), Err(PasswordError::Empty));
        assert_eq!(PasswordHash::new(&[b'x'; 1025], Cost::LEAST), Err(PasswordError::TooLong));
    }
}
