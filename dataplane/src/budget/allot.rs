//! The pure division of a worker's budget over its pools: no clock, no lock, no pool.
//!
//! While all that is wanted fits, everybody gets it, keeps what lies idle, and some room beside it;
//! what no longer fits is taken from the coldest idle connections. When it does not fit, the budget
//! is divided max-min fair over what is wanted: nobody gets more than he wants, nobody who wants more
//! has less than another who has more than one, and as far as the budget reaches everybody has one.

use std::{cmp::Reverse, time::Duration};

/// What one pool has and wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Need {
    /// Most connections it may have now; none for one that drains.
    pub(crate) size: usize,
    /// Most that it may come to have without a new configuration: more than the size where that is lent to it.
    pub(crate) most: usize,
    /// Connections with a request.
    pub(crate) busy: usize,
    /// Connections without, those being made included.
    pub(crate) idle: usize,
    /// Requests that wait.
    pub(crate) waiting: usize,
    /// How long the first of them has waited.
    pub(crate) waited: Duration,
    /// Idle connections that had a request a moment ago, and will have one again in a moment.
    pub(crate) recent: usize,
    /// How long the coldest idle connection has been idle.
    pub(crate) coldest: Duration,
}

impl Need {
    /// For its requests alone.
    fn wanted(&self) -> usize {
        let soon = self.waiting.max(self.recent);
        self.size.min(self.busy.saturating_add(soon))
    }

    pub(crate) fn open(&self) -> usize {
        self.busy + self.idle
    }

    /// What is open beyond the size: requests of an older configuration.
    fn above(&self) -> usize {
        self.open().saturating_sub(self.size)
    }

    /// What it may come to have, as things are.
    pub(crate) fn committed(&self) -> usize {
        self.size.max(self.most).max(self.open())
    }
}

/// How many connections each pool is to have at most, in the order given. The sum never exceeds the
/// budget; one whose requests have more than it is to have keeps them until they are done.
pub(crate) fn allot(budget: usize, needs: &[Need]) -> Vec<usize> {
    // What runs above its size, or on what was removed, is not to be had until it is done.
    let draining: usize = needs.iter().map(Need::above).sum();
    let budget = budget.saturating_sub(draining);
    let wanted: Vec<usize> = needs.iter().map(Need::wanted).collect();
    if wanted.iter().sum::<usize>() > budget {
        return fair(budget, needs, &wanted);
    }
    let mut shares = wanted;
    let mut left = budget - shares.iter().sum::<usize>();
    keep_idle(needs, &mut shares, &mut left);
    give_room(needs, &mut shares, left);
    shares
}

/// What lies idle stays, the warmest first.
fn keep_idle(needs: &[Need], shares: &mut [usize], left: &mut usize) {
    let mut order: Vec<usize> = (0..needs.len()).collect();
    order.sort_by_key(|n| needs.get(*n).map(|need| need.coldest));
    for n in order {
        let (Some(need), Some(share)) = (needs.get(n), shares.get_mut(n)) else {
            continue;
        };
        let kept = need.open().min(need.size).saturating_sub(*share).min(*left);
        *share += kept;
        *left -= kept;
    }
}

/// What is left is divided evenly, so that not every new connection has to be asked for.
fn give_room(needs: &[Need], shares: &mut [usize], mut left: usize) {
    loop {
        let growing: Vec<usize> = (0..shares.len())
            .filter(|n| shares.get(*n) < needs.get(*n).map(|need| &need.size))
            .collect();
        if growing.is_empty() || left == 0 {
            return;
        }
        let each = (left / growing.len()).max(1);
        for n in growing {
            let (Some(need), Some(share)) = (needs.get(n), shares.get_mut(n)) else {
                continue;
            };
            let given = need.size.saturating_sub(*share).min(each).min(left);
            *share += given;
            left -= given;
        }
    }
}

/// Max-min fair: the level is raised until the budget is used up; whoever wants less than it has what
/// he wants.
fn fair(budget: usize, needs: &[Need], wanted: &[usize]) -> Vec<usize> {
    let mut shares = vec![0; wanted.len()];
    let mut left = budget;
    loop {
        let mut hungry: Vec<usize> = (0..wanted.len())
            .filter(|n| shares.get(*n) < wanted.get(*n))
            .collect();
        if hungry.len() > budget {
            // Not everybody can have one: whoever has waited longest comes first.
            hungry.sort_by_key(|n| Reverse(needs.get(*n).map(|need| need.waited)));
        }
        if hungry.is_empty() || left == 0 {
            return shares;
        }
        let each = (left / hungry.len()).max(1);
        for n in hungry {
            let (Some(wanted), Some(share)) = (wanted.get(n), shares.get_mut(n)) else {
                continue;
            };
            let given = wanted.saturating_sub(*share).min(each).min(left);
            *share += given;
            left -= given;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn need(size: usize, busy: usize, idle: usize, waiting: usize) -> Need {
        Need {
            size,
            busy,
            idle,
            waiting,
            ..Need::default()
        }
    }

    #[test]
    fn with_room_for_all_everybody_has_his_size() {
        let needs = [need(50, 0, 0, 0), need(50, 50, 0, 9), need(50, 3, 4, 0)];
        assert_eq!(allot(150, &needs), [50, 50, 50]);
    }

    #[test]
    fn what_others_leave_is_lent() {
        let needs = [
            need(50, 50, 0, 10),
            need(50, 0, 0, 0),
            need(50, 0, 0, 0),
            need(50, 1, 0, 0),
        ];
        assert_eq!(allot(60, &needs)[0], 50);
    }

    #[test]
    fn the_coldest_idle_connections_give_way() {
        let cold = Need {
            coldest: Duration::from_secs(9),
            ..need(10, 0, 5, 0)
        };
        let warm = Need {
            coldest: Duration::from_secs(1),
            ..need(10, 0, 5, 0)
        };
        assert_eq!(allot(10, &[cold, warm, need(10, 0, 0, 3)]), [2, 5, 3]);
    }

    #[test]
    fn a_short_budget_is_divided_fairly_and_nobody_has_none() {
        assert_eq!(
            allot(
                10,
                &[need(50, 0, 0, 50), need(50, 0, 0, 2), need(50, 0, 0, 50)]
            ),
            [4, 2, 4]
        );
        assert_eq!(
            allot(3, &[need(9, 9, 0, 9), need(9, 0, 0, 1), need(9, 0, 0, 1)]),
            [1, 1, 1]
        );
        assert_eq!(allot(2, &[need(9, 0, 0, 1); 4]).iter().sum::<usize>(), 2);
    }

    #[test]
    fn one_that_is_between_two_requests_keeps_its_share() {
        let resting = Need {
            recent: 2,
            ..need(10, 3, 2, 0)
        };
        assert_eq!(allot(10, &[resting, need(10, 5, 0, 9)]), [5, 5]);
    }

    #[test]
    fn of_more_than_the_budget_has_slots_for_the_longest_waiting_come_first() {
        let waited = |seconds| Need {
            waited: Duration::from_secs(seconds),
            ..need(9, 0, 0, 1)
        };
        assert_eq!(
            allot(2, &[waited(1), waited(7), waited(0), waited(5)]),
            [0, 1, 0, 1]
        );
    }

    #[test]
    fn what_drains_counts_and_gets_nothing() {
        assert_eq!(allot(10, &[need(0, 4, 0, 0), need(10, 0, 0, 10)]), [0, 6]);
    }

    fn any_need() -> impl Strategy<Value = Need> {
        (0_usize..20, 0_usize..20, 0_usize..10, 0_usize..30, 0_u64..9).prop_map(
            |(size, busy, idle, waiting, coldest)| Need {
                coldest: Duration::from_secs(coldest),
                ..need(size, busy, idle.min(size.saturating_sub(busy)), waiting)
            },
        )
    }

    proptest! {
        #[test]
        fn shares_fit_and_are_fair(
            budget in 0_usize..100,
            needs in proptest::collection::vec(any_need(), 0..12),
        ) {
            let shares = allot(budget, &needs);
            prop_assert!(shares.iter().sum::<usize>() <= budget);
            let hungry = |n: usize| shares[n] < needs[n].wanted();
            for (n, need) in needs.iter().enumerate() {
                prop_assert!(shares[n] <= need.size);
                if !hungry(n) {
                    continue;
                }
                for (m, share) in shares.iter().enumerate() {
                    // Whoever goes short is at most one behind anybody.
                    prop_assert!(*share <= shares[n] + 1, "{n} has {}, {m} has {share}", shares[n]);
                }
            }
            let anyone_hungry = (0..needs.len()).any(hungry);
            if anyone_hungry {
                let free = budget.saturating_sub(needs.iter().map(Need::above).sum());
                prop_assert_eq!(shares.iter().sum::<usize>(), free, "nothing is left while somebody wants");
            }
        }
    }
}
