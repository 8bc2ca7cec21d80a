//! The frames that nearly every call is made of, read where they lie: a request that is a service, a method, a time and a payload, and
//! a reply that is a payload, or several messages.
//!
//! Whatever else a frame holds, or in whatever other order it holds it, is for the schema's decoder.
//!
//! **Invariant:** what is read here is what the schema's decoder reads of the same bytes; a property below holds it.

use bytes::Bytes;

/// A request with nothing unusual in it. Its end is said: nothing follows.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PlainRequest<'f> {
    pub(super) call: u64,
    pub(super) service: &'f str,
    pub(super) method: &'f str,
    pub(super) timeout_us: u64,
    pub(super) several: bool,
    pub(super) payload: &'f [u8],
}

/// A reply with nothing unusual in it: success.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PlainReply {
    pub(super) call: u64,
    /// What it brings is several messages, each after its length.
    pub(super) several: bool,
    pub(super) payload: Bytes,
}

/// Reads a usual request.
pub(super) fn request(frame: &[u8]) -> Option<PlainRequest<'_>> {
    let mut rest = frame;
    let call = call(&mut rest)?;
    let mut head = last_field(&mut rest, 2)?;
    let service = field(&mut head, 1)?;
    let method = field(&mut head, 2).unwrap_or_default();
    let timeout_us = number(&mut head, 3).unwrap_or_default();
    head = head.strip_prefix(&[6 << 3, 1])?;
    let several = head.strip_prefix(&[11 << 3, 1]);
    head = several.unwrap_or(head);
    let several = several.is_some();
    let payload = if head.is_empty() {
        &[]
    } else {
        last_field(&mut head, 5)?
    };
    Some(PlainRequest {
        call,
        service: std::str::from_utf8(service).ok()?,
        method: std::str::from_utf8(method).ok()?,
        timeout_us,
        several,
        payload,
    })
}

/// Reads a usual reply: the call it is of, and what it brings.
pub(super) fn reply(frame: &Bytes) -> Option<PlainReply> {
    let mut rest: &[u8] = frame;
    let call = call(&mut rest)?;
    let mut trailers = last_field(&mut rest, 4)?;
    let messages = last_field(&mut { trailers }, 8);
    let payload = match messages {
        Some(messages) => frame.slice_ref(messages),
        None if trailers.is_empty() => Bytes::new(),
        None => frame.slice_ref(last_field(&mut trailers, 5)?),
    };
    Some(PlainReply {
        call,
        // As in the schema, where what is empty is not there.
        several: messages.is_some_and(|messages| !messages.is_empty()),
        payload,
    })
}

fn call(bytes: &mut &[u8]) -> Option<u64> {
    Some(number(bytes, 1).unwrap_or_default())
}

/// A number field, if it comes next.
fn number(bytes: &mut &[u8], field: u8) -> Option<u64> {
    let mut rest = bytes.strip_prefix(&[field << 3])?;
    let number = prost::encoding::decode_varint(&mut rest).ok()?;
    *bytes = rest;
    Some(number)
}

/// A field of bytes, if it comes next.
fn field<'f>(bytes: &mut &'f [u8], field: u8) -> Option<&'f [u8]> {
    let mut rest = bytes.strip_prefix(&[field << 3 | 2])?;
    let length = prost::encoding::decode_varint(&mut rest).ok()?;
    let (field, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    *bytes = rest;
    Some(field)
}

/// A field of bytes after which nothing comes.
fn last_field<'f>(bytes: &mut &'f [u8], number: u8) -> Option<&'f [u8]> {
    field(bytes, number).filter(|_| bytes.is_empty())
}

#[cfg(test)]
mod tests {
    use macula_wire::proto::{CallFrame, Head, Trailers, call_frame::Kind};
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    fn decoded(frame: &[u8]) -> Option<CallFrame> {
        CallFrame::decode(frame).ok()
    }

    fn as_head(plain: &PlainRequest<'_>) -> CallFrame {
        CallFrame {
            call: plain.call,
            kind: Some(Kind::Head(Head {
                service: plain.service.into(),
                method: plain.method.into(),
                timeout_us: plain.timeout_us,
                payload: Bytes::copy_from_slice(plain.payload),
                end: true,
                several: plain.several,
                ..Head::default()
            })),
        }
    }

    fn as_trailers(plain: PlainReply) -> CallFrame {
        let PlainReply { call, several, payload } = plain;
        let trailers = match several {
            true => Trailers {
                messages: payload,
                ..Trailers::default()
            },
            false => Trailers {
                payload,
                ..Trailers::default()
            },
        };
        CallFrame {
            call,
            kind: Some(Kind::Trailers(trailers)),
        }
    }

    /// What agrees on the bytes of a frame: nothing, or the schema's decoder.
    fn agrees(bytes: &[u8]) -> Result<(), TestCaseError> {
        if let Some(plain) = request(bytes) {
            prop_assert_eq!(decoded(bytes), Some(as_head(&plain)));
        }
        let frame = Bytes::copy_from_slice(bytes);
        if let Some(plain) = reply(&frame) {
            prop_assert_eq!(decoded(bytes), Some(as_trailers(plain)));
        }
        Ok(())
    }

    /// Bytes that are nearly frames: tags and small lengths of the schema's fields, in any order.
    fn nearly() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![
            4 => prop::sample::select(vec![8, 10, 18, 24, 34, 42, 48, 50, 56, 66, 72, 88, 1, 0, 2, 3, 4, 6, 128, 255]),
            1 => any::<u8>(),
        ];
        prop::collection::vec(byte, 0..24)
    }

    proptest! {
        #[test]
        fn usual_frames_are_read_and_as_the_schema_has_them(
            call in prop_oneof![Just(0), any::<u64>()],
            (service, method) in ("[a-zé]{1,20}", "[a-zA-Z/]{0,200}"),
            timeout_us in prop_oneof![Just(0), any::<u64>()],
            several in any::<bool>(),
            payload in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let frame = crate::frame::tests::plain_head(call, &service, &method, timeout_us, several, &payload);
            let plain = request(&frame);
            prop_assert_eq!(
                plain,
                Some(PlainRequest { call, service: &service, method: &method, timeout_us, several, payload: &payload })
            );
            agrees(&frame)?;
            let plain = || PlainReply { call, several: several && !payload.is_empty(), payload: payload.clone().into() };
            let frame = Bytes::from(as_trailers(plain()).encode_to_vec());
            prop_assert_eq!(reply(&frame), Some(plain()));
            agrees(&frame)?;
        }

        #[test]
        fn what_is_read_of_any_bytes_is_what_the_schema_reads(bytes in nearly()) {
            agrees(&bytes)?;
        }

        #[test]
        fn a_frame_changed_in_one_byte_is_read_as_the_schema_reads_it(
            payload in prop::collection::vec(any::<u8>(), 0..40),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let head = crate::frame::tests::plain_head(300, "echo", "m", 1_000_000, true, &payload);
            let plain = |several| PlainReply { call: 300, several, payload: payload.clone().into() };
            for mut frame in [head, as_trailers(plain(false)).encode_to_vec(), as_trailers(plain(true)).encode_to_vec()] {
                let at = at.index(frame.len());
                frame[at] = byte;
                agrees(&frame)?;
            }
        }
    }

    #[test]
    fn what_has_more_than_a_payload_is_left_to_the_schema() {
        let refused = CallFrame {
            call: 7,
            kind: Some(Kind::Trailers(Trailers {
                not_started: true,
                ..Trailers::default()
            })),
        };
        assert_eq!(reply(&refused.encode_to_vec().into()), None);
        let mut streaming = as_head(&PlainRequest {
            call: 7,
            service: "echo",
            method: "",
            timeout_us: 1,
            several: false,
            payload: b"",
        });
        if let Some(Kind::Head(head)) = &mut streaming.kind {
            head.end = false;
        }
        assert_eq!(request(&streaming.encode_to_vec()), None);
    }
}
