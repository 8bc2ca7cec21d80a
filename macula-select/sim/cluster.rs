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
    /// Cannot be reached.
    Down,
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
        }
    }

    pub(crate) fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
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
            Mode::BlackHole => Reception::Quiet,
            Mode::Down => Reception::Answer(Fate::NotSent, 0),
        }
    }

    /// A worker is free; the job it takes next and for how long.
    pub(crate) fn finish(&mut self, random: &mut Random) -> Option<(Job, Nanos)> {
        self.busy -= 1;
        match self.mode {
            Mode::Serving { .. } | Mode::Flaky { .. } => {}
            Mode::Failing | Mode::BlackHole | Mode::Down => {
                self.queue.clear();
                return None;
            }
        }
        let next = self.queue.pop_front()?;
        self.busy += 1;
        Some((next, self.service_time(random)))
    }

    /// Forgets a job that nobody waits for any more, if it was not begun.
    pub(crate) fn cancel(&mut self, job: Job) {
        self.queue.retain(|queued| *queued != job);
    }

    /// What a job that was served comes to.
    pub(crate) fn result(&self, random: &mut Random) -> Fate {
        match self.mode {
            Mode::Flaky { errors } if random.chance(errors) => Fate::answered(Code::Unavailable),
            Mode::Serving { .. } | Mode::Flaky { .. } | Mode::Failing | Mode::BlackHole | Mode::Down => Fate::Ok,
        }
    }

    fn service_time(&self, random: &mut Random) -> Nanos {
        let slowness = match self.mode {
            Mode::Serving { slowness } => slowness,
            Mode::Flaky { .. } | Mode::Failing | Mode::BlackHole | Mode::Down => 1.0,
        };
        random.exponential(self.mean as f64 * slowness)
    }
}
