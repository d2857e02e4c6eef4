//! MQTT over WebSocket as a byte stream (MQTT-5.0 section 6, RFC 6455).
//!
//! Reading decodes frames in the caller's buffer ([`super::frames`]). Writing makes one binary frame of what
//! is offered at once and sends it from where it is, behind its header.
//!
//! Invariants:
//! * Control frames stand between data frames, never inside one.
//! * What waits to be sent here is bounded: one header, one pong (the last, RFC 6455 5.5.3), one close frame.
//! * After a close frame, received or queued, no more data is read; after ours none is written.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::protocol::frame::{
    CloseFrame, Frame, FrameHeader,
    coding::{CloseCode, Data, OpCode},
};

use super::{
    Stream,
    frames::{Event, FrameDecoder, Refused},
};

/// Slices that one write takes, besides the header.
const SLICES: usize = 16;

/// Content of a close frame.
#[derive(Debug)]
enum Closing {
    No,
    /// To be put in behind the frame that is under way.
    With(CloseCode),
    /// In `control`, or sent.
    Queued,
}

/// A WebSocket stream of binary messages (RFC 6455).
pub(crate) struct WebSocket {
    stream: Stream,
    decoder: FrameDecoder,
    /// Frames that came with the request.
    early: Vec<u8>,
    /// Header bytes and control frames on their way out.
    control: Vec<u8>,
    /// Bytes of the data frame under way that are still to be written.
    left: usize,
    /// The payload of the last ping that has no answer yet.
    pong: Option<Box<[u8]>>,
    closing: Closing,
    /// No more is read.
    ended: bool,
}

impl WebSocket {
    /// A WebSocket whose handshake is done; `early` are bytes that came behind the request.
    pub(super) fn new(stream: Stream, early: Vec<u8>) -> Self {
        Self {
            stream,
            decoder: FrameDecoder::default(),
            early,
            control: Vec::new(),
            left: 0,
            pong: None,
            closing: Closing::No,
            ended: false,
        }
    }

    /// The stream below.
    pub(super) fn stream(&mut self) -> &mut Stream {
        &mut self.stream
    }

    pub(super) fn wants_flush(&self) -> bool {
        !self.control.is_empty() || self.pong.is_some() || self.stream.wants_flush()
    }

    /// Decodes what stands in `data`; how much of it is payload, at its front.
    fn decode(&mut self, data: &mut [u8]) -> io::Result<usize> {
        let mut events = Vec::new();
        let decoded = self.decoder.decode(data, &mut events);
        for event in events {
            match event {
                Event::Ping(payload) => self.pong = Some(payload),
                Event::Close(code) => {
                    // The answer has the same code (5.5.1).
                    self.close(code.map_or(CloseCode::Normal, CloseCode::from));
                    self.ended = true;
                }
            }
        }
        decoded.map_err(|Refused { code, why }| {
            self.close(code);
            self.ended = true;
            io::Error::new(io::ErrorKind::InvalidData, why)
        })
    }

    fn close(&mut self, code: CloseCode) {
        if matches!(self.closing, Closing::No) {
            self.closing = Closing::With(code);
        }
    }

    /// Puts a control frame behind what waits, where no data frame is under way.
    fn queue_control(&mut self) {
        if self.left > 0 || !self.control.is_empty() {
            return;
        }
        // Formatting into memory does not fail.
        if let Some(payload) = self.pong.take() {
            let _ = Frame::pong(payload.into_vec()).format(&mut self.control);
        }
        if let Closing::With(code) = self.closing {
            let close = CloseFrame { code, reason: "".into() };
            let _ = Frame::close(Some(close)).format(&mut self.control);
            self.closing = Closing::Queued;
        }
    }

    /// Writes header bytes and control frames that wait.
    fn poll_control(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            self.queue_control();
            if self.control.is_empty() {
                self.control = Vec::new();
                return Poll::Ready(Ok(()));
            }
            match Pin::new(&mut self.stream).poll_write(cx, &self.control) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => drop(self.control.drain(..count)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Writes a part of `slices` as data, at least one byte.
    fn poll_data(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        if total == 0 {
            return Poll::Ready(Ok(0));
        }
        if matches!(self.closing, Closing::Queued) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if self.left == 0 {
            // Waiting control frames go between the frames.
            match self.poll_control(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
            if matches!(self.closing, Closing::Queued) {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let header = FrameHeader { opcode: OpCode::Data(Data::Binary), ..FrameHeader::default() };
            header.format(total as u64, &mut self.control).map_err(io::Error::other)?;
            self.left = total;
        }
        loop {
            let mut parts = [IoSlice::new(&[]); SLICES + 1];
            let mut used = 0;
            if !self.control.is_empty() {
                parts[0] = IoSlice::new(&self.control);
                used = 1;
            }
            // Of the frame under way, no more than its header has promised.
            let mut left = self.left;
            for slice in slices.iter().take(SLICES) {
                let part = slice.get(..left).unwrap_or(slice);
                left -= part.len();
                if let Some(place) = parts.get_mut(used) {
                    *place = IoSlice::new(part);
                    used += 1;
                }
            }
            let written =
                Pin::new(&mut self.stream).poll_write_vectored(cx, parts.get(..used).unwrap_or_default());
            let count = match written {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => count,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            };
            let header = count.min(self.control.len());
            self.control.drain(..header);
            if self.control.is_empty() {
                self.control = Vec::new();
            }
            let data = count - header;
            self.left -= data;
            if data > 0 {
                return Poll::Ready(Ok(data));
            }
        }
    }
}

impl AsyncRead for WebSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while !this.ended && buffer.remaining() > 0 {
            let start = buffer.filled().len();
            if this.early.is_empty() {
                match Pin::new(&mut this.stream).poll_read(cx, buffer) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(result) => result?,
                }
            } else {
                let count = this.early.len().min(buffer.remaining());
                buffer.put_slice(this.early.get(..count).unwrap_or_default());
                this.early.drain(..count);
                if this.early.is_empty() {
                    this.early = Vec::new();
                }
            }
            let end = buffer.filled().len();
            if end == start {
                this.ended = true;
                break;
            }
            let payload = this.decode(buffer.filled_mut().get_mut(start..end).unwrap_or_default());
            // Bytes that are no payload are left out.
            buffer.set_filled(start + payload.as_ref().map_or(0, |count| *count));
            payload?;
            if buffer.filled().len() > start {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for WebSocket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_data(cx, &[IoSlice::new(data)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_data(cx, slices.get(..SLICES).unwrap_or(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.poll_control(cx) {
            Poll::Ready(Ok(())) => Pin::new(&mut this.stream).poll_flush(cx),
            other => other,
        }
    }

    /// Sends a close frame, then closes what is below.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.close(CloseCode::Normal);
        if this.left > 0 {
            // A frame that cannot be finished any more: nothing can follow it.
            this.closing = Closing::Queued;
        }
        match this.poll_control(cx) {
            Poll::Ready(Ok(())) => Pin::new(&mut this.stream).poll_shutdown(cx),
            other => other,
        }
    }
}
