//! Directories that are somebody else's, read-only or full, in part or whole, of sound stores and of damaged ones:
//! each opens with everything in it within 5 s, or is refused by name and is sound again when the trouble is over;
//! never empty.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use fastrand::Rng;
use forebay_proto::PoolSettings;
use tokio::time::Instant;

use super::{Recovery, Store as _, StoreError, export, recover, suite::put};

const CHILD: &str = "store::hostile_tests::child";
const DIR: &str = "FOREBAY_TEST_HOSTILE";
/// Room that the child leaves before it writes, in bytes.
const ROOM: &str = "FOREBAY_TEST_ROOM";
/// Of each kind of trouble; of disks that are written to until they are full fewer, which takes seconds each.
const TIMES: u64 = 100;
const WRITTEN_FULL: u64 = 8;
const WRITTEN_FULL_VARIABLE: &str = "FOREBAY_TEST_FULL_DISKS";
const LIMIT: Duration = Duration::from_secs(5);
const MODELS: u64 = 20;
/// Large models in one commit, so that a disk is full soon: sled takes room by segments of 8 MiB.
const GROUP: u64 = 16;
const NOBODY: u32 = 65_534;
/// What may be wrong about the database besides.
const DAMAGES: [&str; 6] = [
    ":",
    ":",
    r#"printf damaged | dd of="$D/db" conv=notrunc 2>/dev/null"#,
    r#"truncate -s 900 "$D/db""#,
    r#"rm "$D/db""#,
    r#"for snapshot in "$D"/snap.*; do printf short >"$snapshot"; done"#,
];

/// The part that runs in the trouble: says what became of it, and, where it is given room, how far it got.
#[test]
fn child() {
    let Ok(dir) = std::env::var(DIR) else {
        return;
    };
    let dir = Path::new(&dir);
    let began = Instant::now();
    let opened = recover::open(dir, &PoolSettings::default(), Recovery::Automatic);
    let took = began.elapsed();
    assert!(took < LIMIT, "{took:?}");
    let (mut store, recovered) = match opened {
        Ok(opened) => opened,
        Err(error) => return println!("REFUSED {error}"),
    };
    let stored = store.load().unwrap();
    println!("OPENED {} {}", stored.models.len(), recovered.is_some());
    if let Ok(room) = std::env::var(ROOM) {
        fill(&dir.join("fill"), room.parse().unwrap());
        for committed in 0.. {
            let first = stored.revision.get() + 1 + committed * GROUP;
            let group = (first..first + GROUP).map(|n| put(&format!("w{n}"), 60, n));
            if let Err(error) = store.commit(&group.collect::<Vec<_>>()) {
                assert!(matches!(error, StoreError::Unknown(_)), "{error}");
                // It says no more than that until it is opened anew.
                store.commit(&[]).unwrap_err();
                println!("COMMITTED {committed}: {error}");
                return;
            }
            if committed % 20 == 0 {
                // It may fail; the database is what counts.
                drop(export::save(dir, &store.load().unwrap(), SystemTime::now()));
            }
        }
    }
}

/// Takes all room of a disk but so many bytes.
fn fill(path: &Path, room: u64) {
    let mut file = File::create(path).unwrap();
    while file.write_all(&[1; 4_096]).is_ok() {}
    let taken = file.metadata().unwrap().len();
    file.set_len(taken.saturating_sub(room)).unwrap();
}

/// A store with its export and a snapshot.
fn origin() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let start = || recover::open(dir.path(), &PoolSettings::default(), Recovery::Automatic);
    let (mut store, _) = start().unwrap();
    for n in 0..MODELS {
        store.commit(&[put(&format!("m{n}"), 3, n + 2)]).unwrap();
    }
    for _ in 0..2 {
        export::save(dir.path(), &store.load().unwrap(), SystemTime::now()).unwrap();
    }
    drop(store);
    drop(start().unwrap());
    assert!(entries(dir.path()).iter().any(|path| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("snap.")
    }));
    dir
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap();
    let mut entries: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    entries
}

/// Runs a shell's words with mounts of their own; `"$@"` in them is the child's command.
fn run(shell: &str, origin: &Path, dir: &Path, env: &[(&str, String)]) -> String {
    let child = std::env::current_exe().unwrap();
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-ec", shell, "sh"])
        .arg(child)
        .args(["--exact", CHILD, "--nocapture"])
        .env(DIR, dir)
        .env("D", dir)
        .env("ORIGIN", origin)
        .envs(env.iter().map(|(name, value)| (name, value)))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{shell}\n{said}{err}");
    assert!(!err.contains("panicked"), "{shell}\n{said}{err}");
    said
}

/// What the child said: everything is there, or a refusal in these words.
fn opened_or(refusals: &[&str], said: &str, context: &str) -> bool {
    assert!(!said.contains("OPENED 0"), "{context}: {said}");
    if said.contains(&format!("OPENED {MODELS} ")) {
        return true;
    }
    let named = refusals.iter().any(|words| said.contains(words));
    assert!(said.contains("REFUSED") && named, "{context}: {said}");
    false
}

#[test]
fn a_full_disk_is_refused_by_name_and_nothing_is_lost() {
    let origin = origin();
    let mut random = Rng::with_seed(8);
    let (mut refused, mut rebuilt) = (0, 0);
    for n in 0..TIMES {
        let damage = DAMAGES[n as usize % DAMAGES.len()];
        // From nothing to more than enough.
        let left = match n % 4 {
            0 => random.u64(0..64),
            1 => random.u64(64..1_024),
            2 => random.u64(1_024..12_000),
            _ => random.u64(9_000..24_000),
        };
        let shell = format!(
            r#"mount -t tmpfs -o size=64m none "$D"; cp -r "$ORIGIN"/* "$D"; {damage}
            free=$(df --output=avail "$D" | tail -1)
            dd if=/dev/zero of="$D/fill" bs=1k count=$((free - {left})) 2>/dev/null
            "$@"; echo THEN; rm "$D/fill"; "$@""#
        );
        let room = tempfile::tempdir().unwrap();
        let said = run(&shell, origin.path(), room.path(), &[]);
        let (full, then) = said.split_once("THEN").unwrap();
        let context = format!("{left} KiB left, {damage}");
        refused += u64::from(!opened_or(&["its disk is full"], full, &context));
        assert!(opened_or(&[], then, &context));
        rebuilt += u64::from(said.contains(&format!("OPENED {MODELS} true")));
    }
    println!(
        "{refused} of {TIMES} were refused, {rebuilt} were damaged and built again in the end"
    );
    assert!(refused > TIMES / 4 && refused < TIMES, "{refused}");
    assert!(rebuilt > TIMES / 4, "{rebuilt}");
}

#[test]
fn a_disk_that_becomes_full_while_it_is_written_to_keeps_what_was_committed() {
    let origin = origin();
    let disks = std::env::var(WRITTEN_FULL_VARIABLE);
    let disks = disks.map_or(WRITTEN_FULL, |disks| disks.parse().unwrap());
    let mut random = Rng::with_seed(9);
    let mut all = 0;
    for _ in 0..disks {
        let shell = r#"mount -t tmpfs -o size=64m none "$D"; cp -r "$ORIGIN"/* "$D"
            "$@"; rm "$D/fill"; unset FOREBAY_TEST_ROOM; "$@""#;
        let left = random.u64(0..6 << 20);
        let room = tempfile::tempdir().unwrap();
        let said = run(
            shell,
            origin.path(),
            room.path(),
            &[(ROOM, left.to_string())],
        );
        let number = |word: &str, text: &str| -> u64 {
            let rest = text.rsplit_once(word).unwrap().1;
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap();
            rest[..end].parse().unwrap()
        };
        let committed = number("COMMITTED ", &said);
        let found = number("OPENED ", &said);
        // One was under way, and may be there, whole.
        let least = MODELS + committed * GROUP;
        assert!([least, least + GROUP].contains(&found), "{left}: {said}");
        all += committed;
    }
    println!("{disks} disks became full after {all} commits in all, 0 lost");
    assert!(all > disks, "{all}");
}

#[test]
fn what_is_read_only_is_refused_by_name() {
    let origin = origin();
    let mut names: Vec<_> = entries(origin.path())
        .iter()
        .map(|path| format!("/{}", path.file_name().unwrap().to_str().unwrap()))
        .collect();
    // The directory itself, thrice as often as anything in it.
    names.extend([String::new(), String::new(), String::new()]);
    let mut refused = 0;
    for n in 0..TIMES {
        let name = &names[n as usize % names.len()];
        let damage = DAMAGES[n as usize / names.len() % DAMAGES.len()];
        let shell = format!(
            r#"cp -r "$ORIGIN"/* "$D"; {damage}
            at="$D{name}"
            if [ -e "$at" ]; then mount --bind "$at" "$at"; mount -o remount,bind,ro "$at"; fi
            "$@""#
        );
        let dir = tempfile::tempdir().unwrap();
        let said = run(&shell, origin.path(), dir.path(), &[]);
        let context = format!("`{name}` is read-only, {damage}");
        let words = "cannot be used as a data directory";
        refused += u64::from(!opened_or(&[words], &said, &context));
    }
    println!("{refused} of {TIMES} were refused");
    assert!(refused > TIMES / 5 && refused < TIMES, "{refused}");
}

#[test]
fn what_is_somebody_elses_is_refused_by_name() {
    let origin = origin();
    // Root may do anything: the child is nobody. Anybody else takes the rights from itself.
    let root = rustix::process::geteuid().is_root();
    let mut names: Vec<_> = entries(origin.path())
        .iter()
        .map(|path| path.file_name().unwrap().to_owned())
        .collect();
    names.extend(std::iter::repeat_n("".into(), 3));
    let mut refused = 0;
    for n in 0..TIMES {
        let name = &names[n as usize % names.len()];
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let damage = DAMAGES[n as usize / names.len() % DAMAGES.len()];
        let prepare = format!(r#"cp -r "$ORIGIN"/* "$D"; {damage}"#);
        let prepared = Command::new("sh")
            .args(["-ec", &prepare])
            .env("D", dir.path())
            .env("ORIGIN", origin.path())
            .status();
        assert!(prepared.unwrap().success());
        let theirs = dir.path().join(name);
        let is_dir = theirs.is_dir();
        if root {
            let own = |path: &Path| chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
            own(dir.path());
            entries(dir.path()).iter().for_each(|path| own(path));
        }
        // Unreadable, or no more than readable.
        let mode = match (n % 2, root, is_dir) {
            (_, false, _) => 0o000,
            (0, true, true) => 0o700,
            (0, true, false) => 0o600,
            (_, true, true) => 0o755,
            (_, true, false) => 0o644,
        };
        if theirs.exists() {
            if root {
                chown(&theirs, Some(0), Some(0)).unwrap();
            }
            fs::set_permissions(&theirs, fs::Permissions::from_mode(mode)).unwrap();
        }
        let said = run_as_nobody(dir.path(), root);
        if theirs.exists() || !root {
            let mode = if is_dir { 0o700 } else { 0o600 };
            drop(fs::set_permissions(
                &theirs,
                fs::Permissions::from_mode(mode),
            ));
        }
        let context = format!("{name:?} is somebody else's, mode {mode:o}, {damage}");
        let words = match damage {
            ":" => &["check its owner and mode"][..],
            _ => &["check its owner and mode", "no export can be used"],
        };
        refused += u64::from(!opened_or(words, &said, &context));
    }
    println!("{refused} of {TIMES} were refused");
    assert!(refused > TIMES / 5 && refused < TIMES, "{refused}");
}

fn run_as_nobody(dir: &Path, root: bool) -> String {
    let child = std::env::current_exe().unwrap();
    let mut command = match root {
        true => Command::new("setpriv"),
        false => Command::new(&child),
    };
    if root {
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(child);
    }
    let output = command
        .args(["--exact", CHILD, "--nocapture"])
        .env(DIR, dir)
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{err}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
