//! Reads lists of servers, as files and urls have them. Pure, and for bytes from anybody.
//!
//! One entry that is not a server's address makes the whole no list: half of a file, or a page about an error, must not
//! pass for a short one. What it says is wrong never has text of the list: the file may be another one than was meant.

use forebay_proto::{EndpointUrl, Weight, limits};
use serde::Deserialize;

/// How a list is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// As Prometheus' `file_sd_config` and `http_sd_config`.
    Json,
    /// A server on each line.
    Lines {
        /// Nothing more comes. Otherwise a last line without an end may be half of one.
        whole: bool,
    },
}

/// A server of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) url: EndpointUrl,
    /// Its share, where the list says that.
    pub(crate) weight: Option<Weight>,
}

/// Why it is no list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("it has more than {} servers", limits::LISTED)]
    TooMany,
    #[error("it is not UTF-8")]
    Text,
    #[error("it is not `[{{\"targets\": [\"host:port\"]}}]` (line {line}, column {column})")]
    Json { line: usize, column: usize },
    #[error("entry {0} is not `host:port`")]
    Entry(usize),
    #[error("entry {0} has another scheme than `discovery.https` says")]
    Scheme(usize),
    #[error("its last line has no end, as if more were to come")]
    Unended,
    #[error("group {0} has a `forebay_weight` that is not 1 to 1000")]
    Weight(usize),
}

#[derive(Debug, Deserialize)]
struct Group {
    targets: Vec<String>,
    #[serde(default)]
    labels: Option<Labels>,
}

/// Those of others are not looked at.
#[derive(Debug, Deserialize)]
struct Labels {
    #[serde(default)]
    forebay_weight: Option<String>,
}

/// Reads a list of servers that are reached over TLS, or are not.
pub(crate) fn read(bytes: &[u8], form: Form, tls: bool) -> Result<Vec<Entry>, Malformed> {
    match form {
        Form::Json => json(bytes, tls),
        Form::Lines { whole } => lines(bytes, tls, whole),
    }
}

fn json(bytes: &[u8], tls: bool) -> Result<Vec<Entry>, Malformed> {
    let groups: Vec<Group> = serde_json::from_slice(bytes).map_err(|error| Malformed::Json {
        line: error.line(),
        column: error.column(),
    })?;
    let mut entries = Vec::new();
    for (n, group) in groups.iter().enumerate() {
        let weight = group
            .labels
            .as_ref()
            .and_then(|l| l.forebay_weight.as_ref());
        let weight = weight.map(|text| {
            let weight = text.parse().ok().and_then(|n| Weight::new(n).ok());
            weight.ok_or(Malformed::Weight(n + 1))
        });
        let weight = weight.transpose()?;
        for target in &group.targets {
            push(&mut entries, target, tls, weight)?;
        }
    }
    Ok(entries)
}

fn lines(bytes: &[u8], tls: bool, whole: bool) -> Result<Vec<Entry>, Malformed> {
    let text = std::str::from_utf8(bytes).map_err(|_| Malformed::Text)?;
    if !whole && !text.is_empty() && !text.ends_with('\n') {
        return Err(Malformed::Unended);
    }
    let mut entries = Vec::new();
    for line in text.lines() {
        let said = line.split_once('#').map_or(line, |(said, _)| said).trim();
        if !said.is_empty() {
            push(&mut entries, said, tls, None)?;
        }
    }
    Ok(entries)
}

fn push(
    entries: &mut Vec<Entry>,
    text: &str,
    tls: bool,
    weight: Option<Weight>,
) -> Result<(), Malformed> {
    let at = entries.len() + 1;
    if at > limits::LISTED {
        return Err(Malformed::TooMany);
    }
    let (scheme, other) = match tls {
        true => ("https://", "http://"),
        false => ("http://", "https://"),
    };
    if text.starts_with(other) {
        return Err(Malformed::Scheme(at));
    }
    let place = text.strip_prefix(scheme).unwrap_or(text);
    let url = server(scheme, place).ok_or(Malformed::Entry(at))?;
    entries.push(Entry { url, weight });
    Ok(())
}

/// A host and a port, and nothing that readers of urls make something else of.
fn server(scheme: &str, place: &str) -> Option<EndpointUrl> {
    let plain =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    let (_, port) = place.rsplit_once(':')?;
    let port = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    if !port || !place.chars().all(plain) {
        return None;
    }
    EndpointUrl::parse(&format!("{scheme}{place}")).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LINES: Form = Form::Lines { whole: true };

    fn urls(text: &str, form: Form) -> Result<Vec<String>, Malformed> {
        let entries = read(text.as_bytes(), form, false)?;
        Ok(entries.into_iter().map(|e| e.url.to_string()).collect())
    }

    #[test]
    fn what_prometheus_reads_is_read() {
        let text = r#"[
            {"targets": ["10.0.0.5:8000", "vllm-1.svc:8000"],
             "labels": {"__meta_x": "y", "job": "vllm", "forebay_weight": "3"}},
            {"targets": [], "labels": null},
            {"targets": ["[fd00::1]:8000"], "more": {"of": ["this"]}}
        ]"#;
        let entries = read(text.as_bytes(), Form::Json, false).unwrap();
        let seen: Vec<_> = entries
            .iter()
            .map(|e| (e.url.to_string(), e.weight.map(Weight::get)))
            .collect();
        let expected = [
            ("http://10.0.0.5:8000", Some(3)),
            ("http://vllm-1.svc:8000", Some(3)),
            ("http://[fd00::1]:8000", None),
        ];
        assert_eq!(seen, expected.map(|(url, weight)| (url.to_owned(), weight)));
        assert_eq!(urls("[]", Form::Json), Ok(vec![]));
        assert_eq!(urls(r#"[{"targets":[]}]"#, Form::Json), Ok(vec![]));
    }

    #[test]
    fn lines_have_comments_and_blanks() {
        let text = "# engines\n10.0.0.5:8000\r\n\n  http://b:80  # the second\n";
        let expected = ["http://10.0.0.5:8000", "http://b:80"];
        assert_eq!(urls(text, LINES).unwrap(), expected);
        assert_eq!(urls("", LINES), Ok(vec![]));
        let tls = read(b"a:443\nhttps://b:1", LINES, true).unwrap();
        assert_eq!(tls[0].url.to_string(), "https://a:443");
        assert_eq!(read(b"http://a:1", LINES, true), Err(Malformed::Scheme(1)));
    }

    #[test]
    fn half_of_a_last_line_is_none() {
        let growing = Form::Lines { whole: false };
        // It may become `10.0.0.15:8000`, or another port.
        let half = "10.0.0.1:80\n10.0.0.1:80";
        assert_eq!(urls(half, growing), Err(Malformed::Unended));
        assert_eq!(urls(half, LINES).map(|urls| urls.len()), Ok(2));
        assert_eq!(urls("a:1\nb:2\n", growing).map(|urls| urls.len()), Ok(2));
        assert_eq!(urls("", growing), Ok(vec![]));
    }

    #[test]
    fn what_is_no_list_is_none_in_no_part() {
        for text in [
            "",
            "{}",
            "[{}]",
            "[{\"targets\": [7]}]",
            "[{\"targets\": \"a:1\"}]",
            "[{\"targets\": [\"a:1\"]",
            "[{\"targets\": [\"a:1\"], \"targets\": [\"b:1\"]}]",
            "<html>",
            &"[".repeat(100_000),
        ] {
            let found = urls(text, Form::Json);
            assert!(matches!(found, Err(Malformed::Json { .. })), "{text}");
        }
        for place in [
            "a",
            ":80",
            "a:",
            "a:0",
            "a:65536",
            "a:+1",
            "user@a:80",
            "user:pw@a:80",
            "a:80/x",
            "a:80?x",
            "a:80#x",
            "a b:80",
            "a\t:80",
            "a%41:80",
            "[::1:80",
            "ftp://a:80",
            "unix:///run/x:80",
            "a:80\\b:80",
            "\u{ff11}0.0.0.1:80",
        ] {
            let text = serde_json::json!([{ "targets": ["ok:80", place] }]).to_string();
            assert_eq!(urls(&text, Form::Json), Err(Malformed::Entry(2)), "{place}");
        }
        assert_eq!(
            urls("root:x:0:0:root:/root:/bin/sh", LINES),
            Err(Malformed::Entry(1))
        );
        assert_eq!(urls("a:1\n\u{0}b:1", LINES), Err(Malformed::Entry(2)));
        for weight in ["\"0\"", "\"1001\"", "\"x\"", "\"\""] {
            let text =
                format!("[{{\"targets\":[\"a:1\"],\"labels\":{{\"forebay_weight\":{weight}}}}}]");
            assert_eq!(
                urls(&text, Form::Json),
                Err(Malformed::Weight(1)),
                "{weight}"
            );
        }
        let many = "a:1\n".repeat(limits::LISTED + 1);
        assert_eq!(urls(&many, LINES), Err(Malformed::TooMany));
    }

    proptest! {
        /// Whatever comes, it does not panic, and what is read is a place and nothing more.
        #[test]
        fn anything_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..200), tls: bool) {
            for form in [Form::Json, LINES] {
                for entry in read(&bytes, form, tls).into_iter().flatten() {
                    prop_assert_eq!(entry.url.is_tls(), tls);
                }
            }
        }

        #[test]
        fn nearly_lists_too(text in "[\\[\\]{}\":,a-z0-9.@/ \n#-]{0,80}") {
            for form in [Form::Json, LINES] {
                for entry in read(text.as_bytes(), form, false).into_iter().flatten() {
                    let printed = entry.url.to_string();
                    prop_assert_eq!(EndpointUrl::parse(&printed), Ok(entry.url));
                }
            }
        }
    }
}
