//! What goes wrong, drawn from the seed.

use std::time::Duration;

use forebay_control::simulation::{Disk, Fault};
use turmoil::Sim;

use super::world::{OPERATORS, WORKERS};

/// What is wrong now, and until when.
#[derive(Debug)]
enum Wrong {
    Cut(&'static str, String),
    Held(&'static str, String),
    Down(String),
}

/// Makes trouble and ends it again.
#[derive(Debug)]
pub(super) struct Trouble {
    dice: fastrand::Rng,
    next: Duration,
    wrong: Vec<(Duration, Wrong)>,
    pub(super) made: u64,
    /// Hosts that crashed since the last look.
    pub(super) crashed: Vec<String>,
}

impl Trouble {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            dice: fastrand::Rng::with_seed(seed ^ 0x5eed),
            next: Duration::from_millis(500),
            wrong: Vec::new(),
            made: 0,
            crashed: Vec::new(),
        }
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.dice.u64(from..to))
    }

    /// Ends what is due, and begins something new now and then.
    pub(super) fn step(&mut self, now: Duration, sim: &mut Sim<'_>, disk: &Disk) {
        let due = self.wrong.extract_if(.., |(until, _)| *until <= now);
        let due: Vec<Wrong> = due.map(|(_, wrong)| wrong).collect();
        due.into_iter().for_each(|wrong| end(sim, wrong));
        if now < self.next {
            return;
        }
        self.next = now + self.millis(200, 3_000);
        self.begin(now, sim, disk);
    }

    /// Ends all that is wrong.
    pub(super) fn heal(&mut self, sim: &mut Sim<'_>) {
        self.wrong.drain(..).for_each(|(_, wrong)| end(sim, wrong));
    }

    fn begin(&mut self, now: Duration, sim: &mut Sim<'_>, disk: &Disk) {
        self.made += 1;
        let other = match self.dice.usize(..WORKERS + OPERATORS) {
            worker if worker < WORKERS => format!("w{worker}"),
            other => format!("operator{}", other - WORKERS),
        };
        let until = now + self.millis(50, 20_000);
        let wrong = match self.dice.u8(..6) {
            0 | 1 => {
                sim.partition("control", other.as_str());
                Wrong::Cut("control", other)
            }
            2 => {
                sim.hold("control", other.as_str());
                Wrong::Held("control", other)
            }
            3 => self.crash(sim, "control"),
            4 if other.starts_with('w') => self.crash(sim, &other),
            _ => {
                let faults = [
                    Fault::NotCommitted,
                    Fault::UnknownWritten,
                    Fault::UnknownLost,
                ];
                let fault = self.dice.usize(..faults.len());
                disk.fail_next(faults[fault]);
                return;
            }
        };
        let until = match wrong {
            // A control plane that is away for long would leave nothing to look at.
            Wrong::Down(_) => now + self.millis(50, 5_000),
            Wrong::Cut(..) | Wrong::Held(..) => until,
        };
        self.wrong.push((until, wrong));
    }

    fn crash(&mut self, sim: &mut Sim<'_>, host: &str) -> Wrong {
        if sim.is_host_running(host) {
            sim.crash(host);
            self.crashed.push(host.to_owned());
        }
        Wrong::Down(host.to_owned())
    }
}

fn end(sim: &mut Sim<'_>, wrong: Wrong) {
    match wrong {
        Wrong::Cut(a, b) => sim.repair(a, b),
        Wrong::Held(a, b) => sim.release(a, b),
        Wrong::Down(host) if sim.is_host_running(host.as_str()) => {}
        Wrong::Down(host) => sim.bounce(host),
    }
}
