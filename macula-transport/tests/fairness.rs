//! Large messages beside small calls, over real sockets.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use common::{client, connect, echoes, provider};
use futures::future::join_all;

/// P5: small calls are answered while large messages go both ways, and these arrive whole.
#[tokio::test]
async fn p5_small_calls_and_large_messages_both_come_through() {
    let (provider, _events) = provider().await;
    let client = client().await;
    let connection = connect(&client, &provider).await.unwrap();
    let large = (1..=4_u8).map(|n| {
        let connection = &connection;
        async move {
            for size in [1 << 20, 4 << 20, 65 * 1024] {
                echoes(connection, vec![n; size]).await;
            }
        }
    });
    let small = (0..16_u8).map(|n| {
        let connection = &connection;
        async move {
            for _ in 0..100 {
                echoes(connection, vec![n; 64]).await;
            }
        }
    });
    tokio::join!(join_all(large), join_all(small));
}
