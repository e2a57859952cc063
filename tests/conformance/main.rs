//! The rules of REAPI, each a test named by its ID in `rules.txt`, on the real binary over gRPC.
//!
//! The first line of a test's doc comment is the rule in a few words. `Deviation:`, `Absent:` and `Open:` begin the
//! reason why longshore does otherwise, does without, or cannot yet; the test then shows what it does.

mod ac;
mod act;
mod brd;
mod bsr;
mod bsw;
mod bup;
mod cap;
mod cas;
mod cli;
mod cmd;
mod cmp;
mod dig;
mod dir;
mod err;
mod exe;
mod fmb;
mod grp;
mod gtr;
mod hdr;
mod inp;
mod ins;
mod met;
mod odr;
mod osy;
mod out;
mod qws;
mod reference;
mod res;
mod rn;
mod run;
mod streams;
mod support;
mod sym;
mod table;
mod v;
mod wai;

use std::sync::{Arc, Weak};

use anyhow::Result;
use longshore_tests::longshore::{Launch, Longshore};
use tokio::sync::Mutex;

/// Actions at once on the longshore that tests share.
const JOBS: usize = 4;

/// The longshore that the tests which run side by side share; it ends with the last of them.
async fn shared() -> Result<Arc<Longshore>> {
    static RUNNING: Mutex<Weak<Longshore>> = Mutex::const_new(Weak::new());
    let mut running = RUNNING.lock().await;
    if let Some(longshore) = running.upgrade() {
        return Ok(longshore);
    }
    // Some tests need actions at once, however few cores there are.
    let flags = vec!["--jobs".to_owned(), JOBS.to_string()];
    let longshore = Arc::new(Longshore::launch(Launch { flags, ..Launch::default() }).await?);
    *running = Arc::downgrade(&longshore);
    Ok(longshore)
}
