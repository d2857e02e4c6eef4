//! Raw requests to a Kafka broker, with generated messages and nothing of our client.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{RequestHeader, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};

/// Longest wait for one answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A string for a message.
pub(crate) fn name(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// One connection that sends what it is told and checks nothing but correlation ids.
pub(crate) struct Wire {
    stream: TcpStream,
    correlation: i32,
}

impl Wire {
    pub(crate) fn connect(bootstrap: &str) -> Result<Self> {
        let stream = TcpStream::connect(bootstrap)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, correlation: 0 })
    }

    /// Waits for no answer longer than this.
    pub(crate) fn give_up_after(&self, patience: Duration) -> Result<()> {
        self.stream.set_read_timeout(Some(patience))?;
        Ok(())
    }

    pub(crate) fn send<R: Request>(&mut self, version: i16, request: &R) -> Result<i32> {
        self.correlation += 1;
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(self.correlation)
            .with_client_id(Some(StrBytes::from_static_str("tests")));
        let mut frame = BytesMut::new();
        frame.put_i32(0);
        header.encode(&mut frame, R::header_version(version))?;
        request.encode(&mut frame, version)?;
        let length = (frame.len() - 4) as u32;
        frame.get_mut(..4).context("a frame")?.copy_from_slice(&length.to_be_bytes());
        self.send_frame(&frame)?;
        Ok(self.correlation)
    }

    /// Sends bytes, whatever they are.
    pub(crate) fn send_frame(&mut self, frame: &[u8]) -> Result<()> {
        self.stream.write_all(frame)?;
        Ok(())
    }

    /// The next frame, whatever it answers.
    pub(crate) fn receive_frame(&mut self) -> Result<Bytes> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        let mut frame = Vec::new();
        let length = u64::from(u32::from_be_bytes(length));
        Read::by_ref(&mut self.stream).take(length).read_to_end(&mut frame)?;
        ensure!(frame.len() as u64 == length, "the connection ended within an answer");
        Ok(frame.into())
    }

    pub(crate) fn receive<R: Request>(&mut self, version: i16, correlation: i32) -> Result<R::Response> {
        let mut frame = self.receive_frame()?;
        let header = ResponseHeader::decode(&mut frame, R::Response::header_version(version))?;
        ensure!(
            header.correlation_id == correlation,
            "answer {} came for request {correlation}",
            header.correlation_id
        );
        let response = R::Response::decode(&mut frame, version)?;
        ensure!(frame.is_empty(), "{} bytes behind an answer", frame.len());
        Ok(response)
    }

    pub(crate) fn call<R: Request>(&mut self, version: i16, request: &R) -> Result<R::Response> {
        let correlation = self.send(version, request)?;
        self.receive::<R>(version, correlation)
    }
}
