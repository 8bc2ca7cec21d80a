//! What the caller tells the balancer about one provider.

use crate::identity;

/// The largest weight; larger ones are clamped to it.
pub const MAX_WEIGHT: u32 = u16::MAX as u32;

/// The largest number of providers in one balancer; [`crate::Balancer::update`] reports what it left out.
pub const MAX_PROVIDERS: usize = 65_536;

/// Where a provider stands: a zone, region, rack; whatever is worth staying inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Zone(u64);

impl Zone {
    /// The zone with this number.
    #[must_use]
    pub const fn new(id: u64) -> Self {
        Self(id)
    }

    /// The zone with this name, as 64 bits of a stable hash.
    ///
    /// ```
    /// use macula_select::Zone;
    /// assert_eq!(Zone::named("eu-west-1a"), Zone::named("eu-west-1a"));
    /// assert_ne!(Zone::named("eu-west-1a"), Zone::named("eu-west-1b"));
    /// ```
    #[must_use]
    pub const fn named(name: &str) -> Self {
        Self(identity::of_name(name))
    }
}

/// One provider of a service, as [`crate::Balancer::update`] takes it.
///
/// ```
/// use macula_select::{Provider, Zone};
/// let provider = Provider::new("10.0.0.7:9443").weight(4).zone(Zone::named("a"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider<K> {
    pub(crate) key: K,
    pub(crate) weight: u32,
    pub(crate) zone: Option<Zone>,
}

impl<K> Provider<K> {
    /// A provider of weight 1 in no particular zone.
    ///
    /// The key is its identity: one provider, one key, from update to update.
    #[must_use]
    pub fn new(key: K) -> Self {
        Self {
            key,
            weight: 1,
            zone: None,
        }
    }

    /// Its share relative to the others, clamped to `1..=`[`MAX_WEIGHT`].
    ///
    /// To send a provider nothing, leave it out of the update or tell [`crate::Link::Draining`].
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight.clamp(1, MAX_WEIGHT);
        self
    }

    /// The zone it stands in.
    #[must_use]
    pub fn zone(mut self, zone: impl Into<Option<Zone>>) -> Self {
        self.zone = zone.into();
        self
    }
}

/// The way to a provider, told with [`crate::Balancer::link`]. The names are those of gRPC's connectivity states where there is
/// one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Link {
    /// No connection is open, and a dial is expected to work: the state of every new provider.
    #[default]
    Idle,
    /// A connection is open and the peer is heard.
    Up,
    /// A connection is open, something was sent on it, and the peer has been silent for too long (L2). Other providers
    /// are preferred; the provider's health does not change.
    Suspected,
    /// The provider was found unreachable: a dial failed, or its connection was lost. It leaves the choice until a dial
    /// succeeds ([`crate::Balancer::poll_dial`]), whatever share of the set is down.
    Down,
    /// The provider says that it is going away. It is never picked.
    Draining,
}

impl Link {
    /// Its name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Up => "up",
            Self::Suspected => "suspected",
            Self::Down => "down",
            Self::Draining => "draining",
        }
    }
}
