//! What a run found, as data, and as files: JSON, Markdown, pictures.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use serde::{Serialize, Serializer};

use super::{
    SeedError,
    claims::{self, Claim, Met},
    memory::{Memory, Warm},
    picture,
    plan::{Contestant, Plan, Shape, ratio},
    stats::{Bins, Latency},
    tables,
};

/// One contestant under one shape of load.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// In which way requests came.
    pub shape: Shape,
    /// Who was measured.
    pub contestant: Contestant,
    /// Requests answered after the warm-up.
    pub requests: usize,
    /// Requests that failed, warm-up included.
    pub failures: usize,
    /// What failed, and how often.
    pub failed: BTreeMap<String, usize>,
    /// Connections opened in the warm-up, counted upstream.
    pub opened_in_warm_up: u64,
    /// Connections opened after it, counted upstream.
    pub opened: u64,
    /// Requests that found a connection, of those after the warm-up.
    pub reuse: f64,
    /// How long was counted, in seconds.
    pub seconds: f64,
    /// From the moment a request was due to the end of its answer.
    pub latency: Latency,
    /// The same as a distribution.
    pub bins: Bins,
    /// Most requests on their way at once after the warm-up, those that wait included.
    pub most_in_flight: usize,
    /// Most connections that the pool kept idle at once; unknown for Forebay.
    pub most_idle: Option<usize>,
    /// Connections open when all was over, per model.
    pub kept: Vec<u64>,
}

impl Run {
    /// The share of requests that opened a connection.
    #[must_use]
    pub fn opening(&self) -> f64 {
        1.0 - self.reuse
    }

    /// Connections opened per second after the warm-up.
    #[must_use]
    pub fn opened_per_second(&self) -> f64 {
        match self.seconds > 0.0 {
            true => self.opened as f64 / self.seconds,
            false => 0.0,
        }
    }
}

/// The share of requests that needed no new connection.
pub(crate) fn reuse(requests: usize, opened: u64) -> f64 {
    let opened = usize::try_from(opened).unwrap_or(usize::MAX);
    match requests {
        0 => 0.0,
        requests => 1.0 - ratio(opened.min(requests), requests),
    }
}

/// Everything that a run found.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// What was run.
    #[serde(serialize_with = "plan")]
    pub plan: Plan,
    /// Contestants by shapes.
    pub runs: Vec<Run>,
    /// What an idle connection costs Forebay; none where the system does not say.
    pub memory: Option<Memory>,
    /// The first requests after a registration with `warm` set.
    pub warm: Warm,
    /// What the document claims, beside what was seen.
    pub claims: Vec<Claim>,
    /// The shapes of load in which the document's claim holds.
    pub holds_in: Vec<Shape>,
    /// What Forebay promises, beside what was seen.
    pub promises: Vec<Met>,
}

impl Report {
    pub(crate) fn new(plan: Plan, runs: Vec<Run>, memory: Option<Memory>, warm: Warm) -> Self {
        Self {
            claims: claims::all(&plan, &runs, memory.as_ref()),
            holds_in: claims::holds_in(&plan, &runs),
            promises: claims::promises(&runs, &warm),
            plan,
            runs,
            memory,
            warm,
        }
    }

    /// The run of this contestant in this shape.
    #[must_use]
    pub fn run(&self, contestant: Contestant, shape: Shape) -> Option<&Run> {
        find(&self.runs, contestant, shape)
    }

    /// The report as Markdown, with its pictures if they lie beside it.
    #[must_use]
    pub fn markdown(&self, pictures: bool) -> String {
        tables::markdown(self, pictures)
    }

    /// What was run, in one paragraph.
    #[must_use]
    pub fn setting(&self) -> String {
        tables::setting(&self.plan)
    }

    /// Its tables.
    #[must_use]
    pub fn tables(&self) -> Vec<tables::Table> {
        tables::all(self)
    }

    /// Writes `seed.json`, `seed.md` and the pictures into a directory, which is made if need be.
    pub fn write(&self, directory: &Path) -> Result<(), SeedError> {
        make_directory(directory)?;
        let json = serde_json::to_string_pretty(self).map_err(|error| SeedError::Write {
            path: directory.join("seed.json"),
            source: error.into(),
        })?;
        write(directory, "seed.json", &(json + "\n"))?;
        write(directory, "seed.md", &self.markdown(true))?;
        write(directory, "pools.svg", &picture::pools(self)?)?;
        for shape in self.plan.shapes.iter().copied() {
            let name = picture::latency_file(shape);
            write(directory, &name, &picture::latency(self, shape)?)?;
        }
        Ok(())
    }
}

/// Makes a directory for a report, so that a bad one is known before anything is measured.
pub fn make_directory(directory: &Path) -> Result<(), SeedError> {
    fs::create_dir_all(directory).map_err(|source| SeedError::Write {
        path: directory.to_owned(),
        source,
    })
}

/// The run of this contestant in this shape.
pub(crate) fn find(runs: &[Run], contestant: Contestant, shape: Shape) -> Option<&Run> {
    let mut of = runs.iter().filter(|run| run.shape == shape);
    of.find(|run| run.contestant == contestant)
}

fn write(directory: &Path, name: &str, text: &str) -> Result<(), SeedError> {
    let path = directory.join(name);
    fs::write(&path, text).map_err(|source| SeedError::Write { path, source })
}

/// Times in milliseconds, as everywhere in the report.
fn plan<S: Serializer>(plan: &Plan, serializer: S) -> Result<S::Ok, S::Error> {
    let millis = |time: Duration| time.as_secs_f64() * 1_000.0;
    let value = serde_json::json!({
        "models": plan.models,
        "maxConcurrent": plan.max_concurrent,
        "size": plan.size(),
        "keepalive": plan.keepalive,
        "shapes": plan.shapes,
        "waves": plan.waves,
        "secondsPerShape": plan.time.as_secs_f64(),
        "handshakeMillis": millis(plan.handshake),
        "serviceMillis": millis(plan.service_time),
        "seed": plan.seed,
    });
    value.serialize(serializer)
}
