//! Records that lose their right before their time (A6).

use macula_wire::VerifiedProvider;

use super::ProviderStore;

impl ProviderStore {
    /// Drops the records of others that `keeps` does not want.
    pub(crate) fn keep_only(&mut self, keeps: impl Fn(&VerifiedProvider) -> bool) {
        for key in self.order.clone() {
            let mut at = self.keys.get(&key).map_or(0, |entry| entry.slots.len());
            while at > 0 {
                at -= 1;
                let unwanted = self.keys.get(&key).is_some_and(|entry| {
                    let stored = self.records.get(entry.slots[at].place);
                    !stored.is_local() && !keeps(&stored.record)
                });
                if unwanted {
                    self.remove(&key, at);
                }
            }
            self.settle(&key);
        }
    }
}
