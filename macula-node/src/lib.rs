#![doc = include_str!("../README.md")]

mod addresses;
mod bootstrap;
mod builder;
mod clocks;
mod data;
mod directory;
mod inspection;
mod node;

pub use bootstrap::{BootstrapAddr, MAX_BOOTSTRAP, ParseBootstrapError};
pub use builder::{NodeBuilder, StartError};
pub use bytes::Bytes;
#[cfg(feature = "testing")]
pub use clocks::SimulatedClock;
#[cfg(feature = "redb")]
pub use data::DataError;
pub use directory::{
    DirectoryStats, JoinCause, JoinError, JoinReport, ProviderRecord, PublishReport, TrustedPeer, WithdrawReport,
    WrongClock,
};
pub use macula_dht::{AdvertiseError, Refusal};
#[cfg(feature = "json")]
pub use macula_rpc::Json;
#[cfg(feature = "prost")]
pub use macula_rpc::Prost;
#[cfg(feature = "tower")]
pub use macula_rpc::TowerHandler;
pub use macula_rpc::{
    Answer, AnswerSource, Attempt, Backoff, BudgetConfig, CallBuilder, CallError, Cause, Client, ClientBuilder,
    Handler, Hedge, Limited, Metadata, Propagate, Provider, Pushback, Replies, Request, Requests, Response,
    RetryPolicy, Server, Source, Status, StatusCode, StopReason, Strategy, StreamHandler, TraceContext, W3c, typed,
};
#[cfg(feature = "tonic")]
pub use macula_rpc::{Channel, TonicServices};
#[cfg(feature = "dns")]
pub use macula_rpc::{DnsError, DnsResolver};
pub use macula_transport::{
    BindError, Config as TransportConfig, DialError, Identity, IdentityError, Limits, PeerInfo, PoolConfig, PoolStats,
    Timers,
};
pub use macula_wire::{Address, AddressError, MAX_ENDPOINTS, NameError, NodeId, Realm, ServiceName};
pub use node::{LookupError, MAX_MESSAGE_BYTES, Node, ServeError};

/// The examples of the project's README, which is written for this crate's users too.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct ProjectReadme;
