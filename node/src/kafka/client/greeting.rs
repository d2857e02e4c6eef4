//! The conversation before a connection is of use: versions, then the login, one request at a time.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes};
use kafka_protocol::messages::{ApiVersionsRequest, ApiVersionsResponse};
use kafka_protocol::protocol::{Request, StrBytes, VersionRange};
use tokio::io::{AsyncWriteExt, BufReader};

use super::auth::Conversation;
use super::login::{Ask, log_in};
use super::transport::{ReadHalf, WriteHalf, read_frame};
use super::wire::{api_name, decode_answer, encode_body, encode_header, strip_response_header};
use super::{Address, ClientOptions, Error, ResponseError};

/// Read at most this much ahead of the frame being taken apart: room for a few small answers.
const READ_AHEAD: usize = 8 * 1024;

/// How long we look for the reason why a broker ended a connection, after it did.
const LAST_WORDS: Duration = Duration::from_secs(1);

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

    /// Carries the login's conversation through. Returns how long the login lasts, where the broker limits
    /// it.
    pub(super) async fn authenticate(
        &mut self,
        versions: &HashMap<i16, VersionRange>,
        conversation: Option<Conversation>,
    ) -> Result<Option<Duration>, Error> {
        let address = self.address;
        match conversation {
            None => Ok(None),
            Some(conversation) => log_in(self, address, versions, conversation).await,
        }
    }
}

impl Greeting<'_> {
    async fn send(&mut self, header: &[u8], body: &[u8]) -> io::Result<()> {
        self.write.write_all(header).await?;
        self.write.write_all(body).await?;
        // TLS keeps what the socket did not take.
        self.write.flush().await
    }

    fn lost(&self, reason: &str) -> Error {
        Error::Disconnected { address: self.address.clone(), reason: reason.into() }
    }

    /// Adds to a connection that was lost so early what is mostly the reason.
    fn hinted(&self, error: Error) -> Error {
        let Error::Disconnected { address, reason } = error else { return error };
        let hint = match &self.options.tls {
            _ if reason.contains("certificate") => "",
            None => "; is this a Kafka port, and does it want TLS or a login?",
            Some(tls) if tls.has_identity() => {
                "; is this a Kafka port, and does the broker trust our certificate (ssl.certfile)?"
            }
            Some(_) => {
                "; is this a Kafka port, and does it want a certificate of ours (ssl.certfile, ssl.keyfile)?"
            }
        };
        Error::Disconnected { address, reason: format!("{reason}{hint}").into() }
    }
}

impl Ask for Greeting<'_> {
    async fn ask<R: Request + Sync>(&mut self, request: &R, version: i16) -> Result<Bytes, Error> {
        let body = encode_body(self.address, request, version)?;
        let id = self.correlation_id;
        let header = encode_header(self.address, R::KEY, version, id, &self.options.client_id, body.len())?;
        self.correlation_id = id.wrapping_add(1);
        if let Err(error) = self.send(&header, &body).await {
            // Why it does not read any more may be waiting for us: an alert of TLS.
            let said = read_frame(&mut self.read, self.address, self.options.max_response_bytes);
            let said = tokio::time::timeout(LAST_WORDS, said).await;
            return Err(match said {
                Ok(Err(said @ (Error::Disconnected { .. } | Error::SpeaksTls { .. }))) => self.hinted(said),
                _ => self.hinted(self.lost(&error.to_string())),
            });
        }
        let frame = read_frame(&mut self.read, self.address, self.options.max_response_bytes).await;
        let frame = frame.map_err(|error| self.hinted(error))?;
        let mut frame = frame.ok_or_else(|| {
            self.hinted(self.lost(&format!("closed by the broker after {}", api_name(R::KEY))))
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
}
