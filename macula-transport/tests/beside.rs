//! Small calls beside others share a stream with them. Replies that outgrow it lose nothing by it.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use common::{PATIENCE, Seen, Watched, client, config, connect, echoes, node, service, until};
use futures::{
    FutureExt as _,
    future::{BoxFuture, join_all},
};
use macula_transport::{
    CallError, CallKind, CallRequest, CallStream, Connection, Endpoint, Handler, IncomingCall, IncomingMessages,
    Limits, MAX_MOVED_REPLIES, OutgoingMessages, Replies, Reply, Unknown,
};
use macula_wire::StatusCode;
use tokio::sync::{Notify, mpsc};

/// The most that goes over a lane.
const INLINE: usize = 16 * 1024;

/// Does what a request says, word by word; all its services but `echo` stream.
///
/// A number is a message of so many bytes, `flush` sends what there is, `yield` lets others run, `gate` waits for the test, `hang`
/// for ever, `where` is a message that names the task, `panic` panics, `fail` ends with an error, `end` and a number with a message of so many bytes; `abandon` gives up the
/// sending of a large message halfway.
struct Script {
    service: common::Service,
    gate: Arc<Notify>,
}

impl Handler for Script {
    fn call(&self, call: IncomingCall) -> BoxFuture<'static, Reply> {
        self.service.call(call)
    }

    fn kind(&self, call: &IncomingCall) -> CallKind {
        match call.service().as_str() {
            "script" | "open" => CallKind::Streaming,
            _ => CallKind::Unary,
        }
    }

    fn stream(
        &self,
        call: IncomingCall,
        mut requests: IncomingMessages,
        mut replies: OutgoingMessages,
    ) -> BoxFuture<'static, Reply> {
        let (seen, gate) = (self.service.seen.clone(), self.gate.clone());
        async move {
            if call.service().as_str() == "open" {
                // Until its caller has enough of it.
                while let Ok(Some(_)) = requests.next().await {}
                return Reply::ok("");
            }
            let script = requests.next().await.unwrap().unwrap();
            let _watched = Watched(seen.clone());
            let _ = seen.send(Seen::Started);
            let script = String::from_utf8(script.to_vec()).unwrap();
            let mut words = script.split_whitespace();
            while let Some(word) = words.next() {
                let sent = match word {
                    "flush" => replies.flush().await,
                    "yield" => {
                        tokio::task::yield_now().await;
                        Ok(())
                    }
                    "gate" => {
                        gate.notified().await;
                        Ok(())
                    }
                    "hang" => std::future::pending().await,
                    "abandon" => {
                        assert_eq!(replies.send(message(4_000_000)).now_or_never(), None);
                        Ok(())
                    }
                    "where" => replies.gather(format!("task {}", tokio::task::id()).into()).await,
                    "panic" => panic!("a handler may panic"),
                    "fail" => return Reply::error(StatusCode::OutOfRange, "no more"),
                    "end" => return Reply::ok(message(words.next().unwrap().parse().unwrap())),
                    number => replies.gather(message(number.parse().unwrap())).await,
                };
                if sent.is_err() {
                    return Reply::error(StatusCode::Cancelled, "the caller has left");
                }
            }
            Reply::ok("")
        }
        .boxed()
    }
}

fn message(bytes: usize) -> Bytes {
    (0..bytes).map(|at| (at + bytes) as u8).collect()
}

struct Test {
    provider: Arc<Endpoint>,
    events: mpsc::UnboundedReceiver<Seen>,
    gate: Arc<Notify>,
    caller: Endpoint,
    connection: Connection,
    /// Keeps the others from being alone.
    beside: Option<CallStream>,
}

impl Test {
    /// Replies that have moved, as many as there are places for, and that never end.
    async fn fill_places(&mut self) -> Vec<Replies> {
        let mut moved = Vec::new();
        for _ in 0..MAX_MOVED_REPLIES {
            let mut replies = self.open("5 flush hang").await;
            self.seen(Seen::Started).await;
            assert_eq!(replies.next().await.unwrap().unwrap().len(), 5);
            moved.push(replies);
        }
        moved
    }

    async fn start() -> Self {
        Self::with(client().await).await
    }

    async fn with(caller: Endpoint) -> Self {
        let (handler, events) = common::Service::new();
        let gate = Arc::new(Notify::new());
        let script = Script {
            service: handler,
            gate: gate.clone(),
        };
        let provider = Arc::new(node(script).await);
        let connection = connect(&caller, &provider).await.unwrap();
        let name = service("open");
        let beside = connection
            .open(CallRequest::new(&name, "").with_timeout(PATIENCE))
            .await;
        Self {
            provider,
            events,
            gate,
            caller,
            connection,
            beside: Some(beside.unwrap()),
        }
    }

    async fn open_for(&self, script: &'static str, timeout: Duration) -> Replies {
        let name = service("script");
        let request = CallRequest::new(&name, script).with_timeout(timeout);
        self.connection.open_with_only(request).await.unwrap()
    }

    async fn open(&self, script: &'static str) -> Replies {
        self.open_for(script, PATIENCE).await
    }

    async fn seen(&mut self, expected: Seen) {
        assert_eq!(self.events.recv().await, Some(expected));
    }
}

/// All that is left: the messages' sizes, and the outcome.
async fn rest(replies: &mut Replies) -> Result<(Vec<usize>, StatusCode), CallError> {
    let mut sizes = Vec::new();
    while let Some(next) = replies.next().await? {
        assert_eq!(next, message(next.len()));
        sizes.push(next.len());
    }
    assert_eq!(replies.next().await?, None, "the end stays the end");
    Ok((sizes, replies.reply().unwrap().status))
}

#[tokio::test]
async fn replies_are_the_same_alone_and_beside_others_whether_or_not_they_fit_on_a_lane() {
    let mut test = Test::start().await;
    let ok = StatusCode::Ok;
    let cases: [(&str, &[usize], StatusCode); 18] = [
        ("", &[], ok),
        ("3", &[3], ok),
        ("0 69", &[0, 69], ok),
        ("0 0 0", &[0, 0, 0], ok),
        ("5 end 7", &[5, 7], ok),
        ("end 7", &[7], ok),
        ("1 2 fail", &[1, 2], StatusCode::OutOfRange),
        ("fail", &[], StatusCode::OutOfRange),
        ("yield 1 yield 2 yield", &[1, 2], ok),
        ("1 panic", &[1], StatusCode::Internal),
        ("8000 8000", &[8000, 8000], ok),
        ("8000 8000 1000", &[8000, 8000, 1000], ok),
        ("17000", &[17_000], ok),
        ("1 end 100000", &[1, 100_000], ok),
        ("1 flush 2 flush end 3", &[1, 2, 3], ok),
        ("1 flush yield 2 fail", &[1, 2], StatusCode::OutOfRange),
        ("1 flush yield 2 panic", &[1, 2], StatusCode::Internal),
        ("1 300000 2 yield 3000000 flush 5", &[1, 300_000, 2, 3_000_000, 5], ok),
    ];
    for (script, sizes, status) in cases {
        let mut beside = test.open(script).await;
        assert_eq!(rest(&mut beside).await.unwrap(), (sizes.to_vec(), status), "{script}");
    }
    test.beside = None;
    for (script, sizes, status) in cases {
        // The handler of an answered call may still run, so each script gets a call of its own.
        let mut alone = test.open(script).await;
        assert_eq!(rest(&mut alone).await.unwrap(), (sizes.to_vec(), status), "{script}");
    }
    assert_eq!(test.caller.stats().rejected_frames, 0);
    assert_eq!(test.caller.stats().dropped_replies, 0);
}

/// A call on a lane has all of a small reply with its first message.
#[tokio::test]
async fn only_small_calls_beside_others_share_a_stream() {
    let mut test = Test::start().await;
    let name = service("script");
    let request = |script: String| CallRequest::new(&name, script).with_timeout(PATIENCE);
    let mut beside = test.connection.open_with_only(request("1 2".into())).await.unwrap();
    assert_eq!(beside.next().await.unwrap().unwrap().len(), 1);
    assert!(beside.is_here());
    assert_eq!(test.provider.stats().calls_on_lanes, 1);
    drop(beside);
    let large = format!("{} 1 2", " ".repeat(INLINE));
    let mut apart = test.connection.open_with_only(request(large)).await.unwrap();
    assert_eq!(apart.next().await.unwrap().unwrap().len(), 1);
    drop(apart);
    test.beside = None;
    let mut alone = test.connection.open_with_only(request("1 2".into())).await.unwrap();
    assert_eq!(alone.next().await.unwrap().unwrap().len(), 1);
    assert_eq!(test.provider.stats().calls_on_lanes, 1);
}

/// A unary call takes one message. A unary handler's answer is one message to a caller that takes more.
#[tokio::test]
async fn unary_ends_meet_with_calls_that_take_several() {
    let test = Test::start().await;
    let call = async |name: &str, body: &'static str| {
        let name = service(name);
        let request = CallRequest::new(&name, body).with_timeout(PATIENCE);
        test.connection.call(request).await
    };
    for script in ["5", "5 flush", "17000"] {
        let bytes = script.split(' ').next().unwrap().parse().unwrap();
        assert_eq!(call("script", script).await.unwrap().body, message(bytes), "{script}");
    }
    for script in ["5 6", "5 end 6", "5 flush 6", "17000 17000"] {
        let several = call("script", script).await.unwrap_err();
        assert!(matches!(several, CallError::Unknown(Unknown::Streamed)), "{several:?}");
    }
    for (name, bytes) in [("echo", 5), ("large", 1 << 20), ("huge", 0)] {
        let name = service(name);
        let request = CallRequest::new(&name, message(5)).with_timeout(PATIENCE);
        let mut replies = test.connection.open_with_only(request).await.unwrap();
        let first = replies.next().await.unwrap().unwrap_or_default();
        assert_eq!(first.len(), bytes, "{name}");
        assert_eq!(replies.next().await.unwrap(), None);
    }
    for name in ["refuse", "unknown"] {
        let name = service(name);
        let request = CallRequest::new(&name, "").with_timeout(PATIENCE);
        let mut replies = test.connection.open_with_only(request).await.unwrap();
        let refused = replies.next().await.unwrap_err();
        assert!(matches!(refused, CallError::Refused { .. }), "{refused:?}");
        assert!(replies.next().await.is_err(), "a call that has failed stays so");
    }
}

/// A handler that is ready at once answers where its call was read; many at a time keep their order and their own messages.
#[tokio::test]
async fn many_calls_beside_each_other_get_each_their_own() {
    let test = Test::start().await;
    let calls = (0..500_usize).map(|n| {
        let connection = test.connection.clone();
        async move {
            let name = service("script");
            let script = match n % 5 {
                0 => format!("0 {n}"),
                1 => format!("{n} yield {n}"),
                2 => format!("{n} flush {n}"),
                3 => format!("{n} yield flush yield {n}"),
                _ => format!("{n} {}", 20_000 + n),
            };
            let request = CallRequest::new(&name, script).with_timeout(PATIENCE);
            let mut replies = connection.open_with_only(request).await.unwrap();
            let expected = match n % 5 {
                0 => vec![0, n],
                4 => vec![n, 20_000 + n],
                _ => vec![n, n],
            };
            assert_eq!(rest(&mut replies).await.unwrap(), (expected, StatusCode::Ok));
        }
    });
    join_all(calls).await;
    assert_eq!(test.provider.stats().rejected_frames, 0);
}

/// F8: in each state of a call.
#[tokio::test]
async fn f8_dropping_the_replies_stops_the_handler_wherever_they_are() {
    let mut test = Test::start().await;
    // On the lane, nothing gathered, something gathered.
    for script in ["yield hang", "5 yield hang", "5 hang"] {
        let replies = test.open(script).await;
        test.seen(Seen::Started).await;
        drop(replies);
        test.seen(Seen::Dropped).await;
    }
    // Moved and not read yet; read once; full of unread messages.
    let replies = test.open("5 flush hang").await;
    test.seen(Seen::Started).await;
    drop(replies);
    test.seen(Seen::Dropped).await;
    for script in ["5 flush hang", "5 flush 4000000 flush 4000000 flush hang"] {
        let mut replies = test.open(script).await;
        assert_eq!(replies.next().await.unwrap().unwrap().len(), 5);
        test.seen(Seen::Started).await;
        drop(replies);
        test.seen(Seen::Dropped).await;
    }
    // The last handler's send failed because its caller had left, and it ended by itself.
    until("the others are counted", || test.provider.stats().calls_dropped == 5).await;
    echoes(&test.connection, "the connection is as good as before").await;
}

/// F7: both sides keep the deadline, on the lane and after it.
#[tokio::test]
async fn f7_a_call_ends_at_its_deadline_wherever_its_replies_are() {
    let mut test = Test::start().await;
    for (script, first) in [("5 yield hang", None), ("5 flush hang", Some(5))] {
        let mut replies = test.open_for(script, Duration::from_millis(100)).await;
        test.seen(Seen::Started).await;
        if let Some(first) = first {
            assert_eq!(replies.next().await.unwrap().unwrap().len(), first);
        }
        test.seen(Seen::Dropped).await;
        // The provider's word and the caller's clock come at nearly the same time.
        match rest(&mut replies).await {
            Err(CallError::Unknown(Unknown::Timeout(_))) => {}
            Ok((_, StatusCode::DeadlineExceeded)) => {}
            other => panic!("{script}: {other:?}"),
        }
    }
    echoes(&test.connection, "the connection is as good as before").await;
}

/// The provider alone keeps it, when its caller does not.
#[tokio::test]
async fn f7_messages_that_are_here_are_read_after_the_deadline() {
    let mut test = Test::start().await;
    let mut replies = test.open_for("1 2 3", Duration::from_millis(200)).await;
    assert_eq!(replies.next().await.unwrap().unwrap().len(), 1);
    test.seen(Seen::Started).await;
    test.seen(Seen::Dropped).await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(rest(&mut replies).await.unwrap(), (vec![2, 3], StatusCode::Ok));
}

#[tokio::test]
async fn a_provider_that_ends_ends_the_calls_wherever_their_replies_are() {
    let mut test = Test::start().await;
    let mut waiting = test.open("5 yield hang").await;
    let mut moved = test.open("5 flush hang").await;
    test.seen(Seen::Started).await;
    test.seen(Seen::Started).await;
    assert_eq!(moved.next().await.unwrap().unwrap().len(), 5);
    test.provider.shutdown(Duration::ZERO).await;
    for replies in [&mut waiting, &mut moved] {
        let error = replies.next().await.unwrap_err();
        assert!(matches!(error, CallError::Unknown(Unknown::Lost(_))), "{error:?}");
    }
    test.seen(Seen::Dropped).await;
    test.seen(Seen::Dropped).await;
}

/// N4: a call is under way until its reply is delivered, on the lane and after it.
#[tokio::test]
async fn n4_a_drain_waits_for_replies_wherever_they_are() {
    let mut test = Test::start().await;
    test.beside = None;
    let mut first = test.open("1 gate 2").await;
    test.seen(Seen::Started).await;
    let mut waiting = test.open("3 gate 4").await;
    let mut moved = test.open("5 flush gate 6").await;
    test.seen(Seen::Started).await;
    test.seen(Seen::Started).await;
    assert_eq!(moved.next().await.unwrap().unwrap().len(), 5);
    let drain = tokio::spawn({
        let provider = test.provider.clone();
        async move { provider.shutdown(PATIENCE).await }
    });
    until("the caller knows", || {
        let name = service("echo");
        let refused = test.connection.call(CallRequest::new(&name, "")).now_or_never();
        matches!(refused, Some(Err(CallError::NotSent(_))))
    })
    .await;
    assert!(!drain.is_finished());
    for _ in 0..3 {
        test.gate.notify_one();
        test.seen(Seen::Dropped).await;
    }
    assert_eq!(rest(&mut first).await.unwrap(), (vec![1, 2], StatusCode::Ok));
    assert_eq!(rest(&mut waiting).await.unwrap(), (vec![3, 4], StatusCode::Ok));
    assert_eq!(rest(&mut moved).await.unwrap(), (vec![6], StatusCode::Ok));
    drop((first, waiting, moved));
    drain.await.unwrap();
}

/// Moved replies have a limit of their own: a further one waits for a place, and large replies still get their streams.
#[tokio::test]
async fn so_many_replies_have_moved_at_a_time_and_large_ones_have_room_beside_them() {
    let limits = Limits {
        max_streams: 4,
        ..Limits::default()
    };
    let caller = Endpoint::bind(config().with_limits(limits), macula_transport::NoService)
        .await
        .unwrap();
    let mut test = Test::with(caller).await;
    let mut moved = test.fill_places().await;
    let mut waits = test.open("7 flush gate 8").await;
    test.seen(Seen::Started).await;
    assert!(waits.next().now_or_never().is_none());
    let large = service("large");
    let reply = test
        .connection
        .call(CallRequest::new(&large, "").with_timeout(PATIENCE));
    assert_eq!(reply.await.unwrap().body.len(), 1 << 20);
    // Those that fit go on as before.
    let mut small = test.open("1 2").await;
    assert_eq!(rest(&mut small).await.unwrap(), (vec![1, 2], StatusCode::Ok));
    test.seen(Seen::Started).await;
    test.seen(Seen::Dropped).await;
    assert!(waits.next().now_or_never().is_none());
    moved.pop();
    test.seen(Seen::Dropped).await;
    assert_eq!(waits.next().await.unwrap().unwrap().len(), 7);
    test.gate.notify_one();
    assert_eq!(rest(&mut waits).await.unwrap(), (vec![8], StatusCode::Ok));
}

/// One that waits for its turn to move ends at its deadline, and leaves nothing behind.
#[tokio::test]
async fn f7_a_reply_that_finds_no_room_to_move_ends_at_the_deadline() {
    let mut test = Test::start().await;
    let moved = test.fill_places().await;
    for script in ["7 flush 8", "17000"] {
        let mut late = test.open_for(script, Duration::from_millis(100)).await;
        test.seen(Seen::Started).await;
        let ended = rest(&mut late).await;
        assert!(
            matches!(
                ended,
                Err(CallError::Unknown(Unknown::Timeout(_)))
                    | Ok((
                        _,
                        StatusCode::DeadlineExceeded | StatusCode::ResourceExhausted | StatusCode::Cancelled
                    ))
            ),
            "{script}: {ended:?}"
        );
        test.seen(Seen::Dropped).await;
    }
    drop(moved);
    for _ in 0..MAX_MOVED_REPLIES {
        test.seen(Seen::Dropped).await;
    }
    let mut again = test.open("9 flush 10").await;
    assert_eq!(rest(&mut again).await.unwrap(), (vec![9, 10], StatusCode::Ok));
}

/// P5, backpressure: an unread reply stops its own handler and no other.
#[tokio::test]
async fn p5_a_moved_reply_is_read_as_it_is_asked_for() {
    let mut test = Test::start().await;
    let mut replies = test.open("1 flush 1200000 flush 1200000 flush 1200000 flush 2").await;
    assert_eq!(replies.next().await.unwrap().unwrap().len(), 1);
    test.seen(Seen::Started).await;
    for n in 0..100_usize {
        echoes(&test.connection, vec![n as u8; n]).await;
    }
    assert!(test.events.try_recv().is_err(), "the handler waits for its reader");
    let messages = vec![1_200_000, 1_200_000, 1_200_000, 2];
    assert_eq!(rest(&mut replies).await.unwrap(), (messages, StatusCode::Ok));
}

#[tokio::test]
async fn a_message_larger_than_the_caller_takes_is_an_error_and_no_success() {
    let limits = Limits {
        max_message_bytes: 64 << 10,
        ..Limits::default()
    };
    let caller = Endpoint::bind(config().with_limits(limits), macula_transport::NoService)
        .await
        .unwrap();
    let test = Test::with(caller).await;
    let mut replies = test.open("1 70000 2").await;
    assert_eq!(
        rest(&mut replies).await.unwrap(),
        (vec![1], StatusCode::ResourceExhausted)
    );
    for script in [
        "1 flush 70000 2",
        "1 end 70000",
        "1 flush end 70000",
        "1 17000 end 70000",
    ] {
        let mut replies = test.open(script).await;
        let (sizes, status) = rest(&mut replies).await.unwrap();
        assert_eq!((sizes[0], status), (1, StatusCode::ResourceExhausted), "{script}");
    }
}

/// A message is sent whole, or its call has failed: at once, and not at its deadline.
#[tokio::test]
async fn a_handler_that_gives_up_a_message_halfway_fails_its_call() {
    let test = Test::start().await;
    for script in [
        "abandon",
        "1 abandon",
        "1 flush abandon end 5",
        "1 flush yield abandon 2",
    ] {
        let mut replies = test.open(script).await;
        match tokio::time::timeout(PATIENCE / 2, rest(&mut replies)).await.unwrap() {
            Err(CallError::Unknown(Unknown::Reset(_))) | Ok((_, StatusCode::Internal)) => {}
            other => panic!("{script}: {other:?}"),
        }
    }
    echoes(&test.connection, "the connection is as good as before").await;
}

/// Also when it is given up before its first byte, while it waits for its turn.
#[tokio::test]
async fn a_message_given_up_before_its_turn_to_move_is_not_left_out_of_a_success() {
    let mut test = Test::start().await;
    let _moved = test.fill_places().await;
    for (script, before) in [
        ("abandon", vec![]),
        ("1 abandon", vec![1]),
        ("1 yield abandon 2 flush", vec![1]),
    ] {
        let mut replies = test.open(script).await;
        let (sizes, status) = rest(&mut replies).await.unwrap();
        assert_ne!(status, StatusCode::Ok, "{script}");
        assert_eq!(sizes, before, "{script}");
    }
}

/// P5: a reply that moves is not sent by the task that reads the calls.
#[tokio::test]
async fn p5_a_reply_that_moves_leaves_the_lane_before_it_goes_on() {
    let test = Test::start().await;
    let mut replies = test.open("where 19000 where flush 1 where").await;
    let mut tasks = Vec::new();
    while let Some(next) = replies.next().await.unwrap() {
        if next.starts_with(b"task ") {
            tasks.push(next);
        }
    }
    assert_eq!(tasks.len(), 3);
    assert!(tasks[0] != tasks[1] && tasks[1] == tasks[2], "{tasks:?}");
}

/// Messages that are small and many take a stream.
#[tokio::test]
async fn many_small_messages_move() {
    let test = Test::start().await;
    let name = service("script");
    let script = "1 ".repeat(5_000);
    let request = CallRequest::new(&name, script).with_timeout(PATIENCE);
    let mut replies = test.connection.open_with_only(request).await.unwrap();
    assert_eq!(rest(&mut replies).await.unwrap(), (vec![1; 5_000], StatusCode::Ok));
}

/// A call may be given up at any point of its reply: its handler ends, and its place for a moved reply is free again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f8_calls_given_up_anywhere_leave_nothing_behind() {
    const SCRIPTS: [&str; 12] = [
        "",
        "1 2 3",
        "1 flush 2",
        "19000",
        "1 yield flush yield 2 end 3",
        "20000 hang",
        "flush hang",
        "1 flush hang",
        "1 fail",
        "19000 fail",
        "1 abandon",
        "1 flush 300000 yield 300000",
    ];
    let mut test = Test::start().await;
    let calls = 40;
    for round in 0..8_usize {
        let run = async |call: usize| {
            let how = round * 31 + call * 17;
            let script = SCRIPTS[(how / 7) % SCRIPTS.len()];
            let hangs = script.ends_with("hang") || script.contains("abandon");
            let timeout = match hangs && how.is_multiple_of(3) {
                true => Duration::from_millis(5),
                false => PATIENCE,
            };
            let mut replies = test.open_for(script, timeout).await;
            match how % 5 {
                0 if timeout == PATIENCE => drop(replies),
                1 => {
                    let _ = replies.next().now_or_never();
                }
                2 => {
                    tokio::task::yield_now().await;
                    let _ = replies.next().now_or_never();
                }
                _ if hangs && timeout == PATIENCE => {}
                _ => while let Ok(Some(_)) = replies.next().await {},
            }
        };
        futures::future::join_all((0..calls).map(run)).await;
    }
    // A call cancelled before its handler began reports neither a start nor an end.
    let (mut started, mut ended) = (0, 0);
    while started == 0 || started != ended || !test.events.is_empty() {
        match tokio::time::timeout(PATIENCE, test.events.recv()).await.unwrap() {
            Some(Seen::Started) => started += 1,
            Some(Seen::Dropped) => ended += 1,
            other => panic!("{other:?}"),
        }
    }
    let moved = (0..MAX_MOVED_REPLIES).map(async |_| {
        let mut replies = test.open("5 flush hang").await;
        assert_eq!(replies.next().await.unwrap().unwrap().len(), 5);
        replies
    });
    let moved = tokio::time::timeout(PATIENCE, futures::future::join_all(moved)).await;
    assert_eq!(moved.unwrap().len(), MAX_MOVED_REPLIES);
    echoes(&test.connection, "the connection is as good as before").await;
}
