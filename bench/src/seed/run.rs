//! Runs a plan: each contestant under each shape with upstreams, pools and processes of its own, then
//! what Forebay's connections cost. Whatever was started is ended, however it ends.

use std::{path::Path, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{
    SeedError,
    gateway::Gateway,
    load::{Load, PAUSE, Target},
    memory::{self, Memory, Warm},
    plan::{Contestant, Plan, Shape},
    pool::{Limits, Surplus},
    report::{Report, Run, reuse},
    stats::{Latencies, bin_width},
    upstreams::Upstreams,
};

/// httpx's default.
const EXPIRY: Duration = Duration::from_secs(5);
/// What is not a load: the check of warm registration, the memory, and starting Forebay.
const AROUND: Duration = Duration::from_secs(10);
/// So that what the last answers closed is seen by the upstreams.
const SETTLE: Duration = Duration::from_millis(100);

/// Told what is being done.
pub type Progress<'a> = &'a (dyn Fn(&str) + Sync);

/// Runs everything. `program` is the Forebay to measure.
pub async fn run(
    plan: Plan,
    program: &Path,
    shutdown: &CancellationToken,
    progress: Progress<'_>,
) -> Result<Report, SeedError> {
    plan.check()?;
    let bench = Bench {
        plan: &plan,
        program,
        shutdown,
    };
    progress(&format!("this takes about {} s", estimate(&plan).as_secs()));
    let mut runs = Vec::new();
    for shape in plan.shapes.iter().copied() {
        for contestant in Contestant::ALL {
            let run = bench.run(contestant, shape).await?;
            progress(&format!(
                "{}: {}: {} requests, {} connections opened, {} of them after the warm-up",
                shape.title(),
                contestant.title(&plan),
                run.requests,
                run.opened_in_warm_up + run.opened,
                run.opened
            ));
            runs.push(run);
        }
    }
    let warm = bench.warm().await?;
    progress("registered warm: measured");
    let memory = bench.memory().await?;
    progress("memory of idle connections: measured");
    Ok(Report::new(plan, runs, memory, warm))
}

/// How long it takes, roughly: the loads, and what starts and ends around them.
fn estimate(plan: &Plan) -> Duration {
    let load = |shape: &Shape| match shape {
        Shape::Waves => {
            let waves = u32::try_from(plan.waves).unwrap_or(u32::MAX);
            (plan.service_time + plan.handshake + PAUSE).saturating_mul(waves)
        }
        _ => plan.warm_up() + plan.time + plan.service_time,
    };
    let contestants = u32::try_from(Contestant::ALL.len()).unwrap_or(u32::MAX);
    let loads: Duration = plan.shapes.iter().map(load).sum();
    loads.saturating_mul(contestants) + AROUND
}

struct Bench<'a> {
    plan: &'a Plan,
    program: &'a Path,
    shutdown: &'a CancellationToken,
}

impl Bench<'_> {
    async fn run(&self, contestant: Contestant, shape: Shape) -> Result<Run, SeedError> {
        let upstreams = self.upstreams().await?;
        let limits = |keepalive, surplus| Limits {
            keepalive,
            surplus,
            expiry: Some(EXPIRY),
        };
        let limits = match contestant {
            Contestant::Seed => limits(self.plan.keepalive, Surplus::Idle),
            Contestant::Httpcore => limits(self.plan.keepalive, Surplus::All),
            Contestant::Fixed => limits(self.plan.size(), Surplus::Idle),
            Contestant::Forebay => {
                let gateway = Gateway::start(self.program, self.plan).await?;
                let run = self.until(self.through(&gateway, shape, &upstreams)).await;
                gateway.stop().await;
                upstreams.stop().await;
                return run;
            }
        };
        let target = Target::pool(self.plan, &upstreams, limits);
        let run = self
            .until(self.on(&target, contestant, shape, &upstreams))
            .await;
        upstreams.stop().await;
        run
    }

    async fn through(
        &self,
        gateway: &Gateway,
        shape: Shape,
        upstreams: &Upstreams,
    ) -> Result<Run, SeedError> {
        gateway.register(self.plan, &upstreams.urls(), 0).await?;
        let target = Target::gateway(self.plan, gateway.addr());
        self.on(&target, Contestant::Forebay, shape, upstreams)
            .await
    }

    async fn on(
        &self,
        target: &Target,
        contestant: Contestant,
        shape: Shape,
        upstreams: &Upstreams,
    ) -> Result<Run, SeedError> {
        let latencies = Latencies::new().ok_or(SeedError::Latencies)?;
        let load = Load::new(target.clone(), latencies);
        let seen = load.run(shape, self.plan, upstreams).await;
        tokio::time::sleep(SETTLE).await;
        let opened = upstreams.opened() - seen.opened_in_warm_up;
        let requests = seen.latencies.len();
        let run = Run {
            shape,
            contestant,
            requests,
            failures: seen.failures.values().sum(),
            failed: seen.failures,
            opened_in_warm_up: seen.opened_in_warm_up,
            opened,
            reuse: reuse(requests, opened),
            seconds: seen.counted.as_secs_f64(),
            latency: seen.latencies.figures(),
            bins: seen.latencies.bins(bin_width(self.plan)),
            most_in_flight: seen.most_in_flight,
            most_idle: (contestant != Contestant::Forebay).then_some(seen.most_idle),
            kept: upstreams.open(),
        };
        target.close().await;
        Ok(run)
    }

    async fn warm(&self) -> Result<Warm, SeedError> {
        let upstreams = self.upstreams().await?;
        let gateway = Gateway::start(self.program, self.plan).await?;
        let warm = self
            .until(memory::warm(&gateway, self.plan, &upstreams))
            .await;
        gateway.stop().await;
        upstreams.stop().await;
        warm
    }

    async fn memory(&self) -> Result<Option<Memory>, SeedError> {
        let upstreams = self.upstreams().await?;
        let gateway = Gateway::start(self.program, self.plan).await?;
        let memory = self
            .until(memory::memory(&gateway, self.plan, &upstreams))
            .await;
        gateway.stop().await;
        upstreams.stop().await;
        memory
    }

    async fn upstreams(&self) -> Result<Upstreams, SeedError> {
        Upstreams::start(self.plan)
            .await
            .map_err(SeedError::Upstream)
    }

    /// Does the work unless told to stop. What was started is stopped by who started it.
    async fn until<T>(
        &self,
        work: impl Future<Output = Result<T, SeedError>>,
    ) -> Result<T, SeedError> {
        tokio::select! {
            done = work => done,
            () = self.shutdown.cancelled() => Err(SeedError::Interrupted),
        }
    }
}
