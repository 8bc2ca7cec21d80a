//! The texts of errors, one line each, as they stand in a log. The mesh in memory gives the same ids, addresses and times
//! each time.

use std::time::Duration;

use macula_rpc::{CallError, Metadata, Request, RetryPolicy, Status, StatusCode, testing::Mesh, typed};

use crate::mesh::name;

/// A mesh where `nodes` answer `api.compute` as `status` says, and a call of it.
async fn failing(nodes: &[&str], status: Status) -> CallError {
    let mesh = Mesh::new(1);
    for node in nodes {
        let status = status.clone();
        mesh.node(node).serve("api.compute", move |_: Request| {
            let status = status.clone();
            async move { Err::<String, _>(status) }
        });
    }
    let client = mesh
        .node("caller")
        .client_builder()
        .strategy(macula_rpc::Strategy::First);
    client.build().call(name(), "").await.unwrap_err()
}

fn says(error: &CallError, words: &str) {
    assert_eq!(error.to_string(), words);
    assert!(!error.to_string().contains('\n'));
}

async fn hangs(_: Request) -> Result<String, Status> {
    std::future::pending().await
}

#[tokio::test(start_paused = true)]
async fn a_service_without_a_provider() {
    says(
        &failing(&[], Status::internal("")).await,
        "service_not_found: no node provides api.compute; check the name and the realm, and that a provider is running",
    );
}

#[tokio::test(start_paused = true)]
async fn every_provider_failed() {
    says(
        &failing(&["a", "b"], Status::internal("disk full")).await,
        "all_providers_failed: api.compute: 7e051c4ed7 at https://10.0.0.1:9443 answered internal: disk full; c37de9ed55 at https://10.0.0.2:9443 answered internal: disk full",
    );
}

#[tokio::test(start_paused = true)]
async fn the_last_attempt_failed_and_others_are_left() {
    says(
        &failing(&["a", "b", "c", "d"], Status::unavailable("warming up")).await,
        "max_attempts_exceeded: api.compute: 7e051c4ed7 at https://10.0.0.1:9443 answered unavailable: warming up; c37de9ed55 at https://10.0.0.2:9443 answered unavailable: warming up; b973984239 at https://10.0.0.3:9443 answered unavailable: warming up; untried providers are left, allow more attempts to reach them",
    );
}

#[tokio::test(start_paused = true)]
async fn the_callers_own_fault() {
    says(
        &failing(&["a", "b"], Status::new(StatusCode::NotFound, "no row 7")).await,
        "api.compute answered not_found: no row 7",
    );
}

#[tokio::test(start_paused = true)]
async fn every_provider_is_gone() {
    let mesh = Mesh::new(1);
    mesh.node("a").serve("api.compute", hangs);
    mesh.node("b").serve("api.compute", hangs);
    let client = mesh
        .node("caller")
        .client_builder()
        .strategy(macula_rpc::Strategy::First)
        .build();
    mesh.kill("a");
    mesh.cut("caller", "b");
    let call = client.request(name()).attempt_timeout(Duration::from_secs(4));
    // The second provider was dialed behind the call, so the call's own dial names that one.
    let said = call.send("").await.unwrap_err().to_string();
    let first = "all_providers_failed: api.compute: 7e051c4ed7 at https://10.0.0.1:9443 could not be reached: no node answered at 10.0.0.1:9443 within 3s: is the node running, and the UDP port open?; c37de9ed55 at https://10.0.0.2:9443 could not be reached: ";
    let last = "no node answered at 10.0.0.2:9443 within 3s: is the node running, and the UDP port open?";
    assert!(said.starts_with(first) && said.ends_with(last), "{said}");
}

#[tokio::test(start_paused = true)]
async fn the_time_is_up() {
    let mesh = Mesh::new(1);
    mesh.node("a").serve("api.compute", hangs);
    let client = mesh.node("caller").client();
    let call = client.request(name()).timeout(Duration::from_millis(2500));
    says(
        &call.send("").await.unwrap_err(),
        "deadline_exceeded: api.compute: no answer within 2.5s (7e051c4ed7 at https://10.0.0.1:9443 did not answer within 2.501s)",
    );
    let call = client.request(name()).retry_policy(RetryPolicy::NeverProcessed);
    says(
        &call.send("").await.unwrap_err(),
        "not_retried: api.compute: 7e051c4ed7 at https://10.0.0.1:9443 did not answer within 3.001s; the retry policy forbids another attempt, for this one may have run",
    );
    mesh.lose_directory();
    says(
        &client.call(name(), "").await.unwrap_err(),
        "api.compute could not be looked up, and no router is connected: no node of the directory answered; check that a bootstrap node is running and reachable",
    );
}

#[tokio::test(start_paused = true)]
async fn a_name_a_size_and_a_message_that_cannot_be() {
    let mesh = Mesh::new(1);
    mesh.node("a").serve(
        "api.compute",
        typed(async |_: Request<String>| Ok::<_, Status>("not a number")),
    );
    let client = mesh.node("caller").client();
    says(
        &client.call("no spaces please", "").await.unwrap_err(),
        "not a service name: ' ' may not stand in a name; use letters, digits, `.`, `_` and `-`, like `api.compute`",
    );
    says(
        &client.call(name(), vec![0; 5 << 20]).await.unwrap_err(),
        "the request has 5242880 bytes, and a message at most 4194304; send it in parts, as a stream",
    );
    let many: Metadata = (0..200).map(|n| (format!("k{n}"), "v")).collect();
    says(
        &client.request(name()).metadata(many).send("").await.unwrap_err(),
        "the call's metadata is too large: names and metadata have 2151 bytes and 200 entries, and this node sends at most 16384 bytes and 128 entries; raise `Limits::max_head_bytes` and `Limits::max_metadata_entries` on both sides",
    );
    #[cfg(feature = "json")]
    says(
        &client
            .call_typed::<_, macula_rpc::Json<u32>>(name(), "x")
            .await
            .unwrap_err(),
        "api.compute answered (from 7e051c4ed7), and the message cannot be read: expected ident at line 1 column 2; do both sides use one schema?",
    );
}

/// macula-select depends on nothing of ours, so it has the codes of a handler's errors again.
#[test]
fn the_codes_of_select_and_of_the_wire_have_the_same_numbers() {
    for code in StatusCode::ALL.into_iter().filter(|it| *it != StatusCode::Ok) {
        let selects = macula_select::Code::from_number(code.as_u32());
        assert_eq!(selects as u32, code.as_u32());
    }
    assert_eq!(macula_select::Code::ALL.len() + 1, StatusCode::ALL.len());
}
