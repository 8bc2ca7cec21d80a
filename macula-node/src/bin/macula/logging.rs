//! The log: events on standard error, as text or JSON, one a line.
//!
//! `RUST_LOG` goes before `--log`, and the level can change while the node runs.

use std::{io::IsTerminal as _, sync::OnceLock};

use clap::ValueEnum;
use tracing::Level;
use tracing_subscriber::{
    EnvFilter, Layer as _, Registry, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

use crate::otlp::Otlp;

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum LogFormat {
    /// A line for a person.
    #[default]
    Text,
    /// A JSON object.
    Json,
}

static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts the log at these levels, written as `RUST_LOG`, or at `default`; spans go to the collector, too.
pub(crate) fn start(levels: Option<&str>, default: Level, format: LogFormat, otlp: Option<&Otlp>) {
    let (filter, handle) = reload::Layer::new(filter(levels, default));
    // Started once.
    let _ = FILTER.set(handle);
    let stderr = std::io::stderr;
    let lines = match format {
        LogFormat::Text => tracing_subscriber::fmt::layer()
            .with_writer(stderr)
            .with_ansi(stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()))
            .with_target(false)
            .boxed(),
        LogFormat::Json => tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(stderr)
            .with_target(false)
            .boxed(),
    };
    // The levels are those of the lines alone.
    let lines = lines.with_filter(filter);
    tracing_subscriber::registry()
        .with(lines)
        .with(otlp.map(Otlp::layer))
        .init();
}

/// Changes the levels.
pub(crate) fn set(levels: Option<&str>, default: Level) {
    let changed = FILTER.get().map(|handle| handle.reload(filter(levels, default)));
    if let Some(Err(error)) = changed {
        tracing::warn!(%error, "the levels of the log could not be changed");
    }
}

/// Whether the levels can be read.
pub(crate) fn check(levels: &str) -> Result<String, String> {
    match EnvFilter::builder().parse(levels) {
        Ok(_) => Ok(levels.to_owned()),
        Err(_) => Err("write a level like `info`, or levels for each part like `warn,macula_dht=debug`".to_owned()),
    }
}

fn filter(levels: Option<&str>, default: Level) -> EnvFilter {
    let by_default = || EnvFilter::builder().with_default_directive(default.into());
    match (std::env::var_os(EnvFilter::DEFAULT_ENV), levels) {
        (None, Some(levels)) => by_default().parse_lossy(levels),
        (Some(_), _) | (None, None) => by_default().from_env_lossy(),
    }
}
