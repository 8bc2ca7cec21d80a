//! The outcome of a call that got no reply. No other place decides it (F5).
//!
//! A peer that leaves names the calls that it accepted (see [`Gate`](crate::connection::gate::Gate)), in GOAWAY and again as it closes the
//! connection. It never starts a call beyond these. [`outcome`] goes by that name alone:
//!
//! | end of the call's connection or stream | unsent | sent | accepted | beyond |
//! |---|---|---|---|---|
//! | turned away: busy, another realm, another version | not sent | not sent | unknown | not sent |
//! | left in order: shut down, evicted, idle, old | not sent | unknown | unknown | not sent |
//! | left with calls unfinished | not sent | unknown | unknown | not sent |
//! | closed by the peer for another reason | not sent | unknown | unknown | not sent |
//! | closed here | not sent | unknown | unknown | not sent |
//! | restarted: a stateless reset | not sent | unknown | unknown | not sent |
//! | silent, or a failure of the transport | not sent | unknown | unknown | not sent |
//! | the peer gave the stream back as not begun: it had no memory for it | not sent | not sent | not sent | not sent |
//! | the stream was reset otherwise, cut short, or brought no reply | not sent | unknown | unknown | not sent |
//! | the deadline passed | not sent | unknown | unknown | not sent |
//!
//! - **unsent**: the connection never gets a byte of it. A call that waits in a lane's outbox counts as sent.
//! - **sent**: the connection may have bytes of it, and the peer has named no calls.
//! - **accepted**: it is among those that the peer named.
//! - **beyond**: the peer has named others, and it is not among them.
//!
//! Streams may overtake each other, so a call on a stream below the last accepted one may not have been read. It counts as accepted all
//! the same: the name errs on the side of *unknown*. On a lane calls come in their order, and the name is exact.
//!
//! A stream given back as not begun may be below the last accepted one. Its calls still did not run; they are *refused*.
//!
//! A peer turns a connection away before it reads a call, so a call sent on it did not run. A *refused* call needs no row: its TRAILERS
//! are a reply.
//!
//! **Invariant:** a call that is not sent, or refused, never ran and never will. The tests check it on a model of both ends and the
//! network between them.

use macula_wire::{StatusCode, proto};

use super::NO_MEMORY;
use crate::{
    connection::{link::Link, stream::ResetCode},
    error::{CallError, CloseCode, Lost, NotSent, Unknown},
};

/// How the connection of a call ended, or its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum End {
    TurnedAway,
    Left,
    Aborted,
    ClosedByPeer,
    ClosedHere,
    Restarted,
    Failed,
    NotBegun,
    StreamEnded,
    Deadline,
}

/// How far a call was when it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Progress {
    Unsent,
    Sent,
    Accepted,
    Beyond,
}

/// The outcome of a call without a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    /// It did not run and never will.
    NotSent,
    /// It may have run.
    Unknown,
}

/// The outcome of a call, by the table above.
pub(crate) fn outcome(end: End, progress: Progress) -> Outcome {
    match (end, progress) {
        (_, Progress::Unsent | Progress::Beyond) | (End::TurnedAway, Progress::Sent) | (End::NotBegun, _) => {
            Outcome::NotSent
        }
        (
            End::TurnedAway
            | End::Left
            | End::Aborted
            | End::ClosedByPeer
            | End::ClosedHere
            | End::Restarted
            | End::Failed
            | End::StreamEnded
            | End::Deadline,
            Progress::Sent | Progress::Accepted,
        ) => Outcome::Unknown,
    }
}

/// Where a call is on its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallPlace {
    /// On a stream of its own, with this index.
    Stream(u64),
    /// On the lane with this index. Its calls are numbered from 1.
    Lane { stream: u64, number: u64 },
    /// The peer has begun to reply, apart from the lane that the call was on.
    Answering,
}

impl Progress {
    /// The progress of a call whose bytes the connection has.
    pub(crate) fn of(place: CallPlace, accepted: Option<&proto::Accepted>) -> Self {
        let Some(accepted) = accepted else { return Self::Sent };
        match place {
            CallPlace::Stream(stream) if stream >= accepted.streams => Self::Beyond,
            CallPlace::Stream(_) | CallPlace::Answering => Self::Accepted,
            CallPlace::Lane { stream, number } => match accepted_on(accepted, stream) {
                Some(calls) if number > calls => Self::Beyond,
                Some(_) => Self::Accepted,
                // The peer had given the lane up.
                None => Self::Sent,
            },
        }
    }
}

/// The outcome of the call at this place. A call without a place is unsent.
pub(crate) fn over(link: &Link, unknown: Unknown, place: Option<CallPlace>) -> CallError {
    let unknown = match unknown {
        Unknown::Lost(lost) => Unknown::Lost(link.refine(lost)),
        unknown => unknown,
    };
    let progress = place.map_or(Progress::Unsent, |place| Progress::of(place, link.peer_accepted()));
    let end = End::from(&unknown);
    match (outcome(end, progress), unknown) {
        (Outcome::Unknown, unknown) => CallError::Unknown(unknown),
        (Outcome::NotSent, _) if end == End::NotBegun => CallError::Refused {
            status: StatusCode::ResourceExhausted,
            message: NO_MEMORY.to_owned(),
            pushback: None,
        },
        (Outcome::NotSent, Unknown::Lost(lost)) => CallError::NotSent(NotSent::Lost(lost)),
        (Outcome::NotSent, _) => CallError::NotSent(NotSent::GoingAway),
    }
}

/// How many calls of a lane the peer accepted; `None` when it does not say. On a lane beyond the streams that it named it accepted none.
pub(crate) fn accepted_on(accepted: &proto::Accepted, stream: u64) -> Option<u64> {
    if stream >= accepted.streams {
        return Some(0);
    }
    let lane = accepted.lanes.iter().find(|lane| lane.stream == stream)?;
    Some(lane.calls)
}

impl From<&Lost> for End {
    fn from(lost: &Lost) -> Self {
        match lost {
            Lost::TimedOut | Lost::Transport(_) => Self::Failed,
            Lost::Restarted => Self::Restarted,
            Lost::ClosedHere(_) => Self::ClosedHere,
            Lost::ClosedByPeer { code, .. } => match code {
                CloseCode::Realm | CloseCode::Version | CloseCode::Busy | CloseCode::NotAMember => Self::TurnedAway,
                CloseCode::Shutdown | CloseCode::Retired => Self::Left,
                CloseCode::Aborted => Self::Aborted,
                CloseCode::Protocol
                | CloseCode::Unresponsive
                | CloseCode::GrantEnded
                | CloseCode::Revoked
                | CloseCode::Other => Self::ClosedByPeer,
            },
        }
    }
}

impl From<&Unknown> for End {
    fn from(unknown: &Unknown) -> Self {
        match unknown {
            Unknown::Timeout(_) => Self::Deadline,
            Unknown::Lost(lost) => lost.into(),
            Unknown::Reset(code) if *code == ResetCode::NotBegun as u64 => Self::NotBegun,
            Unknown::Reset(_)
            | Unknown::Incomplete
            | Unknown::Frame(_)
            | Unknown::Malformed
            | Unknown::Streamed
            | Unknown::NoMemory => Self::StreamEnded,
        }
    }
}

#[cfg(test)]
#[path = "outcome_tests.rs"]
mod tests;
