//! What a fault did to the requests. Pure.

use std::time::{Duration, Instant};

/// A request that hangs and is answered from elsewhere later has not been where it belongs.
const PROMPT: Duration = Duration::from_millis(200);
/// So long everything has to be well for a switch to be over.
const WINDOW: Duration = Duration::from_secs(1);

/// One request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// By whose gateway.
    pub(crate) gateway: u8,
    pub(crate) read: bool,
    pub(crate) start: Instant,
    pub(crate) latency: Duration,
    /// 0: no answer.
    pub(crate) status: u16,
    /// Who answered.
    pub(crate) zone: Option<u8>,
}

/// Whether a zone may answer the requests of a gateway, after the fault.
pub(crate) type Belongs = fn(gateway: u8, zone: u8) -> bool;

/// What became of the requests that were started after a fault.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) reads: usize,
    pub(crate) failed_reads: usize,
    pub(crate) failed_writes: usize,
    /// Until 99 % of the reads are answered promptly and by whom they should be; none if they never were.
    pub(crate) switch: Option<Duration>,
    /// Requests that were answered by a zone that should not, though started after the switch.
    pub(crate) stray: usize,
    pub(crate) slowest_read: Duration,
}

/// Judges what was started from `fault` on.
pub(crate) fn judge(samples: &[Sample], fault: Instant, belongs: Belongs) -> Verdict {
    let mut after: Vec<&Sample> = samples.iter().filter(|s| s.start >= fault).collect();
    after.sort_by_key(|sample| sample.start);
    let reads: Vec<&Sample> = after.iter().copied().filter(|sample| sample.read).collect();
    let fails = |sample: &&&Sample| sample.status != 200;
    let good = |sample: &Sample| {
        sample.status == 200
            && sample.latency <= PROMPT
            && sample
                .zone
                .is_some_and(|zone| belongs(sample.gateway, zone))
    };
    let switch = switched(&reads, fault, good);
    let settled = switch.map(|switch| fault + switch);
    let strays = |sample: &&&Sample| {
        settled.is_some_and(|settled| sample.start > settled)
            && sample
                .zone
                .is_some_and(|zone| !belongs(sample.gateway, zone))
    };
    Verdict {
        reads: reads.len(),
        failed_reads: reads.iter().filter(fails).count(),
        failed_writes: after.iter().filter(|s| !s.read).filter(fails).count(),
        switch,
        stray: after.iter().filter(strays).count(),
        slowest_read: reads.iter().map(|s| s.latency).max().unwrap_or_default(),
    }
}

/// The earliest time from which on the reads of a whole window are good, but for one in a hundred.
fn switched(reads: &[&Sample], fault: Instant, good: impl Fn(&Sample) -> bool) -> Option<Duration> {
    let mut begin = fault;
    for at in 0..=reads.len() {
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
            return Some(begin - fault);
        }
        begin = reads.get(at)?.start + Duration::from_micros(1);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A read every 10 ms for 2 s; `what` says of each the latency in ms, the status and the zone.
    fn samples(fault: Instant, what: impl Fn(u64) -> (u64, u16, u8)) -> Vec<Sample> {
        let sample = |n: u64| {
            let (latency_ms, status, zone) = what(n * 10);
            Sample {
                gateway: 0,
                read: true,
                start: fault + Duration::from_millis(n * 10),
                latency: Duration::from_millis(latency_ms),
                status,
                zone: (status == 200).then_some(zone),
            }
        };
        (0..200).map(sample).collect()
    }

    fn elsewhere(_: u8, zone: u8) -> bool {
        zone != 0
    }

    #[test]
    fn a_switch_is_over_when_everything_is_well_for_a_while() {
        let fault = Instant::now();
        let at = |what: fn(u64) -> (u64, u16, u8)| judge(&samples(fault, what), fault, elsewhere);
        let none = at(|_| (1, 200, 1));
        assert_eq!((none.switch, none.failed_reads), (Some(Duration::ZERO), 0));
        // A window is a hundred reads here, so the last bad one is the one in a hundred.
        let slow = at(|ms| (if ms < 300 { 400 } else { 1 }, 200, 1));
        assert_eq!(slow.switch.map(|s| s.as_millis()), Some(280));
        let failing = at(|ms| (1, if ms < 50 { 503 } else { 200 }, 1));
        assert_eq!(failing.failed_reads, 5);
        assert_eq!(failing.switch.map(|s| s.as_millis()), Some(30));
        let late = at(|ms| (1, 200, u8::from(ms >= 500 && ms != 1_990)));
        assert_eq!(late.switch.map(|s| s.as_millis()), Some(480));
        assert_eq!(late.stray, 2);
        assert_eq!(at(|_| (1, 200, 0)).switch, None);
    }
}
