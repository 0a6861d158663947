//! In place of kubelets: runs pods as the real controllers made them, each container a process in a
//! network namespace of its own, with the pod's arguments, mounts, user, probe and grace period.
//!
//! No images are there: the container's entry point is the control plane that was built. Network
//! policies and seccomp are not in force.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Volume};
use kube::Client as Kube;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::client::{Client, Request, Version};
use crate::netns::Network;
use crate::paths;
use crate::process::Process;
use crate::registry::success;

const NODE: &str = "node";

/// Gives the container its mounts, a root that it cannot write to, and its user.
const CONTAINER: &str = r#"
set -e
root=$1 user=$2; shift 2
mount --make-rprivate /
mkdir -p "$root/etc"
for it in hosts nsswitch.conf resolv.conf; do
  if [ -e "/etc/$it" ]; then cp -L "/etc/$it" "$root/etc/"; fi
done
mount --bind "$root/etc" /etc
mount -t tmpfs tmpfs /var/lib
while [ "$1" != -- ]; do
  mkdir -p "$2"
  mount --bind "$1" "$2"
  if [ "$3" = true ]; then mount -o remount,bind,ro "$2"; fi
  shift 3
done
shift
mount -o remount,bind,ro /etc
mount -o remount,bind,ro /
exec setpriv --reuid "$user" --regid "$user" --clear-groups --bounding-set -all --inh-caps -all \
  --no-new-privs --pdeathsig KILL -- "$@"
"#;

/// The kubelet of all pods with a label.
pub struct Kubelet {
    pods: Api<Pod>,
    config_maps: Api<ConfigMap>,
    selector: String,
    network: Arc<Network>,
    directory: PathBuf,
    /// The zones of the network that no pod is in.
    free: Vec<u8>,
    /// By uid.
    running: BTreeMap<String, Running>,
    client: Client,
}

struct Running {
    pod: Pod,
    zone: u8,
    process: Process,
    is_ready: bool,
    /// When it was asked to end.
    ends: Option<Instant>,
    config_maps: BTreeMap<String, String>,
}

impl Kubelet {
    /// For the pods of a namespace that match; they run in these zones of the network.
    pub async fn start(
        client: Kube,
        namespace: &str,
        selector: &str,
        network: &Arc<Network>,
        zones: impl Iterator<Item = u8>,
        directory: &Path,
    ) -> Result<Kubelet> {
        let nodes = Api::<k8s_openapi::api::core::v1::Node>::all(client.clone());
        let node = serde_json::from_value(json!({ "metadata": { "name": NODE } }))?;
        nodes.create(&PostParams::default(), &node).await?;
        let mut free: Vec<u8> = zones.collect();
        free.reverse();
        Ok(Kubelet {
            pods: Api::namespaced(client.clone(), namespace),
            config_maps: Api::namespaced(client, namespace),
            selector: selector.to_owned(),
            network: network.clone(),
            directory: directory.to_owned(),
            free,
            running: BTreeMap::new(),
            client: Client::new(Version::Http1),
        })
    }

    /// The pods that are ready, with the zones of the network that they run in.
    pub fn ready(&self) -> impl Iterator<Item = (&Pod, u8)> {
        let ready = self
            .running
            .values()
            .filter(|it| it.is_ready && it.ends.is_none());
        ready.map(|running| (&running.pod, running.zone))
    }

    pub fn logs(&self) -> String {
        let all = self.running.values();
        all.map(|running| running.process.tail()).collect()
    }

    /// Does what is due: starts pods, probes them, renews their files, ends them.
    pub async fn sync(&mut self) -> Result<()> {
        let selected = ListParams::default().labels(&self.selector);
        for pod in self.pods.list(&selected).await? {
            let uid = pod.metadata.uid.clone().context("a pod without a uid")?;
            let is_going = pod.metadata.deletion_timestamp.is_some();
            match self.running.contains_key(&uid) {
                true if is_going => self.end(&uid).await?,
                true => self.tend(&uid).await?,
                false if is_going => self.delete(&pod).await?,
                false => self.run(uid, pod).await?,
            }
        }
        Ok(())
    }

    async fn run(&mut self, uid: String, pod: Pod) -> Result<()> {
        let name = name(&pod)?.to_owned();
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": { "name": name },
            "target": { "apiVersion": "v1", "kind": "Node", "name": NODE },
        });
        let params = PostParams::default();
        let bound = self
            .pods
            .create_subresource::<Value, Value>("binding", &name, &params, &binding);
        bound.await.with_context(|| format!("cannot bind {name}"))?;
        let zone = self.free.pop().context("no zone is free for a pod")?;
        let root = self.directory.join(&name);
        let config_maps = self.mount(&root, &pod).await?;
        let arguments = arguments(&root, &pod)?;
        let process = self.network.zone(zone)?.start(
            &self.directory,
            &name,
            Path::new("unshare"),
            &arguments,
        )?;
        let running = Running {
            pod,
            zone,
            process,
            is_ready: false,
            ends: None,
            config_maps,
        };
        self.tell(&running).await?;
        self.running.insert(uid, running);
        Ok(())
    }

    /// Writes the pod's volumes; returns the versions of its config maps.
    async fn mount(&self, root: &Path, pod: &Pod) -> Result<BTreeMap<String, String>> {
        let mut versions = BTreeMap::new();
        for volume in volumes(pod) {
            let directory = volume_of(root, &volume.name);
            fs::create_dir_all(&directory)?;
            if let Some(source) = &volume.config_map {
                let version = self.write(&directory, &source.name).await?;
                versions.insert(volume.name.clone(), version);
            } else {
                ensure!(volume.empty_dir.is_some(), "no such volumes: {volume:?}");
                let group = security(pod)["fsGroup"].as_u64().context("no fsGroup")?;
                let group = u32::try_from(group)?;
                chown(&directory, Some(group), Some(group))?;
            }
        }
        Ok(versions)
    }

    /// Writes a config map as a kubelet does: all files change with one link.
    async fn write(&self, directory: &Path, name: &str) -> Result<String> {
        let map = self.config_maps.get(name).await?;
        let version = map.metadata.resource_version.context("no version")?;
        let files = format!("..{version}");
        let into = directory.join(&files);
        fs::create_dir_all(&into)?;
        for (file, text) in map.data.unwrap_or_default() {
            fs::write(into.join(&file), text)?;
            let link = directory.join(&file);
            if fs::symlink_metadata(&link).is_err() {
                symlink(Path::new("..data").join(&file), link)?;
            }
        }
        let fresh = directory.join("..data_tmp");
        symlink(&files, &fresh)?;
        fs::rename(fresh, directory.join("..data"))?;
        Ok(version)
    }

    /// Probes a pod, and renews its files.
    async fn tend(&mut self, uid: &str) -> Result<()> {
        let mut running = self.running.remove(uid).context("no such pod")?;
        if let Some(status) = running.process.exit_status()? {
            bail!(
                "{} ended with {status}\n{}",
                name(&running.pod)?,
                running.process.tail()
            );
        }
        let root = self.directory.join(name(&running.pod)?);
        for volume in volumes(&running.pod) {
            let Some(source) = &volume.config_map else {
                continue;
            };
            let map = self.config_maps.get(&source.name).await?;
            let version = map.metadata.resource_version.unwrap_or_default();
            if running.config_maps.get(&volume.name) != Some(&version) {
                let directory = volume_of(&root, &volume.name);
                let version = self.write(&directory, &source.name).await?;
                running.config_maps.insert(volume.name.clone(), version);
            }
        }
        let is_ready = self.probe(&running).await.is_ok();
        if is_ready != running.is_ready {
            running.is_ready = is_ready;
            self.tell(&running).await?;
        }
        self.running.insert(uid.to_owned(), running);
        Ok(())
    }

    /// The pod's readiness probe.
    async fn probe(&self, running: &Running) -> Result<()> {
        let container = container(&running.pod)?;
        let probe = container.readiness_probe.as_ref().context("no probe")?;
        let get = probe.http_get.as_ref().context("no HTTP probe")?;
        let port = match &get.port {
            k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(port) => *port,
            k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::String(name) => {
                let mut ports = container.ports.iter().flatten();
                let named = ports.find(|port| port.name.as_deref() == Some(name));
                named
                    .with_context(|| format!("no port {name}"))?
                    .container_port
            }
        };
        let to = (Network::address(running.zone), u16::try_from(port)?).into();
        let path = get.path.as_deref().unwrap_or("/");
        success(&self.client.send(to, &Request::get(path)).await?)
    }

    /// Tells the API server how a pod is.
    async fn tell(&self, running: &Running) -> Result<()> {
        let state = if running.is_ready { "True" } else { "False" };
        let condition = |kind: &str| json!({ "type": kind, "status": state });
        let container = container(&running.pod)?;
        let status = json!({ "status": {
            "phase": "Running",
            "podIP": Network::address(running.zone),
            "podIPs": [{ "ip": Network::address(running.zone) }],
            "conditions": [condition("Ready"), condition("ContainersReady")],
            "containerStatuses": [{
                "name": container.name, "image": container.image, "imageID": "",
                "ready": running.is_ready, "started": true, "restartCount": 0,
                "state": { "running": {} },
            }],
        } });
        let name = name(&running.pod)?;
        let params = PatchParams::default();
        self.pods
            .patch_status(name, &params, &Patch::Merge(&status))
            .await?;
        Ok(())
    }

    /// Asks a pod to end, and deletes it once it has, or its grace period is over.
    async fn end(&mut self, uid: &str) -> Result<()> {
        let running = self.running.get_mut(uid).context("no such pod")?;
        let Some(since) = running.ends else {
            running.ends = Some(Instant::now());
            return running.process.signal(Signal::SIGTERM);
        };
        let spec = running.pod.spec.as_ref().context("no spec")?;
        let grace = spec.termination_grace_period_seconds.unwrap_or(30);
        let has_ended = running.process.exit_status()?.is_some();
        if !has_ended {
            let is_over = since.elapsed() > Duration::from_secs(u64::try_from(grace)?);
            ensure!(
                !is_over,
                "it does not end in {grace} s\n{}",
                running.process.tail()
            );
            return Ok(());
        }
        let ended = self.running.remove(uid).context("no such pod")?;
        self.free.push(ended.zone);
        self.delete(&ended.pod).await
    }

    /// The pod has no process any more.
    async fn delete(&self, pod: &Pod) -> Result<()> {
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: pod.metadata.uid.clone(),
                ..Preconditions::default()
            }),
            ..DeleteParams::default()
        };
        match self.pods.delete(name(pod)?, &params).await {
            Ok(_) => Ok(()),
            // It is gone already.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn name(pod: &Pod) -> Result<&str> {
    pod.metadata.name.as_deref().context("a pod without a name")
}

fn container(pod: &Pod) -> Result<&Container> {
    let spec = pod.spec.as_ref().context("a pod without a spec")?;
    match spec.containers.as_slice() {
        [only] => Ok(only),
        some => bail!("{} containers", some.len()),
    }
}

fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    let spec = pod.spec.as_ref();
    spec.into_iter()
        .flat_map(|spec| spec.volumes.iter().flatten())
}

fn volume_of(root: &Path, name: &str) -> PathBuf {
    root.join("volumes").join(name)
}

/// The security context of the pod, as in its object.
fn security(pod: &Pod) -> Value {
    let spec = pod.spec.as_ref();
    let context = spec.and_then(|spec| spec.security_context.as_ref());
    context.map_or(Value::Null, |context| json!(context))
}

/// The arguments for `unshare` that run the container.
fn arguments(root: &Path, pod: &Pod) -> Result<Vec<String>> {
    let container = container(pod)?;
    ensure!(container.command.is_none(), "the image has an entry point");
    let confined = json!(container.security_context);
    ensure!(confined["readOnlyRootFilesystem"] == true, "{confined}");
    ensure!(
        confined["capabilities"]["drop"] == json!(["ALL"]),
        "{confined}"
    );
    let user = security(pod)["runAsUser"].as_u64().context("no user")?;
    let mut arguments: Vec<String> = ["--mount", "--", "sh", "-c", CONTAINER, "container"]
        .map(str::to_owned)
        .into();
    arguments.push(root.display().to_string());
    arguments.push(user.to_string());
    for mount in container.volume_mounts.iter().flatten() {
        let is_read_only = mount.read_only.unwrap_or_default();
        arguments.push(volume_of(root, &mount.name).display().to_string());
        arguments.push(mount.mount_path.clone());
        arguments.push(is_read_only.to_string());
    }
    arguments.extend(["--".to_owned(), "env".to_owned()]);
    for variable in container.env.iter().flatten() {
        let value = variable
            .value
            .as_deref()
            .context("a variable without a value")?;
        arguments.push(format!("{}={value}", variable.name));
    }
    arguments.push(paths::tidegate()?.display().to_string());
    arguments.extend(container.args.iter().flatten().cloned());
    Ok(arguments)
}

/// In place of a Service: relays each connection to one of the present addresses in turn.
pub struct Service {
    addresses: watch::Sender<Vec<SocketAddr>>,
    accepting: JoinHandle<()>,
}

impl Service {
    pub async fn start(listen: SocketAddr) -> Result<Service> {
        let listener = TcpListener::bind(listen).await?;
        let (addresses, present) = watch::channel(vec![]);
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            for turn in 0_usize.. {
                let Ok((near, _)) = listener.accept().await else {
                    return;
                };
                let present = present.borrow().clone();
                if let Some(to) = present.get(turn % present.len().max(1)).copied() {
                    connections.spawn(relay(near, to));
                }
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Service {
            addresses,
            accepting,
        })
    }

    /// Connections from now on go there.
    pub fn set(&self, addresses: Vec<SocketAddr>) {
        self.addresses.send_replace(addresses);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // The task owns all connections.
        self.accepting.abort();
    }
}

async fn relay(mut near: TcpStream, to: SocketAddr) {
    if let Ok(mut far) = TcpStream::connect(to).await {
        // Either side may end it.
        let _ = copy_bidirectional(&mut near, &mut far).await;
    }
}
