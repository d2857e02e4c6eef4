//! SCRAM-SHA-256 as a client speaks it (RFC 5802, RFC 7677), for enhanced authentication (MQTT-5.0 4.12).

use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// The authentication method.
pub const METHOD: &str = "SCRAM-SHA-256";

/// One exchange.
#[derive(Debug, Clone)]
pub struct Scram {
    bare: String,
    nonce: String,
}

/// What the client sends last, and what the server has to say to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Last {
    /// With the client's proof.
    pub message: String,
    /// With the server's: it knows the password as well.
    pub answer: String,
}

fn hmac(key: &[u8], message: &[u8]) -> Result<[u8; 32]> {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key)?;
    mac.update(message);
    Ok(mac.finalize().into_bytes().into())
}

impl Scram {
    /// Begins for a user, with a nonce of the client's.
    pub fn new(user: &str, nonce: &str) -> Self {
        Self { bare: format!("n={user},r={nonce}"), nonce: nonce.to_owned() }
    }

    /// The client's first message, without channel binding.
    pub fn first(&self) -> String {
        format!("n,,{}", self.bare)
    }

    /// Its last one, after the server's first.
    pub fn last(&self, password: &str, challenge: &[u8]) -> Result<Last> {
        let challenge = std::str::from_utf8(challenge)?;
        let field = |name: &str| {
            let found = challenge.split(',').find_map(|part| part.strip_prefix(name));
            found.with_context(|| format!("no {name} in {challenge}"))
        };
        let (nonce, salt) = (field("r=")?, BASE64_STANDARD.decode(field("s=")?)?);
        let iterations: u32 = field("i=")?.parse()?;
        let own = nonce.strip_prefix(&self.nonce).context("the server's nonce begins with the client's")?;
        ensure!(own.len() >= 16, "the server adds too little to the nonce: {nonce}");
        ensure!(iterations >= 4096 && salt.len() >= 8, "too little work, or salt: {challenge}");
        let salted = pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(password.as_bytes(), &salt, iterations);
        let without_proof = format!("c=biws,r={nonce}");
        let signed = format!("{},{challenge},{without_proof}", self.bare);
        let client_key = hmac(&salted, b"Client Key")?;
        let signature = hmac(&Sha256::digest(client_key), signed.as_bytes())?;
        let proof: Vec<u8> = client_key.iter().zip(signature).map(|(key, sign)| key ^ sign).collect();
        let answer = hmac(&hmac(&salted, b"Server Key")?, signed.as_bytes())?;
        Ok(Last {
            message: format!("{without_proof},p={}", BASE64_STANDARD.encode(proof)),
            answer: format!("v={}", BASE64_STANDARD.encode(answer)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7677 3.
    #[test]
    fn the_exchange_of_the_standard_comes_out() -> Result<()> {
        let scram = Scram::new("user", "rOprNGfwEbeRWgbNEkqO");
        assert_eq!(scram.first(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let challenge =
            b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let last = scram.last("pencil", challenge)?;
        assert!(last.message.ends_with(",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="), "{last:?}");
        assert_eq!(last.answer, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        Ok(())
    }
}
