//! One iterative lookup: which candidates are known, which to ask next, and when the closest are found.
//!
//! The candidates are kept by distance. At most α of them are asked and not yet overdue. A candidate that has not answered
//! within the soft timeout no longer counts against α and no longer delays the end, but its answer still counts when it
//! comes. At the hard timeout it has failed. The lookup is over when the k closest candidates that are neither failed nor
//! overdue have answered, which in a network without loss are exactly the k closest nodes.
//!
//! **Invariants:** at most α fresh requests and [`MAX_OUTSTANDING`] in all are in flight; each candidate is asked once; there
//! are at most [`MAX_CANDIDATES`], so the lookup ends for all answers of peers.

use macula_wire::NodeId;

use crate::{Contact, Point, point::Distance, table::K};

/// The number of requests a lookup has in flight, overdue ones not counted.
pub const ALPHA: usize = 3;
/// The most candidates a lookup remembers.
pub const MAX_CANDIDATES: usize = 128;
/// The hop of candidates that this node itself knows. Candidates named by peers never crowd them out: a few peers that name only
/// dead nodes could otherwise decide which nodes a lookup asks.
const OWN: u8 = 1;
/// The most silent nodes of one public subnet that a lookup asks on the word of peers, while no node of it answers. A peer can name any
/// address: without this bound one answer would send handshakes to twenty ports of a host that has no part in the mesh.
const MAX_SILENT: usize = 4;
/// The most requests of one lookup that wait for an answer, overdue ones included.
pub const MAX_OUTSTANDING: usize = 24;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
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
    state: Progress,
    /// 1 for a contact of this node's own table, else one more than the hop of the peer that named it.
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

    /// Adds contacts that are not known yet: of this node's own table with `hop` 0, else named by a peer at `hop`.
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
                    .rposition(|c| c.state == Progress::New && c.hop > OWN)
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
                    state: Progress::New,
                    hop: hop.saturating_add(1),
                },
            );
        }
    }

    /// The next candidate to ask, with its hop; it counts as asked.
    pub(crate) fn next(&mut self, mut skip: impl FnMut(&NodeId) -> bool) -> Option<(Contact, u8)> {
        let (mut fresh, mut waiting) = (0, 0);
        for candidate in &self.candidates {
            fresh += usize::from(candidate.state == Progress::Asked);
            waiting += usize::from(matches!(candidate.state, Progress::Asked | Progress::Overdue));
        }
        if fresh >= ALPHA || waiting >= MAX_OUTSTANDING {
            return None;
        }
        let (mut ahead, region) = (0, self.region);
        let target = self.target;
        for at in 0..self.candidates.len() {
            let is_silent = self.is_of_silent_subnet(&self.candidates[at]);
            let candidate = &mut self.candidates[at];
            if ahead >= K && region.is_none_or(|region| candidate.distance(&target) > region) {
                break;
            }
            match candidate.state {
                Progress::New if is_silent || skip(candidate.contact.node_id()) => candidate.state = Progress::Failed,
                Progress::New => {
                    candidate.state = Progress::Asked;
                    return Some((candidate.contact.clone(), candidate.hop));
                }
                Progress::Asked | Progress::Answered => ahead += 1,
                Progress::Overdue | Progress::Failed => {}
            }
        }
        None
    }

    /// Whether a candidate is to be asked on the word of a peer, in a public subnet where nothing answers.
    fn is_of_silent_subnet(&self, candidate: &Candidate) -> bool {
        let subnet = candidate.contact.subnet();
        if candidate.state != Progress::New || candidate.hop <= OWN || !subnet.is_limited() {
            return false;
        }
        let (mut silent, mut answered) = (0, false);
        for neighbour in self.candidates.iter().filter(|it| it.contact.subnet() == subnet) {
            answered |= neighbour.state == Progress::Answered;
            silent += usize::from(matches!(neighbour.state, Progress::Overdue | Progress::Failed));
        }
        silent >= MAX_SILENT && !answered
    }

    pub(crate) fn on_answer(&mut self, node: &NodeId) {
        self.set(node, Progress::Answered);
    }

    pub(crate) fn on_overdue(&mut self, node: &NodeId) {
        self.set(node, Progress::Overdue);
    }

    pub(crate) fn on_failure(&mut self, node: &NodeId) {
        self.set(node, Progress::Failed);
    }

    /// Where the candidate at `distance` is, or would be. Distances to one target are unique.
    fn position(&self, distance: &Distance) -> Result<usize, usize> {
        self.candidates.binary_search_by(|candidate| {
            let heads = candidate.head.cmp(&distance.head());
            heads.then_with(|| candidate.distance(&self.target).cmp(distance))
        })
    }

    fn set(&mut self, node: &NodeId, state: Progress) {
        let distance = Point::from(node).distance(&self.target);
        if let Ok(at) = self.position(&distance)
            && matches!(self.candidates[at].state, Progress::Asked | Progress::Overdue)
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
                Progress::Answered => answered += 1,
                Progress::New | Progress::Asked => return false,
                Progress::Overdue => overdue = true,
                Progress::Failed => {}
            }
        }
        answered >= K || !overdue
    }

    /// The k closest that answered, and those within the region; closest first.
    pub(crate) fn closest(&self) -> impl Iterator<Item = &Contact> {
        let (region, target) = (self.region, self.target);
        let answered = self.candidates.iter().filter(|c| c.state == Progress::Answered);
        answered
            .enumerate()
            .take_while(move |(at, c)| *at < K || region.is_some_and(|region| c.distance(&target) <= region))
            .map(|(_, c)| &c.contact)
    }

    /// The `count` closest that did not fail, whether they were asked or only named; closest first.
    pub(crate) fn nearby(&self, count: usize) -> impl Iterator<Item = &Contact> {
        let living = self.candidates.iter().filter(|c| c.state != Progress::Failed);
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
            .filter(|c| c.state == Progress::Answered)
            .take(K)
            .map(|c| c.distance(&self.target))
    }

    /// The number of candidates that answered.
    pub(crate) fn answered(&self) -> usize {
        self.candidates.iter().filter(|c| c.state == Progress::Answered).count()
    }

    /// The hop of the closest candidate that answered; 0 when none did.
    pub(crate) fn depth(&self) -> u8 {
        self.candidates
            .iter()
            .find(|c| c.state == Progress::Answered)
            .map_or(0, |c| c.hop)
    }

    /// Requests in flight that are not overdue.
    #[cfg(test)]
    pub(crate) fn fresh(&self) -> usize {
        self.candidates.iter().filter(|c| c.state == Progress::Asked).count()
    }
}

#[cfg(test)]
#[path = "lookup_tests.rs"]
mod tests;
