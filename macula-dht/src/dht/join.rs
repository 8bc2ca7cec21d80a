//! Becoming and staying part of a mesh.
//!
//! Joining is a lookup for this node's own id from every seed and every peer remembered, after which the rest of the table
//! is filled by lookups for random points of each bucket. The same is done again whenever the table has run empty, and, one
//! remembered peer or seed at a time, now and then for ever: two halves of a mesh that lost each other find back, and so do
//! two that never met, when one of them is behind an address that both were given.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Instant,
};

use macula_wire::{Address, Signer};

use super::{Dht, MAX_REMEMBERED, MAX_SEEDS, queries::Goal};
use crate::{
    Backend, Contact, Event, K, Output, Point, QueryId, RequestId, Seed,
    clock::{Tick, nanos},
};

/// How often it is looked whether something needs refreshing, in nanoseconds.
pub(super) const MAINTENANCE: Tick = 60_000_000_000;
/// The most refreshing lookups at a time.
const MAX_REFRESHES: usize = 2;
/// The most buckets that become due in one round of maintenance: those of a mesh that was started at once are all of the same age,
/// and its nodes do not refresh them all in one minute.
const DUE_A_ROUND: usize = 4;
/// In a mesh that is no small one an address is asked again in one of this many rounds, or its node would be asked all the time.
const ASK_AGAIN: u64 = 15;
/// The number of contacts below which a mesh is small.
const SMALL: usize = 2 * K;

/// Who this node joins through, and how far it is.
#[derive(Debug, Default)]
pub(super) struct Joining {
    known: Vec<Contact>,
    addresses: Vec<Address>,
    /// Addresses where nobody but this node was found; others may be there later.
    own_addresses: Vec<Address>,
    /// The address that was asked again, and nothing hangs on it.
    asking_again: Option<RequestId>,
    /// Which address that is the next time.
    next_address: usize,
    /// Peers that left the table, the latest last.
    remembered: VecDeque<Contact>,
    /// Addresses being asked who listens there.
    identifying: BTreeMap<RequestId, Address>,
    identify_until: Option<Tick>,
    query: Option<QueryId>,
    /// When to try again.
    retry_at: Option<Tick>,
    attempts: u32,
    /// Which remembered peer or seed is tried next.
    turn: usize,
}

impl Joining {
    pub(super) fn has_seeds(&self) -> bool {
        !self.known.is_empty() || !self.addresses.is_empty()
    }

    pub(super) fn known_contacts(&self) -> impl Iterator<Item = &Contact> {
        self.known.iter().chain(&self.remembered)
    }

    pub(super) fn remember(&mut self, contact: Contact) {
        self.remembered.retain(|known| known.node_id() != contact.node_id());
        if self.remembered.len() == MAX_REMEMBERED {
            self.remembered.pop_front();
        }
        self.remembered.push_back(contact);
    }

    pub(super) fn due(&self) -> Option<Tick> {
        [self.identify_until, self.retry_at].into_iter().flatten().min()
    }

    fn is_running(&self) -> bool {
        self.query.is_some() || !self.identifying.is_empty()
    }
}

impl<S: Signer, B: Backend> Dht<S, B> {
    /// Joins a mesh through `seeds`, which are kept for joining again; at most [`MAX_SEEDS`].
    ///
    /// [`Event::Joined`] or [`Event::JoinFailed`] follows, unless there is nobody to join through, no seed but this node itself and no
    /// contact that was kept; after the latter it is tried again without being asked to.
    pub fn bootstrap(&mut self, now: Instant, seeds: impl IntoIterator<Item = Seed>) {
        let (mut contacts, mut addresses) = (Vec::new(), Vec::new());
        for seed in seeds {
            let joining = &self.joining;
            if joining.known.len() + joining.addresses.len() + joining.own_addresses.len() >= MAX_SEEDS {
                break;
            }
            match seed {
                Seed::Known(contact) if *contact.node_id() != self.own => {
                    self.joining.known.retain(|known| known.node_id() != contact.node_id());
                    self.joining.known.push(contact.clone());
                    contacts.push(contact);
                }
                Seed::At(endpoint) if !joining.addresses.contains(&endpoint) => {
                    self.joining.own_addresses.retain(|address| *address != endpoint);
                    self.joining.addresses.push(endpoint.clone());
                    addresses.push(endpoint);
                }
                Seed::Known(_) | Seed::At(_) => {}
            }
        }
        if self.joining.is_running() {
            // An attempt is under way, from contacts that were kept perhaps, which may all be gone: the seeds take part in it.
            self.identify(now, addresses);
            self.join_through(now, contacts);
        } else {
            self.start_join(now);
        }
    }

    /// Whether there is anybody to join through: a seed, or a contact that was kept or is remembered.
    #[must_use]
    pub fn knows_a_way_in(&self) -> bool {
        self.joining.has_seeds() || self.joining.known_contacts().next().is_some()
    }

    /// Asks a node whether it answers, and takes it into the routing table when it does.
    pub fn add_contact(&mut self, now: Instant, contact: Contact) {
        if *contact.node_id() != self.own {
            self.probe(now, contact);
        }
    }

    /// Takes the answer to an [`Output::Identify`]: the nodes that listen at the address, none when it cannot be reached.
    pub fn handle_identified(&mut self, now: Instant, id: RequestId, nodes: impl IntoIterator<Item = Contact>) {
        if self.joining.asking_again.take_if(|asked| *asked == id).is_some() {
            let nodes = nodes.into_iter().take(MAX_SEEDS);
            let strangers = nodes.filter(|node| *node.node_id() != self.own && !self.table.contains(node.node_id()));
            let strangers: Vec<_> = strangers.collect();
            return self.meet_through(now, strangers);
        }
        let Some(endpoint) = self.joining.identifying.remove(&id) else {
            self.counters.unexpected += 1;
            return;
        };
        if self.joining.identifying.is_empty() {
            self.joining.identify_until = None;
        }
        let mut nodes: Vec<_> = nodes.into_iter().take(MAX_SEEDS).collect();
        let found = nodes.len();
        nodes.retain(|node| *node.node_id() != self.own);
        if nodes.is_empty() && found > 0 {
            // A node that is among its own seeds: one list for all is how meshes are configured.
            self.joining.addresses.retain(|address| *address != endpoint);
            self.joining.own_addresses.push(endpoint);
            if !self.knows_a_way_in() {
                return self.outputs.push_back(Output::Event(Event::Joined { contacts: 0 }));
            }
        }
        for node in &nodes {
            self.joining.remember(node.clone());
        }
        if nodes.is_empty() && self.joining.query.is_none() {
            // With contacts it is part of a mesh already, whichever of the other seeds led there.
            if self.joining.identifying.is_empty() && self.table.is_empty() {
                self.on_join_lookup(now, 0);
            }
            return;
        }
        self.join_through(now, nodes);
    }

    fn start_join(&mut self, now: Instant) {
        self.joining.retry_at = None;
        self.identify(now, self.joining.addresses.clone());
        let known: Vec<_> = self.joining.known_contacts().cloned().collect();
        if !known.is_empty() || !self.table.is_empty() {
            self.start_join_lookup(now, known);
        }
    }

    /// Has it found out who listens at these addresses.
    fn identify(&mut self, now: Instant, addresses: Vec<Address>) {
        for endpoint in addresses {
            let id = self.next_request();
            self.joining.identifying.insert(id, endpoint.clone());
            self.outputs.push_back(Output::Identify { id, endpoint });
            self.joining.identify_until = Some(self.clock.tick(now) + nanos(self.config.identify_timeout));
        }
    }

    /// Adds contacts to the attempt that is under way.
    fn join_through(&mut self, now: Instant, contacts: Vec<Contact>) {
        match self.joining.query {
            Some(query) => {
                if let Some(lookup) = self.queries.get_mut(&query).and_then(|query| query.paths.first_mut()) {
                    lookup.add(contacts, 0);
                }
                self.pump(now, query);
            }
            None if contacts.is_empty() => {}
            None => self.start_join_lookup(now, contacts),
        }
    }

    fn start_join_lookup(&mut self, now: Instant, contacts: Vec<Contact>) {
        let own = Point::from(self.own);
        match self.start(now, own, Goal::Join) {
            Ok(id) => {
                if let Some(lookup) = self.queries.get_mut(&id).and_then(|query| query.paths.first_mut()) {
                    lookup.add(contacts, 0);
                }
                self.joining.query = Some(id);
                self.pump(now, id);
            }
            Err(_) => self.retry_join(now),
        }
    }

    /// The lookup for this node's own id is over.
    pub(super) fn on_join_lookup(&mut self, now: Instant, answered: usize) {
        self.joining.query = None;
        if answered == 0 {
            if self.joining.identifying.is_empty() {
                self.retry_join(now);
            }
            return;
        }
        self.joining.attempts = 0;
        self.joining.retry_at = None;
        let contacts = self.table.len();
        self.outputs.push_back(Output::Event(Event::Joined { contacts }));
        // Everything farther than the closest neighbour is filled from random points; what is closer was just looked up.
        let own = Point::from(self.own);
        let deepest = self
            .table
            .closest(&own, 1)
            .next()
            .map(|c| own.distance(&c.node_id().into()).shared_bits());
        self.refreshes.extend(0..deepest.unwrap_or(0));
        self.start_refreshes(now);
        self.publish_unheld(now);
    }

    fn retry_join(&mut self, now: Instant) {
        let doublings = 2_u32.saturating_pow(self.joining.attempts.min(16));
        let wait = self.config.join_backoff.saturating_mul(doublings);
        let wait = nanos(wait.min(self.config.max_join_backoff));
        // From half to all of it, so that a mesh that comes back is not asked by everybody at once.
        let wait = wait / 2 + self.rng.below(wait / 2 + 1);
        self.joining.attempts += 1;
        self.joining.retry_at = Some(self.clock.tick(now) + wait);
        let retry_in = std::time::Duration::from_nanos(wait);
        self.outputs.push_back(Output::Event(Event::JoinFailed { retry_in }));
    }

    /// What of joining is due.
    pub(super) fn advance_join(&mut self, now: Instant) {
        let tick = self.clock.tick(now);
        if self.joining.identify_until.is_some_and(|until| until <= tick) {
            self.joining.identify_until = None;
            self.joining.identifying.clear();
            if self.joining.query.is_none() && self.table.is_empty() {
                self.retry_join(now);
            }
        }
        if self.joining.retry_at.is_some_and(|at| at <= tick) {
            self.start_join(now);
        }
    }

    /// Starts waiting refreshes, as many as may run.
    pub(super) fn start_refreshes(&mut self, now: Instant) {
        let mut running = self.queries.values().filter(|query| query.is_refresh()).count();
        while running < MAX_REFRESHES
            && let Some(bucket) = self.refreshes.pop_first()
        {
            let noise = self.rng.words();
            let target = Point::from(self.own).diverging_at(bucket, noise);
            let Ok(id) = self.start(now, target, Goal::Refresh) else {
                return;
            };
            running += 1;
            self.pump(now, id);
        }
    }

    /// Refreshes buckets nobody looked through lately, and looks for a mesh that was lost.
    pub(super) fn maintain(&mut self, now: Instant) {
        let tick = self.clock.tick(now);
        let lost = self.table.is_empty() && self.joining.known_contacts().next().is_some();
        if (lost || (self.table.is_empty() && self.joining.has_seeds()))
            && !self.joining.is_running()
            && self.joining.retry_at.is_none()
        {
            self.retry_join(now);
        }
        if self.maintain_at > tick {
            return;
        }
        self.maintain_at = tick + MAINTENANCE;
        self.limiter.sweep(tick);
        let interval = self.config.refresh_interval;
        self.refreshes.extend(
            self.table
                .ages(now)
                .filter(|(_, age)| *age >= interval)
                .map(|(index, _)| index)
                .take(DUE_A_ROUND),
        );
        self.start_refreshes(now);
        self.ask_an_address_again();
        self.keep_contacts(now);
        let count = self.joining.known_contacts().count();
        if count > 0 {
            self.joining.turn = (self.joining.turn + 1) % count;
            let turn = self.joining.known_contacts().nth(self.joining.turn).cloned();
            if let Some(contact) = turn.filter(|contact| !self.table.contains(contact.node_id())) {
                self.add_contact(now, contact);
            }
        }
    }

    /// Asks one of the addresses whether there are nodes by now that this one knows nothing of.
    fn ask_an_address_again(&mut self) {
        let joining = &self.joining;
        let count = joining.addresses.len() + joining.own_addresses.len();
        if count == 0 || joining.is_running() || (self.table.len() >= SMALL && self.rng.below(ASK_AGAIN) > 0) {
            return;
        }
        let addresses = joining.addresses.iter().chain(&joining.own_addresses);
        let next = addresses.cycle().nth(joining.next_address % count).cloned();
        self.joining.next_address = (self.joining.next_address + 1) % count;
        if let Some(endpoint) = next {
            let id = self.next_request();
            self.joining.asking_again = Some(id);
            self.outputs.push_back(Output::Identify { id, endpoint });
        }
    }

    /// Looks up this node's own id from nodes that are no contacts: they may know neighbours that none of the contacts do.
    fn meet_through(&mut self, now: Instant, nodes: Vec<Contact>) {
        if nodes.is_empty() {
            return;
        }
        // Where there is no room for a lookup, there is one in the next round.
        let Ok(id) = self.start(now, Point::from(self.own), Goal::Meet) else {
            return;
        };
        if let Some(lookup) = self.queries.get_mut(&id).and_then(|query| query.paths.first_mut()) {
            lookup.add(nodes, 0);
        }
        self.pump(now, id);
    }

    /// A node turned up that was not known.
    pub(super) fn on_neighbour(&mut self, now: Instant, contact: &Contact) {
        self.joining
            .remembered
            .retain(|known| known.node_id() != contact.node_id());
        self.keep_contacts(now);
        self.plan_hand_over(now, contact);
    }
}
