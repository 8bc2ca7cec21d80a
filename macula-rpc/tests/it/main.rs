//! The public surface, over real connections.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

#[cfg(feature = "testing")]
mod access;
mod calls;
#[cfg(feature = "tonic")]
mod conformance;
#[cfg(feature = "dns")]
mod dns;
#[cfg(feature = "testing")]
mod flow;
mod here;
mod limits;
#[cfg(feature = "testing")]
mod liveness;
#[cfg(feature = "testing")]
mod load;
mod mesh;
mod observed;
mod options;
mod predecessor;
mod pushback;
#[cfg(feature = "testing")]
mod requests;
#[cfg(feature = "testing")]
mod routed;
mod streaming;
#[cfg(feature = "testing")]
mod testing;
mod typed;
#[cfg(feature = "testing")]
mod wording;
