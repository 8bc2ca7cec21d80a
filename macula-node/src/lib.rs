#![doc = include_str!("../README.md")]

mod addresses;
#[cfg(feature = "admin")]
pub mod admin;
mod bootstrap;
mod builder;
mod clocks;
mod data;
mod directory;
mod error_line;
mod events;
#[cfg(feature = "ingress")]
pub mod ingress;
mod inspection;
mod life;
#[cfg(any(feature = "ingress", feature = "ops"))]
mod listener;
mod membership;
mod node;
#[cfg(feature = "ops")]
pub mod ops;
#[cfg(feature = "otlp")]
pub mod otlp;
mod state;

pub use bootstrap::{BootstrapAddr, MAX_BOOTSTRAP, ParseBootstrapError};
pub use builder::{NodeBuilder, StartError};
pub use bytes::Bytes;
#[cfg(feature = "testing")]
pub use clocks::SimulatedClock;
#[cfg(feature = "redb")]
pub use data::DataError;
pub use directory::{
    DirectoryState, DirectoryStats, JoinCause, JoinError, JoinReport, ProviderRecord, Publication, PublishReport,
    TrustedPeer, WithdrawReport, WrongClock,
};
pub use error_line::error_line;
pub use events::{MAX_NODE_EVENTS, NodeEvent, NodeEvents};
pub use life::Phase;
pub use macula_dht::{AdvertiseError, Contact, Refusal, StoreLimits, Usage};
#[cfg(feature = "json")]
pub use macula_rpc::Json;
#[cfg(feature = "prost")]
pub use macula_rpc::Prost;
#[cfg(feature = "tower")]
pub use macula_rpc::TowerHandler;
pub use macula_rpc::{
    Allowed, Answer, AnswerSource, Attempt, Backoff, BalancerEvent, BalancerStats, BudgetConfig, CallBuilder,
    CallError, CallStats, CalledProvider, CalledService, Cause, Client, ClientBuilder, ClientEvent, Counts,
    EjectionReason, Handler, Hedge, Latency, Limited, Link, Metadata, Propagate, Provider, ProviderState, Pushback,
    Refusals, Replies, ReplyStream, Request, Requests, Response, RestoreReason, RetryPolicy, Server, ServiceOptions,
    Source, Spending, Status, StatusCode, StopReason, Strategy, StreamHandler, TraceContext, W3c, typed,
};
#[cfg(feature = "tonic")]
pub use macula_rpc::{Channel, TonicServices};
#[cfg(feature = "dns")]
pub use macula_rpc::{DnsError, DnsResolver};
pub use macula_transport::{
    Access, BindError, Config as TransportConfig, ConnectionStats, DialError, Identity, IdentityError, Limits, Opener,
    PeerInfo, PoolConfig, PoolEvent, PoolStats, Presence, Role, Stats as TransportStats, Timers, VisitError,
    private_file,
};
pub use macula_wire::{
    AccessError, Address, AddressError, Chain, Effect, Grant, GrantRole, Heeded, Issue, Issuer, JoinRefusal, JoinReply,
    JoinRequest, JoinToken, KeptMember, KeptToken, LineError, MAX_ENDPOINTS, MAX_GRANT_SECS, MAX_ORDERS, Member,
    Membership, NameError, NodeId, Order, ParseRealmError, Pattern, Patterns, Realm, RealmKey, RealmName,
    RealmPublicKey, Revocations, ServiceName, SignedRevocations, Signer, Terms, TokenId,
};
pub use membership::{
    DEFAULT_GRANT_LIFE, FolderError, IssuerFolder, MAX_MEMBERS, MAX_TOKENS, MIN_GRANT_LIFE, MembershipError, realm_file,
};
pub use node::{LookupError, MAX_MESSAGE_BYTES, Node, Reached, ServeError};
pub use state::{Addresses, NodeState, Served};

/// The examples of the project's README, which is written for this crate's users too.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct ProjectReadme;
