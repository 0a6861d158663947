//! etcd, with its command line: the tests run against the real one.

use std::path::Path;
use std::{env, fs};

use anyhow::{Context, Result, bail};

use super::apt::Suite;
use super::{Site, announce};
use crate::run::says;
use crate::tree::{in_path, put};

/// Some Ubuntu suites have only 3.4; older ones differ in leases and watches.
const OLDEST: (u32, u32) = (3, 4);

const PACKAGES: [&str; 2] = ["etcd-server", "etcd-client"];

/// The server stands last: where it is, all are.
const PROGRAMS: [&str; 3] = ["etcdutl", "etcdctl", "etcd"];

pub(super) fn ensure(site: &Site<'_>) -> Result<()> {
    // The tests take this one instead.
    if env::var_os("TIDEGATE_ETCD").is_some() {
        return Ok(());
    }
    if version(&site.tree.tool("etcd")).is_some_and(|it| it >= OLDEST) {
        return Ok(());
    }
    let Err(error) = from_packages(site, Suite::Pinned) else {
        return Ok(());
    };
    announce(&format!("no etcd from Debian's archive: {error:#}"));
    if let Some(found) = in_path("etcd").filter(|etcd| version(etcd).is_some_and(|it| it >= (3, 5)))
    {
        announce(&format!("using {}", found.display()));
        return link_installed(site);
    }
    announce("trying this system's own suite, which may have an older one");
    from_packages(site, Suite::Own).with_context(|| {
        let place = site.tree.tools().join("bin");
        format!(
            "cannot get etcd: put etcd, etcdctl and etcdutl 3.5 into $PATH, or into {}",
            place.display()
        )
    })
}

fn link_installed(site: &Site<'_>) -> Result<()> {
    for name in PROGRAMS {
        if let Some(program) = in_path(name) {
            site.tree.link(&format!("bin/{name}"), &program)?;
        }
    }
    Ok(())
}

fn from_packages(site: &Site<'_>, suite: Suite) -> Result<()> {
    let pins = [suite.to_string(), PACKAGES.join(" ")];
    let is_good = |home: &Path| version(&home.join("etcd")).is_some_and(|it| it >= OLDEST);
    let home = site.provide("etcd", &pins, is_good, |fresh| {
        let programs = site.packages(suite, &PACKAGES)?.join("usr/bin");
        match version(&programs.join("etcd")) {
            Some(it) if it >= OLDEST => {}
            Some((major, minor)) => bail!("the suite's etcd is {major}.{minor}, too old"),
            None => bail!("the suite's etcd does not run here"),
        }
        for name in PROGRAMS {
            let program = programs.join(name);
            if fs::exists(&program)? {
                put(&program, &fresh.join(name))?;
            }
        }
        Ok(())
    })?;
    for name in PROGRAMS {
        let program = home.join(name);
        if fs::exists(&program)? {
            site.tree.link(&format!("bin/{name}"), &program)?;
        }
    }
    Ok(())
}

/// Major and minor, out of `etcd Version: 3.5.16`.
fn version(etcd: &Path) -> Option<(u32, u32)> {
    parse_version(&says(etcd, &["--version"])?)
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text
        .lines()
        .find_map(|line| line.strip_prefix("etcd Version: "))?
        .split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::parse_version;

    #[test]
    fn the_version_is_read_from_what_etcd_prints() {
        assert_eq!(
            parse_version("etcd Version: 3.5.16\nGit SHA: abc\n"),
            Some((3, 5))
        );
        assert_eq!(parse_version("usage: etcd"), None);
    }
}
