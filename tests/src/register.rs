//! Judges what clients saw of a registry against its history: whether there is one order of all writes that explains
//! every answer (linearizability), and whether anything that was acknowledged is missing.
//!
//! No search for an order is needed, because each write says its own place: it is answered with its revision, and the
//! history names the write of each revision. So the order is given, and what remains is that it holds: every
//! acknowledged write is in it once, at the revision that was answered; there are no gaps and no strangers; a write that
//! began after another had ended comes after it; and a read that asks for the newest shows the content of one revision,
//! at least that of every write that had ended before it began, and of none that began after it had ended.

use std::{collections::BTreeMap, time::Duration};

/// A write, as its client saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrote {
    /// Its name, which the history has as its reason.
    pub tag: String,
    /// What it wrote to.
    pub key: String,
    /// What it put there; nothing: it deleted it.
    pub value: Option<String>,
    /// When it was asked for, since the run began.
    pub began: Duration,
    /// When it was answered; nothing: it never was.
    pub ended: Option<Duration>,
    /// With which revision.
    pub revision: u64,
}

/// A read of everything, at the newest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// When it was asked for, since the run began.
    pub began: Duration,
    /// When it was answered.
    pub ended: Duration,
    /// At which revision.
    pub revision: u64,
    /// What was there.
    pub content: BTreeMap<String, String>,
}

/// All that is wrong. The history is what follows revision `from`, whose content is `content`: revision and tag.
#[must_use]
pub fn judge(
    from: u64,
    content: &BTreeMap<String, String>,
    history: &[(u64, String)],
    writes: &[Wrote],
    reads: &[Read],
) -> Vec<String> {
    let mut wrong = Vec::new();
    let by_tag: BTreeMap<&str, &Wrote> = writes.iter().map(|w| (w.tag.as_str(), w)).collect();
    let mut places: BTreeMap<&str, u64> = BTreeMap::new();
    // The content at each revision, as the history has it.
    let mut contents = vec![content.clone()];
    for (expected, (revision, tag)) in (from + 1..).zip(history) {
        if *revision != expected {
            wrong.push(format!(
                "revision {expected} is missing, {revision} is there"
            ));
            return wrong;
        }
        if let Some(first) = places.insert(tag, *revision) {
            wrong.push(format!("{tag} was made twice, as {first} and {revision}"));
        }
        let mut next = contents.last().cloned().unwrap_or_default();
        match by_tag.get(tag.as_str()) {
            None => wrong.push(format!(
                "revision {revision} ({tag}) was asked for by nobody"
            )),
            Some(write) => match &write.value {
                Some(value) => drop(next.insert(write.key.clone(), value.clone())),
                None => drop(next.remove(&write.key)),
            },
        }
        contents.push(next);
    }
    for write in writes.iter().filter(|write| write.ended.is_some()) {
        match places.get(write.tag.as_str()) {
            None => wrong.push(format!(
                "{} was acknowledged as {} and is lost",
                write.tag, write.revision
            )),
            Some(place) if *place != write.revision => wrong.push(format!(
                "{} was acknowledged as {} and is {place}",
                write.tag, write.revision
            )),
            Some(_) => {}
        }
    }
    in_order(writes, &places, &mut wrong);
    for read in reads {
        judge_read(read, from, &contents, writes, &places, &mut wrong);
    }
    wrong
}

/// Whoever began after another had ended comes after it.
fn in_order(writes: &[Wrote], places: &BTreeMap<&str, u64>, wrong: &mut Vec<String>) {
    let placed = |write: &Wrote| places.get(write.tag.as_str()).copied();
    let mut ended: Vec<_> = writes
        .iter()
        .filter_map(|write| Some((write.ended?, placed(write)?, &write.tag)))
        .collect();
    ended.sort();
    let mut began: Vec<_> = writes
        .iter()
        .filter_map(|write| Some((write.began, placed(write)?, &write.tag)))
        .collect();
    began.sort();
    let (mut ended, mut newest) = (ended.into_iter().peekable(), (0, None));
    for (began, place, tag) in began {
        while let Some((_, place, tag)) = ended.next_if(|(ended, ..)| *ended < began) {
            newest = newest.max((place, Some(tag)));
        }
        if place <= newest.0 && newest.1 != Some(tag) {
            let (earlier, name) = newest;
            wrong.push(format!(
                "{tag} is revision {place}, and began after {} had ended as {earlier}",
                name.map_or("", String::as_str)
            ));
        }
    }
}

fn judge_read(
    read: &Read,
    from: u64,
    contents: &[BTreeMap<String, String>],
    writes: &[Wrote],
    places: &BTreeMap<&str, u64>,
    wrong: &mut Vec<String>,
) {
    let revision = read.revision;
    let at = revision
        .checked_sub(from)
        .and_then(|n| usize::try_from(n).ok());
    match at.and_then(|at| contents.get(at)) {
        None => wrong.push(format!(
            "a read saw revision {revision}, which there is not"
        )),
        Some(content) if *content != read.content => {
            wrong.push(format!("a read of revision {revision} saw another content"));
        }
        Some(_) => {}
    }
    for write in writes {
        let Some(place) = places.get(write.tag.as_str()) else {
            continue;
        };
        if write.ended.is_some_and(|ended| ended < read.began) && *place > revision {
            wrong.push(format!(
                "a read saw revision {revision} after {} had ended as {place}",
                write.tag
            ));
        }
        if write.began > read.ended && *place <= revision {
            wrong.push(format!(
                "a read saw revision {revision} before {} began, which is {place}",
                write.tag
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn wrote(tag: &str, began: u64, ended: Option<u64>, revision: u64) -> Wrote {
        Wrote {
            tag: tag.to_owned(),
            key: "k".to_owned(),
            value: Some(tag.to_owned()),
            began: ms(began),
            ended: ended.map(ms),
            revision,
        }
    }

    fn history(tags: &[&str]) -> Vec<(u64, String)> {
        (11..).zip(tags.iter().map(ToString::to_string)).collect()
    }

    fn read(began: u64, ended: u64, revision: u64, value: &str) -> Read {
        Read {
            began: ms(began),
            ended: ms(ended),
            revision,
            content: BTreeMap::from([("k".to_owned(), value.to_owned())]),
        }
    }

    /// Two that overlap may be in either order; one whose answer was lost may be there or not.
    #[test]
    fn what_can_be_explained_is_not_wrong() {
        let writes = [
            wrote("a", 0, Some(10), 12),
            wrote("b", 5, Some(12), 11),
            wrote("lost", 6, None, 0),
            wrote("gone", 6, None, 0),
            wrote("c", 20, Some(30), 14),
        ];
        let reads = [
            read(13, 15, 12, "a"),
            read(13, 22, 14, "c"),
            read(31, 32, 14, "c"),
        ];
        let history = history(&["b", "a", "lost", "c"]);
        assert_eq!(
            judge(10, &BTreeMap::new(), &history, &writes, &reads),
            [""; 0]
        );
    }

    /// Each kind of fault, planted, is found.
    #[test]
    fn what_cannot_be_explained_is_told() {
        let writes = [wrote("a", 0, Some(10), 11), wrote("b", 20, Some(30), 12)];
        let judge = |history: &[(u64, String)], writes: &[Wrote], reads: &[Read]| {
            judge(10, &BTreeMap::new(), history, writes, reads).join("; ")
        };
        let good = history(&["a", "b"]);
        assert_eq!(judge(&good, &writes, &[]), "");
        let cases = [
            (
                judge(&history(&["a"]), &writes, &[]),
                "b was acknowledged as 12 and is lost",
            ),
            (
                judge(&history(&["b", "a"]), &writes, &[]),
                "is revision 11, and began",
            ),
            (
                judge(&history(&["a", "b", "a"]), &writes, &[]),
                "made twice",
            ),
            (judge(&history(&["a", "b", "x"]), &writes, &[]), "by nobody"),
            (
                judge(&[good[1].clone()], &writes, &[]),
                "revision 11 is missing",
            ),
            (
                judge(
                    &good,
                    &[writes[0].clone(), wrote("b", 20, Some(30), 13)],
                    &[],
                ),
                "as 13 and is 12",
            ),
            (
                judge(&good, &writes, &[read(31, 32, 11, "a")]),
                "after b had ended as 12",
            ),
            (
                judge(&good, &writes, &[read(12, 15, 12, "b")]),
                "before b began",
            ),
            (
                judge(&good, &writes, &[read(12, 25, 12, "a")]),
                "another content",
            ),
            (
                judge(&good, &writes, &[read(12, 25, 19, "a")]),
                "which there is not",
            ),
        ];
        for (found, expected) in cases {
            assert!(found.contains(expected), "{expected}: {found}");
        }
    }
}
