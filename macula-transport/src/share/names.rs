//! The addresses of host names.
//!
//! The system's resolver blocks a thread, up to half a minute where a name server is silent, and cannot be stopped. Anyone may name a host
//! in its provider record. So few names are looked up at a time, and fewer of one domain, and those that this node itself was told
//! have threads of their own. They are a small part of the threads that the runtime has for such work: what else blocks there, such as
//! files, goes on.
//!
//! **Invariant:** a lookup holds its places until its thread is done, not only while its caller waits.

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, ToSocketAddrs as _},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use macula_wire::Address;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The most names of other nodes that are looked up at a time.
const MAX_LOOKUPS: usize = 32;
/// Of these, the most names of one domain.
const MAX_LOOKUPS_OF_DOMAIN: usize = 4;
/// The most names that are looked up for this node itself at a time, such as those of the nodes that it joins by.
const MAX_OWN_LOOKUPS: usize = 16;

/// Where this node has a name from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToldBy {
    /// Its own user.
    User,
    /// A peer.
    Peer,
}

/// The lookups under way.
#[derive(Debug)]
pub(crate) struct Names {
    own: Arc<Semaphore>,
    others: Arc<Semaphore>,
    /// By domain. Those without a lookup are dropped with the next one.
    domains: Mutex<BTreeMap<String, Weak<Semaphore>>>,
}

/// A lookup's places.
type Places = (OwnedSemaphorePermit, Option<(Arc<Semaphore>, OwnedSemaphorePermit)>);

impl Default for Names {
    fn default() -> Self {
        Self {
            own: Arc::new(Semaphore::new(MAX_OWN_LOOKUPS)),
            others: Arc::new(Semaphore::new(MAX_LOOKUPS)),
            domains: Mutex::default(),
        }
    }
}

impl Names {
    /// The addresses of an endpoint, which are looked up when it has a host name.
    ///
    /// # Errors
    /// When the name cannot be looked up.
    pub(crate) async fn look_up(&self, endpoint: &Address, told_by: ToldBy) -> io::Result<Vec<SocketAddr>> {
        let port = endpoint.port();
        if let Some(ip) = endpoint.ip() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let host = endpoint.host().to_owned();
        let places = self.places(&host, told_by).await?;
        let lookup = tokio::task::spawn_blocking(move || {
            let _places = places;
            (host.as_str(), port).to_socket_addrs().map(Iterator::collect)
        });
        lookup.await?
    }

    async fn places(&self, host: &str, told_by: ToldBy) -> io::Result<Places> {
        match told_by {
            ToldBy::User => Ok((place(&self.own).await?, None)),
            ToldBy::Peer => {
                // The domain's first: a domain that is slow holds no place of others.
                let domain = self.domain(host);
                let of_domain = place(&domain).await?;
                Ok((place(&self.others).await?, Some((domain, of_domain))))
            }
        }
    }

    /// The places for names of the domain that `host` is in.
    fn domain(&self, host: &str) -> Arc<Semaphore> {
        // The last two labels: the owner of the domain chooses all before them.
        let host = host.trim_end_matches('.');
        let mut dots = host.rmatch_indices('.').map(|(dot, _)| dot);
        let name = match (dots.next(), dots.next()) {
            (None, _) => "",
            (Some(_), None) => host,
            (Some(_), Some(dot)) => host.get(dot + 1..).unwrap_or_default(),
        };
        let name = name.to_ascii_lowercase();
        let mut domains = self.domains.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = domains.get(&name).and_then(Weak::upgrade) {
            return known;
        }
        domains.retain(|_, known| known.strong_count() > 0);
        let fresh = Arc::new(Semaphore::new(MAX_LOOKUPS_OF_DOMAIN));
        domains.insert(name, Arc::downgrade(&fresh));
        fresh
    }
}

async fn place(of: &Arc<Semaphore>) -> io::Result<OwnedSemaphorePermit> {
    Arc::clone(of).acquire_owned().await.map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn take(names: &Names, host: &str, told_by: ToldBy) -> Option<Places> {
        names.places(host, told_by).now_or_never().map(Result::unwrap)
    }

    #[test]
    fn x12_names_that_are_slow_to_look_up_leave_places_for_others() {
        let names = Names::default();
        let mut held: Vec<_> = (0..100)
            .map_while(|n| take(&names, &format!("host{n}.slow.example"), ToldBy::Peer))
            .collect();
        assert_eq!(held.len(), MAX_LOOKUPS_OF_DOMAIN);
        for slow in ["host.deeper.slow.example", "SLOW.example."] {
            assert!(
                take(&names, slow, ToldBy::Peer).is_none(),
                "{slow} is of the same domain"
            );
        }
        assert!(take(&names, "host1.quick.example", ToldBy::Peer).is_some());
        held.extend((0..100).map_while(|n| take(&names, &format!("host.slow{n}.example"), ToldBy::Peer)));
        assert_eq!(held.len(), MAX_LOOKUPS);
        assert!(take(&names, "node1", ToldBy::User).is_some());
        drop(held);
        assert!(take(&names, "host1.slow.example", ToldBy::Peer).is_some());
        assert_eq!(
            names.domains.lock().unwrap().len(),
            1,
            "domains without a lookup are forgotten"
        );
    }

    #[tokio::test]
    async fn names_and_addresses_are_looked_up() {
        let names = Names::default();
        let look_up = async |endpoint: &str| names.look_up(&endpoint.parse().unwrap(), ToldBy::Peer).await;
        assert_eq!(look_up("192.0.2.1:7").await.unwrap(), [([192, 0, 2, 1], 7).into()]);
        let found = look_up("localhost:7").await.unwrap();
        assert!(found.iter().all(|addr| addr.ip().is_loopback() && addr.port() == 7) && !found.is_empty());
    }
}
