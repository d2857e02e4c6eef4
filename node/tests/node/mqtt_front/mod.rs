//! A front on a free port, a raw client that speaks through the codec, and a sink that does as it is told.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

pub mod lasting;
pub mod log;
pub mod pki;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use causeway::{
    flow::{Accepted, Message, MessageSink, Outcome, Room, SequenceRange, Ticket, WakeList},
    mqtt::{Front, FrontHandle, ListenerOptions, Options, RetainedLimits, Router},
};
use causeway_protocol::mqtt::{
    Ack, AckKind, ConnAck, Connect, Decoded, Decoder, Disconnect, Packet, Publish, PublishProperties, QoS,
    ReasonCode, Role, SubAck, Subscribe, SubscribeFilter, SubscriptionOptions, Unsubscribe, UserProperties,
    Version, Will,
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

pub const PATIENCE: Duration = Duration::from_secs(5);

pub struct Broker {
    pub front: FrontHandle,
    pub router: Arc<Router>,
    pub address: SocketAddr,
}

pub async fn broker() -> Broker {
    broker_with(|_| {}).await
}

pub async fn broker_with(change: impl FnOnce(&mut Options)) -> Broker {
    let mut options = Options {
        listeners: vec![ListenerOptions::new("test", "127.0.0.1:0".parse().unwrap())],
        linger: Duration::from_millis(300),
        ..Options::default()
    };
    change(&mut options);
    let router = Router::new(RetainedLimits::default());
    let front = Front::start(options, router.clone()).await.unwrap();
    let address = front.addresses()[0];
    Broker { front, router, address }
}

impl Broker {
    /// A connected client with a clean session.
    pub async fn client(&self, version: Version, client_id: &str) -> Client {
        let mut client = Client::open(self.address, version).await;
        let connack = client.connect(&connect(version, client_id)).await;
        assert_eq!(connack.0, ReasonCode::Success);
        client
    }

    /// Waits until `condition` holds for the counters.
    pub async fn until(&self, condition: impl Fn(&causeway::mqtt::StatsSnapshot) -> bool) {
        let wait = async {
            while !condition(&self.front.stats()) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let reached = tokio::time::timeout(PATIENCE, wait).await.is_ok();
        assert!(reached, "not reached: {:#?}", self.front.stats());
    }
}

pub fn connect(version: Version, client_id: &str) -> Connect<'_> {
    Connect {
        version,
        clean_start: true,
        keep_alive: 0,
        client_id,
        will: None,
        username: None,
        password: None,
        session_expiry_interval: 0,
        receive_maximum: 65_535,
        maximum_packet_size: None,
        topic_alias_maximum: 0,
        request_response_information: false,
        request_problem_information: true,
        authentication_method: None,
        authentication_data: None,
        user_properties: UserProperties::default(),
    }
}

/// A connect for a session that lasts.
pub fn persistent(version: Version, client_id: &str) -> Connect<'_> {
    Connect { clean_start: false, session_expiry_interval: 600, ..connect(version, client_id) }
}

pub fn will<'a>(topic: &'a str, payload: &'a [u8]) -> Will<'a> {
    Will {
        topic,
        payload,
        qos: QoS::AtLeastOnce,
        retain: false,
        delay_interval: 0,
        properties: PublishProperties::default(),
    }
}

/// What a test looks at in a packet, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    ConnAck(ReasonCode, bool),
    Publish {
        topic: String,
        payload: Vec<u8>,
        qos: QoS,
        retain: bool,
        dup: bool,
        identifier: u16,
        identifiers: Vec<u32>,
        expiry: Option<u32>,
    },
    Ack(&'static str, u16, ReasonCode),
    SubAck(Vec<ReasonCode>),
    UnsubAck(Vec<ReasonCode>),
    PingResp,
    Disconnect(ReasonCode),
    Auth(ReasonCode, Option<String>, Vec<u8>),
    Closed,
}

pub fn published(topic: &str, payload: &[u8]) -> Seen {
    Seen::Publish {
        topic: topic.to_owned(),
        payload: payload.to_vec(),
        qos: QoS::AtMostOnce,
        retain: false,
        dup: false,
        identifier: 0,
        identifiers: Vec::new(),
        expiry: None,
    }
}

/// What a client speaks over.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

pub struct Client {
    pub socket: Box<dyn Stream>,
    pub version: Version,
    decoder: Decoder,
    input: Vec<u8>,
    pub assigned: Option<String>,
    pub receive_maximum: Option<u16>,
    pub shared_available: Option<bool>,
    /// What the last packet with a reason string said.
    pub reason_string: Option<String>,
    /// The last CONNACK's switches: maximum QoS, retain available, wildcards available.
    pub switches: (Option<QoS>, Option<bool>, Option<bool>),
    pub server_keep_alive: Option<u16>,
    pub response_information: Option<String>,
    /// Topics by alias, and PUBLISHes that were named by alias alone.
    aliases: std::collections::HashMap<u16, String>,
    pub by_alias: usize,
    pub last_word: Option<(String, Vec<u8>)>,
}

impl Client {
    pub async fn open(address: SocketAddr, version: Version) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Self::over(socket, version)
    }

    /// A client over any stream that is open.
    pub fn over(socket: impl Stream + 'static, version: Version) -> Self {
        let mut decoder = Decoder::new(Role::Client, u32::MAX);
        decoder.version = Some(version);
        Self {
            socket: Box::new(socket),
            version,
            decoder,
            input: Vec::new(),
            assigned: None,
            receive_maximum: None,
            shared_available: None,
            reason_string: None,
            switches: (None, None, None),
            server_keep_alive: None,
            response_information: None,
            aliases: std::collections::HashMap::new(),
            by_alias: 0,
            last_word: None,
        }
    }

    pub async fn send(&mut self, packet: &Packet<'_>) {
        let mut out = BytesMut::new();
        packet.encode(self.version, &mut out).unwrap();
        self.socket.write_all(&out).await.unwrap();
    }

    /// Sends bytes as they are.
    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.unwrap();
    }

    /// Sends CONNECT; the answer's reason and whether there was a session.
    pub async fn connect(&mut self, connect: &Connect<'_>) -> (ReasonCode, bool) {
        self.send(&Packet::Connect(Box::new(connect.clone()))).await;
        match self.next().await {
            Seen::ConnAck(reason, present) => (reason, present),
            other => panic!("no CONNACK: {other:?}"),
        }
    }

    /// The next packet, or that the connection is closed.
    pub async fn next(&mut self) -> Seen {
        tokio::time::timeout(PATIENCE, self.receive()).await.expect("a packet")
    }

    /// Like [`Self::next`], for those who bring their own patience.
    pub async fn try_next(&mut self) -> Seen {
        self.receive().await
    }

    /// As [`Self::nothing`], acknowledgements excepted.
    pub async fn nothing_but_acks(&mut self) {
        self.send(&Packet::PingReq).await;
        loop {
            match self.next().await {
                Seen::PingResp => return,
                Seen::Ack(..) => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    async fn receive(&mut self) -> Seen {
        loop {
            let decoded = self.decoder.decode(&self.input).unwrap();
            if let Decoded::Packet { packet, consumed } = decoded {
                if let Packet::ConnAck(connack) = &packet {
                    self.assigned = connack.assigned_client_identifier.map(str::to_owned);
                    self.receive_maximum = connack.receive_maximum;
                    self.shared_available = connack.shared_subscription_available;
                    let (retain, wildcard) =
                        (connack.retain_available, connack.wildcard_subscription_available);
                    self.switches = (connack.maximum_qos, retain, wildcard);
                    self.server_keep_alive = connack.server_keep_alive;
                    self.response_information = connack.response_information.map(str::to_owned);
                    let word = connack.authentication_data.unwrap_or_default().to_vec();
                    self.last_word = connack.authentication_method.map(|method| (method.to_owned(), word));
                }
                self.reason_string = match &packet {
                    Packet::ConnAck(packet) => packet.reason_string,
                    Packet::SubAck(packet) => packet.reason_string,
                    Packet::PubAck(packet) | Packet::PubRec(packet) => packet.reason_string,
                    Packet::Disconnect(packet) => packet.reason_string,
                    _ => None,
                }
                .map(str::to_owned);
                let mut seen = see(&packet);
                if let (Packet::Publish(packet), Seen::Publish { topic, .. }) = (&packet, &mut seen)
                    && let Some(alias) = packet.properties.topic_alias
                {
                    if topic.is_empty() {
                        self.by_alias += 1;
                        topic.clone_from(&self.aliases[&alias]);
                    } else {
                        self.aliases.insert(alias, topic.clone());
                    }
                }
                self.input.drain(..consumed);
                return seen;
            }
            let mut buffer = [0; 4096];
            match self.socket.read(&mut buffer).await {
                Ok(0) | Err(_) => return Seen::Closed,
                Ok(count) => self.input.extend_from_slice(&buffer[..count]),
            }
        }
    }

    /// Makes sure that nothing comes: what was sent before a PINGREQ is answered before it.
    pub async fn nothing(&mut self) {
        self.send(&Packet::PingReq).await;
        assert_eq!(self.next().await, Seen::PingResp);
    }

    pub async fn subscribe(&mut self, filter: &str, qos: QoS) -> Vec<ReasonCode> {
        self.subscribe_with(filter, SubscriptionOptions { qos, ..SubscriptionOptions::default() }, None).await
    }

    pub async fn subscribe_with(
        &mut self,
        filter: &str,
        options: SubscriptionOptions,
        subscription_identifier: Option<u32>,
    ) -> Vec<ReasonCode> {
        self.send(&Packet::Subscribe(Subscribe {
            packet_identifier: 1,
            subscription_identifier,
            user_properties: UserProperties::default(),
            filters: vec![SubscribeFilter { filter, options }],
        }))
        .await;
        match self.next().await {
            Seen::SubAck(reasons) => reasons,
            other => panic!("no SUBACK: {other:?}"),
        }
    }

    pub async fn unsubscribe(&mut self, filter: &str) -> Vec<ReasonCode> {
        self.send(&Packet::Unsubscribe(Unsubscribe {
            packet_identifier: 1,
            user_properties: UserProperties::default(),
            filters: vec![filter],
        }))
        .await;
        match self.next().await {
            Seen::UnsubAck(reasons) => reasons,
            other => panic!("no UNSUBACK: {other:?}"),
        }
    }

    pub async fn publish(&mut self, topic: &str, payload: &[u8], qos: QoS, packet_identifier: u16) {
        self.send(&Packet::Publish(publish(topic, payload, qos, packet_identifier))).await;
    }

    pub async fn ack(&mut self, kind: AckKind, packet_identifier: u16) {
        let ack = Ack {
            packet_identifier,
            reason: ReasonCode::Success,
            reason_string: None,
            user_properties: UserProperties::default(),
        };
        let packet = match kind {
            AckKind::PubAck => Packet::PubAck(ack),
            AckKind::PubRec => Packet::PubRec(ack),
            AckKind::PubRel => Packet::PubRel(ack),
            AckKind::PubComp => Packet::PubComp(ack),
        };
        self.send(&packet).await;
    }

    pub async fn disconnect(&mut self, reason: ReasonCode) {
        self.send(&Packet::Disconnect(Disconnect {
            reason,
            session_expiry_interval: None,
            reason_string: None,
            server_reference: None,
            user_properties: UserProperties::default(),
        }))
        .await;
    }
}

pub fn publish<'a>(topic: &'a str, payload: &'a [u8], qos: QoS, packet_identifier: u16) -> Publish<'a> {
    Publish { topic, payload, qos, packet_identifier, ..Publish::default() }
}

fn see(packet: &Packet<'_>) -> Seen {
    match packet {
        Packet::ConnAck(packet) => {
            let ConnAck { reason, session_present, .. } = **packet;
            Seen::ConnAck(reason, session_present)
        }
        Packet::Publish(packet) => Seen::Publish {
            topic: packet.topic.to_owned(),
            payload: packet.payload.to_vec(),
            qos: packet.qos,
            retain: packet.retain,
            dup: packet.dup,
            identifier: packet.packet_identifier,
            identifiers: packet.properties.subscription_identifiers.to_vec(),
            expiry: packet.properties.message_expiry_interval,
        },
        Packet::PubAck(ack) => Seen::Ack("PUBACK", ack.packet_identifier, ack.reason),
        Packet::PubRec(ack) => Seen::Ack("PUBREC", ack.packet_identifier, ack.reason),
        Packet::PubRel(ack) => Seen::Ack("PUBREL", ack.packet_identifier, ack.reason),
        Packet::PubComp(ack) => Seen::Ack("PUBCOMP", ack.packet_identifier, ack.reason),
        Packet::SubAck(SubAck { reasons, .. }) => Seen::SubAck(reasons.to_vec()),
        Packet::UnsubAck(SubAck { reasons, .. }) => Seen::UnsubAck(reasons.to_vec()),
        Packet::PingResp => Seen::PingResp,
        Packet::Disconnect(disconnect) => Seen::Disconnect(disconnect.reason),
        Packet::Auth(auth) => Seen::Auth(
            auth.reason,
            auth.authentication_method.map(str::to_owned),
            auth.authentication_data.unwrap_or_default().to_vec(),
        ),
        other => panic!("unexpected {other:?}"),
    }
}

/// Topic, payload and ticket of a message.
pub type Taken = (String, Vec<u8>, Option<Ticket>);

/// A sink that keeps tickets until it is told to complete them, and may be full.
#[derive(Default)]
pub struct Sink {
    pub full: AtomicBool,
    pub room: Room,
    pub taken: Mutex<VecDeque<Taken>>,
    pub refused: std::sync::atomic::AtomicU64,
}

impl MessageSink for Sink {
    fn accept(&self, message: &Message<'_>, ticket: Option<&Ticket>, _: &mut WakeList) -> Accepted {
        if ticket.is_some() && self.full.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Accepted::Full(self.room.clone());
        }
        let taken = (message.topic.to_owned(), message.payload.to_vec(), ticket.cloned());
        self.taken.lock().push_back(taken);
        Accepted::Taken
    }
}

impl Sink {
    /// Waits until it has taken `count` messages.
    pub async fn has(&self, count: usize) {
        let wait = async {
            while self.taken.lock().len() < count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, wait).await;
        assert!(waited.is_ok(), "{} of {count} messages arrived", self.taken.lock().len());
    }

    pub fn len(&self) -> usize {
        self.taken.lock().len()
    }

    /// Completes the ticket of a message it took.
    pub fn complete(&self, index: usize, outcome: Outcome) {
        let ticket = self.taken.lock()[index].2.take().expect("a ticket that is not completed");
        ticket.sink.acknowledge(&[SequenceRange { first: ticket.sequence, count: 1 }], outcome);
    }
}
