//! Axes: from the values on them to a range, ticks and labels.
//!
//! Linear ticks stand at 1, 2 or 5 times a power of ten; logarithmic ones at powers of ten, with 2 and 5 between them
//! when the range is short.

/// About how many intervals a linear axis is cut into.
const INTERVALS: f64 = 6.0;
/// More decades than this are labelled every second, third, … one.
const MAX_DECADES: i32 = 8;

/// A labelled place on an axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tick {
    pub(super) value: f64,
    pub(super) label: String,
}

/// How far an axis reaches beyond its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// From the least value to the largest.
    Tight,
    /// To the next tick outside, as [`Reach::Zero`] only when zero is no further away than the values are apart: what
    /// varies little among large numbers would else be a flat line.
    Ticks,
    /// To the next tick outside, zero included when linear: bars stand on it.
    Zero,
}

#[derive(Debug)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    log: bool,
    pub(super) ticks: Vec<Tick>,
}

impl Axis {
    /// The axis for `values`; on a logarithmic one those at or below zero have no place and do not count.
    pub(super) fn fit(values: impl Iterator<Item = f64>, log: bool, reach: Reach) -> Self {
        let range = values.filter(|value| value.is_finite() && (!log || *value > 0.0)).fold(
            None,
            |range: Option<(f64, f64)>, value| match range {
                Some((low, high)) => Some((low.min(value), high.max(value))),
                None => Some((value, value)),
            },
        );
        if log {
            Axis::logarithmic(range, reach)
        } else {
            Axis::linear(range, reach)
        }
    }

    /// Where `value` stands between the ends, from 0 to 1; `None` when it has no place here.
    pub(super) fn place(&self, value: f64) -> Option<f64> {
        let (low, high, value) = if self.log {
            (self.low.log10(), self.high.log10(), value.log10())
        } else {
            (self.low, self.high, value)
        };
        value
            .is_finite()
            .then(|| ((value - low) / (high - low)).clamp(0.0, 1.0))
    }

    /// Where a bar stands on: zero, or the lower end of a logarithmic axis.
    pub(super) fn base(&self) -> f64 {
        if self.log {
            self.low
        } else {
            0.0_f64.clamp(self.low, self.high)
        }
    }

    fn linear(range: Option<(f64, f64)>, reach: Reach) -> Self {
        let (mut low, mut high) = range.unwrap_or((0.0, 1.0));
        let apart = high - low;
        let near_zero = low.abs().min(high.abs()) <= apart || apart == 0.0;
        if reach == Reach::Zero || (reach == Reach::Ticks && near_zero) {
            low = low.min(0.0);
            high = high.max(0.0);
        }
        if low == high {
            let room = if low == 0.0 { 1.0 } else { low.abs() / 2.0 };
            (low, high) = (low - room, high + room);
            if reach != Reach::Tight {
                low = low.max(0.0);
            }
        }
        let step = nice_step((high - low) / INTERVALS);
        if reach != Reach::Tight {
            (low, high) = ((low / step).floor() * step, (high / step).ceil() * step);
        }
        let label = Labels::new(low.abs().max(high.abs()), step);
        let first = (low / step - 1e-9).ceil();
        let count = (high / step + 1e-9).floor() - first;
        let ticks = (0..=count as u32).map(|at| {
            let value = (first + f64::from(at)) * step;
            let label = label.show(value);
            Tick { value, label }
        });
        Axis {
            ticks: ticks.collect(),
            low,
            high,
            log: false,
        }
    }

    fn logarithmic(range: Option<(f64, f64)>, reach: Reach) -> Self {
        let (mut low, mut high) = range.unwrap_or((1.0, 10.0));
        let (mut first, mut last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
        if first == last {
            last += 1;
        }
        if reach != Reach::Tight || low == high {
            (low, high) = (10_f64.powi(first), 10_f64.powi(last));
        }
        first -= 1;
        last += 1;
        let stride = (last - first - 2).div_euclid(MAX_DECADES) + 1;
        let within: &[f64] = if last - first - 2 <= 2 {
            &[1.0, 2.0, 5.0]
        } else {
            &[1.0]
        };
        let decades = (first..=last).filter(|decade| decade % stride == 0);
        let values = decades.flat_map(|decade| within.iter().map(move |it| it * 10_f64.powi(decade)));
        let ticks = values
            .filter(|it| (low * 0.999..=high * 1.001).contains(it))
            .map(|value| Tick {
                value,
                label: Labels::alone(value).show(value),
            });
        Axis {
            ticks: ticks.collect(),
            low,
            high,
            log: true,
        }
    }
}

/// The least of 1, 2, 5 times a power of ten that is not below `raw`.
fn nice_step(raw: f64) -> f64 {
    let power = 10_f64.powf(raw.log10().floor());
    let nice = [1.0, 2.0, 5.0].into_iter().find(|it| it * power >= raw * 0.999_999);
    nice.unwrap_or(10.0) * power
}

/// How the numbers of one axis are written: one unit, one number of decimals.
struct Labels {
    unit: f64,
    suffix: &'static str,
    decimals: usize,
}

impl Labels {
    /// For evenly spaced numbers up to `largest`.
    fn new(largest: f64, step: f64) -> Self {
        Labels::with([(1e10, 1e9, "G"), (1e7, 1e6, "M"), (1e4, 1e3, "k")], largest, step)
    }

    /// For one power of ten among others.
    fn alone(value: f64) -> Self {
        Labels::with([(1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")], value, value)
    }

    fn with(units: [(f64, f64, &'static str); 3], largest: f64, step: f64) -> Self {
        let fits = units.into_iter().find(|(from, _, _)| largest >= *from * 0.999);
        let (unit, suffix) = fits.map_or((1.0, ""), |(_, unit, suffix)| (unit, suffix));
        let decimals = (-(step / unit).log10() - 1e-9).ceil().max(0.0);
        Labels {
            unit,
            suffix,
            decimals: decimals as usize,
        }
    }

    fn show(&self, value: f64) -> String {
        const MOST_DECIMALS: usize = 5;
        if value == 0.0 {
            return "0".to_owned();
        }
        if self.decimals > MOST_DECIMALS {
            return format!("{value:.0e}");
        }
        let decimals = self.decimals;
        format!("{:.decimals$}{}", value / self.unit, self.suffix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(values: &[f64], log: bool, reach: Reach) -> Vec<String> {
        let axis = Axis::fit(values.iter().copied(), log, reach);
        axis.ticks.into_iter().map(|it| it.label).collect()
    }

    #[test]
    fn linear_ticks_are_round_and_cover_the_values() {
        assert_eq!(
            labels(&[3.0, 97.0], false, Reach::Ticks),
            ["0", "20", "40", "60", "80", "100"]
        );
        assert_eq!(
            labels(&[0.1, 0.42], false, Reach::Ticks),
            ["0", "0.1", "0.2", "0.3", "0.4", "0.5"]
        );
        assert_eq!(
            labels(&[-3.0, 2.0], false, Reach::Ticks),
            ["-3", "-2", "-1", "0", "1", "2"]
        );
    }

    #[test]
    fn what_varies_little_among_large_numbers_is_not_flattened() {
        assert_eq!(labels(&[99.1, 99.9], false, Reach::Ticks)[0], "99.0");
        assert_eq!(labels(&[99.1, 99.9], false, Reach::Zero)[0], "0");
        assert_eq!(labels(&[50.0, 99.0], false, Reach::Ticks)[0], "50");
        assert_eq!(labels(&[40.0, 99.0], false, Reach::Ticks)[0], "0");
    }

    #[test]
    fn a_tight_axis_ends_at_its_values() {
        let axis = Axis::fit([3.0, 11.0].into_iter(), false, Reach::Tight);
        assert_eq!(axis.place(3.0), Some(0.0));
        assert_eq!(axis.place(11.0), Some(1.0));
        assert_eq!(
            axis.ticks.iter().map(|it| it.value).collect::<Vec<_>>(),
            [4.0, 6.0, 8.0, 10.0]
        );
    }

    #[test]
    fn large_numbers_get_a_unit_and_small_ones_an_exponent() {
        assert_eq!(labels(&[0.0, 1_000_000.0], false, Reach::Ticks)[1], "200k");
        assert_eq!(labels(&[0.0, 3e7], false, Reach::Ticks)[1], "5M");
        assert_eq!(labels(&[0.0, 3e-8], false, Reach::Ticks)[1], "5e-9");
    }

    #[test]
    fn log_ticks_are_decades_and_equally_far_apart() {
        let axis = Axis::fit([1000.0, 10_000.0, 100_000.0, 1e6].into_iter(), true, Reach::Tight);
        let shown: Vec<_> = axis.ticks.iter().map(|it| it.label.as_str()).collect();
        assert_eq!(shown, ["1000", "10k", "100k", "1M"]);
        let places: Vec<_> = axis.ticks.iter().filter_map(|it| axis.place(it.value)).collect();
        assert!((places[1] - 1.0 / 3.0).abs() < 1e-9 && (places[2] - 2.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_short_log_range_has_ticks_at_two_and_five() {
        let expected = ["1", "2", "5", "10", "20", "50", "100"];
        assert_eq!(labels(&[2.0, 60.0], true, Reach::Ticks), expected);
        assert_eq!(
            labels(&[0.002, 0.004], true, Reach::Ticks),
            ["0.001", "0.002", "0.005", "0.01"]
        );
    }

    #[test]
    fn a_long_log_range_skips_decades() {
        let shown = labels(&[1e-9, 1e9], true, Reach::Ticks);
        assert!(shown.len() <= 9, "{shown:?}");
    }

    #[test]
    fn zero_has_no_place_on_a_log_axis() {
        let axis = Axis::fit([0.0, 1.0, 10.0].into_iter(), true, Reach::Ticks);
        assert_eq!(axis.place(0.0), None);
        assert_eq!(axis.place(-1.0), None);
        assert_eq!(axis.place(1.0), Some(0.0));
    }

    #[test]
    fn one_value_or_none_still_makes_an_axis() {
        for log in [false, true] {
            for values in [&[][..], &[5.0][..], &[0.0][..]] {
                for reach in [Reach::Tight, Reach::Ticks, Reach::Zero] {
                    let axis = Axis::fit(values.iter().copied(), log, reach);
                    assert!(axis.low < axis.high, "{axis:?}");
                    assert!(!axis.ticks.is_empty(), "{axis:?}");
                }
            }
        }
    }
}
