//! A small network of namespaces: one for each zone, joined by a bridge in a hub. Needs root and
//! `ip`.
//!
//! A namespace here has no name and no file: a process that only sleeps keeps it alive, and
//! everything that runs in it. When this program ends, in any way, the kernel kills those
//! processes. With the last of them the namespace and its links disappear.

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};

use crate::process::Process;
use crate::wait::{PATIENCE, eventually};

/// A locally administered unicast address that no interface here has.
const NOBODY: &str = "02:00:00:00:00:01";

/// A network namespace, alive as long as this value.
pub struct Namespace {
    keeper: Process,
}

impl Namespace {
    /// A new namespace without links; `name` is only for the log's file.
    pub async fn new(directory: &Path, name: &str) -> Result<Namespace> {
        let arguments = ["--net", "--", "sleep", "86400"].map(str::to_owned);
        let keeper = Process::start(directory, name, Path::new("unshare"), &arguments)?;
        let namespace = Namespace { keeper };
        let own = fs::read_link("/proc/self/ns/net")?;
        let made = eventually(PATIENCE, "a network namespace", async || {
            let its = fs::read_link(namespace.path()).context("not yet")?;
            ensure!(its != own, "unshare has not run yet: are we root?");
            Ok(())
        });
        namespace.keeper.unless_it_ends(made).await?;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.keeper.pid()))
    }

    /// Moves the calling thread into it permanently.
    pub fn enter(&self) -> Result<()> {
        let file = File::open(self.path())?;
        setns(file, CloneFlags::CLONE_NEWNET).context("entering a network namespace")
    }

    /// Starts a program in it; signals reach the program itself.
    pub fn start(
        &self,
        directory: &Path,
        name: &str,
        program: &Path,
        arguments: &[String],
    ) -> Result<Process> {
        let inside = [
            format!("--net={}", self.path().display()),
            "--".to_owned(),
            program.display().to_string(),
        ];
        let arguments: Vec<String> = inside
            .into_iter()
            .chain(arguments.iter().cloned())
            .collect();
        Process::start(directory, name, Path::new("nsenter"), &arguments)
    }

    /// Runs a program in it to the end, and returns its output.
    pub fn run(&self, program: &Path, arguments: &[&str]) -> Result<String> {
        let output = Command::new("nsenter")
            .arg(format!("--net={}", self.path().display()))
            .arg("--")
            .arg(program)
            .args(arguments)
            .output()
            .context("nsenter")?;
        if !output.status.success() {
            bail!(
                "{} {}: {}",
                program.display(),
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `ip` in it, with arguments without spaces.
    fn ip(&self, arguments: &str) -> Result<()> {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        self.run(Path::new("ip"), &arguments).map(drop)
    }
}

/// The network namespace that a thread was in.
pub(crate) struct Current {
    /// The kernel's name of it.
    name: PathBuf,
    file: File,
}

impl Current {
    const PATH: &str = "/proc/thread-self/ns/net";

    pub(crate) fn of_this_thread() -> io::Result<Current> {
        Ok(Current {
            name: fs::read_link(Current::PATH)?,
            file: File::open(Current::PATH)?,
        })
    }

    /// Moves the calling thread into it. Without a move nobody needs root.
    pub(crate) fn enter(self) -> io::Result<()> {
        if fs::read_link(Current::PATH)? == self.name {
            return Ok(());
        }
        Ok(setns(self.file, CloneFlags::CLONE_NEWNET)?)
    }
}

/// A hub, and the zones around it.
pub struct Network {
    hub: Namespace,
    zones: Vec<Namespace>,
}

impl Network {
    /// A network of this many zones, with all links up.
    pub async fn new(directory: &Path, zones: u8) -> Result<Network> {
        let needed = Command::new("ip").arg("-V").output();
        ensure!(
            needed.is_ok_and(|output| output.status.success()),
            "there is no `ip`: install iproute2"
        );
        ensure!(
            nix::unistd::geteuid().is_root(),
            "network namespaces need root"
        );
        let hub = Namespace::new(directory, "netns-hub").await?;
        hub.ip("link add br0 type bridge")?;
        hub.ip("link set br0 up")?;
        hub.ip(&format!("addr add {}/24 dev br0", Network::hub_address()))?;
        let mut network = Network { hub, zones: vec![] };
        for zone in 0..zones {
            let namespace = Namespace::new(directory, &format!("netns-{zone}")).await?;
            let pid = namespace.keeper.pid();
            let veth = format!("link add v{zone} type veth peer name eth0 netns {pid}");
            network.hub.ip(&veth)?;
            network.hub.ip(&format!("link set v{zone} master br0 up"))?;
            let address = Network::address(zone);
            namespace.ip(&format!("addr add {address}/24 dev eth0"))?;
            namespace.ip("link set eth0 up")?;
            network.zones.push(namespace);
        }
        Ok(network)
    }

    /// The source address of programs in the hub.
    pub fn hub_address() -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, 1)
    }

    /// The address of a zone. All ports are free there.
    pub fn address(zone: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, 10 + zone)
    }

    pub fn hub(&self) -> &Namespace {
        &self.hub
    }

    pub fn zone(&self, zone: u8) -> Result<&Namespace> {
        self.zones.get(usize::from(zone)).context("no such zone")
    }

    /// Cuts a zone off from everything, or reconnects it.
    pub fn link(&self, zone: u8, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        self.hub.ip(&format!("link set v{zone} {state}"))
    }

    /// Drops all packets of a zone to another, or ends that; the other's packets arrive. Neither
    /// side gets an error: the frames go to an address that no interface has.
    pub fn lose(&self, from: u8, to: u8, lost: bool) -> Result<()> {
        let peer = Network::address(to);
        let neighbour = match lost {
            true => format!("neigh replace {peer} lladdr {NOBODY} dev eth0 nud permanent"),
            false => format!("neigh del {peer} dev eth0"),
        };
        self.zone(from)?.ip(&neighbour)
    }
}
