//! A call's frames, as `macula/v1/call.proto` has them: each is read beside where it is written.
//!
//! Neither side builds the schema's messages. A frame is written field by field into the outbox, and read field by field where it lies:
//! its payload, its names and its metadata's values are slices of it.
//!
//! **Invariants:** a frame is read as the schema's decoder reads the same bytes, and every frame that is written is read
//! back. A frame costs no more memory than its bytes and the entries of its [`HeadLimits`].
//!
//! Stricter than the schema: a frame holds one kind once, and no group.

use std::{num::NonZeroU32, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use macula_wire::{StatusCode, proto::MetadataEntry};
use prost::{
    Message as _,
    encoding::{decode_varint, encoded_len_varint},
};

use super::{
    outbox::{Flush, Outbox},
    types::{CallReply, CallRequest, Extra, FailureDetails, Repeat, Reply, Route},
};
use crate::{
    connection::stream::{FRAME_OVERHEAD, put_varint},
    error::{CallError, Pushback},
    heads::HeadLimits,
    metadata::Metadata,
};

/// Payloads up to this size travel in the head or the trailers; larger ones in frames of their own, uncopied.
pub(crate) const INLINE_BYTES: usize = 16 * 1024;
/// The largest frame on a lane.
pub(crate) const MAX_LANE_FRAME: usize = HeadLimits::LEAST.frame();

impl HeadLimits {
    /// The largest first frame of a call.
    pub(crate) const fn frame(self) -> usize {
        self.bytes + INLINE_BYTES + FRAME_OVERHEAD
    }
}

/// A frame of a call.
#[derive(Debug)]
pub(crate) enum Frame {
    /// The caller opens the call.
    Head(Head),
    /// A message of either side.
    Data(Data),
    /// The provider's outcome, with the last message of its reply: its answer, or its refusal of the call.
    Trailers(Result<CallReply, CallError>),
    /// The caller gives the call up.
    Cancel,
}

/// The start of a call.
#[derive(Debug)]
pub(crate) struct Head {
    /// The service's name as it was sent; text.
    service: Bytes,
    pub(crate) method: String,
    pub(crate) timeout_us: u64,
    pub(crate) metadata: Metadata,
    pub(crate) route: Option<Box<Route>>,
    /// The caller's leave to pass the call on; empty in most calls.
    pub(crate) passage: Bytes,
    pub(crate) payload: Bytes,
    /// The payload is the whole request.
    pub(crate) end: bool,
}

impl Head {
    /// The service's name as it was sent.
    pub(crate) fn service(&self) -> &str {
        // It was text when it was read.
        std::str::from_utf8(&self.service).unwrap_or_default()
    }
}

/// A message.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Data {
    pub(crate) payload: Bytes,
    /// It is the request's last.
    pub(crate) end: bool,
    /// It is the first of a reply that the provider has as a whole, and sends without a pause.
    pub(crate) whole: bool,
}

/// The bytes are no frame of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Reads a frame, and the id of its call: 0 on a stream of the call's own.
#[inline]
pub(crate) fn read(frame: &Bytes, limits: HeadLimits) -> Result<(u64, Frame), Malformed> {
    let (mut call, mut kind) = (0, None);
    let mut fields = Fields(frame);
    while let Some((field, value)) = fields.next()? {
        match field {
            1 => call = value.number()?,
            2..=5 if kind.is_some() => return Err(Malformed),
            2 => kind = Some(Frame::Head(read_head(frame, value.bytes()?, limits)?)),
            3 => kind = Some(Frame::Data(read_data(frame, value.bytes()?)?)),
            4 => kind = Some(Frame::Trailers(read_trailers(frame, value.bytes()?, limits)?)),
            5 => {
                skip(value.bytes()?)?;
                kind = Some(Frame::Cancel);
            }
            _ => {}
        }
    }
    Ok((call, kind.ok_or(Malformed)?))
}

#[inline]
fn read_head(frame: &Bytes, bytes: &[u8], limits: HeadLimits) -> Result<Head, Malformed> {
    let mut head = Head {
        service: Bytes::new(),
        method: String::new(),
        timeout_us: 0,
        metadata: Metadata::new(),
        route: None,
        passage: Bytes::new(),
        payload: Bytes::new(),
        end: false,
    };
    let (mut routed, mut route) = (false, Route::default());
    let mut fields = Fields(bytes);
    while let Some((field, value)) = fields.next()? {
        match field {
            1 => head.service = frame.slice_ref(value.text()?.as_bytes()),
            2 => head.method = value.text()?.to_owned(),
            3 => head.timeout_us = value.number()?,
            4 => read_entry(frame, value.bytes()?, &mut head.metadata, limits)?,
            5 => head.payload = frame.slice_ref(value.bytes()?),
            6 => head.end = value.flag()?,
            7 => routed = value.flag()?,
            8 => route.repeat = Repeat::from_wire(value.number()? as i32),
            9 => route.max_attempts = NonZeroU32::new(value.number()? as u32),
            10 => route.attempt_timeout = Some(value.number()?).filter(|&us| us > 0).map(Duration::from_micros),
            11 => head.passage = frame.slice_ref(value.bytes()?),
            _ => {}
        }
    }
    if head.payload.len() > INLINE_BYTES || frame.len() - head.payload.len() > limits.bytes + FRAME_OVERHEAD {
        return Err(Malformed);
    }
    head.route = routed.then(|| Box::new(route));
    Ok(head)
}

fn read_data(frame: &Bytes, bytes: &[u8]) -> Result<Data, Malformed> {
    let mut data = Data::default();
    let mut fields = Fields(bytes);
    while let Some((field, value)) = fields.next()? {
        match field {
            1 => data.payload = frame.slice_ref(value.bytes()?),
            2 => data.end = value.flag()?,
            3 => data.whole = value.flag()?,
            _ => {}
        }
    }
    Ok(data)
}

#[inline]
fn read_trailers(frame: &Bytes, bytes: &[u8], limits: HeadLimits) -> Result<Result<CallReply, CallError>, Malformed> {
    let (mut status, mut refused, mut body) = (0, false, Bytes::new());
    let (mut metadata, mut failing) = (Metadata::new(), None::<FailureDetails>);
    let mut fields = Fields(bytes);
    while let Some((field, value)) = fields.next()? {
        match field {
            1 => status = value.number()? as u32,
            2 => value.text()?.clone_into(&mut failing.get_or_insert_default().message),
            3 => refused = value.flag()?,
            4 => read_entry(frame, value.bytes()?, &mut metadata, limits)?,
            5 => body = frame.slice_ref(value.bytes()?),
            6 => failing.get_or_insert_default().details = frame.slice_ref(value.bytes()?),
            7 => {
                let zigzag = value.number()?;
                let ms = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
                failing.get_or_insert_default().pushback = Pushback::from_wire(Some(ms));
            }
            _ => {}
        }
    }
    if frame.len() - body.len() > limits.bytes + FRAME_OVERHEAD {
        return Err(Malformed);
    }
    let status = StatusCode::from_u32(status);
    if refused {
        let FailureDetails { message, pushback, .. } = failing.unwrap_or_default();
        return Ok(Err(CallError::Refused {
            status,
            message,
            pushback,
        }));
    }
    Ok(Ok(CallReply {
        status,
        metadata,
        body,
        extra: failing.map(Extra::new).unwrap_or_default(),
    }))
}

/// Reads a metadata entry. Only this list can grow with the peer's bytes, so an entry beyond the limit is refused before it is built.
fn read_entry(frame: &Bytes, bytes: &[u8], metadata: &mut Metadata, limits: HeadLimits) -> Result<(), Malformed> {
    if metadata.len() >= limits.entries {
        return Err(Malformed);
    }
    let (mut key, mut content) = ("", Bytes::new());
    let mut fields = Fields(bytes);
    while let Some((field, value)) = fields.next()? {
        match field {
            1 => key = value.text()?,
            2 => content = frame.slice_ref(value.bytes()?),
            _ => {}
        }
    }
    metadata.push(key, content);
    Ok(())
}

/// Checks that unread bytes are well-formed fields.
fn skip(bytes: &[u8]) -> Result<(), Malformed> {
    let mut fields = Fields(bytes);
    while fields.next()?.is_some() {}
    Ok(())
}

/// The fields of a message, one after another.
///
/// Always inlined: a field and its value are then never written to memory, which saves 9 % of a small call's instructions.
struct Fields<'f>(&'f [u8]);

/// A field's value, by its wire type.
enum Value<'f> {
    Number(u64),
    Bytes(&'f [u8]),
    /// Four or eight bytes, which no field of the schema has.
    Fixed,
}

impl<'f> Fields<'f> {
    #[inline(always)]
    fn next(&mut self) -> Result<Option<(u64, Value<'f>)>, Malformed> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => {
                self.take(8)?;
                Value::Fixed
            }
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
                Value::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Value::Fixed
            }
            // Groups, which the schema does not have, and numbers that are no wire type.
            3 | 4 | 6.. => return Err(Malformed),
        };
        let field = key >> 3;
        if field == 0 || key > u64::from(u32::MAX) {
            return Err(Malformed);
        }
        Ok(Some((field, value)))
    }

    #[inline(always)]
    fn varint(&mut self) -> Result<u64, Malformed> {
        match *self.0 {
            // Most are of one byte.
            [byte @ ..0x80, ref rest @ ..] => {
                self.0 = rest;
                Ok(byte.into())
            }
            _ => decode_varint(&mut self.0).map_err(|_| Malformed),
        }
    }

    #[inline(always)]
    fn take(&mut self, length: usize) -> Result<&'f [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }
}

impl<'f> Value<'f> {
    #[inline(always)]
    fn number(self) -> Result<u64, Malformed> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Bytes(_) | Self::Fixed => Err(Malformed),
        }
    }

    #[inline(always)]
    fn flag(self) -> Result<bool, Malformed> {
        Ok(self.number()? != 0)
    }

    #[inline(always)]
    fn bytes(self) -> Result<&'f [u8], Malformed> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Number(_) | Self::Fixed => Err(Malformed),
        }
    }

    #[inline(always)]
    fn text(self) -> Result<&'f str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed)
    }
}

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

/// The size of a head without its payload, at most: bytes and metadata entries, to be held against [`HeadLimits`].
pub(crate) fn head_size(request: &CallRequest<'_>) -> (usize, usize) {
    let bytes = bytes_field_len(request.service.as_str().len())
        + bytes_field_len(request.method.len())
        + metadata_len(request.metadata())
        + bytes_field_len(request.passage.len())
        + FIXED_HEAD_BYTES;
    (bytes, request.metadata().len())
}

/// Writes a HEAD frame. With `end`, the payload is part of it.
pub(crate) fn put_head(outbox: &mut Outbox, call: u64, request: &CallRequest<'_>, timeout_us: u64, end: bool) -> Flush {
    let payload = if end { request.body.len() } else { 0 };
    let metadata = request.metadata();
    let length = bytes_field_len(request.service.as_str().len())
        + bytes_field_len(request.method.len())
        + if timeout_us == 0 {
            0
        } else {
            1 + encoded_len_varint(timeout_us)
        }
        + metadata_len(metadata)
        + if end { 2 } else { 0 }
        + route_len(request)
        + bytes_field_len(request.passage.len())
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
        if let Some(route) = request.route {
            put_route(buffer, route);
        }
        put_bytes_field(buffer, 11, &request.passage);
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

/// Writes a TRAILERS frame, the last message of the reply in it.
pub(crate) fn put_trailers(outbox: &mut Outbox, call: u64, reply: &Reply, payload: &Bytes) -> Flush {
    let status = u64::from(reply.status.as_u32());
    let failing = reply.extra.get();
    let pushback = failing
        .pushback
        .map(Pushback::to_wire)
        .map(|ms| ((ms << 1) ^ (ms >> 63)) as u64);
    let metadata = reply.metadata.entries();
    let length = if status == 0 { 0 } else { 1 + encoded_len_varint(status) }
        + bytes_field_len(failing.message.len())
        + if reply.not_started { 2 } else { 0 }
        + metadata_len(metadata)
        + bytes_field_len(failing.details.len())
        + pushback.map_or(0, |zigzag| 1 + encoded_len_varint(zigzag))
        + bytes_field_len(payload.len());
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
        if !payload.is_empty() {
            put_length(buffer, 5, payload.len());
        }
    });
    if !payload.is_empty() {
        outbox.payload(payload);
    }
    flush
}

/// Which of its side's messages a DATA frame brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// One of several.
    Some,
    /// The last of a request.
    Last,
    /// The first of a reply that is there as a whole.
    FirstOfWhole,
}

impl Part {
    /// The field of the flag that says so.
    const fn flag(self) -> Option<u8> {
        match self {
            Self::Some => None,
            Self::Last => Some(2),
            Self::FirstOfWhole => Some(3),
        }
    }
}

/// Writes a DATA frame.
pub(crate) fn put_data(outbox: &mut Outbox, call: u64, payload: &Bytes, part: Part) -> Flush {
    let flag = part.flag();
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

/// The size of a reply without its payload, as [`head_size`].
pub(crate) fn reply_head_size(reply: &Reply) -> (usize, usize) {
    let failing = reply.extra.get();
    let bytes = failing.message.len() + failing.details.len() + metadata_len(reply.metadata.entries()) + FRAME_OVERHEAD;
    (bytes, reply.metadata.len())
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
