//! The provider processes of the demonstration.

use std::{path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context, bail};
use macula_node::{Address, NodeId};
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

/// How long a provider may take until it says that it is ready.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// The line that a node prints with `--json` when it is ready.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Ready {
    pub(crate) node_id: String,
    pub(crate) endpoint: String,
}

/// A provider: a process of its own that can be killed and started again.
#[derive(Debug)]
pub(crate) struct ProviderProcess {
    pub(crate) node_id: NodeId,
    pub(crate) endpoint: Address,
    identity: PathBuf,
    /// Where it finds the mesh when it is started again.
    pub(crate) bootstrap: Option<String>,
    child: Child,
}

/// The providers, and the directory that holds their keys until the end.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) providers: Vec<ProviderProcess>,
    _keys: tempfile::TempDir,
}

impl Fleet {
    /// Starts `count` providers of `service` on free loopback ports, the first as the others' bootstrap node.
    pub(crate) async fn start(count: u16, service: &str) -> anyhow::Result<Self> {
        let keys = tempfile::Builder::new()
            .prefix("macula-demo-")
            .tempdir()
            .context("no temporary folder for the keys")?;
        let mut providers: Vec<ProviderProcess> = Vec::new();
        for number in 1..=count {
            let identity = keys.path().join(format!("provider-{number}"));
            let bootstrap = providers.first().map(ProviderProcess::address);
            let (child, ready) = spawn("127.0.0.1:0", &identity, bootstrap.as_deref(), service)
                .await
                .with_context(|| format!("provider {number} did not start"))?;
            providers.push(ProviderProcess {
                node_id: ready.node_id.parse().context("a provider printed no node id")?,
                endpoint: ready.endpoint.parse().context("a provider printed no endpoint")?,
                identity,
                bootstrap,
                child,
            });
        }
        Ok(Self { providers, _keys: keys })
    }

    /// Ends every provider that runs.
    pub(crate) async fn stop(mut self) {
        for provider in &mut self.providers {
            // A process that is gone already needs no kill.
            let _ = provider.child.kill().await;
        }
    }
}

impl ProviderProcess {
    /// The provider as a bootstrap address, its identity pinned.
    pub(crate) fn address(&self) -> String {
        format!("{}@{}:{}", self.node_id, self.endpoint.host(), self.endpoint.port())
    }

    /// Kills the process with SIGKILL: it cannot withdraw.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("the provider could not be killed")
    }

    /// Starts the process again, with the same key on the same port.
    pub(crate) async fn restart(mut self, service: &'static str) -> anyhow::Result<Self> {
        let listen = format!("{}:{}", self.endpoint.host(), self.endpoint.port());
        let (child, ready) = spawn(&listen, &self.identity, self.bootstrap.as_deref(), service)
            .await
            .context("the killed provider did not start again")?;
        if ready.node_id != self.node_id.to_string() {
            bail!("the restarted provider has another identity");
        }
        self.child = child;
        Ok(self)
    }
}

async fn spawn(
    listen: &str,
    identity: &std::path::Path,
    bootstrap: Option<&str>,
    service: &str,
) -> anyhow::Result<(Child, Ready)> {
    let program = std::env::current_exe().context("the path of this program is not known")?;
    let mut command = Command::new(program);
    command
        .args([
            "node",
            "--json",
            "--until-stdin-closes",
            "--listen",
            listen,
            "--identity",
        ])
        .arg(identity);
    command.args(["--serve", &format!("{service}=echo")]);
    command.args(bootstrap.iter().flat_map(|address| ["--bootstrap", address]));
    // Standard input closes when this process ends, however it ends: no provider outlives the demonstration.
    // It is not the node of this host that `macula status` should find.
    command
        .env("MACULA_ADMIN", "off")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true);
    for variable in [
        "MACULA_BOOTSTRAP",
        "MACULA_REALM",
        "MACULA_ADVERTISE",
        "MACULA_TTL",
        "MACULA_DATA",
        "MACULA_ZONE",
        "MACULA_WEIGHT",
        "MACULA_MEMORY",
        "MACULA_CONFIG",
    ] {
        command.env_remove(variable);
    }
    if std::env::var_os("RUST_LOG").is_none() {
        // Nodes on loopback warn that only this host can reach them, which is intended here.
        command.env("RUST_LOG", "error");
    }
    let mut child = command.spawn().context("the program could not be started")?;
    let stdout = child.stdout.take().context("the program has no standard output")?;
    let mut lines = BufReader::new(stdout).lines();
    let line = tokio::time::timeout(READY_WITHIN, lines.next_line())
        .await
        .with_context(|| format!("it was not ready within {READY_WITHIN:?}"))?
        .context("its output could not be read")?
        .context("it ended before it was ready")?;
    let ready = serde_json::from_str(&line).with_context(|| format!("it printed {line:?}"))?;
    Ok((child, ready))
}
