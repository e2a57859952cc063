//! What a Command declares as outputs: paths lie below the input root, and where a naive model says.
//!
//! An input is text: the working directory in the first line, then a path a line.

use std::collections::BTreeSet;

use longshore_cas_store::name::{NAME_LEN_MAX, PATH_LEN_MAX, RelPath};
use longshore_proto::reapi;
use longshore_worker::output::declare;

/// Checks one input.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let working_directory = lines.next().unwrap_or_default();
    let paths: Vec<&str> = lines.collect();

    let expected = resolve(&[], working_directory);
    let parsed = RelPath::parse(working_directory);
    assert_eq!(
        parsed.as_ref().ok().map(|path| path.as_str().to_owned()),
        expected.as_ref().map(|p| p.join("/"))
    );
    let (Ok(parsed), Some(base)) = (parsed, expected) else { return };
    are_where_the_model_says(&parsed, &base, &paths);
    older_fields_agree(&parsed, &paths);
}

fn are_where_the_model_says(working_directory: &RelPath, base: &[&str], paths: &[&str]) {
    let command = reapi::Command {
        output_paths: paths.iter().map(|path| (*path).to_owned()).collect(),
        ..Default::default()
    };
    let expected: Option<Vec<_>> = paths.iter().map(|path| resolve(base, path)).collect();
    let declared = declare(&command, working_directory);
    let (Ok(declared), Some(_)) = (&declared, &expected) else {
        assert_eq!(declared.is_ok(), expected.is_some(), "{declared:?}");
        return;
    };
    let distinct: BTreeSet<_> = paths.iter().collect();
    assert_eq!(declared.paths.len(), distinct.len(), "each is declared once");
    for output in &declared.paths {
        assert!(distinct.contains(&output.declared.as_str()), "{output:?}");
        let expected = resolve(base, &output.declared).expect("all of them are possible").join("/");
        assert_eq!(output.path.as_str(), expected);
        // A result that says where the output is leads there again.
        assert_eq!(RelPath::parse(output.path.as_str()).as_ref(), Ok(&output.path));
        assert!(output.path.components().all(|name| !["", ".", ".."].contains(&name.as_str())));
    }
    let parents = declared.parents();
    assert!(parents.windows(2).all(|pair| pair[0] < pair[1]), "sorted, each once: {parents:?}");
    for parent in &parents {
        let mut outputs = declared.paths.iter().map(|output| output.path.parent());
        assert!(!parent.is_empty() && outputs.any(|above| above.as_ref() == Some(parent)), "{parent:?}");
    }
}

/// The fields of older clients take no path that the newer one does not, and none twice.
#[expect(deprecated, reason = "clients that speak REAPI 2.0 have no other fields")]
fn older_fields_agree(working_directory: &RelPath, paths: &[&str]) {
    let (files, directories) = paths.split_at(paths.len() / 2);
    let owned = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
    let command = reapi::Command {
        output_files: owned(files),
        output_directories: owned(directories),
        ..Default::default()
    };
    let Ok(declared) = declare(&command, working_directory) else { return };
    let newer = reapi::Command { output_paths: owned(paths), ..Default::default() };
    assert!(declare(&newer, working_directory).is_ok());
    let distinct: BTreeSet<_> = declared.paths.iter().map(|output| output.path.as_str()).collect();
    assert_eq!(distinct.len(), declared.paths.len());
}

/// Where a path leads from `base`, component by component; nothing if it must not.
fn resolve<'a>(base: &[&'a str], path: &'a str) -> Option<Vec<&'a str>> {
    let mut components = base.to_vec();
    if path.starts_with('/') {
        return None;
    }
    for component in path.split('/') {
        match component {
            "" | "." => {}
            ".." => {
                components.pop()?;
            }
            name if name.contains('\0') || name.len() > NAME_LEN_MAX => return None,
            name => components.push(name),
        }
    }
    (components.join("/").len() <= PATH_LEN_MAX).then_some(components)
}
