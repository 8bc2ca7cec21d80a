//! The frames that are read and written here, against the schema's own encoder and decoder.

use macula_wire::{
    FrameDecoder,
    proto::{self, CallFrame, call_frame::Kind},
};
use proptest::prelude::*;

use super::*;
use crate::heads::{DEFAULT_HEAD_BYTES, DEFAULT_METADATA_ENTRIES};

fn read(frame: &Bytes) -> Result<(u64, Frame), Malformed> {
    super::read(frame, HeadLimits::LEAST)
}

/// The one frame in an outbox, without its length.
fn written(mut outbox: Outbox) -> Bytes {
    let mut decoder = FrameDecoder::new(1 << 20);
    decoder.push(outbox.take().concat().into());
    let frame = decoder.next_frame().unwrap().unwrap();
    decoder.finish().unwrap();
    frame
}

/// A frame as the schema has it. Of a refused call only the words are read.
fn as_schema(call: u64, frame: &Frame) -> CallFrame {
    let kind = match frame {
        Frame::Head(head) => {
            let route = head.route.as_deref().copied();
            Kind::Head(proto::Head {
                service: head.service().to_owned(),
                method: head.method.clone(),
                timeout_us: head.timeout_us,
                metadata: head.metadata.entries().to_vec(),
                payload: head.payload.clone(),
                end: head.end,
                route: route.is_some(),
                repeat: route.unwrap_or_default().repeat.to_wire().into(),
                max_attempts: route.and_then(|route| route.max_attempts).map_or(0, NonZeroU32::get),
                attempt_timeout_us: route.map_or(0, |route| route.attempt_timeout_us()),
                passage: head.passage.clone(),
            })
        }
        Frame::Data(Data { payload, end, whole }) => Kind::Data(proto::Data {
            payload: payload.clone(),
            end: *end,
            whole: *whole,
        }),
        Frame::Trailers(Ok(reply)) => Kind::Trailers(proto::Trailers {
            status: reply.status.as_u32(),
            message: reply.message().to_owned(),
            not_started: false,
            metadata: reply.metadata.entries().to_vec(),
            payload: reply.body.clone(),
            details: reply.details().clone(),
            pushback_ms: reply.pushback().map(Pushback::to_wire),
        }),
        Frame::Trailers(Err(CallError::Refused {
            status,
            message,
            pushback,
        })) => Kind::Trailers(proto::Trailers {
            status: status.as_u32(),
            message: message.clone(),
            not_started: true,
            pushback_ms: pushback.map(Pushback::to_wire),
            ..proto::Trailers::default()
        }),
        Frame::Trailers(Err(other)) => panic!("no frame says {other}"),
        Frame::Cancel => Kind::Cancel(proto::Cancel {}),
    };
    CallFrame { call, kind: Some(kind) }
}

/// What the schema's decoder reads, as far as this version knows the values: unknown ones mean what they are read as.
fn known(mut frame: CallFrame) -> CallFrame {
    match &mut frame.kind {
        Some(Kind::Head(head)) => {
            head.repeat = Repeat::from_wire(head.repeat).to_wire().into();
            if !head.route {
                (head.repeat, head.max_attempts, head.attempt_timeout_us) = (0, 0, 0);
            }
        }
        Some(Kind::Trailers(trailers)) => {
            trailers.status = StatusCode::from_u32(trailers.status).as_u32();
            trailers.pushback_ms = Pushback::from_wire(trailers.pushback_ms).map(Pushback::to_wire);
            if trailers.not_started {
                trailers.metadata.clear();
                trailers.payload.clear();
                trailers.details.clear();
            }
        }
        Some(Kind::Data(_) | Kind::Cancel(_)) | None => {}
    }
    frame
}

/// What is read of any bytes is what the schema reads of them.
fn agrees(bytes: &[u8]) -> Result<(), TestCaseError> {
    let frame = Bytes::copy_from_slice(bytes);
    if let Ok((call, read)) = read(&frame) {
        let schema = CallFrame::decode(bytes).map(known).ok();
        prop_assert_eq!(Some(as_schema(call, &read)), schema);
    }
    Ok(())
}

fn payload() -> impl Strategy<Value = Bytes> {
    prop_oneof![0..100_usize, 4000..20_000_usize].prop_map(|length| Bytes::from(vec![9; length]))
}

fn route() -> impl Strategy<Value = Option<Route>> {
    let repeat = prop::sample::select(vec![
        Repeat::NeverProcessed,
        Repeat::Transient,
        Repeat::Unavailable,
        Repeat::AnyError,
    ]);
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
    fn frames_are_written_as_the_schema_has_them_and_read_back(
        call in prop_oneof![Just(0), any::<u64>()],
        (service, method) in ("[a-z]{1,128}", "[a-zA-Z/é]{0,200}"),
        (payload, metadata) in (payload(), metadata()),
        (timeout_us, end, route, not_started) in (any::<u64>(), any::<bool>(), route(), any::<bool>()),
        (status, message, details) in (0..17_u32, "\\PC{0,40}", prop::collection::vec(any::<u8>(), 0..300)),
        (pushback, passage) in (prop::option::of(-1..1_000_000_i64), prop::collection::vec(any::<u8>(), 0..1200)),
        part in prop::sample::select(vec![Part::Some, Part::Last, Part::FirstOfWhole]),
    ) {
        let name = service.parse().unwrap();
        let body = payload.slice(..payload.len().min(INLINE_BYTES));
        let request = CallRequest::new(&name, body.clone()).with_method(&method).with_metadata(&metadata).with_route(route);
        let request = request.with_passage(passage.into());
        let head = proto::Head {
            service,
            method: method.clone(),
            timeout_us,
            metadata: metadata.entries().to_vec(),
            payload: if end { body } else { Bytes::new() },
            end,
            route: route.is_some(),
            repeat: route.unwrap_or_default().repeat.to_wire().into(),
            max_attempts: route.and_then(|route| route.max_attempts).map_or(0, NonZeroU32::get),
            attempt_timeout_us: route.map_or(0, |route| route.attempt_timeout_us()),
            passage: request.passage.clone(),
        };
        prop_assert!(head.encoded_len() - head.payload.len() <= head_size(&request).0);
        let mut reply = Reply::error(StatusCode::from_u32(status), message.clone())
            .with_metadata(metadata.clone())
            .with_details(details.clone());
        reply.not_started = not_started;
        if let Some(pushback) = Pushback::from_wire(pushback) {
            reply = reply.with_pushback(pushback);
        }
        let trailers = proto::Trailers {
            status,
            message,
            not_started,
            metadata: metadata.entries().to_vec(),
            payload: payload.clone(),
            details: details.into(),
            pushback_ms: pushback,
        };
        let data = proto::Data {
            payload: payload.clone(),
            end: part == Part::Last,
            whole: part == Part::FirstOfWhole,
        };
        type Put<'a> = Box<dyn Fn(&mut Outbox) -> Flush + 'a>;
        let frames: [(Put<'_>, Kind); 4] = [
            (Box::new(|outbox| put_head(outbox, call, &request, timeout_us, end)), Kind::Head(head)),
            (Box::new(|outbox| put_trailers(outbox, call, &reply, &payload)), Kind::Trailers(trailers)),
            (Box::new(|outbox| put_data(outbox, call, &payload, part)), Kind::Data(data)),
            (Box::new(|outbox| put_cancel(outbox, call)), Kind::Cancel(proto::Cancel {})),
        ];
        for (put, kind) in frames {
            let mut outbox = Outbox::default();
            let _ = put(&mut outbox);
            let frame = written(outbox);
            let schema = CallFrame { call, kind: Some(kind) };
            prop_assert_eq!(CallFrame::decode(frame.clone()).unwrap(), schema.clone());
            let (read_call, read) = read(&frame).unwrap();
            prop_assert_eq!(as_schema(read_call, &read), known(schema));
        }
    }

    /// Fields in any order, and fields of a later version between them.
    #[test]
    fn a_frame_of_another_encoder_is_read_as_the_schema_reads_it(
        fields in prop::collection::vec((1..20_u32, any::<u64>(), prop::collection::vec(any::<u8>(), 0..30)), 0..12),
        kind in 1..8_u32,
        call in any::<u64>(),
    ) {
        let mut message = Vec::new();
        for (field, number, bytes) in fields {
            match number % 4 {
                0 => prost::encoding::uint64::encode(field, &number, &mut message),
                1 => prost::encoding::fixed32::encode(field, &1, &mut message),
                _ => prost::encoding::bytes::encode(field, &bytes, &mut message),
            }
        }
        let mut frame = Vec::new();
        prost::encoding::bytes::encode(kind, &message, &mut frame);
        prost::encoding::uint64::encode(1, &call, &mut frame);
        agrees(&frame)?;
    }

    /// Tags and small lengths of the schema's fields, in any order.
    #[test]
    fn what_is_read_of_any_bytes_is_what_the_schema_reads(
        bytes in prop::collection::vec(
            prop_oneof![
                4 => prop::sample::select(vec![8, 10, 18, 24, 26, 34, 42, 48, 50, 56, 66, 72, 88, 1, 0, 2, 3, 4, 6, 128, 255]),
                1 => any::<u8>(),
            ],
            0..24,
        ),
    ) {
        agrees(&bytes)?;
    }

    #[test]
    fn a_frame_changed_in_one_byte_is_read_as_the_schema_reads_it(
        payload in prop::collection::vec(any::<u8>(), 0..40),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let name = "echo".parse().unwrap();
        let metadata = [("key", "value")].into_iter().collect();
        let request = CallRequest::new(&name, payload.clone()).with_method("m").with_metadata(&metadata);
        let (mut head, mut trailers) = (Outbox::default(), Outbox::default());
        let _ = put_head(&mut head, 300, &request, 1_000_000, true);
        let _ = put_trailers(&mut trailers, 300, &Reply::error(StatusCode::Internal, "no"), &payload.into());
        for frame in [head, trailers] {
            let mut frame = written(frame).to_vec();
            let at = at.index(frame.len());
            frame[at] = byte;
            agrees(&frame)?;
        }
    }
}

fn encoded(kind: Kind) -> Bytes {
    CallFrame {
        call: 7,
        kind: Some(kind),
    }
    .encode_to_vec()
    .into()
}

fn with_entries(entries: usize) -> [Kind; 2] {
    let metadata = vec![MetadataEntry::default(); entries];
    let head = proto::Head {
        metadata: metadata.clone(),
        ..proto::Head::default()
    };
    let trailers = proto::Trailers {
        metadata,
        ..proto::Trailers::default()
    };
    [Kind::Head(head), Kind::Trailers(trailers)]
}

#[test]
fn x9_as_many_entries_as_are_allowed_are_read_and_one_more_is_not() {
    for kind in with_entries(DEFAULT_METADATA_ENTRIES) {
        assert!(read(&encoded(kind)).is_ok());
    }
    for entries in [DEFAULT_METADATA_ENTRIES + 1, 1 << 20] {
        for kind in with_entries(entries) {
            assert_eq!(read(&encoded(kind)).unwrap_err(), Malformed);
        }
    }
}

/// The schema's decoder would put the two together, and their lists.
#[test]
fn x9_a_frame_with_two_heads_is_none() {
    let [head, trailers] = with_entries(1);
    for second in [head.clone(), trailers] {
        let twice = [encoded(head.clone()), encoded(second)].concat();
        assert_eq!(read(&twice.into()).unwrap_err(), Malformed);
    }
}

#[test]
fn a_payload_and_values_are_slices_of_their_frame() {
    let value = Bytes::from(vec![7; 1000]);
    let frame = encoded(Kind::Head(proto::Head {
        metadata: vec![MetadataEntry {
            key: "k".into(),
            value: value.clone(),
        }],
        payload: value,
        ..proto::Head::default()
    }));
    let (_, Frame::Head(head)) = read(&frame).unwrap() else {
        panic!("a head is a head")
    };
    for slice in [&head.payload, &head.metadata.entries()[0].value] {
        assert!(frame.as_ptr_range().contains(&slice.as_ptr()));
    }
}

#[test]
fn a_head_with_more_than_it_may_have_is_none() {
    for (method, payload) in [(DEFAULT_HEAD_BYTES + 100, 0), (0, INLINE_BYTES + 1)] {
        let head = proto::Head {
            method: "m".repeat(method),
            payload: vec![1; payload].into(),
            ..proto::Head::default()
        };
        assert_eq!(read(&encoded(Kind::Head(head))).unwrap_err(), Malformed);
    }
}
