//! Refusals come from workers and go to operators: bounded on the way in, and in all of an answer together.

use forebay_proto::{limits, wire};

/// A worker's reasons, bounded in number and in text, as far as they can stand on an operator's terminal.
pub(crate) fn bounded(refusals: Vec<wire::Refusal>) -> Vec<wire::Refusal> {
    let short = |text: String| {
        let plain = text.chars().filter(|c| !c.is_control());
        plain.take(limits::REFUSAL_CHARS).collect()
    };
    let mut room = limits::REFUSAL_BYTES;
    let bounded = refusals.into_iter().take(limits::REFUSALS);
    bounded
        .map(|refusal| wire::Refusal {
            model: short(refusal.model),
            field: short(refusal.field),
            reason: short(refusal.reason),
            message: short(refusal.message),
        })
        .take_while(|refusal| {
            let size = refusal.model.len() + refusal.field.len();
            let size = size + refusal.reason.len() + refusal.message.len();
            let fits = size <= room;
            room = room.saturating_sub(size);
            fits
        })
        .collect()
}

/// Bounds the reasons of all workers of an answer together: the first of each, as far as that goes, before the second
/// of any.
pub(super) fn share_refusals(workers: &mut [wire::Worker]) {
    let refusing = workers.iter().filter(|w| !w.refusals.is_empty()).count();
    let each = (limits::REFUSALS_SHOWN / refusing.max(1)).max(1);
    let mut room = limits::REFUSALS_SHOWN;
    for worker in workers {
        worker.refusals.truncate(each.min(room));
        room -= worker.refusals.len();
    }
}
