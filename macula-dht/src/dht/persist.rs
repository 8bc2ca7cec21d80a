//! What goes to the backend and comes back from it.

use std::time::Instant;

use macula_wire::Signer;

use super::Dht;
use crate::Backend;

impl<S: Signer, B: Backend> Dht<S, B> {
    pub(super) fn restore(&mut self, _now: Instant) {}

    pub(super) fn touch_backend(&mut self, _now: Instant) {}

    pub(super) fn commit(&mut self, _now: Instant) {}
}
