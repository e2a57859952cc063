//! The output paths of an `ActionResult` that a client uploads: another client will write to them.
//!
//! None may lead out of the input root, be used twice, or lie below a file or a link: whoever follows a link that the
//! result itself made can be led anywhere. Directories may lie within directories.

use std::collections::BTreeMap;

use longshore_cas_store::name::RelPath;
use longshore_proto::reapi;

use crate::status::Failure;

/// What a path is said to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    File,
    Directory,
    /// In the list of REAPI 2.1, which names every link.
    Link,
    /// In one of the two lists that came before it.
    OldLink,
}

/// Checks every output path of `result`; they are relative to `working_directory`.
pub(super) fn check(working_directory: &str, result: &reapi::ActionResult) -> Result<(), Failure> {
    let base = RelPath::parse(working_directory)
        .map_err(|error| Failure::invalid(format!("command.working_directory: {error}")))?;
    let mut known: BTreeMap<String, Kind> = BTreeMap::new();
    for (path, kind) in paths(result) {
        let wrong = |reason: &str| Failure::invalid(format!("action_result: output path {path:?}: {reason}"));
        let resolved = base.join(path).map_err(|error| wrong(&error.to_string()))?;
        if resolved.is_empty() && kind != Kind::Directory {
            return Err(wrong("is the input root"));
        }
        match known.insert(resolved.as_str().to_owned(), kind) {
            None => {}
            // A link may be in an old list and in the new one.
            Some(Kind::Link) if kind == Kind::OldLink => {}
            Some(_) => return Err(wrong("is used twice")),
        }
    }
    let mut paths: Vec<_> = known.iter().collect();
    // What lies below a path follows it at once.
    paths.sort_unstable_by(|(a, _), (b, _)| a.split('/').cmp(b.split('/')));
    let mut leaf: Option<&str> = None;
    for (path, kind) in paths {
        if let Some(leaf) =
            leaf.filter(|leaf| path.strip_prefix(leaf).is_some_and(|rest| rest.starts_with('/')))
        {
            let message =
                format!("action_result: output path {path:?}: lies below {leaf:?}, which is no directory");
            return Err(Failure::invalid(message));
        }
        if *kind != Kind::Directory {
            leaf = Some(path);
        }
    }
    Ok(())
}

#[expect(deprecated, reason = "clients of REAPI 2.0 fill the old lists of links")]
fn paths(result: &reapi::ActionResult) -> impl Iterator<Item = (&str, Kind)> {
    let files = result.output_files.iter().map(|file| (file.path.as_str(), Kind::File));
    let directories =
        result.output_directories.iter().map(|directory| (directory.path.as_str(), Kind::Directory));
    let links = result.output_symlinks.iter().map(|link| (link.path.as_str(), Kind::Link));
    let old_links = result.output_file_symlinks.iter().chain(&result.output_directory_symlinks);
    let old_links = old_links.map(|link| (link.path.as_str(), Kind::OldLink));
    files.chain(directories).chain(links).chain(old_links)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> reapi::OutputFile {
        reapi::OutputFile { path: path.to_owned(), ..Default::default() }
    }

    fn link(path: &str) -> reapi::OutputSymlink {
        reapi::OutputSymlink { path: path.to_owned(), target: "/etc".to_owned(), ..Default::default() }
    }

    fn directory(path: &str) -> reapi::OutputDirectory {
        reapi::OutputDirectory { path: path.to_owned(), ..Default::default() }
    }

    // A client that trusts the cache must not be made to write outside of its tree.
    #[test]
    #[expect(deprecated, reason = "clients of REAPI 2.0 fill the old lists of links")]
    fn paths_that_lead_elsewhere_are_refused() {
        let files = |paths: &[&str]| reapi::ActionResult {
            output_files: paths.iter().map(|path| file(path)).collect(),
            ..Default::default()
        };
        let below_link = |below: &str| reapi::ActionResult {
            output_symlinks: vec![link("a")],
            output_file_symlinks: vec![link("a")],
            ..files(&[below])
        };
        for fine in [
            files(&["a", "b", "../c", "a-b"]),
            below_link("ab"),
            reapi::ActionResult {
                output_directories: vec![directory("d"), directory("d/e"), directory("..")],
                ..files(&["d/f"])
            },
        ] {
            assert_eq!(check("work", &fine), Ok(()), "{fine:?}");
        }
        let twice = reapi::ActionResult { output_directories: vec![directory("a")], ..files(&["a"]) };
        for wrong in [
            files(&["/etc/passwd"]),
            files(&["../../out"]),
            files(&["a", "a"]),
            files(&["a", "b/../a"]),
            files(&["a", "a/b"]),
            files(&["a/b/c/d", "a-b", "a"]),
            files(&[".."]),
            files(&["a\0b"]),
            below_link("a/passwd"),
            below_link("a"),
            twice,
        ] {
            assert!(check("work", &wrong).is_err(), "{wrong:?}");
        }
    }
}
