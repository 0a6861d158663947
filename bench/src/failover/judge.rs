//! The effect of a fault on the requests. Pure.

use std::time::{Duration, Instant};

use e2e::stage::load::Sample;

/// A request that hangs and is answered from elsewhere later was not served by the right zone.
const PROMPT: Duration = Duration::from_millis(200);
/// Requests sent while a fault or an operator's command takes effect are not stray.
const ACTS_WITHIN: Duration = Duration::from_millis(100);
/// How long everything must be normal for a switch to be complete.
const WINDOW: Duration = Duration::from_secs(1);

/// Whether a zone may answer the requests of a gateway, after the fault.
pub(crate) type Belongs = fn(gateway: u8, zone: u8) -> bool;

/// The times of a fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) fault: Instant,
    /// The repair begins.
    pub(crate) mended: Instant,
    /// Everything is normal again.
    pub(crate) over: Instant,
}

/// The outcome of the requests that a fault may have affected.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) reads: usize,
    /// Failed reads that were under way at the fault or started later, until the repair.
    pub(crate) failed_reads: usize,
    /// Failed reads that were started during the repair and later, until everything was normal.
    pub(crate) failed_back: usize,
    /// From the fault until everything was normal.
    pub(crate) failed_writes: usize,
    /// From the fault until 99 % of the reads are answered promptly and by the right zone; none if
    /// they never were.
    pub(crate) switch: Option<Duration>,
    /// Requests that were answered by a wrong zone, although started after the switch and before
    /// the repair.
    pub(crate) stray: usize,
    /// From a change made during the fault until its effect; none without a change.
    pub(crate) change: Option<Duration>,
    pub(crate) slowest_read: Duration,
}

/// Judges all requests that ended after the fault. `samples` must contain all that were started
/// before `times.over`: requests still under way would count as never sent.
pub(crate) fn judge(samples: &[Sample], times: Times, belongs: Belongs) -> Verdict {
    let mut touched: Vec<&Sample> = samples
        .iter()
        .filter(|sample| sample.end() >= times.fault && sample.start < times.over)
        .collect();
    touched.sort_by_key(|sample| sample.start);
    let (reads, writes): (Vec<&Sample>, Vec<&Sample>) =
        touched.iter().copied().partition(|sample| sample.read);
    let good = |sample: &Sample| {
        !sample.failed()
            && sample.latency <= PROMPT
            && sample
                .zone
                .is_some_and(|zone| belongs(sample.gateway, zone))
    };
    let switch = switched(&reads, times, good);
    let settled = switch.map(|switch| times.fault + switch.max(ACTS_WITHIN));
    let stray = |sample: &&&Sample| {
        settled.is_some_and(|settled| settled < sample.start && sample.start < times.mended)
            && sample
                .zone
                .is_some_and(|zone| !belongs(sample.gateway, zone))
    };
    let failed = reads.iter().filter(|sample| sample.failed());
    let (during, back): (Vec<&&Sample>, Vec<&&Sample>) =
        failed.partition(|sample| sample.start < times.mended);
    Verdict {
        reads: reads.len(),
        failed_reads: during.len(),
        failed_back: back.len(),
        failed_writes: writes.iter().filter(|sample| sample.failed()).count(),
        switch,
        stray: touched.iter().filter(stray).count(),
        change: None,
        slowest_read: reads.iter().map(|s| s.latency).max().unwrap_or_default(),
    }
}

/// The earliest time from which the reads of a whole window are good, except one in a hundred. The
/// window must end before the repair: reads that are good because the fault is gone have not
/// switched.
fn switched(reads: &[&Sample], times: Times, good: impl Fn(&Sample) -> bool) -> Option<Duration> {
    let first = reads.partition_point(|sample| sample.start < times.fault);
    let reads = reads.get(first..)?;
    let mut begin = times.fault;
    for at in 0..=reads.len() {
        if begin + WINDOW > times.mended {
            return None;
        }
        let rest = reads.get(at..).unwrap_or_default();
        let window = rest
            .iter()
            .take_while(|sample| sample.start < begin + WINDOW);
        let (mut all, mut well) = (0_usize, 0_usize);
        for sample in window {
            all += 1;
            well += usize::from(good(sample));
        }
        if all > 0 && well * 100 >= all * 99 {
            return Some(begin - times.fault);
        }
        begin = reads.get(at)?.start + Duration::from_micros(1);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUND_MS: u64 = 2_000;

    /// A read every 10 ms, from 100 ms before the fault on; `what` returns for each, by its time
    /// from the fault, the latency in ms, the status and the zone.
    fn at(what: impl Fn(i64) -> (u64, u16, u8)) -> Verdict {
        at_until(ROUND_MS, what)
    }

    /// The same, repaired at a time.
    fn at_until(mended_ms: u64, what: impl Fn(i64) -> (u64, u16, u8)) -> Verdict {
        let begin = Instant::now();
        let fault = begin + Duration::from_millis(100);
        let sample = |n: u64| {
            let (latency_ms, status, zone) = what(n as i64 * 10 - 100);
            Sample {
                gateway: 0,
                read: true,
                cell: None,
                start: begin + Duration::from_millis(n * 10),
                latency: Duration::from_millis(latency_ms),
                status,
                zone: (status == 200).then_some(zone),
            }
        };
        let samples: Vec<Sample> = (0..210).map(sample).collect();
        let times = Times {
            fault,
            mended: fault + Duration::from_millis(mended_ms),
            over: fault + Duration::from_millis(ROUND_MS),
        };
        judge(&samples, times, |_, zone| zone != 0)
    }

    fn ms(verdict: &Verdict) -> Option<u128> {
        verdict.switch.map(|switch| switch.as_millis())
    }

    #[test]
    fn a_switch_is_over_when_everything_is_well_for_a_while() {
        let none = at(|_| (1, 200, 1));
        assert_eq!((ms(&none), none.failed_reads), (Some(0), 0));
        // A window is a hundred reads here, so the last bad one is the one in a hundred.
        let slow = at(|ms| (if ms < 300 { 400 } else { 1 }, 200, 1));
        assert_eq!(ms(&slow), Some(280));
        let failing = at(|ms| (1, if (0..50).contains(&ms) { 503 } else { 200 }, 1));
        assert_eq!((ms(&failing), failing.failed_reads), (Some(30), 5));
        let late = at(|ms| (1, 200, u8::from(ms >= 500 && ms != 1_990)));
        assert_eq!((ms(&late), late.stray), (Some(480), 2));
    }

    #[test]
    fn what_was_under_way_at_the_fault_counts() {
        let cut = at(|ms| if ms < 0 { (150, 503, 0) } else { (1, 200, 1) });
        // All ten before the fault end after it.
        assert_eq!((ms(&cut), cut.failed_reads), (Some(0), 10));
        let long_ago = at(|ms| if ms < 0 { (1, 503, 0) } else { (1, 200, 1) });
        assert_eq!(long_ago.failed_reads, 0);
    }

    #[test]
    fn what_never_switched_has_no_time_even_if_its_end_is_well() {
        assert_eq!(ms(&at(|_| (1, 200, 0))), None);
        assert_eq!(ms(&at(|ms| (1, 200, u8::from(ms >= 1_200)))), None);
        // Normal, but only because of the repair.
        let mended = at_until(900, |ms| (1, 200, u8::from(ms >= 900)));
        assert_eq!(ms(&mended), None);
    }

    #[test]
    fn failures_on_the_way_back_are_told_apart() {
        let back = at_until(1_500, |ms| (1, if ms == 1_600 { 503 } else { 200 }, 1));
        assert_eq!((back.failed_reads, back.failed_back), (0, 1));
        // In the right zone again, so it is not stray.
        let home = at_until(1_500, |ms| (1, 200, u8::from(ms < 1_500)));
        assert_eq!((ms(&home), home.stray), (Some(0), 0));
    }
}
