//! A wall clock of its own for a node: libfaketime, which adds an offset from a file to what the kernel says.
//!
//! The monotonic clocks stay the kernel's. So a change of the offset is a wall clock that is set, or a host that was suspended.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Where Debian and others keep the library for programs with threads.
const PATHS: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
];

/// The library, when it is installed.
pub(super) fn library() -> Option<&'static Path> {
    PATHS.iter().map(Path::new).find(|path| path.exists())
}

/// The wall clock of one host.
#[derive(Debug)]
pub(super) struct Clock {
    offset: PathBuf,
    library: PathBuf,
    seconds: i64,
}

impl Clock {
    /// A clock that is right. Its files are in `folder`, where containers see them too.
    pub(super) fn new(folder: &Path, host: u16) -> Result<Self> {
        let installed = library().context("libfaketime is not installed")?;
        let library = folder.join("libfaketime.so");
        if !library.exists() {
            fs::copy(installed, &library).context("cannot copy libfaketime")?;
        }
        let clock = Self {
            offset: folder.join(format!("clock-{host}")),
            library,
            seconds: 0,
        };
        clock.write()?;
        Ok(clock)
    }

    /// The variables that make a program use this clock.
    pub(super) fn env(&self) -> Vec<(String, String)> {
        let variables = [
            ("LD_PRELOAD", self.library.to_string_lossy()),
            ("FAKETIME_TIMESTAMP_FILE", self.offset.to_string_lossy()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
            ("FAKETIME_NO_CACHE", "1".into()),
        ];
        variables
            .map(|(name, value)| (name.to_owned(), value.into_owned()))
            .into()
    }

    /// Sets the clock by so many seconds.
    pub(super) fn jump(&mut self, seconds: i64) -> Result<()> {
        self.seconds += seconds;
        self.write()
    }

    fn write(&self) -> Result<()> {
        // Written beside and renamed: the library reads the file at any time.
        let beside = self.offset.with_extension("new");
        fs::write(&beside, format!("{:+}\n", self.seconds)).context("cannot write a clock's offset")?;
        fs::rename(&beside, &self.offset).context("cannot write a clock's offset")
    }
}
