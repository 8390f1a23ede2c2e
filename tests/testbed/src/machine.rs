//! What the machine must have. It installs nothing.

use std::{path::Path, process::Command};

/// What this machine lacks, and the way out; nothing if it has everything.
#[must_use]
pub fn what_is_missing() -> Option<String> {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        return Some("network namespaces need root: run it as root".to_owned());
    }
    if !Path::new("/dev/net/tun").exists() {
        let way_out = "load the module `tun`, or pass the device into the container";
        return Some(format!("there is no /dev/net/tun: {way_out}"));
    }
    for (program, package) in [("ip", "iproute2"), ("setpriv", "util-linux")] {
        let found = Command::new(program).arg("-V").output();
        if !found.is_ok_and(|found| found.status.success()) {
            return Some(format!(
                "there is no `{program}`: apt-get install {package}"
            ));
        }
    }
    None
}
