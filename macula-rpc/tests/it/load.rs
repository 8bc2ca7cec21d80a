//! Reported load decides the choice. Paused time.

use std::{collections::BTreeMap, future::pending, time::Duration};

use macula_rpc::{Client, Provider, Request, Server, StaticResolver, Status, Strategy};
use macula_transport::{Config, Endpoint, Identity, NoService, testing::Network};
use tokio::task::JoinSet;

use crate::mesh::{name, pass};

/// A node on `network` that runs ten calls at a time, and answers with its name unless it is told to wait.
async fn provider(network: &Network, who: &'static str) -> (Endpoint, Provider) {
    let server = Server::with_max_concurrent_calls(10);
    let answer = move |request: Request| async move {
        if request.payload() == "wait" {
            pending::<()>().await;
        }
        Ok::<_, Status>(who)
    };
    server.serve(name(), answer).unwrap();
    let config = Config::new(Identity::generate().unwrap()).with_network(network);
    let endpoint = Endpoint::bind(config, server);
    let endpoint = endpoint.await.unwrap();
    let provider = Provider::new(endpoint.node_id(), [endpoint.local_addr().try_into().unwrap()]);
    (endpoint, provider)
}

async fn client(network: &Network, providers: &[Provider], strategy: Strategy) -> (Endpoint, Client) {
    let config = Config::new(Identity::generate().unwrap()).with_network(network);
    let endpoint = Endpoint::bind(config, NoService).await.unwrap();
    let directory = StaticResolver::new().with_service(name(), providers.iter().cloned());
    let client = Client::builder(&endpoint, directory).strategy(strategy).seed(1).build();
    (endpoint, client)
}

/// A hundred calls in two seconds: how many each provider has answered.
async fn answers(client: &Client) -> BTreeMap<String, u32> {
    let mut answers = BTreeMap::new();
    for _ in 0..100 {
        let answer = client.call(name(), "").await.unwrap();
        *answers.entry(String::from_utf8(answer.to_vec()).unwrap()).or_default() += 1;
        pass(Duration::from_millis(20)).await;
    }
    answers
}

/// S4: a provider that is busy with the calls of others is chosen less, though it answers as fast.
#[tokio::test(start_paused = true)]
async fn s4_p2c_picks_a_provider_less_that_says_it_is_busy() {
    let network = Network::new(7);
    let (_first, busy) = provider(&network, "busy").await;
    let (_second, idle) = provider(&network, "idle").await;
    let providers = [busy.clone(), idle];
    let (_p2c, p2c) = client(&network, &providers, Strategy::PeakEwma).await;
    let (_random, random) = client(&network, &providers, Strategy::Random).await;

    let before = answers(&p2c).await;
    assert!(before["busy"] > 10 && before["idle"] > 10, "{before:?}");

    let (_other, other) = client(&network, &[busy], Strategy::First).await;
    let mut waiting = JoinSet::new();
    for _ in 0..9 {
        let call = other.request(name()).timeout(Duration::from_secs(3600));
        waiting.spawn(call.attempt_timeout(Duration::from_secs(3600)).send("wait"));
    }
    // The caller gets the report within a second, and reads it with its next call of that provider.
    answers(&p2c).await;
    let during = answers(&p2c).await;
    let busy = during.get("busy").copied().unwrap_or_default();
    assert!(busy <= 10, "{during:?}");
    let unmoved = answers(&random).await;
    assert!(unmoved["busy"] > 30, "a strategy that asks for no load: {unmoved:?}");

    // The report grows old, and then the provider reports that it is idle again.
    waiting.shutdown().await;
    pass(Duration::from_secs(10)).await;
    let after = answers(&p2c).await;
    assert!(after["busy"] > 10, "{after:?}");
}
