//! Where a report goes: text to stdout, JSON into a file, or a pipe that somebody reads.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tokio::sync::oneshot;

use super::report::Report;
use crate::status_line::unless_gone;

/// Whether a report can be written there, as far as that can be told without changing anything.
pub(crate) fn check_writable(path: &Path) -> io::Result<()> {
    let known = fs::metadata(path).ok();
    // Whoever reads from a pipe would take our going for the end of the report.
    if known.as_ref().is_some_and(|known| known.file_type().is_fifo()) {
        return Ok(());
    }
    File::options().append(true).create(true).open(path)?;
    if known.is_some() {
        return Ok(());
    }
    // What was created is not the name itself where that is a symlink.
    fs::remove_file(fs::canonicalize(path)?)
}

/// Prints a report, and writes it to `json`; a `-` there is stdout, in place of the text.
///
/// It may be dropped: a pipe that nobody reads from takes as long as it likes.
pub(crate) async fn print(report: &Report, json: Option<&Path>) -> anyhow::Result<()> {
    let mut text = report.to_string();
    let mut file = None;
    if let Some(path) = json {
        let mut json = serde_json::to_string_pretty(report)?;
        json.push('\n');
        if path == Path::new("-") {
            text = json;
        } else {
            file = Some((path.to_owned(), json));
        }
    }
    let (sender, receiver) = oneshot::channel();
    // Whoever is interrupted does not wait for it, as the end of the runtime would for a task.
    std::thread::spawn(move || sender.send(write(&text, file)));
    receiver.await.context("the report was not written")?
}

/// The text comes first: it is there even if the file cannot be written.
fn write(text: &str, json: Option<(PathBuf, String)>) -> anyhow::Result<()> {
    let mut stdout = io::stdout();
    unless_gone(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()))
        .context("cannot write the report")?;
    let Some((path, json)) = json else { return Ok(()) };
    fs::write(&path, json).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_whether_a_report_can_be_written_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let [absent, link, old] = ["absent", "link", "old"].map(|name| folder.path().join(name));
        std::os::unix::fs::symlink("absent", &link).unwrap();
        fs::write(&old, "old").unwrap();
        for path in [&absent, &link, &old] {
            check_writable(path).unwrap();
        }
        assert!(!absent.exists() && link.is_symlink());
        assert_eq!(fs::read(&old).unwrap(), b"old");
        assert!(check_writable(folder.path()).is_err());
        assert!(check_writable(&folder.path().join("nowhere/report")).is_err());
    }
}
