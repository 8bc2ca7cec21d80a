//! The judgement of silence, held to its laws and to a reference that decides from the whole history.

use proptest::prelude::*;

use super::*;
use crate::connection::pulse::MAX_ACK_DELAY;

const RULES: SuspicionRules = SuspicionRules {
    after_ptos: 3,
    after: Duration::from_millis(100),
    ping_after: Duration::from_millis(50),
    ping_at_most: Duration::from_millis(500),
    late: Duration::from_millis(20),
    hint_pause: Duration::from_millis(250),
};

const PTO: Duration = Duration::from_millis(27);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A peer and the time.
struct World {
    start: Instant,
    now: Instant,
    sight: Sight,
    core: Suspicion,
}

impl World {
    fn new(pto: Duration) -> Self {
        let start = Instant::now();
        Self {
            start,
            now: start,
            sight: Sight {
                heard: 0,
                progress: 0,
                eliciting: 0,
                unanswered: None,
                pto,
                prompt_pto: pto.saturating_sub(MAX_ACK_DELAY),
                waiting: true,
            },
            core: Suspicion::new(RULES),
        }
    }

    fn sends(&mut self) {
        self.sight.eliciting += 1;
        self.acknowledges();
    }

    /// Sends nothing but an acknowledgement.
    fn acknowledges(&mut self) {
        self.sight.unanswered.get_or_insert(Unacknowledged {
            since: self.now,
            certain: false,
        });
    }

    fn hears(&mut self) {
        self.sight.heard += 1;
        self.sight.unanswered = None;
    }

    fn look(&mut self) -> Finding {
        let finding = self.core.look(self.now, &self.sight);
        if finding == Finding::Ping {
            self.sends();
        }
        finding
    }

    /// Looks when it is due, until something is found; when, and what.
    fn next(&mut self) -> (Duration, Finding) {
        loop {
            self.now = self.core.poll_timeout().unwrap();
            match self.look() {
                Finding::Nothing => {}
                finding => return (self.now - self.start, finding),
            }
        }
    }
}

#[test]
fn l2_a_silent_peer_is_pinged_after_a_pto_and_suspected_after_three() {
    for (pto, suspected) in [(PTO, ms(100)), (ms(67), ms(201))] {
        let mut world = World::new(pto);
        world.sends();
        assert_eq!(world.look(), Finding::Nothing);
        assert_eq!(world.next(), (pto, Finding::Ping));
        let mut pings = 1;
        let (at, finding) = loop {
            match world.next() {
                (_, Finding::Ping) => pings += 1,
                found => break found,
            }
        };
        assert_eq!((at, finding, pings), (suspected, Finding::Suspect, MAX_PINGS));
    }
}

#[test]
fn l2_a_peer_that_owes_nothing_is_pinged_before_its_silence_counts() {
    let mut world = World::new(PTO);
    world.look();
    assert_eq!(world.next(), (ms(50), Finding::Ping));
    let (at, finding) = loop {
        match world.next() {
            (_, Finding::Ping) => {}
            found => break found,
        }
    };
    assert_eq!((at, finding), (ms(150), Finding::Suspect));
    assert!(at < 5 * PTO + ms(100), "L6");
}

/// This side has sent an acknowledgement, which asks for none. A request that follows later is not as old.
#[test]
fn l1_silence_before_anything_was_owed_is_no_silence() {
    let mut world = World::new(PTO);
    world.look();
    world.now += ms(25);
    world.acknowledges();
    world.now += ms(20);
    let sent = world.now;
    world.sends();
    let (pinged, finding) = world.next();
    assert_eq!(finding, Finding::Ping);
    assert!(world.start + pinged >= sent + PTO, "{pinged:?}");
    while world.next().1 != Finding::Suspect {}
    assert!(world.now - sent >= ms(100), "{:?}", world.now - sent);
}

#[test]
fn l1_a_handler_that_takes_its_time_is_no_silence() {
    let mut world = World::new(PTO);
    world.sends();
    world.look();
    let mut pings = 0;
    while world.now < world.start + ms(60_000) {
        world.now = world.core.poll_timeout().unwrap();
        // The peer acknowledges each ping in its time.
        match world.look() {
            Finding::Ping => {
                pings += 1;
                world.now += ms(26);
                world.hears();
                assert_eq!(world.look(), Finding::Nothing);
                // This side acknowledges what came with it.
                world.now += ms(25);
                world.acknowledges();
            }
            Finding::Nothing => {}
            finding => panic!("{finding:?}"),
        }
    }
    assert!((200..300).contains(&pings), "{pings} pings in a minute");
}

#[test]
fn l3_one_datagram_clears_and_until_then_the_peer_is_asked() {
    let mut world = World::new(PTO);
    world.sends();
    world.look();
    while world.next().1 != Finding::Suspect {}
    world.sight.waiting = false;
    assert_eq!(world.look(), Finding::Nothing);
    assert!(world.core.is_suspected(), "the end of the call is no sign of life");
    let mut last = world.now;
    for pause in [27, 54, 108, 216, 432, 500, 500] {
        assert_eq!(world.next().1, Finding::Ping);
        assert_eq!(world.now - last, ms(pause));
        last = world.now;
    }
    world.hears();
    assert_eq!(world.look(), Finding::Clear);
    assert!(!world.core.is_suspected());
    assert_eq!(world.core.poll_timeout(), None);
}

#[test]
fn l2_a_process_that_stood_still_asks_anew_before_it_suspects() {
    let mut world = World::new(PTO);
    world.sends();
    world.look();
    world.now += ms(10_000);
    assert_eq!(world.look(), Finding::Ping);
    let woken = world.now;
    while world.next().1 != Finding::Suspect {}
    assert_eq!(world.now - woken, ms(100), "it is excused once");
}

#[test]
fn l4_a_hint_asks_twice_at_once_and_silence_confirms_it() {
    let mut world = World::new(PTO);
    world.sends();
    world.look();
    world.now += ms(1);
    world.core.hint(world.now, &world.sight.clone());
    assert_eq!(world.next(), (ms(1), Finding::Ping));
    assert_eq!(world.next(), (ms(2), Finding::Ping));
    assert_eq!(world.next(), (ms(2) + HINT_SILENCE, Finding::Suspect));
}

/// A pause of this process that is as long as the silence after a hint may be.
#[test]
fn l4_a_process_that_stood_still_after_a_hint_asks_anew() {
    let mut world = World::new(PTO);
    world.sends();
    world.look();
    world.core.hint(world.now, &world.sight.clone());
    assert_eq!((world.look(), world.next().1), (Finding::Ping, Finding::Ping));
    world.now += HINT_SILENCE + HINT_SILENCE / 2;
    assert_eq!(world.look(), Finding::Ping);
    let woken = world.now;
    assert_eq!(world.next().1, Finding::Ping);
    assert_eq!(world.next().1, Finding::Suspect);
    assert_eq!(world.now - woken, HINT_PING_AGAIN + HINT_SILENCE);
}

#[test]
fn l4_a_flood_of_forged_hints_costs_few_pings_and_no_suspicion() {
    for waiting in [false, true] {
        let mut world = World::new(PTO);
        world.sight.waiting = waiting;
        world.look();
        let mut pings = 0;
        for _ in 0..10_000 {
            world.now += ms(1);
            world.core.hint(world.now, &world.sight.clone());
            match world.look() {
                Finding::Ping => {
                    pings += 1;
                    world.hears();
                }
                Finding::Nothing => {}
                finding => panic!("{finding:?}"),
            }
        }
        // One for each pause, and those of a call that waits.
        let most = 10_000 / 250 + if waiting { 10_000 / 50 } else { 0 };
        assert!(pings <= most, "{pings}");
    }
}

#[derive(Debug, Clone, Copy)]
struct Step {
    /// Milliseconds until the look; `None` looks when it is due.
    advance: Option<u64>,
    hears: bool,
    sends: bool,
    acknowledges: bool,
    waits: bool,
    hint: bool,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (
        prop_oneof![3 => Just(None), 1 => (0..60_u64).prop_map(Some)],
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.3),
        prop::bool::weighted(0.3),
        prop::bool::weighted(0.9),
        prop::bool::weighted(0.05),
    );
    let step = step.prop_map(|(advance, hears, sends, acknowledges, waits, hint)| Step {
        advance,
        hears,
        sends,
        acknowledges,
        waits,
        hint,
    });
    prop::collection::vec(step, 1..200)
}

/// Everything that happened, and the decision from it.
#[derive(Default)]
struct Reference {
    heard_at: Option<Instant>,
    /// When this side first sent something since then that asks for an acknowledgement.
    asked_at: Option<Instant>,
    hints: Vec<Instant>,
    pings: Vec<Instant>,
    suspected: bool,
}

impl Reference {
    /// Whether the rules allow to suspect the peer now.
    fn may_suspect(&self, now: Instant, sight: &Sight) -> bool {
        let since = |at: Instant| self.heard_at.is_none_or(|heard| at >= heard);
        let unanswered = |for_so_long: Duration| {
            let pings = self.pings.iter();
            pings.filter(|&&at| since(at) && now >= at + for_so_long).count()
        };
        let owed_for = self.asked_at.map_or(Duration::ZERO, |at| now - at);
        let silent = (RULES.after_ptos * sight.pto).max(RULES.after);
        let prompt = sight.prompt_pto.max(HINT_SILENCE);
        let by_silence = owed_for >= silent && unanswered(sight.pto) > 0;
        let by_hint = owed_for >= prompt && unanswered(prompt) > 1 && self.hints.iter().any(|&at| since(at));
        by_silence || by_hint
    }
}

proptest! {
    #[test]
    fn l2_l3_l4_suspicion_keeps_to_its_rules(steps in steps(), pto in prop_oneof![Just(27), Just(61), Just(250)]) {
        let mut world = World::new(ms(pto));
        let mut reference = Reference::default();
        let mut pings_in_silence = 0;
        for step in steps {
            let due = world.core.poll_timeout();
            world.now = match (step.advance, due) {
                (None, Some(due)) => due,
                (advance, _) => world.now + ms(advance.unwrap_or(1)),
            };
            world.sight.waiting = step.waits;
            if step.acknowledges {
                world.acknowledges();
            }
            if step.sends {
                world.sends();
                reference.asked_at.get_or_insert(world.now);
            }
            if step.hears {
                world.hears();
                (reference.heard_at, reference.asked_at) = (Some(world.now), None);
                pings_in_silence = 0;
            }
            if step.hint {
                world.core.hint(world.now, &world.sight.clone());
                reference.hints.push(world.now);
            }
            match world.look() {
                Finding::Nothing => {}
                Finding::Ping => {
                    prop_assert!(step.waits || pings_in_silence > 0 || reference.suspected || !reference.hints.is_empty());
                    reference.pings.push(world.now);
                    reference.asked_at.get_or_insert(world.now);
                    pings_in_silence += u32::from(!reference.suspected);
                    // A silence may be let begin again once, and by each hint.
                    prop_assert!(pings_in_silence <= 2 * MAX_PINGS + MAX_HINT_PINGS * (reference.hints.len() as u32));
                }
                Finding::Suspect => {
                    prop_assert!(!step.hears && !reference.suspected);
                    prop_assert!(reference.may_suspect(world.now, &world.sight));
                    reference.suspected = true;
                }
                Finding::Clear => {
                    prop_assert!(step.hears && reference.suspected);
                    reference.suspected = false;
                }
            }
            if step.hears {
                reference.suspected = false;
            }
            prop_assert_eq!(world.core.is_suspected(), reference.suspected);
            prop_assert!(world.core.poll_timeout().is_none_or(|at| at > world.now), "a look leaves nothing due");
            prop_assert!(step.waits || reference.suspected || pings_in_silence > 0 || !reference.hints.is_empty()
                || world.core.poll_timeout().is_none(), "nothing is done while no call waits");
        }
    }

    /// However the silence begins, and whatever this side sends meanwhile.
    #[test]
    fn l6_a_peer_that_is_gone_is_suspected_within_five_pto_and_100_ms(
        talk in prop::collection::vec((0..80_u64, any::<bool>()), 0..30),
        sends in prop::collection::vec(any::<bool>(), 100),
        pto in 26..400_u64,
    ) {
        let mut world = World::new(ms(pto));
        world.look();
        for (advance, hears) in talk {
            let target = world.now + ms(advance);
            while let Some(due) = world.core.poll_timeout().filter(|&due| due <= target) {
                world.now = due;
                world.look();
            }
            world.now = target;
            if hears {
                world.hears();
            } else {
                world.sends();
            }
        }
        // The last datagram came just now, seen or not.
        world.hears();
        let gone = world.now;
        let mut sends = sends.into_iter();
        while !world.core.is_suspected() {
            world.now = world.core.poll_timeout().unwrap().max(world.now);
            world.look();
            if sends.next().unwrap_or_default() {
                world.sends();
            }
            prop_assert!(world.now - gone < 5 * ms(pto) + ms(100), "{:?}", world.now - gone);
        }
    }
}
