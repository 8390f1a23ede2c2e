//! The pure division of a fleet-wide limit over workers: no clock, no worker, no wire.
//!
//! - Nobody gets less than his floor, as far as the limit reaches, nor more than he can use.
//! - While all that is wanted fits, everybody gets it, and what is left is spread evenly, so that a burst finds room
//!   where it comes.
//! - When it does not fit, it is divided max-min fair by weight: nobody who wants more has less, for his weight, than
//!   another who has more than his floor.
//! - Who has what he needs and half of the room that is due to him is content; while all are, nothing moves. So pools do
//!   not flap, and a division that was made is made again from what it made.

/// What one worker wants and has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Claim {
    /// Requests in flight and in line.
    pub(crate) demand: u32,
    /// What it counts for, relative to the others; at least 1.
    pub(crate) weight: u32,
    /// What it gets in any case.
    pub(crate) floor: u32,
    /// What it has.
    pub(crate) held: u32,
    /// What it can use at most.
    pub(crate) most: u32,
}

impl Claim {
    fn least(&self) -> u32 {
        self.floor.min(self.most)
    }

    fn need(&self) -> u32 {
        self.demand.clamp(self.least(), self.most)
    }

    fn weight(&self) -> u64 {
        u64::from(self.weight.max(1))
    }
}

/// How finely levels are told apart: a weight of 1 moves with each so many, one of 100 with each.
const STEPS: u64 = 100;

/// How much each is to have, in the order given. The sum never exceeds the limit.
pub(crate) fn allot(limit: u32, claims: &[Claim]) -> Vec<u32> {
    let ideal = ideal(limit, claims);
    let held = || claims.iter().map(|claim| u64::from(claim.held));
    let fits = held().sum::<u64>() <= u64::from(limit);
    let content = claims.iter().zip(&ideal).all(|(claim, ideal)| {
        let room = ideal.saturating_sub(claim.need());
        let enough = claim.need().min(*ideal) + room / 2;
        claim.held >= enough && claim.held >= claim.least().min(*ideal) && claim.held <= claim.most
    });
    // What lies about, because somebody went, is worth a move.
    let dealt = held().sum::<u64>() * 8 >= ideal.iter().copied().map(u64::from).sum::<u64>() * 7;
    match fits && content && dealt {
        true => claims.iter().map(|claim| claim.held).collect(),
        false => ideal,
    }
}

/// The same, whatever they have; of equals, who has more keeps what cannot be divided.
fn ideal(limit: u32, claims: &[Claim]) -> Vec<u32> {
    let needs: Vec<u32> = claims.iter().map(Claim::need).collect();
    let needed: u64 = needs.iter().copied().map(u64::from).sum();
    if needed <= u64::from(limit) {
        let most: Vec<u32> = claims.iter().map(|claim| claim.most).collect();
        let base = |n: usize| needs.get(n).copied().unwrap_or(0);
        return fill(limit, claims, &needs, &most, |n, level| {
            u64::from(base(n)).saturating_add(level)
        });
    }
    let floors: Vec<u32> = claims.iter().map(Claim::least).collect();
    let floored: u64 = floors.iter().copied().map(u64::from).sum();
    let floors = match floored <= u64::from(limit) {
        true => floors,
        // Not even the floors fit.
        false => vec![0; claims.len()],
    };
    fill(limit, claims, &floors, &needs, |_, level| level)
}

/// Grows what each has from `lower` to `upper` at most, the least first, by as much as is free.
pub(crate) fn grow(free: u32, claims: &[Claim], lower: &[u32], upper: &[u32]) -> Vec<u32> {
    let has: u64 = lower.iter().copied().map(u64::from).sum();
    let limit = u32::try_from(has.saturating_add(u64::from(free))).unwrap_or(u32::MAX);
    fill(limit, claims, lower, upper, |_, level| level)
}

/// Raises the level until the limit is used up. `share` says what somebody has at a level, by weight already.
fn fill(
    limit: u32,
    claims: &[Claim],
    lower: &[u32],
    upper: &[u32],
    share: impl Fn(usize, u64) -> u64,
) -> Vec<u32> {
    let at = |level: u64| -> Vec<u32> {
        let bounds = lower.iter().zip(upper);
        let each = claims.iter().zip(bounds).enumerate();
        let each = each.map(|(n, (claim, (lower, upper)))| {
            let level = level.saturating_mul(claim.weight()) / STEPS;
            let share = u32::try_from(share(n, level)).unwrap_or(u32::MAX);
            share.clamp(*lower, (*upper).max(*lower))
        });
        each.collect()
    };
    let sum = |shares: &[u32]| shares.iter().copied().map(u64::from).sum::<u64>();
    let limit = u64::from(limit);
    // The greatest level at which it fits; at the first it does, if the lower bounds do.
    let (mut fits, mut too_high) = (0, (limit + 1) * STEPS + 1);
    while too_high - fits > 1 {
        let middle = fits.midpoint(too_high);
        match sum(&at(middle)) <= limit {
            true => fits = middle,
            false => too_high = middle,
        }
    }
    let mut shares = at(fits);
    let left = limit.saturating_sub(sum(&shares));
    hand_out(left, claims, upper, &at(too_high), &mut shares);
    shares
}

/// What cannot be divided: one for each of those that would get one next, who has it already first.
fn hand_out(left: u64, claims: &[Claim], upper: &[u32], next: &[u32], shares: &mut [u32]) {
    let mut order: Vec<usize> = (0..shares.len())
        .filter(|n| shares.get(*n) < upper.get(*n) && shares.get(*n) < next.get(*n))
        .collect();
    order.sort_by_key(|n| {
        let (share, claim) = (shares.get(*n), claims.get(*n));
        let has = claim
            .zip(share)
            .is_some_and(|(claim, share)| claim.held > *share);
        (!has, *n)
    });
    let left = usize::try_from(left).unwrap_or(usize::MAX);
    for n in order.into_iter().take(left) {
        if let Some(share) = shares.get_mut(n) {
            *share += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claim(demand: u32, held: u32) -> Claim {
        Claim {
            demand,
            weight: 1,
            floor: 1,
            held,
            most: 1_000,
        }
    }

    #[test]
    fn equals_get_the_same_and_what_is_over_stays_where_it_is() {
        assert_eq!(allot(192, &[claim(500, 0); 8]), [24; 8]);
        assert_eq!(allot(10, &[claim(9, 0); 3]), [4, 3, 3]);
        let kept = allot(10, &[claim(9, 3), claim(9, 3), claim(9, 4)]);
        assert_eq!(kept, [3, 3, 4]);
    }

    #[test]
    fn who_wants_little_gets_it_and_the_others_share_the_rest() {
        assert_eq!(
            allot(100, &[claim(5, 0), claim(500, 0), claim(500, 0)]),
            [5, 48, 47]
        );
        assert_eq!(allot(100, &[claim(0, 0), claim(500, 100)]), [1, 99]);
    }

    #[test]
    fn room_is_spread_and_small_changes_move_nothing() {
        let idle = allot(192, &[claim(10, 0), claim(50, 0), claim(0, 0)]);
        assert_eq!(idle.iter().sum::<u32>(), 192);
        assert_eq!(idle, [54, 94, 44]);
        // A burst that fits is no reason to move.
        assert_eq!(
            allot(192, &[claim(25, 54), claim(60, 94), claim(9, 44)]),
            idle
        );
        // One that has less than half of the room that is due is.
        let moved = allot(192, &[claim(50, 54), claim(60, 94), claim(0, 44)]);
        assert!(moved[0] > 60, "{moved:?}");
    }

    #[test]
    fn weights_count_where_there_is_not_enough() {
        let heavy = Claim {
            weight: 3,
            ..claim(500, 0)
        };
        assert_eq!(allot(100, &[claim(500, 0), heavy]), [25, 75]);
    }

    #[test]
    fn floors_hold_as_far_as_the_limit_reaches() {
        let sure = |floor| Claim {
            floor,
            ..claim(0, 0)
        };
        assert_eq!(allot(10, &[sure(4), sure(1), claim(500, 10)]), [4, 1, 5]);
        assert_eq!(allot(2, &[sure(2), sure(2)]), [1, 1]);
        assert_eq!(allot(0, &[claim(9, 3)]), [0]);
        assert!(allot(7, &[]).is_empty());
    }

    #[test]
    fn growth_goes_to_who_has_least() {
        let claims = [claim(9, 0); 3];
        assert_eq!(grow(4, &claims, &[5, 0, 1], &[9, 9, 9]), [5, 3, 2]);
        assert_eq!(grow(0, &claims, &[5, 0, 1], &[9, 9, 9]), [5, 0, 1]);
        assert_eq!(grow(50, &claims, &[5, 0, 1], &[9, 2, 9]), [9, 2, 9]);
    }

    fn any_claim() -> impl Strategy<Value = Claim> {
        (0_u32..300, 1_u32..5, 0_u32..4, 0_u32..60, 1_u32..200).prop_map(
            |(demand, weight, floor, held, most)| Claim {
                demand,
                weight,
                floor,
                held,
                most,
            },
        )
    }

    proptest! {
        #[test]
        fn shares_fit_and_are_fair(
            limit in 0_u32..400,
            claims in proptest::collection::vec(any_claim(), 0..14),
        ) {
            let shares = allot(limit, &claims);
            prop_assert!(shares.iter().sum::<u32>() <= limit);
            let floors: u32 = claims.iter().map(Claim::least).sum();
            for (claim, share) in claims.iter().zip(&shares) {
                prop_assert!(*share <= claim.most);
                prop_assert!(floors > limit || *share >= claim.least());
            }
            let hungry = |n: usize| shares[n] < claims[n].need();
            for n in (0..claims.len()).filter(|n| hungry(*n)) {
                prop_assert_eq!(shares.iter().sum::<u32>(), limit, "somebody wants, and something is left");
                for other in 0..claims.len() {
                    // One more for the hungry one must not leave the other with as much for his weight.
                    let base = if floors <= limit { claims[other].least() } else { 0 };
                    let less = u64::from(shares[other].saturating_sub(1)) * claims[n].weight();
                    let more = u64::from(shares[n] + 1) * claims[other].weight();
                    prop_assert!(shares[other] <= base || less <= more, "{:?} {:?}", claims, shares);
                }
            }
        }

        #[test]
        fn what_was_divided_stays_divided(
            limit in 0_u32..400,
            claims in proptest::collection::vec(any_claim(), 0..14),
        ) {
            let shares = allot(limit, &claims);
            let again: Vec<Claim> = claims
                .iter()
                .zip(&shares)
                .map(|(claim, share)| Claim { held: *share, ..*claim })
                .collect();
            prop_assert_eq!(allot(limit, &again), shares);
        }

        #[test]
        fn who_wants_more_gets_no_less(
            limit in 0_u32..400,
            claims in proptest::collection::vec(any_claim(), 1..10),
            more in 1_u32..100,
        ) {
            let mut greedy = claims.clone();
            greedy[0].demand += more;
            prop_assert!(ideal(limit, &greedy)[0] >= ideal(limit, &claims)[0]);
        }

        #[test]
        fn a_greater_limit_gives_nobody_less(
            limit in 0_u32..400,
            claims in proptest::collection::vec(any_claim(), 1..10),
        ) {
            let claims: Vec<Claim> = claims.iter().map(|c| Claim { held: 0, floor: 0, ..*c }).collect();
            let (less, more) = (ideal(limit, &claims), ideal(limit + 1, &claims));
            // But for what cannot be divided.
            prop_assert!(less.iter().zip(&more).all(|(less, more)| less <= &(more + 1)));
        }

        #[test]
        fn growth_fits_and_stays_between(
            free in 0_u32..100,
            each in proptest::collection::vec((0_u32..50, 0_u32..50, 1_u32..5), 0..12),
        ) {
            let claims: Vec<Claim> = each.iter().map(|(_, _, weight)| Claim { weight: *weight, ..claim(0, 0) }).collect();
            let lower: Vec<u32> = each.iter().map(|(lower, ..)| *lower).collect();
            let upper: Vec<u32> = each.iter().map(|(lower, more, _)| lower + more).collect();
            let grown = grow(free, &claims, &lower, &upper);
            let sum = |shares: &[u32]| shares.iter().sum::<u32>();
            prop_assert!(sum(&grown) <= sum(&lower) + free);
            prop_assert_eq!(sum(&grown), (sum(&lower) + free).min(sum(&upper)));
            for n in 0..grown.len() {
                prop_assert!((lower[n]..=upper[n]).contains(&grown[n]));
            }
        }
    }
}
