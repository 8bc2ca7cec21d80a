//! What runs beside an open connection: its streams, its control messages, its end.

use std::sync::Arc;

use macula_wire::proto::{self, GoAwayReason, control};
use prost::Message as _;
use tokio::sync::mpsc;

use crate::{
    caller,
    connection::{Direction, Link},
    error::CloseCode,
    serve,
    stream::{Incoming, Outgoing, ReceiveError},
};

/// Serves a connection until it ends, then takes it out of the pool.
pub(crate) async fn connection(
    link: Arc<Link>,
    mut outgoing: Outgoing,
    mut incoming: Incoming,
    mut queue: mpsc::Receiver<proto::Control>,
) {
    let streams = async {
        while let Ok((send, recv)) = link.quic.accept_bi().await {
            tokio::spawn(serve::stream(link.clone(), send, recv));
        }
    };
    let replies = async {
        while let Ok(recv) = link.quic.accept_uni().await {
            tokio::spawn(caller::large_reply(link.clone(), recv));
        }
    };
    let speak = async {
        while let Some(message) = queue.recv().await {
            if outgoing.send(&mut [macula_wire::frame(&message)]).await.is_err() {
                break;
            }
        }
        // The receiving half notices the end and says why.
        std::future::pending::<()>().await;
    };
    let listen = async {
        let words = loop {
            match incoming.next().await {
                Ok(Some(frame)) => {
                    if !hear(&link, frame) {
                        break "a control message cannot be read";
                    }
                }
                Ok(None) | Err(ReceiveError::Reset(_)) => break "the control stream ended",
                Err(ReceiveError::Frame(_) | ReceiveError::Broken) => break "a control message is too large",
                Err(ReceiveError::Lost(_)) => return,
            }
        };
        link.inner.counters.rejected_frames.add();
        link.close(CloseCode::Protocol, words);
    };
    let leave = async {
        // Whoever is told that the peer leaves closes the connection once nothing runs on it any more: by then every reply
        // has arrived, which the peer, who only sent them, cannot know.
        loop {
            let quiet = link.quiet.notified();
            if link.is_peer_leaving() && link.is_quiet() {
                link.close(CloseCode::Retired, "nothing is left to do");
                return;
            }
            quiet.await;
        }
    };
    tokio::select! {
        () = streams => {}
        () = replies => {}
        () = speak => {}
        () = listen => {}
        () = leave => {}
    }
    let error = link.quic.closed().await;
    tracing::debug!(peer = %link.peer.node_id.short(), reason = %link.lost(error), "connection ended");
    link.inner.pool.ended(&link);
}

/// Acts on a control message; `false` when it cannot be read.
fn hear(link: &Link, frame: bytes::Bytes) -> bool {
    let Ok(message) = proto::Control::decode(frame) else {
        return false;
    };
    match message.kind {
        Some(control::Kind::Probe(proto::Probe { nonce })) => {
            link.tell(control::Kind::ProbeAck(proto::ProbeAck { nonce }));
        }
        Some(control::Kind::GoAway(_)) => {
            link.peer_leaves();
            link.inner.pool.retired(link);
        }
        // A second introduction changes nothing, and later versions may say more.
        Some(control::Kind::Hello(_) | control::Kind::ProbeAck(_) | control::Kind::Load(_)) | None => {}
    }
    true
}

/// Tells the peer that this node takes no further calls.
pub(crate) fn say_goodbye(link: &Link, reason: GoAwayReason) {
    let last_call = link.running(Direction::Inbound) as u64;
    link.tell(control::Kind::GoAway(proto::GoAway {
        reason: reason.into(),
        last_call,
    }));
}
