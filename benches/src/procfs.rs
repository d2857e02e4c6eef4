//! CPU time and memory of a process, from `/proc`.

use anyhow::{Context, Result, anyhow};

/// Ticks per second of the times in `/proc/PID/stat`: part of Linux's interface to programs.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a process has used up to now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// User and system time of all its threads, those that ended too, in seconds.
    pub cpu_seconds: f64,
    /// Resident memory now, in bytes.
    pub resident: u64,
    /// Highest resident memory so far, in bytes.
    pub peak_resident: u64,
}

/// Usage of the process with this id.
pub fn usage(pid: u32) -> Result<Usage> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("no process with id {pid}"))?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    parse(&stat, &status).ok_or_else(|| anyhow!("cannot make sense of /proc/{pid}/stat and status"))
}

/// What these processes have used together; `None` if there are none. The highest resident memory is the sum
/// of each one's highest.
pub fn usage_of_all(pids: &[u32]) -> Result<Option<Usage>> {
    let mut all: Option<Usage> = None;
    for &pid in pids {
        let one = usage(pid)?;
        all = Some(all.map_or(one, |all| Usage {
            cpu_seconds: all.cpu_seconds + one.cpu_seconds,
            resident: all.resident + one.resident,
            peak_resident: all.peak_resident + one.peak_resident,
        }));
    }
    Ok(all)
}

fn parse(stat: &str, status: &str) -> Option<Usage> {
    // The second field is the name in parentheses, which may hold anything; the third comes after it.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    let kilobytes = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    Some(Usage {
        cpu_seconds: (user + system) / TICKS_PER_SECOND,
        resident: kilobytes("VmRSS:")? * 1024,
        peak_resident: kilobytes("VmHWM:")? * 1024,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_and_memory_are_found_behind_a_strange_name() {
        let stat = "7 (a b) c) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 1";
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(
            parse(stat, status),
            Some(Usage { cpu_seconds: 3.0, resident: 1 << 20, peak_resident: 2 << 20 })
        );
    }

    #[test]
    fn the_own_process_has_used_something() {
        assert!(usage(std::process::id()).unwrap().resident > 100_000);
        assert!(usage(u32::MAX).is_err());
    }

    #[test]
    fn several_processes_are_added_up() {
        let own = std::process::id();
        let (one, two) = (usage(own).unwrap(), usage_of_all(&[own, own]).unwrap().unwrap());
        assert!(two.resident > one.resident * 3 / 2);
        assert_eq!(usage_of_all(&[]).unwrap(), None);
        assert!(usage_of_all(&[own, u32::MAX]).is_err());
    }
}
