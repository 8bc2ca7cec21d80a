//! gRPC's headers and trailers on the mesh, written and read.
//!
//! **Invariant (X9).** A [`HeaderMap`] panics when it overflows, and a peer makes most of the lists that become one. So this file holds
//! the only reader. It takes the entries and bytes of its [`HeaderLimits`] from any source, and it reads a list entry by entry, so a longer
//! list takes no memory.

use ::tonic::codegen::http::{HeaderMap, HeaderName, HeaderValue, header::CONTENT_TYPE as CONTENT_TYPE_KEY};
use bytes::{Buf as _, Bytes};
use macula_transport::{Limits, MAX_HEAD_BYTES, MAX_METADATA_ENTRIES, Metadata, PeerInfo};
use macula_wire::proto::MetadataEntry;
use prost::Message as _;

/// How long a list of headers may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HeaderLimits {
    entries: usize,
    /// Of names and values.
    bytes: usize,
}

impl HeaderLimits {
    /// For metadata, which the transport has held against its own limits, and for lists that do not leave this process.
    const MOST: Self = Self {
        entries: MAX_METADATA_ENTRIES,
        bytes: MAX_HEAD_BYTES,
    };

    /// The least bytes of a reply's headers that a node takes: they are a message, and no part of a head.
    const LEAST_BYTES: usize = 64 * 1024;

    /// The headers of a reply that this node takes.
    pub(super) fn of_own(limits: &Limits) -> Self {
        Self {
            entries: limits.max_metadata_entries,
            bytes: limits.max_head_bytes.max(Self::LEAST_BYTES),
        }
    }

    /// The headers of a reply that the caller takes; `None` is a caller in this process.
    pub(super) fn of_peer(peer: Option<&PeerInfo>) -> Self {
        peer.map_or(Self::MOST, |peer| Self {
            entries: peer.max_metadata_entries,
            bytes: peer.max_head_bytes.max(Self::LEAST_BYTES),
        })
    }
}

/// Headers of the connection, or that travel in another way.
const NOT_CARRIED: [&str; 3] = ["te", "grpc-timeout", "host"];

/// The content type of every request and reply that names no other. It is not sent, and the reader adds it.
const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");

fn is_implied(key: &HeaderName, value: &HeaderValue) -> bool {
    key == CONTENT_TYPE_KEY && value == CONTENT_TYPE
}

/// The headers of a reply: its first message.
#[derive(Clone, PartialEq, prost::Message)]
struct HeaderMessage {
    #[prost(message, repeated, tag = "1")]
    entries: Vec<MetadataEntry>,
}

/// The byte before every entry of a [`HeaderMessage`]: field 1, length-delimited.
const ENTRY_KEY: u8 = 0x0a;

/// Why a list of headers is not one that this node reads or sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum HeadersError {
    /// There are too many entries, or too many bytes.
    #[error("more than {} entries or {} bytes of metadata; send fewer, or send them in a message", .0.entries, .0.bytes)]
    TooLarge(HeaderLimits),
    /// The first message of the reply is no list of headers.
    #[error("the reply does not begin with headers")]
    NotHeaders,
}

/// A list of headers while it is read.
struct Reader {
    limits: HeaderLimits,
    headers: HeaderMap,
    entries: usize,
    bytes: usize,
}

impl Reader {
    fn new(limits: HeaderLimits) -> Self {
        Self {
            limits,
            headers: HeaderMap::new(),
            entries: 0,
            bytes: 0,
        }
    }

    /// Takes in an entry. One that is no header by its characters is left out.
    fn take(&mut self, name: &str, value: &Bytes) -> Result<(), HeadersError> {
        self.entries += 1;
        self.bytes += name.len() + value.len();
        if self.entries > self.limits.entries || self.bytes > self.limits.bytes {
            return Err(HeadersError::TooLarge(self.limits));
        }
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_maybe_shared(value.clone())) {
            let appended = self.headers.try_append(name, value);
            appended.map_err(|_| HeadersError::TooLarge(self.limits))?;
        }
        Ok(())
    }

    fn with_content_type(mut self) -> HeaderMap {
        self.headers.entry(CONTENT_TYPE_KEY).or_insert(CONTENT_TYPE);
        self.headers
    }
}

fn read(metadata: &Metadata) -> Result<Reader, HeadersError> {
    let mut reader = Reader::new(HeaderLimits::MOST);
    for (name, value) in metadata.iter() {
        reader.take(name, value)?;
    }
    Ok(reader)
}

/// The headers or trailers in a call's metadata.
pub(super) fn from_metadata(metadata: &Metadata) -> Result<HeaderMap, HeadersError> {
    Ok(read(metadata)?.headers)
}

/// The headers of a request, the implied content type among them.
pub(super) fn of_request(metadata: &Metadata) -> Result<HeaderMap, HeadersError> {
    Ok(read(metadata)?.with_content_type())
}

/// The headers of a reply from its first message.
pub(super) fn read_message(mut message: Bytes, limits: HeaderLimits) -> Result<HeaderMap, HeadersError> {
    let mut reader = Reader::new(limits);
    while message.has_remaining() {
        if message.get_u8() != ENTRY_KEY {
            return Err(HeadersError::NotHeaders);
        }
        let length = prost::decode_length_delimiter(&mut message).map_err(|_| HeadersError::NotHeaders)?;
        if length > message.len() {
            return Err(HeadersError::NotHeaders);
        }
        let entry = MetadataEntry::decode(message.split_to(length)).map_err(|_| HeadersError::NotHeaders)?;
        reader.take(&entry.key, &entry.value)?;
    }
    Ok(reader.with_content_type())
}

/// The first message of a reply with these headers.
pub(super) fn message(headers: &HeaderMap, limits: HeaderLimits) -> Result<Bytes, HeadersError> {
    let carried = || headers.iter().filter(|(key, value)| !is_implied(key, value));
    let bytes: usize = carried().map(|(key, value)| key.as_str().len() + value.len()).sum();
    if carried().count() > limits.entries || bytes > limits.bytes {
        return Err(HeadersError::TooLarge(limits));
    }
    let entry = |(key, value): (&HeaderName, &HeaderValue)| MetadataEntry {
        key: key.as_str().to_owned(),
        value: Bytes::copy_from_slice(value.as_bytes()),
    };
    let message = HeaderMessage {
        entries: carried().map(entry).collect(),
    };
    Ok(message.encode_to_vec().into())
}

/// Headers as a call's metadata. The transport holds it against its own limits before it sends it.
pub(super) fn to_metadata(headers: &HeaderMap) -> Metadata {
    let carried = headers
        .iter()
        .filter(|(key, value)| !NOT_CARRIED.contains(&key.as_str()) && !is_implied(key, value));
    carried
        .map(|(key, value)| (key.as_str(), Bytes::copy_from_slice(value.as_bytes())))
        .collect()
}

/// Any bytes as the first message of a reply. Headers that are read are the same when they are written and read again.
///
/// # Panics
/// When they are not.
#[cfg(feature = "fuzzing")]
pub fn fuzz_headers(data: &[u8]) {
    let limits = HeaderLimits::MOST;
    if let Ok(headers) = read_message(Bytes::copy_from_slice(data), limits) {
        let again = message(&headers, limits).and_then(|message| read_message(message, limits));
        assert_eq!(again.as_ref(), Ok(&headers));
        assert!(of_request(&to_metadata(&headers)).is_ok());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: HeaderLimits = HeaderLimits {
        entries: 128,
        bytes: HeaderLimits::LEAST_BYTES,
    };

    /// More names than a `HeaderMap` has room for.
    const HOSTILE: usize = 40_000;

    fn entries(count: usize) -> Vec<MetadataEntry> {
        let entry = |at| MetadataEntry {
            key: format!("x-{at}"),
            value: Bytes::from_static(b"v"),
        };
        (0..count).map(entry).collect()
    }

    fn metadata(count: usize) -> Metadata {
        let entries = entries(count).into_iter();
        entries.map(|entry| (entry.key, entry.value)).collect()
    }

    fn first_message(count: usize) -> Bytes {
        let entries = entries(count);
        HeaderMessage { entries }.encode_to_vec().into()
    }

    #[test]
    fn x9_a_list_of_more_entries_than_its_limit_is_an_error_wherever_it_comes_from() {
        type Read = fn(usize) -> Result<HeaderMap, HeadersError>;
        let read: [(Read, HeaderLimits); 3] = [
            (|count| read_message(first_message(count), LIMITS), LIMITS),
            (|count| from_metadata(&metadata(count)), HeaderLimits::MOST),
            (|count| of_request(&metadata(count)), HeaderLimits::MOST),
        ];
        for (read, limits) in read {
            assert!(read(limits.entries).unwrap().len() >= limits.entries);
            for count in [limits.entries + 1, HOSTILE] {
                assert_eq!(read(count), Err(HeadersError::TooLarge(limits)));
            }
        }
    }

    #[test]
    fn x9_a_list_of_more_bytes_than_its_limit_is_an_error_in_both_directions() {
        let large = |bytes: usize| {
            let value = HeaderValue::from_bytes(&vec![b'v'; bytes - 3]).unwrap();
            HeaderMap::from_iter([(HeaderName::from_static("x-v"), value)])
        };
        let fits = message(&large(LIMITS.bytes), LIMITS).unwrap();
        assert!(read_message(fits, LIMITS).is_ok());
        let too_large = Err(HeadersError::TooLarge(LIMITS));
        assert_eq!(message(&large(LIMITS.bytes + 1), LIMITS), too_large);
        let wide = message(&large(LIMITS.bytes + 1), HeaderLimits::MOST).unwrap();
        assert_eq!(read_message(wide, LIMITS).map(|_| Bytes::new()), too_large);
        let widest = to_metadata(&large(MAX_HEAD_BYTES + 1));
        assert_eq!(from_metadata(&widest), Err(HeadersError::TooLarge(HeaderLimits::MOST)));
    }

    #[test]
    fn headers_survive_their_message_and_other_bytes_do_not_panic() {
        let mut headers = HeaderMap::new();
        headers.append("key", HeaderValue::from_static("one"));
        headers.append("key", HeaderValue::from_static("two"));
        headers.insert(CONTENT_TYPE_KEY, HeaderValue::from_static("application/grpc+proto"));
        assert_eq!(read_message(message(&headers, LIMITS).unwrap(), LIMITS), Ok(headers));
        for bytes in [
            &b"\xff\xff"[..],
            b"\x0a",
            b"\x0a\x05ab",
            b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        ] {
            let bytes = Bytes::copy_from_slice(bytes);
            assert_eq!(read_message(bytes, LIMITS), Err(HeadersError::NotHeaders));
        }
    }

    #[test]
    fn the_usual_content_type_is_not_carried_and_is_put_back() {
        let usual = HeaderMap::from_iter([(CONTENT_TYPE_KEY, CONTENT_TYPE)]);
        assert!(message(&usual, LIMITS).unwrap().is_empty() && to_metadata(&usual).is_empty());
        assert_eq!(read_message(Bytes::new(), LIMITS), Ok(usual.clone()));
        assert_eq!(of_request(&to_metadata(&usual)), Ok(usual.clone()));
        let mut other = usual;
        other.insert(CONTENT_TYPE_KEY, HeaderValue::from_static("application/grpc+json"));
        other.insert("user-agent", HeaderValue::from_static("example/1"));
        assert_eq!(of_request(&to_metadata(&other)), Ok(other));
    }

    proptest! {
        #[test]
        fn x9_any_first_message_is_read_or_refused(bytes: Vec<u8>) {
            let _ = read_message(bytes.into(), LIMITS);
        }
    }
}
