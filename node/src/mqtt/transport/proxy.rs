//! The PROXY protocol, versions 1 and 2: a header with which a load balancer in front of a listener tells
//! who the client is.
//!
//! Invariants:
//! * Exactly the header is taken from the socket: what follows it is the client's.
//! * No more is read than a header can be long, whatever it declares: [`LONGEST_V1`], [`LONGEST_V2`].
//!
//! A listener that expects a header refuses a connection without one: a client that could leave it out could
//! also forge an address. TLVs are passed over, except for what the balancer says of a client's certificate.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ppp::{v1, v2};
use tokio::{io::AsyncReadExt, net::TcpStream};

use super::ClientCertificate;

/// Bytes of the longest header of version 1, its end of line included (section 2.1 of the specification).
const LONGEST_V1: usize = 107;

/// Bytes of the longest header of version 2 that is taken. Addresses take at most 216; balancers add a few
/// TLVs, the certificate's name among them.
const LONGEST_V2: usize = 2048;

/// Bytes of a version 2 header before addresses and TLVs.
const FIXED_V2: usize = 16;

/// Why there is no header.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The connection broke.
    #[error("connection lost before its PROXY protocol header: {0}")]
    Io(#[from] io::Error),
    /// Something else came.
    #[error("no PROXY protocol header, which this listener expects of every connection")]
    Missing,
    /// It began as one.
    #[error("wrong PROXY protocol header: {0}")]
    Wrong(Box<str>),
}

/// Content of the header.
#[derive(Debug, PartialEq, Eq, Default)]
pub(crate) struct Told {
    /// The client's address; none: the connection is the proxy's own (a health check), or it does not know.
    pub(crate) address: Option<SocketAddr>,
    /// The certificate that the client proved to own towards the proxy.
    pub(crate) certificate: Option<Arc<ClientCertificate>>,
}

/// How far a header has come.
#[derive(Debug, PartialEq, Eq)]
enum Length {
    /// It is so long.
    Known(usize),
    /// Unknown; more has to come.
    Unknown,
}

/// Reads the header and nothing behind it.
pub(crate) async fn read(socket: &mut TcpStream) -> Result<Told, Error> {
    let mut header = Vec::new();
    let mut ahead = [0; LONGEST_V2];
    loop {
        // Look first, then take what belongs to the header.
        let seen = socket.peek(&mut ahead).await?;
        if seen == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let known = header.len();
        header.extend_from_slice(ahead.get(..seen).unwrap_or_default());
        let take = match length(&header)? {
            Length::Known(length) => {
                header.truncate(length);
                header.len() - known
            }
            Length::Unknown => seen,
        };
        let complete = length(&header)? == Length::Known(header.len());
        socket.read_exact(ahead.get_mut(..take).unwrap_or_default()).await?;
        if complete {
            return parse(&header);
        }
    }
}

/// How long the header is that begins so, as far as that is known.
fn length(header: &[u8]) -> Result<Length, Error> {
    const V1: &[u8] = b"PROXY ";
    let signature = v2::PROTOCOL_PREFIX;
    if header.starts_with(signature) {
        let Some(declared) = header.get(14..FIXED_V2) else { return Ok(Length::Unknown) };
        let declared = declared.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        if FIXED_V2 + declared > LONGEST_V2 {
            return Err(Error::Wrong(format!("{declared} bytes are too many").into()));
        }
        return Ok(Length::Known(FIXED_V2 + declared));
    }
    if header.starts_with(V1) {
        let line = header.get(..LONGEST_V1).unwrap_or(header);
        return match line_end(line) {
            Some(end) => Ok(Length::Known(end + 1)),
            None if header.len() >= LONGEST_V1 => {
                Err(Error::Wrong("its line does not end within 107 bytes".into()))
            }
            None => Ok(Length::Unknown),
        };
    }
    if signature.starts_with(header) || V1.starts_with(header) {
        return Ok(Length::Unknown);
    }
    Err(Error::Missing)
}

fn line_end(line: &[u8]) -> Option<usize> {
    line.iter().position(|byte| *byte == b'\n')
}

fn parse(header: &[u8]) -> Result<Told, Error> {
    if header.starts_with(v2::PROTOCOL_PREFIX) {
        let header = v2::Header::try_from(header).map_err(|error| Error::Wrong(error.to_string().into()))?;
        if header.command == v2::Command::Local {
            return Ok(Told::default());
        }
        let address = match &header.addresses {
            v2::Addresses::IPv4(ip) => Some(SocketAddr::new(IpAddr::V4(ip.source_address), ip.source_port)),
            v2::Addresses::IPv6(ip) => Some(SocketAddr::new(IpAddr::V6(ip.source_address), ip.source_port)),
            v2::Addresses::Unix(_) | v2::Addresses::Unspecified => None,
        };
        return Ok(Told { address, certificate: certificate(header.tlv_bytes()) });
    }
    let header = v1::Header::try_from(header).map_err(|error| Error::Wrong(error.to_string().into()))?;
    let address = match header.addresses {
        v1::Addresses::Tcp4(ip) => Some(SocketAddr::new(IpAddr::V4(ip.source_address), ip.source_port)),
        v1::Addresses::Tcp6(ip) => Some(SocketAddr::new(IpAddr::V6(ip.source_address), ip.source_port)),
        v1::Addresses::Unknown => None,
    };
    Ok(Told { address, certificate: None })
}

/// The common name in a PP2_TYPE_SSL TLV, where the proxy has verified the certificate (section 2.2.6).
fn certificate(tlvs: &[u8]) -> Option<Arc<ClientCertificate>> {
    const SSL: u8 = 0x20;
    const COMMON_NAME: u8 = 0x22;
    /// PP2_CLIENT_CERT_CONN or PP2_CLIENT_CERT_SESS.
    const PRESENTED: u8 = 0x02 | 0x04;
    let ssl = tlv(tlvs, SSL)?;
    let (presented, verified) = (ssl.first()? & PRESENTED != 0, ssl.get(1..5)? == [0; 4]);
    if !presented || !verified {
        return None;
    }
    let name = std::str::from_utf8(tlv(ssl.get(5..)?, COMMON_NAME)?).ok()?;
    let certificate =
        ClientCertificate { common_name: Some(name.into()), subject: format!("CN={name}").into() };
    Some(Arc::new(certificate))
}

/// The value of the first TLV of a type.
fn tlv(mut tlvs: &[u8], wanted: u8) -> Option<&[u8]> {
    while let [kind, high, low, rest @ ..] = tlvs {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let value = rest.get(..length)?;
        if *kind == wanted {
            return Some(value);
        }
        tlvs = rest.get(length..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    use super::*;

    fn v2_header(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut header = v2::PROTOCOL_PREFIX.to_vec();
        header.extend([command, family]);
        header.extend((body.len() as u16).to_be_bytes());
        header.extend(body);
        header
    }

    const IPV4: [u8; 12] = [192, 0, 2, 7, 10, 0, 0, 1, 0x30, 0x39, 0x07, 0x5B];

    /// Sends `input` byte by byte or at once, and says what was read and what is left in the socket.
    async fn read_from(input: &[u8], at_once: bool) -> (Result<Told, Error>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.set_nodelay(true).unwrap();
        let (mut socket, _) = listener.accept().await.unwrap();
        let input = input.to_vec();
        let sender = tokio::spawn(async move {
            if at_once {
                client.write_all(&input).await.unwrap();
            } else {
                for byte in input {
                    client.write_all(&[byte]).await.unwrap();
                    tokio::task::yield_now().await;
                }
            }
        });
        let told = read(&mut socket).await;
        sender.await.unwrap();
        let mut rest = Vec::new();
        if told.is_ok() {
            socket.read_to_end(&mut rest).await.unwrap();
        }
        (told, rest)
    }

    #[tokio::test]
    async fn a_header_is_taken_and_nothing_behind_it() {
        let ipv6 = {
            let mut body = [0; 36];
            body[15] = 1;
            body[32..34].copy_from_slice(&[0x04, 0xD2]);
            body
        };
        let with_tlvs = [&IPV4[..], &[0x04, 0, 3, 1, 2, 3], &[0x05, 0, 0]].concat();
        let cases: [(Vec<u8>, Option<&str>); 8] = [
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 12345 1883\r\n".to_vec(), Some("192.0.2.7:12345")),
            (b"PROXY TCP6 ::1 ::2 1234 1883\r\n".to_vec(), Some("[::1]:1234")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), None),
            (v2_header(0x21, 0x11, &IPV4), Some("192.0.2.7:12345")),
            (v2_header(0x21, 0x21, &ipv6), Some("[::1]:1234")),
            (v2_header(0x21, 0x11, &with_tlvs), Some("192.0.2.7:12345")),
            // LOCAL: the proxy itself, whatever addresses it names.
            (v2_header(0x20, 0x11, &IPV4), None),
        ];
        for (header, address) in cases {
            for at_once in [true, false] {
                for follows in [&b"\x10\x0c\x00\x04MQTT"[..], b"", b"PROXY TCP4 1.1.1.1 2.2.2.2 3 4\r\n"] {
                    let (told, rest) = read_from(&[&header, follows].concat(), at_once).await;
                    let shown = String::from_utf8_lossy(&header).into_owned();
                    assert_eq!(told.unwrap().address.map(|a| a.to_string()).as_deref(), address, "{shown}");
                    assert_eq!(rest, follows, "{shown}");
                }
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        let long = [b"PROXY TCP4 ".to_vec(), vec![b'1'; 200]].concat();
        let cases: [(&[u8], &str); 9] = [
            (b"\x10\x0c\x00\x04MQTT\x04\x00\x00\x00\x00\x00", "no PROXY protocol header"),
            (b"\r\n\r\nGET / HTTP/1.1", "no PROXY protocol header"),
            (b"PROXX", "no PROXY protocol header"),
            (b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n", "wrong PROXY"),
            (b"PROXY TCP4 1.2.3.4.5 1.2.3.4 1 2\r\n", "wrong PROXY"),
            (b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n", "wrong PROXY"),
            (&long, "within 107 bytes"),
            (&v2_header(0x31, 0x11, &IPV4), "wrong PROXY"),
            (&v2_header(0x21, 0x11, &IPV4[..8]), "wrong PROXY"),
        ];
        for (input, expected) in cases {
            for at_once in [true, false] {
                let error = read_from(input, at_once).await.0.unwrap_err().to_string();
                assert!(error.contains(expected), "{}: {error}", String::from_utf8_lossy(input));
            }
        }
        let mut huge = v2_header(0x21, 0x11, &IPV4);
        huge[14..16].copy_from_slice(&[0xFF, 0xFF]);
        assert!(read_from(&huge, true).await.0.unwrap_err().to_string().contains("65535 bytes are too many"));
        let cut = read_from(&v2_header(0x21, 0x11, &IPV4)[..20], true).await;
        assert!(matches!(cut.0, Err(Error::Io(_))));
    }

    #[tokio::test]
    async fn a_certificate_counts_only_if_the_proxy_has_verified_it() {
        let header = |flags: u8, verify: u8| {
            let mut body = IPV4.to_vec();
            let name = b"meter-17";
            let sub = [&[0x21, 0, 7][..], b"TLSv1.3", &[0x22, 0, name.len() as u8], name].concat();
            body.extend([0x20, 0, 5 + sub.len() as u8, flags, 0, 0, 0, verify]);
            body.extend(sub);
            v2_header(0x21, 0x11, &body)
        };
        let told = read_from(&header(0x07, 0), true).await.0.unwrap();
        assert_eq!(told.certificate.unwrap().common_name.as_deref(), Some("meter-17"));
        for (flags, verify) in [(0x01, 0), (0x07, 1)] {
            let told = read_from(&header(flags, verify), true).await.0.unwrap();
            assert_eq!(told.certificate, None);
        }
        assert_eq!(tlv(&[0x22, 0, 9, 1], 0x22), None);
    }
}
