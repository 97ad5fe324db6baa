//! What trainers write for people: shown to the data owner in the client's log, with the job and the round of the call that it was
//! written in, up to a limit, and never sent anywhere.

use crate::progress::{self, OnProgress};
use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read};
use std::process::{ChildStderr, ChildStdout};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tracing::Span;

/// Lines of one call that are shown; the rest is read and thrown away, so that the program never waits.
const MAX_LINES: usize = 500;
/// Lines that are kept for what may come of them.
const LAST_LINES: usize = 5;
/// How long is waited for the rest of the output of a program that has ended.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a line that are shown.
const MAX_LINE_BYTES: usize = 1000;
/// How the built-in trainer begins its lines; the log says it in its own way.
const TRAINERS_NAME: &str = "undertone-trainer: ";

/// Follows the output of one process until it ends.
pub(crate) struct Output {
    threads: Vec<JoinHandle<()>>,
    shown: Arc<Mutex<Shown>>,
}

/// What was shown of the call under way.
struct Shown {
    who: &'static str,
    call: Span,
    lines: usize,
    /// The last [`LAST_LINES`], for when the process breaks.
    last: VecDeque<String>,
}

impl Output {
    /// All that a program of the owner's writes in its one call. `on_progress` hears of the lines that tell of progress.
    pub(crate) fn of_program(
        (out, error): (Option<ChildStdout>, Option<ChildStderr>),
        on_progress: Option<OnProgress>,
    ) -> Self {
        let mut output = Self::of("program");
        let take = move |shown: &mut Shown, line: &str| match progress::of_line(line) {
            Some(progress) => {
                if let Some(listener) = &on_progress {
                    shown.call.in_scope(|| listener(progress));
                }
            }
            None => shown.line(line),
        };
        if let Some(pipe) = out {
            output.follow(pipe, take.clone());
        }
        if let Some(pipe) = error {
            output.follow(pipe, take);
        }
        output
    }

    /// The messages of the built-in trainer, which answers many calls and has its standard output for that.
    pub(crate) fn of_trainer(error: Option<ChildStderr>) -> Self {
        let mut output = Self::of("trainer");
        if let Some(pipe) = error {
            output.follow(pipe, |shown: &mut Shown, line: &str| {
                shown.line(line.strip_prefix(TRAINERS_NAME).unwrap_or(line));
            });
        }
        output
    }

    /// What the owner's condition of a pause writes on standard error.
    pub(crate) fn of_condition(error: Option<ChildStderr>) -> Self {
        let mut output = Self::of("pause command");
        if let Some(pipe) = error {
            output.follow(pipe, Shown::line);
        }
        output
    }

    fn of(who: &'static str) -> Self {
        let shown = Shown { who, call: Span::current(), lines: 0, last: VecDeque::new() };
        Self { threads: vec![], shown: Arc::new(Mutex::new(shown)) }
    }

    fn follow(
        &mut self,
        pipe: impl Read + Send + 'static,
        mut take: impl FnMut(&mut Shown, &str) + Send + 'static,
    ) {
        let shown = Arc::clone(&self.shown);
        let thread = std::thread::Builder::new()
            .name("output".into())
            .spawn(move || lines(pipe, |line| take(&mut lock(&shown), line)))
            .expect("the system can start a thread");
        self.threads.push(thread);
    }

    /// The process is asked something else: lines belong to the current span from now on.
    pub(crate) fn begin_call(&self) {
        let mut shown = lock(&self.shown);
        shown.call = Span::current();
        shown.lines = 0;
    }

    /// Waits until all is read. Where there are no namespaces, a process that left the program's group may live on and
    /// hold the pipes: it is not waited for. Gives the last lines, whether they were shown or not.
    pub(crate) fn end(self) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        while self.threads.iter().any(|thread| !thread.is_finished()) {
            if Instant::now() > deadline {
                let who = lock(&self.shown).who;
                tracing::warn!("the {who} left a process behind that still holds its output");
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        lock(&self.shown).last.drain(..).collect()
    }
}

impl Shown {
    fn line(&mut self, line: &str) {
        let (who, before) = (self.who, self.lines);
        self.lines += 1;
        if self.last.len() == LAST_LINES {
            self.last.pop_front();
        }
        self.last.push_back(line.to_owned());
        self.call.in_scope(|| match before {
            MAX_LINES => {
                tracing::warn!("the {who} writes more than {MAX_LINES} lines; the rest is not shown");
            }
            before if before < MAX_LINES => tracing::info!("{who}: {line}"),
            _ => {}
        });
    }
}

fn lock(shown: &Mutex<Shown>) -> MutexGuard<'_, Shown> {
    // Nothing is done under the lock that could leave it half-changed.
    shown.lock().unwrap_or_else(PoisonError::into_inner)
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
