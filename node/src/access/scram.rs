//! SCRAM-SHA-256 (RFC 5802, RFC 7677), the server's side, as a pure state machine: messages in, messages out.
//!
//! Without channel binding. Passwords are taken as the bytes they are: for ASCII that is what SASLprep makes
//! of them.
//!
//! Invariants:
//! * A user who does not exist goes through the whole exchange and fails at its end, with a salt that stays
//!   the same.
//! * What the server keeps ([`Verifier`]) is not enough to log in with.

use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::passwords::equal;

/// The name of the mechanism.
pub const SCRAM_SHA_256: &str = "SCRAM-SHA-256";

/// The longest message of a client.
const LONGEST: usize = 4096;

type Key = [u8; 32];

/// Why an exchange ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    /// The message breaks the rules.
    #[error("the message of the client is malformed: {0}")]
    Malformed(&'static str),
    /// Wrong password, or no such user.
    #[error("the client's proof is wrong")]
    Proof,
}

fn hmac(key: &[u8], message: &[u8]) -> Key {
    // HMAC takes keys of any length.
    match <Hmac<Sha256> as KeyInit>::new_from_slice(key) {
        Ok(mut mac) => {
            mac.update(message);
            mac.finalize().into_bytes().into()
        }
        Err(_) => rand::random(),
    }
}

/// Stored form of a password (RFC 5802 3).
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Verifier {
    pub(super) salt: Vec<u8>,
    pub(super) iterations: u32,
    pub(super) stored_key: Key,
    pub(super) server_key: Key,
}

impl Verifier {
    /// Derives it, which takes long: `iterations` times two hashes.
    pub(super) fn derive(password: &[u8], salt: &[u8], iterations: u32) -> Self {
        let salted: Key = pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(password, salt, iterations);
        let stored_key = Sha256::digest(hmac(&salted, b"Client Key")).into();
        Self { salt: salt.to_vec(), iterations, stored_key, server_key: hmac(&salted, b"Server Key") }
    }

    /// One that no password has.
    pub(super) fn of_nobody(user: &str, secret: &[u8], iterations: u32) -> Self {
        let salt = hmac(secret, user.as_bytes()).into_iter().take(16).collect();
        Self { salt, iterations, stored_key: rand::random(), server_key: rand::random() }
    }
}

/// The client's first message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ClientFirst {
    /// Who it says it is.
    pub(super) user: String,
    nonce: String,
    /// Text covered by the signature.
    bare: String,
    /// `n,,` or the like, in Base64: comes again in the last message.
    header: String,
}

/// A name in which `,` and `=` are written as `=2C` and `=3D`.
fn read_name(text: &str) -> Option<String> {
    let mut name = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('=') {
        name.push_str(before);
        let (escaped, behind) = behind.split_at_checked(2)?;
        name.push(match escaped {
            "2C" => ',',
            "3D" => '=',
            _ => return None,
        });
        rest = behind;
    }
    name.push_str(rest);
    (!name.is_empty() && !name.contains('\0')).then_some(name)
}

impl ClientFirst {
    /// Reads it (RFC 5802 7).
    pub(super) fn read(message: &[u8]) -> Result<Self, Error> {
        let wrong = |what| Err(Error::Malformed(what));
        let Some(text) = std::str::from_utf8(message).ok().filter(|text| text.len() <= LONGEST) else {
            return wrong("not UTF-8, or too long");
        };
        let mut parts = text.splitn(3, ',');
        let (Some(binding), Some(authorize), Some(bare)) = (parts.next(), parts.next(), parts.next()) else {
            return wrong("no GS2 header");
        };
        match binding {
            "n" | "y" => {}
            _ => return wrong("channel binding is not supported"),
        }
        let mut attributes = bare.split(',');
        let user = attributes.next().and_then(|part| part.strip_prefix("n=")).and_then(read_name);
        let nonce = attributes.next().and_then(|part| part.strip_prefix("r="));
        let Some(user) = user else { return wrong("no user name first") };
        let printable = |nonce: &str| !nonce.is_empty() && nonce.bytes().all(|byte| byte.is_ascii_graphic());
        let Some(nonce) = nonce.filter(|nonce| printable(nonce)) else { return wrong("no nonce second") };
        match authorize.strip_prefix("a=").map(read_name) {
            None if authorize.is_empty() => {}
            Some(Some(name)) if name == user => {}
            _ => return wrong("acting as another user is not possible"),
        }
        let header = BASE64_STANDARD.encode(format!("{binding},{authorize},"));
        Ok(Self { user, nonce: nonce.to_owned(), bare: bare.to_owned(), header })
    }

    /// The server's first message, and what the client's last one is judged by. `nonce` is the server's part,
    /// printable and without a comma.
    pub(super) fn challenge(self, verifier: Verifier, nonce: &str) -> (ClientFinal, String) {
        let nonce = format!("{}{nonce}", self.nonce);
        let salt = BASE64_STANDARD.encode(&verifier.salt);
        let message = format!("r={nonce},s={salt},i={}", verifier.iterations);
        let signed = format!("{},{message},", self.bare);
        (ClientFinal { user: self.user, header: self.header, nonce, signed, verifier }, message)
    }
}

/// Waits for the client's last message.
pub(super) struct ClientFinal {
    pub(super) user: String,
    header: String,
    nonce: String,
    signed: String,
    verifier: Verifier,
}

impl ClientFinal {
    /// Judges it; the server's last message where the client knows the password.
    pub(super) fn verify(&self, message: &[u8]) -> Result<String, Error> {
        let wrong = |what| Err(Error::Malformed(what));
        let Some(text) = std::str::from_utf8(message).ok().filter(|text| text.len() <= LONGEST) else {
            return wrong("not UTF-8, or too long");
        };
        let Some((without_proof, proof)) = text.rsplit_once(",p=") else { return wrong("no proof") };
        let Some(proof) = BASE64_STANDARD.decode(proof).ok().and_then(|proof| Key::try_from(proof).ok())
        else {
            return wrong("the proof is no Base64 of 32 bytes");
        };
        let mut attributes = without_proof.split(',');
        if attributes.next().and_then(|part| part.strip_prefix("c=")) != Some(&self.header) {
            return wrong("the channel binding is not that of the first message");
        }
        if attributes.next().and_then(|part| part.strip_prefix("r=")) != Some(&self.nonce) {
            return wrong("the nonce is not that of this exchange");
        }
        let Verifier { stored_key, server_key, .. } = &self.verifier;
        let signed = format!("{}{without_proof}", self.signed);
        let signature = hmac(stored_key, signed.as_bytes());
        let mut client_key = proof;
        for (byte, signature) in client_key.iter_mut().zip(signature) {
            *byte ^= signature;
        }
        if !equal(&Sha256::digest(client_key), stored_key) {
            return Err(Error::Proof);
        }
        Ok(format!("v={}", BASE64_STANDARD.encode(hmac(server_key, signed.as_bytes()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 7677 3.
    const FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    const CHALLENGE: &str =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const LAST: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    const SERVER: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

    fn verifier(password: &str) -> Verifier {
        Verifier::derive(
            password.as_bytes(),
            &BASE64_STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap(),
            4096,
        )
    }

    #[test]
    fn the_exchange_of_the_standard_goes_through() {
        let first = ClientFirst::read(FIRST.as_bytes()).unwrap();
        assert_eq!(first.user, "user");
        let (last, challenge) = first.challenge(verifier("pencil"), NONCE);
        assert_eq!(challenge, CHALLENGE);
        assert_eq!(last.verify(LAST.as_bytes()).unwrap(), SERVER);
    }

    #[test]
    fn a_wrong_password_a_stranger_and_another_exchange_fail() {
        let challenge =
            |verifier, nonce| ClientFirst::read(FIRST.as_bytes()).unwrap().challenge(verifier, nonce).0;
        assert_eq!(challenge(verifier("pencils"), NONCE).verify(LAST.as_bytes()), Err(Error::Proof));
        let nobody = Verifier::of_nobody("user", b"secret", 4096);
        assert_eq!(nobody.salt, Verifier::of_nobody("user", b"secret", 4096).salt, "a stranger has one salt");
        assert_eq!(challenge(nobody, NONCE).verify(LAST.as_bytes()), Err(Error::Proof));
        let replayed = challenge(verifier("pencil"), "another").verify(LAST.as_bytes());
        assert!(matches!(replayed, Err(Error::Malformed(_))), "{replayed:?}");
    }

    #[test]
    fn malformed_messages_are_refused() {
        for first in [
            "",
            "n",
            "n,,",
            "n,,n=user",
            "n,,r=abc,n=user",
            "n,,n=,r=abc",
            "n,,n=us=er,r=abc",
            "n,,n=us=2,r=abc",
            "n,,n=user,r=",
            "n,,n=user,r=a b",
            "n,,m=x,n=user,r=abc",
            "p=tls-unique,,n=user,r=abc",
            "n,a=other,n=user,r=abc",
        ] {
            assert!(ClientFirst::read(first.as_bytes()).is_err(), "{first}");
        }
        assert!(ClientFirst::read(&[0xFF]).is_err() && ClientFirst::read(&[b'n'; 5000]).is_err());
        let (last, _) = ClientFirst::read(FIRST.as_bytes()).unwrap().challenge(verifier("pencil"), NONCE);
        let cut = LAST.replace("biws", "eSws");
        for message in
            ["", "p=", "c=biws,p=AAAA", &cut, LAST.trim_end_matches('='), &LAST.replace(",r=", ",x=")]
        {
            assert!(matches!(last.verify(message.as_bytes()), Err(Error::Malformed(_))), "{message}");
        }
    }

    #[test]
    fn names_with_commas_and_equals_signs_are_read() {
        let first = ClientFirst::read(b"y,a=a=2Cb=3D2C,n=a=2Cb=3D2C,r=x,ext=1").unwrap();
        assert_eq!(first.user, "a,b=2C");
    }
}
