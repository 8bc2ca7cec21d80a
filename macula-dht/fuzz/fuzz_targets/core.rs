//! Sequences of everything that can happen to a node: it never panics, ends each lookup once, and its timers move on.
#![no_main]

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use arbitrary::Arbitrary;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use macula_dht::{
    Config, Contact, Dht, Event, MAX_MESSAGE_BYTES, Memory, Output, Peer, Reply, Request, RequestFailed, Response,
    Role, Seed, Want,
};
use macula_wire::{Advertisement, Endpoint, NodeId, Realm, SecretKey, ServiceKey};

#[derive(Debug, Arbitrary)]
enum Step {
    Request { from: u8, client: bool, bytes: Vec<u8> },
    FindNode { from: u8, target: [u8; 2] },
    FindProviders { from: u8, key: u8, after: Option<u8> },
    Reply { at: u16, bytes: Vec<u8> },
    Nodes { at: u16, nodes: Vec<u8> },
    Providers { at: u16, nodes: Vec<u8>, more: bool },
    Pong { at: u16, client: bool },
    Fail { at: u16 },
    Identified { at: u16, node: u8 },
    Lookup { key: u8, want: u8 },
    Drop { at: u8 },
    Advertise { key: u8, ttl: u8 },
    Withdraw { key: u8 },
    Bootstrap { node: u8, known: bool },
    Wait { ms: u16 },
    Day,
}

fn contact(n: u8) -> Contact {
    let endpoint: Endpoint = format!("10.0.0.{n}:4433").parse().expect("an endpoint");
    Contact::new(NodeId::from_bytes([n; 32]), [endpoint])
}

fn key(n: u8) -> ServiceKey {
    ServiceKey::from_bytes([n % 4; 32])
}

fuzz_target!(|steps: Vec<Step>| {
    let mut now = Instant::now();
    let signer = SecretKey::from_bytes(&[1; 32]);
    let mut dht = Dht::new(
        Config::default(),
        signer,
        Realm::default(),
        Memory,
        now,
        1_800_000_000_000,
        1,
    );
    let (mut ids, mut queries, mut finished) = (Vec::new(), Vec::new(), BTreeSet::new());
    for step in steps.into_iter().take(400) {
        let id = |at: u16| ids.get(usize::from(at) % ids.len().max(1)).copied();
        let contacts = |nodes: Vec<u8>| nodes.into_iter().take(30).map(contact).collect::<Vec<_>>();
        let answer = |dht: &mut Dht<SecretKey>, at, response, role| {
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
        let serve = |dht: &mut Dht<SecretKey>, from, role, request| {
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
            Step::Identified { at, node } => {
                if let Some(id) = id(at) {
                    dht.handle_identified(now, id, [contact(node)]);
                }
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
        }
        dht.handle_timeout(now);
        assert!(dht.poll_timeout().is_none_or(|at| at > now));
        while let Some(output) = dht.poll_output() {
            match output {
                Output::Send { id, .. } | Output::Identify { id, .. } => ids.push(id),
                Output::Event(Event::Finished { query, .. }) => assert!(finished.insert(query), "two final events"),
                Output::Event(_) => {}
            }
        }
    }
});
