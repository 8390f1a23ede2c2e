//! The client commands against a control plane, as a person or a script would type them.

use std::fs;

use serde_json::Value;

use crate::roles::{ANY, Control, run};

struct Typed {
    control: String,
}

impl Typed {
    /// Types a command that must succeed.
    async fn ok(&self, args: &[&str]) -> String {
        let (code, out, err) = self.typed(args).await;
        assert_eq!(code, Some(0), "{args:?}: {err}");
        out
    }

    async fn json(&self, args: &[&str]) -> Value {
        let out = self.ok(&[args, &["--output", "json"]].concat()).await;
        serde_json::from_str(&out).unwrap()
    }

    async fn typed(&self, args: &[&str]) -> (Option<i32>, String, String) {
        run(&[args, &["--control", &self.control]].concat()).await
    }
}

async fn setup() -> (tempfile::TempDir, Control, Typed) {
    let dir = tempfile::tempdir().unwrap();
    let env = [
        ("GATEWAY_MAX_CONCURRENT", "40"),
        ("GATEWAY_MAX_MODELS_CONCURRENT", "2"),
    ];
    let control = Control::start(ANY, dir.path(), &env).await;
    let typed = Typed {
        control: control.url(),
    };
    (dir, control, typed)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_models_life_on_the_command_line() {
    let (_dir, _control, typed) = setup().await;
    // The seed's environment is a fresh control plane's settings.
    let settings = typed.json(&["pool", "get"]).await;
    assert_eq!(settings["maxConcurrent"], 40);
    assert_eq!(settings["budget"], 80);
    assert_eq!(settings["keepalive"], 80);

    let url = "http://10.0.0.5:8000";
    let create = [
        "models",
        "create",
        "llama",
        "--endpoint",
        url,
        "--alias",
        "default",
    ];
    let created = typed.json(&create).await;
    assert_eq!(created["resolvedPool"]["keepalive"], 40);
    typed
        .ok(&["models", "update", "llama", "--max-concurrent", "60"])
        .await;
    let table = typed.ok(&["models", "get", "llama"]).await;
    assert!(table.contains("60 (always the pool size)"), "{table}");
    typed
        .ok(&[
            "models",
            "update",
            "llama",
            "--clear",
            "pool.max_concurrent",
        ])
        .await;
    typed.ok(&["pool", "set", "--max-concurrent", "70"]).await;
    let model = typed.json(&["models", "get", "llama"]).await;
    assert_eq!(model["resolvedPool"]["maxConcurrent"], 70);

    let (code, _, err) = typed.typed(&create).await;
    assert_eq!(code, Some(1));
    assert!(err.contains("NAME_TAKEN"), "{err}");
    let stale = ["models", "delete", "llama", "--etag", "\"old\""];
    let (code, _, err) = typed.typed(&stale).await;
    assert_eq!(code, Some(1));
    assert!(err.contains("ETAG_MISMATCH"), "{err}");
    typed.ok(&["models", "delete", "llama"]).await;
    assert!(typed.ok(&["models", "list"]).await.contains("no models"));
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_over_tls_are_said_by_flags_and_come_back_in_an_export() {
    let (dir, _control, typed) = setup().await;
    let ca = dir.path().join("ca.pem");
    let pem = forebay_tests::Authority::new("ours").pem();
    std::fs::write(&ca, &pem).unwrap();
    let create = [
        "models",
        "create",
        "llama",
        "--endpoint",
        "https://vllm.internal",
        "--protocol",
        "auto",
        "--tls-ca",
        ca.to_str().unwrap(),
        "--tls-client-certificate",
        "/etc/forebay/client.pem",
        "--tls-client-key",
        "/etc/forebay/client.key",
    ];
    let endpoint = &typed.json(&create).await["endpoints"][0];
    assert_eq!(endpoint["url"], "https://vllm.internal:443");
    assert_eq!(endpoint["protocol"], "ENDPOINT_PROTOCOL_AUTO");
    assert_eq!(endpoint["tls"]["caPem"], pem);
    let exported = typed.ok(&["models", "export"]).await;
    let file = dir.path().join("models.yaml");
    std::fs::write(&file, exported).unwrap();
    typed.ok(&["models", "delete", "llama"]).await;
    let file = file.to_str().unwrap();
    typed.ok(&["models", "apply", "-f", file]).await;
    let again = typed.json(&["models", "get", "llama"]).await;
    assert_eq!(again["endpoints"][0], *endpoint);
    // Without an endpoint these say nothing.
    let (code, _, err) = typed
        .typed(&["models", "update", "llama", "--protocol", "http2"])
        .await;
    assert_eq!(code, Some(64));
    assert!(err.contains("--endpoint"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_flag_is_named_at_once() {
    let (_dir, _control, typed) = setup().await;
    let bad = [
        "models",
        "create",
        "no spaces",
        "--endpoint",
        "ftp://x",
        "--max-concurrent",
        "0",
        "--idle-timeout",
        "1ms",
    ];
    let (code, _, err) = typed.typed(&bad).await;
    assert_eq!(code, Some(1));
    for field in [
        "model.id",
        "model.endpoints[0].url",
        "model.pool.max_concurrent",
        "idle_timeout",
    ] {
        assert!(err.contains(field), "{field}: {err}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_exported_can_be_applied_elsewhere() {
    let (dir, _control, typed) = setup().await;
    let file = dir.path().join("models.yaml");
    fs::write(
        &file,
        "models:\n\
         - id: a\n  endpoints: [{url: 'http://10.0.0.1:80'}]\n  pool: {maxConcurrent: 7}\n\
         - id: b\n  aliases: [c]\n  endpoints: [{url: 'http://10.0.0.2:80', weight: 3}]\n",
    )
    .unwrap();
    let apply = ["models", "apply", "-f", file.to_str().unwrap()];
    let out = typed.ok(&apply).await;
    for part in [
        "+ a\n",
        "pool.max_concurrent    7",
        "+ b\n",
        "2 created; revision 2",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let out = typed.ok(&apply).await;
    assert_eq!(out.trim(), "2 unchanged; revision 2 is what the file says");

    let exported = typed.ok(&["models", "export"]).await;
    let (other_dir, _other, other) = setup().await;
    let copy = other_dir.path().join("copy.yaml");
    fs::write(&copy, &exported).unwrap();
    other
        .ok(&["models", "apply", "-f", copy.to_str().unwrap()])
        .await;
    assert_eq!(other.ok(&["models", "export"]).await, exported);

    fs::write(
        &file,
        "id: a\nendpoints: [{url: 'http://10.0.0.1:80'}]\npool: {maxConcurent: 7}\n",
    )
    .unwrap();
    let (code, _, err) = typed.typed(&apply).await;
    assert_eq!(code, Some(1));
    assert!(
        err.contains("maxConcurent") && err.contains("models.yaml"),
        "{err}"
    );
}

/// One that stands in for another was deleted: what is exported then is taken here, elsewhere, and by a fresh control
/// plane, and what may be misspelt is told of.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_exported_without_a_fallback_can_be_applied_too() {
    let (dir, _control, typed) = setup().await;
    let url = "http://10.0.0.1:80";
    typed
        .ok(&["models", "create", "gone", "--endpoint", url])
        .await;
    let create = ["models", "create", "a", "--endpoint", url, "--fallback"];
    typed.ok(&[&create[..], &["gone"]].concat()).await;
    typed.ok(&["models", "delete", "gone"]).await;
    let exported = typed.ok(&["models", "export"]).await;
    assert!(exported.contains("gone"), "{exported}");
    let file = dir.path().join("models.yaml");
    fs::write(&file, &exported).unwrap();
    let apply = ["models", "apply", "-f", file.to_str().unwrap()];
    typed.ok(&apply).await;

    let (_other_dir, _other, other) = setup().await;
    let (code, _, err) = other.typed(&apply).await;
    assert_eq!(code, Some(0), "{err}");
    assert!(
        err.contains("model a: fallbacks[0]: `gone` is not registered"),
        "{err}"
    );
    assert_eq!(other.ok(&["models", "export"]).await, exported);
    // By hand it is misspelt, most likely.
    let misspelt = ["models", "update", "a", "--fallback", "gome"];
    let (code, _, err) = other.typed(&misspelt).await;
    assert_eq!(code, Some(1));
    assert!(err.contains("model.fallbacks[0]: `gome`"), "{err}");
}

/// `b` gives its alias away to `a`, which comes first in the file.
#[tokio::test(flavor = "multi_thread")]
async fn an_alias_can_move_between_the_models_of_a_file() {
    let (dir, _control, typed) = setup().await;
    let file = dir.path().join("models.json");
    let models = |a: &str, b: &str| {
        format!(
            r#"[{{"id":"a","aliases":[{a}],"endpoints":[{{"url":"http://10.0.0.1:80"}}]}},
                {{"id":"b","aliases":[{b}],"endpoints":[{{"url":"http://10.0.0.1:80"}}]}}]"#
        )
    };
    let apply = ["models", "apply", "-f", file.to_str().unwrap()];
    fs::write(&file, models("", "\"default\"")).unwrap();
    typed.ok(&apply).await;
    fs::write(&file, models("\"default\"", "")).unwrap();
    let applied = typed.json(&apply).await;
    assert_eq!(applied["updated"], 2);
    assert_eq!(applied["changes"][0]["model"], "a");
    assert_eq!(
        applied["changes"][0]["fields"][0]["after"],
        r#"["default"]"#
    );
    // What is listed can be applied, too.
    let list = typed.json(&["models", "list"]).await;
    fs::write(&file, list.to_string()).unwrap();
    assert!(typed.ok(&apply).await.contains("2 unchanged"));

    fs::write(&file, models("\"a b\"", "\"c d\"")).unwrap();
    let (code, _, err) = typed.typed(&apply).await;
    assert_eq!(code, Some(1));
    assert!(err.contains("model a") && err.contains("model b"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_file_does_not_have_goes_when_asked_and_is_shown_before() {
    let (dir, _control, typed) = setup().await;
    for id in ["keep", "surplus"] {
        typed
            .ok(&["models", "create", id, "--endpoint", "http://10.0.0.1:80"])
            .await;
    }
    let file = dir.path().join("models.yaml");
    fs::write(
        &file,
        "id: keep\nendpoints: [{url: 'http://10.0.0.2:80'}]\n",
    )
    .unwrap();
    let file = file.to_str().unwrap();
    let trial = ["models", "apply", "-f", file, "--prune", "--dry-run"];
    let out = typed.ok(&trial).await;
    for part in [
        "~ keep\n    endpoints[e1].url   \"http://10.0.0.1:80\" → \"http://10.0.0.2:80\"",
        "- surplus",
        "1 updated, 1 removed; nothing was written",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let both = typed.json(&["models", "list"]).await;
    assert_eq!(both["models"].as_array().unwrap().len(), 2);
    typed.ok(&["models", "apply", "-f", file]).await;
    let both = typed.json(&["models", "list"]).await;
    assert_eq!(
        both["models"].as_array().unwrap().len(),
        2,
        "without --prune"
    );
    typed.ok(&["models", "apply", "-f", file, "--prune"]).await;
    let one = typed.json(&["models", "list"]).await;
    assert_eq!(one["models"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_says_who_and_why_and_leads_back() {
    let (_dir, _control, typed) = setup().await;
    let create = ["models", "create", "m", "--endpoint", "http://10.0.0.1:80"];
    typed
        .ok(&[&create[..], &["--author", "ada"]].concat())
        .await;
    let update = ["models", "update", "m", "--max-concurrent", "7"];
    typed
        .ok(&[&update[..], &["--author", "bob", "--reason", "für später"]].concat())
        .await;
    let out = typed.ok(&["fleet", "revisions"]).await;
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines.len(), 4, "{out}");
    for (line, parts) in [
        (1, ["3", "bob", "UpdateModel", "für später"]),
        (2, ["2", "ada", "CreateModel", "m"]),
        (3, ["1", "-", "Create", "store"]),
    ] {
        for part in parts {
            assert!(lines[line].contains(part), "{part}: {out}");
        }
    }
    let out = typed.ok(&["fleet", "diff"]).await;
    assert_eq!(out.trim(), "~ m\n    pool.max_concurrent   7");
    let out = typed.ok(&["fleet", "diff", "3", "2"]).await;
    assert_eq!(out.trim(), "~ m\n    pool.max_concurrent   7 → not set");
    let out = typed.ok(&["fleet", "diff", "3", "3"]).await;
    assert!(out.contains("nothing differs"), "{out}");

    let out = typed.ok(&["fleet", "rollback", "1", "--dry-run"]).await;
    assert!(
        out.contains("- m\n") && out.contains("nothing was written"),
        "{out}"
    );
    let out = typed
        .ok(&["fleet", "rollback", "2", "--reason", "too small"])
        .await;
    assert!(
        out.contains("revision 4 has the content of revision 2"),
        "{out}"
    );
    let out = typed.ok(&["fleet", "rollback", "2"]).await;
    assert!(out.contains("revision 4 has that content already"), "{out}");
    let then = typed.ok(&["models", "export", "--revision", "3"]).await;
    assert!(then.contains("maxConcurrent: 7"), "{then}");
    let (code, _, err) = typed.typed(&["fleet", "rollback", "9"]).await;
    assert_eq!(code, Some(1));
    assert!(
        err.contains("the newest is 4") && err.contains("REVISION_NOT_REACHED"),
        "{err}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trial_says_that_it_is_one_and_what_asks_for_nothing_is_usage() {
    let (_dir, _control, typed) = setup().await;
    typed
        .ok(&["models", "create", "m", "--endpoint", "http://10.0.0.1:80"])
        .await;
    let out = typed
        .ok(&["models", "delete", "m", "--validate-only"])
        .await;
    assert!(out.contains("would be removed"), "{out}");
    assert!(typed.ok(&["models", "list"]).await.contains('m'));
    for nothing in [&["models", "update", "m"][..], &["pool", "set"]] {
        let (code, _, err) = typed.typed(nothing).await;
        assert_eq!(code, Some(64), "{err}");
    }
}

/// Servers that a source names: from flags, shown, exported, applied again, and changed.
#[tokio::test(flavor = "multi_thread")]
async fn sources_on_the_command_line() {
    let (dir, _control, typed) = setup().await;
    let create = [
        "models",
        "create",
        "llama",
        "--discover",
        "srv=_http._tcp.vllm.svc",
        "--discover",
        "http=https://sd.internal/t?job=vllm",
        "--endpoint",
        "http://10.0.0.5:8000",
        "--discover-allow",
        "10.1.0.0/16",
        "--discover-ports",
        "8000-8099",
        "--discover-keep-empty",
        "30s",
        "--discover-send-credentials",
        "--protocol",
        "http2",
    ];
    let created = typed.json(&create).await;
    let endpoints = created["endpoints"].as_array().unwrap();
    assert_eq!(endpoints.len(), 3);
    assert_eq!(endpoints[0]["url"], "http://10.0.0.5:8000");
    let discovery = &endpoints[1]["discovery"];
    assert_eq!(discovery["srv"], "_http._tcp.vllm.svc");
    assert_eq!(discovery["allow"][0], "10.1.0.0/16");
    assert_eq!(discovery["ports"][0], "8000-8099");
    assert_eq!(discovery["keepEmpty"], "30s");
    assert_eq!(discovery["sendCredentials"], true);
    assert_eq!(
        endpoints[2]["discovery"]["http"],
        "https://sd.internal:443/t?job=vllm"
    );
    assert_eq!(endpoints[2]["protocol"], "ENDPOINT_PROTOCOL_HTTP2");
    let table = typed.ok(&["models", "get", "llama"]).await;
    assert!(
        table.contains("e2  srv _http._tcp.vllm.svc  weight 1"),
        "{table}"
    );
    // What is exported is what is applied.
    let file = dir.path().join("models.yaml");
    fs::write(&file, typed.ok(&["models", "export"]).await).unwrap();
    let apply = ["models", "apply", "--file", file.to_str().unwrap()];
    let out = typed.ok(&[&apply[..], &["--dry-run"]].concat()).await;
    assert!(!out.contains('~') && !out.contains('+'), "{out}");
    let update = [
        "models",
        "update",
        "llama",
        "--discover",
        "file=/etc/t.json",
    ];
    let updated = typed.json(&update).await;
    assert_eq!(updated["endpoints"][0]["discovery"]["file"], "/etc/t.json");
    assert_eq!(updated["endpoints"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_not_clear_is_usage_and_one_that_is_wrong_is_refused() {
    let (_dir, _control, typed) = setup().await;
    for (bad, part) in [
        (&["models", "create", "x"][..], "--discover"),
        (
            &["models", "create", "x", "--discover", "consul=y"],
            "srv=NAME",
        ),
        (
            &[
                "models",
                "create",
                "x",
                "--discover",
                "srv=a",
                "--discover-send-credentials",
            ],
            "--discover-allow",
        ),
    ] {
        let (code, _, err) = typed.typed(bad).await;
        assert_eq!(code, Some(64), "{err}");
        assert!(err.contains(part), "{err}");
    }
    let (code, _, err) = typed
        .typed(&["models", "create", "x", "--discover", "dns=nowhere"])
        .await;
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("model.endpoints[0].discovery.dns"), "{err}");
}

/// The same variable as a worker's, which may name several.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_control_plane_that_answers_is_asked() {
    let (_dir, control, _typed) = setup().await;
    let several = format!("http://127.0.0.1:1,{}", control.url());
    let (code, out, err) = run(&["models", "list", "--control", &several]).await;
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("no models"), "{out}");
}
