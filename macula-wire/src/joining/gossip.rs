//! Revocations between members: each side first sends a hash of its lists, and equal hashes end the exchange.

use bytes::Bytes;
use prost::Message as _;

use super::message::MalformedMessage;
use crate::{SignedRevocations, hash::sha256, proto};

/// The most lists in one message.
pub const MAX_LISTS: usize = 64;
/// The most bytes of the lists in one message; one list has about half of it at most.
const MAX_BYTES: usize = 12 * 1024;

/// The hash of all lists that a node knows, given in their order.
#[must_use]
pub fn known_hash(lists: &[SignedRevocations]) -> [u8; 32] {
    let each: Vec<_> = lists
        .iter()
        .map(|list| sha256(b"macula/v1/revocations\0", &[&list.encode()]))
        .collect();
    let parts: Vec<&[u8]> = each.iter().map(|hash| &hash[..]).collect();
    sha256(b"macula/v1/known-revocations\0", &parts)
}

/// The lists from `from` that fit into a message (at least one), and where the next page starts.
fn page(lists: &[SignedRevocations], from: usize) -> (Vec<SignedRevocations>, Option<usize>) {
    let (mut taken, mut bytes) = (Vec::new(), 0);
    for list in lists.iter().skip(from).take(MAX_LISTS) {
        bytes += list.encode().len();
        if bytes > MAX_BYTES && !taken.is_empty() {
            break;
        }
        taken.push(list.clone());
    }
    let next = from + taken.len();
    let more = !taken.is_empty() && next < lists.len();
    (taken, more.then_some(next))
}

/// A member tells another of its revocations, and asks for those it lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationsRequest {
    /// The [`known_hash`] of the sender.
    pub known: [u8; 32],
    /// Lists that are news to the sender, at most [`MAX_LISTS`].
    pub news: Vec<SignedRevocations>,
    /// The place in the receiver's lists from which the sender asks for them.
    pub from: usize,
}

impl RevocationsRequest {
    /// The encoded form. News that does not fit is left out: the receiver gets it when it compares.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let (news, _) = page(&self.news, 0);
        let request = proto::RevocationsRequest {
            known: Bytes::copy_from_slice(&self.known),
            lists: news.into_iter().map(Into::into).collect(),
            from: u32::try_from(self.from).unwrap_or(u32::MAX),
        };
        request.encode_to_vec().into()
    }

    /// Reads the encoded form.
    ///
    /// # Errors
    /// When the bytes are no request.
    pub fn decode(bytes: Bytes) -> Result<Self, MalformedMessage> {
        let request = proto::RevocationsRequest::decode(bytes).map_err(|_| MalformedMessage)?;
        Ok(Self {
            known: read_hash(&request.known)?,
            news: read_lists(request.lists),
            from: usize::try_from(request.from).map_err(|_| MalformedMessage)?,
        })
    }
}

/// The reply to a [`RevocationsRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationsReply {
    /// The [`known_hash`] of the sender, after it has taken the news.
    pub known: [u8; 32],
    /// Lists of the sender, at most [`MAX_LISTS`]; none when both know the same.
    pub lists: Vec<SignedRevocations>,
    /// The place of the next list, when there are more.
    pub next: Option<usize>,
}

impl RevocationsReply {
    /// The reply of a node with these `lists`, whose hash is `known` ([`known_hash`]).
    #[must_use]
    pub fn to(request: &RevocationsRequest, known: [u8; 32], lists: &[SignedRevocations]) -> Self {
        let (lists, next) = match known == request.known {
            true => (Vec::new(), None),
            false => page(lists, request.from),
        };
        Self { known, lists, next }
    }

    /// The encoded form.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let reply = proto::RevocationsReply {
            known: Bytes::copy_from_slice(&self.known),
            lists: self.lists.iter().cloned().map(Into::into).collect(),
            next: u32::try_from(self.next.unwrap_or_default()).unwrap_or_default(),
        };
        reply.encode_to_vec().into()
    }

    /// Reads the encoded form.
    ///
    /// # Errors
    /// When the bytes are no reply.
    pub fn decode(bytes: Bytes) -> Result<Self, MalformedMessage> {
        let reply = proto::RevocationsReply::decode(bytes).map_err(|_| MalformedMessage)?;
        let next = usize::try_from(reply.next).map_err(|_| MalformedMessage)?;
        Ok(Self {
            known: read_hash(&reply.known)?,
            lists: read_lists(reply.lists),
            next: (next > 0).then_some(next),
        })
    }
}

fn read_hash(bytes: &[u8]) -> Result<[u8; 32], MalformedMessage> {
    bytes.try_into().map_err(|_| MalformedMessage)
}

fn read_lists(lists: Vec<proto::SignedRevocations>) -> Vec<SignedRevocations> {
    lists.into_iter().take(MAX_LISTS).map(Into::into).collect()
}
