//! The four compression codecs, each in the framing that Kafka's Java clients write and expect:
//! gzip; snappy in xerial blocks (raw snappy is read as well); an LZ4 frame with independent 64 KB
//! blocks; a zstd frame.
//!
//! Invariants: decompression never yields more than the caller's limit, and memory grows with what was
//! really decoded, not with what a length field declares.

use std::fmt;
use std::io::{Read, Write};

use super::error::Error;

/// How the records of a batch are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// gzip, level 6.
    Gzip,
    /// snappy.
    Snappy,
    /// LZ4.
    Lz4,
    /// zstd, level 3; needs Kafka 2.1 (KIP-110).
    Zstd,
}

impl Compression {
    /// All codecs, for tests and tables.
    pub const ALL: [Self; 5] = [Self::None, Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd];

    /// The number in a batch's attributes.
    pub fn id(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Gzip => 1,
            Self::Snappy => 2,
            Self::Lz4 => 3,
            Self::Zstd => 4,
        }
    }

    /// The codec of a number in a batch's attributes.
    ///
    /// # Errors
    /// [`Error::UnknownCompression`].
    pub fn from_id(id: u8) -> Result<Self, Error> {
        match id {
            0 => Ok(Self::None),
            1 => Ok(Self::Gzip),
            2 => Ok(Self::Snappy),
            3 => Ok(Self::Lz4),
            4 => Ok(Self::Zstd),
            id => Err(Error::UnknownCompression { id }),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "no compression",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        })
    }
}

const ZSTD_LEVEL: i32 = 3;
/// Largest window that any zstd level needs (2^27), which is also the most that Java's decoder takes.
const ZSTD_MAX_WINDOW_LOG: u32 = 27;
/// Level 19 uses 2^23; a stream of unknown length carries its level's window however short it is.
const ZSTD_MIN_WINDOW_LOG: u32 = 23;

/// Block size that xerial's snappy streams use.
const XERIAL_BLOCK: usize = 32 * 1024;
const XERIAL_MAGIC: [u8; 8] = [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0];
/// Version 1, readable from version 1.
const XERIAL_VERSIONS: [u8; 8] = [0, 0, 0, 1, 0, 0, 0, 1];
/// The densest snappy element copies 64 bytes with 3.
const SNAPPY_MAX_RATIO: usize = 22;

/// Compresses `input` behind `reserved` zero bytes. `None` where nothing is to be done.
pub(super) fn compress(
    compression: Compression,
    input: &[u8],
    reserved: usize,
) -> Result<Option<Vec<u8>>, Error> {
    let fail = |error: &dyn fmt::Display| Error::Compress { codec: compression, detail: error.to_string() };
    let mut out = Vec::with_capacity(reserved + input.len() / 2 + 64);
    out.resize(reserved, 0);
    let out = match compression {
        Compression::None => return Ok(None),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::new(6));
            encoder.write_all(input).and_then(|()| encoder.finish()).map_err(|error| fail(&error))?
        }
        Compression::Snappy => {
            out.extend_from_slice(&XERIAL_MAGIC);
            out.extend_from_slice(&XERIAL_VERSIONS);
            let mut encoder = snap::raw::Encoder::new();
            let mut block = vec![0; snap::raw::max_compress_len(XERIAL_BLOCK.min(input.len()))];
            for chunk in input.chunks(XERIAL_BLOCK) {
                let len = encoder.compress(chunk, &mut block).map_err(|error| fail(&error))?;
                out.extend_from_slice(&(len as u32).to_be_bytes());
                out.extend_from_slice(block.get(..len).unwrap_or(&[]));
            }
            out
        }
        Compression::Lz4 => {
            let info = lz4_flex::frame::FrameInfo::new()
                .block_mode(lz4_flex::frame::BlockMode::Independent)
                .block_size(lz4_flex::frame::BlockSize::Max64KB);
            let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, out);
            encoder.write_all(input).map_err(|error| fail(&error))?;
            encoder.finish().map_err(|error| fail(&error))?
        }
        Compression::Zstd => {
            let mut encoder =
                zstd::stream::write::Encoder::new(out, ZSTD_LEVEL).map_err(|error| fail(&error))?;
            encoder
                .set_pledged_src_size(Some(input.len() as u64))
                .and_then(|()| encoder.write_all(input))
                .and_then(|()| encoder.finish())
                .map_err(|error| fail(&error))?
        }
    };
    Ok(Some(out))
}

/// Decompresses `input` to at most `limit` bytes. `None` where it is not compressed.
pub(super) fn decompress(
    compression: Compression,
    input: &[u8],
    limit: usize,
) -> Result<Option<Vec<u8>>, Error> {
    let fail = |error: &dyn fmt::Display| Error::Decompress { codec: compression, detail: error.to_string() };
    let over = || Error::OutputLimit { codec: compression, limit };
    let read = |mut from: &mut dyn Read| {
        let mut out = Vec::new();
        let most = (limit as u64).saturating_add(1);
        (&mut from).take(most).read_to_end(&mut out).map_err(|error| fail(&error))?;
        if out.len() > limit { Err(over()) } else { Ok(Some(out)) }
    };
    match compression {
        Compression::None => Ok(None),
        Compression::Gzip => read(&mut flate2::bufread::MultiGzDecoder::new(input)),
        Compression::Snappy => decompress_snappy(input, limit).map(Some),
        Compression::Lz4 => read(&mut lz4_flex::frame::FrameDecoder::new(input)),
        Compression::Zstd => {
            let mut decoder =
                zstd::stream::read::Decoder::with_buffer(input).map_err(|error| fail(&error))?;
            let window_log =
                (usize::BITS - limit.leading_zeros()).clamp(ZSTD_MIN_WINDOW_LOG, ZSTD_MAX_WINDOW_LOG);
            decoder.window_log_max(window_log).map_err(|error| fail(&error))?;
            read(&mut decoder)
        }
    }
}

fn decompress_snappy(input: &[u8], limit: usize) -> Result<Vec<u8>, Error> {
    let cut = || Error::Decompress { codec: Compression::Snappy, detail: "a block is cut off".into() };
    let mut out = Vec::new();
    let Some(blocks) = input.strip_prefix(&XERIAL_MAGIC) else {
        snappy_block(input, limit, &mut out)?;
        return Ok(out);
    };
    let mut blocks = blocks.get(XERIAL_VERSIONS.len()..).ok_or_else(cut)?;
    while !blocks.is_empty() {
        let (len, rest) = blocks.split_first_chunk::<4>().ok_or_else(cut)?;
        let len = usize::try_from(i32::from_be_bytes(*len)).map_err(|_| cut())?;
        let (block, rest) = rest.split_at_checked(len).ok_or_else(cut)?;
        snappy_block(block, limit, &mut out)?;
        blocks = rest;
    }
    Ok(out)
}

fn snappy_block(block: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), Error> {
    let codec = Compression::Snappy;
    let fail = |error: snap::Error| Error::Decompress { codec, detail: error.to_string() };
    let len = snap::raw::decompress_len(block).map_err(fail)?;
    let start = out.len();
    if len > limit.saturating_sub(start) {
        return Err(Error::OutputLimit { codec, limit });
    }
    if len > block.len().saturating_mul(SNAPPY_MAX_RATIO) {
        let detail = format!("a block of {} bytes declares {len} bytes of output", block.len());
        return Err(Error::Decompress { codec, detail });
    }
    out.resize(start + len, 0);
    let room = out.get_mut(start..).unwrap_or(&mut []);
    snap::raw::Decoder::new().decompress(block, room).map_err(fail)?;
    Ok(())
}
