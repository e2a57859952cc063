//! The rules of `docs/architecture.md`, kept: who may depend on whom, and what a room may not reach for.
//!
//! The checks read the source as text. That is enough for code that rustfmt laid out, and each check has a
//! canary: a sample that it has to find fault with.

use std::collections::BTreeSet;
use std::path::Path;

use longshore_tests::source::{files_below, source_root};

/// The crates, each with those of ours that it may depend on.
const CRATES: [(&str, &[&str]); 3] = [
    ("proto", &[]),
    ("cas-store", &["longshore-proto"]),
    ("worker", &["longshore-proto", "longshore-cas-store"]),
];

/// The rooms of `worker`, each with those that it may import. A room that is not named here fails the test.
const ROOMS: [(&str, &[&str]); 20] = [
    ("materialize", &[]),
    ("output", &[]),
    ("connect", &[]),
    ("instance", &[]),
    ("packing", &[]),
    ("remote", &["connect", "packing"]),
    ("run", &[]),
    ("status", &["action", "materialize", "output", "run"]),
    ("action", &["materialize", "output", "remote", "run", "status"]),
    ("frontend", &["action", "connect", "instance", "packing", "status"]),
    ("environment", &[]),
    ("config", &["connect", "instance"]),
    ("cli", &["config", "frontend", "replay"]),
    ("replay", &["config", "connect", "environment", "remote", "signals", "status_line"]),
    ("status_line", &[]),
    ("memory", &[]),
    ("signals", &[]),
    (
        "machine",
        &["action", "config", "environment", "materialize", "remote", "run", "signals", "status_line"],
    ),
    (
        "standalone",
        &["action", "cli", "environment", "frontend", "machine", "memory", "signals", "status_line"],
    ),
    (
        "cluster",
        &[
            "action",
            "cli",
            "config",
            "connect",
            "environment",
            "frontend",
            "machine",
            "memory",
            "remote",
            "signals",
            "status_line",
        ],
    ),
];

// A test that Bazel does not know would not run there, and nobody would notice.
#[test]
fn bazel_knows_every_test_binary() {
    let build = read(&source_root().join("BUILD.bazel"));
    let known = build.split_once("TEST_BINARIES = [").expect("a list").1.split_once(']').expect("its end").0;
    let known: BTreeSet<&str> = known.split('"').skip(1).step_by(2).collect();
    let mut found = BTreeSet::new();
    for folder in ["proto", "cas-store", "worker", "tests"] {
        found.insert(format!("longshore_{}", folder.replace('-', "_")));
        let tests = source_root().join(folder).join("tests");
        let files = if tests.is_dir() { files_below(&tests, "rs") } else { Vec::new() };
        for path in files {
            let binary = path.strip_prefix(&tests).expect("a file below it").with_extension("");
            let parts: Vec<_> = binary.iter().map(|part| part.to_string_lossy()).collect();
            match &*parts {
                [name] => found.insert(name.to_string()),
                [name, file] if file == "main" => found.insert(name.to_string()),
                _ => false,
            };
        }
        let manifest = read(&source_root().join(folder).join("Cargo.toml"));
        for section in manifest.split("[[test]]").skip(1) {
            let name = section.split('"').nth(1).expect("a name");
            found.insert(name.to_owned());
        }
    }
    let found: BTreeSet<&str> = found.iter().map(String::as_str).collect();
    assert_eq!(known, found);
}

#[test]
fn crates_depend_on_those_below_them_only() {
    for (name, allowed) in CRATES {
        let path = source_root().join(name).join("Cargo.toml");
        for dependency in own_dependencies(&read(&path)) {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
        }
    }
}

#[test]
fn rooms_of_the_worker_import_those_below_them_only() {
    let source = source_root().join("worker/src");
    for path in files_below(&source, "rs") {
        let relative = path.strip_prefix(&source).expect("a file below src");
        let room = relative.components().next().expect("a name").as_os_str().to_string_lossy();
        let room = room.trim_end_matches(".rs");
        // The binary wires everything, and the library's root declares it.
        if ["main", "lib"].contains(&room) {
            continue;
        }
        let rule = ROOMS.iter().find(|(name, _)| *name == room);
        let Some((_, allowed)) = rule else { panic!("{room} has no rule: add it to ROOMS, and to the docs") };
        if is_test_file(relative) {
            continue;
        }
        for import in imports(&shipped(&read(&path))) {
            let fine = import == room || allowed.contains(&import.as_str());
            assert!(fine, "{}: {room} must not import {import}", relative.display());
        }
    }
}

#[test]
fn the_store_reaches_files_through_dir_and_starts_no_thread() {
    let source = source_root().join("cas-store/src");
    for path in files_below(&source, "rs") {
        let relative = path.strip_prefix(&source).expect("a file below src");
        if is_test_file(relative) {
            continue;
        }
        let code = shipped(&read(&path));
        // The lock and the marker of a root come before there is a Dir to speak of.
        if !relative.starts_with("dir") && relative != Path::new("root.rs") {
            let calls = file_system_calls(&code);
            assert!(calls.is_empty(), "{}: {calls:?} belongs behind dir::Dir", relative.display());
        }
        let threads = mentions(&code, &["std::thread", "tokio::"]);
        assert!(threads.is_empty(), "{}: {threads:?}: threads and tasks are passed in", relative.display());
    }
}

#[test]
fn canary_a_forbidden_dependency_is_found() {
    let manifest = "[package]\nname = \"x\"\n\n[dependencies]\nlongshore-worker.workspace = true\nbytes = \"1\"\n\n\
                    [dev-dependencies]\nlongshore-tests.workspace = true\n";
    assert_eq!(own_dependencies(manifest), ["longshore-worker"]);
}

#[test]
fn canary_every_way_to_import_is_found() {
    let code = "//! See [`crate::frontend`].\nuse crate::{action::Phase, run};\n    crate::output::collect();\n\
                $crate::hidden();\n#[cfg(test)]\nmod tests {\n    use crate::materialize;\n}\n";
    let found: Vec<_> = imports(&shipped(code)).into_iter().collect();
    assert_eq!(found, ["action", "output", "run"]);
}

#[test]
fn canary_a_file_system_call_is_found() {
    let code = "use std::fs::File;\nfn f() -> Result<std::fs::File, E>;\nstd::fs::remove_file(path)?;\nuse std::fs::{File, OpenOptions};\n";
    assert_eq!(file_system_calls(code), ["std::fs::remove_file", "std::fs::{File, OpenOptions}"]);
    assert_eq!(mentions("std::thread::spawn(f);", &["std::thread", "tokio::"]), ["std::thread"]);
}

/// Our own crates in the `[dependencies]` of a manifest.
fn own_dependencies(manifest: &str) -> Vec<String> {
    let section = manifest.lines().skip_while(|line| *line != "[dependencies]").skip(1);
    let lines = section.take_while(|line| !line.starts_with('['));
    let names = lines.filter_map(|line| line.split(['.', ' ', '=']).next());
    names.filter(|name| name.starts_with("longshore-")).map(str::to_owned).collect()
}

/// The code of a file without comments and without its test module.
fn shipped(source: &str) -> String {
    let lines = source.lines().take_while(|line| *line != "#[cfg(test)]");
    lines.filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The modules of its own crate that code names, by `crate::name` or `crate::{name, other::Type}`.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|before| before == '$' || is_name(before)) {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => found.extend(first_name(rest)),
            Some(list) => found.extend(top_level(list).filter_map(first_name)),
        }
    }
    found
}

/// The items of a use list, up to its closing brace.
fn top_level(list: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_usize;
    let mut end = list.len();
    let mut commas = vec![];
    for (at, character) in list.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => {
                end = at;
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => commas.push(at),
            _ => {}
        }
    }
    let starts = std::iter::once(0).chain(commas.clone().into_iter().map(|at| at + 1));
    let ends = commas.into_iter().chain(std::iter::once(end));
    starts.zip(ends).map(move |(start, end)| list[start..end].trim())
}

fn is_name(character: char) -> bool {
    character == '_' || character.is_alphanumeric()
}

fn first_name(path: &str) -> Option<String> {
    let name: String = path.chars().take_while(|c| is_name(*c)).collect();
    (!name.is_empty()).then_some(name)
}

/// What code names of `std::fs` beside the type `File`.
fn file_system_calls(code: &str) -> Vec<String> {
    let prefix = "std::fs::";
    let uses = code.match_indices(prefix).map(|(at, _)| &code[at..]);
    let names = uses.map(|rest| {
        let name = &rest[prefix.len()..];
        let end =
            if name.starts_with('{') { name.find('}').map(|at| at + 1) } else { name.find(|c| !is_name(c)) };
        end.map_or(rest, |end| &rest[..prefix.len() + end])
    });
    names.filter(|name| *name != "std::fs::File").map(str::to_owned).collect()
}

fn mentions(code: &str, words: &[&str]) -> Vec<String> {
    words.iter().filter(|word| code.contains(**word)).map(|word| (*word).to_owned()).collect()
}

/// Files that hold nothing but tests and what tests need.
fn is_test_file(path: &Path) -> bool {
    let stem = path.file_stem().unwrap_or_default();
    stem == "tests" || stem == "testing" || path.components().any(|part| part.as_os_str() == "tests")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
