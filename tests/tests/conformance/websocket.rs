//! MQTT over WebSocket (MQTT-3.1.1 6, MQTT-5.0 6, RFC 6455): frames by hand. The other cases go over it as
//! well, see [`Suite::repeat_over_other_transports`].

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use anyhow::{Context, Result, bail, ensure};
use causeway_tests::mqtt::client::PATIENCE;
use causeway_tests::mqtt::road::{frame, opcode, take_frame};
use causeway_tests::mqtt::wire::{DISCONNECT, PINGREQ, first, subscribe};
use causeway_tests::mqtt::{Packet, Publish, Will};

use crate::suite::{Bench, Suite, Transport};

const BINARY: u8 = opcode::FINAL | opcode::BINARY;
const PING: u8 = opcode::FINAL | opcode::PING;
const PONG: u8 = opcode::FINAL | opcode::PONG;
const CLOSE: u8 = opcode::FINAL | opcode::CLOSE;

const PINGRESP: [u8; 2] = [first::PINGRESP, 0];

/// Close codes (RFC 6455 7.4.1).
const NORMAL: u16 = 1000;
const WRONG: u16 = 1002;
const UNSUPPORTED: u16 = 1003;

/// A request that is answered with 101, line by line.
const REQUEST: [&str; 7] = [
    "GET /mqtt HTTP/1.1",
    "Host: localhost",
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Protocol: mqtt",
];

/// A connection whose frames a case writes itself.
struct Raw {
    stream: TcpStream,
    input: Vec<u8>,
}

impl Raw {
    fn connect(t: &Bench) -> Result<Self> {
        let stream = TcpStream::connect(t.address())?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream, input: Vec::new() })
    }

    /// Sends a request; the head of the answer.
    fn ask(&mut self, lines: &[&str]) -> Result<String> {
        self.stream.write_all(format!("{}\r\n\r\n", lines.join("\r\n")).as_bytes())?;
        let (mut answer, mut byte) = (Vec::new(), [0]);
        while !answer.ends_with(b"\r\n\r\n") {
            self.stream
                .read_exact(&mut byte)
                .with_context(|| String::from_utf8_lossy(&answer).into_owned())?;
            answer.push(byte[0]);
        }
        Ok(String::from_utf8(answer)?)
    }

    /// A WebSocket.
    fn open(t: &Bench) -> Result<Self> {
        let mut raw = Self::connect(t)?;
        let answer = raw.ask(&REQUEST)?;
        ensure!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        Ok(raw)
    }

    /// A WebSocket with a client that is connected.
    fn client(t: &Bench) -> Result<Self> {
        let mut raw = Self::open(t)?;
        raw.send(&frame(BINARY, &t.connector("raw").bytes()))?;
        let connack = raw.packet()?.connack(t.version)?;
        ensure!(connack.reason == 0, "not connected: {:#04x}", connack.reason);
        Ok(raw)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes)?;
        Ok(())
    }

    /// The next frame; `None` at an orderly end.
    fn next(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        loop {
            if let Some(frame) = take_frame(&mut self.input)? {
                return Ok(Some(frame));
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    ensure!(self.input.is_empty(), "closed inside a frame: {:02x?}", self.input);
                    return Ok(None);
                }
                Ok(count) => self.input.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("waiting for a frame"),
            }
        }
    }

    /// The next frame is this.
    fn expect(&mut self, first: u8, payload: &[u8]) -> Result<()> {
        let got = self.next()?;
        ensure!(
            got.as_ref().is_some_and(|(kind, bytes)| *kind == first && bytes == payload),
            "{got:02x?}, not {first:#04x} with {payload:02x?}"
        );
        Ok(())
    }

    /// The next frame is binary and holds one packet.
    fn packet(&mut self) -> Result<Packet> {
        let (kind, mut payload) = self.next()?.context("closed where a packet was expected")?;
        ensure!(kind == BINARY, "frame {kind:#04x} where a packet was expected");
        let packet = Packet::take(&mut payload)?.context("half a packet in a frame")?;
        ensure!(payload.is_empty(), "more than one packet: {payload:02x?}");
        Ok(packet)
    }

    /// The types of the next packets, which may share frames.
    fn packets(&mut self, count: usize) -> Result<Vec<u8>> {
        let (mut types, mut bytes) = (Vec::new(), Vec::new());
        while types.len() < count || !bytes.is_empty() {
            if let Some(packet) = Packet::take(&mut bytes)? {
                types.push(packet.first);
            } else {
                let (kind, payload) = self.next()?.context("closed where a packet was expected")?;
                ensure!(kind == BINARY, "frame {kind:#04x} where a packet was expected");
                bytes.extend(payload);
            }
        }
        Ok(types)
    }

    /// A close frame with this code comes next, and then the end. In 5.0 a DISCONNECT may come before it.
    fn closed(&mut self, code: u16) -> Result<()> {
        let (mut kind, mut payload) = self.next()?.context("closed without a close frame")?;
        if kind == BINARY && payload.first() == Some(&first::DISCONNECT) {
            (kind, payload) = self.next()?.context("closed without a close frame")?;
        }
        ensure!(kind == CLOSE, "frame {kind:#04x} [{payload:02x?}] where a close frame was expected");
        let [high, low, ..] = payload[..] else { bail!("a close frame without a code") };
        let got = u16::from_be_bytes([high, low]);
        ensure!(got == code, "close code {got}, not {code}");
        let end = self.next()?;
        ensure!(end.is_none(), "{end:02x?} behind a close frame");
        Ok(())
    }

    /// All that was sent is dealt with, and nothing has come.
    fn quiet(&mut self) -> Result<()> {
        self.send(&frame(BINARY, &PINGREQ))?;
        self.expect(BINARY, &PINGRESP)
    }
}

pub(crate) fn cases(s: &mut Suite) {
    s.over(Transport::WebSocket, |s| {
        requests(s);
        frames(s);
        control_frames(s);
        wrong_frames(s);
        ends(s);
    });
}

fn requests(s: &mut Suite) {
    s.both("6.0 MQTT-6.0.0-3", "6.0 MQTT-6.0.0-4", "the server chooses the subprotocol mqtt", |t| {
        for offer in ["mqtt", "chat, mqtt", "mqtt , other"] {
            let mut lines = REQUEST.to_vec();
            let offer = format!("Sec-WebSocket-Protocol: {offer}");
            lines[6] = &offer;
            let answer = Raw::connect(t)?.ask(&lines)?.to_ascii_lowercase();
            ensure!(answer.starts_with("http/1.1 101 "), "{answer}");
            ensure!(answer.contains("\r\nsec-websocket-protocol: mqtt\r\n"), "{answer}");
            ensure!(
                answer.contains("\r\nsec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"),
                "{answer}"
            );
            ensure!(answer.contains("\r\nupgrade: websocket\r\n"), "{answer}");
        }
        Ok(())
    });
    s.both("6.0 MQTT-6.0.0-3", "6.0 MQTT-6.0.0-3", "a request that does not offer mqtt is refused", |t| {
        for offer in [None, Some("chat"), Some("mqttx"), Some("")] {
            let mut lines = REQUEST.to_vec();
            lines.pop();
            let offer = offer.map(|offer| format!("Sec-WebSocket-Protocol: {offer}"));
            lines.extend(offer.as_deref());
            let answer = Raw::connect(t)?.ask(&lines)?;
            ensure!(answer.starts_with("HTTP/1.1 400 "), "{offer:?}: {answer}");
        }
        Ok(())
    });
    s.both("6.0", "6.0", "a request that is not for MQTT over WebSocket is refused and says how", |t| {
        for (line, with, status) in [
            (0, "GET / HTTP/1.1", "404"),
            (0, "GET /mqtt// HTTP/1.1", "404"),
            (0, "POST /mqtt HTTP/1.1", "405"),
            (2, "Upgrade: h2c", "426"),
            (3, "Connection: keep-alive", "426"),
            (4, "X-Nothing: x", "400"),
            (5, "Sec-WebSocket-Version: 8", "426"),
        ] {
            let mut lines = REQUEST.to_vec();
            lines[line] = with;
            let answer = Raw::connect(t)?.ask(&lines)?;
            ensure!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{with}: {answer}");
            let version = answer.to_ascii_lowercase().contains("\r\nsec-websocket-version: 13\r\n");
            ensure!(status != "426" || version, "{with}: the version is not named: {answer}");
        }
        Ok(())
    });
    s.both("6.0", "6.0", "MQTT without a WebSocket request does not come in", |t| {
        let mut raw = Raw::connect(t)?;
        raw.send(&t.connector("raw").bytes())?;
        raw.stream.shutdown(Shutdown::Write)?;
        let mut answer = Vec::new();
        raw.stream.read_to_end(&mut answer)?;
        ensure!(!answer.contains(&first::CONNACK), "{answer:02x?}");
        Ok(())
    });
}

fn frames(s: &mut Suite) {
    s.both("6.0 MQTT-6.0.0-2", "6.0 MQTT-6.0.0-2", "a packet may be cut into messages anywhere", |t| {
        let connect = t.connector("raw").bytes();
        for at in 1..connect.len() {
            let mut raw = Raw::open(t)?;
            let (one, two) = connect.split_at(at);
            raw.send(&[frame(BINARY, one), frame(BINARY, two)].concat())?;
            let connack = raw.packet()?.connack(t.version)?;
            ensure!(connack.reason == 0, "cut at {at}: {:#04x}", connack.reason);
            raw.send(&frame(BINARY, &DISCONNECT))?;
            raw.closed(NORMAL)?;
        }
        Ok(())
    });
    s.both(
        "6.0 MQTT-6.0.0-2",
        "6.0 MQTT-6.0.0-2",
        "every byte in a frame of its own, as messages or as fragments",
        |t| {
            for (head, rest) in [(BINARY, BINARY), (opcode::BINARY, opcode::CONTINUATION)] {
                let mut raw = Raw::open(t)?;
                let bytes = [t.connector("raw").bytes(), PINGREQ.to_vec()].concat();
                for (at, byte) in bytes.iter().enumerate() {
                    let last = if at + 1 == bytes.len() { opcode::FINAL } else { 0 };
                    raw.send(&frame(if at == 0 { head } else { rest | last }, &[*byte]))?;
                }
                ensure!(raw.packets(2)? == [first::CONNACK, first::PINGRESP], "not both answers");
            }
            Ok(())
        },
    );
    s.both("6.0 MQTT-6.0.0-2", "6.0 MQTT-6.0.0-2", "a frame may hold many packets, and half of one", |t| {
        let mut raw = Raw::open(t)?;
        let topic = t.topic("");
        let publish = Publish::new(t.version, &topic, "x".repeat(300)).qos(1, 9).bytes();
        let (now, later) = publish.split_at(100);
        let many = [&t.connector("raw").bytes()[..], &subscribe(t.version, 1, &[(&topic, 0)]), now].concat();
        raw.send(&frame(BINARY, &many))?;
        ensure!(raw.packets(2)? == [first::CONNACK, first::SUBACK], "not both answers");
        raw.send(&frame(BINARY, &[later, &PINGREQ].concat()))?;
        let mut types = raw.packets(3)?;
        types.sort_unstable();
        ensure!(types == [first::PUBLISH, first::PUBACK, first::PINGRESP], "{types:02x?}");
        Ok(())
    });
    s.both("6.0", "6.0", "a frame may come in pieces, cut anywhere", |t| {
        let mut raw = Raw::client(t)?;
        let bytes = frame(BINARY, &Publish::new(t.version, &t.topic(""), "payload").qos(1, 7).bytes());
        for at in 1..bytes.len() {
            let (now, later) = bytes.split_at(at);
            raw.send(now)?;
            // Long enough to be read alone nearly always; what comes is the same if it is not.
            std::thread::sleep(std::time::Duration::from_millis(3));
            raw.send(later)?;
            let ack = raw.packet()?.ack(t.version, first::PUBACK)?;
            ensure!(ack.packet_identifier == 7, "cut at {at}: {ack:?}");
        }
        Ok(())
    });
    s.both("6.0", "6.0", "empty frames say nothing", |t| {
        let mut raw = Raw::client(t)?;
        let empty = [frame(BINARY, b""), frame(opcode::BINARY, b""), frame(opcode::CONTINUATION, b"")];
        raw.send(&empty.concat())?;
        raw.send(&frame(opcode::FINAL | opcode::CONTINUATION, &PINGREQ))?;
        raw.expect(BINARY, &PINGRESP)
    });
    s.both("6.0", "6.0", "frames of every form of length are read", |t| {
        let mut raw = Raw::client(t)?;
        let topic = t.topic("");
        for (number, size) in [0, 100, 125, 126, 1000, 65_000, 65_535, 65_536, 70_000].into_iter().enumerate()
        {
            let identifier = number as u16 + 1;
            let bytes = Publish::new(t.version, &topic, vec![7; size]).qos(1, identifier).bytes();
            raw.send(&frame(BINARY, &bytes))?;
            let ack = raw.packet()?.ack(t.version, first::PUBACK)?;
            ensure!(ack.packet_identifier == identifier, "size {size}: {ack:?}");
        }
        Ok(())
    });
    s.both(
        "6.0 MQTT-6.0.0-1",
        "6.0 MQTT-6.0.0-1",
        "what the server sends is in binary frames, large ones too",
        |t| {
            let mut raw = Raw::client(t)?;
            let topic = t.topic("");
            raw.send(&frame(BINARY, &subscribe(t.version, 1, &[(&topic, 0)])))?;
            raw.packet()?.suback(t.version)?;
            for size in [0, 110, 130, 65_000, 65_540, 200_000] {
                t.client("p")?.publish(&topic, vec![b'x'; size], 1)?;
                let mut bytes = Vec::new();
                let published = loop {
                    let (kind, payload) = raw.next()?.context("closed")?;
                    ensure!(kind == BINARY, "frame {kind:#04x}");
                    bytes.extend(payload);
                    if let Some(packet) = Packet::take(&mut bytes)? {
                        break packet.publish(t.version)?;
                    }
                };
                ensure!(
                    published.payload.len() == size && bytes.is_empty(),
                    "{} bytes",
                    published.payload.len()
                );
            }
            Ok(())
        },
    );
}

fn control_frames(s: &mut Suite) {
    s.both(
        "6.0",
        "6.0",
        "a ping is answered with its payload, also before CONNECT and inside a message",
        |t| {
            let mut raw = Raw::open(t)?;
            raw.send(&frame(PING, b"early"))?;
            raw.expect(PONG, b"early")?;
            let connect = t.connector("raw").bytes();
            let (one, two) = connect.split_at(5);
            raw.send(&frame(opcode::BINARY, one))?;
            raw.send(&frame(PING, &[b'x'; 125]))?;
            raw.expect(PONG, &[b'x'; 125])?;
            raw.send(&frame(PING, b""))?;
            raw.expect(PONG, b"")?;
            raw.send(&frame(opcode::FINAL | opcode::CONTINUATION, two))?;
            ensure!(raw.packet()?.connack(t.version)?.reason == 0, "not connected");
            raw.quiet()
        },
    );
    s.both("6.0", "6.0", "a pong that nobody asked for is disregarded", |t| {
        let mut raw = Raw::client(t)?;
        raw.send(&frame(PONG, b"unasked"))?;
        raw.quiet()
    });
    s.both(
        "3.1.2.10",
        "3.1.2.10",
        "pings of the WebSocket are no packets: the keep-alive goes on, and ends it after its time",
        |t| {
            let mut raw = Raw::open(t)?;
            raw.send(&frame(BINARY, &t.connector("raw").keep_alive(1).bytes()))?;
            ensure!(raw.packet()?.connack(t.version)?.reason == 0, "not connected");
            let started = std::time::Instant::now();
            raw.stream.set_read_timeout(Some(std::time::Duration::from_millis(200)))?;
            loop {
                // It may have been closed meanwhile.
                drop(raw.send(&frame(PING, b"alive")));
                ensure!(started.elapsed() < PATIENCE, "the keep-alive never ends");
                match raw.next() {
                    Ok(Some((PONG, _))) => std::thread::sleep(std::time::Duration::from_millis(100)),
                    Ok(Some((CLOSE | BINARY, _)) | None) => break,
                    Ok(Some(other)) => bail!("{other:02x?}"),
                    Err(error) => {
                        let io = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
                        let waits = matches!(io, Some(ErrorKind::WouldBlock | ErrorKind::TimedOut));
                        ensure!(waits || io == Some(ErrorKind::ConnectionReset), "{error:#}");
                        if !waits {
                            break;
                        }
                    }
                }
            }
            ensure!(started.elapsed().as_millis() >= 1400, "ended after {:?}", started.elapsed());
            Ok(())
        },
    );
}

fn wrong_frames(s: &mut Suite) {
    type Frames = fn() -> Vec<u8>;
    let cases: [(&str, &str, u16, Frames); 12] = [
        ("6.0 MQTT-6.0.0-1", "a text frame", UNSUPPORTED, || frame(opcode::FINAL | opcode::TEXT, &PINGREQ)),
        ("6.0", "a frame without a mask", WRONG, || vec![BINARY, 2, PINGREQ[0], 0]),
        ("6.0", "a reserved bit", WRONG, || frame(BINARY | 0x40, &PINGREQ)),
        ("6.0", "an opcode that does not exist", WRONG, || frame(opcode::FINAL | 0x03, &PINGREQ)),
        ("6.0", "a control opcode that does not exist", WRONG, || frame(opcode::FINAL | 0x0B, &PINGREQ)),
        ("6.0", "a continuation of nothing", WRONG, || frame(opcode::FINAL, &PINGREQ)),
        ("6.0", "a message inside another", WRONG, || {
            [frame(opcode::BINARY, &PINGREQ[..1]), frame(BINARY, &PINGREQ[1..])].concat()
        }),
        ("6.0", "a ping that is cut", WRONG, || frame(opcode::PING, b"x")),
        ("6.0", "a ping with 126 bytes", WRONG, || frame(PING, &[0; 126])),
        ("6.0", "a close frame with half a code", WRONG, || frame(CLOSE, &[3])),
        ("6.0", "a close frame with a code that may not be sent", WRONG, || {
            frame(CLOSE, &1006_u16.to_be_bytes())
        }),
        ("6.0", "a length with its highest bit set", WRONG, || {
            [&[BINARY, 0xFF][..], &[0xFF; 8], &[0; 4]].concat()
        }),
    ];
    for (section, name, code, bytes) in cases {
        s.both(section, section, format!("{name} ends the connection with {code}"), move |t| {
            let mut raw = Raw::client(t)?;
            raw.send(&bytes())?;
            raw.closed(code)?;
            let mut raw = Raw::open(t)?;
            raw.send(&bytes())?;
            raw.closed(code).context("before CONNECT")
        });
    }
}

fn ends(s: &mut Suite) {
    s.both(
        "6.0",
        "6.0",
        "a close frame is answered with one that has its code, and the server closes",
        |t| {
            for (payload, code) in
                [(&b""[..], NORMAL), (&1000_u16.to_be_bytes(), NORMAL), (b"\x03\xE9going away", 1001)]
            {
                let mut raw = Raw::client(t)?;
                raw.send(&frame(CLOSE, payload))?;
                raw.closed(code)?;
            }
            Ok(())
        },
    );
    s.both("3.14.4", "3.14.4", "DISCONNECT is answered with a close frame", |t| {
        let mut raw = Raw::client(t)?;
        raw.send(&frame(BINARY, &DISCONNECT))?;
        raw.closed(NORMAL)
    });
    s.both(
        "3.1.2.5 MQTT-3.1.2-8",
        "3.1.2.5 MQTT-3.1.2-8",
        "a close frame without DISCONNECT sends the will",
        |t| {
            let topic = t.topic("/will");
            let mut other = t.subscriber("other", &topic, 0)?;
            for frame_or_not in [Some(frame(CLOSE, &1000_u16.to_be_bytes())), None] {
                let mut raw = Raw::open(t)?;
                let connect = t.connector("raw").will(Will::new(&topic, "gone"));
                raw.send(&frame(BINARY, &connect.bytes()))?;
                ensure!(raw.packet()?.connack(t.version)?.reason == 0, "not connected");
                match frame_or_not {
                    Some(close) => raw.send(&close)?,
                    // An end without any frame is an end of the network connection as well.
                    None => raw.stream.shutdown(Shutdown::Write)?,
                }
                other.receives(&topic, "gone")?;
            }
            other.quiet()
        },
    );
    s.v5("4.13.1", "the reason of a refusal comes in a binary frame, then the close frame", |t| {
        let mut raw = Raw::client(t)?;
        raw.send(&frame(BINARY, &[first::PINGREQ | 1, 0]))?;
        let answer = raw.packet()?.disconnect()?;
        ensure!(answer.reason == 0x81, "DISCONNECT {:#04x}", answer.reason);
        raw.closed(NORMAL)
    });
    s.both("4.8", "4.13", "packets behind a close frame do nothing", |t| {
        let topic = t.topic("");
        let mut other = t.subscriber("other", &topic, 0)?;
        let mut raw = Raw::client(t)?;
        let publish = Publish::new(t.version, &topic, "never").bytes();
        raw.send(&[frame(CLOSE, b""), frame(BINARY, &publish)].concat())?;
        raw.closed(NORMAL)?;
        other.quiet()
    });
}
