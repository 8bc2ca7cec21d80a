//! Replies that would make their caller panic (X9). The victim is the caller.

use bytes::{BufMut as _, BytesMut};
use macula_node::{Bytes, Channel, Limits, Request, Requests, Status};
use tonic::{Code, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

use crate::{builder, compare, honest, served, victim, way_to};

/// More names than a map of headers has room for.
const NAMES: usize = 40_000;

/// The first message of a reply: headers of different names, as Protocol Buffers write them.
fn headers() -> Bytes {
    let mut message = BytesMut::new();
    for at in 0..NAMES {
        let name = format!("x-{at}");
        message.put_slice(&[0x0a, name.len() as u8 + 5, 0x0a, name.len() as u8]);
        message.put_slice(name.as_bytes());
        message.put_slice(&[0x12, 1, b'v']);
    }
    message.freeze()
}

#[tokio::test(flavor = "multi_thread")]
async fn x9_a_reply_of_forty_thousand_headers_fails_its_call_and_nothing_else() {
    let victim = victim(Limits::default()).await;
    let honest = honest(&victim).await;
    let calm = served(&honest, 64).await;
    let liar = builder(1, Limits::default())
        .bootstrap([way_to(&victim)])
        .serve_streaming("their.Greeter", async |_: Request<Requests>| {
            Ok::<_, Status>(futures::stream::iter([Ok::<_, Status>(headers())]))
        });
    let liar = liar.start().await.unwrap();
    liar.join().await.unwrap();
    let greet = async || {
        let mut stub = Grpc::new(Channel::new(victim.client().clone()));
        stub.ready().await.unwrap();
        let path = PathAndQuery::from_static("/their.Greeter/Greet");
        let codec = ProstCodec::<(), ()>::default();
        stub.unary(tonic::Request::new(()), path, codec).await
    };
    for _ in 0..10 {
        assert_eq!(greet().await.unwrap_err().code(), Code::ResourceExhausted);
    }
    compare("replies of too many headers", calm, served(&honest, 64).await);
}
