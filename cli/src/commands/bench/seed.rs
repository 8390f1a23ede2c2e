//! `forebay bench seed`: runs the experiment against this very program and prints its tables. It measures
//! nothing itself.

use std::time::Duration;

use anyhow::Context as _;
use forebay_bench::seed::{Plan, Report, Shape, Table, make_directory, run as measure};
use tokio_util::sync::CancellationToken;

use crate::{
    Usage,
    args::{Load, LogArgs, Output, Seed},
    document, open_files,
    signals::until_signalled,
    table,
    telemetry::Telemetry,
    ui,
};

/// Where prose is broken.
const WIDTH: usize = 100;

/// Runs it, prints it, and writes it where it was asked to.
pub(crate) async fn run(log: &LogArgs, args: Seed) -> anyhow::Result<()> {
    let plan = plan(&args);
    if let Err(error) = plan.check() {
        return Err(Usage("these flags do not go together".into())).context(error.to_string());
    }
    let telemetry = Telemetry::start(log, "forebay", "bench")?;
    open_files::raise_limit();
    let shutdown = CancellationToken::new();
    let work = work(plan, &args, shutdown.clone());
    let result = until_signalled(work, shutdown).await;
    telemetry.stop().await;
    result
}

async fn work(plan: Plan, args: &Seed, shutdown: CancellationToken) -> anyhow::Result<()> {
    if let Some(directory) = &args.out {
        make_directory(directory)?;
    }
    let program = std::env::current_exe().context("this program's own file cannot be found")?;
    let report = measure(plan, &program, &shutdown, &ui::error).await?;
    if let Some(directory) = &args.out {
        report.write(directory)?;
        ui::error(&format!("written to {}", directory.display()));
    }
    match args.output {
        Output::Table => ui::say(&printed(&report)),
        output => {
            let value = serde_json::to_value(&report)?;
            ui::say(&document::print(&value, output)?);
        }
    }
    Ok(())
}

fn plan(args: &Seed) -> Plan {
    let (models, max_concurrent) = (usize::from(args.models), usize::from(args.max_concurrent));
    let keepalive = args.keepalive.map(usize::from);
    Plan {
        models,
        max_concurrent,
        keepalive: keepalive.unwrap_or_else(|| Plan::documents_keepalive(models, max_concurrent)),
        shapes: shapes(&args.load),
        waves: usize::from(args.waves),
        time: Duration::from_secs(args.seconds.into()),
        handshake: args.handshake,
        service_time: args.service_time,
        seed: args.seed,
    }
}

/// Those that were asked for, in the order of the report.
fn shapes(asked: &[Load]) -> Vec<Shape> {
    let pairs = [
        (Load::Waves, Shape::Waves),
        (Load::Closed, Shape::Closed),
        (Load::Poisson, Shape::Poisson),
        (Load::Document, Shape::Document),
    ];
    let asked_for = |load: &Load| asked.is_empty() || asked.contains(load);
    let asked = pairs.into_iter().filter(|(load, _)| asked_for(load));
    asked.map(|(_, shape)| shape).collect()
}

fn printed(report: &Report) -> String {
    let tables: Vec<_> = report.tables().iter().map(one).collect();
    format!("{}\n\n{}", wrapped(&report.setting()), tables.join("\n\n"))
}

fn one(of: &Table) -> String {
    let columns: Vec<_> = of.columns.iter().map(|name| name.to_uppercase()).collect();
    let columns: Vec<_> = columns.iter().map(String::as_str).collect();
    let mut table = table::table(&columns);
    for row in &of.rows {
        table.add_row(row);
    }
    let rows = match of.rows.is_empty() {
        true => String::new(),
        false => format!("{}\n", table::text(&table)),
    };
    format!("{}\n\n{rows}{}", of.title, wrapped(&of.note))
}

/// Prose in lines that fit a terminal.
fn wrapped(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_is_wrapped_between_words() {
        let text = wrapped(&"word ".repeat(50));
        assert!(text.lines().all(|line| line.len() <= WIDTH));
        assert_eq!(text.lines().count(), 3);
        assert_eq!(wrapped(""), "");
    }
}
