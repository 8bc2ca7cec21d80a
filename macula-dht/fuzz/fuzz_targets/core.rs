//! Sequences of everything that can happen to a node: it never panics, ends each lookup once, and its timers move on.
#![no_main]

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::{Duration, Instant},
};

use arbitrary::Arbitrary;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use macula_dht::{
    Backend, BackendError, Change, Config, Contact, Dht, Event, Loaded, MAX_MESSAGE_BYTES, Output, Peer, Reply,
    Request, RequestFailed, Response, Role, Seed, StoredContact, StoredRecord, Want,
};
use macula_wire::{
    Address, Advertisement, NodeId, Realm, SecretKey, ServiceKey, SignedProvider, Signer, VerifiedProvider,
};

const EPOCH_MS: u64 = 1_800_000_000_000;

#[derive(Debug, Arbitrary)]
enum Step {
    Request {
        from: u8,
        client: bool,
        bytes: Vec<u8>,
    },
    FindNode {
        from: u8,
        target: [u8; 2],
    },
    FindProviders {
        from: u8,
        key: u8,
        after: Option<u8>,
    },
    Reply {
        at: u16,
        bytes: Vec<u8>,
    },
    Nodes {
        at: u16,
        nodes: Vec<u8>,
    },
    Providers {
        at: u16,
        nodes: Vec<u8>,
        more: bool,
    },
    Pong {
        at: u16,
        client: bool,
    },
    Fail {
        at: u16,
    },
    Identified {
        at: u16,
        nodes: Vec<u8>,
    },
    Publish {
        by: u8,
        key: u8,
        age: u16,
        withdrawn: bool,
    },
    Records {
        at: u16,
        by: Vec<u8>,
        key: u8,
        age: u16,
        withdrawn: bool,
        more: bool,
    },
    Lookup {
        key: u8,
        want: u8,
    },
    Drop {
        at: u8,
    },
    Advertise {
        key: u8,
        ttl: u8,
    },
    Withdraw {
        key: u8,
    },
    Bootstrap {
        node: u8,
        known: bool,
    },
    Wait {
        ms: u16,
    },
    Day,
    Flush,
    /// The process ends, and starts again with the kept records and contacts; some may be damaged.
    Restart {
        damaged: Option<u8>,
        later: u16,
    },
}

/// Keeps changes as a file would.
#[derive(Debug, Default, Clone)]
struct Kept {
    records: BTreeMap<(ServiceKey, NodeId), StoredRecord>,
    contacts: Vec<StoredContact>,
}

/// Shared by one process and the next.
#[derive(Debug, Default, Clone)]
struct File(Rc<RefCell<Kept>>);

impl Backend for File {
    fn load(&mut self) -> Result<Loaded, BackendError> {
        let kept = self.0.borrow();
        Ok(Loaded {
            records: kept.records.values().cloned().collect(),
            contacts: kept.contacts.clone(),
        })
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), BackendError> {
        let mut kept = self.0.borrow_mut();
        for change in changes {
            match change {
                Change::Put(record) => drop(kept.records.insert((record.key, record.node), record.clone())),
                Change::Remove { key, node } => drop(kept.records.remove(&(*key, *node))),
                Change::Contacts(contacts) => kept.contacts.clone_from(contacts),
            }
        }
        Ok(())
    }
}

fn start(now: Instant, unix_ms: u64, file: &File) -> Node {
    let signer = SecretKey::from_bytes(&[1; 32]);
    Dht::new(
        Config::default(),
        signer,
        Realm::default(),
        file.clone(),
        now,
        unix_ms,
        1,
    )
}

type Node = Dht<SecretKey, File>;

/// A record of provider `by`, signed `age` seconds before the time it is at the node.
fn record(by: u8, key: ServiceKey, unix_ms: u64, age: u16, withdrawn: bool) -> Option<SignedProvider> {
    let signer = SecretKey::from_bytes(&[by; 32]);
    let realm = Realm::default().hash();
    let issued = unix_ms.saturating_sub(u64::from(age) * 1000);
    let signed = if withdrawn {
        let ttl = Duration::from_secs(300);
        VerifiedProvider::sign_withdrawal(&signer, &realm, &key, issued, issued, ttl)
    } else {
        let advertisement = Advertisement::new(contact(by).endpoints().to_vec());
        VerifiedProvider::sign(&signer, &realm, &key, issued, issued, &advertisement)
    };
    signed.ok().map(|record| record.to_signed())
}

fn contact(n: u8) -> Contact {
    let endpoint: Address = format!("10.0.0.{n}:4433").parse().expect("an endpoint");
    Contact::new(NodeId::from_bytes([n; 32]), [endpoint])
}

fn key(n: u8) -> ServiceKey {
    ServiceKey::from_bytes([n % 4; 32])
}

fuzz_target!(|steps: Vec<Step>| {
    let begin = Instant::now();
    let mut now = begin;
    let file = File::default();
    let mut dht = start(now, EPOCH_MS, &file);
    let own = SecretKey::from_bytes(&[1; 32]).node_id();
    let (mut ids, mut queries, mut finished) = (Vec::new(), Vec::new(), BTreeSet::new());
    for step in steps.into_iter().take(400) {
        let unix_ms = EPOCH_MS + (now - begin).as_millis() as u64;
        let id = |at: u16| ids.get(usize::from(at) % ids.len().max(1)).copied();
        let contacts = |nodes: Vec<u8>| nodes.into_iter().take(30).map(contact).collect::<Vec<_>>();
        let answer = |dht: &mut Node, at, response, role| {
            if let Some(id) = id(at) {
                dht.handle_response(
                    now,
                    id,
                    Ok(Reply {
                        response,
                        role,
                        ip: None,
                    }),
                );
            }
        };
        let serve = |dht: &mut Node, from, role, request| {
            let peer = Peer {
                contact: contact(from),
                role,
            };
            assert!(dht.handle_request(now, &peer, request).encode().len() <= MAX_MESSAGE_BYTES);
        };
        match step {
            Step::Request { from, client, bytes } => {
                let role = if client { Role::Client } else { Role::Node };
                serve(&mut dht, from, role, Request::decode(Bytes::from(bytes)));
            }
            Step::FindNode { from, target } => {
                let mut id = [0; 32];
                id[..2].copy_from_slice(&target);
                let target = NodeId::from_bytes(id).into();
                serve(&mut dht, from, Role::Node, Ok(Request::FindNode { target }));
            }
            Step::FindProviders { from, key: k, after } => {
                let after = after.map(|n| NodeId::from_bytes([n; 32]));
                serve(
                    &mut dht,
                    from,
                    Role::Node,
                    Ok(Request::FindProviders { key: key(k), after }),
                );
            }
            Step::Reply { at, bytes } => answer(&mut dht, at, Response::decode(Bytes::from(bytes)), Role::Node),
            Step::Nodes { at, nodes } => answer(&mut dht, at, Ok(Response::Nodes(contacts(nodes))), Role::Node),
            Step::Providers { at, nodes, more } => {
                let response = Response::Providers {
                    records: Vec::new(),
                    closest: contacts(nodes),
                    more,
                };
                answer(&mut dht, at, Ok(response), Role::Node);
            }
            Step::Pong { at, client } => {
                answer(
                    &mut dht,
                    at,
                    Ok(Response::Pong),
                    if client { Role::Client } else { Role::Node },
                );
            }
            Step::Fail { at } => {
                if let Some(id) = id(at) {
                    dht.handle_response(now, id, Err(RequestFailed::Lost));
                }
            }
            Step::Identified { at, nodes } => {
                if let Some(id) = id(at) {
                    dht.handle_identified(now, id, nodes.into_iter().map(contact));
                }
            }
            Step::Publish {
                by,
                key: k,
                age,
                withdrawn,
            } => {
                let records = record(by, key(k), unix_ms, age, withdrawn).into_iter().collect();
                let request = Request::Publish { key: key(k), records };
                serve(&mut dht, by, Role::Node, Ok(request));
            }
            Step::Records {
                at,
                by,
                key: k,
                age,
                withdrawn,
                more,
            } => {
                let records = by
                    .into_iter()
                    .take(8)
                    .filter_map(|by| record(by, key(k), unix_ms, age, withdrawn));
                let response = Response::Providers {
                    records: records.collect(),
                    closest: Vec::new(),
                    more,
                };
                answer(&mut dht, at, Ok(response), Role::Node);
            }
            Step::Lookup { key: k, want } => {
                let want = [Want::First, Want::AtLeast(3), Want::All][usize::from(want) % 3];
                queries.extend(dht.start_lookup(now, key(k), want));
            }
            Step::Drop { at } => {
                if let Some(&query) = queries.get(usize::from(at)) {
                    dht.drop_query(query);
                }
            }
            Step::Advertise { key: k, ttl } => {
                let ttl = Duration::from_secs(20 + u64::from(ttl));
                let advertisement = Advertisement::new(contact(1).endpoints().to_vec()).with_ttl(ttl);
                dht.advertise(now, key(k), advertisement)
                    .expect("a valid advertisement");
            }
            Step::Withdraw { key: k } => dht.withdraw(now, key(k)),
            Step::Bootstrap { node, known: true } => dht.bootstrap(now, [Seed::from(contact(node))]),
            Step::Bootstrap { node, known: false } => {
                dht.bootstrap(now, [Seed::from(contact(node).endpoints()[0].clone())]);
            }
            Step::Wait { ms } => now += Duration::from_millis(ms.into()),
            Step::Day => now += Duration::from_secs(86_400),
            Step::Flush => dht.flush(now),
            Step::Restart { damaged, later } => {
                dht.flush(now);
                if let Some(at) = damaged {
                    let mut kept = file.0.borrow_mut();
                    let count = kept.records.len().max(1);
                    if let Some(record) = kept.records.values_mut().nth(usize::from(at) % count) {
                        let mut body = record.record.body.to_vec();
                        let at = usize::from(at) % body.len().max(1);
                        body.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1);
                        record.record.body = Bytes::from(body);
                    }
                }
                now += Duration::from_millis(later.into());
                dht = start(now, EPOCH_MS + (now - begin).as_millis() as u64, &file);
                (ids, queries, finished) = (Vec::new(), Vec::new(), BTreeSet::new());
            }
        }
        dht.handle_timeout(now);
        assert!(dht.poll_timeout().is_none_or(|at| at > now));
        // D4: a shown record has not expired. D1: it is there once.
        let unix_ms = EPOCH_MS + (now - begin).as_millis() as u64;
        for key in (0..4).map(key) {
            let mut providers = BTreeSet::new();
            for shown in dht.local_providers(now, &key) {
                assert!(providers.insert(*shown.node_id()), "a provider twice");
                assert!(!shown.is_withdrawn());
                let until = shown.advertised_at_ms() + shown.ttl().as_millis() as u64;
                assert!(until > unix_ms || *shown.node_id() == own, "expired");
            }
        }
        while let Some(output) = dht.poll_output() {
            match output {
                Output::Send { id, .. } | Output::Identify { id, .. } => ids.push(id),
                Output::Event(Event::Finished { query, .. }) => assert!(finished.insert(query), "two final events"),
                Output::Event(_) => {}
            }
        }
    }
});
