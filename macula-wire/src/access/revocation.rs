//! Revocation: signed orders that take grants back before they end (A6).
//!
//! An order names a member and says whether it is revoked or, later, admitted again. Orders of one signer about one member are
//! ordered by their time, so they form a join semilattice, and [`Revocations::merge`] is commutative, associative and idempotent:
//! replays and old orders change nothing, and all nodes that know the same orders judge alike.
//!
//! **Orders that count.** The realm's key may revoke every member, issuers among them; its word comes before that of any issuer. An
//! issuer may revoke the members whose grants it signed, and those of other issuers when its grant says so; never a member whose
//! grant the realm's key signed. An issuer's order is dated within the issuer's grant, and outlives it.
//!
//! **A renewed grant** names every issuer that signed the ones before it. So a member stays in reach of each of them: an order of any of
//! them counts, and when the realm's key revokes any of them, the member is out with it. The grants of a stolen issuer's key cannot be
//! washed clean by a renewal at another issuer, whatever they say of themselves.
//!
//! **An issuer that is out.** When the realm's key revokes all grants of an issuer, the orders of that issuer count no more: a stolen
//! issuer's key cannot go on shutting members out. All that it ever let in or renewed are out themselves; only members of other issuers
//! come back, which an issuer with the right to revoke had shut out: [`Revocations::readmitted_by`] names them. The orders are kept
//! and passed on like all others, so when the realm's key admits the issuer again they count again, on every node. An order that takes
//! back an issuer's present grants alone leaves its orders in force: its key is trusted still.
//!
//! An order concerns the node's key and not single grants: a node that is revoked cannot renew its way back in at an issuer that
//! has not heard of it yet. [`Order::revoke_present`] leaves the node a way back: its grants count again whose terms were given at the
//! time of the order or later. A renewed grant keeps the time of its terms, so it brings no way back either.
//!
//! An order is forgotten after [`MAX_GRANT_SECS`], when every grant of its day has ended. A later order is forgotten later, so no order
//! that it replaced comes back.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use prost::Message as _;

use super::{
    chain::{Chain, signed_bytes},
    error::AccessError,
    grant::Issue,
    limits::{CLOCK_TOLERANCE_SECS, MAX_GRANT_SECS, MAX_ISSUERS_REVOKING, MAX_ORDERS, MAX_ORDERS_OF_SIGNER},
    member::Member,
};
use crate::{NodeId, Realm, RealmKey, Signer, proto, realm::is_signed};

/// The most orders of the realm's key.
const MAX_ORDERS_OF_REALM: usize = 8 * MAX_ORDERS_OF_SIGNER;
/// The most bytes of a list's body: [`MAX_ORDERS`] orders and the realm's hash fit.
const MAX_BODY_BYTES: usize = 4096;

const SIGNED_BY_REALM: &[u8] = b"macula/v1/revocations-by-realm\0";
const SIGNED_BY_ISSUER: &[u8] = b"macula/v1/revocations-by-issuer\0";

/// An order about a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    node_id: NodeId,
    ordered_at: u64,
    takes: Takes,
}

/// Which grants of the member an order takes back, the strictest last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Takes {
    /// None: an earlier order is taken back.
    None,
    /// Those whose terms were given before the order.
    Present,
    /// All.
    All,
}

impl Order {
    /// Revokes the node's grants, ordered at `now`, in seconds since the Unix epoch.
    #[must_use]
    pub fn revoke(node_id: NodeId, now: u64) -> Self {
        Self {
            node_id,
            ordered_at: now,
            takes: Takes::All,
        }
    }

    /// Revokes the grants that the node has at `now`, and their renewals: a grant that it is given then or later is good. So a node
    /// gets other rights and keeps its key.
    #[must_use]
    pub fn revoke_present(node_id: NodeId, now: u64) -> Self {
        Self {
            takes: Takes::Present,
            ..Self::revoke(node_id, now)
        }
    }

    /// Takes an earlier order of the same signer back; the realm's key takes back those of issuers as well.
    #[must_use]
    pub fn lift(node_id: NodeId, now: u64) -> Self {
        Self {
            takes: Takes::None,
            ..Self::revoke(node_id, now)
        }
    }

    /// The member.
    #[must_use]
    pub fn node_id(&self) -> &NodeId {
        &self.node_id
    }

    /// When it was ordered, in seconds since the Unix epoch.
    #[must_use]
    pub fn ordered_at(&self) -> u64 {
        self.ordered_at
    }

    /// Whether it takes an earlier order back.
    #[must_use]
    pub fn is_lifted(&self) -> bool {
        self.takes == Takes::None
    }

    /// Whether it takes back a grant whose terms were given at `admitted_at`.
    fn takes_back(&self, admitted_at: u64) -> bool {
        match self.takes {
            Takes::None => false,
            Takes::Present => admitted_at < self.ordered_at,
            Takes::All => true,
        }
    }

    /// Of two orders at one time the stricter one counts.
    fn rank(&self) -> (u64, Takes) {
        (self.ordered_at, self.takes)
    }

    fn is_live(&self, now: u64) -> bool {
        now < self.ordered_at.saturating_add(MAX_GRANT_SECS)
    }

    fn to_wire(self) -> proto::Revocation {
        proto::Revocation {
            node_id: Bytes::copy_from_slice(self.node_id.as_bytes()),
            ordered_at: self.ordered_at,
            lifted: self.takes == Takes::None,
            present: self.takes == Takes::Present,
        }
    }

    fn from_wire(order: &proto::Revocation) -> Result<Self, AccessError> {
        Ok(Self {
            node_id: NodeId::from_slice(&order.node_id).ok_or(AccessError::Malformed)?,
            ordered_at: order.ordered_at,
            takes: match (order.lifted, order.present) {
                (false, false) => Takes::All,
                (false, true) => Takes::Present,
                (true, false) => Takes::None,
                (true, true) => return Err(AccessError::Malformed),
            },
        })
    }
}

/// What comes of an order at a node that took it. Of several orders the worst one is told: the variants are in that order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Effect {
    /// It counts. That of an issuer counts for the members that the issuer let in or renewed.
    Counts,
    /// It lifts an order, and another one still shuts the member out.
    StillOut,
    /// A later order of its signer, or of the realm's key, stands above it.
    Overruled,
    /// Its signer is an issuer that is revoked itself.
    SignerRevoked,
    /// Something that a later version knows.
    Unknown,
}

/// Orders with a signature, as they travel: unchecked until [`Revocations::merge`] takes them. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SignedRevocations {
    body: Bytes,
    signature: Bytes,
    issuer: Bytes,
}

impl SignedRevocations {
    /// Signs orders as the realm.
    ///
    /// # Errors
    /// When there are none, or more than [`MAX_ORDERS`].
    pub fn sign(realm: &Realm, key: &RealmKey, orders: impl IntoIterator<Item = Order>) -> Result<Self, AccessError> {
        if realm.key() != Some(&key.public()) {
            return Err(AccessError::OtherRealm);
        }
        let body = encode(realm, orders)?;
        let signature = key.sign(&signed_bytes(SIGNED_BY_REALM, &body));
        Ok(Self {
            body,
            signature: Bytes::copy_from_slice(&signature),
            issuer: Bytes::new(),
        })
    }

    /// Signs orders as the issuer whose own verified grant is `issuer`.
    ///
    /// # Errors
    /// When it is no issuer, or the number of orders is wrong.
    pub fn issue(
        realm: &Realm,
        issuer: &Member,
        signer: &(impl Signer + ?Sized),
        orders: impl IntoIterator<Item = Order>,
    ) -> Result<Self, AccessError> {
        let (Some(_), Some(chain)) = (issuer.issue(), issuer.chain()) else {
            return Err(AccessError::NotAnIssuer);
        };
        if signer.node_id() != *issuer.node_id() {
            return Err(AccessError::OtherNode(*issuer.node_id()));
        }
        let body = encode(realm, orders)?;
        let signature = signer.sign(&signed_bytes(SIGNED_BY_ISSUER, &body));
        Ok(Self {
            body,
            signature: Bytes::copy_from_slice(&signature),
            issuer: chain.as_bytes().clone(),
        })
    }

    /// Reads a list from its encoded form, unchecked.
    ///
    /// # Errors
    /// When the bytes are no such list.
    pub fn decode(bytes: Bytes) -> Result<Self, AccessError> {
        let signed = proto::SignedRevocations::decode(bytes).map_err(|_| AccessError::Malformed)?;
        Ok(signed.into())
    }

    /// The encoded form, for a file or a peer.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        proto::SignedRevocations::from(self.clone()).encode_to_vec().into()
    }

    /// The orders and their time, unchecked.
    fn orders(&self, realm: &Realm) -> Result<Vec<Order>, AccessError> {
        if self.body.len() > MAX_BODY_BYTES {
            return Err(AccessError::BadOrders);
        }
        let list = proto::Revocations::decode(self.body.clone()).map_err(|_| AccessError::Malformed)?;
        if list.realm != realm.hash().as_bytes()[..] {
            return Err(AccessError::OtherRealm);
        }
        if !(1..=MAX_ORDERS).contains(&list.orders.len()) {
            return Err(AccessError::BadOrders);
        }
        let orders: Vec<_> = list.orders.iter().map(Order::from_wire).collect::<Result<_, _>>()?;
        if orders.is_sorted_by(|a, b| a.node_id < b.node_id) {
            Ok(orders)
        } else {
            Err(AccessError::BadOrders)
        }
    }
}

impl From<proto::SignedRevocations> for SignedRevocations {
    fn from(signed: proto::SignedRevocations) -> Self {
        Self {
            body: signed.body,
            signature: signed.signature,
            issuer: signed.issuer,
        }
    }
}

impl From<SignedRevocations> for proto::SignedRevocations {
    fn from(signed: SignedRevocations) -> Self {
        Self {
            body: signed.body,
            signature: signed.signature,
            issuer: signed.issuer,
        }
    }
}

fn encode(realm: &Realm, orders: impl IntoIterator<Item = Order>) -> Result<Bytes, AccessError> {
    let mut latest = BTreeMap::<NodeId, Order>::new();
    for order in orders {
        latest
            .entry(order.node_id)
            .and_modify(|known| *known = if order.rank() > known.rank() { order } else { *known })
            .or_insert(order);
    }
    if !(1..=MAX_ORDERS).contains(&latest.len()) {
        return Err(AccessError::BadOrders);
    }
    let list = proto::Revocations {
        realm: Bytes::copy_from_slice(realm.hash().as_bytes()),
        orders: latest.into_values().map(Order::to_wire).collect(),
    };
    Ok(list.encode_to_vec().into())
}

/// The orders that a node knows, merged.
///
/// At the bounds of [`MAX_ORDERS_OF_SIGNER`] and [`MAX_ISSUERS_REVOKING`] further orders are refused, and the caller should say so
/// loudly: below them the laws of the module hold.
#[derive(Debug, Clone)]
pub struct Revocations {
    realm: Realm,
    /// By member, then by signer: `None` is the realm's key.
    orders: BTreeMap<NodeId, BTreeMap<Option<NodeId>, Kept>>,
}

#[derive(Debug, Clone)]
struct Kept {
    order: Order,
    list: Arc<Checked>,
}

/// A list whose signature was checked, and its signer.
#[derive(Debug)]
struct Checked {
    signed: SignedRevocations,
    issuer: Option<Member>,
}

impl Kept {
    /// The same order may stand in several lists: the one of the issuer with more rights is kept, then the larger bytes.
    fn rank(&self) -> (impl Ord + use<>, bool, &SignedRevocations) {
        (self.order.rank(), self.may_revoke(), &self.list.signed)
    }

    /// Whether its signer may revoke the members of other issuers.
    fn may_revoke(&self) -> bool {
        let issue = self.list.issuer.as_ref().and_then(Member::issue);
        issue.is_none_or(Issue::may_revoke)
    }
}

impl Revocations {
    /// No orders yet of this realm. In an open realm there never are any.
    #[must_use]
    pub fn new(realm: Realm) -> Self {
        Self {
            realm,
            orders: BTreeMap::new(),
        }
    }

    /// Takes the orders of a list that are news at `now`, in seconds since the Unix epoch. Returns whether there were any.
    ///
    /// A list that is kept already costs no signature check, and neither does one of the realm's key that holds no news.
    ///
    /// # Errors
    /// The reason why the list is not valid, or that its signer has reached its bound.
    pub fn merge(&mut self, signed: &SignedRevocations, now: u64) -> Result<bool, AccessError> {
        let Some(realm_key) = self.realm.key().copied() else {
            return Err(AccessError::OtherRealm);
        };
        let orders = signed.orders(&self.realm)?;
        if let Some(ahead) = orders
            .iter()
            .find(|it| it.ordered_at > now.saturating_add(CLOCK_TOLERANCE_SECS))
        {
            return Err(AccessError::FromTheFuture(ahead.ordered_at - now));
        }
        let is_kept = |order: &Order| {
            let by_signer = self.orders.get(&order.node_id);
            by_signer.is_some_and(|by| by.values().any(|kept| kept.list.signed == *signed))
        };
        if orders.iter().any(is_kept) {
            return Ok(false);
        }
        let issuer = if signed.issuer.is_empty() {
            None
        } else {
            let member = Chain::from_bytes(signed.issuer.clone())?.verify_at(&self.realm, None)?;
            let dated_well = orders.iter().all(|it| member.check_at(it.ordered_at).is_ok());
            if member.issue().is_none() || !dated_well {
                return Err(AccessError::BadRevoker);
            }
            Some(member)
        };
        let signer = issuer.as_ref().map(|it| *it.node_id());
        let list = Arc::new(Checked {
            signed: signed.clone(),
            issuer,
        });
        let is_news = |kept: &Kept| {
            let known = self.orders.get(&kept.order.node_id).and_then(|by| by.get(&signer));
            kept.order.is_live(now) && known.is_none_or(|known| known.rank() < kept.rank())
        };
        let keep = |order| Kept {
            order,
            list: list.clone(),
        };
        let news: Vec<_> = orders.into_iter().map(keep).filter(is_news).collect();
        if news.is_empty() {
            return Ok(false);
        }
        let is_right = match &signer {
            None => is_signed(
                realm_key.as_bytes(),
                &signed_bytes(SIGNED_BY_REALM, &signed.body),
                &signed.signature,
            ),
            Some(issuer) => is_signed(
                issuer.as_bytes(),
                &signed_bytes(SIGNED_BY_ISSUER, &signed.body),
                &signed.signature,
            ),
        };
        if !is_right {
            return Err(AccessError::BadRevoker);
        }
        self.expire(now);
        self.check_room(signer.as_ref(), &news)?;
        for kept in news {
            let by_signer = self.orders.entry(kept.order.node_id).or_default();
            by_signer.insert(signer, kept);
        }
        Ok(true)
    }

    fn check_room(&self, signer: Option<&NodeId>, news: &[Kept]) -> Result<(), AccessError> {
        let signer = signer.copied();
        let known = self.orders.values().filter(|by| by.contains_key(&signer)).count();
        let is_new = |kept: &&Kept| {
            !self
                .orders
                .get(&kept.order.node_id)
                .is_some_and(|by| by.contains_key(&signer))
        };
        let max = if signer.is_some() {
            MAX_ORDERS_OF_SIGNER
        } else {
            MAX_ORDERS_OF_REALM
        };
        if known + news.iter().filter(is_new).count() > max {
            return Err(AccessError::TooManyOrders);
        }
        if signer.is_some() && known == 0 {
            let signers: std::collections::BTreeSet<_> =
                self.orders.values().flat_map(BTreeMap::keys).flatten().collect();
            if signers.len() >= MAX_ISSUERS_REVOKING {
                return Err(AccessError::TooManyIssuers);
            }
        }
        Ok(())
    }

    /// Forgets the orders that are not needed any more at `now`: every grant that they concern has ended.
    pub fn expire(&mut self, now: u64) {
        self.orders.retain(|_, by_signer| {
            by_signer.retain(|_, kept| kept.order.is_live(now));
            !by_signer.is_empty()
        });
    }

    /// Checks at `now`, in seconds since the Unix epoch, that neither the member nor any issuer that signed its grants is revoked.
    ///
    /// # Errors
    /// [`AccessError::Revoked`] with the node that is.
    pub fn check(&self, member: &Member, now: u64) -> Result<(), AccessError> {
        match self.against(member, now) {
            Some(kept) => Err(AccessError::Revoked(kept.order.node_id)),
            None => Ok(()),
        }
    }

    /// The list that takes the member's grant back at `now`, in seconds since the Unix epoch: the proof of what
    /// [`Revocations::check`] says.
    #[must_use]
    pub fn proof_against(&self, member: &Member, now: u64) -> Option<&SignedRevocations> {
        self.against(member, now).map(|kept| &kept.list.signed)
    }

    fn against(&self, member: &Member, now: u64) -> Option<&Kept> {
        let admitted_at = member.chain().map(|_| member.admitted_at())?;
        let before = member.admitted_by().iter().map(|issuer| (issuer, admitted_at));
        let own = std::iter::once((member.node_id(), admitted_at));
        let by_realm = member.issuing().into_iter().chain(before).chain(own);
        let mut by_realm = by_realm.filter_map(|(node_id, then)| self.of_realm(node_id, then, now));
        by_realm
            .next()
            .or_else(|| self.of_issuer(member, member.issuer()?, now))
    }

    /// The realm's order about the node.
    fn realms_word(&self, node_id: &NodeId, now: u64) -> Option<&Kept> {
        let kept = self.orders.get(node_id)?.get(&None)?;
        kept.order.is_live(now).then_some(kept)
    }

    /// The realm's order that takes back a grant of the node whose terms were given at `admitted_at`.
    fn of_realm(&self, node_id: &NodeId, admitted_at: u64, now: u64) -> Option<&Kept> {
        let kept = self.realms_word(node_id, now);
        kept.filter(|kept| kept.order.takes_back(admitted_at))
    }

    /// The order of an issuer that takes back the grant which `issuer` signed for the member.
    fn of_issuer(&self, member: &Member, issuer: &NodeId, now: u64) -> Option<&Kept> {
        let node_id = member.node_id();
        // The realm's later word stands above any issuer's.
        let lifted_at = self.realms_word(node_id, now).map(|kept| kept.order.ordered_at);
        let counts = |signer: &NodeId, kept: &Kept| {
            kept.order.is_live(now)
                && kept.order.takes_back(member.admitted_at())
                && lifted_at.is_none_or(|at| at < kept.order.ordered_at)
                && (signer == issuer || member.admitted_by().contains(signer) || kept.may_revoke())
                && !self.is_out(signer, now)
        };
        let mut orders = self.orders.get(node_id)?.iter();
        let found = orders.find(|(signer, kept)| signer.is_some_and(|signer| counts(&signer, kept)));
        found.map(|(_, kept)| kept)
    }

    /// The signed lists that hold the latest order of their signer about a member: what another node has to be told. Each once, those of
    /// the realm's key first, and those of issuers that are out last. So no issuer's lists, however many, keep the realm's word from a
    /// node that reads them in turn.
    #[must_use]
    pub fn lists(&self) -> Vec<SignedRevocations> {
        let place = |signer: &Option<NodeId>| signer.map(|signer| self.realm_takes_all(&signer));
        let kept = self.orders.values().flatten();
        let mut lists: Vec<_> = kept.map(|(signer, kept)| (place(signer), &kept.list.signed)).collect();
        lists.sort_unstable();
        lists.dedup();
        lists.into_iter().map(|(_, list)| list.clone()).collect()
    }

    /// The members that may come back at `now` because this list of the realm's key revokes an issuer which had shut them out. None,
    /// unless the issuer may revoke the members of others: its own are out with it.
    #[must_use]
    pub fn readmitted_by(&self, signed: &SignedRevocations, now: u64) -> Vec<NodeId> {
        let orders = signed.orders(&self.realm).unwrap_or_default();
        let out = orders.iter().filter(|order| self.is_out(&order.node_id, now));
        let mut back: Vec<_> = out
            .flat_map(|order| self.readmitted_without(&order.node_id, now))
            .collect();
        back.sort_unstable();
        back.dedup();
        back
    }

    fn readmitted_without(&self, issuer: &NodeId, now: u64) -> Vec<NodeId> {
        let shuts_out = |kept: &Kept| kept.order.is_live(now) && kept.order.takes != Takes::None && kept.may_revoke();
        let still = |(signer, kept): (&Option<NodeId>, &Kept)| {
            shuts_out(kept) && signer.is_none_or(|signer| !self.is_out(&signer, now))
        };
        let comes_back = |(_, by): &(&NodeId, &BTreeMap<Option<NodeId>, Kept>)| {
            by.get(&Some(*issuer)).is_some_and(shuts_out) && !by.iter().any(still)
        };
        let back = self.orders.iter().filter(comes_back);
        back.map(|(node_id, _)| *node_id).collect()
    }

    /// When the latest order about the node was given, by any signer, in seconds since the Unix epoch.
    #[must_use]
    pub fn ordered_at(&self, node_id: &NodeId) -> Option<u64> {
        let orders = self.orders.get(node_id)?.values();
        orders.map(|kept| kept.order.ordered_at).max()
    }

    /// What comes of a list that was merged, at `now`, in seconds since the Unix epoch.
    ///
    /// # Errors
    /// When the list is not valid.
    pub fn effect(&self, signed: &SignedRevocations, now: u64) -> Result<Effect, AccessError> {
        let signer = match signed.issuer.is_empty() {
            true => None,
            false => {
                let issuer = Chain::from_bytes(signed.issuer.clone())?.verify_at(&self.realm, None)?;
                Some(*issuer.node_id())
            }
        };
        let orders = signed.orders(&self.realm)?;
        let effects = orders.iter().map(|order| self.effect_of(order, signer.as_ref(), now));
        Ok(effects.max().unwrap_or(Effect::Overruled))
    }

    fn effect_of(&self, order: &Order, signer: Option<&NodeId>, now: u64) -> Effect {
        if signer.is_some_and(|signer| self.is_out(signer, now)) {
            return Effect::SignerRevoked;
        }
        let about = self.orders.get(&order.node_id);
        let mut about = about.into_iter().flatten().filter(|(_, kept)| kept.order.is_live(now));
        let stands_above = |(by, kept): (&Option<NodeId>, &Kept)| match by {
            by if by.as_ref() == signer => kept.order.rank() > order.rank(),
            None => kept.order.ordered_at >= order.ordered_at && kept.order.takes < order.takes,
            Some(_) => false,
        };
        let shuts_out = |(by, kept): (&Option<NodeId>, &Kept)| match by {
            by if by.as_ref() == signer => false,
            None => kept.order.takes != Takes::None,
            // The realm's word stands above those before it.
            Some(by) => {
                kept.order.takes != Takes::None
                    && !self.is_out(by, now)
                    && (signer.is_some() || kept.order.ordered_at > order.ordered_at)
            }
        };
        if !order.is_live(now) || about.clone().any(stands_above) {
            Effect::Overruled
        } else if order.is_lifted() && about.any(shuts_out) {
            Effect::StillOut
        } else {
            Effect::Counts
        }
    }

    /// Whether the realm takes back all grants of the node, so that what it orders counts no more.
    fn is_out(&self, node_id: &NodeId, now: u64) -> bool {
        self.realms_word(node_id, now)
            .is_some_and(|kept| kept.order.takes == Takes::All)
    }

    fn realm_takes_all(&self, node_id: &NodeId) -> bool {
        let by_realm = self.orders.get(node_id).and_then(|by| by.get(&None));
        by_realm.is_some_and(|kept| kept.order.takes == Takes::All)
    }
}
