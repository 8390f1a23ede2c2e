//! The report as tables, and the tables as Markdown. What is in them is decided here, once, for the
//! terminal and for files.

use std::fmt::Write as _;

use super::{
    claims::percent,
    picture,
    plan::{Contestant, Plan, Shape},
    report::{Report, Run},
};

/// One table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// What it is about.
    pub title: String,
    /// The names of its columns; those with a leading `>` hold numbers.
    pub columns: Vec<&'static str>,
    /// Its rows.
    pub rows: Vec<Vec<String>>,
    /// What to know when reading it.
    pub note: String,
}

/// All tables, in the order in which they are read.
pub(crate) fn all(report: &Report) -> Vec<Table> {
    let shapes = report.plan.shapes.iter();
    let shapes = shapes.map(|shape| of_shape(report, *shape));
    shapes
        .chain([costs(report), claims(report), promises(report)])
        .collect()
}

/// In which shapes the claim holds, in one sentence.
pub(crate) fn summary(report: &Report) -> String {
    let names = |holds: bool| {
        let of = report.plan.shapes.iter();
        let of = of.filter(|shape| report.holds_in.contains(shape) == holds);
        of.map(|shape| shape.title()).collect::<Vec<_>>().join("; ")
    };
    let uncovered = percent(report.plan.uncovered());
    let (keepalive, size) = (report.plan.keepalive, report.plan.size());
    let claim = format!(
        "The claim (keepalive {keepalive} of {size}: {uncovered} of the requests open a connection; keepalive \
         {size}: none does)"
    );
    match (names(true), names(false)) {
        (none, _) if none.is_empty() => format!("{claim} holds in none of these shapes of load."),
        (_, none) if none.is_empty() => format!("{claim} holds in all of these shapes of load."),
        (holds, not) => format!("{claim} holds in: {holds}. It does not hold in: {not}."),
    }
}

/// The whole report as Markdown.
pub(crate) fn markdown(report: &Report, pictures: bool) -> String {
    let mut text = format!(
        "# `forebay bench seed`\n\n{}\n\n{}\n",
        setting(&report.plan),
        summary(report)
    );
    if pictures {
        text.push_str("\n![The pools after a wave](pools.svg)\n");
    }
    for (n, table) in all(report).iter().enumerate() {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n## {}\n\n{}", table.title, grid(table));
        if !table.note.is_empty() {
            let _ = write!(text, "\n{}\n", table.note);
        }
        if let Some(shape) = report.plan.shapes.get(n).filter(|_| pictures) {
            let file = picture::latency_file(*shape);
            let _ = write!(text, "\n![Latencies: {}]({file})\n", shape.title());
        }
    }
    text
}

/// What was run, in one paragraph.
pub(crate) fn setting(plan: &Plan) -> String {
    format!(
        "{} models with {} connections each: a pool of {}. A new connection costs {:?}, a request takes {:?}, \
         upstreams close what was idle for 5 s. {} waves, {:?} of each other shape of load, seed {}. Connections \
         are counted by the upstreams. All rows but Forebay's are pools alone, without a gateway in front: \
         compare connections, reuse, and the part of the latency that is handshakes.",
        plan.models,
        plan.max_concurrent,
        plan.size(),
        plan.handshake,
        plan.service_time,
        plan.waves,
        plan.time,
        plan.seed
    )
}

fn grid(table: &Table) -> String {
    let names: Vec<_> = table
        .columns
        .iter()
        .map(|name| name.trim_start_matches('>'))
        .collect();
    let rules: Vec<_> = table
        .columns
        .iter()
        .map(|name| if name.starts_with('>') { "---:" } else { "---" })
        .collect();
    let mut text = format!("| {} |\n| {} |\n", names.join(" | "), rules.join(" | "));
    for row in &table.rows {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text
}

fn of_shape(report: &Report, shape: Shape) -> Table {
    let runs = Contestant::ALL
        .into_iter()
        .filter_map(|who| report.run(who, shape));
    let warm_up = match shape {
        Shape::Waves => format!("first of {} waves", report.plan.waves),
        _ => format!("first {:?}", report.plan.warm_up()),
    };
    Table {
        title: capital(shape.title()),
        columns: vec![
            "pool",
            ">requests",
            ">failed",
            ">reuse",
            ">opened in warm-up",
            ">opened after",
            ">per second",
            ">p50 ms",
            ">p95 ms",
            ">p99 ms",
            ">most in flight",
            ">most idle",
        ],
        rows: runs.map(|run| row(report, run)).collect(),
        note: format!("The warm-up is the {warm_up}; requests and latencies are counted after it."),
    }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(letters).collect()
}

fn row(report: &Report, run: &Run) -> Vec<String> {
    let latency = &run.latency;
    vec![
        run.contestant.title(&report.plan),
        run.requests.to_string(),
        run.failures.to_string(),
        percent(run.reuse),
        run.opened_in_warm_up.to_string(),
        run.opened.to_string(),
        format!("{:.1}", run.opened_per_second()),
        format!("{:.0}", latency.p50),
        format!("{:.0}", latency.p95),
        format!("{:.0}", latency.p99),
        run.most_in_flight.to_string(),
        run.most_idle
            .map_or("-".to_owned(), |idle| idle.to_string()),
    ]
}

fn costs(report: &Report) -> Table {
    let mut rows = Vec::new();
    if let Some(memory) = &report.memory {
        for (name, reading) in [("hardly any", &memory.few), ("the pool full", &memory.full)] {
            rows.push(vec![
                name.to_owned(),
                reading.connections.to_string(),
                reading.rss_kib.to_string(),
                reading.private_dirty_kib.to_string(),
            ]);
        }
    }
    Table {
        title: "Memory of Forebay's idle connections".to_owned(),
        columns: vec![
            "idle connections",
            ">open",
            ">resident KiB",
            ">private dirty KiB",
        ],
        rows,
        note: match &report.memory {
            None => {
                "This system does not say what a process uses (/proc/PID/smaps_rollup).".to_owned()
            }
            Some(memory) => format!(
                "{:.1} KiB of private dirty memory per connection that was used and is idle, the kernel's socket \
                 aside. It is an upper bound: what requests needed and the allocator keeps is in it.",
                memory.kib_per_connection
            ),
        },
    }
}

fn claims(report: &Report) -> Table {
    let rows = report.claims.iter().map(|claim| {
        vec![
            claim.shape.map_or("-", Shape::title).to_owned(),
            claim.about.clone(),
            claim.said.clone(),
            claim.seen.clone(),
            claim.verdict.title().to_owned(),
        ]
    });
    Table {
        title: "What the document claims".to_owned(),
        columns: vec!["load", "about", "said", "seen", "verdict"],
        rows: rows.collect(),
        note: summary(report),
    }
}

fn promises(report: &Report) -> Table {
    let rows = report.promises.iter().map(|met| {
        let kept = if met.kept { "kept" } else { "broken" };
        vec![met.promise.clone(), met.seen.clone(), kept.to_owned()]
    });
    Table {
        title: "What Forebay promises".to_owned(),
        columns: vec!["promise", "seen", "verdict"],
        rows: rows.collect(),
        note: format!(
            "The slowest first request to a model registered warm took {:.0} ms.",
            report.warm.slowest_first_request
        ),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{
        super::{claims::tests::a_run, memory::Warm, plan::tests::plan},
        *,
    };

    /// Waves in which the document is right, and a closed loop in which it is not.
    pub(crate) fn a_report() -> Report {
        let mut runs = Vec::new();
        for (shape, slow) in [(Shape::Waves, 33), (Shape::Closed, 0)] {
            for (contestant, slow) in [
                (Contestant::Seed, slow),
                (Contestant::Httpcore, 33),
                (Contestant::Fixed, 0),
                (Contestant::Forebay, 0),
            ] {
                runs.push(a_run(contestant, shape, slow));
            }
        }
        let warm = Warm {
            warm: 150,
            opened_before: 150,
            opened_by_first_requests: 0,
            slowest_first_request: 204.0,
        };
        Report::new(plan(), runs, None, warm)
    }

    #[test]
    fn the_summary_names_where_the_claim_holds_and_where_not() {
        let mut report = a_report();
        let text = summary(&report);
        assert!(
            text.contains("holds in: synchronized waves. It does not hold in: steady"),
            "{text}"
        );
        report.holds_in.clone_from(&report.plan.shapes);
        assert!(summary(&report).contains("in all of these"));
        report.holds_in.clear();
        assert!(summary(&report).contains("in none of these"));
    }

    #[test]
    fn markdown_has_every_table_with_all_its_cells() {
        let report = a_report();
        for table in all(&report) {
            for row in &table.rows {
                assert_eq!(row.len(), table.columns.len(), "{}", table.title);
            }
        }
        let text = markdown(&report, true);
        assert!(
            text.contains("| keepalive 100 of 150 | 100 | 0 | 67.0 % | 150 | 33 |"),
            "{text}"
        );
        for file in ["pools.svg", "latency-waves.svg", "latency-document.svg"] {
            assert!(text.contains(file), "{file}: {text}");
        }
        assert!(!markdown(&report, false).contains(".svg"));
    }
}
