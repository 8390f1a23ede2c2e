//! What fuzzers found or began with, once more on every run: a folder of `tests/fuzz/corpus` for each target.

use std::path::Path;

use forebay_dataplane::fuzzing;

type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 6] = [
    ("request", fuzzing::request),
    ("answer", fuzzing::answer),
    ("json", fuzzing::json),
    ("list", fuzzing::list),
    ("multipart", |bytes| fuzzing::multipart(bytes, "x")),
    ("sse", fuzzing::sse),
];

#[test]
fn every_corpus_is_read_without_a_crash() {
    for (name, target) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/corpus")
            .join(name);
        let files = std::fs::read_dir(&folder).expect("a folder for each target");
        let mut count = 0;
        for file in files {
            target(&std::fs::read(file.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "{name} has no corpus");
    }
}

/// What the catalogue has, the fuzzer begins with.
#[test]
fn the_catalogue_is_read_without_a_crash() {
    for row in super::framing::rows() {
        fuzzing::request(&row.bytes);
    }
}
