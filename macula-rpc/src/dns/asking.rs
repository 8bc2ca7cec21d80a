//! The questions to the name servers, and their answers as providers.

use std::{net::SocketAddr, pin::pin, time::Duration};

use futures::future::{join_all, select};
use hickory_resolver::{
    TokioResolver,
    net::NetError,
    proto::rr::{RData, RecordType},
};
use macula_wire::{Address, MAX_ENDPOINTS, NodeId};

use super::{MAX_AGE, RETRY};
use crate::Provider;

/// The most targets of a service that are looked up.
const MAX_TARGETS: usize = 256;

/// How long the second address family may take after the first has answered.
const OTHER_FAMILY: Duration = Duration::from_millis(500);

/// The records that list a service's providers.
pub(super) enum Origin {
    Srv(String),
    Hosts(Vec<(NodeId, Address)>),
}

/// A host's name, and its provider.
pub(super) type Host = (String, Provider);

/// Providers, and how long they may be used.
pub(super) struct HostList {
    pub(super) hosts: Vec<Host>,
    pub(super) ttl: Duration,
}

/// Records, and how long each may be used.
type Records = Vec<(RData, Duration)>;

/// The provider in one host's records, if they have one.
type Said = Result<(Option<Provider>, Duration), NetError>;

/// Asks for a service's providers. A host that fails while others answer keeps its addresses from `before`.
///
/// # Errors
/// When there is no answer at all.
pub(super) async fn find(resolver: &TokioResolver, origin: &Origin, before: &[Host]) -> Result<HostList, NetError> {
    let asking = Asking { resolver, before };
    match origin {
        Origin::Srv(name) => asking.srv(name).await,
        Origin::Hosts(hosts) => asking.hosts(hosts).await,
    }
}

struct Asking<'a> {
    resolver: &'a TokioResolver,
    before: &'a [Host],
}

impl Asking<'_> {
    async fn srv(&self, name: &str) -> Result<HostList, NetError> {
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
        let mut failure = None;
        for group in targets.chunk_by(|a, b| a.0 == b.0) {
            let hosts = group.iter().map(async |(_, host, port, weight)| {
                let said = self.published(host, *port, u32::from(*weight)).await;
                (format!("{host}:{port}"), said)
            });
            let found = self.gather(join_all(hosts).await, &mut failure);
            if !found.hosts.is_empty() {
                return Ok(HostList {
                    ttl: found.ttl.min(ttl),
                    ..found
                });
            }
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(HostList {
                hosts: Vec::new(),
                ttl: RETRY,
            }),
        }
    }

    async fn hosts(&self, hosts: &[(NodeId, Address)]) -> Result<HostList, NetError> {
        let lookups = hosts.iter().map(async |(id, at)| {
            let said = match at.ip() {
                Some(_) => Ok((Some(Provider::new(*id, [at.clone()])), MAX_AGE)),
                None => self.addresses(at.host(), at.port()).await.map(|(endpoints, seconds)| {
                    let provider = (!endpoints.is_empty()).then(|| Provider::new(*id, endpoints));
                    (provider, seconds)
                }),
            };
            (format!("{id} at {at}"), said)
        });
        let mut failure = None;
        let found = self.gather(join_all(lookups).await, &mut failure);
        match failure {
            Some(error) if found.hosts.is_empty() => Err(error),
            _ => Ok(found),
        }
    }

    /// The hosts that are providers. A host that could not be looked up stays as it was before; when no host could be looked up, the list
    /// is empty and `failure` is the reason.
    fn gather(&self, said: Vec<(String, Said)>, failure: &mut Option<NetError>) -> HostList {
        let mut found = HostList {
            hosts: Vec::new(),
            ttl: MAX_AGE,
        };
        let mut answered = false;
        for (host, said) in said {
            let provider = match said {
                Ok((provider, seconds)) => {
                    found.ttl = found.ttl.min(seconds);
                    answered = true;
                    provider
                }
                Err(error) => {
                    tracing::debug!(%host, %error, "the host cannot be looked up, and keeps its last addresses");
                    found.ttl = found.ttl.min(RETRY);
                    *failure = Some(error);
                    let before = self.before.iter().find(|(name, _)| *name == host);
                    before.map(|(_, provider)| provider.clone())
                }
            };
            found.hosts.extend(provider.map(|provider| (host, provider)));
        }
        if !answered {
            found.hosts.clear();
        }
        found
    }

    /// The provider of a host that publishes its id beside its addresses.
    async fn published(&self, host: &str, port: u16, weight: u32) -> Said {
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
            tracing::warn!(host, "the host has no TXT record `macula=NODEID`, so it is not called");
            return Ok((None, ttl));
        };
        let (endpoints, seconds) = self.addresses(host, port).await?;
        let provider = (!endpoints.is_empty()).then(|| Provider::new(id, endpoints).with_weight(weight));
        Ok((provider, ttl.min(seconds)))
    }

    /// A host's addresses, IPv6 first, up to the limit of a provider.
    async fn addresses(&self, host: &str, port: u16) -> Result<(Vec<Address>, Duration), NetError> {
        let mut ttl = MAX_AGE;
        let mut endpoints = Vec::new();
        let mut failure = None;
        for records in self.families(host).await {
            let records = records.unwrap_or_else(|error| {
                failure = Some(error);
                Vec::new()
            });
            for (data, seconds) in records {
                let Some(ip) = data.ip_addr() else { continue };
                ttl = ttl.min(seconds);
                endpoints.extend(Address::try_from(SocketAddr::new(ip, port)));
            }
        }
        endpoints.sort();
        endpoints.truncate(MAX_ENDPOINTS);
        match failure {
            Some(error) if endpoints.is_empty() => Err(error),
            // The other family's addresses serve until this family's servers answer again.
            Some(_) => Ok((endpoints, ttl.min(RETRY))),
            None if endpoints.is_empty() => Ok((endpoints, RETRY)),
            None => Ok((endpoints, ttl)),
        }
    }

    /// The answers for IPv6 and IPv4, in the order they came. Once one has addresses, the wait for the other is short, because some name
    /// servers answer for only one family.
    async fn families(&self, host: &str) -> [Result<Records, NetError>; 2] {
        let v6 = pin!(self.records(host, RecordType::AAAA));
        let v4 = pin!(self.records(host, RecordType::A));
        let (first, other) = select(v6, v4).await.factor_first();
        let second = match &first {
            Ok(records) if !records.is_empty() => match tokio::time::timeout(OTHER_FAMILY, other).await {
                Ok(records) => records,
                Err(_) => Err(NetError::Timeout),
            },
            _ => other.await,
        };
        [first, second]
    }

    /// The records of a name; none when there is no such name.
    async fn records(&self, name: &str, kind: RecordType) -> Result<Records, NetError> {
        // The dot at the end keeps the system's search domains out.
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
