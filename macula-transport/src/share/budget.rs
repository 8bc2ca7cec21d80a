//! A resource of the endpoint that its connections share: an amount of memory, a number of places.
//!
//! Every connection has an [`Account`]. It draws on the [`Budget`] in whole units and keeps what it does not use for a while, so
//! most charges change two counters of the connection and take no lock that others want. [`Shares`] decides at the budget: a
//! newcomer takes from the largest holder, and no one is refused while another holds more than its share.
//!
//! A [`Charge`] stays until it is dropped. A [`Hold`] can be taken back: it is told so, and gives up what it stands for. A holder
//! that has to give way loses what it does not use, then its largest hold, and at last the whole connection.
//!
//! **Invariants:** the units that accounts have are those that `Shares` counts; an account uses no more than its units, except
//! for [`Account::force`]; what is taken back is free at once, and its owner gives the resource itself up as soon as it runs.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst},
    },
};

use macula_wire::{Admission, Holder, NodeId, Shares};
use tokio::sync::Notify;

/// There is no room, and no other peer holds more than its share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exhausted;

/// A resource that the connections of an endpoint share.
#[derive(Debug)]
pub(crate) struct Budget {
    /// The least amount that an account draws.
    unit: u64,
    /// The unused amount at which an account returns it to the budget.
    spare: u64,
    state: Mutex<State>,
    refused: AtomicU64,
    evicted: AtomicU64,
}

#[derive(Debug)]
struct State {
    shares: Shares<NodeId>,
    accounts: BTreeMap<Holder<NodeId>, Vec<Arc<AccountState>>>,
    /// Grows with each grant: the order of those of the same size.
    turn: u64,
}

/// How much of a budget is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) capacity: u64,
    pub(crate) used: u64,
    pub(crate) refused: u64,
    pub(crate) evicted: u64,
}

/// A connection's part of a budget.
pub(crate) struct Account {
    budget: Arc<Budget>,
    inner: Arc<AccountState>,
    /// The connection's own amount, charged until the account closes.
    base: AtomicU64,
}

struct AccountState {
    holder: Holder<NodeId>,
    used: AtomicU64,
    /// Whole units; changed only while the budget is locked.
    granted: AtomicU64,
    /// It lost all it had; changed only while the budget is locked.
    closed: AtomicBool,
    holds: Mutex<Holds>,
    /// Ends the connection.
    give_way: Box<dyn Fn() + Send + Sync>,
}

#[derive(Debug, Default)]
struct Holds {
    next: u64,
    open: BTreeMap<u64, (u64, Arc<Signal>)>,
}

/// Tells the owner of a hold that it was taken back.
#[derive(Debug, Default)]
struct Signal {
    taken: AtomicBool,
    told: Notify,
}

/// What has to happen once the budget is unlocked.
enum Eviction {
    Hold(Arc<Signal>),
    Connection(Arc<AccountState>),
}

impl Budget {
    /// A budget of `capacity`, of which accounts draw `unit` at a time and keep less than `spare` that they do not use.
    pub(crate) fn new(capacity: u64, unit: u64, spare: u64) -> Arc<Self> {
        let state = State {
            shares: Shares::new(capacity / unit),
            accounts: BTreeMap::new(),
            turn: 0,
        };
        Arc::new(Self {
            unit,
            spare,
            state: Mutex::new(state),
            refused: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn used(&self) -> Used {
        let state = self.lock();
        Used {
            capacity: state.shares.capacity() * self.unit,
            used: state.shares.used() * self.unit,
            refused: self.refused.load(Relaxed),
            evicted: self.evicted.load(Relaxed),
        }
    }

    /// Draws as much as `inner` uses beyond its units.
    fn draw(&self, inner: &AccountState) -> Result<(), Exhausted> {
        let mut evictions = Vec::new();
        let drawn = {
            let mut state = self.lock();
            state.draw(inner, self.unit, &mut evictions)
        };
        if drawn.is_err() {
            self.refused.fetch_add(1, Relaxed);
        }
        self.evicted.fetch_add(evictions.len() as u64, Relaxed);
        for eviction in evictions {
            match eviction {
                Eviction::Hold(signal) => signal.tell(),
                Eviction::Connection(inner) => (inner.give_way)(),
            }
        }
        drawn
    }

    /// Takes back the units that `inner` does not use.
    fn reclaim(&self, inner: &AccountState) {
        let mut state = self.lock();
        let units = inner.spare(self.unit);
        state.shares.release(&inner.holder, units);
    }
}

impl State {
    fn draw(&mut self, inner: &AccountState, unit: u64, evictions: &mut Vec<Eviction>) -> Result<(), Exhausted> {
        let mut swept = false;
        loop {
            let missing = inner.used.load(SeqCst).saturating_sub(inner.granted.load(SeqCst));
            if inner.closed.load(SeqCst) {
                return Err(Exhausted);
            }
            if missing == 0 {
                return Ok(());
            }
            let units = missing.div_ceil(unit);
            if !self.shares.fits(units) && !std::mem::replace(&mut swept, true) {
                self.sweep(unit);
            }
            self.turn += 1;
            match self.shares.admit(&inner.holder, units, self.turn) {
                Admission::Granted => {
                    inner.granted.fetch_add(units * unit, SeqCst);
                }
                Admission::Evict(victim) => evictions.push(self.evict(&victim, unit).ok_or(Exhausted)?),
                Admission::Refused => return Err(Exhausted),
            }
        }
    }

    /// Takes back all units that no account uses.
    fn sweep(&mut self, unit: u64) {
        for inner in self.accounts.values().flatten() {
            self.shares.release(&inner.holder, inner.spare(unit));
        }
    }

    /// Takes the largest hold of a holder back, or all that one of its connections has.
    fn evict(&mut self, victim: &Holder<NodeId>, unit: u64) -> Option<Eviction> {
        let accounts = self.accounts.get(victim)?.iter();
        let open = accounts.filter(|inner| !inner.closed.load(SeqCst));
        let inner = open.max_by_key(|inner| inner.used.load(SeqCst))?;
        if let Some(signal) = inner.take_back() {
            self.shares.release(victim, inner.spare(unit));
            return Some(Eviction::Hold(signal));
        }
        inner.closed.store(true, SeqCst);
        self.shares.release(victim, inner.granted.swap(0, SeqCst) / unit);
        Some(Eviction::Connection(inner.clone()))
    }
}

impl AccountState {
    /// Gives up the whole units that are not used. To be called with the budget locked; the caller releases them.
    fn spare(&self, unit: u64) -> u64 {
        let granted = self.granted.load(SeqCst);
        let needed = self.used.load(SeqCst).div_ceil(unit) * unit;
        if needed >= granted {
            return 0;
        }
        self.granted.store(needed, SeqCst);
        // A charge that was made in between looked at the old amount.
        let needed = self.used.load(SeqCst).div_ceil(unit) * unit;
        let left = needed.clamp(self.granted.load(SeqCst), granted);
        self.granted.store(left, SeqCst);
        (granted - left) / unit
    }

    fn lock_holds(&self) -> MutexGuard<'_, Holds> {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the largest hold back, of equals the oldest.
    fn take_back(&self) -> Option<Arc<Signal>> {
        let mut holds = self.lock_holds();
        let largest = holds.open.iter().filter(|(_, (amount, _))| *amount > 0);
        let (&id, _) = largest.max_by_key(|(id, (amount, _))| (*amount, std::cmp::Reverse(**id)))?;
        let (amount, signal) = holds.open.remove(&id)?;
        signal.taken.store(true, SeqCst);
        self.used.fetch_sub(amount, SeqCst);
        Some(signal)
    }
}

impl std::fmt::Debug for AccountState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccountState")
            .field("used", &self.used)
            .field("granted", &self.granted)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl Account {
    /// A connection's account. `give_way` ends the connection when it has nothing else to give.
    pub(crate) fn open(
        budget: &Arc<Budget>,
        holder: Holder<NodeId>,
        give_way: impl Fn() + Send + Sync + 'static,
    ) -> Arc<Self> {
        let inner = Arc::new(AccountState {
            holder,
            used: AtomicU64::new(0),
            granted: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            holds: Mutex::default(),
            give_way: Box::new(give_way),
        });
        budget.lock().accounts.entry(holder).or_default().push(inner.clone());
        Arc::new(Self {
            budget: budget.clone(),
            inner,
            base: AtomicU64::new(0),
        })
    }

    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }

    fn take(&self, amount: u64) -> Result<(), Exhausted> {
        let used = self.inner.used.fetch_add(amount, SeqCst) + amount;
        if used <= self.inner.granted.load(SeqCst) {
            return Ok(());
        }
        self.budget.draw(&self.inner).inspect_err(|Exhausted| {
            self.inner.used.fetch_sub(amount, SeqCst);
        })
    }

    fn give(&self, amount: u64) {
        let used = self.inner.used.fetch_sub(amount, SeqCst) - amount;
        let spare = self.inner.granted.load(SeqCst).saturating_sub(used);
        if spare >= self.budget.spare {
            self.budget.reclaim(&self.inner);
        }
    }

    /// Charges an amount until the guard is dropped.
    pub(crate) fn charge(self: &Arc<Self>, amount: u64) -> Result<Charge, Exhausted> {
        self.take(amount)?;
        Ok(Charge {
            account: self.clone(),
            amount,
        })
    }

    /// Charges a small amount even where there is no room, for things that exist already. Then the account [is short](Self::is_short).
    pub(crate) fn force(self: &Arc<Self>, amount: u64) -> Charge {
        self.use_more(amount);
        Charge {
            account: self.clone(),
            amount,
        }
    }

    /// Charges the connection's own amount, once, until the account is closed; as [`Account::force`].
    pub(crate) fn set_base(&self, amount: u64) {
        self.base.store(amount, SeqCst);
        self.use_more(amount);
    }

    fn use_more(&self, amount: u64) {
        let used = self.inner.used.fetch_add(amount, SeqCst) + amount;
        if used > self.inner.granted.load(SeqCst) {
            // Without room it uses more than it has, and takes nothing new until that is given back.
            let _ = self.budget.draw(&self.inner);
        }
    }

    /// Whether it uses more than it has: nothing new should begin.
    pub(crate) fn is_short(&self) -> bool {
        let seems_short = self.inner.used.load(SeqCst) > self.inner.granted.load(SeqCst);
        // A charge that another thread makes at this moment looks the same until it is drawn.
        seems_short && self.budget.draw(&self.inner).is_err()
    }

    /// A hold of nothing yet, which grows.
    pub(crate) fn hold(self: &Arc<Self>) -> Hold {
        self.hold_of(0)
    }

    /// A hold of an amount that is charged already.
    fn hold_of(self: &Arc<Self>, amount: u64) -> Hold {
        let signal = Arc::new(Signal::default());
        let mut holds = self.inner.lock_holds();
        holds.next += 1;
        let id = holds.next;
        holds.open.insert(id, (amount, signal.clone()));
        drop(holds);
        Hold {
            account: self.clone(),
            id,
            amount,
            signal,
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let (inner, unit) = (&self.inner, self.budget.unit);
        let mut state = self.budget.lock();
        state
            .shares
            .release(&inner.holder, inner.granted.swap(0, SeqCst) / unit);
        if let Some(accounts) = state.accounts.get_mut(&inner.holder) {
            accounts.retain(|it| !Arc::ptr_eq(it, inner));
            if accounts.is_empty() {
                state.accounts.remove(&inner.holder);
            }
        }
        debug_assert_eq!(
            inner.used.load(SeqCst),
            self.base.load(SeqCst),
            "guards keep their account"
        );
    }
}

/// An amount that is charged until this is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    account: Arc<Account>,
    amount: u64,
}

impl Charge {
    /// The same amount, which may be taken back from now on.
    pub(crate) fn into_hold(mut self) -> Hold {
        let amount = std::mem::take(&mut self.amount);
        self.account.hold_of(amount)
    }

    /// Charges more.
    pub(crate) fn grow(&mut self, amount: u64) -> Result<(), Exhausted> {
        self.account.take(amount)?;
        self.amount += amount;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if self.amount > 0 {
            self.account.give(self.amount);
        }
    }
}

impl Signal {
    fn tell(&self) {
        self.told.notify_waiters();
    }
}

/// An amount that may be taken back.
#[derive(Debug)]
pub(crate) struct Hold {
    account: Arc<Account>,
    id: u64,
    amount: u64,
    signal: Arc<Signal>,
}

impl Hold {
    /// Changes the amount.
    ///
    /// # Errors
    /// When there is no room for more, or the hold was taken back.
    pub(crate) fn set(&mut self, amount: u64) -> Result<(), Exhausted> {
        if self.is_taken() {
            return Err(Exhausted);
        }
        if amount == self.amount {
            return Ok(());
        }
        let more = amount.saturating_sub(self.amount);
        if more > 0 {
            self.account.take(more)?;
        }
        let less = {
            let mut holds = self.account.inner.lock_holds();
            match holds.open.get_mut(&self.id) {
                Some((held, _)) => {
                    *held = amount;
                    self.amount.saturating_sub(amount)
                }
                None => more,
            }
        };
        if less > 0 {
            self.account.give(less);
        }
        if self.is_taken() {
            return Err(Exhausted);
        }
        self.amount = amount;
        Ok(())
    }

    fn is_taken(&self) -> bool {
        self.signal.taken.load(SeqCst)
    }

    /// Waits until the hold is taken back. Independent of the hold, so that this may change it meanwhile.
    pub(crate) fn taken_back(&self) -> impl Future<Output = ()> + Send + 'static {
        let signal = self.signal.clone();
        async move {
            // In this order: a notification after the look wakes this.
            let told = signal.told.notified();
            if !signal.taken.load(SeqCst) {
                told.await;
            }
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let held = self.account.inner.lock_holds().open.remove(&self.id);
        // One that was taken back is free already.
        if let Some((amount, _)) = held.filter(|(amount, _)| *amount > 0) {
            self.account.give(amount);
        }
    }
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod tests;
