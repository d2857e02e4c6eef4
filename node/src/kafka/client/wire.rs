//! Requests into frames and frames into answers, with the checks that hostile input needs.

use std::collections::HashMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::ApiKey;
use kafka_protocol::protocol::{Decodable, Request, VersionRange};

use super::{Address, Error, layout};

/// Highest versions that our callers are written for, where that is less than the messages allow. Produce 13
/// names topics by id, Fetch 14 and later bring nothing that we use; FindCoordinator 4 and OffsetFetch 8 are
/// for several groups at once; Metadata 13 and ListOffsets 8 bring nothing that we use.
pub(super) fn our_versions(api: i16, messages: VersionRange) -> VersionRange {
    let ceiling = match ApiKey::try_from(api) {
        Ok(ApiKey::Produce | ApiKey::Metadata) => 12,
        Ok(ApiKey::Fetch) => 13,
        Ok(ApiKey::FindCoordinator) => 3,
        Ok(ApiKey::OffsetFetch | ApiKey::ListOffsets) => 7,
        Ok(ApiKey::InitProducerId) => 4,
        Ok(ApiKey::OffsetCommit) => 9,
        _ => i16::MAX,
    };
    VersionRange { min: messages.min, max: messages.max.min(ceiling) }
}

/// The highest version of an API that both sides know.
pub(super) fn common_version(
    address: &Address,
    theirs: &HashMap<i16, VersionRange>,
    api_key: i16,
    ours: VersionRange,
) -> Result<i16, Error> {
    let ours = our_versions(api_key, ours);
    let offered = theirs.get(&api_key);
    let common = offered.map(|theirs| theirs.intersect(&ours)).filter(|common| !common.is_empty());
    common.map(|common| common.max).ok_or_else(|| Error::UnsupportedVersion {
        address: address.clone(),
        api: api_name(api_key),
        ours: format!("{} to {}", ours.min, ours.max).into(),
        theirs: offered.map_or_else(
            || "none at all".into(),
            |theirs| format!("{} to {}", theirs.min, theirs.max).into(),
        ),
    })
}

/// The API's name for messages: `Metadata`, or its number where we do not know it.
pub(super) fn api_name(api: i16) -> Box<str> {
    match ApiKey::try_from(api) {
        Ok(key) => format!("{key:?}").into(),
        Err(()) => format!("api {api}").into(),
    }
}

/// Length prefix and header of a request whose body is `body_len` bytes.
pub(super) fn encode_header(
    address: &Address,
    api: i16,
    version: i16,
    correlation_id: i32,
    client_id: &str,
    body_len: usize,
) -> Result<Bytes, Error> {
    let fail = |reason: &str| Error::Encoding {
        address: address.clone(),
        what: api_name(api),
        reason: reason.into(),
    };
    let key = ApiKey::try_from(api).map_err(|()| fail("unknown api key"))?;
    let header_version = key.request_header_version(version);
    let client_id_len =
        i16::try_from(client_id.len()).map_err(|_| fail("the client id is longer than 32767 bytes"))?;
    let tags = usize::from(header_version >= 2);
    let header_len = 10 + client_id.len() + tags;
    let frame_len = i32::try_from(header_len + body_len).map_err(|_| fail("larger than 2 GiB"))?;
    let mut buffer = BytesMut::with_capacity(4 + header_len);
    buffer.put_i32(frame_len);
    buffer.put_i16(api);
    buffer.put_i16(version);
    buffer.put_i32(correlation_id);
    buffer.put_i16(client_id_len);
    buffer.put_slice(client_id.as_bytes());
    if tags == 1 {
        buffer.put_u8(0);
    }
    Ok(buffer.freeze())
}

/// A request's body.
pub(super) fn encode_body<R: Request>(address: &Address, request: &R, version: i16) -> Result<Bytes, Error> {
    let mut buffer = BytesMut::new();
    request.encode(&mut buffer, version).map_err(|error| Error::Encoding {
        address: address.clone(),
        what: api_name(R::KEY),
        reason: error.to_string().into(),
    })?;
    Ok(buffer.freeze())
}

/// Takes the response header (after the correlation id) off a frame: flexible versions have tagged
/// fields there, which we skip.
pub(super) fn strip_response_header(api: i16, version: i16, frame: &mut Bytes) -> Result<(), &'static str> {
    let key = ApiKey::try_from(api).map_err(|()| "unknown api key")?;
    if key.response_header_version(version) >= 1 {
        layout::skip_tagged_fields(frame)?;
    }
    Ok(())
}

/// Decodes the body of an answer to `R` of `version`. Every length in it is checked against what is
/// there before anything is allocated for it.
pub fn decode_answer<R: Request>(address: &Address, version: i16, body: Bytes) -> Result<R::Response, Error> {
    let malformed = |reason: String| Error::MalformedAnswer {
        address: address.clone(),
        what: api_name(R::KEY),
        reason: reason.into(),
    };
    layout::check(R::KEY, version, &body).map_err(|reason| malformed(reason.to_string()))?;
    let mut rest = body;
    let response = R::Response::decode(&mut rest, version).map_err(|error| malformed(error.to_string()))?;
    if rest.has_remaining() {
        return Err(malformed(format!("{} bytes too many", rest.len())));
    }
    Ok(response)
}
