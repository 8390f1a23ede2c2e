//! Three control planes that serve one registry, and workers that know all three: they spread, go elsewhere when one dies
//! or falls behind, come back when it returns, and hold to their store and to their ids. The network can be cut, machines
//! crash, and the lines between control planes and the registry fall silent.
//!
//! What must hold at every step: no worker's revision ever goes down, no number has two contents, and none is there that
//! is not durable.

mod play;

use std::time::Duration;

use forebay_dataplane::simulation::InForce;

use self::play::{CONTROLS, Play, Scene, store};

/// One of each by default, for each is minutes of simulated time.
fn seeds() -> std::ops::Range<u64> {
    let from = super::number("FOREBAY_SIMULATION_FROM", 0);
    from..from + (super::number("FOREBAY_SIMULATION_SEEDS", 100) / 100).max(1)
}

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Even within a fifth of the fair share, or one worker where that is more.
fn is_even(spread: [usize; CONTROLS]) -> bool {
    let all: usize = spread.iter().sum();
    let fair = all as f64 / CONTROLS as f64;
    let slack = (fair * 0.2).max(1.0);
    spread.iter().all(|n| (*n as f64 - fair).abs() <= slack)
}

const WORKERS: usize = 18;

#[test]
fn one_of_three_dies_and_returns_and_the_workers_spread_each_time() {
    for seed in seeds() {
        let mut play = Play::new(seed, WORKERS, Some((s(2), s(400))));
        play.until("all follow", s(20), |scene| {
            scene.spread().iter().sum::<usize>() == WORKERS
        });
        // Drawn, so at no certain moment, but after a few looks of each.
        let even = |scene: &Scene| is_even(scene.spread());
        play.until("they are even", s(120), even);

        play.crash("c0");
        play.until("the others have them", s(5), |scene| {
            let spread = scene.spread();
            spread[0] == 0 && spread.iter().sum::<usize>() == WORKERS
        });
        let spread = play.scene.spread();
        assert!(
            spread[1].min(spread[2]) >= WORKERS / 4,
            "seed {seed}: {spread:?}"
        );
        play.run(s(20));

        let before = play.scene.moves();
        play.sim.bounce("c0");
        play.until("it has its share", s(120), even);
        let moved = play.scene.moves() - before;
        assert!(
            moved as usize <= WORKERS,
            "seed {seed}: no storm: {moved} moves"
        );
        let before = play.scene.moves();
        play.run(s(120));
        let moved = play.scene.moves() - before;
        assert!(
            moved as usize <= WORKERS / 3,
            "seed {seed}: {moved} moves in two minutes"
        );
        play.until("it stays so", s(30), even);
        play.until("all have the newest", s(10), |scene| scene.not_well() == 0);
    }
}

/// A control plane that does not hear from the registry lets its workers go; they get what is written meanwhile.
#[test]
fn workers_of_one_that_is_behind_go_where_the_writes_are() {
    for seed in seeds() {
        let mut play = Play::new(seed, 9, Some((s(1), s(600))));
        play.until("all follow", s(20), |scene| {
            scene.spread().iter().sum::<usize>() == 9
        });
        play.run(s(30));
        play.scene.hears[0].send_replace(false);
        play.until("nobody follows it", s(45), |scene| scene.spread()[0] == 0);
        play.run(s(60));
        assert_eq!(
            play.scene.spread()[0],
            0,
            "seed {seed}: nobody goes back to it"
        );
        play.until("all are abreast", s(15), |scene| scene.not_well() == 0);
        play.scene.hears[0].send_replace(true);
        play.until("it has its share", s(180), |scene| scene.spread()[0] >= 2);
    }
}

/// With all of them cut off nobody is better off anywhere: the workers stay, and are well at once when it is over.
#[test]
fn when_none_hears_from_the_store_workers_serve_on_and_nothing_flaps() {
    for seed in seeds() {
        let mut play = Play::new(seed, 9, None);
        play.until("all follow", s(20), |scene| {
            scene.spread().iter().sum::<usize>() == 9
        });
        for hears in &play.scene.hears {
            hears.send_replace(false);
        }
        play.run(s(30));
        let before = play.scene.moves();
        play.run(s(120));
        let moved = play.scene.moves() - before;
        assert!(moved <= 2, "seed {seed}: {moved} moves in two minutes");
        play.until("all follow", s(10), |scene| {
            scene.spread().iter().sum::<usize>() == 9
        });
    }
}

/// Two processes with one id: the elder stays, wherever the other one tries; when it ends, the other one is let in.
#[test]
fn of_two_processes_with_one_id_the_elder_stays() {
    for seed in seeds() {
        let mut play = Play::new(seed, 3, None);
        play.worker("elder", "same");
        let follows = |host: &'static str| {
            move |scene: &Scene| {
                let workers = scene.workers.lock();
                workers.get(host).is_some_and(|w| w.follows().is_some())
            }
        };
        play.until("the elder follows", s(20), follows("elder"));
        play.run(s(5));
        play.worker("twin", "same");
        play.until("the twin is turned away", s(30), |scene| {
            scene
                .workers
                .lock()
                .get("twin")
                .is_some_and(InForce::is_turned_away)
        });
        // It comes again every half minute or so; streams of the elder end of age meanwhile.
        let (mut both, mut elder_away) = (0_u32, 0_u32);
        let until = play.sim.elapsed() + s(300);
        while play.sim.elapsed() < until {
            play.step();
            let (elder, twin) = (follows("elder")(&play.scene), follows("twin")(&play.scene));
            both += u32::from(elder && twin);
            elder_away += u32::from(!elder);
        }
        let share = |steps: u32| f64::from(steps) / 30_000.0;
        assert!(
            share(both) < 0.1,
            "seed {seed}: both for {:.3} of the time",
            share(both)
        );
        assert!(
            share(elder_away) < 0.1,
            "seed {seed}: the elder without a stream for {:.3} of the time",
            share(elder_away)
        );
        play.crash("elder");
        play.until("the twin is let in", s(90), follows("twin"));
    }
}

/// A restart is let in at once, even where the control plane has not noticed that the old process is gone.
#[test]
fn a_restart_behind_a_cut_is_let_in() {
    for seed in seeds() {
        let mut play = Play::new(seed, 1, None);
        play.until("it follows", s(20), |scene| {
            scene.spread().iter().sum::<usize>() == 1
        });
        let at = play.scene.spread().iter().position(|n| *n == 1).unwrap();
        let host = format!("c{at}");
        // Nobody tells the control plane that the process ended.
        play.sim.partition("w0", host.as_str());
        play.crash("w0");
        play.run(s(1));
        play.sim.repair("w0", host.as_str());
        play.sim.bounce("w0");
        play.until("it follows again", s(12), |scene| {
            !scene.workers.lock().is_empty() && scene.not_well() == 0
        });
    }
}

/// One of the three is of another store: nobody goes over to it, or to and fro.
#[test]
fn a_control_plane_of_another_store_is_not_followed() {
    for seed in seeds() {
        let mut play = Play::new(seed, 6, Some((s(2), s(200))));
        play.crash("c2");
        let foreign = Scene::new(seed, "beef0000");
        let shared = foreign.clone();
        play.sim.host("other-store", move || store(shared.clone()));
        play.until("all follow", s(30), |scene| {
            scene.spread().iter().sum::<usize>() == 6
        });
        play.run(s(5));
        // At the address of the third there is another cluster's now.
        *play.scene.elsewhere.lock() = Some(foreign);
        play.sim.bounce("c2");
        play.run(s(180));
        play.until("all are well", s(10), |scene| scene.not_well() == 0);
        assert_eq!(play.scene.spread()[2], 0, "seed {seed}");
    }
}

/// Cuts, holds and crashes at random; then calm, in which all must be well and even.
#[test]
fn whatever_fails_all_are_well_and_even_afterwards() {
    for seed in seeds() {
        let mut play = Play::new(seed, 9, Some((s(1), s(90))));
        let mut dice = fastrand::Rng::with_seed(seed ^ 0x7a11);
        let mut wrong: Vec<(Duration, String, Option<String>)> = Vec::new();
        while play.sim.elapsed() < s(90) {
            let time = Duration::from_millis(dice.u64(200..4_000));
            play.run(time);
            let now = play.sim.elapsed();
            let (due, rest): (Vec<_>, Vec<_>) =
                wrong.drain(..).partition(|(until, ..)| *until <= now);
            wrong = rest;
            due.into_iter()
                .for_each(|(_, a, b)| mend(&mut play, &a, b.as_deref()));
            let control = dice.usize(..CONTROLS);
            let (name, worker) = (format!("c{control}"), format!("w{}", dice.usize(..9)));
            let until = now + Duration::from_millis(dice.u64(500..25_000));
            match dice.u8(..6) {
                0 | 1 => {
                    play.sim.partition(name.as_str(), worker.as_str());
                    wrong.push((until, name, Some(worker)));
                }
                2 => {
                    play.sim.hold(name.as_str(), worker.as_str());
                    wrong.push((until, name, Some(worker)));
                }
                3 if play.sim.is_host_running(name.as_str()) => {
                    play.crash(&name);
                    wrong.push((until, name, None));
                }
                4 if play.sim.is_host_running(worker.as_str()) => {
                    play.crash(&worker);
                    wrong.push((until, worker, None));
                }
                _ => {
                    play.scene.hears[control].send_replace(false);
                    wrong.push((until, format!("hears {control}"), None));
                }
            }
        }
        wrong
            .into_iter()
            .for_each(|(_, a, b)| mend(&mut play, &a, b.as_deref()));
        play.until("all are well", s(100), |scene| {
            scene.workers.lock().len() == 9 && scene.not_well() == 0
        });
        play.until("they are even", s(180), |scene| is_even(scene.spread()));
    }
}

fn mend(play: &mut Play, a: &str, b: Option<&str>) {
    match (a.strip_prefix("hears "), b) {
        (Some(number), _) => {
            let number: usize = number.parse().unwrap();
            play.scene.hears[number].send_replace(true);
        }
        (None, Some(b)) => {
            play.sim.repair(a, b);
            play.sim.release(a, b);
        }
        (None, None) if play.sim.is_host_running(a) => {}
        (None, None) => play.sim.bounce(a),
    }
}
