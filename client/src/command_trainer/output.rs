//! What a training program writes to its standard output and error: shown to the data owner in the client's log, up to a
//! limit, and never sent anywhere.

use crate::progress::{self, OnProgress};
use std::io::{BufRead as _, BufReader, Read};
use std::process::{ChildStderr, ChildStdout};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Lines of one call that are shown; the rest is read and thrown away, so that the program never waits.
const MAX_LINES: usize = 500;
/// How long is waited for the rest of the output of a program that has ended.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a line that are shown.
const MAX_LINE_BYTES: usize = 1000;

/// Follows the output until it ends.
pub(super) struct Output(Vec<JoinHandle<()>>);

impl Output {
    pub(super) fn follow(
        (out, error): (Option<ChildStdout>, Option<ChildStderr>),
        on_progress: Option<OnProgress>,
    ) -> Self {
        let shown = Arc::new(AtomicUsize::new(0));
        let follow = |pipe: Box<dyn Read + Send>| {
            let (shown, on_progress, span) =
                (Arc::clone(&shown), on_progress.clone(), tracing::Span::current());
            std::thread::Builder::new()
                .name("output".into())
                .spawn(move || {
                    let _in_span = span.entered();
                    lines(pipe, |line| match progress::of_line(line) {
                        Some(progress) => {
                            if let Some(listener) = &on_progress {
                                listener(progress);
                            }
                        }
                        None => show(line, shown.fetch_add(1, Ordering::Relaxed)),
                    });
                })
                .expect("the system can start a thread")
        };
        let pipes: [Option<Box<dyn Read + Send>>; 2] =
            [out.map(|pipe| Box::new(pipe) as _), error.map(|pipe| Box::new(pipe) as _)];
        Self(pipes.into_iter().flatten().map(follow).collect())
    }

    /// Waits until all is read. Where there are no namespaces, a process that left the program's group may live on and
    /// hold the pipes: it is not waited for.
    pub(super) fn end(self) {
        let deadline = Instant::now() + PATIENCE;
        while self.0.iter().any(|thread| !thread.is_finished()) {
            if Instant::now() > deadline {
                tracing::warn!("the training program left a process behind that still holds its output");
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn show(line: &str, before: usize) {
    match before {
        MAX_LINES => {
            tracing::warn!("the training program writes more than {MAX_LINES} lines; the rest is not shown")
        }
        before if before < MAX_LINES => tracing::info!("program: {line}"),
        _ => {}
    }
}

/// Reads lines of any bytes; what is no text, or would steer a terminal, is shown as escapes, and long lines are cut.
fn lines(pipe: impl Read, mut take: impl FnMut(&str)) {
    let mut pipe = BufReader::new(pipe);
    let mut line = Vec::new();
    let mut cut = false;
    loop {
        let chunk = match pipe.fill_buf() {
            Ok(chunk) => chunk,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        if chunk.is_empty() {
            break;
        }
        let (piece, ends, used) = match chunk.iter().position(|&b| b == b'\n') {
            Some(at) => (&chunk[..at], true, at + 1),
            None => (chunk, false, chunk.len()),
        };
        let room = MAX_LINE_BYTES - line.len();
        cut |= piece.len() > room;
        line.extend_from_slice(&piece[..piece.len().min(room)]);
        pipe.consume(used);
        if ends {
            take(&clean(&line, cut));
            line.clear();
            cut = false;
        }
    }
    if !line.is_empty() {
        take(&clean(&line, cut));
    }
}

fn clean(line: &[u8], cut: bool) -> String {
    let text = String::from_utf8_lossy(line);
    let mut clean = String::with_capacity(text.len());
    for c in text.trim_end_matches('\r').chars() {
        match c {
            '\t' => clean.push(' '),
            c if c.is_control() => clean.extend(c.escape_default()),
            c => clean.push(c),
        }
    }
    if cut {
        clean.push('…');
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> Vec<String> {
        let mut found = vec![];
        lines(bytes, |line| found.push(line.to_owned()));
        found
    }

    #[test]
    fn lines_are_shown_without_what_steers_a_terminal() {
        assert_eq!(all(b"one\r\ntwo\n\nlast"), ["one", "two", "", "last"]);
        assert_eq!(all(b"\x1b[31mred\x07\n"), ["\\u{1b}[31mred\\u{7}"]);
        assert_eq!(all(b"\xff\xfe\n"), ["\u{fffd}\u{fffd}"]);
        let long = vec![b'x'; 5 * MAX_LINE_BYTES];
        let shown = all(&[&long[..], b"\nnext\n"].concat());
        assert_eq!(shown.len(), 2);
        assert_eq!(shown[0].chars().count(), MAX_LINE_BYTES + 1);
        assert!(shown[0].ends_with('…'));
        assert!(all(b"").is_empty());
    }
}
