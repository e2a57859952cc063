//! Outputs that are symbolic links.

use anyhow::Result;
use longshore_tests::action::TestAction;
use longshore_tests::tree::InputTree;
use tonic::Code;

use crate::run::{declaring, declaring_older, run, run_script};

const NOTHING: [&str; 0] = [];

/// Makes a file, a directory and a link of each kind.
const LINKS: &str = "mkdir d && echo f > d/f && echo x > x && ln -s x file && ln -s d dir && ln -s gone dangling \
    && ln -s loop loop && ln -s file second";

/// A link in `output_paths` is an output symlink with its own target, whatever it leads to.
#[tokio::test]
async fn osy_01() -> Result<()> {
    let ran = run_script(LINKS, &["dangling", "dir", "file", "loop", "second"]).await?;
    let result = ran.result().await?;
    let links: Vec<_> =
        result.output_symlinks.iter().map(|link| (link.path.as_str(), link.target.as_str())).collect();
    let expected = [("dangling", "gone"), ("dir", "d"), ("file", "x"), ("loop", "loop"), ("second", "file")];
    assert_eq!(links, expected);
    assert!(result.output_files.is_empty() && result.output_directories.is_empty());
    // Verbatim: no target is tidied up.
    let script = "mkdir -p a/b; ln -s .//a/./b/../b/ odd; ln -s ' sp ace ' space; ln -s 'ü' unicode";
    let ran = run_script(script, &["odd", "space", "unicode"]).await?;
    let links: Vec<_> = ran.result().await?.output_symlinks.iter().map(|link| link.target.as_str()).collect();
    assert_eq!(links, [".//a/./b/../b/", " sp ace ", "ü"]);
    // Together with what it leads to.
    let ran = run_script(LINKS, &["d", "dir", "file", "x"]).await?;
    let expected = [
        "file x",
        "directory d",
        "symlink dir -> d",
        "symlink file -> x",
        "file symlink file -> x",
        "directory symlink dir -> d",
    ];
    assert_eq!(ran.listing()?, expected);
    Ok(())
}

/// A link in `output_paths` is in the lists of older readers too, by what it leads to.
#[tokio::test]
async fn osy_02() -> Result<()> {
    let ran = run_script(LINKS, &["dangling", "dir", "file", "loop", "second"]).await?;
    ran.result().await?;
    let older: Vec<_> = ran.listing()?.into_iter().filter(|line| !line.starts_with("symlink")).collect();
    assert_eq!(
        older,
        ["file symlink file -> x", "file symlink second -> file", "directory symlink dir -> d"]
    );
    Ok(())
}

/// A link to a file in `output_files` is in `output_file_symlinks`, not in `output_symlinks`.
#[tokio::test]
async fn osy_03() -> Result<()> {
    let ran = run(&declaring_older(TestAction::shell(LINKS), &["file", "second", "x"], &[])).await?;
    ran.result().await?;
    let expected = ["file x", "file symlink file -> x", "file symlink second -> file"];
    assert_eq!(ran.listing()?, expected);
    Ok(())
}

/// A link to a directory in `output_directories` is in `output_directory_symlinks`.
#[tokio::test]
async fn osy_04() -> Result<()> {
    let ran = run(&declaring_older(TestAction::shell(LINKS), &[], &["d", "dir"])).await?;
    ran.result().await?;
    assert_eq!(ran.listing()?, ["directory d", "directory symlink dir -> d"]);
    Ok(())
}

/// A link to a file in `output_directories` is `FAILED_PRECONDITION`; one to a directory in `output_files` comes back.
/// Deviation: Clients of REAPI 2.0, such as Bazel 4, have no other field for an output that may be either.
#[tokio::test]
async fn osy_05() -> Result<()> {
    for path in ["file", "second"] {
        let ran = run(&declaring_older(TestAction::shell(LINKS), &["x"], &[path])).await?;
        ran.failed_with(Code::FailedPrecondition, &[path, "link to a file"])?;
    }
    let ran = run(&declaring_older(TestAction::shell(LINKS), &["dir"], &[])).await?;
    ran.result().await?;
    assert_eq!(ran.listing()?, ["directory symlink dir -> d"]);
    Ok(())
}

/// A dangling link in the older fields comes back as what it was declared as.
#[tokio::test]
async fn osy_06() -> Result<()> {
    let ran = run(&declaring_older(TestAction::shell(LINKS), &["dangling", "loop"], &[])).await?;
    ran.result().await?;
    assert_eq!(ran.listing()?, ["file symlink dangling -> gone", "file symlink loop -> loop"]);
    let ran = run(&declaring_older(TestAction::shell(LINKS), &[], &["dangling"])).await?;
    ran.result().await?;
    assert_eq!(ran.listing()?, ["directory symlink dangling -> gone"]);
    Ok(())
}

/// Absolute targets come back verbatim, as Capabilities say.
#[tokio::test]
async fn osy_07() -> Result<()> {
    let script = "ln -s /etc/passwd file; ln -s /etc dir; ln -s /no/such/thing gone; ln -s / root; \
        ln -s \"$PWD/in\" inside; echo in > in";
    let ran = run_script(script, &["dir", "file", "gone", "root"]).await?;
    ran.result().await?;
    let targets: Vec<_> = ran.any_result()?.output_symlinks.iter().map(|link| link.target.as_str()).collect();
    assert_eq!(targets, ["/etc", "/etc/passwd", "/no/such/thing", "/"]);
    let ran = run(&declaring_older(TestAction::shell(script), &["file", "gone"], &[])).await?;
    ran.result().await?;
    assert_eq!(ran.listing()?, ["file symlink file -> /etc/passwd", "file symlink gone -> /no/such/thing"]);
    // For older clients, one into the folder that is about to go is what it leads to.
    let ran = run(&declaring_older(TestAction::shell(script), &["inside"], &[])).await?;
    ran.result().await?;
    assert_eq!(ran.listing()?, ["file inside"]);
    assert_eq!(ran.file("inside").await?, "in\n");
    Ok(())
}

/// Targets with `..` come back verbatim, also those beyond the root; nothing beyond it is read.
#[tokio::test]
async fn osy_08() -> Result<()> {
    let script = "mkdir d; ln -s ../x d/up; ln -s ../../../etc/passwd beyond; ln -s .. parent; \
        ln -s ../../../../../../../../etc/passwd far; echo x > x";
    let ran = run_script(script, &["beyond", "d/up", "far", "parent"]).await?;
    ran.result().await?;
    let expected = [
        "symlink beyond -> ../../../etc/passwd",
        "symlink d/up -> ../x",
        "symlink far -> ../../../../../../../../etc/passwd",
        "symlink parent -> ..",
        "file symlink d/up -> ../x",
    ];
    assert_eq!(ran.listing()?, expected);
    Ok(())
}

/// Nothing is collected through a link that leads out of the root: it is missing, with a note.
#[tokio::test]
async fn osy_09() -> Result<()> {
    let out = tempfile::tempdir()?;
    std::fs::write(out.path().join("secret"), "secret")?;
    let out = out.path().display();
    let climb = format!("../../../../../../../../../..{out}");
    for target in [out.to_string(), climb] {
        let script = format!("rm -r d && ln -s {target} d && test -L d");
        for action in [
            declaring(TestAction::shell(&script), &["d/secret"]),
            declaring_older(TestAction::shell(&script), &["d/secret"], &[]),
            declaring_older(TestAction::shell(&script), &[], &["d/secret"]),
        ] {
            let ran = run(&action).await?;
            ran.result().await?;
            assert_eq!(ran.listing()?, NOTHING);
            assert!(ran.response.message.contains("\"d/secret\""), "{:?}", ran.response.message);
        }
    }
    // One that stays inside is followed.
    let inputs = InputTree::new().directory("real");
    let action = TestAction::shell("rmdir d && ln -s real d && echo x > d/x").inputs(inputs);
    let ran = run(&declaring(action, &["d/x"])).await?;
    ran.result().await?;
    assert_eq!(ran.file("d/x").await?, "x\n");
    Ok(())
}
