//! The requests of a generated client.

use std::sync::{Arc, OnceLock};

use ::tonic::body::Body;
use bytes::Bytes;
use futures::{FutureExt as _, Stream, StreamExt as _, stream};
use http_body::Frame;
use http_body_util::{BodyExt as _, BodyStream};

use super::{convert, mount::PIECE_BYTES};
use crate::{CallError, streaming::Asking};

/// The status with which the application's own requests failed, such as a message that is too large. As over HTTP/2, the application
/// gets this status back.
#[derive(Clone, Default)]
pub(super) struct RequestsFailed(Arc<OnceLock<::tonic::Status>>);

impl RequestsFailed {
    pub(super) fn note(&self, status: ::tonic::Status) {
        // The first failure ends the call.
        let _ = self.0.set(status);
    }

    /// The application's status for a call that failed.
    pub(super) fn status(&self, error: &CallError) -> ::tonic::Status {
        match (error, self.0.get()) {
            (CallError::RequestsFailed { .. }, Some(status)) => status.clone(),
            _ => convert::error(error),
        }
    }
}

/// Bytes in pieces of [`PIECE_BYTES`]; nothing when there are none.
fn cut(mut data: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        let next = data.split_to(data.len().min(PIECE_BYTES));
        (!next.is_empty()).then_some(next)
    })
}

/// The requests of a body: at once when there is only one, as in a unary call, else in pieces. A failure is noted.
pub(super) fn requests(mut body: Body, failed: &RequestsFailed) -> Asking {
    let Some(frame) = body.frame().now_or_never() else {
        return Asking::Stream(pieces(body, failed).fuse().boxed());
    };
    let first = match frame {
        // A body may not be polled after its end.
        None => return Asking::Stream(stream::empty().boxed()),
        Some(Ok(frame)) if is_one_piece(&frame) => match body.frame().now_or_never() {
            Some(None) => return Asking::Only(frame.into_data().unwrap_or_default()),
            Some(Some(second)) => vec![Ok(frame), second],
            None => vec![Ok(frame)],
        },
        Some(frame) => vec![frame],
    };
    let first: Vec<_> = first.into_iter().flat_map(|frame| in_pieces(frame, failed)).collect();
    Asking::Stream(stream::iter(first).chain(pieces(body, failed)).fuse().boxed())
}

fn is_one_piece(frame: &Frame<Bytes>) -> bool {
    let data = frame.data_ref();
    data.is_some_and(|data| (1..=PIECE_BYTES).contains(&data.len()))
}

/// The data of a body in pieces.
fn pieces(body: Body, failed: &RequestsFailed) -> impl Stream<Item = Result<Bytes, ()>> + use<> {
    let failed = failed.clone();
    BodyStream::new(body).flat_map(move |frame| stream::iter(in_pieces(frame, &failed)))
}

fn in_pieces(
    frame: Result<Frame<Bytes>, ::tonic::Status>,
    failed: &RequestsFailed,
) -> impl Iterator<Item = Result<Bytes, ()>> + use<> {
    let (data, error) = match frame.map(Frame::into_data) {
        Ok(data) => (data.unwrap_or_default(), None),
        Err(status) => {
            failed.note(status);
            (Bytes::new(), Some(Err(())))
        }
    };
    cut(data).map(Ok).chain(error)
}
