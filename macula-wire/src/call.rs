//! Reading a call's frames, with the number of metadata entries checked before any of them is built.
//!
//! An entry takes two bytes of a frame and fifty-six of memory once it is decoded, and a list doubles as it grows: without the
//! check a frame of 4 MiB could cost its reader more than a hundred.
//!
//! **Invariant:** what [`CallFrame::read`] builds takes no more memory than the frame itself and [`MAX_CALL_METADATA_ENTRIES`]
//! empty entries; payloads and values are slices of the frame.

use bytes::Bytes;
use prost::Message as _;

use crate::proto::CallFrame;

/// The most metadata entries of one call frame.
pub const MAX_CALL_METADATA_ENTRIES: usize = 128;

/// The fields of `CallFrame` that hold metadata, `Head` and `Trailers`, and the field of both that is metadata.
const HEAD_FIELD: u64 = 2;
const TRAILERS_FIELD: u64 = 4;
const METADATA_FIELD: u64 = 4;

/// The bytes are not a frame of a call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallFrameError {
    /// There are more metadata entries than [`MAX_CALL_METADATA_ENTRIES`].
    #[error("the frame has more than {MAX_CALL_METADATA_ENTRIES} metadata entries")]
    TooManyEntries,
    /// The bytes are not protobuf fields, or hold a group, which the protocol does not use.
    #[error("the frame is not made of protobuf fields")]
    Fields,
    /// The bytes are not the message of the schema.
    #[error("the frame cannot be decoded")]
    Decode(#[from] prost::DecodeError),
}

impl CallFrame {
    /// Decodes a frame's bytes, without its length. Payload and values are slices of it.
    ///
    /// # Errors
    /// When the bytes are not a call's frame, or it has more than [`MAX_CALL_METADATA_ENTRIES`] metadata entries: nothing was
    /// allocated for them.
    pub fn read(frame: Bytes) -> Result<Self, CallFrameError> {
        // An entry takes two bytes at least: what is short need not be counted.
        if frame.len() > 2 * MAX_CALL_METADATA_ENTRIES {
            count_entries(&frame)?;
        }
        Ok(Self::decode(frame)?)
    }
}

/// Counts the metadata entries of a frame. A field may come several times, its entries then add up.
fn count_entries(frame: &[u8]) -> Result<(), CallFrameError> {
    let mut entries = 0;
    each_message(frame, |field, message| {
        if field != HEAD_FIELD && field != TRAILERS_FIELD {
            return Ok(());
        }
        each_message(message, |field, _| {
            entries += usize::from(field == METADATA_FIELD);
            if entries > MAX_CALL_METADATA_ENTRIES {
                return Err(CallFrameError::TooManyEntries);
            }
            Ok(())
        })
    })
}

/// Gives every length-delimited field to `take`, skipping the others.
fn each_message(
    mut bytes: &[u8],
    mut take: impl FnMut(u64, &[u8]) -> Result<(), CallFrameError>,
) -> Result<(), CallFrameError> {
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let skipped = match key & 7 {
            0 => {
                varint(&mut bytes)?;
                continue;
            }
            1 => 8,
            2 => usize::try_from(varint(&mut bytes)?).map_err(|_| CallFrameError::Fields)?,
            5 => 4,
            _ => return Err(CallFrameError::Fields),
        };
        let (field, rest) = bytes.split_at_checked(skipped).ok_or(CallFrameError::Fields)?;
        if key & 7 == 2 {
            take(key >> 3, field)?;
        }
        bytes = rest;
    }
    Ok(())
}

fn varint(bytes: &mut &[u8]) -> Result<u64, CallFrameError> {
    prost::encoding::decode_varint(bytes).map_err(|_| CallFrameError::Fields)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::{Data, Head, MetadataEntry, Trailers, call_frame::Kind};

    fn framed(kind: Kind) -> Bytes {
        let frame = CallFrame {
            call: 7,
            kind: Some(kind),
        };
        frame.encode_to_vec().into()
    }

    fn head(entries: usize) -> Kind {
        Kind::Head(Head {
            service: "echo".into(),
            metadata: vec![MetadataEntry::default(); entries],
            ..Head::default()
        })
    }

    fn trailers(entries: usize) -> Kind {
        Kind::Trailers(Trailers {
            metadata: vec![MetadataEntry::default(); entries],
            ..Trailers::default()
        })
    }

    #[test]
    fn as_many_entries_as_are_allowed_are_read_and_one_more_is_not() {
        for kind in [head, trailers] {
            let whole = CallFrame::read(framed(kind(MAX_CALL_METADATA_ENTRIES))).unwrap();
            assert_eq!(whole.kind, Some(kind(MAX_CALL_METADATA_ENTRIES)));
            for entries in [MAX_CALL_METADATA_ENTRIES + 1, 1 << 20] {
                let refused = CallFrame::read(framed(kind(entries)));
                assert_eq!(refused, Err(CallFrameError::TooManyEntries));
            }
        }
    }

    /// Protobuf merges a message that comes twice: its lists add up, and so must their count.
    #[test]
    fn entries_spread_over_repeated_heads_are_counted_together() {
        let mut frame = Vec::new();
        for _ in 0..2 {
            frame.extend_from_slice(&framed(head(MAX_CALL_METADATA_ENTRIES / 2 + 1)));
        }
        let merged = CallFrame::decode(&frame[..]).unwrap();
        let Some(Kind::Head(merged)) = merged.kind else {
            panic!("two heads are one")
        };
        assert!(merged.metadata.len() > MAX_CALL_METADATA_ENTRIES);
        assert_eq!(CallFrame::read(frame.into()), Err(CallFrameError::TooManyEntries));
    }

    #[test]
    fn a_payload_that_looks_like_entries_is_none() {
        let payload = Bytes::from([0x22, 0].repeat(10_000));
        let kind = Kind::Data(Data {
            payload: payload.clone(),
            end: true,
            whole: true,
        });
        assert_eq!(CallFrame::read(framed(kind.clone())).unwrap().kind, Some(kind));
        let kind = Kind::Head(Head {
            payload,
            ..Head::default()
        });
        assert_eq!(CallFrame::read(framed(kind.clone())).unwrap().kind, Some(kind));
    }

    #[test]
    fn payload_and_values_are_slices_of_the_frame() {
        let value = Bytes::from(vec![7; 1000]);
        let kind = Kind::Head(Head {
            metadata: vec![MetadataEntry {
                key: "k".into(),
                value: value.clone(),
            }],
            payload: value,
            ..Head::default()
        });
        let frame = framed(kind);
        let Some(Kind::Head(head)) = CallFrame::read(frame.clone()).unwrap().kind else {
            panic!("a head is a head")
        };
        for slice in [&head.payload, &head.metadata[0].value] {
            assert!(frame.as_ptr_range().contains(&slice.as_ptr()));
        }
    }

    proptest! {
        /// Whatever the schema's decoder takes within the limit, this takes too, and gives the same; groups apart, which no
        /// version of the schema has.
        #[test]
        fn what_is_read_is_what_the_schema_gives(
            service in "[a-z.]{0,300}",
            entries in prop::collection::vec(("[a-z]{0,5}", prop::collection::vec(any::<u8>(), 0..20)), 0..150),
            payload in prop::collection::vec(any::<u8>(), 0..600),
            unknown in prop::collection::vec((16..1000_u32, any::<u64>()), 0..20),
        ) {
            let metadata: Vec<_> = entries
                .into_iter()
                .map(|(key, value)| MetadataEntry { key, value: value.into() })
                .collect();
            let fits = metadata.len() <= MAX_CALL_METADATA_ENTRIES;
            let head = Head { service, metadata, payload: payload.into(), ..Head::default() };
            let mut frame = framed(Kind::Head(head)).to_vec();
            // Fields of a later version.
            for (field, value) in unknown {
                prost::encoding::uint64::encode(field, &value, &mut frame);
                prost::encoding::fixed32::encode(field, &1, &mut frame);
                prost::encoding::fixed64::encode(field, &1, &mut frame);
                prost::encoding::bytes::encode(field, &value.to_le_bytes().to_vec(), &mut frame);
            }
            let expected = CallFrame::decode(&frame[..]);
            let got = CallFrame::read(frame.into());
            prop_assert_eq!(fits, got.is_ok());
            if fits {
                prop_assert_eq!(got.ok(), expected.ok());
            }
        }

        #[test]
        fn arbitrary_bytes_are_a_frame_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = CallFrame::read(bytes.into());
        }
    }
}
