//! Requests out, replies in: numbers, timeouts, and who hears of the end.

use std::time::Instant;

use macula_wire::Signer;

use super::{Dht, publish::JobId};
use crate::{
    Backend, Contact, Declined, Insertion, Outcome, Output, QueryId, Refusal, Reply, Request, RequestFailed, RequestId,
    Response, Role,
    clock::{Tick, nanos},
    message::Answer,
};

/// Why a request was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A step of a lookup, on one of its paths.
    Step { query: QueryId, path: u8, hop: u8 },
    /// Storing a record for a job.
    Store { job: JobId },
    /// A stranger asked something; does it answer too?
    Probe,
    /// An entry that may have to give way to a newcomer.
    Check,
    /// Records for a node that is newly among the closest.
    HandOver,
}

/// A request that waits for an answer.
#[derive(Debug)]
pub(super) struct Inflight {
    pub(super) to: Contact,
    pub(super) purpose: Purpose,
    expects: Answer,
    pub(super) sent: Tick,
}

impl<S: Signer, B: Backend> Dht<S, B> {
    pub(super) fn send(&mut self, now: Instant, to: Contact, purpose: Purpose, request: Request) {
        let id = self.next_request();
        let sent = self.clock.tick(now);
        self.counters.sent += 1;
        self.inflight.insert(
            id,
            Inflight {
                to: to.clone(),
                purpose,
                expects: request.expects(),
                sent,
            },
        );
        self.outputs.push_back(Output::Send { id, to, request });
    }

    pub(super) fn next_request(&mut self) -> RequestId {
        let id = RequestId(self.next_request);
        self.next_request += 1;
        id
    }

    /// Takes the end of a request: the peer's reply, or why there is none.
    ///
    /// A number that nothing waits for, or no longer, changes nothing.
    pub fn handle_response(&mut self, now: Instant, id: RequestId, result: Result<Reply, RequestFailed>) {
        let Some(inflight) = self.inflight.remove(&id) else {
            self.counters.unexpected += 1;
            return;
        };
        let Ok(Reply { response, role, ip }) = result else {
            return self.fail(now, inflight);
        };
        match response {
            Ok(response) if response.answers(inflight.expects) => {
                self.counters.answered += 1;
                let Inflight { to, purpose, .. } = inflight;
                let contact = match ip {
                    Some(ip) => to.observed_at(ip),
                    None => to,
                };
                self.on_answer(now, contact, purpose, response, role);
            }
            // It is there, but busy or of another version: no reason to forget it, and no answer either.
            Ok(Response::Declined(Declined::RateLimited)) => {
                self.counters.failed += 1;
                self.table.note_answer(now, inflight.to.node_id());
                if let Purpose::Store { job } = inflight.purpose {
                    let busy = Outcome::Refused(Refusal::Busy);
                    return self.on_stored(now, job, inflight.to, Some(busy));
                }
                self.end(now, inflight);
            }
            Ok(_) | Err(_) => {
                self.counters.misbehaved += 1;
                self.fail(now, inflight);
            }
        }
    }

    /// A peer answered as asked.
    fn on_answer(&mut self, now: Instant, contact: Contact, purpose: Purpose, response: Response, role: Role) {
        self.welcome(now, contact.clone(), role, purpose);
        match (purpose, response) {
            (Purpose::Step { query, path, hop }, response) => {
                if !self.on_step_answer(now, query, path, hop, &contact, response) {
                    // It answered, but with lies.
                    self.counters.misbehaved += 1;
                    self.note_failure(&contact);
                }
            }
            (Purpose::Store { job }, Response::Published(outcomes)) => {
                let outcome = outcomes.first().copied().unwrap_or(Outcome::Refused(Refusal::Unknown));
                self.on_stored(now, job, contact, Some(outcome));
            }
            (Purpose::Store { job }, _) => self.on_stored(now, job, contact, None),
            (Purpose::HandOver, Response::Published(outcomes)) => {
                let stored = outcomes.iter().filter(|outcome| **outcome == Outcome::Stored).count();
                self.counters.handed_over += stored as u64;
            }
            (Purpose::Probe, _) => {
                self.probing.remove(contact.node_id());
            }
            (Purpose::Check | Purpose::HandOver, _) => {}
        }
    }

    /// Fails what has waited too long, and lets lookups ask others where somebody is slow.
    pub(super) fn time_out_requests(&mut self, now: Instant) {
        let tick = self.clock.tick(now);
        let hard = nanos(self.config.hard_timeout);
        while let Some(first) = self.inflight.first_entry()
            && first.get().sent + hard <= tick
        {
            let inflight = first.remove();
            self.fail(now, inflight);
        }
        let soft = nanos(self.config.soft_timeout);
        while let Some((&id, inflight)) = self.inflight.range(self.soft_from..).next()
            && inflight.sent + soft <= tick
        {
            self.soft_from = RequestId(id.0 + 1);
            if let Purpose::Step { query, path, .. } = inflight.purpose {
                let node = *inflight.to.node_id();
                self.on_step_overdue(now, query, path, &node);
            }
        }
    }

    /// A request was not answered: the table and whoever waits for it hear of it.
    fn fail(&mut self, now: Instant, inflight: Inflight) {
        self.counters.failed += 1;
        self.note_failure(&inflight.to);
        self.end(now, inflight);
    }

    fn end(&mut self, now: Instant, inflight: Inflight) {
        match inflight.purpose {
            Purpose::Step { query, path, .. } => self.on_step_failure(now, query, path, inflight.to.node_id()),
            Purpose::Store { job } => self.on_stored(now, job, inflight.to, None),
            Purpose::Probe => {
                self.probing.remove(inflight.to.node_id());
            }
            Purpose::Check | Purpose::HandOver => {}
        }
    }

    fn note_failure(&mut self, contact: &Contact) {
        if let Some(gone) = self.table.note_failure(contact.node_id()) {
            self.joining.remember(gone);
        }
    }

    /// A peer answered a request of ours: it may enter the routing table.
    fn welcome(&mut self, now: Instant, contact: Contact, role: Role, purpose: Purpose) {
        if role == Role::Client {
            return;
        }
        let insertion = self.table.insert(now, contact.clone(), self.config.stale_after);
        // A stranger may have to wait for a place here, and still have to hold what is held here.
        if insertion == Insertion::Added || purpose == Purpose::Probe {
            self.on_neighbour(now, &contact);
        }
        match insertion {
            Insertion::Waiting { ping: Some(oldest) } => self.send(now, oldest, Purpose::Check, Request::Ping),
            Insertion::Added | Insertion::Refreshed | Insertion::Refused | Insertion::Waiting { ping: None } => {}
        }
    }
}
