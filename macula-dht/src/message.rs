//! The messages of DHT nodes: one request, one reply.
//!
//! A shell ferries the bytes: [`Request::encode`] and [`Response::encode`] here, [`Request::decode`] and [`Response::decode`]
//! there. Decoding checks every length and drops everything beyond a limit, so a decoded message is bounded.
//!
//! **Invariant:** an encoded message is at most [`MAX_MESSAGE_BYTES`] long when its parts were put together by this crate.

use std::time::Duration;

use bytes::Bytes;
use macula_wire::{
    ChainHash, MAX_CHAIN_BYTES, MAX_ENDPOINTS, MAX_RECORD_BYTES, NodeId, ServiceKey, SignedProvider, VerifiedProvider,
    proto,
};
use prost::Message as _;

use crate::{Contact, Point, clock::millis};

/// The most bytes a request or a reply has.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024;
/// The most contacts one reply names.
pub const MAX_REPLY_CONTACTS: usize = 20;
/// The most bytes of a reply that contacts take, so that long endpoint lists leave room for records.
pub(crate) const MAX_CONTACT_BYTES: usize = 4 * 1024;
/// The most records one request carries: as many as surely fit.
pub const MAX_PUBLISH_RECORDS: usize = 7;
/// The bytes of a record in a message beside its body and its chain: the signature, tags and lengths.
const RECORD_WIRE_BYTES: usize = 64 + 15;
/// The most bytes a record takes in a message.
const MAX_RECORD_WIRE_BYTES: usize = MAX_RECORD_BYTES + MAX_CHAIN_BYTES + RECORD_WIRE_BYTES;
/// Room for the key and the flags of a message.
const ENVELOPE_BYTES: usize = 128;

const _: () = assert!(MAX_PUBLISH_RECORDS * MAX_RECORD_WIRE_BYTES + ENVELOPE_BYTES <= MAX_MESSAGE_BYTES);

/// A peer's bytes are not a message of the DHT.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// More than [`MAX_MESSAGE_BYTES`].
    #[error("the peer's message has {0} bytes, more than {MAX_MESSAGE_BYTES}")]
    TooLarge(usize),
    /// Not protobuf.
    #[error("the peer's message cannot be decoded")]
    Malformed(#[from] prost::DecodeError),
    /// A message of a kind this version does not know.
    #[error("the peer's message is of a kind this version does not know; one of the two is older than the other")]
    UnknownKind,
    /// A key, node id or target that is not 32 bytes.
    #[error("an id in the peer's message is not 32 bytes")]
    BadId,
}

/// A question to a DHT node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Is the node there?
    Ping,
    /// Which contacts are closest to `target`?
    FindNode {
        /// A point of the key space.
        target: Point,
    },
    /// Which providers does `key` have, and which contacts are closest to it?
    FindProviders {
        /// The service's key.
        key: ServiceKey,
        /// Only those after this one in the list's order.
        after: Option<NodeId>,
    },
    /// Store these records.
    Publish {
        /// The service's key.
        key: ServiceKey,
        /// At most [`MAX_PUBLISH_RECORDS`] records of it.
        records: Vec<SignedProvider>,
    },
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// This node is here.
    Pong,
    /// The contacts closest to the target, closest first.
    Nodes(Vec<Contact>),
    /// The providers of a key.
    Providers {
        /// Records in the list's order, withdrawals among them.
        records: Vec<SignedProvider>,
        /// Contacts closest to the key, closest first.
        closest: Vec<Contact>,
        /// More records follow after the last one.
        more: bool,
    },
    /// The outcomes for the published records.
    Published {
        /// One for each record, in their order.
        outcomes: Vec<Outcome>,
        /// Stored records of the publisher itself: one that is newer than a published one, as the proof of [`Refusal::Stale`], or one of
        /// other addresses that a published one has replaced.
        newer: Vec<SignedProvider>,
    },
    /// No answer, and the reason.
    Declined(Declined),
}

/// The outcome for a published record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// Stored, or already there.
    Stored,
    /// Not stored.
    Refused(Refusal),
}

/// Why a node does not store a record (D10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// A newer record of this provider is there.
    #[error(
        "a newer record of this provider is stored; another process may be using its identity, or its clock was set back"
    )]
    Stale,
    /// Signature, form or size is wrong.
    #[error("the record is not valid")]
    Invalid,
    /// It has expired by the node's clock.
    #[error("the record expired {by:?} ago by the node's clock")]
    Expired {
        /// How long ago, in whole milliseconds.
        by: Duration,
    },
    /// It is dated too far ahead by the node's clock (D14).
    #[error("the record is dated {by:?} ahead by the node's clock")]
    FromTheFuture {
        /// How far, in whole milliseconds.
        by: Duration,
    },
    /// The key holds as many providers as it may.
    #[error("the node holds as many providers of the service as it may; use several service names")]
    KeyFull,
    /// The node holds as many keys or bytes as it may.
    #[error("the node's store is full; add nodes to the mesh")]
    StoreFull,
    /// The publisher holds as many records there as it may.
    #[error(
        "the publisher has as many records at the node as it may; publish fewer services, or add nodes to the mesh"
    )]
    PublisherQuota,
    /// The node is not among those that should hold the key.
    #[error("the node is not among those closest to the key")]
    NotResponsible,
    /// The node checks as many signatures as it can.
    #[error("the node is busy checking signatures; it is asked again by itself")]
    Busy,
    /// It names a loopback address, and the peer that brought it is on another host than the node (X12).
    #[error(
        "the record names an address such as 127.0.0.1, where other hosts reach themselves; advertise an address that they can reach"
    )]
    Loopback,
    /// A reason this version does not know.
    #[error("the node refused the record for a reason this version does not know")]
    Unknown,
}

/// Why a node does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Declined {
    /// The request could not be read.
    #[error("the peer could not read the request; the two may speak different versions")]
    Malformed,
    /// The sender asks more often than it may.
    #[error("the peer was asked more often than it allows; ask again later")]
    RateLimited,
    /// A reason this version does not know.
    #[error("the peer declined for a reason this version does not know")]
    Unknown,
}

impl Outcome {
    /// How far the date of a record is off that was refused for it.
    fn off_by(self) -> Option<Duration> {
        match self {
            Self::Refused(Refusal::Expired { by } | Refusal::FromTheFuture { by }) => Some(by),
            Self::Refused(_) | Self::Stored => None,
        }
    }
}

fn id_bytes(bytes: &[u8; 32]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

fn key(bytes: &[u8]) -> Result<ServiceKey, MessageError> {
    ServiceKey::from_slice(bytes).ok_or(MessageError::BadId)
}

fn check_size(bytes: &[u8]) -> Result<(), MessageError> {
    if bytes.len() > MAX_MESSAGE_BYTES {
        Err(MessageError::TooLarge(bytes.len()))
    } else {
        Ok(())
    }
}

impl Request {
    /// The request as bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        use proto::dht_request::Kind;
        let kind = match self {
            Self::Ping => Kind::Ping(proto::Ping {}),
            Self::FindNode { target } => Kind::FindNode(proto::FindNode {
                target: id_bytes(&target.to_bytes()),
            }),
            Self::FindProviders { key, after } => Kind::FindProviders(proto::FindProviders {
                key: id_bytes(key.as_bytes()),
                after: after.as_ref().map(|node| id_bytes(node.as_bytes())).unwrap_or_default(),
            }),
            Self::Publish { key, records } => Kind::Publish(proto::Publish {
                key: id_bytes(key.as_bytes()),
                records: records.iter().cloned().map(Into::into).collect(),
            }),
        };
        proto::DhtRequest { kind: Some(kind) }.encode_to_vec().into()
    }

    /// The request in a peer's bytes.
    ///
    /// # Errors
    /// When the bytes are not a request.
    pub fn decode(bytes: Bytes) -> Result<Self, MessageError> {
        use proto::dht_request::Kind;
        check_size(&bytes)?;
        Ok(
            match proto::DhtRequest::decode(bytes)?
                .kind
                .ok_or(MessageError::UnknownKind)?
            {
                Kind::Ping(proto::Ping {}) => Self::Ping,
                Kind::FindNode(find) => {
                    let target: &[u8; 32] = find.target[..].try_into().map_err(|_| MessageError::BadId)?;
                    Self::FindNode {
                        target: Point::from_bytes(target),
                    }
                }
                Kind::FindProviders(find) => Self::FindProviders {
                    key: key(&find.key)?,
                    after: match &find.after[..] {
                        [] => None,
                        node => Some(NodeId::from_slice(node).ok_or(MessageError::BadId)?),
                    },
                },
                Kind::Publish(publish) => Self::Publish {
                    key: key(&publish.key)?,
                    records: publish
                        .records
                        .into_iter()
                        .take(MAX_PUBLISH_RECORDS)
                        .map(Into::into)
                        .collect(),
                },
            },
        )
    }

    /// The answer that fits.
    pub(crate) fn expects(&self) -> Expected {
        match self {
            Self::Ping => Expected::Pong,
            Self::FindNode { .. } => Expected::Nodes,
            Self::FindProviders { .. } => Expected::Providers,
            Self::Publish { records, .. } => Expected::Published(records.len()),
        }
    }
}

/// A kind of answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    Pong,
    Nodes,
    Providers,
    /// To this many records.
    Published(usize),
}

impl Response {
    /// The response as bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        use proto::dht_response::Kind;
        let contacts = |closest: &[Contact]| closest.iter().map(contact_to_proto).collect();
        let kind = match self {
            Self::Pong => Kind::Pong(proto::Pong {}),
            Self::Nodes(closest) => Kind::Nodes(proto::Nodes {
                closest: contacts(closest),
            }),
            Self::Providers { records, closest, more } => Kind::Providers(proto::Providers {
                records: records.iter().cloned().map(Into::into).collect(),
                closest: contacts(closest),
                more: *more,
            }),
            Self::Published { outcomes, newer } => Kind::Published(proto::Published {
                off_by_ms: outcomes
                    .iter()
                    .filter_map(|outcome| outcome.off_by())
                    .map(millis)
                    .collect(),
                newer: newer.iter().cloned().map(Into::into).collect(),
                outcomes: outcomes
                    .iter()
                    .map(|&outcome| outcome_to_proto(outcome).into())
                    .collect(),
            }),
            Self::Declined(reason) => Kind::Declined(proto::Declined {
                reason: match reason {
                    Declined::Malformed => proto::DeclineReason::Malformed,
                    Declined::RateLimited => proto::DeclineReason::RateLimited,
                    Declined::Unknown => proto::DeclineReason::Unspecified,
                }
                .into(),
            }),
        };
        proto::DhtResponse { kind: Some(kind) }.encode_to_vec().into()
    }

    /// The response in a peer's bytes. Contacts that cannot be read are left out.
    ///
    /// # Errors
    /// When the bytes are not a response.
    pub fn decode(bytes: Bytes) -> Result<Self, MessageError> {
        use proto::dht_response::Kind;
        check_size(&bytes)?;
        let contacts = |closest: Vec<proto::Contact>| {
            closest
                .into_iter()
                .take(MAX_REPLY_CONTACTS)
                .filter_map(contact_from_proto)
                .collect()
        };
        Ok(
            match proto::DhtResponse::decode(bytes)?
                .kind
                .ok_or(MessageError::UnknownKind)?
            {
                Kind::Pong(proto::Pong {}) => Self::Pong,
                Kind::Nodes(nodes) => Self::Nodes(contacts(nodes.closest)),
                Kind::Providers(providers) => Self::Providers {
                    records: providers.records.into_iter().map(Into::into).collect(),
                    closest: contacts(providers.closest),
                    more: providers.more,
                },
                Kind::Published(published) => {
                    let mut amounts = published.off_by_ms.into_iter().map(Duration::from_millis);
                    let mut off_by = || amounts.next().unwrap_or_default();
                    let outcomes = published.outcomes.into_iter().take(MAX_PUBLISH_RECORDS);
                    let newer = published.newer.into_iter().take(MAX_PUBLISH_RECORDS);
                    Self::Published {
                        outcomes: outcomes.map(|code| outcome_from_proto(code, &mut off_by)).collect(),
                        newer: newer.map(Into::into).collect(),
                    }
                }
                Kind::Declined(declined) => Self::Declined(match proto::DeclineReason::try_from(declined.reason) {
                    Ok(proto::DeclineReason::Malformed) => Declined::Malformed,
                    Ok(proto::DeclineReason::RateLimited) => Declined::RateLimited,
                    Ok(proto::DeclineReason::Unspecified) | Err(_) => Declined::Unknown,
                }),
            },
        )
    }
}

impl Response {
    /// Whether this is the expected answer.
    pub(crate) fn answers(&self, expected: Expected) -> bool {
        match self {
            Self::Pong => expected == Expected::Pong,
            Self::Nodes(_) => expected == Expected::Nodes,
            Self::Providers { .. } => expected == Expected::Providers,
            Self::Published { outcomes, .. } => expected == Expected::Published(outcomes.len()),
            Self::Declined(_) => false,
        }
    }
}

/// The fields of an unverified record that are looked at before its signature.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peek {
    pub(crate) node: NodeId,
    pub(crate) seq: u64,
    pub(crate) advertised_at_ms: u64,
    pub(crate) ttl: Duration,
    /// The proof that the record names.
    pub(crate) chain: Option<ChainHash>,
}

/// The bytes that a record takes in a message.
pub(crate) fn wire_bytes(record: &SignedProvider) -> usize {
    record.body.len() + record.chain.len() + RECORD_WIRE_BYTES
}

pub(crate) fn peek(body: &[u8]) -> Option<Peek> {
    let record = proto::ProviderRecord::decode(body).ok()?;
    Some(Peek {
        node: NodeId::from_slice(&record.node_id)?,
        seq: record.seq,
        advertised_at_ms: record.advertised_at_ms,
        ttl: Duration::from_secs(record.ttl_secs.into()),
        chain: ChainHash::from_slice(&record.chain),
    })
}

fn outcome_to_proto(outcome: Outcome) -> proto::PublishOutcome {
    use proto::PublishOutcome as P;
    match outcome {
        Outcome::Stored => P::Stored,
        Outcome::Refused(refusal) => match refusal {
            Refusal::Stale => P::Stale,
            Refusal::Invalid => P::Invalid,
            Refusal::Expired { .. } => P::Expired,
            Refusal::FromTheFuture { .. } => P::FromTheFuture,
            Refusal::KeyFull => P::KeyFull,
            Refusal::StoreFull => P::StoreFull,
            Refusal::PublisherQuota => P::PublisherQuota,
            Refusal::NotResponsible => P::NotResponsible,
            Refusal::Busy => P::Busy,
            Refusal::Loopback => P::Loopback,
            Refusal::Unknown => P::Unspecified,
        },
    }
}

/// The outcome of a code; `off_by` gives the next of the amounts that come with the message.
fn outcome_from_proto(code: i32, mut off_by: impl FnMut() -> Duration) -> Outcome {
    use proto::PublishOutcome as P;
    Outcome::Refused(match P::try_from(code) {
        Ok(P::Stored) => return Outcome::Stored,
        Ok(P::Stale) => Refusal::Stale,
        Ok(P::Invalid) => Refusal::Invalid,
        Ok(P::Expired) => Refusal::Expired { by: off_by() },
        Ok(P::FromTheFuture) => Refusal::FromTheFuture { by: off_by() },
        Ok(P::KeyFull) => Refusal::KeyFull,
        Ok(P::StoreFull) => Refusal::StoreFull,
        Ok(P::PublisherQuota) => Refusal::PublisherQuota,
        Ok(P::NotResponsible) => Refusal::NotResponsible,
        Ok(P::Busy) => Refusal::Busy,
        Ok(P::Loopback) => Refusal::Loopback,
        Ok(P::Unspecified) | Err(_) => Refusal::Unknown,
    })
}

pub(crate) fn contact_to_proto(contact: &Contact) -> proto::Contact {
    proto::Contact {
        node_id: id_bytes(contact.node_id().as_bytes()),
        endpoints: contact.endpoints().iter().map(ToString::to_string).collect(),
    }
}

pub(crate) fn contact_from_proto(contact: proto::Contact) -> Option<Contact> {
    let node_id = NodeId::from_slice(&contact.node_id)?;
    let endpoints: Vec<_> = contact
        .endpoints
        .iter()
        .take(MAX_ENDPOINTS)
        .filter_map(|text| text.parse().ok())
        .collect();
    (!endpoints.is_empty()).then(|| Contact::new(node_id, endpoints))
}

/// An upper bound of the bytes that a contact takes in a message.
fn contact_size(contact: &Contact) -> usize {
    // `https://[` … `]:65535` around the host, tags and lengths for each endpoint, then those of the contact.
    contact.host_bytes() + 20 * contact.endpoints().len() + NodeId::LEN + 8
}

/// As many of `contacts` as [`MAX_REPLY_CONTACTS`] and [`MAX_CONTACT_BYTES`] allow, and the bytes they take.
///
/// A contact with too many endpoints to fit keeps as many as do.
pub(crate) fn fit_contacts(contacts: impl Iterator<Item = Contact>) -> (Vec<Contact>, usize) {
    let (mut fitting, mut used) = (Vec::with_capacity(MAX_REPLY_CONTACTS), 0);
    for contact in contacts.take(MAX_REPLY_CONTACTS) {
        // Each gets an equal share of the remaining bytes, so one long list does not crowd out the rest.
        let share = (MAX_CONTACT_BYTES - used) / (MAX_REPLY_CONTACTS - fitting.len());
        let size = contact_size(&contact);
        if size <= share {
            fitting.push(contact);
            used += size;
            continue;
        }
        let mut left = share.saturating_sub(NodeId::LEN + 8);
        let kept: Vec<_> = contact
            .endpoints()
            .iter()
            .filter(|endpoint| {
                let fits = endpoint.host().len() + 20 <= left;
                left -= if fits { endpoint.host().len() + 20 } else { 0 };
                fits
            })
            .cloned()
            .collect();
        if !kept.is_empty() {
            let shortened = Contact::new(*contact.node_id(), kept);
            used += contact_size(&shortened);
            fitting.push(shortened);
        }
    }
    (fitting, used)
}

/// Puts records into a reply that already holds `used` bytes, and says whether some did not fit.
pub(crate) fn fit_records<'a>(
    records: impl Iterator<Item = &'a VerifiedProvider>,
    used: usize,
) -> (Vec<SignedProvider>, bool) {
    let mut left = MAX_MESSAGE_BYTES.saturating_sub(used + ENVELOPE_BYTES);
    let mut fitting = Vec::new();
    for record in records {
        let signed = record.to_signed();
        let size = wire_bytes(&signed);
        if size > left {
            return (fitting, true);
        }
        left -= size;
        fitting.push(signed);
    }
    (fitting, false)
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
