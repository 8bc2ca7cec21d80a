#![doc = include_str!("../README.md")]

mod access;
mod call;
mod config;
mod connection;
mod endpoint;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod heads;
mod hush;
mod identity;
mod load;
mod metadata;
mod peer;
mod pool;
mod report;
mod share;
mod stats;
#[cfg(feature = "testing")]
pub mod testing;

pub use access::{Access, UnixClock};
pub use call::{
    connection::{Connection, ConnectionEnd},
    handler::{Handler, NoService, Protocol},
    messages::{CallKind, IncomingMessages, OutgoingMessages},
    replies::{CallStream, Replies, Requests},
    reply::Gone,
    types::{CallParts, CallReply, CallRequest, IncomingCall, Repeat, Reply, Route},
};
pub use config::{Config, KeyExchange, Limits, MAX_MOVED_REPLIES, MAX_REQUEST_BYTES, PoolConfig, Timers};
pub use connection::{
    snapshot::{ConnectionStats, Opener},
    watch::{Presence, PresenceWatch},
};
pub use endpoint::{
    Endpoint,
    visit::{MAX_VISIT_BYTES, VisitError},
};
pub use error::{
    BindError, CallError, CloseCode, DialError, HelloError, Lost, NotSent, Pushback, RequestError, TlsError, Unknown,
};
pub use heads::{DEFAULT_HEAD_BYTES, DEFAULT_METADATA_ENTRIES, MAX_HEAD_BYTES, MAX_METADATA_ENTRIES};
pub use hush::Hush;
pub use identity::{
    Identity, IdentityError, private_file,
    successor::{Succession, SuccessionError},
};
pub use metadata::Metadata;
pub use peer::{PeerInfo, Role, Visitor};
pub use pool::{FoundConnection, Pool, PoolEvent, PoolEvents, PoolStats};
pub use report::LoadReport;
pub use share::{
    memory::{Memory, MemoryCharge, MemoryStats},
    places::PlaceStats,
};
pub use stats::Stats;
