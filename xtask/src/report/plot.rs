//! One plot as an SVG file: lines with markers, axes, a grid and a legend.

use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;
use serde::Deserialize;

const SIZE: (u32, u32) = (900, 540);

/// Lines over a common pair of axes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plot {
    /// The file's stem: letters, digits, `-`, `_`.
    pub(crate) name: String,
    title: String,
    x_label: String,
    y_label: String,
    #[serde(default)]
    x_log: bool,
    #[serde(default)]
    y_log: bool,
    series: Vec<Series>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Series {
    name: String,
    points: Vec<[f64; 2]>,
}

impl Plot {
    /// The plot as SVG, and how many points a logarithmic axis has no place for.
    ///
    /// # Errors
    ///
    /// The plot cannot be laid out.
    pub(crate) fn draw(&self) -> Result<(String, usize)> {
        let [xs, ys] = [self.range(0, self.x_log), self.range(1, self.y_log)];
        match (self.x_log, self.y_log) {
            (false, false) => self.on(xs, ys),
            (false, true) => self.on(xs, ys.log_scale()),
            (true, false) => self.on(xs.log_scale(), ys),
            (true, true) => self.on(xs.log_scale(), ys.log_scale()),
        }
    }

    fn on<X, Y>(&self, xs: X, ys: Y) -> Result<(String, usize)>
    where
        X: AsRangedCoord<Value = f64, CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>>,
        Y: AsRangedCoord<Value = f64, CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>>,
    {
        let refused = |error: DrawingAreaErrorKind<_>| anyhow!("cannot draw {}: {error}", self.name);
        let mut svg = String::new();
        let mut left_out = 0;
        {
            let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            area.fill(&WHITE).map_err(refused)?;
            let mut chart = ChartBuilder::on(&area)
                .caption(&self.title, ("sans-serif", 22))
                .margin(12)
                .x_label_area_size(44)
                .y_label_area_size(80)
                .build_cartesian_2d(xs, ys)
                .map_err(refused)?;
            let mut mesh = chart.configure_mesh();
            mesh.x_desc(&self.x_label).y_desc(&self.y_label);
            mesh.draw().map_err(refused)?;
            for (at, series) in self.series.iter().enumerate() {
                let colour = Palette99::pick(at).to_rgba();
                let placed: Vec<_> = series.points.iter().filter(|it| self.has_place(it)).collect();
                left_out += series.points.len() - placed.len();
                let line = LineSeries::new(placed.iter().map(|it| (it[0], it[1])), colour.stroke_width(2));
                chart
                    .draw_series(line.point_size(2))
                    .map_err(refused)?
                    .label(&series.name)
                    .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
            }
            let mut legend = chart.configure_series_labels();
            legend.background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3));
            legend.draw().map_err(refused)?;
            area.present().map_err(refused)?;
        }
        Ok((svg, left_out))
    }

    fn has_place(&self, [x, y]: &[f64; 2]) -> bool {
        let has_place = |value: &f64, log: bool| value.is_finite() && (!log || *value > 0.0);
        has_place(x, self.x_log) && has_place(y, self.y_log)
    }

    /// The range of one coordinate. A linear one includes zero, and an empty one gets a width.
    fn range(&self, coordinate: usize, log: bool) -> std::ops::Range<f64> {
        let points = self.series.iter().flat_map(|it| &it.points);
        let values = points.filter(|it| self.has_place(it)).map(|it| it[coordinate]);
        let start = if log { f64::INFINITY } else { 0.0 };
        let (low, high) = values.fold((start, start.min(0.0)), |(low, high), it| (low.min(it), high.max(it)));
        match (low.is_finite(), low < high) {
            (true, true) => low..high,
            (true, false) => low..low + 1.0,
            (false, _) => 1.0..10.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(log: bool, points: &[[f64; 2]]) -> Plot {
        Plot {
            name: "p".to_owned(),
            title: "a < b".to_owned(),
            x_label: "x".to_owned(),
            y_label: "y".to_owned(),
            x_log: false,
            y_log: log,
            series: vec![Series {
                name: "one".to_owned(),
                points: points.to_vec(),
            }],
        }
    }

    #[test]
    fn a_plot_has_its_title_labels_line_and_legend() {
        let (svg, left_out) = plot(false, &[[1.0, 2.0], [3.0, 4.0]]).draw().unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for part in ["a &lt; b", "one", "<polyline"] {
            assert!(svg.contains(part), "{part} is missing");
        }
        assert_eq!(left_out, 0);
    }

    #[test]
    fn points_without_a_place_on_a_log_axis_are_counted() {
        let points = [[1.0, 0.0], [2.0, -1.0], [3.0, 5.0], [4.0, 50.0]];
        assert_eq!(plot(true, &points).draw().unwrap().1, 2);
        assert_eq!(plot(false, &points).draw().unwrap().1, 0);
    }

    #[test]
    fn ranges_hold_every_value_and_are_never_empty() {
        assert_eq!(plot(false, &[[1.0, 2.0], [3.0, -4.0]]).range(1, false), -4.0..2.0);
        assert_eq!(plot(true, &[[1.0, 2.0], [3.0, 4.0]]).range(1, true), 2.0..4.0);
        for points in [&[][..], &[[0.0, 0.0]], &[[7.0, 7.0]], &[[f64::NAN, 1.0]]] {
            for log in [false, true] {
                let plot = plot(log, points);
                let range = plot.range(1, log);
                assert!(range.start < range.end, "{range:?}");
                plot.draw().unwrap();
            }
        }
    }

    #[test]
    fn the_same_plot_gives_the_same_bytes() {
        let draw = || plot(true, &[[1.0, 2.0], [3.0, 4.0]]).draw().unwrap();
        assert_eq!(draw(), draw());
    }
}
