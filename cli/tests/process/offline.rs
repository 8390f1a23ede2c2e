//! `forebay control export|import|check`, and a start that recovers.

use std::fs;

use crate::roles::{ANY, run};

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_without_a_registry_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    for command in ["check", "export"] {
        let (code, _, err) = run(&["control", command, "--data-dir", data]).await;
        assert_eq!(code, Some(1), "{err}");
        assert!(
            err.contains("holds no registry") && err.contains("--data-dir"),
            "{err}"
        );
    }
    let file = dir.path().join("x");
    fs::write(&file, "something else\n").unwrap();
    let file = file.to_str().unwrap();
    let (code, _, err) = run(&["control", "import", file, "--data-dir", data]).await;
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("it is not an export"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_is_refused_when_recovery_is_forbidden() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    fs::create_dir(dir.path().join("control")).unwrap();
    fs::write(
        dir.path().join("control/registry.export"),
        "forebay-export 1",
    )
    .unwrap();
    for more in [&["--no-recovery"][..], &[]] {
        let start = ["control", "--control-listen", ANY, "--data-dir", data];
        let (code, _, err) = run(&[&start[..], more].concat()).await;
        assert_eq!(code, Some(1), "{err}");
        assert!(
            err.contains("its database is gone") && err.contains("control import"),
            "{err}"
        );
        assert!(!err.contains("panicked"), "{err}");
    }
    let (code, out, err) = run(&["control", "check", "--data-dir", data]).await;
    assert_eq!(code, Some(1), "{out}{err}");
    assert!(
        out.contains("damaged") && err.contains("is not sound"),
        "{out}{err}"
    );
}
