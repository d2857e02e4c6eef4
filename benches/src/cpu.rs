//! CPU time, which stays true on a busy machine where wall time does not.
#![allow(unsafe_code)]

use std::time::Duration;

fn clock(id: libc::clockid_t) -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec for the whole call, which writes nothing else.
    let result = unsafe { libc::clock_gettime(id, &raw mut now) };
    assert_eq!(result, 0, "the CPU clock {id} cannot be read");
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// CPU time of the calling thread since it started.
pub fn thread() -> Duration {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// CPU time of this process since it started, all threads.
pub fn process() -> Duration {
    clock(libc::CLOCK_PROCESS_CPUTIME_ID)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_cpu_time_and_sleeping_does_not() {
        let before = (thread(), process());
        let mut sum = 0u64;
        while thread().saturating_sub(before.0) < Duration::from_millis(5) {
            sum = std::hint::black_box(sum + 1);
        }
        let worked = (thread(), process());
        // The two clocks are read one behind the other, and something may come between.
        assert!(worked.1.saturating_sub(before.1) >= Duration::from_millis(4));
        std::thread::sleep(Duration::from_millis(20));
        assert!(thread().saturating_sub(worked.0) < Duration::from_millis(10));
    }
}
