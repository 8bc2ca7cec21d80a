//! A mesh in memory, for tests of what is built on this crate.
//!
//! A [`Mesh`] has nodes that serve and call each other by name. Lookup, choice, failover, streams, the connection pool and QUIC are the
//! real code; what is replaced is the wire, by a [`Network`] without sockets, and the directory, by one that knows the mesh's
//! nodes. In a paused tokio runtime nothing waits: a timeout of 30 s is over at once, and so is the time a killed node takes
//! to be noticed.
//!
//! ```
//! use std::time::Duration;
//!
//! use macula_rpc::{CallError, Cause, Request, Status, testing::Mesh};
//!
//! # let test = async {
//! // In a test of yours: #[tokio::test(start_paused = true)]
//! let mesh = Mesh::new(7);
//! for name in ["a", "b", "c"] {
//!     mesh.node(name).serve("text.upper", async |request: Request| {
//!         Ok::<_, Status>(request.payload().to_ascii_uppercase())
//!     });
//! }
//! let client = mesh.node("caller").client();
//! assert_eq!(client.call("text.upper", "hello").await?, "HELLO");
//!
//! // The directory still lists a killed provider, as it would for a while: failover is what answers.
//! mesh.kill("a");
//! mesh.cut("caller", "b");
//! for _ in 0..10 {
//!     assert_eq!(client.call("text.upper", "hello").await?, "HELLO");
//! }
//!
//! // Thirty seconds of silence, in no time.
//! mesh.node("d").serve("text.slow", async |_: Request| std::future::pending::<Result<String, Status>>().await);
//! let patient = client.request("text.slow").timeout(Duration::from_secs(30)).attempt_timeout(Duration::from_secs(30));
//! let error = patient.send("hello").await.unwrap_err();
//! assert!(matches!(error.attempts()[0].cause, Cause::TimedOut(_)), "{error}");
//!
//! // What was lost comes back.
//! mesh.heal();
//! mesh.restart("a");
//! assert_eq!(client.call("text.upper", "hello").await?, "HELLO");
//! # Ok::<(), CallError>(())
//! # };
//! # let mut runtime = tokio::runtime::Builder::new_current_thread();
//! # runtime.enable_time().start_paused(true).build().unwrap().block_on(test).unwrap();
//! ```
//!
//! Generated tonic clients and servers are on the mesh like everything else: `node.server().serve_tonic(…)`, and a
//! `Channel` of `node.client()`. So are streams.
//!
//! **The same seed** gives the same choices, delays and losses: [`Network`] says what is repeated, and
//! [`Network::trace_hash`] shows it. Nodes are known by their names, and a node's identity follows from its name and the seed.
//!
//! **A paused clock** moves only when every task of the runtime waits. A handler that waits for the world outside, a socket
//! or another process, sees timeouts pass before it is answered: leave the clock running there, or give the handler something
//! in memory.

mod directory;
mod mesh;
mod node;
#[cfg(test)]
mod tests;

pub use macula_transport::testing::{Link, Network, Traffic};
pub use mesh::Mesh;
pub use node::MeshNode;
