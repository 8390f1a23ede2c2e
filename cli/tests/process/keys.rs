//! Keys and credentials on the command line, and that no secret of theirs is where it must not be: neither in logs at
//! their most talkative, nor in files, metrics, documents or errors.

use std::{fs, path::Path, time::Duration};

use forebay_tests::{After, Chat, RawUpstream, eventually, eventually_within};
use serde_json::Value;

use crate::roles::{ANY, Control, Worker, run};

const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 14\r\n\r\n\
                      {\"choices\":[]}";
/// What an upstream asks for.
const TOKEN: &str = "canary-token-8c1e77";
/// What a client sends that is no key.
const WRONG: &str = "canary-wrong-41d09b";

async fn typed(control: &Control, args: &[&str]) -> (Option<i32>, String, String) {
    run(&[args, &["--control", &control.url()]].concat()).await
}

async fn json(control: &Control, args: &[&str]) -> Value {
    let (code, out, err) = typed(control, &[args, &["-o", "json"]].concat()).await;
    assert_eq!(code, Some(0), "{args:?}: {err}");
    serde_json::from_str(&out).unwrap()
}

/// Every file below a directory that has one of these.
fn files_with(dir: &Path, canaries: &[&str]) -> Vec<String> {
    let (mut found, mut folders) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let bytes = fs::read(&path).unwrap();
            let has = |canary: &&str| bytes.windows(canary.len()).any(|w| w == canary.as_bytes());
            if canaries.iter().any(has) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

/// What commands print of a key that is given whole where its id is wanted: the secret goes no further.
async fn commands(control: &Control, key: &str) -> String {
    let (id, mut told) = (&key[4..16], String::new());
    let (code, out, err) = typed(control, &["keys", "get", key]).await;
    assert_eq!(code, Some(0), "{err}");
    told.push_str(&out);
    for args in [
        &["keys", "list"][..],
        &["keys", "revoke", id, "--reason", "canary"],
        &["keys", "list", "--revoked", "-o", "yaml"],
        &["models", "get", "m"],
        &["models", "export"],
        &["fleet", "diff", "1", "2"],
        &["fleet", "revisions"],
    ] {
        let (code, out, err) = typed(control, args).await;
        assert_eq!(code, Some(0), "{args:?}: {err}");
        told.push_str(&out);
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_logged_shown_or_kept_in_clear() {
    let (dir, apart) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let env = [("FOREBAY_LOG", "trace"), ("RUST_BACKTRACE", "1")];
    let control = Control::start(ANY, dir.path(), &env).await;
    let worker = Worker::start(&control.url(), "w1", dir.path(), &env).await;
    let upstream = RawUpstream::start(ANSWER, After::Keep).await;
    let file = apart.path().join("token");
    fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let file = file.to_str().unwrap();
    let url = upstream.url();
    let create = [
        "models",
        "create",
        "m",
        "--endpoint",
        &url,
        "--credential-file",
        file,
    ];
    let created = json(&control, &create).await;
    let credential = &created["endpoints"][0]["credential"];
    assert_eq!(credential["fingerprint"].as_str().unwrap().len(), 16);
    assert_eq!(credential.as_object().unwrap().len(), 1);
    let made = json(&control, &["keys", "create", "app", "--rpm", "5"]).await;
    let (key, id) = (
        made["secret"].as_str().unwrap(),
        made["key"]["id"].as_str().unwrap(),
    );
    worker.ready().await;

    let client = worker.client();
    let ask = |bearer: &str| client.chat("m", Chat::Whole, 1).bearer_auth(bearer).send();
    eventually("the key is known", async || {
        let answer = ask(key).await.unwrap();
        (answer.status() == 200).then_some(())
    })
    .await;
    let mut told = String::new();
    for bearer in [
        WRONG,
        &format!("{key}x"),
        &key.to_lowercase(),
        key,
        key,
        key,
        key,
        key,
    ] {
        let answer = ask(bearer).await.unwrap();
        told.push_str(&format!("{:?}", answer.headers()));
        told.push_str(&answer.text().await.unwrap());
    }
    for page in ["/metrics", "/config", "/pools", "/readyz"] {
        told.push_str(&worker.page(page).await);
    }
    let metrics = format!("{}/metrics", control.url());
    told.push_str(&reqwest::get(metrics).await.unwrap().text().await.unwrap());
    told.push_str(&commands(&control, key).await);
    assert!(upstream.heads().iter().all(|head| head.contains(TOKEN)));

    let (_, out, err) = worker.process.terminate().await;
    told.push_str(&(out + &err));
    let (_, out, err) = control.process.terminate().await;
    told.push_str(&(out + &err));
    let secret = &key[17..];
    for canary in [TOKEN, WRONG, secret, &secret.to_lowercase()] {
        let at = told.find(canary);
        let around = at.map(|at| &told[at.saturating_sub(300)..(at + 100).min(told.len())]);
        assert_eq!(around, None, "{canary}");
    }
    assert!(told.contains(id), "the public part is told");
    let found = files_with(dir.path(), &[TOKEN, WRONG, secret]);
    assert!(found.is_empty(), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keys_life_on_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(ANY, dir.path(), &[]).await;
    let create = [
        "keys",
        "create",
        "ci",
        "--models",
        "a,b",
        "--expires",
        "90d",
        "--tpm",
        "1000",
        "--max-concurrent",
        "3",
        "--priority",
        "low",
        "--weight",
        "5",
        "--reason",
        "for the pipeline",
    ];
    let (code, out, err) = typed(&control, &create).await;
    assert_eq!(code, Some(0), "{err}");
    let key = out.lines().find(|line| line.starts_with("fbk_")).unwrap();
    assert!(forebay_proto::key::is_well_formed(key), "{key}");
    assert!(
        out.contains("never again") && out.contains("for the pipeline"),
        "{out}"
    );
    let id = &key[4..16];
    let shown = json(&control, &["keys", "get", id]).await;
    assert_eq!(shown["priority"], "KEY_PRIORITY_LOW");
    assert_eq!(shown["models"], serde_json::json!(["a", "b"]));
    assert!(shown.get("secret").is_none() && shown.get("hash").is_none());
    let update = [
        "keys",
        "update",
        id,
        "--rpm",
        "60",
        "--clear",
        "tokens_per_minute,models",
    ];
    let updated = json(&control, &update).await;
    assert_eq!(updated["requestsPerMinute"], 60);
    assert!(updated.get("tokensPerMinute").is_none() && updated.get("models").is_none());
    let (code, _, err) = typed(&control, &["keys", "update", id]).await;
    assert!(
        code == Some(64) && err.contains("nothing to change"),
        "{code:?} {err}"
    );
    let (code, _, err) = typed(&control, &["keys", "update", id, "--weight", "101"]).await;
    assert!(code == Some(1) && err.contains("weight"), "{err}");
    let (_, _, err) = typed(&control, &["keys", "get", "000000000000"]).await;
    assert!(err.contains("KEY_NOT_FOUND"), "{err}");
    let (code, out, _) = typed(&control, &["keys", "create", "x", "--dry-run"]).await;
    assert!(code == Some(0) && !out.contains("fbk_"), "{out}");
    let (code, out, _) = typed(&control, &["keys", "revoke", id]).await;
    assert!(code == Some(0) && out.contains("is revoked"), "{out}");
    let (_, out, _) = typed(&control, &["keys", "list"]).await;
    assert!(out.contains("no keys"), "{out}");
    let (_, out, _) = typed(&control, &["keys", "list", "--revoked"]).await;
    assert!(out.contains(id) && out.contains("revoked"), "{out}");
    let (_, _, err) = typed(&control, &["keys", "update", id, "--weight", "2"]).await;
    assert!(err.contains("KEY_REVOKED"), "{err}");

    without_its_pepper(control, dir.path()).await;
}

/// Nothing that it has could be checked: it does not go on.
async fn without_its_pepper(control: Control, dir: &Path) {
    let (_, out, _) = typed(&control, &["keys", "create", "other"]).await;
    assert!(out.contains("fbk_"));
    control.process.terminate().await;
    let pepper = dir.join("control/pepper");
    let aside = dir.join("aside");
    fs::rename(&pepper, &aside).unwrap();
    let data = dir.to_str().unwrap();
    let start = ["control", "--data-dir", data, "--control-listen", ANY];
    let (code, _, err) = run(&start).await;
    assert!(code == Some(1) && err.contains("--pepper-file"), "{err}");
    fs::rename(&aside, &pepper).unwrap();
    let control = Control::start(ANY, dir, &[]).await;
    let (_, out, _) = typed(&control, &["keys", "list"]).await;
    assert!(out.contains("other"), "{out}");
}

/// The credential that a worker's next request carries; nothing if it has none.
async fn credential(worker: &Worker, upstream: &RawUpstream) -> String {
    let status = worker.client().status("m").await.unwrap();
    assert_eq!(status, 200);
    let heads = upstream.heads();
    let lines = heads.last().unwrap().lines();
    let mut found = lines.filter_map(|line| line.strip_prefix("authorization: Bearer "));
    found.next().unwrap_or_default().to_owned()
}

/// Those of all of them.
async fn credentials(workers: &[Worker], upstream: &RawUpstream) -> Vec<String> {
    let mut all = Vec::new();
    for worker in workers {
        all.push(credential(worker, upstream).await);
    }
    all.sort();
    all
}

/// Stops the control plane, has the seal keys be these, and starts it where it was. Gives what it says.
async fn started_anew(
    control: Control,
    dir: &Path,
    lines: &[&str],
    env: &[(&str, &str)],
) -> (Control, String) {
    let listen = control.addr.to_string();
    control.process.terminate().await;
    fs::write(dir.join("control/seal.key"), lines.join("\n")).unwrap();
    let control = Control::start(&listen, dir, env).await;
    eventually("both workers are back", async || {
        let asked = forebay_proto::wire::ListWorkersRequest::default();
        let workers = control.fleet().list_workers(asked).await.ok()?.into_inner();
        (workers.workers.len() == 2).then_some(())
    })
    .await;
    let said = control.process.err();
    (control, said)
}

/// Seal keys are rotated while one of two workers has a new credential, and the other the one before.
#[tokio::test(flavor = "multi_thread")]
async fn credentials_open_on_both_sides_of_a_rollout_whatever_seal_keys_come_first() {
    let (dir, apart) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let dir = dir.path();
    let rings = [("FOREBAY_RINGS", "1"), ("FOREBAY_RING_SOAK", "8s")];
    let control = Control::start(ANY, dir, &rings).await;
    let mut workers = Vec::new();
    for id in ["w1", "w2"] {
        workers.push(Worker::start(&control.url(), id, &apart.path().join(id), &[]).await);
    }
    let upstream = RawUpstream::start(ANSWER, After::Keep).await;
    let token = |token: &str| {
        let file = apart.path().join(token);
        fs::write(&file, token).unwrap();
        file.display().to_string()
    };
    let (url, first) = (upstream.url(), token("one"));
    let create = ["--endpoint", &url, "--credential-file", &first];
    let create = [&["models", "create", "m"], &create[..]].concat();
    let revision = json(&control, &create).await["revision"].clone();
    let stable = format!(
        "forebay_rollout_stable_revision {}\n",
        revision.as_str().unwrap()
    );
    let page = format!("{}/metrics", control.url());
    eventually_within(Duration::from_secs(30), "it is stable", async || {
        let text = reqwest::get(&page).await.ok()?.text().await.ok()?;
        text.contains(&stable).then_some(())
    })
    .await;
    let update = async |control: &Control, name: &str| {
        let file = format!("e1={}", token(name));
        let update = ["models", "update", "m", "--credential-file", &file];
        let (code, _, err) = typed(control, &update).await;
        assert_eq!(code, Some(0), "{err}");
    };
    let until = async |workers: &[Worker], wanted: [&str; 2], patience: u64| {
        let patience = Duration::from_secs(patience);
        eventually_within(patience, "credentials", async || {
            (credentials(workers, &upstream).await == wanted).then_some(())
        })
        .await;
    };
    update(&control, "two").await;
    until(&workers, ["one", "two"], 10).await;

    let old = fs::read_to_string(dir.join("control/seal.key")).unwrap();
    let (old, new) = (old.trim(), "ab".repeat(32));
    let (control, said) = started_anew(control, dir, &[&new, old], &rings).await;
    assert!(!said.contains("seal key"), "{said}");
    for _ in 0..20 {
        let all = credentials(&workers, &upstream).await;
        assert!(all == ["one", "two"] || all == ["two", "two"], "{all:?}");
    }
    // Sealed with the new one, beside what was sealed with the old one; and from disk.
    update(&control, "three").await;
    until(&workers, ["one", "three"], 10).await;
    // Not that of the ring: it comes back as another process, which speaks against a revision.
    let outside = match credential(&workers[0], &upstream).await == "one" {
        true => 0,
        false => 1,
    };
    workers.remove(outside).process.terminate().await;
    let id = ["w1", "w2"][outside];
    workers.push(Worker::start(&control.url(), id, &apart.path().join(id), &[]).await);
    workers[1].ready().await;
    let all = credentials(&workers, &upstream).await;
    assert!(all.iter().all(|token| !token.is_empty()), "{all:?}");
    until(&workers, ["three", "three"], 60).await;
    // Nothing that anybody holds was sealed with the old one.
    let (_control, said) = started_anew(control, dir, &[&new], &rings).await;
    assert!(!said.contains("seal key"), "{said}");
    assert_eq!(credentials(&workers, &upstream).await, ["three", "three"]);
}
