//! The server: one method of each kind that gRPC has.

use std::sync::Arc;

use futures::{StreamExt as _, stream};
use macula_examples_tonic::route::{Note, Place, Point, Rectangle, RouteSummary, route_guide_server::RouteGuide};
use tonic::{Request, Response, Status, Streaming};

use super::town::{Notes, leave, places};

#[derive(Default)]
pub(crate) struct Guide {
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
            let from = last.replace(point).unwrap_or(point);
            let step = u64::from(point.east.abs_diff(from.east)) + u64::from(point.north.abs_diff(from.north));
            summary.distance = summary.distance.saturating_add(u32::try_from(step).unwrap_or(u32::MAX));
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
