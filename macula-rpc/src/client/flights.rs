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

/// The flights of a call: one in a place that its owner pins beside the rest of its state, and a second one, which few calls
/// have, on the heap.
pub(super) struct Flights<'p, F> {
    first: Pin<&'p mut Option<F>>,
    second: Option<Pin<Box<F>>>,
    tickets: [Option<Ticket>; 2],
}

impl<'p, F: Future> Flights<'p, F> {
    /// No flights; the place is for the first.
    pub(super) fn new(first: Pin<&'p mut Option<F>>) -> Self {
        Self {
            first,
            second: None,
            tickets: [None; 2],
        }
    }

    /// Starts an attempt, whose work ends by itself at `until`. The work is made where it is kept, not moved there.
    #[inline]
    pub(super) fn launch(&mut self, attempt: AttemptId, until: Instant, work: impl FnOnce() -> F) {
        let ticket = Some(Ticket { attempt, until });
        match &mut self.tickets {
            [first @ None, _] => {
                *first = ticket;
                self.first.set(Some(work()));
            }
            [Some(_), second] => {
                debug_assert!(second.is_none(), "a call has two attempts under way at most");
                *second = ticket;
                self.second = Some(Box::pin(work()));
            }
        }
    }

    /// Gives an attempt up: its work is dropped, which tells the provider.
    pub(super) fn abort(&mut self, attempt: AttemptId) {
        let [first, second] = &mut self.tickets;
        if first.take_if(|it| it.attempt == attempt).is_some() {
            self.first.set(None);
        }
        if second.take_if(|it| it.attempt == attempt).is_some() {
            self.second = None;
        }
    }

    /// When the first of them ends by itself; `None` when there is none.
    pub(super) fn until(&self) -> Option<Instant> {
        self.tickets.iter().flatten().map(|it| it.until).min()
    }

    /// The first that ends; never when there is none.
    pub(super) fn next(&mut self) -> impl Future<Output = (AttemptId, F::Output)> {
        poll_fn(|cx| {
            let [first, second] = &mut self.tickets;
            if let Some(work) = self.first.as_mut().as_pin_mut()
                && let Poll::Ready(outcome) = work.poll(cx)
            {
                self.first.set(None);
                return landed(first, outcome);
            }
            if let Some(work) = &mut self.second
                && let Poll::Ready(outcome) = work.as_mut().poll(cx)
            {
                self.second = None;
                return landed(second, outcome);
            }
            Poll::Pending
        })
    }
}

fn landed<T>(ticket: &mut Option<Ticket>, outcome: T) -> Poll<(AttemptId, T)> {
    match ticket.take() {
        Some(ticket) => Poll::Ready((ticket.attempt, outcome)),
        None => unreachable!("a flight has a ticket from its launch to its end"),
    }
}
