//! gRPC calls of services that this process serves itself, in tonic's terms.

use ::tonic::{
    Code, Status,
    body::Body,
    codegen::http::{Request, Response, StatusCode},
};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use macula_wire::ServiceName;

use crate::{
    Client,
    client::{Here, Options, Stopped},
};

/// Answers `request` here; gives it back when nobody serves it here, or takes no further calls.
pub(super) async fn call(
    client: &Client,
    service: &ServiceName,
    options: &Options,
    mut request: Request<Body>,
) -> Result<Result<Response<Body>, Status>, Request<Body>> {
    let mounted = match client.local() {
        Some(server) if options.provider.is_none() => server.mounted(service),
        _ => None,
    };
    let Some((mounted, running)) = mounted else {
        return Err(request);
    };
    if let Some(allowed) = options.timeout {
        super::convert::set_timeout(request.headers_mut(), allowed);
    }
    let mut local = Here::start(client, service, options, running);
    let answer = step(&local, async { mounted.call(request).await }).await;
    Ok(match answer.and_then(|answer| answer) {
        // A layer's answer that is none of gRPC's is the outcome, too.
        Ok(response) if response.headers().contains_key("grpc-status") || response.status() != StatusCode::OK => {
            end(&mut local, Status::from_header_map(response.headers()).as_ref());
            Ok(response)
        }
        Ok(response) => Ok(response.map(|body| watch(local, body))),
        Err(status) => {
            end(&mut local, Some(&status));
            Err(status)
        }
    })
}

async fn step<T>(call: &Here, work: impl Future<Output = T>) -> Result<T, Status> {
    call.step(work).await.map_err(|stopped| match stopped {
        Stopped::Late => {
            Status::deadline_exceeded(format!("{} did not answer in the time the call may take", call.service))
        }
        Stopped::Panicked => super::convert::grpc_status(&crate::server::panic_status()),
    })
}

/// The messages of a reply, with the call's deadline and end.
fn watch(call: Here, body: Body) -> Body {
    let frames = stream::unfold(Some((call, body)), async |call| {
        let (mut call, mut body) = call?;
        match step(&call, body.frame()).await {
            Ok(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    end(&mut call, Status::from_header_map(trailers).as_ref());
                }
                Some((Ok::<Frame<Bytes>, Status>(frame), Some((call, body))))
            }
            Ok(None) => {
                // Without an outcome that is a failure, as over the network; after one it says nothing more.
                end(&mut call, None);
                None
            }
            Ok(Some(Err(status))) | Err(status) => {
                end(&mut call, Some(&status));
                Some((Err(status), None))
            }
        }
    });
    Body::new(StreamBody::new(frames.fuse()).boxed_unsync())
}

fn end(call: &mut Here, status: Option<&Status>) {
    call.end(match status.map(Status::code) {
        Some(Code::Ok) => None,
        Some(Code::DeadlineExceeded) => Some("deadline_exceeded"),
        _ => Some("answered"),
    });
}
