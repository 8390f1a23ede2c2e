//! Whether this control plane hears from its store. One that did and does not any more for a while sends its workers
//! elsewhere, each at a moment of its own, once: who comes nevertheless has nowhere better to go, and stays.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

/// It may be about to come back.
const PATIENCE: Duration = Duration::from_secs(10);
/// Within this after that its workers go.
const SPREAD: Duration = Duration::from_secs(10);

/// As one stream sees it.
#[derive(Debug, Clone)]
pub(crate) struct Abreast {
    heard: Option<watch::Receiver<bool>>,
    /// It was when the stream opened, or has been since.
    was: bool,
    leaves_at: Option<Instant>,
}

impl Abreast {
    /// Of a store that is part of the process.
    pub(crate) fn always() -> Self {
        Self {
            heard: None,
            was: true,
            leaves_at: None,
        }
    }

    /// Of one that this tells of.
    pub(crate) fn told_by(heard: watch::Receiver<bool>) -> Self {
        Self {
            heard: Some(heard),
            ..Self::always()
        }
    }

    /// For a stream that opens now.
    pub(crate) fn of_stream(&self) -> Self {
        Self {
            was: self.is(),
            ..self.clone()
        }
    }

    /// Whether it is, now.
    pub(crate) fn is(&self) -> bool {
        self.heard.as_ref().is_none_or(|heard| *heard.borrow())
    }

    /// Whether it was when the stream opened, or since, and is not now.
    pub(super) fn has_lost(&self) -> bool {
        self.was && !self.is()
    }

    /// Waits until something is to be looked at: true when the worker is to go elsewhere.
    pub(super) async fn next(&mut self) -> bool {
        let (leaves_at, Some(heard)) = (self.leaves_at, self.heard.as_mut()) else {
            return std::future::pending().await;
        };
        tokio::select! {
            changed = heard.changed() => if changed.is_err() {
                self.heard = None;
                self.leaves_at = None;
                return false;
            },
            () = async {
                match leaves_at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            } => {
                (self.leaves_at, self.was) = (None, false);
                return true;
            }
        }
        match (*heard.borrow_and_update(), self.was, self.leaves_at) {
            (true, ..) => (self.was, self.leaves_at) = (true, None),
            (false, true, None) => {
                let spread = SPREAD.mul_f64(fastrand::f64());
                self.leaves_at = Some(Instant::now() + PATIENCE + spread);
            }
            (false, ..) => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    async fn leaves(abreast: &mut Abreast) -> bool {
        let leaving = async { while !abreast.next().await {} };
        timeout(PATIENCE * 4, leaving).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn workers_go_once_when_the_store_is_silent_for_a_while() {
        let (say, heard) = watch::channel(true);
        let here = Abreast::told_by(heard);
        let mut stream = here.of_stream();
        assert!(!leaves(&mut stream).await && !stream.has_lost());
        say.send_replace(false);
        assert!(stream.has_lost() && !here.of_stream().has_lost());
        let began = Instant::now();
        assert!(leaves(&mut stream).await);
        assert!((PATIENCE..=PATIENCE + SPREAD).contains(&began.elapsed()));
        // Who comes while it is silent has nowhere better to go.
        assert!(!here.is());
        let mut late = here.of_stream();
        assert!(!leaves(&mut late).await);
        say.send_replace(true);
        assert!(!leaves(&mut late).await);
        say.send_replace(false);
        assert!(leaves(&mut late).await, "it was abreast in between");
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_back_soon_moves_nobody() {
        let (say, heard) = watch::channel(true);
        let mut stream = Abreast::told_by(heard).of_stream();
        say.send_replace(false);
        assert!(
            timeout(PATIENCE / 2, async { while !stream.next().await {} })
                .await
                .is_err()
        );
        say.send_replace(true);
        assert!(!leaves(&mut stream).await);
        drop(say);
        assert!(!leaves(&mut stream).await);
    }
}
