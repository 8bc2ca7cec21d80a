//! The attempts of one call that are under way: a first one, and the one that a hedge puts beside it.
//!
//! Both belong to the call's own future and no task is spawned, so a dropped call takes them with it.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::Poll,
    time::Instant,
};

use macula_select::AttemptId;

/// What is known of a flight beside its work.
#[derive(Clone, Copy)]
struct Ticket {
    attempt: AttemptId,
    until: Instant,
}

/// The flights of a call.
pub(super) struct Flights<F> {
    work: [Option<F>; 2],
    tickets: [Option<Ticket>; 2],
}

impl<F: Future + Unpin> Flights<F> {
    /// No flights.
    pub(super) fn new() -> Self {
        Self {
            work: [None, None],
            tickets: [None; 2],
        }
    }

    /// Starts an attempt, whose work ends by itself at `until`.
    pub(super) fn launch(&mut self, attempt: AttemptId, until: Instant, work: F) {
        let free = self.tickets.iter().position(Option::is_none);
        debug_assert!(free.is_some(), "a call has two attempts under way at most");
        if let Some(at) = free {
            self.tickets[at] = Some(Ticket { attempt, until });
            self.work[at] = Some(work);
        }
    }

    /// Gives an attempt up: its work is dropped, which tells the provider.
    pub(super) fn abort(&mut self, attempt: AttemptId) {
        for (ticket, work) in self.tickets.iter_mut().zip(&mut self.work) {
            if ticket.take_if(|it| it.attempt == attempt).is_some() {
                *work = None;
            }
        }
    }

    /// When the first of them ends by itself; `None` when there is none.
    pub(super) fn until(&self) -> Option<Instant> {
        self.tickets.iter().flatten().map(|it| it.until).min()
    }

    /// The first that ends; never when there is none.
    pub(super) fn next(&mut self) -> impl Future<Output = (AttemptId, F::Output)> {
        poll_fn(|cx| {
            for (place, work) in self.tickets.iter_mut().zip(&mut self.work) {
                let (Some(ticket), Some(running)) = (*place, work.as_mut()) else {
                    continue;
                };
                if let Poll::Ready(outcome) = Pin::new(running).poll(cx) {
                    *place = None;
                    *work = None;
                    return Poll::Ready((ticket.attempt, outcome));
                }
            }
            Poll::Pending
        })
    }
}
