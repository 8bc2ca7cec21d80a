//! The schedule that a seed makes: a few faults, near enough to each other to meet.

use std::time::Duration;

use crate::{
    fault::{Fault, Kind, Schedule},
    random::Random,
    world::{Part, part_of},
};

/// The first and the last moment at which something is wrong, from the first call.
pub(super) const FAULTS_FROM: Duration = Duration::from_secs(3);
pub(super) const FAULTS_TO: Duration = Duration::from_secs(40);

const MOST_FAULTS: usize = 6;
const MEAN: Duration = Duration::from_secs(4);
const LONGEST: Duration = Duration::from_secs(15);
const SHORTEST: Duration = Duration::from_millis(100);
/// The time that a deployment leaves each new provider before it replaces the next.
const BETWEEN_REPLACEMENTS: Duration = Duration::from_secs(3);

/// The schedule of this seed, for a mesh of so many nodes.
pub(super) fn of_seed(seed: u64, nodes: usize) -> Schedule {
    // A seed and the next one have little in common.
    let mut random = Random::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5ced_41e5);
    let mut faults = Vec::new();
    for _ in 0..=random.below(MOST_FAULTS) {
        let at = random.between(FAULTS_FROM, FAULTS_TO - LONGEST);
        let lasts = random.exponential(MEAN).clamp(SHORTEST, LONGEST);
        let lasts = Duration::from_millis(lasts.as_millis() as u64);
        let fault = draw(&mut random, nodes, at, lasts);
        if fault.kind == Kind::Forge {
            // A stranger tries to bring back withdrawn records.
            faults.push(Fault {
                at: at + Duration::from_secs(2),
                lasts: Duration::from_secs(12),
                who: vec![one(&mut random, nodes, &[Part::Provider])],
                kind: Kind::Withdraw,
            });
        }
        if matches!(fault.kind, Kind::Burst(_)) {
            // Retries are counted when there is something to retry.
            faults.push(Fault {
                who: of(nodes, &[Part::Provider]),
                kind: Kind::Fail,
                ..fault.clone()
            });
        }
        if fault.kind == Kind::Hang && random.percent(50) {
            // A handler that hangs ends by its deadline, and not only because its caller says so.
            faults.push(Fault {
                at: at + Duration::from_millis(500),
                lasts: Duration::from_secs(3),
                who: of(nodes, &[Part::Caller]),
                kind: Kind::Part,
            });
        }
        if fault.kind == Kind::Replace && random.percent(50) {
            // A rolling deployment: every provider after another.
            let providers = of(nodes, &[Part::Provider]);
            faults.extend((1..).zip(providers).map(|(turn, provider)| Fault {
                at: at + turn * BETWEEN_REPLACEMENTS,
                who: vec![provider],
                ..fault.clone()
            }));
        }
        faults.push(fault);
    }
    faults.sort_by_key(|fault| fault.at);
    Schedule { seed, nodes, faults }
}

fn of(nodes: usize, parts: &[Part]) -> Vec<usize> {
    (0..nodes).filter(|&n| parts.contains(&part_of(n, nodes))).collect()
}

fn one(random: &mut Random, nodes: usize, parts: &[Part]) -> usize {
    random.pick(&of(nodes, parts))
}

/// At least one, and at most half of them.
fn some(random: &mut Random, nodes: usize, parts: &[Part]) -> Vec<usize> {
    let all = of(nodes, parts);
    let count = 1 + random.below(all.len().div_ceil(2));
    let mut some: Vec<usize> = (0..count).map(|_| random.pick(&all)).collect();
    some.sort_unstable();
    some.dedup();
    some
}

fn draw(random: &mut Random, nodes: usize, at: Duration, lasts: Duration) -> Fault {
    const SERVERS: [Part; 2] = [Part::Provider, Part::Directory];
    const ALL: [Part; 3] = [Part::Provider, Part::Directory, Part::Caller];
    let small = Duration::from_millis(100 + random.below(1_900) as u64);
    let by = |random: &mut Random, of: &[u32]| random.pick(of);
    let (kind, who, lasts) = match random.below(34) {
        0..=2 => (Kind::Kill, some(random, nodes, &SERVERS), lasts),
        // Back at once, as a supervisor does it.
        3 | 4 => (Kind::Kill, vec![one(random, nodes, &SERVERS)], small),
        5 => (Kind::Lose, some(random, nodes, &SERVERS), lasts),
        6 => (Kind::Restart, vec![one(random, nodes, &SERVERS)], lasts),
        7 | 8 => (Kind::Replace, some(random, nodes, &[Part::Provider]), Duration::ZERO),
        9 => (Kind::Move, vec![one(random, nodes, &[Part::Provider])], small),
        10 => (Kind::Rebind, vec![one(random, nodes, &ALL)], lasts),
        11 | 12 => (Kind::Pause, some(random, nodes, &ALL), lasts),
        13 => (Kind::Part, some(random, nodes, &ALL), lasts),
        14 => (Kind::Deaf, some(random, nodes, &ALL), lasts),
        15 => (Kind::Mute, some(random, nodes, &ALL), lasts),
        16 => (
            Kind::Delay(by(random, &[50, 200, 800])),
            some(random, nodes, &ALL),
            lasts,
        ),
        17 => (Kind::Loss(by(random, &[2, 10, 40])), some(random, nodes, &ALL), lasts),
        18 => (Kind::Reorder(by(random, &[5, 30])), some(random, nodes, &ALL), lasts),
        19 => (Kind::Duplicate(by(random, &[5, 50])), some(random, nodes, &ALL), lasts),
        20 => (Kind::Corrupt(by(random, &[1, 10])), some(random, nodes, &ALL), lasts),
        21 => (
            Kind::Bandwidth(by(random, &[50, 500])),
            some(random, nodes, &ALL),
            lasts,
        ),
        22 => (
            Kind::Ahead(by(random, &[30, 600])),
            vec![one(random, nodes, &SERVERS)],
            lasts,
        ),
        23 => (
            Kind::Behind(by(random, &[30, 600])),
            vec![one(random, nodes, &SERVERS)],
            lasts,
        ),
        24 => (
            Kind::SkewAhead(by(random, &[30, 600])),
            vec![one(random, nodes, &SERVERS)],
            lasts,
        ),
        25 => (
            Kind::SkewBehind(by(random, &[30, 600])),
            vec![one(random, nodes, &SERVERS)],
            lasts,
        ),
        26 => (
            Kind::Slow(by(random, &[200, 2_000])),
            some(random, nodes, &[Part::Provider]),
            lasts,
        ),
        27 => (Kind::Hang, some(random, nodes, &[Part::Provider]), lasts),
        28 => (Kind::Fail, some(random, nodes, &[Part::Provider]), lasts),
        29 => (Kind::Lie, vec![one(random, nodes, &[Part::Provider])], lasts),
        30 => (Kind::Withdraw, vec![one(random, nodes, &[Part::Provider])], lasts),
        31 => (Kind::Forge, Vec::new(), LONGEST),
        32 => (Kind::Burst(100), some(random, nodes, &[Part::Caller]), small),
        _ => (Kind::Fail, of(nodes, &[Part::Provider]), small),
    };
    Fault { at, lasts, who, kind }
}
