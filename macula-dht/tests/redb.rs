//! Restarts, and damaged files.

#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use common::{EPOCH_MS, advertisement, contact_of, key, secret};
use macula_dht::{
    Backend, BackendError, Change, Config, Dht, Loaded, Output, Peer, RedbBackend, Reply, Request, Response, Role,
    StoredContact, StoredRecord, Want,
};
use macula_wire::{Holder, Network, NodeId, Realm, SecretKey, ServiceKey, VerifiedProvider};
use proptest::prelude::*;

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("directory.redb")
    }
}

fn open(path: &Path) -> RedbBackend {
    RedbBackend::open(path).unwrap().backend
}

fn record(n: usize, key: ServiceKey, ttl: u64) -> VerifiedProvider {
    let advertisement = advertisement(n).with_ttl(Duration::from_secs(ttl));
    VerifiedProvider::sign(&secret(n), &Realm::default().hash(), &key, 1, EPOCH_MS, &advertisement).unwrap()
}

fn start(path: &Path, now: Instant, after: Duration) -> Dht<SecretKey, RedbBackend> {
    let unix_ms = EPOCH_MS + after.as_millis() as u64;
    Dht::new(
        Config::default(),
        secret(0),
        Realm::default(),
        open(path),
        now,
        unix_ms,
        1,
    )
}

fn publish(dht: &mut Dht<SecretKey, RedbBackend>, now: Instant, n: usize, record: &VerifiedProvider) {
    let peer = Peer {
        contact: contact_of(n),
        role: Role::Node,
    };
    let request = Request::Publish {
        key: *record.key(),
        records: vec![record.to_signed()],
    };
    let response = dht.handle_request(now, &peer, Ok(request));
    assert_eq!(
        response,
        Response::Published {
            outcomes: vec![macula_dht::Outcome::Stored],
            newer: Vec::new()
        }
    );
}

/// A node that restarts serves and routes at once from its kept records and contacts, and shows no record that has expired.
#[test]
fn a_restarted_node_serves_and_routes_from_what_it_kept() {
    let (home, now) = (Home::new(), Instant::now());
    let mut dht = start(&home.file(), now, Duration::ZERO);
    let service = key("a.b");
    publish(&mut dht, now, 1, &record(1, service, 100));
    publish(&mut dht, now, 2, &record(2, service, 30));
    while let Some(output) = dht.poll_output() {
        if let Output::Send { id, .. } = output {
            dht.handle_response(
                now,
                id,
                Ok(Reply {
                    response: Ok(Response::Pong),
                    role: Role::Node,
                    ip: None,
                }),
            );
        }
    }
    // Committed by its timer, not by a farewell.
    let due = dht.poll_timeout().unwrap();
    dht.handle_timeout(due.max(now + Duration::from_secs(1)));
    drop(dht);

    let now = now + Duration::from_secs(50);
    let mut dht = start(&home.file(), now, Duration::from_secs(50));
    let held: Vec<_> = dht.local_providers(now, &service).map(|p| *p.node_id()).collect();
    assert_eq!(held, [*contact_of(1).node_id()]);
    let joins = std::iter::from_fn(|| dht.poll_output());
    let asked: Vec<_> = joins
        .filter_map(|output| match output {
            Output::Send { to, .. } => Some(*to.node_id()),
            Output::Identify { .. } | Output::Event(_) => None,
        })
        .collect();
    assert_eq!(asked.len(), 2, "the contacts it kept are asked at once");
    let query = dht.start_lookup(now, service, Want::First).unwrap();
    assert!(
        std::iter::from_fn(|| dht.poll_output())
            .any(|output| matches!(output, Output::Event(macula_dht::Event::Finished { query: q, .. }) if q == query))
    );
    // The validity counts from when the record was received, not from the restart.
    let later = now + Duration::from_secs(51);
    dht.handle_timeout(later);
    assert_eq!(dht.local_providers(later, &service).count(), 0);
}

fn pong() -> Result<Reply, macula_dht::RequestFailed> {
    Ok(Reply {
        response: Ok(Response::Pong),
        role: Role::Node,
        ip: None,
    })
}

fn drain(dht: &mut Dht<SecretKey, RedbBackend>) -> Vec<Output> {
    std::iter::from_fn(|| dht.poll_output()).collect()
}

/// A node without records still has to find its mesh after it was killed.
#[test]
fn contacts_are_kept_though_there_is_no_record() {
    let (home, now) = (Home::new(), Instant::now());
    let mut dht = start(&home.file(), now, Duration::ZERO);
    dht.add_contact(now, contact_of(1));
    for output in drain(&mut dht) {
        if let Output::Send { id, .. } = output {
            dht.handle_response(now, id, pong());
        }
    }
    let due = dht.poll_timeout().unwrap();
    assert!(
        due <= now + Config::default().commit_interval,
        "nothing is due before the upkeep"
    );
    dht.handle_timeout(due);
    drop(dht);
    let kept = open(&home.file()).load().unwrap().contacts;
    assert_eq!(kept, [StoredContact(contact_of(1))]);
}

/// The contacts that were kept may all be gone: the seeds are asked beside them, not after they have failed.
#[test]
fn seeds_take_part_in_a_join_from_kept_contacts() {
    let (home, now) = (Home::new(), Instant::now());
    open(&home.file())
        .commit(&[Change::Contacts(vec![StoredContact(contact_of(1))])])
        .unwrap();
    let mut dht = start(&home.file(), now, Duration::ZERO);
    let address: macula_wire::Address = "seed.example:4433".parse().unwrap();
    dht.bootstrap(now, [address.clone().into(), contact_of(2).into()]);
    let (mut asked, mut identified) = (Vec::new(), None);
    for output in drain(&mut dht) {
        match output {
            Output::Send { to, id, .. } => asked.push((*to.node_id(), id)),
            Output::Identify { id, address: at } => identified = Some((id, at)),
            Output::Event(event) => panic!("{event:?}"),
        }
    }
    let nodes: Vec<_> = asked.iter().map(|(node, _)| *node).collect();
    assert_eq!(nodes, [*contact_of(1).node_id(), *contact_of(2).node_id()]);
    let (id, at) = identified.unwrap();
    assert_eq!(at, address);
    // Both fail; the address leads to a node that answers: joined, without an event of a failure.
    for (_, id) in asked {
        dht.handle_response(now, id, Err(macula_dht::RequestFailed::Unreachable));
    }
    dht.handle_identified(now, id, [contact_of(3)]);
    let mut events = Vec::new();
    for output in drain(&mut dht) {
        match output {
            Output::Send { id, .. } => {
                let nodes = Ok(Response::Nodes(Vec::new()));
                let reply = Reply {
                    response: nodes,
                    ..pong().unwrap()
                };
                dht.handle_response(now, id, Ok(reply));
            }
            Output::Identify { .. } => {}
            Output::Event(event) => events.push(event),
        }
    }
    events.extend(drain(&mut dht).into_iter().filter_map(|output| match output {
        Output::Event(event) => Some(event),
        Output::Send { .. } | Output::Identify { .. } => None,
    }));
    assert!(matches!(events[..], [macula_dht::Event::Joined { .. }]), "{events:?}");
}

fn deliverer() -> Holder<NodeId> {
    Holder::new(Network::V4([198, 51, 100]), *contact_of(9).node_id())
}

#[test]
fn a_kept_record_that_was_tampered_with_is_not_taken() {
    let (home, now) = (Home::new(), Instant::now());
    let service = key("a.b");
    let good = record(1, service, 100);
    let put = |node, record: macula_wire::SignedProvider| {
        Change::Put(StoredRecord {
            key: service,
            node,
            record,
            deliverer: deliverer(),
            expires_ms: EPOCH_MS + 1_000_000,
            held_until_ms: EPOCH_MS + 1_000_000,
        })
    };
    let mut bad = record(2, service, 100).to_signed();
    let mut body = bad.body.to_vec();
    body[10] ^= 1;
    bad.body = body.into();
    let swapped = put(*contact_of(3).node_id(), record(4, service, 100).to_signed());
    open(&home.file())
        .commit(&[
            put(*good.node_id(), good.to_signed()),
            put(*contact_of(2).node_id(), bad),
            swapped,
        ])
        .unwrap();
    let dht = start(&home.file(), now, Duration::ZERO);
    let held: Vec<_> = dht.local_providers(now, &service).map(|p| *p.node_id()).collect();
    assert_eq!(held, [*good.node_id()]);
}

/// A record dated ahead is valid for its time to live from when it was received; a restart does not start that time again.
#[test]
fn d4_a_restart_prolongs_no_record() {
    let (home, mut now) = (Home::new(), Instant::now());
    let service = key("a.b");
    let advertisement = advertisement(1).with_ttl(Duration::from_secs(20));
    let ahead = EPOCH_MS + 50_000;
    let record =
        VerifiedProvider::sign(&secret(1), &Realm::default().hash(), &service, 1, ahead, &advertisement).unwrap();
    let mut dht = start(&home.file(), now, Duration::ZERO);
    publish(&mut dht, now, 1, &record);
    dht.flush(now);
    for after in [15, 19] {
        drop(dht);
        now += Duration::from_secs(1);
        dht = start(&home.file(), now, Duration::from_secs(after));
        assert_eq!(dht.local_providers(now, &service).count(), 1);
    }
    let later = now + Duration::from_secs(1);
    assert_eq!(
        dht.local_providers(later, &service).count(),
        0,
        "20 s after it was received"
    );
}

/// D9: a short-lived record that replaced a long-lived one hides it after it expired, restart or not.
#[test]
fn d9_a_superseded_record_does_not_come_back_after_a_restart() {
    let (home, now) = (Home::new(), Instant::now());
    let service = key("a.b");
    let signed = |seq, ttl| {
        let advertisement = advertisement(1).with_ttl(Duration::from_secs(ttl));
        VerifiedProvider::sign(
            &secret(1),
            &Realm::default().hash(),
            &service,
            seq,
            EPOCH_MS,
            &advertisement,
        )
        .unwrap()
    };
    let old = signed(1, 300);
    let mut dht = start(&home.file(), now, Duration::ZERO);
    publish(&mut dht, now, 1, &old);
    publish(&mut dht, now, 1, &signed(2, 20));
    dht.flush(now);
    drop(dht);
    let mut dht = start(&home.file(), now, Duration::from_secs(30));
    let peer = Peer {
        contact: contact_of(2),
        role: Role::Node,
    };
    let request = Request::Publish {
        key: service,
        records: vec![old.to_signed()],
    };
    let stale = macula_dht::Outcome::Refused(macula_dht::Refusal::Stale);
    assert_eq!(
        dht.handle_request(now, &peer, Ok(request)),
        Response::Published {
            outcomes: vec![stale],
            newer: Vec::new()
        }
    );
    assert_eq!(dht.local_providers(now, &service).count(), 0);
}

/// The peer cache is for getting back without the seeds, also for a node that stores nothing.
#[test]
fn contacts_are_kept_by_a_node_without_records() {
    let (home, mut now) = (Home::new(), Instant::now());
    let mut dht = start(&home.file(), now, Duration::ZERO);
    dht.add_contact(now, contact_of(1));
    for _ in 0..200 {
        while let Some(output) = dht.poll_output() {
            if let Output::Send { id, .. } = output {
                let reply = Reply {
                    response: Ok(Response::Pong),
                    role: Role::Node,
                    ip: None,
                };
                dht.handle_response(now, id, Ok(reply));
            }
        }
        now += Duration::from_secs(1);
        dht.handle_timeout(now);
    }
    drop(dht);
    let mut dht = start(&home.file(), now, Duration::ZERO);
    let asked =
        std::iter::from_fn(|| dht.poll_output()).any(|o| matches!(o, Output::Send { to, .. } if to == contact_of(1)));
    assert!(asked, "the contact it kept is asked at once");
}

#[test]
fn a_file_in_use_is_said_to_be() {
    let home = Home::new();
    let _open = open(&home.file());
    assert!(matches!(RedbBackend::open(&home.file()), Err(BackendError::InUse)));
}

fn filled(path: &Path) {
    let mut backend = open(path);
    let changes: Vec<_> = (1..30)
        .map(|n| {
            let service = key(&format!("service{n}"));
            let record = record(n, service, 100);
            Change::Put(StoredRecord {
                key: service,
                node: *record.node_id(),
                record: record.to_signed(),
                deliverer: deliverer(),
                expires_ms: EPOCH_MS,
                held_until_ms: EPOCH_MS + 1,
            })
        })
        .chain([Change::Contacts(
            (1..20).map(|n| StoredContact(contact_of(n))).collect(),
        )])
        .collect();
    backend.commit(&changes).unwrap();
}

#[test]
fn a_damaged_file_is_set_aside_and_the_next_one_works() {
    let home = Home::new();
    fs::write(home.file(), b"this is not a database, whatever it is").unwrap();
    let opened = RedbBackend::open(&home.file()).unwrap();
    let aside = opened.set_aside.unwrap();
    assert!(aside.exists() && aside != home.file());
    drop(opened.backend);
    filled(&home.file());
    assert_eq!(open(&home.file()).load().unwrap().records.len(), 29);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Reloading gives the committed changes.
    #[test]
    fn a_reload_equals_what_was_committed(
        steps in prop::collection::vec((1..8_usize, 0..3_u8, any::<bool>(), any::<u32>()), 1..40),
        contacts in 0..30_usize,
    ) {
        let home = Home::new();
        let mut model = std::collections::BTreeMap::new();
        for batch in steps.chunks(7) {
            let mut changes = Vec::new();
            for &(n, k, put, expires) in batch {
                let service = key(&format!("service{k}"));
                let node = *contact_of(n).node_id();
                if put {
                    let record = record(n, service, 100).to_signed();
                    let record = StoredRecord { key: service, node, record, deliverer: deliverer(), expires_ms: expires.into(), held_until_ms: u64::from(expires) + 7 };
                    model.insert((service, node), record.clone());
                    changes.push(Change::Put(record));
                } else {
                    model.remove(&(service, node));
                    changes.push(Change::Remove { key: service, node });
                }
            }
            open(&home.file()).commit(&changes).unwrap();
        }
        let contacts: Vec<_> = (0..contacts).map(|n| StoredContact(contact_of(n))).collect();
        open(&home.file()).commit(&[Change::Contacts(contacts.clone())]).unwrap();
        let loaded = open(&home.file()).load().unwrap();
        prop_assert_eq!(loaded, Loaded { records: model.into_values().collect(), contacts });
    }

    /// A file cut short or with bytes changed opens, or is set aside; it never crashes, and its contents can be decoded.
    #[test]
    fn a_cut_or_changed_file_never_crashes(
        cut in prop::option::of(any::<prop::sample::Index>()),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1..=255_u8), 0..6),
    ) {
        let home = Home::new();
        filled(&home.file());
        let mut bytes = fs::read(home.file()).unwrap();
        for (at, flip) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        fs::write(home.file(), bytes).unwrap();
        let mut backend = RedbBackend::open(&home.file()).unwrap().backend;
        prop_assert!(backend.load().unwrap().records.len() <= 29);
        prop_assert!(backend.commit(&[Change::Contacts(vec![StoredContact(contact_of(1))])]).is_ok());
    }
}
