//! `macula top`: the services and providers of the node that runs here, live.
//!
//! Each frame is made from two states of the node and drawn by a function without side effects. On a terminal, keys sort and filter; in a
//! pipe, each frame is printed below the one before.

mod frame;
mod keys;
mod page;
mod sort;

use std::time::Duration;

use macula_node::admin::{
    AdminClient,
    schema::{State, StateRequest},
};

pub(crate) use self::sort::Sort;
use self::{
    frame::Frame,
    keys::{Keys, Press},
    page::{View, render},
};
use crate::{
    args::TopArgs,
    failure::{Failure, print},
    own::{self, unanswered},
    signals::Signals,
    table::Look,
};

/// The other screen of the terminal, without a cursor; and back.
const ENTER: &str = "\u{1b}[?1049h\u{1b}[?25l";
const LEAVE: &str = "\u{1b}[?25h\u{1b}[?1049l";
/// To the first place, and nothing below.
const HOME: &str = "\u{1b}[H\u{1b}[J";

pub(crate) async fn run(args: TopArgs) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let mut node = own::node(&args.admin).await?;
    let before = ask(&mut node).await?;
    let mut keys = Keys::of_terminal();
    let live = keys.is_some();
    if live {
        print(ENTER)?;
    }
    let outcome = tokio::select! {
        outcome = show(&args, &mut node, before, keys.as_mut()) => outcome,
        // A person has seen enough.
        _ = signals.next() => Ok(()),
    };
    drop(keys);
    if live {
        print(LEAVE)?;
    }
    outcome
}

async fn ask(node: &mut AdminClient) -> Result<State, Failure> {
    let state = node.get_state(StateRequest {}).await;
    Ok(state.map_err(|status| unanswered(&status))?.into_inner())
}

async fn show(
    args: &TopArgs,
    node: &mut AdminClient,
    mut before: State,
    mut keys: Option<&mut Keys>,
) -> Result<(), Failure> {
    let mut view = View {
        sort: args.sort,
        filter: args.filter.clone().unwrap_or_default(),
        ..View::default()
    };
    let mut shown = 0;
    let mut frame = Frame::between(&before, &before);
    // A pipe gets no frame without rates.
    let mut has_news = keys.is_some();
    loop {
        if has_news {
            draw(&frame, &view, keys.is_some())?;
        }
        let pressed = tokio::select! {
            () = tokio::time::sleep(args.interval.max(MIN_INTERVAL)) => None,
            press = next(&mut keys) => Some(press),
        };
        match pressed {
            Some(Press::Quit) => return Ok(()),
            Some(press) => {
                view.press(&press);
                has_news = true;
            }
            None => {
                let now = ask(node).await?;
                frame = Frame::between(&before, &now);
                before = now;
                has_news = true;
                if keys.is_none() || args.count.is_some() {
                    shown += 1;
                }
                if args.count.is_some_and(|count| shown >= count) {
                    return draw(&frame, &view, keys.is_some());
                }
            }
        }
    }
}

async fn next(keys: &mut Option<&mut Keys>) -> Press {
    match keys {
        Some(keys) => keys.next().await,
        None => std::future::pending().await,
    }
}

fn draw(frame: &Frame, view: &View, live: bool) -> Result<(), Failure> {
    let look = Look::of_stdout();
    if !live {
        return print(&format!("{}\n", render(frame, view, look, None)));
    }
    // Raw mode leaves the carriage return to the program.
    let page = render(frame, view, look, Look::height_of_stdout());
    print(&format!("{HOME}{}", page.trim_end().replace('\n', "\r\n")))
}

/// The shortest time between two frames.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
