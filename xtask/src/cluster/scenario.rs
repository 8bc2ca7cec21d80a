//! A scenario: what is done to a mesh, and what the specification promises its callers.

use std::collections::BTreeSet;

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
    /// From now on the node's link does this to every packet, in both directions.
    Wire(usize, Wire),
    /// The router in front of the callers forgets its translations, as after its own restart.
    Rebind,
    /// The node's wall clock jumps by so many seconds; its monotonic clock goes on as before.
    Clock(usize, i64),
    /// The clocks of every host jump by so many seconds, those of the callers too.
    AllClocks(i64),
    /// The callers' processes stand still.
    CallersSleep,
    /// They go on.
    CallersWake,
    /// No byte is left on the disk of the node's data folder.
    FillDisk(usize),
    /// There is room again.
    FreeDisk(usize),
    /// The node may hold so many files open, sockets among them.
    Files(usize, u32),
}

/// What a link does to packets. Shares are percent of all packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wire {
    pub(crate) loss: u8,
    pub(crate) duplicated: u8,
    /// Packets that wait for `delay_ms` once more, so that later ones overtake them.
    pub(crate) reordered: u8,
    pub(crate) delay_ms: u16,
}

/// What a fault needs of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Need {
    /// A link of its own, and an address of its own.
    Link,
    /// A link whose packets pass through this process.
    Wire,
    /// A router that translates the callers' addresses.
    Nat,
    /// A wall clock of its own: libfaketime.
    Clock,
    /// A disk of its own for its data: a file system in memory.
    Disk,
    /// A limit of its files that can be set while it runs.
    Files,
}

impl Fault {
    /// What the fault needs; `None` when every process has it.
    pub(crate) fn need(self) -> Option<Need> {
        match self {
            Self::Cut(_) | Self::Heal(_) | Self::Block(..) | Self::Unblock(..) | Self::Move(_) | Self::Mtu(..) => {
                Some(Need::Link)
            }
            Self::Wire(..) => Some(Need::Wire),
            Self::Rebind => Some(Need::Nat),
            Self::Clock(..) | Self::AllClocks(_) => Some(Need::Clock),
            Self::FillDisk(_) | Self::FreeDisk(_) => Some(Need::Disk),
            Self::Files(..) => Some(Need::Files),
            Self::CallersSleep
            | Self::CallersWake
            | Self::Kill(_)
            | Self::Leave(_)
            | Self::Restart(_)
            | Self::Replace(_)
            | Self::Pause(_)
            | Self::Resume(_) => None,
        }
    }
}

/// The addresses that the hosts have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
    /// Hosts have both, but for two: host 2 has IPv4 only, and host 3 IPv6 only.
    Mixed,
}

/// What callers are promised while and after the faults happen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Promise {
    /// Calls that may fail although a provider could be reached during all of the call.
    pub(crate) failed: u64,
    /// Whether a call may fail while no provider can be reached.
    pub(crate) may_lack_providers: bool,
    /// What a fault may cost a call, beyond the time without a provider.
    pub(crate) longest: Longest,
    /// Every provider that lives at the end answers again within this time of the last fault.
    pub(crate) recovered: Recovered,
}

/// The longest that a fault may hold a call up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Longest {
    /// L6, of a process that is killed: 100 ms on a host that lives. Where the host goes with the process, as [`Longest::Silent`].
    Killed,
    /// L6, of a host or path that falls silent: 5 PTO and 100 ms.
    Silent,
    /// The specification names no figure. This one, in milliseconds, is an aim of this suite.
    Aim(u64),
}

/// The time until every living provider answers again, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Recovered {
    /// Named by this rule.
    Rule(&'static str, f64),
    /// The specification names no figure. This one is an aim of this suite.
    Aim(f64),
}

/// The faults of a scenario.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Faults {
    /// Each at its time, in seconds of load, in order.
    At(&'static [(f64, Fault)]),
    /// Drawn from a seed: providers are killed, paused, restarted and replaced all the time, at most one at once.
    Churn,
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
    /// Client nodes of each caller's process; each has connections of its own.
    pub(crate) clients: u32,
    /// The callers' hosts are in a private network, behind a router that translates their addresses.
    pub(crate) nat: bool,
    /// Calls a second, all callers together.
    pub(crate) rate: u32,
    /// Bytes of each request.
    pub(crate) payload: u32,
    /// Whether two further callers make calls of half a second, and streams of two seconds.
    pub(crate) long_calls: bool,
    /// The largest packet of every link, in bytes, where it is not the usual one.
    pub(crate) mtu: Option<u32>,
    /// Seconds of load.
    pub(crate) lasts: u32,
    pub(crate) family: Family,
    pub(crate) faults: Faults,
    pub(crate) promise: Promise,
    /// Part of what the CI runs.
    pub(crate) quick: bool,
}

impl Scenario {
    /// The faults and their times. Only [`Faults::Churn`] differs from seed to seed.
    pub(crate) fn steps(&self, seed: u64) -> Vec<(f64, Fault)> {
        match self.faults {
            Faults::At(steps) => steps.to_vec(),
            Faults::Churn => churn(seed, self.providers, f64::from(self.lasts)),
        }
    }

    /// What the scenario needs of its hosts beyond a process.
    pub(crate) fn needs(&self) -> BTreeSet<Need> {
        let family = (self.family == Family::Mixed).then_some(Need::Link);
        let nat = self.nat.then_some(Need::Nat);
        let mtu = self.mtu.map(|_| Need::Link);
        let steps = match self.faults {
            Faults::At(steps) => steps,
            Faults::Churn => &[],
        };
        let faults = steps.iter().filter_map(|(_, fault)| fault.need());
        faults.chain(family).chain(nat).chain(mtu).collect()
    }
}

/// One provider after another is afflicted and well again, with 1.5 s between the faults and 6 s at the end.
fn churn(seed: u64, providers: usize, lasts: f64) -> Vec<(f64, Fault)> {
    let mut draws = Draws(seed);
    let mut steps = Vec::new();
    let mut at = 2.0;
    while at < lasts - 6.0 {
        let node = 1 + draws.below(providers as u64) as usize;
        match draws.below(4) {
            0 => steps.extend([(at, Fault::Kill(node)), (at + 1.0, Fault::Restart(node))]),
            1 => steps.extend([(at, Fault::Leave(node)), (at + 1.0, Fault::Restart(node))]),
            2 => steps.extend([(at, Fault::Pause(node)), (at + 1.0, Fault::Resume(node))]),
            _ => steps.push((at, Fault::Replace(node))),
        }
        at += 2.5;
    }
    steps
}

/// Numbers drawn from a seed: SplitMix64 (Steele, Lea and Flood 2014).
#[derive(Debug)]
pub(crate) struct Draws(pub(crate) u64);

impl Draws {
    /// The next number below `bound`, which is not zero. Its bias is below 2⁻⁵⁰ for the bounds used here.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn churn_is_the_same_for_a_seed_and_afflicts_one_provider_at_once() {
        let steps = churn(7, 4, 60.0);
        assert_eq!(steps, churn(7, 4, 60.0));
        assert_ne!(steps, churn(8, 4, 60.0));
        assert!(steps.is_sorted_by_key(|(at, _)| *at));
        let mut ill = None;
        for (_, fault) in steps {
            match fault {
                Fault::Kill(node) | Fault::Leave(node) | Fault::Pause(node) => assert_eq!(ill.replace(node), None),
                Fault::Restart(node) | Fault::Resume(node) => assert_eq!(ill.take(), Some(node)),
                Fault::Replace(_) => assert_eq!(ill, None),
                other => panic!("{other:?} is no part of churn"),
            }
        }
        assert_eq!(ill, None);
    }
}
