//! Good and bad certificates on both sides, over loopback with a server that speaks TLS as rustls does.

use std::net::SocketAddr;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::dev_kafka;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

fn authority(name: &str) -> Authority {
    CertifiedIssuer::self_signed(authority_params(name), KeyPair::generate().unwrap()).unwrap()
}

fn intermediate(name: &str, issuer: &Authority) -> Authority {
    CertifiedIssuer::signed_by(authority_params(name), KeyPair::generate().unwrap(), issuer).unwrap()
}

fn for_hosts(hosts: &[&str]) -> CertificateParams {
    let mut params = named("a broker");
    params.subject_alt_names = hosts
        .iter()
        .map(|host| match host.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName((*host).try_into().unwrap()),
        })
        .collect();
    params
}

/// A certificate and its key, PEM.
fn signed(params: &CertificateParams, issuer: &Authority) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}

fn pem(origin: &str, text: impl Into<Vec<u8>>) -> Pem {
    Pem { origin: origin.into(), text: text.into().into() }
}

fn trusting(authority: &str) -> TlsSettings {
    TlsSettings { authorities: Some(pem("cacertfile ca.pem", authority)), ..TlsSettings::default() }
}

/// A server that answers one line to each connection.
async fn server(tls: dev_kafka::Tls) -> SocketAddr {
    let acceptor = tls.acceptor().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let _ = stream.write_all(b"hello").await;
                let _ = stream.shutdown().await;
            });
        }
    });
    address
}

/// Connects to `host` at the port of `address` and reads what the server says.
async fn say_hello(settings: TlsSettings, host: &str, address: SocketAddr) -> Result<(), String> {
    let tls = Tls::new(settings).map_err(|error| error.to_string())?;
    let stream = TcpStream::connect(address).await.unwrap();
    let has_identity = tls.has_identity();
    let to = Address::new(host, address.port());
    let mut stream = tls.connect(stream, &to).await.map_err(|error| error.to_string())?;
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .await
        .map_err(|error| messages::broken(&error, has_identity).unwrap_or_else(|| error.to_string()))?;
    assert_eq!(text, "hello");
    Ok(())
}

fn serving((certificate, key): (String, String)) -> dev_kafka::Tls {
    dev_kafka::Tls { certificate, key, ..dev_kafka::Tls::default() }
}

#[tokio::test]
async fn a_certificate_of_a_trusted_authority_for_the_host_is_taken() {
    let ca = authority("our authority");
    let address =
        server(serving(signed(&for_hosts(&["localhost", "127.0.0.1", "*.example.org"]), &ca))).await;
    for host in ["localhost", "127.0.0.1", "kafka-1.example.org", "LOCALHOST", "localhost."] {
        say_hello(trusting(&ca.pem()), host, address).await.unwrap();
    }
    for (tls13, tls12) in [(true, false), (false, true)] {
        say_hello(TlsSettings { tls13, tls12, ..trusting(&ca.pem()) }, "localhost", address).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_brokers_certificate_is_said() {
    let ca = authority("our authority");
    let good = for_hosts(&["kafka.example.org", "10.1.2.3"]);
    let mut expired = good.clone();
    expired.not_after = rcgen::date_time_ymd(2020, 1, 2);
    let mut future = good.clone();
    future.not_before = rcgen::date_time_ymd(2999, 1, 2);
    let mut for_clients = good.clone();
    for_clients.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    for (params, issuer, expected) in [
        (&good, &ca, &["is for kafka.example.org, 10.1.2.3, not for localhost", "advertised.listeners"][..]),
        (&for_hosts(&[]), &ca, &["names no host", "localhost should be"]),
        (&expired, &ca, &["expired at Jan  2", "2020", "renew it"]),
        (&future, &ca, &["valid from Jan  2", "clock"]),
        (&for_clients, &ca, &["serverAuth"]),
        (
            &good,
            &authority("another authority"),
            &["signed by CN=another authority", "cacertfile ca.pem", "ssl.cacertfile"],
        ),
        (&good, &authority("our authority"), &["not its signature"]),
    ] {
        let address = server(serving(signed(params, issuer))).await;
        let error = say_hello(trusting(&ca.pem()), "localhost", address).await.unwrap_err();
        for expected in expected {
            assert!(error.contains(expected), "{expected:?} is not in {error:?}");
        }
        // Whoever does not ask for a check gets none.
        say_hello(TlsSettings { verify: false, ..TlsSettings::default() }, "localhost", address)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn another_name_than_the_hosts_may_be_looked_for_or_none() {
    let ca = authority("our authority");
    let address = server(serving(signed(&for_hosts(&["kafka.example.org"]), &ca))).await;
    let with = |server_name| TlsSettings { server_name, ..trusting(&ca.pem()) };
    say_hello(with(ServerName::Fixed("kafka.example.org".into())), "127.0.0.1", address).await.unwrap();
    say_hello(with(ServerName::Unchecked), "127.0.0.1", address).await.unwrap();
    assert!(say_hello(with(ServerName::Fixed("b".into())), "kafka.example.org", address).await.is_err());
    let stranger = TlsSettings { server_name: ServerName::Unchecked, ..trusting(&authority("x").pem()) };
    assert!(say_hello(stranger, "127.0.0.1", address).await.is_err());
}

#[tokio::test]
async fn a_chain_is_followed_up_to_its_depth() {
    let root = authority("root");
    let first = intermediate("first", &root);
    let second = intermediate("second", &first);
    let (leaf, key) = signed(&for_hosts(&["localhost"]), &second);
    let chain = format!("{leaf}{}{}", second.pem(), first.pem());
    let address = server(serving((chain, key.clone()))).await;
    for depth in [2, 10] {
        say_hello(TlsSettings { depth, ..trusting(&root.pem()) }, "localhost", address).await.unwrap();
    }
    let error =
        say_hello(TlsSettings { depth: 1, ..trusting(&root.pem()) }, "localhost", address).await.unwrap_err();
    assert!(error.contains("ssl.depth = 1"), "{error}");
    // An authority half-way up may be the trusted one.
    say_hello(TlsSettings { depth: 0, ..trusting(&second.pem()) }, "localhost", address).await.unwrap();
    // The broker keeps the certificates in between to itself.
    let address = server(serving((leaf, key))).await;
    let error = say_hello(trusting(&root.pem()), "localhost", address).await.unwrap_err();
    assert!(error.contains("the certificates in between"), "{error}");
}

#[tokio::test]
async fn a_self_signed_certificate_is_taken_where_it_is_listed_itself() {
    for is_authority in [false, true] {
        let key = KeyPair::generate().unwrap();
        let mut params = for_hosts(&["localhost"]);
        if is_authority {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        let own = params.self_signed(&key).unwrap().pem();
        let address = server(serving((own.clone(), key.serialize_pem()))).await;
        say_hello(trusting(&own), "localhost", address).await.unwrap();
        let error = say_hello(trusting(&own), "127.0.0.1", address).await.unwrap_err();
        assert!(error.contains("is for localhost, not for 127.0.0.1"), "{error}");
        let error = say_hello(trusting(&authority("x").pem()), "localhost", address).await.unwrap_err();
        assert!(error.contains(if is_authority { "that of an authority" } else { "self-signed" }), "{error}");

        params.not_after = rcgen::date_time_ymd(2020, 1, 2);
        let own = params.self_signed(&key).unwrap().pem();
        let address = server(serving((own.clone(), key.serialize_pem()))).await;
        let error = say_hello(trusting(&own), "localhost", address).await.unwrap_err();
        assert!(error.contains("expired at"), "{error}");
    }
}

#[tokio::test]
async fn a_client_certificate_is_shown_and_a_refusal_is_explained() {
    let (brokers, clients) = (authority("brokers"), authority("clients"));
    for only_tls12 in [false, true] {
        let tls = dev_kafka::Tls {
            client_authorities: Some(clients.pem()),
            only_tls12,
            ..serving(signed(&for_hosts(&["localhost"]), &brokers))
        };
        let address = server(tls).await;
        let with = |issuer: &Authority| {
            let (certificate, key) = signed(&named("a bridge"), issuer);
            let identity = Some((pem("certfile c", certificate), pem("keyfile k", key)));
            TlsSettings { identity, ..trusting(&brokers.pem()) }
        };
        say_hello(with(&clients), "localhost", address).await.unwrap();
        let error = say_hello(with(&authority("clients")), "localhost", address).await.unwrap_err();
        assert!(error.contains("the broker refused our certificate"), "{error}");
        let error = say_hello(trusting(&brokers.pem()), "localhost", address).await.unwrap_err();
        assert!(error.contains("set ssl.certfile and ssl.keyfile"), "{error}");
    }
}

#[tokio::test]
async fn no_common_version_or_cipher_is_said() {
    let ca = authority("our authority");
    let tls = dev_kafka::Tls { only_tls12: true, ..serving(signed(&for_hosts(&["localhost"]), &ca)) };
    let address = server(tls).await;
    // The key is an ECDSA one: the suites for RSA cannot be used with it.
    let rsa_only = TlsSettings { ciphers: vec!["ECDHE-RSA-AES256-GCM-SHA384".into()], ..trusting(&ca.pem()) };
    for settings in [TlsSettings { tls12: false, ..trusting(&ca.pem()) }, rsa_only] {
        let error = say_hello(settings, "localhost", address).await.unwrap_err();
        assert!(error.contains("no common version or cipher suite"), "{error}");
    }
    let one = TlsSettings {
        ciphers: vec!["AES128-SHA".into(), "ecdhe-ecdsa-aes256-gcm-sha384".into()],
        ..trusting(&ca.pem())
    };
    say_hello(one, "localhost", address).await.unwrap();
}

#[tokio::test]
async fn a_port_without_tls_is_recognised() {
    for answer in [&b""[..], b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\0\0\x0a\0\0\0\0\0\0\0\0\0\0"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_exact(&mut [0; 16]).await.unwrap();
            stream.write_all(answer).await.unwrap();
        });
        let error = say_hello(trusting(&authority("x").pem()), "localhost", address).await.unwrap_err();
        assert!(error.contains("does this port speak TLS"), "{answer:?}: {error}");
    }
}

#[test]
fn what_is_wrong_with_our_own_files_is_found_before_anything_is_connected() {
    let ca = authority("ca");
    let (certificate, key) = signed(&named("us"), &ca);
    let (_, other_key) = signed(&named("them"), &ca);
    let identity = |certificate: &str, key: &str| TlsSettings {
        identity: Some((pem("certfile c.pem", certificate), pem("keyfile k.pem", key))),
        ..trusting(&ca.pem())
    };
    let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: x\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    for (settings, expected) in [
        (trusting(""), "cacertfile ca.pem has no certificate"),
        (trusting(&key), "cacertfile ca.pem has no certificate"),
        (
            trusting("-----BEGIN CERTIFICATE-----\n%\n-----END CERTIFICATE-----\n"),
            "is not PEM as it should be",
        ),
        (
            trusting("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            "has 1 certificates that cannot be read",
        ),
        (
            identity(&certificate, &other_key),
            "the key in keyfile k.pem is not that of the certificate in certfile c.pem",
        ),
        (identity(&certificate, &certificate), "keyfile k.pem has no private key, only a certificate"),
        (identity(&certificate, ""), "keyfile k.pem has no private key:"),
        (identity(&key, &key), "certfile c.pem has no certificate"),
        (identity(&certificate, old), "openssl pkcs8 -topk8"),
        (identity(&certificate, include_str!("protected_key.pem")), "set ssl.password"),
        (
            TlsSettings { ciphers: vec!["AES128-SHA".into()], ..trusting(&ca.pem()) },
            "no cipher suite in `ciphers`",
        ),
    ] {
        let error = Tls::new(settings).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    // Not looked at, but read.
    assert!(Tls::new(TlsSettings { verify: false, ..trusting("") }).is_err());
}

#[test]
fn a_key_under_a_password_is_opened_with_it() {
    let protected = pem("keyfile k.pem", include_str!("protected_key.pem"));
    let opened = material::private_key(&protected, Some(&Secret::new("lion"))).unwrap();
    let key = KeyPair::try_from(opened.secret_der()).unwrap();
    assert!(!key.public_key_pem().is_empty());
    let error = material::private_key(&protected, Some(&Secret::new("tiger"))).unwrap_err().to_string();
    assert!(error.contains("cannot be opened with ssl.password"), "{error}");
}

#[test]
fn names_of_cipher_suites_are_those_of_openssl_and_of_iana() {
    for name in cipher_names() {
        assert!(cipher_version(name).is_some(), "{name}");
    }
    assert_eq!(cipher_names().count(), ring::ALL_CIPHER_SUITES.len());
    let pairs = [
        ("TLS_AES_128_GCM_SHA256", CipherVersion::Tls13),
        ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", CipherVersion::Tls12),
    ];
    for (iana, version) in pairs {
        assert_eq!(cipher_version(iana), Some(version));
    }
    assert_eq!(cipher_version("RC4-MD5"), None);
}

#[test]
fn equal_settings_are_equal_and_a_key_is_never_printed() {
    let ca = authority("ca");
    let (certificate, key) = signed(&named("us"), &ca);
    let settings = TlsSettings {
        identity: Some((pem("certfile (inline)", certificate), pem("keyfile (inline)", key.clone()))),
        ..trusting(&ca.pem())
    };
    let tls = Tls::new(settings.clone()).unwrap();
    assert!(tls == Tls::new(settings.clone()).unwrap());
    assert!(tls != Tls::new(TlsSettings { depth: 3, ..settings }).unwrap());
    let line = key.lines().nth(1).unwrap();
    assert!(!format!("{tls:?}").contains(line));
}
