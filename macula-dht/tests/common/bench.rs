//! One core on a bench: the test makes its requests, its inputs and its answers.

use std::time::{Duration, Instant};

use macula_dht::{
    Config, Contact, Dht, Event, Memory, Outcome, Output, Peer, Reply, Request, RequestId, Response, Role,
};
use macula_wire::{Realm, SecretKey, ServiceKey, SignedProvider, VerifiedProvider};

use super::{EPOCH_MS, advertisement, contact_of, secret};

/// A core, and the time it is told.
pub(crate) struct Bench {
    pub(crate) now: Instant,
    pub(crate) dht: Dht<SecretKey>,
}

pub(crate) fn peer(n: usize) -> Peer {
    Peer {
        contact: contact_of(n),
        role: Role::Node,
    }
}

pub(crate) fn record(n: usize, key: ServiceKey, seq: u64) -> SignedProvider {
    let realm = Realm::default().hash();
    VerifiedProvider::sign(&secret(n), &realm, &key, seq, EPOCH_MS, &advertisement(n))
        .unwrap()
        .to_signed()
}

impl Bench {
    pub(crate) fn new(config: Config) -> Self {
        Self::with_secret(config, secret(0))
    }

    pub(crate) fn with_secret(config: Config, secret: SecretKey) -> Self {
        let now = Instant::now();
        Self {
            now,
            dht: Dht::new(config, secret, Realm::default(), Memory, now, EPOCH_MS, 7),
        }
    }

    /// Performs the outputs, each request answered by `peer`, and goes on to the next timeout.
    pub(crate) fn step(&mut self, mut peer: impl FnMut(Instant, Request) -> Response) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(output) = self.dht.poll_output() {
            match output {
                Output::Send { id, request, .. } => self.answer(id, peer(self.now, request)),
                Output::Identify { .. } => {}
                Output::Event(event) => events.push(event),
            }
        }
        self.now = self.dht.poll_timeout().unwrap_or(self.now).max(self.now);
        self.dht.handle_timeout(self.now);
        events
    }

    pub(crate) fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.dht.poll_output()).collect()
    }

    pub(crate) fn sends(&mut self) -> Vec<(RequestId, Contact, Request)> {
        let sends = self.outputs().into_iter().filter_map(|output| match output {
            Output::Send { id, to, request } => Some((id, to, request)),
            Output::Identify { .. } | Output::Event(_) => None,
        });
        sends.collect()
    }

    pub(crate) fn ask(&mut self, n: usize, request: Request) -> Response {
        self.dht.handle_request(self.now, &peer(n), Ok(request))
    }

    pub(crate) fn publish(&mut self, n: usize, key: ServiceKey, record: SignedProvider) -> Outcome {
        match self.ask(
            n,
            Request::Publish {
                key,
                records: vec![record],
            },
        ) {
            Response::Published { outcomes, .. } => outcomes[0],
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn answer(&mut self, id: RequestId, response: Response) {
        let reply = Reply {
            response: Ok(response),
            role: Role::Node,
            ip: None,
        };
        self.dht.handle_response(self.now, id, Ok(reply));
    }

    /// Takes nodes 1..=count into the table.
    pub(crate) fn befriend(&mut self, nodes: impl IntoIterator<Item = usize>) {
        for n in nodes {
            self.dht.add_contact(self.now, contact_of(n));
            for (id, ..) in self.sends() {
                self.answer(id, Response::Pong);
            }
        }
        self.outputs();
    }

    /// Lets `time` pass. `peers` answers requests; a request without an answer times out.
    pub(crate) fn run(
        &mut self,
        time: Duration,
        mut peers: impl FnMut(&Contact, &Request) -> Option<Response>,
    ) -> Vec<Event> {
        let (end, mut events) = (self.now + time, Vec::new());
        loop {
            while let Some(output) = self.dht.poll_output() {
                match output {
                    Output::Send { id, to, request } => {
                        if let Some(response) = peers(&to, &request) {
                            self.answer(id, response);
                        }
                    }
                    Output::Identify { .. } => {}
                    Output::Event(event) => events.push(event),
                }
            }
            match self.dht.poll_timeout().filter(|at| *at <= end) {
                Some(at) => self.now = at.max(self.now),
                None => break,
            }
            self.dht.handle_timeout(self.now);
        }
        self.now = end;
        events
    }
}

/// The answer of an honest node that knows no other node and stores every record.
pub(crate) fn agreeable(request: &Request) -> Response {
    match request {
        Request::Ping => Response::Pong,
        Request::FindNode { .. } => Response::Nodes(Vec::new()),
        Request::FindProviders { .. } => Response::Providers {
            records: Vec::new(),
            closest: Vec::new(),
            more: false,
        },
        Request::Publish { records, .. } => Response::Published {
            outcomes: vec![Outcome::Stored; records.len()],
            newer: Vec::new(),
        },
    }
}
