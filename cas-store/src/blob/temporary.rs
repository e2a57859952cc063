//! A file on its way into the store: nobody sees it before it is complete, and dropped it leaves nothing.
//!
//! *Crash safety*: where the file system has files without a name, a kill leaves nothing to clean; elsewhere
//! the file lies in scratch, which is cleared when the store is opened.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;

use super::layout::{Layout, blob_mtime};
use super::ledger::SlotKey;
use crate::dir::{Op, PathError, PathErrorExt, file};

/// A file without a name in the store.
#[derive(Debug)]
pub(crate) struct Temporary {
    file: File,
    /// Its name in scratch, where it needs one.
    name: Option<PathBuf>,
    layout: Arc<Layout>,
}

impl Temporary {
    /// Creates an empty file that will have `mode` in the store.
    pub(crate) fn create(layout: &Arc<Layout>, mode: u32) -> Result<Self, PathError> {
        let layout = layout.clone();
        if layout.has_unnamed_files() {
            let file = layout.scratch().create_unnamed(mode)?;
            return Ok(Self { file, name: None, layout });
        }
        let name = layout.temporary_name();
        let file = layout.scratch().create_file(&name, mode)?;
        Ok(Self { file, name: Some(name), layout })
    }

    /// The file, opened for writing.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Appends bytes.
    pub(crate) fn write(&self, data: &[u8]) -> Result<(), PathError> {
        (&self.file).write_all(data).at(Op::Write, "scratch")
    }

    /// The file, opened for reading from its start, independently of the writing.
    pub(crate) fn open_for_reading(&self) -> Result<File, PathError> {
        match &self.name {
            Some(name) => self.layout.scratch().open_file(name),
            None => file::reopen(&self.file),
        }
    }

    /// Gives the file its name in the store, in the place of whatever has it. The caller has taken the key.
    pub(crate) fn publish(&mut self, key: &SlotKey) -> Result<(), PathError> {
        let layout = self.layout.clone();
        file::set_mtime(&self.file, blob_mtime(), &layout.locate(key).1)?;
        if self.name.is_none() {
            match layout.in_shard(key, |dir, path| dir.link_file(&self.file, path)) {
                Err(error) if error.errno == Errno::EEXIST => {}
                outcome => return outcome,
            }
            // Only a name can be renamed over another.
            let name = layout.temporary_name();
            layout.scratch().link_file(&self.file, &name)?;
            self.name = Some(name);
        }
        let name = self.name.as_deref().expect("named above");
        layout.in_shard(key, |dir, path| layout.scratch().rename(name, dir, path))?;
        self.name = None;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let Some(name) = &self.name else { return };
        if let Err(error) = self.layout.scratch().remove_file(name) {
            tracing::warn!(%error, "a temporary file stays until the next start");
        }
    }
}
