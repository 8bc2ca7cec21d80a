//! What the program is asked to do.

use std::{collections::BTreeSet, error::Error, ops::Range, path::PathBuf};

use crate::{NODES, oracle::RULES};

pub(super) const HELP: &str = "\
The mesh in a bottle.

  --seeds A..B      run the schedules of these seeds [default: 1..21], after those kept in the folder regressions
  --nodes N         of so many nodes [default: 10; of the story: 48]
  --schedule FILE   run this schedule and nothing else
  --rules A,B       judge by these rules only; --rules list shows them
  --no-kept         leave those in the folder regressions out
  --no-shrink       show failing schedules as they are
  --keep            keep shrunk schedules in the folder regressions
  --twice           run everything again in another process and compare the traces
  --mutants [NAME]  look for planted bugs, or those whose names contain NAME
  --broken          print the seeds that break a rule, as they are found
  --traces          print seeds and trace hashes only
  --story           measure a mesh through a fixed story instead, with --seed N";

/// The fewest nodes that have a provider, a caller, and two nodes of the directory.
const MIN_NODES: usize = 7;

pub(super) enum Task {
    Campaign(Campaign),
    /// Planted bugs whose names contain this.
    Mutants(Campaign, String),
    Story {
        nodes: usize,
        seed: u64,
    },
}

/// Many runs, and how they are judged.
#[derive(Debug, Clone)]
pub(super) struct Campaign {
    pub(super) seeds: Range<u64>,
    pub(super) nodes: usize,
    pub(super) schedule: Option<PathBuf>,
    pub(super) rules: BTreeSet<&'static str>,
    pub(super) with_kept: bool,
    pub(super) shrinks: bool,
    pub(super) keeps: bool,
    pub(super) twice: bool,
    pub(super) traces: bool,
    pub(super) broken: bool,
}

pub(super) fn read(args: impl Iterator<Item = String>) -> Result<Task, Box<dyn Error>> {
    let mut campaign = Campaign {
        seeds: 1..21,
        nodes: NODES,
        schedule: None,
        rules: RULES.iter().map(|(rule, _)| *rule).collect(),
        with_kept: true,
        shrinks: true,
        keeps: false,
        twice: false,
        traces: false,
        broken: false,
    };
    let (mut story, mut mutants, mut nodes, mut seed) = (false, None, None, 1);
    let mut args = args.peekable();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--seeds" => campaign.seeds = range(&value()?)?,
            "--nodes" => nodes = Some(value()?.parse()?),
            "--seed" => seed = value()?.parse()?,
            "--schedule" => campaign.schedule = Some(value()?.into()),
            "--rules" => campaign.rules = rules(&value()?)?,
            "--no-kept" => campaign.with_kept = false,
            "--no-shrink" => campaign.shrinks = false,
            "--keep" => campaign.keeps = true,
            "--twice" => campaign.twice = true,
            "--traces" => campaign.traces = true,
            "--broken" => campaign.broken = true,
            "--mutants" => {
                let name = args.next_if(|name| !name.starts_with("--"));
                mutants = Some(name.unwrap_or_default());
            }
            "--story" => story = true,
            _ => return Err(format!("{arg} is not an option\n\n{HELP}").into()),
        }
    }
    if nodes.is_some_and(|nodes| nodes < MIN_NODES) {
        return Err(format!("give --nodes {MIN_NODES} or more").into());
    }
    Ok(if story {
        let nodes = nodes.unwrap_or(48);
        Task::Story { nodes, seed }
    } else {
        campaign.nodes = nodes.unwrap_or(NODES);
        match mutants {
            Some(name) => Task::Mutants(campaign, name),
            None => Task::Campaign(campaign),
        }
    })
}

fn range(text: &str) -> Result<Range<u64>, Box<dyn Error>> {
    let (from, to) = text.split_once("..").ok_or("seeds are a range: --seeds 1..100")?;
    Ok(from.parse()?..to.parse()?)
}

fn rules(text: &str) -> Result<BTreeSet<&'static str>, Box<dyn Error>> {
    let known = || {
        RULES
            .iter()
            .map(|(rule, words)| format!("{rule:<4} {words}\n"))
            .collect::<String>()
    };
    if text == "list" {
        return Err(format!("the rules are\n{}", known()).into());
    }
    text.split(',')
        .map(|name| {
            let rule = RULES.iter().find(|(rule, _)| *rule == name);
            rule.map(|(rule, _)| *rule)
                .ok_or_else(|| format!("{name} is no rule; there are\n{}", known()).into())
        })
        .collect()
}
