//! Ctrl-C: the running work ends at its next piece and removes what it had begun to write. Where a piece takes
//! long, a second Ctrl-C does so at once.

use anyhow::{Result, bail};
use std::sync::atomic::{AtomicBool, Ordering};

/// Exit code of a run that was interrupted: 128 + SIGINT.
pub(crate) const EXIT_CODE: u8 = 130;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Makes Ctrl-C, and a request to terminate, ask for an end; a second one ends at once, and removes what was
/// begun.
pub(crate) fn install() -> Result<()> {
    ctrlc::set_handler(|| {
        if REQUESTED.swap(true, Ordering::Relaxed) {
            codec_io::atomic::remove_unfinished();
            std::process::exit(i32::from(EXIT_CODE));
        }
    })?;
    Ok(())
}

/// Whether an end was asked for.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// An error once an end was asked for.
pub(crate) fn check() -> Result<()> {
    if requested() {
        bail!("interrupted");
    }
    Ok(())
}
