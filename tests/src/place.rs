//! Where a bench works: a journaled ext4 image for root, memory for everybody else.
//!
//! The image is mounted in a mount namespace of this process alone, over the folder for temporary files, and loses
//! its name at once. So the kernel takes mount, loop device and image back when the process ends, however it ends.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use nix::unistd::UnlinkatFlags;

/// The size of the image, which is sparse: several times what the largest tree of a bench takes.
const IMAGE_BYTES: u64 = 4 << 30;

/// The folder to work in, and why it is that one. Call before there is a second thread.
pub fn choose() -> (PathBuf, String) {
    if let Some(chosen) = std::env::var_os("LONGSHORE_BENCH_DIR") {
        return (chosen.into(), "as LONGSHORE_BENCH_DIR says".to_owned());
    }
    let reason = if nix::unistd::geteuid().is_root() {
        let folder = std::env::temp_dir();
        match mount_image(&folder, IMAGE_BYTES) {
            Ok(()) => return (folder, "a journaled image of its own".to_owned()),
            Err(error) => format!("no image of its own can be mounted: {error:#}"),
        }
    } else {
        "only root can mount an image of its own".to_owned()
    };
    let memory = PathBuf::from("/dev/shm");
    (if memory.is_dir() { memory } else { std::env::temp_dir() }, reason)
}

/// Mounts a fresh ext4 image of `image_bytes` over `folder`, for this process and its children alone. Call before there is
/// a second thread.
pub fn mount_image(folder: &Path, image_bytes: u64) -> Result<()> {
    let below = std::fs::File::open(folder)?;
    let image = tempfile::Builder::new().prefix("longshore-bench-").suffix(".ext4").tempfile_in(folder)?;
    image.as_file().set_len(image_bytes)?;
    // Nothing is left to be initialized in the background while the clock runs.
    let extended = "lazy_itable_init=0,lazy_journal_init=0";
    run(Command::new("mkfs.ext4").args(["-q", "-F", "-O", "has_journal", "-E", extended]).arg(image.path()))?;
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).context("unshare")?;
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    nix::mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).context("make / private")?;
    run(Command::new("mount").args(["-t", "ext4", "-o", "loop,relatime"]).arg(image.path()).arg(folder))?;
    // Its path leads into the image by now: the name goes by the folder below.
    let (_, path) = image.keep()?;
    let name = path.file_name().context("a file has a name")?;
    nix::unistd::unlinkat(below.as_fd(), name, UnlinkatFlags::NoRemoveDir).context("unlink the image")
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{}", program.display()))?;
    ensure!(output.status.success(), "{}: {}", program.display(), String::from_utf8_lossy(&output.stderr));
    Ok(())
}
