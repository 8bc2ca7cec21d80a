//! Call frames as bytes: the head's and trailers' size rules, and payloads that are not copied.

use bytes::{BufMut as _, Bytes, BytesMut};
use macula_wire::{StatusCode, proto};
use prost::Message as _;

use crate::{
    CallReply, CallRequest, Metadata, Reply,
    config::{MAX_HEAD_BYTES, MAX_METADATA_ENTRIES},
    error::{CallError, Pushback},
    stream::put_varint,
};

/// Payloads up to this size travel in the head or the trailers; larger ones in frames of their own, uncopied.
pub(crate) const INLINE_BYTES: usize = 16 * 1024;
/// The largest first frame of a call, and the largest frame on a stream that calls share.
pub(crate) const MAX_HEAD_FRAME: usize = MAX_HEAD_BYTES + INLINE_BYTES + FRAME_OVERHEAD;
/// What a frame has beside its payload or head, at most: tags, lengths and a call's id.
pub(crate) const FRAME_OVERHEAD: usize = 64;

/// A call's frames: the head, with a small payload in it, and a frame for a large one.
pub(crate) fn request_frames(request: &CallRequest<'_>, timeout_us: u64, kind: u8) -> Result<Vec<Bytes>, CallError> {
    let inline = request.body.len() <= INLINE_BYTES;
    let head = proto::Head {
        service: request.service.as_str().to_owned(),
        method: request.method.to_owned(),
        timeout_us,
        metadata: request.metadata().to_vec(),
        payload: if inline { request.body.clone() } else { Bytes::new() },
        end: inline,
        route: request.route,
    };
    let bytes = head.encoded_len() - if inline { request.body.len() } else { 0 };
    if bytes > MAX_HEAD_BYTES || head.metadata.len() > MAX_METADATA_ENTRIES {
        return Err(CallError::HeadTooLarge { bytes });
    }
    let frame = proto::CallFrame {
        call: 0,
        kind: Some(proto::call_frame::Kind::Head(head)),
    };
    let mut buffer = BytesMut::with_capacity(8 + frame.encoded_len());
    buffer.put_u8(kind);
    macula_wire::encode_frame(&frame, &mut buffer);
    let mut frames = vec![buffer.freeze()];
    if !inline {
        frames.extend(data_frame(request.body.clone(), true));
    }
    Ok(frames)
}

/// A reply's frames: the trailers, with a small payload in them, and before them a frame for a large one.
pub(crate) fn reply_frames(reply: Reply, call: u64) -> Vec<Bytes> {
    let mut frames = Vec::with_capacity(3);
    let payload = if reply.body.len() <= INLINE_BYTES {
        reply.body
    } else {
        frames.extend(data_frame(reply.body, true));
        Bytes::new()
    };
    let trailers = proto::Trailers {
        status: reply.status.as_u32(),
        message: reply.message,
        not_started: reply.not_started,
        metadata: reply.metadata.entries().to_vec(),
        payload,
        details: reply.details,
        pushback_ms: reply.pushback.map(Pushback::to_wire),
    };
    let frame = proto::CallFrame {
        call,
        kind: Some(proto::call_frame::Kind::Trailers(trailers)),
    };
    frames.push(macula_wire::frame(&frame));
    frames
}

/// The size of a reply without its payload, to be held against [`MAX_HEAD_BYTES`].
pub(crate) fn reply_head_bytes(reply: &Reply) -> usize {
    let metadata = reply
        .metadata
        .entries()
        .iter()
        .map(|entry| entry.encoded_len() + 4)
        .sum::<usize>();
    reply.message.len() + reply.details.len() + metadata + FRAME_OVERHEAD
}

/// A DATA frame of a call's own stream, the payload not copied.
pub(crate) fn data_frame(payload: Bytes, end: bool) -> [Bytes; 2] {
    // `Data { payload, end }` within `CallFrame`, written out so that the payload need not be: fields may come in any order.
    let varint_len = |n: usize| prost::encoding::encoded_len_varint(n as u64);
    let end_bytes: &[u8] = if end { &[0x10, 1] } else { &[] };
    let data = end_bytes.len() + 1 + varint_len(payload.len()) + payload.len();
    let mut prefix = BytesMut::with_capacity(32);
    put_varint(&mut prefix, (1 + varint_len(data) + data) as u64);
    prefix.put_u8(0x1a);
    put_varint(&mut prefix, data as u64);
    prefix.put_slice(end_bytes);
    prefix.put_u8(0x0a);
    put_varint(&mut prefix, payload.len() as u64);
    [prefix.freeze(), payload]
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
        message: trailers.message,
        metadata: Metadata::from_wire(trailers.metadata),
        body,
        details: trailers.details,
        pushback,
    })
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
    fn a_data_frame_written_by_hand_is_what_the_schema_gives() {
        for (length, end) in [
            (0, false),
            (0, true),
            (1, true),
            (127, false),
            (128, true),
            (70_000, false),
        ] {
            let payload = Bytes::from(vec![5; length]);
            let mut decoder = macula_wire::FrameDecoder::new(1 << 20);
            decoder.push(data_frame(payload.clone(), end).concat().into());
            let frame = proto::CallFrame::decode(decoder.next_frame().unwrap().unwrap()).unwrap();
            let kind = Some(proto::call_frame::Kind::Data(proto::Data { payload, end }));
            assert_eq!(frame, proto::CallFrame { call: 0, kind });
            decoder.finish().unwrap();
        }
    }

    #[test]
    fn pieces_join_in_order() {
        let mut pieces = Pieces::default();
        for piece in ["", "a", "", "bc", "d"] {
            pieces.push(Bytes::from_static(piece.as_bytes()));
        }
        assert_eq!((pieces.len(), pieces.join()), (4, Bytes::from_static(b"abcd")));
    }
}
