//! The providers' processes, and what is done to them.

use std::{
    collections::BTreeMap,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use macula_node::{BootstrapAddr, Node};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, ChildStdout, Command},
};

use crate::{
    provider::{MESH, TCP},
    scenario::Step,
};

/// A free port of this host.
const ANY: &str = "127.0.0.1:0";

/// A provider, running or not.
struct Provider {
    key: u8,
    mesh: String,
    tcp: String,
    well: bool,
    process: Option<Child>,
}

/// How long after its start a provider was first called at each door.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FirstCalls {
    pub(crate) mesh: Option<Duration>,
    pub(crate) tcp: Option<Duration>,
}

/// All providers and the bootstrap node.
pub(crate) struct Fleet {
    bootstrap: String,
    /// It runs in this process and is never hit.
    _bootstrap: Node,
    providers: Vec<Provider>,
    next_key: u8,
    /// When no provider lived: from the first to the second.
    pub(crate) gaps: Vec<(Instant, Option<Instant>)>,
    /// Of the provider that came back last.
    first_calls: Arc<Mutex<FirstCalls>>,
}

impl Fleet {
    /// Starts so many providers, of which the first `bad` answer with an error.
    pub(crate) async fn start(count: usize, bad: usize) -> Result<Self> {
        let node = Node::builder().listen(ANY.parse()?).start().await?;
        let mut fleet = Self {
            bootstrap: format!("{}@{}", node.id(), node.local_addr()),
            _bootstrap: node,
            providers: Vec::new(),
            next_key: 1,
            gaps: Vec::new(),
            first_calls: Arc::default(),
        };
        for n in 0..count {
            let provider = fleet.launch(ANY.to_owned(), ANY.to_owned(), None, n >= bad).await?;
            fleet.providers.push(provider);
        }
        Ok(fleet)
    }

    pub(crate) fn bootstrap(&self) -> Result<BootstrapAddr> {
        self.bootstrap.parse().context("the bootstrap node's address")
    }

    /// The addresses over TCP by provider.
    pub(crate) fn addresses(&self) -> BTreeMap<usize, String> {
        self.providers.iter().map(|it| it.tcp.clone()).enumerate().collect()
    }

    async fn launch(&mut self, mesh: String, tcp: String, key: Option<u8>, well: bool) -> Result<Provider> {
        let key = key.unwrap_or(self.next_key);
        self.next_key = self.next_key.max(key + 1);
        let answers = if well { "well" } else { "badly" };
        let mut process = Command::new(std::env::current_exe()?)
            .args(["provide", &key.to_string(), &mesh, &tcp, &self.bootstrap, answers])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut line = String::new();
        let stdout = process.stdout.take().context("a provider has no output")?;
        let mut stdout = BufReader::new(stdout);
        stdout.read_line(&mut line).await?;
        let (mesh, tcp) = line.trim().split_once(' ').context("a provider did not start")?;
        self.first_calls = Arc::default();
        tokio::spawn(note_first_calls(stdout, Arc::clone(&self.first_calls)));
        Ok(Provider {
            key,
            mesh: mesh.to_owned(),
            tcp: tcp.to_owned(),
            well,
            process: Some(process),
        })
    }

    /// When the provider that came back last was first called.
    pub(crate) fn first_calls(&self) -> FirstCalls {
        *lock(&self.first_calls)
    }

    /// Does a step. A provider that starts is ready when this returns.
    pub(crate) async fn take(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Kill(n) => {
                self.signal(n, Signal::KILL)?;
                self.wait(n).await?;
            }
            Step::Stop(n) => self.signal(n, Signal::STOP)?,
            Step::Go(n) => self.signal(n, Signal::CONT)?,
            Step::Again(n) => {
                let old = &self.providers[n];
                let (mesh, tcp, key, well) = (old.mesh.clone(), old.tcp.clone(), old.key, old.well);
                self.providers[n] = self.launch(mesh, tcp, Some(key), well).await?;
            }
            Step::Elsewhere(n) => {
                let (key, well) = (self.providers[n].key, self.providers[n].well);
                self.providers[n] = self.launch(ANY.to_owned(), ANY.to_owned(), Some(key), well).await?;
            }
            Step::Replace(n) => {
                let new = self.launch(ANY.to_owned(), ANY.to_owned(), None, true).await?;
                self.signal(n, Signal::TERM)?;
                self.wait(n).await?;
                self.providers[n] = new;
            }
            Step::Crash(n) => {
                self.signal(n, Signal::KILL)?;
                self.wait(n).await?;
                self.providers[n] = self.launch(ANY.to_owned(), ANY.to_owned(), None, true).await?;
            }
        }
        self.note_gap();
        Ok(())
    }

    fn note_gap(&mut self) {
        let served = self.providers.iter().any(|it| it.process.is_some());
        match self.gaps.last_mut() {
            Some((_, to @ None)) if served => *to = Some(Instant::now()),
            Some((_, Some(_))) | None if !served => self.gaps.push((Instant::now(), None)),
            _ => {}
        }
    }

    fn signal(&self, n: usize, signal: Signal) -> Result<()> {
        let id = self.providers[n].process.as_ref().and_then(Child::id);
        let pid = id.and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        kill_process(pid.context("a provider does not run")?, signal)?;
        Ok(())
    }

    async fn wait(&mut self, n: usize) -> Result<()> {
        if let Some(mut process) = self.providers[n].process.take() {
            process.wait().await?;
        }
        Ok(())
    }
}

/// Reads what a provider prints at its first calls, until it ends.
async fn note_first_calls(stdout: BufReader<ChildStdout>, first: Arc<Mutex<FirstCalls>>) {
    let started = Instant::now();
    let mut lines = stdout.lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let mut first = lock(&first);
        match line.as_str() {
            MESH => first.mesh = Some(started.elapsed()),
            TCP => first.tcp = Some(started.elapsed()),
            _ => {}
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
