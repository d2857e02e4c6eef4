use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::{EncodingKey, Header};
use serde_json::json;

use super::*;
use crate::secret::Secret;

/// A key for these tests and nothing else.
const RSA_PRIVATE: &str = "\
-----BEGIN PRIVATE KEY-----
MIIEvAIBADANBgkqhkiG9w0BAQEFAASCBKYwggSiAgEAAoIBAQC0P4IIO8V3U8PN
4EU6mp2L6EdHdJYSHAot3YxNbzEGkRWSIgu0NZXwpbwJkKY8Zy7IjzxRBTdXDqQh
D6UzSrlXEevC0IbLnBcVf1RcCl0VA53x2jS2g59QJeyAhmLYQTVoI0r7tldS/GY8
GXSxBlFS1Mpn37HWh2Zplzms8SDIZidEGgArN20aAt/tbAhbOJjs8oBZQsQvpw3q
O5AKl+WHjWVn1bEcoJxmqOUD8R8uq+h4WFKDXWSePT+fgTwEFip1ij2gmw74p6Pg
jf/rF7wPu6sTRceVDCzuhNdVoQrJ+pSlhTx5wWuWZ7rhwWW81WcQ7oEGb5BdWqL1
qsC1o5ltAgMBAAECggEABKTqQpbZRKgGdurpyob3VKAcgUCfKUJKfnOjgAJ20enl
E2NuYV5/SYVyFEQ2dEuR6GsAYKbXJ5Z7liDjRP1BsnbTJOB4lXOlIjgQqJQMlLqh
VDAm6yXDC66ed5IYc+TIoOR5gLjQnfvEEPv0hlpYuBI+UNgLqspiuIldj0SU1dtf
LmOwr5OGlCeuH0/V0EP4xxrED6YE4wUAbckr3Gf+10lJornE3fUbPZ/3+/Y+hm3h
rWTIYwtb9tnQQEip0ybDYb/sa9dXMo7ZdgnqHNCHM6YnZIuzWDF3TDlih0k4FLqm
uh0JbsTYaKHP9TdTqjEL9Y7LW716D4pefFMXciSTgQKBgQD2mCU/beh1wDL+/4sB
tCgCRzSDP3xxi2yk4MDSBQ4mkFuvzZKfPMohUYCNhzeng62m6CnL0Y/qW2Shf6gJ
5EK7KsPfU2BBerlmK8hcXIamGTag8BNBqfrylgiC86jO1Nn42n88qPtLM5lFqaa3
lRcSuOE4rR7iob8DJT8/ogzqYQKBgQC7H4dfrAYU10Vzn5D9a3S7akqP2h5qQXWW
6iCmzJYzYsDlmUK8xkgAt7T4E97HhbKHSkChdr7cj2j128pxfi/FsJOlUZoI93r1
MgBZAiTl6F3UB58Wv1ACRLvzQP0HqWVWdE+YsWkDoUO163hj4ZgaKEXnkwK5KUY8
h3DYXYnCjQKBgBb3pMB7pCMTe6x0cKX/+Zn8t89hol2Q9tWEeXEWN3MwDtoY84cR
SmJADREhfvWDNjFNflcVdaoGSSEhmq0RLYXxPb0XLufqXko92bOAiqn9vzDOK3z6
L/1YLALGXvqkqIidESy9MGqYq7XpTzXaFQQRZCi7Nx00o23PkkyC82EBAoGAOMSF
4yZi6eus7DjaWadB0KGcYSvA0mdtbw00PqYOYyRwdLccIfzdVypkQmZ0zX7n/Fcw
aEuH942iQAQf1HJ9t7Gr+Rlaa6H4sW4r4NTfsMffvzVYtCPx9942TsPGf46KacH7
a81WmH1R91yqN1L3O+g/3NMinl3BKxfDykAGTPkCgYAS5xk4ZB+AkaoIkogM+wYT
uEUpoENnWqgVa0TTp3nqwb5Jg436pA5j2CKtmpoEOXS28qQAqhPyYrZ4Xzg70PIr
ppdMoFzHm8QNyrDVVBmw682S95wC2s84m5Zjmkq6qut1NceUxdRzdkxHiLlaMkyN
5uIALY/n8BlVsXPmlFeTJw==
-----END PRIVATE KEY-----
";

const RSA_PUBLIC: &str = "\
-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAtD+CCDvFd1PDzeBFOpqd
i+hHR3SWEhwKLd2MTW8xBpEVkiILtDWV8KW8CZCmPGcuyI88UQU3Vw6kIQ+lM0q5
VxHrwtCGy5wXFX9UXApdFQOd8do0toOfUCXsgIZi2EE1aCNK+7ZXUvxmPBl0sQZR
UtTKZ9+x1odmaZc5rPEgyGYnRBoAKzdtGgLf7WwIWziY7PKAWULEL6cN6juQCpfl
h41lZ9WxHKCcZqjlA/EfLqvoeFhSg11knj0/n4E8BBYqdYo9oJsO+Kej4I3/6xe8
D7urE0XHlQws7oTXVaEKyfqUpYU8ecFrlme64cFlvNVnEO6BBm+QXVqi9arAtaOZ
bQIDAQAB
-----END PUBLIC KEY-----
";

const NOW: u64 = 1_800_000_000;

fn options(keys: KeySource) -> JwtOptions {
    JwtOptions {
        field: Field::Password,
        keys,
        algorithms: Vec::new(),
        verify_claims: Vec::new(),
        leeway: Duration::from_secs(10),
        disconnect_after_expire: true,
        acl_claim: "acl".into(),
    }
}

fn secret() -> KeySource {
    KeySource::Shared { secret: Secret::new("a secret of thirty-two bytes, ok"), base64: false }
}

fn hmac(algorithm: Algorithm, claims: &Value) -> String {
    let KeySource::Shared { secret, .. } = secret() else { panic!("a secret") };
    jsonwebtoken::encode(
        &Header::new(algorithm),
        claims,
        &EncodingKey::from_secret(secret.reveal().as_bytes()),
    )
    .unwrap()
}

fn judge(jwt: &Jwt, token: &str) -> Result<Grant, Refused> {
    let claims = jwt.verify(token)?;
    assert_eq!(super::claims(token).as_ref(), Some(&claims));
    jwt.judge(&claims, "c1", Some("ann"), UNIX_EPOCH + Duration::from_secs(NOW))
}

fn refused(jwt: &Jwt, token: &str) -> Option<Refused> {
    judge(jwt, token).err()
}

fn file(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

/// A token with this header and these claims, signed with HMAC-SHA-256 and any bytes.
fn forged(header: &Value, claims: &Value, key: &[u8]) -> String {
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", part(header), part(claims));
    let key = EncodingKey::from_secret(key);
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
    format!("{message}.{signature}")
}

#[test]
fn tokens_of_every_hmac_are_taken_and_wrong_ones_are_not() {
    let jwt = Jwt::new(options(secret())).unwrap();
    for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
        let token = hmac(algorithm, &json!({ "sub": "ann" }));
        assert!(looks_like_a_token(&token));
        assert_eq!(judge(&jwt, &token).unwrap().subject.as_deref(), Some("ann"));
        let other =
            Jwt::new(options(KeySource::Shared { secret: Secret::new("another"), base64: false })).unwrap();
        assert_eq!(refused(&other, &token), Some(Refused::Signature));
        let (message, signature) = token.rsplit_once('.').unwrap();
        for changed in [format!("{message}."), format!("{message}.AAAA"), format!("{message}A.{signature}")] {
            assert!(judge(&jwt, &changed).is_err(), "{changed}");
        }
    }
}

#[test]
fn rsa_and_elliptic_keys_take_their_own_algorithms() {
    let (_folder, path) = file("rsa.pem", RSA_PUBLIC);
    let rsa = Jwt::new(options(KeySource::Pem(path))).unwrap();
    let private = EncodingKey::from_rsa_pem(RSA_PRIVATE.as_bytes()).unwrap();
    for algorithm in AlgorithmFamily::Rsa.algorithms() {
        let token =
            jsonwebtoken::encode(&Header::new(*algorithm), &json!({ "sub": "ann" }), &private).unwrap();
        assert!(judge(&rsa, &token).is_ok(), "{algorithm:?}");
    }
    for (kind, algorithm) in [
        (&rcgen::PKCS_ECDSA_P256_SHA256, Algorithm::ES256),
        (&rcgen::PKCS_ECDSA_P384_SHA384, Algorithm::ES384),
    ] {
        let pair = rcgen::KeyPair::generate_for(kind).unwrap();
        let (_folder, path) = file("ec.pem", &pair.public_key_pem());
        let jwt = Jwt::new(options(KeySource::Pem(path))).unwrap();
        let private = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
        let token =
            jsonwebtoken::encode(&Header::new(algorithm), &json!({ "sub": "ann" }), &private).unwrap();
        assert!(judge(&jwt, &token).is_ok(), "{algorithm:?}");
        assert_eq!(refused(&rsa, &token), Some(Refused::NoKey));
    }
    let (_folder, path) = file("none.pem", "no key");
    assert!(Jwt::new(options(KeySource::Pem(path))).err().unwrap().contains("openssl pkey -pubout"));
}

#[test]
fn no_token_chooses_its_algorithm() {
    let claims = json!({ "sub": "ann" });
    let jwt = Jwt::new(options(secret())).unwrap();
    for alg in ["none", "None", "NONE", "", "HS1", "EdDSA"] {
        let header = json!({ "alg": alg, "typ": "JWT" });
        let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let bare = format!("{}.{}.", part(&header), part(&claims));
        assert!(judge(&jwt, &bare).is_err(), "{alg}");
        assert!(
            judge(&jwt, &forged(&header, &claims, b"a secret of thirty-two bytes, ok")).is_err(),
            "{alg}"
        );
    }
    // The public key, which everybody knows, taken for the secret of an HMAC (RFC 8725 2.1).
    let (_folder, path) = file("rsa.pem", RSA_PUBLIC);
    let rsa = Jwt::new(options(KeySource::Pem(path))).unwrap();
    let token = forged(&json!({ "alg": "HS256" }), &claims, RSA_PUBLIC.as_bytes());
    assert_eq!(refused(&rsa, &token), Some(Refused::NoKey));
    let token = forged(&json!({ "alg": "RS256" }), &claims, RSA_PUBLIC.as_bytes());
    assert_eq!(refused(&rsa, &token), Some(Refused::Signature));
    // Allowed by the key, but not by the configuration.
    let narrow = Jwt::new(JwtOptions { algorithms: vec![Algorithm::HS512], ..options(secret()) }).unwrap();
    assert_eq!(refused(&narrow, &hmac(Algorithm::HS256, &claims)), Some(Refused::Algorithm));
    assert!(judge(&narrow, &hmac(Algorithm::HS512, &claims)).is_ok());
}

#[test]
fn what_is_critical_has_to_be_understood() {
    let jwt = Jwt::new(options(secret())).unwrap();
    let key = b"a secret of thirty-two bytes, ok";
    let claims = json!({ "sub": "ann" });
    assert!(judge(&jwt, &forged(&json!({ "alg": "HS256" }), &claims, key)).is_ok());
    let header = json!({ "alg": "HS256", "crit": ["b64"], "b64": false });
    assert_eq!(refused(&jwt, &forged(&header, &claims, key)), Some(Refused::Malformed));
}

#[test]
fn times_are_kept_with_some_leeway() {
    let jwt = Jwt::new(options(secret())).unwrap();
    let token = |claims| hmac(Algorithm::HS256, &claims);
    assert_eq!(judge(&jwt, &token(json!({}))).unwrap().lasts, None);
    let lasts = judge(&jwt, &token(json!({ "exp": NOW + 60 }))).unwrap().lasts;
    assert_eq!(lasts, Some(Duration::from_secs(70)));
    assert!(judge(&jwt, &token(json!({ "exp": NOW as f64 - 9.5, "nbf": NOW + 9 }))).is_ok());
    assert_eq!(refused(&jwt, &token(json!({ "exp": NOW - 10 }))), Some(Refused::Expired));
    assert_eq!(refused(&jwt, &token(json!({ "nbf": NOW + 11 }))), Some(Refused::TooEarly));
    for wrong in [json!("soon"), json!(null), json!([1])] {
        assert!(judge(&jwt, &token(json!({ "exp": wrong }))).is_err(), "{wrong}");
    }
    assert_eq!(judge(&jwt, &token(json!({ "exp": 1e300 }))).unwrap().lasts, None);
    let stays = Jwt::new(JwtOptions { disconnect_after_expire: false, ..options(secret()) }).unwrap();
    assert_eq!(judge(&stays, &token(json!({ "exp": NOW + 60 }))).unwrap().lasts, None);
}

#[test]
fn claims_are_compared_with_the_client() {
    let verify_claims = [("sub", "${username}"), ("device", "id-${clientid}"), ("aud", "mqtt")];
    let verify_claims = verify_claims.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let jwt = Jwt::new(JwtOptions { verify_claims, ..options(secret()) }).unwrap();
    let right = json!({ "sub": "ann", "device": "id-c1", "aud": ["http", "mqtt"] });
    assert!(judge(&jwt, &hmac(Algorithm::HS256, &right)).is_ok());
    let token = hmac(Algorithm::HS256, &right);
    let now = UNIX_EPOCH + Duration::from_secs(NOW);
    let verified = jwt.verify(&token).unwrap();
    assert_eq!(jwt.judge(&verified, "c2", Some("ann"), now).err(), Some(Refused::Claim("device".into())));
    assert_eq!(jwt.judge(&verified, "c1", Some("eve"), now).err(), Some(Refused::Claim("sub".into())));
    assert_eq!(jwt.judge(&verified, "c1", None, now).err(), Some(Refused::Claim("sub".into())));
    for (name, value) in [("sub", json!("eve")), ("aud", json!(["http"])), ("device", json!(null))] {
        let mut wrong = right.clone();
        wrong[name] = value;
        assert_eq!(refused(&jwt, &hmac(Algorithm::HS256, &wrong)), Some(Refused::Claim(name.into())));
    }
}

/// A client id or user name that looks like a placeholder is a name like any other.
#[test]
fn what_a_client_calls_itself_is_not_expanded_again() {
    let judged = |wanted: &str, claim: &str, client_id: &str, username: Option<&str>| {
        let verify_claims = vec![("device".to_owned(), wanted.to_owned())];
        let jwt = Jwt::new(JwtOptions { verify_claims, ..options(secret()) }).unwrap();
        let token = hmac(Algorithm::HS256, &json!({ "device": claim }));
        let now = UNIX_EPOCH + Duration::from_secs(NOW);
        jwt.judge(&jwt.verify(&token).unwrap(), client_id, username, now).is_ok()
    };
    for placeholder in ["${username}", "${clientid}"] {
        assert!(!judged("${clientid}", "ann", placeholder, Some("ann")), "{placeholder}");
        assert!(!judged("${username}", "c1", "c1", Some(placeholder)), "{placeholder}");
        assert!(judged("${clientid}", placeholder, placeholder, Some("ann")));
        assert!(judged("${username}", placeholder, "c1", Some(placeholder)));
    }
    // Nor across the seam of two of them.
    assert!(!judged("${clientid}${username}", "annann", "${user", Some("name}")));
    assert!(judged("${clientid}${username}", "${username}", "${user", Some("name}")));
    assert!(judged("x-${clientid}-${username}-${clientid}", "x-c1-ann-c1", "c1", Some("ann")));
    assert!(judged("${other}${", "${other}${", "c1", None), "not a placeholder: taken as it stands");
    assert!(!judged("${clientid}${username}", "c1", "c1", None));
}

#[test]
fn a_key_set_is_chosen_from_by_key_id_and_read_again() {
    let entry = |id: &str, secret: &[u8]| json!({ "kty": "oct", "kid": id, "alg": "HS256", "k": BASE64_URL_SAFE_NO_PAD.encode(secret) });
    let unknown = json!({ "kty": "new", "kid": "x" });
    let set = json!({ "keys": [entry("one", b"first secret"), unknown, entry("two", b"second secret")] });
    // As some editors save it, with a byte order mark.
    let (_folder, path) = file("jwks.json", &format!("\u{feff}{set}"));
    let jwt = Jwt::new(options(KeySource::Jwks(path.clone()))).unwrap();
    let token = |id: &str, key: &[u8]| forged(&json!({ "alg": "HS256", "kid": id }), &json!({}), key);
    assert!(judge(&jwt, &token("one", b"first secret")).is_ok());
    assert!(judge(&jwt, &token("two", b"second secret")).is_ok());
    assert_eq!(refused(&jwt, &token("one", b"second secret")), Some(Refused::Signature));
    assert_eq!(refused(&jwt, &token("three", b"first secret")), Some(Refused::NoKey));
    assert!(
        judge(&jwt, &forged(&json!({ "alg": "HS256" }), &json!({}), b"second secret")).is_ok(),
        "no key id"
    );
    // The key says HS256.
    let header = Header { kid: Some("one".into()), ..Header::new(Algorithm::HS512) };
    let other =
        jsonwebtoken::encode(&header, &json!({}), &EncodingKey::from_secret(b"first secret")).unwrap();
    assert_eq!(refused(&jwt, &other), Some(Refused::NoKey));

    std::fs::write(&path, json!({ "keys": [entry("three", b"third secret")] }).to_string()).unwrap();
    jwt.reload().unwrap();
    assert!(judge(&jwt, &token("three", b"third secret")).is_ok());
    assert_eq!(refused(&jwt, &token("one", b"first secret")), Some(Refused::NoKey));
    std::fs::write(&path, "{").unwrap();
    assert!(jwt.reload().is_err());
    assert!(judge(&jwt, &token("three", b"third secret")).is_ok(), "a broken file changes nothing");
}

#[test]
fn a_token_may_bring_rules_of_known_form_only() {
    let jwt = Jwt::new(options(secret())).unwrap();
    let rules =
        |acl: Value| judge(&jwt, &hmac(Algorithm::HS256, &json!({ "acl": acl }))).map(|grant| grant.rules);
    assert!(rules(json!({ "pub": ["t/${clientid}"], "sub": [] })).unwrap().unwrap().alone);
    let list =
        json!([{ "permission": "deny", "action": "publish", "topic": "t/#", "qos": [0, 1], "retain": true }]);
    assert!(!rules(list).unwrap().unwrap().alone);
    for wrong in [
        json!("all"),
        json!({ "publish": ["t"] }),
        json!({ "pub": ["a/#/b"] }),
        json!([{ "permission": "maybe", "topic": "t" }]),
        json!([{ "permission": "allow" }]),
        json!([{ "permission": "allow", "topic": "t", "qos": 3 }]),
        json!([{ "permission": "allow", "topic": "t", "who": "all" }]),
    ] {
        assert_eq!(rules(wrong.clone()).err(), Some(Refused::Claim("acl".into())), "{wrong}");
    }
}

#[test]
fn what_is_no_token_is_left_to_others() {
    for text in ["", "secret", "a.b.c", "ey.b", "ey.b.c.d", "eyJ.b c.d", "eyJ..x", "pass.word.dots"] {
        assert!(!looks_like_a_token(text), "{text}");
    }
    let jwt = Jwt::new(options(secret())).unwrap();
    for text in ["eyJ.a.b", "ey.a.", &format!("eyJ.{}.x", "a".repeat(20_000))] {
        assert_eq!(refused(&jwt, text), Some(Refused::Malformed), "{text}");
    }
}
