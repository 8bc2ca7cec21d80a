//! What selection costs, side by side with tower's p2c balancer and a plain random vector.
//!
//! `cargo xtask bench select`

#![allow(missing_docs, reason = "criterion's macros generate undocumented functions")]

mod tower_p2c;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use macula_select::{
    Balancer, BalancerConfig, Call, CallOptions, Fate, FirstAttempt, Lease, Output, PickContext, Provider, Strategy,
};

const SIZES: [u32; 3] = [3, 100, 10_000];

fn balancer(now: Instant, strategy: Strategy, providers: u32) -> Balancer<u64> {
    let mut balancer = Balancer::new(
        BalancerConfig {
            strategy,
            ..BalancerConfig::default()
        },
        1,
    );
    balancer.update(
        now,
        (0..u64::from(providers)).map(|key| Provider::new(key).weight(1 + key as u32 % 4)),
    );
    balancer
}

/// A clock that costs an addition: reading the real one costs more than a pick.
struct Ticks(Instant);

impl Ticks {
    fn next(&mut self) -> Instant {
        self.0 += Duration::from_nanos(100);
        self.0
    }
}

/// A balancer at work: every provider measured, some calls in flight.
fn warm(strategy: Strategy, providers: u32) -> (Balancer<u64>, Ticks, Vec<Lease>) {
    let mut clock = Ticks(Instant::now());
    let mut balancer = balancer(clock.next(), strategy, providers);
    for _ in 0..providers * 4 {
        let lease = pick(&mut balancer, &mut clock);
        let now = clock.next() + Duration::from_micros(500);
        balancer.report(now, lease, Fate::Ok).expect("this balancer issued it");
    }
    let in_flight = (0..providers.min(64))
        .map(|_| pick(&mut balancer, &mut clock))
        .collect();
    (balancer, clock, in_flight)
}

fn pick(balancer: &mut Balancer<u64>, clock: &mut Ticks) -> Lease {
    balancer
        .pick(clock.next(), &PickContext::default())
        .expect("there are providers")
}

/// A pick alone: leases are kept until the batch is over, and returned outside the measured time.
fn picks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pick");
    for strategy in Strategy::ALL {
        for providers in SIZES {
            let context = PickContext {
                affinity: Some(7),
                ..PickContext::default()
            };
            group.bench_function(BenchmarkId::new(strategy.name(), providers), |bencher| {
                let (mut balancer, mut clock, _in_flight) = warm(strategy, providers);
                let mut leases = Vec::with_capacity(1024);
                bencher.iter_custom(|iterations| {
                    let mut spent = Duration::ZERO;
                    let mut left = iterations;
                    while left > 0 {
                        let batch = left.min(1024);
                        let times: Vec<Instant> = (0..batch).map(|_| clock.next()).collect();
                        let begin = Instant::now();
                        for now in &times {
                            leases.push(balancer.pick(*now, &context).expect("there are providers"));
                        }
                        spent += begin.elapsed();
                        for lease in leases.drain(..) {
                            balancer
                                .report(clock.next(), lease, Fate::Ok)
                                .expect("this balancer issued it");
                        }
                        left -= batch;
                    }
                    spent
                });
            });
        }
    }
    group.finish();
}

/// A pick and its report, beside what others do for one request.
fn picks_and_reports(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pick_and_report");
    for providers in SIZES {
        for strategy in [Strategy::Random, Strategy::PeakEwma, Strategy::LeastLoaded] {
            group.bench_function(BenchmarkId::new(strategy.name(), providers), |bencher| {
                let (mut balancer, mut clock, _in_flight) = warm(strategy, providers);
                bencher.iter(|| {
                    let lease = pick(&mut balancer, &mut clock);
                    balancer
                        .report(clock.next(), lease, Fate::Ok)
                        .expect("this balancer issued it");
                });
            });
        }
        group.bench_function(BenchmarkId::new("plain_random_vector", providers), |bencher| {
            let keys: Vec<u64> = (0..u64::from(providers)).collect();
            let mut state = 1u64;
            bencher.iter(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                black_box(keys[(((state >> 32) * keys.len() as u64) >> 32) as usize])
            });
        });
        group.bench_function(BenchmarkId::new("tower_p2c_peak_ewma", providers), |bencher| {
            tower_p2c::peak_ewma(providers, |balance| bencher.iter(|| tower_p2c::request(balance)));
        });
        group.bench_function(BenchmarkId::new("tower_p2c_pending", providers), |bencher| {
            tower_p2c::pending(providers, |balance| bencher.iter(|| tower_p2c::request(balance)));
        });
    }
    group.finish();
}

/// A report alone, by fate.
fn reports(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("report");
    for (name, fate) in [
        ("ok", Fate::Ok),
        ("cancelled", Fate::Cancelled),
        ("not_sent", Fate::NotSent),
    ] {
        group.bench_function(BenchmarkId::new(name, 100), |bencher| {
            let (mut balancer, mut clock, _in_flight) = warm(Strategy::PeakEwma, 100);
            let mut leases = Vec::with_capacity(1024);
            bencher.iter_custom(|iterations| {
                let mut spent = Duration::ZERO;
                let mut left = iterations;
                while left > 0 {
                    let batch = left.min(1024);
                    for _ in 0..batch {
                        leases.push(pick(&mut balancer, &mut clock));
                    }
                    let begin = Instant::now();
                    for lease in leases.drain(..) {
                        balancer
                            .report(clock.next(), lease, fate)
                            .expect("this balancer issued it");
                    }
                    spent += begin.elapsed();
                    while balancer.poll_event().is_some() {}
                    left -= batch;
                }
                spent
            });
        });
    }
    group.finish();
}

/// A whole call that succeeds at once: dispatched, waited for, answered, done.
fn calls(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("call");
    for strategy in [Strategy::Random, Strategy::PeakEwma] {
        for providers in SIZES {
            group.bench_function(BenchmarkId::new(strategy.name(), providers), |bencher| {
                let (mut balancer, mut clock, _in_flight) = warm(strategy, providers);
                bencher.iter(|| {
                    let mut call = Call::new(clock.next(), CallOptions::default());
                    let Output::Dispatch { attempt, .. } = call.poll(clock.0, &mut balancer) else {
                        unreachable!("there are providers");
                    };
                    let Output::Wait(_) = call.poll(clock.0, &mut balancer) else {
                        unreachable!("an attempt is in flight");
                    };
                    call.on_result(clock.next(), &mut balancer, attempt, Fate::Ok);
                    let Output::Done(Ok(success)) = call.poll(clock.0, &mut balancer) else {
                        unreachable!("it was answered");
                    };
                    black_box(success.attempt)
                });
            });
        }
    }
    group.finish();
}

/// The same call by its first attempt alone.
fn first_attempts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("first_attempt");
    for strategy in [Strategy::Random, Strategy::PeakEwma] {
        for providers in SIZES {
            group.bench_function(BenchmarkId::new(strategy.name(), providers), |bencher| {
                let (mut balancer, mut clock, _in_flight) = warm(strategy, providers);
                let options = CallOptions::default();
                bencher.iter(|| {
                    let now = clock.next();
                    let first = FirstAttempt::start(now, now, &mut balancer, &options).expect("there are providers");
                    let to = black_box(*first.to());
                    first.succeed(clock.next(), &mut balancer);
                    to
                });
            });
        }
    }
    group.finish();
}

/// Updates of ten thousand providers: all new, all known, one exchanged.
fn updates(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("update_10000");
    group.sample_size(20);
    let all = || (0..10_000u64).map(Provider::new);
    group.bench_function("all_new", |bencher| {
        let now = Instant::now();
        bencher.iter_with_large_drop(|| {
            let mut balancer = Balancer::new(BalancerConfig::default(), 1);
            balancer.update(now, all());
            balancer
        });
    });
    group.bench_function("all_known", |bencher| {
        let mut clock = Ticks(Instant::now());
        let mut balancer = balancer(clock.next(), Strategy::Random, 10_000);
        bencher.iter(|| balancer.update(clock.next(), all()));
    });
    group.bench_function("one_exchanged", |bencher| {
        let mut clock = Ticks(Instant::now());
        let mut balancer = balancer(clock.next(), Strategy::Random, 10_000);
        let mut stranger = 10_000;
        bencher.iter(|| {
            stranger += 1;
            balancer.update(clock.next(), all().skip(1).chain([Provider::new(stranger)]))
        });
    });
    group.finish();
}

criterion_group! {
    name = select;
    // Many short samples: their median is that of an undisturbed machine even when others work on it.
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(300))
        .sample_size(200);
    targets = picks, picks_and_reports, reports, calls, first_attempts, updates
}
criterion_main!(select);
