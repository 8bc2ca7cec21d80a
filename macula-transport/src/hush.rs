//! Keeps a peer from filling the log.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use macula_wire::{Named, NodeId};

/// How far apart two messages are.
const EVERY: Duration = Duration::from_secs(1);

/// Lets one message a second through, and counts the ones between.
#[derive(Debug, Default)]
pub struct Hush(Mutex<(Option<Instant>, u64)>);

impl Hush {
    /// Calls `say` with the number of messages that were not said since the last one, at most once a second.
    pub fn say(&self, say: impl FnOnce(u64)) {
        let now = tokio::time::Instant::now().into_std();
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state.0 {
            Some(last) if now < last + EVERY => state.1 += 1,
            _ => {
                let unsaid = std::mem::take(&mut state.1);
                state.0 = Some(now);
                drop(state);
                say(unsaid);
            }
        }
    }
}

/// One [`Hush`] for each kind of message about peers and their grants: a peer that causes one kind hides no other. Callers whose calls
/// are denied are members with a name, so each of them is named.
#[derive(Debug, Default)]
pub(crate) struct Hushes {
    /// The callers that made calls without right.
    denied: Mutex<Named>,
    /// A peer was turned away.
    pub(crate) turned_away: Hush,
    /// A connection ended with its peer's grant.
    pub(crate) ended: Hush,
    /// A peer's renewed grant is not valid.
    pub(crate) renewals: Hush,
}

impl Hushes {
    /// Whether a caller whose call is denied is to be named.
    pub(crate) fn names_denied(&self, caller: NodeId) -> bool {
        let now = tokio::time::Instant::now().into_std();
        let mut denied = self.denied.lock().unwrap_or_else(PoisonError::into_inner);
        denied.is_new(caller, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_message_a_second_is_said_and_the_others_are_counted() {
        let (hush, mut said) = (Hush::default(), Vec::new());
        for _ in 0..25 {
            hush.say(|unsaid| said.push(unsaid));
            tokio::time::advance(EVERY / 10).await;
        }
        assert_eq!(said, [0, 9, 9]);
    }
}
