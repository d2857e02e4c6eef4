//! Tokens for OAUTHBEARER (RFC 7628, KIP-255, KIP-768): got from a token endpoint with the client's
//! credentials, or read from a file.
//!
//! Invariants:
//! * All connections with the same settings object share one token; it is asked for by one of them at a time.
//! * A token is renewed when four fifths of its life are over, at the login that comes next. Where that fails
//!   the old one is used for as long as it is valid.
//! * A token or secret is in no message and no log.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use serde::Deserialize;
use tokio::time::Instant;

use super::Secret;
use super::http::{self, Url, form_encoded};
use super::tls::{Tls, TlsError, TlsSettings};
use crate::byte_order_mark;

/// How long a token endpoint may take.
const ENDPOINT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a token is used that does not say how long it is valid.
const UNKNOWN_LIFE: Duration = Duration::from_mins(1);
/// Longest token that is taken, bytes.
const MAX_TOKEN: usize = 48 * 1024;

/// Where tokens come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum OauthSource {
    /// The client credentials grant (RFC 6749 section 4.4).
    ClientCredentials {
        /// `https://HOST/PATH` of the token endpoint.
        endpoint: Box<str>,
        /// Client id.
        client_id: Box<str>,
        /// Client secret.
        client_secret: Secret,
        /// Scope to ask for.
        scope: Option<Box<str>>,
        /// TLS towards an https endpoint; always verified.
        tls: Box<TlsSettings>,
    },
    /// A file that another program keeps up to date; it is read at each login.
    File(PathBuf),
}

/// Settings of OAUTHBEARER.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OauthSettings {
    /// Where tokens come from.
    pub source: OauthSource,
    /// SASL extensions (KIP-342), such as `logicalCluster`.
    pub extensions: BTreeMap<Box<str>, Box<str>>,
}

/// The tokens of one set of settings. Clones share them; equal where the settings are.
#[derive(Clone)]
pub struct OauthTokens {
    settings: Arc<OauthSettings>,
    endpoint: Option<Arc<Endpoint>>,
    current: Arc<tokio::sync::Mutex<Option<Token>>>,
}

struct Endpoint {
    url: Url,
    tls: Option<Tls>,
}

struct Token {
    text: Secret,
    renew_at: Instant,
    expires_at: Instant,
}

impl PartialEq for OauthTokens {
    fn eq(&self, other: &Self) -> bool {
        self.settings == other.settings
    }
}

impl Eq for OauthTokens {}

impl Hash for OauthTokens {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.settings.hash(state);
    }
}

impl fmt::Debug for OauthTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.settings.fmt(f)
    }
}

/// The body of a token endpoint's answer (RFC 6749 sections 5.1 and 5.2).
#[derive(Deserialize)]
struct TokenAnswer {
    access_token: Option<String>,
    expires_in: Option<serde_json::Value>,
    error: Option<String>,
    error_description: Option<String>,
}

/// The part of a JSON web token that says how long it is valid.
#[derive(Deserialize)]
struct Claims {
    exp: Option<f64>,
}

/// Whether an extension can be sent (RFC 7628 section 3.1).
pub fn check_extension(name: &str, value: &str) -> Result<(), String> {
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) || name == "auth" {
        return Err(
            "the name of an extension is of the letters a to z and A to Z, and is not auth".to_owned()
        );
    }
    if !value.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\t' | b'\r' | b'\n')) {
        return Err("it has characters that cannot be sent".to_owned());
    }
    Ok(())
}

/// Whether a text is the URL of a token endpoint; the error says what would be right.
pub fn check_endpoint(uri: &str) -> Result<(), String> {
    Url::parse(uri).map(drop)
}

impl OauthTokens {
    /// Checks the settings; asks for nothing yet.
    pub fn new(settings: OauthSettings) -> Result<Self, TlsError> {
        let problem = |text: String| TlsError(text.into());
        for (name, value) in &settings.extensions {
            check_extension(name, value)
                .map_err(|what| problem(format!("the extension {name:?}: {what}")))?;
        }
        let endpoint = match &settings.source {
            OauthSource::File(_) => None,
            OauthSource::ClientCredentials { endpoint, tls, .. } => {
                let url = Url::parse(endpoint)
                    .map_err(|what| problem(format!("the token endpoint {endpoint:?} is no URL: {what}")))?;
                let tls = if url.https { Some(Tls::new(tls.as_ref().clone())?) } else { None };
                Some(Arc::new(Endpoint { url, tls }))
            }
        };
        Ok(Self { settings: Arc::new(settings), endpoint, current: Arc::default() })
    }

    /// First message of a client: RFC 7628 section 3.1.
    pub(super) async fn message(&self) -> Result<Vec<u8>, String> {
        let token = self.token().await?;
        let mut message = format!("n,,\x01auth=Bearer {}\x01", token.reveal());
        for (name, value) in &self.settings.extensions {
            message.push_str(name);
            message.push('=');
            message.push_str(value);
            message.push('\x01');
        }
        message.push('\x01');
        Ok(message.into_bytes())
    }

    async fn token(&self) -> Result<Secret, String> {
        match &self.settings.source {
            OauthSource::File(path) => {
                let text = tokio::fs::read_to_string(path)
                    .await
                    .map_err(|error| format!("cannot read the token in {}: {error}", path.display()))?;
                checked(byte_order_mark::skip(&text).trim())
                    .map_err(|what| format!("the token in {} {what}", path.display()))
            }
            OauthSource::ClientCredentials { endpoint, client_id, client_secret, scope, .. } => {
                // Held while one asks: the others want what it gets.
                let mut current = self.current.lock().await;
                let now = Instant::now();
                if let Some(token) = current.as_ref().filter(|token| now < token.renew_at) {
                    return Ok(token.text.clone());
                }
                let asked = self.ask(client_id, client_secret, scope.as_deref());
                let asked = tokio::time::timeout(ENDPOINT_TIMEOUT, asked)
                    .await
                    .unwrap_or_else(|_| Err(format!("no answer within {ENDPOINT_TIMEOUT:?}")));
                match asked {
                    Ok(token) => {
                        let text = token.text.clone();
                        *current = Some(token);
                        Ok(text)
                    }
                    Err(reason) => {
                        let reason = format!("no token from {endpoint}: {reason}");
                        match current.as_ref().filter(|token| now < token.expires_at) {
                            Some(token) => {
                                tracing::warn!(%reason, "the token that is still valid is used once more");
                                Ok(token.text.clone())
                            }
                            None => Err(reason),
                        }
                    }
                }
            }
        }
    }

    async fn ask(
        &self,
        client_id: &str,
        client_secret: &Secret,
        scope: Option<&str>,
    ) -> Result<Token, String> {
        let Some(endpoint) = &self.endpoint else { return Err("no token endpoint is configured".to_owned()) };
        // RFC 6749 section 2.3.1.
        let credentials = format!("{}:{}", form_encoded(client_id), form_encoded(client_secret.reveal()));
        let authorization = format!("Basic {}", BASE64_STANDARD.encode(credentials));
        let mut form = "grant_type=client_credentials".to_owned();
        if let Some(scope) = scope {
            form.push_str("&scope=");
            form.push_str(&form_encoded(scope));
        }
        let tls = endpoint.tls.as_ref();
        let answer = http::post_form(&endpoint.url, tls, &authorization, &form, ENDPOINT_TIMEOUT)
            .await
            // The words are those for brokers.
            .map_err(|text| {
                text.replace("the broker", "the endpoint").replace("ssl.cacertfile", "endpoint_cacertfile")
            })?;
        read_answer(answer.status, &answer.body, SystemTime::now(), Instant::now())
    }
}

fn read_answer(status: u16, body: &[u8], time: SystemTime, now: Instant) -> Result<Token, String> {
    let parsed: Option<TokenAnswer> = serde_json::from_slice(body).ok();
    if status != 200 {
        let said = parsed.and_then(|parsed| {
            let description = parsed.error_description.map_or_else(String::new, |text| format!(" ({text})"));
            Some(format!(", error {}{description}", parsed.error?))
        });
        let said: String = said.unwrap_or_default().chars().take(500).filter(|c| !c.is_control()).collect();
        return Err(format!(
            "it answered with HTTP status {status}{said}; are client_id, client_secret and scope right?"
        ));
    }
    let parsed = parsed.ok_or("its answer is not JSON with an access_token")?;
    let token = parsed.access_token.as_deref().ok_or("its answer has no access_token")?;
    let text = checked(token).map_err(|what| format!("its token {what}"))?;
    // Some write the number in quotes.
    let seconds = match &parsed.expires_in {
        Some(serde_json::Value::Number(number)) => number.as_f64(),
        Some(serde_json::Value::String(text)) => text.parse().ok(),
        _ => None,
    };
    let life = seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .or_else(|| life_in_claims(token, time))
        .unwrap_or(UNKNOWN_LIFE)
        .min(Duration::from_hours(24 * 365));
    Ok(Token { text, renew_at: now + life.mul_f64(0.8), expires_at: now + life })
}

/// How long a JSON web token (RFC 7519) is valid by its own claim; `None` where it is none.
fn life_in_claims(token: &str, time: SystemTime) -> Option<Duration> {
    let claims = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?.trim_end_matches('=')).ok()?;
    let claims: Claims = serde_json::from_slice(&claims).ok()?;
    let expires = Duration::try_from_secs_f64(claims.exp?).ok()?;
    Some(expires.saturating_sub(time.duration_since(UNIX_EPOCH).ok()?))
}

/// A token of the characters of RFC 6750 section 2.1.
fn checked(token: &str) -> Result<Secret, &'static str> {
    if token.is_empty() {
        return Err("is empty");
    }
    if token.len() > MAX_TOKEN {
        return Err("is too long");
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    if !token.bytes().all(allowed) {
        return Err("has characters that cannot be in one");
    }
    Ok(Secret::new(token))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// An endpoint that answers each request with the next of `answers`, the last one for ever.
    async fn endpoint(answers: Vec<(u16, String)>) -> (String, Arc<AtomicU32>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/token", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicU32::new(0));
        let counter = asked.clone();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                let count = stream.read(&mut request).await.unwrap();
                let request = String::from_utf8_lossy(&request[..count]).into_owned();
                // id `i d`, secret `s:x`, each encoded by itself.
                let credentials = BASE64_STANDARD.encode("i+d:s%3Ax");
                assert!(request.contains(&format!("Authorization: Basic {credentials}\r\n")), "{request}");
                assert!(request.ends_with("grant_type=client_credentials&scope=a+b"), "{request}");
                let turn = counter.fetch_add(1, Ordering::SeqCst) as usize;
                let (status, body) = answers.get(turn).or(answers.last()).unwrap();
                let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        (url, asked)
    }

    fn settings(url: &str) -> OauthSettings {
        OauthSettings {
            source: OauthSource::ClientCredentials {
                endpoint: url.into(),
                client_id: "i d".into(),
                client_secret: Secret::new("s:x"),
                scope: Some("a b".into()),
                tls: Box::default(),
            },
            extensions: BTreeMap::from([("cluster".into(), "c 1".into())]),
        }
    }

    fn good(token: &str, seconds: u64) -> (u16, String) {
        (200, format!(r#"{{"access_token":"{token}","expires_in":{seconds},"token_type":"bearer"}}"#))
    }

    /// L21
    #[tokio::test]
    async fn one_token_is_shared_by_all_logins_until_it_is_to_be_renewed() {
        let (url, asked) = endpoint(vec![good("one", 3600), good("two", 3600)]).await;
        let tokens = OauthTokens::new(settings(&url)).unwrap();
        let logins = (0..10).map(|_| {
            let tokens = tokens.clone();
            tokio::spawn(async move { tokens.message().await.unwrap() })
        });
        for login in logins.collect::<Vec<_>>() {
            assert_eq!(login.await.unwrap(), b"n,,\x01auth=Bearer one\x01cluster=c 1\x01\x01");
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        // Settings that are equal and made anew (a probe) have a token of their own.
        let other = OauthTokens::new(settings(&url)).unwrap();
        assert!(other == tokens);
        assert_eq!(other.token().await.unwrap().reveal(), "two");
        let shown = format!("{tokens:?}");
        assert!(!shown.contains("s:x") && !shown.contains("\"one\""), "{shown}");
    }

    /// L21
    #[tokio::test]
    async fn a_token_is_renewed_before_it_expires_and_used_on_where_that_fails() {
        let (url, asked) =
            endpoint(vec![good("one", 3600), (500, "down".to_owned()), good("two", 3600)]).await;
        let tokens = OauthTokens::new(settings(&url)).unwrap();
        assert_eq!(tokens.token().await.unwrap().reveal(), "one");
        tokens.current.lock().await.as_mut().unwrap().renew_at = Instant::now();
        assert_eq!(tokens.token().await.unwrap().reveal(), "one");
        assert_eq!(tokens.token().await.unwrap().reveal(), "two");
        assert_eq!(asked.load(Ordering::SeqCst), 3);
    }

    /// L21
    #[tokio::test]
    async fn a_refused_client_is_told_why_and_its_secret_is_not_shown() {
        let refusal = r#"{"error":"invalid_client","error_description":"no such client"}"#;
        let (url, _) = endpoint(vec![(401, refusal.to_owned())]).await;
        let tokens = OauthTokens::new(settings(&url)).unwrap();
        let error = tokens.message().await.unwrap_err();
        assert!(error.contains("status 401, error invalid_client (no such client)"), "{error}");
        assert!(error.contains(&url) && !error.contains("s:x"), "{error}");
    }

    #[test]
    fn the_life_of_a_token_comes_from_the_answer_or_from_its_claims() {
        let (now, time) = (Instant::now(), UNIX_EPOCH + Duration::from_secs(1000));
        let life = |body: String| {
            let token = read_answer(200, body.as_bytes(), time, now).unwrap();
            assert_eq!(token.renew_at - now, (token.expires_at - now).mul_f64(0.8));
            token.expires_at - now
        };
        let claims = BASE64_URL_SAFE_NO_PAD.encode(r#"{"exp":1300.5}"#);
        assert_eq!(life(r#"{"access_token":"a","expires_in":100}"#.into()), Duration::from_secs(100));
        assert_eq!(life(r#"{"access_token":"a","expires_in":"90"}"#.into()), Duration::from_secs(90));
        assert_eq!(life(format!(r#"{{"access_token":"h.{claims}.s"}}"#)), Duration::from_millis(300_500));
        for body in [
            r#"{"access_token":"a.b.c"}"#,
            r#"{"access_token":"a","expires_in":-1}"#,
            r#"{"access_token":"a","expires_in":1e300}"#,
        ] {
            assert_eq!(life(body.into()), UNKNOWN_LIFE, "{body}");
        }
        for body in [
            "",
            "[]",
            "{}",
            r#"{"access_token":""}"#,
            r#"{"access_token":"a b"}"#,
            "{\"access_token\":\"a\\u0001b\"}",
        ] {
            assert!(read_answer(200, body.as_bytes(), time, now).is_err(), "{body}");
        }
    }

    #[tokio::test]
    async fn a_token_file_is_read_at_each_login() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let source = OauthSource::File(path.clone());
        let tokens = OauthTokens::new(OauthSettings { source, extensions: BTreeMap::new() }).unwrap();
        assert!(tokens.message().await.unwrap_err().contains("cannot read the token in"));
        for text in ["one\n", "two", "\u{feff}three\r\n"] {
            std::fs::write(&path, text).unwrap();
            let expected =
                format!("n,,\x01auth=Bearer {}\x01\x01", text.trim_start_matches('\u{feff}').trim());
            assert_eq!(tokens.message().await.unwrap(), expected.into_bytes());
        }
        std::fs::write(&path, "").unwrap();
        assert!(tokens.message().await.unwrap_err().contains("is empty"));
    }

    #[test]
    fn extensions_that_cannot_be_sent_are_refused() {
        for (name, value) in [("auth", "x"), ("", "x"), ("a b", "x"), ("a", "\x01")] {
            let extensions = BTreeMap::from([(name.into(), value.into())]);
            let settings = OauthSettings { source: OauthSource::File("t".into()), extensions };
            assert!(OauthTokens::new(settings).is_err(), "{name:?} {value:?}");
        }
    }
}
