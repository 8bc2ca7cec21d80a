//! Providers from the domain name system: for a mesh, or a part of one, that is described there and nowhere else.
//!
//! A connection is accepted only from the node that was meant, so a provider's id must come from somewhere. It is either
//! *configured* beside a host's name, or *published*: a host that an SRV record (RFC 2782) names has a TXT record
//! `macula=NODEID`. Published ids are as trustworthy as the answers: who controls them decides who is called. Without DNSSEC, or
//! a resolver on a trusted path, configure the ids.
//!
//! **Invariants.** Records are looked up again when they expire, at least every [`MAX_AGE`]; concurrent calls share one lookup;
//! while nothing has changed the same list is given. When the name servers do not answer, the last list is used further: its
//! ids are still verified.
//!
//! Left out: DNSSEC validation, and SRV weights as RFC 2782's draw; they become the providers' weights.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::{BoxFuture, join_all};
use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::{RData, RecordType},
};
use macula_wire::{Endpoint, MAX_ENDPOINTS, NodeId, ServiceName};
use tokio::sync::Mutex;

use crate::{Provider, Resolve, ResolveError, ResolveOptions, Resolved, Source};

/// The longest that records are used, whatever they say of themselves.
pub const MAX_AGE: Duration = Duration::from_secs(300);
/// The shortest, so that records without a time to live do not make every call a lookup.
const MIN_AGE: Duration = Duration::from_secs(1);
/// How long "no such name", and a failed lookup, are believed.
const RETRY: Duration = Duration::from_secs(5);
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
    origin: Origin,
    known: Mutex<Option<Known>>,
}

enum Origin {
    Srv(String),
    Hosts(Vec<(NodeId, Endpoint)>),
}

struct Known {
    providers: Arc<[Provider]>,
    until: Instant,
}

/// Providers, and how long they may be used.
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
        let known = Mutex::new(None);
        self.services.insert(service, Named { origin, known });
        self
    }

    async fn find(&self, service: &ServiceName, options: ResolveOptions) -> Result<Resolved, ResolveError> {
        let resolved = |providers: &Arc<[Provider]>, source| Resolved {
            providers: Arc::clone(providers),
            source,
        };
        let Some(named) = self.services.get(service) else {
            return Ok(resolved(&Arc::default(), Source::Static));
        };
        // Whoever waits here finds what the one before has looked up.
        let mut known = named.known.lock().await;
        let now = tokio::time::Instant::now().into_std();
        if let Some(known) = known
            .as_ref()
            .filter(|known| now < known.until && !options.force_refresh)
        {
            return Ok(resolved(&known.providers, Source::Cache));
        }
        let found = match &named.origin {
            Origin::Srv(name) => self.srv(name).await,
            Origin::Hosts(hosts) => self.hosts(hosts).await,
        };
        match (found, known.as_mut()) {
            (Ok(found), before) => {
                let providers = match before {
                    Some(before) if *before.providers == *found.providers => Arc::clone(&before.providers),
                    _ => found.providers.into(),
                };
                let answer = resolved(&providers, Source::Dns);
                let until = now + found.ttl.clamp(MIN_AGE, MAX_AGE);
                *known = Some(Known { providers, until });
                Ok(answer)
            }
            (Err(error), Some(before)) => {
                tracing::warn!(%service, %error, "the name servers do not answer; the last list is used further");
                before.until = now + RETRY;
                Ok(resolved(&before.providers, Source::Cache))
            }
            (Err(error), None) => Err(ResolveError::Lookup(Arc::new(std::io::Error::other(error)))),
        }
    }

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
        for group in targets.chunk_by(|a, b| a.0 == b.0) {
            let hosts = group
                .iter()
                .map(async |(_, host, port, weight)| self.published(host, *port, u32::from(*weight)).await);
            let mut providers = Vec::new();
            for host in join_all(hosts).await {
                let (provider, seconds) = host?;
                ttl = ttl.min(seconds);
                providers.extend(provider);
            }
            if !providers.is_empty() {
                return Ok(Found { providers, ttl });
            }
        }
        Ok(Found {
            providers: Vec::new(),
            ttl: RETRY,
        })
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
        for lookup in join_all(lookups).await {
            let (id, (endpoints, seconds)) = lookup?;
            ttl = ttl.min(seconds);
            if !endpoints.is_empty() {
                providers.push(Provider::new(id, endpoints));
            }
        }
        Ok(Found { providers, ttl })
    }

    /// A host's addresses, IPv6 first, at most as many as a provider may have.
    async fn addresses(&self, host: &str, port: u16) -> Result<(Vec<Endpoint>, Duration), NetError> {
        let (v6, v4) = tokio::join!(self.records(host, RecordType::AAAA), self.records(host, RecordType::A));
        let mut ttl = MAX_AGE;
        let mut endpoints = Vec::new();
        for (data, seconds) in v6?.into_iter().chain(v4?) {
            let Some(ip) = data.ip_addr() else { continue };
            ttl = ttl.min(seconds);
            endpoints.extend(Endpoint::try_from(SocketAddr::new(ip, port)));
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
        match self.resolver.lookup(whole, kind).await {
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
