//! Servers: workers, a queue, and the ways in which one can misbehave.

use std::collections::VecDeque;

use macula_select::{Code, Fate, Refusal};

use crate::world::{Job, Nanos, Random};

pub(crate) const MILLISECOND: Nanos = 1_000_000;
pub(crate) const SECOND: Nanos = 1_000_000_000;

/// How a server treats a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Mode {
    /// Serves it, in this multiple of the normal time.
    Serving { slowness: f64 },
    /// Serves it in the normal time, but this share of the answers are errors.
    Flaky { errors: f64 },
    /// Answers with an error after a millisecond.
    Failing,
    /// Accepts it and never answers.
    BlackHole,
    /// Refuses every connection.
    Down,
    /// Works, but is not heard, nor does it hear: its process is stopped, or the network is cut. Nothing is lost.
    Silent,
    /// Its process is gone without a word.
    Killed,
}

/// What a server does with a request on arrival.
pub(crate) enum Reception {
    /// A worker takes it, for this long.
    Started(Nanos),
    /// It waits, or it is never answered.
    Quiet,
    /// This comes back, after this long.
    Answer(Fate, Nanos),
}

pub(crate) struct Server {
    mode: Mode,
    workers: u32,
    mean: Nanos,
    queue_limit: usize,
    busy: u32,
    queue: VecDeque<Job>,
    /// What is on its way while nothing arrives.
    held_requests: Vec<Job>,
    held_replies: Vec<(Job, Fate)>,
}

impl Server {
    pub(crate) fn new(workers: u32, mean: Nanos, queue_limit: usize) -> Self {
        Self {
            mode: Mode::Serving { slowness: 1.0 },
            workers,
            mean,
            queue_limit,
            busy: 0,
            queue: VecDeque::new(),
            held_requests: Vec::new(),
            held_replies: Vec::new(),
        }
    }

    /// Changes the mode and returns the one before.
    pub(crate) fn set_mode(&mut self, mode: Mode) -> Mode {
        if mode == Mode::Killed {
            self.queue.clear();
            self.held_requests.clear();
            self.held_replies.clear();
        }
        std::mem::replace(&mut self.mode, mode)
    }

    /// Whether nothing from it or to it arrives.
    pub(crate) fn is_cut_off(&self) -> bool {
        matches!(self.mode, Mode::Silent | Mode::Killed)
    }

    /// Requests that wait for a worker.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Keeps a reply while nothing arrives; gives it back otherwise, unless the process that made it is gone.
    pub(crate) fn reply(&mut self, job: Job, fate: Fate) -> Option<Fate> {
        match self.mode {
            Mode::Silent => {
                self.held_replies.push((job, fate));
                None
            }
            Mode::Killed => None,
            Mode::Serving { .. } | Mode::Flaky { .. } | Mode::Failing | Mode::BlackHole | Mode::Down => Some(fate),
        }
    }

    /// Requests and replies that arrive now because the silence is over.
    pub(crate) fn what_was_held(&mut self) -> (Vec<Job>, Vec<(Job, Fate)>) {
        if self.is_cut_off() {
            return (Vec::new(), Vec::new());
        }
        (
            std::mem::take(&mut self.held_requests),
            std::mem::take(&mut self.held_replies),
        )
    }

    pub(crate) fn arrive(&mut self, job: Job, random: &mut Random) -> Reception {
        match self.mode {
            Mode::Serving { .. } | Mode::Flaky { .. } if self.busy < self.workers => {
                self.busy += 1;
                Reception::Started(self.service_time(random))
            }
            Mode::Serving { .. } | Mode::Flaky { .. } if self.queue.len() < self.queue_limit => {
                self.queue.push_back(job);
                Reception::Quiet
            }
            Mode::Serving { .. } | Mode::Flaky { .. } => Reception::Answer(Fate::refused(Refusal::Overloaded), 0),
            Mode::Failing => Reception::Answer(Fate::answered(Code::Unavailable), MILLISECOND),
            Mode::BlackHole | Mode::Killed => Reception::Quiet,
            Mode::Silent => {
                self.held_requests.push(job);
                Reception::Quiet
            }
            Mode::Down => Reception::Answer(Fate::NotSent, 0),
        }
    }

    /// A worker is free; the job it takes next and for how long.
    pub(crate) fn finish(&mut self, random: &mut Random) -> Option<(Job, Nanos)> {
        self.busy -= 1;
        match self.mode {
            Mode::Serving { .. } | Mode::Flaky { .. } | Mode::Silent => {}
            Mode::Failing | Mode::BlackHole | Mode::Down | Mode::Killed => {
                self.queue.clear();
                return None;
            }
        }
        let next = self.queue.pop_front()?;
        self.busy += 1;
        Some((next, self.service_time(random)))
    }

    /// Forgets a job whose client no longer waits for it, if it was not begun.
    pub(crate) fn cancel(&mut self, job: Job) {
        self.queue.retain(|queued| *queued != job);
        self.held_requests.retain(|held| *held != job);
    }

    /// What a job that was served comes to.
    pub(crate) fn result(&self, random: &mut Random) -> Fate {
        match self.mode {
            Mode::Flaky { errors } if random.chance(errors) => Fate::answered(Code::Unavailable),
            Mode::Serving { .. }
            | Mode::Flaky { .. }
            | Mode::Failing
            | Mode::BlackHole
            | Mode::Down
            | Mode::Silent
            | Mode::Killed => Fate::Ok,
        }
    }

    fn service_time(&self, random: &mut Random) -> Nanos {
        let slowness = match self.mode {
            Mode::Serving { slowness } => slowness,
            Mode::Flaky { .. } | Mode::Failing | Mode::BlackHole | Mode::Down | Mode::Silent | Mode::Killed => 1.0,
        };
        random.exponential(self.mean as f64 * slowness)
    }
}
