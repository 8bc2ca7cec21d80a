//! A pick by turns, in the region that it is narrowed down to.

use std::hash::Hash;

use super::Balancer;
use super::pick::Region;

impl<K: Eq + Hash + Clone> Balancer<K> {
    pub(super) fn take_turn(&mut self, region: Region) -> Option<u32> {
        let (hot, mark) = (&self.hot, self.mark);
        self.rotation.next(|slot| {
            let hot = &hot[slot as usize];
            hot.mark != mark && region.contains(hot.position)
        })
    }

    #[inline(never)]
    pub(super) fn take_weighted_turn(&mut self, region: Region) -> Option<u32> {
        let max = match self.rotation.heaviest {
            Some((of, max)) if of == region.span() => max,
            Some(_) | None => {
                let max = region
                    .positions()
                    .map(|at| self.cold[self.roster.slot(at) as usize].effective)
                    .max()?;
                self.rotation.heaviest = Some((region.span(), max));
                max
            }
        };
        let (hot, cold, mark) = (&self.hot, &self.cold, self.mark);
        let turn = self.rotation.next_weighted(
            max,
            |slot| {
                let hot = &hot[slot as usize];
                hot.mark != mark && region.contains(hot.position)
            },
            |slot| cold[slot as usize].effective,
        );
        turn.or_else(|| self.draw_weighted(region))
    }
}
