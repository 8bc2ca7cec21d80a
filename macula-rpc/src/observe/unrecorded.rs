//! The numbers without the feature `metrics`: none.

use std::time::Duration;

use macula_transport::Pool;
use macula_wire::ServiceName;

use super::Method;

#[derive(Debug)]
pub(super) struct Labels;

impl Labels {
    pub(super) fn new(_service: &ServiceName, _method: &Method) -> Self {
        Self
    }
}

#[derive(Debug)]
pub(super) struct Counters;

impl Counters {
    pub(super) fn new(_name: &'static str, _label: &'static str) -> Self {
        Self
    }

    pub(super) fn add(&self, _labels: &Labels, _value: &'static str) {}
}

#[derive(Debug)]
pub(super) struct Total;

impl Total {
    pub(super) fn new(_name: &'static str) -> Self {
        Self
    }

    pub(super) fn add(&self, _labels: &Labels, _count: usize) {}
}

#[derive(Debug)]
pub(super) struct Seconds;

impl Seconds {
    pub(super) fn new(_name: &'static str) -> Self {
        Self
    }

    pub(super) fn record(&self, _labels: &Labels, _took: impl FnOnce() -> Duration) {}
}

pub(super) fn show(_pool: &Pool) {}
