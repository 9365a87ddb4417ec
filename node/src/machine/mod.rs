//! What a pod worker does next, as a synchronous function over values.
//!
//! [`next`] looks at what is wanted ([`Desired`]) and what is ([`Observed`]) and names one [`Step`]. The
//! worker marks the step as begun ([`Observed::begin`]), carries it out, and folds what came of it back in
//! ([`Observed::finish`]). No IO, no clock, no tokio here: a whole pod's life is a table test.

mod backoff;
mod desired;
mod observed;
mod plan;
mod probe;
mod status;
#[cfg(test)]
mod tests;

pub use backoff::Backoff;
pub use desired::{Desired, ProbeKind, ProbeSpec, RestartPolicy, Role, Unit};
pub use observed::{Exit, Failure, Observed, Outcome, Phase, Stage, Step, UnitState};
pub use plan::next;
pub use probe::ProbeState;
pub use status::{Host, carry, container_id, crash_looping, pod_title, qos_class, render};
