//! The state that the cores of a node share: its identity, settings and clock, its contacts and its records.

use std::{collections::VecDeque, time::Instant};

use macula_wire::{
    AccessError, Address, Chain, Member, NodeId, Place, Realm, RecordError, ServiceKey, ServiceName, SignedProvider,
    SignedRevocations, VerifiedProvider, Verifier,
};

use crate::{
    Clock, Config, Contact, Point, ProviderStore, Role, RoutingTable, clock::Tick, size::SizeEstimate, table::K,
};

/// The most seeds a node keeps.
pub const MAX_SEEDS: usize = 64;
/// The most peers that are remembered after they left the routing table.
pub(super) const MAX_REMEMBERED: usize = 64;
/// A node holds a key when fewer than this many of its contacts are closer to the key. That is twice k, since two nodes rarely
/// agree on the k closest.
pub(super) const RESPONSIBLE: usize = 2 * K;

/// The state that the cores of a node share.
#[derive(Debug)]
pub(super) struct Local {
    pub(super) config: Config,
    pub(super) clock: Clock,
    pub(super) own: NodeId,
    pub(super) realm: Realm,
    /// Judges which nodes may provide.
    pub(super) verifier: Verifier,
    /// This node as a member; `None` in a closed realm until it is given a grant.
    pub(super) member: Option<Member>,
    pub(super) table: RoutingTable,
    pub(super) store: ProviderStore,
    pub(super) size: SizeEstimate,
    pub(super) ways_in: WaysIn,
}

impl Local {
    pub(super) fn tick(&self, now: Instant) -> Tick {
        self.clock.tick(now)
    }

    /// The wall clock in whole seconds, by which grants are judged.
    pub(super) fn unix_seconds(&self, now: Instant) -> u64 {
        self.clock.unix_ms(now) / 1000
    }

    /// Checks everything about a record but its dates; in a closed realm, also that its node may provide the service (A4).
    pub(super) fn verify(
        &mut self,
        now: Instant,
        key: &ServiceKey,
        record: &SignedProvider,
    ) -> Result<VerifiedProvider, RecordError> {
        let seconds = self.unix_seconds(now);
        record.verify_with(&mut self.verifier, key, seconds)
    }

    /// Decides about a record that was checked apart: its grant may have been revoked meanwhile.
    pub(super) fn confirm(
        &mut self,
        now: Instant,
        checked: Result<VerifiedProvider, RecordError>,
    ) -> Result<VerifiedProvider, RecordError> {
        let record = checked?;
        let seconds = self.unix_seconds(now);
        self.verifier.learn(&record.member(), seconds)?;
        Ok(record)
    }

    /// Where this node publishes: under the key of a service of an open realm, or under a service's name as the member it is.
    pub(super) fn place(
        &self,
        now: Instant,
        key: &ServiceKey,
        name: Option<&ServiceName>,
    ) -> Result<Place, RecordError> {
        let Some(name) = name else {
            return Place::open(&self.realm.hash(), *key);
        };
        let member = self.member.as_ref().ok_or(AccessError::NoGrant)?;
        self.verifier.check(member, self.unix_seconds(now))?;
        Place::of(&self.realm, name, member)
    }

    /// Uses this grant from now on.
    pub(super) fn set_grant(&mut self, now: Instant, grant: &Chain) -> Result<(), AccessError> {
        let (own, seconds) = (self.own, self.unix_seconds(now));
        self.member = Some(self.verifier.admit(&own, Some(grant), seconds)?);
        Ok(())
    }

    /// Takes revocations in, and drops the records of the nodes they name. Returns whether they were news.
    pub(super) fn revoke(&mut self, now: Instant, list: &SignedRevocations) -> Result<bool, AccessError> {
        let seconds = self.unix_seconds(now);
        let news = self.verifier.revoke(list, seconds)?;
        if news {
            let verifier = &self.verifier;
            self.store
                .keep_only(|record| verifier.check(&record.member(), seconds).is_ok());
        }
        Ok(news)
    }

    pub(super) fn is_node(&self) -> bool {
        self.config.role == Role::Node
    }

    /// The contacts a lookup starts from: the closest of the table, or every way in when the table is empty.
    pub(super) fn starting_points(&self, target: &Point) -> Vec<Contact> {
        if self.table.is_empty() {
            return self.ways_in.contacts().cloned().collect();
        }
        self.table.closest(target, K).cloned().collect()
    }

    /// Whether this node should hold `key`: few of its contacts are closer, or the key lies within the region that the k closest
    /// take up on average in a network of this size, however many nodes have crowded into it.
    pub(super) fn is_responsible(&self, key: &ServiceKey) -> bool {
        let key = Point::from(key);
        let within = || {
            let region = self.size.region(2.0);
            region.is_some_and(|region| Point::from(self.own).distance(&key) <= region)
        };
        self.is_node() && (self.table.closer_than_self(&key, RESPONSIBLE) < RESPONSIBLE || within())
    }

    /// A contact failed. It is remembered as a way in when it loses its place in the table.
    pub(super) fn note_failure(&mut self, node: &NodeId) {
        if let Some(gone) = self.table.note_failure(node) {
            self.ways_in.remember(gone);
        }
    }
}

/// The ways into the mesh that are not in the routing table.
#[derive(Debug, Default)]
pub(super) struct WaysIn {
    /// Seeds whose id is known.
    pub(super) seeds: Vec<Contact>,
    /// Seeds that are known by address only.
    pub(super) addresses: Vec<Address>,
    /// Addresses where only this node itself listens. Other nodes may listen there later.
    pub(super) own_addresses: Vec<Address>,
    /// Peers that left the table, the latest last.
    remembered: VecDeque<Contact>,
}

impl WaysIn {
    /// The number of seeds.
    pub(super) fn count(&self) -> usize {
        self.seeds.len() + self.addresses.len() + self.own_addresses.len()
    }

    /// Whether there is a seed other than this node itself.
    pub(super) fn has_seeds(&self) -> bool {
        !self.seeds.is_empty() || !self.addresses.is_empty()
    }

    /// Whether there is a seed or a remembered peer.
    pub(super) fn is_empty(&self) -> bool {
        !self.has_seeds() && self.remembered.is_empty()
    }

    /// The seeds and remembered peers whose id is known.
    pub(super) fn contacts(&self) -> impl Iterator<Item = &Contact> {
        self.seeds.iter().chain(&self.remembered)
    }

    pub(super) fn remember(&mut self, contact: Contact) {
        self.forget(contact.node_id());
        if self.remembered.len() == MAX_REMEMBERED {
            self.remembered.pop_front();
        }
        self.remembered.push_back(contact);
    }

    /// Forgets a remembered peer: it is in the table again.
    pub(super) fn forget(&mut self, node: &NodeId) {
        self.remembered.retain(|known| known.node_id() != node);
    }

    /// Adds a seed with an id.
    pub(super) fn add_seed(&mut self, seed: Contact) {
        self.seeds.retain(|known| known.node_id() != seed.node_id());
        self.seeds.push(seed);
    }

    /// Adds an address. Returns whether it is new.
    pub(super) fn add_address(&mut self, address: Address) -> bool {
        if self.addresses.contains(&address) {
            return false;
        }
        self.own_addresses.retain(|own| *own != address);
        self.addresses.push(address);
        true
    }

    /// Only this node itself listens at `address`.
    pub(super) fn is_own(&mut self, address: Address) {
        self.addresses.retain(|known| *known != address);
        self.own_addresses.push(address);
    }
}
