//! A frame as text.

use std::cmp::Ordering;

use super::{
    frame::{Frame, Service, Way},
    keys::Press,
    sort::Sort,
};
use crate::table::{Cell, Look, Table, Tone, age, count, number, short, state, text, time};

/// What a person wants to see.
#[derive(Debug, Clone, Default)]
pub(super) struct View {
    pub(super) sort: Sort,
    /// Only services whose names contain it.
    pub(super) filter: String,
    /// Keys are letters of the filter.
    pub(super) typing: bool,
    /// Providers are left out.
    pub(super) folded: bool,
}

/// The longest filter, in characters.
const MAX_FILTER: usize = 64;

impl View {
    /// Heeds a key.
    pub(super) fn press(&mut self, press: &Press) {
        match press {
            Press::Letter(letter) if self.typing => {
                if self.filter.chars().count() < MAX_FILTER {
                    self.filter.push(*letter);
                }
            }
            Press::Back if self.typing => drop(self.filter.pop()),
            Press::Enter if self.typing => self.typing = false,
            Press::Escape => {
                self.typing = false;
                self.filter.clear();
            }
            Press::Letter('/') => self.typing = true,
            Press::Letter('r') => self.sort = Sort::Rate,
            Press::Letter('e') => self.sort = Sort::Errors,
            Press::Letter('l') => self.sort = Sort::Latency,
            Press::Letter('n') => self.sort = Sort::Name,
            Press::Letter('p') => self.folded = !self.folded,
            Press::Letter(_) | Press::Back | Press::Enter | Press::Quit => {}
        }
    }

    fn order(&self, a: &Service, b: &Service) -> Ordering {
        let by = match self.sort {
            Sort::Rate => b.rate.total_cmp(&a.rate),
            Sort::Errors => b.errors.total_cmp(&a.errors),
            Sort::Latency => b.p99_us.cmp(&a.p99_us),
            Sort::Name => Ordering::Equal,
        };
        by.then_with(|| a.name.cmp(&b.name)).then(a.way.cmp(&b.way))
    }
}

/// The page of a frame, in at most `height` lines.
pub(super) fn render(frame: &Frame, view: &View, look: Look, height: Option<usize>) -> String {
    let mut services: Vec<_> = frame
        .services
        .iter()
        .filter(|it| it.name.contains(&view.filter))
        .collect();
    services.sort_by(|a, b| view.order(a, b));
    let rows = services.iter().flat_map(|service| rows(service, view.folded));
    let table = Table::new(
        ["SERVICE", "", "CALLS/S", "ERRORS/S", "RUNNING", "P50", "P99", "STATE"],
        rows,
    );
    let foot = foot(view);
    let body = format!("{}\n{}", head(frame, look), table.render(look));
    let room = height.map_or(usize::MAX, |height| height.saturating_sub(2));
    let mut page: String = body.lines().take(room).flat_map(|line| [line, "\n"]).collect();
    page += &format!("\n{}\n", look.paint(Tone::Faint, &cut(&foot, look)));
    page
}

fn head(frame: &Frame, look: Look) -> String {
    let suspected = match frame.suspected {
        0 => String::new(),
        suspected => format!(" ({suspected} suspected)"),
    };
    let refused = match frame.refused {
        0 => String::new(),
        refused => format!(", {refused} refused just now"),
    };
    let line = format!(
        "{} {}, up {}; {}{suspected}, {} known; {} running{refused}; {} so far",
        short(&frame.node_id),
        frame.phase,
        age(frame.uptime_ms),
        count(frame.peers as u64, "connection"),
        count(frame.known_nodes as u64, "node"),
        count(frame.running, "call"),
        count(frame.ejections, "ejection"),
    );
    format!("{}\n", look.paint(Tone::Heading, &cut(&line, look)))
}

fn foot(view: &View) -> String {
    let sort = match view.sort {
        Sort::Rate => "rate",
        Sort::Errors => "errors",
        Sort::Latency => "latency",
        Sort::Name => "name",
    };
    if view.typing {
        return format!("filter: {}_  (enter keeps it, escape clears it)", view.filter);
    }
    let filter = match view.filter.as_str() {
        "" => String::new(),
        filter => format!(", only {filter}"),
    };
    format!("sorted by {sort}{filter}   keys: r rate, e errors, l latency, n name, / filter, p providers, q quit")
}

fn cut(line: &str, look: Look) -> String {
    line.chars().take(look.width.unwrap_or(usize::MAX)).collect()
}

fn rows(service: &Service, folded: bool) -> Vec<[Cell; 8]> {
    let maybe = |micros: Option<u64>| number(micros.map_or_else(|| "-".to_owned(), time));
    let failing = if service.errors > 0.0 {
        Tone::Warning
    } else {
        Tone::Plain
    };
    let whole = [
        text(&service.name),
        text(match service.way {
            Way::In => "served",
            Way::Out => "called",
        }),
        number(rate(service.rate)),
        number(rate(service.errors)).toned(failing),
        number(service.in_flight),
        maybe(service.p50_us),
        maybe(service.p99_us),
        text(match service.way {
            Way::In => String::new(),
            Way::Out => standing(service),
        }),
    ];
    let providers = service.providers.iter().filter(|_| !folded).map(|provider| {
        // Balancers count the last ten seconds.
        let lately = |count: u64| number(rate(count as f64 / 10.0));
        [
            text(format!("  {}", short(&provider.node_id))),
            text(&provider.zone),
            lately(provider.recent_ok + provider.recent_failed),
            lately(provider.recent_failed),
            number(provider.in_flight),
            maybe(provider.latency_us),
            number(""),
            state(&provider.state),
        ]
    });
    std::iter::once(whole).chain(providers).collect()
}

fn standing(service: &Service) -> String {
    let providers = count(service.providers.len() as u64, "provider");
    match service.ejections {
        0 => providers,
        ejections => format!("{providers}, {}", count(ejections, "ejection")),
    }
}

fn rate(rate: f64) -> String {
    match rate {
        0.0 => "0".to_owned(),
        rate if rate < 100.0 => format!("{rate:.1}"),
        rate => format!("{rate:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    fn frame() -> Frame {
        let (before, mut now) = (sample::state(), sample::state());
        now.uptime_ms += 2_000;
        if let Some(calls) = &mut now.serves[0].calls {
            calls.ok += 2_469;
            calls.errors += 1;
        }
        Frame::between(&before, &now)
    }

    #[test]
    fn n5_a_frame_shows_services_with_their_providers() {
        let expected = "\
0101010101 serving, up 1h 1m; 2 connections (1 suspected), 2 nodes known; 2 calls running; 1 ejection so far

SERVICE               CALLS/S  ERRORS/S  RUNNING    P50  P99  STATE
text.upper    served     1235       0.5        2      -    -
text.count    called        0         0        0      -    -  2 providers, 1 ejection
  0202020202              3.0         0        1  1.1ms       ready
  0303030303              1.0       0.9        0      -       ejected

sorted by rate   keys: r rate, e errors, l latency, n name, / filter, p providers, q quit
";
        let page = render(&frame(), &View::default(), Look::PLAIN, None);
        assert_eq!(page, expected, "{page}");
    }

    #[test]
    fn keys_sort_filter_and_fold() {
        let mut view = View::default();
        "n/count".chars().for_each(|letter| view.press(&Press::Letter(letter)));
        assert_eq!(
            (view.sort, view.filter.as_str(), view.typing),
            (Sort::Name, "count", true)
        );
        view.press(&Press::Back);
        view.press(&Press::Enter);
        view.press(&Press::Letter('p'));
        let page = render(&frame(), &view, Look::PLAIN, None);
        assert!(page.contains("text.count") && !page.contains("text.upper"), "{page}");
        assert!(!page.contains("0303030303"), "providers are folded: {page}");
        assert!(page.contains("sorted by name, only coun"), "{page}");
        view.press(&Press::Escape);
        let page = render(&frame(), &view, Look::PLAIN, None);
        assert!(page.find("text.count") < page.find("text.upper"), "by name: {page}");
    }

    #[test]
    fn a_page_fits_its_terminal() {
        let look = Look {
            width: Some(60),
            colour: false,
        };
        let page = render(&frame(), &View::default(), look, Some(6));
        assert!(page.lines().count() <= 6, "{page}");
        assert!(page.lines().all(|line| line.chars().count() <= 60), "{page}");
    }
}
