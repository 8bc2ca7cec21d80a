//! tonic's route guide on the mesh: one method of each kind that gRPC has, with the four kinds of streams.
#![allow(clippy::print_stdout, reason = "an example that is read in a terminal")]

mod guide;
mod town;

use std::time::Duration;

use futures::stream;
use macula_examples_tonic::{
    Result,
    route::{
        Note, Point, Rectangle, RouteSummary, route_guide_client::RouteGuideClient,
        route_guide_server::RouteGuideServer,
    },
    start,
};
use macula_node::{Channel, Node};
use tonic::{Code, Request};

use guide::Guide;

fn at(east: i32, north: i32) -> Point {
    Point { east, north }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let guide = start(
        Node::builder().serve_tonic(RouteGuideServer::new(Guide::default())),
        None,
    )
    .await?;
    let caller = start(Node::builder().client(), Some(&guide)).await?;
    // A provider that does not begin to answer within a second would not be waited for longer.
    let channel = Channel::new(caller.client().clone()).with_attempt_timeout(Duration::from_secs(1));
    let mut client = RouteGuideClient::new(channel);

    println!("one place");
    println!("  {}", client.get_place(at(120, 40)).await?.into_inner().name);
    match client.get_place(at(1, 1)).await {
        Err(status) if status.code() == Code::NotFound => println!("  {}", status.message()),
        other => return Err(format!("a place that is nowhere: {other:?}").into()),
    }

    println!("places in a rectangle");
    let town = Rectangle {
        low: Some(at(0, 0)),
        high: Some(at(300, 300)),
    };
    let mut found = client.list_places(town).await?.into_inner();
    while let Some(place) = found.message().await? {
        println!("  {}", place.name);
    }

    println!("a walk");
    let walk = [at(0, 0), at(120, 40), at(130, 60), at(200, 90)];
    let summary = client.record_route(stream::iter(walk)).await?.into_inner();
    let RouteSummary {
        points,
        places,
        distance,
    } = summary;
    println!("  {points} points, {places} places, {distance} m");

    println!("a chat");
    let note = |text: &str| Note {
        at: Some(at(0, 0)),
        text: text.into(),
    };
    let notes = stream::iter([note("first"), note("second"), note("third")]);
    // A chat may take as long as it likes, unless the request says otherwise; the deadline holds on both sides.
    let mut request = Request::new(notes);
    request.set_timeout(Duration::from_secs(10));
    let mut earlier = client.route_chat(request).await?.into_inner();
    while let Some(note) = earlier.message().await? {
        println!("  there was a note: {}", note.text);
    }
    Ok(())
}
