//! A mesh in memory, for tests of programs that use this crate.
//!
//! The nodes of a [`Mesh`] serve and call each other by name. Lookup, choice, failover, streams, the connection pool and QUIC are the
//! production code. Only the wire is replaced, by a [`Network`] without sockets, and the directory, by a list of the mesh's nodes. In a
//! paused tokio runtime no test waits: a timeout of 30 s takes no time, nor does the detection of a killed node.
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
//! // The directory lists a killed provider for a while, so failover answers.
//! mesh.kill("a");
//! mesh.cut("caller", "b");
//! for _ in 0..10 {
//!     assert_eq!(client.call("text.upper", "hello").await?, "HELLO");
//! }
//!
//! // Thirty seconds of silence take no time.
//! mesh.node("d").serve("text.slow", async |_: Request| std::future::pending::<Result<String, Status>>().await);
//! let patient = client.request("text.slow").timeout(Duration::from_secs(30)).attempt_timeout(Duration::from_secs(30));
//! let error = patient.send("hello").await.unwrap_err();
//! assert!(matches!(error.attempts()[0].cause, Cause::TimedOut(_)), "{error}");
//!
//! // The lost nodes come back.
//! mesh.heal();
//! mesh.restart("a");
//! assert_eq!(client.call("text.upper", "hello").await?, "HELLO");
//! # Ok::<(), CallError>(())
//! # };
//! # let mut runtime = tokio::runtime::Builder::new_current_thread();
//! # runtime.enable_time().start_paused(true).build().unwrap().block_on(test).unwrap();
//! ```
//!
//! Streams work too, and generated tonic clients and servers: `node.server().serve_tonic(…)`, and a `Channel` of `node.client()`.
//!
//! **The same seed** gives the same choices, delays and losses: [`Network`] lists the details, and [`Network::trace_hash`] shows it. A
//! node's identity follows from its name and the seed.
//!
//! **A paused clock** moves only when every task of the runtime waits. A handler that waits for a socket or another process sees its
//! timeouts pass first: let the clock run in such a test, or replace the outside world by something in memory.

mod mesh;
mod node;
#[cfg(test)]
mod tests;

pub use macula_transport::testing::{LinkConditions, Network, Traffic};
pub use mesh::Mesh;
pub use node::MeshNode;
