//! Tables and colours for a person at a terminal.
//!
//! **Invariants.** A table is never wider than the terminal: headings above short cells are cut first, then the widest columns. Colours are written to a terminal only, and never
//! when `NO_COLOR` is set (no-color.org). Control characters in a cell, which may come from other nodes, are left out.

use std::{fmt::Write as _, io::IsTerminal as _};

use macula_node::{Link, NodeId, Phase, ProviderState};

/// The narrowest that a column is cut to, in characters.
const MIN_COLUMN: usize = 6;
/// The narrowest that a heading is cut to above cells that are shorter.
const MIN_HEADING: usize = 4;
/// Between two columns.
const GAP: &str = "  ";

/// What the output is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    /// The terminal's width in characters; `None` when there is no limit.
    pub(crate) width: Option<usize>,
    pub(crate) colour: bool,
}

impl Look {
    /// A pipe or a file.
    pub(crate) const PLAIN: Self = Self {
        width: None,
        colour: false,
    };

    /// Standard output as it is.
    pub(crate) fn of_stdout() -> Self {
        let stdout = std::io::stdout();
        if !stdout.is_terminal() {
            return Self::PLAIN;
        }
        let size = rustix::termios::tcgetwinsize(&stdout);
        Self {
            width: size
                .ok()
                .map(|size| usize::from(size.ws_col))
                .filter(|width| *width > 0),
            colour: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        }
    }

    /// The height of the terminal in lines, if standard output is one.
    pub(crate) fn height_of_stdout() -> Option<usize> {
        let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
        Some(usize::from(size.ws_row)).filter(|height| *height > 0)
    }

    /// A text in a tone.
    pub(crate) fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Plain => return text.to_owned(),
            _ if !self.colour => return text.to_owned(),
            Tone::Heading => "1",
            Tone::Good => "32",
            Tone::Warning => "33",
            Tone::Bad => "31",
            Tone::Faint => "2",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

/// How a text is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Heading,
    Good,
    Warning,
    Bad,
    Faint,
}

impl Tone {
    /// The tone of a state's name, as the admin interface has them.
    pub(crate) fn of_state(state: &str) -> Self {
        const SERVING: &str = Phase::Serving.name();
        const READY: &str = ProviderState::Ready.name();
        const EJECTED: &str = ProviderState::Ejected.name();
        const UP: &str = Link::Up.name();
        const DOWN: &str = Link::Down.name();
        const IDLE: &str = Link::Idle.name();
        match state {
            SERVING | READY | UP | "SERVING" => Self::Good,
            EJECTED | DOWN | "unreachable" | "NOT_SERVING" | "not served" => Self::Bad,
            IDLE => Self::Plain,
            _ => Self::Warning,
        }
    }
}

/// A cell of a table.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
    right: bool,
}

/// A text.
pub(crate) fn text(text: impl AsRef<str>) -> Cell {
    let text = text.as_ref().chars().filter(|c| !c.is_control()).collect();
    Cell {
        text,
        tone: Tone::Plain,
        right: false,
    }
}

/// A number, at the right of its column.
pub(crate) fn number(value: impl std::fmt::Display) -> Cell {
    Cell {
        right: true,
        ..text(value.to_string())
    }
}

/// The name of a state.
pub(crate) fn state(name: &str) -> Cell {
    Cell {
        tone: Tone::of_state(name),
        ..text(name)
    }
}

impl Cell {
    pub(crate) fn toned(self, tone: Tone) -> Self {
        Self { tone, ..self }
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

/// A heading and rows of as many cells.
#[derive(Debug, Clone)]
pub(crate) struct Table<const N: usize> {
    heading: [&'static str; N],
    rows: Vec<[Cell; N]>,
}

impl<const N: usize> Table<N> {
    pub(crate) fn new(heading: [&'static str; N], rows: impl IntoIterator<Item = [Cell; N]>) -> Self {
        Self {
            heading,
            rows: rows.into_iter().collect(),
        }
    }

    /// The table as lines, the last one ended too.
    pub(crate) fn render(&self, look: Look) -> String {
        let cells: [usize; N] = std::array::from_fn(|column| {
            let cells = self.rows.iter().map(|row| row[column].width());
            cells.max().unwrap_or(0)
        });
        let mut widths: [usize; N] =
            std::array::from_fn(|column| cells[column].max(self.heading[column].chars().count()));
        if let Some(width) = look.width {
            fit(&mut widths, &cells.map(|cells| cells.max(MIN_HEADING)), width);
            fit(&mut widths, &[MIN_COLUMN; N], width);
        }
        let mut out = String::new();
        let first = self.rows.first();
        let heading: [Cell; N] = std::array::from_fn(|column| Cell {
            right: first.is_some_and(|row| row[column].right),
            ..text(self.heading[column]).toned(Tone::Heading)
        });
        for row in std::iter::once(&heading).chain(&self.rows) {
            line(&mut out, row, &widths, look);
        }
        out
    }
}

/// Cuts the widest columns until all of them fit, none to less than its least.
fn fit<const N: usize>(widths: &mut [usize; N], least: &[usize; N], width: usize) {
    let gaps = GAP.len() * N.saturating_sub(1);
    while widths.iter().sum::<usize>() + gaps > width {
        let wide = widths.iter_mut().zip(least).filter(|(width, least)| **width > **least);
        match wide.map(|(width, _)| width).max() {
            Some(widest) => *widest -= 1,
            None => return,
        }
    }
}

fn line<const N: usize>(out: &mut String, row: &[Cell; N], widths: &[usize; N], look: Look) {
    for (column, cell) in row.iter().enumerate() {
        let width = widths[column];
        let shown = cut(&cell.text, width);
        let pad = " ".repeat(width.saturating_sub(shown.chars().count()));
        let painted = look.paint(cell.tone, &shown);
        let is_last = column + 1 == N;
        // Writing to a text cannot fail.
        let _ = match (cell.right, is_last) {
            (true, _) => write!(out, "{pad}{painted}"),
            (false, true) => write!(out, "{painted}"),
            (false, false) => write!(out, "{painted}{pad}"),
        };
        if !is_last {
            out.push_str(GAP);
        }
    }
    let end = out.trim_end_matches(' ').len();
    out.truncate(end);
    out.push('\n');
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept = text.chars().take(width.saturating_sub(1));
    kept.chain(['…']).collect()
}

/// A span of time in the unit that suits it.
pub(crate) fn time(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros}µs"),
        1_000..10_000 => format!("{}.{}ms", micros / 1_000, micros % 1_000 / 100),
        10_000..1_000_000 => format!("{}ms", micros / 1_000),
        1_000_000..60_000_000 => format!("{}.{}s", micros / 1_000_000, micros % 1_000_000 / 100_000),
        _ => age(micros / 1_000),
    }
}

/// A long span of time, in its two largest units.
pub(crate) fn age(millis: u64) -> String {
    let seconds = millis / 1_000;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m {}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h {minutes}m"),
        (days, hours, _) => format!("{days}d {hours}h"),
    }
}

/// A number of bytes in the unit that suits it.
pub(crate) fn bytes(count: u64) -> String {
    match count {
        0..1_024 => format!("{count} B"),
        1_024..1_048_576 => format!("{}.{} KiB", count / 1_024, count % 1_024 * 10 / 1_024),
        _ => format!("{}.{} MiB", count / 1_048_576, count % 1_048_576 * 10 / 1_048_576),
    }
}

/// A number of things.
pub(crate) fn count(number: u64, thing: &str) -> String {
    match number {
        1 => format!("1 {thing}"),
        number => format!("{number} {thing}s"),
    }
}

/// The start of a node id, as tables show it.
pub(crate) fn short(node_id: &str) -> String {
    match node_id.parse::<NodeId>() {
        Ok(id) => id.short().to_string(),
        Err(_) => node_id.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Table<3> {
        let row = |name: &str, count: u64, word: &str| [text(name), number(count), state(word)];
        Table::new(
            ["SERVICE", "CALLS", "STATE"],
            [row("text.upper", 7, "ready"), row("a", 12_345, "ejected")],
        )
    }

    #[test]
    fn columns_stand_under_each_other() {
        let expected = "\
SERVICE     CALLS  STATE
text.upper      7  ready
a           12345  ejected
";
        assert_eq!(sample().render(Look::PLAIN), expected);
        let narrow = Look {
            width: Some(22),
            ..Look::PLAIN
        };
        assert_eq!(sample().render(narrow).lines().nth(1), Some("text.u…      7  ready"));
    }

    #[test]
    fn a_long_heading_is_cut_before_the_names() {
        let rows = [[text("demo.echo"), number(0)], [text("demo.up"), number(0)]];
        let table = Table::new(["SERVES", "REFUSED"], rows);
        let narrow = Look {
            width: Some(16),
            ..Look::PLAIN
        };
        assert_eq!(
            table.render(narrow),
            "SERVES     REFU…\ndemo.echo      0\ndemo.up        0\n"
        );
    }

    #[test]
    fn colours_are_for_terminals() {
        let colour = Look {
            colour: true,
            ..Look::PLAIN
        };
        let painted = sample().render(colour);
        assert!(
            painted.contains("\u{1b}[32mready\u{1b}[0m") && painted.contains("\u{1b}[31mejected"),
            "{painted}"
        );
        assert!(!sample().render(Look::PLAIN).contains('\u{1b}'));
        assert_eq!(
            text("\u{1b}[31mred\u{7}").text,
            "[31mred",
            "another node steers no terminal"
        );
    }

    #[test]
    fn spans_of_time_and_sizes_are_short() {
        let times = [7, 1_500, 15_000, 2_540_000, 61_000_000].map(time);
        assert_eq!(times, ["7µs", "1.5ms", "15ms", "2.5s", "1m 1s"]);
        assert_eq!([3_000, 7_260_000, 90_000_000].map(age), ["3s", "2h 1m", "1d 1h"]);
        assert_eq!([512, 1_536, 3 << 20].map(bytes), ["512 B", "1.5 KiB", "3.0 MiB"]);
    }

    proptest! {
        #[test]
        fn a_table_fits_its_terminal(cells in prop::collection::vec("\\PC{0,40}", 3..30), width in 22..120_usize) {
            let rows = cells.chunks_exact(3).map(|row| [text(&row[0]), number(&row[1]), text(&row[2])]);
            let table = Table::new(["A", "B", "C"], rows);
            let look = Look { width: Some(width), colour: false };
            for line in table.render(look).lines() {
                prop_assert!(line.chars().count() <= width, "{line}");
            }
        }
    }
}
