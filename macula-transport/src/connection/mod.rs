//! A connection: QUIC streams that carry frames, what is under way on them, and how it ends. It knows neither calls nor the pool.

pub(crate) mod congestion;
pub(crate) mod control;
mod flight;
pub(crate) mod gate;
mod health;
pub(crate) mod link;
mod membership;
pub(crate) mod pulse;
pub(crate) mod room;
pub(crate) mod shared;
pub(crate) mod snapshot;
pub(crate) mod standstill;
pub(crate) mod stream;
mod suspicion;
pub(crate) mod watch;
