//! Forms with files (`multipart/form-data`), read the plain way: what stands between the boundaries. It
//! trusts who sends them; what a gateway must refuse is the gateway's to know.

use std::collections::BTreeMap;

use bytes::Bytes;

/// The fields of a form, and the size of its file.
#[derive(Debug, Default)]
pub(crate) struct Form {
    fields: BTreeMap<String, String>,
    pub(crate) file_bytes: Option<usize>,
}

impl Form {
    /// Reads a body of this content type.
    pub(crate) fn read(content_type: &str, body: &Bytes) -> Result<Self, String> {
        let boundary = content_type
            .strip_prefix("multipart/form-data")
            .and_then(|rest| rest.split("boundary=").nth(1))
            .map(|boundary| boundary.trim_matches('"'))
            .ok_or("not a form")?;
        let mut form = Self::default();
        let mark = format!("--{boundary}");
        let mut rest = after(body, mark.as_bytes()).ok_or("no boundary")?;
        let mark = format!("\r\n{mark}");
        loop {
            if rest.starts_with(b"--") {
                return Ok(form);
            }
            let head = rest.strip_prefix(b"\r\n").ok_or("no line end")?;
            let blank = find(head, b"\r\n\r\n").ok_or("a part without content")?;
            let (head, content) = head.split_at(blank);
            let content = content.get(4..).unwrap_or_default();
            let end = find(content, mark.as_bytes()).ok_or("a part without end")?;
            form.take(
                &String::from_utf8_lossy(head),
                content.get(..end).unwrap_or_default(),
            );
            rest = content.get(end + mark.len()..).unwrap_or_default();
        }
    }

    fn take(&mut self, head: &str, content: &[u8]) {
        let parameter = |name: &str| {
            let mut parameters = head.split(';').map(str::trim);
            let value = parameters.find_map(|p| p.strip_prefix(name)?.strip_prefix("=\""))?;
            value.split('"').next().map(str::to_owned)
        };
        let Some(name) = parameter("name") else {
            return;
        };
        match parameter("filename") {
            Some(_) => self.file_bytes = Some(content.len()),
            None => {
                let text = String::from_utf8_lossy(content).into_owned();
                self.fields.insert(name, text);
            }
        }
    }

    /// What a field says.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

fn after<'a>(bytes: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    bytes.get(find(bytes, wanted)? + wanted.len()..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_files_are_told_apart() {
        let body = "--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n\
            RIFF\r\n\r\nx\r\n--x\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nm\r\n--x--\r\n";
        let form = Form::read("multipart/form-data; boundary=x", &Bytes::from(body)).unwrap();
        assert_eq!(form.get("model"), Some("m"));
        assert_eq!(form.file_bytes, Some(9));
        assert!(Form::read("application/json", &Bytes::new()).is_err());
    }
}
