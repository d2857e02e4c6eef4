//! The backends together: who gets in by what, and what it costs.

use std::path::Path;
use std::sync::atomic::Ordering;

use base64::Engine;

use super::{passwords::Cost, *};
use crate::config::{Loaded, load_text};

fn access(text: &str, folder: &Path) -> Arc<Access> {
    let text = text.replace("FOLDER", &folder.display().to_string());
    let Loaded { value: config, .. } = load_text("test", &text).unwrap_or_else(|errors| panic!("{errors}"));
    Access::start(Options { cost: Cost::LEAST, ..config.access_options(folder) })
        .unwrap_or_else(|error| panic!("{error}"))
}

fn credentials<'a>(username: Option<&'a str>, password: Option<&'a str>) -> Credentials<'a> {
    Credentials {
        client_id: "c1",
        username,
        password: password.map(str::as_bytes),
        peer: "192.0.2.1:5000".parse().unwrap(),
        listener: "default",
        certificate: None,
    }
}

async fn verdict(access: &Arc<Access>, credentials: &Credentials<'_>) -> Verdict {
    match access.authenticate(credentials) {
        Answer::Now(verdict) => verdict,
        Answer::Later(pending) => pending.await,
    }
}

async fn reason(access: &Arc<Access>, username: Option<&str>, password: Option<&str>) -> ReasonCode {
    match verdict(access, &credentials(username, password)).await {
        Ok(_) => ReasonCode::Success,
        Err(refusal) => refusal.reason,
    }
}

fn hash(user: &str, password: &str) -> String {
    format!("{user}:{}\n", passwords::PasswordHash::new(password.as_bytes(), Cost::LEAST).unwrap())
}

const NO_BANS: &str = "authentication.ban { max_failures = 0, delay = 0 }\n";

#[tokio::test]
async fn without_configuration_everybody_may_come_and_do_everything() {
    let folder = tempfile::tempdir().unwrap();
    let access = access("", folder.path());
    assert_eq!(reason(&access, None, None).await, ReasonCode::Success);
    assert_eq!(reason(&access, Some("ann"), Some("x")).await, ReasonCode::Success);
    let admitted = verdict(&access, &credentials(None, None)).await.unwrap_or_default();
    assert!(admitted.permissions.are_all());
}

#[tokio::test]
async fn backends_are_asked_in_order_and_the_first_that_knows_a_user_decides() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("passwords"), hash("ann", "file") + &hash("bob", "two")).unwrap();
    let text = format!(
        "{NO_BANS} authentication.backends = [ {{ type = built_in_database }}, {{ type = password_file, path = \"FOLDER/passwords\" }} ]"
    );
    let access = access(&text, folder.path());
    access.add_user("ann".into(), b"database".to_vec(), false).await.unwrap();
    for (user, password, expected) in [
        ("ann", "database", ReasonCode::Success),
        ("ann", "file", ReasonCode::BadUserNameOrPassword),
        ("bob", "two", ReasonCode::Success),
        ("bob", "one", ReasonCode::BadUserNameOrPassword),
        ("eve", "x", ReasonCode::BadUserNameOrPassword),
        ("ann", "", ReasonCode::BadUserNameOrPassword),
    ] {
        assert_eq!(reason(&access, Some(user), Some(password)).await, expected, "{user} {password}");
    }
    assert_eq!(reason(&access, None, None).await, ReasonCode::NotAuthorized, "anonymous");
    assert_eq!(reason(&access, Some("ann"), None).await, ReasonCode::BadUserNameOrPassword);
    assert_eq!(reason(&access, None, Some("database")).await, ReasonCode::BadUserNameOrPassword);
}

#[tokio::test]
async fn a_stranger_costs_what_a_wrong_password_costs() {
    let folder = tempfile::tempdir().unwrap();
    let access = access(
        &format!("{NO_BANS} authentication.backends = [ {{ type = built_in_database }} ]"),
        folder.path(),
    );
    access.add_user("ann".into(), b"right".to_vec(), false).await.unwrap();
    let mut before = 0;
    for user in ["ann", "eve"] {
        reason(&access, Some(user), Some("wrong")).await;
        let computed = access.authenticator.checks.computed.load(Ordering::Relaxed);
        assert_eq!(computed - before, 1, "{user}");
        before = computed;
    }
}

#[tokio::test]
async fn a_new_password_and_a_deleted_user_count_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let access = access(
        &format!("{NO_BANS} authentication.backends = [ {{ type = built_in_database }} ]"),
        folder.path(),
    );
    access.add_user("ann".into(), b"one".to_vec(), false).await.unwrap();
    for _ in 0..2 {
        assert_eq!(reason(&access, Some("ann"), Some("one")).await, ReasonCode::Success);
    }
    assert_eq!(access.authenticator.checks.computed.load(Ordering::Relaxed), 1, "it was remembered");
    access.set_password("ann".into(), b"two".to_vec()).await.unwrap();
    assert_eq!(reason(&access, Some("ann"), Some("one")).await, ReasonCode::BadUserNameOrPassword);
    assert_eq!(reason(&access, Some("ann"), Some("two")).await, ReasonCode::Success);
    access.delete_user("ann".into()).await.unwrap();
    assert_eq!(reason(&access, Some("ann"), Some("two")).await, ReasonCode::BadUserNameOrPassword);
}

#[tokio::test]
async fn the_rules_do_not_count_for_a_superuser() {
    let folder = tempfile::tempdir().unwrap();
    let text = "authentication.backends = [ { type = built_in_database } ], authorization.no_match = deny";
    let access = access(text, folder.path());
    for (name, superuser) in [("root", true), ("ann", false)] {
        access.add_user(name.into(), b"x".to_vec(), superuser).await.unwrap();
        let admitted = verdict(&access, &credentials(Some(name), Some("x"))).await.unwrap_or_default();
        assert_eq!(admitted.permissions.are_all(), superuser, "{name}");
    }
}

#[tokio::test]
async fn a_certificate_names_the_user() {
    let folder = tempfile::tempdir().unwrap();
    for (which, name) in [("common_name", "meter-17"), ("subject", "CN=meter-17,O=Example")] {
        let text =
            format!("authentication.backends = [ {{ type = client_certificate, username = {which} }} ]");
        let access = access(&text, folder.path());
        let names = CertificateNames { common_name: Some("meter-17"), subject: "CN=meter-17,O=Example" };
        let with = Credentials { certificate: Some(names), ..credentials(Some("eve"), None) };
        let admitted = verdict(&access, &with).await.unwrap_or_default();
        assert_eq!(admitted.username, Some(Some(name.into())));
        assert_eq!(reason(&access, Some("meter-17"), None).await, ReasonCode::BadUserNameOrPassword);
    }
}

#[tokio::test]
async fn a_token_in_the_user_name_is_never_taken_for_one() {
    let folder = tempfile::tempdir().unwrap();
    let text = "authentication.backends = [ { type = jwt, from = username, secret = \"a secret of thirty-two bytes, ok\" } ]";
    let access = access(text, folder.path());
    let key = jsonwebtoken::EncodingKey::from_secret(b"a secret of thirty-two bytes, ok");
    let token = |claims: serde_json::Value| {
        jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
    };
    for (claims, name) in [(serde_json::json!({ "sub": "ann" }), Some("ann")), (serde_json::json!({}), None)]
    {
        let token = token(claims);
        let admitted = verdict(&access, &credentials(Some(&token), None)).await.unwrap_or_default();
        assert_eq!(admitted.username, Some(name.map(Box::from)));
    }
    let debug = format!("{:?}", credentials(Some(&token(serde_json::json!({}))), Some("tiger")));
    assert!(!debug.contains("eyJ") && !debug.contains("tiger"), "{debug}");
}

#[tokio::test]
async fn failures_are_slowed_down_and_then_banned_and_a_ban_can_be_ended() {
    let folder = tempfile::tempdir().unwrap();
    let text = "authentication { backends = [ { type = built_in_database } ], ban { max_failures = 3, delay = 50ms } }";
    let access = access(text, folder.path());
    access.add_user("ann".into(), b"right".to_vec(), false).await.unwrap();
    let wrong = credentials(Some("ann"), Some("wrong"));
    let mut refusals = Vec::new();
    for _ in 0..4 {
        refusals.push(verdict(&access, &wrong).await.err().unwrap());
    }
    let expected = [(0x86, 0), (0x86, 50), (0x8A, 0), (0x8A, 0)];
    let seen: Vec<(u8, u128)> =
        refusals.iter().map(|refusal| (refusal.reason as u8, refusal.delay.as_millis())).collect();
    assert_eq!(seen, expected);
    assert_eq!(
        reason(&access, Some("ann"), Some("right")).await,
        ReasonCode::Banned,
        "the address is banned"
    );
    assert_eq!(access.bans()[0].address, "192.0.2.1");
    assert_eq!(access.clear_bans(None), 1);
    assert_eq!(reason(&access, Some("ann"), Some("right")).await, ReasonCode::Success);
}

#[tokio::test]
async fn files_are_read_anew_when_they_change() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("passwords"), hash("ann", "one")).unwrap();
    std::fs::write(path("acl.conf"), "rules = [ { permission = deny, topics = \"t\" } ]").unwrap();
    let text = format!(
        "{NO_BANS} authentication.backends = [ {{ type = password_file, path = \"FOLDER/passwords\" }} ]\n\
         authorization.file = \"FOLDER/acl.conf\""
    );
    let access = access(&text, folder.path());
    let origin = crate::flow::Origin { client_id: "c1".into(), username: None, peer: None };
    let may = |access: &Access| access.permissions("default").publish(&origin, "t") == Allowed::ALL;
    assert!(!may(&access));
    let reloads = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = reloads.clone();
    access.on_reload(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    access.look();
    assert_eq!(reloads.load(Ordering::Relaxed), 0, "nothing has changed");

    std::fs::write(path("passwords"), format!("# new\n{}", hash("ann", "another"))).unwrap();
    std::fs::write(path("acl.conf"), "rules = []").unwrap();
    access.look();
    assert!(may(&access) && reloads.load(Ordering::Relaxed) == 1);
    assert_eq!(reason(&access, Some("ann"), Some("another")).await, ReasonCode::Success);
    assert_eq!(reason(&access, Some("ann"), Some("one")).await, ReasonCode::BadUserNameOrPassword);

    std::fs::write(path("acl.conf"), "rules = [ { permission = deny, topics = \"t\", who = all } ]").unwrap();
    access.look();
    assert!(may(&access), "a broken file changes nothing");
}

/// What a SCRAM client computes (RFC 5802 3).
fn scram_client(password: &str, first: &str, challenge: &str) -> String {
    use hmac::{Hmac, KeyInit, Mac};
    use sha2::{Digest, Sha256};
    let base64 = base64::prelude::BASE64_STANDARD;
    let hmac = |key: &[u8], message: &[u8]| -> [u8; 32] {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).unwrap();
        mac.update(message);
        mac.finalize().into_bytes().into()
    };
    let field = |name: &str| challenge.split(',').find_map(|part| part.strip_prefix(name)).unwrap();
    let salt = base64.decode(field("s=")).unwrap();
    let salted =
        pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(password.as_bytes(), &salt, field("i=").parse().unwrap());
    let client_key = hmac(&salted, b"Client Key");
    let without_proof = format!("c=biws,r={}", field("r="));
    let signed = format!("{},{challenge},{without_proof}", first.strip_prefix("n,,").unwrap());
    let signature = hmac(&Sha256::digest(client_key), signed.as_bytes());
    let proof: Vec<u8> = client_key.iter().zip(signature).map(|(key, signature)| key ^ signature).collect();
    format!("{without_proof},p={}", base64.encode(proof))
}

#[tokio::test]
async fn scram_goes_through_with_the_right_password_only() {
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "{NO_BANS} authentication.backends = [ {{ type = built_in_database, scram = true, scram_iterations = 4096 }} ]"
    );
    let access = access(&text, folder.path());
    access.add_user("ann".into(), b"pencil".to_vec(), false).await.unwrap();
    for (user, password, expected) in [
        ("ann", "pencil", Ok(())),
        ("ann", "pencils", Err(ReasonCode::NotAuthorized)),
        ("eve", "pencil", Err(ReasonCode::NotAuthorized)),
    ] {
        let first = format!("n,,n={user},r=abc");
        let step = access.begin(SCRAM_SHA_256, Some(first.as_bytes()), &credentials(None, None));
        let Ok(Step::Continue(exchange, challenge)) = step else { panic!("no challenge for {user}") };
        let last = scram_client(password, &first, std::str::from_utf8(&challenge).unwrap());
        let end = exchange.answer(Some(last.as_bytes()));
        match end {
            Ok(Step::Done(admitted, word)) => {
                assert_eq!(admitted.username, Some(Some(user.into())));
                assert!(word.starts_with(b"v=") && expected.is_ok());
            }
            Ok(Step::Continue(..)) => panic!("one word too many"),
            Err(refusal) => assert_eq!(Err(refusal.reason), expected, "{user} {password}"),
        }
    }
    let other = access.begin("PLAIN", Some(b""), &credentials(None, None));
    assert_eq!(other.err().map(|refusal| refusal.reason), Some(ReasonCode::BadAuthenticationMethod));
}

/// Access by tokens that are signed with a key on P-256, and one for each of these users.
fn by_tokens(folder: &Path, checks: &str, users: &[&str]) -> (Arc<Access>, Vec<String>) {
    use jsonwebtoken::{Algorithm, EncodingKey, Header};
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    std::fs::write(folder.join("key.pem"), pair.public_key_pem()).unwrap();
    let private = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
    let sign = |user: &&str| {
        let claims = serde_json::json!({ "sub": user });
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &private).unwrap()
    };
    let text = format!(
        r#"{NO_BANS} authentication {{
            password_checks {{ {checks} }}
            backends = [ {{ type = jwt, public_key = "FOLDER/key.pem", verify_claims {{ sub = "${{username}}" }} }} ]
        }}"#
    );
    (access(&text, folder), users.iter().map(sign).collect())
}

#[tokio::test]
async fn signatures_that_cost_are_checked_within_the_bound_of_passwords() {
    let folder = tempfile::tempdir().unwrap();
    let (users, bound) = (["a", "b", "c", "d"], "max_concurrent = 1, max_waiting = 1");
    let (access, tokens) = by_tokens(folder.path(), bound, &users);
    let ask = |at: usize| access.authenticate(&credentials(Some(users[at]), Some(&tokens[at])));
    // One may run and one wait; nothing is polled yet.
    let under_way: Vec<_> = (0..2).map(&ask).collect();
    assert!(matches!(ask(2), Answer::Now(Err(Refusal { reason: ReasonCode::ServerBusy, .. }))));
    for answer in under_way {
        let Answer::Later(pending) = answer else { panic!("not in passing") };
        assert!(pending.await.is_ok());
    }
    let Answer::Later(given_up) = ask(2) else { panic!("there is room again") };
    drop(given_up);
    let computed = || access.authenticator.checks.computed.load(Ordering::Relaxed);
    assert_eq!(computed(), 2, "who gives up costs nothing");
    // What was right is remembered; for another user it is still wrong.
    assert!(matches!(ask(0), Answer::Now(Ok(_))));
    let stolen = access.authenticate(&credentials(Some("b"), Some(&tokens[0])));
    assert!(matches!(stolen, Answer::Now(Err(Refusal { reason: ReasonCode::BadUserNameOrPassword, .. }))));
    assert_eq!(computed(), 2);
}

#[tokio::test]
async fn a_token_that_was_right_is_asked_again_when_the_keys_change() {
    let folder = tempfile::tempdir().unwrap();
    let (access, tokens) = by_tokens(folder.path(), "", &["ann"]);
    let known = credentials(Some("ann"), Some(&tokens[0]));
    assert!(verdict(&access, &known).await.is_ok());
    assert!(matches!(access.authenticate(&known), Answer::Now(Ok(_))));
    let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    std::fs::write(folder.path().join("key.pem"), format!("{}\n", other.public_key_pem())).unwrap();
    for _ in 0..2 {
        // Changed, and at rest.
        access.look();
    }
    assert!(verdict(&access, &known).await.is_err());
}
