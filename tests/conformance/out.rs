//! Outputs: how they are declared and checked.

use anyhow::{Context as _, Result};
use longshore_cas_store::digest::{Digest, DigestFunction};
use longshore_proto::reapi;
use longshore_tests::action::TestAction;
use longshore_tests::longshore::{Launch, Longshore};
use longshore_tests::tree::InputTree;
use tonic::Code;

use crate::run::{declaring, declaring_older, run, run_by, run_script};

const NOTHING: [&str; 0] = [];

/// A script that makes directories, and files in them.
fn making(directories: &str, files: &str) -> TestAction {
    TestAction::shell(&format!("mkdir -p {directories} && for f in {files}; do echo $f > $f; done"))
}

/// `output_files` and `output_directories` are ignored where there are `output_paths`.
#[tokio::test]
async fn out_01() -> Result<()> {
    let action = declaring_older(making("d e", "a b d/f e/f"), &["a", "b"], &["d", "e"]);
    let ran = run(&declaring(action.clone(), &["b", "e"])).await?;
    ran.result().await?;
    assert_eq!(ran.listing()?, ["file b", "directory e"]);
    // What is ignored is not checked either.
    let action = declaring_older(action, &["/abs", "a", "a", "a/b"], &["../..", "a"]);
    let ran = run(&declaring(action, &["b"])).await?;
    ran.result().await?;
    assert_eq!(ran.listing()?, ["file b"]);
    // All three with the same content, as some releases of Bazel send them.
    let action = declaring_older(making("d", "a d/f"), &["a"], &["d"]);
    let ran = run(&declaring(action, &["a", "d"])).await?;
    ran.result().await?;
    assert_eq!(ran.listing()?, ["file a", "directory d"]);
    Ok(())
}

/// Without `output_paths`, `output_files` and `output_directories` are used.
#[tokio::test]
async fn out_02() -> Result<()> {
    let make = || making("d", "a b d/f");
    let cases: [(&[&str], &[&str], &[&str]); 4] = [
        (&["a", "b"], &["d"], &["file a", "file b", "directory d"]),
        (&["a"], &[], &["file a"]),
        (&[], &["d"], &["directory d"]),
        (&["a", "absent"], &["d", "gone"], &["file a", "directory d"]),
    ];
    for (files, directories, listing) in cases {
        let ran = run(&declaring_older(make(), files, directories)).await?;
        ran.result().await?;
        assert_eq!(ran.listing()?, listing);
    }
    assert_eq!(run(&make()).await?.listing()?, NOTHING);
    Ok(())
}

/// Paths are relative to the working directory and come back as they were given.
#[tokio::test]
async fn out_03() -> Result<()> {
    let inputs = InputTree::new().directory("w/d").file("a", "of the root");
    let mut action = TestAction::shell("echo of w > a && echo f > d/f && ln -s a l").inputs(inputs);
    action.command.working_directory = "w".to_owned();
    let ran = run(&declaring(action.clone(), &["a", "d", "l"])).await?;
    ran.result().await?;
    assert_eq!(ran.listing()?, ["file a", "directory d", "symlink l -> a", "file symlink l -> a"]);
    assert_eq!(ran.file("a").await?, "of w\n");
    let ran = run(&declaring_older(action, &["a"], &["d"])).await?;
    assert_eq!(ran.listing()?, ["file a", "directory d"]);
    Ok(())
}

/// A path that begins with a slash is `INVALID_ARGUMENT`.
#[tokio::test]
async fn out_04() -> Result<()> {
    for path in ["/", "/a", "/tmp/a", "//a"] {
        let shell = || TestAction::shell("true");
        let cases = [
            ("output_paths", declaring(shell(), &["b", path])),
            ("output_files", declaring_older(shell(), &[path], &[])),
            ("output_directories", declaring_older(shell(), &[], &[path])),
        ];
        for (field, action) in cases {
            let ran = run(&action).await?;
            ran.failed_with(Code::InvalidArgument, &["Command", field, path]).context(path)?;
            assert_eq!(ran.listing()?, NOTHING);
        }
    }
    Ok(())
}

/// A trailing slash is accepted and comes back: `d/` is `d`.
#[tokio::test]
async fn out_05() -> Result<()> {
    let ran = run(&declaring(making("d", "f d/f"), &["d/", "f"])).await?;
    ran.result().await?;
    assert_eq!(ran.listing()?, ["file f", "directory d/"]);
    let ran = run(&declaring_older(making("d", "d/f"), &[], &["d/"])).await?;
    assert_eq!(ran.listing()?, ["directory d/"]);
    let ran = run(&declaring(making("d", "d/f"), &["d//", "d/f/"])).await?;
    assert_eq!(ran.listing()?, ["file d/f/", "directory d//"]);
    Ok(())
}

/// `..` is resolved against the working directory; what leaves the input root is `INVALID_ARGUMENT`.
#[tokio::test]
async fn out_06() -> Result<()> {
    let inputs = InputTree::new().directory("src/deep");
    let shell = |directory: &str| {
        let mut action = TestAction::shell("true").inputs(inputs.clone());
        action.command.working_directory = directory.to_owned();
        action
    };
    let mut action = shell("src");
    action.command.arguments[2] =
        "echo x > ../lib/x && echo y > y && mkdir -p ../o && echo z > ../o/z".to_owned();
    let paths = ["../lib/x", "../o", "../src/y", "deep/../../o/z"];
    let ran = run(&declaring(action, &paths)).await?;
    ran.result().await?;
    assert_eq!(ran.listing()?, ["file ../lib/x", "file ../src/y", "file deep/../../o/z", "directory ../o"]);
    assert_eq!(ran.file("../lib/x").await?, "x\n");

    for (directory, path) in [
        ("", ".."),
        ("", "../x"),
        ("", "a/../../x"),
        ("src", "../.."),
        ("src", "../../x"),
        ("src", "../../src/y"),
        ("src/deep", "../../../../../../../../etc/passwd"),
    ] {
        let cases = [
            ("output_paths", declaring(shell(directory), &[path])),
            ("output_files", declaring_older(shell(directory), &[path], &[])),
            ("output_directories", declaring_older(shell(directory), &[], &[path])),
        ];
        for (field, action) in cases {
            run(&action).await?.failed_with(Code::InvalidArgument, &["Command", field, path])?;
        }
    }
    Ok(())
}

/// Empty components and `.` are dropped; a NUL, or more than the kernel takes, is `INVALID_ARGUMENT`.
#[tokio::test]
async fn out_07() -> Result<()> {
    let paths = ["./d/f", "d//f", "d/./g", "e/."];
    let ran = run(&declaring(making("d e", "d/f d/g e/h"), &paths)).await?;
    ran.result().await?;
    assert_eq!(ran.listing()?, ["file ./d/f", "file d/./g", "file d//f", "directory e/."]);
    assert_eq!(ran.file("d//f").await?, "d/f\n");
    // Nor can a path be an output's that is longer than the kernel takes.
    let (long_name, long_path) = ("n".repeat(256), "d/".repeat(3000));
    for path in ["a\0b", "\0", "d/\0", &long_name, &long_path] {
        run_script("true", &[path]).await?.failed_with(Code::InvalidArgument, &["Command.output_paths"])?;
    }
    Ok(())
}

/// Unsorted and duplicate `output_paths` are accepted; each comes back once.
#[tokio::test]
async fn out_08() -> Result<()> {
    let ran = run(&declaring(making("d", "a b d/f"), &["d", "b", "a", "b", "d"])).await?;
    ran.result().await?;
    assert_eq!(ran.listing()?, ["file a", "file b", "directory d"]);
    Ok(())
}

/// An output file that is declared twice, above another, or as a directory too is `INVALID_ARGUMENT`.
#[tokio::test]
async fn out_09() -> Result<()> {
    let cases: [(&[&str], &[&str], &str); 7] = [
        (&["a", "a"], &[], "a"),
        (&["a", "a/b"], &[], "a/b"),
        (&["a/b", "a"], &[], "a/b"),
        (&["a", "a/b/c/d"], &[], "a/b/c/d"),
        (&["a"], &["a"], "a"),
        (&["a", "./a"], &[], "./a"),
        (&["x/../a", "a"], &[], "a"),
    ];
    for (files, directories, culprit) in cases {
        let ran = run(&declaring_older(TestAction::shell("true"), files, directories)).await?;
        ran.failed_with(Code::InvalidArgument, &["Command.output_", culprit])?;
    }
    Ok(())
}

/// An output directory that is declared twice is `INVALID_ARGUMENT`; nested ones both come back.
#[tokio::test]
async fn out_10() -> Result<()> {
    let ran = run(&declaring_older(making("d/e", "d/f d/e/g"), &[], &["d", "d/e"])).await?;
    ran.result().await?;
    assert_eq!(ran.listing()?, ["directory d", "directory d/e"]);
    assert_eq!(ran.contents("d").await?, ["e/", "e/g", "f"]);
    assert_eq!(ran.contents("d/e").await?, ["g"]);
    for (files, directories) in [(vec![], vec!["d", "d"]), (vec![], vec!["d", "d/"]), (vec!["d"], vec!["d"])]
    {
        let ran = run(&declaring_older(TestAction::shell("true"), &files, &directories)).await?;
        ran.failed_with(Code::InvalidArgument, &["Command.output_directories", "d"])?;
    }
    Ok(())
}

/// Nested `output_paths` both come back.
#[tokio::test]
async fn out_11() -> Result<()> {
    let ran = run(&declaring(making("d/e", "d/f d/e/g"), &["d", "d/e", "d/e/g", "d/f"])).await?;
    ran.result().await?;
    assert_eq!(ran.listing()?, ["file d/e/g", "file d/f", "directory d", "directory d/e"]);
    assert_eq!(ran.contents("d").await?, ["e/", "e/g", "f"]);
    assert_eq!(ran.file("d/e/g").await?, "d/e/g\n");
    Ok(())
}

/// The empty path is the whole working directory, inputs included.
#[tokio::test]
async fn out_12() -> Result<()> {
    let inputs = InputTree::new().file("in", "i").file("w/in", "i").symlink("w/l", "in");
    let action = TestAction::shell("echo o > out && rm -f l").inputs(inputs);
    let ran = run(&declaring(action.clone(), &[""])).await?;
    ran.result().await?;
    assert_eq!(ran.listing()?, ["directory "]);
    assert_eq!(ran.contents("").await?, ["in", "out", "w/", "w/in", "w/l -> in"]);
    let ran = run(&declaring_older(action.clone(), &[], &[""])).await?;
    assert_eq!(ran.contents("").await?, ["in", "out", "w/", "w/in", "w/l -> in"]);

    let mut below = action;
    below.command.working_directory = "w".to_owned();
    let ran = run(&declaring(below, &["", "out"])).await?;
    ran.result().await?;
    assert_eq!(ran.listing()?, ["file out", "directory "]);
    assert_eq!(ran.contents("").await?, ["in", "out"]);
    Ok(())
}

/// The parents of all outputs exist before the command runs.
#[tokio::test]
async fn out_13() -> Result<()> {
    let script = "echo 1 > a/b/c/f && echo 2 > d/e/g && test -w a/b && rmdir x/y";
    let paths = ["a/b/c/f", "d/e/g", "x/y/z"];
    run(&declaring(TestAction::shell(script), &paths)).await?.result().await?;
    run(&declaring_older(TestAction::shell(script), &paths[..2], &paths[2..])).await?.result().await?;
    // Inside a directory of the inputs, too.
    let inputs = InputTree::new().file("a/in", "i").directory("d").directory("x");
    let action = TestAction::shell(script).inputs(inputs);
    run(&declaring(action, &paths)).await?.result().await?;
    Ok(())
}

/// Outputs themselves are not created.
#[tokio::test]
async fn out_14() -> Result<()> {
    let script = "! ls -d p/out 2> /dev/null && ! ls -d q/out 2> /dev/null";
    run(&declaring(TestAction::shell(script), &["p/out", "q/out"])).await?.result().await?;
    run(&declaring_older(TestAction::shell(script), &["p/out"], &["q/out"])).await?.result().await?;
    Ok(())
}

/// A file above an output is `INVALID_ARGUMENT`, and so is a link that leads out; one that stays inside is followed.
#[tokio::test]
async fn out_15() -> Result<()> {
    let inputs = InputTree::new()
        .file("f", "i")
        .directory("real/sub")
        .symlink("inside", "real")
        .symlink("up", "..")
        .symlink("out", "../..")
        .symlink("abs", "/tmp")
        .symlink("to_file", "f")
        .symlink("dangling", "nowhere");
    let ran = {
        let action = TestAction::shell("echo x > inside/x && echo y > real/sub/y").inputs(inputs.clone());
        run(&declaring(action, &["inside/sub/y", "inside/x"])).await?
    };
    ran.result().await?;
    assert_eq!(ran.listing()?, ["file inside/sub/y", "file inside/x"]);
    assert_eq!(ran.file("inside/x").await?, "x\n");
    for path in ["f/x", "f/a/x", "up/x", "out/x", "abs/x", "abs/deep/x", "to_file/x", "dangling/x"] {
        let action = TestAction::shell("true").inputs(inputs.clone());
        for action in [declaring(action.clone(), &[path]), declaring_older(action, &[path], &[])] {
            let ran = run(&action).await?;
            ran.failed_with(Code::InvalidArgument, &[]).context(path)?;
            assert_eq!(ran.listing()?, NOTHING);
        }
    }
    Ok(())
}

/// An output that is an input already comes back as it is afterwards.
#[tokio::test]
async fn out_16() -> Result<()> {
    let inputs =
        InputTree::new().file("same", "s").file("changed", "old").file("gone", "g").file("d/in", "i");
    let script = "rm changed gone && echo new > changed && echo o > d/out";
    let paths = ["changed", "d", "gone", "same"];
    let ran = run(&declaring(TestAction::shell(script).inputs(inputs), &paths)).await?;
    ran.result().await?;
    assert_eq!(ran.listing()?, ["file changed", "file same", "directory d"]);
    assert_eq!(ran.file("changed").await?, "new\n");
    assert_eq!(ran.file("same").await?, "s");
    assert_eq!(ran.contents("d").await?, ["in", "out"]);
    Ok(())
}

/// An output that is not there is left out, which is no error.
#[tokio::test]
async fn out_17() -> Result<()> {
    let script = "echo a > a; rm -r parent; exit 4";
    for action in [
        declaring(TestAction::shell(script), &["a", "b", "parent/c"]),
        declaring_older(TestAction::shell(script), &["a", "b"], &["d", "parent/c"]),
    ] {
        let ran = run(&action).await?;
        assert_eq!(ran.code(), Code::Ok);
        assert_eq!(ran.any_result()?.exit_code, 4);
        assert_eq!(ran.listing()?, ["file a"]);
    }
    // Something else took the parent's place.
    let ran = run_script("rmdir parent && echo > parent", &["parent/c"]).await?;
    ran.result().await?;
    assert_eq!(ran.listing()?, NOTHING);
    Ok(())
}

/// What is not declared is not in the result, nor in the next action's inputs.
#[tokio::test]
async fn out_18() -> Result<()> {
    let ran = run(&declaring(making("d e", "a b d/f e/f"), &["a"])).await?;
    ran.result().await?;
    assert_eq!(ran.listing()?, ["file a"]);
    run_script("test -z \"$(ls -A)\"", &[]).await?.result().await?;
    Ok(())
}

/// Outputs of a failed command come back: clients want the logs of tests.
#[tokio::test]
async fn out_19() -> Result<()> {
    for (end, exit_code) in [("exit 1", 1), ("exit 255", 255), ("kill -TERM $$", 143)] {
        let script = format!("mkdir d; echo log > test.log; echo f > d/f; {end}");
        let ran = run_script(&script, &["d", "test.log"]).await?;
        assert_eq!((ran.code(), ran.any_result()?.exit_code), (Code::Ok, exit_code));
        assert_eq!(ran.listing()?, ["file test.log", "directory d"]);
        assert_eq!(ran.file("test.log").await?, "log\n");
    }
    Ok(())
}

/// A directory in `output_files` comes back as a directory.
/// Deviation: Clients of REAPI 2.0, such as Bazel 4, have no other field for an output that may be either.
#[tokio::test]
async fn out_20() -> Result<()> {
    let ran = run(&declaring_older(making("d", "a d/f"), &["a", "d"], &[])).await?;
    ran.result().await?;
    assert_eq!(ran.listing()?, ["file a", "directory d"]);
    assert_eq!(ran.contents("d").await?, ["f"]);
    Ok(())
}

/// A file in `output_directories` is `FAILED_PRECONDITION`.
#[tokio::test]
async fn out_21() -> Result<()> {
    let script = "echo so far; echo f > d; echo a > a";
    let ran = run(&declaring_older(TestAction::shell(script), &["a"], &["d"])).await?;
    ran.failed_with(Code::FailedPrecondition, &["\"d\"", "file"])?;
    assert!(ran.status().details.is_empty(), "nothing is missing that a client could upload");
    assert_eq!(ran.client.stdout(ran.any_result()?).await?, "so far\n");
    Ok(())
}

/// An unknown property is `INVALID_ARGUMENT`; only those that were asked for come back.
#[tokio::test]
async fn out_22() -> Result<()> {
    for names in [vec!["owner"], vec!["mtime", "xattr"], vec![""], vec!["MTime"]] {
        let mut action = declaring(TestAction::shell("echo a > a"), &["a"]);
        action.command.output_node_properties = names.iter().map(|name| (*name).to_owned()).collect();
        run(&action).await?.failed_with(Code::InvalidArgument, &["Command.output_node_properties"])?;
    }
    let script = "mkdir d && echo a > a && echo f > d/f && chmod 751 a && touch -d @1000 a";
    for (names, mtime, mode) in [
        (vec![], None, None),
        (vec!["mtime"], Some(1000), None),
        (vec!["unix_mode"], None, Some(0o751)),
        (vec!["unix_mode", "mtime"], Some(1000), Some(0o751)),
    ] {
        let mut action = declaring(TestAction::shell(script), &["a", "d"]);
        action.command.output_node_properties = names.iter().map(|name| (*name).to_owned()).collect();
        let ran = run(&action).await?;
        let found = ran.result().await?.output_files[0].node_properties.clone();
        assert_eq!(found.is_some(), !names.is_empty());
        let found = found.unwrap_or_default();
        assert_eq!(found.mtime.map(|mtime| mtime.seconds), mtime);
        assert_eq!(found.unix_mode.map(|mode| mode.value & 0o7777), mode);
        assert_eq!(found.properties, []);
        let root = ran.tree("d").await?.root.context("a root")?;
        let below = root.files[0].node_properties.clone().unwrap_or_default();
        assert_eq!(below.mtime.is_some(), mtime.is_some());
        assert_eq!(below.unix_mode.is_some(), mode.is_some());
    }
    Ok(())
}

/// A file is executable if anybody may execute it.
#[tokio::test]
async fn out_23() -> Result<()> {
    let modes = ["000", "444", "644", "100", "010", "001", "755", "711", "4755"];
    let script = "mkdir d; for m in 000 444 644 100 010 001 755 711 4755; do echo $m > f$m; chmod $m f$m; cp -p f$m d 2> /dev/null; done; true";
    let mut paths: Vec<_> = modes.iter().map(|mode| format!("f{mode}")).collect();
    paths.push("d".to_owned());
    let paths: Vec<_> = paths.iter().map(String::as_str).collect();
    let ran = run_script(script, &paths).await?;
    let result = ran.result().await?;
    for mode in modes {
        let expected = u32::from_str_radix(mode, 8)? & 0o111 != 0;
        let file = result.output_files.iter().find(|file| file.path == format!("f{mode}"));
        assert_eq!(file.context(mode)?.is_executable, expected, "{mode}");
    }
    let root = ran.tree("d").await?.root.context("a root")?;
    for (name, expected) in [("f644", false), ("f755", true)] {
        let file = root.files.iter().find(|file| file.name == name).context(name)?;
        assert_eq!(file.is_executable, expected, "{name}");
    }
    Ok(())
}

/// A FIFO is `INVALID_ARGUMENT` as an output, and left out of an output directory with a note.
#[tokio::test]
async fn out_24() -> Result<()> {
    let script = "mkfifo pipe; echo a > a; echo so far; exit 3";
    for action in [
        declaring(TestAction::shell(script), &["a", "pipe"]),
        declaring_older(TestAction::shell(script), &["a", "pipe"], &[]),
        declaring_older(TestAction::shell(script), &["a"], &["pipe"]),
    ] {
        let ran = run(&action).await?;
        ran.failed_with(Code::InvalidArgument, &["\"pipe\"", "FIFO"])?;
        assert_eq!(ran.any_result()?.exit_code, 3);
        assert_eq!(ran.client.stdout(ran.any_result()?).await?, "so far\n");
    }
    let ran = run_script("mkdir -p d/e && mkfifo d/pipe d/e/pipe && echo f > d/f", &["d"]).await?;
    ran.result().await?;
    assert_eq!(ran.contents("d").await?, ["e/", "f"]);
    for path in ["d/pipe", "d/e/pipe"] {
        assert!(ran.response.message.contains(&format!("{path:?}")), "{}", ran.response.message);
    }
    Ok(())
}

/// Files and directories that nobody may read are collected all the same.
#[tokio::test]
async fn out_25() -> Result<()> {
    let script = "mkdir -p d/closed/deeper e && echo 1 > f && echo 2 > d/g && echo 3 > d/closed/deeper/h \
        && echo 4 > e/i && chmod 000 f d/g d/closed/deeper/h d/closed/deeper d/closed && chmod 000 e";
    let ran = run_script(script, &["d", "e/i", "f"]).await?;
    ran.result().await?;
    assert_eq!(ran.listing()?, ["file e/i", "file f", "directory d"]);
    assert_eq!(ran.file("f").await?, "1\n");
    assert_eq!(ran.file("e/i").await?, "4\n");
    assert_eq!(ran.contents("d").await?, ["closed/", "closed/deeper/", "closed/deeper/h", "g"]);
    // The root itself, too.
    let ran = run_script("echo 1 > d/f && chmod 000 d .", &["", "d/f"]).await?;
    ran.result().await?;
    assert_eq!((ran.file("d/f").await?, ran.contents("").await?.len()), ("1\n".into(), 2));
    Ok(())
}

/// Sparse, empty and large files come back.
#[tokio::test]
async fn out_26() -> Result<()> {
    let script = ": > empty; truncate -s 300M sparse; printf end >> sparse";
    let ran = run_script(script, &["empty", "sparse"]).await?;
    let result = ran.result().await?;
    let [empty, sparse] = &result.output_files[..] else { panic!("{result:?}") };
    assert_eq!(empty.digest, Some(DigestFunction::Sha256.digest(b"").to_wire()));
    let digest = Digest::from_wire(DigestFunction::Sha256, sparse.digest.as_ref())?;
    assert_eq!(digest.size_bytes(), (300 << 20) + 3);
    // The client compares the digest of what it reads.
    assert_eq!(ran.client.read(&digest).await?.len() as u64, digest.size_bytes());
    Ok(())
}

/// What a process that outlived the command writes does not tear a file: digest and bytes agree.
#[tokio::test]
async fn out_27() -> Result<()> {
    let script = "exec 2> /dev/null; (setsid sh -c 'while :; do echo more >> f; done' &) ; \
        while ! test -s f; do :; done";
    for _ in 0..3 {
        let ran = run_script(script, &["f"]).await?;
        let content = ran.file("f").await?;
        assert!(content.chunks(5).all(|line| line == b"more\n"), "whole lines, and no byte else");
        assert_eq!(ran.file("f").await?, content);
    }
    Ok(())
}

/// Everything that a result names is in the store when the client hears of it.
#[tokio::test]
async fn out_28() -> Result<()> {
    let script = "mkdir -p d/e && echo 1 > f && echo 2 > d/e/g && echo out && echo err >&2";
    let mut action = declaring(TestAction::shell(script), &["d", "f"]);
    action.command.output_directory_format = reapi::command::OutputDirectoryFormat::TreeAndDirectory.into();
    let ran = run(&action).await?;
    let result = ran.result().await?;
    let tree = ran.tree("d").await?;
    let mut named: Vec<_> = result.output_files.iter().map(|file| file.digest.clone()).collect();
    named.extend([result.stdout_digest.clone(), result.stderr_digest.clone()]);
    named
        .extend([ran.directory("d")?.tree_digest.clone(), ran.directory("d")?.root_directory_digest.clone()]);
    for directory in tree.root.iter().chain(&tree.children) {
        named.extend(directory.files.iter().map(|file| file.digest.clone()));
        named.extend(directory.directories.iter().map(|directory| directory.digest.clone()));
    }
    let parse = |digest: &Option<_>| Digest::from_wire(DigestFunction::Sha256, digest.as_ref());
    let digests = named.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    assert_eq!(digests.len(), 7);
    assert_eq!(ran.client.missing(&digests).await?, []);
    Ok(())
}

/// An output that cannot be stored fails the action, is not named, and is not cached.
#[tokio::test]
async fn out_29() -> Result<()> {
    let flags = ["--max-size", "16MiB"].map(str::to_owned).to_vec();
    let longshore = Longshore::launch(Launch { flags, ..Launch::default() }).await?;
    let client = longshore.client().await?;
    let script = "echo so far; echo small > a; head -c 40000000 /dev/urandom > big";
    let action = declaring(TestAction::shell(script), &["a", "big"]);
    let ran = run_by(&client, &action).await?;
    ran.failed_with(Code::ResourceExhausted, &[])?;
    assert_eq!(ran.listing()?, NOTHING);
    assert_eq!(ran.any_result()?.exit_code, 0, "the command itself went well");
    assert_eq!(client.stdout(ran.any_result()?).await?, "so far\n");
    let request = reapi::GetActionResultRequest {
        action_digest: Some(action.build(client.function()).digest.to_wire()),
        ..Default::default()
    };
    let cached = client.action_cache().get_action_result(request).await;
    assert_eq!(cached.map_err(|status| status.code()).err(), Some(Code::NotFound));
    // It serves on.
    run_by(&client, &declaring(TestAction::shell("echo b > b"), &["b"])).await?.result().await?;
    Ok(())
}

/// Outputs are sorted by path.
#[tokio::test]
async fn out_30() -> Result<()> {
    let script = "for p in b a c; do echo $p > f$p; mkdir d$p; ln -s x l$p; done";
    let paths = ["lc", "fa", "db", "la", "fc", "da", "fb", "dc", "lb"];
    let ran = run_script(script, &paths).await?;
    ran.result().await?;
    let sorted = [
        "file fa",
        "file fb",
        "file fc",
        "directory da",
        "directory db",
        "directory dc",
        "symlink la -> x",
        "symlink lb -> x",
        "symlink lc -> x",
    ];
    assert_eq!(ran.listing()?, sorted);
    Ok(())
}

/// Files named by `inline_output_files` come inline while they fit, and are stored as well.
#[tokio::test]
async fn out_31() -> Result<()> {
    let longshore = crate::shared().await?;
    let client = longshore.client().await?;
    let script = "mkdir d; echo 1 > a; echo 2 > b; echo 3 > d/f; head -c 3000000 /dev/zero > big; : > empty";
    let mut action = declaring(TestAction::shell(script), &["a", "b", "big", "d", "empty", "a/../c"]);
    action.salt = "inline".into();
    let blobs = action.build(client.function());
    client.upload(&blobs.blobs).await?;
    let inline = ["a", "big", "d", "d/f", "empty", "nothing", "./b"].map(str::to_owned).to_vec();
    // From a run and from the cache.
    for cached in [false, true] {
        let request = reapi::ExecuteRequest {
            action_digest: Some(blobs.digest.to_wire()),
            inline_output_files: inline.clone(),
            ..Default::default()
        };
        let stream = client.execution().execute(request).await?.into_inner();
        let response = longshore_tests::client::finished(stream).await?;
        assert_eq!(response.cached_result, cached);
        let result = response.result.context("a result")?;
        let inlined: Vec<_> =
            result.output_files.iter().map(|file| (file.path.as_str(), file.contents.as_slice())).collect();
        let none: &[u8] = &[];
        assert_eq!(inlined, [("a", b"1\n".as_slice()), ("b", none), ("big", none), ("empty", none)]);
        for file in &result.output_files {
            let digest = Digest::from_wire(DigestFunction::Sha256, file.digest.as_ref())?;
            assert_eq!(client.missing([&digest]).await?, []);
        }
    }
    Ok(())
}

/// Nothing comes inline that was not asked for.
#[tokio::test]
async fn out_32() -> Result<()> {
    let ran = run_script("echo out; echo err >&2; echo a > a", &["a"]).await?;
    let result = ran.result().await?;
    assert_eq!((result.stdout_raw.len(), result.stderr_raw.len()), (0, 0));
    assert!(result.output_files[0].contents.is_empty());
    Ok(())
}

/// A name or a link that is not UTF-8 is `FAILED_PRECONDITION` and shown escaped.
#[tokio::test]
async fn out_33() -> Result<()> {
    let name = "$(printf 'n\\377m')";
    for (script, paths) in [
        (format!("mkdir d && echo f > d/{name}"), ["d"]),
        (format!("mkdir -p d/{name}"), ["d"]),
        (format!("mkdir d && ln -s {name} d/l"), ["d"]),
        (format!("ln -s {name} l"), ["l"]),
    ] {
        let ran = run_script(&script, &paths).await?;
        ran.failed_with(Code::FailedPrecondition, &[paths[0], "n\\xffm"]).context(script)?;
    }
    // Where nobody asks for it, it is nobody's concern.
    run_script(&format!("echo f > {name}; echo a > a"), &["a"]).await?.result().await?;
    Ok(())
}
