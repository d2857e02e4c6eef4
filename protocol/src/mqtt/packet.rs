//! The packet model, shared by MQTT 3.1, 3.1.1 and 5.0.
//!
//! Fields that a version does not have are at their default there: the decoder leaves them so, the
//! encoder ignores them.

use smallvec::SmallVec;

/// The protocol version a connection speaks, sniffed from CONNECT (MQTT-5.0 3.1.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Version {
    /// MQTT 3.1: protocol name `MQIsdp`, level 3.
    V31,
    /// MQTT 3.1.1: protocol name `MQTT`, level 4.
    V311,
    /// MQTT 5.0: protocol name `MQTT`, level 5.
    V5,
}

/// Quality of service (MQTT-5.0 4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum QoS {
    /// At most once.
    #[default]
    AtMostOnce = 0,
    /// At least once.
    AtLeastOnce = 1,
    /// Exactly once.
    ExactlyOnce = 2,
}

/// One control packet (MQTT-5.0 3).
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each variant is the packet of its name")]
pub enum Packet<'a> {
    Connect(Box<Connect<'a>>),
    ConnAck(Box<ConnAck<'a>>),
    Publish(Publish<'a>),
    PubAck(Ack<'a>),
    PubRec(Ack<'a>),
    PubRel(Ack<'a>),
    PubComp(Ack<'a>),
    Subscribe(Subscribe<'a>),
    SubAck(SubAck<'a>),
    Unsubscribe(Unsubscribe<'a>),
    UnsubAck(SubAck<'a>),
    PingReq,
    PingResp,
    Disconnect(Disconnect<'a>),
    Auth(Auth<'a>),
}

/// User properties in order, duplicates kept (MQTT-5.0 1.5.7): the validated property section of a
/// packet, read on demand.
#[derive(Clone, Copy, Default)]
pub struct UserProperties<'a> {
    /// A property section that the decoder has validated; it
    /// may hold other properties between the user properties.
    pub(super) section: &'a [u8],
    /// How many user properties it holds.
    pub(super) count: u32,
}

/// CONNECT (MQTT-5.0 3.1).
#[derive(Clone, Debug, PartialEq)]
pub struct Connect<'a> {
    /// Version named by protocol name and level.
    pub version: Version,
    /// Clean session (3.x) or clean start (5.0).
    pub clean_start: bool,
    /// Seconds; 0 switches the check off.
    pub keep_alive: u16,
    /// May be empty: the server then assigns one (3.x: only with a clean session).
    pub client_id: &'a str,
    /// The will, where the will flag is set.
    pub will: Option<Will<'a>>,
    /// User name.
    pub username: Option<&'a str>,
    /// Password: binary data.
    pub password: Option<&'a [u8]>,
    /// Seconds; `u32::MAX` never expires. 5.0 only.
    pub session_expiry_interval: u32,
    /// QoS 1 and 2 deliveries the client takes unacknowledged; 65,535 where absent. 5.0 only.
    pub receive_maximum: u16,
    /// Largest packet in bytes the client takes; `None` is no limit. 5.0 only.
    pub maximum_packet_size: Option<u32>,
    /// Highest topic alias the client takes from the server. 5.0 only.
    pub topic_alias_maximum: u16,
    /// The client asks for response information. 5.0 only.
    pub request_response_information: bool,
    /// The client takes reason strings and user properties; true where absent. 5.0 only.
    pub request_problem_information: bool,
    /// Enhanced authentication (MQTT-5.0 4.12).
    pub authentication_method: Option<&'a str>,
    /// Data for it.
    pub authentication_data: Option<&'a [u8]>,
    /// User properties.
    pub user_properties: UserProperties<'a>,
}

/// The will message of a CONNECT (MQTT-5.0 3.1.2.5, 3.1.3.2).
#[derive(Clone, Debug, PartialEq)]
pub struct Will<'a> {
    /// Topic name.
    pub topic: &'a str,
    /// Payload.
    pub payload: &'a [u8],
    /// QoS of the will's publication.
    pub qos: QoS,
    /// Retain flag of the will's publication.
    pub retain: bool,
    /// Seconds between the end of the connection and the publication. 5.0 only.
    pub delay_interval: u32,
    /// Publish properties of the will (no topic alias, no subscription identifiers).
    pub properties: PublishProperties<'a>,
}

/// CONNACK (MQTT-5.0 3.2).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConnAck<'a> {
    /// The server has a session for this client.
    pub session_present: bool,
    /// Reason code; the encoder maps it to a 3.x return code where that version is spoken.
    pub reason: ReasonCode,
    /// Overrides the expiry the client asked for.
    pub session_expiry_interval: Option<u32>,
    /// QoS 1 and 2 publications the server takes unacknowledged.
    pub receive_maximum: Option<u16>,
    /// Highest QoS the server takes, where it is not 2.
    pub maximum_qos: Option<QoS>,
    /// False where the server keeps no retained messages.
    pub retain_available: Option<bool>,
    /// Largest packet in bytes the server takes.
    pub maximum_packet_size: Option<u32>,
    /// The id the server chose for a client that sent none.
    pub assigned_client_identifier: Option<&'a str>,
    /// Highest topic alias the server takes.
    pub topic_alias_maximum: Option<u16>,
    /// Text for people.
    pub reason_string: Option<&'a str>,
    /// Wildcard subscriptions are available.
    pub wildcard_subscription_available: Option<bool>,
    /// Subscription identifiers are available.
    pub subscription_identifiers_available: Option<bool>,
    /// Shared subscriptions are available.
    pub shared_subscription_available: Option<bool>,
    /// Keep-alive in seconds the server uses instead of the client's.
    pub server_keep_alive: Option<u16>,
    /// Basis for response topics.
    pub response_information: Option<&'a str>,
    /// Another server to use.
    pub server_reference: Option<&'a str>,
    /// Enhanced authentication.
    pub authentication_method: Option<&'a str>,
    /// Data for it.
    pub authentication_data: Option<&'a [u8]>,
    /// User properties.
    pub user_properties: UserProperties<'a>,
}

/// PUBLISH (MQTT-5.0 3.3).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Publish<'a> {
    /// This may be a re-delivery.
    pub dup: bool,
    /// Quality of service.
    pub qos: QoS,
    /// Retain flag.
    pub retain: bool,
    /// Topic name; empty only with a topic alias (5.0).
    pub topic: &'a str,
    /// Packet identifier; 0 (which is no identifier) with QoS 0.
    pub packet_identifier: u16,
    /// Properties (5.0).
    pub properties: PublishProperties<'a>,
    /// Payload.
    pub payload: &'a [u8],
}

/// Properties of a PUBLISH or of a will (MQTT-5.0 3.3.2.3).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PublishProperties<'a> {
    /// 1: the payload is UTF-8.
    pub payload_format_indicator: Option<u8>,
    /// Seconds until the message expires.
    pub message_expiry_interval: Option<u32>,
    /// Topic alias, never 0.
    pub topic_alias: Option<u16>,
    /// Topic for a response.
    pub response_topic: Option<&'a str>,
    /// Ties a response to its request.
    pub correlation_data: Option<&'a [u8]>,
    /// Identifiers of the subscriptions that matched (server to client only).
    pub subscription_identifiers: SmallVec<[u32; 2]>,
    /// Content type.
    pub content_type: Option<&'a str>,
    /// User properties.
    pub user_properties: UserProperties<'a>,
}

/// PUBACK, PUBREC, PUBREL, PUBCOMP (MQTT-5.0 3.4 to 3.7).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ack<'a> {
    /// Packet identifier, never 0.
    pub packet_identifier: u16,
    /// Reason code; success in 3.x.
    pub reason: ReasonCode,
    /// Text for people.
    pub reason_string: Option<&'a str>,
    /// User properties.
    pub user_properties: UserProperties<'a>,
}

/// SUBSCRIBE (MQTT-5.0 3.8).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Subscribe<'a> {
    /// Packet identifier, never 0.
    pub packet_identifier: u16,
    /// Subscription identifier, never 0 (5.0).
    pub subscription_identifier: Option<u32>,
    /// User properties.
    pub user_properties: UserProperties<'a>,
    /// At least one filter.
    pub filters: Vec<SubscribeFilter<'a>>,
}

/// One filter of a SUBSCRIBE with its options (MQTT-5.0 3.8.3.1).
#[derive(Clone, Debug, PartialEq)]
pub struct SubscribeFilter<'a> {
    /// Topic filter, valid by MQTT-5.0 4.7.1 (a `$share/` prefix is still on it).
    pub filter: &'a str,
    /// Options.
    pub options: SubscriptionOptions,
}

/// Subscription options (MQTT-5.0 3.8.3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SubscriptionOptions {
    /// Highest QoS the client takes.
    pub qos: QoS,
    /// Do not send the client its own publications.
    pub no_local: bool,
    /// Keep the retain flag as it was published.
    pub retain_as_published: bool,
    /// Which retained messages are sent on SUBSCRIBE.
    pub retain_handling: RetainHandling,
}

/// When retained messages are sent (MQTT-5.0 3.8.3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum RetainHandling {
    /// At every SUBSCRIBE.
    #[default]
    Send = 0,
    /// Only where the subscription is new.
    SendIfNew = 1,
    /// Never.
    DoNotSend = 2,
}

/// SUBACK (MQTT-5.0 3.9) and UNSUBACK (MQTT-5.0 3.11); in 3.x an UNSUBACK has no reasons.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SubAck<'a> {
    /// Packet identifier, never 0.
    pub packet_identifier: u16,
    /// Text for people.
    pub reason_string: Option<&'a str>,
    /// User properties.
    pub user_properties: UserProperties<'a>,
    /// One reason a filter, in order.
    pub reasons: SmallVec<[ReasonCode; 4]>,
}

/// UNSUBSCRIBE (MQTT-5.0 3.10).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Unsubscribe<'a> {
    /// Packet identifier, never 0.
    pub packet_identifier: u16,
    /// User properties.
    pub user_properties: UserProperties<'a>,
    /// At least one filter.
    pub filters: Vec<&'a str>,
}

/// DISCONNECT (MQTT-5.0 3.14).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Disconnect<'a> {
    /// Why; normal in 3.x.
    pub reason: ReasonCode,
    /// A new expiry in seconds (client to server).
    pub session_expiry_interval: Option<u32>,
    /// Text for people.
    pub reason_string: Option<&'a str>,
    /// Another server to use.
    pub server_reference: Option<&'a str>,
    /// User properties.
    pub user_properties: UserProperties<'a>,
}

/// AUTH (MQTT-5.0 3.15).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Auth<'a> {
    /// 0x00, 0x18 or 0x19.
    pub reason: ReasonCode,
    /// Method, the one of the CONNECT.
    pub authentication_method: Option<&'a str>,
    /// Data.
    pub authentication_data: Option<&'a [u8]>,
    /// Text for people.
    pub reason_string: Option<&'a str>,
    /// User properties.
    pub user_properties: UserProperties<'a>,
}

macro_rules! reason_codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal),* $(,)?) => {
        /// Reason codes (MQTT-5.0 2.4). 0x00 to 0x02 also name the granted QoS of a SUBACK.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum ReasonCode { $($(#[$doc])* $name = $value),* }

        impl ReasonCode {
            /// The reason with this value, if the standard has one.
            pub fn from_u8(value: u8) -> Option<Self> {
                match value { $($value => Some(Self::$name),)* _ => None }
            }
        }
    };
}

reason_codes! {
    /// Success, normal disconnection, or granted QoS 0.
    #[default]
    Success = 0x00,
    /// Granted QoS 1.
    GrantedQoS1 = 0x01,
    /// Granted QoS 2.
    GrantedQoS2 = 0x02,
    /// Disconnect with will message.
    DisconnectWithWill = 0x04,
    /// No matching subscribers.
    NoMatchingSubscribers = 0x10,
    /// No subscription existed.
    NoSubscriptionExisted = 0x11,
    /// Continue authentication.
    ContinueAuthentication = 0x18,
    /// Re-authenticate.
    ReAuthenticate = 0x19,
    /// Unspecified error.
    UnspecifiedError = 0x80,
    /// Malformed packet.
    MalformedPacket = 0x81,
    /// Protocol error.
    ProtocolError = 0x82,
    /// Implementation specific error.
    ImplementationSpecificError = 0x83,
    /// Unsupported protocol version.
    UnsupportedProtocolVersion = 0x84,
    /// Client identifier not valid.
    ClientIdentifierNotValid = 0x85,
    /// Bad user name or password.
    BadUserNameOrPassword = 0x86,
    /// Not authorized.
    NotAuthorized = 0x87,
    /// Server unavailable.
    ServerUnavailable = 0x88,
    /// Server busy.
    ServerBusy = 0x89,
    /// Banned.
    Banned = 0x8A,
    /// Server shutting down.
    ServerShuttingDown = 0x8B,
    /// Bad authentication method.
    BadAuthenticationMethod = 0x8C,
    /// Keep-alive timeout.
    KeepAliveTimeout = 0x8D,
    /// Session taken over.
    SessionTakenOver = 0x8E,
    /// Topic filter invalid.
    TopicFilterInvalid = 0x8F,
    /// Topic name invalid.
    TopicNameInvalid = 0x90,
    /// Packet identifier in use.
    PacketIdentifierInUse = 0x91,
    /// Packet identifier not found.
    PacketIdentifierNotFound = 0x92,
    /// Receive maximum exceeded.
    ReceiveMaximumExceeded = 0x93,
    /// Topic alias invalid.
    TopicAliasInvalid = 0x94,
    /// Packet too large.
    PacketTooLarge = 0x95,
    /// Message rate too high.
    MessageRateTooHigh = 0x96,
    /// Quota exceeded.
    QuotaExceeded = 0x97,
    /// Administrative action.
    AdministrativeAction = 0x98,
    /// Payload format invalid.
    PayloadFormatInvalid = 0x99,
    /// Retain not supported.
    RetainNotSupported = 0x9A,
    /// QoS not supported.
    QoSNotSupported = 0x9B,
    /// Use another server.
    UseAnotherServer = 0x9C,
    /// Server moved.
    ServerMoved = 0x9D,
    /// Shared subscriptions not supported.
    SharedSubscriptionsNotSupported = 0x9E,
    /// Connection rate exceeded.
    ConnectionRateExceeded = 0x9F,
    /// Maximum connect time.
    MaximumConnectTime = 0xA0,
    /// Subscription identifiers not supported.
    SubscriptionIdentifiersNotSupported = 0xA1,
    /// Wildcard subscriptions not supported.
    WildcardSubscriptionsNotSupported = 0xA2,
}
