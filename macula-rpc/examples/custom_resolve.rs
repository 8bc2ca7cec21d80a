//! A directory of your own: providers come from a text file that may change while calls are made.
//!
//! `cargo run -p macula-rpc --example custom_resolve`

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt as _};
use macula_rpc::{
    Address, Client, Provider, Request, Resolve, ResolveError, ResolveOptions, Resolved, Server, ServiceName, Source,
    Status,
};
use macula_transport::{Config, Endpoint, Identity, NoService};

/// A file with a line for each provider: service, node id, address.
struct Lines(PathBuf);

impl Lines {
    fn providers(&self, service: &ServiceName) -> Result<Arc<[Provider]>, Box<dyn Error + Send + Sync>> {
        let text = std::fs::read_to_string(&self.0)?;
        let mut found = Vec::new();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            if let (Some(name), Some(id), Some(address)) = (words.next(), words.next(), words.next())
                && name == service.as_str()
            {
                let address: Address = address.parse()?;
                found.push(Provider::new(id.parse()?, [address]));
            }
        }
        Ok(found.into())
    }
}

impl Resolve for Lines {
    // An empty list is an answer: the service is not provided. An error means that the directory cannot be read.
    fn resolve<'a>(
        &'a self,
        service: &'a ServiceName,
        _options: ResolveOptions,
    ) -> BoxFuture<'a, Result<Resolved, ResolveError>> {
        async move {
            let providers = self.providers(service);
            let providers = providers.map_err(|error| ResolveError::Lookup(Arc::new(io::Error::other(error))))?;
            let source = Source::Static;
            Ok(Resolved { providers, source })
        }
        .boxed()
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let server = Server::new();
    server.serve("demo.hello".parse()?, |_: Request| async { Ok::<_, Status>("hello") })?;
    let listen = Config::new(Identity::generate()?).with_listen("127.0.0.1:0".parse()?);
    let provider = Endpoint::bind(listen, server).await?;

    let file = std::env::temp_dir().join(format!("{}.providers", provider.node_id()));
    std::fs::write(&file, "")?;
    let endpoint = Endpoint::bind(Config::new(Identity::generate()?), NoService).await?;
    let client = Client::builder(&endpoint, Lines(file.clone())).build();
    assert_eq!(
        client
            .call("demo.hello", "")
            .await
            .expect_err("the file is empty")
            .name(),
        "service_not_found"
    );

    let address = Address::try_from(provider.local_addr())?;
    std::fs::write(&file, format!("demo.hello {} {address}\n", provider.node_id()))?;
    assert_eq!(client.call("demo.hello", "").await?, "hello");
    std::fs::remove_file(file)?;
    Ok(())
}
