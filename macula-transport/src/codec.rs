//! Call frames as bytes: the head's and trailers' size rules, and payloads that are not copied.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use macula_wire::{FrameError, StatusCode, proto};
use prost::encoding::decode_varint;

use crate::{
    CallReply, CallRequest, Metadata, Reply,
    call::{Extra, Failing},
    config::MAX_HEAD_BYTES,
    error::{CallError, Pushback},
    frame::{self, Last},
    outbox::Outbox,
    stream::StreamKind,
};

/// Payloads up to this size travel in the head or the trailers; larger ones in frames of their own, uncopied.
pub(crate) const INLINE_BYTES: usize = 16 * 1024;
/// The largest first frame of a call, and the largest frame on a stream that calls share.
pub(crate) const MAX_HEAD_FRAME: usize = MAX_HEAD_BYTES + INLINE_BYTES + FRAME_OVERHEAD;
/// What a frame has beside its payload or head, at most: tags, lengths and a call's id.
pub(crate) const FRAME_OVERHEAD: usize = 64;

/// A call's stream: its kind, the head with a small payload in it, and a frame for a large one.
pub(crate) fn request_frames(request: &CallRequest<'_>, timeout_us: u64, kind: StreamKind) -> Vec<Bytes> {
    let inline = request.body.len() <= INLINE_BYTES;
    let mut outbox = Outbox::brief();
    let _ = outbox.write(|buffer| buffer.put_u8(kind.byte()));
    let _ = frame::put_head(&mut outbox, 0, request, timeout_us, inline);
    if !inline {
        let _ = frame::put_data(&mut outbox, 0, &request.body, true);
    }
    outbox.take()
}

/// The start of a streaming call: its kind, the head, and its first message unless that is empty.
pub(crate) fn opening_frames(request: &CallRequest<'_>, timeout_us: u64, kind: StreamKind) -> Vec<Bytes> {
    let mut outbox = Outbox::brief();
    let _ = outbox.write(|buffer| buffer.put_u8(kind.byte()));
    let _ = frame::put_head(&mut outbox, 0, request, timeout_us, false);
    if !request.body.is_empty() {
        let _ = frame::put_data(&mut outbox, 0, &request.body, false);
    }
    outbox.take()
}

/// A reply's frames: the trailers, with a small payload in them, and before them a frame for a large one.
pub(crate) fn reply_frames(reply: &Reply, call: u64) -> Vec<Bytes> {
    let mut outbox = Outbox::brief();
    if reply.body.len() <= INLINE_BYTES {
        let _ = frame::put_trailers(&mut outbox, call, reply, Last::Payload(&reply.body));
    } else {
        let _ = frame::put_data(&mut outbox, call, &reply.body, true);
        let _ = frame::put_trailers(&mut outbox, call, reply, Last::Payload(&Bytes::new()));
    }
    outbox.take()
}

/// The last frame of a streaming call's reply that leaves with all that came before it, which would have fit on a lane.
pub(crate) fn brief_end(reply: &Reply) -> Vec<Bytes> {
    let mut outbox = Outbox::brief();
    let _ = frame::put_trailers(&mut outbox, 0, reply, Last::Brief(&reply.body));
    outbox.take()
}

/// The frames of a large reply on a stream opened for it. The first has no payload: it tells soon which call is answered, so that the
/// caller can wait for the rest as long as the call does, and stop it when the call is over.
pub(crate) fn large_reply_frames(reply: &Reply, call: u64) -> Vec<Bytes> {
    let mut outbox = Outbox::brief();
    let _ = frame::put_data(&mut outbox, call, &Bytes::new(), false);
    let mut frames = outbox.take();
    frames.extend(reply_frames(reply, call));
    frames
}

/// The size of a reply without its payload, to be held against [`MAX_HEAD_BYTES`].
pub(crate) fn reply_head_bytes(reply: &Reply) -> usize {
    let failing = reply.extra.get();
    let metadata = reply
        .metadata
        .entries()
        .iter()
        .map(|entry| prost::Message::encoded_len(entry) + 4)
        .sum::<usize>();
    failing.message.len() + failing.details.len() + metadata + FRAME_OVERHEAD
}

/// What the trailers say, with the payload that came before them.
pub(crate) fn reply(trailers: proto::Trailers, body: Bytes) -> Result<CallReply, CallError> {
    let status = StatusCode::from_u32(trailers.status);
    let pushback = Pushback::from_wire(trailers.pushback_ms);
    if trailers.not_started {
        return Err(CallError::Refused {
            status,
            message: trailers.message,
            pushback,
        });
    }
    Ok(CallReply {
        status,
        metadata: Metadata::from_wire(trailers.metadata),
        body,
        extra: Extra::new(Failing {
            message: trailers.message,
            details: trailers.details,
            pushback,
        }),
    })
}

/// Success, with nothing but a payload.
pub(crate) fn plain_reply(body: Bytes) -> CallReply {
    CallReply {
        status: StatusCode::Ok,
        metadata: Metadata::new(),
        body,
        extra: Extra::default(),
    }
}

/// Takes the first of several messages, each of which follows its length.
pub(crate) fn next_message(rest: &mut Bytes) -> Result<Option<Bytes>, FrameError> {
    if rest.is_empty() {
        return Ok(None);
    }
    let mut after: &[u8] = rest;
    let length = decode_varint(&mut after).map_err(|_| FrameError::BadLength)?;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > after.len() {
        return Err(FrameError::Truncated);
    }
    rest.advance(rest.len() - after.len());
    Ok(Some(rest.split_to(length)))
}

/// Pieces of a payload put together; one piece is not copied.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    first: Bytes,
    rest: BytesMut,
}

impl Pieces {
    pub(crate) fn len(&self) -> usize {
        self.first.len() + self.rest.len()
    }

    pub(crate) fn push(&mut self, piece: Bytes) {
        if self.len() == 0 {
            self.first = piece;
        } else {
            self.rest.extend_from_slice(&piece);
        }
    }

    pub(crate) fn join(self) -> Bytes {
        if self.rest.is_empty() {
            return self.first;
        }
        let mut whole = BytesMut::with_capacity(self.len());
        whole.extend_from_slice(&self.first);
        whole.extend_from_slice(&self.rest);
        whole.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_join_in_order() {
        let mut pieces = Pieces::default();
        for piece in ["", "a", "", "bc", "d"] {
            pieces.push(Bytes::from_static(piece.as_bytes()));
        }
        assert_eq!((pieces.len(), pieces.join()), (4, Bytes::from_static(b"abcd")));
    }

    #[test]
    fn messages_are_taken_one_by_one_and_none_that_is_cut_short() {
        let mut rest = Bytes::from_static(b"\x01a\x00\x02bc");
        for expected in ["a", "", "bc"] {
            assert_eq!(next_message(&mut rest).unwrap().unwrap(), expected);
        }
        assert_eq!(next_message(&mut rest), Ok(None));
        for (cut, error) in [
            (&b"\x02a"[..], FrameError::Truncated),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\x7fab", FrameError::Truncated),
            (b"\x80", FrameError::BadLength),
            (&[0xff; 20], FrameError::BadLength),
        ] {
            let mut rest = Bytes::copy_from_slice(cut);
            assert_eq!(next_message(&mut rest), Err(error));
        }
    }
}
