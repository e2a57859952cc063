//! Integration tests, one binary.

mod architecture;
mod bots;
mod buildbarn;
mod hostile;
mod http2;
mod life;
mod long_lists;
mod many_uploads;
mod modes;
mod nativelink;
mod outputs;
mod remote;
mod replay;
mod sockets;
mod standalone;
mod stress;

use anyhow::{Context as _, Result, ensure};
use longshore_proto::reapi;

/// The result of an action that was executed and exited with `exit_code`.
fn result_of(response: &reapi::ExecuteResponse, exit_code: i32) -> Result<&reapi::ActionResult> {
    if let Some(status) = &response.status {
        ensure!(status.code == 0, "{status:?} {}", response.message);
    }
    let result = response.result.as_ref().context("no result")?;
    ensure!(result.exit_code == exit_code, "{result:?}");
    Ok(result)
}
