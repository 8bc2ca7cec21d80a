//! Becoming and staying part of a mesh.
//!
//! Joining is a lookup for this node's own id from every seed and every remembered peer. Lookups for random points of each bucket
//! then fill the rest of the table. The same happens again whenever the table has run empty. It also
//! keeps asking remembered peers and seeds, one at a time. So two halves of a split mesh rejoin, and so do two meshes that were given
//! one address in common.
//!
//! **Invariant:** of one attempt to join there is one lookup, and [`JoinOutput::Joined`] or [`JoinOutput::Failed`] ends it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use macula_wire::Address;

use super::local::{Local, MAX_SEEDS};
use crate::{
    Contact, Point, QueryId, RequestId, Seed,
    clock::{Tick, nanos},
    rng::Rng,
    table::K,
};

/// The time from one round of maintenance to the next, in nanoseconds.
const MAINTENANCE: Tick = 60_000_000_000;
/// The most refreshing lookups at a time.
const MAX_REFRESHES: usize = 2;
/// The most buckets that become due in one round of maintenance. The buckets of a mesh that started at once are all of the same
/// age, and its nodes do not refresh them all in one minute.
const DUE_A_ROUND: usize = 4;
/// In a mesh that is not small an address is asked again in one of this many rounds, or its node would be asked all the time.
const ASK_AGAIN: u64 = 15;
/// The number of contacts below which a mesh is small.
const SMALL: usize = 2 * K;
/// The first number of a request to identify. Numbers of other requests grow from 0 and never get there.
const FIRST_IDENTIFY: u64 = 1 << 63;

/// The work and the news of joining.
#[derive(Debug)]
pub(super) enum JoinOutput {
    /// Find out which nodes listen at an address, and report them with [`Joining::handle_identified`].
    Identify { id: RequestId, address: Address },
    /// Look up this node's own id from its contacts and from these, and report with [`Joining::handle_lookup`].
    LookUp { through: Vec<Contact> },
    /// Let the lookup under way start from these, too.
    Widen { query: QueryId, through: Vec<Contact> },
    /// Look up this node's own id from nodes that are no contacts: they may know neighbours that none of the contacts knows.
    Meet { through: Vec<Contact> },
    /// Look up a point of a bucket, and report its end with [`Joining::handle_refreshed`].
    Refresh { target: Point },
    /// Find out whether a node answers.
    Probe(Contact),
    /// This node is part of a mesh, with so many contacts.
    Joined { contacts: usize },
    /// No node answered; the next attempt follows after this time.
    Failed { retry_in: Duration },
}

/// The progress of joining, and the maintenance after it.
#[derive(Debug)]
pub(super) struct Joining {
    rng: Rng,
    /// Addresses of the attempt under way, by the request that asks which node listens there.
    identifying: BTreeMap<RequestId, Address>,
    identify_until: Option<Tick>,
    /// The request that asks an address again; no attempt waits for it.
    asking_again: Option<RequestId>,
    next_request: u64,
    /// The index of the address to ask again next.
    next_address: usize,
    /// The lookup of the attempt under way.
    query: Option<QueryId>,
    retry_at: Option<Tick>,
    attempts: u32,
    /// The index of the remembered peer or seed to try next.
    turn: usize,
    /// Buckets to be refreshed.
    refreshes: BTreeSet<usize>,
    /// Refreshing lookups under way.
    refreshing: usize,
    maintain_at: Tick,
    outputs: VecDeque<JoinOutput>,
}

impl Joining {
    pub(super) fn new(mut rng: Rng) -> Self {
        let maintain_at = MAINTENANCE + rng.below(MAINTENANCE);
        Self {
            rng,
            identifying: BTreeMap::new(),
            identify_until: None,
            asking_again: None,
            next_request: FIRST_IDENTIFY,
            next_address: 0,
            query: None,
            retry_at: None,
            attempts: 0,
            turn: 0,
            refreshes: BTreeSet::new(),
            refreshing: 0,
            maintain_at,
            outputs: VecDeque::new(),
        }
    }

    /// The next thing to do or to know.
    pub(super) fn poll_output(&mut self) -> Option<JoinOutput> {
        self.outputs.pop_front()
    }

    /// When [`Joining::handle_timeout`] next has something to do.
    pub(super) fn poll_timeout(&self) -> Tick {
        let due = [self.identify_until, self.retry_at].into_iter().flatten();
        due.fold(self.maintain_at, Tick::min)
    }

    /// Joins through more seeds.
    pub(super) fn bootstrap(&mut self, local: &mut Local, now: Instant, seeds: impl IntoIterator<Item = Seed>) {
        let (mut contacts, mut addresses) = (Vec::new(), Vec::new());
        for seed in seeds {
            if local.ways_in.count() >= MAX_SEEDS {
                break;
            }
            match seed {
                Seed::Known(contact) if *contact.node_id() != local.own => {
                    local.ways_in.add_seed(contact.clone());
                    contacts.push(contact);
                }
                Seed::Known(_) => {}
                Seed::At(address) => {
                    if local.ways_in.add_address(address.clone()) {
                        addresses.push(address);
                    }
                }
            }
        }
        if self.is_running() {
            // An attempt is under way, perhaps from kept contacts that are all gone. The seeds take part in it.
            self.identify(local, now, addresses);
            self.join_through(contacts);
        } else {
            self.start(local, now);
        }
    }

    /// Takes the nodes that listen at an address. Returns `false` when nothing waits for them.
    pub(super) fn handle_identified(
        &mut self,
        local: &mut Local,
        now: Instant,
        id: RequestId,
        nodes: impl IntoIterator<Item = Contact>,
    ) -> bool {
        let mut nodes: Vec<_> = nodes.into_iter().take(MAX_SEEDS).collect();
        let found = nodes.len();
        nodes.retain(|node| *node.node_id() != local.own);
        if self.asking_again.take_if(|asked| *asked == id).is_some() {
            nodes.retain(|node| !local.table.contains(node.node_id()));
            if !nodes.is_empty() {
                self.outputs.push_back(JoinOutput::Meet { through: nodes });
            }
            return true;
        }
        let Some(address) = self.identifying.remove(&id) else {
            return false;
        };
        if self.identifying.is_empty() {
            self.identify_until = None;
        }
        if nodes.is_empty() && found > 0 {
            // This node is among its own seeds: meshes are configured with one list for all.
            local.ways_in.is_own(address);
            if local.ways_in.is_empty() {
                self.outputs.push_back(JoinOutput::Joined { contacts: 0 });
                return true;
            }
        }
        for node in &nodes {
            local.ways_in.remember(node.clone());
        }
        if !nodes.is_empty() || self.query.is_some() {
            self.join_through(nodes);
        } else if self.identifying.is_empty() && local.table.is_empty() {
            // With contacts this node is part of a mesh already, whichever other seed led there.
            self.retry(local, now);
        }
        true
    }

    /// The lookup that [`JoinOutput::LookUp`] asked for has started, or there was no room for it.
    pub(super) fn handle_lookup(&mut self, local: &Local, now: Instant, started: Option<QueryId>) {
        self.query = started;
        if started.is_none() {
            self.retry(local, now);
        }
    }

    /// The lookup for this node's own id has ended; `answered` nodes took part.
    pub(super) fn handle_lookup_done(&mut self, local: &Local, now: Instant, answered: usize) {
        self.query = None;
        if answered == 0 {
            if self.identifying.is_empty() {
                self.retry(local, now);
            }
            return;
        }
        self.attempts = 0;
        self.retry_at = None;
        // The lookup has shown everything closer than the closest neighbour. Random points fill the rest.
        let own = Point::from(local.own);
        let closest = local.table.closest(&own, 1).next();
        let deepest = closest.map_or(0, |c| own.distance(&c.node_id().into()).shared_bits());
        self.refreshes.extend(0..deepest);
        self.start_refreshes(local);
        let contacts = local.table.len();
        self.outputs.push_back(JoinOutput::Joined { contacts });
    }

    /// A refreshing lookup has ended, or there was no room for it.
    pub(super) fn handle_refreshed(&mut self, local: &Local, started: bool) {
        self.refreshing = self.refreshing.saturating_sub(1);
        if started {
            self.start_refreshes(local);
        }
    }

    /// Does everything that is due. Returns whether a round of maintenance was.
    pub(super) fn handle_timeout(&mut self, local: &Local, now: Instant) -> bool {
        let tick = local.tick(now);
        if self.identify_until.is_some_and(|until| until <= tick) {
            self.identify_until = None;
            self.identifying.clear();
            if self.query.is_none() && local.table.is_empty() {
                self.retry(local, now);
            }
        }
        let is_lost = local.table.is_empty() && !local.ways_in.is_empty();
        if self.retry_at.is_some_and(|at| at <= tick) {
            self.start(local, now);
        } else if is_lost && !self.is_running() && self.retry_at.is_none() {
            self.retry(local, now);
        }
        let is_due = self.maintain_at <= tick;
        if is_due {
            self.maintain_at = tick + MAINTENANCE;
            self.maintain(local, now);
        }
        is_due
    }

    /// Gives unused memory back.
    pub(super) fn give_back(&mut self) {
        self.outputs.shrink_to(0);
    }

    fn is_running(&self) -> bool {
        self.query.is_some() || !self.identifying.is_empty()
    }

    fn start(&mut self, local: &Local, now: Instant) {
        self.retry_at = None;
        self.identify(local, now, local.ways_in.addresses.clone());
        let through: Vec<_> = local.ways_in.contacts().cloned().collect();
        if !through.is_empty() || !local.table.is_empty() {
            self.outputs.push_back(JoinOutput::LookUp { through });
        }
    }

    fn identify(&mut self, local: &Local, now: Instant, addresses: Vec<Address>) {
        for address in addresses {
            let id = self.ask(address.clone());
            self.identifying.insert(id, address);
            self.identify_until = Some(local.tick(now) + nanos(local.config.identify_timeout));
        }
    }

    fn ask(&mut self, address: Address) -> RequestId {
        let id = RequestId(self.next_request);
        self.next_request += 1;
        self.outputs.push_back(JoinOutput::Identify { id, address });
        id
    }

    /// Adds contacts to the attempt that is under way, or starts its lookup.
    fn join_through(&mut self, through: Vec<Contact>) {
        match self.query {
            Some(query) => self.outputs.push_back(JoinOutput::Widen { query, through }),
            None if through.is_empty() => {}
            None => self.outputs.push_back(JoinOutput::LookUp { through }),
        }
    }

    fn retry(&mut self, local: &Local, now: Instant) {
        let doublings = 2_u32.saturating_pow(self.attempts.min(16));
        let wait = local.config.join_backoff.saturating_mul(doublings);
        let wait = nanos(wait.min(local.config.max_join_backoff));
        // Wait between half and all of it, so that not every node asks a mesh that comes back at once.
        let wait = wait / 2 + self.rng.below(wait / 2 + 1);
        self.attempts += 1;
        self.retry_at = Some(local.tick(now) + wait);
        let retry_in = Duration::from_nanos(wait);
        self.outputs.push_back(JoinOutput::Failed { retry_in });
    }

    /// Starts waiting refreshes, as many as may run.
    fn start_refreshes(&mut self, local: &Local) {
        while self.refreshing < MAX_REFRESHES
            && let Some(bucket) = self.refreshes.pop_first()
        {
            self.refreshing += 1;
            let target = Point::from(local.own).diverging_at(bucket, self.rng.words());
            self.outputs.push_back(JoinOutput::Refresh { target });
        }
    }

    /// Refreshes buckets that no lookup went through lately, and asks one way in again.
    fn maintain(&mut self, local: &Local, now: Instant) {
        let interval = local.config.refresh_interval;
        let old = local.table.ages(now).filter(|(_, age)| *age >= interval);
        self.refreshes.extend(old.map(|(index, _)| index).take(DUE_A_ROUND));
        self.start_refreshes(local);
        self.ask_an_address_again(local);
        let count = local.ways_in.contacts().count();
        if count > 0 {
            self.turn = (self.turn + 1) % count;
            let turn = local.ways_in.contacts().nth(self.turn);
            if let Some(contact) = turn.filter(|contact| !local.table.contains(contact.node_id())) {
                self.outputs.push_back(JoinOutput::Probe(contact.clone()));
            }
        }
    }

    /// Asks one of the addresses whether nodes listen there by now that this one does not know.
    fn ask_an_address_again(&mut self, local: &Local) {
        let ways_in = &local.ways_in;
        let count = ways_in.addresses.len() + ways_in.own_addresses.len();
        if count == 0 || self.is_running() || (local.table.len() >= SMALL && self.rng.below(ASK_AGAIN) > 0) {
            return;
        }
        let mut addresses = ways_in.addresses.iter().chain(&ways_in.own_addresses);
        let next = addresses.nth(self.next_address % count).cloned();
        self.next_address = (self.next_address + 1) % count;
        if let Some(address) = next {
            self.asking_again = Some(self.ask(address));
        }
    }
}

#[cfg(test)]
#[path = "joining_tests.rs"]
mod tests;
