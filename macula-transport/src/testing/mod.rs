//! A network in memory, for tests and simulations: endpoints on it exchange their datagrams without a socket.
//!
//! Everything above the socket is the real code: QUIC and its handshake, lanes, streams, the pool and its health checks. What
//! this replaces is the kernel and the wire: which datagram arrives, when, and how often, is drawn from a seed.
//!
//! **Time** is tokio's. In a paused runtime (`#[tokio::test(start_paused = true)]`) nothing is waited for: when every task waits,
//! the clock jumps to the next timer or arrival. Tokio's timers count milliseconds, so there a datagram arrives at a whole one.
//!
//! **The same seed repeats**, in a paused current-thread runtime, the time, source, destination, length and fate of every datagram, and
//! everything that follows from them; [`Network::trace_hash`] is equal. The bytes and the connection ids differ, because the keys of a
//! connection are fresh each time. The test itself must repeat its identities and its handlers' work.
//!
//! ```
//! use std::time::Duration;
//! use macula_transport::{Config, Endpoint, Identity, NoService, testing::{LinkConditions, Network}};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let network = Network::new(7).with_link(LinkConditions::new(Duration::from_millis(30)).with_loss(0.01));
//! let a = Endpoint::bind(Config::new(Identity::generate()?).with_network(&network), NoService).await?;
//! let b = Endpoint::bind(Config::new(Identity::generate()?).with_network(&network), NoService).await?;
//!
//! let connection = a.pool().get(&b.node_id(), &[b.local_addr().try_into()?]).await?;
//! network.kill(b.local_addr());
//! # Ok(())
//! # }
//! ```
//!
//! **Faults** are of links (loss, duplicates, reordering, corruption, bandwidth), of ways (cuts, in one direction or both, and
//! partitions) and of hosts: [off](Network::kill), with their [process killed](Network::kill_process), [paused](Network::pause), or
//! [moved](Network::move_host) to another address.
//!
//! Left out: fragmentation.

mod link;
mod network;
mod path;
mod socket;
mod trace;

pub use link::LinkConditions;
pub use network::{MAX_HOSTS, MAX_IN_FLIGHT, Network};
pub use path::MAX_QUEUE;
pub(crate) use socket::MemorySocket;
pub use trace::Traffic;

#[cfg(test)]
mod bulk_tests;
#[cfg(test)]
mod call_tests;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod liveness_tests;
#[cfg(test)]
mod tests;
