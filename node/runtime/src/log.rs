//! Container log files in the CRI format, written off the path of whoever logs.
//!
//! A line is `<RFC 3339 time, nanoseconds> <stdout|stderr> <F|P> <text>`; `P` is a part of a line longer
//! than [`PART`]. One thread per [`Logs`] does the writing, behind all others, so that neither a slow disk nor
//! a flood of lines stalls anybody: what does not fit the pending buffer or the rate is dropped, counted and
//! reported in the log itself. Files rotate to `<path>.1` … `<path>.N`. Reading them is the node's business.
//!
//! Format: <https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md>

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::sync::Notify;

/// Longest text of one line of the file, in bytes; containerd's.
pub const PART: usize = 16 * 1024;

/// How long the thread rests after each time that it wrote. A program that logs line by line would wake it for
/// every line, and wait for it as often: both hold the same lock.
const REST: Duration = Duration::from_millis(2);

/// How long a file stays open after its last line: an idle container holds no descriptor.
const KEEP_OPEN: Duration = Duration::from_secs(2);

/// Bounds of one container's log.
#[derive(Clone, Copy, Debug)]
pub struct LogLimits {
    /// Bytes after which the file is rotated.
    pub file: u64,
    /// Files kept, the current one included.
    pub files: u32,
    /// Bytes per second accepted in the long run.
    pub rate: u64,
    /// Bytes accepted at once.
    pub burst: u64,
    /// Bytes held for the disk.
    pub pending: usize,
}

impl Default for LogLimits {
    /// 10 MiB × 5 files; 4 MiB/s after a burst of 16 MiB; 1 MiB pending.
    fn default() -> Self {
        Self { file: 10 << 20, files: 5, rate: 4 << 20, burst: 16 << 20, pending: 1 << 20 }
    }
}

/// Which of a program's outputs a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The writing thread and the way to it. The thread ends, after writing what is pending, when this and every
/// [`Log`] are gone.
pub struct Logs {
    limits: LogLimits,
    queue: Option<mpsc::Sender<Arc<Shared>>>,
    thread: Option<JoinHandle<()>>,
}

impl Logs {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the host has no thread left.
    pub fn new(limits: LogLimits) -> io::Result<Self> {
        let (queue, work) = mpsc::channel();
        let write = move || {
            crate::priority::step_back();
            write_all(&work);
        };
        let thread = std::thread::Builder::new().name("logs".into()).spawn(write)?;
        Ok(Self { limits, queue: Some(queue), thread: Some(thread) })
    }

    /// The log at `path`. Nothing is created before the first line.
    pub fn open(&self, path: &Path) -> Log {
        Log {
            shared: Arc::new(Shared {
                limits: self.limits,
                queued: AtomicBool::new(false),
                pending: Mutex::new(Pending::new(self.limits, Instant::now())),
                file: Mutex::new(LogFile::new(path, self.limits)),
                written: Notify::new(),
            }),
            queue: self.queue.clone(),
        }
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        self.queue = None;
        // Not joined: it lives as long as the last `Log`.
        drop(self.thread.take());
    }
}

impl std::fmt::Debug for Logs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Logs").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// One container's log; a cheap handle.
#[derive(Clone)]
pub struct Log {
    shared: Arc<Shared>,
    queue: Option<mpsc::Sender<Arc<Shared>>>,
}

impl Log {
    /// A writer that assembles lines of its own: give each instance one, and lines of two never mix.
    pub fn stream(&self, stream: Stream) -> LogStream {
        LogStream { log: self.clone(), stream, line: Vec::new() }
    }

    /// Writes `text` as lines of `stream`.
    pub fn line(&self, stream: Stream, text: &str) {
        let mut out = self.stream(stream);
        out.write(text.as_bytes());
    }

    /// Returns when all that was logged before the call is in the file, or could not be written.
    pub async fn flush(&self) {
        let target = {
            let mut pending = lock(&self.shared.pending);
            pending.closing = true;
            pending.accepted
        };
        self.wake();
        loop {
            let mut written = std::pin::pin!(self.shared.written.notified());
            written.as_mut().enable();
            {
                let pending = lock(&self.shared.pending);
                if pending.written >= target && pending.dropped == 0 || self.queue.is_none() {
                    return;
                }
            }
            written.await;
        }
    }

    fn append(&self, stream: Stream, full: bool, text: &[u8]) {
        lock(&self.shared.pending).append(stream, full, text, Timestamp::now(), Instant::now());
        self.wake();
    }

    fn wake(&self) {
        if !self.shared.queued.swap(true, Ordering::AcqRel)
            && let Some(queue) = &self.queue
        {
            // Without its thread the log is lost, and so is everything else of the daemon.
            _ = queue.send(Arc::clone(&self.shared));
        }
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("path", &lock(&self.shared.file).path).finish_non_exhaustive()
    }
}

/// Bytes to lines. A last line without its end is written when this is dropped.
#[derive(Debug)]
pub struct LogStream {
    log: Log,
    stream: Stream,
    line: Vec<u8>,
}

impl LogStream {
    /// Takes bytes as they come. Never blocks on the disk.
    pub fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = PART - self.line.len();
            let window = bytes.get(..room.min(bytes.len())).unwrap_or(bytes);
            let (taken, end) = match window.iter().position(|byte| *byte == b'\n') {
                Some(position) => (position, true),
                None => (window.len(), false),
            };
            let (text, rest) = bytes.split_at(taken);
            self.line.extend_from_slice(text);
            bytes = if end { rest.get(1..).unwrap_or_default() } else { rest };
            if end || self.line.len() == PART {
                self.log.append(self.stream, end, &self.line);
                self.line.clear();
            }
        }
    }
}

impl Drop for LogStream {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.log.append(self.stream, true, &self.line);
        }
    }
}

/// What the writers and the thread share.
struct Shared {
    limits: LogLimits,
    /// Whether it waits in the thread's queue already.
    queued: AtomicBool,
    pending: Mutex<Pending>,
    file: Mutex<LogFile>,
    written: Notify,
}

/// Lines on their way to the disk. Pure: time comes in.
struct Pending {
    limits: LogLimits,
    lines: Vec<u8>,
    /// Bytes taken, and of those written or given up.
    accepted: u64,
    written: u64,
    dropped: u64,
    reported: Option<Instant>,
    closing: bool,
    tokens: u64,
    refilled: Instant,
}

impl Pending {
    fn new(limits: LogLimits, now: Instant) -> Self {
        Self {
            limits,
            lines: Vec::new(),
            accepted: 0,
            written: 0,
            dropped: 0,
            reported: None,
            closing: false,
            tokens: limits.burst,
            refilled: now,
        }
    }

    fn append(&mut self, stream: Stream, full: bool, text: &[u8], time: Timestamp, now: Instant) {
        self.refill(now);
        let cost = text.len() as u64 + 48;
        if cost > self.tokens || self.lines.len() + text.len() > self.limits.pending {
            self.dropped += 1;
            return;
        }
        self.tokens -= cost;
        self.push(stream, full, text, time);
    }

    fn push(&mut self, stream: Stream, full: bool, text: &[u8], time: Timestamp) {
        let before = self.lines.len();
        // Writing to a Vec does not fail.
        _ = write!(self.lines, "{time:.9} {} {} ", stream.name(), if full { "F" } else { "P" });
        self.lines.extend_from_slice(text);
        self.lines.push(b'\n');
        self.accepted += (self.lines.len() - before) as u64;
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.refilled);
        let tokens = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX).saturating_mul(self.limits.rate)
            / 1_000_000;
        if tokens > 0 {
            self.tokens = self.tokens.saturating_add(tokens).min(self.limits.burst);
            self.refilled = now;
        }
    }

    /// What to write now, with a notice of what was dropped: at most one a second, and one at the end.
    fn take(&mut self, time: Timestamp, now: Instant) -> Vec<u8> {
        let due =
            self.reported.is_none_or(|last| now.saturating_duration_since(last) >= Duration::from_secs(1));
        if self.dropped > 0 && (due || self.closing) {
            let text =
                format!("[{} log lines dropped: the container logs faster than is kept]", self.dropped);
            self.push(Stream::Stderr, true, text.as_bytes(), time);
            self.dropped = 0;
            self.reported = Some(now);
        }
        self.closing = false;
        std::mem::take(&mut self.lines)
    }
}

/// The files: append, rotate, close when idle.
struct LogFile {
    path: PathBuf,
    limits: LogLimits,
    open: Option<(File, u64)>,
    used: Option<Instant>,
    failed: bool,
}

impl LogFile {
    fn new(path: &Path, limits: LogLimits) -> Self {
        Self { path: path.to_owned(), limits, open: None, used: None, failed: false }
    }

    fn write(&mut self, mut lines: &[u8], now: Instant) {
        self.used = Some(now);
        while !lines.is_empty() {
            match self.write_some(lines) {
                Ok(rest) => {
                    lines = rest;
                    self.failed = false;
                }
                Err(error) => {
                    if !self.failed {
                        tracing::warn!(path = %self.path.display(), %error, "cannot write a container's log");
                    }
                    self.failed = true;
                    self.open = None;
                    return;
                }
            }
        }
    }

    /// Writes up to the next rotation, whole lines; returns what is left.
    fn write_some<'a>(&mut self, lines: &'a [u8]) -> io::Result<&'a [u8]> {
        let limits = self.limits;
        let (file, size) = self.opened()?;
        let room = usize::try_from(limits.file.saturating_sub(*size)).unwrap_or(usize::MAX);
        let end = whole_lines(lines, room);
        let (now, rest) = lines.split_at(end);
        file.write_all(now)?;
        *size += now.len() as u64;
        if *size >= limits.file || !rest.is_empty() {
            self.rotate()?;
        }
        Ok(rest)
    }

    fn opened(&mut self) -> io::Result<&mut (File, u64)> {
        match &mut self.open {
            Some(open) => Ok(open),
            empty => {
                if let Some(parent) = self.path.parent() {
                    std::fs::create_dir_all(parent)?;
                }
                let file = OpenOptions::new().create(true).append(true).open(&self.path)?;
                let size = file.metadata()?.len();
                Ok(empty.insert((file, size)))
            }
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.open = None;
        let kept = self.limits.files.saturating_sub(1);
        if kept == 0 {
            return std::fs::remove_file(&self.path);
        }
        for number in (1..kept).rev() {
            rename_if_present(&rotated(&self.path, number), &rotated(&self.path, number + 1))?;
        }
        rename_if_present(&self.path, &rotated(&self.path, 1))
    }

    fn close_if_idle(&mut self, now: Instant) -> bool {
        let idle = self.used.is_none_or(|used| now.saturating_duration_since(used) >= KEEP_OPEN);
        if idle {
            self.open = None;
        }
        idle
    }
}

/// Name of the `number`th file before the current one of `path`; 1 is the newest.
pub fn rotated(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

fn rename_if_present(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Length of the lines that fit `room`, at least one.
fn whole_lines(lines: &[u8], room: usize) -> usize {
    if lines.len() <= room {
        return lines.len();
    }
    let fitting = lines.get(..room).unwrap_or_default();
    let end = match fitting.iter().rposition(|byte| *byte == b'\n') {
        Some(position) => position,
        None => lines.iter().position(|byte| *byte == b'\n').unwrap_or(lines.len() - 1),
    };
    end + 1
}

/// The thread: writes what is pending until every handle is gone.
fn write_all(work: &mpsc::Receiver<Arc<Shared>>) {
    let mut open: Vec<Arc<Shared>> = Vec::new();
    loop {
        let next = if open.is_empty() {
            work.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected)
        } else {
            work.recv_timeout(KEEP_OPEN / 2)
        };
        match next {
            Ok(first) => {
                let others: Vec<_> = work.try_iter().collect();
                for shared in std::iter::once(first).chain(others) {
                    write_pending(&shared);
                    if !open.iter().any(|other| Arc::ptr_eq(other, &shared)) {
                        open.push(shared);
                    }
                }
                std::thread::sleep(REST);
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
        let now = Instant::now();
        open.retain(|shared| !idle(shared, now));
    }
}

fn write_pending(shared: &Shared) {
    shared.queued.store(false, Ordering::Release);
    let (lines, taken) = {
        let mut pending = lock(&shared.pending);
        let lines = pending.take(Timestamp::now(), Instant::now());
        (lines, pending.accepted)
    };
    lock(&shared.file).write(&lines, Instant::now());
    lock(&shared.pending).written = taken;
    shared.written.notify_waiters();
}

/// Whether the file could be closed; reports what was dropped last.
fn idle(shared: &Shared, now: Instant) -> bool {
    if lock(&shared.pending).dropped > 0 {
        write_pending(shared);
    }
    lock(&shared.file).close_if_idle(now)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("limits", &self.limits).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(path: &Path) -> Vec<String> {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .lines()
            .map(|line| line.split_once(' ').unwrap().1.to_owned())
            .collect()
    }

    #[tokio::test]
    async fn lines_are_in_the_cri_format() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod/web/0.log");
        let logs = Logs::new(LogLimits::default()).unwrap();
        let log = logs.open(&path);
        let mut out = log.stream(Stream::Stdout);
        out.write(b"one\ntw");
        out.write(b"o\n");
        log.line(Stream::Stderr, "three\n\nno end");
        log.flush().await;
        assert_eq!(
            texts(&path),
            ["stdout F one", "stdout F two", "stderr F three", "stderr F ", "stderr F no end"]
        );
        let text = std::fs::read_to_string(&path).unwrap();
        let time = text.split(' ').next().unwrap();
        assert_eq!(time.len(), "2006-01-02T15:04:05.000000000Z".len());
        time.parse::<Timestamp>().unwrap();
    }

    #[tokio::test]
    async fn long_lines_come_in_parts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let logs = Logs::new(LogLimits::default()).unwrap();
        let log = logs.open(&path);
        log.line(Stream::Stdout, &format!("{}\n", "x".repeat(2 * PART + 7)));
        log.flush().await;
        let lengths: Vec<_> =
            texts(&path).iter().map(|text| (text[7..8].to_owned(), text.len() - 9)).collect();
        assert_eq!(lengths, [("P".into(), PART), ("P".into(), PART), ("F".into(), 7)]);
    }

    #[tokio::test]
    async fn files_rotate_between_lines_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let limits = LogLimits { file: 1000, files: 3, ..LogLimits::default() };
        let logs = Logs::new(limits).unwrap();
        let log = logs.open(&path);
        for number in 0..100 {
            log.line(Stream::Stdout, &format!("line {number:03}\n"));
        }
        log.flush().await;
        assert!(!rotated(&path, 3).exists());
        let mut kept = texts(&rotated(&path, 2));
        kept.extend(texts(&rotated(&path, 1)));
        kept.extend(texts(&path));
        let expected: Vec<_> =
            (100 - kept.len()..100).map(|number| format!("stdout F line {number:03}")).collect();
        assert_eq!(kept, expected);
        assert!(std::fs::metadata(rotated(&path, 1)).unwrap().len() <= 1000);
    }

    #[test]
    fn a_flood_is_cut_and_counted() {
        let start = Instant::now();
        let limits = LogLimits { rate: 1000, burst: 1000, ..LogLimits::default() };
        let mut pending = Pending::new(limits, start);
        for _ in 0..100 {
            pending.append(Stream::Stdout, true, &[b'x'; 52], Timestamp::UNIX_EPOCH, start);
        }
        let lines = String::from_utf8(pending.take(Timestamp::UNIX_EPOCH, start)).unwrap();
        assert_eq!(lines.lines().count(), 11);
        assert!(lines.contains("[90 log lines dropped"), "{lines}");
        pending.append(Stream::Stdout, true, b"after", Timestamp::UNIX_EPOCH, start + Duration::from_secs(1));
        let lines = pending.take(Timestamp::UNIX_EPOCH, start + Duration::from_secs(1));
        assert!(lines.ends_with(b" stdout F after\n"));
    }

    #[tokio::test]
    async fn the_file_continues_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        for _ in 0..2 {
            let logs = Logs::new(LogLimits::default()).unwrap();
            let log = logs.open(&path);
            log.line(Stream::Stdout, "again\n");
            log.flush().await;
        }
        assert_eq!(texts(&path).len(), 2);
    }

    #[tokio::test]
    async fn an_unwritable_file_blocks_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file/0.log");
        std::fs::write(dir.path().join("file"), "not a directory").unwrap();
        let logs = Logs::new(LogLimits::default()).unwrap();
        let log = logs.open(&path);
        log.line(Stream::Stdout, "lost\n");
        log.flush().await;
    }
}
