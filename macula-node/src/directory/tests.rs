use std::{collections::BTreeSet, time::Duration};

use macula_wire::{Advertisement, SecretKey};
use tokio::sync::mpsc::Receiver;

use super::*;
use crate::clocks::TimeSource;

struct Fixture {
    directory: Directory,
    commands: Receiver<Command>,
    realm: Realm,
}

impl Fixture {
    fn new() -> Self {
        let realm = Realm::default();
        let now = tokio::time::Instant::now().into_std();
        let (directory, commands) = Directory::new(Clock::new(now, 0), Clocks::new(TimeSource::System), realm.clone());
        Self {
            directory,
            commands,
            realm,
        }
    }

    fn record(&self, node: u8) -> VerifiedProvider {
        let advertisement = Advertisement::new(["node:1".parse().unwrap()]).with_ttl(Duration::from_secs(300));
        let key = ServiceKey::new(&self.realm, &name("api.compute"));
        let signer = SecretKey::from_bytes(&[node; 32]);
        VerifiedProvider::sign(&signer, &self.realm.hash(), &key, 1, 0, &advertisement).unwrap()
    }

    fn insert(&self, service: &str, providers: Vec<VerifiedProvider>) {
        let key = ServiceKey::new(&self.realm, &name(service));
        let now = tokio::time::Instant::now().into_std();
        self.directory.shared.cache().found.insert(now, &key, providers);
    }

    fn at_hand(&self, service: &str) -> Option<Arc<[Provider]>> {
        let found = self.directory.at_hand(&name(service), ResolveOptions::default());
        found.map(|found| {
            assert_eq!(found.source, Source::Cache);
            found.providers
        })
    }

    /// Whether the task was told to refresh this service's list behind a call.
    #[cfg(feature = "testing")]
    fn is_told(&mut self, service: &str) -> bool {
        let asked = ServiceKey::new(&self.realm, &name(service));
        match self.commands.try_recv() {
            Ok(Command::Lookup {
                key,
                wait: Wait::Nothing,
                asker: None,
            }) => key == asked,
            Ok(_) => panic!("another command"),
            Err(_) => false,
        }
    }
}

fn name(service: &str) -> ServiceName {
    service.parse().unwrap()
}

/// D7: a list is fresh for a minute, then served while one caller has it refreshed, and then not any more.
#[cfg(feature = "testing")]
#[tokio::test(start_paused = true)]
async fn d7_a_known_list_is_at_hand_and_is_refreshed_behind_the_call_when_it_is_due() {
    let mut f = Fixture::new();
    assert!(f.at_hand("api.compute").is_none());
    f.insert("api.compute", vec![f.record(1)]);
    for _ in 0..2 {
        assert_eq!(f.at_hand("api.compute").unwrap().len(), 1);
        assert!(!f.is_told("api.compute"));
    }
    tokio::time::advance(Duration::from_secs(60)).await;
    for told in [true, false] {
        assert_eq!(f.at_hand("api.compute").unwrap().len(), 1);
        assert_eq!(f.is_told("api.compute"), told);
    }
    tokio::time::advance(Duration::from_secs(30)).await;
    assert!(f.at_hand("api.compute").is_none());

    f.insert("api.compute", Vec::new());
    assert!(f.at_hand("api.compute").unwrap().is_empty());
    let counters = f.directory.stats().cache;
    assert_eq!(
        (counters.hits, counters.stale, counters.negative_hits, counters.misses),
        (2, 2, 1, 0)
    );
}

/// D7: the lookup passes the cache over, and its answer is in the cache afterwards.
#[tokio::test]
async fn d7_a_forced_refresh_is_not_answered_from_what_is_at_hand() {
    let mut f = Fixture::new();
    f.insert("api.compute", vec![f.record(1)]);
    let forced = ResolveOptions::default().with_force_refresh(true);
    let service = name("api.compute");
    assert!(f.directory.at_hand(&service, forced).is_none());
    let mut lookup = f.directory.resolve(&service, forced);
    assert!(futures::poll!(&mut lookup).is_pending());
    let Ok(Command::Lookup {
        wait: Wait::Whole(reply),
        ..
    }) = f.commands.try_recv()
    else {
        panic!("a lookup of the whole list")
    };
    reply.send(Ok(Arc::default())).unwrap();
    let found = lookup.await.unwrap();
    assert_eq!((found.source, found.providers.len()), (Source::Dht, 0));
    assert_eq!(f.directory.stats().cache.misses, 1);
}

/// A caller that has to wait asks for the first providers, and is counted once.
#[tokio::test]
async fn what_is_not_at_hand_is_looked_up_once() {
    let mut f = Fixture::new();
    let service = name("api.compute");
    let options = ResolveOptions::default();
    assert!(f.directory.at_hand(&service, options).is_none());
    let mut lookup = f.directory.resolve(&service, options);
    assert!(futures::poll!(&mut lookup).is_pending());
    assert!(matches!(
        f.commands.try_recv(),
        Ok(Command::Lookup {
            wait: Wait::Enough(_),
            ..
        })
    ));
    assert!(matches!(lookup.await, Err(ResolveError::Closed)), "the task is gone");
    assert_eq!(f.directory.stats().cache.misses, 1);
}

/// The client compares lists by their address.
#[tokio::test]
async fn an_unchanged_list_stays_the_same_and_a_changed_one_is_read_anew() {
    let f = Fixture::new();
    f.insert("api.compute", vec![f.record(1)]);
    let first = f.at_hand("api.compute").unwrap();
    assert!(Arc::ptr_eq(&first, &f.at_hand("api.compute").unwrap()));
    f.insert("api.compute", vec![f.record(1), f.record(2)]);
    let second = f.at_hand("api.compute").unwrap();
    let nodes: BTreeSet<_> = second.iter().map(|provider| provider.node_id).collect();
    assert_eq!(
        (nodes.len(), Arc::ptr_eq(&second, &f.at_hand("api.compute").unwrap())),
        (2, true)
    );
}

/// Peers can make this node look up any number of names; it keeps as many as its cache.
#[tokio::test]
async fn names_make_room_for_others() {
    let f = Fixture::new();
    let most = CacheLimits::default().keys;
    let record = f.record(1);
    for service in 0..most + 10 {
        let service = format!("api.n{service}");
        f.insert(&service, vec![record.clone()]);
        assert_eq!(f.at_hand(&service).unwrap().len(), 1);
    }
    assert_eq!(f.directory.shared.cache().read.len(), most);
}

#[test]
fn x3_no_provider_outweighs_the_median_by_more_than_eight_times() {
    let weigh = |weights: &[u32]| {
        let record = |(node, weight): (u8, &u32)| {
            let advertisement = Advertisement::new(["node:1".parse().unwrap()]).with_weight(*weight);
            let signer = SecretKey::from_bytes(&[node; 32]);
            let (realm, key) = (Realm::default(), ServiceKey::from_bytes([1; 32]));
            VerifiedProvider::sign(&signer, &realm.hash(), &key, 1, 0, &advertisement).unwrap()
        };
        let records: Vec<_> = (1..).zip(weights).map(record).collect();
        read(&records)
            .iter()
            .map(|provider| provider.weight)
            .collect::<Vec<_>>()
    };
    assert_eq!(weigh(&[1, 1, 1, u32::MAX]), [1, 1, 1, 8]);
    assert_eq!(weigh(&[100, u32::MAX]), [100, 800]);
    assert_eq!(weigh(&[2, 16, 4]), [2, 16, 4], "what differs honestly stays");
    assert_eq!(weigh(&[u32::MAX]), [u32::MAX], "alone it takes all anyway");
    assert_eq!(weigh(&[]), [0; 0]);
}
