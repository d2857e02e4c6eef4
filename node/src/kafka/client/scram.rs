//! SCRAM-SHA-256 and SCRAM-SHA-512 (RFC 5802, RFC 7677), the client's side, as a pure state machine: messages
//! in, messages out, the nonce is an argument.
//!
//! Invariants:
//! * A login counts only after the server proved that it knows the password, too: [`Scram::step`] says so
//!   with [`Step::Done`] and never otherwise.
//! * The password leaves in no message; what is sent of it is worth nothing in another exchange.
//! * What a server sends bounds our work: at most [`MAX_ITERATIONS`] rounds, messages of at most
//!   [`MAX_MESSAGE`] bytes.
//!
//! User name and password go into the computation as the UTF-8 that was written, without SASLprep: Kafka
//! stores them so (see `docs/decisions/014-tls-and-logins-to-kafka.md`). Control characters, which SASLprep
//! forbids, are refused.

use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256, Sha512};

use super::auth::Step;

/// Fewer rounds protect the password too little (RFC 7677 section 4); Kafka has the same limit.
pub(super) const MIN_ITERATIONS: u32 = 4096;
/// More rounds would let a hostile server burn our time. Kafka takes 16,384 at most.
pub(super) const MAX_ITERATIONS: u32 = 200_000;
/// Longest message of a server that is looked at, bytes.
const MAX_MESSAGE: usize = 8 * 1024;
/// GS2 header without channel binding and without another identity to act as, and what says so in the proof.
const GS2_HEADER: &str = "n,,";

/// The hash function of a mechanism.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScramHash {
    /// SCRAM-SHA-256.
    Sha256,
    /// SCRAM-SHA-512.
    Sha512,
}

impl ScramHash {
    /// Name of the mechanism.
    pub fn mechanism(self) -> &'static str {
        match self {
            Self::Sha256 => "SCRAM-SHA-256",
            Self::Sha512 => "SCRAM-SHA-512",
        }
    }

    fn hmac(self, key: &[u8], message: &[u8]) -> Vec<u8> {
        fn run<M: Mac + KeyInit>(key: &[u8], message: &[u8]) -> Vec<u8> {
            // HMAC takes keys of any length.
            let Ok(mut mac) = <M as KeyInit>::new_from_slice(key) else { return Vec::new() };
            mac.update(message);
            mac.finalize().into_bytes().to_vec()
        }
        match self {
            Self::Sha256 => run::<Hmac<Sha256>>(key, message),
            Self::Sha512 => run::<Hmac<Sha512>>(key, message),
        }
    }

    fn digest(self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha256 => Sha256::digest(message).to_vec(),
            Self::Sha512 => Sha512::digest(message).to_vec(),
        }
    }

    fn salted(self, password: &[u8], salt: &[u8], iterations: u32) -> Vec<u8> {
        match self {
            Self::Sha256 => pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(password, salt, iterations).to_vec(),
            Self::Sha512 => pbkdf2::pbkdf2_hmac_array::<Sha512, 64>(password, salt, iterations).to_vec(),
        }
    }
}

enum State {
    /// Nothing was sent.
    New,
    /// Our first message is out.
    First,
    /// Our proof is out; the server's has to be this.
    Final { server_signature: Vec<u8> },
    /// Over, well or not.
    Over,
}

/// One login under way.
pub(super) struct Scram {
    hash: ScramHash,
    password: Box<str>,
    nonce: Box<str>,
    /// `n=USER,r=NONCE`.
    first_bare: String,
    state: State,
}

impl Scram {
    /// A login with a nonce that cannot be guessed.
    pub(super) fn new(hash: ScramHash, username: &str, password: &str) -> Result<Self, String> {
        Self::with_nonce(hash, username, password, &BASE64_STANDARD.encode(rand::random::<[u8; 24]>()))
    }

    fn with_nonce(hash: ScramHash, username: &str, password: &str, nonce: &str) -> Result<Self, String> {
        for (what, text) in [("user name", username), ("password", password)] {
            if text.is_empty() {
                return Err(format!("the {what} is empty"));
            }
            if text.chars().any(char::is_control) {
                return Err(format!(
                    "the {what} has a control character in it, which SASLprep (RFC 4013) forbids"
                ));
            }
        }
        let username = username.replace('=', "=3D").replace(',', "=2C");
        Ok(Self {
            hash,
            password: password.into(),
            nonce: nonce.into(),
            first_bare: format!("n={username},r={nonce}"),
            state: State::New,
        })
    }

    /// Name of the mechanism.
    pub(super) fn mechanism(&self) -> &'static str {
        self.hash.mechanism()
    }

    /// The next step after the server's `message` (empty before the first). An error ends the login.
    pub(super) fn step(&mut self, message: &[u8]) -> Result<Step, String> {
        // Until something goes on it is over: what fails stays failed.
        let state = std::mem::replace(&mut self.state, State::Over);
        if message.len() > MAX_MESSAGE {
            return Err(format!("the broker's message has {} bytes, more than {MAX_MESSAGE}", message.len()));
        }
        let message =
            std::str::from_utf8(message).map_err(|_| "the broker's message is not UTF-8".to_owned())?;
        match state {
            State::New => {
                self.state = State::First;
                Ok(Step::Send(format!("{GS2_HEADER}{}", self.first_bare).into_bytes()))
            }
            State::First => self.prove(message),
            State::Final { server_signature } => accept(message, &server_signature).map(|()| Step::Done),
            State::Over => Err("the broker goes on after the end of the exchange".to_owned()),
        }
    }

    /// Answers the server's first message, `r=NONCE,s=SALT,i=ROUNDS`, with the proof.
    fn prove(&mut self, server_first: &str) -> Result<Step, String> {
        let strange = |what: &str| format!("the broker's first message {what}");
        let mut parts = server_first.split(',');
        let mut next = |name: &str| {
            let part = parts.next().unwrap_or_default();
            if part.starts_with("m=") {
                return Err(strange("asks for an extension that nobody knows"));
            }
            if let Some(reason) = part.strip_prefix("e=") {
                return Err(format!("the broker says: {}", printable(reason)));
            }
            part.strip_prefix(name).ok_or_else(|| strange(&format!("has no {name} in its place")))
        };
        let nonce = next("r=")?;
        let salt = next("s=")?;
        let iterations = next("i=")?;
        if !nonce.starts_with(&*self.nonce) || nonce.len() == self.nonce.len() {
            return Err(strange("does not go on from our nonce: it belongs to another exchange"));
        }
        // RFC 5802 section 7: printable characters without the comma.
        if !nonce.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(strange("has a nonce with characters that cannot be in one"));
        }
        let salt = BASE64_STANDARD.decode(salt).map_err(|_| strange("has a salt that is not base64"))?;
        if salt.is_empty() {
            return Err(strange("has an empty salt"));
        }
        let iterations: u32 = iterations
            .parse()
            .ok()
            .filter(|_| iterations.bytes().all(|byte| byte.is_ascii_digit()))
            .ok_or_else(|| strange("has no number of iterations"))?;
        if !(MIN_ITERATIONS..=MAX_ITERATIONS).contains(&iterations) {
            return Err(strange(&format!(
                "asks for {iterations} iterations; allowed: {MIN_ITERATIONS} to {MAX_ITERATIONS}"
            )));
        }

        let hash = self.hash;
        let salted = hash.salted(self.password.as_bytes(), &salt, iterations);
        let client_key = hash.hmac(&salted, b"Client Key");
        let mut answer = format!("c={},r={nonce}", BASE64_STANDARD.encode(GS2_HEADER));
        let covered = format!("{},{server_first},{answer}", self.first_bare);
        let signature = hash.hmac(&hash.digest(&client_key), covered.as_bytes());
        let proof: Vec<u8> = client_key.iter().zip(&signature).map(|(key, sign)| key ^ sign).collect();
        // Writing to a String does not fail.
        let _ = write!(answer, ",p={}", BASE64_STANDARD.encode(proof));
        let server_key = hash.hmac(&salted, b"Server Key");
        self.state = State::Final { server_signature: hash.hmac(&server_key, covered.as_bytes()) };
        Ok(Step::Send(answer.into_bytes()))
    }
}

/// Whether the server's last message, `v=SIGNATURE`, proves that it knows the password.
fn accept(server_final: &str, expected: &[u8]) -> Result<(), String> {
    if let Some(reason) = server_final.strip_prefix("e=") {
        return Err(format!("the broker says: {}", printable(reason)));
    }
    let not_proven = || {
        "the broker did not prove that it knows the password: it may not be the one it claims to be"
            .to_owned()
    };
    let signature = server_final.strip_prefix("v=").ok_or_else(not_proven)?;
    let signature = signature.split(',').next().unwrap_or_default();
    let signature = BASE64_STANDARD.decode(signature).map_err(|_| not_proven())?;
    // The signature is of this exchange alone: nothing is to be learnt from the time that a comparison takes.
    if signature == expected { Ok(()) } else { Err(not_proven()) }
}

/// A server's text, fit to be shown.
fn printable(text: &str) -> String {
    text.chars().take(200).filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// RFC 7677 section 3.
    const RFC_NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
    const RFC_SERVER_FIRST: &str =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const RFC_CLIENT_FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                                    p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    const RFC_SERVER_FINAL: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

    fn rfc() -> Scram {
        Scram::with_nonce(ScramHash::Sha256, "user", "pencil", RFC_NONCE).unwrap()
    }

    fn said(step: Step) -> String {
        match step {
            Step::Send(bytes) => String::from_utf8(bytes).unwrap(),
            Step::Done => panic!("done too early"),
        }
    }

    #[test]
    fn the_exchange_of_rfc_7677_comes_out_as_it_stands_there() {
        let mut scram = rfc();
        assert_eq!(said(scram.step(b"").unwrap()), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        assert_eq!(said(scram.step(RFC_SERVER_FIRST.as_bytes()).unwrap()), RFC_CLIENT_FINAL);
        assert!(matches!(scram.step(RFC_SERVER_FINAL.as_bytes()), Ok(Step::Done)));
        assert!(scram.step(b"").is_err());
    }

    /// The other side of the exchange, written from the RFC for any hash.
    fn serve(
        hash: ScramHash,
        password: &str,
        first: &str,
        iterations: u32,
    ) -> (String, impl Fn(&str) -> Option<String>) {
        let bare = first.strip_prefix("n,,").unwrap().to_owned();
        let nonce = format!("{}server", bare.split(",r=").nth(1).unwrap());
        let salt = [7; 16];
        let answer = format!("r={nonce},s={},i={iterations}", BASE64_STANDARD.encode(salt));
        let salted = hash.salted(password.as_bytes(), &salt, iterations);
        let server_first = answer.clone();
        let judge = move |last: &str| {
            let (without_proof, proof) = last.rsplit_once(",p=")?;
            let covered = format!("{bare},{server_first},{without_proof}");
            let stored = hash.digest(&hash.hmac(&salted, b"Client Key"));
            let signature = hash.hmac(&stored, covered.as_bytes());
            let proof = BASE64_STANDARD.decode(proof).ok()?;
            let key: Vec<u8> = proof.iter().zip(&signature).map(|(a, b)| a ^ b).collect();
            let server_key = hash.hmac(&salted, b"Server Key");
            (hash.digest(&key) == stored)
                .then(|| format!("v={}", BASE64_STANDARD.encode(hash.hmac(&server_key, covered.as_bytes()))))
        };
        (answer, judge)
    }

    #[test]
    fn both_hashes_convince_a_server_with_the_right_password_and_no_other() {
        for hash in [ScramHash::Sha256, ScramHash::Sha512] {
            for (password, right) in [("pass,wörd=", true), ("Pass", false)] {
                let mut scram = Scram::new(hash, "a=b,c", password).unwrap();
                let first = said(scram.step(b"").unwrap());
                assert!(first.starts_with("n,,n=a=3Db=2Cc,r="), "{first}");
                let (server_first, judge) = serve(hash, "pass,wörd=", &first, 4096);
                let verdict = judge(&said(scram.step(server_first.as_bytes()).unwrap()));
                assert_eq!(verdict.is_some(), right);
                if let Some(last) = verdict {
                    assert!(matches!(scram.step(last.as_bytes()), Ok(Step::Done)));
                }
            }
        }
    }

    #[test]
    fn two_logins_never_have_the_same_nonce() {
        let nonce = || Scram::new(ScramHash::Sha256, "u", "p").unwrap().nonce;
        assert_ne!(nonce(), nonce());
    }

    #[test]
    fn a_hostile_first_message_is_refused() {
        let salt = "s=W22ZaJ0SNY7soEsUEjb6gQ==";
        for (message, expected) in [
            (format!("r={RFC_NONCE}x,{salt},i=4095"), "4095 iterations; allowed: 4096 to 200000"),
            (format!("r={RFC_NONCE}x,{salt},i=200001"), "200001 iterations"),
            (format!("r={RFC_NONCE}x,{salt},i=4294967296"), "no number of iterations"),
            (format!("r={RFC_NONCE}x,{salt},i=+5000"), "no number of iterations"),
            (format!("r={RFC_NONCE}x,{salt},i=-1"), "no number of iterations"),
            (format!("r={RFC_NONCE},{salt},i=4096"), "does not go on from our nonce"),
            (format!("r=other{RFC_NONCE}x,{salt},i=4096"), "does not go on from our nonce"),
            (format!("r={RFC_NONCE}\u{e4},{salt},i=4096"), "characters that cannot be in one"),
            (format!("r={RFC_NONCE}x,s=,i=4096"), "empty salt"),
            (format!("r={RFC_NONCE}x,s=?,i=4096"), "not base64"),
            (format!("m=new,r={RFC_NONCE}x,{salt},i=4096"), "an extension that nobody knows"),
            (format!("{salt},r={RFC_NONCE}x,i=4096"), "has no r= in its place"),
            (format!("r={RFC_NONCE}x,{salt}"), "has no i= in its place"),
            ("e=unknown-user".to_owned(), "the broker says: unknown-user"),
            (String::new(), "has no r= in its place"),
            ("x".repeat(MAX_MESSAGE + 1), "more than 8192"),
        ] {
            let mut scram = rfc();
            scram.step(b"").unwrap();
            let Err(error) = scram.step(message.as_bytes()) else { panic!("{message} was taken") };
            assert!(error.contains(expected), "{message}: {error}");
            assert!(scram.step(RFC_SERVER_FIRST.as_bytes()).is_err(), "a failed login goes on");
        }
        let mut scram = rfc();
        scram.step(b"").unwrap();
        assert!(scram.step(&[0xff]).is_err());
    }

    #[test]
    fn a_server_that_does_not_know_the_password_is_not_believed() {
        let forged = BASE64_STANDARD.encode([0; 32]);
        for last in ["", "v=", "v=?", "e=other-error", "x=1", &RFC_SERVER_FINAL[..20], &format!("v={forged}")]
        {
            let mut scram = rfc();
            scram.step(b"").unwrap();
            scram.step(RFC_SERVER_FIRST.as_bytes()).unwrap();
            assert!(scram.step(last.as_bytes()).is_err(), "{last:?}");
        }
        let mut scram = rfc();
        scram.step(b"").unwrap();
        scram.step(RFC_SERVER_FIRST.as_bytes()).unwrap();
        // Further attributes after the signature are for others.
        assert!(scram.step(format!("{RFC_SERVER_FINAL},x=1").as_bytes()).is_ok());
    }

    #[test]
    fn no_bytes_of_a_server_make_it_panic_or_believe() {
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        for _ in 0..1_000 {
            let mut scram = rfc();
            scram.step(b"").unwrap();
            let mut message = RFC_SERVER_FIRST.as_bytes().to_vec();
            for _ in 0..random.random_range(1..4) {
                let at = random.random_range(0..message.len());
                match random.random_range(0..3) {
                    0 => message[at] = random.random(),
                    1 => message.truncate(at.max(1)),
                    _ => message.insert(at, b",=r"[at % 3]),
                }
            }
            if message != RFC_SERVER_FIRST.as_bytes() && scram.step(&message).is_ok() {
                assert!(scram.step(RFC_SERVER_FINAL.as_bytes()).is_err(), "{message:?}");
            }
        }
    }

    #[test]
    fn control_characters_and_nothing_at_all_are_refused_before_anything_is_sent() {
        for (username, password) in [("u", "a\0b"), ("a\nb", "p"), ("", "p"), ("u", ""), ("u", "\u{7f}")] {
            assert!(Scram::new(ScramHash::Sha256, username, password).is_err(), "{username:?} {password:?}");
        }
    }
}
