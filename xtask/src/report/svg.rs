//! Plots as SVG: line and bar charts with axes, grid and legend.
//!
//! Invariant: the same plot gives the same bytes; coordinates are written to a tenth of a pixel.
//! Colours are Okabe and Ito's, told apart with any kind of colour vision; series beyond eight are dashed as well.

use std::fmt::Write as _;

use super::scale::{Axis, Reach, Tick};
use super::{Kind, Plot, Series};

const COLOURS: [&str; 8] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#b8a800",
];
const DASHES: [&str; 3] = ["", "7 4", "2 3"];

const LEFT: f64 = 84.0;
const TOP: f64 = 48.0;
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 380.0;
const BELOW: f64 = 60.0;
const LEGEND_LINE: f64 = 20.0;
/// About the width of a character of the legend.
const CHAR: f64 = 7.0;
/// A line of more points than this shows no markers.
const MAX_MARKERS: usize = 40;
/// More groups of bars than this are not all labelled.
const MAX_GROUP_LABELS: usize = 16;

/// A finished plot.
pub(super) struct Drawing {
    pub(super) svg: String,
    /// Points that a logarithmic axis has no place for.
    pub(super) left_out: usize,
}

/// Draws `plot`.
pub(super) fn draw(plot: &Plot) -> Drawing {
    let values = plot.series.iter().flat_map(|it| &it.points).map(|[_, y]| *y);
    let reach = match plot.kind {
        Kind::Line => Reach::Ticks,
        Kind::Bar => Reach::Zero,
    };
    let y = Axis::fit(values, plot.y_log, reach);
    let mut canvas = Canvas::default();
    canvas.frame(plot, &y);
    let left_out = match plot.kind {
        Kind::Line => canvas.lines(plot, &y),
        Kind::Bar => canvas.bars(plot, &y),
    };
    let svg = canvas.finish(plot);
    Drawing { svg, left_out }
}

#[derive(Default)]
struct Canvas {
    body: String,
}

#[derive(Clone, Copy)]
enum Anchor {
    Start,
    Middle,
    End,
}

impl Canvas {
    fn element(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.body, "{element}");
    }

    fn text(&mut self, (x, y): (f64, f64), anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = escape(text);
        self.element(format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#
        ));
    }

    /// Title, labels, and the horizontal grid.
    fn frame(&mut self, plot: &Plot, y: &Axis) {
        let middle = LEFT + WIDTH / 2.0;
        let title = escape(&plot.title);
        self.element(format_args!(
            r#"<text x="{middle:.1}" y="26" text-anchor="middle" font-size="16" font-weight="600">{title}</text>"#
        ));
        self.text((middle, TOP + HEIGHT + 46.0), Anchor::Middle, &plot.x_label);
        let (label, at) = (escape(&plot.y_label), TOP + HEIGHT / 2.0);
        self.element(format_args!(
            r#"<text transform="translate(20 {at:.1}) rotate(-90)" text-anchor="middle">{label}</text>"#
        ));
        for Tick { value, label } in &y.ticks {
            let Some(at) = down(y, *value) else { continue };
            let right = LEFT + WIDTH;
            self.element(format_args!(
                r##"<path d="M{LEFT:.1} {at:.1}H{right:.1}" stroke="#ddd"/>"##
            ));
            self.text((LEFT - 8.0, at + 4.0), Anchor::End, label);
        }
    }

    fn x_tick(&mut self, at: f64, label: &str) {
        let bottom = TOP + HEIGHT;
        let end = bottom + 5.0;
        self.element(format_args!(
            r##"<path d="M{at:.1} {bottom:.1}V{end:.1}" stroke="#333"/>"##
        ));
        self.text((at, bottom + 20.0), Anchor::Middle, label);
    }

    fn lines(&mut self, plot: &Plot, y: &Axis) -> usize {
        let values = plot.series.iter().flat_map(|it| &it.points).map(|[x, _]| *x);
        let x = Axis::fit(values, plot.x_log, Reach::Tight);
        for Tick { value, label } in &x.ticks {
            let Some(at) = x.place(*value).map(|it| LEFT + it * WIDTH) else {
                continue;
            };
            let bottom = TOP + HEIGHT;
            self.element(format_args!(
                r##"<path d="M{at:.1} {TOP:.1}V{bottom:.1}" stroke="#eee"/>"##
            ));
            self.x_tick(at, label);
        }
        let mut left_out = 0;
        for (at, series) in plot.series.iter().enumerate() {
            let places: Vec<(f64, f64)> = series
                .points
                .iter()
                .filter_map(|[px, py]| Some((LEFT + x.place(*px)? * WIDTH, down(y, *py)?)))
                .collect();
            left_out += series.points.len() - places.len();
            self.line(at, &places);
        }
        left_out
    }

    fn line(&mut self, series: usize, places: &[(f64, f64)]) {
        let Style { colour, dash } = Style::of(series);
        let points: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let points = points.join(" ");
        self.element(format_args!(
            r#"<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>"#
        ));
        if places.len() <= MAX_MARKERS {
            for (x, y) in places {
                self.element(format_args!(
                    r#"<circle cx="{x:.1}" cy="{y:.1}" r="3" fill="{colour}"/>"#
                ));
            }
        }
    }

    fn bars(&mut self, plot: &Plot, y: &Axis) -> usize {
        const FILLED: f64 = 0.8;
        let groups = Groups::of(&plot.series);
        let slot = WIDTH / groups.labels.len().max(1) as f64;
        let width = slot * FILLED / groups.bars_each.max(1) as f64;
        let mut left_out = 0;
        for bar in &groups.bars {
            let (Some(end), Some(base)) = (down(y, bar.value), down(y, y.base())) else {
                left_out += 1;
                continue;
            };
            let left = LEFT + slot * (bar.group as f64 + (1.0 - FILLED) / 2.0) + width * bar.within as f64;
            let (top, height) = (end.min(base), (end - base).abs());
            let colour = Style::of(bar.series).colour;
            self.element(format_args!(
                r#"<rect x="{left:.1}" y="{top:.1}" width="{width:.1}" height="{height:.1}" fill="{colour}"/>"#
            ));
        }
        let stride = groups.labels.len().div_ceil(MAX_GROUP_LABELS).max(1);
        for (at, label) in groups.labels.iter().enumerate().step_by(stride) {
            self.x_tick(LEFT + slot * (at as f64 + 0.5), label);
        }
        left_out
    }

    /// The axes, the legend beside the plot, and what holds it all.
    fn finish(mut self, plot: &Plot) -> String {
        let (right, bottom) = (LEFT + WIDTH, TOP + HEIGHT);
        self.element(format_args!(
            r##"<path d="M{LEFT:.1} {TOP:.1}V{bottom:.1}H{right:.1}" fill="none" stroke="#333"/>"##
        ));
        let labelled_below = plot.kind == Kind::Bar && Groups::are_series(&plot.series);
        let series = plot.series.iter().enumerate();
        let named: Vec<(usize, &Series)> = series
            .filter(|(_, it)| !it.name.is_empty() && !labelled_below)
            .collect();
        for (row, (at, series)) in named.iter().enumerate() {
            let y = TOP + 12.0 + LEGEND_LINE * row as f64;
            let Style { colour, dash } = Style::of(*at);
            let (from, to) = (right + 20.0, right + 44.0);
            self.element(format_args!(
                r#"<path d="M{from:.1} {y:.1}H{to:.1}" stroke="{colour}" stroke-width="3"{dash}/>"#
            ));
            self.text((to + 8.0, y + 4.0), Anchor::Start, &series.name);
        }
        let longest = named.iter().map(|(_, it)| it.name.chars().count()).max();
        let legend = longest.map_or(24.0, |chars| 60.0 + CHAR * chars as f64);
        let width = right + legend;
        let height = (bottom + BELOW).max(TOP + LEGEND_LINE * (named.len() + 1) as f64);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
             height=\"{height:.0}\" font-family=\"system-ui, sans-serif\" font-size=\"12\" fill=\"#222\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{}</svg>\n",
            self.body
        )
    }
}

/// From the top of the picture to `value`.
fn down(y: &Axis, value: f64) -> Option<f64> {
    y.place(value).map(|it| TOP + (1.0 - it) * HEIGHT)
}

struct Style {
    colour: &'static str,
    /// An attribute, or nothing.
    dash: String,
}

impl Style {
    fn of(series: usize) -> Self {
        let dash = DASHES[series / COLOURS.len() % DASHES.len()];
        Style {
            colour: COLOURS[series % COLOURS.len()],
            dash: if dash.is_empty() {
                String::new()
            } else {
                format!(r#" stroke-dasharray="{dash}""#)
            },
        }
    }
}

/// Bars side by side: one group for each x, one bar in it for each series. When every series has the same single x, the
/// series are the groups.
struct Groups {
    labels: Vec<String>,
    bars: Vec<Bar>,
    bars_each: usize,
}

struct Bar {
    group: usize,
    within: usize,
    series: usize,
    value: f64,
}

impl Groups {
    /// Every x, once, in order.
    fn places(series: &[Series]) -> Vec<f64> {
        let mut places: Vec<f64> = series.iter().flat_map(|it| &it.points).map(|[x, _]| *x).collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        places
    }

    fn are_series(series: &[Series]) -> bool {
        series.len() > 1 && Groups::places(series).len() == 1
    }

    fn of(series: &[Series]) -> Self {
        let places = Groups::places(series);
        let one_each = Groups::are_series(series);
        let mut bars = Vec::new();
        for (at, [x, value]) in series
            .iter()
            .enumerate()
            .flat_map(|(at, it)| it.points.iter().map(move |p| (at, p)))
        {
            let group = places.partition_point(|it| it.total_cmp(x).is_lt());
            let (group, within) = if one_each { (at, 0) } else { (group, at) };
            bars.push(Bar {
                group,
                within,
                series: at,
                value: *value,
            });
        }
        Groups {
            labels: if one_each {
                series.iter().map(|it| it.name.clone()).collect()
            } else {
                places.iter().map(f64::to_string).collect()
            },
            bars,
            bars_each: if one_each { 1 } else { series.len() },
        }
    }
}

/// Text as it may stand between tags and in attributes; characters that XML has no place for are replaced.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(kind: Kind, series: &[(&str, &[[f64; 2]])]) -> Plot {
        Plot {
            name: "p".into(),
            title: "Latency <p99> & \"tails\"".into(),
            x_label: "nodes".into(),
            y_label: "ms".into(),
            x_log: false,
            y_log: false,
            kind,
            series: series
                .iter()
                .map(|(name, points)| Series {
                    name: (*name).to_owned(),
                    points: points.to_vec(),
                })
                .collect(),
        }
    }

    fn count(svg: &str, tag: &str) -> usize {
        svg.matches(tag).count()
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(escape("a<b & \"c\"\u{1}>"), "a&lt;b &amp; &quot;c&quot; &gt;");
        let svg = draw(&plot(Kind::Line, &[("<s>", &[[0.0, 1.0]])])).svg;
        assert!(svg.contains("Latency &lt;p99&gt; &amp; &quot;tails&quot;"));
        assert!(svg.contains("&lt;s&gt;") && !svg.contains("<s>"));
    }

    #[test]
    fn a_line_runs_from_corner_to_corner() {
        let svg = draw(&plot(Kind::Line, &[("s", &[[0.0, 0.0], [10.0, 100.0]])])).svg;
        assert!(svg.contains(r#"points="84.0,428.0 724.0,48.0""#), "{svg}");
        assert_eq!(count(&svg, "<circle"), 2);
        assert!(svg.contains(">nodes<") && svg.contains(">ms<") && svg.contains(">s<"));
    }

    #[test]
    fn points_without_a_place_on_a_log_axis_are_counted() {
        let mut plot = plot(
            Kind::Line,
            &[("s", &[[0.0, 1.0], [1.0, 0.0], [10.0, 100.0], [100.0, 10.0]])],
        );
        plot.x_log = true;
        plot.y_log = true;
        let drawing = draw(&plot);
        assert_eq!(drawing.left_out, 2);
        assert_eq!(count(&drawing.svg, "<circle"), 2);
    }

    #[test]
    fn many_points_have_no_markers() {
        let points: Vec<[f64; 2]> = (0..100).map(|n| [f64::from(n), f64::from(n)]).collect();
        assert_eq!(count(&draw(&plot(Kind::Line, &[("s", &points)])).svg, "<circle"), 0);
    }

    #[test]
    fn bars_are_grouped_by_x() {
        let svg = draw(&plot(
            Kind::Bar,
            &[("a", &[[1.0, 5.0], [2.0, 6.0]]), ("b", &[[1.0, 7.0]])],
        ))
        .svg;
        assert_eq!(count(&svg, "<rect"), 3 + 1);
        assert!(svg.contains(">1</text>") && svg.contains(">2</text>"));
    }

    #[test]
    fn series_of_one_bar_each_are_the_groups() {
        let groups = Groups::of(&plot(Kind::Bar, &[("a", &[[0.0, 5.0]]), ("b", &[[0.0, 6.0]])]).series);
        assert_eq!(groups.labels, ["a", "b"]);
        assert_eq!(groups.bars_each, 1);
    }

    #[test]
    fn a_negative_bar_hangs_from_zero() {
        let svg = draw(&plot(Kind::Bar, &[("a", &[[1.0, -1.0], [2.0, 1.0]])])).svg;
        assert!(svg.contains(r#"y="238.0""#) && svg.contains(r#"y="48.0""#), "{svg}");
    }

    #[test]
    fn the_ninth_series_is_told_apart_by_dashes() {
        let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
        let series: Vec<(&str, &[[f64; 2]])> = names.iter().map(|it| (*it, &[[0.0, 1.0], [1.0, 1.0]][..])).collect();
        assert_eq!(count(&draw(&plot(Kind::Line, &series)).svg, "stroke-dasharray"), 2);
    }

    #[test]
    fn nothing_to_draw_is_drawn_all_the_same() {
        for kind in [Kind::Line, Kind::Bar] {
            let svg = draw(&plot(kind, &[])).svg;
            assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        }
    }

    #[test]
    fn the_same_plot_gives_the_same_bytes() {
        let plot = plot(Kind::Bar, &[("a", &[[1.0, 0.1], [2.0, 0.2]]), ("b", &[[2.0, 0.3]])]);
        assert_eq!(draw(&plot).svg, draw(&plot).svg);
    }
}
