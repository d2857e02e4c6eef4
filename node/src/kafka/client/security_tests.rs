//! Logins and TLS against the development Kafka: what works, and what is said where it does not.

use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::time::Instant;

use super::*;
use crate::dev_kafka::{self, ApiKey, DevKafka, Match, Sasl, TopicSpec};

const SASL: (&str, &str) = ("a bridge", "pass,wörd=");

struct Ground {
    kafka: DevKafka,
    authority: String,
}

async fn ground(tls: bool, sasl: Option<Sasl>) -> Ground {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    let tls = tls.then(|| dev_kafka::Tls {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
        ..dev_kafka::Tls::default()
    });
    let options = dev_kafka::Options { sasl, tls, ..dev_kafka::Options::default() };
    let kafka = DevKafka::start(options.topic(TopicSpec::new("t", 3))).await.unwrap();
    Ground { kafka, authority: authority.pem() }
}

impl Ground {
    fn options(&self) -> ClientOptions {
        let address = self.kafka.addresses()[0];
        ClientOptions::new(vec![Address::new(address.ip().to_string(), address.port())])
    }

    fn tls(&self) -> Tls {
        let authorities = Pem { origin: "cacertfile".into(), text: self.authority.as_bytes().into() };
        Tls::new(TlsSettings { authorities: Some(authorities), ..TlsSettings::default() }).unwrap()
    }
}

fn user(lifetime: Option<Duration>) -> Sasl {
    Sasl { session_lifetime: lifetime, ..Sasl::user(SASL.0, SASL.1) }
}

fn logins(password: &str) -> [Authentication; 3] {
    let (username, password) = (SASL.0, Secret::new(password));
    let scram = |hash| Authentication::Scram { hash, username: username.into(), password: password.clone() };
    [
        Authentication::Plain { username: username.into(), password: password.clone() },
        scram(ScramHash::Sha256),
        scram(ScramHash::Sha512),
    ]
}

async fn partitions(options: ClientOptions) -> Result<usize, Error> {
    let client = Client::new(options);
    let view = client.refresh("t", false).await?;
    // Over a connection to the leader, too.
    client.list_offset("t", 0, OffsetAt::Latest, false).await?;
    Ok(view.partitions.len())
}

#[tokio::test]
async fn every_login_works_with_and_without_tls_and_a_wrong_password_does_not() {
    for over_tls in [false, true] {
        let ground = ground(over_tls, Some(user(None))).await;
        let tls = over_tls.then(|| ground.tls());
        for authentication in logins(SASL.1) {
            let options = ClientOptions { tls: tls.clone(), authentication, ..ground.options() };
            assert_eq!(partitions(options).await.unwrap(), 3);
        }
        for authentication in logins("guess") {
            let mechanism = authentication.mechanism();
            let options = ClientOptions { tls: tls.clone(), authentication, ..ground.options() };
            let error = partitions(options).await.unwrap_err().to_string();
            assert!(error.contains(&format!("authentication with {mechanism} failed")), "{error}");
            assert!(error.contains("Invalid username or password") && !error.contains("guess"), "{error}");
        }
    }
}

/// L20
#[tokio::test]
async fn the_wrong_kind_of_port_or_login_is_named() {
    let (plain, secured) = (ground(false, None).await, ground(true, Some(user(None))).await);
    let login = logins(SASL.1)[0].clone();
    let tokens = OauthSettings { source: OauthSource::File("/dev/null".into()), extensions: [].into() };
    let with_tls = ClientOptions { tls: Some(secured.tls()), ..secured.options() };
    for (options, expected) in [
        (ClientOptions { tls: Some(plain.tls()), ..plain.options() }, "does this port speak TLS"),
        (ClientOptions { authentication: login.clone(), ..plain.options() }, "set authentication = none"),
        (ClientOptions { authentication: login, ..secured.options() }, "set ssl.enable = true"),
        (with_tls.clone(), "does it want a login? If so, set authentication"),
        (ClientOptions { tls: Some(plain.tls()), ..secured.options() }, "ssl.cacertfile"),
        (
            ClientOptions {
                authentication: Authentication::OauthBearer(OauthTokens::new(tokens).unwrap()),
                ..with_tls
            },
            "the token in /dev/null is empty",
        ),
    ] {
        // Named by what came, not by what did not come in time.
        let patience = Duration::from_mins(1);
        let options = ClientOptions { connect_timeout: patience, ..options };
        let started = Instant::now();
        let error = partitions(options).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(started.elapsed() < patience, "{error}");
    }
}

#[tokio::test]
async fn a_mechanism_that_is_not_offered_is_named_with_those_that_are() {
    let ground = ground(false, Some(user(None))).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "token").unwrap();
    let tokens = OauthSettings { source: OauthSource::File(file), extensions: [].into() };
    let authentication = Authentication::OauthBearer(OauthTokens::new(tokens).unwrap());
    let error =
        partitions(ClientOptions { authentication, ..ground.options() }).await.unwrap_err().to_string();
    assert!(error.contains("it offers PLAIN, SCRAM-SHA-256, SCRAM-SHA-512"), "{error}");
}

/// The development Kafka closes a connection whose login lapsed, at the next request.
#[tokio::test]
async fn a_connection_outlives_its_login_with_every_mechanism() {
    let lifetime = Duration::from_secs(6);
    let ground = ground(true, Some(user(Some(lifetime)))).await;
    let started = Instant::now();
    let mut clients = Vec::new();
    for authentication in logins(SASL.1) {
        let client =
            Client::new(ClientOptions { tls: Some(ground.tls()), authentication, ..ground.options() });
        let connection = client.any_broker().await.unwrap();
        clients.push((client, connection));
    }
    while started.elapsed() < lifetime.mul_f64(2.2) {
        for (client, first) in &clients {
            client.metadata(Some(&["t"]), false).await.unwrap();
            let now = client.any_broker().await.unwrap();
            assert!(std::sync::Arc::ptr_eq(first, &now), "another connection was made");
        }
    }
}

/// L18
#[tokio::test]
async fn a_metadata_answer_may_take_its_time_and_no_more() {
    let ground = ground(false, None).await;
    let timeout = Duration::from_millis(200);
    let client = Client::new(ClientOptions { metadata_request_timeout: timeout, ..ground.options() });
    client.metadata(Some(&["t"]), false).await.unwrap();
    ground.kafka.faults().delay(Match::api(ApiKey::Metadata), Duration::from_mins(1), 1);
    let started = Instant::now();
    let error = client.metadata(Some(&["t"]), false).await.unwrap_err();
    assert!(matches!(&error, Error::Timeout { after, .. } if *after == timeout), "{error}");
    assert!(started.elapsed() < Duration::from_secs(30));
}

#[tokio::test]
async fn a_topic_is_not_asked_for_again_sooner_than_configured() {
    let ground = ground(false, None).await;
    let interval = Duration::from_millis(300);
    let client = Client::new(ClientOptions { min_metadata_refresh_interval: interval, ..ground.options() });
    let started = Instant::now();
    for _ in 0..3 {
        client.refresh("t", false).await.unwrap();
    }
    assert!(started.elapsed() >= 2 * interval, "{:?}", started.elapsed());
}
