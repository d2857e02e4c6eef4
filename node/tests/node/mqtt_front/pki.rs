//! Certificates made for a test, and TLS and WebSocket clients of other hands: rustls' client half,
//! tungstenite.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use causeway::mqtt::{CertificateFiles, ListenerOptions, TlsOptions, WebSocketOptions};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SignatureAlgorithm,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore, SupportedProtocolVersion,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
        sign::{CertifiedKey, SingleCertAndKey},
        version::{TLS12, TLS13},
    },
};

pub const BOTH: &[&SupportedProtocolVersion] = &[&TLS12, &TLS13];

/// An authority, and the folder for what it signs.
pub struct Authority {
    pub folder: TempDir,
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key, in memory and in files.
pub struct Issued {
    pub certificate: String,
    pub key: String,
    pub files: CertificateFiles,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Test Authority");
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), certificate.pem()).unwrap();
        Self { folder, certificate, issuer: Issuer::new(params, key) }
    }

    pub fn file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A server's certificate for host names, in `NAME.pem` and `NAME.key`.
    pub fn server(&self, name: &str, hosts: &[&str]) -> Issued {
        self.server_with(name, hosts, &rcgen::PKCS_ECDSA_P256_SHA256, |_| {})
    }

    pub fn server_with(
        &self,
        name: &str,
        hosts: &[&str],
        algorithm: &'static SignatureAlgorithm,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Issued {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        change(&mut params);
        self.issue(name, &params, algorithm)
    }

    /// A client's certificate.
    pub fn client(&self, common_name: &str) -> Issued {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Test");
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(common_name, &params, &rcgen::PKCS_ECDSA_P256_SHA256)
    }

    fn issue(
        &self,
        name: &str,
        params: &CertificateParams,
        algorithm: &'static SignatureAlgorithm,
    ) -> Issued {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = CertificateFiles {
            certificate: self.folder.path().join(format!("{name}.pem")),
            key: self.folder.path().join(format!("{name}.key")),
        };
        let issued = Issued { certificate: certificate.pem(), key: key.serialize_pem(), files };
        issued.write(&issued.files);
        issued
    }

    /// A client that trusts this authority and shows `own`.
    pub fn trusting(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        own: Option<&Issued>,
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).unwrap();
        client_config(roots, versions, own)
    }
}

impl Issued {
    /// Writes it where another stands.
    pub fn write(&self, to: &CertificateFiles) {
        std::fs::write(&to.certificate, &self.certificate).unwrap();
        std::fs::write(&to.key, &self.key).unwrap();
    }

    pub fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()
    }
}

pub fn client_config(
    roots: RootCertStore,
    versions: &[&'static SupportedProtocolVersion],
    own: Option<&Issued>,
) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
            let key = ring::sign::any_supported_type(&key).unwrap();
            // Unlike `with_client_auth_cert`, this takes certificates of version 1 as well.
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(
                vec![own.der()],
                key,
            ))))
        }
    }
}

/// A TLS listener.
pub fn tls_listener(tls: TlsOptions) -> ListenerOptions {
    ListenerOptions { tls: Some(tls), ..ListenerOptions::new("tls", "127.0.0.1:0".parse().unwrap()) }
}

/// A WebSocket listener.
pub fn ws_listener() -> ListenerOptions {
    let websocket = Some(WebSocketOptions::default());
    ListenerOptions { websocket, ..ListenerOptions::new("ws", "127.0.0.1:0".parse().unwrap()) }
}

/// A TLS connection to `host`, which is at `address`.
pub async fn tls_to(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
    host: &'static str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    TlsConnector::from(config.clone()).connect(ServerName::try_from(host).unwrap(), socket).await
}

/// Opens a WebSocket over a stream, and makes a byte stream of it: what is written goes out as one binary
/// message, what comes in is read as bytes.
pub async fn websocket_over<S>(stream: S) -> DuplexStream
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    use futures_util::{SinkExt, StreamExt};
    use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

    let mut request = "ws://localhost/mqtt".into_client_request().unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", "mqtt".parse().unwrap());
    let (mut websocket, response) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    assert_eq!(response.headers()["Sec-WebSocket-Protocol"], "mqtt");
    let (near, mut far) = tokio::io::duplex(1 << 20);
    tokio::spawn(async move {
        let mut buffer = vec![0; 64 << 10];
        loop {
            tokio::select! {
                message = websocket.next() => match message {
                    Some(Ok(Message::Binary(data))) => {
                        if far.write_all(&data).await.is_err() {
                            return;
                        }
                    }
                    Some(Ok(Message::Close(frame))) => {
                        assert_eq!(frame.map(|frame| u16::from(frame.code)), Some(1000));
                        let _ = websocket.flush().await;
                        return;
                    }
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return,
                },
                count = far.read(&mut buffer) => match count {
                    Ok(0) | Err(_) => return,
                    Ok(count) => {
                        let data = buffer[..count].to_vec();
                        if websocket.send(Message::Binary(data.into())).await.is_err() {
                            return;
                        }
                    }
                },
            }
        }
    });
    near
}
