//! Control planes on a real etcd as processes: what a start refuses, two that share one, one that is killed; and a
//! registry that moves there and back.

use std::{fs, path::Path};

use forebay_etcd::Etcd;
use forebay_proto::wire;
use forebay_tests::{Process, eventually, model_at};
use wire::revisions_client::RevisionsClient;

use crate::roles::{ANY, Control, FOREBAY, channel, run};

fn secrets(dir: &Path, pepper: &str) -> [String; 2] {
    let file = |name: &str, digit: &str| {
        let path = dir.join(name);
        fs::write(&path, digit.repeat(64)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    [
        file(&format!("pepper-{pepper}"), pepper),
        file("seal.key", "2"),
    ]
}

fn args<'a>(store: &'a str, [pepper, seal]: &'a [String; 2]) -> Vec<&'a str> {
    let mut args = vec!["control", "--control-listen", ANY, "--store", store];
    args.extend(["--pepper-file", pepper, "--seal-key-file", seal]);
    args
}

async fn start(store: &str, secrets: &[String; 2]) -> Control {
    let mut process = Process::start(FOREBAY, &args(store, secrets), &[]);
    let rest = process.printed("Forebay control plane on ").await;
    let addr = rest.split(": ").next().unwrap().parse().unwrap();
    Control { addr, process }
}

async fn refused(args: &[&str], code: i32, says: &[&str]) {
    let (ended, out, err) = run(args).await;
    assert_eq!(ended, Some(code), "{args:?}: {out}{err}");
    for part in says {
        assert!(err.contains(part), "{part:?} is not in {err:?}");
    }
    assert!(!err.contains("panicked"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_makes_no_sense_names_the_flag() {
    let dir = tempfile::tempdir().unwrap();
    let own = secrets(dir.path(), "1");
    let control = ["control", "--control-listen", ANY, "--store"];
    let with = |more: &[&'static str]| [&control[..], more].concat();
    refused(&with(&["etcd://127.0.0.1"]), 64, &["--store", "port"]).await;
    let bare = with(&["etcd://127.0.0.1:1"]);
    refused(
        &bare,
        1,
        &["--pepper-file", "every replica", "openssl rand -hex 32"],
    )
    .await;
    refused(
        &args("etcd://example.org:2379", &own),
        1,
        &["etcds://", "--insecure"],
    )
    .await;
    let half = [
        &args("etcds://127.0.0.1:1", &own)[..],
        &["--etcd-user", "ada"],
    ]
    .concat();
    refused(&half, 1, &["--etcd-user", "--etcd-password-file"]).await;
    let plain = [
        &args("etcd://127.0.0.1:1", &own)[..],
        &["--etcd-ca-file", "x"],
    ]
    .concat();
    refused(&plain, 1, &["--etcd-ca-file", "etcds://"]).await;
    let both = ["control", "migrate", "--from", "sled:a", "--to", "sled:b"];
    refused(&both, 1, &["both sled"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_share_one_registry_and_one_with_other_secrets_does_not_start() {
    let etcd = Etcd::start().await;
    let (dir, store) = (tempfile::tempdir().unwrap(), etcd.store("shared"));
    let own = secrets(dir.path(), "1");
    let one = start(&store, &own).await;
    let two = start(&store, &own).await;
    let revision = one
        .create(model_at("m", "http://127.0.0.1:9"))
        .await
        .revision;
    let get = wire::GetModelRequest { id: "m".into() };
    eventually("the other has it", async || {
        let found = two.registry().get_model(get.clone()).await.ok()?;
        (found.into_inner().revision == revision).then_some(())
    })
    .await;
    let others = secrets(dir.path(), "3");
    refused(
        &args(&store, &others),
        1,
        &["--pepper-file", "every replica needs the same"],
    )
    .await;
    // One that is killed is not missed, and comes back to what was written meanwhile.
    one.process.kill().await;
    let more = two
        .create(model_at("n", "http://127.0.0.1:9"))
        .await
        .revision;
    assert_eq!(more, revision + 1);
    let one = start(&store, &own).await;
    let get = wire::GetModelRequest { id: "n".into() };
    assert_eq!(
        one.registry()
            .get_model(get)
            .await
            .unwrap()
            .into_inner()
            .revision,
        more
    );
    for control in [one, two] {
        let (code, _, err) = control.process.terminate().await;
        assert_eq!(code, Some(0), "{err}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_moves_to_etcd_and_back_with_its_history() {
    let etcd = Etcd::start().await;
    let (dir, store) = (tempfile::tempdir().unwrap(), etcd.store("moved"));
    let data = dir.path().join("data");
    let control = Control::start(ANY, &data, &[]).await;
    for n in 0..5 {
        control
            .create(model_at(&format!("m{n}"), "http://127.0.0.1:9"))
            .await;
    }
    let from = format!("sled:{}", data.join("control").display());
    let in_use = ["control", "migrate", "--from", &from, "--to", &store];
    refused(&in_use, 1, &["in use"]).await;
    control.process.terminate().await;
    let (code, out, err) = run(&in_use).await;
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(
        out.contains("revision 6, 5 models") && out.contains("revisions 1 to 6"),
        "{out}"
    );
    refused(&in_use, 1, &["holds a registry already"]).await;
    let own =
        ["pepper", "seal.key"].map(|name| data.join("control").join(name).display().to_string());
    let control = start(&store, &own).await;
    let entries = wire::ListRevisionsRequest::default();
    let mut revisions = RevisionsClient::new(channel(&control.url()));
    let history = revisions
        .list_revisions(entries.clone())
        .await
        .unwrap()
        .into_inner();
    let numbers: Vec<_> = history
        .revisions
        .iter()
        .map(|entry| entry.revision)
        .collect();
    assert_eq!(numbers, [6, 5, 4, 3, 2, 1]);
    let back = wire::RollbackRevisionRequest {
        revision: 3,
        ..wire::RollbackRevisionRequest::default()
    };
    assert_eq!(
        revisions
            .rollback_revision(back)
            .await
            .unwrap()
            .into_inner()
            .revision,
        7
    );
    return_home(dir.path(), &store, control).await;
}

/// And what was written there meanwhile.
async fn return_home(dir: &Path, store: &str, control: Control) {
    let home = format!("sled:{}", dir.join("home/control").display());
    let return_it = ["control", "migrate", "--from", store, "--to", &home];
    refused(&return_it, 1, &["in use by 1 control planes"]).await;
    control.process.terminate().await;
    let (code, out, err) = run(&return_it).await;
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("revision 7, 2 models"), "{out}");
    let (code, out, err) = run(&["control", "check", "--store", store]).await;
    assert_eq!(
        (code, out.contains("revision 7")),
        (Some(0), true),
        "{out}{err}"
    );
    let (code, out, err) = run(&["control", "new-epoch", "--store", store]).await;
    assert_eq!((code, out.contains("epoch")), (Some(0), true), "{out}{err}");
    let control = Control::start(ANY, &dir.join("home"), &[]).await;
    let list = wire::ListModelsRequest::default();
    let models = control
        .registry()
        .list_models(list)
        .await
        .unwrap()
        .into_inner();
    assert_eq!((models.models.len(), models.revision), (2, 7));
    control.process.terminate().await;
}
