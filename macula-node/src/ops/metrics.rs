//! The numbers of this process's calls, recorded for Prometheus.

use std::{sync::Arc, time::Duration};

#[cfg(feature = "otlp")]
use metrics::Recorder;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tokio::task::JoinHandle;

/// The upper bounds of the buckets for times, in seconds: from a call on one machine to the longest default deadline.
pub(crate) const BUCKETS: [f64; 16] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
/// How often the times of calls are put into their buckets. Until then each takes 8 bytes.
const SORT_EVERY: Duration = Duration::from_secs(1);

/// The process has a recorder of metrics already, whose exporter then shows the numbers of calls.
#[derive(Debug, thiserror::Error)]
#[error("this process has a recorder for metrics already; let its exporter show them, and open the ops port without")]
pub struct RecorderInstalled;

/// The numbers of all calls that this process makes and serves, for [`Ops::bind`](super::Ops::bind). Clones are the same.
///
/// Keep one for as long as calls are made: without it the times of calls pile up.
#[derive(Debug, Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
    _sorting: Arc<Sorting>,
}

impl Metrics {
    /// Installs the process's recorder for the `metrics` facade. Calls that were made before are not counted, and their services may
    /// stay uncounted, so install it before the first node starts. The program's own metrics are shown, too.
    ///
    /// # Errors
    /// When the process has a recorder.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn install() -> Result<Self, RecorderInstalled> {
        let (recorder, handle) = prometheus();
        metrics::set_global_recorder(recorder).map_err(|_| RecorderInstalled)?;
        Ok(Self::installed(handle))
    }

    /// The same for a process that has another recorder, too: what is counted goes to both.
    ///
    /// # Errors
    /// When the process has a recorder that was installed before.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    #[cfg(feature = "otlp")]
    pub fn install_beside(other: impl Recorder + Sync + 'static) -> Result<Self, RecorderInstalled> {
        let (recorder, handle) = prometheus();
        let both = metrics_util::layers::FanoutBuilder::default();
        let both = both.add_recorder(recorder).add_recorder(other).build();
        metrics::set_global_recorder(both).map_err(|_| RecorderInstalled)?;
        Ok(Self::installed(handle))
    }

    fn installed(handle: PrometheusHandle) -> Self {
        macula_rpc::describe_metrics();
        let sorted = handle.clone();
        let task = tokio::spawn(async move {
            let mut due = tokio::time::interval(SORT_EVERY);
            loop {
                due.tick().await;
                sorted.run_upkeep();
            }
        });
        Self {
            handle,
            _sorting: Arc::new(Sorting(task)),
        }
    }

    pub(super) fn text(&self) -> String {
        self.handle.render()
    }
}

fn prometheus() -> (PrometheusRecorder, PrometheusHandle) {
    let builder = PrometheusBuilder::new().with_recommended_naming(true);
    let builder = builder.set_buckets(&BUCKETS);
    let recorder = builder.unwrap_or_else(|error| unreachable!("there are buckets: {error}"));
    let recorder = recorder.build_recorder();
    let handle = recorder.handle();
    (recorder, handle)
}

/// Ends the task when the last [`Metrics`] is dropped.
#[derive(Debug)]
struct Sorting(JoinHandle<()>);

impl Drop for Sorting {
    fn drop(&mut self) {
        self.0.abort();
    }
}
