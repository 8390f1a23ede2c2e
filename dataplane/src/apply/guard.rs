//! A panic as an error: what is done for one model ends neither the others nor the configuration client.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
};

/// Does it, and gives the text of a panic as the error. What it worked on must not be trusted afterwards.
pub(super) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| text(panic.as_ref()))
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "panicked without a word".to_owned())
}
