//! The HTTP request that opens a WebSocket (RFC 6455, section 4.2; MQTT-5.0 section 6).
//!
//! Invariants:
//! * A request head is at most [`LONGEST_HEAD`] bytes; bodies are not read.
//! * Who is refused is told why, in words, by the HTTP status that fits.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::tungstenite::{
    self,
    handshake::{
        machine::TryParse,
        server::{Request, create_response, write_response},
    },
    http::{HeaderMap, HeaderValue},
};

use super::super::options::WebSocketOptions;

/// Bytes of a request head that are taken: cookies of a browser can be large.
const LONGEST_HEAD: usize = 16 << 10;

/// Names of MQTT as a subprotocol, the first for all versions (MQTT-6.0.0-3), the second used with 3.1.
const SUBPROTOCOLS: [&str; 2] = ["mqtt", "mqttv3.1"];

/// Why no WebSocket was opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The connection broke.
    #[error("connection lost before its WebSocket request was complete: {0}")]
    Io(#[from] io::Error),
    /// Refused with a status.
    #[error("WebSocket request refused with {status}: {why}")]
    Refused {
        /// Status of the answer.
        status: &'static str,
        /// Its body.
        why: Box<str>,
    },
}

/// Content of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Upgraded {
    /// Bytes behind the request: the first frames of a client that does not wait.
    pub(crate) early: Vec<u8>,
    /// The client's address as a trusted proxy tells it.
    pub(crate) forwarded: Option<SocketAddr>,
}

/// Reads the request and answers it, well or with an error.
pub(crate) async fn upgrade<S>(
    stream: &mut S,
    options: &WebSocketOptions,
    address: SocketAddr,
) -> Result<Upgraded, Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut head = Vec::new();
    let result = loop {
        let mut received = [0; 2048];
        let count = stream.read(&mut received).await?;
        if count == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        // The end of the head may stand across two reads.
        let from = head.len().saturating_sub(3);
        head.extend_from_slice(received.get(..count).unwrap_or_default());
        let end = head.get(from..).unwrap_or_default().windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(end) = end {
            let early = head.split_off(from + end + 4);
            break answer(&head, options, address).map(|(answer, forwarded)| (answer, early, forwarded));
        }
        if head.len() > LONGEST_HEAD {
            break refuse("431 Request Header Fields Too Large", "the request has more than 16 KB");
        }
    };
    match result {
        Ok((answer, early, forwarded)) => {
            stream.write_all(&answer).await?;
            stream.flush().await?;
            Ok(Upgraded { early, forwarded })
        }
        Err(error) => {
            if let Error::Refused { status, why } = &error {
                let answer = format!(
                    "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nSec-WebSocket-Version: 13\r\n\
                     Connection: close\r\n\r\n{why}\n",
                    why.len() + 1
                );
                stream.write_all(answer.as_bytes()).await?;
                stream.flush().await?;
            }
            Err(error)
        }
    }
}

fn refuse<T>(status: &'static str, why: impl Into<Box<str>>) -> Result<T, Error> {
    Err(Error::Refused { status, why: why.into() })
}

/// The answer to a request head, and the address that a proxy has forwarded.
fn answer(
    head: &[u8],
    options: &WebSocketOptions,
    address: SocketAddr,
) -> Result<(Vec<u8>, Option<SocketAddr>), Error> {
    let request = match Request::try_parse(head) {
        Ok(Some((_, request))) => request,
        Ok(None) => return refuse("400 Bad Request", "not an HTTP request"),
        Err(tungstenite::Error::Protocol(error)) => return refuse_upgrade(&error),
        Err(error) => return refuse("400 Bad Request", format!("not an HTTP request: {error}")),
    };
    // Clients join paths with one slash more or less.
    let path = request.uri().path();
    if path != options.path && path.strip_suffix('/') != Some(options.path.trim_end_matches('/')) {
        let why = format!("there is nothing here; MQTT over WebSocket is at {}", options.path);
        return refuse("404 Not Found", why);
    }
    let headers = request.headers();
    if !options.origins.is_empty() {
        let origin = headers.get("Origin").and_then(|origin| origin.to_str().ok());
        if !origin.is_some_and(|origin| options.origins.iter().any(|allowed| allowed == origin)) {
            return refuse("403 Forbidden", "pages of this origin may not connect");
        }
    }
    let mut response = match create_response(&request) {
        Ok(response) => response,
        Err(tungstenite::Error::Protocol(error)) => return refuse_upgrade(&error),
        Err(error) => return refuse("400 Bad Request", error.to_string()),
    };
    match subprotocol(headers) {
        Some(name) => {
            response.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static(name));
        }
        None if options.needs_subprotocol => {
            return refuse(
                "400 Bad Request",
                "the header Sec-WebSocket-Protocol has to offer the subprotocol mqtt",
            );
        }
        None => {}
    }
    let mut answer = Vec::new();
    if let Err(error) = write_response(&mut answer, &response) {
        return refuse("400 Bad Request", error.to_string());
    }
    let forwarded = options.address_header.as_deref().and_then(|header| forwarded(headers, header, address));
    Ok((answer, forwarded))
}

fn refuse_upgrade<T>(error: &tungstenite::error::ProtocolError) -> Result<T, Error> {
    use tungstenite::error::ProtocolError as P;
    let status = match error {
        P::WrongHttpMethod => "405 Method Not Allowed",
        P::MissingConnectionUpgradeHeader
        | P::MissingUpgradeWebSocketHeader
        | P::MissingSecWebSocketVersionHeader => "426 Upgrade Required",
        _ => "400 Bad Request",
    };
    refuse(status, format!("a WebSocket client (RFC 6455) is expected here: {error}"))
}

/// The first subprotocol offered that means MQTT.
fn subprotocol(headers: &HeaderMap) -> Option<&'static str> {
    let offers = headers.get_all("Sec-WebSocket-Protocol").iter();
    let mut names = offers.filter_map(|offer| offer.to_str().ok()).flat_map(|offer| offer.split(','));
    names.find_map(|name| SUBPROTOCOLS.into_iter().find(|known| name.trim().eq_ignore_ascii_case(known)))
}

/// The client's address in a header such as `X-Forwarded-For`: the last one, which the proxy next to us has
/// added; those before it are what it was told itself.
fn forwarded(headers: &HeaderMap, header: &str, address: SocketAddr) -> Option<SocketAddr> {
    let last = headers.get_all(header).iter().next_back()?.to_str().ok()?.rsplit(',').next()?.trim();
    if let Ok(with_port) = last.parse::<SocketAddr>() {
        return Some(with_port);
    }
    let ip: IpAddr = last.trim_start_matches('[').trim_end_matches(']').parse().ok()?;
    Some(SocketAddr::new(ip, address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> WebSocketOptions {
        WebSocketOptions::default()
    }

    fn address() -> SocketAddr {
        "127.0.0.1:5000".parse().unwrap()
    }

    const GOOD: &str = "GET /mqtt HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: chat, mqtt\r\n\r\n";

    async fn ask(request: &[u8], options: &WebSocketOptions) -> (Result<Upgraded, Error>, String) {
        let (mut client, mut server) = tokio::io::duplex(1 << 20);
        client.write_all(request).await.unwrap();
        client.shutdown().await.unwrap();
        let result = upgrade(&mut server, options, address()).await;
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        (result, answer)
    }

    #[tokio::test]
    async fn a_request_for_mqtt_is_answered_and_what_follows_is_kept() {
        let (upgraded, answer) = ask(format!("{GOOD}early").as_bytes(), &options()).await;
        assert_eq!(upgraded.unwrap(), Upgraded { early: b"early".to_vec(), forwarded: None });
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        // The key and its answer are those of RFC 6455 1.3.
        assert!(
            answer.to_ascii_lowercase().contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="),
            "{answer}"
        );
        assert!(answer.to_ascii_lowercase().contains("sec-websocket-protocol: mqtt\r\n"), "{answer}");
        let old = GOOD.replace("chat, mqtt", "MQTTv3.1");
        let (upgraded, answer) = ask(old.as_bytes(), &options()).await;
        upgraded.unwrap();
        assert!(answer.to_ascii_lowercase().contains("sec-websocket-protocol: mqttv3.1\r\n"), "{answer}");
    }

    #[tokio::test]
    async fn other_requests_are_refused_with_words() {
        let without =
            |line: &str| GOOD.split_inclusive("\r\n").filter(|l| !l.starts_with(line)).collect::<String>();
        let cases = [
            (GOOD.replace("/mqtt", "/mqttx"), "404", "is at /mqtt"),
            (GOOD.replace("GET", "POST"), "405", "WebSocket client"),
            (without("Sec-WebSocket-Protocol"), "400", "subprotocol mqtt"),
            (GOOD.replace("chat, mqtt", "chat"), "400", "subprotocol mqtt"),
            (without("Upgrade"), "426", "WebSocket client"),
            (without("Connection"), "426", "WebSocket client"),
            (without("Sec-WebSocket-Version"), "426", "WebSocket client"),
            (without("Sec-WebSocket-Key"), "400", "WebSocket client"),
            (GOOD.replace("HTTP/1.1", "HTTP/1.0"), "400", "WebSocket client"),
            ("\x10\x0c\0\x04MQTT\r\n\r\n".to_owned(), "400", "WebSocket client"),
            (GOOD.replace("Host: x", &format!("Host: {}", "x".repeat(20_000))), "431", "16 KB"),
        ];
        for (request, status, why) in cases {
            let (result, answer) = ask(request.as_bytes(), &options()).await;
            assert!(matches!(result, Err(Error::Refused { .. })), "{request}");
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
            assert!(answer.contains(why), "{request}: {answer}");
        }
        let (cut, _) = ask(&GOOD.as_bytes()[..100], &options()).await;
        assert!(matches!(cut, Err(Error::Io(_))));
        let lenient = WebSocketOptions { needs_subprotocol: false, ..options() };
        ask(without("Sec-WebSocket-Protocol").as_bytes(), &lenient).await.0.unwrap();
    }

    #[tokio::test]
    async fn one_slash_behind_the_path_is_the_same_path() {
        let at = |path: &str| WebSocketOptions { path: path.to_owned(), ..options() };
        for (configured, asked, status) in [
            ("/mqtt", "/mqtt/", "101"),
            ("/mqtt", "/mqtt/?token=x", "101"),
            ("/mqtt/", "/mqtt/", "101"),
            ("/", "/", "101"),
            ("/mqtt", "/mqtt//", "404"),
            ("/mqtt", "/mqtt/x", "404"),
            ("/mqtt", "/", "404"),
            ("/", "/mqtt/", "404"),
        ] {
            let request = GOOD.replace("/mqtt", asked);
            let (_, answer) = ask(request.as_bytes(), &at(configured)).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{configured}, {asked}: {answer}");
        }
    }

    #[tokio::test]
    async fn an_origin_counts_where_origins_are_listed() {
        let listed = WebSocketOptions { origins: vec!["https://a.example".to_owned()], ..options() };
        let from = |origin: &str| GOOD.replace("Host: x", &format!("Host: x\r\nOrigin: {origin}"));
        ask(from("https://b.example").as_bytes(), &options()).await.0.unwrap();
        ask(from("https://a.example").as_bytes(), &listed).await.0.unwrap();
        for request in [from("https://b.example"), GOOD.to_owned()] {
            let (result, answer) = ask(request.as_bytes(), &listed).await;
            assert!(result.is_err() && answer.starts_with("HTTP/1.1 403 "), "{answer}");
        }
    }

    #[tokio::test]
    async fn a_forwarded_address_counts_only_where_it_is_configured() {
        let trusting = WebSocketOptions { address_header: Some("x-forwarded-for".to_owned()), ..options() };
        let with = |value: &str| GOOD.replace("Host: x", &format!("Host: x\r\nX-Forwarded-For: {value}"));
        for (value, expected) in [
            ("192.0.2.7", Some("192.0.2.7:5000")),
            ("10.9.9.9, 192.0.2.7", Some("192.0.2.7:5000")),
            ("192.0.2.7:99", Some("192.0.2.7:99")),
            ("2001:db8::1", Some("[2001:db8::1]:5000")),
            ("[2001:db8::1]:7", Some("[2001:db8::1]:7")),
            ("unknown", None),
        ] {
            let told = ask(with(value).as_bytes(), &trusting).await.0.unwrap().forwarded;
            assert_eq!(told.map(|a| a.to_string()).as_deref(), expected, "{value}");
            assert_eq!(ask(with(value).as_bytes(), &options()).await.0.unwrap().forwarded, None);
        }
    }
}
