//! The examples, run to their end.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::process::{Command, Stdio};

fn output(program: &str) -> String {
    let mut command = Command::new(program);
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn hello_world_runs() {
    let expected = r#"Hello mesh!
Hello world!
Hello you!
greeted by {"Ada", "Bea", "Cleo"}
and by those who are left, after one has gone
without a name: Err("say your name")
"#;
    assert_eq!(output(env!("CARGO_BIN_EXE_hello_world")), expected);
}

#[test]
fn route_guide_runs() {
    let expected = "one place
  bridge
  nothing is at 1 east, 1 north
places in a rectangle
  market
  bridge
  mill
a walk
  4 points, 3 places, 290 m
a chat
  there was a note: first
  there was a note: first
  there was a note: second
";
    assert_eq!(output(env!("CARGO_BIN_EXE_route_guide")), expected);
}
