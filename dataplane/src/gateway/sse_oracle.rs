//! The same reading of a stream, done the slow way: all of it at once, line by line. What the scanner is held against.

use super::{DONE, Dialect, Kind, Seen, Sse};
use crate::gateway::facts::{JsonScan, Short};

/// What a stream says, whether it ends between two events, and where its events end.
pub(crate) fn read(dialect: Dialect, text: &[u8]) -> (Seen, bool, Vec<(usize, bool)>) {
    let (mut seen, mut ends) = (Seen::default(), Vec::new());
    let (mut name, mut data, mut open) = (Vec::new(), None::<Vec<u8>>, false);
    let (mut at, mut rest) = (0, text);
    while !rest.is_empty() {
        let Some(end) = rest.iter().position(|b| matches!(b, b'\n' | b'\r')) else {
            return (seen, false, ends);
        };
        let (line, after) = rest.split_at(end);
        let crlf = after.starts_with(b"\r\n");
        at += end + 1 + usize::from(crlf);
        rest = text.get(at..).unwrap_or_default();
        let colon = line.iter().position(|b| *b == b':').unwrap_or(line.len());
        let (label, value) = line.split_at(colon);
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match label {
            _ if line.is_empty() => {
                let alone = data
                    .take()
                    .is_some_and(|data: Vec<u8>| dispatch(dialect, &mut seen, &name, &data));
                ends.push((at, alone));
                (name, open) = (Vec::new(), false);
            }
            b"" => {}
            b"data" => {
                open = true;
                match &mut data {
                    Some(data) => {
                        data.push(b'\n');
                        data.extend_from_slice(value);
                    }
                    None => data = Some(value.to_vec()),
                }
            }
            b"event" => {
                open = true;
                name = value.to_vec();
            }
            _ => open = true,
        }
    }
    (seen, !open, ends)
}

fn dispatch(dialect: Dialect, seen: &mut Seen, name: &[u8], data: &[u8]) -> bool {
    if data.starts_with(DONE) {
        seen.ended = true;
        return false;
    }
    let mut short = Short::default();
    short.push(name);
    let kind = Kind::of(&short);
    let facts = match (dialect, kind) {
        (Dialect::Typed | Dialect::Either, Kind::Delta | Kind::Other) => Default::default(),
        _ => JsonScan::all(data),
    };
    let kind = match (dialect, kind) {
        (Dialect::Typed | Dialect::Either, Kind::Unnamed) => Kind::of(&facts.kind),
        _ => kind,
    };
    let error = facts.error || matches!(kind, Kind::Error | Kind::LastFailed);
    seen.error |= error;
    seen.usage.update(facts.usage);
    let alone = facts.usage.is_known() && facts.no_choices && !error;
    match dialect {
        Dialect::Plain => {
            seen.finish = facts.finish.or(seen.finish);
            seen.events += u64::from(!error && !alone);
        }
        Dialect::Typed => {
            seen.finish = facts.stop.or(seen.finish);
            seen.ended |= matches!(kind, Kind::Last | Kind::LastFailed);
            seen.events += u64::from(kind == Kind::Delta);
        }
        Dialect::Either => {
            seen.finish = facts.stop.or(facts.finish).or(seen.finish);
            seen.ended |= matches!(kind, Kind::Last | Kind::LastFailed);
            let plain = kind == Kind::Unnamed && !error && !alone;
            seen.events += u64::from(kind == Kind::Delta || plain);
        }
    }
    alone
}

/// What the scanner makes of it, cut into pieces: panics if that is not what the oracle says. The ends of events that
/// a cut took the second half of CRLF from are one byte earlier.
#[expect(clippy::panic, reason = "only tests and the fuzzer run it")]
pub(crate) fn check(dialect: Dialect, text: &[u8], cuts: impl IntoIterator<Item = usize>) {
    let (mut sse, mut ends, mut at) = (Sse::new(dialect), Vec::new(), 0);
    for cut in cuts.into_iter().chain([text.len()]) {
        let cut = cut.clamp(at, text.len());
        let piece = text.get(at..cut).unwrap_or_default();
        let pushed = sse.push(piece, |ended| ends.push((at + ended.at, ended.usage_alone)));
        if pushed.is_err() {
            return;
        }
        at = cut;
    }
    let (seen, between, wanted) = read(dialect, text);
    let same = |(one, other): (&(usize, bool), &(usize, bool))| {
        let early = one.0 + 1 == other.0 && text.get(one.0) == Some(&b'\n');
        (one.0 == other.0 || early) && one.1 == other.1
    };
    let same = ends.len() == wanted.len() && ends.iter().zip(&wanted).all(same);
    if *sse.seen() != seen || sse.is_between_events() != between || !same {
        let text = text.escape_ascii();
        panic!(
            "{:?}\n{ends:?}\nfor {seen:?} {between}\n{wanted:?}\nof {text}",
            sse.seen()
        );
    }
}
