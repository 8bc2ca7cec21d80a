//! `macula drain`: the node that runs here leaves in order, and its progress is shown.

use macula_node::{
    Phase,
    admin::schema::{DrainProgress, DrainRequest},
};

use crate::{
    args::DrainArgs,
    failure::{Failure, print_json, print_line},
    own::{self, unanswered},
    table::{age, count},
};

pub(crate) async fn run(args: DrainArgs) -> Result<(), Failure> {
    let mut node = own::node(&args.admin).await?;
    let progress = node
        .drain(DrainRequest {})
        .await
        .map_err(|status| unanswered(&status))?;
    let mut progress = progress.into_inner();
    let mut last = None;
    loop {
        match progress.message().await {
            Ok(Some(step)) => {
                show(&args, &step)?;
                last = Some(step);
            }
            Ok(None) => break,
            // The node may end before its last word was read.
            Err(_) if last.is_some() => break,
            Err(status) => return Err(unanswered(&status)),
        }
    }
    match last {
        Some(DrainProgress { running_calls: 0, .. }) => Ok(()),
        Some(step) => Err(Failure::other(format!(
            "the node has left, and {} had not ended",
            count(step.running_calls, "call")
        ))),
        None => Err(Failure::other("the node said nothing about its end")),
    }
}

fn show(args: &DrainArgs, step: &DrainProgress) -> Result<(), Failure> {
    if args.json {
        return print_json(step);
    }
    let after = age(step.elapsed_ms);
    print_line(match step.phase == Phase::Left.name() {
        true => format!("left after {after}"),
        false => format!("draining: {} after {after}", count(step.running_calls, "running call")),
    })
}
