//! The tasks of an open connection. They hand on its streams, write and read its control stream, watch for a silent peer, and close it.

use std::sync::Arc;

use macula_wire::{
    ChainHash,
    proto::{self, GoAwayReason, control},
};
use prost::Message as _;
use tokio::sync::mpsc;

use super::{
    link::Link,
    membership,
    stream::{Incoming, Outgoing, ReceiveError},
    watch,
};
use crate::{
    error::{CloseCode, Lost},
    report::LoadReport,
};

/// The endpoint's reactions to the events of a connection.
pub(crate) trait Events: Send + Sync + 'static {
    /// The peer opened a stream that both sides write.
    fn stream(&self, send: quinn::SendStream, recv: quinn::RecvStream);

    /// The peer opened a stream that it writes alone.
    fn reply(&self, recv: quinn::RecvStream);

    /// The peer takes no further calls.
    fn peer_leaves(&self);

    /// The connection has ended.
    fn ended(&self, reason: Lost);
}

/// Serves a connection until it ends. `shown` is the chain of this node that the peer was shown.
pub(crate) async fn run(
    link: Arc<Link>,
    events: Arc<dyn Events>,
    mut outgoing: Outgoing,
    mut incoming: Incoming,
    mut queue: mpsc::Receiver<proto::Control>,
    shown: Option<ChainHash>,
) {
    // Tasks of their own, which end with the connection: a stream that arrives wakes only the task that takes it.
    let (quic, streams) = (link.quic.clone(), events.clone());
    tokio::spawn(async move {
        while let Ok((send, recv)) = quic.accept_bi().await {
            streams.stream(send, recv);
        }
    });
    let (quic, replies) = (link.quic.clone(), events.clone());
    tokio::spawn(async move {
        while let Ok(recv) = quic.accept_uni().await {
            replies.reply(recv);
        }
    });
    let speak = async {
        while let Some(message) = queue.recv().await {
            if outgoing.send(&mut [macula_wire::frame(&message)]).await.is_err() {
                break;
            }
        }
        // The receiving half notices the end and says why.
        std::future::pending::<()>().await;
    };
    let mut bad_renewals = 0;
    let listen = async {
        let words = loop {
            match incoming.next().await {
                Ok(Some(frame)) => {
                    if !hear(&link, &*events, frame, &mut bad_renewals) {
                        break "a control message cannot be read";
                    }
                }
                Ok(None) | Err(ReceiveError::Reset(_)) => break "the control stream ended",
                Err(ReceiveError::Frame(_) | ReceiveError::Broken) => break "a control message is too large",
                Err(ReceiveError::Slow | ReceiveError::Exhausted) => break "a control message does not end",
                Err(ReceiveError::Lost(_)) => return,
            }
        };
        link.shared.counters.rejected_frames.add();
        link.close(CloseCode::Protocol, words);
    };
    let leave = async {
        // The side that is told that its peer leaves closes the connection once nothing runs on it: it has its replies by then.
        link.spent().await;
        link.shut(GoAwayReason::Retired);
        link.leave(CloseCode::Retired, "nothing is left to do").await;
    };
    tokio::select! {
        biased; // the same order each time
        () = speak => {}
        () = listen => {}
        () = leave => {}
        () = watch::peer(&link) => {}
        () = membership::keep(&link, shown) => {}
    }
    let reason = link.lost(link.quic.closed().await);
    tracing::debug!(peer = %link.peer.node_id.short(), %reason, "connection ended");
    events.ended(reason);
}

/// Acts on a control message; `false` when it cannot be read.
fn hear(link: &Link, events: &dyn Events, frame: bytes::Bytes, bad_renewals: &mut usize) -> bool {
    let Ok(message) = proto::Control::decode(frame) else {
        return false;
    };
    match message.kind {
        Some(control::Kind::Probe(proto::Probe { nonce })) => {
            link.tell(control::Kind::ProbeAck(proto::ProbeAck { nonce }));
        }
        Some(control::Kind::GoAway(proto::GoAway { reason, accepted, .. })) => {
            link.peer_leaves(reason == i32::from(GoAwayReason::Draining), accepted);
            events.peer_leaves();
        }
        Some(control::Kind::Load(load)) => link.peer_is_busy(LoadReport::from_wire(load)),
        Some(control::Kind::Renewed(proto::Renewed { chain })) => {
            membership::renewed(link, &chain, bad_renewals);
        }
        // A second introduction changes nothing, and later versions may say more.
        Some(control::Kind::Hello(_) | control::Kind::Ask(_) | control::Kind::ProbeAck(_)) | None => {}
    }
    true
}
