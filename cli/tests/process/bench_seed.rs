//! `forebay bench seed` as it would be typed: what it finds, what it refuses, and what it leaves behind.

use std::{fs, path::Path, process::Stdio, time::Duration};

use forebay_tests::{Process, eventually};
use serde_json::Value;
use tokio::{process::Command, time::timeout};

use crate::roles::{FOREBAY, run};

/// Longest time of a short run, on a machine that does other things too.
const WITHIN: Duration = Duration::from_secs(120);

/// A pool of 60 of which 40 are kept, in the two shapes of load that differ most.
const SHORT: [&str; 14] = [
    "bench",
    "seed",
    "--load",
    "waves,closed",
    "--waves",
    "4",
    "--seconds",
    "1",
    "--handshake",
    "20ms",
    "--service-time",
    "100ms",
    "--max-concurrent",
    "20",
];

fn find<'a>(report: &'a Value, contestant: &str, shape: &str) -> &'a Value {
    let mut runs = report["runs"].as_array().unwrap().iter();
    let found = runs.find(|run| run["contestant"] == contestant && run["shape"] == shape);
    found.unwrap()
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

/// Runs it with a temporary directory of its own, and gives what it printed for programs.
async fn short(temporary: &Path, out: &Path) -> Value {
    let mut command = Command::new(FOREBAY);
    command
        .args(SHORT)
        .args(["--output", "json", "--out", out.to_str().unwrap()])
        .env_clear()
        .env("TMPDIR", temporary)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(WITHIN, command.output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("synchronized waves: Forebay: "), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_claim_holds_in_waves_and_forebay_opens_nothing_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let (temporary, out) = (dir.path().join("tmp"), dir.path().join("out/report"));
    fs::create_dir(&temporary).unwrap();
    let report = short(&temporary, &out).await;
    for run in report["runs"].as_array().unwrap() {
        assert_eq!(run["failures"], 0, "{run}");
    }

    // 3 counted waves of 60, of which 40 were kept.
    let seed = find(&report, "seed", "waves");
    assert_eq!(
        (&seed["requests"], &seed["opened"]),
        (&180.into(), &60.into())
    );
    assert_eq!(seed["mostIdle"], 40);
    assert_eq!(find(&report, "fixed", "waves")["opened"], 0);
    let forebay = find(&report, "forebay", "waves");
    assert!(forebay["reuse"].as_f64().unwrap() >= 0.999, "{forebay}");
    assert_eq!(forebay["kept"], serde_json::json!([20, 20, 20]));

    for contestant in ["seed", "fixed", "forebay"] {
        let closed = find(&report, contestant, "closed");
        assert!(closed["requests"].as_u64().unwrap() > 100, "{closed}");
        assert_eq!(closed["opened"], 0, "{closed}");
    }
    let httpcore = find(&report, "httpcore", "closed");
    assert!(httpcore["reuse"].as_f64().unwrap() < 0.5, "{httpcore}");

    assert_eq!(report["holdsIn"], serde_json::json!(["waves"]));
    assert_eq!(report["warm"]["openedBefore"], 60);
    assert_eq!(report["warm"]["openedByFirstRequests"], 0);
    for promise in report["promises"].as_array().unwrap() {
        assert_eq!(promise["kept"], true, "{promise}");
    }
    assert!(report["memory"]["kibPerConnection"].is_number());

    let written: Value = serde_json::from_slice(&fs::read(out.join("seed.json")).unwrap()).unwrap();
    assert_eq!(written, report);
    let markdown = fs::read_to_string(out.join("seed.md")).unwrap();
    for picture in ["pools.svg", "latency-waves.svg", "latency-closed.svg"] {
        assert!(markdown.contains(picture), "{picture}: {markdown}");
        let svg = fs::read_to_string(out.join(picture)).unwrap();
        assert!(
            svg.contains("Forebay") && svg.ends_with("</svg>\n\n"),
            "{svg}"
        );
    }
    assert!(is_empty(&temporary), "the gateway's data are gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_go_together_is_usage() {
    for (flags, parts) in [
        (["--keepalive", "151"], ["--keepalive 151", "1 to 150"]),
        (
            ["--max-concurrent", "400"],
            ["1200 connections", "at most 1000"],
        ),
        (
            ["--service-time", "10ms"],
            ["9750 arrivals", "make it longer"],
        ),
    ] {
        let (code, _, err) = run(&[&["bench", "seed"][..], &flags].concat()).await;
        assert_eq!(code, Some(64), "{err}");
        for part in parts {
            assert!(err.contains(part), "{part}: {err}");
        }
    }
}

/// The command lines of all processes that name this directory.
fn processes_in(dir: &Path) -> Vec<String> {
    let dir = dir.to_str().unwrap();
    let lines = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let line = fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    });
    lines.filter(|line| line.contains(dir)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_it_leaves_no_process_and_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let temporary = dir.path().to_str().unwrap();
    // Short for the pools that come before Forebay, and long enough for Forebay to be met running.
    let args = ["bench", "seed", "--load", "waves", "--waves", "2"];
    let bench = Process::start(FOREBAY, &args, &[("TMPDIR", temporary)]);
    eventually("the gateway under test runs", async || {
        (!processes_in(dir.path()).is_empty()).then_some(())
    })
    .await;
    let (code, out, err) = bench.terminate().await;
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("interrupted") && out.is_empty(), "{out}{err}");
    assert_eq!(processes_in(dir.path()), Vec::<String>::new());
    assert!(is_empty(dir.path()), "the gateway's data are gone");
}
