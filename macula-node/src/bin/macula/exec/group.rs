//! A running command with everything that it starts: one process group, killed when it is dropped (N8).

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    os::fd::AsFd,
    process::{ExitStatus, Stdio},
};

use macula_node::Bytes;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
};

use super::{Process, User};

/// The end of a command's standard error that is logged, in bytes.
const MAX_ERROR_BYTES: usize = 4096;
/// The most bytes of one read.
const CHUNK_BYTES: usize = 16 * 1024;

/// A command that runs, its process the leader of the group.
pub(super) struct Group {
    child: Child,
    id: Option<Pid>,
}

/// A command that has ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) exit: ExitStatus,
    /// Its standard output; one byte more than allowed when it wrote too much.
    pub(super) output: Vec<u8>,
    /// The end of its standard error.
    pub(super) errors: String,
}

impl Group {
    pub(super) fn spawn(
        command: &str,
        environment: &BTreeMap<OsString, OsString>,
        process: &Process,
        call: [(&str, &str); 3],
    ) -> io::Result<Self> {
        let mut shell = Command::new("/bin/sh");
        if let Some(User { uid, gid }) = process.user {
            // The standard library leaves root's further groups behind, too.
            shell.uid(uid).gid(gid);
        }
        if let Some(folder) = &process.folder {
            shell.current_dir(folder);
        }
        let child = shell
            .args(["-c", command])
            .env_clear()
            .envs(environment)
            .envs(call)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Ok(Self { child, id })
    }

    /// Feeds the command and collects its output until it exits, or has written more than `max_output` bytes.
    pub(super) async fn run(mut self, input: Bytes, max_output: usize) -> io::Result<Ended> {
        let missing = || io::Error::other("a pipe to the command is missing");
        let mut stdin = self.child.stdin.take().ok_or_else(missing)?;
        let mut stdout = Pipe::new(
            self.child.stdout.take().ok_or_else(missing)?,
            max_output.saturating_add(1),
        );
        let mut stderr = Pipe::new(self.child.stderr.take().ok_or_else(missing)?, usize::MAX);
        let feed = async move {
            // A command need not read all of its input: `head` does not.
            let _ = stdin.write_all(&input).await;
        };
        tokio::pin!(feed);
        let mut fed = false;
        let exit = loop {
            tokio::select! {
                () = &mut feed, if !fed => fed = true,
                read = stdout.read(), if stdout.is_open() => read?,
                read = stderr.read(), if stderr.is_open() => {
                    read?;
                    stderr.keep_tail(MAX_ERROR_BYTES);
                }
                exit = self.child.wait() => break exit?,
            }
            if stdout.is_full() {
                self.kill();
                break self.child.wait().await?;
            }
        };
        // Children that it left behind end with it. Only the bytes that are in the pipes by now count.
        self.kill();
        stdout.drain();
        stderr.drain();
        stderr.keep_tail(MAX_ERROR_BYTES);
        let errors = String::from_utf8_lossy(&stderr.bytes).trim().to_owned();
        Ok(Ended {
            exit,
            output: stdout.bytes,
            errors,
        })
    }

    fn kill(&mut self) {
        if let Some(id) = self.id.take()
            && let Err(error) = kill_process_group(id, Signal::KILL)
        {
            tracing::trace!(%error, "the command's process group was gone already");
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A pipe from the command.
struct Pipe<P> {
    from: P,
    open: bool,
    bytes: Vec<u8>,
    max: usize,
}

impl<P: AsyncRead + AsFd + Unpin> Pipe<P> {
    fn new(from: P, max: usize) -> Self {
        Self {
            from,
            open: true,
            bytes: Vec::new(),
            max,
        }
    }

    fn is_open(&self) -> bool {
        self.open
    }

    fn is_full(&self) -> bool {
        self.bytes.len() >= self.max
    }

    /// Reads the next bytes. A dropped read loses none.
    async fn read(&mut self) -> io::Result<()> {
        let room = self.max.saturating_sub(self.bytes.len()).min(CHUNK_BYTES);
        let mut next = (&mut self.from).take(room as u64);
        self.bytes.reserve(room);
        if next.read_buf(&mut self.bytes).await? == 0 {
            self.open = false;
        }
        Ok(())
    }

    /// Empties the pipe without waiting: the runtime may not have noticed its last bytes yet.
    fn drain(&mut self) {
        let mut chunk = [0; CHUNK_BYTES];
        while self.open && !self.is_full() {
            let room = (self.max - self.bytes.len()).min(CHUNK_BYTES);
            match rustix::io::read(self.from.as_fd(), &mut chunk[..room]) {
                Ok(0) => self.open = false,
                Ok(read) => self.bytes.extend_from_slice(&chunk[..read]),
                Err(rustix::io::Errno::INTR) => {}
                // Empty, and a process outside the group holds it; or broken, which the exit code tells better.
                Err(_) => return,
            }
        }
    }

    fn keep_tail(&mut self, most: usize) {
        let surplus = self.bytes.len().saturating_sub(most);
        self.bytes.drain(..surplus);
    }
}
