//! What the machine can do at best, for measurements that say how near to it something is.

use crate::simd::{Kernel, Simd, dispatch, level};

/// Independent chains: more than the latency times the throughput of the multiply-add units.
const CHAINS: usize = 12;

/// Does `rounds` rounds of multiply-adds that touch nothing but registers, on this thread; gives how many
/// multiply-adds of single numbers that were.
pub fn multiply_adds(rounds: usize) -> u64 {
    let (sum, lanes) = dispatch(level(), Spin { rounds });
    // The sum is far from infinite: it is looked at so that the work is done.
    if sum.is_nan() { 0 } else { (rounds * CHAINS * lanes) as u64 }
}

struct Spin {
    rounds: usize,
}

impl Kernel for Spin {
    type Output = (f32, usize);
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, usize) {
        let (a, b) = (s.splat(std::hint::black_box(0.5)), s.splat(std::hint::black_box(0.25)));
        let mut acc = [s.splat(0.0); CHAINS];
        for _ in 0..self.rounds {
            for acc in &mut acc {
                *acc = s.fma(*acc, a, b);
            }
        }
        let sum = acc.into_iter().fold(s.splat(0.0), |sum, acc| s.add(sum, acc));
        let mut lanes = [0.0; crate::simd::MAX_LANES];
        s.store(sum, &mut lanes);
        (lanes[0], S::LANES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_it_does() {
        assert_eq!(multiply_adds(0), 0);
        let lanes = multiply_adds(1) / CHAINS as u64;
        assert!(lanes == 8 || lanes == 16);
        assert_eq!(multiply_adds(1000), 1000 * multiply_adds(1));
    }
}
