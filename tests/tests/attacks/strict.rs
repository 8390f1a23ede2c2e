//! A reader of HTTP/1.1 that forgives nothing, and shares no code with the gateway: what it does not understand could
//! be understood in two ways.

/// A request as it went upstream.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// An answer as it came to a client.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) reason: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Its framing says that this was all.
    pub(crate) whole: bool,
}

fn get<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = headers.iter().find(|(known, _)| known == name);
    found.map(|(_, value)| value.as_str())
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        get(&self.headers, name)
    }
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        get(&self.headers, name)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// The first request of these bytes and how many are its own; nothing if it is not whole.
pub(crate) fn request(bytes: &[u8]) -> Result<Option<(Request, usize)>, String> {
    let Some((lines, at)) = head(bytes)? else {
        return Ok(None);
    };
    let (first, rest) = lines.split_first().expect("a first line");
    let [method, target, version] = first.split(' ').collect::<Vec<_>>()[..] else {
        return Err(format!("not a request line: {first:?}"));
    };
    if method != "POST" || version != "HTTP/1.1" || !target.starts_with('/') {
        return Err(format!("not our request line: {first:?}"));
    }
    let headers = fields(rest)?;
    for (at, (name, _)) in headers.iter().enumerate() {
        if headers[..at].iter().any(|(before, _)| before == name) {
            return Err(format!("{name} twice"));
        }
    }
    if get(&headers, "host").is_none() || get(&headers, "transfer-encoding").is_some() {
        return Err(format!("neither host nor framing of ours: {headers:?}"));
    }
    let length = length(&headers)?.ok_or("no length")?;
    let Some(body) = bytes.get(at..at + length) else {
        return Ok(None);
    };
    let request = Request {
        target: target.to_owned(),
        headers,
        body: body.to_vec(),
    };
    Ok(Some((request, at + length)))
}

/// All answers of these bytes, interim ones left out; the last may not be whole.
pub(crate) fn answers(mut bytes: &[u8]) -> Result<Vec<Answer>, String> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let Some((lines, at)) = head(bytes)? else {
            break;
        };
        let (first, rest) = lines.split_first().expect("a first line");
        let status = first
            .strip_prefix("HTTP/1.1 ")
            .or_else(|| first.strip_prefix("HTTP/1.0 "))
            .and_then(|rest| rest.get(..3)?.parse().ok())
            .ok_or_else(|| format!("not a status line: {first:?}"))?;
        let headers = fields(rest)?;
        bytes = &bytes[at..];
        if status == 100 {
            continue;
        }
        let (body, whole) = match (length(&headers)?, get(&headers, "transfer-encoding")) {
            (Some(_), Some(_)) => return Err("two lengths".to_owned()),
            (Some(length), None) => {
                let whole = bytes.len() >= length;
                let (body, after) = bytes.split_at(length.min(bytes.len()));
                bytes = after;
                (body.to_vec(), whole)
            }
            (None, Some("chunked")) => {
                let (body, after) = chunked(bytes)?;
                bytes = after.unwrap_or_default();
                (body, after.is_some())
            }
            (None, None) if status == 204 => (Vec::new(), true),
            (None, other) => return Err(format!("no framing: {other:?}")),
        };
        all.push(Answer {
            status,
            reason: first.get(13..).unwrap_or_default().to_owned(),
            headers,
            body,
            whole,
        });
    }
    Ok(all)
}

type Chunked<'a> = (Vec<u8>, Option<&'a [u8]>);

fn chunked(mut bytes: &[u8]) -> Result<Chunked<'_>, String> {
    let mut body = Vec::new();
    loop {
        let Some(end) = find(bytes, b"\r\n") else {
            return Ok((body, None));
        };
        let size = std::str::from_utf8(&bytes[..end]).ok();
        let size = size.and_then(|text| usize::from_str_radix(text, 16).ok());
        let size = size.ok_or_else(|| format!("not a chunk: {:?}", &bytes[..end]))?;
        bytes = &bytes[end + 2..];
        let Some(chunk) = bytes.get(..size) else {
            body.extend_from_slice(bytes);
            return Ok((body, None));
        };
        body.extend_from_slice(chunk);
        match bytes.get(size..size + 2) {
            None => return Ok((body, None)),
            Some(b"\r\n") => bytes = &bytes[size + 2..],
            Some(other) => return Err(format!("no end of a chunk: {other:?}")),
        }
        if size == 0 {
            return Ok((body, Some(bytes)));
        }
    }
}

/// The lines of a head and where it ends.
fn head(bytes: &[u8]) -> Result<Option<(Vec<&str>, usize)>, String> {
    let Some(end) = find(bytes, b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| "not ASCII")?;
    let lines: Vec<_> = text.split("\r\n").collect();
    let odd = |c: char| !matches!(c, ' '..='~');
    match lines.iter().find(|line| line.contains(odd)) {
        Some(line) => Err(format!("an odd byte: {line:?}")),
        None => Ok(Some((lines, end + 4))),
    }
}

fn fields(lines: &[&str]) -> Result<Vec<(String, String)>, String> {
    let field = |line: &&str| {
        let (name, value) = line.split_once(':').ok_or(format!("no colon: {line:?}"))?;
        let token = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        if name.is_empty() || !name.chars().all(token) {
            return Err(format!("not a name: {name:?}"));
        }
        let value = value.strip_prefix(' ').unwrap_or(value);
        match value.trim() == value {
            true => Ok((name.to_ascii_lowercase(), value.to_owned())),
            false => Err(format!("odd space: {line:?}")),
        }
    };
    lines.iter().map(field).collect()
}

fn length(headers: &[(String, String)]) -> Result<Option<usize>, String> {
    let mut all = headers.iter().filter(|(name, _)| name == "content-length");
    let Some((_, length)) = all.next() else {
        return Ok(None);
    };
    let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
    match digits && all.next().is_none() {
        true => Ok(length.parse().ok()),
        false => Err(format!("not one length: {length:?}")),
    }
}

pub(crate) fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

#[test]
fn it_forgives_nothing() {
    let good = b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}P";
    let (read, end) = request(good).unwrap().unwrap();
    assert_eq!((read.body.as_slice(), end), (&b"{}"[..], good.len() - 1));
    for bad in [
        "POST  /a HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: x\ncontent-length: 0\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: x\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: +0\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: x\r\ncontent-length : 0\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 0\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: x\r\n folded\r\ncontent-length: 0\r\n\r\n",
    ] {
        assert!(request(bad.as_bytes()).is_err(), "{bad:?}");
    }
    let two = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n\
                HTTP/1.1 404 No\r\ncontent-length: 3\r\n\r\nab";
    let read = answers(two).unwrap();
    let seen: Vec<_> = read.iter().map(|a| (a.status, a.whole)).collect();
    assert_eq!(seen, [(200, true), (404, false)]);
}
