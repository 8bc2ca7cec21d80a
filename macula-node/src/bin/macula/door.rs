//! The TCP ports of `macula node`: the ingress and the ops port.

use std::path::Path;

use macula_node::{
    Node,
    ingress::{Ingress, IngressConfig, Tokens},
    ops::{Metrics, Ops, OpsConfig},
};

use crate::{
    args::{IngressArgs, OpsArgs},
    failure::{Failure, cause_first},
    otlp::Otlp,
};

fn tokens(file: &Path) -> Result<Tokens, Failure> {
    Tokens::read(file).map_err(|error| Failure::usage(cause_first(&error)))
}

/// Opens the ingress that the options ask for.
pub(crate) async fn open_ingress(args: &IngressArgs, node: &Node) -> Result<Option<Ingress>, Failure> {
    let Some(listen) = args.ingress else {
        return Ok(None);
    };
    let mut config = IngressConfig::new(listen);
    if let (Some(certificate), Some(key)) = (&args.ingress_cert, &args.ingress_key) {
        config = config.tls(certificate, key);
    }
    if let Some(file) = &args.ingress_tokens {
        config = config.tokens(tokens(file)?);
    }
    let opened = Ingress::bind(node, config).await;
    opened.map(Some).map_err(|error| Failure::other(cause_first(&error)))
}

/// Begins to count the calls of this process when the options ask for the ops port or a collector. Goes before the node's start.
pub(crate) fn count_calls(args: &OpsArgs, otlp: Option<&Otlp>) -> Result<Option<Metrics>, Failure> {
    let metrics = match otlp {
        Some(otlp) => otlp.count_calls().map(Some),
        None => args.ops.map(|_| Metrics::install()).transpose(),
    };
    metrics.map_err(|error| Failure::other(cause_first(&error)))
}

/// Opens the ops port that the options ask for.
pub(crate) async fn open_ops(args: &OpsArgs, node: &Node, metrics: Option<Metrics>) -> Result<Option<Ops>, Failure> {
    let Some(listen) = args.ops else {
        return Ok(None);
    };
    let mut config = OpsConfig::new(listen);
    if let Some(metrics) = metrics {
        config = config.metrics(metrics);
    }
    if let Some(file) = &args.ops_tokens {
        config = config.tokens(tokens(file)?);
    }
    let opened = Ops::bind(node, config).await;
    opened.map(Some).map_err(|error| Failure::other(cause_first(&error)))
}
