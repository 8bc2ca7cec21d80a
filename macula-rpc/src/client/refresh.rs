//! Asks the directory again when the list that it gave fails (D12).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use macula_wire::ServiceName;
use tokio::sync::Mutex;

use crate::{Provider, Resolve, ResolveOptions};

/// The shortest time between two questions about a service.
pub(super) const ASK_EVERY: Duration = Duration::from_secs(1);

/// The questions about one service: one at a time, and one a second.
#[derive(Default)]
pub(super) struct Refresh(Mutex<Asked>);

/// When the directory was last asked, and its answer.
#[derive(Default)]
struct Asked {
    at: Option<Instant>,
    list: Option<Arc<[Provider]>>,
}

impl Refresh {
    /// Asks the directory itself, past its cache. A question that was asked at `since` or later is not asked again: its answer is
    /// given. `None` when the directory gives no answer.
    pub(super) async fn ask(
        &self,
        resolver: &dyn Resolve,
        service: &ServiceName,
        since: Instant,
    ) -> Option<Arc<[Provider]>> {
        let mut asked = self.0.lock().await;
        if let Some(at) = asked.at {
            if at >= since {
                return asked.list.clone();
            }
            tokio::time::sleep_until((at + ASK_EVERY).into()).await;
        }
        let at = tokio::time::Instant::now().into_std();
        let options = ResolveOptions::default().with_force_refresh(true);
        let answer = resolver.resolve(service, options).await;
        // Together: without an answer the question does not count as asked.
        *asked = Asked {
            at: Some(at),
            list: answer.ok().map(|resolved| resolved.providers),
        };
        asked.list.clone()
    }
}
