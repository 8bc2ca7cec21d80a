//! Bytes that wait to be written to a stream. Small pieces are copied together, large ones are passed on uncopied.
//!
//! **Invariant:** the bytes come out in the order they went in.

use bytes::{Bytes, BytesMut};

/// Payloads up to this size are copied beside the frames around them; larger ones are passed on as they are.
pub(crate) const COPY_BYTES: usize = 4 * 1024;
/// How much room a new buffer gets.
const BUFFER_BYTES: usize = 32 * 1024;
/// A buffer with less room than this is replaced by a new one.
const MIN_ROOM_BYTES: usize = 2 * 1024;

/// Whether the writer must be woken. One wake-up is enough each time the outbox turns non-empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Flush {
    Wake,
    AlreadyDue,
}

impl Flush {
    /// The wake-up that two writes need together.
    pub(crate) fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::AlreadyDue, Self::AlreadyDue) => Self::AlreadyDue,
            (Self::Wake, _) | (_, Self::Wake) => Self::Wake,
        }
    }
}

/// Bytes that wait to be written.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    chunks: Vec<Bytes>,
    buffer: BytesMut,
    /// Of the chunks; the buffer knows its own.
    chunk_bytes: usize,
}

impl Outbox {
    /// An outbox for the few frames of one stream, with as little room as they usually need.
    pub(crate) fn brief() -> Self {
        Self {
            buffer: BytesMut::with_capacity(MIN_ROOM_BYTES),
            ..Self::default()
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.chunk_bytes + self.buffer.len()
    }

    /// Adds what `write` puts into the buffer.
    pub(crate) fn write(&mut self, write: impl FnOnce(&mut BytesMut)) -> Flush {
        let flush = if self.bytes() == 0 {
            Flush::Wake
        } else {
            Flush::AlreadyDue
        };
        if self.buffer.is_empty() && self.buffer.capacity() < MIN_ROOM_BYTES {
            self.buffer.reserve(BUFFER_BYTES);
        }
        write(&mut self.buffer);
        flush
    }

    /// Appends a payload; copies it when it is small.
    pub(crate) fn payload(&mut self, payload: &Bytes) {
        if payload.len() <= COPY_BYTES {
            self.buffer.extend_from_slice(payload);
        } else {
            let before = self.buffer.split().freeze();
            self.chunk_bytes += before.len() + payload.len();
            self.chunks.extend([before, payload.clone()]);
        }
    }

    /// Takes all of it.
    pub(crate) fn take(&mut self) -> Vec<Bytes> {
        let mut chunks = std::mem::take(&mut self.chunks);
        self.chunk_bytes = 0;
        if !self.buffer.is_empty() {
            chunks.push(self.buffer.split().freeze());
        }
        chunks
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_goes_in_comes_out_in_order(
            pieces in prop::collection::vec((0..64_usize, prop_oneof![0..64_usize, 4000..9000_usize], any::<bool>()), 1..40),
        ) {
            let mut outbox = Outbox::default();
            let (mut expected, mut got, mut due) = (Vec::new(), Vec::new(), false);
            for (n, (head, payload, take)) in pieces.into_iter().enumerate() {
                let head = vec![n as u8; head + 1];
                let payload = Bytes::from(vec![!(n as u8); payload]);
                let flush = outbox.write(|buffer| buffer.extend_from_slice(&head));
                prop_assert_eq!(flush == Flush::AlreadyDue, due);
                outbox.payload(&payload);
                expected.extend_from_slice(&head);
                expected.extend_from_slice(&payload);
                prop_assert_eq!(outbox.bytes(), expected.len() - got.len());
                due = !take;
                if take {
                    got.extend(outbox.take().concat());
                    prop_assert_eq!(outbox.bytes(), 0);
                }
            }
            got.extend(outbox.take().concat());
            prop_assert_eq!(got, expected);
        }
    }
}
