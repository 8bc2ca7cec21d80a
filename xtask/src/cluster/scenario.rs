//! The scenarios: what is done to a mesh, and what the specification promises its callers.

/// What is done to a node, and after how many seconds of load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fault {
    /// SIGKILL: the node tells its peers nothing.
    Kill(usize),
    /// SIGTERM: the node drains and leaves. The step lasts until it has ended.
    Leave(usize),
    /// The node starts again at its place, with its key and its store.
    Restart(usize),
    /// The node's place is given up, and a node with a new key starts at a new place.
    Replace(usize),
    /// The process stands still: SIGSTOP, or the container is paused.
    Pause(usize),
    /// The process goes on.
    Resume(usize),
    /// The node's link carries nothing in either direction.
    Cut(usize),
    /// The node's link works again.
    Heal(usize),
    /// The first node's packets no longer reach the second.
    Block(usize, usize),
    /// They do again.
    Unblock(usize, usize),
    /// The host takes a new address, and gives up the old one, while the node runs.
    Move(usize),
    /// The node's link drops packets of more bytes than this without a word (RFC 8899's black hole).
    Mtu(usize, u32),
}

impl Fault {
    /// Whether the fault is one of the network, which processes on one loopback interface cannot have apart.
    pub(crate) fn is_of_network(self) -> bool {
        match self {
            Self::Cut(_) | Self::Heal(_) | Self::Block(..) | Self::Unblock(..) | Self::Move(_) | Self::Mtu(..) => true,
            Self::Kill(_) | Self::Leave(_) | Self::Restart(_) | Self::Replace(_) | Self::Pause(_) | Self::Resume(_) => {
                false
            }
        }
    }
}

/// The addresses that the hosts have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// What callers are promised while and after the faults happen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Promise {
    /// Calls that may fail although a provider could be reached during all of the call.
    pub(crate) failed: u64,
    /// How long a call may take that was made while a provider could be reached, in milliseconds.
    pub(crate) longest_ms: u64,
    /// Every provider that lives at the end answers again within so many seconds of the last fault.
    pub(crate) recovered_s: f64,
}

/// One scenario.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// One line for a person.
    pub(crate) does: &'static str,
    /// The rules of the specification that the promise comes from.
    pub(crate) rules: &'static str,
    pub(crate) providers: usize,
    pub(crate) callers: usize,
    /// Calls a second, all callers together.
    pub(crate) rate: u32,
    /// Bytes of each request.
    pub(crate) payload: u32,
    /// Seconds of load.
    pub(crate) lasts: u32,
    pub(crate) family: Family,
    pub(crate) steps: &'static [(f64, Fault)],
    pub(crate) promise: Promise,
    /// Part of what the CI runs.
    pub(crate) quick: bool,
}

/// A mesh of three providers under a light load, to which nothing happens.
const PLAIN: Scenario = Scenario {
    name: "plain",
    does: "nothing happens",
    rules: "N2",
    providers: 3,
    callers: 3,
    rate: 60,
    payload: 64,
    lasts: 8,
    family: Family::V4,
    steps: &[],
    promise: Promise {
        failed: 0,
        longest_ms: 1_000,
        recovered_s: 5.0,
    },
    quick: false,
};

/// Every scenario. Node 0 is the bootstrap node and provides nothing; the providers are 1, 2, ….
pub(crate) const ALL: &[Scenario] = &[
    Scenario {
        name: "six-steps",
        does: "three providers, callers learn all three, one is killed with SIGKILL, no call is lost",
        rules: "N2 P1",
        steps: &[(4.0, Fault::Kill(3))],
        quick: true,
        ..PLAIN
    },
    Scenario {
        name: "kill",
        does: "two of three providers are killed, one after the other, and start again",
        rules: "L6 H5",
        lasts: 16,
        steps: &[
            (3.0, Fault::Kill(1)),
            (6.0, Fault::Restart(1)),
            (9.0, Fault::Kill(2)),
            (11.0, Fault::Restart(2)),
        ],
        quick: true,
        ..PLAIN
    },
    Scenario {
        name: "rolling-restart",
        does: "each provider leaves on SIGTERM and starts again",
        rules: "N4 H6",
        lasts: 14,
        steps: &[
            (2.0, Fault::Leave(1)),
            (3.0, Fault::Restart(1)),
            (5.0, Fault::Leave(2)),
            (6.0, Fault::Restart(2)),
            (8.0, Fault::Leave(3)),
            (9.0, Fault::Restart(3)),
        ],
        quick: true,
        ..PLAIN
    },
    Scenario {
        name: "rolling-replacement",
        does: "each provider is replaced by one with a new key at a new place, and leaves",
        rules: "D12",
        lasts: 18,
        steps: &[
            (3.0, Fault::Replace(1)),
            (7.0, Fault::Replace(2)),
            (11.0, Fault::Replace(3)),
        ],
        quick: true,
        ..PLAIN
    },
    Scenario {
        name: "pause",
        does: "a provider stands still for 5 s",
        rules: "L1 L2 L6",
        lasts: 14,
        steps: &[(3.0, Fault::Pause(2)), (8.0, Fault::Resume(2))],
        ..PLAIN
    },
    Scenario {
        name: "partition",
        does: "a provider's link is cut for 6 s",
        rules: "L6 N3",
        lasts: 16,
        steps: &[(3.0, Fault::Cut(1)), (9.0, Fault::Heal(1))],
        quick: true,
        ..PLAIN
    },
    Scenario {
        name: "one-way",
        does: "a provider hears its callers and cannot answer for 6 s",
        rules: "L1 L6",
        lasts: 16,
        steps: &[
            (3.0, Fault::Block(1, 4)),
            (3.0, Fault::Block(1, 5)),
            (3.0, Fault::Block(1, 6)),
            (9.0, Fault::Unblock(1, 4)),
            (9.0, Fault::Unblock(1, 5)),
            (9.0, Fault::Unblock(1, 6)),
        ],
        ..PLAIN
    },
    Scenario {
        name: "bootstrap-killed",
        does: "the bootstrap node is killed and stays away",
        rules: "N3",
        lasts: 10,
        steps: &[(2.0, Fault::Kill(0))],
        ..PLAIN
    },
    Scenario {
        name: "all-killed",
        does: "every provider is killed and starts again 2 s later",
        rules: "H5 H6 N3",
        lasts: 16,
        steps: &[
            (3.0, Fault::Kill(1)),
            (3.0, Fault::Kill(2)),
            (3.0, Fault::Kill(3)),
            (5.0, Fault::Restart(1)),
            (5.0, Fault::Restart(2)),
            (5.0, Fault::Restart(3)),
        ],
        ..PLAIN
    },
    Scenario {
        name: "only-provider-restarts",
        does: "the only provider is killed and starts again at once at its place",
        rules: "H6",
        providers: 1,
        lasts: 10,
        steps: &[(3.0, Fault::Kill(1)), (3.1, Fault::Restart(1))],
        ..PLAIN
    },
    Scenario {
        name: "move",
        does: "a provider's host changes its address and keeps its key",
        rules: "D13",
        lasts: 16,
        steps: &[(3.0, Fault::Move(2))],
        // 5 s to publish the address, and the next question of each caller.
        promise: Promise {
            recovered_s: 10.0,
            ..PLAIN.promise
        },
        ..PLAIN
    },
    Scenario {
        name: "mtu-black-hole",
        does: "a provider's link drops packets above 1 300 bytes without a word",
        rules: "P3",
        lasts: 10,
        payload: 4_096,
        steps: &[(2.0, Fault::Mtu(1, 1_300))],
        ..PLAIN
    },
    Scenario {
        name: "ipv6-only",
        does: "hosts have IPv6 addresses only; one provider is killed",
        rules: "D13 N2",
        family: Family::V6,
        steps: &[(4.0, Fault::Kill(3))],
        ..PLAIN
    },
    Scenario {
        name: "crowd",
        does: "30 providers join at once",
        rules: "N2 D6",
        providers: 30,
        lasts: 12,
        promise: Promise {
            recovered_s: 10.0,
            ..PLAIN.promise
        },
        ..PLAIN
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_scenario_has_a_name_of_its_own_and_steps_in_order_within_its_load() {
        let names: BTreeSet<_> = ALL.iter().map(|it| it.name).collect();
        assert_eq!(names.len(), ALL.len());
        for scenario in ALL {
            assert!(scenario.steps.is_sorted_by_key(|(at, _)| *at), "{}", scenario.name);
            let last = scenario.steps.last().map_or(0.0, |(at, _)| *at);
            let left = f64::from(scenario.lasts) - last;
            assert!(
                left > 0.0 && scenario.rate as usize >= scenario.callers,
                "{}",
                scenario.name
            );
        }
    }

    #[test]
    fn the_ci_runs_the_six_steps_and_each_way_to_lose_a_provider() {
        let quick: Vec<_> = ALL.iter().filter(|it| it.quick).map(|it| it.name).collect();
        for name in ["six-steps", "kill", "rolling-replacement", "partition"] {
            assert!(quick.contains(&name));
        }
    }
}
