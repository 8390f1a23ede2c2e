//! `forebay bench zero-loss`: from flags to settings, and from a report to what is printed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::bail;
use forebay_bench::zero_loss::{self, Hook, Outcomes, Phase, Report, Settings, ZeroLossError};
use tokio_util::sync::CancellationToken;

use crate::{
    Usage,
    args::{Output, ZeroLoss},
    document, open_files,
    signals::until_signalled,
    table, ui,
};

/// Makes a run, and prints what it found, also when it is interrupted.
pub(crate) async fn run(args: ZeroLoss) -> anyhow::Result<()> {
    // Both ends of every connection but the gateway's are here.
    open_files::raise_limit();
    let (output, allow_loss) = (args.output, args.allow_loss);
    let settings = settings(args);
    let stop = CancellationToken::new();
    let work = async {
        let report = match zero_loss::run(settings, stop.clone()).await {
            Err(ZeroLossError::Invalid(bad)) => {
                let lines: Vec<_> = bad.iter().map(ToString::to_string).collect();
                bail!(Usage(lines.join("\n").into()));
            }
            report => report?,
        };
        match output {
            Output::Table => ui::say(&rendered(&report)),
            output => ui::say(&document::print(&serde_json::to_value(&report)?, output)?),
        }
        if !allow_loss && !report.is_clean() {
            bail!("{}", complaint(&report));
        }
        Ok(())
    };
    until_signalled(work, stop.clone()).await
}

fn settings(args: ZeroLoss) -> Settings {
    let ZeroLoss {
        gateway,
        upstream,
        load,
        hook,
        ..
    } = args;
    let keep_alive = upstream.upstream_keep_alive;
    Settings {
        url: gateway.url,
        models: gateway.models,
        headers: gateway.headers,
        upstreams: match upstream.upstream_elsewhere {
            true => Vec::new(),
            false => upstream.upstream_listen,
        },
        upstream_keep_alive: (keep_alive > Duration::ZERO).then_some(keep_alive),
        rate: load.rate,
        stream_share: load.stream_share,
        stream_tokens: load.stream_tokens,
        plain_tokens: load.plain_tokens,
        token_interval: load.token_interval,
        duration: load.duration,
        warm_up: load.warm_up,
        timeout: load.timeout,
        most_in_flight: load.most_in_flight,
        hook: hook.hook.map(|command| Hook {
            command,
            baseline_command: hook.baseline_hook,
            every: hook.every,
            burst: hook.hooks_per_burst,
            timeout: hook.hook_timeout,
        }),
        baseline: hook.baseline,
        seed: load.seed.unwrap_or_else(zero_loss::any_seed),
    }
}

/// Why the exit code is 1.
fn complaint(report: &Report) -> String {
    let phases = || report.baseline.iter().chain([&report.measured]);
    let lost: u64 = phases().map(|phase| phase.outcomes.lost()).sum();
    let duplicated: u64 = phases().filter_map(|phase| phase.duplicated).sum();
    let hooks: u64 = phases().map(|phase| phase.hooks.failed).sum();
    format!(
        "{lost} requests lost ({} more in the warm-up), {duplicated} executed more than once, \
         {hooks} hooks failed; --allow-loss only reports it",
        report.warm_up.lost
    )
}

/// One column per part of the run, one line per figure.
fn rendered(report: &Report) -> String {
    let mut rows = match &report.baseline {
        Some(baseline) => Rows::of(vec![baseline, &report.measured]),
        None => Rows::of(vec![&report.measured]),
    };
    rows.outcomes();
    rows.connections();
    rows.times();
    let columns = match report.baseline {
        Some(_) => &["", ">BASELINE", ">MEASURED"][..],
        None => &["", ">MEASURED"],
    };
    let mut table = table::table(columns);
    for row in rows.rows {
        table.add_row(row);
    }
    format!("{}\n\n{}", table::text(&table), summary(report))
}

/// Lines in the making.
struct Rows<'a> {
    phases: Vec<&'a Phase>,
    rows: Vec<Vec<String>>,
}

impl<'a> Rows<'a> {
    fn of(phases: Vec<&'a Phase>) -> Self {
        Self {
            phases,
            rows: Vec::new(),
        }
    }

    fn add<T: ToString>(&mut self, name: &str, value: impl Fn(&Phase) -> T) {
        let mut row = vec![name.to_owned()];
        row.extend(self.phases.iter().map(|phase| value(phase).to_string()));
        self.rows.push(row);
    }

    /// A number, and below it, by reason, what it is made of.
    fn reasons(&mut self, name: &str, of: impl Fn(&Outcomes) -> &BTreeMap<String, u64>) {
        self.add(name, |phase| of(&phase.outcomes).values().sum::<u64>());
        let reasons = self
            .phases
            .iter()
            .flat_map(|phase| of(&phase.outcomes).keys());
        let reasons: BTreeSet<_> = reasons.cloned().collect();
        for reason in reasons {
            self.add(&format!("  {name}: {reason}"), |phase| {
                of(&phase.outcomes).get(&reason).copied().unwrap_or(0)
            });
        }
    }

    fn outcomes(&mut self) {
        self.add("seconds", |phase| format!("{:.1}", phase.seconds));
        self.add("requests", |phase| phase.outcomes.requests);
        self.add("  of these streams", |phase| phase.outcomes.streams);
        self.add("ok", |phase| phase.outcomes.ok);
        self.reasons("failed", |outcomes| &outcomes.failed);
        self.reasons("cut", |outcomes| &outcomes.cut);
        self.add("reset, on a reused connection", |phase| {
            phase.outcomes.reset.reused
        });
        self.add("reset, on a new connection", |phase| {
            phase.outcomes.reset.new
        });
        self.add("executed more than once", |phase| {
            let unseen = || "not seen".to_owned();
            phase.duplicated.map_or_else(unseen, |n| n.to_string())
        });
        self.add("hooks run", |phase| phase.hooks.run);
        self.add("hooks failed", |phase| phase.hooks.failed);
    }

    fn connections(&mut self) {
        self.add("client connections opened", |phase| {
            phase.client_connections_opened
        });
        if self.phases.iter().any(|phase| phase.upstream.is_none()) {
            return;
        }
        let seen = |phase: &Phase| phase.upstream.unwrap_or_default();
        self.add("upstream connections opened", |phase| seen(phase).opened);
        self.add("  per 1,000 requests", |phase| {
            format!("{:.2}", seen(phase).opened_per_1000)
        });
        self.add("  closed by the gateway", |phase| {
            seen(phase).closed_by_gateway
        });
        self.add("  reset by the gateway", |phase| {
            seen(phase).reset_by_gateway
        });
        self.add("  closed as idle by the upstream", |phase| {
            seen(phase).closed_idle
        });
        self.add("requests cancelled by the gateway", |phase| {
            seen(phase).cancelled
        });
    }

    fn times(&mut self) {
        let ms = |value: f64| format!("{value:.2}");
        self.add("hook p50, ms", |phase| ms(phase.hooks.took_ms.p50));
        self.add("answer p50, ms", |phase| ms(phase.outcomes.answer_ms.p50));
        self.add("answer p99, ms", |phase| ms(phase.outcomes.answer_ms.p99));
        self.add("answer p99.9, ms", |phase| {
            ms(phase.outcomes.answer_ms.p999)
        });
        self.add("answer max, ms", |phase| ms(phase.outcomes.answer_ms.max));
        self.add("silence in a stream p99, ms", |phase| {
            ms(phase.outcomes.silence_ms.p99)
        });
        self.add("silence in a stream max, ms", |phase| {
            ms(phase.outcomes.silence_ms.max)
        });
    }
}

fn summary(report: &Report) -> String {
    let mut lines = Vec::new();
    if let Some(added) = report.added_ms {
        lines.push(format!(
            "added by reconfiguring: p50 {:+.2} ms, p99 {:+.2} ms, p99.9 {:+.2} ms",
            added.p50, added.p99, added.p999
        ));
    }
    if let Some(lost) = report.lost_per_reconfiguration {
        lines.push(format!("lost per reconfiguration: {lost:.3}"));
    }
    let warm_up = report.warm_up;
    lines.push(format!(
        "warm-up: {} requests, {} lost; seed {}",
        warm_up.requests, warm_up.lost, report.seed
    ));
    let hooks = report.baseline.iter().chain([&report.measured]);
    for failure in hooks.flat_map(|phase| &phase.hooks.failures) {
        lines.push(format!("hook failed: {failure}"));
    }
    if report.interrupted {
        lines.push("interrupted: these are the figures until then".to_owned());
    }
    lines.join("\n")
}
