//! A provider that the cache knows is found without an allocation: no future is made, and nothing is copied.
//!
//! A process of its own without a test harness: the counter counts the allocations of all threads.
#![allow(clippy::print_stdout, reason = "it reports what it measured, as a test runner would")]

use std::alloc::System;

use futures::FutureExt as _;
use macula_node::{Node, Request, ServiceName, Status};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn measure() -> Result<usize, Failure> {
    let service: ServiceName = "api.compute".parse()?;
    let echo = |request: Request| async move { Ok::<_, Status>(request.into_payload()) };
    let listen = "127.0.0.1:0".parse()?;
    let provider = Node::builder()
        .listen(listen)
        .serve(service.clone(), echo)
        .start()
        .await?;
    provider.join().await?;
    let bootstrap = provider.endpoints()[0].clone().into();
    let caller = Node::builder().client().bootstrap([bootstrap]).start().await?;
    caller.join().await?;
    // The first hit reads what the cache holds.
    let hits = loop {
        assert_eq!(caller.providers(&service).await?.len(), 1);
        match caller.directory_stats().cache.hits {
            0 => {}
            hits => break hits,
        }
    };
    let region = Region::new(ALLOCATOR);
    for _ in 0..100 {
        // Nothing is waited for, so nothing else of this thread runs meanwhile.
        let found = caller.providers(&service).now_or_never();
        assert!(matches!(found, Some(Ok(providers)) if providers.len() == 1));
    }
    let change = region.change();
    assert_eq!(
        caller.directory_stats().cache.hits,
        hits + 100,
        "all of them are counted"
    );
    Ok(change.allocations + change.reallocations)
}

fn main() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let allocations = runtime.block_on(measure())?;
    assert_eq!(allocations, 0);
    println!("test d7_a_provider_from_the_cache_costs_no_allocation ... ok");
    Ok(())
}
