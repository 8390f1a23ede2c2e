//! Two processes with one id: who is let in, who is asked, who is turned away.

use forebay_proto::{Digest, Epoch, Position, Revision, WorkerId, wire};
use tokio::time::{sleep, timeout};

use super::{
    super::{Fleet, Introduction, Joined, Joining},
    *,
};

fn introduction(instance: &str, proves: bool) -> Introduction {
    Introduction {
        peer: format!("peer-of-{instance}"),
        proves,
        ..Introduction::plain("w", instance, None)
    }
}

fn worker() -> WorkerId {
    WorkerId::new("w").unwrap()
}

fn let_in(fleet: &Fleet, instance: &str, over: Option<SessionId>) -> (Joined, CancellationToken) {
    let end = CancellationToken::new();
    match fleet.join(introduction(instance, true), end.clone(), over) {
        Joining::In(joined) => (joined, end),
        Joining::Full | Joining::Contested(_) => unreachable!("let in"),
    }
}

fn contested(fleet: &Fleet, instance: &str) -> Rival {
    match fleet.join(introduction(instance, true), CancellationToken::new(), None) {
        Joining::Contested(rival) => rival,
        Joining::In(_) | Joining::Full => unreachable!("there is another one"),
    }
}

fn shown(fleet: &Fleet) -> wire::Worker {
    let newest = Position {
        epoch: Epoch::new("aa").unwrap(),
        revision: Revision::new(1),
        digest: Digest::of(b""),
    };
    fleet.worker("w", &newest).unwrap()
}

async fn judge(rival: &mut Rival) -> Verdict {
    timeout(HEARD_WITHIN * 2, rival.judge()).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn one_that_proves_that_it_is_alive_stays() {
    let fleet = Fleet::default();
    let (elder, ended) = let_in(&fleet, "elder", None);
    let mut rival = contested(&fleet, "younger");
    let asked = elder.challenge.borrow().clone().unwrap();
    assert_eq!(
        (asked.instance.as_str(), asked.peer.as_str()),
        ("younger", "peer-of-younger")
    );
    // Words that are no answer prove nothing: they may have been said before it froze.
    fleet.seen(&worker(), elder.session);
    fleet.proved(&worker(), elder.session, asked.number - 1);
    let early = timeout(PROVE_WITHIN / 2, rival.judge()).await;
    assert!(early.is_err());
    fleet.proved(&worker(), elder.session, asked.number);
    assert_eq!(judge(&mut rival).await, Verdict::Alive);
    assert!(!ended.is_cancelled());
    let who = (InstanceId::new("younger").unwrap(), "here".to_owned());
    fleet.turned_away(&worker(), rival.session, who);
    assert_eq!(shown(&fleet).twin.unwrap().instance_id, "younger");
    assert_eq!(shown(&fleet).instance_id, "elder");
}

#[tokio::test(start_paused = true)]
async fn one_that_is_silent_makes_room_and_is_the_younger_when_it_comes_back() {
    let fleet = Fleet::default();
    let (elder, ended) = let_in(&fleet, "elder", None);
    let mut rival = contested(&fleet, "younger");
    let began = Instant::now();
    assert_eq!(judge(&mut rival).await, Verdict::Silent);
    assert_eq!(began.elapsed(), PROVE_WITHIN);
    let (younger, _) = let_in(&fleet, "younger", Some(rival.session));
    assert!(ended.is_cancelled());
    assert_eq!(elder.ousted.get(), Some(&Ousted::Newer));
    let mut rival = contested(&fleet, "elder");
    let number = younger.challenge.borrow().as_ref().unwrap().number;
    fleet.proved(&worker(), younger.session, number);
    assert_eq!(judge(&mut rival).await, Verdict::Alive);
}

#[tokio::test(start_paused = true)]
async fn a_restart_is_let_in_when_the_old_stream_ends() {
    let fleet = Fleet::default();
    let (old, _) = let_in(&fleet, "old", None);
    let mut rival = contested(&fleet, "new");
    let judging = judge(&mut rival);
    let (verdict, ()) = tokio::join!(judging, async { fleet.leave(&worker(), old.session) });
    assert_eq!(verdict, Verdict::Gone);
    let_in(&fleet, "new", None);
}

#[test]
fn a_reconnect_and_the_heir_of_one_that_ends_are_let_in_at_once() {
    let fleet = Fleet::default();
    let (_, first) = let_in(&fleet, "same", None);
    let (second, _) = let_in(&fleet, "same", None);
    assert!(first.is_cancelled());
    assert!(!fleet.look()[0].succeeds);
    fleet.ends(&worker(), second.session);
    let_in(&fleet, "other", None);
    assert!(fleet.look()[0].succeeds, "it was expected");
    let_in(&fleet, "other", None);
    assert!(fleet.look()[0].succeeds, "also when it connects again");
}

/// Its stream was old and is opened anew; the other one came in between.
#[test]
fn the_elder_gets_its_place_back() {
    let fleet = Fleet::default();
    let (_, ended) = let_in(&fleet, "younger", None);
    let elder = Introduction {
        let_in: std::time::Duration::from_secs(60),
        ..introduction("elder", true)
    };
    let joining = fleet.join(elder, CancellationToken::new(), None);
    assert!(matches!(joining, Joining::In(_)) && ended.is_cancelled());
    contested(&fleet, "younger");
}

#[tokio::test(start_paused = true)]
async fn two_that_come_at_once_are_judged_one_after_the_other() {
    let fleet = Fleet::default();
    let_in(&fleet, "dead", None);
    let (mut one, mut two) = (contested(&fleet, "one"), contested(&fleet, "two"));
    let (first, second) = tokio::join!(judge(&mut one), judge(&mut two));
    assert_eq!((first, second), (Verdict::Silent, Verdict::Silent));
    let_in(&fleet, "one", Some(one.session));
    // What was silent is not what is there now.
    let end = CancellationToken::new();
    let joining = fleet.join(introduction("two", true), end, Some(two.session));
    assert!(matches!(joining, Joining::Contested(_)));
}

#[tokio::test(start_paused = true)]
async fn a_build_that_does_not_know_the_question_proves_itself_by_any_word() {
    let fleet = Fleet::default();
    let end = CancellationToken::new();
    let Joining::In(elder) = fleet.join(introduction("elder", false), end, None) else {
        unreachable!()
    };
    let mut rival = contested(&fleet, "younger");
    // Just after a sign of life, with the next one as late as it may come.
    let (verdict, ()) = tokio::join!(judge(&mut rival), async {
        sleep(Duration::from_secs(12)).await;
        fleet.seen(&worker(), elder.session);
    });
    assert_eq!(verdict, Verdict::Alive);
    let mut rival = contested(&fleet, "younger");
    assert_eq!(judge(&mut rival).await, Verdict::Silent);
}

#[test]
fn what_was_refused_elsewhere_is_known_here() {
    let fleet = Fleet::default();
    let position = Position {
        epoch: Epoch::new("aa").unwrap(),
        revision: Revision::new(1),
        digest: Digest::of(b""),
    };
    let refused = super::super::Refused {
        position: position.clone(),
        refusals: Vec::new(),
    };
    let told = Introduction {
        refused: Some(refused),
        ..introduction("i", true)
    };
    let Joining::In(joined) = fleet.join(told, CancellationToken::new(), None) else {
        unreachable!()
    };
    assert_eq!(joined.refused, Some(position));
    assert_eq!(shown(&fleet).state(), wire::WorkerState::Refused);
}

#[test]
fn one_that_moves_is_forgotten() {
    let fleet = Fleet::default();
    let (joined, _) = let_in(&fleet, "i", None);
    assert_eq!(fleet.load(), (1, true));
    fleet.moves(&worker(), joined.session);
    assert_eq!(fleet.load(), (0, true));
    assert!(fleet.look().is_empty());
}
