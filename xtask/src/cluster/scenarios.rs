//! Every scenario.

use super::scenario::{Family, Fault, Faults, Longest, Promise, Recovered, Scenario, Wire};

/// A mesh of three providers under a light load, to which nothing happens.
pub(super) const PLAIN: Scenario = Scenario {
    name: "plain",
    does: "nothing happens",
    rules: "N2",
    providers: 3,
    callers: 3,
    clients: 1,
    nat: false,
    rate: 60,
    payload: 64,
    long_calls: false,
    mtu: None,
    lasts: 8,
    family: Family::V4,
    faults: Faults::At(&[]),
    promise: AIMS,
    quick: false,
};

/// What is promised where the specification names no figure.
const AIMS: Promise = Promise {
    failed: 0,
    may_lack_providers: false,
    longest: Longest::Aim(1_000),
    recovered: Recovered::Aim(5.0),
};

/// A process is killed on a host that lives.
const KILLED: Promise = Promise {
    longest: Longest::Killed,
    ..AIMS
};

/// A host or a path falls silent.
const SILENT: Promise = Promise {
    longest: Longest::Silent,
    ..AIMS
};

/// Clocks jump.
const CLOCKS: Promise = Promise {
    recovered: Recovered::Rule("D14", 5.0),
    ..AIMS
};

const LOSSY: Wire = Wire {
    loss: 10,
    duplicated: 1,
    reordered: 1,
    delay_ms: 10,
};

/// Every scenario. Node 0 is the bootstrap node and provides nothing; the providers are 1, 2, ….
pub(crate) const ALL: &[Scenario] = &[
    Scenario {
        name: "six-steps",
        does: "three providers, callers learn all three, one is killed with SIGKILL, no call is lost",
        rules: "N2 P1 L6",
        faults: Faults::At(&[(4.0, Fault::Kill(3))]),
        quick: true,
        promise: KILLED,
        ..PLAIN
    },
    Scenario {
        name: "kill",
        does: "two of three providers are killed during calls and streams, one after the other, and start again",
        rules: "L6 H5",
        long_calls: true,
        lasts: 16,
        faults: Faults::At(&[
            (3.0, Fault::Kill(1)),
            (6.0, Fault::Restart(1)),
            (9.0, Fault::Kill(2)),
            (11.0, Fault::Restart(2)),
        ]),
        quick: true,
        promise: KILLED,
        ..PLAIN
    },
    Scenario {
        name: "rolling-restart",
        does: "each provider leaves on SIGTERM during calls and streams, which it finishes, and starts again",
        rules: "N4 H6",
        long_calls: true,
        lasts: 14,
        faults: Faults::At(&[
            (2.0, Fault::Leave(1)),
            (3.0, Fault::Restart(1)),
            (5.0, Fault::Leave(2)),
            (6.0, Fault::Restart(2)),
            (8.0, Fault::Leave(3)),
            (9.0, Fault::Restart(3)),
        ]),
        quick: true,
        ..PLAIN
    },
    Scenario {
        name: "rolling-replacement",
        does: "each provider is replaced by one with a new key at a new place, and leaves",
        rules: "D12",
        long_calls: true,
        lasts: 18,
        faults: Faults::At(&[
            (3.0, Fault::Replace(1)),
            (7.0, Fault::Replace(2)),
            (11.0, Fault::Replace(3)),
        ]),
        quick: true,
        ..PLAIN
    },
    Scenario {
        name: "pause",
        does: "a provider stands still for 5 s",
        rules: "L1 L2 L6",
        lasts: 14,
        faults: Faults::At(&[(3.0, Fault::Pause(2)), (8.0, Fault::Resume(2))]),
        promise: SILENT,
        ..PLAIN
    },
    Scenario {
        name: "partition",
        does: "a provider's link is cut for 6 s",
        rules: "L6 N3",
        lasts: 16,
        faults: Faults::At(&[(3.0, Fault::Cut(1)), (9.0, Fault::Heal(1))]),
        quick: true,
        promise: SILENT,
        ..PLAIN
    },
    Scenario {
        name: "one-way",
        does: "a provider hears its callers and cannot answer for 6 s",
        rules: "L1 L6",
        lasts: 16,
        faults: Faults::At(&[
            (3.0, Fault::Block(1, 4)),
            (3.0, Fault::Block(1, 5)),
            (3.0, Fault::Block(1, 6)),
            (9.0, Fault::Unblock(1, 4)),
            (9.0, Fault::Unblock(1, 5)),
            (9.0, Fault::Unblock(1, 6)),
        ]),
        promise: SILENT,
        ..PLAIN
    },
    Scenario {
        name: "bootstrap-killed",
        does: "the bootstrap node is killed and stays away",
        rules: "N3 L6",
        lasts: 10,
        faults: Faults::At(&[(2.0, Fault::Kill(0))]),
        promise: KILLED,
        ..PLAIN
    },
    Scenario {
        name: "all-killed",
        does: "every provider is killed and starts again 2 s later",
        rules: "H5 H6 N3",
        lasts: 16,
        faults: Faults::At(&[
            (3.0, Fault::Kill(1)),
            (3.0, Fault::Kill(2)),
            (3.0, Fault::Kill(3)),
            (5.0, Fault::Restart(1)),
            (5.0, Fault::Restart(2)),
            (5.0, Fault::Restart(3)),
        ]),
        promise: Promise {
            may_lack_providers: true,
            // A call may have to give up a silent connection to each of the three.
            longest: Longest::Aim(3_000),
            ..AIMS
        },
        ..PLAIN
    },
    Scenario {
        name: "only-provider-restarts",
        does: "the only provider is killed and starts again at once at its place",
        rules: "H6",
        providers: 1,
        lasts: 10,
        faults: Faults::At(&[(3.0, Fault::Kill(1)), (3.1, Fault::Restart(1))]),
        ..PLAIN
    },
    Scenario {
        name: "move",
        does: "a provider's host changes its address and keeps its key",
        rules: "D13 D12 L6",
        lasts: 16,
        faults: Faults::At(&[(3.0, Fault::Move(2))]),
        // 5 s to publish the addresses (D13), for which the runner looks. Callers ask for them at most once a second (D12).
        promise: Promise {
            recovered: Recovered::Rule("D13 + D12", 6.0),
            ..SILENT
        },
        ..PLAIN
    },
    Scenario {
        name: "mtu-black-hole",
        does: "a provider's link drops packets above 1 300 bytes without a word",
        rules: "P3",
        lasts: 10,
        payload: 4_096,
        faults: Faults::At(&[(2.0, Fault::Mtu(1, 1_300))]),
        ..PLAIN
    },
    Scenario {
        name: "small-mtu",
        does: "every link takes packets of 1 280 bytes, the least that IPv6 allows; requests have 4 096; one provider is killed",
        rules: "P3 L6",
        payload: 4_096,
        mtu: Some(1_280),
        faults: Faults::At(&[(4.0, Fault::Kill(3))]),
        promise: KILLED,
        ..PLAIN
    },
    Scenario {
        name: "ipv6-only",
        does: "hosts have IPv6 addresses only; one provider is killed",
        rules: "D13 N2 L6",
        family: Family::V6,
        faults: Faults::At(&[(4.0, Fault::Kill(3))]),
        promise: KILLED,
        ..PLAIN
    },
    Scenario {
        name: "crowd",
        does: "30 providers join at once",
        rules: "N2 D6",
        providers: 30,
        lasts: 12,
        promise: Promise {
            recovered: Recovered::Aim(10.0),
            ..AIMS
        },
        ..PLAIN
    },
    Scenario {
        name: "store",
        does: "the bootstrap node is killed for good; a provider is killed and finds the mesh again from its store",
        rules: "N3 L6",
        lasts: 12,
        faults: Faults::At(&[(2.0, Fault::Kill(0)), (4.0, Fault::Kill(1)), (6.0, Fault::Restart(1))]),
        promise: KILLED,
        ..PLAIN
    },
    Scenario {
        name: "disk-full",
        does: "a provider's disk fills up; the provider is killed and starts again on the full disk",
        rules: "N3 L6",
        lasts: 14,
        faults: Faults::At(&[
            (2.0, Fault::FillDisk(1)),
            (4.0, Fault::Kill(1)),
            (5.0, Fault::Restart(1)),
            (9.0, Fault::FreeDisk(1)),
        ]),
        promise: KILLED,
        ..PLAIN
    },
    Scenario {
        name: "few-files",
        does: "a provider may open no further file or socket for the rest of the load",
        rules: "N2 L6",
        lasts: 10,
        faults: Faults::At(&[(2.0, Fault::Files(1, 8)), (5.0, Fault::Kill(2))]),
        promise: KILLED,
        ..PLAIN
    },
    Scenario {
        name: "clock-ahead",
        does: "a provider's clock is set a day ahead, and 5 s later back",
        rules: "D14",
        lasts: 18,
        faults: Faults::At(&[(3.0, Fault::Clock(2, 86_400)), (8.0, Fault::Clock(2, -86_400))]),
        promise: CLOCKS,
        ..PLAIN
    },
    Scenario {
        name: "clock-behind",
        does: "a provider's clock is set a day back, and 5 s later right again",
        rules: "D14",
        lasts: 18,
        faults: Faults::At(&[(3.0, Fault::Clock(2, -86_400)), (8.0, Fault::Clock(2, 86_400))]),
        promise: CLOCKS,
        ..PLAIN
    },
    Scenario {
        name: "suspended",
        does: "every node stands still, and all clocks are 600 s later when they wake up",
        rules: "D14",
        lasts: 18,
        faults: Faults::At(&[
            (3.0, Fault::Pause(0)),
            (3.0, Fault::Pause(1)),
            (3.0, Fault::Pause(2)),
            (3.0, Fault::Pause(3)),
            (6.0, Fault::AllClocks(600)),
            (6.0, Fault::Resume(0)),
            (6.0, Fault::Resume(1)),
            (6.0, Fault::Resume(2)),
            (6.0, Fault::Resume(3)),
        ]),
        promise: Promise {
            may_lack_providers: true,
            ..CLOCKS
        },
        ..PLAIN
    },
    Scenario {
        name: "callers-suspended",
        does: "every caller stands still for 6 s, and all clocks are 600 s later when it wakes up",
        rules: "D14",
        lasts: 16,
        // The nodes have published again before the callers wake up.
        faults: Faults::At(&[
            (3.0, Fault::CallersSleep),
            (3.0, Fault::AllClocks(600)),
            (9.0, Fault::CallersWake),
        ]),
        promise: CLOCKS,
        ..PLAIN
    },
    Scenario {
        name: "lossy",
        does: "10 % of all packets are lost, 1 % doubled, 1 % overtaken, all 10 ms late; one provider is killed",
        rules: "P3 F5",
        lasts: 20,
        faults: Faults::At(&[
            (2.0, Fault::Wire(1, LOSSY)),
            (2.0, Fault::Wire(2, LOSSY)),
            (2.0, Fault::Wire(3, LOSSY)),
            (8.0, Fault::Kill(3)),
        ]),
        ..PLAIN
    },
    Scenario {
        name: "nat",
        does: "callers behind a router that translates addresses; it gets another address, and a provider is killed",
        rules: "N2 L6",
        nat: true,
        lasts: 14,
        faults: Faults::At(&[(3.0, Fault::Rebind), (8.0, Fault::Kill(3))]),
        promise: SILENT,
        ..PLAIN
    },
    Scenario {
        name: "dual-stack",
        does: "one provider has IPv4 only, one IPv6 only, one has both and is killed",
        rules: "D13 L6",
        family: Family::Mixed,
        faults: Faults::At(&[(4.0, Fault::Kill(3))]),
        promise: KILLED,
        ..PLAIN
    },
    Scenario {
        name: "thousand",
        does: "336 clients hold 1 008 connections to three providers; one is killed",
        rules: "P2",
        callers: 4,
        clients: 84,
        rate: 400,
        lasts: 16,
        faults: Faults::At(&[(10.0, Fault::Kill(3))]),
        // A connection that has carried few calls since a crowded start still reckons with slow round trips, so its PTO is long, and an
        // attempt at the killed provider may take all of its 3 s (F7).
        promise: Promise {
            longest: Longest::Aim(3_100),
            ..AIMS
        },
        ..PLAIN
    },
    Scenario {
        name: "soak",
        does: "four providers, one of which is always being killed, paused, restarted or replaced",
        rules: "L6 D12 H5 N4",
        providers: 4,
        lasts: 150,
        faults: Faults::Churn,
        promise: SILENT,
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
            let steps = scenario.steps(1);
            assert!(steps.is_sorted_by_key(|(at, _)| *at), "{}", scenario.name);
            let last = steps.last().map_or(0.0, |(at, _)| *at);
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
