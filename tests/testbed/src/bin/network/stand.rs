//! Hosts and wires for somebody who wants to try something: how to get there is printed, what becomes of the wires is
//! read from standard input. Ends with the word, or Ctrl-C.

use std::{net::Ipv4Addr, time::Duration};

use forebay_testbed::{Cut, End, Namespace, Shape, Way, Wire};
use tokio::sync::mpsc;

use crate::bed::start;

const USAGE: &str = "delay MS | jitter MS | loss PERCENT | rate BYTES_A_SECOND | cut all|there|back|data | heal | stats | end\n\
    (one of `to HOST` before any of them: that wire alone)";

/// Stands until told to end, with this program on each host.
pub(crate) async fn stand(names: &[String], program: Option<String>) {
    let (mut hosts, mut programs) = (Vec::new(), Vec::new());
    for name in names {
        let host = Namespace::make(name).await;
        let mut words = program
            .iter()
            .flat_map(|program| program.split_whitespace());
        if let Some(program) = words.next() {
            let args: Vec<&str> = words.collect();
            programs.push(start(&host, program, &args).await);
        }
        hosts.push(host);
    }
    let (first, others) = hosts.split_first().expect("two hosts at least");
    let mut wires = Vec::new();
    println!(
        "{}: nsenter --net={}",
        first.label(),
        first.entry().display()
    );
    for (number, host) in (0_u8..).zip(others) {
        let end = |host, last| End {
            host,
            address: Ipv4Addr::new(10, 77, number, last),
        };
        let (here, there) = (end(first, 1), end(host, 2));
        wires.push((host.label(), Wire::between(here, there).await));
        let (name, entry) = (host.label(), host.entry().display());
        let (here, there) = (here.address, there.address);
        println!("{name}: nsenter --net={entry}, {there} on a wire from {here}");
    }
    println!("{USAGE}");
    let mut lines = typed();
    let mut shape = Shape::default();
    loop {
        let Some(line) = lines.recv().await else {
            // Nobody types: it stands until it is ended.
            drop(tokio::signal::ctrl_c().await);
            break;
        };
        let words: Vec<&str> = line.split_whitespace().collect();
        let (only, words) = match words.as_slice() {
            ["to", host, rest @ ..] => (Some(*host), rest),
            rest => (None, rest),
        };
        let wires = wires
            .iter()
            .filter(|(name, _)| only.is_none_or(|only| only == *name));
        match words {
            ["end"] => break,
            ["stats"] => wires.for_each(|(name, wire)| {
                println!("{name}: there {:?}", wire.counts(Way::There));
                println!("{name}: back {:?}", wire.counts(Way::Back));
            }),
            ["cut", "there"] => wires.for_each(|(_, wire)| wire.shape(Way::There, Shape::cut())),
            ["cut", "back"] => wires.for_each(|(_, wire)| wire.shape(Way::Back, Shape::cut())),
            words => match change(&mut shape, words) {
                true => wires.for_each(|(_, wire)| wire.shape_both(shape)),
                false => println!("{USAGE}"),
            },
        }
    }
    drop(programs);
}

/// What is typed, line by line, to its end.
fn typed() -> mpsc::Receiver<String> {
    let (line, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        let typed = std::io::stdin().lines().map_while(Result::ok);
        for text in typed {
            if line.blocking_send(text).is_err() {
                return;
            }
        }
    });
    lines
}

/// True if the words were understood.
fn change(shape: &mut Shape, words: &[&str]) -> bool {
    let millis = |text: &str| text.parse().map(Duration::from_millis);
    match words {
        ["heal"] => *shape = Shape::default(),
        ["cut", "all"] => shape.cut = Cut::Everything,
        ["cut", "data"] => shape.cut = Cut::AllButHandshakes,
        [name, number] => {
            let understood = match *name {
                "delay" => millis(number).map(|delay| shape.delay = delay).is_ok(),
                "jitter" => millis(number).map(|jitter| shape.jitter = jitter).is_ok(),
                "rate" => number.parse().map(|rate| shape.rate = rate).is_ok(),
                "loss" => {
                    let percent = number.parse::<f64>();
                    percent.map(|percent| shape.loss = percent / 100.0).is_ok()
                }
                _ => false,
            };
            return understood;
        }
        _ => return false,
    }
    true
}
