//! tonic's route guide on the mesh: one method of each kind that gRPC has, with the four kinds of streams.
#![allow(clippy::print_stdout, reason = "an example that is read in a terminal")]

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt as _, stream};
use macula_examples_tonic::{
    Result,
    route::{
        Note, Place, Point, Rectangle, RouteSummary,
        route_guide_client::RouteGuideClient,
        route_guide_server::{RouteGuide, RouteGuideServer},
    },
    start,
};
use macula_node::{Channel, Node};
use tonic::{Code, Request, Response, Status, Streaming};

const PLACES: [(&str, i32, i32); 4] = [
    ("market", 0, 0),
    ("bridge", 120, 40),
    ("mill", 200, 90),
    ("tower", 500, 500),
];

/// Notes kept at a point; older ones go.
const MAX_NOTES: usize = 16;

fn places() -> impl Iterator<Item = Place> + Send {
    PLACES.into_iter().map(|(name, east, north)| Place {
        name: name.into(),
        at: Some(Point { east, north }),
    })
}

fn at(east: i32, north: i32) -> Point {
    Point { east, north }
}

type Notes = Arc<Mutex<HashMap<(i32, i32), Vec<Note>>>>;

/// Leaves a note, and gives those that were there before.
fn leave(notes: &Notes, note: Note) -> Vec<Note> {
    let point = note.at.unwrap_or_default();
    let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
    let here = notes.entry((point.east, point.north)).or_default();
    let before = here.clone();
    if here.len() == MAX_NOTES {
        here.remove(0);
    }
    here.push(note);
    before
}

#[derive(Default)]
struct Guide {
    notes: Notes,
}

type Replies<T> = stream::BoxStream<'static, std::result::Result<T, Status>>;
type Answer<T> = std::result::Result<Response<T>, Status>;

#[tonic::async_trait]
impl RouteGuide for Guide {
    async fn get_place(&self, request: Request<Point>) -> Answer<Place> {
        let point = request.into_inner();
        let found = places().find(|place| place.at == Some(point));
        let nothing = || Status::not_found(format!("nothing is at {} east, {} north", point.east, point.north));
        Ok(Response::new(found.ok_or_else(nothing)?))
    }

    type ListPlacesStream = Replies<Place>;

    async fn list_places(&self, request: Request<Rectangle>) -> Answer<Replies<Place>> {
        let Rectangle { low, high } = request.into_inner();
        let (low, high) = (low.unwrap_or_default(), high.unwrap_or_default());
        let inside = move |place: &Place| {
            let at = place.at.unwrap_or_default();
            (low.east..=high.east).contains(&at.east) && (low.north..=high.north).contains(&at.north)
        };
        Ok(Response::new(stream::iter(places().filter(inside).map(Ok)).boxed()))
    }

    async fn record_route(&self, request: Request<Streaming<Point>>) -> Answer<RouteSummary> {
        let mut walk = request.into_inner();
        let mut summary = RouteSummary::default();
        let mut last: Option<Point> = None;
        while let Some(point) = walk.message().await? {
            summary.points += 1;
            summary.places += u32::from(places().any(|place| place.at == Some(point)));
            if let Some(last) = last {
                let step = point
                    .east
                    .abs_diff(last.east)
                    .saturating_add(point.north.abs_diff(last.north));
                summary.distance = summary.distance.saturating_add(step);
            }
            last = Some(point);
        }
        Ok(Response::new(summary))
    }

    type RouteChatStream = Replies<Note>;

    async fn route_chat(&self, request: Request<Streaming<Note>>) -> Answer<Replies<Note>> {
        let notes = Arc::clone(&self.notes);
        let earlier = request.into_inner().flat_map(move |note| {
            stream::iter(match note {
                Ok(note) => leave(&notes, note).into_iter().map(Ok).collect(),
                Err(status) => vec![Err(status)],
            })
        });
        Ok(Response::new(earlier.boxed()))
    }
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
