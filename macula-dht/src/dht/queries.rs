//! Lookups from start to end: what is asked, what is found, when it is enough.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use macula_wire::{NodeId, ServiceKey, SignedProvider, Signer, VerifiedProvider};

use super::{Dht, MAX_QUERIES, TooManyQueries, exchange::Purpose, publish::JobId};
use crate::{
    Backend, Contact, Event, K, Output, Point, QueryId, QueryResult, Request, Response, Stats, Want,
    clock::{Tick, nanos},
    lookup::Lookup,
};

/// The most pages of one peer's list a lookup reads.
const MAX_PAGES: u8 = 32;
/// The most providers a search takes from one peer, or [`StoreLimits::providers_per_key`](crate::StoreLimits) where that is more.
const LIST: usize = 256;
/// The number of paths of a search that found nothing on one.
const DISJOINT_PATHS: usize = 2;

/// What a lookup is for.
#[derive(Debug)]
pub(super) enum Goal {
    /// The caller wants the closest nodes.
    Nodes,
    /// The caller wants providers.
    Providers(Search),
    /// A job wants to know where to publish.
    Publish(JobId),
    /// Joining: the closest nodes are to know this one.
    Join,
    /// Keeping a bucket fresh.
    Refresh,
    /// Meeting the neighbours that others than this node's contacts know.
    Meet,
}

/// What a search for providers has found.
#[derive(Debug)]
pub(super) struct Search {
    key: ServiceKey,
    want: Want,
    /// The newest record of each provider, withdrawals included.
    found: BTreeMap<NodeId, Found>,
    live: usize,
    /// What each peer has given.
    given: BTreeMap<NodeId, Given>,
    /// How many signatures were checked.
    checked: usize,
    /// The step that found the first provider.
    hop: u8,
    effort: Effort,
}

#[derive(Debug)]
struct Found {
    record: VerifiedProvider,
    /// From then on it is not shown.
    expires: Tick,
}

/// How much of its list a peer has given.
#[derive(Debug, Default)]
struct Given {
    pages: u8,
    records: usize,
}

/// How hard a search tries. One that ends without a provider tries harder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Effort {
    /// The k closest.
    Plain,
    /// The whole region that k nodes take up on average, because the k closest are crowded into a corner of it.
    Region,
    /// [`DISJOINT_PATHS`] paths, none asking whom another has asked (Baumgart and Mies, *S/Kademlia*, 2007).
    Disjoint,
}

#[derive(Debug)]
pub(super) struct Query {
    goal: Goal,
    pub(super) paths: Vec<Lookup>,
    /// Whom one of several paths has asked: the others leave it alone.
    claimed: BTreeSet<NodeId>,
    started: Tick,
    messages: u32,
    /// Whether there was anybody to ask.
    had_contacts: bool,
}

impl<S: Signer, B: Backend> Dht<S, B> {
    /// Looks for providers of `key`: [`Event::Providers`] as they are found, then one [`Event::Finished`].
    ///
    /// This node's own store is asked first, and may be enough.
    ///
    /// # Errors
    /// When [`MAX_QUERIES`] are running.
    pub fn start_lookup(&mut self, now: Instant, key: ServiceKey, want: Want) -> Result<QueryId, TooManyQueries> {
        let search = Search {
            key,
            want,
            found: BTreeMap::new(),
            live: 0,
            given: BTreeMap::new(),
            checked: 0,
            hop: 0,
            effort: Effort::Plain,
        };
        let id = self.start(now, key.into(), Goal::Providers(search))?;
        let held: Vec<_> = self.store.page(now, &key, None).cloned().collect();
        self.on_found(now, id, 0, held);
        self.pump(now, id);
        Ok(id)
    }

    /// Looks for the nodes closest to `target`: one [`Event::Finished`].
    ///
    /// # Errors
    /// When [`MAX_QUERIES`] are running.
    pub fn start_find_node(&mut self, now: Instant, target: Point) -> Result<QueryId, TooManyQueries> {
        let id = self.start(now, target, Goal::Nodes)?;
        self.pump(now, id);
        Ok(id)
    }

    /// Ends a lookup without an event.
    pub fn drop_query(&mut self, query: QueryId) {
        let goal = self.queries.get(&query).map(|query| &query.goal);
        if matches!(goal, Some(Goal::Nodes | Goal::Providers(_))) {
            self.queries.remove(&query);
        }
    }

    /// Prepares a lookup from what is known here; [`Dht::pump`] sets it going.
    pub(super) fn start(&mut self, now: Instant, target: Point, goal: Goal) -> Result<QueryId, TooManyQueries> {
        if self.queries.len() >= MAX_QUERIES {
            return Err(TooManyQueries);
        }
        let id = QueryId(self.next_query);
        self.next_query += 1;
        let mut lookup = Lookup::new(self.own, target);
        lookup.add(self.starting_points(&target), 0);
        self.table.note_lookup(now, &target);
        let had_contacts = !lookup.is_finished() || self.joining.has_seeds();
        let query = Query {
            goal,
            paths: vec![lookup],
            claimed: BTreeSet::new(),
            started: self.clock.tick(now),
            messages: 0,
            had_contacts,
        };
        self.queries.insert(id, Box::new(query));
        Ok(id)
    }

    /// Sends what a lookup may send, and ends it when it is over.
    pub(super) fn pump(&mut self, now: Instant, id: QueryId) {
        let Some(query) = self.queries.get_mut(&id) else { return };
        let several = query.paths.len() > 1;
        let mut sends = Vec::new();
        let (paths, claimed) = (&mut query.paths, &mut query.claimed);
        // Path by path, one request each in turn, so that none gets all the good candidates.
        let mut active = true;
        while active {
            active = false;
            for (path, lookup) in paths.iter_mut().enumerate() {
                if let Some((contact, hop)) = lookup.next(|node| several && claimed.contains(node)) {
                    if several {
                        claimed.insert(*contact.node_id());
                    }
                    sends.push((contact, path, hop));
                    active = true;
                }
            }
        }
        query.messages += sends.len() as u32;
        let request = query.request();
        let finished = sends.is_empty() && query.paths.iter().all(Lookup::is_finished);
        for (contact, path, hop) in sends {
            let path = u8::try_from(path).unwrap_or(u8::MAX);
            self.send(now, contact, Purpose::Step { query: id, path, hop }, request.clone());
        }
        if finished {
            self.finish(now, id);
        }
    }

    /// Takes a peer's answer to a step of a lookup. Returns whether it was honest as far as can be seen.
    pub(super) fn on_step_answer(
        &mut self,
        now: Instant,
        id: QueryId,
        path: u8,
        hop: u8,
        peer: &Contact,
        response: Response,
    ) -> bool {
        if !self.queries.contains_key(&id) {
            return true;
        }
        let (records, closest, more) = match response {
            Response::Nodes(closest) => (Vec::new(), closest, false),
            Response::Providers { records, closest, more } => (records, closest, more),
            Response::Pong | Response::Published(_) | Response::Declined(_) => return true,
        };
        let last = records.last().and_then(peek_node);
        let Some(verified) = self.verify_found(id, peer.node_id(), &records) else {
            self.on_step_failure(now, id, path, peer.node_id());
            return false;
        };
        self.on_found(now, id, hop, verified);
        let Some(query) = self.queries.get_mut(&id) else {
            return true;
        };
        let after = if more { last } else { None };
        let most = self.config.store.providers_per_key.max(LIST);
        let next = after.and_then(|after| {
            Some(Request::FindProviders {
                key: query.next_page(peer.node_id(), most)?,
                after: Some(after),
            })
        });
        let Some(lookup) = query.paths.get_mut(usize::from(path)) else {
            return true;
        };
        lookup.add(closest, hop);
        match next {
            Some(request) => {
                query.messages += 1;
                self.send(now, peer.clone(), Purpose::Step { query: id, path, hop }, request);
            }
            None => lookup.on_answer(peer.node_id()),
        }
        self.pump(now, id);
        true
    }

    pub(super) fn on_step_overdue(&mut self, now: Instant, id: QueryId, path: u8, node: &NodeId) {
        if let Some(lookup) = self
            .queries
            .get_mut(&id)
            .and_then(|query| query.paths.get_mut(usize::from(path)))
        {
            lookup.on_overdue(node);
            self.pump(now, id);
        }
    }

    pub(super) fn on_step_failure(&mut self, now: Instant, id: QueryId, path: u8, node: &NodeId) {
        if let Some(lookup) = self
            .queries
            .get_mut(&id)
            .and_then(|query| query.paths.get_mut(usize::from(path)))
        {
            lookup.on_failure(node);
            self.pump(now, id);
        }
    }

    /// Checks the records of an answer that are not known yet; `None` when one is forged.
    ///
    /// From one peer no more are looked at than a list may hold, and of a whole search no more than two versions of such a list
    /// from each of k holders: providers without end cost a peer nothing to make up.
    fn verify_found(
        &mut self,
        id: QueryId,
        peer: &NodeId,
        records: &[SignedProvider],
    ) -> Option<Vec<VerifiedProvider>> {
        let Some(Query {
            goal: Goal::Providers(search),
            ..
        }) = self.queries.get_mut(&id).map(AsMut::as_mut)
        else {
            return Some(Vec::new());
        };
        let most = self.config.store.providers_per_key.max(LIST);
        let given = search.given.entry(*peer).or_default();
        let records = &records[..records.len().min(most.saturating_sub(given.records))];
        given.records += records.len();
        let mut verified = Vec::new();
        for record in records {
            let known = peek_node(record).and_then(|node| search.found.get(&node));
            let is_same = |known: &VerifiedProvider| {
                known.body() == &record.body && known.signature()[..] == record.signature[..]
            };
            if known.is_some_and(|known| is_same(&known.record)) {
                continue;
            }
            if search.checked >= 2 * K * most {
                break;
            }
            search.checked += 1;
            verified.push(record.verify(&self.realm_hash, &search.key).ok()?);
        }
        Some(verified)
    }

    /// Merges records into what a search has found, and ends it when that is enough.
    fn on_found(&mut self, now: Instant, id: QueryId, hop: u8, records: Vec<VerifiedProvider>) {
        let Some(Query {
            goal: Goal::Providers(search),
            ..
        }) = self.queries.get_mut(&id).map(AsMut::as_mut)
        else {
            return;
        };
        let tick = self.clock.tick(now);
        let mut batch = Vec::new();
        for record in records {
            let Ok(validity) = self.clock.validity(now, &record) else {
                continue;
            };
            let known = search.found.get(record.node_id()).map(|known| &known.record);
            if known.is_some_and(|known| !crate::store::supersedes(&record, known)) {
                continue;
            }
            let was_live = known.is_some_and(|known| !known.is_withdrawn());
            let expires = tick.saturating_add(nanos(validity));
            search.live = search.live + usize::from(!record.is_withdrawn()) - usize::from(was_live);
            if !record.is_withdrawn() {
                batch.push(record.clone());
            }
            search.found.insert(*record.node_id(), Found { record, expires });
        }
        let enough = search.want.is_satisfied_by(search.live);
        if !batch.is_empty() {
            search.hop = if search.hop == 0 { hop } else { search.hop };
            self.outputs
                .push_back(Output::Event(Event::Providers { query: id, batch }));
        }
        if enough {
            self.finish(now, id);
        }
    }

    /// Ends a lookup: its one final event, or the next step of what it was for.
    fn finish(&mut self, now: Instant, id: QueryId) {
        self.drop_expired(now, id);
        if self.try_harder(now, id) {
            return;
        }
        let Some(query) = self.queries.remove(&id) else { return };
        self.observe_size(&query);
        let answered: usize = query.paths.iter().map(Lookup::answered).sum();
        let mut stats = Stats {
            hops: query.paths.iter().map(Lookup::depth).max().unwrap_or(0),
            messages: query.messages,
            answered: u32::try_from(answered).unwrap_or(u32::MAX),
            elapsed: Duration::from_nanos(self.clock.tick(now).saturating_sub(query.started)),
        };
        let nobody = answered == 0 && query.had_contacts;
        let result = match query.goal {
            Goal::Publish(job) => return self.on_publish_lookup(now, job, id, &query),
            Goal::Join => return self.on_join_lookup(now, answered),
            Goal::Refresh => return self.start_refreshes(now),
            Goal::Meet => return,
            Goal::Nodes if nobody => QueryResult::Unreachable,
            Goal::Nodes => QueryResult::Nodes(query.closest()),
            Goal::Providers(search) => {
                stats.hops = if search.live > 0 { search.hop } else { stats.hops };
                match search.into_result() {
                    found if !found.is_empty() => QueryResult::Found(found),
                    _ if nobody => QueryResult::Unreachable,
                    _ => QueryResult::NotFound,
                }
            }
        };
        self.outputs.push_back(Output::Event(Event::Finished {
            query: id,
            result,
            stats,
        }));
    }
}

impl<S: Signer, B: Backend> Dht<S, B> {
    /// Drops what has expired since a search found it (D4).
    fn drop_expired(&mut self, now: Instant, id: QueryId) {
        let Some(Query {
            goal: Goal::Providers(search),
            ..
        }) = self.queries.get_mut(&id).map(AsMut::as_mut)
        else {
            return;
        };
        let tick = self.clock.tick(now);
        let shown: BTreeSet<_> = self
            .store
            .get(now, &search.key)
            .map(|record| *record.node_id())
            .collect();
        search.found.retain(|node, found| {
            let is_held = || self.store.held(&search.key, node) == Some(&found.record);
            // What this node's own store holds was received earlier, and expires when it does there.
            found.record.is_withdrawn() || (found.expires > tick && (shown.contains(node) || !is_held()))
        });
        search.live = search
            .found
            .values()
            .filter(|found| !found.record.is_withdrawn())
            .count();
    }

    /// Learns from a complete lookup how dense the network is.
    ///
    /// A target that others can know beforehand may be crowded on purpose, and then counts for nothing: the estimate is what
    /// crowds are told by. That is a service's key, and whatever lies in this node's own neighbourhood, where it joins and
    /// where it refreshes its deepest buckets. The other points of refreshes nobody can know.
    fn observe_size(&mut self, query: &Query) {
        let [lookup] = &query.paths[..] else { return };
        let Some(kth) = lookup.kth() else { return };
        // A little farther, too: those around this node are not all at its distance.
        let own = Point::from(&self.own).distance(lookup.target());
        if own.fraction() <= 1.25 * kth.fraction() {
            return;
        }
        let unforeseen = matches!(query.goal, Goal::Refresh);
        if lookup.is_finished() && !lookup.is_widened() && (unforeseen || !self.size.is_crowded(kth)) {
            self.size.observe(lookup.distances());
        }
    }

    /// Lets a lookup that has come to its end go on, when its end may be where somebody wants it to be.
    ///
    /// A search that was told by a whole neighbourhood that there is no provider asks the region around a crowd, and then goes
    /// again on disjoint paths. In a network no larger than k everybody has
    /// been asked, and there is nothing to try.
    fn try_harder(&mut self, now: Instant, id: QueryId) -> bool {
        let Some(query) = self.queries.get_mut(&id) else {
            return false;
        };
        let [lookup] = &mut query.paths[..] else { return false };
        let Some(kth) = lookup.kth() else { return false };
        let crowd = if self.size.is_crowded(kth) {
            self.size.region(1.0)
        } else {
            None
        };
        match &mut query.goal {
            Goal::Providers(search) if search.live == 0 && search.effort < Effort::Disjoint => match crowd {
                Some(region) if search.effort == Effort::Plain => {
                    search.effort = Effort::Region;
                    lookup.widen(region);
                }
                Some(_) | None => {
                    search.effort = Effort::Disjoint;
                    let target = *lookup.target();
                    query.paths = (0..DISJOINT_PATHS).map(|_| Lookup::new(self.own, target)).collect();
                    // Dealt out in turn, so that each path starts about equally close.
                    for (at, contact) in self.table.closest(&target, DISJOINT_PATHS * K).enumerate() {
                        query.paths[at % DISJOINT_PATHS].add([contact.clone()], 0);
                    }
                }
            },
            Goal::Providers(_) | Goal::Nodes | Goal::Publish(_) | Goal::Join | Goal::Refresh | Goal::Meet => {
                return false;
            }
        }
        self.pump(now, id);
        true
    }
}

impl Query {
    pub(super) fn is_refresh(&self) -> bool {
        matches!(self.goal, Goal::Refresh)
    }

    fn request(&self) -> Request {
        let target = || self.paths.first().map_or(Point::MIN, |lookup| *lookup.target());
        match &self.goal {
            Goal::Providers(search) => Request::FindProviders {
                key: search.key,
                after: None,
            },
            Goal::Nodes | Goal::Publish(_) | Goal::Join | Goal::Refresh | Goal::Meet => {
                Request::FindNode { target: target() }
            }
        }
    }

    /// Counts a page of `peer`'s list; the key when another may be asked for.
    fn next_page(&mut self, peer: &NodeId, most: usize) -> Option<ServiceKey> {
        let Goal::Providers(search) = &mut self.goal else {
            return None;
        };
        let given = search.given.entry(*peer).or_default();
        given.pages += 1;
        (given.pages < MAX_PAGES && given.records < most).then_some(search.key)
    }

    /// The closest that answered on any path.
    fn closest(&self) -> Vec<Contact> {
        if let [lookup] = &self.paths[..] {
            return lookup.closest().cloned().collect();
        }
        let target = self.paths.first().map_or(Point::MIN, |lookup| *lookup.target());
        let mut all: Vec<_> = self.paths.iter().flat_map(Lookup::closest).cloned().collect();
        all.sort_by_cached_key(|contact| Point::from(contact.node_id()).distance(&target));
        all.dedup_by(|a, b| a.node_id() == b.node_id());
        all.truncate(K);
        all
    }
}

impl Search {
    fn into_result(self) -> Vec<VerifiedProvider> {
        let mut live: Vec<_> = self
            .found
            .into_values()
            .map(|found| found.record)
            .filter(|record| !record.is_withdrawn())
            .collect();
        live.sort_by_cached_key(|record| self.key.rank(record.node_id()));
        live
    }
}

/// The provider an unverified record names.
fn peek_node(record: &SignedProvider) -> Option<NodeId> {
    crate::message::peek(&record.body).map(|peek| peek.node)
}
