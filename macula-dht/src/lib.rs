#![doc = include_str!("../README.md")]

mod backend;
mod cache;
mod clock;
mod config;
mod contact;
mod dht;
mod keyed;
mod limiter;
mod lookup;
mod message;
mod output;
mod point;
#[cfg(feature = "redb")]
mod redb;
mod rng;
mod size;
mod store;
mod table;

pub use backend::{Backend, BackendError, Change, Loaded, Memory, StoredContact, StoredRecord};
pub use cache::{CacheCounters, CacheLimits, Cached, DirectoryCache, Flight};
pub use clock::{Clock, DateError, MAX_CLOCK_SKEW};
pub use config::Config;
pub use contact::{Contact, Peer, Role, Seed};
pub use dht::{
    AdvertiseError, Begun, Checks, Counters, Dht, MAX_CHECKS_PER_ANSWER, MAX_JOBS, MAX_PEER_LOOKUPS, MAX_PEER_REQUESTS,
    MAX_QUERIES, MAX_SEEDS, PeerLookupError, Publication, Received, TooManyQueries,
};
pub use limiter::{PEER_LOOKUP_COST, RateLimits};
pub use lookup::{ALPHA, MAX_CANDIDATES, MAX_OUTSTANDING};
pub use message::{
    Declined, MAX_MESSAGE_BYTES, MAX_PUBLISH_RECORDS, MAX_REPLY_CONTACTS, MessageError, Outcome, Refusal, Request,
    Response,
};
pub use output::{Event, Output, QueryId, QueryResult, Reply, RequestFailed, RequestId, Stats, Want};
pub use point::{Distance, Point};
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use redb::fuzz_record;
#[cfg(feature = "redb")]
pub use redb::{Opened, RedbBackend};
pub use store::{InsertError, Inserted, Origin, ProviderStore, StoreLimits, Usage};
pub use table::{Diversity, Insertion, K, MAX_FAILURES, REPLACEMENTS, RoutingTable};
