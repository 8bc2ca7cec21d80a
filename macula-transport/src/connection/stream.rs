//! QUIC streams that carry frames, and that a drop resets.
//!
//! **Invariant:** a stream is finished only by [`Outgoing::finish`]. quinn finishes a stream that is dropped, which would make an
//! abandoned message look like a whole one; here dropping resets.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use macula_wire::{FrameDecoder, FrameError, proto};
use prost::Message as _;
use quinn::VarInt;
use tokio::time::timeout;

use super::congestion;
use crate::{
    error::{CloseCode, Lost},
    share::{
        budget::Exhausted,
        memory::{Kept, Memory},
    },
};

/// What a frame has beside its payload or head, at most: tags, lengths and a call's id.
pub(crate) const FRAME_OVERHEAD: usize = 64;

/// What a stream is for: its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamKind {
    /// The control stream, the first one the dialing side opens.
    Control,
    /// One call.
    Call,
    /// Small calls, one after another.
    Lane,
    /// A reply to a call on a lane, which has outgrown it.
    Reply,
    /// A request of the DHT.
    Dht,
    /// Revocations.
    Revocations,
}

/// Small calls go before large messages, so that these never hold them up (P5).
const LANE_PRIORITY: i32 = 1;
/// How many chunks are read at once.
pub(crate) const READ_BATCH: usize = 32;
/// How many frames are taken at once: a frame of three bytes becomes a message of more than a hundred, and one read may give a million.
const FRAME_BATCH: usize = 1024;

impl StreamKind {
    pub(crate) const fn byte(self) -> u8 {
        match self {
            Self::Control => 0x01,
            Self::Call => 0x02,
            Self::Lane => 0x03,
            Self::Reply => 0x04,
            Self::Dht => 0x10,
            Self::Revocations => 0x11,
        }
    }

    pub(crate) const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0x01 => Some(Self::Control),
            0x02 => Some(Self::Call),
            0x03 => Some(Self::Lane),
            0x04 => Some(Self::Reply),
            0x10 => Some(Self::Dht),
            0x11 => Some(Self::Revocations),
            _ => None,
        }
    }
}

/// Why a stream was reset or stopped: the code the peer sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResetCode {
    /// The result is not wanted any more.
    Cancelled = 1,
    /// The peer broke the protocol on this stream.
    Protocol = 2,
    /// The peer was too slow.
    Slow = 3,
    /// The request is declined.
    Declined = 4,
    /// There is no memory left for what the stream carries.
    Exhausted = 5,
    /// There was no memory for the stream: nothing that it asks for was begun, and nothing will be.
    NotBegun = 6,
}

impl From<ResetCode> for VarInt {
    fn from(code: ResetCode) -> Self {
        Self::from_u32(code as u32)
    }
}

/// The sending half of a stream.
#[derive(Debug)]
pub(crate) struct Outgoing {
    stream: quinn::SendStream,
    finished: bool,
    /// A send began and has not ended.
    halfway: bool,
    /// What its connection has under way, where large messages let small calls pass.
    beside: Option<Arc<congestion::Bulk>>,
}

/// More than this is written in pieces of this size, each when there is room for it.
const PIECE_BYTES: usize = 16 * 1024;
/// The size of a piece where no small call waits.
const LARGE_PIECE_BYTES: usize = 64 * 1024;

/// The peer or the connection ended a sending half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SendError {
    /// The peer takes no more; it may have answered all the same.
    Stopped,
    Lost(Lost),
}

impl From<quinn::WriteError> for SendError {
    fn from(error: quinn::WriteError) -> Self {
        match error {
            quinn::WriteError::ConnectionLost(error) => Self::Lost(error.into()),
            quinn::WriteError::Stopped(_) | quinn::WriteError::ClosedStream | quinn::WriteError::ZeroRttRejected => {
                Self::Stopped
            }
        }
    }
}

impl Outgoing {
    pub(crate) fn new(stream: quinn::SendStream) -> Self {
        Self {
            stream,
            finished: false,
            halfway: false,
            beside: None,
        }
    }

    /// From here on, large messages let the small calls of their connection pass.
    pub(crate) fn beside(mut self, connection: &Arc<congestion::Bulk>) -> Self {
        self.beside = Some(connection.clone());
        self
    }

    /// Sends every chunk, waiting for the peer's credit.
    ///
    /// When this is given up halfway, the stream holds part of a frame: nothing more is sent on it.
    pub(crate) async fn send(&mut self, chunks: &mut [Bytes]) -> Result<(), SendError> {
        if std::mem::replace(&mut self.halfway, true) {
            self.reset(ResetCode::Cancelled);
            return Err(SendError::Stopped);
        }
        match &self.beside {
            Some(connection) if chunks.iter().map(Bytes::len).sum::<usize>() > PIECE_BYTES => {
                let mut chunks = VecDeque::from_iter(chunks.iter_mut().map(std::mem::take));
                while !chunks.is_empty() {
                    let most = if connection.has_small_calls() {
                        PIECE_BYTES
                    } else {
                        LARGE_PIECE_BYTES
                    };
                    let mut piece = first_bytes(&mut chunks, most);
                    connection
                        .make_room(piece.iter().map(Bytes::len).sum::<usize>() as u64)
                        .await;
                    self.stream.write_all_chunks(&mut piece).await?;
                }
            }
            Some(_) | None => self.stream.write_all_chunks(chunks).await?,
        }
        self.halfway = false;
        Ok(())
    }

    /// Whether a send was given up, after which nothing more can be sent.
    pub(crate) fn is_halfway(&self) -> bool {
        self.halfway
    }

    /// Which of its opener's streams it is.
    pub(crate) fn index(&self) -> u64 {
        self.stream.id().index()
    }

    /// From here on, this stream carries small calls: it goes before the others, and waits for none of them.
    pub(crate) fn carry_small_calls(&mut self) {
        self.beside = None;
        // Fails only when the stream is over.
        let _ = self.stream.set_priority(LANE_PRIORITY);
    }

    /// Ends this half after the bytes sent. A drop still resets it and tells the peer that the result is not wanted.
    pub(crate) fn close_half(&mut self) {
        // Fails only when the stream is over in another way, which the other half reports.
        let _ = self.stream.finish();
    }

    /// Ends this half after the bytes sent. If the send of a message was abandoned, at any byte, the stream is reset instead.
    pub(crate) fn finish(&mut self) {
        if self.halfway {
            self.reset(ResetCode::Cancelled);
        } else {
            self.finished = true;
            self.close_half();
        }
    }

    pub(crate) fn reset(&mut self, code: ResetCode) {
        self.finished = true;
        let _ = self.stream.reset(code.into());
    }

    /// Waits until the peer wants no more of this half, or has all of it.
    pub(crate) fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        let stopped = self.stream.stopped();
        async move {
            let _ = stopped.await;
        }
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.stream.reset(ResetCode::Cancelled.into());
        }
    }
}

/// The receiving half of a stream, cut into frames. Dropping it tells the peer to stop.
#[derive(Debug)]
pub(crate) struct Incoming {
    stream: quinn::RecvStream,
    decoder: FrameDecoder,
    /// Read and not yet decoded; at most what one read gives.
    chunks: VecDeque<Bytes>,
    /// There may be whole frames among what was read.
    more: bool,
    /// Where its unfinished messages are charged; `None` where they are too small to count.
    kept: Option<Kept>,
    /// How long the peer may be silent in the middle of a message, where that is bounded.
    idle: Option<Duration>,
    /// A message is unfinished although no part of a frame is here.
    unfinished: bool,
}

/// The peer or the connection ended a receiving half before its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ReceiveError {
    Reset(u64),
    Lost(Lost),
    Frame(FrameError),
    /// A frame is malformed.
    Broken,
    /// The peer fell silent in the middle of a message.
    Slow,
    /// This node has no memory left for the message.
    Exhausted,
}

impl From<Exhausted> for ReceiveError {
    fn from(_: Exhausted) -> Self {
        Self::Exhausted
    }
}

impl From<FrameError> for ReceiveError {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

impl From<quinn::ReadError> for ReceiveError {
    fn from(error: quinn::ReadError) -> Self {
        match error {
            quinn::ReadError::ConnectionLost(error) => Self::Lost(error.into()),
            quinn::ReadError::Reset(code) => Self::Reset(code.into_inner()),
            quinn::ReadError::ClosedStream
            | quinn::ReadError::IllegalOrderedRead
            | quinn::ReadError::ZeroRttRejected => Self::Reset(ResetCode::Cancelled as u64),
        }
    }
}

/// Why a stream of the peer gets no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unserved {
    /// The peer sent something that it must not.
    Broken,
    /// The peer did not say in time what it wants.
    Slow,
    /// This node has no memory left for it.
    Exhausted,
    /// As [`Unserved::Exhausted`], before anything that it asks for was begun.
    NotBegun,
    /// The peer or the connection ended it.
    Gone,
}

impl From<ReceiveError> for Unserved {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::Reset(_) | ReceiveError::Lost(_) => Self::Gone,
            ReceiveError::Frame(_) | ReceiveError::Broken => Self::Broken,
            ReceiveError::Slow => Self::Slow,
            ReceiveError::Exhausted => Self::Exhausted,
        }
    }
}

/// How many chunks are read at once where one frame is wanted: every read costs a lock and a wake-up.
const NEXT_BATCH: usize = 16;

impl Incoming {
    /// `limit` is of one frame, without its length.
    pub(crate) fn new(stream: quinn::RecvStream, limit: usize) -> Self {
        Self {
            stream,
            decoder: FrameDecoder::new(limit),
            chunks: VecDeque::new(),
            more: false,
            kept: None,
            idle: None,
            unfinished: false,
        }
    }

    /// Charges unfinished messages to the peer.
    pub(crate) fn charged(mut self, memory: &Memory) -> Self {
        self.kept = Some(memory.kept());
        self
    }

    /// Bounds how long the peer may be silent in the middle of a message.
    pub(crate) fn never_idle_for(mut self, idle: Duration) -> Self {
        self.idle = Some(idle);
        self
    }

    /// Counts `kept` bytes of the message that the caller holds.
    pub(crate) fn assembles(&mut self, kept: usize) {
        self.unfinished = true;
        if let Some(it) = &mut self.kept {
            it.set_beside(kept);
        }
    }

    /// The message is whole. What it takes stays charged until the next one is read, or it is [released](Self::release).
    pub(crate) fn assembled(&mut self) {
        self.unfinished = false;
    }

    /// Nothing is kept of the last message any more.
    pub(crate) fn release(&mut self) {
        self.kept = None;
    }

    /// Waits until the memory of the last message is taken back.
    pub(crate) fn taken_back(&self) -> impl Future<Output = ()> + Send + 'static {
        let taken = self.kept.as_ref().map(Kept::taken_back);
        async move {
            match taken {
                Some(taken) => taken.await,
                None => std::future::pending().await,
            }
        }
    }

    /// Charges the bytes of a message that is whole, for as long as it is kept.
    ///
    /// # Errors
    /// When there is no room for them.
    pub(crate) fn keep(&mut self, bytes: usize) -> Result<(), Exhausted> {
        self.kept.as_mut().map_or(Ok(()), |kept| kept.set(bytes))
    }

    /// Waits for bytes, and gives how many of `chunks` they fill; `None` at the end of the stream. The part of a message that is here is
    /// charged, and the rest of it may not be long in coming.
    async fn arrive(&mut self, chunks: &mut [Bytes]) -> Result<Option<usize>, ReceiveError> {
        let here = self.decoder.buffered();
        self.keep(here)?;
        if here == 0 && !self.unfinished {
            return Ok(self.stream.read_chunks(chunks).await?);
        }
        let idle = self.idle.unwrap_or(Duration::MAX);
        let taken = self.taken_back();
        tokio::select! {
            biased;
            () = taken => Err(ReceiveError::Exhausted),
            read = timeout(idle, self.stream.read_chunks(chunks)) => match read {
                Ok(read) => Ok(read?),
                Err(_) => Err(ReceiveError::Slow),
            },
        }
    }

    /// Reads the bytes that have arrived; false at the end of the stream.
    async fn read_more(&mut self) -> Result<bool, ReceiveError> {
        let mut chunks = [const { Bytes::new() }; NEXT_BATCH];
        let Some(count) = self.arrive(&mut chunks).await? else {
            return Ok(false);
        };
        self.chunks.extend(chunks.into_iter().take(count));
        Ok(true)
    }

    /// Bytes before any frame; `None` when the stream ends before them.
    async fn exact<const N: usize>(&mut self) -> Result<Option<[u8; N]>, ReceiveError> {
        let (mut bytes, mut have) = ([0; N], 0);
        while have < N {
            let Some(chunk) = self.chunks.front_mut() else {
                if !self.read_more().await? {
                    return Ok(None);
                }
                continue;
            };
            let taken = chunk.split_to(chunk.len().min(N - have));
            bytes[have..have + taken.len()].copy_from_slice(&taken);
            have += taken.len();
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
        Ok(Some(bytes))
    }

    /// The stream's first byte; `None` when it is empty.
    pub(crate) async fn kind(&mut self) -> Result<Option<u8>, ReceiveError> {
        Ok(self.exact::<1>().await?.map(|[byte]| byte))
    }

    /// A number before any frame; `None` when the stream ends before it.
    pub(crate) async fn number(&mut self) -> Result<Option<u64>, ReceiveError> {
        Ok(self.exact().await?.map(u64::from_be_bytes))
    }

    /// The next frame; `None` when the peer finished the stream between two.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ReceiveError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            if let Some(chunk) = self.chunks.pop_front() {
                // One at a time: the limit may be another for the frame after this.
                self.decoder.push(chunk);
            } else if !self.read_more().await? {
                self.decoder.finish()?;
                return Ok(None);
            }
        }
    }

    /// Reads what has arrived and gives its frames to `take`, at most [`FRAME_BATCH`] of them: those beyond come with the next call.
    /// False when the peer finished the stream between two.
    pub(crate) async fn fill(
        &mut self,
        chunks: &mut [Bytes; READ_BATCH],
        take: impl FnMut(Bytes) -> Result<(), ReceiveError>,
    ) -> Result<bool, ReceiveError> {
        if self.chunks.is_empty() && !self.more {
            let Some(count) = self.arrive(chunks).await? else {
                self.decoder.finish()?;
                return Ok(false);
            };
            // A call keeps its part of a chunk, and a chunk all packets that came with it, of which there may be 64 KiB.
            self.chunks
                .extend(chunks[..count].iter().map(|chunk| Bytes::copy_from_slice(chunk)));
            chunks.fill(Bytes::new());
        }
        self.more = cut(&mut self.decoder, &mut self.chunks, take)?;
        Ok(true)
    }

    /// From here on, frames are of at most `limit` bytes.
    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.decoder.set_limit(limit);
    }

    pub(crate) fn stop(&mut self, code: ResetCode) {
        // Fails only when the stream has ended.
        let _ = self.stream.stop(code.into());
    }

    /// Takes note of the stream's end if it has arrived, so that dropping this does not ask the peer to stop for nothing.
    pub(crate) fn settle(&mut self) {
        use futures::FutureExt as _;
        let _ = self.stream.read_chunk(1, true).now_or_never();
    }
}

/// Gives the next frames of `chunks` to `take`; whether there may be more than [`FRAME_BATCH`].
fn cut(
    decoder: &mut FrameDecoder,
    chunks: &mut VecDeque<Bytes>,
    mut take: impl FnMut(Bytes) -> Result<(), ReceiveError>,
) -> Result<bool, ReceiveError> {
    let mut taken = 0;
    loop {
        while let Some(frame) = decoder.next_frame()? {
            take(frame)?;
            taken += 1;
            if taken == FRAME_BATCH {
                return Ok(true);
            }
        }
        match chunks.pop_front() {
            Some(chunk) => decoder.push(chunk),
            None => return Ok(false),
        }
    }
}

/// Takes the first bytes of `chunks` without copying them: at most `most`, and the few that a frame adds.
fn first_bytes(chunks: &mut VecDeque<Bytes>, most: usize) -> Vec<Bytes> {
    let (mut taken, mut left) = (Vec::new(), most);
    while let Some(chunk) = chunks.front_mut() {
        if chunk.len() <= left + FRAME_OVERHEAD {
            left = left.saturating_sub(chunk.len());
            taken.extend(chunks.pop_front());
        } else {
            if left > 0 {
                taken.push(chunk.split_to(left));
            }
            break;
        }
    }
    taken
}

/// The bytes of a stream's kind.
pub(crate) fn kind_bytes(kind: StreamKind) -> Bytes {
    Bytes::copy_from_slice(&[kind.byte()])
}

/// `body` as one frame: its length, then itself, not copied.
pub(crate) fn body_frame(body: Bytes) -> [Bytes; 2] {
    let mut prefix = BytesMut::with_capacity(10);
    put_varint(&mut prefix, body.len() as u64);
    [prefix.freeze(), body]
}

pub(crate) fn put_varint(buffer: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        buffer.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    buffer.put_u8(value as u8);
}

/// One control message as a frame.
pub(crate) fn control_frame(kind: proto::control::Kind) -> Bytes {
    macula_wire::frame(&proto::Control { kind: Some(kind) })
}

impl CloseCode {
    const ALL: [Self; 12] = [
        Self::Other,
        Self::Shutdown,
        Self::Retired,
        Self::Protocol,
        Self::Realm,
        Self::Version,
        Self::Busy,
        Self::Unresponsive,
        Self::Aborted,
        Self::NotAMember,
        Self::GrantEnded,
        Self::Revoked,
    ];

    pub(crate) fn to_wire(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }

    pub(crate) fn from_wire(code: VarInt) -> Self {
        usize::try_from(code.into_inner())
            .ok()
            .and_then(|at| Self::ALL.get(at))
            .copied()
            .unwrap_or(Self::Other)
    }
}

/// A farewell as the reason phrase of a connection that is closed.
pub(crate) fn farewell(farewell: proto::GoAway) -> Vec<u8> {
    farewell.encode_to_vec()
}

/// The farewell of a peer that closed the connection for its own reasons; `None` for another reason.
pub(crate) fn read_farewell(close: &quinn::ApplicationClose) -> Option<proto::GoAway> {
    match CloseCode::from_wire(close.error_code) {
        CloseCode::Shutdown | CloseCode::Retired | CloseCode::Aborted => {
            proto::GoAway::decode(close.reason.clone()).ok()
        }
        CloseCode::Other
        | CloseCode::Protocol
        | CloseCode::Realm
        | CloseCode::Version
        | CloseCode::Busy
        | CloseCode::Unresponsive
        | CloseCode::NotAMember
        | CloseCode::GrantEnded
        | CloseCode::Revoked => None,
    }
}

/// The most of a peer's closing words that is kept, in bytes.
const MAX_REASON_BYTES: usize = 256;

impl From<quinn::ConnectionError> for Lost {
    fn from(error: quinn::ConnectionError) -> Self {
        match error {
            quinn::ConnectionError::TimedOut => Self::TimedOut,
            quinn::ConnectionError::Reset => Self::Restarted,
            quinn::ConnectionError::ApplicationClosed(close) => {
                let code = CloseCode::from_wire(close.error_code);
                let words = read_farewell(&close).map_or(close.reason, |farewell| farewell.words.into());
                let words = &words[..words.len().min(MAX_REASON_BYTES)];
                // Shown to people: nothing in it may steer a terminal.
                let words: String = String::from_utf8_lossy(words)
                    .chars()
                    .filter(|c| !c.is_control())
                    .collect();
                let reason = if words.is_empty() { code.to_string() } else { words };
                Self::ClosedByPeer {
                    code,
                    reason: reason.into(),
                }
            }
            quinn::ConnectionError::LocallyClosed => Self::ClosedHere(CloseCode::Shutdown),
            quinn::ConnectionError::VersionMismatch
            | quinn::ConnectionError::TransportError(_)
            | quinn::ConnectionError::ConnectionClosed(_)
            | quinn::ConnectionError::CidsExhausted => Self::Transport(error.to_string().into()),
        }
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
