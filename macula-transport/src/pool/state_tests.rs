//! The pool's policy against a model that keeps everything it was told and checks every answer by the rules.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use macula_wire::Network;
use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Get { peer: u8, addresses: u64 },
    FirstContact { at: u64 },
    DialOk { which: usize, peer: u8 },
    DialFailed { which: usize, failure: DialFailure },
    Accepted { peer: u8 },
    Closed { which: usize },
    Retired { which: usize },
    Busy { which: usize },
    Idle { which: usize },
    Advance { millis: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0..8_usize;
    let failure = prop_oneof![Just(DialFailure::Unreachable), Just(DialFailure::Refused)];
    prop_oneof![
        5 => (0..6_u8, 0..2_u64).prop_map(|(peer, addresses)| Step::Get { peer, addresses }),
        2 => (0..3_u64).prop_map(|at| Step::FirstContact { at }),
        4 => (which.clone(), 0..6_u8).prop_map(|(which, peer)| Step::DialOk { which, peer }),
        2 => (which.clone(), failure).prop_map(|(which, failure)| Step::DialFailed { which, failure }),
        2 => (0..6_u8).prop_map(|peer| Step::Accepted { peer }),
        1 => which.clone().prop_map(|which| Step::Closed { which }),
        1 => which.clone().prop_map(|which| Step::Retired { which }),
        2 => which.clone().prop_map(|which| Step::Busy { which }),
        2 => which.prop_map(|which| Step::Idle { which }),
        3 => (0..4000_u64).prop_map(|millis| Step::Advance { millis }),
    ]
}

struct ModelConnection {
    peer: u8,
    origin: Origin,
    retired: bool,
    activity: Activity,
    opened: Instant,
    found_at: Option<u64>,
}

/// Connections that share a limit.
#[derive(Debug, Clone, Copy)]
enum Share {
    All(Origin),
    /// Accepted, from one network.
    From(u8),
    /// Accepted, of one peer.
    Of(u8),
}

impl Share {
    fn has(self, it: &ModelConnection) -> bool {
        match self {
            Self::All(origin) => it.origin == origin,
            Self::From(network) => it.origin == Origin::Accepted && it.peer % 2 == network,
            Self::Of(peer) => it.origin == Origin::Accepted && it.peer == peer,
        }
    }
}

const LIMITS: AcceptLimits = AcceptLimits {
    all: 5,
    each_network: 3,
    each_peer: 2,
};

fn network(number: u8) -> Network {
    Network::of([10, 0, number, 1].into())
}

struct Failure {
    addresses: u64,
    at: Instant,
    longest: Duration,
}

/// What the pool was told, and no rule.
struct Model {
    config: PoolConfig,
    now: Instant,
    connections: RefCell<BTreeMap<ConnectionId, ModelConnection>>,
    dials: BTreeMap<Ticket, (Option<u8>, u64)>,
    failures: BTreeMap<u8, Failure>,
}

const CONFIG: PoolConfig = PoolConfig {
    max_connections: 3,
    idle_timeout: Duration::from_secs(5),
    max_age: Duration::from_secs(30),
    first_backoff: Duration::from_millis(100),
    max_backoff: Duration::from_secs(1),
    max_refused_backoff: Duration::from_secs(8),
};

impl Model {
    fn activity(&self, id: ConnectionId) -> Activity {
        self.connections.borrow()[&id].activity
    }

    fn count(&self, share: Share) -> usize {
        self.connections.borrow().values().filter(|it| share.has(it)).count()
    }

    fn idle(&self, share: Share) -> Option<(Instant, ConnectionId)> {
        let connections = self.connections.borrow();
        let sharing = connections.iter().filter(|(_, it)| share.has(it));
        sharing
            .filter_map(|(&id, it)| match it.activity {
                Activity::IdleSince(since) => Some((since, id)),
                Activity::Busy => None,
            })
            .min()
    }

    /// P2: what is closed is idle: the longest unused one to make room, or all that were unused for too long.
    fn take_outputs(&mut self, state: &mut PoolState<u8, u8>, share: Share) -> Vec<Output> {
        let mut outputs = Vec::new();
        while let Some(output) = state.poll_output() {
            let (id, why) = match output {
                Output::Close(id, why) => (id, why),
                Output::Retire(id) => {
                    let mut connections = self.connections.borrow_mut();
                    let connection = connections.get_mut(&id).unwrap();
                    assert!(
                        self.now >= connection.opened + CONFIG.max_age.mul_f64(1.0 - AGE_SPREAD),
                        "retired while young"
                    );
                    connection.retired = true;
                    continue;
                }
                Output::Displace(_) => panic!("only a peer that dials takes a place in use"),
            };
            match (why, self.activity(id)) {
                (_, Activity::Busy) => panic!("a connection in use was closed"),
                (Closing::Evicted, Activity::IdleSince(since)) => {
                    assert_eq!(self.idle(share), Some((since, id)), "another was unused for longer");
                }
                (Closing::Idle, Activity::IdleSince(since)) => assert!(since + CONFIG.idle_timeout <= self.now),
            }
            self.connections.borrow_mut().remove(&id);
            outputs.push(output);
        }
        outputs
    }

    /// X8: a connection in use is closed only for a peer, or a network, that has fewer; or for the same peer, which has its most.
    fn made_room(&mut self, state: &mut PoolState<u8, u8>, newcomer: u8) -> Option<Output> {
        let output = state.poll_output()?;
        assert_eq!(state.poll_output(), None, "one place is enough");
        let (Output::Close(id, Closing::Evicted) | Output::Displace(id)) = output else {
            panic!("{output:?} makes no room");
        };
        let victim = self.connections.borrow()[&id].peer;
        let network = |peer: u8| self.count(Share::From(peer % 2));
        let has_more = match victim % 2 == newcomer % 2 {
            true => self.count(Share::Of(victim)) > self.count(Share::Of(newcomer)) + 1,
            false => network(victim) > network(newcomer) + 1,
        };
        let own = victim == newcomer && self.count(Share::Of(newcomer)) == LIMITS.each_peer;
        match self.activity(id) {
            Activity::Busy => {
                assert!(has_more || own, "a peer with no more lost a connection in use");
                assert_eq!(self.idle(Share::Of(victim)), None, "an idle one could have made room");
            }
            Activity::IdleSince(_) => {
                assert!(matches!(output, Output::Close(..)));
                let in_full_network =
                    victim % 2 == newcomer % 2 && self.count(Share::From(newcomer % 2)) == LIMITS.each_network;
                assert!(
                    has_more || own || in_full_network || self.has_more(victim, newcomer),
                    "a peer with no more lost an idle connection"
                );
            }
        }
        self.connections.borrow_mut().remove(&id);
        Some(output)
    }

    /// Whether an idle connection of `holder` may go to `newcomer`, where no holder has to give way.
    fn has_more(&self, holder: u8, newcomer: u8) -> bool {
        match holder % 2 == newcomer % 2 {
            true => holder == newcomer || self.count(Share::Of(holder)) > self.count(Share::Of(newcomer)),
            false => self.count(Share::From(holder % 2)) > self.count(Share::From(newcomer % 2)),
        }
    }

    /// X8: no one is refused while another has more than one more, or has more and is idle.
    fn is_right_to_refuse(&self, newcomer: u8) {
        match self.count(Share::From(newcomer % 2)) >= LIMITS.each_network {
            true => assert_eq!(self.idle(Share::From(newcomer % 2)), None),
            false => {
                assert_eq!(self.count(Share::All(Origin::Accepted)), LIMITS.all);
                let networks = [0, 1].map(|network| self.count(Share::From(network)));
                assert!(
                    networks
                        .iter()
                        .all(|&holds| holds <= networks[usize::from(newcomer % 2)] + 1)
                );
                for holder in (0..6).filter(|&holder| self.has_more(holder, newcomer)) {
                    assert_eq!(self.idle(Share::Of(holder)), None);
                }
            }
        }
        let of = |peer| self.count(Share::Of(peer));
        assert!(
            (0..6)
                .filter(|peer| peer % 2 == newcomer % 2)
                .all(|peer| of(peer) <= of(newcomer) + 1)
        );
    }

    fn get(&mut self, state: &mut PoolState<u8, u8>, peer: u8, addresses: u64) -> Answer {
        let answer = state.get(self.now, &peer, addresses, DialedFor::Itself, |id| self.activity(id));
        let open: BTreeSet<_> = {
            let connections = self.connections.borrow();
            connections
                .iter()
                .filter(|(_, it)| it.peer == peer && !it.retired)
                .map(|(&id, _)| id)
                .collect()
        };
        let dialing = self
            .dials
            .iter()
            .find(|(_, dialed)| **dialed == (Some(peer), addresses))
            .map(|(&ticket, _)| ticket);
        match answer {
            Answer::Ready(id) => assert!(open.contains(&id)),
            _ => assert!(open.is_empty(), "an open connection was not used"),
        }
        match answer {
            Answer::Ready(_) => {}
            Answer::Join(ticket) => assert_eq!(dialing, Some(ticket)),
            Answer::Dial(ticket) => {
                assert_eq!(dialing, None, "P1: two dials to one peer at the same addresses");
                self.dials.insert(ticket, (Some(peer), addresses));
            }
            Answer::BackOff(until) => {
                let failure = &self.failures[&peer];
                assert!(failure.addresses == addresses && self.now < until);
                assert!(until <= failure.at + failure.longest, "the pause is bounded");
            }
            Answer::Full => {
                assert!(self.count(Share::All(Origin::Dialed)) + self.dials.len() >= self.config.max_connections);
                assert_eq!(
                    self.idle(Share::All(Origin::Dialed)),
                    None,
                    "an idle connection could have made room"
                );
            }
        }
        answer
    }

    fn first_contact(&mut self, state: &mut PoolState<u8, u8>, at: u64) -> Answer {
        let answer = state.get_anyone(at, |id| self.activity(id));
        let open: Vec<_> = {
            let connections = self.connections.borrow();
            let found = connections
                .iter()
                .filter(|(_, it)| it.found_at == Some(at) && !it.retired);
            found.map(|(&id, _)| id).collect()
        };
        let dialing = self
            .dials
            .iter()
            .find(|(_, dialed)| **dialed == (None, at))
            .map(|(&ticket, _)| ticket);
        match answer {
            Answer::Ready(id) => assert!(open.contains(&id)),
            _ => assert!(open.is_empty(), "the connection made at this address was not used"),
        }
        match answer {
            Answer::Ready(_) => {}
            Answer::Join(ticket) => assert_eq!(dialing, Some(ticket)),
            Answer::Dial(ticket) => {
                assert_eq!(dialing, None, "P1: two dials to one address");
                self.dials.insert(ticket, (None, at));
            }
            Answer::BackOff(_) => panic!("a dial backs off although no dial has failed there"),
            Answer::Full => {
                assert!(self.count(Share::All(Origin::Dialed)) + self.dials.len() >= self.config.max_connections);
                assert_eq!(self.idle(Share::All(Origin::Dialed)), None);
            }
        }
        answer
    }

    fn add(&self, id: ConnectionId, peer: u8, origin: Origin, found_at: Option<u64>) {
        let activity = Activity::IdleSince(self.now);
        let added = ModelConnection {
            peer,
            origin,
            retired: false,
            activity,
            opened: self.now,
            found_at,
        };
        assert!(
            self.connections.borrow_mut().insert(id, added).is_none(),
            "an id was used twice"
        );
    }

    fn pick(&self, which: usize) -> Option<ConnectionId> {
        let connections = self.connections.borrow();
        connections.keys().nth(which % connections.len().max(1)).copied()
    }

    fn pick_dial(&self, which: usize) -> Option<Ticket> {
        self.dials.keys().nth(which % self.dials.len().max(1)).copied()
    }

    fn apply(&mut self, state: &mut PoolState<u8, u8>, step: &Step) -> String {
        let share = Share::All(Origin::Dialed);
        let mut answer = String::new();
        match *step {
            Step::Get { peer, addresses } => answer = format!("{:?}", self.get(state, peer, addresses)),
            Step::FirstContact { at } => answer = format!("{:?}", self.first_contact(state, at)),
            Step::DialOk { which, peer } => {
                if let Some(ticket) = self.pick_dial(which) {
                    let (dialed, at) = self.dials.remove(&ticket).unwrap();
                    let found_at = dialed.is_none().then_some(at);
                    let peer = dialed.unwrap_or(peer);
                    self.failures.remove(&peer);
                    self.add(state.dialed(self.now, ticket, peer), peer, Origin::Dialed, found_at);
                }
            }
            Step::DialFailed { which, failure } => {
                if let Some(ticket) = self.pick_dial(which) {
                    let (dialed, addresses) = self.dials.remove(&ticket).unwrap();
                    state.dial_failed(self.now, ticket, failure, 0);
                    let longest = match failure {
                        DialFailure::Unreachable => self.config.max_backoff,
                        DialFailure::Refused => self.config.max_refused_backoff,
                    };
                    dialed.map(|peer| {
                        self.failures.insert(
                            peer,
                            Failure {
                                addresses,
                                at: self.now,
                                longest,
                            },
                        )
                    });
                }
            }
            Step::Accepted { peer } => {
                let newcomer = Holder::new(network(peer % 2), peer);
                match state.accepted(self.now, newcomer, |id| self.activity(id)) {
                    Some(id) => {
                        answer = format!("{:?}", self.made_room(state, peer));
                        self.failures.remove(&peer);
                        self.add(id, peer, Origin::Accepted, None);
                    }
                    None => self.is_right_to_refuse(peer),
                }
            }
            Step::Closed { which } => {
                if let Some(id) = self.pick(which) {
                    state.closed(id);
                    self.connections.borrow_mut().remove(&id);
                }
            }
            Step::Retired { which } => {
                if let Some(id) = self.pick(which) {
                    state.retired(id);
                    self.connections.borrow_mut().get_mut(&id).unwrap().retired = true;
                }
            }
            Step::Busy { which } => {
                if let Some(id) = self.pick(which) {
                    self.connections.borrow_mut().get_mut(&id).unwrap().activity = Activity::Busy;
                }
            }
            Step::Idle { which } => {
                if let Some(id) = self.pick(which) {
                    self.connections.borrow_mut().get_mut(&id).unwrap().activity = Activity::IdleSince(self.now);
                }
            }
            Step::Advance { millis } => {
                self.now += Duration::from_millis(millis);
                state.handle_timeout(self.now, |id| self.activity(id));
                assert!(state.poll_timeout().is_none_or(|at| at > self.now));
            }
        }
        let outputs = self.take_outputs(state, share);
        answer + &format!("{outputs:?}")
    }
}

fn run(steps: &[Step], start: Instant) -> Vec<String> {
    let mut state = PoolState::new(CONFIG, LIMITS, 7);
    let mut model = Model {
        config: CONFIG,
        now: start,
        connections: RefCell::default(),
        dials: BTreeMap::new(),
        failures: BTreeMap::new(),
    };
    let mut trace = Vec::new();
    for step in steps {
        trace.push(model.apply(&mut state, step));
        assert!(
            model.count(Share::All(Origin::Dialed)) + model.dials.len() <= CONFIG.max_connections,
            "P2: too many connections"
        );
        assert!(model.count(Share::All(Origin::Accepted)) <= LIMITS.all);
        assert!((0..2).all(|network| model.count(Share::From(network)) <= LIMITS.each_network));
        assert_eq!(state.len(), model.connections.borrow().len());
        let too_long = |it: &ModelConnection| matches!(it.activity, Activity::IdleSince(since) if since + CONFIG.idle_timeout <= model.now);
        if matches!(step, Step::Advance { .. }) {
            assert!(
                !model.connections.borrow().values().any(too_long),
                "P2: a connection was idle for too long"
            );
            let old = |it: &ModelConnection| {
                it.origin == Origin::Dialed
                    && !it.retired
                    && it.opened + CONFIG.max_age.mul_f64(1.0 + AGE_SPREAD) <= model.now
            };
            assert!(
                !model.connections.borrow().values().any(old),
                "an old connection is still handed out"
            );
        }
    }
    trace
}

proptest! {
    #[test]
    fn p1_p2_every_answer_follows_the_rules(steps in prop::collection::vec(step(), 1..200)) {
        let start = Instant::now();
        let trace = run(&steps, start);
        prop_assert_eq!(trace, run(&steps, start), "same inputs, same outputs");
    }
}

/// The network has many peers with one connection each, so no holder has to give way to the next of them.
#[test]
fn x8_the_network_with_most_connections_takes_no_idle_one_of_another() {
    let limits = AcceptLimits {
        all: 4,
        each_network: 4,
        each_peer: 2,
    };
    let mut state: PoolState<u8, ()> = PoolState::new(CONFIG, limits, 1);
    let now = Instant::now();
    let idle = |_| Activity::IdleSince(now);
    let mut accept = |peer: u8, from| state.accepted(now, Holder::new(network(from), peer), idle);
    let honest = accept(0, 0).unwrap();
    let first = [1, 2, 3].map(|peer| accept(peer, 1).unwrap())[0];
    assert!(accept(4, 1).is_some());
    assert!(accept(5, 2).is_some(), "a network without any is let in");
    let mut closed = Vec::new();
    while let Some(Output::Close(id, _)) = state.poll_output() {
        closed.push(id);
    }
    assert!(
        closed[0] == first && closed.len() == 2 && !closed.contains(&honest),
        "{closed:?}"
    );
}

#[test]
fn a_failing_peer_is_left_alone_for_longer_each_time_and_at_once_reached_at_a_new_address() {
    let mut state: PoolState<u8, ()> = PoolState::new(CONFIG, LIMITS, 1);
    let idle = |_| Activity::Busy;
    let mut now = Instant::now();
    let mut pauses = Vec::new();
    for _ in 0..20 {
        let Answer::Dial(ticket) = state.get(now, &1, 0, DialedFor::Itself, idle) else {
            panic!("a pause that is over still holds")
        };
        state.dial_failed(now, ticket, DialFailure::Unreachable, ());
        let Answer::BackOff(until) = state.get(now, &1, 0, DialedFor::Itself, idle) else {
            panic!("a failure is forgotten at once")
        };
        pauses.push(until - now);
        now = until;
    }
    assert!(pauses[0] >= CONFIG.first_backoff.mul_f64(1.0 - BACKOFF_SPREAD));
    assert!(
        pauses[0] < pauses[5] && pauses.iter().all(|&pause| pause <= CONFIG.max_backoff),
        "{pauses:?}"
    );
    let Answer::Dial(ticket) = state.get(now, &1, 0, DialedFor::Itself, idle) else {
        panic!("a pause that is over still holds")
    };
    state.dial_failed(now, ticket, DialFailure::Unreachable, ());
    assert!(
        matches!(state.get(now, &1, 1, DialedFor::Itself, idle), Answer::Dial(_)),
        "known at a new address"
    );
}

/// Peers whose calls are passed on take half of the places at most, though all of their connections are in use; a connection that this
/// node uses as well is its own.
#[test]
fn x5_dials_for_peers_leave_half_of_the_places_to_this_node() {
    let config = PoolConfig {
        max_connections: 4,
        ..PoolConfig::default()
    };
    let mut state = PoolState::<u8, u8>::new(config, LIMITS, 1);
    let now = Instant::now();
    let busy = |_| Activity::Busy;
    let dial = |state: &mut PoolState<u8, u8>, peer, by| match state.get(now, &peer, 0, by, busy) {
        Answer::Dial(ticket) => Some(state.dialed(now, ticket, peer)),
        Answer::Ready(connection) => Some(connection),
        _ => None,
    };
    assert!(dial(&mut state, 1, DialedFor::Peers).is_some());
    assert!(dial(&mut state, 2, DialedFor::Peers).is_some());
    assert_eq!(dial(&mut state, 3, DialedFor::Peers), None);
    assert!(dial(&mut state, 3, DialedFor::Itself).is_some());
    assert!(dial(&mut state, 1, DialedFor::Itself).is_some(), "the open connection");
    assert!(
        dial(&mut state, 4, DialedFor::Peers).is_some(),
        "one is this node's own now"
    );
    assert_eq!(dial(&mut state, 5, DialedFor::Itself), None, "all are in use");
}
