//! What the `metrics` facade counts, as OpenTelemetry's instruments.
//!
//! A call costs additions to atomics, as with any recorder. An instrument reads them when it is time for an export; only times of calls
//! are handed over sooner, because each sample takes room.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::Ordering},
};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use metrics_util::registry::{AtomicStorage, Registry};
use opentelemetry::{KeyValue, metrics::Meter};

use crate::{
    NodeState,
    ops::{BUCKETS, record_state},
};

type Values = Registry<Key, AtomicStorage>;

/// The numbers of this process. Clones are the same.
#[derive(Clone)]
pub(super) struct Numbers(Arc<Shared>);

struct Shared {
    meter: Meter,
    /// Those of calls.
    calls: Arc<Values>,
    /// Those of the node when it was last looked at.
    node: Mutex<Arc<Values>>,
    instruments: Mutex<Instruments>,
}

#[derive(Default)]
struct Instruments {
    /// The unit and meaning of each name.
    meanings: HashMap<String, (Option<Unit>, SharedString)>,
    /// The names that are read at each export.
    read: HashSet<String>,
    times: HashMap<String, opentelemetry::metrics::Histogram<f64>>,
}

impl Numbers {
    pub(super) fn new(meter: Meter) -> Self {
        Self(Arc::new(Shared {
            meter,
            calls: Arc::new(Registry::atomic()),
            node: Mutex::new(Arc::new(Registry::atomic())),
            instruments: Mutex::default(),
        }))
    }

    /// A recorder of calls.
    pub(super) fn recorder(&self) -> Keeper {
        Keeper {
            values: Arc::clone(&self.0.calls),
            shared: Arc::clone(&self.0),
        }
    }

    /// Hands over the times of calls since the last time.
    pub(super) fn sort(&self) {
        let instruments = self.0.instruments();
        self.0.calls.visit_histograms(|key, samples| {
            let Some(times) = instruments.times.get(key.name()) else {
                return;
            };
            let labels = attributes(key);
            samples.clear_with(|samples| samples.iter().for_each(|seconds| times.record(*seconds, &labels)));
        });
    }

    /// Takes the numbers of a node's snapshot in the place of the last one's.
    pub(super) fn look(&self, state: &NodeState) {
        let keeper = Keeper {
            values: Arc::new(Registry::atomic()),
            shared: Arc::clone(&self.0),
        };
        metrics::with_local_recorder(&keeper, || record_state(state));
        *self.0.node.lock().unwrap_or_else(PoisonError::into_inner) = keeper.values;
    }
}

impl Shared {
    fn instruments(&self) -> MutexGuard<'_, Instruments> {
        self.instruments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn values(&self) -> [Arc<Values>; 2] {
        let node = self.node.lock().unwrap_or_else(PoisonError::into_inner);
        [Arc::clone(&self.calls), Arc::clone(&node)]
    }
}

/// Keeps numbers, and makes an instrument for each new name.
pub(super) struct Keeper {
    values: Arc<Values>,
    shared: Arc<Shared>,
}

impl Keeper {
    fn describe(&self, name: &KeyName, unit: Option<Unit>, meaning: SharedString) {
        let mut instruments = self.shared.instruments();
        if !instruments.meanings.contains_key(name.as_str()) {
            instruments.meanings.insert(name.as_str().to_owned(), (unit, meaning));
        }
    }

    /// Makes an instrument that reads this name at each export.
    fn read(&self, name: &str, is_counter: bool) {
        let mut instruments = self.shared.instruments();
        if instruments.read.contains(name) {
            return;
        }
        instruments.read.insert(name.to_owned());
        let (unit, meaning) = meaning(&instruments, name);
        drop(instruments);
        let (shared, of) = (Arc::downgrade(&self.shared), name.to_owned());
        let meter = &self.shared.meter;
        match is_counter {
            true => {
                let counter = meter.u64_observable_counter(name.to_owned());
                let counter = counter.with_unit(unit).with_description(meaning);
                let read = move |observer: &dyn opentelemetry::metrics::AsyncInstrument<u64>| {
                    each(&shared, |values| {
                        values.visit_counters(|key, value| {
                            if key.name() == of {
                                observer.observe(value.load(Ordering::Relaxed), &attributes(key));
                            }
                        });
                    });
                };
                counter.with_callback(read).build();
            }
            false => {
                let gauge = meter.f64_observable_gauge(name.to_owned());
                let gauge = gauge.with_unit(unit).with_description(meaning);
                let read = move |observer: &dyn opentelemetry::metrics::AsyncInstrument<f64>| {
                    each(&shared, |values| {
                        values.visit_gauges(|key, value| {
                            if key.name() == of {
                                observer.observe(f64::from_bits(value.load(Ordering::Relaxed)), &attributes(key));
                            }
                        });
                    });
                };
                gauge.with_callback(read).build();
            }
        }
    }

    fn time(&self, name: &str) {
        let mut instruments = self.shared.instruments();
        if !instruments.times.contains_key(name) {
            let (unit, meaning) = meaning(&instruments, name);
            let times = self.shared.meter.f64_histogram(name.to_owned());
            let times = times.with_unit(unit).with_description(meaning);
            let times = times.with_boundaries(BUCKETS.to_vec()).build();
            instruments.times.insert(name.to_owned(), times);
        }
    }
}

fn each(shared: &Weak<Shared>, read: impl Fn(&Values)) {
    if let Some(shared) = shared.upgrade() {
        shared.values().iter().for_each(|values| read(values));
    }
}

/// The unit, as UCUM writes it, and the meaning of a name.
fn meaning(instruments: &Instruments, name: &str) -> (&'static str, String) {
    let (unit, meaning) = instruments.meanings.get(name).cloned().unwrap_or_default();
    let unit = match unit {
        None => "",
        Some(Unit::Bytes) => "By",
        Some(unit) => unit.as_canonical_label(),
    };
    (unit, meaning.to_string())
}

fn attributes(key: &Key) -> Vec<KeyValue> {
    key.labels()
        .map(|label| KeyValue::new(label.key().to_owned(), label.value().to_owned()))
        .collect()
}

impl Recorder for Keeper {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, meaning: SharedString) {
        self.describe(&name, unit, meaning);
    }

    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, meaning: SharedString) {
        self.describe(&name, unit, meaning);
    }

    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, meaning: SharedString) {
        self.describe(&name, unit, meaning);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        self.read(key.name(), true);
        let kept = |value: &Arc<_>| Counter::from_arc(Arc::clone(value));
        self.values.get_or_create_counter(key, kept)
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        self.read(key.name(), false);
        let kept = |value: &Arc<_>| Gauge::from_arc(Arc::clone(value));
        self.values.get_or_create_gauge(key, kept)
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        self.time(key.name());
        let kept = |samples: &Arc<_>| Histogram::from_arc(Arc::clone(samples));
        self.values.get_or_create_histogram(key, kept)
    }
}

impl fmt::Debug for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Numbers")
    }
}
