#![expect(deprecated, reason = "clients that speak REAPI 2.0 have no other fields")]

use longshore_cas_store::name::NodeName;
use proptest::prelude::*;

use super::*;

fn strings(paths: &[&str]) -> Vec<String> {
    paths.iter().map(|&path| path.to_owned()).collect()
}

fn paths(from: &str, paths: &[&str]) -> Result<DeclaredOutputs, DeclareError> {
    let command = reapi::Command { output_paths: strings(paths), ..Default::default() };
    declare(&command, &RelPath::parse(from).unwrap())
}

fn older(files: &[&str], directories: &[&str]) -> Result<DeclaredOutputs, DeclareError> {
    let command = reapi::Command {
        output_files: strings(files),
        output_directories: strings(directories),
        ..Default::default()
    };
    declare(&command, &RelPath::default())
}

fn resolved(outputs: &DeclaredOutputs) -> Vec<(&str, &str)> {
    outputs.paths.iter().map(|output| (output.declared.as_str(), output.path.as_str())).collect()
}

// OUT-01: some clients fill all three fields.
#[test]
fn output_paths_hide_the_older_fields() {
    let command = reapi::Command {
        output_paths: strings(&["a"]),
        output_files: strings(&["/b"]),
        output_directories: strings(&["../.."]),
        ..Default::default()
    };
    let outputs = declare(&command, &RelPath::default()).unwrap();
    assert_eq!(resolved(&outputs), [("a", "a")]);
}

// OUT-03, OUT-05, OUT-06, OUT-07, OUT-12: relative to the working directory, echoed as given.
#[test]
fn paths_resolve_against_the_working_directory() {
    let cases = [
        ("src", "x", "src/x"),
        ("src", "../lib/x", "lib/x"),
        ("src", "d/", "src/d"),
        ("src", "a//./b", "src/a/b"),
        ("src", "", "src"),
        ("src", ".", "src"),
        ("", "", ""),
        ("a/b", "../../", ""),
    ];
    for (from, declared, expected) in cases {
        let outputs = paths(from, &[declared]).unwrap();
        assert_eq!(resolved(&outputs), [(declared, expected)], "from {from:?}");
    }
}

// OUT-04, OUT-06, OUT-07.
#[test]
fn paths_that_leave_the_input_root_are_refused() {
    for (from, declared) in [("", "/etc"), ("", "../x"), ("a", "../../x"), ("a", "../../a/x"), ("", "a\0b")] {
        let error = paths(from, &[declared]).unwrap_err();
        assert!(matches!(error, DeclareError::Path { field: "output_paths", .. }), "{declared:?}: {error}");
    }
}

// OUT-08, OUT-11.
#[test]
fn output_paths_may_nest_and_are_taken_once() {
    let outputs = paths("", &["d", "d/f", "d", "d/"]).unwrap();
    assert_eq!(resolved(&outputs), [("d", "d"), ("d/f", "d/f"), ("d/", "d")]);
}

// OUT-09, OUT-10.
#[test]
fn older_fields_must_not_contradict_each_other() {
    let refused: [(&[&str], &[&str]); 8] = [
        (&["a", "a"], &[]),
        (&["a", "./a"], &[]),
        (&["a", "a/b/c"], &[]),
        (&["a"], &["a/"]),
        (&[], &["a", "a"]),
        (&["a/b", "a"], &[]),
        (&["a", "a-b", "a/b/c", "a/b-c"], &[]),
        (&["a", "."], &[]),
    ];
    for (files, directories) in refused {
        let error = older(files, directories).unwrap_err();
        assert!(matches!(error, DeclareError::Conflict { .. }), "{files:?} {directories:?}: {error}");
    }
    let accepted: [(&[&str], &[&str]); 3] =
        [(&["a", "ab", "b/a"], &[]), (&["a/f"], &["a"]), (&[], &["a", "a/b"])];
    for (files, directories) in accepted {
        let outputs = older(files, directories).unwrap();
        assert_eq!(outputs.paths.len(), files.len() + directories.len(), "{files:?} {directories:?}");
    }
}

// OUT-13, OUT-14: the parents, and never an output itself.
#[test]
fn parents_are_listed_once_and_sorted() {
    let outputs = paths("w", &["b/x", "a/y/z", "b/u", "top", ".", "../other"]).unwrap();
    let parents = outputs.parents();
    let parents: Vec<_> = parents.iter().map(RelPath::as_str).collect();
    assert_eq!(parents, ["w", "w/a/y", "w/b"]);
}

// OUT-22, CMD-22.
#[test]
fn properties_and_formats_are_the_ones_we_know() {
    let declared = |properties: &[&str], format| {
        let command = reapi::Command {
            output_node_properties: strings(properties),
            output_directory_format: format,
            ..Default::default()
        };
        declare(&command, &RelPath::default())
    };
    let outputs = declared(&["mtime"], 1).unwrap();
    assert_eq!(outputs.node_properties, ReportedProperties { mtime: true, unix_mode: false });
    assert_eq!(outputs.directory_format, DirectoryFormat::DirectoryOnly);
    assert_eq!(declared(&[], 99).unwrap().directory_format, DirectoryFormat::TreeOnly);
    assert_eq!(declared(&["ctime"], 0), Err(DeclareError::Property("ctime".to_owned())));
}

proptest! {
    // Whatever a client sends, an accepted output is a chain of plain names below the input root.
    #[test]
    fn accepted_paths_stay_inside(from in "[ab/.]{0,6}", path in "[ab./\0]{0,10}") {
        let Ok(from) = RelPath::parse(&from) else { return Ok(()) };
        let command = reapi::Command { output_paths: vec![path], ..Default::default() };
        if let Ok(outputs) = declare(&command, &from) {
            for name in outputs.paths[0].path.components() {
                prop_assert!(NodeName::parse(name.as_str()).is_ok());
            }
        }
    }
}
