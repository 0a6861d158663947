//! The resource usage of a process, as the kernel accounts for it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};

/// A running process.
#[derive(Clone, Copy)]
pub(crate) struct Usage {
    pid: u32,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> Usage {
        Usage { pid }
    }

    /// CPU time of all its threads, in user and kernel mode. Exact, unlike `stat`, which counts in
    /// ticks of 10 ms. Ended threads are missing, but neither server ends any while it serves.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let mut sum_ns = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.pid))? {
            let file = task?.path().join("schedstat");
            // The thread has ended meanwhile.
            let Ok(text) = fs::read_to_string(&file) else {
                continue;
            };
            let on_cpu = text.split_whitespace().next();
            let on_cpu: u64 = on_cpu.context("an empty schedstat")?.parse()?;
            sum_ns += on_cpu;
        }
        Ok(Duration::from_nanos(sum_ns))
    }

    /// Memory in use, in MB (10^6 bytes).
    pub(crate) fn rss_mb(&self) -> Result<f64> {
        self.memory_mb("VmRSS:")
    }

    /// The maximum memory in use.
    pub(crate) fn rss_max_mb(&self) -> Result<f64> {
        self.memory_mb("VmHWM:")
    }

    /// Resets [`rss_max_mb`](Usage::rss_max_mb).
    pub(crate) fn forget_rss_max(&self) -> Result<()> {
        let file = format!("/proc/{}/clear_refs", self.pid);
        fs::write(&file, "5").with_context(|| file)
    }

    fn memory_mb(&self, field: &str) -> Result<f64> {
        let file = Path::new("/proc").join(self.pid.to_string()).join("status");
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|rest| rest.split_whitespace().next());
        let kib: f64 = kib.with_context(|| format!("no {field}"))?.parse()?;
        Ok(kib * 1024.0 / 1e6)
    }
}

/// CPU time of the calling thread so far.
pub(crate) fn thread_cpu() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}
