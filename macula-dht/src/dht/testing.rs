//! The setup that tests of several cores share.

use std::time::{Duration, Instant};

use macula_wire::{Member, NodeId, Realm, SecretKey, Signer, Verifier};

use super::local::{Local, WaysIn};
use crate::{Clock, Config, Contact, ProviderStore, RoutingTable, size::SizeEstimate};

pub(super) const EPOCH_MS: u64 = 1_800_000_000_000;

pub(super) fn signer() -> SecretKey {
    SecretKey::from_bytes(&[9; 32])
}

/// The shared state of a node that knows no other.
pub(super) fn local(now: Instant) -> Local {
    let (config, clock, own) = (Config::default(), Clock::new(now, EPOCH_MS), signer().node_id());
    Local {
        clock,
        own,
        realm: Realm::default(),
        verifier: Verifier::new(Realm::default()),
        member: Member::open(&Realm::default(), own),
        table: RoutingTable::new(own, config.diversity, now),
        store: ProviderStore::new(clock, config.store, 1),
        size: SizeEstimate::default(),
        ways_in: WaysIn::default(),
        config,
    }
}

/// The shared state of a node with the contacts 1 to `count`.
pub(super) fn local_with(now: Instant, count: u16) -> Local {
    let mut local = local(now);
    for n in 1..=count {
        let _ = local.table.insert(now, contact(n), Duration::from_secs(60));
    }
    local
}

pub(super) fn contact(n: u16) -> Contact {
    let mut id = [7; 32];
    id[..2].copy_from_slice(&n.to_be_bytes());
    Contact::new(
        NodeId::from_bytes(id),
        [format!("10.0.{}.{}:4433", n >> 8, n & 255).parse().unwrap()],
    )
}
