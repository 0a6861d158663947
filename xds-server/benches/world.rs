//! The cost of a change before anything is sent, in worlds of a thousand to a hundred thousand
//! instances.
//!
//! `cargo bench -p tidegate-xds-server --bench world`. Times are CPU time of the one thread that
//! does all the work: the median, and the 90th percentile, of changes to different services.
//!
//! * `world`: `World::apply` and `World::snapshot`.
//! * `feed`: the same change from the store's watch to the published snapshot, including the
//!   reader, the engine and all notifications. It excludes the file of the last good state, which
//!   another thread writes.
//!
//! The memory of a first snapshot is the growth of the process. In the rows of one host it means
//! nothing, since these worlds reuse memory that the allocator kept from earlier ones.

use std::{hint::black_box, sync::Arc};

use nix::time::{ClockId, clock_gettime};
use registry::{
    record::INSTANCES_PREFIX,
    store::{Entry, Revision},
};
use xds_server::{
    config::Config,
    world::{Change, Origin, World},
};

#[path = "world/feed.rs"]
mod feed;

/// Each has five instances: two in each zone of one region, one in the other.
const SERVICES: [usize; 3] = [200, 2_000, 20_000];
const PLACES: [(&str, usize); 3] = [("sh-a", 2), ("sh-b", 2), ("bj-a", 1)];
/// The most measured changes of each kind, and the time after which no further one begins.
const ROUNDS: usize = 100;
const PATIENCE_US: f64 = 5e6;

fn main() {
    println!("{}", Row::HEAD);
    for hosts in [Hosts::OfEach, Hosts::OfAll] {
        for services in SERVICES {
            println!("{}", measure(services, hosts).line());
        }
    }
}

/// The property that distinguishes the services' requests.
#[derive(Clone, Copy)]
enum Hosts {
    /// Each service has its own host.
    OfEach,
    /// All services share one host, and each has its own path.
    OfAll,
}

impl Hosts {
    fn route(self, service: &str) -> String {
        match self {
            Hosts::OfEach => format!("{{host: {service}.mesh, prefix: /}}"),
            Hosts::OfAll => format!("{{prefix: /{service}}}"),
        }
    }
}

/// CPU time in microseconds.
#[derive(Clone, Copy, Default)]
struct Spread {
    median: f64,
    p90: f64,
}

impl Spread {
    fn of(mut samples: Vec<f64>) -> Spread {
        samples.sort_by(f64::total_cmp);
        Spread {
            median: samples[samples.len() / 2],
            p90: samples[samples.len() * 9 / 10],
        }
    }
}

struct Row {
    instances: usize,
    hosts: usize,
    parse_s: f64,
    first_s: f64,
    first_mb: f64,
    change: Spread,
    plan: Spread,
    feed_change: Spread,
    feed_plan: Spread,
}

impl Row {
    const HEAD: &'static str = "\
                          file    first snapshot   one instance, us       one plan, us           from the watch: instance, plan, us
  instances  hosts         s        s     MiB      median      p90      median      p90      median      p90      median      p90";

    fn line(&self) -> String {
        let spread = |s: Spread| format!("{:8.0} {:8.0}", s.median, s.p90);
        format!(
            "{:11} {:6} {:9.2} {:8.2} {:7.0}    {}   {}   {}   {}",
            self.instances,
            self.hosts,
            self.parse_s,
            self.first_s,
            self.first_mb,
            spread(self.change),
            spread(self.plan),
            spread(self.feed_change),
            spread(self.feed_plan),
        )
    }
}

fn measure(services: usize, hosts: Hosts) -> Row {
    let before_mb = resident_mb();
    let text = config(services, hosts);
    let begin = cpu_us();
    let mesh = Arc::new(
        Config::parse("mesh.yaml", &text)
            .expect("a configuration")
            .mesh,
    );
    let parse_s = (cpu_us() - begin) / 1e6;
    drop(text);
    let entries = entries(services);
    let mut world = World::new(Arc::clone(&mesh));
    let listed = Change::Listed {
        entries: entries.clone(),
        revision: Revision(1),
        origin: Origin::Store,
    };
    let begin = cpu_us();
    world.apply(listed, 0);
    let first = world.snapshot(0).expect("a first snapshot");
    let first_s = (cpu_us() - begin) / 1e6;
    let first_mb = resident_mb() - before_mb;
    let mut last = first;
    let (change, plan) = changes(services, |at, value| {
        let begin = cpu_us();
        world.apply(Change::Put(entry(at, value, 2)), 1);
        let next = world.snapshot(1).expect("a snapshot");
        let cost = cpu_us() - begin;
        // Streams drop the previous snapshot when they have the next one.
        drop(std::mem::replace(&mut last, black_box(next)));
        cost
    });
    drop((world, last));
    let (feed_change, feed_plan) = feed::measure(services, mesh, entries);
    Row {
        instances: services * PLACES.iter().map(|(_, count)| count).sum::<usize>(),
        hosts: match hosts {
            Hosts::OfEach => services,
            Hosts::OfAll => 1,
        },
        parse_s,
        first_s,
        first_mb,
        change,
        plan,
        feed_change,
        feed_plan,
    }
}

/// Changes an address in services spread over the world, and then removes the only instance of a
/// zone in others.
fn changes(services: usize, mut cost: impl FnMut(&str, &str) -> f64) -> (Spread, Spread) {
    let mut rounds = |instance: &str, number: usize, health: &str| {
        let begin = cpu_us();
        let in_time = |_: &usize| cpu_us() - begin < PATIENCE_US;
        let costs = (0..ROUNDS).take_while(in_time).map(|round| {
            let service = round * services / ROUNDS;
            let at = format!("{}/{instance}", name(service));
            cost(&at, &record(service, number, health))
        });
        Spread::of(costs.collect())
    };
    let moved = rounds("sh-a/1", 9, "healthy");
    let out = rounds("bj-a/4", 4, "unhealthy");
    (moved, out)
}

fn name(service: usize) -> String {
    format!("s{service:05}")
}

fn config(services: usize, hosts: Hosts) -> String {
    let zones = "zones: [{name: sh-a, region: shanghai}, {name: sh-b, region: shanghai}, {name: bj-a, region: beijing}]";
    let mut text = format!(
        "store: {{embedded: {{path: t.redb}}}}\nfilter: {{path: f.wasm}}\n{zones}\nservices:\n"
    );
    for service in 0..services {
        let name = name(service);
        let route = hosts.route(&name);
        text.push_str(&format!(
            "- {{name: {name}, routes: [{route}], weights: {{zone: 80, region: 20}}}}\n"
        ));
    }
    text
}

fn entries(services: usize) -> Vec<Entry> {
    let instances = (0..services).flat_map(|service| {
        let zones = PLACES.iter();
        let zones = zones.flat_map(|(zone, count)| std::iter::repeat_n(zone, *count));
        zones.enumerate().map(move |(at, zone)| {
            let key = format!("{}/{zone}/{at}", name(service));
            entry(&key, &record(service, at, "healthy"), 1)
        })
    });
    instances.collect()
}

fn record(service: usize, at: usize, health: &str) -> String {
    let (high, low) = (service / 250, service % 250);
    format!(
        r#"{{"address":"10.{high}.{low}.{at}","port":8080,"health":"{health}","load1_per_core":0.1}}"#
    )
}

fn entry(at: &str, value: &str, revision: i64) -> Entry {
    Entry {
        key: format!("{INSTANCES_PREFIX}{at}"),
        value: value.to_owned().into(),
        create_revision: Revision(1),
        mod_revision: Revision(revision),
        lease: None,
    }
}

fn cpu_us() -> f64 {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock of this thread");
    time.tv_sec() as f64 * 1e6 + time.tv_nsec() as f64 / 1e3
}

fn resident_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kb = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kb: f64 = kb.and_then(|kb| kb.parse().ok()).expect("VmRSS in kB");
    kb / 1024.0
}
