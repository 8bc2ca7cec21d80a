//! Signed provider records: the advertisement of a provider, and the proof that it is the provider's.
//!
//! **Invariant:** a [`VerifiedProvider`] exists only where its signature was made or checked in this process, and its body is
//! byte for byte the signed body. Everything that stores or shows providers takes this type, so an unchecked record cannot
//! get there.
//!
//! What is left out: which of two records wins, and when one expires, is the directory's business.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use prost::Message;

use crate::{
    AccessError, Address, AddressError, Chain, Member, NodeId, Realm, RealmHash, ServiceKey, ServiceName, Signer,
    Verifier, access::Granted, proto, realm::is_signed,
};

/// The shortest validity of a record.
pub const MIN_TTL: Duration = Duration::from_secs(20);
/// The validity of a record unless told otherwise.
pub const DEFAULT_TTL: Duration = Duration::from_secs(300);
/// The longest validity of a record.
pub const MAX_TTL: Duration = Duration::from_secs(3600);
/// The most endpoints a record carries.
pub const MAX_ENDPOINTS: usize = 8;
/// The most bytes a record's signed body has.
pub const MAX_RECORD_BYTES: usize = 1024;
/// The most metadata entries a record carries.
pub const MAX_METADATA_ENTRIES: usize = 16;
/// The longest metadata key, in bytes.
pub const MAX_METADATA_KEY_BYTES: usize = 64;
/// The longest zone name, in bytes.
pub const MAX_ZONE_BYTES: usize = 64;

const SIGNATURE_DOMAIN: &[u8] = b"macula/v1/provider\0";

/// A record is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The bytes are not a record.
    #[error("the record cannot be decoded")]
    Malformed(#[from] prost::DecodeError),
    /// The body is larger than [`MAX_RECORD_BYTES`].
    #[error("the record has {0} bytes, more than {MAX_RECORD_BYTES}; shorten its metadata or endpoints")]
    TooLarge(usize),
    /// The node id is not 32 bytes.
    #[error("the record's node id is not 32 bytes")]
    BadNodeId,
    /// The signature does not match the owner, realm, key and body.
    #[error("the record's signature is not its owner's for this realm and key")]
    BadSignature,
    /// The validity is outside [`MIN_TTL`] to [`MAX_TTL`], or not whole seconds.
    #[error("a record is valid for 20 to 3600 whole seconds, not {0:?}")]
    BadTtl(Duration),
    /// A live record without an endpoint.
    #[error("the record has no endpoint; a provider needs at least one address to be called at")]
    NoEndpoint,
    /// More than [`MAX_ENDPOINTS`] endpoints.
    #[error("the record has {0} endpoints, more than {MAX_ENDPOINTS}")]
    TooManyEndpoints(usize),
    /// An endpoint cannot be read.
    #[error("the record has an endpoint that cannot be read")]
    BadEndpoint(#[from] AddressError),
    /// The metadata has too many entries, a key that is too long or empty, or keys out of order.
    #[error(
        "a record's metadata has at most {MAX_METADATA_ENTRIES} entries with keys of 1 to {MAX_METADATA_KEY_BYTES} bytes"
    )]
    BadMetadata,
    /// The zone's name is longer than [`MAX_ZONE_BYTES`].
    #[error("the zone's name has {0} bytes, more than {MAX_ZONE_BYTES}")]
    ZoneTooLong(usize),
    /// A live record of weight 0.
    #[error("a provider's weight is at least 1; withdraw it instead")]
    ZeroWeight,
    /// A record of a closed realm without the proof that its node may provide the service (A4).
    #[error("the realm is closed, and the record does not prove that its node may provide the service")]
    Unproven,
    /// The grant of the record's node is not valid.
    #[error("the grant of the record's node is not valid: {0}")]
    Access(#[from] AccessError),
    /// The grant of the record's node does not let it provide the service.
    #[error("the grant of the node does not let it provide {0}: ask an issuer for a grant that does")]
    NotGranted(ServiceName),
    /// A withdrawal that carries more than its owner and dates.
    #[error("a withdrawal carries neither endpoints nor metadata")]
    WithdrawalWithContent,
}

/// A provider's description of itself (D11).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertisement {
    endpoints: Vec<Address>,
    metadata: BTreeMap<String, Bytes>,
    weight: u32,
    zone: Option<String>,
    ttl: Duration,
}

impl Advertisement {
    /// An advertisement of a provider that listens at `endpoints`, the preferred one first: weight 1, no zone, no metadata,
    /// valid for [`DEFAULT_TTL`].
    #[must_use]
    pub fn new(endpoints: impl IntoIterator<Item = Address>) -> Self {
        Self {
            endpoints: endpoints.into_iter().collect(),
            metadata: BTreeMap::new(),
            weight: 1,
            zone: None,
            ttl: DEFAULT_TTL,
        }
    }

    /// Sets how long the record is valid: whole seconds from [`MIN_TTL`] to [`MAX_TTL`].
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets the relative capacity, at least 1.
    #[must_use]
    pub fn with_weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Sets where the provider runs; an empty name means unknown.
    #[must_use]
    pub fn with_zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into()).filter(|z| !z.is_empty());
        self
    }

    /// Adds or replaces a metadata entry.
    #[must_use]
    pub fn with_metadata(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Where the provider listens, the preferred endpoint first.
    #[must_use]
    pub fn endpoints(&self) -> &[Address] {
        &self.endpoints
    }

    /// The provider's metadata.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, Bytes> {
        &self.metadata
    }

    /// The relative capacity, at least 1 in a record.
    #[must_use]
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// Where the provider runs, when it says so.
    #[must_use]
    pub fn zone(&self) -> Option<&str> {
        self.zone.as_deref()
    }

    /// How long the record is valid.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    fn check(&self) -> Result<(), RecordError> {
        check_ttl(self.ttl)?;
        if self.endpoints.is_empty() {
            return Err(RecordError::NoEndpoint);
        }
        if self.endpoints.len() > MAX_ENDPOINTS {
            return Err(RecordError::TooManyEndpoints(self.endpoints.len()));
        }
        let bad_key = |key: &String| key.is_empty() || key.len() > MAX_METADATA_KEY_BYTES;
        if self.metadata.len() > MAX_METADATA_ENTRIES || self.metadata.keys().any(bad_key) {
            return Err(RecordError::BadMetadata);
        }
        match &self.zone {
            Some(zone) if zone.len() > MAX_ZONE_BYTES => return Err(RecordError::ZoneTooLong(zone.len())),
            _ => {}
        }
        if self.weight == 0 {
            Err(RecordError::ZeroWeight)
        } else {
            Ok(())
        }
    }

    fn from_proto(record: proto::ProviderRecord) -> Result<Self, RecordError> {
        if record.endpoints.len() > MAX_ENDPOINTS {
            return Err(RecordError::TooManyEndpoints(record.endpoints.len()));
        }
        if !record.metadata.is_sorted_by(|a, b| a.key < b.key) {
            return Err(RecordError::BadMetadata);
        }
        let advertisement = Self {
            endpoints: record
                .endpoints
                .iter()
                .map(|text| text.parse())
                .collect::<Result<_, _>>()?,
            metadata: record
                .metadata
                .into_iter()
                .map(|entry| (entry.key, entry.value))
                .collect(),
            weight: record.weight,
            zone: Some(record.zone).filter(|z| !z.is_empty()),
            ttl: Duration::from_secs(record.ttl_secs.into()),
        };
        advertisement.check()?;
        Ok(advertisement)
    }
}

fn check_ttl(ttl: Duration) -> Result<(), RecordError> {
    let whole = ttl.subsec_nanos() == 0;
    if whole && (MIN_TTL..=MAX_TTL).contains(&ttl) {
        Ok(())
    } else {
        Err(RecordError::BadTtl(ttl))
    }
}

/// A record with an unchecked signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedProvider {
    /// The encoded record, as it was signed.
    pub body: Bytes,
    /// The owner's signature.
    pub signature: Bytes,
    /// In a closed realm, the owner's encoded chain; else empty.
    pub chain: Bytes,
}

impl From<proto::SignedProvider> for SignedProvider {
    fn from(message: proto::SignedProvider) -> Self {
        Self {
            body: message.body,
            signature: message.signature,
            chain: message.chain,
        }
    }
}

impl From<SignedProvider> for proto::SignedProvider {
    fn from(signed: SignedProvider) -> Self {
        Self {
            body: signed.body,
            signature: signed.signature,
            chain: signed.chain,
        }
    }
}

impl SignedProvider {
    /// Checks everything about a record of an open realm but its dates: form, limits, and that the node it names signed it for this
    /// realm and key.
    ///
    /// The signature, which costs far more than the rest, is checked last.
    ///
    /// # Errors
    /// The first thing that is wrong with it; [`RecordError::Unproven`] for a closed realm.
    pub fn verify(&self, realm: &RealmHash, key: &ServiceKey) -> Result<VerifiedProvider, RecordError> {
        if realm.is_closed() {
            return Err(RecordError::Unproven);
        }
        self.verify_signed(realm, key, None)
    }

    /// Checks everything about a record of either kind of realm but its dates. In a closed realm the record must prove, at `now` in
    /// seconds since the Unix epoch, that its node may provide the service that `key` is of (A4).
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn verify_with(
        &self,
        verifier: &mut Verifier,
        key: &ServiceKey,
        now: u64,
    ) -> Result<VerifiedProvider, RecordError> {
        let realm = verifier.realm().clone();
        self.verify_by(&realm, key, |chain| verifier.verify(chain, now))
    }

    /// As [`SignedProvider::verify_with`] but for revocations, on any thread: it needs no [`Verifier`]. `known` is the member of the
    /// record's chain when that was verified before. [`Verifier::learn`] does the rest.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn verify_apart(
        &self,
        realm: &Realm,
        key: &ServiceKey,
        known: Option<&Member>,
        now: u64,
    ) -> Result<VerifiedProvider, RecordError> {
        self.verify_by(realm, key, |chain| {
            let known = known.filter(|member| member.chain() == Some(chain));
            known.map_or_else(|| chain.verify(realm, now), |member| Ok(member.clone()))
        })
    }

    fn verify_by(
        &self,
        realm: &Realm,
        key: &ServiceKey,
        member_of: impl FnOnce(&Chain) -> Result<Member, AccessError>,
    ) -> Result<VerifiedProvider, RecordError> {
        let hash = realm.hash();
        if !hash.is_closed() {
            return self.verify(&hash, key);
        }
        if self.body.len() > MAX_RECORD_BYTES {
            return Err(RecordError::TooLarge(self.body.len()));
        }
        let record = proto::ProviderRecord::decode(&self.body[..])?;
        let service = ServiceName::new(&record.service).map_err(|_| RecordError::Unproven)?;
        let chain = Chain::from_bytes(self.chain.clone())?;
        let is_of = *key == ServiceKey::new(realm, &service);
        if !is_of || record.chain != chain.hash().as_bytes()[..] {
            return Err(RecordError::Unproven);
        }
        let member = member_of(&chain)?;
        if record.node_id != member.node_id().as_bytes()[..] {
            return Err(RecordError::Unproven);
        }
        if !member.may_provide(&service) {
            return Err(RecordError::NotGranted(service));
        }
        self.verify_signed(&hash, key, member.shared().cloned())
    }

    fn verify_signed(
        &self,
        realm: &RealmHash,
        key: &ServiceKey,
        granted: Option<Arc<Granted>>,
    ) -> Result<VerifiedProvider, RecordError> {
        if self.body.len() > MAX_RECORD_BYTES {
            return Err(RecordError::TooLarge(self.body.len()));
        }
        let header = Header::parse(&self.body)?;
        let signature = <[u8; 64]>::try_from(&self.signature[..]).map_err(|_| RecordError::BadSignature)?;
        if !is_signed(
            header.node_id.as_bytes(),
            &signed_bytes(realm, key, &self.body),
            &signature,
        ) {
            return Err(RecordError::BadSignature);
        }
        Ok(VerifiedProvider {
            key: *key,
            header,
            // A copy of its own: a slice would keep the whole datagram or message it came in alive.
            body: Bytes::copy_from_slice(&self.body),
            signature,
            granted,
        })
    }
}

fn signed_bytes(realm: &RealmHash, key: &ServiceKey, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
    [SIGNATURE_DOMAIN, realm.as_bytes(), key.as_bytes(), &length, body].concat()
}

/// The fixed-size part of a record that every holder needs at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    node_id: NodeId,
    seq: u64,
    advertised_at_ms: u64,
    ttl_secs: u32,
    withdrawn: bool,
}

impl Header {
    /// Checks a whole body, and keeps its header.
    fn parse(body: &[u8]) -> Result<Self, RecordError> {
        let record = proto::ProviderRecord::decode(body)?;
        let header = Self {
            node_id: NodeId::from_slice(&record.node_id).ok_or(RecordError::BadNodeId)?,
            seq: record.seq,
            advertised_at_ms: record.advertised_at_ms,
            ttl_secs: record.ttl_secs,
            withdrawn: record.withdrawn,
        };
        if header.withdrawn {
            check_ttl(header.ttl())?;
            let content = !record.endpoints.is_empty() || !record.metadata.is_empty() || !record.zone.is_empty();
            if content || record.weight != 0 {
                return Err(RecordError::WithdrawalWithContent);
            }
        } else {
            Advertisement::from_proto(record)?;
        }
        Ok(header)
    }

    fn ttl(&self) -> Duration {
        Duration::from_secs(self.ttl_secs.into())
    }
}

/// The place that a record is published at: a key, and in a closed realm the proof that its node may provide there (A4).
#[derive(Debug, Clone)]
pub struct Place {
    realm: RealmHash,
    key: ServiceKey,
    proof: Option<(ServiceName, Member)>,
}

impl Place {
    /// The key of a service of an open realm, whatever the service is called.
    ///
    /// # Errors
    /// [`RecordError::Unproven`] for a closed realm.
    pub fn open(realm: &RealmHash, key: ServiceKey) -> Result<Self, RecordError> {
        if realm.is_closed() {
            return Err(RecordError::Unproven);
        }
        Ok(Self {
            realm: *realm,
            key,
            proof: None,
        })
    }

    /// The place of `service` in either kind of realm, for the member that publishes there.
    ///
    /// # Errors
    /// When the realm is closed and the member's grant is not of it, or does not let it provide the service.
    pub fn of(realm: &Realm, service: &ServiceName, member: &Member) -> Result<Self, RecordError> {
        let key = ServiceKey::new(realm, service);
        if !realm.is_closed() {
            return Self::open(&realm.hash(), key);
        }
        if member.realm() != Some(&realm.hash()) {
            return Err(RecordError::Unproven);
        }
        if !member.may_provide(service) {
            return Err(RecordError::NotGranted(service.clone()));
        }
        Ok(Self {
            realm: realm.hash(),
            key,
            proof: Some((service.clone(), member.clone())),
        })
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &ServiceKey {
        &self.key
    }
}

/// A record that its owner signed: made by [`VerifiedProvider::sign`], [`VerifiedProvider::sign_withdrawal`] or the `verify…` methods
/// of [`SignedProvider`], and in no other way (D9, A4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedProvider {
    key: ServiceKey,
    header: Header,
    body: Bytes,
    signature: [u8; 64],
    /// In a closed realm, the right of its node; shared by all records of one chain.
    granted: Option<Arc<Granted>>,
}

impl VerifiedProvider {
    /// Signs an advertisement of `signer`'s node under `key` of an open realm. `seq` must be larger than any used before for this
    /// key, and `now_ms` is the time since the Unix epoch in milliseconds.
    ///
    /// # Errors
    /// When the advertisement breaks a limit of records, or the realm is closed.
    pub fn sign(
        signer: &(impl Signer + ?Sized),
        realm: &RealmHash,
        key: &ServiceKey,
        seq: u64,
        now_ms: u64,
        advertisement: &Advertisement,
    ) -> Result<Self, RecordError> {
        Self::sign_at(signer, &Place::open(realm, *key)?, seq, now_ms, advertisement)
    }

    /// As [`VerifiedProvider::sign`], at a place of either kind of realm.
    ///
    /// # Errors
    /// When the advertisement breaks a limit of records, or the place is another member's.
    pub fn sign_at(
        signer: &(impl Signer + ?Sized),
        place: &Place,
        seq: u64,
        now_ms: u64,
        advertisement: &Advertisement,
    ) -> Result<Self, RecordError> {
        advertisement.check()?;
        let record = proto::ProviderRecord {
            endpoints: advertisement.endpoints.iter().map(ToString::to_string).collect(),
            metadata: advertisement
                .metadata
                .iter()
                .map(|(key, value)| proto::MetadataEntry {
                    key: key.clone(),
                    value: value.clone(),
                })
                .collect(),
            weight: advertisement.weight,
            zone: advertisement.zone.clone().unwrap_or_default(),
            ..bare(signer, seq, now_ms, advertisement.ttl, false)
        };
        Self::seal(signer, place, record)
    }

    /// Signs the withdrawal of `signer`'s node from `key` of an open realm; it supersedes every record with a `seq` up to its own, and
    /// should be given a `ttl` that outlives them.
    ///
    /// # Errors
    /// When `ttl` is out of bounds, or the realm is closed.
    pub fn sign_withdrawal(
        signer: &(impl Signer + ?Sized),
        realm: &RealmHash,
        key: &ServiceKey,
        seq: u64,
        now_ms: u64,
        ttl: Duration,
    ) -> Result<Self, RecordError> {
        Self::sign_withdrawal_at(signer, &Place::open(realm, *key)?, seq, now_ms, ttl)
    }

    /// As [`VerifiedProvider::sign_withdrawal`], at a place of either kind of realm.
    ///
    /// # Errors
    /// When `ttl` is out of bounds, or the place is another member's.
    pub fn sign_withdrawal_at(
        signer: &(impl Signer + ?Sized),
        place: &Place,
        seq: u64,
        now_ms: u64,
        ttl: Duration,
    ) -> Result<Self, RecordError> {
        check_ttl(ttl)?;
        Self::seal(signer, place, bare(signer, seq, now_ms, ttl, true))
    }

    fn seal(
        signer: &(impl Signer + ?Sized),
        place: &Place,
        mut record: proto::ProviderRecord,
    ) -> Result<Self, RecordError> {
        let mut granted = None;
        if let Some((service, member)) = &place.proof {
            let hash = member.chain_hash().filter(|_| *member.node_id() == signer.node_id());
            record.chain = Bytes::copy_from_slice(hash.ok_or(RecordError::Unproven)?.as_bytes());
            record.service = service.to_string();
            granted = member.shared().cloned();
        }
        let body = Bytes::from(record.encode_to_vec());
        if body.len() > MAX_RECORD_BYTES {
            return Err(RecordError::TooLarge(body.len()));
        }
        let header = Header::parse(&body)?;
        let signature = signer.sign(&signed_bytes(&place.realm, &place.key, &body));
        Ok(Self {
            key: place.key,
            header,
            body,
            signature,
            granted,
        })
    }

    /// The key it is published under.
    #[must_use]
    pub fn key(&self) -> &ServiceKey {
        &self.key
    }

    /// The provider.
    #[must_use]
    pub fn node_id(&self) -> &NodeId {
        &self.header.node_id
    }

    /// The publication's number: of two records of one provider under one key, the higher one counts.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.header.seq
    }

    /// When its owner says it was published, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn advertised_at_ms(&self) -> u64 {
        self.header.advertised_at_ms
    }

    /// How long it is valid, [`MIN_TTL`] to [`MAX_TTL`].
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.header.ttl()
    }

    /// Whether it is a withdrawal.
    #[must_use]
    pub fn is_withdrawn(&self) -> bool {
        self.header.withdrawn
    }

    /// The provider's description of itself; `None` for a withdrawal.
    ///
    /// Decoded on every call: holders keep bytes, readers keep this.
    #[must_use]
    pub fn advertisement(&self) -> Option<Advertisement> {
        if self.header.withdrawn {
            return None;
        }
        // Checked when this value was minted.
        proto::ProviderRecord::decode(&self.body[..])
            .ok()
            .and_then(|record| Advertisement::from_proto(record).ok())
    }

    /// The member that its node was when it was signed or checked: in a closed realm, one that may provide the service.
    #[must_use]
    pub fn member(&self) -> Member {
        Member::from_shared(self.header.node_id, self.granted.clone())
    }

    /// When the grant ends that lets its node provide, in seconds since the Unix epoch; `None` in an open realm.
    #[must_use]
    pub fn granted_until(&self) -> Option<u64> {
        self.granted.as_ref().map(|granted| granted.not_after())
    }

    /// The proof that its node may provide; `None` in an open realm.
    #[must_use]
    pub fn chain(&self) -> Option<&Chain> {
        self.granted.as_ref().map(|granted| granted.chain())
    }

    /// The encoded record, byte for byte as signed.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The owner's signature.
    #[must_use]
    pub fn signature(&self) -> &[u8; 64] {
        &self.signature
    }

    /// The record as it travels.
    #[must_use]
    pub fn to_signed(&self) -> SignedProvider {
        SignedProvider {
            body: self.body.clone(),
            signature: Bytes::copy_from_slice(&self.signature),
            chain: self.chain().map(|chain| chain.as_bytes().clone()).unwrap_or_default(),
        }
    }
}

fn bare(
    signer: &(impl Signer + ?Sized),
    seq: u64,
    now_ms: u64,
    ttl: Duration,
    withdrawn: bool,
) -> proto::ProviderRecord {
    proto::ProviderRecord {
        node_id: Bytes::copy_from_slice(signer.node_id().as_bytes()),
        seq,
        advertised_at_ms: now_ms,
        ttl_secs: u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX),
        withdrawn,
        ..Default::default()
    }
}
