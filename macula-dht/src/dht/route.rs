//! The ways between the cores: each output of one is an input of another, or leaves the node.

use std::time::Instant;

use macula_wire::{NodeId, RecordError, Signer, VerifiedProvider};

use super::{
    Dht,
    checks::Checks,
    exchange::Inflight,
    joining::JoinOutput,
    publisher::PublisherOutput,
    purpose::{Errand, JobId, Purpose},
    queries::{Answer, Goal, QueryOutput},
};
use crate::{
    Backend, Contact, Declined, Event, Insertion, Outcome, Output, Point, QueryId, Refusal, Reply, Request,
    RequestFailed, RequestId, Response, Role,
};

/// A peer's reply, without the records that are checked.
#[derive(Debug)]
pub struct Received(Rest);

#[derive(Debug)]
enum Rest {
    /// To a step of a lookup.
    Step(Answer),
    /// To a publication.
    Store {
        job: JobId,
        contact: Contact,
        outcome: Option<Outcome>,
    },
}

impl<S: Signer, B: Backend> Dht<S, B> {
    /// Takes the end of a request: the peer's reply, or why there is none. Signatures in it are checked at once; a shell that has other
    /// tasks calls [`Dht::begin_response`].
    ///
    /// A number that nothing waits for, or no longer, changes nothing.
    pub fn handle_response(&mut self, now: Instant, id: RequestId, result: Result<Reply, RequestFailed>) {
        if let Some(checks) = self.begin_response(now, id, result) {
            self.finish_response(now, checks);
        }
    }

    /// Like [`Dht::handle_response`], but leaves the signature checks to the caller: run them on another task, then call
    /// [`Dht::finish_response`], for which a lookup waits. There are at most
    /// [`MAX_CHECKS_PER_ANSWER`](crate::MAX_CHECKS_PER_ANSWER).
    pub fn begin_response(
        &mut self,
        now: Instant,
        id: RequestId,
        result: Result<Reply, RequestFailed>,
    ) -> Option<Checks<Received>> {
        let Some(inflight) = self.exchange.end(id) else {
            self.counters.unexpected += 1;
            return None;
        };
        let checks = match result {
            Ok(reply) => self.on_reply(now, inflight, reply),
            Err(RequestFailed::NotSent) => {
                self.not_sent(now, inflight);
                None
            }
            Err(RequestFailed::Unreachable | RequestFailed::Lost | RequestFailed::TimedOut) => {
                self.fail(now, inflight);
                None
            }
        };
        self.route(now);
        checks
    }

    /// Takes a reply whose records were checked. Those that were not are checked now.
    pub fn finish_response(&mut self, now: Instant, checks: Checks<Received>) {
        let (received, checked) = checks.finish();
        self.on_checked(now, received, checked);
        self.route(now);
    }

    fn on_reply(
        &mut self,
        now: Instant,
        inflight: Inflight,
        Reply { response, role, ip }: Reply,
    ) -> Option<Checks<Received>> {
        match response {
            Ok(response) if response.answers(inflight.expects) => {
                self.counters.answered += 1;
                let contact = match ip {
                    Some(ip) => inflight.to.observed_at(ip),
                    None => inflight.to,
                };
                return self.on_answer(now, contact, inflight.purpose, response, role);
            }
            // The peer is there, but busy or of another version. That is no reason to forget it, and no answer either.
            Ok(Response::Declined(Declined::RateLimited)) => {
                self.counters.failed += 1;
                self.local.table.note_answer(now, inflight.to.node_id());
                if let Purpose::Store(job) = inflight.purpose {
                    let busy = Some(Outcome::Refused(Refusal::Busy));
                    self.publisher
                        .handle_outcome(&mut self.local, now, job, inflight.to, busy);
                } else {
                    self.end(now, inflight);
                }
            }
            Ok(_) | Err(_) => {
                self.counters.misbehaved += 1;
                self.fail(now, inflight);
            }
        }
        None
    }

    /// A peer answered as asked.
    fn on_answer(
        &mut self,
        now: Instant,
        contact: Contact,
        purpose: Purpose,
        response: Response,
        role: Role,
    ) -> Option<Checks<Received>> {
        self.welcome(now, &contact, role, purpose);
        let (rest, unchecked) = match (purpose, response) {
            (Purpose::Step(step), response) => {
                let (answer, selection) = self.queries.handle_answer(&self.local, step, contact, response)?;
                let unchecked = selection.map(|selection| (selection.key, selection.unknown));
                (Rest::Step(answer), unchecked)
            }
            (Purpose::Store(job), response) => {
                let (outcome, newer) = match response {
                    Response::Published { outcomes, newer } => (outcomes.first().copied(), newer.into_iter().next()),
                    Response::Pong | Response::Nodes(_) | Response::Providers { .. } | Response::Declined(_) => {
                        (None, None)
                    }
                };
                let unchecked = newer.and_then(|newer| {
                    let key = self.publisher.wants_newer(&self.local, job, &newer)?;
                    Some((key, vec![newer]))
                });
                (Rest::Store { job, contact, outcome }, unchecked)
            }
            (Purpose::HandOver, Response::Published { outcomes, .. }) => {
                let stored = outcomes.iter().filter(|outcome| **outcome == Outcome::Stored).count();
                self.counters.handed_over += stored as u64;
                return None;
            }
            (Purpose::Probe, _) => {
                self.probes.end(contact.node_id());
                return None;
            }
            (Purpose::Check | Purpose::HandOver, _) => return None,
        };
        let received = Received(rest);
        match unchecked {
            Some((key, records)) if !records.is_empty() => Some(Checks::new(&self.local, now, key, records, received)),
            Some(_) | None => {
                self.on_checked(now, received, Vec::new());
                None
            }
        }
    }

    /// The records of a reply are checked.
    fn on_checked(
        &mut self,
        now: Instant,
        Received(rest): Received,
        checked: Vec<Result<VerifiedProvider, RecordError>>,
    ) {
        match rest {
            Rest::Step(answer) => {
                let peer = *answer.peer();
                if !self.queries.handle_checked(&mut self.local, now, answer, checked) {
                    // It answered, but with lies.
                    self.counters.misbehaved += 1;
                    self.denounce(now, peer);
                    self.local.note_failure(&peer);
                }
            }
            Rest::Store { job, contact, outcome } => {
                for newer in checked {
                    if let Ok(newer) = self.local.confirm(now, newer) {
                        self.publisher.handle_newer(job, &newer);
                    }
                }
                self.publisher
                    .handle_outcome(&mut self.local, now, job, contact, outcome);
            }
        }
    }

    /// A peer answered a request of this node: it may enter the routing table.
    fn welcome(&mut self, now: Instant, contact: &Contact, role: Role, purpose: Purpose) {
        if role == Role::Client {
            return;
        }
        let stale_after = self.local.config.stale_after;
        let insertion = self.local.table.insert(now, contact.clone(), stale_after);
        // A stranger may have to wait for a place in the table, and still be responsible for records that are held here.
        if insertion == Insertion::Added || purpose == Purpose::Probe {
            self.local.ways_in.forget(contact.node_id());
            self.keeper.note_contacts(&self.local, now);
            self.handovers.plan(&self.local, now, contact);
        }
        match insertion {
            Insertion::Waiting { ping: Some(oldest) } => self.send(now, oldest, Purpose::Check, Request::Ping),
            Insertion::Added | Insertion::Refreshed | Insertion::Refused | Insertion::Waiting { ping: None } => {}
        }
    }

    /// Fails requests that have waited too long, and lets lookups ask other nodes where one is slow.
    pub(super) fn time_out_requests(&mut self, now: Instant) {
        let tick = self.local.tick(now);
        while let Some(inflight) = self.exchange.next_timed_out(tick) {
            self.fail(now, inflight);
            self.route(now);
        }
        while let Some((purpose, node)) = self.exchange.next_overdue(tick) {
            match purpose {
                Purpose::Step(step) => self.queries.handle_overdue(&mut self.local, now, step, &node),
                Purpose::Store(_) | Purpose::Probe | Purpose::Check | Purpose::HandOver => {}
            }
            self.route(now);
        }
    }

    /// A request was not answered: the table and the core that waits for it hear of it.
    fn fail(&mut self, now: Instant, inflight: Inflight) {
        self.counters.failed += 1;
        self.local.note_failure(inflight.to.node_id());
        self.end(now, inflight);
    }

    /// A request never left this node, which says nothing about the peer.
    fn not_sent(&mut self, now: Instant, inflight: Inflight) {
        self.counters.not_sent += 1;
        let node = inflight.to.node_id();
        match inflight.purpose {
            Purpose::Step(step) => self.queries.handle_not_sent(&mut self.local, now, step, node),
            Purpose::Check => self.local.table.note_unasked(node),
            Purpose::Store(_) | Purpose::Probe | Purpose::HandOver => self.end(now, inflight),
        }
    }

    /// A request ended without an answer.
    fn end(&mut self, now: Instant, Inflight { to, purpose, .. }: Inflight) {
        let local = &mut self.local;
        match purpose {
            Purpose::Step(step) => self.queries.handle_failure(local, now, step, to.node_id()),
            Purpose::Store(job) => self.publisher.handle_outcome(local, now, job, to, None),
            Purpose::Probe => self.probes.end(to.node_id()),
            Purpose::Check | Purpose::HandOver => {}
        }
    }

    pub(super) fn send(&mut self, now: Instant, to: Contact, purpose: Purpose, request: Request) {
        let for_peer = match purpose {
            Purpose::Step(step) => self.peer_lookups.network(step.query),
            Purpose::Store(_) | Purpose::Probe | Purpose::Check | Purpose::HandOver => None,
        };
        if let (Purpose::Step(step), Some(network)) = (purpose, for_peer)
            && !self.exchange.admits(network)
        {
            self.counters.not_sent += 1;
            return self.queries.handle_not_sent(&mut self.local, now, step, to.node_id());
        }
        self.counters.sent += 1;
        let tick = self.local.tick(now);
        let id = self.exchange.begin(tick, to.clone(), purpose, &request, for_peer);
        self.outputs.push_back(Output::Send { id, to, request });
    }

    /// Asks a node whether it answers, unless it is being asked.
    pub(super) fn probe(&mut self, now: Instant, contact: Contact) {
        if self.probes.begin(&contact) {
            self.send(now, contact, Purpose::Probe, Request::Ping);
        }
    }

    /// Tells of a peer's record that proves nothing.
    pub(super) fn denounce(&mut self, now: Instant, peer: NodeId) {
        if self.named.is_new(peer, now) {
            let times = self.counters.misbehaved + self.counters.unproven;
            self.report(Event::Misbehaved { peer, times });
        }
    }

    pub(super) fn report(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    /// Performs the outputs of the cores until there is none.
    pub(super) fn route(&mut self, now: Instant) {
        loop {
            if let Some(output) = self.publisher.poll_output() {
                self.perform_publisher(now, output);
            } else if let Some(output) = self.queries.poll_output() {
                self.perform_query(now, output);
            } else if let Some(output) = self.joining.poll_output() {
                self.perform_join(now, output);
            } else {
                break;
            }
        }
        self.keeper.note_changes(&self.local, now);
    }

    fn perform_publisher(&mut self, now: Instant, output: PublisherOutput) {
        match output {
            PublisherOutput::LookUp { job, targets } => {
                let goal = || Goal::Errand(Errand::Publish(job));
                let (queries, local) = (&mut self.queries, &mut self.local);
                let started = targets
                    .into_iter()
                    .map_while(|target| queries.start(local, now, target, goal()).ok());
                let started: Vec<_> = started.collect();
                self.publisher.handle_lookups(local, now, job, &started);
                for query in started {
                    self.queries.pump(&mut self.local, now, query);
                }
            }
            PublisherOutput::DropLookup(query) => self.queries.drop_errand(query),
            PublisherOutput::Store { job, to, key, record } => {
                let records = vec![record];
                self.send(now, to, Purpose::Store(job), Request::Publish { key, records });
            }
            PublisherOutput::Event(event) => self.report(event),
        }
    }

    fn perform_query(&mut self, now: Instant, output: QueryOutput) {
        match output {
            QueryOutput::Ask { step, to, request } => self.send(now, to, Purpose::Step(step), request),
            QueryOutput::Event(event) => {
                if let Event::Finished { query, .. } = &event {
                    self.peer_lookups.end(*query);
                }
                self.report(event);
            }
            QueryOutput::Done {
                query,
                errand,
                lookup,
                answered,
                not_sent,
            } => {
                let local = &mut self.local;
                match errand {
                    Errand::Publish(job) => self
                        .publisher
                        .handle_lookup_done(local, now, job, query, &lookup, not_sent),
                    Errand::Join => self.joining.handle_lookup_done(local, now, answered),
                    Errand::Refresh => self.joining.handle_refreshed(local, true),
                    Errand::Meet => {}
                }
            }
        }
    }

    fn perform_join(&mut self, now: Instant, output: JoinOutput) {
        match output {
            JoinOutput::Identify { id, address } => self.outputs.push_back(Output::Identify { id, address }),
            JoinOutput::LookUp { through } => {
                let query = self.start_errand(now, self.local.own.into(), Errand::Join, through);
                self.joining.handle_lookup(&self.local, now, query);
                self.pump(now, query);
            }
            JoinOutput::Widen { query, through } => {
                self.queries.add(query, through);
                self.pump(now, Some(query));
            }
            JoinOutput::Meet { through } => {
                // When there is no room for a lookup, the next round of maintenance tries again.
                let query = self.start_errand(now, self.local.own.into(), Errand::Meet, through);
                self.pump(now, query);
            }
            JoinOutput::Refresh { target } => match self.start_errand(now, target, Errand::Refresh, Vec::new()) {
                Some(query) => self.pump(now, Some(query)),
                None => self.joining.handle_refreshed(&self.local, false),
            },
            JoinOutput::Probe(contact) => self.probe(now, contact),
            JoinOutput::Joined { contacts } => {
                self.report(Event::Joined { contacts });
                if contacts > 0 {
                    self.publisher.publish_unheld(&mut self.local, now);
                }
            }
            JoinOutput::Failed { retry_in } => self.report(Event::JoinFailed { retry_in }),
        }
    }

    fn start_errand(&mut self, now: Instant, target: Point, errand: Errand, through: Vec<Contact>) -> Option<QueryId> {
        let goal = Goal::Errand(errand);
        let query = self.queries.start(&mut self.local, now, target, goal).ok()?;
        self.queries.add(query, through);
        Some(query)
    }

    fn pump(&mut self, now: Instant, query: Option<QueryId>) {
        if let Some(query) = query {
            self.queries.pump(&mut self.local, now, query);
        }
    }
}
