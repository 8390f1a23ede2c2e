//! Keys in force: lookups, changes, and what is told when they cannot be taken.

use std::{fs, io, os::unix::fs::PermissionsExt as _};

use forebay_proto::{EndpointId, EndpointUrl, Epoch, secret::Root};

use super::*;
use crate::live::Credential;

fn verify() -> VerifyKey {
    VerifyKey::of_pepper(&Root::new([1; 32]))
}

fn text(n: u8) -> String {
    key::compose(&KeyId::of_random(&[n; 9]), &[n; 32])
}

fn worker_key(n: u8) -> Bytes {
    let key = wire::WorkerKey {
        id: KeyId::of_random(&[n; 9]).to_string(),
        hash: verify().hash(&text(n)).to_vec().into(),
        verify_key: verify().id(),
        key: Some(wire::Key::default()),
        revoked: false,
    };
    key.encode_to_vec().into()
}

fn gone(n: u8) -> Bytes {
    let key = wire::WorkerKey {
        id: KeyId::of_random(&[n; 9]).to_string(),
        revoked: true,
        ..wire::WorkerKey::default()
    };
    key.encode_to_vec().into()
}

/// The change from one version to another, after which these are good.
fn change(from: u64, version: u64, keys: Vec<Bytes>, left: &[u8]) -> KeysChange {
    let verify = vec![Bytes::from(
        wire::VerifyKey::from(&verify()).encode_to_vec(),
    )];
    let left: BTreeMap<KeyId, Bytes> = left
        .iter()
        .map(|n| (KeyId::of_random(&[*n; 9]), worker_key(*n)))
        .collect();
    let parts: Vec<&[u8]> = verify.iter().chain(left.values()).map(|p| &**p).collect();
    KeysChange {
        to: KeysPosition {
            epoch: Epoch::new("ab").unwrap(),
            version,
            digest: Digest::of(&parts.concat()),
        },
        from,
        keys,
        verify,
        seal: Vec::new(),
    }
}

#[test]
fn a_key_is_found_by_all_of_it() {
    let cell = KeyCell::default();
    assert!(!cell.is_required());
    let whole = change(0, 2, vec![worker_key(1), worker_key(2)], &[1, 2]);
    cell.change(&whole).unwrap();
    assert!(cell.is_required());
    let ring = cell.load();
    assert!(ring.find(&text(1)).is_some() && ring.find(&text(2)).is_some());
    assert!(ring.find(&text(3)).is_none());
    for n in 0..key::KEY_CHARS {
        let mut bent = text(1).into_bytes();
        bent[n] = if bent[n] == b'x' { b'y' } else { b'x' };
        let bent = String::from_utf8(bent).unwrap();
        assert!(ring.find(&bent).is_none(), "character {n}");
    }
    for odd in [
        "",
        "fbk_",
        "Bearer",
        &"é".repeat(33),
        &format!("{} ", text(1)),
    ] {
        assert!(ring.find(odd).is_none(), "{odd}");
    }
}

#[test]
fn what_is_revoked_is_gone_and_the_door_stays_shut() {
    let cell = KeyCell::default();
    cell.change(&change(0, 1, vec![worker_key(1)], &[1]))
        .unwrap();
    cell.change(&change(1, 2, vec![gone(1)], &[])).unwrap();
    assert!(cell.load().find(&text(1)).is_none());
    assert!(cell.is_required(), "with no key left");
    let older = change(0, 1, vec![worker_key(1)], &[1]);
    assert_eq!(cell.change(&older), Err(BadKeys::Older));
    let mut other = change(0, 0, vec![], &[]);
    other.to.epoch = Epoch::new("cd").unwrap();
    assert_eq!(cell.change(&other), Err(BadKeys::EmptyStore));
    assert_eq!(
        cell.change(&change(7, 8, vec![], &[])),
        Err(BadKeys::OtherBase)
    );
    assert_eq!(
        cell.change(&change(2, 3, vec![worker_key(1)], &[2])),
        Err(BadKeys::Digest)
    );
    assert_eq!(
        cell.change(&change(2, 3, vec![Bytes::from_static(b"\xFF")], &[])),
        Err(BadKeys::Undecodable)
    );
    assert_eq!(cell.load().position().unwrap().version, 2);
}

#[test]
fn who_is_asked_for_a_key() {
    let one = change(0, 1, vec![worker_key(1)], &[1]);
    for (auth, exposed, before, after) in [
        (Auth::Auto, false, false, true),
        (Auth::Auto, true, true, true),
        (Auth::Required, false, true, true),
        (Auth::Open, true, false, false),
    ] {
        let cell = KeyCell::new(auth, exposed);
        assert_eq!(cell.is_required(), before, "{auth:?} {exposed}");
        cell.change(&one).unwrap();
        assert_eq!(cell.is_required(), after, "{auth:?} {exposed}");
    }
}

#[test]
fn what_is_kept_comes_back_and_what_is_damaged_lets_nobody_in() {
    let folder = tempfile::tempdir().unwrap();
    let file = KeysFile::within(folder.path());
    assert!(file.load().unwrap().is_none());
    let cell = KeyCell::default();
    cell.change(&change(0, 2, vec![worker_key(1), worker_key(2)], &[1, 2]))
        .unwrap();
    file.save(&cell).unwrap();
    let mode = fs::metadata(file.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let bytes = fs::read(file.path()).unwrap();
    let shown = String::from_utf8_lossy(&bytes);
    assert!(!shown.contains(&text(1)) && !shown.contains(&text(1)[17..]));

    let again = KeyCell::default();
    again.start(file.load());
    assert!(again.is_required() && again.load().find(&text(2)).is_some());
    assert_eq!(again.load().position(), cell.load().position());

    for (n, damage) in [
        |bytes: &mut Vec<u8>| *bytes.last_mut().unwrap() ^= 1,
        |bytes: &mut Vec<u8>| bytes.clear(),
        |bytes: &mut Vec<u8>| bytes.truncate(40),
    ]
    .into_iter()
    .enumerate()
    {
        let mut bytes = bytes.clone();
        damage(&mut bytes);
        fs::write(file.path(), bytes).unwrap();
        let cell = KeyCell::default();
        cell.start(file.load());
        assert!(cell.is_required() && cell.is_lost(), "damage {n}");
        assert!(cell.load().find(&text(2)).is_none(), "damage {n}");
        cell.change(&change(0, 2, vec![worker_key(1)], &[1]))
            .unwrap();
        assert!(!cell.is_lost() && cell.load().find(&text(1)).is_some());
    }
    let unreadable = KeyCell::default();
    unreadable.start(Err(io::ErrorKind::PermissionDenied.into()));
    assert!(unreadable.is_required());
}

#[test]
fn a_changed_key_keeps_what_it_has_used() {
    let cell = KeyCell::default();
    cell.change(&change(0, 1, vec![worker_key(1)], &[1]))
        .unwrap();
    let before = cell.load().find(&text(1)).unwrap().usage.clone();
    cell.change(&change(1, 2, vec![worker_key(1)], &[1]))
        .unwrap();
    let after = cell.load().find(&text(1)).unwrap().usage.clone();
    assert!(Arc::ptr_eq(&before, &after));
}

#[test]
fn a_credential_opens_for_its_endpoint_alone() {
    let seal = SealKey::new(Root::new([9; 32]));
    let (model, id) = (ModelId::new("m").unwrap(), EndpointId::new("a").unwrap());
    let url = EndpointUrl::parse("http://10.0.0.1:80").unwrap();
    let mut endpoint = Endpoint::new(id, url);
    let place = Place {
        model: &model,
        endpoint: &endpoint.id,
        url: &endpoint.url,
    };
    let sealed = seal.seal("canary", place).unwrap();
    endpoint.credential = Some(sealed);
    let cell = KeyCell::default();
    assert!(cell.credential(&model, &endpoint).is_none(), "no seal key");
    let early = Credential::new(&cell, &model, &endpoint);
    assert!(early.value(&cell, &model, &endpoint).is_none());
    let seal = vec![Bytes::from(wire::SealKey::from(&seal).encode_to_vec())];
    cell.change(&KeysChange {
        to: KeysPosition {
            epoch: Epoch::new("ab").unwrap(),
            version: 0,
            digest: Digest::of(&seal.concat()),
        },
        from: 0,
        keys: vec![],
        verify: vec![],
        seal,
    })
    .unwrap();
    assert!(!cell.is_required(), "credentials are no keys");
    let value = early.value(&cell, &model, &endpoint);
    assert_eq!(value.unwrap(), "Bearer canary", "the key came later");
    let value = cell.credential(&model, &endpoint).unwrap();
    assert_eq!(value, "Bearer canary");
    assert!(value.is_sensitive() && !format!("{value:?}").contains("canary"));
    endpoint.url = EndpointUrl::parse("http://10.0.0.2:80").unwrap();
    assert!(cell.credential(&model, &endpoint).is_none());
}

/// A key that this build cannot read, and the change that tells it and another.
fn with_odd(to: u64) -> KeysChange {
    let odd = wire::WorkerKey {
        key: None,
        ..wire::WorkerKey::decode(worker_key(2)).unwrap()
    };
    let mut change = change(0, to, vec![worker_key(1), odd.encode_to_vec().into()], &[]);
    let keys: BTreeMap<KeyId, &Bytes> = (1..)
        .map(|n| KeyId::of_random(&[n; 9]))
        .zip(&change.keys)
        .collect();
    let parts = change.verify.iter().chain(keys.into_values());
    let parts: Vec<&[u8]> = parts.map(|part| &**part).collect();
    change.to.digest = Digest::of(&parts.concat());
    change
}

#[test]
fn one_that_cannot_be_read_costs_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let file = KeysFile::within(folder.path());
    let cell = KeyCell::default();
    cell.change(&with_odd(2)).unwrap();
    file.save(&cell).unwrap();
    let again = KeyCell::default();
    again.start(file.load());
    for cell in [cell, again] {
        let ring = cell.load();
        assert!(cell.is_required() && ring.find(&text(1)).is_some());
        assert!(ring.find(&text(2)).is_none());
        assert_eq!(ring.position().unwrap().version, 2);
    }
}

#[test]
fn keys_that_cannot_be_taken_leave_no_door_open() {
    let folder = tempfile::tempdir().unwrap();
    let file = KeysFile::within(folder.path());
    let cell = KeyCell::default();
    let bad = change(0, 3, vec![worker_key(1)], &[2]);
    assert_eq!(cell.change(&bad), Err(BadKeys::Digest));
    assert!(cell.is_required() && cell.is_lost());
    assert!(cell.load().position().is_none(), "nothing is held");
    // Nor after a start without a control plane, nor for a store that lost them.
    file.save(&cell).unwrap();
    let again = KeyCell::default();
    again.start(file.load());
    assert!(again.is_required() && again.is_lost());
    for cell in [cell, again] {
        let mut other = change(0, 0, vec![], &[]);
        other.to.epoch = Epoch::new("cd").unwrap();
        assert_eq!(cell.change(&other), Err(BadKeys::EmptyStore));
        cell.change(&change(0, 3, vec![worker_key(1)], &[1]))
            .unwrap();
        assert!(!cell.is_lost() && cell.load().find(&text(1)).is_some());
        // Where some are in force they stay.
        assert!(
            cell.change(&change(0, 4, vec![worker_key(1)], &[2]))
                .is_err()
        );
        assert!(!cell.is_lost() && cell.load().find(&text(1)).is_some());
    }
}

#[test]
fn a_damaged_file_where_there_was_no_key_locks_nobody_out_for_good() {
    let cell = KeyCell::default();
    cell.start(Err(io::ErrorKind::InvalidData.into()));
    assert!(cell.is_required() && cell.is_lost());
    cell.change(&change(0, 0, vec![], &[])).unwrap();
    assert!(!cell.is_required() && !cell.is_lost());
}

#[test]
fn the_disk_does_not_take_the_place_of_newer_keys() {
    let kept = |version, keys: &[u8]| {
        let cell = KeyCell::default();
        let all = keys.iter().map(|n| worker_key(*n)).collect();
        cell.change(&change(0, version, all, keys)).unwrap();
        Ok(Some(cell.kept()))
    };
    let cell = KeyCell::default();
    cell.start(kept(2, &[1]));
    for (disk, version) in [
        (kept(1, &[1, 2]), 2),
        (Ok(None), 2),
        (Err(io::ErrorKind::InvalidData.into()), 2),
        (kept(3, &[3]), 3),
    ] {
        cell.start(disk);
        let ring = cell.load();
        assert_eq!(ring.position().unwrap().version, version);
        assert!(!cell.is_lost() && ring.find(&text(2)).is_none());
        assert_eq!(ring.find(&text(1)).is_some(), version == 2);
    }
}
