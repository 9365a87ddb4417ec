//! Reading an instance's log over its rotated files, and following it.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;
use ketch_runtime::log::rotated;

use super::line::{Formatter, Query};

/// Bytes read at a time.
const CHUNK: usize = 64 << 10;
/// Between looks at a file that is followed.
const POLL: Duration = Duration::from_millis(100);
/// How long an ended container's log may still grow: it is written in the background.
const SETTLE: Duration = Duration::from_millis(500);
/// Longest line put together before it is passed on as it is.
const LONGEST: usize = 1 << 20;

/// A log being read.
pub(crate) struct Reader {
    path: PathBuf,
    /// Rotated files still to be read, then the current one.
    files: VecDeque<File>,
    current: Option<File>,
    skip: u64,
    formatter: Formatter,
    follow: bool,
    pending: Vec<u8>,
    ended: Option<Instant>,
    done: bool,
}

impl Reader {
    /// Opens the log at `path`. One that is not there yet is empty.
    ///
    /// # Errors
    /// When a file is there and cannot be read.
    pub(crate) fn open(path: &Path, query: &Query) -> io::Result<Self> {
        let mut files = open_all(path)?;
        let mut skip = 0;
        if let Some(lines) = query.tail {
            let (drop, offset) = tail_start(&mut files, lines)?;
            files.drain(..drop);
            skip = offset;
        }
        Ok(Self {
            path: path.to_owned(),
            files: files.into(),
            current: None,
            skip,
            formatter: Formatter::new(query),
            follow: query.follow,
            pending: Vec::new(),
            ended: None,
            done: query.limit == Some(0),
        })
    }

    /// The next piece; `None` at the end. `live` tells whether the container still runs. Cancel-safe: what
    /// was read is kept.
    pub(crate) async fn next(
        &mut self,
        live: &(dyn Fn() -> bool + Send + Sync),
    ) -> Option<io::Result<Bytes>> {
        while !self.done {
            match self.read() {
                Ok(bytes) if !bytes.is_empty() => return Some(Ok(bytes)),
                Ok(_) => {}
                Err(error) => {
                    self.done = true;
                    return Some(Err(error));
                }
            }
            if self.done {
                break;
            }
            if !self.follow || self.is_over(live()) {
                self.done = true;
                let mut out = Vec::new();
                self.flush(&mut out);
                return (!out.is_empty()).then(|| Ok(out.into()));
            }
            tokio::time::sleep(POLL).await;
        }
        None
    }

    /// Whether the container has ended, and long enough ago.
    fn is_over(&mut self, live: bool) -> bool {
        if live {
            self.ended = None;
            return false;
        }
        self.ended.get_or_insert_with(Instant::now).elapsed() >= SETTLE
    }

    /// What can be read now, formatted; empty at the end of what there is.
    fn read(&mut self) -> io::Result<Bytes> {
        let mut out = Vec::new();
        let mut buffer = vec![0; CHUNK];
        while out.is_empty() && !self.done {
            if self.current.is_none() && !self.open_next()? {
                break;
            }
            let Some(file) = &mut self.current else { break };
            let count = file.read(&mut buffer)?;
            if count == 0 {
                if self.is_last()? {
                    break;
                }
                self.current = None;
                continue;
            }
            self.pending.extend_from_slice(buffer.get(..count).unwrap_or_default());
            self.take_lines(&mut out);
        }
        Ok(out.into())
    }

    fn open_next(&mut self) -> io::Result<bool> {
        let next = match self.files.pop_front() {
            Some(file) => Some(file),
            None => present(File::open(&self.path))?,
        };
        let Some(mut file) = next else { return Ok(false) };
        file.seek(SeekFrom::Start(std::mem::take(&mut self.skip)))?;
        self.current = Some(file);
        Ok(true)
    }

    /// Whether the file being read is the one the container writes to.
    fn is_last(&self) -> io::Result<bool> {
        if !self.files.is_empty() {
            return Ok(false);
        }
        let Some(file) = &self.current else { return Ok(true) };
        let inode = file.metadata()?.ino();
        // It was rotated when another file, or none yet, has its name.
        Ok(present(std::fs::metadata(&self.path))?.is_none_or(|current| current.ino() == inode))
    }

    fn take_lines(&mut self, out: &mut Vec<u8>) {
        let mut start = 0;
        while let Some(length) =
            self.pending.get(start..).and_then(|rest| rest.iter().position(|b| *b == b'\n'))
        {
            self.formatter.add(self.pending.get(start..start + length).unwrap_or_default(), out);
            start += length + 1;
            if self.formatter.is_full() {
                self.done = true;
                return;
            }
        }
        self.pending.drain(..start);
        if self.pending.len() > LONGEST {
            self.flush(out);
        }
    }

    fn flush(&mut self, out: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            let pending = std::mem::take(&mut self.pending);
            self.formatter.add(&pending, out);
        }
    }
}

fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The log's files, oldest first.
fn open_all(path: &Path) -> io::Result<Vec<File>> {
    let mut files: Vec<File> = present(File::open(path))?.into_iter().collect();
    for number in 1.. {
        let Some(file) = present(File::open(rotated(path, number)))? else { break };
        files.insert(0, file);
    }
    Ok(files)
}

/// Where the last `lines` lines begin: files to leave out, and the offset in the first one that is left.
fn tail_start(files: &mut [File], lines: u64) -> io::Result<(usize, u64)> {
    let mut left = lines;
    for (index, file) in files.iter_mut().enumerate().rev() {
        let end = file.seek(SeekFrom::End(0))?;
        if left == 0 {
            // Nothing of what is there: begin at the end of the last file.
            return Ok((index, end));
        }
        let mut position = end;
        let mut buffer = vec![0; CHUNK];
        while position > 0 {
            let size = position.min(CHUNK as u64);
            position -= size;
            file.seek(SeekFrom::Start(position))?;
            let part = buffer.get_mut(..usize::try_from(size).unwrap_or(CHUNK)).unwrap_or_default();
            file.read_exact(part)?;
            for (at, _) in part.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
                let next = position + at as u64 + 1;
                if next == end {
                    continue;
                }
                left -= 1;
                if left == 0 {
                    return Ok((index, next));
                }
            }
        }
        // The first line of a file has no newline before it.
        left -= u64::from(end > 0);
        if left == 0 {
            return Ok((index, 0));
        }
    }
    Ok((0, 0))
}

/// The last lines of a log as text, at most `bytes` of it.
pub(crate) fn tail_text(path: &Path, lines: u64, bytes: usize) -> String {
    let query = Query { tail: Some(lines), ..Query::default() };
    let mut text = Vec::new();
    if let Ok(mut reader) = Reader::open(path, &query) {
        while let Ok(piece) = reader.read() {
            if piece.is_empty() {
                break;
            }
            text.extend_from_slice(&piece);
        }
    }
    let start = text.len().saturating_sub(bytes);
    String::from_utf8_lossy(text.get(start..).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use std::{
        fmt::Write as _,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
    };

    use super::*;

    fn lines(range: std::ops::Range<u32>) -> String {
        range.fold(String::new(), |mut text, n| {
            let _ = writeln!(text, "2026-01-01T00:00:00.{n:09}Z stdout F line {n}");
            text
        })
    }

    fn expected(range: std::ops::Range<u32>) -> String {
        range.map(|n| format!("line {n}\n")).collect()
    }

    async fn all(path: &Path, query: &Query) -> String {
        let (mut reader, mut text) = (Reader::open(path, query).unwrap(), Vec::new());
        while let Some(piece) = reader.next(&|| false).await {
            text.extend_from_slice(&piece.unwrap());
        }
        String::from_utf8(text).unwrap()
    }

    fn rotated_log(dir: &Path) -> PathBuf {
        let path = dir.join("0.log");
        std::fs::write(rotated(&path, 2), lines(0..10)).unwrap();
        std::fs::write(rotated(&path, 1), lines(10..5_000)).unwrap();
        std::fs::write(&path, lines(5_000..5_003)).unwrap();
        path
    }

    #[tokio::test]
    async fn rotated_files_are_part_of_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = rotated_log(dir.path());
        assert_eq!(all(&path, &Query::default()).await, expected(0..5_003));
        for (tail, from) in
            [(0, 5_003), (1, 5_002), (3, 5_000), (4, 4_999), (4_993, 10), (4_994, 9), (9_999, 0)]
        {
            let query = Query { tail: Some(tail), ..Query::default() };
            assert_eq!(all(&path, &query).await, expected(from..5_003), "tail {tail}");
        }
        assert_eq!(tail_text(&path, 2, 1000), expected(5_001..5_003));
        assert_eq!(all(&dir.path().join("none.log"), &Query::default()).await, "");
    }

    #[tokio::test]
    async fn following_goes_on_over_rotation_until_the_container_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let live = Arc::new(AtomicBool::new(true));
        let is_live = {
            let live = Arc::clone(&live);
            move || live.load(Ordering::Relaxed)
        };
        let query = Query { follow: true, ..Query::default() };
        let mut reader = Reader::open(&path, &query).unwrap();
        let mut text = String::new();
        std::fs::write(&path, lines(0..3)).unwrap();
        while text != expected(0..3) {
            text += std::str::from_utf8(&reader.next(&is_live).await.unwrap().unwrap()).unwrap();
        }
        // The last line of the old file comes with the rotation.
        std::fs::write(&path, lines(0..4)).unwrap();
        std::fs::rename(&path, rotated(&path, 1)).unwrap();
        std::fs::write(&path, lines(4..6)).unwrap();
        while text != expected(0..6) {
            text += std::str::from_utf8(&reader.next(&is_live).await.unwrap().unwrap()).unwrap();
        }
        live.store(false, Ordering::Relaxed);
        assert!(reader.next(&is_live).await.is_none());
    }
}
