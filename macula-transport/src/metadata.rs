//! What travels beside a call's payload: string keys with byte values.

use bytes::Bytes;
use macula_wire::proto::MetadataEntry;

/// A call's or reply's metadata: a short list of string keys with byte values, in the order they were added.
///
/// Keys may repeat. Empty metadata allocates nothing. All of it travels in a call's head, so it is small: at most
/// [`DEFAULT_METADATA_ENTRIES`](crate::DEFAULT_METADATA_ENTRIES) entries, and a head of at most
/// [`DEFAULT_HEAD_BYTES`](crate::DEFAULT_HEAD_BYTES), unless the [`Limits`](crate::Limits) of both sides allow more.
#[derive(Clone, Default, PartialEq)]
#[expect(
    clippy::box_collection,
    reason = "few calls have any, and every call moves it several times"
)]
pub struct Metadata(Option<Box<Vec<MetadataEntry>>>);

impl Metadata {
    /// No entries.
    #[must_use]
    pub const fn new() -> Self {
        Self(None)
    }

    /// Adds an entry after the others.
    pub fn push(&mut self, key: impl Into<String>, value: impl Into<Bytes>) {
        self.0.get_or_insert_default().push(MetadataEntry {
            key: key.into(),
            value: value.into(),
        });
    }

    /// The value of the first entry with this key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Bytes> {
        self.entries()
            .iter()
            .find(|entry| entry.key == key)
            .map(|entry| &entry.value)
    }

    /// Every entry, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Bytes)> {
        self.entries().iter().map(|entry| (entry.key.as_str(), &entry.value))
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries().len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries().is_empty()
    }

    pub(crate) fn entries(&self) -> &[MetadataEntry] {
        self.0.as_deref().map_or(&[], Vec::as_slice)
    }
}

impl std::fmt::Debug for Metadata {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Into<String>, V: Into<Bytes>> FromIterator<(K, V)> for Metadata {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut metadata = Self::new();
        entries.into_iter().for_each(|(key, value)| metadata.push(key, value));
        metadata
    }
}
