//! The floor of connections that are open ahead of need.

use super::*;

#[test]
fn what_was_in_use_is_kept_ready_and_forgotten_slowly() {
    let mut shell = Shell::new(shape(50), 1);
    let waiters: Vec<_> = (0..20).map(|_| shell.acquire()).collect();
    (0..20).for_each(|_| shell.connect());
    // Half is cancelled: over HTTP/1.1 that costs the connections.
    for (n, waiter) in waiters.into_iter().enumerate() {
        let cancelled = Outcome::Broken(CloseReason::Cancelled);
        shell.release(
            waiter,
            if n % 2 == 0 {
                cancelled
            } else {
                Outcome::Reusable
            },
        );
    }
    assert_eq!(shell.census().floor, 20);
    while !shell.connects.is_empty() {
        assert!(shell.connects.len() <= 4, "paced");
        shell.connect();
    }
    assert_eq!(shell.census().idle, 20);
    for _ in 0..60 {
        shell.sweep(5_000);
        while !shell.connects.is_empty() {
            shell.connect();
        }
    }
    assert_eq!((shell.census().floor, shell.census().idle), (0, 0));
}

#[test]
fn nothing_is_kept_unasked_where_unused_connections_are_closed() {
    let mut shell = Shell::new(shape(50), 1);
    let waiters: Vec<_> = (0..8).map(|_| shell.acquire()).collect();
    (0..8).for_each(|_| shell.connect());
    for waiter in waiters {
        shell.release(waiter, Outcome::Broken(CloseReason::Cancelled));
    }
    // Once could have been a restart.
    for _ in 0..2 {
        let mut last = None;
        while let Some((ticket, _)) = shell.connects.pop() {
            last = shell.connected(ticket);
        }
        assert_eq!(shell.census().floor, 8);
        shell.sweep(2_000);
        let effects = shell.core.ended(shell.now, last.unwrap());
        shell.run(effects);
    }
    assert_eq!(shell.census().floor, 0);
    assert!(shell.connects.is_empty(), "no refill");
    let asked = Shape {
        warm: 8,
        ..shape(50)
    };
    shell.reshape(asked, &[0]);
    assert_eq!(shell.connects.len(), 1, "what is configured is kept anyway");
}

#[test]
fn a_large_floor_is_filled_an_eighth_at_a_time() {
    let warm = Shape {
        warm: 80,
        ..shape(100)
    };
    let mut shell = Shell::new(warm, 1);
    assert_eq!(shell.connects.len(), 10);
    while !shell.connects.is_empty() {
        shell.connect();
    }
    assert_eq!(shell.census().idle, 80);
    assert!(shell.core.is_warm());
}

/// So many connections, each used once, and at rest.
fn used(shell: &mut Shell, n: usize) {
    let waiters: Vec<_> = (0..n).map(|_| shell.acquire()).collect();
    (0..n).for_each(|_| shell.connect());
    for waiter in waiters {
        shell.release(waiter, Outcome::Reusable);
    }
}

#[test]
fn a_floor_that_has_traffic_is_kept_open_by_it() {
    let warm = Shape {
        warm: 30,
        ..shape(50)
    };
    let mut shell = Shell::new(warm, 1);
    while !shell.connects.is_empty() {
        shell.connect();
    }
    used(&mut shell, 30);
    let opened = shell.census().idle;
    // One at a time, for a minute.
    for _ in 0..6_000 {
        shell.sweep(10);
        let waiter = shell.acquire();
        shell.release(waiter, Outcome::Reusable);
        assert!(shell.connects.is_empty(), "nothing is opened anew");
        assert_eq!(shell.census().idle, opened, "nothing is closed");
    }
}

#[test]
fn what_is_not_wanted_goes_cold_all_the_same() {
    let mut shell = Shell::new(shape(50), 1);
    used(&mut shell, 40);
    let mut most = 40;
    // The peak fades over five minutes; nothing is opened on the way down.
    for _ in 0..40_000 {
        shell.sweep(10);
        let waiter = shell.acquire();
        shell.release(waiter, Outcome::Reusable);
        assert!(shell.connects.is_empty(), "nothing is opened anew");
        let (idle, floor) = (shell.census().idle, shell.census().floor);
        assert!(floor.min(most) <= idle && idle <= most);
        most = idle;
    }
    assert_eq!(most, 1);
}
