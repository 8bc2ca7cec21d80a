#![doc = include_str!("../README.md")]

mod batching;
mod call;
mod caller;
mod codec;
mod config;
mod congestion;
mod connection;
mod drive;
mod endpoint;
mod error;
mod flight;
mod frame;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod gate;
mod handler;
mod handshake;
mod health;
mod hello;
mod identity;
mod lane;
mod load;
mod memory;
mod metadata;
mod network;
mod outbox;
mod outcome;
mod peer;
mod pool;
mod quic;
mod report;
mod serve;
mod stats;
mod stream;
mod streaming;
mod successor;
#[cfg(feature = "testing")]
pub mod testing;
mod tls;

pub use call::{CallParts, CallReply, CallRequest, IncomingCall, Repeat, Reply, Route};
pub use config::{
    Config, KeyExchange, Limits, MAX_HEAD_BYTES, MAX_METADATA_ENTRIES, MAX_MOVED_REPLIES, MAX_REQUEST_BYTES,
    PoolConfig, Timers,
};
pub use connection::Connection;
pub use endpoint::Endpoint;
pub use error::{
    BindError, CallError, CloseCode, DialError, HelloError, Lost, NotSent, Pushback, RequestError, TlsError, Unknown,
};
pub use handler::{Handler, NoService, Protocol};
pub use identity::{Identity, IdentityError};
pub use metadata::Metadata;
pub use peer::{PeerInfo, Role};
pub use pool::{FoundConnection, Pool, PoolEvent, PoolEvents, PoolStats};
pub use report::LoadReport;
pub use stats::Stats;
pub use streaming::{CallKind, CallStream, Gone, IncomingMessages, OutgoingMessages, Replies, Requests};
pub use successor::{Succession, SuccessionError};
