//! Length-delimited frames over a byte stream, with the limit checked before anything is allocated.
//!
//! A frame is its length as a protobuf varint, then that many bytes: what prost calls length-delimited. The decoder takes
//! chunks of any size and hands out frames; a frame that lies within one chunk is a slice of it and is never copied.
//!
//! **Invariant:** a decoder buffers at most one frame's bytes beyond the chunk it was last given, and reserves memory for
//! bytes that have arrived, not for bytes that a length promises.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

/// The most bytes a frame's length takes: enough for [`MAX_FRAME_BYTES`].
const MAX_PREFIX_BYTES: usize = 4;

/// The largest limit a decoder can be given, in bytes: what a four-byte varint can say.
pub const MAX_FRAME_BYTES: usize = (1 << 28) - 1;

/// The peer's bytes are not frames. Nothing after them can be read: close the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The peer announced more than the limit.
    #[error("the peer announced a frame of {announced} bytes; at most {limit} are taken here")]
    TooLarge {
        /// What the peer announced, in bytes.
        announced: usize,
        /// What is taken, in bytes.
        limit: usize,
    },
    /// The length is not a varint of at most four bytes.
    #[error("the peer's bytes do not start with a frame length")]
    BadLength,
    /// The stream ended within a frame.
    #[error("the stream ended in the middle of a frame")]
    Truncated,
}

/// Appends `message` to `buffer` as one frame.
///
/// # Panics
/// When the message encodes to more than [`MAX_FRAME_BYTES`], or `buffer` cannot grow: a bug of the caller, who limits what
/// goes into a message.
pub fn encode_frame<M: Message>(message: &M, buffer: &mut impl BufMut) {
    let length = message.encoded_len();
    assert!(
        length <= MAX_FRAME_BYTES,
        "a frame of {length} bytes was to be sent; the most is {MAX_FRAME_BYTES}"
    );
    prost::encoding::encode_varint(length as u64, buffer);
    message.encode_raw(buffer);
}

/// The bytes of `message` as one frame.
///
/// # Panics
/// As [`encode_frame`].
#[must_use]
pub fn frame<M: Message>(message: &M) -> Bytes {
    let mut buffer = BytesMut::with_capacity(MAX_PREFIX_BYTES + message.encoded_len());
    encode_frame(message, &mut buffer);
    buffer.freeze()
}

/// Cuts a byte stream into frames.
///
/// Push what arrives, then take frames until there is none; repeat. Call [`FrameDecoder::finish`] when the stream ends.
#[derive(Debug)]
pub struct FrameDecoder {
    limit: usize,
    /// What of the last chunk is not yet used.
    chunk: Bytes,
    /// The start of a frame whose rest has not arrived.
    partial: BytesMut,
}

/// What the start of a buffer says about the frame in it.
enum Prefix {
    /// The length itself is incomplete.
    Incomplete,
    Complete {
        prefix: usize,
        length: usize,
    },
}

fn read_prefix(bytes: &[u8], limit: usize) -> Result<Prefix, FrameError> {
    let mut length = 0_usize;
    for (at, &byte) in bytes.iter().take(MAX_PREFIX_BYTES).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            if length > limit {
                return Err(FrameError::TooLarge {
                    announced: length,
                    limit,
                });
            }
            return Ok(Prefix::Complete { prefix: at + 1, length });
        }
    }
    if bytes.len() < MAX_PREFIX_BYTES {
        Ok(Prefix::Incomplete)
    } else {
        Err(FrameError::BadLength)
    }
}

impl FrameDecoder {
    /// A decoder that takes frames of at most `limit` bytes, not counting their length; at most [`MAX_FRAME_BYTES`].
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit: limit.min(MAX_FRAME_BYTES),
            chunk: Bytes::new(),
            partial: BytesMut::new(),
        }
    }

    /// From here on, takes frames of at most `limit` bytes: where a stream's first frame and those after it differ in size.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit.min(MAX_FRAME_BYTES);
    }

    /// Adds bytes of the stream. Take every frame with [`FrameDecoder::next_frame`] before the next push, else what is
    /// left is copied.
    pub fn push(&mut self, chunk: Bytes) {
        if self.chunk.is_empty() {
            self.chunk = chunk;
        } else {
            let mut joined = BytesMut::with_capacity(self.chunk.len() + chunk.len());
            joined.extend_from_slice(&self.chunk);
            joined.extend_from_slice(&chunk);
            self.chunk = joined.freeze();
        }
    }

    /// How many bytes it keeps of frames that it has not handed out.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.partial.len() + self.chunk.len()
    }

    /// The next whole frame, without its length; `None` when more bytes are needed.
    ///
    /// # Errors
    /// When the stream does not hold frames within the limit. Every later call fails too.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, FrameError> {
        if self.partial.is_empty() {
            return match read_prefix(&self.chunk, self.limit)? {
                Prefix::Complete { prefix, length } if self.chunk.len() - prefix >= length => {
                    self.chunk.advance(prefix);
                    Ok(Some(self.chunk.split_to(length)))
                }
                Prefix::Complete { .. } | Prefix::Incomplete => {
                    self.partial.extend_from_slice(&self.chunk);
                    self.chunk = Bytes::new();
                    Ok(None)
                }
            };
        }
        loop {
            match read_prefix(&self.partial, self.limit)? {
                Prefix::Incomplete => {
                    if !self.chunk.has_remaining() {
                        return Ok(None);
                    }
                    self.partial.put_u8(self.chunk.get_u8());
                }
                Prefix::Complete { prefix, length } => {
                    let missing = (prefix + length).saturating_sub(self.partial.len());
                    let take = missing.min(self.chunk.len());
                    self.partial.extend_from_slice(&self.chunk.split_to(take));
                    if take < missing {
                        return Ok(None);
                    }
                    self.partial.advance(prefix);
                    return Ok(Some(std::mem::take(&mut self.partial).freeze()));
                }
            }
        }
    }

    /// Checks that the stream ended between two frames.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] when it ended within one.
    pub fn finish(&self) -> Result<(), FrameError> {
        if self.partial.is_empty() && self.chunk.is_empty() {
            Ok(())
        } else {
            Err(FrameError::Truncated)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drain(decoder: &mut FrameDecoder) -> Result<Vec<Bytes>, FrameError> {
        std::iter::from_fn(|| decoder.next_frame().transpose()).collect()
    }

    fn framed(payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        prost::encoding::encode_varint(payload.len() as u64, &mut out);
        out.extend_from_slice(payload);
        out
    }

    #[test]
    fn a_limit_set_between_frames_holds_for_those_after() {
        let mut decoder = FrameDecoder::new(1);
        decoder.push([framed(b"a"), framed(b"bc")].concat().into());
        assert_eq!(decoder.next_frame().unwrap().unwrap(), "a");
        decoder.set_limit(2);
        assert_eq!(decoder.next_frame().unwrap().unwrap(), "bc");
        decoder.push(framed(b"def").into());
        assert_eq!(
            decoder.next_frame(),
            Err(FrameError::TooLarge { announced: 3, limit: 2 })
        );
    }

    proptest! {
        #[test]
        fn any_chunking_yields_the_same_frames(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 0..12),
            cuts in prop::collection::vec(1..97_usize, 1..50),
        ) {
            let stream: Vec<u8> = payloads.iter().flat_map(|p| framed(p)).collect();
            let mut decoder = FrameDecoder::new(400);
            let (mut rest, mut got) = (&stream[..], Vec::new());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (chunk, tail) = rest.split_at((*cut).min(rest.len()));
                rest = tail;
                decoder.push(Bytes::copy_from_slice(chunk));
                got.extend(drain(&mut decoder).unwrap());
            }
            prop_assert_eq!(got, payloads);
            prop_assert_eq!(decoder.finish(), Ok(()));
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_never_exceed_the_limit(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..20),
            limit in 0..64_usize,
        ) {
            let mut decoder = FrameDecoder::new(limit);
            for chunk in chunks {
                decoder.push(chunk.into());
                match drain(&mut decoder) {
                    Ok(frames) => prop_assert!(frames.iter().all(|f| f.len() <= limit)),
                    Err(first) => {
                        prop_assert_eq!(decoder.next_frame(), Err(first));
                        break;
                    }
                }
                prop_assert!(decoder.partial.len() <= limit + MAX_PREFIX_BYTES);
            }
        }

        #[test]
        fn a_cut_stream_is_truncated(payload in prop::collection::vec(any::<u8>(), 1..300), cut in any::<prop::sample::Index>()) {
            let stream = framed(&payload);
            let kept = 1 + cut.index(stream.len() - 1);
            let mut decoder = FrameDecoder::new(300);
            decoder.push(Bytes::copy_from_slice(&stream[..kept]));
            prop_assert_eq!(drain(&mut decoder), Ok(vec![]));
            prop_assert_eq!(decoder.finish(), Err(FrameError::Truncated));
        }
    }

    #[test]
    fn a_frame_within_a_chunk_is_not_copied() {
        let chunk = Bytes::from(framed(b"hello"));
        let mut decoder = FrameDecoder::new(16);
        decoder.push(chunk.clone());
        let frame = decoder.next_frame().unwrap().unwrap();
        assert_eq!(frame.as_ptr(), chunk[1..].as_ptr());
    }

    #[test]
    fn an_oversized_length_is_refused_before_its_bytes_arrive() {
        let mut decoder = FrameDecoder::new(1000);
        decoder.push(Bytes::from_static(&[0xff, 0xff, 0xff, 0x7f]));
        assert_eq!(
            decoder.next_frame(),
            Err(FrameError::TooLarge {
                announced: MAX_FRAME_BYTES,
                limit: 1000
            })
        );
    }

    #[test]
    fn a_length_of_more_than_four_bytes_is_refused() {
        let mut decoder = FrameDecoder::new(1000);
        decoder.push(Bytes::from_static(&[0x80, 0x80, 0x80, 0x80]));
        assert_eq!(decoder.next_frame(), Err(FrameError::BadLength));
    }
}
