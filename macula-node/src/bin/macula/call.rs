//! `macula call`.

mod grpc;

use std::{
    io::{IsTerminal, Read, Write},
    time::{Duration, Instant},
};

use macula_node::{AnswerSource, Attempt, Bytes, CallBuilder, CallError, MAX_MESSAGE_BYTES, Node, NodeId, Strategy};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    time::{Interval, MissedTickBehavior},
};

use crate::{
    args::CallArgs,
    failure::{Failure, call_code, error_line},
    mesh,
    signals::Signals,
};

/// The shortest time that one provider is given, unless it is asked for less.
const MIN_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);

pub(crate) async fn run(args: CallArgs) -> Result<(), Failure> {
    if args.strategy == Strategy::Affinity && args.affinity_key.is_none() {
        return Err(Failure::usage(
            "--strategy affinity sends calls with one key to one provider: name the key with --affinity-key KEY",
        ));
    }
    let source = if args.lines {
        Source::Lines
    } else {
        Source::One(read_payload(&args.data)?)
    };
    let mut signals = Signals::new()?;
    let node = tokio::select! {
        node = mesh::client(&args.reach, Some(args.timeout)) => node?,
        ended = signals.next() => return Err(ended),
    };
    let outcome = tokio::select! {
        outcome = calls(&node, &args, source) => outcome,
        // The call that was under way is dropped, which cancels it; the provider hears of it before the node is gone.
        ended = signals.next() => Err(ended),
    };
    node.shutdown().await;
    outcome
}

/// Where requests come from.
enum Source {
    One(Bytes),
    /// Each line of standard input.
    Lines,
}

async fn calls(node: &Node, args: &CallArgs, source: Source) -> Result<(), Failure> {
    let mut caller = Caller::new(node, args);
    match source {
        Source::One(payload) => caller.repeat(&payload).await?,
        Source::Lines => {
            let mut lines = BufReader::new(tokio::io::stdin());
            while let Some(line) = next_line(&mut lines).await? {
                caller.repeat(&line).await?;
            }
        }
    }
    caller.first_failure.map_or(Ok(()), Err)
}

/// The next line without its end; `None` after the last one.
async fn next_line(lines: &mut BufReader<tokio::io::Stdin>) -> Result<Option<Bytes>, Failure> {
    let mut line = Vec::new();
    // One byte more than allowed, and the line's end.
    let mut limited = lines.take(MAX_MESSAGE_BYTES as u64 + 2);
    let read = limited.read_until(b'\n', &mut line).await;
    read.map_err(|error| Failure::other(format!("standard input could not be read: {error}")))?;
    if line.is_empty() {
        return Ok(None);
    }
    let end = line
        .strip_suffix(b"\n")
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line).len());
    line.truncate(end.unwrap_or(line.len()));
    checked(Bytes::from(line)).map(Some)
}

/// Makes calls one after another, no faster than the rate.
struct Caller<'a> {
    node: &'a Node,
    args: &'a CallArgs,
    pace: Option<Interval>,
    first_failure: Option<Failure>,
}

impl<'a> Caller<'a> {
    fn new(node: &'a Node, args: &'a CallArgs) -> Self {
        let pace = args.rate.map(|rate| {
            let mut pace = tokio::time::interval(Duration::from_secs(1) / rate);
            // A slow call does not make the next ones come in a bunch.
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            pace
        });
        Self {
            node,
            args,
            pace,
            first_failure: None,
        }
    }

    async fn repeat(&mut self, payload: &Bytes) -> Result<(), Failure> {
        let args = self.args;
        for _ in 0..args.count {
            if let Some(pace) = &mut self.pace {
                pace.tick().await;
            }
            let start = Instant::now();
            let outcome = call(self.node, args, payload.clone()).await;
            let took = start.elapsed();
            match &outcome {
                Ok(answer) => {
                    let provider = answer.provider.map(|provider| provider.short().to_string());
                    tracing::info!(service = %args.target.service, provider, ?took, "answered");
                }
                Err(error) => tracing::info!(service = %args.target.service, %error, ?took, "failed"),
            }
            show(args, &outcome, took)?;
            if let Err(error) = outcome {
                self.first_failure.get_or_insert(Failure::shown(call_code(&error)));
            }
        }
        Ok(())
    }
}

/// The answer to a call, with what a person wants to know of it.
struct Answer {
    /// One, except for a gRPC method that streams.
    replies: Vec<Bytes>,
    /// `None` for a handler of this process.
    provider: Option<NodeId>,
    /// The step that gave the provider, and the attempts that failed before; not known of a gRPC call.
    steps: Option<(AnswerSource, Vec<Attempt>)>,
}

async fn call(node: &Node, args: &CallArgs, payload: Bytes) -> Result<Answer, CallError> {
    let mut call = node
        .client()
        .request(&args.target.service)
        .method(&args.target.method)
        .strategy(args.strategy)
        .timeout(args.timeout)
        // Two others can still be tried when the first says nothing.
        .attempt_timeout(
            args.attempt_timeout
                .unwrap_or((args.timeout / 3).max(MIN_ATTEMPT_TIMEOUT)),
        );
    if let Some(key) = &args.affinity_key {
        call = call.affinity(fnv1a(key.as_bytes()));
    }
    if let Some(attempts) = args.max_attempts {
        call = call.max_attempts(attempts);
    }
    match args.grpc {
        true => grpc::call(&args.target.service, call, payload).await,
        false => plain(call, payload).await,
    }
}

async fn plain(call: CallBuilder, payload: Bytes) -> Result<Answer, CallError> {
    let answer = call.send(payload).await?;
    Ok(Answer {
        replies: vec![answer.payload().clone()],
        provider: answer.provider().map(|provider| provider.node_id),
        steps: Some((answer.source(), answer.failed_attempts().to_vec())),
    })
}

/// The 64-bit FNV-1a hash of a key: the same in every process, so that a key keeps its provider.
fn fnv1a(key: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    key.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

fn read_payload(data: &str) -> Result<Bytes, Failure> {
    let payload = if data == "-" {
        let mut bytes = Vec::new();
        // One byte more than allowed is enough to know.
        let limit = MAX_MESSAGE_BYTES as u64 + 1;
        let read = std::io::stdin().lock().take(limit).read_to_end(&mut bytes);
        read.map_err(|error| Failure::other(format!("standard input could not be read: {error}")))?;
        Bytes::from(bytes)
    } else {
        Bytes::copy_from_slice(data.as_bytes())
    };
    checked(payload)
}

/// A request that is not too large.
fn checked(payload: Bytes) -> Result<Bytes, Failure> {
    if payload.len() > MAX_MESSAGE_BYTES {
        return Err(Failure::usage(format!(
            "the request has more than the {MAX_MESSAGE_BYTES} bytes (4 MiB) a message may have; send it in parts"
        )));
    }
    Ok(payload)
}

fn show(args: &CallArgs, outcome: &Result<Answer, CallError>, took: Duration) -> Result<(), Failure> {
    let broken = |error: std::io::Error| Failure::other(format!("the answer could not be written: {error}"));
    let mut stdout = std::io::stdout().lock();
    match outcome {
        _ if args.json => writeln!(stdout, "{}", as_json(args, outcome, took)).map_err(broken)?,
        Ok(answer) => {
            // Bytes stay as they are in a pipe or file; a person, or the next answer, wants a line.
            let lines = args.count > 1 || args.lines || answer.replies.len() > 1 || stdout.is_terminal();
            for reply in &answer.replies {
                stdout.write_all(reply).map_err(broken)?;
                if lines {
                    writeln!(stdout).map_err(broken)?;
                }
            }
        }
        Err(error) => {
            let _ = Failure::from(error.clone()).report();
        }
    }
    stdout.flush().map_err(broken)
}

fn as_json(args: &CallArgs, outcome: &Result<Answer, CallError>, took: Duration) -> Value {
    let service = args.target.service.as_str();
    let us = took.as_micros() as u64;
    match outcome {
        Ok(answer) => {
            let mut told = json!({
                "service": service,
                "ok": true,
                "provider": answer.provider.map(|provider| provider.to_string()),
                "us": us,
            });
            if let Some((source, failed)) = &answer.steps {
                told["source"] = source.name().into();
                told["failed_attempts"] = attempts(failed).into();
            }
            match &answer.replies[..] {
                [reply] => {
                    let (key, reply) = text_or_hex(reply);
                    told[key] = reply.into();
                }
                replies => {
                    let one = |reply: &Bytes| {
                        let (key, reply) = text_or_hex(reply);
                        json!({ key: reply })
                    };
                    told["replies"] = replies.iter().map(one).collect();
                }
            }
            told
        }
        Err(error) => json!({
            "service": service,
            "ok": false,
            "error": error.name(),
            "message": error.to_string(),
            "failed_attempts": attempts(error.attempts()),
            "us": us,
        }),
    }
}

/// A reply as JSON shows it: bytes that are no text are hexadecimal, under another name.
fn text_or_hex(reply: &[u8]) -> (&'static str, String) {
    match std::str::from_utf8(reply) {
        Ok(text) => ("reply", text.to_owned()),
        Err(_) => ("reply_hex", reply.iter().map(|byte| format!("{byte:02x}")).collect()),
    }
}

pub(crate) fn attempts(attempts: &[Attempt]) -> Vec<Value> {
    let one = |attempt: &Attempt| {
        json!({
            "provider": attempt.node_id.to_string(),
            "endpoint": attempt.endpoint.as_ref().map(ToString::to_string),
            "cause": error_line(&attempt.cause),
            "started_us": attempt.started.as_micros() as u64,
            "us": attempt.took.as_micros() as u64,
        })
    };
    attempts.iter().map(one).collect()
}
