//! The routes that a guest treats by lists of its own while it has no policy, beside those of the
//! mesh.

use alloc::{borrow::ToOwned, format, vec::Vec};

use crate::{
    class::Class,
    service::{ClassRule, Route, RouteMatch},
};

/// The lists of a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lists {
    /// Writes of these routes pass.
    pub unfenced: Vec<Route>,
    /// These have a class of their own.
    pub classes: Vec<Route>,
}

/// A list that lets writes of a fenced service pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clash<'r> {
    /// The entry of the list.
    pub listed: &'r Route,
    /// The route of the fenced service.
    pub fenced: &'r Route,
}

impl Lists {
    pub fn is_empty(&self) -> bool {
        self.unfenced.is_empty() && self.classes.is_empty()
    }

    /// The first entry by which a guest without a policy would let writes of a fenced service pass.
    /// `all` has each route of the mesh, and whether its service is fenced.
    pub fn clash<'r>(&'r self, all: &'r [(Route, bool)]) -> Option<Clash<'r>> {
        self.clashes(all).next()
    }

    /// All these entries, each with every route of a fenced service that it opens.
    pub fn clashes<'r>(&'r self, all: &'r [(Route, bool)]) -> impl Iterator<Item = Clash<'r>> {
        let unfenced = self.unfenced.iter();
        let unfenced = unfenced.flat_map(|listed| clashes(listed, all, |_| false));
        let reads = self.classes.iter().filter(|listed| has_reads(listed));
        let reads = reads.flat_map(|listed| clashes(listed, all, |route| reads_all(route, listed)));
        unfenced.chain(reads)
    }
}

/// The routes of fenced services that share requests with the entry. Routes of free services do not
/// count, nor do those that read what the entry reads.
fn clashes<'r>(
    listed: &'r Route,
    all: &'r [(Route, bool)],
    reads: impl Fn(&Route) -> bool,
) -> Vec<Clash<'r>> {
    let is_harmless = |(route, is_fenced): &&'r (Route, bool)| !is_fenced || reads(route);
    // A harmless route between the two takes the requests of the list from the fenced one.
    let is_freed = |fenced: &Route| {
        all.iter().filter(is_harmless).any(|(free, _)| {
            let same = free.host == listed.host && is_path_within(&listed.matches, &free.matches);
            same && is_within(free, fenced)
        })
    };
    let open = all
        .iter()
        .filter(|route| !is_harmless(route))
        .map(|(route, _)| route)
        .filter(|route| is_overlapping(listed, route) && !is_freed(route));
    open.map(|fenced| Clash { listed, fenced }).collect()
}

/// Whether the list makes reads of requests that are writes by their method.
fn has_reads(listed: &Route) -> bool {
    match &listed.class {
        ClassRule::ByMethod => false,
        ClassRule::Always(class) => *class == Class::Read,
        ClassRule::GrpcReads(reads) => !reads.is_empty(),
    }
}

/// Whether a route of the mesh reads everything that the entry reads.
fn reads_all(route: &Route, listed: &Route) -> bool {
    match (&route.class, &listed.class) {
        (ClassRule::Always(Class::Read), _) => true,
        (ClassRule::GrpcReads(reads), ClassRule::GrpcReads(listed)) => {
            listed.iter().all(|method| reads.contains(method))
        }
        _ => false,
    }
}

/// Whether `inner` may take requests that match `outer`, since it is more specific.
pub fn is_within(inner: &Route, outer: &Route) -> bool {
    if inner.host != outer.host {
        return is_host_within(&inner.host, &outer.host);
    }
    inner.matches != outer.matches && is_path_within(&inner.matches, &outer.matches)
}

/// Whether every host of the pattern `inner` matches the pattern `outer`, which is another one. A
/// more specific host decides alone, whatever its paths are.
pub fn is_host_within(inner: &str, outer: &str) -> bool {
    match outer.strip_prefix('*') {
        None => false,
        Some("") => inner != "*",
        Some(suffix) => {
            let name = inner.strip_prefix('*').unwrap_or(inner);
            name.len() > suffix.len() && name.ends_with(suffix)
        }
    }
}

/// Whether the paths of `inner` are among those of `outer`.
pub fn is_path_within(inner: &RouteMatch, outer: &RouteMatch) -> bool {
    let path = |at: &RouteMatch| match at {
        RouteMatch::Prefix(prefix) => prefix.trim_end_matches('/').to_owned(),
        RouteMatch::Grpc(name) => format!("/{name}"),
    };
    let (inner, outer) = (path(inner), path(outer));
    let rest = inner.strip_prefix(outer.as_str());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether some request may match both: one path stands below the other, and the hosts meet.
pub fn is_overlapping(a: &Route, b: &Route) -> bool {
    let hosts =
        a.host == b.host || is_host_within(&a.host, &b.host) || is_host_within(&b.host, &a.host);
    hosts && (is_path_within(&a.matches, &b.matches) || is_path_within(&b.matches, &a.matches))
}

#[cfg(test)]
mod tests {
    use alloc::{string::ToString, vec};

    use super::*;

    fn route(text: &str) -> Route {
        let (class, text) = match text.split_once('=') {
            Some(("read", text)) => (ClassRule::Always(Class::Read), text),
            Some((_, text)) => (ClassRule::Always(Class::Write), text),
            None => (ClassRule::ByMethod, text),
        };
        let at = text.find('/').unwrap();
        let host = if at == 0 { "*" } else { &text[..at] };
        Route {
            host: host.to_string(),
            matches: RouteMatch::Prefix(text[at..].to_string()),
            class,
        }
    }

    fn grpc(reads: &[&str]) -> Route {
        Route {
            host: "*".to_string(),
            matches: RouteMatch::Grpc("shop.Orders".to_string()),
            class: ClassRule::GrpcReads(reads.iter().map(ToString::to_string).collect()),
        }
    }

    #[test]
    fn an_unfenced_route_must_not_take_writes_of_a_fenced_service() {
        let check = |unfenced: &str, free: &[&str], clashes: bool| {
            let mut all = vec![(route("/orders"), true)];
            all.extend(free.iter().map(|text| (route(text), false)));
            let lists = Lists {
                unfenced: vec![route(unfenced)],
                classes: vec![],
            };
            assert_eq!(
                lists.clash(&all).is_some(),
                clashes,
                "{unfenced:?} {free:?}"
            );
        };
        check("/metrics", &[], false);
        check("/orders", &[], true);
        check("/", &[], true);
        check("shop.example/orders", &[], true);
        check("/orders/drafts", &[], true);
        check("/orders/drafts", &["/orders/drafts"], false);
        check("/orders/drafts/7", &["/orders/drafts"], false);
        check("/orders7", &[], false);
    }

    #[test]
    fn a_listed_read_must_be_one_of_the_mesh() {
        let check = |listed: Route, mesh: &[Route], clashes: bool| {
            let all: Vec<_> = mesh.iter().map(|route| (route.clone(), true)).collect();
            let lists = Lists {
                unfenced: vec![],
                classes: vec![listed.clone()],
            };
            assert_eq!(lists.clash(&all).is_some(), clashes, "{listed:?} {mesh:?}");
        };
        let search = route("read=/orders/search");
        check(search.clone(), &[route("/orders"), search.clone()], false);
        check(search.clone(), &[route("/orders")], true);
        check(search.clone(), &[route("read=/orders")], false);
        check(
            search.clone(),
            &[route("/orders"), route("/orders/search")],
            true,
        );
        check(route("write=/orders/buy"), &[route("/orders")], false);
        check(grpc(&["Get"]), &[grpc(&["Get", "List"])], false);
        check(grpc(&["Get", "List"]), &[grpc(&["Get"])], true);
    }

    #[test]
    fn a_clash_names_both_routes() {
        let lists = Lists {
            unfenced: vec![route("/metrics"), route("/orders/drafts")],
            classes: vec![],
        };
        let all = [(route("/carts"), false), (route("/orders"), true)];
        let clash = lists.clash(&all).unwrap();
        assert_eq!(*clash.listed, lists.unfenced[1]);
        assert_eq!(*clash.fenced, all[1].0);
        assert!(!lists.is_empty() && Lists::default().is_empty());
    }
}
