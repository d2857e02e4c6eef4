//! How a client's bytes reach the server: TCP, TLS, WebSocket, and WebSocket in TLS (MQTT-5.0 4.2 and 6, RFC
//! 6455).
//!
//! The WebSocket half is written here, so that a wrong frame of the server cannot be read by the code that
//! made it. What it reads is held to the letter: an end without a close frame, or one of TLS without
//! close_notify, is an error.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io::{self, Error, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{self, ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};

/// How long opening a connection may take.
const OPENING: Duration = Duration::from_secs(20);

/// The request of a WebSocket client; key and answer are those of RFC 6455 1.3.
const UPGRADE: &str = "GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";

/// What follows from that key.
const ACCEPT: &str = "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=";

/// How MQTT is put into frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// What is sent at once is one frame.
    Whole,
    /// It is cut into messages, fragments and empty frames, with pings in between; the number chooses where.
    Cut(u64),
}

/// A way to a server.
#[derive(Debug, Clone)]
pub struct Road {
    address: String,
    tls: Option<Arc<ClientConfig>>,
    websocket: Option<Framing>,
}

impl Road {
    /// Plain TCP to `HOST:PORT`.
    pub fn tcp(address: &str) -> Self {
        Self { address: address.to_owned(), tls: None, websocket: None }
    }

    /// The same in TLS, as `client` says.
    #[must_use]
    pub fn tls(mut self, client: Arc<ClientConfig>) -> Self {
        self.tls = Some(client);
        self
    }

    /// The same in a WebSocket at `/mqtt`.
    #[must_use]
    pub fn websocket(mut self, framing: Framing) -> Self {
        self.websocket = Some(framing);
        self
    }

    /// Where it leads.
    pub fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn open(&self) -> Result<Box<dyn Stream>> {
        let socket = TcpStream::connect(&self.address)
            .with_context(|| format!("cannot connect to {}", self.address))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(OPENING))?;
        socket.set_write_timeout(Some(OPENING))?;
        let mut stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(socket),
            Some(config) => {
                let session = ClientConnection::new(config.clone(), ServerName::try_from("localhost")?)?;
                let mut stream = rustls::StreamOwned::new(session, socket);
                stream.conn.complete_io(&mut stream.sock).context("the TLS handshake")?;
                Box::new(stream)
            }
        };
        if let Some(framing) = self.websocket {
            upgrade(&mut *stream)?;
            stream = Box::new(WebSocket::new(stream, framing));
        }
        Ok(stream)
    }
}

/// What a client of this authority's servers needs, with one version of TLS.
pub fn tls_client(
    authority: &std::path::Path,
    version: &'static SupportedProtocolVersion,
) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_file(authority)?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// A byte stream with MQTT in it.
pub(super) trait Stream: Debug + Send + Read + Write {
    /// Closes our half in order.
    fn finish(&mut self) -> io::Result<()>;
    /// What is below it all.
    fn socket(&self) -> &TcpStream;
}

impl Stream for TcpStream {
    fn finish(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }

    fn socket(&self) -> &TcpStream {
        self
    }
}

impl Stream for rustls::StreamOwned<ClientConnection, TcpStream> {
    fn finish(&mut self) -> io::Result<()> {
        self.conn.send_close_notify();
        self.flush()?;
        self.sock.shutdown(Shutdown::Write)
    }

    fn socket(&self) -> &TcpStream {
        &self.sock
    }
}

/// Sends the request and reads the answer to its last byte.
fn upgrade(stream: &mut dyn Stream) -> Result<()> {
    stream.write_all(UPGRADE.as_bytes())?;
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).context("the answer to a WebSocket request")?;
        answer.push(byte[0]);
        ensure!(answer.len() < 4096, "an endless answer to a WebSocket request");
    }
    let answer = String::from_utf8(answer)?.to_ascii_lowercase();
    ensure!(answer.starts_with("http/1.1 101 "), "a WebSocket request was answered {answer}");
    ensure!(answer.contains(ACCEPT), "the key was not answered: {answer}");
    // MQTT-5.0 6.0.0-4.
    ensure!(answer.contains("sec-websocket-protocol: mqtt\r\n"), "another subprotocol: {answer}");
    Ok(())
}

/// Kinds of frames (RFC 6455 5.2).
#[expect(missing_docs, reason = "each is the frame of its name")]
pub mod opcode {
    pub const CONTINUATION: u8 = 0;
    pub const TEXT: u8 = 1;
    pub const BINARY: u8 = 2;
    pub const CLOSE: u8 = 8;
    pub const PING: u8 = 9;
    pub const PONG: u8 = 10;
    /// Set in the last frame of a message.
    pub const FINAL: u8 = 0x80;
}

/// A frame as a client sends it: `first` is opcode and flags.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0xA1, 0x02, 0xC3, 0x5F];
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..126 => frame.push(0x80 | length as u8),
        length @ 126..65_536 => {
            frame.push(0xFE);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(0xFF);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.into_iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// Takes a frame of a server from the front of `input`, where it is whole: its first byte and payload.
pub fn take_frame(input: &mut Vec<u8>) -> io::Result<Option<(u8, Vec<u8>)>> {
    let wrong = |what: String| Error::new(ErrorKind::InvalidData, what);
    let [first, second, ..] = input[..] else { return Ok(None) };
    if second & 0x80 != 0 {
        return Err(wrong("the server masks its frames".to_owned()));
    }
    if first & 0x70 != 0 {
        return Err(wrong(format!("reserved bits in a frame of the server: {first:#04x}")));
    }
    let (header, length) = match second {
        126 if input.len() >= 4 => (4, u64::from(u16::from_be_bytes([input[2], input[3]]))),
        127 if input.len() >= 10 => {
            (10, input[2..10].iter().fold(0, |length, byte| length << 8 | u64::from(*byte)))
        }
        126 | 127 => return Ok(None),
        short => (2, u64::from(short)),
    };
    if (header == 4 && length < 126) || (header == 10 && length < 65_536) {
        return Err(wrong(format!("{length} has more bytes than it needs")));
    }
    let end = header + length as usize;
    if input.len() < end {
        return Ok(None);
    }
    let rest = input.split_off(end);
    let payload = input.split_off(header);
    *input = rest;
    Ok(Some((first, payload)))
}

/// MQTT in binary frames.
#[derive(Debug)]
struct WebSocket {
    stream: Box<dyn Stream>,
    framing: Framing,
    input: Vec<u8>,
    payload: VecDeque<u8>,
    pings: VecDeque<Vec<u8>>,
    pinged: u32,
    closed: bool,
    close_sent: bool,
}

impl WebSocket {
    fn new(stream: Box<dyn Stream>, framing: Framing) -> Self {
        Self {
            stream,
            framing,
            input: Vec::new(),
            payload: VecDeque::new(),
            pings: VecDeque::new(),
            pinged: 0,
            closed: false,
            close_sent: false,
        }
    }

    /// A number below `end`; the same ones for the same case.
    fn choose(&mut self, end: usize) -> usize {
        let Framing::Cut(state) = &mut self.framing else { return 0 };
        // xorshift64.
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state % end.max(1) as u64) as usize
    }

    fn frames(&mut self, bytes: &[u8]) -> Vec<u8> {
        if self.framing == Framing::Whole {
            return frame(opcode::FINAL | opcode::BINARY, bytes);
        }
        let (mut out, mut rest) = (Vec::new(), bytes);
        let mut inside = false;
        loop {
            let last = self.choose(4) == 0 || rest.is_empty();
            let (now, later) = rest.split_at(if last { rest.len() } else { self.choose(rest.len() + 1) });
            rest = later;
            let ends = last || self.choose(2) == 0;
            let kind = if inside { opcode::CONTINUATION } else { opcode::BINARY };
            out.extend(frame(kind | if ends { opcode::FINAL } else { 0 }, now));
            inside = !ends;
            if last {
                return out;
            }
            if self.choose(3) == 0 {
                self.pinged += 1;
                let ping = self.pinged.to_be_bytes().to_vec();
                out.extend(frame(opcode::FINAL | opcode::PING, &ping));
                self.pings.push_back(ping);
            }
        }
    }

    /// Deals with what is there of frames.
    fn decode(&mut self) -> io::Result<()> {
        let wrong = |what: String| Err(Error::new(ErrorKind::InvalidData, what));
        while let Some((first, payload)) = take_frame(&mut self.input)? {
            if self.closed {
                return wrong(format!("frame {first:#04x} behind a close frame"));
            }
            if first & opcode::FINAL == 0 {
                return wrong("the server cuts messages, which ours does not".to_owned());
            }
            match first & 0x0F {
                opcode::BINARY => self.payload.extend(payload),
                opcode::PONG => {
                    // One pong may answer several pings: the last of them (RFC 6455 5.5.3).
                    let Some(at) = self.pings.iter().position(|ping| *ping == payload) else {
                        return wrong(format!("a pong that answers nothing: {payload:02x?}"));
                    };
                    self.pings.drain(..=at);
                }
                opcode::CLOSE => {
                    self.closed = true;
                    if !self.close_sent {
                        self.close_sent = true;
                        // The server may have gone: what counts is what comes from it.
                        drop(self.stream.write_all(&frame(opcode::FINAL | opcode::CLOSE, &payload)));
                    }
                }
                _ => return wrong(format!("a frame that is not for MQTT: {first:#04x}")),
            }
        }
        Ok(())
    }
}

impl Read for WebSocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.payload.is_empty() {
            let mut chunk = [0; 16 << 10];
            let count = self.stream.read(&mut chunk)?;
            if count == 0 {
                return if self.closed && self.input.is_empty() {
                    Ok(0)
                } else {
                    Err(Error::new(ErrorKind::UnexpectedEof, "closed without a close frame"))
                };
            }
            self.input.extend_from_slice(&chunk[..count]);
            self.decode()?;
        }
        self.payload.read(buffer)
    }
}

impl Write for WebSocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let frames = self.frames(bytes);
        self.stream.write_all(&frames)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Stream for WebSocket {
    fn finish(&mut self) -> io::Result<()> {
        self.close_sent = true;
        self.stream.write_all(&frame(opcode::FINAL | opcode::CLOSE, &1000_u16.to_be_bytes()))
    }

    fn socket(&self) -> &TcpStream {
        self.stream.socket()
    }
}
