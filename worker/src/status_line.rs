//! The line at the bottom of a terminal that says what longshore is doing, and logs that do not tear it.

use std::io::{self, IsTerminal as _, Write};
use std::str::FromStr as _;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context as _;
use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// How often the line is drawn anew.
const REFRESH: Duration = Duration::from_millis(200);

static LINE: OnceLock<ProgressBar> = OnceLock::new();

/// The line, which lives until it is stopped; nothing where stderr is no terminal.
pub(crate) struct StatusLine {
    task: Option<tokio::task::JoinHandle<()>>,
}

impl StatusLine {
    /// Shows what `text` says, again and again.
    pub(crate) fn start(text: impl Fn() -> String + Send + 'static) -> Self {
        if !io::stderr().is_terminal() {
            return Self { task: None };
        }
        let bar = LINE.get_or_init(|| {
            let style = ProgressStyle::with_template("{spinner} {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new_spinner().with_style(style)
        });
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(REFRESH);
            loop {
                ticks.tick().await;
                bar.set_message(text());
                bar.tick();
            }
        });
        Self { task: Some(task) }
    }

    pub(crate) fn stop(self) {
        if let Some(task) = self.task {
            task.abort();
            if let Some(bar) = LINE.get() {
                bar.finish_and_clear();
            }
        }
    }
}

/// A line of its own for a command that goes on for a while; nothing where stderr is no terminal.
pub(crate) struct Bar(Option<&'static ProgressBar>);

impl Bar {
    /// For something whose length is not known.
    pub(crate) fn spinner() -> Self {
        Self::start("{spinner} {wide_msg}", None)
    }

    /// For so many steps.
    pub(crate) fn steps(count: u64) -> Self {
        Self::start("{elapsed_precise} {wide_bar} {pos}/{len} {msg} {eta}", Some(count))
    }

    fn start(template: &str, count: Option<u64>) -> Self {
        if !io::stderr().is_terminal() {
            return Self(None);
        }
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = LINE.get_or_init(ProgressBar::no_length);
        bar.set_style(style);
        bar.reset();
        if let Some(count) = count {
            bar.set_length(count);
        }
        bar.enable_steady_tick(REFRESH);
        Self(Some(bar))
    }

    pub(crate) fn message(&self, text: &str) {
        if let Some(bar) = self.0 {
            bar.set_message(text.to_owned());
        }
    }

    /// Tells a log what the line shows; nothing where there is one.
    pub(crate) fn line(&self, text: &str) {
        if self.0.is_none() {
            say(text);
        }
    }

    pub(crate) fn step(&self) {
        if let Some(bar) = self.0 {
            bar.inc(1);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = self.0 {
            bar.finish_and_clear();
        }
    }
}

/// A size for people.
pub(crate) fn size(bytes: u64) -> BinaryBytes {
    BinaryBytes(bytes)
}

/// Tells the person at the terminal, above the line if there is one. Whoever read it may have gone.
pub(crate) fn say(text: &str) {
    let _ = writeln!(Above, "longshore: {text}");
}

/// What came of writing to stdout, where it is no error that whoever read it has seen enough and gone.
///
/// # Errors
/// Any other that there was.
pub fn unless_gone(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Logs to stderr what `LONGSHORE_LOG` asks for; by default `info`, and `warn` at a terminal, where the status line tells
/// of actions and a line for each of them would bury what matters.
///
/// # Errors
/// A variable that asks for nothing that can be understood.
pub fn start_logging() -> anyhow::Result<()> {
    let wanted = std::env::var("LONGSHORE_LOG").unwrap_or_default();
    let default = if io::stderr().is_terminal() { "warn" } else { "info" };
    let wanted = if wanted.is_empty() { default } else { &wanted };
    let expected = || format!("LONGSHORE_LOG={wanted}: expected error, warn, info or debug");
    // The filter takes a word that is no level for the name of a module, of which it then tells everything.
    if wanted.chars().all(char::is_alphanumeric) {
        LevelFilter::from_str(wanted).with_context(expected)?;
    }
    let filter = EnvFilter::try_new(wanted).with_context(expected)?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(|| Above)
        .init();
    Ok(())
}

/// Writes to stderr, above the status line if there is one.
struct Above;

impl Write for Above {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match LINE.get() {
            Some(bar) => bar.suspend(|| io::stderr().write(bytes)),
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
