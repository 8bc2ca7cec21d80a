//! Providers from the domain name system.
//!
//! A client accepts a connection only from the intended node, so it needs each provider's id. The id is either *configured* beside a
//! host's name, or *published*: the host of an SRV record (RFC 2782) has a TXT record `macula=NODEID`. An attacker who
//! controls the answers controls published ids: configure the ids where there is neither DNSSEC nor a resolver on a trusted path.
//!
//! **Invariants.** Records are looked up again when they expire, at least every [`MAX_AGE`]. Concurrent calls share one lookup. The list
//! is the same while nothing has changed. When the name servers are silent or slow, the last list stays in use, and a host that cannot be
//! looked up keeps its last addresses: the client still verifies its id.
//!
//! Left out: DNSSEC validation, and RFC 2782's draw by weight; SRV weights become the providers' weights.

mod asking;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts},
    net::{NetError, runtime::TokioRuntimeProvider},
};
use macula_wire::{Address, NodeId, ServiceName};

use self::asking::{Host, HostList, Origin};
use crate::{Provider, Resolve, ResolveError, ResolveOptions, Resolved, Source};

/// The longest time that records are used, whatever their own time to live.
pub const MAX_AGE: Duration = Duration::from_secs(300);
/// The shortest, so that records with a time to live of 0 do not make every call a lookup.
const MIN_AGE: Duration = Duration::from_secs(1);
/// How long "no such name", and a failed lookup, are remembered.
const RETRY: Duration = Duration::from_secs(5);
/// How long a call with an old list waits for a new one. The lookup goes on behind the call, as RFC 8767 (section 5) advises for records
/// that cannot be refreshed in time.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long one name server may take, and how often it is asked. A lookup must end before a call does.
const ASKED_FOR: Duration = Duration::from_millis(1_500);
const ASKED_TIMES: usize = 2;

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
///     // Configured: the host is this node, at any of its addresses.
///     .with_hosts("api.store".parse()?, [(id, "store.example.com:9443".parse()?)]);
/// # Ok(())
/// # }
/// ```
pub struct DnsResolver {
    resolver: TokioResolver,
    services: HashMap<ServiceName, Arc<Named>>,
}

/// The name servers cannot be asked.
#[derive(Debug, thiserror::Error)]
#[error("the domain name system cannot be asked; does the system name a server, as in /etc/resolv.conf?")]
pub struct DnsError(#[source] NetError);

struct Named {
    origin: Origin,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    known: Option<Known>,
    /// The last failure, and until when it is remembered.
    failed: Option<(ResolveError, Instant)>,
    running: Option<Lookup>,
}

/// The last list.
#[derive(Clone)]
struct Known {
    providers: Arc<[Provider]>,
    hosts: Arc<[Host]>,
    until: Instant,
    /// Whether a lookup has failed since.
    failing: bool,
}

/// A lookup under way, shared by all waiting calls.
#[derive(Clone)]
struct Lookup {
    outcome: Shared<BoxFuture<'static, Result<Arc<[Provider]>, ResolveError>>>,
    /// Until when a call with an old list waits for it.
    patience: Instant,
}

impl DnsResolver {
    /// A directory that asks the system's name servers.
    ///
    /// # Errors
    /// When the system names no server.
    pub fn system() -> Result<Self, DnsError> {
        let mut builder = TokioResolver::builder_tokio().map_err(DnsError)?;
        within_a_call(builder.options_mut());
        Ok(Self::new(builder.build().map_err(DnsError)?))
    }

    /// A directory that asks these name servers.
    ///
    /// # Errors
    /// When the servers cannot be asked.
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
        within_a_call(builder.options_mut());
        Ok(Self::new(builder.build().map_err(DnsError)?))
    }

    fn new(resolver: TokioResolver) -> Self {
        Self {
            resolver,
            services: HashMap::new(),
        }
    }

    /// Finds a service's providers by the SRV records of `name`, and their ids by the TXT records of the hosts in them. The lowest
    /// priority with a usable host counts.
    #[must_use]
    pub fn with_srv(self, service: ServiceName, name: impl Into<String>) -> Self {
        self.with(service, Origin::Srv(name.into()))
    }

    /// Finds a service's providers at these hosts, by A and AAAA records.
    #[must_use]
    pub fn with_hosts(self, service: ServiceName, hosts: impl IntoIterator<Item = (NodeId, Address)>) -> Self {
        self.with(service, Origin::Hosts(hosts.into_iter().collect()))
    }

    fn with(mut self, service: ServiceName, origin: Origin) -> Self {
        let cache = Mutex::default();
        self.services.insert(service, Arc::new(Named { origin, cache }));
        self
    }

    async fn find(&self, service: &ServiceName, options: ResolveOptions) -> Result<Resolved, ResolveError> {
        let Some(named) = self.services.get(service) else {
            return Ok(resolved(Arc::default(), Source::Static));
        };
        let (known, lookup) = {
            let mut cache = named.lock();
            let now = now();
            if let Some(providers) = cache.fresh(now, options) {
                return Ok(resolved(providers, Source::Cache));
            }
            let failed = cache.failed.as_ref().filter(|(_, until)| now < *until);
            if let (Some((error, _)), None, false) = (failed, &cache.known, options.force_refresh) {
                return Err(error.clone());
            }
            let known = cache.known.clone();
            // A finished lookup that is still here was cut short with its runtime.
            let running = cache.running.take().filter(|lookup| lookup.outcome.peek().is_none());
            let lookup = running.unwrap_or_else(|| self.look_up(service, named, now, known.as_ref()));
            cache.running = Some(lookup.clone());
            (known, lookup)
        };
        let Some(known) = known else {
            return Ok(resolved(lookup.outcome.await?, Source::Dns));
        };
        let last = resolved(known.providers, Source::Cache);
        let outcome = if options.force_refresh {
            lookup.outcome.await
        } else if known.failing {
            // Calls do not wait again for silent name servers.
            return Ok(last);
        } else {
            match tokio::time::timeout_at(lookup.patience.into(), lookup.outcome).await {
                Ok(outcome) => outcome,
                Err(_) => return Ok(last),
            }
        };
        Ok(outcome.map_or(last, |providers| resolved(providers, Source::Dns)))
    }

    /// Begins a lookup, which goes on after its callers have left.
    fn look_up(&self, service: &ServiceName, named: &Arc<Named>, now: Instant, known: Option<&Known>) -> Lookup {
        let before = known.map(|known| Arc::clone(&known.hosts)).unwrap_or_default();
        let (resolver, service, named) = (self.resolver.clone(), service.clone(), Arc::clone(named));
        let work = tokio::spawn(async move {
            let found = asking::find(&resolver, &named.origin, &before).await;
            named.lock().take_in(&service, found)
        });
        Lookup {
            outcome: work
                .map(|done| done.unwrap_or(Err(ResolveError::Closed)))
                .boxed()
                .shared(),
            patience: now + PATIENCE,
        }
    }
}

impl Named {
    fn lock(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache {
    fn fresh(&self, now: Instant, options: ResolveOptions) -> Option<Arc<[Provider]>> {
        let known = self.known.as_ref()?;
        (now < known.until && !options.force_refresh).then(|| Arc::clone(&known.providers))
    }

    /// Takes in the result of a lookup.
    fn take_in(
        &mut self,
        service: &ServiceName,
        found: Result<HostList, NetError>,
    ) -> Result<Arc<[Provider]>, ResolveError> {
        self.running = None;
        let now = now();
        match found {
            Ok(HostList { hosts, ttl }) => {
                let providers: Vec<Provider> = hosts.iter().map(|(_, provider)| provider.clone()).collect();
                let providers = match &self.known {
                    Some(before) if *before.providers == *providers => Arc::clone(&before.providers),
                    _ => providers.into(),
                };
                self.failed = None;
                self.known = Some(Known {
                    providers: Arc::clone(&providers),
                    hosts: hosts.into(),
                    until: now + ttl.clamp(MIN_AGE, MAX_AGE),
                    failing: false,
                });
                Ok(providers)
            }
            Err(error) => {
                if let Some(known) = &mut self.known {
                    tracing::warn!(%service, %error, "the name servers do not answer; the last list stays in use");
                    known.until = now + RETRY;
                    known.failing = true;
                }
                let error = ResolveError::Lookup(Arc::new(std::io::Error::other(error)));
                self.failed = Some((error.clone(), now + MIN_AGE));
                Err(error)
            }
        }
    }
}

fn within_a_call(options: &mut ResolverOpts) {
    // The directory caches the list itself.
    options.cache_size = 0;
    options.timeout = options.timeout.min(ASKED_FOR);
    options.attempts = options.attempts.min(ASKED_TIMES);
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn resolved(providers: Arc<[Provider]>, source: Source) -> Resolved {
    Resolved { providers, source }
}

impl Resolve for DnsResolver {
    fn resolve<'a>(
        &'a self,
        service: &'a ServiceName,
        options: ResolveOptions,
    ) -> BoxFuture<'a, Result<Resolved, ResolveError>> {
        Box::pin(self.find(service, options))
    }

    fn at_hand(&self, service: &ServiceName, options: ResolveOptions) -> Option<Resolved> {
        let named = self.services.get(service)?;
        let providers = named.lock().fresh(now(), options)?;
        Some(resolved(providers, Source::Cache))
    }
}

impl std::fmt::Debug for DnsResolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DnsResolver")
            .field("services", &self.services.keys())
            .finish_non_exhaustive()
    }
}
