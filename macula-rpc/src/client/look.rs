//! A look at a client: for people and dashboards. It counts as no call.

use super::{
    called::CalledService,
    news::ClientEvents,
    shared::{Client, now},
};
use crate::observe::CallStats;

impl Client {
    /// The services that this client has called itself, sorted by name: at most [`MAX_SERVICES`](crate::MAX_SERVICES).
    #[must_use]
    pub fn called(&self) -> Vec<CalledService> {
        let own = self.shared.services.own().into_iter();
        own.map(|(service, known)| {
            let calls = known.meters.stats();
            let mut roster = known.balanced.lock();
            // What is due by now has happened.
            roster.balancer.handle_timeout(now());
            CalledService {
                service,
                calls,
                balancer: roster.balancer.stats(),
                providers: roster.standing(),
            }
        })
        .collect()
    }

    /// The calls that this client has forwarded for peers.
    #[must_use]
    pub fn forwarded_calls(&self) -> CallStats {
        self.shared.services.forwarded()
    }

    /// What happens to the providers that this client calls, from now on.
    #[must_use]
    pub fn events(&self) -> ClientEvents {
        self.shared.services.news.watch()
    }
}
