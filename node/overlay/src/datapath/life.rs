//! How long a connection may be used: as long as the certificates that both ends have shown. Pure.

use std::time::{Duration, Instant};

/// Between attempts to replace a connection whose certificates end.
const LEAST: Duration = Duration::from_secs(1);

/// Longest life that is counted; beyond it the clock's range might end.
const MOST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// The life of one connection.
///
/// Nodes have new certificates at two thirds of the life of the old ones. So another connection is tried when
/// half of the time is over, then when half of the rest is, and so on: the second one at the latest has the new
/// certificates. Either end tries, because the other one may not be able to dial.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    next: Instant,
    end: Instant,
}

// === impl Life ===

impl Life {
    /// `left`: time until the first of the certificates ends.
    pub(super) fn new(now: Instant, left: Duration) -> Self {
        let left = left.min(MOST);
        Self { next: now + (left / 2).max(LEAST), end: now + left }
    }

    /// Whether another connection is to be tried now; counts as an attempt.
    pub(super) fn renew(&mut self, now: Instant) -> bool {
        if now < self.next {
            return false;
        }
        self.next = now + (self.end.saturating_duration_since(now) / 2).max(LEAST);
        true
    }

    /// Whether a certificate has ended.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        now >= self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_come_closer_until_the_end() {
        let (start, mut attempts) = (Instant::now(), Vec::new());
        let at = |second| start + Duration::from_secs(second);
        let mut life = Life::new(start, Duration::from_secs(96));
        for second in 0..96 {
            assert!(!life.is_over(at(second)));
            if life.renew(at(second)) {
                attempts.push(second);
            }
        }
        assert_eq!(attempts, [48, 72, 84, 90, 93, 95]);
        assert!(life.is_over(at(96)));
        assert!(Life::new(start, Duration::ZERO).is_over(start));
        assert!(!Life::new(start, Duration::MAX).renew(at(1_000_000)));
    }
}
