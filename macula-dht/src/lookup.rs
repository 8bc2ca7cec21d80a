//! One iterative lookup: which candidates are known, which to ask next, and when the closest are found.
//!
//! The candidates are kept by distance. Those asked and not yet overdue are at most α. A candidate that has not answered
//! within the soft timeout no longer counts against α and no longer holds up the end, but its answer still counts when it
//! comes; at the hard timeout it has failed. The lookup is over when the k closest candidates that are neither failed nor
//! overdue have answered, which in a network without loss are exactly the k closest nodes.
//!
//! **Invariants:** at most α fresh requests and [`MAX_OUTSTANDING`] in all are in flight; each candidate is asked once; there
//! are at most [`MAX_CANDIDATES`], so the lookup ends whatever peers answer.

use macula_wire::NodeId;

use crate::{Contact, Point, point::Distance, table::K};

/// The number of requests a lookup has in flight, overdue ones not counted.
pub const ALPHA: usize = 3;
/// The most candidates a lookup remembers.
pub const MAX_CANDIDATES: usize = 128;
/// The hop of candidates that this node itself knows. Those named by others never crowd them out, or a few peers that name nobody
/// but the dead would decide whom a lookup asks.
const OWN: u8 = 1;
/// The most requests of one lookup that wait for an answer, overdue ones included.
pub const MAX_OUTSTANDING: usize = 24;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not asked yet.
    New,
    /// Asked, within the soft timeout.
    Asked,
    /// Asked, past the soft timeout.
    Overdue,
    Answered,
    Failed,
}

#[derive(Debug)]
struct Candidate {
    contact: Contact,
    /// The first 64 bits of its distance to the target, which almost always tell where it belongs.
    head: u64,
    state: State,
    /// 1 when it came from this node's own table, else one more than that of who named it.
    hop: u8,
}

impl Candidate {
    /// Computed from the id each time: keeping all of it would make a candidate twice as large.
    fn distance(&self, target: &Point) -> Distance {
        Point::from(self.contact.node_id()).distance(target)
    }
}

/// The state of one lookup.
#[derive(Debug)]
pub(crate) struct Lookup {
    own: NodeId,
    target: Point,
    /// By ascending distance.
    candidates: Vec<Candidate>,
    /// Candidates within this distance must answer too, even beyond the k closest.
    region: Option<Distance>,
}

impl Lookup {
    pub(crate) fn new(own: NodeId, target: Point) -> Self {
        Self {
            own,
            target,
            candidates: Vec::new(),
            region: None,
        }
    }

    pub(crate) fn target(&self) -> &Point {
        &self.target
    }

    /// Widens the lookup to everything within `region`.
    pub(crate) fn widen(&mut self, region: Distance) {
        self.region = self.region.max(Some(region));
    }

    /// Adds what is not known yet: contacts of this node's own table with `hop` 0, else those named by a peer at `hop`.
    pub(crate) fn add(&mut self, contacts: impl IntoIterator<Item = Contact>, hop: u8) {
        for contact in contacts {
            if *contact.node_id() == self.own {
                continue;
            }
            let distance = Point::from(contact.node_id()).distance(&self.target);
            let Err(at) = self.position(&distance) else {
                continue;
            };
            if self.candidates.len() == MAX_CANDIDATES {
                let Some(drop) = self
                    .candidates
                    .iter()
                    .rposition(|c| c.state == State::New && c.hop > OWN)
                    .filter(|&drop| drop >= at)
                else {
                    continue;
                };
                self.candidates.remove(drop);
            }
            self.candidates.insert(
                at,
                Candidate {
                    contact,
                    head: distance.head(),
                    state: State::New,
                    hop: hop.saturating_add(1),
                },
            );
        }
    }

    /// The next candidate to ask, with its hop; it counts as asked.
    pub(crate) fn next(&mut self, mut skip: impl FnMut(&NodeId) -> bool) -> Option<(Contact, u8)> {
        let (mut fresh, mut waiting) = (0, 0);
        for candidate in &self.candidates {
            fresh += usize::from(candidate.state == State::Asked);
            waiting += usize::from(matches!(candidate.state, State::Asked | State::Overdue));
        }
        if fresh >= ALPHA || waiting >= MAX_OUTSTANDING {
            return None;
        }
        let (mut ahead, region) = (0, self.region);
        let target = self.target;
        for candidate in &mut self.candidates {
            if ahead >= K && region.is_none_or(|region| candidate.distance(&target) > region) {
                break;
            }
            match candidate.state {
                State::New if skip(candidate.contact.node_id()) => candidate.state = State::Failed,
                State::New => {
                    candidate.state = State::Asked;
                    return Some((candidate.contact.clone(), candidate.hop));
                }
                State::Asked | State::Answered => ahead += 1,
                State::Overdue | State::Failed => {}
            }
        }
        None
    }

    pub(crate) fn on_answer(&mut self, node: &NodeId) {
        self.set(node, State::Answered);
    }

    pub(crate) fn on_overdue(&mut self, node: &NodeId) {
        self.set(node, State::Overdue);
    }

    pub(crate) fn on_failure(&mut self, node: &NodeId) {
        self.set(node, State::Failed);
    }

    /// Where the candidate at `distance` is, or would be. Distances to one target are unique.
    fn position(&self, distance: &Distance) -> Result<usize, usize> {
        self.candidates.binary_search_by(|candidate| {
            let heads = candidate.head.cmp(&distance.head());
            heads.then_with(|| candidate.distance(&self.target).cmp(distance))
        })
    }

    fn set(&mut self, node: &NodeId, state: State) {
        let distance = Point::from(node).distance(&self.target);
        if let Ok(at) = self.position(&distance)
            && matches!(self.candidates[at].state, State::Asked | State::Overdue)
        {
            self.candidates[at].state = state;
        }
    }

    /// Whether nothing is left to ask or to wait for.
    pub(crate) fn is_finished(&self) -> bool {
        let (mut answered, mut overdue) = (0, false);
        for candidate in &self.candidates {
            if answered >= K
                && self
                    .region
                    .is_none_or(|region| candidate.distance(&self.target) > region)
            {
                return true;
            }
            match candidate.state {
                State::Answered => answered += 1,
                State::New | State::Asked => return false,
                State::Overdue => overdue = true,
                State::Failed => {}
            }
        }
        answered >= K || !overdue
    }

    /// The k closest that answered, and those within the region; closest first.
    pub(crate) fn closest(&self) -> impl Iterator<Item = &Contact> {
        let (region, target) = (self.region, self.target);
        let answered = self.candidates.iter().filter(|c| c.state == State::Answered);
        answered
            .enumerate()
            .take_while(move |(at, c)| *at < K || region.is_some_and(|region| c.distance(&target) <= region))
            .map(|(_, c)| &c.contact)
    }

    /// The `count` closest that did not fail, whether they were asked or only named; closest first.
    pub(crate) fn nearby(&self, count: usize) -> impl Iterator<Item = &Contact> {
        let living = self.candidates.iter().filter(|c| c.state != State::Failed);
        living.take(count).map(|c| &c.contact)
    }

    /// Whether [`Lookup::widen`] was called.
    pub(crate) fn is_widened(&self) -> bool {
        self.region.is_some()
    }

    /// The distance of the k-th closest that answered; `None` when fewer did.
    pub(crate) fn kth(&self) -> Option<Distance> {
        self.distances().nth(K - 1)
    }

    /// The distances of the k closest that answered, ascending.
    pub(crate) fn distances(&self) -> impl Iterator<Item = Distance> {
        self.candidates
            .iter()
            .filter(|c| c.state == State::Answered)
            .take(K)
            .map(|c| c.distance(&self.target))
    }

    /// The number of candidates that answered.
    pub(crate) fn answered(&self) -> usize {
        self.candidates.iter().filter(|c| c.state == State::Answered).count()
    }

    /// The hop of the closest candidate that answered; 0 when none did.
    pub(crate) fn depth(&self) -> u8 {
        self.candidates
            .iter()
            .find(|c| c.state == State::Answered)
            .map_or(0, |c| c.hop)
    }

    /// Requests in flight that are not overdue.
    #[cfg(test)]
    pub(crate) fn fresh(&self) -> usize {
        self.candidates.iter().filter(|c| c.state == State::Asked).count()
    }
}

#[cfg(test)]
#[path = "lookup_tests.rs"]
mod tests;
