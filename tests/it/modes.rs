//! Who may change what longshore keeps: nobody else, although it runs without a umask.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Result;
use longshore_tests::longshore::{Longshore, new_home, run_to_end};

/// A scheduler that is never there.
const CONFIG: &str = "[[scheduler]]\nkind = \"nativelink\"\nendpoint = \"grpc://127.0.0.1:1\"\n";

/// What lies in the root of a worker that runs, and its modes. Actions pass through three of them, and list none.
const ROOT: [(&str, u32); 11] = [
    ("blobs", 0o700),
    ("boot", 0o600),
    ("executables", 0o700),
    ("format", 0o600),
    ("lock", 0o600),
    ("records", 0o700),
    ("scratch", 0o700),
    ("trash", 0o700),
    ("trees", 0o711),
    ("work", 0o711),
    ("worker-id", 0o600),
];

fn mode(path: &Path) -> Result<u32> {
    Ok(std::fs::symlink_metadata(path)?.permissions().mode() & 0o7777)
}

fn modes_in(folder: &Path) -> Result<BTreeMap<String, u32>> {
    let entries = std::fs::read_dir(folder)?;
    entries
        .map(|entry| {
            let entry = entry?;
            Ok((entry.file_name().to_string_lossy().into_owned(), mode(&entry.path())?))
        })
        .collect()
}

fn expected() -> BTreeMap<String, u32> {
    ROOT.map(|(name, mode)| (name.to_owned(), mode)).into()
}

// An action that runs as another user must not be able to take the lock, rename the worker, vouch for torn files or put
// another root in the place of this one.
#[tokio::test]
async fn a_new_root_and_the_way_to_it_are_closed_to_others() -> Result<()> {
    let home = new_home()?;
    let root = home.path().join("new/cache/root");
    // A port that is taken: it opens the root and ends.
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let (address, root_text) = (taken.local_addr()?.to_string(), root.display().to_string());
    let (status, printed) = run_to_end(["--listen", &address, "--root", &root_text]).await?;
    assert!(!status.success() && printed.contains(&address), "{printed}");
    for folder in ["new", "new/cache", "new/cache/root"] {
        assert_eq!(mode(&home.path().join(folder))?, 0o755, "{folder}");
    }
    let mut expected = expected();
    expected.remove("worker-id");
    assert_eq!(modes_in(&root)?, expected);
    Ok(())
}

// Nor where an older longshore left its files open to everybody; and what somebody wrote there is no name.
#[tokio::test]
async fn what_lay_open_is_closed_at_the_next_start() -> Result<()> {
    let longshore = Longshore::work(CONFIG, None).await?;
    let (home, root) = (longshore.home(), longshore.root());
    assert_eq!(modes_in(&root)?, expected());
    let id = std::fs::read_to_string(root.join("worker-id"))?;
    longshore.kill().await?;

    for (name, _) in ROOT.iter().filter(|(_, mode)| *mode == 0o600) {
        std::fs::set_permissions(root.join(name), std::fs::Permissions::from_mode(0o666))?;
    }
    let longshore = Longshore::work(CONFIG, Some(home.clone())).await?;
    assert_eq!(modes_in(&root)?, expected());
    assert_eq!(std::fs::read_to_string(root.join("worker-id"))?, id);
    longshore.kill().await?;

    std::fs::write(root.join("worker-id"), "\u{1b}[2Jworker")?;
    let longshore = Longshore::work(CONFIG, Some(home)).await?;
    longshore.prints(&["worker-id", "holds no name"]).await?;
    assert!(!longshore.output().contains("\u{1b}[2J"), "{}", longshore.output());
    Ok(())
}
