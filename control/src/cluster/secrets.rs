//! Whether all replicas have the same secrets: a value made with each is kept in etcd, from which nothing of the secret
//! can be told. A replica with another pepper would hand out keys that the workers of the others refuse, one with another
//! seal key could not open what they sealed; it does not start.
//!
//! To change a secret, each replica first gets the new one as a further line, and then as its first: at no time one has
//! as its first what another has not at all.

use std::path::Path;

use prost::Message;

use crate::{
    etcd::{Budget, CallError, Etcd, EtcdError, api::TxnRequest, ops},
    secrets::{SecretFiles, Vault},
    store::etcd::Layout,
};

/// How often somebody else may be faster.
const TRIES: u32 = 16;

/// What is kept: of each kind a value for each secret, in the order of the file.
#[derive(Clone, PartialEq, Message)]
struct Checks {
    #[prost(string, repeated, tag = "1")]
    peppers: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    seal_keys: Vec<String>,
}

/// Compares the secrets of this process with those of the others, and keeps what it has.
pub(crate) async fn check(
    etcd: &Etcd,
    vault: &Vault,
    files: &SecretFiles,
) -> Result<(), EtcdError> {
    let layout = Layout::new(etcd.at().prefix());
    let key = layout.key("secrets");
    let own = Checks {
        peppers: vault.pepper_checks().to_vec(),
        seal_keys: vault.seal_checks().to_vec(),
    };
    let failed = |error: CallError| {
        let (at, text) = (etcd.at().to_string(), error.to_string());
        match error {
            CallError::Refused(_) => EtcdError::Refused { at, error: text },
            CallError::NotReached(_) | CallError::Unknown(_) => EtcdError::Away { at, error: text },
        }
    };
    for _ in 0..TRIES {
        let read = TxnRequest {
            compare: Vec::new(),
            success: vec![ops::get(key.clone())],
            failure: Vec::new(),
        };
        let read = etcd.txn(read, Budget::WRITE).await.map_err(failed)?;
        let found = ops::found(read.responses.first());
        let known = found.map(|kv| Checks::decode(kv.value.as_slice()).unwrap_or_default());
        if let Some(known) = &known {
            let other = |flag, path: &Path, why| EtcdError::OtherSecret {
                flag,
                path: path.to_owned(),
                why,
            };
            compare(&known.peppers, &own.peppers)
                .map_err(|why| other("--pepper-file", &files.pepper, why))?;
            compare(&known.seal_keys, &own.seal_keys)
                .map_err(|why| other("--seal-key-file", &files.seal_key, why))?;
            if *known == own {
                return Ok(());
            }
        }
        let write = TxnRequest {
            compare: vec![ops::unchanged_since(
                key.clone(),
                found.map_or(0, |kv| kv.mod_revision),
            )],
            success: vec![ops::put(key.clone(), own.encode_to_vec(), 0)],
            failure: Vec::new(),
        };
        // Sent twice it finds itself, the next time round.
        if etcd
            .txn(write, Budget::WRITE)
            .await
            .map_err(failed)?
            .succeeded
        {
            return Ok(());
        }
    }
    Err(EtcdError::Away {
        at: etcd.at().to_string(),
        error: "other control planes start all the time".to_owned(),
    })
}

/// Those of the others against those of this process.
fn compare(known: &[String], own: &[String]) -> Result<(), &'static str> {
    if known.first().is_some_and(|first| !own.contains(first)) {
        return Err("the secret that the other control planes use is not in it");
    }
    match own
        .first()
        .is_some_and(|first| !known.is_empty() && !known.contains(first))
    {
        true => Err("its first secret is not in the files of the other control planes"),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_changed_in_two_steps_and_no_other_way() {
        let lines = |text: &str| -> Vec<String> { text.chars().map(String::from).collect() };
        let passes = |known: &str, own: &str| compare(&lines(known), &lines(own)).is_ok();
        for (known, own) in [
            ("a", "a"),
            ("", "a"),
            ("a", "ab"),
            ("ab", "a"),
            ("ab", "ba"),
            ("ba", "b"),
        ] {
            assert!(passes(known, own), "{known} then {own}");
        }
        for (known, own) in [
            ("a", "b"),
            ("a", "ba"),
            ("ba", "a"),
            ("b", "a"),
            ("ab", "b"),
        ] {
            assert!(!passes(known, own), "{known} then {own}");
        }
    }
}
