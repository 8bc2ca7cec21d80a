//! Providers from the domain name system: for a mesh, or a part of one, that is described there and nowhere else.
//!
//! A connection is accepted only from the node that was meant, so a provider's id must come from somewhere. It is either
//! *configured* beside a host's name, or *published*: a host that an SRV record (RFC 2782) names has a TXT record
//! `macula=NODEID`. Published ids are as trustworthy as the answers: who controls them decides who is called. Without DNSSEC, or
//! a resolver on a trusted path, configure the ids.
//!
//! **Invariants.** Records are looked up again when they expire, at least every [`MAX_AGE`]; concurrent calls share one lookup,
//! which goes on with the next call when the one that began it is over; while nothing has changed the same list is given. When the
//! name servers say nothing, or nothing in good time, the last list is used further: its ids are still verified. Of several hosts
//! those that can be looked up count.
//!
//! Left out: DNSSEC validation, and SRV weights as RFC 2782's draw; they become the providers' weights.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared, join_all},
};
use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::{RData, RecordType},
};
use macula_wire::{Endpoint, MAX_ENDPOINTS, NodeId, ServiceName};

use crate::{Provider, Resolve, ResolveError, ResolveOptions, Resolved, Source};

/// The longest that records are used, whatever they say of themselves.
pub const MAX_AGE: Duration = Duration::from_secs(300);
/// The shortest, so that records without a time to live do not make every call a lookup.
const MIN_AGE: Duration = Duration::from_secs(1);
/// How long "no such name", and a failed lookup, are believed.
const RETRY: Duration = Duration::from_secs(5);
/// How long a lookup is waited for while there is a list from before. It goes on meanwhile, and counts when it is done.
const REFRESH_WITHIN: Duration = Duration::from_secs(1);
/// How long a lookup may take at all. Those who have no list wait as long.
const LOOKUP_WITHIN: Duration = Duration::from_secs(5);
/// The most targets of a service that are looked at.
const MAX_TARGETS: usize = 256;

/// A directory in the domain name system.
///
/// ```no_run
/// use macula_rpc::{DnsResolver, NodeId};
///
/// # fn example(id: NodeId) -> Result<(), Box<dyn std::error::Error>> {
/// let directory = DnsResolver::system()?
///     // Published: `_compute._udp.example.com SRV 0 10 9443 node1.example.com`, and
///     // `node1.example.com TXT "macula=NODEID"`.
///     .with_srv("api.compute".parse()?, "_compute._udp.example.com.")
///     // Configured: whatever addresses the host has, it is this node.
///     .with_hosts("api.store".parse()?, [(id, "store.example.com:9443".parse()?)]);
/// # Ok(())
/// # }
/// ```
pub struct DnsResolver {
    resolver: TokioResolver,
    services: HashMap<ServiceName, Named>,
}

/// The name servers cannot be asked.
#[derive(Debug, thiserror::Error)]
#[error("the domain name system cannot be asked; does the system name a server, as in /etc/resolv.conf?")]
pub struct DnsError(#[source] NetError);

struct Named {
    origin: Arc<Origin>,
    state: Mutex<State>,
}

enum Origin {
    Srv(String),
    Hosts(Vec<(NodeId, Endpoint)>),
}

/// What is known of a service, and what is being asked.
#[derive(Default)]
struct State {
    known: Option<Known>,
    lookup: Option<Lookup>,
}

struct Known {
    providers: Arc<[Provider]>,
    until: Instant,
}

/// A lookup that whoever waits for it moves on.
#[derive(Clone)]
struct Lookup {
    found: Shared<BoxFuture<'static, Result<Arc<Found>, Arc<LookupError>>>>,
    since: Instant,
}

/// Why a lookup gave nothing.
#[derive(Debug, thiserror::Error)]
enum LookupError {
    #[error(transparent)]
    Net(#[from] NetError),
    #[error("the name servers did not answer within {LOOKUP_WITHIN:?}")]
    Silent,
}

/// Providers, and how long they may be used.
#[derive(Debug)]
struct Found {
    providers: Vec<Provider>,
    ttl: Duration,
}

impl DnsResolver {
    /// A directory that asks the system's name servers.
    ///
    /// # Errors
    /// When the system names none.
    pub fn system() -> Result<Self, DnsError> {
        let mut builder = TokioResolver::builder_tokio().map_err(DnsError)?;
        // The list made of the records is what is kept.
        builder.options_mut().cache_size = 0;
        Ok(Self::new(builder.build().map_err(DnsError)?))
    }

    /// A directory that asks these name servers.
    ///
    /// # Errors
    /// When they cannot be asked.
    pub fn asking(servers: impl IntoIterator<Item = SocketAddr>) -> Result<Self, DnsError> {
        let server = |addr: SocketAddr| {
            let at_port = |mut connection: ConnectionConfig| {
                connection.port = addr.port();
                connection
            };
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
            NameServerConfig::new(addr.ip(), true, connections.map(at_port).into())
        };
        let config = ResolverConfig::from_parts(None, Vec::new(), servers.into_iter().map(server).collect());
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        builder.options_mut().cache_size = 0;
        Ok(Self::new(builder.build().map_err(DnsError)?))
    }

    fn new(resolver: TokioResolver) -> Self {
        Self {
            resolver,
            services: HashMap::new(),
        }
    }

    /// Finds a service's providers by the SRV records of `name`, their ids by the TXT records of the hosts that these name.
    ///
    /// Of several priorities the lowest that has a usable host counts.
    #[must_use]
    pub fn with_srv(self, service: ServiceName, name: impl Into<String>) -> Self {
        self.with(service, Origin::Srv(name.into()))
    }

    /// Finds a service's providers at these hosts, by A and AAAA records.
    #[must_use]
    pub fn with_hosts(self, service: ServiceName, hosts: impl IntoIterator<Item = (NodeId, Endpoint)>) -> Self {
        self.with(service, Origin::Hosts(hosts.into_iter().collect()))
    }

    fn with(mut self, service: ServiceName, origin: Origin) -> Self {
        let named = Named {
            origin: Arc::new(origin),
            state: Mutex::default(),
        };
        self.services.insert(service, named);
        self
    }

    async fn find(&self, service: &ServiceName, options: ResolveOptions) -> Result<Resolved, ResolveError> {
        let Some(named) = self.services.get(service) else {
            return Ok(Resolved {
                providers: Arc::default(),
                source: Source::Static,
            });
        };
        let now = now();
        let (lookup, patience) = {
            let mut state = named.state();
            let fresh = |known: &&Known| now < known.until && !options.force_refresh;
            if let Some(known) = state.known.as_ref().filter(fresh) {
                return Ok(known.resolved());
            }
            let patience = match &mut state.known {
                None => LOOKUP_WITHIN,
                Some(known) => {
                    // One call asks; the others have the list meanwhile.
                    known.until = now + RETRY;
                    REFRESH_WITHIN
                }
            };
            let old = |lookup: &Lookup| now.saturating_duration_since(lookup.since) >= LOOKUP_WITHIN;
            // One that has had its time may be done by now, with nobody to move it on.
            let done = |lookup: &Lookup| lookup.found.clone().now_or_never().is_some();
            if state.lookup.as_ref().is_some_and(|lookup| old(lookup) && !done(lookup)) {
                state.lookup = None;
            }
            let lookup = state.lookup.get_or_insert_with(|| self.ask(&named.origin, now));
            (lookup.clone(), patience)
        };
        let left = (lookup.since + patience).saturating_duration_since(now);
        let found = match tokio::time::timeout(left, lookup.found.clone()).await {
            Ok(found) => found,
            Err(_) => Err(Arc::new(LookupError::Silent)),
        };
        named.taken_in(service, &lookup, found)
    }

    /// Starts to look a service up.
    fn ask(&self, origin: &Arc<Origin>, since: Instant) -> Lookup {
        let (records, origin) = (Records(self.resolver.clone()), Arc::clone(origin));
        let found = async move {
            let found = match &*origin {
                Origin::Srv(name) => records.srv(name).await,
                Origin::Hosts(hosts) => records.hosts(hosts).await,
            };
            found.map(Arc::new).map_err(|error| Arc::new(LookupError::Net(error)))
        };
        Lookup {
            found: found.boxed().shared(),
            since,
        }
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Known {
    fn resolved(&self) -> Resolved {
        Resolved {
            providers: Arc::clone(&self.providers),
            source: Source::Cache,
        }
    }
}

impl Named {
    /// Held for single steps only, and never across an await.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a call makes of what it has waited for: the first that has it makes it known.
    fn taken_in(
        &self,
        service: &ServiceName,
        lookup: &Lookup,
        found: Result<Arc<Found>, Arc<LookupError>>,
    ) -> Result<Resolved, ResolveError> {
        let now = now();
        let mut state = self.state();
        let ours = |it: &mut Lookup| it.found.ptr_eq(&lookup.found);
        // One that is only slow goes on.
        let first = match lookup.found.peek() {
            Some(_) => state.lookup.take_if(ours).is_some(),
            None => false,
        };
        match (found, &mut state.known) {
            (Ok(found), before) => {
                let providers = match before {
                    Some(before) if *before.providers == *found.providers => Arc::clone(&before.providers),
                    _ => found.providers.clone().into(),
                };
                let answer = Resolved {
                    providers: Arc::clone(&providers),
                    source: Source::Dns,
                };
                if first {
                    let until = now + found.ttl.clamp(MIN_AGE, MAX_AGE);
                    *before = Some(Known { providers, until });
                }
                Ok(answer)
            }
            (Err(error), Some(before)) => {
                tracing::warn!(%service, %error, "the name servers do not answer; the last list is used further");
                before.until = now + RETRY;
                Ok(before.resolved())
            }
            (Err(error), None) => Err(ResolveError::Lookup(Arc::new(std::io::Error::other(error)))),
        }
    }
}

/// What the name servers have.
struct Records(TokioResolver);

impl Records {
    async fn srv(&self, name: &str) -> Result<Found, NetError> {
        let mut ttl = MAX_AGE;
        let mut targets = Vec::new();
        for (data, seconds) in self.records(name, RecordType::SRV).await? {
            if let RData::SRV(srv) = data
                && !srv.target.is_root()
            {
                ttl = ttl.min(seconds);
                targets.push((srv.priority, srv.target.to_string(), srv.port, srv.weight));
            }
        }
        targets.sort();
        targets.truncate(MAX_TARGETS);
        let mut failed = None;
        for group in targets.chunk_by(|a, b| a.0 == b.0) {
            let hosts = group
                .iter()
                .map(async |(_, host, port, weight)| self.published(host, *port, u32::from(*weight)).await);
            let mut providers = Vec::new();
            for host in join_all(hosts).await {
                match host {
                    Ok((provider, seconds)) => {
                        ttl = ttl.min(seconds);
                        providers.extend(provider);
                    }
                    Err(error) => {
                        ttl = ttl.min(RETRY);
                        failed = Some(passed_over(error));
                    }
                }
            }
            if !providers.is_empty() {
                return Ok(Found { providers, ttl });
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(Found {
                providers: Vec::new(),
                ttl: RETRY,
            }),
        }
    }

    /// A host whose id is published beside its addresses; none when it is not, or there is no address.
    async fn published(&self, host: &str, port: u16, weight: u32) -> Result<(Option<Provider>, Duration), NetError> {
        let mut ttl = MAX_AGE;
        let mut id = None;
        for (data, seconds) in self.records(host, RecordType::TXT).await? {
            if let RData::TXT(txt) = data
                && let Some(published) = node_id(&txt.txt_data.concat())
            {
                ttl = ttl.min(seconds);
                id.get_or_insert(published);
            }
        }
        let Some(id) = id else {
            tracing::warn!(host, "the host has no TXT record `macula=NODEID`, and is not called");
            return Ok((None, ttl));
        };
        let (endpoints, seconds) = self.addresses(host, port).await?;
        let provider = (!endpoints.is_empty()).then(|| Provider::new(id, endpoints).with_weight(weight));
        Ok((provider, ttl.min(seconds)))
    }

    async fn hosts(&self, hosts: &[(NodeId, Endpoint)]) -> Result<Found, NetError> {
        let lookups = hosts.iter().map(async |(id, at)| {
            let found = match at.ip() {
                Some(_) => (vec![at.clone()], MAX_AGE),
                None => self.addresses(at.host(), at.port()).await?,
            };
            Ok::<_, NetError>((*id, found))
        });
        let mut ttl = MAX_AGE;
        let mut providers = Vec::new();
        let mut failed = None;
        for lookup in join_all(lookups).await {
            match lookup {
                Ok((id, (endpoints, seconds))) => {
                    ttl = ttl.min(seconds);
                    if !endpoints.is_empty() {
                        providers.push(Provider::new(id, endpoints));
                    }
                }
                Err(error) => {
                    ttl = ttl.min(RETRY);
                    failed = Some(passed_over(error));
                }
            }
        }
        match failed {
            Some(error) if providers.is_empty() => Err(error),
            _ => Ok(Found { providers, ttl }),
        }
    }

    /// A host's addresses, IPv6 first, at most as many as a provider may have.
    async fn addresses(&self, host: &str, port: u16) -> Result<(Vec<Endpoint>, Duration), NetError> {
        let (v6, v4) = tokio::join!(self.records(host, RecordType::AAAA), self.records(host, RecordType::A));
        let mut ttl = MAX_AGE;
        let mut endpoints = Vec::new();
        let mut failed = None;
        for records in [v6, v4] {
            match records {
                Ok(records) => {
                    for (data, seconds) in records {
                        let Some(ip) = data.ip_addr() else { continue };
                        ttl = ttl.min(seconds);
                        endpoints.extend(Endpoint::try_from(SocketAddr::new(ip, port)));
                    }
                }
                // Some name servers answer for one family only, and say that they failed at the other.
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            if endpoints.is_empty() {
                return Err(error);
            }
            ttl = ttl.min(RETRY);
        }
        endpoints.sort();
        endpoints.truncate(MAX_ENDPOINTS);
        let ttl = if endpoints.is_empty() { RETRY } else { ttl };
        Ok((endpoints, ttl))
    }

    /// The records of a name; none when there is no such name.
    async fn records(&self, name: &str, kind: RecordType) -> Result<Vec<(RData, Duration)>, NetError> {
        // A name that is whole is not looked for in the system's search domains.
        let whole = format!("{}.", name.trim_end_matches('.'));
        match self.0.lookup(whole, kind).await {
            Ok(lookup) => Ok(lookup
                .answers()
                .iter()
                .filter(|record| record.record_type() == kind)
                .map(|record| (record.data.clone(), Duration::from_secs(u64::from(record.ttl))))
                .collect()),
            Err(error) if error.is_no_records_found() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// A host that cannot be looked up does not keep the others from being called.
fn passed_over(error: NetError) -> NetError {
    tracing::warn!(%error, "a host cannot be looked up, and is not called");
    error
}

/// The id in a TXT record, `macula=NODEID`.
fn node_id(text: &[u8]) -> Option<NodeId> {
    std::str::from_utf8(text)
        .ok()?
        .trim()
        .strip_prefix("macula=")?
        .parse()
        .ok()
}

impl Resolve for DnsResolver {
    fn resolve<'a>(
        &'a self,
        service: &'a ServiceName,
        options: ResolveOptions,
    ) -> BoxFuture<'a, Result<Resolved, ResolveError>> {
        Box::pin(self.find(service, options))
    }
}

impl std::fmt::Debug for DnsResolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DnsResolver")
            .field("services", &self.services.keys())
            .finish_non_exhaustive()
    }
}
