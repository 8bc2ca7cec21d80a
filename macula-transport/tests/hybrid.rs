//! The hybrid key exchange, where it is compiled in.
#![cfg(feature = "aws-lc-rs")]
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use common::{Service, config, connect, echoes};
use macula_transport::{Endpoint, KeyExchange, NoService};

#[tokio::test]
async fn peers_with_and_without_it_meet() {
    for (client, server) in [
        (KeyExchange::X25519MlKem768, KeyExchange::X25519MlKem768),
        (KeyExchange::X25519MlKem768, KeyExchange::X25519),
        (KeyExchange::X25519, KeyExchange::X25519MlKem768),
    ] {
        let (handler, _events) = Service::new();
        let server = Endpoint::bind(config().with_key_exchange(server), handler)
            .await
            .unwrap();
        let client = Endpoint::bind(config().with_key_exchange(client), NoService)
            .await
            .unwrap();
        echoes(&connect(&client, &server).await.unwrap(), "hello").await;
    }
}
