//! Call frames written by hand, as the schema has them: no message is built for what is written field by field.
//!
//! Decoding is prost's; that both agree is held by a property below.

use bytes::{BufMut as _, Bytes, BytesMut};
use macula_wire::proto::MetadataEntry;
use prost::{Message as _, encoding::encoded_len_varint};

use crate::{
    CallRequest, Repeat, Reply, Route,
    error::Pushback,
    outbox::{Flush, Outbox},
    stream::put_varint,
};

/// The tag of a length-delimited field.
const fn bytes_tag(field: u8) -> u8 {
    field << 3 | 2
}

const fn varint_tag(field: u8) -> u8 {
    field << 3
}

fn bytes_field_len(length: usize) -> usize {
    if length == 0 {
        0
    } else {
        1 + encoded_len_varint(length as u64) + length
    }
}

fn put_bytes_field(buffer: &mut BytesMut, field: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        put_length(buffer, field, bytes.len());
        buffer.put_slice(bytes);
    }
}

fn put_length(buffer: &mut BytesMut, field: u8, length: usize) {
    buffer.put_u8(bytes_tag(field));
    put_varint(buffer, length as u64);
}

fn metadata_len(entries: &[MetadataEntry]) -> usize {
    entries
        .iter()
        .map(|entry| entry.encoded_len())
        .map(|length| 1 + encoded_len_varint(length as u64) + length)
        .sum()
}

fn put_metadata(buffer: &mut BytesMut, field: u8, entries: &[MetadataEntry]) {
    for entry in entries {
        put_length(buffer, field, entry.encoded_len());
        entry.encode_raw(buffer);
    }
}

/// The start of a `CallFrame` that holds a message of `length` bytes as `field`, its own length in front.
fn put_frame_start(buffer: &mut BytesMut, call: u64, field: u8, length: usize) {
    let call_len = if call == 0 { 0 } else { 1 + encoded_len_varint(call) };
    put_varint(
        buffer,
        (call_len + 1 + encoded_len_varint(length as u64) + length) as u64,
    );
    if call != 0 {
        buffer.put_u8(varint_tag(1));
        put_varint(buffer, call);
    }
    put_length(buffer, field, length);
}

/// The most bytes that the timeout, the flags and the payload's length take.
const FIXED_HEAD_BYTES: usize = 48;

/// The size of a head without its payload, at most.
pub(crate) fn head_bytes(request: &CallRequest<'_>) -> usize {
    bytes_field_len(request.service.as_str().len())
        + bytes_field_len(request.method.len())
        + metadata_len(request.metadata())
        + FIXED_HEAD_BYTES
}

/// Writes a HEAD frame; the payload goes into it unless there is none for it (`end` is false).
pub(crate) fn put_head(outbox: &mut Outbox, call: u64, request: &CallRequest<'_>, timeout_us: u64, end: bool) -> Flush {
    let payload = if end { request.body.len() } else { 0 };
    let metadata = request.metadata();
    // On a stream of its own a call is answered with as many messages as there are.
    let several = request.brief_reply && call != 0;
    let length = bytes_field_len(request.service.as_str().len())
        + bytes_field_len(request.method.len())
        + if timeout_us == 0 {
            0
        } else {
            1 + encoded_len_varint(timeout_us)
        }
        + metadata_len(metadata)
        + if end { 2 } else { 0 }
        + if several { 2 } else { 0 }
        + route_len(request)
        + bytes_field_len(payload);
    let flush = outbox.write(|buffer| {
        put_frame_start(buffer, call, 2, length);
        put_bytes_field(buffer, 1, request.service.as_str().as_bytes());
        put_bytes_field(buffer, 2, request.method.as_bytes());
        if timeout_us != 0 {
            buffer.put_u8(varint_tag(3));
            put_varint(buffer, timeout_us);
        }
        put_metadata(buffer, 4, metadata);
        if end {
            buffer.put_slice(&[varint_tag(6), 1]);
        }
        if several {
            buffer.put_slice(&[varint_tag(11), 1]);
        }
        if let Some(route) = request.route {
            put_route(buffer, route);
        }
        // Last, so that a large one need not be copied: fields may come in any order.
        if payload > 0 {
            put_length(buffer, 5, payload);
        }
    });
    if payload > 0 {
        outbox.payload(&request.body);
    }
    flush
}

fn route_len(request: &CallRequest<'_>) -> usize {
    request.route.map_or(0, |route| {
        let repeat = if route.repeat == Repeat::NeverProcessed { 0 } else { 2 };
        let max = route.max_attempts.map_or(0, |max| u64::from(max.get()));
        let field = |value| if value == 0 { 0 } else { 1 + encoded_len_varint(value) };
        2 + repeat + field(max) + field(route.attempt_timeout_us())
    })
}

fn put_route(buffer: &mut BytesMut, route: Route) {
    buffer.put_slice(&[varint_tag(7), 1]);
    if route.repeat != Repeat::NeverProcessed {
        buffer.put_u8(varint_tag(8));
        put_varint(buffer, route.repeat.to_wire() as u64);
    }
    if let Some(max) = route.max_attempts {
        buffer.put_u8(varint_tag(9));
        put_varint(buffer, max.get().into());
    }
    let us = route.attempt_timeout_us();
    if us != 0 {
        buffer.put_u8(varint_tag(10));
        put_varint(buffer, us);
    }
}

/// What TRAILERS bring beside the outcome.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Last<'a> {
    /// The reply's only message, or the last piece of it.
    Payload(&'a Bytes),
    /// As [`Last::Payload`], of a reply that left together and would have fit on a lane.
    Brief(&'a Bytes),
    /// All the messages of a reply of several.
    Messages(&'a [Bytes]),
}

/// What `messages` take, each with its length.
pub(crate) fn messages_len(messages: &[Bytes]) -> usize {
    let lengths = messages.iter().map(Bytes::len);
    lengths.map(|length| encoded_len_varint(length as u64) + length).sum()
}

/// Writes a TRAILERS frame.
pub(crate) fn put_trailers(outbox: &mut Outbox, call: u64, reply: &Reply, last: Last<'_>) -> Flush {
    let status = u64::from(reply.status.as_u32());
    let failing = reply.extra.get();
    let pushback = failing
        .pushback
        .map(Pushback::to_wire)
        .map(|ms| ((ms << 1) ^ (ms >> 63)) as u64);
    let metadata = reply.metadata.entries();
    let (field, size, brief) = match last {
        Last::Payload(payload) => (5, payload.len(), false),
        Last::Brief(payload) => (5, payload.len(), true),
        Last::Messages(messages) => (8, messages_len(messages), false),
    };
    let length = if status == 0 { 0 } else { 1 + encoded_len_varint(status) }
        + bytes_field_len(failing.message.len())
        + if reply.not_started { 2 } else { 0 }
        + metadata_len(metadata)
        + bytes_field_len(failing.details.len())
        + pushback.map_or(0, |zigzag| 1 + encoded_len_varint(zigzag))
        + if brief { 2 } else { 0 }
        + bytes_field_len(size);
    let flush = outbox.write(|buffer| {
        put_frame_start(buffer, call, 4, length);
        if status != 0 {
            buffer.put_u8(varint_tag(1));
            put_varint(buffer, status);
        }
        put_bytes_field(buffer, 2, failing.message.as_bytes());
        if reply.not_started {
            buffer.put_slice(&[varint_tag(3), 1]);
        }
        put_metadata(buffer, 4, metadata);
        put_bytes_field(buffer, 6, &failing.details);
        if let Some(zigzag) = pushback {
            buffer.put_u8(varint_tag(7));
            put_varint(buffer, zigzag);
        }
        if brief {
            buffer.put_slice(&[varint_tag(9), 1]);
        }
        if size > 0 {
            put_length(buffer, field, size);
        }
    });
    match last {
        Last::Payload(payload) | Last::Brief(payload) if !payload.is_empty() => outbox.payload(payload),
        Last::Payload(_) | Last::Brief(_) => {}
        Last::Messages(messages) => {
            for message in messages {
                let _ = outbox.write(|buffer| put_varint(buffer, message.len() as u64));
                outbox.payload(message);
            }
        }
    }
    flush
}

/// Writes a DATA frame.
pub(crate) fn put_data(outbox: &mut Outbox, call: u64, payload: &Bytes, end: bool) -> Flush {
    put_data_marked(outbox, call, payload, end.then_some(2))
}

/// Writes the first DATA frame of a reply that is there already, all of it.
pub(crate) fn put_first_of_whole(outbox: &mut Outbox, call: u64, payload: &Bytes) -> Flush {
    put_data_marked(outbox, call, payload, Some(3))
}

/// Writes a DATA frame with one of its flags, or none.
fn put_data_marked(outbox: &mut Outbox, call: u64, payload: &Bytes, flag: Option<u8>) -> Flush {
    let length = bytes_field_len(payload.len()) + if flag.is_some() { 2 } else { 0 };
    let flush = outbox.write(|buffer| {
        put_frame_start(buffer, call, 3, length);
        if let Some(field) = flag {
            buffer.put_slice(&[varint_tag(field), 1]);
        }
        if !payload.is_empty() {
            put_length(buffer, 1, payload.len());
        }
    });
    outbox.payload(payload);
    flush
}

/// Writes a CANCEL frame.
pub(crate) fn put_cancel(outbox: &mut Outbox, call: u64) -> Flush {
    outbox.write(|buffer| put_frame_start(buffer, call, 5, 0))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{num::NonZeroU32, time::Duration};

    use macula_wire::{
        FrameDecoder, StatusCode,
        proto::{CallFrame, Data, Head, Trailers, call_frame::Kind},
    };
    use proptest::prelude::*;

    use super::*;
    use crate::Metadata;

    fn read(mut outbox: Outbox) -> CallFrame {
        let mut decoder = FrameDecoder::new(1 << 20);
        decoder.push(outbox.take().concat().into());
        let frame = decoder.next_frame().unwrap().unwrap();
        decoder.finish().unwrap();
        CallFrame::decode(frame).unwrap()
    }

    /// The bytes of a usual request's frame, without its length.
    pub(crate) fn plain_head(
        call: u64,
        service: &str,
        method: &str,
        timeout_us: u64,
        several: bool,
        payload: &[u8],
    ) -> Vec<u8> {
        let mut head = BytesMut::new();
        put_bytes_field(&mut head, 1, service.as_bytes());
        put_bytes_field(&mut head, 2, method.as_bytes());
        if timeout_us != 0 {
            head.put_u8(varint_tag(3));
            put_varint(&mut head, timeout_us);
        }
        head.put_slice(&[varint_tag(6), 1]);
        if several {
            head.put_slice(&[varint_tag(11), 1]);
        }
        put_bytes_field(&mut head, 5, payload);
        let mut frame = BytesMut::new();
        if call != 0 {
            frame.put_u8(varint_tag(1));
            put_varint(&mut frame, call);
        }
        put_bytes_field(&mut frame, 2, &head);
        frame.to_vec()
    }

    fn framed(message: &Bytes) -> Vec<u8> {
        let mut buffer = BytesMut::new();
        put_varint(&mut buffer, message.len() as u64);
        [&buffer[..], message].concat()
    }

    fn payload() -> impl Strategy<Value = Bytes> {
        prop_oneof![0..100_usize, 4000..20_000_usize].prop_map(|length| Bytes::from(vec![9; length]))
    }

    fn route() -> impl Strategy<Value = Option<Route>> {
        let repeat = prop::sample::select(vec![Repeat::NeverProcessed, Repeat::Transient, Repeat::AnyError]);
        let max = any::<u32>().prop_map(NonZeroU32::new);
        let time = prop::option::of((1..=u64::MAX).prop_map(Duration::from_micros));
        let route = (repeat, max, time).prop_map(|(repeat, max_attempts, attempt_timeout)| Route {
            repeat,
            max_attempts,
            attempt_timeout,
        });
        prop::option::of(route)
    }

    fn metadata() -> impl Strategy<Value = Metadata> {
        let entry = ("[a-z]{0,9}", prop::collection::vec(any::<u8>(), 0..200));
        prop::collection::vec(entry, 0..4).prop_map(|entries| entries.into_iter().collect())
    }

    proptest! {
        #[test]
        fn frames_written_by_hand_are_what_the_schema_gives(
            call in prop_oneof![Just(0), any::<u64>()],
            (service, method) in ("[a-z]{1,128}", "[a-zA-Z/]{0,200}"),
            (payload, metadata) in (payload(), metadata()),
            (timeout_us, end, route, not_started, brief) in (any::<u64>(), any::<bool>(), route(), any::<bool>(), any::<bool>()),
            messages in prop::collection::vec(payload(), 0..4),
            (status, message, details) in (0..17_u32, "\\PC{0,40}", prop::collection::vec(any::<u8>(), 0..300)),
            pushback in prop::option::of(-1..1_000_000_i64),
        ) {
            let name = service.parse().unwrap();
            let request = CallRequest::new(&name, payload.clone())
                .with_method(&method)
                .with_metadata(&metadata)
                .with_brief_reply(brief)
                .with_route(route);
            let mut outbox = Outbox::default();
            let _ = put_head(&mut outbox, call, &request, timeout_us, end);
            let head = Head {
                service,
                method: method.clone(),
                timeout_us,
                metadata: metadata.entries().to_vec(),
                payload: if end { payload.clone() } else { Bytes::new() },
                end,
                route: route.is_some(),
                repeat: route.unwrap_or_default().repeat.to_wire().into(),
                max_attempts: route.and_then(|route| route.max_attempts).map_or(0, NonZeroU32::get),
                attempt_timeout_us: route.map_or(0, |route| route.attempt_timeout_us()),
                several: brief && call != 0,
            };
            prop_assert_eq!(Route::from_wire(&head).as_deref().copied(), route);
            prop_assert!(head.encoded_len() - head.payload.len() <= head_bytes(&request));
            prop_assert_eq!(read(outbox), CallFrame { call, kind: Some(Kind::Head(head)) });

            let status = StatusCode::from_u32(status);
            let mut reply = Reply::error(status, message.clone()).with_metadata(metadata.clone()).with_details(details.clone());
            reply.not_started = not_started;
            if let Some(pushback) = Pushback::from_wire(pushback) {
                reply = reply.with_pushback(pushback);
            }
            let trailers = Trailers {
                status: status.as_u32(),
                message,
                not_started,
                metadata: metadata.entries().to_vec(),
                details: details.into(),
                pushback_ms: pushback,
                ..Trailers::default()
            };
            let lengths = messages.iter().map(framed);
            let several = Trailers { messages: lengths.collect::<Vec<_>>().concat().into(), ..trailers.clone() };
            let trailers = Trailers { payload: payload.clone(), ..trailers };
            let brief = Trailers { brief: true, ..trailers.clone() };
            for (last, trailers) in [
                (Last::Payload(&payload), trailers),
                (Last::Brief(&payload), brief),
                (Last::Messages(&messages), several),
            ] {
                let mut outbox = Outbox::default();
                let _ = put_trailers(&mut outbox, call, &reply, last);
                prop_assert_eq!(read(outbox), CallFrame { call, kind: Some(Kind::Trailers(trailers)) });
            }

            let mut outbox = Outbox::default();
            let _ = put_first_of_whole(&mut outbox, call, &payload);
            let first = Data { payload: payload.clone(), end: false, whole: true };
            prop_assert_eq!(read(outbox), CallFrame { call, kind: Some(Kind::Data(first)) });

            let mut outbox = Outbox::default();
            let _ = put_data(&mut outbox, call, &payload, end);
            let data = Data { payload, end, whole: false };
            prop_assert_eq!(read(outbox), CallFrame { call, kind: Some(Kind::Data(data)) });

            let mut outbox = Outbox::default();
            let _ = put_cancel(&mut outbox, call);
            prop_assert_eq!(read(outbox), CallFrame { call, kind: Some(Kind::Cancel(Default::default())) });
        }
    }
}
