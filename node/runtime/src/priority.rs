//! How the kernel schedules threads: those whose work may take long and that nobody waits for, and those whose work
//! is short and due.
//!
//! Since Linux 6.12 a thread has a slice of its own, and one whose slice is shorter than that of the running one
//! runs as soon as it wakes; otherwise it may wait for the kernel's next tick, up to four milliseconds. A slice
//! does not change how much of the processor a thread gets. Older kernels ignore it. Processes that these threads
//! start have the kernel's defaults.

use std::{io, time::Duration};

use nix::{sys::time::TimeSpec, time::ClockId};

/// Nice value of threads with long work: a tenth of the weight of the others.
pub const NICE: i32 = 10;

/// Slice of threads with long work; the kernel's default is about three milliseconds.
const LONG: Duration = Duration::from_millis(20);

/// The kernel's shortest slice.
const SHORT: Duration = Duration::from_micros(100);

/// Puts the calling thread behind the others of this process, for good.
pub fn step_back() {
    if let Err(error) = schedule(NICE, LONG) {
        tracing::warn!(%error, "long work has the priority of short");
    }
}

/// Lets the calling thread run as soon as it wakes.
pub fn step_forward() {
    if let Err(error) = schedule(i32::MIN, SHORT) {
        tracing::warn!(%error, "work that is due may be late");
    }
}

/// `nice`: at least.
#[allow(unsafe_code)]
fn schedule(nice: i32, slice: Duration) -> io::Result<()> {
    let number = |size| u32::try_from(size).map_err(io::Error::other);
    // SAFETY: a structure of numbers; zero is what Linux takes for "not given".
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    attributes.size = number(size_of_val(&attributes))?;
    attributes.sched_policy = libc::SCHED_OTHER.cast_unsigned();
    attributes.sched_flags = libc::SCHED_FLAG_RESET_ON_FORK.cast_unsigned().into();
    // SAFETY: reads the priority of the calling thread (so Linux reads 0). Minus one is a value, too.
    attributes.sched_nice = nice.max(unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) });
    attributes.sched_runtime = slice.subsec_nanos().into();
    // SAFETY: changes how the calling thread is scheduled; reads the structure only.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Processor time that the calling thread used so far. Asking takes the kernel half a microsecond.
pub fn used() -> Duration {
    let time = ClockId::CLOCK_THREAD_CPUTIME_ID.now();
    time.map(TimeSpec::into).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nice value and slice of the calling thread.
    #[allow(unsafe_code)]
    fn schedule() -> (i32, Duration) {
        // SAFETY: a structure of numbers, of the size that is said; the kernel fills it in.
        let attributes = unsafe {
            let mut attributes: libc::sched_attr = std::mem::zeroed();
            let size = size_of_val(&attributes);
            assert_eq!(libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0), 0);
            attributes
        };
        (attributes.sched_nice, Duration::from_nanos(attributes.sched_runtime))
    }

    #[test]
    fn threads_step_back_and_forward() {
        let before = schedule();
        let after = |step: fn()| std::thread::spawn(move || (step(), schedule()).1).join().unwrap();
        let (back, forward) = (after(step_back), after(step_forward));
        assert_eq!((back.0, forward.0), (NICE.max(before.0), before.0));
        // Zero where the kernel knows no slices.
        assert!([LONG, Duration::ZERO].contains(&back.1), "{back:?}");
        assert!([SHORT, Duration::ZERO].contains(&forward.1), "{forward:?}");
        assert_eq!(schedule(), before, "others stay as they were");
    }

    #[test]
    fn what_a_thread_starts_is_scheduled_as_usual() {
        let child = || {
            step_forward();
            std::thread::spawn(schedule).join().unwrap()
        };
        assert_eq!(std::thread::spawn(child).join().unwrap(), schedule());
    }

    #[test]
    fn waiting_is_not_using() {
        let (start, before) = (std::time::Instant::now(), used());
        while used() < before + Duration::from_millis(1) {}
        assert!(start.elapsed() >= Duration::from_micros(900));
        let before = used();
        std::thread::sleep(Duration::from_millis(20));
        assert!(used() - before < Duration::from_millis(20));
    }
}
