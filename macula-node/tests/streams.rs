//! Services whose messages are streams, on real nodes.

use futures::stream;
use macula_node::{Bytes, Node, Request, Requests, Status};

/// Each message in capitals, as it comes.
async fn upper(request: Request<Requests>) -> Result<impl stream::Stream<Item = Result<Vec<u8>, Status>>, Status> {
    let requests = request.into_payload();
    Ok(stream::try_unfold(requests, async |mut requests| {
        let next: Option<Bytes> = requests.next().await?;
        Ok(next.map(|message| (message.to_ascii_uppercase(), requests)))
    }))
}

#[tokio::test]
async fn a_node_serves_streams_from_the_start_and_later() {
    let listen = "127.0.0.1:0".parse().unwrap();
    let node = Node::builder().listen(listen).serve_streaming("text.upper", upper);
    let node = node.start().await.unwrap();
    node.serve_streaming("text.later".parse().unwrap(), upper)
        .await
        .unwrap();
    let bootstrap = node.endpoints()[0].clone().into();
    let caller = Node::builder().client().bootstrap([bootstrap]).start().await.unwrap();
    caller.join().await.unwrap();
    for service in ["text.upper", "text.later"] {
        let words = stream::iter(["some".into(), "words".into()]);
        let mut replies = caller.client().request(service).stream(words).await.unwrap();
        assert_eq!(replies.next().await.unwrap().unwrap(), "SOME");
        assert_eq!(replies.next().await.unwrap().unwrap(), "WORDS");
        assert_eq!(replies.next().await.unwrap(), None);
    }
}
