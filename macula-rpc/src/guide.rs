//! The guide: one page for each topic. The modules hold no items.

#[doc = include_str!("../docs/discovery.md")]
pub mod discovery {}

#[doc = include_str!("../docs/selection.md")]
pub mod selection {}

#[doc = include_str!("../docs/failover.md")]
pub mod failover {}

#[doc = include_str!("../docs/deadlines.md")]
pub mod deadlines {}

#[doc = include_str!("../docs/streaming.md")]
pub mod streaming {}

#[cfg(feature = "tonic")]
#[doc = include_str!("../docs/tonic.md")]
pub mod tonic {}
