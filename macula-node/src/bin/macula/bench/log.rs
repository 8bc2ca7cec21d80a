//! The file that `--calls` names: one JSON object for each call, in the order in which the calls end.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use macula_node::Attempt;
use serde_json::json;

use super::load::Ended;
use crate::{
    call::attempts,
    failure::{Failure, error_line},
};

#[derive(Debug)]
pub(super) struct CallLog {
    path: PathBuf,
    file: BufWriter<File>,
}

impl CallLog {
    pub(super) fn create(path: &Path) -> Result<Self, Failure> {
        let file = File::create(path)
            .map_err(|error| Failure::other(format!("{} cannot be written: {error}", path.display())))?;
        Ok(Self {
            path: path.to_path_buf(),
            file: BufWriter::new(file),
        })
    }

    pub(super) fn write(&mut self, call: &Ended) -> Result<(), Failure> {
        let (name, message, failed): (_, _, &[Attempt]) = match &call.outcome {
            Ok(answer) => (None, None, &answer.failed_attempts),
            Err(error) => (Some(error.name()), Some(error_line(error)), error.attempts()),
        };
        let provider = call.outcome.as_ref().ok().and_then(|answer| answer.provider);
        let unix = call.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let line = json!({
            "unix_us": unix.as_micros() as u64,
            "due_us": call.due.as_micros() as u64,
            "us": call.took.as_micros() as u64,
            "ok": call.outcome.is_ok(),
            "replies": call.replies,
            "provider": provider.map(|provider| provider.to_string()),
            "error": name,
            "message": message,
            "failed_attempts": attempts(failed),
        });
        let written = writeln!(self.file, "{line}");
        written.map_err(|error| self.broken(&error))
    }

    pub(super) fn finish(&mut self) -> Result<(), Failure> {
        let flushed = self.file.flush();
        flushed.map_err(|error| self.broken(&error))
    }

    fn broken(&self, error: &std::io::Error) -> Failure {
        Failure::other(format!("{} cannot be written: {error}", self.path.display()))
    }
}
