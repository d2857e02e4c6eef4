//! Who may come in and what he may do: enhanced authentication with SCRAM-SHA-256 (MQTT-5.0 3.15, 4.12), user
//! name and password, and rules (MQTT-3.1.1 5.4, MQTT-5.0 5.4), with a node that has users: see
//! [`Instance::Access`].

use anyhow::{Context, Result, ensure};
use causeway_tests::mqtt::property::{self, Property, Value, id};
use causeway_tests::mqtt::scram::{METHOD, Scram};
use causeway_tests::mqtt::wire::{Answer, ConnAck, PINGREQ, first, packet};
use causeway_tests::mqtt::{Client, Connect, Publish, Version, Will};

use crate::suite::{Bench, Instance, Suite, USERS};

/// Reason codes of AUTH (MQTT-5.0 3.15.2.1).
const SUCCESS: u8 = 0x00;
const CONTINUE: u8 = 0x18;
const AGAIN: u8 = 0x19;

const MALFORMED: u8 = 0x81;
const PROTOCOL_ERROR: u8 = 0x82;
const BAD_PASSWORD: u8 = 0x86;
const NOT_AUTHORIZED: u8 = 0x87;
const BAD_METHOD: u8 = 0x8C;

fn password(user: &str) -> &'static str {
    USERS.iter().find(|(name, _)| *name == user).map_or("nobody's", |(_, password)| password)
}

fn method() -> Vec<u8> {
    property::string(id::AUTHENTICATION_METHOD, METHOD)
}

fn data(data: impl AsRef<[u8]>) -> Vec<u8> {
    property::data(id::AUTHENTICATION_DATA, data.as_ref())
}

fn auth_with(first: u8, reason: u8, properties: &[Vec<u8>]) -> Vec<u8> {
    packet(first, &[&[reason], &property::section(properties)])
}

/// AUTH with the method that was agreed on.
fn auth(reason: u8, words: impl AsRef<[u8]>) -> Vec<u8> {
    auth_with(first::AUTH, reason, &[method(), data(words)])
}

fn bytes_of(properties: &[Property], wanted: u8) -> Option<&[u8]> {
    properties.iter().find_map(|property| match &property.value {
        Value::Bytes(bytes) if property.id == wanted => Some(bytes.as_slice()),
        _ => None,
    })
}

/// The authentication data of a packet of the server, which must name the method (MQTT-4.12.0-5).
fn word(properties: &[Property]) -> Result<&[u8]> {
    let named = bytes_of(properties, id::AUTHENTICATION_METHOD);
    ensure!(named == Some(METHOD.as_bytes()), "the method is not named: {properties:?}");
    bytes_of(properties, id::AUTHENTICATION_DATA).context("no authentication data")
}

fn scram(user: &str) -> Scram {
    Scram::new(user, "fyko+d2lbbFgONRv9qkxdawL")
}

/// CONNECT with the client's first message.
fn with_method(connect: Connect, scram: &Scram) -> Connect {
    connect.with(method()).with(data(scram.first()))
}

/// The next packet is AUTH with this reason.
fn authenticated(client: &mut Client, reason: u8) -> Result<Answer> {
    let answer = client.packet()?.auth()?;
    ensure!(answer.reason == reason, "AUTH {:#04x}, not {reason:#04x}", answer.reason);
    Ok(answer)
}

/// Begins; the connection and the server's challenge.
fn challenged(t: &Bench, connect: Connect, scram: &Scram) -> Result<(Client, Vec<u8>)> {
    let mut client = t.open("c")?;
    client.send(&with_method(connect, scram).bytes())?;
    let challenge = word(&authenticated(&mut client, CONTINUE)?.properties)?.to_vec();
    Ok((client, challenge))
}

/// Goes through with it; the server must have proved itself.
fn with_scram(t: &Bench, connect: Connect, user: &str) -> Result<(Client, ConnAck)> {
    let scram = scram(user);
    let (mut client, challenge) = challenged(t, connect, &scram)?;
    let last = scram.last(password(user), &challenge)?;
    client.send(&auth(CONTINUE, &last.message))?;
    let connack = client.connack()?;
    ensure!(connack.reason == 0, "CONNACK {:#04x}", connack.reason);
    ensure!(word(&connack.properties)? == last.answer.as_bytes(), "the server did not prove itself");
    Ok((client, connack))
}

/// A client of ann.
fn ann(t: &Bench) -> Result<Client> {
    Ok(with_scram(t, t.connector("c"), "ann")?.0)
}

/// AUTH 0x19 and the server's challenge.
fn again(client: &mut Client, scram: &Scram) -> Result<Vec<u8>> {
    client.send(&auth(AGAIN, scram.first()))?;
    Ok(word(&authenticated(client, CONTINUE)?.properties)?.to_vec())
}

/// The CONNECT of a user with his password.
fn login(t: &Bench, name: &str, user: &str) -> Connect {
    t.connector(name).login(Some(user), Some(password(user).as_bytes()))
}

pub(crate) fn cases(s: &mut Suite) {
    s.on(Instance::Access, |s| {
        coming_in(s);
        going_wrong(s);
        out_of_step(s);
        beside_the_exchange(s);
        coming_in_again(s);
        without_a_method(s);
        passwords(s);
        rules(s);
    });
}

fn coming_in(s: &mut Suite) {
    s.v5(
        "4.12 MQTT-4.12.0-5",
        "CONNECT, AUTH both ways and CONNACK name the method and prove both sides",
        |t| ann(t)?.quiet(),
    );
    s.v5("4.12", "the user of the exchange is the one that rules know", |t| {
        let mut client = ann(t)?;
        let reasons = client.try_subscribe(&[(&t.topic("/own/ann/#"), 1), (&t.topic("/own/eve/#"), 1)])?;
        ensure!(reasons == [1, NOT_AUTHORIZED], "{reasons:02x?}");
        Ok(())
    });
    s.v5("4.12", "a session is resumed at the end of the exchange", |t| {
        let lasting = || t.connector("c").lasting(60);
        let (client, connack) = with_scram(t, lasting(), "ann")?;
        ensure!(!connack.session_present, "there was no session");
        client.disconnect()?;
        let (_client, connack) = with_scram(t, lasting(), "ann")?;
        ensure!(connack.session_present, "the session is lost");
        Ok(())
    });
    s.v5("4.12", "an exchange that fails takes nobody's session over", |t| {
        let mut inside = ann(t)?;
        let (mut other, challenge) = challenged(t, t.connector("c"), &scram("ann"))?;
        inside.quiet()?;
        other.send(&auth(CONTINUE, scram("ann").last("wrong", &challenge)?.message))?;
        other.not_connected(None, NOT_AUTHORIZED)?;
        inside.quiet()
    });
    s.v5("3.1.4 MQTT-3.1.4-3", "one that succeeds takes the session over, at its end", |t| {
        let mut inside = ann(t)?;
        let (mut other, challenge) = challenged(t, t.connector("c"), &scram("ann"))?;
        inside.quiet()?;
        other.send(&auth(CONTINUE, scram("ann").last(password("ann"), &challenge)?.message))?;
        ensure!(other.connack()?.reason == 0, "not connected");
        inside.refused(0x8E)?;
        other.quiet()
    });
    s.v5("4.12", "every exchange has a nonce of its own", |t| {
        let (_one, first) = challenged(t, t.connector("a"), &scram("ann"))?;
        let (_two, second) = challenged(t, t.connector("b"), &scram("ann"))?;
        ensure!(first != second, "the same challenge twice");
        Ok(())
    });
}

fn going_wrong(s: &mut Suite) {
    s.v5("4.12 MQTT-4.12.0-4", "a wrong password ends the exchange with 0x87", |t| {
        let scram = scram("ann");
        let (mut client, challenge) = challenged(t, t.connector("c"), &scram)?;
        client.send(&auth(CONTINUE, scram.last("wrong", &challenge)?.message))?;
        client.not_connected(None, NOT_AUTHORIZED)
    });
    s.v5("4.12", "a user whom nobody knows goes through the same exchange, and fails at its end", |t| {
        let stranger = Scram::new("nobody", "abcdefgh");
        let (mut client, challenge) = challenged(t, t.connector("c"), &stranger)?;
        let (_again, second) = challenged(t, t.connector("d"), &stranger)?;
        let salt = |challenge: &[u8]| {
            String::from_utf8_lossy(challenge)
                .split(',')
                .find(|part| part.starts_with("s="))
                .map(str::to_owned)
        };
        ensure!(salt(&challenge) == salt(&second), "the salt of a stranger changes, which gives him away");
        client.send(&auth(CONTINUE, stranger.last("any", &challenge)?.message))?;
        client.not_connected(None, NOT_AUTHORIZED)
    });
    for (name, words) in [
        ("nothing", ""),
        ("no header", "n=ann,r=abcdef"),
        ("channel binding that is not supported", "p=tls-unique,,n=ann,r=abcdef"),
        ("another user to act as", "n,a=eve,n=ann,r=abcdef"),
        ("no nonce", "n,,n=ann"),
        ("a mandatory extension", "n,,m=ext,n=ann,r=abcdef"),
    ] {
        s.v5("4.12", format!("a first message with {name} is refused with 0x87"), move |t| {
            let mut client = t.open("c")?;
            client.send(&t.connector("c").with(method()).with(data(words)).bytes())?;
            client.not_connected(None, NOT_AUTHORIZED)
        });
    }
    s.v5("4.12", "who names the method alone is asked for the first message", |t| {
        let mut client = t.open("c")?;
        client.send(&t.connector("c").with(method()).bytes())?;
        ensure!(
            word(&authenticated(&mut client, CONTINUE)?.properties)?.is_empty(),
            "words before the first"
        );
        let scram = scram("ann");
        client.send(&auth(CONTINUE, scram.first()))?;
        let challenge = word(&authenticated(&mut client, CONTINUE)?.properties)?.to_vec();
        let last = scram.last(password("ann"), &challenge)?;
        client.send(&auth(CONTINUE, &last.message))?;
        let connack = client.connack()?;
        ensure!(connack.reason == 0 && word(&connack.properties)? == last.answer.as_bytes(), "{connack:?}");
        client.quiet()
    });
    s.v5("4.12", "who sends no first message although asked is refused with 0x87", |t| {
        let mut client = t.open("c")?;
        client.send(&t.connector("c").with(method()).bytes())?;
        authenticated(&mut client, CONTINUE)?;
        client.send(&auth_with(first::AUTH, CONTINUE, &[method()]))?;
        client.not_connected(None, NOT_AUTHORIZED)
    });
    s.v5("4.12 MQTT-4.12.0-1", "a method that the server does not have is refused with 0x8C", |t| {
        for name in ["SCRAM-SHA-1", "SCRAM-SHA-256-PLUS", "scram-sha-256", "PLAIN", ""] {
            let mut client = t.open("c")?;
            let method = property::string(id::AUTHENTICATION_METHOD, name);
            client.send(&t.connector("c").with(method).with(data(scram("ann").first())).bytes())?;
            client.not_connected(None, BAD_METHOD).with_context(|| format!("method {name:?}"))?;
        }
        Ok(())
    });
    s.v5("4.12", "the first message in place of the last one is refused with 0x87", |t| {
        let (mut client, _) = challenged(t, t.connector("c"), &scram("ann"))?;
        client.send(&auth(CONTINUE, scram("ann").first()))?;
        client.not_connected(None, NOT_AUTHORIZED)
    });
    s.v5("4.12", "the last message of another exchange is refused with 0x87", |t| {
        let (_first, challenge) = challenged(t, t.connector("a"), &scram("ann"))?;
        let last = scram("ann").last(password("ann"), &challenge)?.message;
        let (mut client, _) = challenged(t, t.connector("b"), &scram("ann"))?;
        client.send(&auth(CONTINUE, last))?;
        client.not_connected(None, NOT_AUTHORIZED)
    });
    s.v5("4.12", "a last message whose words were changed is refused with 0x87", |t| {
        for (from, to) in [("c=biws", "c=eSws"), (",p=", ",x=1,p="), (",r=", ",r=x"), (",p=", ",q=")] {
            let (mut client, challenge) = challenged(t, t.connector("c"), &scram("ann"))?;
            let last = scram("ann").last(password("ann"), &challenge)?.message.replacen(from, to, 1);
            client.send(&auth(CONTINUE, &last))?;
            client.not_connected(None, NOT_AUTHORIZED).with_context(|| last)?;
        }
        Ok(())
    });
    s.v5("4.12", "an exchange that stops is ended with 0x87 after the time for CONNECT", |t| {
        let (mut client, _) = challenged(t, t.connector("c"), &scram("ann"))?;
        client.not_connected(None, NOT_AUTHORIZED)
    });
}

/// AUTH in the wrong place or with the wrong words, before CONNACK.
fn out_of_step(s: &mut Suite) {
    type Wrong = fn() -> Vec<u8>;
    let cases: [(&str, &str, Wrong, u8); 9] = [
        (
            "4.12 MQTT-4.12.0-5",
            "another method",
            || {
                let other = property::string(id::AUTHENTICATION_METHOD, "SCRAM-SHA-1");
                auth_with(first::AUTH, CONTINUE, &[other, data("x")])
            },
            PROTOCOL_ERROR,
        ),
        ("3.15.2.2.2", "no method", || auth_with(first::AUTH, CONTINUE, &[data("x")]), PROTOCOL_ERROR),
        (
            "3.15.2.1",
            "reason 0x19, which is for sessions,",
            || auth(AGAIN, scram("ann").first()),
            PROTOCOL_ERROR,
        ),
        ("3.15.2.1", "reason 0x00, which is the server's,", || auth(SUCCESS, "x"), PROTOCOL_ERROR),
        ("3.15.2.1", "no reason at all", || vec![first::AUTH, 0], PROTOCOL_ERROR),
        ("3.15.2.1 MQTT-3.15.2-1", "a reason that AUTH does not have", || auth(0x17, "x"), PROTOCOL_ERROR),
        (
            "3.15.1 MQTT-3.15.1-1",
            "reserved flags",
            || auth_with(first::AUTH | 2, CONTINUE, &[method(), data("x")]),
            MALFORMED,
        ),
        (
            "3.15.2.2.3",
            "authentication data twice",
            || auth_with(first::AUTH, CONTINUE, &[method(), data("x"), data("y")]),
            PROTOCOL_ERROR,
        ),
        (
            "3.15.2.2.2",
            "the method twice",
            || auth_with(first::AUTH, CONTINUE, &[method(), method(), data("x")]),
            PROTOCOL_ERROR,
        ),
    ];
    for (section, name, wrong, reason) in cases {
        s.v5(section, format!("AUTH with {name} before CONNACK is refused with {reason:#04x}"), move |t| {
            let (mut client, _) = challenged(t, t.connector("c"), &scram("ann"))?;
            client.send(&wrong())?;
            client.not_connected(None, reason)
        });
    }
}

/// Other packets before CONNACK (MQTT-3.1.2-30).
fn beside_the_exchange(s: &mut Suite) {
    s.v5("3.1.2.11.9 MQTT-3.1.2-30", "what is no AUTH before CONNACK is refused, and does nothing", |t| {
        let topic = t.topic("");
        let mut other = t.open("other")?;
        ensure!(other.connect(&login(t, "other", "eve"))?.reason == 0, "eve is not connected");
        other.subscribe(&topic, 0)?;
        let publish = Publish::new(t.version, &topic, "too early").bytes();
        let subscribe = causeway_tests::mqtt::wire::subscribe(t.version, 1, &[("#", 0)]);
        let connect = t.connector("c").bytes();
        for wrong in [publish, subscribe, PINGREQ.to_vec(), connect] {
            let (mut client, _) = challenged(t, t.connector("c"), &scram("ann"))?;
            client.send(&wrong)?;
            client.not_connected(None, PROTOCOL_ERROR)?;
        }
        other.quiet()
    });
    s.v5("4.12", "DISCONNECT ends an exchange without an answer, and the will is not sent", |t| {
        let topic = t.topic("/will");
        let mut other = t.open("other")?;
        ensure!(other.connect(&login(t, "other", "eve"))?.reason == 0, "eve is not connected");
        other.subscribe(&topic, 0)?;
        let connect = t.connector("c").will(Will::new(&topic, "gone"));
        let (client, _) = challenged(t, connect, &scram("ann"))?;
        client.disconnect()?;
        other.quiet()
    });
    s.v5("3.1.2.5 MQTT-3.1.2-8", "a connection that breaks within the exchange sends no will", |t| {
        let topic = t.topic("/will");
        let mut other = t.open("other")?;
        ensure!(other.connect(&login(t, "other", "eve"))?.reason == 0, "eve is not connected");
        other.subscribe(&topic, 0)?;
        let connect = t.connector("c").will(Will::new(&topic, "gone"));
        challenged(t, connect, &scram("ann"))?.0.vanish()?;
        other.quiet()
    });
    s.v5("3.1.2.11.4 MQTT-3.1.2-24", "a challenge that is too large for the client is not sent", |t| {
        let mut client = t.open("c")?;
        let connect = t.connector("c").with(property::four(id::MAXIMUM_PACKET_SIZE, 40));
        client.send(&with_method(connect, &scram("ann")).bytes())?;
        client.closed()
    });
    s.v5("4.12", "AUTH that comes with CONNECT in one go waits its turn", |t| {
        // It cannot know the nonce: it is taken as the answer, and is wrong.
        let mut client = t.open("c")?;
        let mut bytes = with_method(t.connector("c"), &scram("ann")).bytes();
        bytes.extend(auth(CONTINUE, "c=biws,r=guessed,p=AAAA"));
        client.send(&bytes)?;
        authenticated(&mut client, CONTINUE)?;
        client.not_connected(None, NOT_AUTHORIZED)
    });
}

/// In a session (MQTT-5.0 4.12.1).
fn coming_in_again(s: &mut Suite) {
    s.v5("4.12.1", "a client authenticates again; AUTH 0x00 proves the server", |t| {
        let mut client = ann(t)?;
        for _ in 0..2 {
            let scram = scram("ann");
            let challenge = again(&mut client, &scram)?;
            let last = scram.last(password("ann"), &challenge)?;
            client.send(&auth(CONTINUE, &last.message))?;
            let answer = authenticated(&mut client, SUCCESS)?;
            ensure!(word(&answer.properties)? == last.answer.as_bytes(), "the server did not prove itself");
        }
        client.quiet()
    });
    s.v5("4.12.1", "other packets go on while a client authenticates again", |t| {
        let mut client = ann(t)?;
        let challenge = again(&mut client, &scram("ann"))?;
        let topic = t.topic("/a");
        client.subscribe(&topic, 1)?;
        let mut other = t.open("other")?;
        ensure!(other.connect(&login(t, "other", "eve"))?.reason == 0, "eve is not connected");
        other.publish(&topic, "between", 1)?;
        let published = client.receives(&topic, "between")?;
        client.acknowledge(&published)?;
        client.quiet()?;
        client.send(&auth(CONTINUE, scram("ann").last(password("ann"), &challenge)?.message))?;
        authenticated(&mut client, SUCCESS)?;
        client.quiet()
    });
    s.v5("4.12.1 MQTT-4.12.1-2", "a wrong password ends the session's connection with 0x87", |t| {
        let mut client = ann(t)?;
        let challenge = again(&mut client, &scram("ann"))?;
        client.send(&auth(CONTINUE, scram("ann").last("wrong", &challenge)?.message))?;
        client.refused(NOT_AUTHORIZED)
    });
    s.v5("4.12.1", "words that are no SCRAM end it with 0x87", |t| {
        for words in ["", "hello"] {
            let mut client = ann(t)?;
            client.send(&auth(AGAIN, words))?;
            client.refused(NOT_AUTHORIZED)?;
        }
        Ok(())
    });
    s.v5("4.12.1", "another user than the session's is refused with 0x87, however right his password", |t| {
        let mut client = ann(t)?;
        let challenge = again(&mut client, &scram("eve"))?;
        client.send(&auth(CONTINUE, scram("eve").last(password("eve"), &challenge)?.message))?;
        client.refused(NOT_AUTHORIZED)
    });
    s.v5("4.12.1 MQTT-4.12.1-1", "another method is a protocol error", |t| {
        for name in ["SCRAM-SHA-1", "scram-sha-256", ""] {
            let mut client = ann(t)?;
            let method = property::string(id::AUTHENTICATION_METHOD, name);
            client.send(&auth_with(first::AUTH, AGAIN, &[method, data(scram("ann").first())]))?;
            client.refused(PROTOCOL_ERROR)?;
        }
        Ok(())
    });
    s.v5("4.12.1", "another method in the middle of it is a protocol error", |t| {
        let mut client = ann(t)?;
        again(&mut client, &scram("ann"))?;
        let method = property::string(id::AUTHENTICATION_METHOD, "SCRAM-SHA-1");
        client.send(&auth_with(first::AUTH, CONTINUE, &[method, data("x")]))?;
        client.refused(PROTOCOL_ERROR)
    });
    s.v5("4.12.1", "an answer where nothing was asked is a protocol error", |t| {
        let mut client = ann(t)?;
        client.send(&auth(CONTINUE, scram("ann").first()))?;
        client.refused(PROTOCOL_ERROR)
    });
    s.v5("4.12.1", "beginning anew in the middle of it is a protocol error", |t| {
        let mut client = ann(t)?;
        again(&mut client, &scram("ann"))?;
        client.send(&auth(AGAIN, scram("ann").first()))?;
        client.refused(PROTOCOL_ERROR)
    });
    s.v5("3.15.2.1", "AUTH with reasons that a client does not send is a protocol error in a session", |t| {
        for reason in [SUCCESS, 0x01, 0x17, 0x1A, 0x87, 0xFF] {
            let mut client = ann(t)?;
            client.send(&auth(reason, "x"))?;
            client.refused(PROTOCOL_ERROR)?;
        }
        Ok(())
    });
    s.v5("3.15.1 MQTT-3.15.1-1", "AUTH with reserved flags is malformed in a session", |t| {
        for flags in 1..16 {
            let mut client = ann(t)?;
            client.send(&auth_with(first::AUTH | flags, AGAIN, &[method(), data(scram("ann").first())]))?;
            client.refused(MALFORMED)?;
        }
        Ok(())
    });
    s.v5("4.12.1", "a second authentication that stops is ended with 0x87 after its time", |t| {
        let mut client = ann(t)?;
        again(&mut client, &scram("ann"))?;
        client.refused(NOT_AUTHORIZED)
    });
}

fn without_a_method(s: &mut Suite) {
    s.v5("4.12 MQTT-4.12.0-7", "AUTH of a client that came in with a password is a protocol error", |t| {
        for reason in [CONTINUE, AGAIN] {
            let mut client = t.open("c")?;
            ensure!(client.connect(&login(t, "c", "ann"))?.reason == 0, "ann is not connected");
            client.send(&auth(reason, scram("ann").first()))?;
            client.refused(PROTOCOL_ERROR)?;
        }
        Ok(())
    });
    s.v5("4.12 MQTT-4.12.0-6", "a CONNACK to a CONNECT without a method names none", |t| {
        let mut client = t.open("c")?;
        let connack = client.connect(&login(t, "c", "ann"))?;
        let named = connack
            .properties
            .iter()
            .any(|property| matches!(property.id, id::AUTHENTICATION_METHOD | id::AUTHENTICATION_DATA));
        ensure!(connack.reason == 0 && !named, "{connack:?}");
        Ok(())
    });
    for (version, section) in [(Version::V31, "2.1"), (Version::V311, "2.2.1")] {
        s.add(version, section, "packet type 15 is no packet: closed", |t| {
            let mut client = t.open("c")?;
            ensure!(client.connect(&login(t, "c", "ann"))?.reason == 0, "ann is not connected");
            client.send(&auth(AGAIN, scram("ann").first()))?;
            client.closed()
        });
    }
}

/// User name and password.
fn passwords(s: &mut Suite) {
    s.both("5.4.1", "5.4.1", "user name and password let in", |t| {
        let mut client = t.open("c")?;
        ensure!(client.connect(&login(t, "c", "ann"))?.reason == 0, "ann is not connected");
        client.quiet()
    });
    s.both("3.2.2.3", "3.2.2.2", "a wrong password and an unknown user get the same answer", |t| {
        for (user, password) in [("ann", "wrong"), ("ann", ""), ("nobody", "ann's own"), ("eve", "ann's own")]
        {
            let mut client = t.open("c")?;
            client.send(&t.connector("c").login(Some(user), Some(password.as_bytes())).bytes())?;
            client.not_connected(Some(4), BAD_PASSWORD).with_context(|| format!("{user}, {password:?}"))?;
        }
        Ok(())
    });
    s.both("3.2.2.3", "3.2.2.2", "nobody comes in without user name and password", |t| {
        let mut client = t.open("c")?;
        client.send(&t.connector("c").bytes())?;
        client.not_connected(Some(5), NOT_AUTHORIZED)
    });
    s.both("3.1.4", "3.1.4 MQTT-3.1.4-6", "what a refused client sent behind CONNECT does nothing", |t| {
        let topic = t.topic("");
        let mut other = t.open("other")?;
        ensure!(other.connect(&login(t, "other", "eve"))?.reason == 0, "eve is not connected");
        other.subscribe(&topic, 0)?;
        let mut client = t.open("c")?;
        let mut bytes = t.connector("c").login(Some("ann"), Some(b"wrong")).bytes();
        bytes.extend(Publish::new(t.version, &topic, "too early").bytes());
        client.send(&bytes)?;
        client.not_connected(Some(4), BAD_PASSWORD)?;
        other.quiet()
    });
}

/// What a client may do.
fn rules(s: &mut Suite) {
    let user = |t: &Bench, name: &str, user: &str| -> Result<Client> {
        let mut client = t.open(name)?;
        ensure!(client.connect(&login(t, name, user))?.reason == 0, "{user} is not connected");
        Ok(client)
    };
    s.both("5.4.2", "5.4.2", "a denied publication reaches nobody and is not retained", move |t| {
        let topic = t.topic("/mute/a");
        let mut client = user(t, "c", "ann")?;
        let mut other = user(t, "o", "eve")?;
        other.subscribe(&topic, 2)?;
        for (qos, identifier) in [(0, 0), (1, 1), (2, 2)] {
            let publish = Publish::new(t.version, &topic, "never").retain().qos(qos, identifier);
            client.send(&publish.bytes())?;
            let wanted = if t.is_v5() { NOT_AUTHORIZED } else { 0 };
            match qos {
                0 => client.quiet()?,
                1 => ensure!(client.acked(first::PUBACK, 1)? == wanted, "PUBACK"),
                _ => {
                    ensure!(client.acked(first::PUBREC, 2)? == wanted, "PUBREC");
                    if !t.is_v5() {
                        client.send(&causeway_tests::mqtt::wire::ack(first::PUBREL, 2))?;
                        client.acked(first::PUBCOMP, 2)?;
                    }
                }
            }
        }
        other.quiet()?;
        let mut late = user(t, "l", "eve")?;
        late.subscribe(&topic, 2)?;
        late.quiet()
    });
    s.both("3.9.3", "3.9.3", "a denied filter is answered by itself, beside one that is granted", move |t| {
        let mut client = user(t, "c", "ann")?;
        let no = if t.is_v5() { NOT_AUTHORIZED } else { 0x80 };
        let names = ["/denied/a", "/a", "/unread/#", "/own/eve/a", "/own/ann/a", "/own/+/a", "/#"];
        let filters: Vec<String> = names.iter().map(|name| t.topic(name)).collect();
        let asked: Vec<(&str, u8)> = filters.iter().map(|filter| (filter.as_str(), 1)).collect();
        let reasons = client.try_subscribe(&asked)?;
        ensure!(reasons == [no, 1, no, no, 1, no, no], "{reasons:02x?}");
        Ok(())
    });
    s.both("5.4.2", "5.4.2", "rules know the user name and the client identifier", move |t| {
        let mut client = user(t, "c", "ann")?;
        let wanted = |allowed: bool| match (allowed, t.is_v5()) {
            (true, true) => 0x10,
            (false, true) => NOT_AUTHORIZED,
            (_, false) => 0,
        };
        let own = format!("/device/{}/a", t.id("c"));
        for (name, allowed) in [
            ("/own/ann/a", true),
            ("/own/eve/a", false),
            ("/own/ann", true),
            ("/own/annx/a", false),
            (own.as_str(), true),
            ("/device/another/a", false),
        ] {
            let identifier = client.identifier();
            let publish = Publish::new(t.version, &t.topic(name), "x").qos(1, identifier);
            client.send(&publish.bytes())?;
            let reason = client.acked(first::PUBACK, identifier)?;
            ensure!(reason == wanted(allowed), "{name}: {reason:#04x}");
        }
        Ok(())
    });
    s.v5("5.4.2", "rules know QoS and retain", move |t| {
        let mut client = user(t, "c", "ann")?;
        for (name, qos, retain, reason) in [
            ("/low/a", 1, false, 0x10),
            ("/low/a", 2, false, NOT_AUTHORIZED),
            ("/live/a", 1, false, 0x10),
            ("/live/a", 1, true, NOT_AUTHORIZED),
        ] {
            let identifier = client.identifier();
            let mut publish = Publish::new(t.version, &t.topic(name), "x").qos(qos, identifier);
            publish.retain = retain;
            client.send(&publish.bytes())?;
            let kind = if qos == 1 { first::PUBACK } else { first::PUBREC };
            let got = client.acked(kind, identifier)?;
            ensure!(got == reason, "{name} qos {qos} retain {retain}: {got:#04x}");
        }
        Ok(())
    });
    s.both("3.1.2.5", "3.1.2.5", "a will that is not allowed refuses the connection", move |t| {
        let mut client = t.open("c")?;
        client.send(&login(t, "c", "ann").will(Will::new(&t.topic("/denied/a"), "x")).bytes())?;
        client.not_connected(Some(5), NOT_AUTHORIZED)
    });
    s.v5("4.8.2", "a shared subscription is judged by its filter", move |t| {
        let mut client = user(t, "c", "ann")?;
        let (no, yes) = (format!("$share/g/{}", t.topic("/denied/a")), format!("$share/g/{}", t.topic("/a")));
        let reasons = client.try_subscribe(&[(&no, 1), (&yes, 1)])?;
        ensure!(reasons == [NOT_AUTHORIZED, 1], "{reasons:02x?}");
        Ok(())
    });
}
