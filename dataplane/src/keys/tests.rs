use std::{fs, io, os::unix::fs::PermissionsExt as _};

use forebay_proto::{EndpointId, EndpointUrl, Epoch, secret::Root};

use super::*;

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
    let value = cell.credential(&model, &endpoint).unwrap();
    assert_eq!(value, "Bearer canary");
    assert!(value.is_sensitive() && !format!("{value:?}").contains("canary"));
    endpoint.url = EndpointUrl::parse("http://10.0.0.2:80").unwrap();
    assert!(cell.credential(&model, &endpoint).is_none());
}
