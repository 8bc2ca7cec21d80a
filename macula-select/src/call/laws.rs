//! The laws of a call, checked at every step of whatever happens to it.
//!
//! [`world`] is a shell that watches: a balancer, some calls, and a reference model of each call that knows only what
//! was asked for and what came back. [`interleavings`] tries everything that can happen to two calls and three
//! providers; [`walks`] tries long random stories with changing providers, links and clocks; [`first`] holds a call's first attempt by
//! itself against the call's own.

mod first;
mod interleavings;
mod walks;
mod world;
