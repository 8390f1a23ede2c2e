//! A size that is lent: what it is when, and what becomes of what runs beyond it.

use super::{super::leased::COOLS, *};

fn lent(most: usize) -> Shape {
    Shape {
        fleet_wide: true,
        ..shape(most)
    }
}

fn share(size: usize, floor: usize, until: u64, end: u64) -> Share {
    Share {
        size,
        floor,
        until: at(until),
        end: at(end),
        dry: false,
    }
}

fn set(shell: &mut Shell, share: Option<Share>) {
    let effects = shell.core.set_share(shell.now, share);
    shell.run(effects);
}

/// So many requests under way.
fn busy(shell: &mut Shell, count: usize) -> Vec<u64> {
    let all: Vec<u64> = (0..count).map(|_| shell.acquire()).collect();
    while !shell.connects.is_empty() {
        shell.connect();
    }
    all
}

fn revoked(shell: &Shell, waiter: u64) -> bool {
    let held = shell.leases.get(&waiter).unwrap();
    held.revocation()
        .is_some_and(|revocation| revocation.is_revoked())
}

#[test]
fn nothing_is_let_in_before_something_is_lent_and_the_line_is_served_then() {
    let mut shell = Shell::new(lent(50), 1);
    let first = shell.acquire();
    assert!(shell.connects.is_empty() && shell.granted.is_empty());
    set(&mut shell, Some(share(2, 1, 1_000, 2_000)));
    busy(&mut shell, 4);
    assert_eq!(shell.granted.len(), 2);
    assert_eq!(shell.granted[0], first);
    assert_eq!((shell.census().waiting, shell.core.size()), (3, 2));
}

#[test]
fn a_share_that_has_run_out_lets_nobody_in_whoever_looks_first() {
    let mut shell = Shell::new(lent(50), 1);
    set(&mut shell, Some(share(3, 1, 1_000, 9_000)));
    let all = busy(&mut shell, 3);
    // Its process was stopped: no sweep came before this.
    shell.now = at(1_000);
    shell.release(all[0], Outcome::Reusable);
    let late = shell.acquire();
    assert!(!shell.granted.contains(&late));
    assert_eq!(shell.core.size(), 1);
    shell.release(all[1], Outcome::Reusable);
    assert!(!shell.granted.contains(&late), "one still runs");
    shell.release(all[2], Outcome::Reusable);
    assert!(shell.granted.contains(&late), "the floor");
    // Renewed, all is as it was.
    set(&mut shell, Some(share(3, 1, 5_000, 9_000)));
    assert_eq!(shell.core.size(), 3);
}

#[test]
fn what_runs_beyond_the_floor_is_ended_in_the_end_the_newest_first() {
    let mut shell = Shell::new(lent(50), 1);
    set(&mut shell, Some(share(4, 1, 1_000, 2_000)));
    let all = busy(&mut shell, 4);
    shell.sweep(1_999);
    assert!(all.iter().all(|waiter| !revoked(&shell, *waiter)));
    shell.sweep(1);
    let ended: Vec<bool> = all.iter().map(|waiter| revoked(&shell, *waiter)).collect();
    assert_eq!(ended.iter().filter(|ended| **ended).count(), 3);
    // Told once; what has ended is not made up for by others.
    shell.sweep(100);
    let oldest = all.iter().zip(&ended).find(|(_, ended)| !**ended).unwrap();
    assert_eq!(oldest.0, shell.granted.first().unwrap());
}

#[test]
fn one_that_was_cut_short_counts_for_a_moment_and_one_that_ended_does_not() {
    let mut shell = Shell::new(lent(50), 1);
    set(&mut shell, Some(share(2, 1, 60_000, 90_000)));
    let all = busy(&mut shell, 2);
    let waiting = [shell.acquire(), shell.acquire()];
    shell.release(all[0], Outcome::Broken(CloseReason::Cancelled));
    busy(&mut shell, 0);
    assert!(
        !shell.granted.contains(&waiting[0]),
        "the engine may not know"
    );
    assert_eq!(shell.census().cooling, 1);
    shell.release(all[1], Outcome::Reusable);
    assert!(shell.granted.contains(&waiting[0]));
    assert!(!shell.granted.contains(&waiting[1]));
    shell.now += COOLS;
    shell.sweep(0);
    busy(&mut shell, 0);
    assert!(shell.granted.contains(&waiting[1]));
}

#[test]
fn what_began_before_the_limit_was_everybodys_is_told_of_and_not_ended() {
    let mut shell = Shell::new(shape(4), 1);
    let all = busy(&mut shell, 3);
    shell.reshape(lent(50), &[0]);
    assert_eq!((shell.core.size(), shell.census().lasting), (0, 3));
    set(&mut shell, Some(share(1, 1, 100, 200)));
    shell.sweep(1_000);
    assert_eq!(shell.leases.len(), 3);
    shell.release(all[0], Outcome::Reusable);
    assert_eq!(shell.census().lasting, 2);
    // And back: it has its own size again.
    shell.reshape(shape(4), &[0]);
    assert_eq!((shell.core.size(), shell.census().lasting), (4, 0));
}

#[test]
fn where_a_share_stays_nothing_nobody_waits_and_what_runs_goes_on() {
    let mut shell = Shell::new(lent(50), 1);
    set(&mut shell, Some(share(2, 2, 1_000, 9_000)));
    let all = busy(&mut shell, 5);
    assert_eq!((shell.granted.len(), shell.census().waiting), (2, 3));
    // Nothing is left for now: that may change, and one waits.
    set(&mut shell, Some(share(0, 0, 1_000, 9_000)));
    assert_eq!((shell.refused.len(), shell.census().waiting), (0, 3));
    let dry = Share {
        dry: true,
        ..share(0, 0, 1_000, 9_000)
    };
    set(&mut shell, Some(dry));
    let sent_away = all[2..].iter().map(|waiter| (*waiter, Refused::Dry));
    assert_eq!(shell.refused, sent_away.collect::<Vec<_>>());
    let late = shell.acquire();
    assert_eq!(shell.refused.last(), Some(&(late, Refused::Dry)));
    let counted = shell.core.counters.turned_away();
    let dry: Vec<u64> = counted
        .filter(|(why, _)| *why == crate::pool::counters::TurnedAway::Dry)
        .map(|(_, count)| count)
        .collect();
    assert_eq!(dry, [4]);
    assert!(!revoked(&shell, all[0]));
    shell.release(all[0], Outcome::Reusable);
    shell.release(all[1], Outcome::Reusable);
    assert_eq!(shell.core.in_flight(), 0);
}
