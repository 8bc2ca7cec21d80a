//! The services of the simulated mesh: unary, streaming, and one as tonic generates it. Each answers with the number of its run, so that the
//! oracle can tell whose answer it is.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures::{Stream, future::BoxFuture, stream};
use macula_node::{Node, NodeBuilder, Request, Requests, Status, StatusCode};
use tonic::{
    body::Body,
    codegen::{Service, http},
    server::{Grpc, NamedService, UnaryService},
};

use crate::{
    fault::Kind,
    random::Random,
    raw_codec::Raw,
    truth::{End, Running, Truth},
};

pub(super) const UNARY: &str = "bottle.unary";
pub(super) const STREAM: &str = "bottle.stream";
pub(super) const STUB: &str = "bottle.Stub";
pub(super) const STUB_PATH: &str = "/bottle.Stub/Do";

/// How long a handler works, on average; exponentially distributed.
const WORK: Duration = Duration::from_millis(5);

/// What a call asks for: its number, and how many bytes of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) call: u64,
    pub(super) bytes: u32,
}

impl Ask {
    const LEN: usize = 12;

    /// The question, padded to the length of its answer.
    pub(super) fn encode(self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(Self::LEN + self.bytes as usize);
        bytes.put_u64(self.call);
        bytes.put_u32(self.bytes);
        bytes.put_bytes(0x5a, self.bytes as usize);
        bytes.freeze()
    }

    fn decode(mut bytes: Bytes) -> Option<Self> {
        if bytes.len() < Self::LEN {
            return None;
        }
        let ask = Self {
            call: bytes.get_u64(),
            bytes: bytes.get_u32(),
        };
        is_padding(&bytes, ask.bytes).then_some(ask)
    }
}

fn is_padding(bytes: &[u8], len: u32) -> bool {
    bytes.len() == len as usize && bytes.iter().all(|&byte| byte == 0x5a)
}

/// What a handler answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) call: u64,
    pub(super) run: u64,
    /// Which of the answers of a stream.
    pub(super) at: u32,
}

impl Told {
    fn encode(self, padding: u32) -> Bytes {
        let mut bytes = BytesMut::with_capacity(24 + padding as usize);
        bytes.put_u64(self.call);
        bytes.put_u64(self.run);
        bytes.put_u32(self.at);
        bytes.put_u32(padding);
        bytes.put_bytes(0x5a, padding as usize);
        bytes.freeze()
    }

    /// The answer, when it is whole.
    pub(super) fn decode(mut bytes: Bytes) -> Option<Self> {
        if bytes.len() < 24 {
            return None;
        }
        let told = Self {
            call: bytes.get_u64(),
            run: bytes.get_u64(),
            at: bytes.get_u32(),
        };
        let padding = bytes.get_u32();
        is_padding(&bytes, padding).then_some(told)
    }
}

/// A provider's handlers: how they behave now, and for which life of their node.
#[derive(Debug, Clone)]
pub(super) struct Provider {
    pub(super) truth: Truth,
    pub(super) life: usize,
    pub(super) seed: u64,
    /// What is wrong with them; the last one counts.
    pub(super) wrong: Arc<Mutex<Vec<Kind>>>,
}

impl Provider {
    fn wrong(&self) -> Option<Kind> {
        self.wrong
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .last()
            .copied()
    }

    /// Works on a call, well or badly.
    async fn work(&self, ask: Ask) -> Result<Running, Status> {
        let running = self.truth.runs(ask.call, self.life);
        let mut random = Random::new(self.seed ^ ask.call.rotate_left(32) ^ running.number());
        tokio::time::sleep(random.exponential(WORK)).await;
        match self.wrong() {
            Some(Kind::Slow(by)) => tokio::time::sleep(Duration::from_millis(by.into())).await,
            Some(Kind::Hang) => std::future::pending().await,
            Some(Kind::Fail) => {
                let code = random.pick(&[StatusCode::Unavailable, StatusCode::Internal, StatusCode::Aborted]);
                running.ends(End::Failed);
                return Err(Status::new(code, "told to fail"));
            }
            Some(Kind::Lie) => {
                running.ends(End::Lied);
                return Err(Status::refused("told to lie"));
            }
            _ => {}
        }
        Ok(running)
    }

    async fn answer(self, payload: Bytes) -> Result<Bytes, Status> {
        let ask = Ask::decode(payload).ok_or_else(|| Status::invalid_argument("no question"))?;
        let running = self.work(ask).await?;
        let told = Told {
            call: ask.call,
            run: running.number(),
            at: 0,
        };
        running.ends(End::Answered);
        Ok(told.encode(ask.bytes))
    }

    async fn stream(
        self,
        mut requests: Requests,
    ) -> Result<impl Stream<Item = Result<Bytes, Status>> + Send + 'static, Status> {
        let first = requests.next().await?;
        let ask = first.and_then(Ask::decode);
        let ask = ask.ok_or_else(|| Status::invalid_argument("no question"))?;
        let running = self.work(ask).await?;
        // One answer for each question, as they come.
        let start = (requests, running, ask, 0);
        Ok(stream::try_unfold(
            start,
            |(mut requests, running, ask, at)| async move {
                if at > 0 {
                    match requests.next().await? {
                        Some(next) => {
                            if Ask::decode(next) != Some(ask) {
                                return Err(Status::invalid_argument("another question"));
                            }
                        }
                        None => {
                            running.ends(End::Answered);
                            return Ok(None);
                        }
                    }
                }
                let told = Told {
                    call: ask.call,
                    run: running.number(),
                    at,
                };
                Ok(Some((told.encode(ask.bytes), (requests, running, ask, at + 1))))
            },
        ))
    }

    /// Serves all three on a node that runs already.
    pub(super) async fn serve_on(&self, node: &Node) {
        let (unary, streams) = (self.clone(), self.clone());
        let unary = move |request: Request| unary.clone().answer(request.into_payload());
        let streams = move |request: Request<Requests>| streams.clone().stream(request.into_payload());
        // A node that has ended meanwhile serves nothing, and the oracle expects nothing of it.
        if let (Ok(unary_name), Ok(stream_name)) = (UNARY.parse(), STREAM.parse()) {
            let _ = tokio::join!(
                node.serve(unary_name, unary),
                node.serve_streaming(stream_name, streams),
                node.serve_tonic(Stub(self.clone())),
            );
        }
    }

    /// Serves all three from the start.
    pub(super) fn serve(&self, builder: NodeBuilder) -> NodeBuilder {
        let (unary, streams) = (self.clone(), self.clone());
        builder
            .serve(UNARY, move |request: Request| {
                unary.clone().answer(request.into_payload())
            })
            .serve_streaming(STREAM, move |request: Request<Requests>| {
                streams.clone().stream(request.into_payload())
            })
            .serve_tonic(Stub(self.clone()))
    }
}

/// The server that tonic would have generated.
#[derive(Debug, Clone)]
struct Stub(Provider);

impl NamedService for Stub {
    const NAME: &'static str = STUB;
}

impl Service<http::Request<Body>> for Stub {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = Method(self.0.clone());
        Box::pin(async move { Ok(Grpc::new(Raw).unary(method, request).await) })
    }
}

struct Method(Provider);

impl UnaryService<Bytes> for Method {
    type Response = Bytes;
    type Future = BoxFuture<'static, Result<tonic::Response<Bytes>, tonic::Status>>;

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        let answer = self.0.clone().answer(request.into_inner());
        Box::pin(async move {
            match answer.await {
                Ok(answer) => Ok(tonic::Response::new(answer)),
                Err(status) => Err(tonic::Status::new(
                    tonic::Code::from_i32(status.code() as i32),
                    status.message(),
                )),
            }
        })
    }
}
