//! Builds and checks Macula.
fn main() {}
