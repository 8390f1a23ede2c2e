//! The program on a machine, or with a command line, that will not do: it says why, and does nothing. What it does
//! otherwise needs root: `.ci/run` has it do that.

use std::process::Command;

use forebay_testbed::what_is_missing;

#[test]
fn what_is_missing_is_named() {
    let mut network = Command::new(env!("CARGO_BIN_EXE_network"));
    let ended = network
        .args(["run", "--binary", "/nowhere/forebay"])
        .output();
    let ended = ended.expect("the program starts");
    let said = String::from_utf8_lossy(&ended.stderr);
    let why = what_is_missing().unwrap_or("there is no /nowhere/forebay".to_owned());
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains(&why), "{said}");
    assert!(ended.stdout.is_empty(), "nothing was tried");
}
