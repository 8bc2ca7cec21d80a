//! Tables for a terminal: numbers to the right, words to the left, one number of decimals a column.

use comfy_table::{CellAlignment, LineStyle, TableStyle};
use serde::Deserialize;

/// Rows of cells under headings.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Table {
    pub(crate) name: String,
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<Vec<Cell>>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub(crate) enum Cell {
    Whole(i64),
    Real(f64),
    Text(String),
    /// Nothing to say: `null`.
    Empty(()),
}

/// The table without its name, one line a row.
pub(super) fn render(table: &Table) -> String {
    let columns = (0..table.columns.len()).map(|at| table.rows.iter().map(|row| &row[at]).collect());
    let columns: Vec<Vec<&Cell>> = columns.collect();
    let decimals: Vec<usize> = columns.iter().map(|cells| decimals(cells)).collect();
    let mut shown = comfy_table::Table::new();
    shown.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─')));
    shown.set_header(&table.columns);
    for row in &table.rows {
        shown.add_row(row.iter().zip(&decimals).map(|(cell, decimals)| show(cell, *decimals)));
    }
    for (column, cells) in shown.column_iter_mut().zip(&columns) {
        if cells.iter().all(|cell| !matches!(cell, Cell::Text(_))) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    shown.trim_fmt() + "\n"
}

/// Four significant digits of the column's largest value, as far as any of its values needs them.
fn decimals(cells: &[&Cell]) -> usize {
    let reals = || {
        cells.iter().filter_map(|cell| match cell {
            Cell::Real(value) => Some(*value),
            Cell::Whole(_) | Cell::Text(_) | Cell::Empty(()) => None,
        })
    };
    let largest = reals().fold(0.0, |most: f64, value| most.max(value.abs()));
    let wanted = [1000.0, 100.0, 10.0, 1.0, 0.1, 0.01]
        .iter()
        .take_while(|it| largest < **it)
        .count();
    let needed = reals().map(|value| {
        let text = format!("{value:.wanted$}");
        let fraction = text.split_once('.').map_or("", |(_, fraction)| fraction);
        fraction.trim_end_matches('0').len()
    });
    needed.max().unwrap_or_default()
}

fn show(cell: &Cell, decimals: usize) -> String {
    match cell {
        Cell::Whole(value) => grouped(&value.to_string()),
        Cell::Real(value) => grouped(&format!("{value:.decimals$}")),
        Cell::Text(text) => text.clone(),
        Cell::Empty(()) => "–".to_owned(),
    }
}

/// Groups the digits before the point by three, from five digits up.
fn grouped(number: &str) -> String {
    let (sign, rest) = number.strip_prefix('-').map_or(("", number), |rest| ("-", rest));
    let (whole, fraction) = rest.split_at(rest.find('.').unwrap_or(rest.len()));
    if whole.len() < 5 {
        return number.to_owned();
    }
    let mut text = sign.to_owned();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text + fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(columns: &[&str], rows: Vec<Vec<Cell>>) -> Table {
        Table {
            name: String::new(),
            columns: columns.iter().map(|it| (*it).to_owned()).collect(),
            rows,
        }
    }

    #[test]
    fn numbers_stand_right_and_words_left() {
        let rows = vec![
            vec![Cell::Text("p2c".into()), Cell::Real(1.5), Cell::Whole(12)],
            vec![Cell::Text("random".into()), Cell::Real(10.25), Cell::Whole(123_456)],
        ];
        let expected = " strategy     p99         n\n\
                        ────────────────────────────\n\
                        \x20p2c         1.50        12\n\
                        \x20random     10.25   123 456\n";
        assert_eq!(render(&table(&["strategy", "p99", "n"], rows)), expected);
    }

    #[test]
    fn an_empty_cell_is_a_dash_and_an_empty_table_its_headings() {
        assert_eq!(render(&table(&["a"], vec![vec![Cell::Empty(())]])), " a\n───\n –\n");
        assert_eq!(render(&table(&["a"], vec![])), " a\n───\n");
    }

    #[test]
    fn a_column_shows_four_digits_of_its_largest_value() {
        let decimals_of = |values: &[f64]| {
            let cells: Vec<Cell> = values.iter().map(|it| Cell::Real(*it)).collect();
            decimals(&cells.iter().collect::<Vec<_>>())
        };
        assert_eq!(decimals_of(&[1234.5678]), 0);
        assert_eq!(decimals_of(&[12.345678, 1.0]), 2);
        assert_eq!(decimals_of(&[0.0012345]), 6);
        assert_eq!(decimals_of(&[1.0, 2.0]), 0);
        assert_eq!(decimals_of(&[]), 0);
    }

    #[test]
    fn long_numbers_are_grouped() {
        let shown: Vec<String> = ["1234", "12345", "-1234567.89"].iter().map(|it| grouped(it)).collect();
        assert_eq!(shown, ["1234", "12 345", "-1 234 567.89"]);
    }
}
