//! A broken rule that a check found: the place, the fault, and the remedy.

use std::fmt;

use anyhow::{Result, ensure};

/// One broken rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    /// A path, `path:line`, or an edge between two packages.
    pub(crate) place: String,
    pub(crate) wrong: String,
    pub(crate) mend: String,
}

impl Finding {
    pub(crate) fn new(place: impl Into<String>, wrong: impl Into<String>, mend: impl Into<String>) -> Self {
        Finding {
            place: place.into(),
            wrong: wrong.into(),
            mend: mend.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n    {}", self.place, self.wrong, self.mend)
    }
}

/// Prints the findings in a stable order and turns them into an error.
///
/// # Errors
///
/// There is at least one finding.
pub(crate) fn report(mut findings: Vec<Finding>) -> Result<()> {
    findings.sort();
    findings.dedup();
    for finding in &findings {
        println!("{finding}");
    }
    ensure!(findings.is_empty(), "{} rule(s) broken, listed above", findings.len());
    Ok(())
}
