//! Descriptors that pass from one process to another over a socket (`unix(7)`, `SCM_RIGHTS`).

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};

use super::sys;

/// The most that pass at once.
const FDS_MAX: usize = 4;

/// Sends descriptors, which stay open here.
pub(super) fn send(socket: &impl AsFd, fds: &[BorrowedFd<'_>]) -> nix::Result<()> {
    let fds: Vec<RawFd> = fds.iter().map(std::os::fd::AsRawFd::as_raw_fd).collect();
    let parts = [IoSlice::new(b"r")];
    let control = [ControlMessage::ScmRights(&fds)];
    let socket = socket.as_fd().as_raw_fd();
    sendmsg::<UnixAddr>(socket, &parts, &control, MsgFlags::MSG_NOSIGNAL, None).map(drop)
}

/// The next descriptors, of which there have to be `N`; nothing when the other end has gone. What comes otherwise is
/// closed and passed over, which who sent it sees as the end of what it sent.
pub(super) fn receive<const N: usize>(socket: &impl AsFd) -> nix::Result<Option<[OwnedFd; N]>> {
    const { assert!(N <= FDS_MAX) };
    loop {
        let mut byte = [0];
        let mut parts = [IoSliceMut::new(&mut byte)];
        let mut space = nix::cmsg_space!([RawFd; FDS_MAX]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let socket = socket.as_fd().as_raw_fd();
        let message = match recvmsg::<UnixAddr>(socket, &mut parts, Some(&mut space), flags) {
            Err(Errno::EINTR) => continue,
            Err(Errno::ECONNRESET) => return Ok(None),
            message => message?,
        };
        if message.bytes == 0 {
            return Ok(None);
        }
        let mut fds = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(received) = control {
                fds.extend(received.into_iter().map(sys::own));
            }
        }
        if let Ok(fds) = <[OwnedFd; N]>::try_from(fds) {
            return Ok(Some(fds));
        }
    }
}
