//! The ingress of `macula node`.

use macula_node::{
    Node,
    ingress::{Ingress, IngressConfig, Tokens},
};

use crate::{
    args::IngressArgs,
    failure::{Failure, cause_first},
};

/// Opens the ingress that the options ask for.
pub(crate) async fn open(args: &IngressArgs, node: &Node) -> Result<Option<Ingress>, Failure> {
    let Some(listen) = args.ingress else {
        return Ok(None);
    };
    let mut config = IngressConfig::new(listen);
    if let (Some(certificate), Some(key)) = (&args.ingress_cert, &args.ingress_key) {
        config = config.tls(certificate, key);
    }
    if let Some(file) = &args.ingress_tokens {
        let tokens = Tokens::read(file).map_err(|error| Failure::usage(cause_first(&error)))?;
        config = config.tokens(tokens);
    }
    let opened = Ingress::bind(node, config).await;
    opened.map(Some).map_err(|error| Failure::other(cause_first(&error)))
}
