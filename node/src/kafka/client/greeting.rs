//! The conversation before a connection is of use: versions, then the login, one request at a time.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes};
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, ApiVersionsResponse, SaslAuthenticateRequest, SaslHandshakeRequest,
};
use kafka_protocol::protocol::{Message, Request, StrBytes, VersionRange};
use tokio::io::{AsyncWriteExt, BufReader};

use super::auth::Step;
use super::transport::{ReadHalf, WriteHalf, read_frame};
use super::wire::{
    api_name, common_version, decode_answer, encode_body, encode_header, strip_response_header,
};
use super::{Address, ClientOptions, Error, ResponseError};

/// Read at most this much ahead of the frame being taken apart: room for a few small answers.
const READ_AHEAD: usize = 8 * 1024;

/// A connection that is coming up.
pub(super) struct Greeting<'a> {
    address: &'a Address,
    options: &'a ClientOptions,
    read: BufReader<ReadHalf>,
    write: WriteHalf,
    correlation_id: i32,
}

impl<'a> Greeting<'a> {
    pub(super) fn new(
        address: &'a Address,
        options: &'a ClientOptions,
        read: ReadHalf,
        write: WriteHalf,
    ) -> Self {
        let read = BufReader::with_capacity(READ_AHEAD, read);
        Self { address, options, read, write, correlation_id: 0 }
    }

    /// The stream and the next correlation id.
    pub(super) fn into_parts(self) -> (BufReader<ReadHalf>, WriteHalf, i32) {
        (self.read, self.write, self.correlation_id)
    }

    /// Sends `request` and returns the body of the answer.
    async fn ask<R: Request>(&mut self, request: &R, version: i16) -> Result<Bytes, Error> {
        let body = encode_body(self.address, request, version)?;
        let id = self.correlation_id;
        let header = encode_header(self.address, R::KEY, version, id, &self.options.client_id, body.len())?;
        self.correlation_id = id.wrapping_add(1);
        let lost = |error: io::Error| Error::Disconnected {
            address: self.address.clone(),
            reason: error.to_string().into(),
        };
        self.write.write_all(&header).await.map_err(lost)?;
        self.write.write_all(&body).await.map_err(lost)?;
        let frame = read_frame(&mut self.read, self.address, self.options.max_response_bytes).await?;
        let mut frame = frame.ok_or_else(|| Error::Disconnected {
            address: self.address.clone(),
            reason: format!(
                "closed by the broker after {}; is this a Kafka port, and does it want TLS or a login?",
                api_name(R::KEY)
            )
            .into(),
        })?;
        let malformed = |reason: &str| Error::MalformedAnswer {
            address: self.address.clone(),
            what: api_name(R::KEY),
            reason: reason.into(),
        };
        match frame.try_get_i32() {
            Ok(answered) if answered == id => {}
            _ => return Err(malformed("wrong correlation id")),
        }
        strip_response_header(R::KEY, version, &mut frame).map_err(malformed)?;
        Ok(frame)
    }

    /// Learns the broker's versions (KIP-35, KIP-511). A broker that does not know our version of
    /// ApiVersions answers UNSUPPORTED_VERSION in version 0: then we ask again in version 0.
    pub(super) async fn negotiate(&mut self) -> Result<HashMap<i16, VersionRange>, Error> {
        let request = ApiVersionsRequest::default()
            .with_client_software_name(StrBytes::from_static_str("causeway"))
            .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
        let newest = 3;
        let body = self.ask(&request, newest).await?;
        let refused = body.first_chunk::<2>().map(|code| i16::from_be_bytes(*code))
            == Some(ResponseError::UnsupportedVersion.code());
        let answer: ApiVersionsResponse = if refused {
            let body = self.ask(&ApiVersionsRequest::default(), 0).await?;
            decode_answer::<ApiVersionsRequest>(self.address, 0, body)?
        } else {
            decode_answer::<ApiVersionsRequest>(self.address, newest, body)?
        };
        if let Some(code) = ResponseError::try_from_code(answer.error_code) {
            return Err(Error::Broker { address: self.address.clone(), what: "ApiVersions".into(), code });
        }
        let ranges = answer.api_keys.iter();
        Ok(ranges
            .map(|api| (api.api_key, VersionRange { min: api.min_version, max: api.max_version }))
            .collect())
    }

    /// Logs in (KIP-43, KIP-152). Returns how long the login lasts, where the broker limits it.
    pub(super) async fn authenticate(
        &mut self,
        versions: &HashMap<i16, VersionRange>,
    ) -> Result<Option<Duration>, Error> {
        let Some(mut conversation) = self.options.authentication.start() else { return Ok(None) };
        let mechanism = conversation.mechanism();
        let address = self.address;
        let refused = |reason: String| Error::Authentication {
            address: address.clone(),
            mechanism,
            reason: reason.into(),
        };
        // Version 1 of the handshake wraps the tokens in SaslAuthenticate requests.
        let handshake = SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str(mechanism));
        common_version(address, versions, ApiKey::SaslHandshake as i16, VersionRange { min: 1, max: 1 })?;
        let body = self.ask(&handshake, 1).await?;
        let answer = decode_answer::<SaslHandshakeRequest>(address, 1, body)?;
        if let Some(code) = ResponseError::try_from_code(answer.error_code) {
            let offered: Vec<&str> = answer.mechanisms.iter().map(|name| &**name).collect();
            return Err(refused(format!("Kafka answered {code}, it offers {}", offered.join(", "))));
        }
        let version = common_version(
            address,
            versions,
            SaslAuthenticateRequest::KEY,
            <SaslAuthenticateRequest as Message>::VERSIONS,
        )?;
        let mut challenge = Bytes::new();
        let mut lifetime = None;
        while let Step::Send(token) = conversation.step(&challenge).map_err(refused)? {
            let request = SaslAuthenticateRequest::default().with_auth_bytes(token.into());
            let body = self.ask(&request, version).await?;
            let answer = decode_answer::<SaslAuthenticateRequest>(address, version, body)?;
            if let Some(code) = ResponseError::try_from_code(answer.error_code) {
                let text = answer.error_message.filter(|text| !text.is_empty());
                return Err(refused(text.map_or_else(|| code.to_string(), |text| text.to_string())));
            }
            lifetime = u64::try_from(answer.session_lifetime_ms).ok().filter(|ms| *ms > 0);
            challenge = answer.auth_bytes;
        }
        Ok(lifetime.map(Duration::from_millis))
    }
}
