//! One frame: a JSON header and f32 values. Lengths are believed only as far as bytes arrive.

use super::MAX_HEADER_BYTES;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, Read, Write};

/// How much is read or written at once.
const CHUNK_BYTES: usize = 256 << 10;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The pipe broke.
    #[error("the pipe to the other process broke: {0}")]
    Io(#[source] io::Error),
    /// The stream ended within a frame.
    #[error("the stream ended in the middle of a message: the other process has died")]
    Truncated,
    /// The header is longer than allowed. Bytes that are no frame at all usually end here.
    #[error("a header of {bytes} bytes, at most {MAX_HEADER_BYTES}: too large, or not this protocol")]
    HeaderTooLong {
        /// What the length says.
        bytes: u64,
    },
    /// The payload is longer than the reader expects.
    #[error("a payload of {bytes} bytes, at most {limit} here")]
    PayloadTooLong {
        /// What the length says.
        bytes: u64,
        /// What was allowed.
        limit: u64,
    },
    /// The payload does not consist of whole f32 values.
    #[error("a payload of {0} bytes is not a whole number of f32 values")]
    NotWholeValues(u64),
    /// There is no memory for the values. They were read past: the stream is at the next frame.
    #[error("there is no memory for {0} values")]
    Memory(u64),
    /// The header is not a message of this protocol.
    #[error("the header is not a message of this protocol: {0}")]
    BadHeader(String),
}

impl From<io::Error> for ProtocolError {
    fn from(e: io::Error) -> Self {
        if e.kind() == io::ErrorKind::UnexpectedEof { Self::Truncated } else { Self::Io(e) }
    }
}

/// Writes one frame and flushes. Nothing is written if the header is too long.
///
/// # Errors
/// [`ProtocolError::Io`], [`ProtocolError::HeaderTooLong`], or [`ProtocolError::BadHeader`] if `message` has no JSON
/// form (a path that is not Unicode).
pub fn write_frame<T: Serialize>(
    writer: &mut impl Write,
    message: &T,
    values: &[f32],
) -> Result<(), ProtocolError> {
    let header = serde_json::to_vec(message).map_err(|e| ProtocolError::BadHeader(e.to_string()))?;
    let len = u32::try_from(header.len())
        .ok()
        .filter(|&n| n <= MAX_HEADER_BYTES)
        .ok_or(ProtocolError::HeaderTooLong { bytes: header.len() as u64 })?;
    writer.write_all(&len.to_le_bytes())?;
    writer.write_all(&header)?;
    writer.write_all(&(values.len() as u64 * 4).to_le_bytes())?;
    let mut bytes = Vec::with_capacity(CHUNK_BYTES.min(values.len() * 4));
    for chunk in values.chunks(CHUNK_BYTES / 4) {
        bytes.clear();
        bytes.extend(chunk.iter().flat_map(|v| v.to_le_bytes()));
        writer.write_all(&bytes)?;
    }
    writer.flush()?;
    Ok(())
}

/// Reads one frame, with at most `max_values` values. `None` if the stream ended before it.
///
/// Memory grows with the bytes that arrive, not with the lengths that are announced.
///
/// # Errors
/// [`ProtocolError`]. But for [`ProtocolError::Memory`] the stream is then at no particular place: use it no further.
pub fn read_frame<T: DeserializeOwned>(
    reader: &mut impl Read,
    max_values: u64,
) -> Result<Option<(T, Vec<f32>)>, ProtocolError> {
    let Some(header_len) = read_len(reader)? else { return Ok(None) };
    if header_len > MAX_HEADER_BYTES {
        return Err(ProtocolError::HeaderTooLong { bytes: header_len.into() });
    }
    let mut header = Vec::new();
    reader.take(header_len.into()).read_to_end(&mut header)?;
    if header.len() < header_len as usize {
        return Err(ProtocolError::Truncated);
    }
    let message = serde_json::from_slice(&header).map_err(|e| ProtocolError::BadHeader(e.to_string()))?;

    let mut len = [0; 8];
    reader.read_exact(&mut len)?;
    let len = u64::from_le_bytes(len);
    let limit = max_values.saturating_mul(4);
    if len > limit {
        return Err(ProtocolError::PayloadTooLong { bytes: len, limit });
    }
    if len % 4 != 0 {
        return Err(ProtocolError::NotWholeValues(len));
    }
    let (mut values, mut fits) = (Vec::new(), true);
    let mut left = len;
    let mut chunk = vec![0; CHUNK_BYTES.min(usize::try_from(len).unwrap_or(CHUNK_BYTES))];
    while left > 0 {
        let n = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        reader.read_exact(&mut chunk[..n])?;
        left -= n as u64;
        // What does not fit is read all the same: this process, and its stream, are good for smaller things.
        fits = fits && make_room(&mut values, n / 4, left / 4);
        match fits {
            true => values
                .extend(chunk[..n].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
            false => values = Vec::new(),
        }
    }
    match fits {
        true => Ok(Some((message, values))),
        false => Err(ProtocolError::Memory(len / 4)),
    }
}

/// Makes room for `now` values and, of the `later` ones that are announced, for as many as are there already. Whether there is room.
fn make_room(values: &mut Vec<f32>, now: usize, later: u64) -> bool {
    if values.capacity() - values.len() >= now {
        return true;
    }
    let ahead = usize::try_from(later).unwrap_or(usize::MAX).min(values.len());
    values.try_reserve_exact(now + ahead).is_ok()
}

/// The first four bytes; `None` if the stream ends before the first of them.
fn read_len(reader: &mut impl Read) -> Result<Option<u32>, ProtocolError> {
    let mut first = [0];
    loop {
        match reader.read(&mut first) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    let mut rest = [0; 3];
    reader.read_exact(&mut rest)?;
    Ok(Some(u32::from_le_bytes([first[0], rest[0], rest[1], rest[2]])))
}
