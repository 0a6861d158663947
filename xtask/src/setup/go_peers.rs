//! Real systems that Tidegate is tested with and measured beside, built with Go. Each is a module
//! in `e2e/peers` that pins it and its dependencies.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use super::{Site, Wanted, announce};
use crate::run::quiet;
use crate::tree::Tree;

/// A module, and the results of its build.
struct GoPeer {
    /// Of its folders: the one in `e2e/peers` with go.mod and go.sum, and the one in
    /// `target/tools`.
    name: &'static str,
    /// The programs that the `tool` lines of go.mod name.
    programs: &'static [&'static str],
    /// For the linker, beside those that leave out what only debuggers read.
    ldflags: &'static str,
    /// Files of modules that the tests need, as module and path. They lie beside the programs.
    files: &'static [(&'static str, &'static str)],
    /// From nothing, on two cores.
    build_time: &'static str,
    wanted_by: &'static [Wanted],
}

const ISTIO: &str = "istio.io/istio";

/// One is built after the other, and its caches are gone before the next begins: each takes two
/// cores and some gigabytes.
static ALL: [GoPeer; 6] = [
    GoPeer {
        name: "h2spec",
        programs: &["h2spec"],
        ldflags: "",
        files: &[],
        build_time: "a minute",
        wanted_by: &[Wanted::Peers],
    },
    GoPeer {
        name: "kubernetes",
        programs: &["kube-apiserver", "kube-controller-manager"],
        // Without a version its own clients cannot parse it.
        ldflags: "-X k8s.io/component-base/version.gitVersion=v1.37.2 \
                  -X k8s.io/component-base/version.gitMajor=1 \
                  -X k8s.io/component-base/version.gitMinor=37",
        files: &[],
        build_time: "8 minutes",
        wanted_by: &[Wanted::Istio, Wanted::Peers],
    },
    GoPeer {
        name: "istio",
        programs: &["pilot-agent", "pilot-discovery"],
        ldflags: "-X istio.io/istio/pkg/version.buildVersion=1.32-dev",
        files: &[
            (ISTIO, "manifests/charts/base/files/crd-all.gen.yaml"),
            (ISTIO, "tools/packaging/common/envoy_bootstrap.json"),
        ],
        build_time: "5 minutes",
        wanted_by: &[Wanted::Istio],
    },
    GoPeer {
        name: "helm",
        programs: &["helm"],
        ldflags: "",
        files: &[],
        build_time: "2 minutes",
        wanted_by: &[Wanted::Istio],
    },
    GoPeer {
        name: "kustomize",
        programs: &["kustomize"],
        ldflags: "",
        files: &[],
        build_time: "a minute",
        wanted_by: &[Wanted::Istio],
    },
    GoPeer {
        name: "envoy-gateway",
        programs: &["envoy-gateway"],
        ldflags: "",
        files: &[],
        build_time: "4 minutes",
        wanted_by: &[Wanted::Peers],
    },
];

/// Builds the missing ones of those that are wanted.
pub(super) fn ensure(site: &Site<'_>, wanted: Wanted) -> Result<()> {
    let peers = ALL.iter().filter(|peer| peer.wanted_by.contains(&wanted));
    for peer in peers {
        peer.ensure(site)
            .with_context(|| format!("cannot build {}", peer.name))?;
    }
    Ok(())
}

impl GoPeer {
    fn module(&self, tree: &Tree) -> PathBuf {
        tree.root().join("e2e/peers").join(self.name)
    }

    /// Everything that the result depends on, but for Go itself.
    fn pins(&self, tree: &Tree) -> Result<Vec<String>> {
        let mut pins = vec![self.ldflags.to_owned()];
        for file in ["go.mod", "go.sum"] {
            let path = self.module(tree).join(file);
            let text = fs::read_to_string(&path);
            pins.push(text.with_context(|| path.display().to_string())?);
        }
        let files = self.files.iter().map(|(_, path)| (*path).to_owned());
        pins.extend(files);
        Ok(pins)
    }

    fn is_whole(&self, home: &Path) -> bool {
        let mut files = self.files.iter().map(|(_, path)| file_name(path));
        let mut programs = self.programs.iter().copied();
        programs.all(|it| home.join(it).exists()) && files.all(|it| home.join(it).exists())
    }

    fn ensure(&self, site: &Site<'_>) -> Result<()> {
        let pins = self.pins(site.tree)?;
        let is_whole = |home: &Path| self.is_whole(home);
        let home = site.provide(self.name, &pins, is_whole, |fresh| self.build(site, fresh))?;
        site.tree.link(self.name, &home)
    }

    fn build(&self, site: &Site<'_>, fresh: &Path) -> Result<()> {
        let found = site.go()?;
        announce(&format!(
            "building {}, which takes {} on two cores",
            self.name, self.build_time
        ));
        let start = Instant::now();
        let caches = site.scratch()?.inner("go")?;
        let directories = [
            ("GOMODCACHE", caches.dir("modules")?),
            ("GOCACHE", caches.dir("cache")?),
            ("GOTMPDIR", caches.dir("tmp")?),
        ];
        let go = || -> Result<Command> {
            let go = found.command()?;
            let mut command = Command::new("nice");
            command.arg(go.get_program());
            let own = go.get_envs().filter_map(|(key, value)| Some((key, value?)));
            command
                .envs(own)
                .envs(directories.iter().map(|(key, path)| (key, path)))
                .env("GOTOOLCHAIN", "local")
                .env("GOWORK", "off")
                .env("CGO_ENABLED", "0")
                // The module cache is read-only by default, and could not be removed with the
                // scratch directory.
                .env("GOFLAGS", "-mod=readonly -modcacherw")
                .current_dir(self.module(site.tree));
            Ok(command)
        };
        // The slash at the end makes it a folder, also for a single program.
        let output = format!("{}/", fresh.display());
        let ldflags = format!("-s -w {}", self.ldflags);
        quiet(go()?.args([
            "build",
            "-trimpath",
            "-ldflags",
            &ldflags,
            "-o",
            &output,
            "tool",
        ]))?;
        for (module, path) in self.files {
            let dir = quiet(go()?.args(["list", "-m", "-f", "{{.Dir}}", module]))?;
            let source = Path::new(dir.trim()).join(path);
            fs::copy(&source, fresh.join(file_name(path)))
                .with_context(|| format!("cannot copy {}", source.display()))?;
        }
        announce(&format!(
            "built {} in {} s",
            self.name,
            start.elapsed().as_secs()
        ));
        Ok(())
    }
}

/// Of a path with slashes.
fn file_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_that_of_the_modules() {
        let tree = Tree::of_this_checkout();
        let folders = fs::read_dir(tree.root().join("e2e/peers")).unwrap();
        let mut folders: Vec<String> = folders
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        folders.sort();
        let mut names = ALL.each_ref().map(|peer| peer.name);
        names.sort_unstable();
        assert_eq!(folders, names);
        for peer in &ALL {
            let text = fs::read_to_string(peer.module(&tree).join("go.mod")).unwrap();
            for program in peer.programs {
                let line = format!("/{program}\n");
                assert!(text.contains(&line), "{}: no tool {program}", peer.name);
            }
        }
    }

    #[test]
    fn the_version_in_the_program_is_that_of_the_module() {
        let tree = Tree::of_this_checkout();
        let peer = ALL.iter().find(|peer| peer.name == "kubernetes").unwrap();
        let text = fs::read_to_string(peer.module(&tree).join("go.mod")).unwrap();
        let version = text.split("k8s.io/kubernetes v").nth(1).unwrap();
        let version = version.split_whitespace().next().unwrap();
        let flag = format!("gitVersion=v{version} ");
        assert!(peer.ldflags.contains(&flag), "{version}: {}", peer.ldflags);
    }
}
