//! Bodies that were made to be understood in two ways: JSON and forms, whole and broken, from a seed. They are
//! for comparing who reads them; what is right they do not know.

#![expect(
    clippy::indexing_slicing,
    reason = "every place is drawn from what is there"
)]

use fastrand::Rng;

/// What stands between the parts of the forms.
pub const BOUNDARY: &str = "b0undary.of-Forebay";

const KEYS: &[&str] = &[
    "model",
    "stream",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "n",
    "best_of",
    "stream_options",
    "previous_response_id",
];
const OTHER_KEYS: &[&str] = &[
    "messages",
    "temperature",
    "stop",
    "tools",
    "",
    "modelx",
    "nn",
    "mödel",
    "user",
    "input",
    "stream_",
];
const ODD_KEYS: &[&str] = &[
    "mod\\u0065l",
    "Model",
    "MODEL",
    "\\u006e",
    "N",
    "\u{17f}tream",
    "max_to\u{212a}ens",
    "stre\\u0061m",
    "api_base",
    "base_url",
    "api_key",
    "user_config",
    "\\u006d\\u006f\\u0064\\u0065\\u006c",
    "mod\\el",
    "model\\u0000",
    " model",
    "model ",
    "Stream",
    "max\\u005ftokens",
];
const NUMBERS: &[&str] = &[
    "0",
    "1",
    "7",
    "128",
    "4096",
    "-1",
    "-0",
    "1.0",
    "1e2",
    "1e400",
    "-1e999",
    "1e-400",
    "01",
    "1.",
    ".5",
    "+1",
    "18446744073709551615",
    "18446744073709551616",
    "NaN",
    "Infinity",
    "-Infinity",
    "0x10",
    "1_000",
    "1e",
    "--1",
    "123456789012345678901234567890",
    "0.30000000000000004",
];
const TEXTS: &[&str] = &[
    "m",
    "vendor/model",
    "vendor\\/model",
    "",
    "é",
    "\\u00e9",
    "\\ud83d\\ude00",
    "\\ud83d",
    "\\ude00",
    "\u{1f600}",
    "a\\u0000b",
    "\\\"model\\\":\\\"x\\\"",
    "\\n",
    "\\x",
    "\\u12",
    "\\",
    "\u{7f}",
    "../x",
    "true",
    "a\u{2028}b",
    "a long text that goes on for more than the sixty-four bytes of a block, with a \\\"quote\\\" in it",
];
const WORDS: &[&str] = &[
    "true",
    "false",
    "null",
    "True",
    "None",
    "undefined",
    "tru",
    "nul",
];
const BLANKS: &[&str] = &[
    "", "", "", " ", "\n", "\t", "\r\n", "\u{a0}", "\u{c}", "/**/",
];

/// A source of bodies.
#[derive(Debug)]
pub struct Bodies(Rng);

impl Bodies {
    /// The same ones for the same seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Rng::with_seed(seed))
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        self.0.choice(of).copied().unwrap_or_default()
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.0.u32(0..100) < percent
    }

    /// A JSON body, or what is left of one.
    pub fn json(&mut self) -> Vec<u8> {
        // How much is wrong with this one: most have nothing, or one thing.
        let odd = [0, 0, 1, 4, 20][self.0.usize(0..5)];
        let body = self.object(odd, 0).into_bytes();
        match self.chance(30) {
            true => self.broken(body),
            false => body,
        }
    }

    fn blank(&mut self, odd: u32) -> &'static str {
        match self.chance(odd) {
            true => self.one(BLANKS),
            false => self.one(&BLANKS[..7]),
        }
    }

    fn object(&mut self, odd: u32, depth: u32) -> String {
        let mut text = format!("{}{{", self.blank(odd));
        let mut left: Vec<&str> = KEYS.to_vec();
        for n in 0..self.0.u32(0..7) {
            if n > 0 {
                text.push_str(if self.chance(odd / 4) { "," } else { "" });
                text.push(',');
            }
            // Without oddity every key is there once.
            let key = match self.0.u32(0..4) {
                0..2 if !left.is_empty() => {
                    let at = self.0.usize(0..left.len());
                    left.swap_remove(at)
                }
                _ if self.chance(odd) => self.one(ODD_KEYS),
                _ if self.chance(odd) => self.one(KEYS),
                _ => self.one(OTHER_KEYS),
            };
            let (before, between) = (self.blank(odd), self.blank(odd));
            let value = self.value_of(key, odd, depth);
            text.push_str(&format!("{before}\"{key}\"{between}:{value}"));
        }
        text.push_str(if self.chance(odd / 4) { ",}" } else { "}" });
        text + self.blank(odd)
    }

    fn value_of(&mut self, key: &str, odd: u32, depth: u32) -> String {
        if self.chance(odd) {
            return self.value(odd, depth);
        }
        match key {
            "model" | "previous_response_id" => format!("\"{}\"", self.one(&TEXTS[..7])),
            "stream" => self.one(&WORDS[..3]).to_owned(),
            "stream_options" => {
                let usage = self.one(&WORDS[..3]);
                format!("{{\"include_usage\":{usage}}}")
            }
            "max_tokens" | "max_completion_tokens" | "max_output_tokens" | "n" | "best_of" => {
                self.one(&NUMBERS[..5]).to_owned()
            }
            _ => self.value(odd, depth),
        }
    }

    fn value(&mut self, odd: u32, depth: u32) -> String {
        let good = !self.chance(odd);
        match self.0.u32(0..7) {
            0 => self
                .one(if good { &NUMBERS[..5] } else { NUMBERS })
                .to_owned(),
            1 => self.one(if good { &WORDS[..3] } else { WORDS }).to_owned(),
            2 if depth < 4 => self.object(odd, depth + 1),
            3 if depth < 4 => {
                let (a, b) = (self.value(odd, depth + 1), self.value(odd, depth + 1));
                format!("[{a},{b}]")
            }
            4 if !good => {
                let deep = self.0.usize(60..70);
                format!("{}1{}", "[".repeat(deep), "]".repeat(deep))
            }
            _ => format!("\"{}\"", self.one(if good { &TEXTS[..7] } else { TEXTS })),
        }
    }

    /// Something was done to its bytes.
    fn broken(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        for _ in 0..self.0.usize(1..4) {
            let at = self.0.usize(0..=bytes.len());
            match self.0.u32(0..9) {
                0 if at < bytes.len() => bytes[at] = self.0.u8(..),
                1 if at < bytes.len() => drop(bytes.remove(at)),
                2 => bytes.insert(at, self.0.u8(..)),
                3 => bytes.truncate(at),
                4 => bytes.splice(0..0, *b"\xef\xbb\xbf").for_each(drop),
                5 => {
                    let text = String::from_utf8_lossy(&bytes).into_owned();
                    bytes = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
                }
                6 => bytes.extend_from_slice(self.one(&["{}", "\0", " x", "\n\n"]).as_bytes()),
                7 if at < bytes.len() => {
                    let piece: Vec<u8> = bytes[at..].iter().copied().take(20).collect();
                    bytes.splice(at..at, piece).for_each(drop);
                }
                _ => bytes.splice(at..at, [0xc3, 0x28]).for_each(drop),
            }
        }
        bytes
    }

    /// A form, or what is left of one.
    pub fn form(&mut self) -> Vec<u8> {
        let odd = [0, 0, 2, 10][self.0.usize(0..4)];
        let mut text = Vec::new();
        if self.chance(odd) {
            text.extend_from_slice(self.one(&["preamble\r\n", "\r\n", "\n", " "]).as_bytes());
        }
        let mut left = vec![
            "model",
            "file",
            "stream",
            "language",
            "max_completion_tokens",
        ];
        for _ in 0..self.0.usize(1..7) {
            let name = match left.is_empty() || self.chance(odd) {
                true => self.one(&[
                    "model",
                    "stream",
                    "Model",
                    "api_key",
                    "temperature",
                    "model[]",
                ]),
                false => {
                    let at = self.0.usize(0..left.len());
                    left.swap_remove(at)
                }
            };
            self.part(&mut text, name, odd);
        }
        let end = match self.chance(odd) {
            true => self.one(&[
                "--",
                "",
                "--\r\nepilogue",
                "-- \r\n",
                "--\n",
                "-",
                "--\r\n\r\n",
            ]),
            false => self.one(&["--\r\n", "--"]),
        };
        text.extend_from_slice(format!("--{BOUNDARY}{end}").as_bytes());
        match self.chance(20) {
            true => self.broken(text),
            false => text,
        }
    }

    fn part(&mut self, text: &mut Vec<u8>, name: &str, odd: u32) {
        let disposition = match self.chance(odd) {
            true => self.one(&[
                "form-data; name=NAME",
                "form-data; name=\"NAME\"; name=\"other\"",
                "form-data; name=\"other\"; name=\"NAME\"",
                "form-data; name=\"NAME\"; filename=\"x\"",
                "form-data; name=\"NAME\"; filename*=UTF-8''x",
                "form-data; name=\"a\\\"; x=\"; name=\"NAME\"",
                "form-data; name=\"x\"; filename=\"a\\\"; name=\\\"NAME\"",
                "form-data; NAME=\"model\"",
                "form-data; name*=UTF-8''NAME",
                "form-data;name=\"NAME\"",
                "form-data ; name = \"NAME\"",
                "attachment; name=\"NAME\"",
                "FORM-DATA; NAME=\"NAME\"",
                "form-data; name='NAME'",
                "form-data; name=\"NA\r\n ME\"",
                "form-data; name=\" NAME\"",
                "form-data; name=\"NAME;\"",
            ]),
            false if name == "file" => "form-data; name=\"NAME\"; filename=\"a b;c=d.wav\"",
            false => "form-data; name=\"NAME\"",
        };
        let disposition = disposition.replace("NAME", name);
        let eol = if self.chance(odd / 2) { "\n" } else { "\r\n" };
        let mut head = format!("--{BOUNDARY}{eol}Content-Disposition: {disposition}{eol}");
        let more = match self.chance(odd) {
            true => self.one(&[
                "Content-Disposition: form-data; name=\"model\"\r\n",
                "Content-Transfer-Encoding: base64\r\n",
                "X: a\r\n b\r\n",
                "no colon\r\n",
                "Content-Type : text/plain\r\n",
                "Content-Type: text/plain; charset=utf-16\r\n",
            ]),
            false => self.one(&["", "Content-Type: text/plain\r\n", "content-length: 3\r\n"]),
        };
        head.push_str(more);
        head.push_str(eol);
        let value = match (name, self.chance(odd)) {
            ("file", _) => "RIFF\0\0\r\n--b0undary\r\n\r\nmodel\r\n--",
            (_, true) => self.one(&[
                "\r\n--b0undary.of-Forebayx\r\n",
                "é",
                "true ",
                "yes",
                "on",
                "-1",
                "1.0",
                "m\0",
                "",
                "\r\n",
            ]),
            ("stream", _) => self.one(&["true", "false", "1", "0", "True"]),
            ("max_completion_tokens", _) => "12",
            ("model", _) => self.one(&["m", "vendor/model"]),
            _ => self.one(&["de", "0.5", ""]),
        };
        text.extend_from_slice(head.as_bytes());
        text.extend_from_slice(value.as_bytes());
        text.extend_from_slice(eol.as_bytes());
    }
}
