//! Providers from the domain name system: for a mesh, or a part of one, that is described there and nowhere else.
//!
//! A connection is accepted only from the node that was meant, so a provider's id must come from somewhere. It is either
//! *configured* beside a host's name, or *published*: a host that an SRV record (RFC 2782) names has a TXT record
//! `macula=NODEID`. Published ids are as trustworthy as the answers: who controls them decides who is called. Without DNSSEC, or
//! a resolver on a trusted path, configure the ids.
//!
//! **Invariants.** Records are looked up again when they expire, at least every [`MAX_AGE`]; concurrent calls share one lookup;
//! while nothing has changed the same list is given. When the name servers do not answer, or are slow, the last list is used
//! further, and a host that cannot be looked up stays what it was: its id is still verified.
//!
//! Left out: DNSSEC validation, and SRV weights as RFC 2782's draw; they become the providers' weights.

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

use self::asking::{Found, Host, Origin};
use crate::{Provider, Resolve, ResolveError, ResolveOptions, Resolved, Source};

/// The longest that records are used, whatever they say of themselves.
pub const MAX_AGE: Duration = Duration::from_secs(300);
/// The shortest, so that records without a time to live do not make every call a lookup.
const MIN_AGE: Duration = Duration::from_secs(1);
/// How long "no such name", and a failed lookup, are believed.
const RETRY: Duration = Duration::from_secs(5);
/// How long a call that has a list, though an old one, waits for a new one. The lookup goes on behind it, as RFC 8767 (section 5)
/// advises for records that cannot be refreshed in time.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long one name server is waited for, and how often it is asked: a lookup is to end before a call does.
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
///     // Configured: whatever addresses the host has, it is this node.
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
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    known: Option<Known>,
    /// Why nothing is known, and until when that is believed.
    failed: Option<(ResolveError, Instant)>,
    running: Option<Lookup>,
}

/// What was found last.
#[derive(Clone)]
struct Known {
    providers: Arc<[Provider]>,
    hosts: Arc<[Host]>,
    until: Instant,
    /// The name servers gave no answer since.
    failing: bool,
}

/// A lookup under way, for all who wait for it.
#[derive(Clone)]
struct Lookup {
    outcome: Shared<BoxFuture<'static, Result<Arc<[Provider]>, ResolveError>>>,
    /// How long callers who have a list already wait for it.
    patience: Instant,
}

impl DnsResolver {
    /// A directory that asks the system's name servers.
    ///
    /// # Errors
    /// When the system names none.
    pub fn system() -> Result<Self, DnsError> {
        let mut builder = TokioResolver::builder_tokio().map_err(DnsError)?;
        within_a_call(builder.options_mut());
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
        within_a_call(builder.options_mut());
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
    pub fn with_hosts(self, service: ServiceName, hosts: impl IntoIterator<Item = (NodeId, Address)>) -> Self {
        self.with(service, Origin::Hosts(hosts.into_iter().collect()))
    }

    fn with(mut self, service: ServiceName, origin: Origin) -> Self {
        let state = Mutex::default();
        self.services.insert(service, Arc::new(Named { origin, state }));
        self
    }

    async fn find(&self, service: &ServiceName, options: ResolveOptions) -> Result<Resolved, ResolveError> {
        let Some(named) = self.services.get(service) else {
            return Ok(resolved(Arc::default(), Source::Static));
        };
        let (known, lookup) = {
            let mut state = named.lock();
            let now = now();
            if let Some(providers) = state.fresh(now, options) {
                return Ok(resolved(providers, Source::Cache));
            }
            let failed = state.failed.as_ref().filter(|(_, until)| now < *until);
            if let (Some((error, _)), None, false) = (failed, &state.known, options.force_refresh) {
                return Err(error.clone());
            }
            let known = state.known.clone();
            // One that is over and is still here was cut short with its runtime.
            let running = state.running.take().filter(|lookup| lookup.outcome.peek().is_none());
            let lookup = running.unwrap_or_else(|| self.look_up(service, named, now, known.as_ref()));
            state.running = Some(lookup.clone());
            (known, lookup)
        };
        let Some(known) = known else {
            return Ok(resolved(lookup.outcome.await?, Source::Dns));
        };
        let last = resolved(known.providers, Source::Cache);
        let outcome = if options.force_refresh {
            lookup.outcome.await
        } else if known.failing {
            // Nobody waits again and again for who does not answer.
            return Ok(last);
        } else {
            match tokio::time::timeout_at(lookup.patience.into(), lookup.outcome).await {
                Ok(outcome) => outcome,
                Err(_) => return Ok(last),
            }
        };
        Ok(outcome.map_or(last, |providers| resolved(providers, Source::Dns)))
    }

    /// Begins a lookup, which goes on though nobody waits for it any more.
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
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn fresh(&self, now: Instant, options: ResolveOptions) -> Option<Arc<[Provider]>> {
        let known = self.known.as_ref()?;
        (now < known.until && !options.force_refresh).then(|| Arc::clone(&known.providers))
    }

    /// What a lookup has brought.
    fn take_in(
        &mut self,
        service: &ServiceName,
        found: Result<Found, NetError>,
    ) -> Result<Arc<[Provider]>, ResolveError> {
        self.running = None;
        let now = now();
        match found {
            Ok(Found { hosts, ttl }) => {
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
                    tracing::warn!(%service, %error, "the name servers do not answer; the last list is used further");
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
    // The list made of the records is what is kept.
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
