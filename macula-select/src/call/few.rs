//! A short queue that allocates only beyond two.

/// Kept without allocating: a call's first attempt and one beside it.
const INLINE: usize = 2;

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Few<T> {
    first: [Option<T>; INLINE],
    /// Empty while there is room in `first`.
    more: Vec<T>,
}

impl<T> Few<T> {
    pub(super) const fn new() -> Self {
        Self {
            first: [const { None }; INLINE],
            more: Vec::new(),
        }
    }

    #[inline]
    pub(super) fn push(&mut self, item: T) {
        match self.first.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some(item),
            None => self.more.push(item),
        }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.first[0].is_none()
    }

    #[inline]
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.first.iter().flatten().chain(&self.more)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.first.iter_mut().flatten().chain(&mut self.more)
    }

    /// Removes the first item for which `is_it` holds. The others keep their order.
    #[inline]
    pub(super) fn take(&mut self, is_it: impl Fn(&T) -> bool) -> Option<T> {
        let at = self.iter().position(is_it)?;
        let taken = match self.first.get_mut(at) {
            Some(place) => place.take(),
            None => return Some(self.more.remove(at - INLINE)),
        };
        for place in at + 1..INLINE {
            self.first.swap(place - 1, place);
        }
        if !self.more.is_empty() {
            self.first[INLINE - 1] = Some(self.more.remove(0));
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_short_queue_is_a_queue(steps in proptest::collection::vec((any::<bool>(), 0u8..8), 0..60)) {
            let (mut few, mut model) = (Few::new(), Vec::new());
            for (push, item) in steps {
                if push {
                    few.push(item);
                    model.push(item);
                } else {
                    let at = model.iter().position(|kept| *kept == item);
                    prop_assert_eq!(few.take(|kept| *kept == item), at.map(|at| model.remove(at)));
                }
                prop_assert_eq!(few.iter().copied().collect::<Vec<_>>(), model.clone());
                prop_assert_eq!(few.is_empty(), model.is_empty());
            }
        }
    }
}
