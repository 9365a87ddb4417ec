//! Counting a probe's results.

use jiff::Timestamp;

use super::desired::{ProbeKind, ProbeSpec};

/// Results of one probe of one running container.
#[derive(Clone, Debug, Default)]
pub struct ProbeState {
    /// A try is under way.
    pub busy: bool,
    /// Passing (`Some(true)`), failing, or not decided yet.
    pub result: Option<bool>,
    tried: Option<Timestamp>,
    last: bool,
    run: u32,
}

impl ProbeState {
    /// When the next try is due for a container that runs since `since`.
    pub fn due(&self, spec: &ProbeSpec, since: Timestamp) -> Timestamp {
        let due = match self.tried {
            Some(tried) => tried.checked_add(spec.period),
            None => since.checked_add(spec.initial_delay),
        };
        due.unwrap_or(Timestamp::MAX)
    }

    /// Notes that a try begins.
    pub fn begin(&mut self, now: Timestamp) {
        self.busy = true;
        self.tried = Some(now);
    }

    /// Folds a result in: thresholds count results in a row.
    pub fn finish(&mut self, spec: &ProbeSpec, passed: bool) {
        self.busy = false;
        self.run = if self.run > 0 && self.last == passed { self.run.saturating_add(1) } else { 1 };
        self.last = passed;
        let needed = if passed { spec.successes } else { spec.failures };
        if self.run >= needed {
            self.result = Some(passed);
        }
    }

    /// Result while undecided: a container lives until shown otherwise, and is not ready until shown so.
    pub fn passes(&self, kind: ProbeKind) -> bool {
        self.result.unwrap_or(kind == ProbeKind::Liveness)
    }
}
