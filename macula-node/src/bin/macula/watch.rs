//! `macula watch`: the events of the node that runs here, as they happen.

use macula_node::admin::schema::{Event, WatchRequest};

use crate::{
    args::WatchArgs,
    failure::{Failure, print, print_json},
    own::{self, unanswered},
    signals::Signals,
    table::{Look, Tone, short},
};

pub(crate) async fn run(args: WatchArgs) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let look = Look::of_stdout();
    let watching = async {
        let mut node = own::node(&args.admin).await?;
        let events = node
            .watch(WatchRequest {})
            .await
            .map_err(|status| unanswered(&status))?;
        let (mut events, mut seen) = (events.into_inner(), 0);
        while let Some(event) = events.message().await.map_err(|status| unanswered(&status))? {
            if !args.kind.is_empty() && !args.kind.contains(&event.kind) {
                continue;
            }
            match args.json {
                true => print_json(&event)?,
                false => print(&line(&event, look))?,
            }
            seen += 1;
            if args.count.is_some_and(|count| seen >= count) {
                break;
            }
        }
        Ok(())
    };
    tokio::select! {
        outcome = watching => outcome,
        // A person has seen enough.
        _ = signals.next() => Ok(()),
    }
}

/// An event in one line: the time of day in UTC, the kind, and its words.
fn line(event: &Event, look: Look) -> String {
    let seconds = event.at_ms / 1_000;
    let (hours, minutes, millis) = (seconds / 3_600 % 24, seconds / 60 % 60, event.at_ms % 1_000);
    let clock = format!("{hours:02}:{minutes:02}:{:02}.{millis:03}", seconds % 60);
    let kind = look.paint(tone(&event.kind), &format!("{:16}", event.kind));
    let about = [event.service.clone(), short(&event.node_id)];
    let about: Vec<_> = about.into_iter().filter(|name| !name.is_empty()).collect();
    let about = match about[..] {
        [] => String::new(),
        _ => format!("{}: ", about.join(" at ")),
    };
    let text: String = event.text.chars().filter(|c| !c.is_control()).collect();
    format!("{}  {kind} {about}{text}\n", look.paint(Tone::Faint, &clock))
}

fn tone(kind: &str) -> Tone {
    match kind {
        "joined" | "published" | "restored" | "heard" | "health_heeded" => Tone::Good,
        "opened" | "closed" | "withdrawn" | "addresses" | "rotated" | "probing" => Tone::Plain,
        "ejected" | "unreachable" | "refused" | "join_failed" | "health_ignored" | "budget_exhausted" => Tone::Bad,
        _ => Tone::Warning,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_that_begins_with_its_time() {
        let event = Event {
            at_ms: 1_700_000_045_007,
            kind: "ejected".to_owned(),
            service: "text.upper".to_owned(),
            node_id: "02".repeat(32),
            text: "too many\u{1b} failures".to_owned(),
            missed: 0,
        };
        assert_eq!(
            line(&event, Look::PLAIN),
            "22:14:05.007  ejected          text.upper at 0202020202: too many failures\n"
        );
        let own = Event {
            service: String::new(),
            node_id: String::new(),
            ..event
        };
        assert!(line(&own, Look::PLAIN).ends_with("ejected          too many failures\n"));
    }
}
