//! One small HTTP request: what a token endpoint is asked with (RFC 6749 section 4.4).
//!
//! HTTP/1.1 over a connection of its own, no redirects, no compression. Everything that the server sends is
//! bounded: [`MAX_HEAD`], [`MAX_BODY`]; the caller bounds the time.

use std::fmt::Write;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::tls::Tls;
use super::{Address, SocketOptions, transport};

/// Longest status line and headers, bytes.
const MAX_HEAD: usize = 16 * 1024;
/// Longest body, bytes: tokens have a few thousand.
const MAX_BODY: usize = 64 * 1024;
/// Most headers of an answer.
const MAX_HEADERS: usize = 64;

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Url {
    pub(super) address: Address,
    pub(super) https: bool,
    /// Path and query.
    target: Box<str>,
}

impl Url {
    /// Reads `http://HOST[:PORT]/PATH` or `https://...`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("{what}; write https://HOST/PATH or http://HOST:PORT/PATH");
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("not a URL"))?;
        let https = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err(wrong("its scheme is neither http nor https")),
        };
        if !rest.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(wrong("it has characters that cannot stand in a URL"));
        }
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, target) = match rest.find(['/', '?']) {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        let target = if target.starts_with('?') { format!("/{target}") } else { target.to_owned() };
        if authority.contains('@') {
            return Err(wrong("it has a user name in it, which is not used"));
        }
        let default_port = if https { 443 } else { 80 };
        let (host, port) = match authority.strip_prefix('[') {
            Some(v6) => {
                let (host, port) = v6.split_once(']').ok_or_else(|| wrong("a bracket is not closed"))?;
                host.parse::<std::net::Ipv6Addr>()
                    .map_err(|_| wrong("what is in brackets is no IPv6 address"))?;
                (host, port)
            }
            None => authority.find(':').map_or((authority, ""), |at| authority.split_at(at)),
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => default_port,
            Some(number) => {
                number.parse().ok().filter(|port| *port > 0).ok_or_else(|| wrong("its port is no port"))?
            }
            None => return Err(wrong("something stands behind the bracket")),
        };
        if host.is_empty() {
            return Err(wrong("it has no host"));
        }
        Ok(Self { address: Address::new(host, port), https, target: target.into() })
    }

    /// The `Host` header.
    fn host_header(&self) -> String {
        let default_port = if self.https { 443 } else { 80 };
        let whole = self.address.to_string();
        match whole.rsplit_once(':') {
            Some((host, _)) if self.address.port == default_port => host.to_owned(),
            _ => whole,
        }
    }
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

/// Sends a form. `authorization` is the whole value of the header; the caller bounds the time, by `budget`.
pub(super) async fn post_form(
    url: &Url,
    tls: Option<&Tls>,
    authorization: &str,
    form: &str,
    budget: Duration,
) -> Result<Answer, String> {
    let stream = transport::connect(&url.address, &SocketOptions::default(), budget)
        .await
        .map_err(|error| error.to_string())?;
    match tls {
        Some(tls) if url.https => {
            let stream = tls.connect(stream, &url.address).await.map_err(|error| error.to_string())?;
            exchange(stream, url, authorization, form).await
        }
        _ if url.https => Err("https without TLS".to_owned()),
        _ => exchange(stream, url, authorization, form).await,
    }
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    url: &Url,
    authorization: &str,
    form: &str,
) -> Result<Answer, String> {
    let request = format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nAuthorization: {authorization}\r\nAccept: application/json\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{form}",
        url.target,
        url.host_header(),
        form.len(),
    );
    let lost = |error: std::io::Error| format!("connection lost ({error})");
    stream.write_all(request.as_bytes()).await.map_err(lost)?;
    stream.flush().await.map_err(lost)?;

    let mut received = Vec::new();
    let mut head: Option<Head> = None;
    loop {
        if head.is_none() {
            head = parse_head(&mut received)?;
            if head.is_none() && received.len() > MAX_HEAD {
                return Err(format!("the headers of the answer have more than {MAX_HEAD} bytes"));
            }
        }
        if let Some(head) = &head {
            if let Some(body) = head.body.complete(&received)? {
                return Ok(Answer { status: head.status, body });
            }
            if received.len() > 2 * MAX_BODY {
                return Err(too_large());
            }
        }
        let mut chunk = [0; 4096];
        // Servers that end TLS without saying so are common; what is missing is noticed below.
        let count = match stream.read(&mut chunk).await {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => 0,
            other => other.map_err(lost)?,
        };
        if count == 0 {
            return match head {
                Some(Head { status, body: Body::UntilEnd }) if received.len() <= MAX_BODY => {
                    Ok(Answer { status, body: received })
                }
                _ => Err("the connection ended before the answer did".to_owned()),
            };
        }
        received.extend_from_slice(chunk.get(..count).unwrap_or_default());
    }
}

fn too_large() -> String {
    format!("the answer has more than {MAX_BODY} bytes")
}

/// Status and how to tell where the body ends.
struct Head {
    status: u16,
    body: Body,
}

enum Body {
    Length(usize),
    Chunked,
    UntilEnd,
}

/// Takes the head off `received` when it is whole. Answers 1xx are passed over.
fn parse_head(received: &mut Vec<u8>) -> Result<Option<Head>, String> {
    loop {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut answer = httparse::Response::new(&mut headers);
        let parsed = answer.parse(received).map_err(|error| format!("the answer is not HTTP ({error})"))?;
        let httparse::Status::Complete(length) = parsed else { return Ok(None) };
        let status = answer.code.unwrap_or_default();
        let mut body = Body::UntilEnd;
        for header in answer.headers.iter() {
            let value = std::str::from_utf8(header.value).unwrap_or_default().trim();
            if header.name.eq_ignore_ascii_case("transfer-encoding") {
                if !value.eq_ignore_ascii_case("chunked") {
                    return Err(format!("the answer's transfer encoding {value:?} is not known"));
                }
                body = Body::Chunked;
            } else if header.name.eq_ignore_ascii_case("content-length") && !matches!(body, Body::Chunked) {
                let length: usize =
                    value.parse().map_err(|_| "the answer's length is no number".to_owned())?;
                if length > MAX_BODY {
                    return Err(too_large());
                }
                body = Body::Length(length);
            }
        }
        received.drain(..length);
        if !(100..200).contains(&status) {
            return Ok(Some(Head { status, body }));
        }
    }
}

impl Body {
    /// The body, when all of it is there.
    fn complete(&self, received: &[u8]) -> Result<Option<Vec<u8>>, String> {
        match self {
            Self::UntilEnd if received.len() > MAX_BODY => Err(too_large()),
            Self::UntilEnd => Ok(None),
            Self::Length(length) => Ok(received.get(..*length).map(<[u8]>::to_vec)),
            Self::Chunked => dechunk(received),
        }
    }
}

fn dechunk(mut rest: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let mut body = Vec::new();
    loop {
        let parsed =
            httparse::parse_chunk_size(rest).map_err(|_| "the answer's chunks are malformed".to_owned())?;
        let httparse::Status::Complete((start, size)) = parsed else { return Ok(None) };
        if size == 0 {
            return Ok(Some(body));
        }
        let size =
            usize::try_from(size).ok().filter(|size| body.len() + size <= MAX_BODY).ok_or_else(too_large)?;
        rest = rest.get(start..).unwrap_or_default();
        let (Some(chunk), Some(end)) = (rest.get(..size), rest.get(size..size + 2)) else { return Ok(None) };
        if end != b"\r\n" {
            return Err("the answer's chunks are malformed".to_owned());
        }
        body.extend_from_slice(chunk);
        rest = rest.get(size + 2..).unwrap_or_default();
    }
}

/// `application/x-www-form-urlencoded` of one value.
pub(super) fn form_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'*' => encoded.push(byte.into()),
            b' ' => encoded.push('+'),
            // Writing to a String does not fail.
            _ => drop(write!(encoded, "%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_others_are_explained() {
        for (text, address, https, target, host) in [
            ("https://a.b/t?x=1#f", "a.b:443", true, "/t?x=1", "a.b"),
            ("HTTP://a", "a:80", false, "/", "a"),
            ("http://a:8080?x", "a:8080", false, "/?x", "a:8080"),
            ("https://[::1]:7/t", "[::1]:7", true, "/t", "[::1]:7"),
            ("http://[::1]", "[::1]:80", false, "/", "[::1]"),
        ] {
            let url = Url::parse(text).unwrap();
            assert_eq!((url.address.to_string().as_str(), url.https, &*url.target), (address, https, target));
            assert_eq!(url.host_header(), host);
        }
        for text in [
            "",
            "a",
            "ftp://a/",
            "http://",
            "http://u@a/",
            "http://a:0/",
            "http://a:x/",
            "http://[::1",
            "http://[::1]x/",
            "http://a/\r\nX: y",
            "http://[a]/",
        ] {
            assert!(Url::parse(text).unwrap_err().contains("write https://"), "{text}");
        }
    }

    async fn answered(answer: &[u8]) -> Result<Answer, String> {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        theirs.write_all(answer).await.unwrap();
        theirs.shutdown().await.unwrap();
        exchange(ours, &Url::parse("http://h/t").unwrap(), "Basic x", "a=b").await
    }

    #[tokio::test]
    async fn a_body_ends_where_the_answer_says() {
        for answer in [
            &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}rest"[..],
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1;x=y\r\n}\r\n0\r\n\r\n",
            b"HTTP/1.0 200 OK\r\n\r\n{}",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        ] {
            let answer = answered(answer).await.unwrap();
            assert_eq!((answer.status, answer.body.as_slice()), (200, &b"{}"[..]));
        }
    }

    #[tokio::test]
    async fn what_is_cut_off_too_large_or_no_http_is_an_error() {
        let long = [b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b'x'; MAX_BODY + 1]].concat();
        let head = [b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'x'; MAX_HEAD + 8192]].concat();
        for (answer, expected) in [
            (&b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}"[..], "ended before"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 65537\r\n\r\n{}", "more than 65536"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffff\r\n", "more than 65536"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n", "malformed"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "not known"),
            (b"\x15\x03\x03\0\x02\x02\x32", "not HTTP"),
            (b"", "ended before"),
            (&long, "more than 65536"),
            (&head, "headers"),
        ] {
            let error = answered(answer).await.unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[tokio::test]
    async fn a_request_is_what_a_token_endpoint_expects() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let url = Url::parse("http://h:81/t").unwrap();
        let asked = tokio::spawn(async move { exchange(ours, &url, "Basic x", "a=b").await });
        let mut request = vec![0; 4096];
        let count = theirs.read(&mut request).await.unwrap();
        let request = String::from_utf8_lossy(&request[..count]).into_owned();
        assert!(
            request.starts_with("POST /t HTTP/1.1\r\nHost: h:81\r\nAuthorization: Basic x\r\n"),
            "{request}"
        );
        assert!(request.ends_with("Content-Length: 3\r\nConnection: close\r\n\r\na=b"), "{request}");
        theirs.write_all(b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        assert_eq!(asked.await.unwrap().unwrap().status, 204);
    }

    #[test]
    fn a_form_value_is_encoded() {
        assert_eq!(form_encoded("a b&c=ä:/-_.*~"), "a+b%26c%3D%C3%A4%3A%2F-_.*%7E");
    }
}
