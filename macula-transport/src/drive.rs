//! What runs beside an open connection: its streams, its control messages, its end.

use std::sync::Arc;

use macula_wire::proto::{self, GoAwayReason, control};
use prost::Message as _;
use tokio::sync::mpsc;

use crate::{
    LoadReport, caller,
    connection::Link,
    error::CloseCode,
    health::{Health, SilenceRules, Verdict},
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
    // Tasks of their own, which end with the connection: each stream that arrives wakes only who takes it.
    tokio::spawn(accept_streams(link.clone()));
    tokio::spawn(accept_replies(link.clone()));
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
        () = watch(&link) => {}
    }
    let reason = link.lost(link.quic.closed().await);
    tracing::debug!(peer = %link.peer.node_id.short(), %reason, "connection ended");
    link.inner.pool.ended(&link, reason);
}

async fn accept_streams(link: Arc<Link>) {
    while let Ok((send, recv)) = link.quic.accept_bi().await {
        tokio::spawn(serve::stream(link.clone(), send, recv));
    }
}

async fn accept_replies(link: Arc<Link>) {
    while let Ok(recv) = link.quic.accept_uni().await {
        tokio::spawn(caller::reply(link.clone(), recv));
    }
}

/// Looks after the peer while calls wait for it, and closes the connection when it is gone.
async fn watch(link: &Link) {
    let timers = &link.inner.config.timers;
    let mut health = Health::new(SilenceRules {
        ask_after: timers.probe_after,
        ask_again: timers.probe_again,
        dead_after: timers.dead_after,
        grace: timers.probe_grace,
    });
    let mut nonce = 0;
    loop {
        let woken = link.watch.notified();
        let due = async {
            match health.poll_timeout() {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = woken => {}
            () = due => {}
        }
        let now = tokio::time::Instant::now().into_std();
        let (waiting, overdue) = link.waiting();
        let heard = link.quic.stats().udp_rx.datagrams;
        let verdict = if overdue {
            health.look_overdue(now, heard, link.quic.rtt())
        } else {
            health.look(now, heard, waiting)
        };
        match verdict {
            Verdict::Wait => {}
            Verdict::Ask => {
                nonce += 1;
                link.tell(control::Kind::Probe(proto::Probe { nonce }));
                link.nudge();
            }
            Verdict::Dead => {
                link.close(CloseCode::Unresponsive, "no answer came");
                return;
            }
        }
    }
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
        Some(control::Kind::GoAway(proto::GoAway { reason, accepted, .. })) => {
            link.peer_leaves(reason == i32::from(GoAwayReason::Draining), accepted);
            link.inner.pool.retired(link);
        }
        Some(control::Kind::Load(load)) => link.peer_is_busy(LoadReport::from_wire(load)),
        // A second introduction changes nothing, and later versions may say more.
        Some(control::Kind::Hello(_) | control::Kind::ProbeAck(_)) | None => {}
    }
    true
}
