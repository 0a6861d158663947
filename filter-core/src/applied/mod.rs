//! Reports to the control plane of the policies that workers have applied.
//!
//! An acknowledgement of xDS says that the proxy has accepted a resource; only the filter knows the
//! policy of each worker. Each worker enters its version in a table that they share ([`table`]),
//! and one of them, the first in it, sends the whole: when it has changed, and from time to time,
//! so that a control plane that was restarted learns it.
//!
//! All of it happens on ticks, so it costs no request anything, and the copy of the filter in which
//! the proxy tries a configuration out, which never lives to see a tick, tells nothing but a
//! refusal. Whatever fails is tried again later.

mod table;

use protos::{
    InvalidPolicy, PluginConfig,
    status::{self, AppliedReport, REASON_BYTES_MAX},
};

use self::table::{Row, Table};
use crate::{
    apply::HostFailed,
    fence::process::{self, Process},
    stream::ContextId,
};

/// How often a worker is woken for this alone.
pub const TICK_MS: u32 = 250;
/// How often a worker looks at the table: changes within are reported together.
const LOOK_MS: u32 = 1_000;
/// The wait after a report that failed.
const RETRY_MS: u32 = 5_000;
/// A worker renews its row this often.
const BEAT_US: u64 = 10_000_000;
/// A worker that was silent for this long is gone.
const SILENT_US: u64 = 35_000_000;
/// An unchanged report is repeated after this long.
const AGAIN_US: u64 = 30_000_000;

/// The proxy as reports need it.
pub trait ReportHost: Process {
    /// Sends a report to a cluster of the proxy, on behalf of the current root context. Its outcome
    /// arrives later.
    fn report(&mut self, cluster: &str, report: &[u8]) -> Result<(), HostFailed>;
    /// The proxy's name.
    fn name(&mut self) -> String;
}

/// One worker's part. Lives as long as its memory, through all plugin configurations.
#[derive(Debug)]
pub struct Applied {
    me: u64,
    /// The root contexts in the order in which they were configured. The last one counts; the
    /// others are those of requests that still end on an older one.
    contexts: Vec<(ContextId, AppliedPolicy)>,
    /// Milliseconds to the next look at the table.
    look_in_ms: u32,
    sent: Option<(Vec<u8>, u64)>,
}

/// The policy that a root context applies, and the receiver of reports about it.
#[derive(Clone, Debug)]
struct AppliedPolicy {
    version: u64,
    generation: u64,
    since_us: u64,
    control_plane: String,
}

impl Applied {
    pub fn new(me: u64) -> Applied {
        Applied {
            me,
            contexts: Vec::new(),
            look_in_ms: 0,
            sent: None,
        }
    }

    /// A root context decides by `config` from now on. True if it is to be woken every now and
    /// then.
    pub fn configured(
        &mut self,
        context: ContextId,
        config: &PluginConfig,
        process: &mut impl Process,
    ) -> bool {
        self.removed(context);
        let current = AppliedPolicy {
            version: config.version,
            generation: config.generation,
            since_us: process.now().unwrap_or_default().monotonic_us,
            control_plane: config.control_plane.clone(),
        };
        let somebody_asks = !current.control_plane.is_empty();
        self.contexts.push((context, current));
        // With its next tick.
        self.look_in_ms = 0;
        somebody_asks
    }

    /// A root context is gone.
    pub fn removed(&mut self, context: ContextId) {
        self.contexts.retain(|(known, _)| *known != context);
    }

    /// `passed_ms` milliseconds have passed.
    pub fn tick(&mut self, context: ContextId, passed_ms: u32, host: &mut impl ReportHost) {
        let Some((latest, current)) = self.contexts.last() else {
            return;
        };
        if *latest != context || current.control_plane.is_empty() {
            return;
        }
        if self.look_in_ms > passed_ms {
            self.look_in_ms -= passed_ms;
            return;
        }
        self.look_in_ms = LOOK_MS;
        let current = current.clone();
        self.look(&current, host);
    }

    /// A report did not arrive, or was not taken.
    pub fn failed(&mut self) {
        self.sent = None;
        self.look_in_ms = RETRY_MS;
    }

    fn look(&mut self, current: &AppliedPolicy, host: &mut impl ReportHost) {
        let Some(now_us) = host.now().map(|at| at.monotonic_us) else {
            return;
        };
        let mine = Row {
            worker: self.me,
            version: current.version,
            generation: current.generation,
            since_us: current.since_us,
            beat_us: now_us,
        };
        let table = process::change(host, table::KEY, |bytes| {
            let mut table = bytes.and_then(Table::decode).unwrap_or_default();
            let changed = table.enter(mine, BEAT_US, SILENT_US);
            Some((changed.then(|| table.encode()), table))
        });
        let Some(table) = table.filter(|table| table.first() == Some(self.me)) else {
            self.sent = None;
            return;
        };
        let report = AppliedReport {
            node: host.name(),
            ..table.report()
        }
        .encode();
        let is_due = (self.sent.as_ref())
            .is_none_or(|(sent, at_us)| *sent != report || now_us.abs_diff(*at_us) >= AGAIN_US);
        // A report that cannot be sent now is due again at the next look.
        if is_due && host.report(&current.control_plane, &report).is_ok() {
            self.sent = Some((report, now_us));
        }
    }
}

/// Records for the others that a configuration was rejected.
pub fn refused(configuration: &[u8], error: &InvalidPolicy, process: &mut impl Process) {
    let Some(now_us) = process.now().map(|at| at.monotonic_us) else {
        return;
    };
    let (version, generation) = status::edition_of(configuration);
    let message = error.to_string();
    let refused = status::Refused {
        version,
        generation,
        message: status::cut(&message, REASON_BYTES_MAX).to_owned(),
    };
    // Where it fails the log still says it, and xDS that something was refused.
    let _ = process::change(process, table::KEY, |bytes| {
        let mut table = bytes.and_then(Table::decode).unwrap_or_default();
        table.refused = Some((now_us, refused.clone()));
        Some((Some(table.encode()), ()))
    });
}

#[cfg(test)]
mod tests;
