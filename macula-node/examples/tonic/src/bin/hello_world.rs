//! tonic's hello world on a mesh of four nodes: three greet, one calls, and one of the three dies on the way.
#![allow(clippy::print_stdout, reason = "an example that is read in a terminal")]

use macula_examples_tonic::{
    Result,
    hello::{
        HelloReply, HelloRequest,
        greeter_client::GreeterClient,
        greeter_server::{Greeter, GreeterServer},
    },
    start,
};
use macula_node::{Channel, Node, Strategy};
use tonic::{Request, Response, Status};

struct MyGreeter {
    name: &'static str,
}

// Nothing here is of the mesh: it is the code of any tonic server.
#[tonic::async_trait]
impl Greeter for MyGreeter {
    async fn say_hello(&self, request: Request<HelloRequest>) -> std::result::Result<Response<HelloReply>, Status> {
        let name = request.into_inner().name;
        if name.is_empty() {
            return Err(Status::invalid_argument("say your name"));
        }
        Ok(Response::new(HelloReply {
            message: format!("Hello {name}!"),
            greeter: self.name.into(),
        }))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    // Where tonic has `Server::builder().add_service(…).serve(address)`, a node serves: it is found by the service's name.
    let mut greeters: Vec<Node> = Vec::new();
    for name in ["Ada", "Bea", "Cleo"] {
        let node = Node::builder().serve_tonic(GreeterServer::new(MyGreeter { name }));
        let node = start(node, greeters.first()).await?;
        greeters.push(node);
    }

    // Where tonic has `GreeterClient::connect(address)`, the client gets a channel of the mesh, and no address.
    let node = start(
        Node::builder().client().strategy(Strategy::RoundRobin),
        greeters.first(),
    )
    .await?;
    let mut client = GreeterClient::new(Channel::new(node.client().clone()));
    let mut greeted_by = std::collections::BTreeSet::new();
    for name in ["mesh", "world", "you"] {
        let reply = client.say_hello(HelloRequest { name: name.into() }).await?.into_inner();
        println!("{}", reply.message);
        greeted_by.insert(reply.greeter);
    }
    println!("greeted by {greeted_by:?}");

    // The caller does not notice that a greeter leaves.
    if let Some(leaving) = greeters.pop() {
        leaving.shutdown().await;
    }
    for _ in 0..3 {
        client.say_hello(HelloRequest { name: "again".into() }).await?;
    }
    println!("and by those who are left, after one has gone");

    // A status is the service's own, wherever it ran.
    let refused = client.say_hello(HelloRequest::default()).await;
    println!(
        "without a name: {:?}",
        refused.map_err(|status| status.message().to_owned())
    );
    // The rest of the mesh ends with this program. A node that leaves a running mesh shuts down, as one of them has.
    Ok(())
}
