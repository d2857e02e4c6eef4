//! How much of the memory is in use that this process may have: the machine's, and its control group's where
//! that has a limit.
//!
//! Page cache that the system can take back at once does not count as used.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::kafka::producer::NodeMemory;

/// How far below the watermark the use has to fall before the shortage is over, in hundredths: it does not go
/// to and fro.
const RELIEF: u8 = 2;

/// Use of memory in hundredths, the larger of the machine's and of any control group's that this process is
/// in. `None` where the system does not say (it is not Linux).
pub fn memory_use() -> Option<u8> {
    memory_use_under(Path::new("/"))
}

fn memory_use_under(root: &Path) -> Option<u8> {
    let machine = machine(&read(&root.join("proc/meminfo")));
    let groups = groups(root, &read(&root.join("proc/self/cgroup")));
    groups.into_iter().chain(machine).map(|(used, limit)| hundredths(used, limit)).max()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn hundredths(used: u64, limit: u64) -> u8 {
    u8::try_from(used.saturating_mul(100) / limit.max(1)).unwrap_or(100).min(100)
}

/// Used and total bytes of the machine.
fn machine(meminfo: &str) -> Option<(u64, u64)> {
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    let total = field("MemTotal")?;
    Some((total.saturating_sub(field("MemAvailable")?), total))
}

/// Used bytes and limit of the control groups with a limit, from the process's own one up.
fn groups(root: &Path, membership: &str) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    for line in membership.lines() {
        // Hierarchy, controllers, path; version 2 has no controllers.
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (mount, files) = if controllers.is_empty() {
            ("sys/fs/cgroup", ["memory.max", "memory.current", "inactive_file"])
        } else if controllers.split(',').any(|controller| controller == "memory") {
            let files = ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"];
            ("sys/fs/cgroup/memory", files)
        } else {
            continue;
        };
        let mount = root.join(mount);
        let mut folder: PathBuf = mount.join(path.trim_start_matches('/'));
        loop {
            found.extend(group(&folder, files));
            if folder == mount || !folder.pop() {
                break;
            }
        }
    }
    found
}

fn group(folder: &Path, [limit, usage, cache]: [&str; 3]) -> Option<(u64, u64)> {
    let number = |file: &str| read(&folder.join(file)).trim().parse::<u64>().ok();
    // "max" where there is none; version 1 has a number beyond any memory then.
    let limit = number(limit).filter(|limit| *limit < 1 << 60)?;
    let stat = read(&folder.join("memory.stat"));
    let cache = stat.lines().find_map(|line| line.strip_prefix(cache)?.trim().parse::<u64>().ok());
    Some((number(usage)?.saturating_sub(cache.unwrap_or(0)), limit))
}

/// Looks at the use of memory every `interval` until all others have let go of `memory`.
pub async fn watch(
    memory: Arc<NodeMemory>,
    watermark: u8,
    interval: Duration,
    mut look: impl FnMut() -> Option<u8> + Send,
) {
    let memory = {
        let weak = Arc::downgrade(&memory);
        drop(memory);
        weak
    };
    while let Some(memory) = memory.upgrade() {
        let Some(used) = look() else { return };
        let was = memory.is_short();
        let short = used >= if was { watermark.saturating_sub(RELIEF) } else { watermark };
        if short != was {
            if short {
                tracing::warn!(
                    used_percent = used,
                    watermark_percent = watermark,
                    "memory is short: producer bridges drop their oldest QoS 0 messages for new ones and keep publishers \
                     of QoS 1 and 2 waiting"
                );
            } else {
                tracing::info!(used_percent = used, "memory is no longer short");
            }
            memory.set_short(short);
        }
        drop(memory);
        tokio::time::sleep(interval).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (path, text) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn the_machine_and_every_group_above_count_and_the_tightest_decides() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        assert_eq!(memory_use_under(root), None);
        write(root, &[("proc/meminfo", "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:   750 kB\n")]);
        assert_eq!(memory_use_under(root), Some(25));
        // Version 2: the limit is the parent's, cache does not count.
        write(
            root,
            &[
                ("proc/self/cgroup", "0::/pod/node\n"),
                ("sys/fs/cgroup/pod/node/memory.max", "max\n"),
                ("sys/fs/cgroup/pod/node/memory.current", "1\n"),
                ("sys/fs/cgroup/pod/memory.max", "1000\n"),
                ("sys/fs/cgroup/pod/memory.current", "900\n"),
                ("sys/fs/cgroup/pod/memory.stat", "anon 7\ninactive_file 300\n"),
            ],
        );
        assert_eq!(memory_use_under(root), Some(60));
        // Version 1.
        write(
            root,
            &[
                ("proc/self/cgroup", "5:cpu,memory:/node\n3:pids:/x\n"),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ("sys/fs/cgroup/memory/memory.usage_in_bytes", "5\n"),
                ("sys/fs/cgroup/memory/node/memory.limit_in_bytes", "200\n"),
                ("sys/fs/cgroup/memory/node/memory.usage_in_bytes", "190\n"),
                ("sys/fs/cgroup/memory/node/memory.stat", "total_inactive_file 10\n"),
            ],
        );
        assert_eq!(memory_use_under(root), Some(90));
    }

    #[test]
    fn this_machine_says_something() {
        assert!(!cfg!(target_os = "linux") || memory_use().is_some());
    }

    #[tokio::test]
    async fn a_shortage_begins_at_the_watermark_and_ends_a_little_below() {
        let memory = NodeMemory::new(1);
        let readings = [69, 70, 69, 68, 67, 69, 80];
        let expected = [false, true, true, true, false, false, true];
        let (sender, receiver) = std::sync::mpsc::channel();
        let watched = memory.clone();
        let mut left = readings.into_iter();
        let mut first = true;
        let seen = watched.clone();
        let task = tokio::spawn(watch(watched, 70, Duration::from_millis(1), move || {
            // The consequences of the reading before.
            if !std::mem::take(&mut first) {
                sender.send(seen.is_short()).unwrap();
            }
            left.next()
        }));
        task.await.unwrap();
        assert_eq!(receiver.iter().collect::<Vec<_>>(), expected);
        drop(memory);
    }
}
