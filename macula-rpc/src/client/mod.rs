//! The caller's side: one line, one result.
//!
//! A call tries in this order: a handler of this process; the providers that the directory's cache or the directory itself gives; and,
//! when the directory gives no answer, a router that this node is connected to.
//!
//! `call.rs` has the order, `driver.rs` drives the attempts of one call, `attempt.rs` makes one, `duplex.rs` opens streams, and `local.rs`
//! runs calls in this process.

mod answer;
mod attempt;
mod builder;
mod call;
mod called;
mod driver;
mod duplex;
mod forward;
mod link_state;
mod links;
mod local;
mod look;
mod news;
mod options;
mod refresh;
mod replay;
mod services;
mod shared;
mod verdict;
mod watch;

pub use answer::{Answer, AnswerSource};
pub use builder::{CallBuilder, ClientBuilder};
pub use called::{CalledProvider, CalledService};
pub use duplex::Replies;
pub use news::{ClientEvent, ClientEvents, MAX_CLIENT_EVENTS};
#[cfg(feature = "tonic")]
pub(crate) use options::Options;
pub use options::{DEFAULT_ATTEMPT_TIMEOUT, DEFAULT_TIMEOUT};
pub use replay::MAX_REPLAY_BYTES;
pub use services::MAX_SERVICES;
pub(crate) use shared::WeakClient;
pub use shared::{Client, Routers};
