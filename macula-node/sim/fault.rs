//! Faults as values, and the schedules they make. A run is a schedule: its seed, the size of its mesh, and its faults.
//!
//! A schedule is a text with a line for each part, so that a person can read one, change it, and run it again.

use std::{fmt, str::FromStr, time::Duration};

/// Something that goes wrong at a time, to some nodes, for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// Its start, from the first call.
    pub(super) at: Duration,
    pub(super) lasts: Duration,
    /// The nodes that it happens to, by their numbers in the mesh.
    pub(super) who: Vec<usize>,
    pub(super) kind: Kind,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Ends without a word, and starts again with its key and its address.
    Kill,
    /// Ends without a word, and starts again at its address with a new key: its disk is lost.
    Lose,
    /// Leaves in order, and starts again.
    Restart,
    /// Leaves in order while another takes its place, with a new key and a new address. Lasts no time.
    Replace,
    /// Ends without a word, and starts again with its key at another address.
    Move,
    /// Gets another address while it runs, and keeps it.
    Rebind,
    /// Stands still.
    Pause,
    /// Neither hears the others nor is heard by them.
    Part,
    /// Does not hear the others.
    Deaf,
    /// Is not heard by the others.
    Mute,
    /// Its datagrams take so many milliseconds longer, each way.
    Delay(u32),
    /// So many percent of its datagrams are lost.
    Loss(u32),
    Reorder(u32),
    Duplicate(u32),
    Corrupt(u32),
    /// Its links carry so many kilobytes a second each way.
    Bandwidth(u32),
    /// Its wall clock is so many seconds ahead.
    Ahead(u32),
    /// Its wall clock is so many seconds behind.
    Behind(u32),
    /// It starts again with a clock so many seconds ahead, which is set right at the end.
    SkewAhead(u32),
    /// It starts again with a clock so many seconds behind, which is set right at the end.
    SkewBehind(u32),
    /// Its handlers take so many milliseconds longer.
    Slow(u32),
    /// Its handlers do not answer.
    Hang,
    /// Its handlers answer with an error.
    Fail,
    /// Its handlers run, and say that they have not.
    Lie,
    /// It withdraws its services, and provides them again.
    Withdraw,
    /// A stranger publishes what it has seen, and what it has made up, again and again.
    Forge,
    /// It calls so many times as often.
    Burst(u32),
}

impl Kind {
    fn parts(self) -> (&'static str, Option<u32>) {
        match self {
            Self::Kill => ("kill", None),
            Self::Lose => ("lose", None),
            Self::Restart => ("restart", None),
            Self::Replace => ("replace", None),
            Self::Move => ("move", None),
            Self::Rebind => ("rebind", None),
            Self::Pause => ("pause", None),
            Self::Part => ("part", None),
            Self::Deaf => ("deaf", None),
            Self::Mute => ("mute", None),
            Self::Delay(by) => ("delay", Some(by)),
            Self::Loss(by) => ("loss", Some(by)),
            Self::Reorder(by) => ("reorder", Some(by)),
            Self::Duplicate(by) => ("duplicate", Some(by)),
            Self::Corrupt(by) => ("corrupt", Some(by)),
            Self::Bandwidth(by) => ("bandwidth", Some(by)),
            Self::Ahead(by) => ("ahead", Some(by)),
            Self::Behind(by) => ("behind", Some(by)),
            Self::SkewAhead(by) => ("skew-ahead", Some(by)),
            Self::SkewBehind(by) => ("skew-behind", Some(by)),
            Self::Slow(by) => ("slow", Some(by)),
            Self::Hang => ("hang", None),
            Self::Fail => ("fail", None),
            Self::Lie => ("lie", None),
            Self::Withdraw => ("withdraw", None),
            Self::Forge => ("forge", None),
            Self::Burst(by) => ("burst", Some(by)),
        }
    }

    fn from_parts(name: &str, by: Option<u32>) -> Option<Self> {
        let plain = |kind: Self| by.is_none().then_some(kind);
        match name {
            "kill" => plain(Self::Kill),
            "lose" => plain(Self::Lose),
            "restart" => plain(Self::Restart),
            "replace" => plain(Self::Replace),
            "move" => plain(Self::Move),
            "rebind" => plain(Self::Rebind),
            "pause" => plain(Self::Pause),
            "part" => plain(Self::Part),
            "deaf" => plain(Self::Deaf),
            "mute" => plain(Self::Mute),
            "delay" => by.map(Self::Delay),
            "loss" => by.map(Self::Loss),
            "reorder" => by.map(Self::Reorder),
            "duplicate" => by.map(Self::Duplicate),
            "corrupt" => by.map(Self::Corrupt),
            "bandwidth" => by.map(Self::Bandwidth),
            "ahead" => by.map(Self::Ahead),
            "behind" => by.map(Self::Behind),
            "skew-ahead" => by.map(Self::SkewAhead),
            "skew-behind" => by.map(Self::SkewBehind),
            "slow" => by.map(Self::Slow),
            "hang" => plain(Self::Hang),
            "fail" => plain(Self::Fail),
            "lie" => plain(Self::Lie),
            "withdraw" => plain(Self::Withdraw),
            "forge" => plain(Self::Forge),
            "burst" => by.map(Self::Burst),
            _ => None,
        }
    }

    /// Whether the fault is of the network or of the process: the others cannot tell them apart.
    pub(super) fn is_of_reach(self) -> bool {
        match self {
            Self::Kill
            | Self::Lose
            | Self::Restart
            | Self::Replace
            | Self::Move
            | Self::Rebind
            | Self::Pause
            | Self::Part
            | Self::Deaf
            | Self::Mute
            | Self::Delay(_)
            | Self::Loss(_)
            | Self::Reorder(_)
            | Self::Duplicate(_)
            | Self::Corrupt(_)
            | Self::Bandwidth(_)
            | Self::SkewAhead(_)
            | Self::SkewBehind(_) => true,
            Self::Ahead(_)
            | Self::Behind(_)
            | Self::Slow(_)
            | Self::Hang
            | Self::Fail
            | Self::Lie
            | Self::Withdraw
            | Self::Forge
            | Self::Burst(_) => false,
        }
    }

    /// Whether a node with this fault still keeps its promises.
    pub(super) fn is_harmless(self) -> bool {
        matches!(self, Self::Forge | Self::Burst(_))
    }

    pub(super) fn is_of_clock(self) -> bool {
        matches!(
            self,
            Self::Ahead(_) | Self::Behind(_) | Self::SkewAhead(_) | Self::SkewBehind(_)
        )
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parts() {
            (name, None) => f.write_str(name),
            (name, Some(by)) => write!(f, "{name}:{by}"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, lasts) = (self.at.as_secs_f64(), self.lasts.as_secs_f64());
        write!(f, "fault at={at:.3} lasts={lasts:.3} kind={} who=", self.kind)?;
        let who: Vec<String> = self.who.iter().map(ToString::to_string).collect();
        f.write_str(&who.join(","))
    }
}

/// Everything that decides a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Schedule {
    pub(super) seed: u64,
    pub(super) nodes: usize,
    pub(super) faults: Vec<Fault>,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}", self.seed)?;
        writeln!(f, "nodes {}", self.nodes)?;
        self.faults.iter().try_for_each(|fault| writeln!(f, "{fault}"))
    }
}

/// A text is no schedule.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the schedule cannot be read: {text:?}")]
pub(super) struct ParseError {
    line: usize,
    text: String,
}

impl FromStr for Schedule {
    type Err = ParseError;

    /// Reads a schedule; empty lines and those that begin with `#` are comments.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut schedule = Self {
            seed: 0,
            nodes: super::NODES,
            faults: Vec::new(),
        };
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            let read = match line.split_once(' ') {
                _ if line.is_empty() || line.starts_with('#') => Some(()),
                Some(("seed", seed)) => seed.parse().ok().map(|seed| schedule.seed = seed),
                Some(("nodes", nodes)) => nodes.parse().ok().map(|nodes| schedule.nodes = nodes),
                Some(("fault", fault)) => parse_fault(fault).map(|fault| schedule.faults.push(fault)),
                _ => None,
            };
            let nodes = schedule.nodes;
            let known = schedule.faults.iter().flat_map(|fault| &fault.who).all(|&n| n < nodes);
            if read.is_none() || !known {
                return Err(ParseError {
                    line: at + 1,
                    text: line.to_owned(),
                });
            }
        }
        Ok(schedule)
    }
}

fn parse_fault(text: &str) -> Option<Fault> {
    let field = |name: &str| {
        text.split(' ')
            .find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
    };
    let seconds = |name| Duration::try_from_secs_f64(field(name)?.parse().ok()?).ok();
    let kind = field("kind")?;
    let kind = match kind.split_once(':') {
        Some((name, by)) => Kind::from_parts(name, Some(by.parse().ok()?))?,
        None => Kind::from_parts(kind, None)?,
    };
    let who = match field("who")? {
        "" => Vec::new(),
        who => who.split(',').map(|n| n.parse().ok()).collect::<Option<_>>()?,
    };
    Some(Fault {
        at: seconds("at")?,
        lasts: seconds("lasts")?,
        who,
        kind,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule;

    #[test]
    fn a_schedule_is_read_as_it_is_written() {
        for seed in 0..500 {
            let schedule = schedule::of_seed(seed, super::super::NODES);
            assert_eq!(schedule.to_string().parse(), Ok(schedule));
        }
    }

    #[test]
    fn a_line_that_cannot_be_read_is_named() {
        for wrong in [
            "fault at=1 lasts=2 kind=loss who=1",
            "fault at=1 lasts=2 kind=kill who=99",
            "sed 4",
        ] {
            let text = format!("seed 1\n# a comment\n{wrong}\n");
            assert_eq!(text.parse::<Schedule>().map_err(|error| error.line), Err(3), "{wrong}");
        }
    }
}
