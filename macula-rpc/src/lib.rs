#![doc = include_str!("../README.md")]

mod allow;
mod client;
mod codec;
#[cfg(feature = "dns")]
mod dns;
mod error;
pub mod guide;
mod handler;
mod keyed;
mod limit;
mod observe;
mod request;
mod resolve;
mod server;
mod status;
mod streaming;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "tonic")]
mod tonic;
#[cfg(feature = "tower")]
mod tower;
mod trace;

#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use self::tonic::fuzz_headers;
#[cfg(feature = "tonic")]
pub use self::tonic::{Channel, TonicServices};
#[cfg(feature = "tower")]
pub use self::tower::TowerHandler;
pub use allow::{Allowed, ServiceOptions};
pub use client::{
    Answer, AnswerSource, CallBuilder, CalledProvider, CalledService, Client, ClientBuilder, ClientEvent, ClientEvents,
    DEFAULT_ATTEMPT_TIMEOUT, DEFAULT_TIMEOUT, MAX_CLIENT_EVENTS, MAX_REPLAY_BYTES, MAX_SERVICES, Replies, Routers,
};
#[cfg(feature = "json")]
pub use codec::Json;
#[cfg(feature = "prost")]
pub use codec::Prost;
pub use codec::{CodecError, Decode, Encode, IntoResponse};
#[cfg(feature = "dns")]
pub use dns::{DnsError, DnsResolver, MAX_AGE};
pub use error::{Attempt, CallError, Cause};
pub use handler::{Handler, Typed, typed};
pub use limit::Limited;
pub use macula_select::{
    Backoff, BudgetConfig, Counts, EjectionReason, Event as BalancerEvent, Hedge, Link, ProviderState, RestoreReason,
    RetryPolicy, Spending, Stats as BalancerStats, StopReason, Strategy,
};
pub use macula_transport::{Metadata, Pushback};
pub use macula_wire::{Address, NameError, NodeId, ServiceName, StatusCode};
#[cfg(feature = "metrics")]
pub use observe::describe_metrics;
pub use observe::{CallStats, LATENCY_BUCKETS, Latency, MAX_METHODS};
pub use request::{Request, Response};
pub use resolve::{Asker, Provider, Resolve, ResolveError, ResolveOptions, Resolved, Source, StaticResolver};
pub use server::{DEFAULT_MAX_CONCURRENT_CALLS, Refusals, ServeError, Server};
pub use status::Status;
pub use streaming::{MAX_WHOLE_BYTES, ReplyStream, Requests, StreamHandler};
pub use trace::{Propagate, TRACEPARENT, TraceContext, W3c};
