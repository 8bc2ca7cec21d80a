//! L5 as a law: what a retry costs when providers fall silent, and that no call is lost while at most half of them are.

mod common;

use common::{at, balancer, start};
use macula_select::{Call, CallOptions, Fate, Link, Loss, Output};
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

proptest! {
    /// Providers fall silent under the calls in flight to them. While at most half are silent, every call succeeds and
    /// no retry is charged. Beyond half, every attempt beyond the first of a call is charged, and the budget bounds them.
    #[test]
    fn l5_retries_after_silence_are_free_while_at_most_half_are_silent(
        providers in 2u32..12, silent in 1u32..12, calls in 1u64..400, lost in any::<bool>(), seed in any::<u64>(),
    ) {
        let silent = silent.min(providers);
        let mut balancer = balancer(providers);
        for key in 0..providers {
            balancer.link(start(), &key, Link::Up);
        }
        let few = silent * 2 <= providers;
        if !few {
            // All at once, so that no call falls into the time before.
            for key in 0..silent {
                balancer.link(start(), &key, Link::Suspected);
            }
        }
        let mut attempts = 0;
        for n in 0..calls {
            let options = CallOptions { affinity: Some(seed ^ n), ..CallOptions::default() };
            let mut call = Call::new(at(n), options);
            let succeeded = loop {
                match call.poll(at(n), &mut balancer) {
                    Output::Dispatch { to, attempt, .. } => {
                        attempts += 1;
                        if to >= silent {
                            call.on_result(at(n), &mut balancer, attempt, Fate::Ok);
                        } else if lost {
                            balancer.link(at(n), &to, Link::Down);
                            call.on_result(at(n), &mut balancer, attempt, Fate::Unknown(Loss::ConnectionLost));
                        } else {
                            balancer.link(at(n), &to, Link::Suspected);
                        }
                    }
                    Output::Abort { .. } | Output::Recall { .. } => {}
                    Output::Wait(_) => {
                        call.cancel(at(n), &mut balancer);
                        break false;
                    }
                    Output::Done(result) => break result.is_ok(),
                    Output::Over => break false,
                }
            };
            prop_assert!(succeeded || !few, "call {} of {}", n, calls);
        }
        let spending = balancer.stats().spending;
        if few {
            prop_assert_eq!(spending.retries, 0);
            prop_assert!(attempts <= calls + u64::from(silent), "each silent provider costs one attempt");
        } else {
            prop_assert_eq!(attempts, calls + spending.retries);
            prop_assert!(spending.retries as f64 <= 0.2 * calls as f64 + 100.0);
        }
        prop_assert_eq!(balancer.stats().in_flight(), 0);
    }
}
