//! Threads whose work may take long and that nobody waits for.

/// Nice value of such a thread: a tenth of the weight of the others, and preempted as soon as one of those wakes.
pub const NICE: i32 = 10;

/// Puts the calling thread behind the others of this process, for good.
#[allow(unsafe_code)]
pub fn step_back() {
    // SAFETY: changes the priority of the calling thread (so Linux reads 0) and touches no memory.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    if result != 0 {
        tracing::warn!(error = %std::io::Error::last_os_error(), "long work has the priority of short");
    }
}
