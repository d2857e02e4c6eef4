//! The exchange of a login (KIP-43, KIP-152) on a connection: SaslHandshake, then SaslAuthenticate until both
//! sides are satisfied. The same at the start of a connection and again during its life (KIP-368).

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::{ApiKey, SaslAuthenticateRequest, SaslHandshakeRequest};
use kafka_protocol::protocol::{Message, Request, StrBytes, VersionRange};

use super::auth::{Conversation, Step};
use super::wire::{common_version, decode_answer};
use super::{Address, Error, ResponseError};

/// Sends a request on the connection and waits for its answer.
pub(super) trait Ask {
    /// Sends `request` and returns the body of the answer.
    fn ask<R: Request + Sync>(
        &mut self,
        request: &R,
        version: i16,
    ) -> impl Future<Output = Result<Bytes, Error>> + Send;
}

/// Carries a conversation through. Returns how long the login lasts, where the broker limits it.
pub(super) async fn log_in<A: Ask + Send>(
    connection: &mut A,
    address: &Address,
    versions: &HashMap<i16, VersionRange>,
    mut conversation: Conversation,
) -> Result<Option<Duration>, Error> {
    let mechanism = conversation.mechanism();
    let refused =
        |reason: String| Error::Authentication { address: address.clone(), mechanism, reason: reason.into() };
    // Version 1 of the handshake wraps the tokens in SaslAuthenticate requests.
    let handshake = SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str(mechanism));
    common_version(address, versions, ApiKey::SaslHandshake as i16, VersionRange { min: 1, max: 1 })?;
    let body = connection.ask(&handshake, 1).await?;
    let answer = decode_answer::<SaslHandshakeRequest>(address, 1, body)?;
    if let Some(code) = ResponseError::try_from_code(answer.error_code) {
        let offered: Vec<&str> = answer.mechanisms.iter().map(|name| &**name).collect();
        return Err(refused(refusal(code, &offered)));
    }
    let version = common_version(
        address,
        versions,
        SaslAuthenticateRequest::KEY,
        <SaslAuthenticateRequest as Message>::VERSIONS,
    )?;
    let mut challenge = Bytes::new();
    let mut lifetime = None;
    loop {
        // A step may compute for a while (PBKDF2): not on the threads that serve connections.
        let stepped = tokio::task::spawn_blocking(move || {
            let step = conversation.step(&challenge);
            (conversation, step)
        });
        let step;
        (conversation, step) = stepped.await.map_err(|_| refused("the login was given up".to_owned()))?;
        let token = match step.map_err(refused)? {
            Step::Send(token) => token,
            Step::Done => return Ok(lifetime),
        };
        let request = SaslAuthenticateRequest::default().with_auth_bytes(token.into());
        let body = connection.ask(&request, version).await?;
        let answer = decode_answer::<SaslAuthenticateRequest>(address, version, body)?;
        if let Some(code) = ResponseError::try_from_code(answer.error_code) {
            let text = answer.error_message.filter(|text| !text.is_empty());
            return Err(refused(text.map_or_else(|| code.to_string(), |text| text.to_string())));
        }
        lifetime =
            u64::try_from(answer.session_lifetime_ms).ok().filter(|ms| *ms > 0).map(Duration::from_millis);
        challenge = answer.auth_bytes;
    }
}

/// Why a broker does not begin with a mechanism, and what to do.
fn refusal(code: ResponseError, offered: &[&str]) -> String {
    match code {
        ResponseError::UnsupportedSaslMechanism if offered.is_empty() => {
            "the broker does not offer this mechanism, nor any other: see its sasl.enabled.mechanisms".to_owned()
        }
        ResponseError::UnsupportedSaslMechanism => format!(
            "the broker does not offer this mechanism, it offers {}: set authentication.mechanism to one of these, or add \
             ours to its sasl.enabled.mechanisms",
            offered.join(", ")
        ),
        ResponseError::IllegalSaslState => {
            "this port of the broker takes no login: set authentication = none, or take the port of its SASL listener".to_owned()
        }
        code => format!("Kafka answered {code}"),
    }
}
