//! Starts that must fail: each with a message that names the thing and the way out.

use std::{
    fs,
    net::{TcpListener, TcpStream},
};

use forebay_tests::Process;

use crate::roles::{ANY, Control, FOREBAY, run};

/// Asserts that a command fails with this code and says all of this on standard error.
async fn fails(args: &[&str], code: i32, says: &[&str]) {
    let (ended, out, err) = run(args).await;
    assert_eq!(ended, Some(code), "{args:?}: {out}{err}");
    for part in says {
        assert!(err.contains(part), "{part:?} is not in {err:?}");
    }
    assert!(!err.contains("panicked"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named_with_its_flag() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    let taken = TcpListener::bind(ANY).unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let control = ["control", "--data-dir", data, "--control-listen", &addr];
    let says = ["cannot listen on", addr.as_str(), "in use"];
    fails(&control, 1, &[&says[..], &["--control-listen"]].concat()).await;
    for (flag, other) in [
        ("--listen", "--admin-listen"),
        ("--admin-listen", "--listen"),
    ] {
        let worker = ["worker", "--data-dir", data, flag, &addr, other, ANY];
        fails(&worker, 1, &[&says[..], &[flag]].concat()).await;
    }
    let standalone = [
        "standalone",
        "--demo",
        "--listen",
        &addr,
        "--admin-listen",
        ANY,
        "--control-listen",
        ANY,
    ];
    fails(&standalone, 1, &[&says[..], &["--listen"]].concat()).await;
}

/// What not even root may make a directory in.
#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "not a directory").unwrap();
    let below = file.join("below");
    for data in [below.to_str().unwrap(), "/sys/forebay"] {
        let control = ["control", "--control-listen", ANY, "--data-dir", data];
        fails(
            &control,
            1,
            &[data, "cannot be used as a data directory", "--data-dir"],
        )
        .await;
        let worker = [
            "worker",
            "--listen",
            ANY,
            "--admin-listen",
            ANY,
            "--worker-id",
            "w",
            "--data-dir",
            data,
        ];
        fails(&worker, 1, &[data, "cannot be used", "--data-dir"]).await;
    }
    assert_eq!(fs::read(&file).unwrap(), b"not a directory");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_control_plane_on_a_directory_is_refused_and_harms_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let first = Control::start(ANY, dir.path(), &[]).await;
    first
        .create(forebay_tests::model_at("m", "http://10.0.0.1:80"))
        .await;
    let data = dir.path().to_str().unwrap();
    let second = ["control", "--control-listen", ANY, "--data-dir", data];
    let says = [data, "in use by another control plane", "--data-dir"];
    fails(&second, 1, &says).await;
    first
        .create(forebay_tests::model_at("n", "http://10.0.0.1:80"))
        .await;
    // A lock dies with its process, even one that is killed.
    first.process.kill().await;
    let third = Control::start(ANY, dir.path(), &[]).await;
    let everything = forebay_proto::wire::ListModelsRequest::default();
    let list = third.registry().list_models(everything).await;
    assert_eq!(list.unwrap().into_inner().models.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_others_can_reach_must_be_meant() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    let says = ["0.0.0.0:0", "--insecure", "loopback"];
    let control = [
        "control",
        "--data-dir",
        data,
        "--control-listen",
        "0.0.0.0:0",
    ];
    fails(&control, 1, &[&says[..], &["--control-listen"]].concat()).await;
    let worker = ["worker", "--data-dir", data, "--admin-listen", "0.0.0.0:0"];
    fails(&worker, 1, &[&says[..], &["--admin-listen"]].concat()).await;
    // A gateway that asks for keys may be reached; one that lets everybody in must be meant.
    let worker = [
        "worker",
        "--data-dir",
        data,
        "--auth",
        "open",
        "--listen",
        "0.0.0.0:0",
    ];
    fails(&worker, 1, &[&says[..], &["--listen"]].concat()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_line_that_makes_no_sense_is_usage() {
    for (args, says) in [
        (&["standalone", "--demoo"][..], "--demo"),
        (&["models", "create", "m"], "--endpoint"),
        (&["nonsense"], "nonsense"),
        (&["control", "--store", "mysql:x"], "sled:DIRECTORY"),
        (&["pool", "set", "--max-wait", "soon"], "--max-wait"),
        (
            &["models", "list", "--control", "127.0.0.1:50051"],
            "http://HOST:PORT",
        ),
    ] {
        fails(args, 64, &[says]).await;
    }
    let (code, out, _) = run(&["--help"]).await;
    assert_eq!(code, Some(0));
    assert!(out.contains("Examples:"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_is_not_there_is_named() {
    let list = ["models", "list", "--control", "http://127.0.0.1:1"];
    fails(
        &list,
        1,
        &["http://127.0.0.1:1", "forebay control", "--control"],
    )
    .await;
}

/// Out of files a control plane says so and waits; it does not spin, and it serves again when there
/// are some.
#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_out_of_files_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let addr = forebay_tests::lasting_addr();
    let listen = addr.to_string();
    let data = dir.path().to_str().unwrap();
    let args = ["control", "--control-listen", &listen, "--data-dir", data];
    let mut control = Process::start_limited(FOREBAY, &args, 40);
    control.printed("Forebay control plane on ").await;
    let crowd: Vec<_> = (0..60).map(|_| TcpStream::connect(addr).unwrap()).collect();
    control.printed("accept failed").await;
    let before = control.err().matches("accept failed").count();
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let after = control.err().matches("accept failed").count();
    assert!(
        after - before <= 20,
        "{} lines within a second",
        after - before
    );
    drop(crowd);
    let url = format!("http://{addr}");
    let (code, _, err) = run(&["models", "list", "--control", &url]).await;
    assert_eq!(code, Some(0), "{err}");
}
