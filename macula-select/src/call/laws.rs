//! The laws of a call, checked at every step of whatever happens to it.
//!
//! [`world`] is a shell that watches: a balancer, some calls, and a reference model of each call that knows only what was
//! asked for and what came back. [`interleavings`] tries everything that can happen to two calls and three
//! providers; [`walks`] tries long random stories with changing providers, links and clocks.

mod interleavings;
mod walks;
mod world;
