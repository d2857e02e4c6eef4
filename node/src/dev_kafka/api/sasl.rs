//! SaslHandshake and SaslAuthenticate, and the tokens without headers that follow a handshake of version 0.

use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::{
    SaslAuthenticateRequest, SaslAuthenticateResponse, SaslHandshakeRequest, SaslHandshakeResponse,
};
use kafka_protocol::protocol::StrBytes;

use super::{Context, Served};
use crate::dev_kafka::sasl::{self, Mechanism};

pub(super) fn handshake(context: &mut Context, request: SaslHandshakeRequest) -> SaslHandshakeResponse {
    let offered = Mechanism::ALL.iter().map(|mechanism| StrBytes::from_static_str(mechanism.name()));
    let response = SaslHandshakeResponse::default();
    if context.cluster.options.sasl.is_none() {
        // As Kafka on a listener without SASL.
        return response.with_error_code(ResponseError::IllegalSaslState.code());
    }
    let response = response.with_mechanisms(offered.collect());
    match Mechanism::find(&request.mechanism) {
        Some(mechanism) => {
            context.sasl.handshake(mechanism);
            context.sasl.raw = context.version == 0;
            response
        }
        None => response.with_error_code(ResponseError::UnsupportedSaslMechanism.code()),
    }
}

pub(super) fn authenticate(
    context: &mut Context,
    request: SaslAuthenticateRequest,
) -> SaslAuthenticateResponse {
    let response = SaslAuthenticateResponse::default();
    let cluster = context.cluster.clone();
    let Some(options) = &cluster.options.sasl else {
        return response.with_error_code(ResponseError::IllegalSaslState.code());
    };
    if let code @ 1.. = context.request_fault() {
        return response.with_error_code(code);
    }
    match context.sasl.authenticate(options, &request.auth_bytes, Instant::now()) {
        Ok(answer) => {
            let lifetime = options.session_lifetime.filter(|_| context.sasl.is_done());
            let lifetime =
                lifetime.map_or(0, |lifetime| i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX));
            let lifetime = if context.version >= 1 { lifetime } else { 0 };
            response.with_auth_bytes(Bytes::from(answer)).with_session_lifetime_ms(lifetime)
        }
        Err(error) => {
            let code = if error == sasl::Error::State {
                ResponseError::IllegalSaslState.code()
            } else {
                ResponseError::SaslAuthenticationFailed.code()
            };
            context.close_after_answer = true;
            response.with_error_code(code).with_error_message(Some(StrBytes::from_string(error.to_string())))
        }
    }
}

/// A token without request header; the answer is the server's token alone.
pub(super) fn raw_token(context: &mut Context, token: &[u8], output: &mut BytesMut) -> Served {
    let cluster = context.cluster.clone();
    let Some(options) = &cluster.options.sasl else {
        return Served::Close { reason: "sasl is not configured" };
    };
    match context.sasl.authenticate(options, token, Instant::now()) {
        Ok(answer) => {
            output.put_u32(answer.len() as u32);
            output.put_slice(&answer);
            Served::Answered { mute: std::time::Duration::ZERO }
        }
        Err(_) => Served::Close { reason: "authentication failed" },
    }
}
