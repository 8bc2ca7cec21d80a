//! Lookups from start to end: the nodes to ask, the gain of each answer, and the end.
//!
//! Inputs are answers, failures and delays of the requests that [`QueryOutput::Ask`] wants sent. A lookup of a caller ends with
//! [`Event::Finished`], a lookup of another core with [`QueryOutput::Done`].
//!
//! **Invariant:** each lookup ends once, unless it is dropped.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use macula_wire::{AccessError, NodeId, RecordError, SignedProvider, VerifiedProvider};

use super::{
    local::Local,
    purpose::{Errand, Step},
    search::{Effort, Search, Selection},
};
use crate::{
    Contact, DateError, Event, K, Point, QueryId, QueryResult, Request, Response, Stats, clock::Tick, lookup::Lookup,
    message::peek,
};

/// The most lookups that run at a time, those for publishing and maintenance included.
pub const MAX_QUERIES: usize = 1024;
/// The number of paths of a search that found nothing on one.
const DISJOINT_PATHS: usize = 2;

/// Too many lookups are running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_QUERIES} lookups are running already; start this one when some have ended")]
#[non_exhaustive]
pub struct TooManyQueries;

/// The result that a lookup is for.
#[derive(Debug)]
pub(super) enum Goal {
    /// A caller wants the closest nodes.
    Nodes,
    /// A caller wants providers.
    Providers(Search),
    /// Another core wants the closest nodes.
    Errand(Errand),
}

/// The work and the news of lookups.
#[derive(Debug)]
pub(super) enum QueryOutput {
    /// Send `request` to `to`, and report how it ends.
    Ask { step: Step, to: Contact, request: Request },
    /// News for the caller.
    Event(Event),
    /// A lookup for another core has ended; `answered` peers took part. With `not_sent`, this node was too busy to ask all it should.
    Done {
        query: QueryId,
        errand: Errand,
        lookup: Lookup,
        answered: usize,
        not_sent: bool,
    },
}

#[derive(Debug)]
struct Query {
    goal: Goal,
    paths: Vec<Lookup>,
    /// The nodes that one of several paths has asked. The others leave them alone.
    claimed: BTreeSet<NodeId>,
    started: Tick,
    messages: u32,
    /// Whether there was a node to ask.
    had_contacts: bool,
    /// Whether this node was too busy to send a request.
    not_sent: bool,
}

/// A peer's answer to a step, without its records.
#[derive(Debug)]
pub(super) struct Answer {
    step: Step,
    peer: Contact,
    closest: Vec<Contact>,
    /// The provider after which the next page of the peer's list begins, when there is one.
    next: Option<NodeId>,
}

impl Answer {
    pub(super) fn peer(&self) -> &NodeId {
        self.peer.node_id()
    }
}

/// The lookups of a node.
#[derive(Debug, Default)]
pub(super) struct Queries {
    /// Boxed: the map is almost always empty or nearly so, and keeps room for eleven entries.
    queries: BTreeMap<QueryId, Box<Query>>,
    next: u64,
    outputs: VecDeque<QueryOutput>,
}

impl Queries {
    /// The next thing to do or to know.
    pub(super) fn poll_output(&mut self) -> Option<QueryOutput> {
        self.outputs.pop_front()
    }

    /// Prepares a lookup from the contacts of this node; [`Queries::pump`] sets it going.
    pub(super) fn start(
        &mut self,
        local: &mut Local,
        now: Instant,
        target: Point,
        goal: Goal,
    ) -> Result<QueryId, TooManyQueries> {
        if self.queries.len() >= MAX_QUERIES {
            return Err(TooManyQueries);
        }
        let id = QueryId(self.next);
        self.next += 1;
        let mut lookup = Lookup::new(local.own, target);
        lookup.add(local.starting_points(&target), 0);
        local.table.note_lookup(now, &target);
        let had_contacts = !lookup.is_finished() || local.ways_in.has_seeds();
        let query = Query {
            goal,
            paths: vec![lookup],
            claimed: BTreeSet::new(),
            started: local.tick(now),
            messages: 0,
            had_contacts,
            not_sent: false,
        };
        self.queries.insert(id, Box::new(query));
        Ok(id)
    }

    /// Adds contacts that a lookup may start from as well.
    pub(super) fn add(&mut self, id: QueryId, contacts: Vec<Contact>) {
        if let Some(lookup) = self.queries.get_mut(&id).and_then(|query| query.paths.first_mut()) {
            lookup.add(contacts, 0);
        }
    }

    /// Ends a caller's lookup without an event.
    pub(super) fn drop_caller(&mut self, id: QueryId) {
        let goal = self.queries.get(&id).map(|query| &query.goal);
        if matches!(goal, Some(Goal::Nodes | Goal::Providers(_))) {
            self.queries.remove(&id);
        }
    }

    /// Ends a lookup of another core without an output.
    pub(super) fn drop_errand(&mut self, id: QueryId) {
        self.queries.remove(&id);
    }

    /// Takes the records of a search that this node holds itself.
    pub(super) fn take_local(&mut self, local: &mut Local, now: Instant, id: QueryId) {
        let Some(search) = self.search(id) else { return };
        let held = local.store.page(now, search.key(), None).cloned().collect();
        self.merge(local, now, id, 0, held);
    }

    /// Asks as many nodes as a lookup may ask, and ends it when it is over.
    pub(super) fn pump(&mut self, local: &mut Local, now: Instant, id: QueryId) {
        let Some(query) = self.queries.get_mut(&id) else { return };
        let several = query.paths.len() > 1;
        let (paths, claimed) = (&mut query.paths, &mut query.claimed);
        let mut asked = Vec::new();
        // Path by path, one request each in turn, so that no path gets all the good candidates.
        let mut active = true;
        while active {
            active = false;
            for (path, lookup) in paths.iter_mut().enumerate() {
                if let Some((contact, hop)) = lookup.next(|node| several && claimed.contains(node)) {
                    if several {
                        claimed.insert(*contact.node_id());
                    }
                    asked.push((contact, path, hop));
                    active = true;
                }
            }
        }
        query.messages += asked.len() as u32;
        let finished = asked.is_empty() && query.paths.iter().all(Lookup::is_finished);
        if !asked.is_empty() {
            let request = query.request();
            for (to, path, hop) in asked {
                let path = u8::try_from(path).unwrap_or(u8::MAX);
                let step = Step { query: id, path, hop };
                let request = request.clone();
                self.outputs.push_back(QueryOutput::Ask { step, to, request });
            }
        }
        if finished {
            self.finish(local, now, id);
        }
    }

    /// Takes a peer's answer to a step. [`Queries::handle_checked`] goes on with it when the selected records are checked. `None` when
    /// nothing waits for it.
    pub(super) fn handle_answer(
        &mut self,
        local: &Local,
        step: Step,
        peer: Contact,
        response: Response,
    ) -> Option<(Answer, Option<Selection>)> {
        let (records, closest, more) = match response {
            Response::Nodes(closest) => (Vec::new(), closest, false),
            Response::Providers { records, closest, more } => (records, closest, more),
            Response::Pong | Response::Published { .. } | Response::Declined(_) => return None,
        };
        let query = self.queries.get_mut(&step.query)?;
        let last = records.last().and_then(provider_of);
        let selection = match &mut query.goal {
            Goal::Providers(search) => Some(search.select(local, peer.node_id(), records)),
            Goal::Nodes | Goal::Errand(_) => None,
        };
        let cut_after = selection.as_ref().and_then(|selection| selection.cut_after);
        let answer = Answer {
            step,
            peer,
            closest,
            next: cut_after.or(if more { last } else { None }),
        };
        Some((answer, selection))
    }

    /// Takes the records of an answer that were checked, and goes on. Returns `false` when one is forged.
    ///
    /// Leaves out, without calling it a forgery, a record whose grant has ended or was revoked (its holder may not know yet), and a
    /// record of another host with a loopback address (a caller would reach a port of its own host).
    pub(super) fn handle_checked(
        &mut self,
        local: &mut Local,
        now: Instant,
        answer: Answer,
        checked: Vec<Result<VerifiedProvider, RecordError>>,
    ) -> bool {
        let Answer {
            step,
            peer,
            closest,
            next,
        } = answer;
        let mut records = Vec::with_capacity(checked.len());
        for checked in checked {
            match local.confirm(now, checked) {
                Ok(record) if !peer.may_bring(&record) => {}
                Ok(record) => records.push(record),
                Err(RecordError::Access(AccessError::Revoked(_))) => {}
                Err(RecordError::Access(AccessError::Ended(seconds))) => {
                    let by = Duration::from_secs(seconds);
                    self.note_misdated(step.query, DateError::Expired { by });
                }
                Err(RecordError::Access(AccessError::NotYet(seconds))) => {
                    let by = Duration::from_secs(seconds);
                    self.note_misdated(step.query, DateError::FromTheFuture { by });
                }
                Err(_) => {
                    self.handle_failure(local, now, step, peer.node_id());
                    return false;
                }
            }
        }
        self.merge(local, now, step.query, step.hop, records);
        let Some(query) = self.queries.get_mut(&step.query) else {
            return true;
        };
        let next = next.and_then(|after| query.next_page(local, peer.node_id(), after));
        let Some(lookup) = query.paths.get_mut(usize::from(step.path)) else {
            return true;
        };
        lookup.add(closest.into_iter().filter_map(|named| named.named_by(&peer)), step.hop);
        match next {
            Some(request) => {
                query.messages += 1;
                self.outputs.push_back(QueryOutput::Ask {
                    step,
                    to: peer,
                    request,
                });
            }
            None => lookup.on_answer(peer.node_id()),
        }
        self.pump(local, now, step.query);
        true
    }

    /// A peer has not answered a step within the soft timeout.
    pub(super) fn handle_overdue(&mut self, local: &mut Local, now: Instant, step: Step, node: &NodeId) {
        if let Some(lookup) = self.lookup(step) {
            lookup.on_overdue(node);
            self.pump(local, now, step.query);
        }
    }

    /// A peer will not answer a step.
    pub(super) fn handle_failure(&mut self, local: &mut Local, now: Instant, step: Step, node: &NodeId) {
        if let Some(lookup) = self.lookup(step) {
            lookup.on_failure(node);
            self.pump(local, now, step.query);
        }
    }

    /// This node was too busy to send a step. The lookup goes on without the peer.
    pub(super) fn handle_not_sent(&mut self, local: &mut Local, now: Instant, step: Step, node: &NodeId) {
        if let Some(query) = self.queries.get_mut(&step.query) {
            query.not_sent = true;
        }
        self.handle_failure(local, now, step, node);
    }

    /// Ends a caller's lookup that gives way to others.
    pub(super) fn give_way(&mut self, local: &Local, now: Instant, id: QueryId) {
        let Some(query) = self.queries.remove(&id) else { return };
        let (result, stats) = (QueryResult::Busy, query.stats(local, now));
        let event = Event::Finished {
            query: id,
            result,
            stats,
        };
        self.outputs.push_back(QueryOutput::Event(event));
    }

    /// Gives unused memory back: an empty map keeps room for eleven entries.
    pub(super) fn give_back(&mut self) {
        if self.queries.is_empty() {
            self.queries = BTreeMap::new();
        }
        self.outputs.shrink_to(0);
    }

    fn lookup(&mut self, step: Step) -> Option<&mut Lookup> {
        self.queries.get_mut(&step.query)?.paths.get_mut(usize::from(step.path))
    }

    fn search(&mut self, id: QueryId) -> Option<&mut Search> {
        match &mut self.queries.get_mut(&id)?.goal {
            Goal::Providers(search) => Some(search),
            Goal::Nodes | Goal::Errand(_) => None,
        }
    }

    fn note_misdated(&mut self, id: QueryId, error: DateError) {
        if let Some(search) = self.search(id) {
            search.note_misdated(error);
        }
    }

    /// Merges records into a search, and ends it when it has enough.
    fn merge(&mut self, local: &mut Local, now: Instant, id: QueryId, hop: u8, records: Vec<VerifiedProvider>) {
        let Some(search) = self.search(id) else { return };
        let batch = search.merge(local, now, hop, records);
        let satisfied = search.is_satisfied();
        if !batch.is_empty() {
            let event = Event::Providers { query: id, batch };
            self.outputs.push_back(QueryOutput::Event(event));
        }
        if satisfied {
            self.finish(local, now, id);
        }
    }

    /// Ends a lookup, unless it tries harder.
    fn finish(&mut self, local: &mut Local, now: Instant, id: QueryId) {
        if let Some(search) = self.search(id) {
            search.drop_expired(local, now);
        }
        if self.try_harder(local, now, id) {
            return;
        }
        let Some(query) = self.queries.remove(&id) else { return };
        query.observe_size(local);
        let mut stats = query.stats(local, now);
        let answered = stats.answered as usize;
        let not_sent = query.not_sent;
        let unknown = match answered {
            0 if not_sent => Some(QueryResult::Busy),
            0 if query.had_contacts => Some(QueryResult::Unreachable),
            _ => None,
        };
        let Query { goal, mut paths, .. } = *query;
        let result = match goal {
            Goal::Errand(errand) => {
                let lookup = paths.swap_remove(0);
                let done = QueryOutput::Done {
                    query: id,
                    errand,
                    lookup,
                    answered,
                    not_sent,
                };
                return self.outputs.push_back(done);
            }
            Goal::Nodes => unknown.unwrap_or_else(|| QueryResult::Nodes(closest(&paths))),
            Goal::Providers(search) => {
                stats.hops = if search.live() > 0 { search.hop() } else { stats.hops };
                let misdated = search.misdated().map(QueryResult::Misdated);
                let providers = search.into_providers();
                match providers.is_empty() {
                    false => QueryResult::Found(providers),
                    // A node that was not asked may know a provider.
                    true if not_sent => QueryResult::Busy,
                    true => unknown.or(misdated).unwrap_or(QueryResult::NotFound),
                }
            }
        };
        let event = Event::Finished {
            query: id,
            result,
            stats,
        };
        self.outputs.push_back(QueryOutput::Event(event));
    }

    /// Lets a search go on that has ended without a provider, since an attacker may have chosen where it ends.
    ///
    /// It asks the region around a crowd first, then goes again on disjoint paths. In a network no larger than k every node has
    /// been asked, and there is nothing to try.
    fn try_harder(&mut self, local: &mut Local, now: Instant, id: QueryId) -> bool {
        let Some(query) = self.queries.get_mut(&id) else {
            return false;
        };
        let [lookup] = &mut query.paths[..] else { return false };
        let Some(kth) = lookup.kth() else { return false };
        let crowd = if local.size.is_crowded(kth) {
            local.size.region(1.0)
        } else {
            None
        };
        match &mut query.goal {
            Goal::Providers(search) if search.live() == 0 && search.effort < Effort::Disjoint => match crowd {
                Some(region) if search.effort == Effort::Plain => {
                    search.effort = Effort::Region;
                    lookup.widen(region);
                }
                Some(_) | None => {
                    search.effort = Effort::Disjoint;
                    let target = *lookup.target();
                    query.paths = (0..DISJOINT_PATHS).map(|_| Lookup::new(local.own, target)).collect();
                    // Dealt out in turn, so that each path starts about equally close.
                    for (at, contact) in local.table.closest(&target, DISJOINT_PATHS * K).enumerate() {
                        query.paths[at % DISJOINT_PATHS].add([contact.clone()], 0);
                    }
                }
            },
            Goal::Providers(_) | Goal::Nodes | Goal::Errand(_) => return false,
        }
        self.pump(local, now, id);
        true
    }
}

impl Query {
    fn stats(&self, local: &Local, now: Instant) -> Stats {
        let answered: usize = self.paths.iter().map(Lookup::answered).sum();
        Stats {
            hops: self.paths.iter().map(Lookup::depth).max().unwrap_or(0),
            messages: self.messages,
            answered: u32::try_from(answered).unwrap_or(u32::MAX),
            elapsed: Duration::from_nanos(local.tick(now).saturating_sub(self.started)),
        }
    }

    fn request(&self) -> Request {
        let target = || self.paths.first().map_or(Point::MIN, |lookup| *lookup.target());
        match &self.goal {
            Goal::Providers(search) => Request::FindProviders {
                key: *search.key(),
                after: None,
            },
            Goal::Nodes | Goal::Errand(_) => Request::FindNode { target: target() },
        }
    }

    /// The request for the page of `peer`'s list after the provider `after`, when the search wants it.
    fn next_page(&mut self, local: &Local, peer: &NodeId, after: NodeId) -> Option<Request> {
        let Goal::Providers(search) = &mut self.goal else {
            return None;
        };
        search.wants_next_page(local, peer).then(|| Request::FindProviders {
            key: *search.key(),
            after: Some(after),
        })
    }

    /// Learns from a complete lookup how dense the network is.
    ///
    /// A target that an attacker can know beforehand may be crowded on purpose, and crowds are told by this estimate. So a
    /// service's key counts only where it is no crowd, and this node's own neighbourhood never counts: this node joins there, and
    /// refreshes its deepest buckets there. No attacker knows the other points that are refreshed.
    fn observe_size(&self, local: &mut Local) {
        let [lookup] = &self.paths[..] else { return };
        let Some(kth) = lookup.kth() else { return };
        // The margin covers neighbours that are a little farther than this node.
        let own = Point::from(local.own).distance(lookup.target());
        if own.fraction() <= 1.25 * kth.fraction() {
            return;
        }
        let unforeseen = matches!(self.goal, Goal::Errand(Errand::Refresh));
        if lookup.is_finished() && !lookup.is_widened() && (unforeseen || !local.size.is_crowded(kth)) {
            local.size.observe(lookup.distances());
        }
    }
}

/// The closest nodes that answered on any path.
fn closest(paths: &[Lookup]) -> Vec<Contact> {
    if let [lookup] = paths {
        return lookup.closest().cloned().collect();
    }
    let target = paths.first().map_or(Point::MIN, |lookup| *lookup.target());
    let mut all: Vec<_> = paths.iter().flat_map(Lookup::closest).cloned().collect();
    all.sort_by_cached_key(|contact| Point::from(contact.node_id()).distance(&target));
    all.dedup_by(|a, b| a.node_id() == b.node_id());
    all.truncate(K);
    all
}

/// The provider that an unverified record names.
fn provider_of(record: &SignedProvider) -> Option<NodeId> {
    peek(&record.body).map(|peek| peek.node)
}

#[cfg(test)]
#[path = "queries_tests.rs"]
mod tests;
