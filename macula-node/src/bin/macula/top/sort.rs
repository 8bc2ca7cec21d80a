//! The orders of services in `macula top`.

use clap::ValueEnum;

/// The order of services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Sort {
    /// The most calls first.
    #[default]
    Rate,
    /// The most errors first.
    Errors,
    /// The slowest first.
    Latency,
    /// By name.
    Name,
}
