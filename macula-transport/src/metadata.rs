//! What travels beside a call's payload: string keys with byte values.

use bytes::Bytes;
use macula_wire::proto::MetadataEntry;

/// A call's or reply's metadata: a short list of string keys with byte values, in the order they were added.
///
/// Keys may repeat. Empty metadata allocates nothing. All of it travels in a call's head, so it is small: at most
/// [`MAX_METADATA_ENTRIES`](crate::MAX_METADATA_ENTRIES) entries, and a head of at most
/// [`MAX_HEAD_BYTES`](crate::MAX_HEAD_BYTES).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata(Vec<MetadataEntry>);

impl Metadata {
    /// No entries.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds an entry after the others.
    pub fn push(&mut self, key: impl Into<String>, value: impl Into<Bytes>) {
        self.0.push(MetadataEntry {
            key: key.into(),
            value: value.into(),
        });
    }

    /// The value of the first entry with this key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Bytes> {
        self.0.iter().find(|entry| entry.key == key).map(|entry| &entry.value)
    }

    /// Every entry, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Bytes)> {
        self.0.iter().map(|entry| (entry.key.as_str(), &entry.value))
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn from_wire(entries: Vec<MetadataEntry>) -> Self {
        Self(entries)
    }

    pub(crate) fn entries(&self) -> &[MetadataEntry] {
        &self.0
    }
}

impl<K: Into<String>, V: Into<Bytes>> FromIterator<(K, V)> for Metadata {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut metadata = Self::new();
        entries.into_iter().for_each(|(key, value)| metadata.push(key, value));
        metadata
    }
}
