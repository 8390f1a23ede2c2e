//! Reading of a `/metrics` page.

/// One page of metrics.
#[derive(Debug, Clone)]
pub struct Scrape(String);

/// One line of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample<'a> {
    /// What stands between the braces.
    pub labels: &'a str,
    /// The number.
    pub value: f64,
}

impl Scrape {
    /// Of this text.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The page.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }

    /// The samples of this name.
    pub fn samples<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Sample<'a>> {
        self.0.lines().filter_map(move |line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.split_once('}')?,
                None => ("", rest),
            };
            let value = value.strip_prefix(' ')?.parse().ok()?;
            Some(Sample { labels, value })
        })
    }

    /// The sum of the samples of this name whose labels contain all of these.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        self.samples(name)
            .filter(|sample| labels.iter().all(|label| sample.labels.contains(label)))
            .fold(0.0, |sum, sample| sum + sample.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_what_matches() {
        let page = Scrape::new(
            "# TYPE a counter\na{m=\"x\",k=\"1\"} 2\na{m=\"y\",k=\"1\"} 3\nab 9\nb 4\n".to_owned(),
        );
        assert_eq!(page.sum("a", &[]), 5.0);
        assert_eq!(page.sum("a", &["m=\"y\"", "k=\"1\""]), 3.0);
        assert_eq!(page.sum("b", &[]), 4.0);
        assert_eq!(page.sum("c", &[]), 0.0);
    }
}
