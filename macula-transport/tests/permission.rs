//! Callers that make as many calls at a time as a provider takes.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use common::{PATIENCE, client, config, connect, service};
use futures::future::{BoxFuture, FutureExt as _, join_all};
use macula_transport::{CallRequest, Endpoint, Handler, IncomingCall, Limits, Reply};

/// Answers with a large reply.
struct Large;

impl Handler for Large {
    fn call(&self, _: IncomingCall) -> BoxFuture<'static, Reply> {
        std::future::ready(Reply::ok(vec![7; 200_000])).boxed()
    }
}

/// The provider still waits to hear that the caller has its reply when the caller's next call is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_a_large_reply_may_call_again() {
    const AT_A_TIME: usize = 3;
    let limits = Limits {
        max_concurrent_calls: AT_A_TIME,
        ..Limits::default()
    };
    let provider = Endpoint::bind(config().with_limits(limits), Large).await.unwrap();
    let caller = client().await;
    let connection = connect(&caller, &provider).await.unwrap();
    let callers = (0..AT_A_TIME).map(|_| {
        let connection = connection.clone();
        tokio::spawn(async move {
            let name = service("large");
            for _ in 0..300 {
                let request = CallRequest::new(&name, "").with_timeout(PATIENCE);
                connection.call(request).await.unwrap();
            }
        })
    });
    for called in join_all(callers).await {
        called.unwrap();
    }
    assert_eq!(provider.stats().calls_refused, 0);
}
