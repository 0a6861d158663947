//! The routes that a guest treats by a list while it has no policy, and the net likewise.
//!
//! A guest's lists know only the routes that stand in them, and the policy knows all routes. So an
//! entry is left out where a more specific route of the policy, which no list can name, would turn
//! a write into a read. The net has no such limit: it subtracts these routes.

use policy::{Class, ClassRule, Route, RouteMatch, listed::is_within};

/// A route with a class of its own, and the more specific routes that take requests from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Exception {
    pub(super) route: Route,
    pub(super) except: Vec<Route>,
}

/// What a guest and its net are told of classes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Classes {
    /// For the guest's `classes`.
    pub(super) listed: Vec<Route>,
    /// Routes and methods that read by any method.
    pub(super) reads: Vec<Exception>,
    /// Routes that write by any method.
    pub(super) writes: Vec<Exception>,
    /// Reads that no list can hold, each with the route that forbids it.
    pub(super) left_out: Vec<(Route, Route)>,
    /// Routes by method below a listed write: their reads are rejected while there is no policy.
    pub(super) covered: Vec<(Route, Route)>,
}

impl Classes {
    /// Of all routes of the mesh, as far as they are known.
    pub(super) fn of(all: &[Route]) -> Classes {
        let exceptions = all.iter().filter(|route| is_own(route)).map(|route| {
            let except = all.iter().filter(|other| is_within(other, route));
            Exception {
                route: route.clone(),
                except: except.cloned().collect(),
            }
        });
        let (writes, reads): (Vec<_>, Vec<_>) =
            exceptions.partition(|at| at.route.class == ClassRule::Always(Class::Write));
        let mut classes = Classes {
            reads,
            writes,
            ..Classes::default()
        };
        classes.list();
        classes
    }

    /// Fills [`Classes::listed`]: one read less may forbid another, until all that are left agree.
    fn list(&mut self) {
        let both = self.reads.iter().chain(&self.writes);
        let mut kept: Vec<&Exception> = both.collect();
        loop {
            let forbidden = kept.iter().find_map(|at| {
                let is_known = |other: &Route| {
                    kept.iter().any(|kept| match other.host == at.route.host {
                        true => kept.route == *other,
                        false => kept.route.host == other.host,
                    })
                };
                let forbids = at.except.iter().find(|other| !is_known(other));
                let is_read = at.route.class != ClassRule::Always(Class::Write);
                forbids
                    .filter(|_| is_read)
                    .map(|by| ((*at).clone(), by.clone()))
            });
            let Some((at, by)) = forbidden else { break };
            kept.retain(|kept| kept.route != at.route);
            self.left_out.push((at.route, by));
        }
        self.listed = kept.iter().map(|at| at.route.clone()).collect();
        for at in &self.writes {
            let by_method = at.except.iter().filter(|route| !is_own(route));
            let below = by_method.map(|route| (at.route.clone(), route.clone()));
            self.covered.extend(below);
        }
    }
}

/// Whether a route has a class that does not follow from the method.
fn is_own(route: &Route) -> bool {
    match &route.class {
        ClassRule::ByMethod => false,
        ClassRule::Always(_) => true,
        ClassRule::GrpcReads(reads) => !reads.is_empty(),
    }
}

/// A route of the command line: `[HOST]/PREFIX`, or `[HOST/]grpc:SERVICE[/METHOD,...]`.
///
/// # Errors
///
/// A message that names the forms.
pub(super) fn parse(text: &str, class: ClassRule) -> Result<Route, String> {
    let host = |host: &str| match host {
        "" => "*".to_owned(),
        host => host.to_owned(),
    };
    if let Some((before, grpc)) = text.split_once("grpc:") {
        let before = before.strip_suffix('/').unwrap_or(before);
        if before.contains('/') {
            return Err(format!(
                "{text:?}: a gRPC service stands behind a host alone"
            ));
        }
        let (name, reads) = grpc.split_once('/').unwrap_or((grpc, ""));
        let reads: Vec<_> = reads
            .split(',')
            .filter(|read| !read.is_empty())
            .map(str::to_owned)
            .collect();
        let class = match (reads.is_empty(), class) {
            (true, class) => class,
            (false, ClassRule::Always(Class::Read)) => ClassRule::GrpcReads(reads),
            (false, _) => return Err(format!("{text:?}: only reads are named by method")),
        };
        let matches = RouteMatch::Grpc(name.to_owned());
        return Ok(Route {
            host: host(before),
            matches,
            class,
        });
    }
    let Some(at) = text.find('/') else {
        return Err(format!(
            "{text:?}: use HOST/PREFIX, /PREFIX, or grpc:package.Service"
        ));
    };
    let (before, prefix) = text.split_at(at);
    let prefix = match prefix.trim_end_matches('/') {
        "" => "/",
        prefix => prefix,
    };
    Ok(Route {
        host: host(before),
        matches: RouteMatch::Prefix(prefix.to_owned()),
        class,
    })
}

/// A class of the command line: `read=ROUTE` or `write=ROUTE`.
///
/// # Errors
///
/// A message that names the forms.
pub(super) fn parse_class(text: &str) -> Result<Route, String> {
    let class = |class| ClassRule::Always(class);
    match text.split_once('=') {
        Some(("read", route)) => parse(route, class(Class::Read)),
        Some(("write", route)) => parse(route, class(Class::Write)),
        _ => Err(format!("{text:?}: use read=ROUTE or write=ROUTE")),
    }
}

/// An unfenced route of the command line.
///
/// # Errors
///
/// A message that names the forms.
pub(super) fn parse_unfenced(text: &str) -> Result<Route, String> {
    parse(text, ClassRule::ByMethod)
}

/// A route as a guest's lists have it, in JSON.
pub(super) fn json(route: &Route) -> serde_json::Value {
    let mut entry = serde_json::Map::new();
    let mut put = |name: &str, value: serde_json::Value| entry.insert(name.to_owned(), value);
    if route.host != "*" {
        put("host", route.host.clone().into());
    }
    match &route.matches {
        RouteMatch::Prefix(prefix) => put("prefix", prefix.clone().into()),
        RouteMatch::Grpc(name) => put("grpc", name.clone().into()),
    };
    match &route.class {
        ClassRule::ByMethod => {}
        ClassRule::Always(class) => {
            put("class", class.as_str().into());
        }
        ClassRule::GrpcReads(reads) => {
            put("reads", reads.clone().into());
        }
    }
    entry.into()
}

/// A route for people: `shop.example/orders`, `*/orders`, `*/grpc:shop.Orders`.
pub(super) fn text(route: &Route) -> String {
    match &route.matches {
        RouteMatch::Prefix(prefix) => format!("{}{prefix}", route.host),
        RouteMatch::Grpc(name) => format!("{}/grpc:{name}", route.host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(texts: &[&str]) -> Vec<Route> {
        let route = |text: &&str| match text.contains('=') {
            true => parse_class(text).unwrap(),
            false => parse_unfenced(text).unwrap(),
        };
        texts.iter().map(route).collect()
    }

    fn texts(routes: &[Route]) -> Vec<String> {
        routes.iter().map(text).collect()
    }

    #[test]
    fn a_read_with_a_route_by_method_below_it_is_in_no_list() {
        let check = |all: &[&str], listed: &[&str]| {
            let classes = Classes::of(&routes(all));
            assert_eq!(texts(&classes.listed), listed, "{all:?}");
        };
        check(&["read=/search", "/"], &["*/search"]);
        check(&["read=/search", "/search/admin"], &[]);
        check(
            &["read=/search", "write=/search/admin"],
            &["*/search", "*/search/admin"],
        );
        // The host decides alone, and no list has it.
        check(&["read=/search", "shop.example/"], &[]);
        check(
            &["read=/search", "shop.example/", "read=shop.example/find"],
            &["*/search", "shop.example/find"],
        );
        check(&["read=grpc:shop.Orders/Get", "/shop.Orders/Get"], &[]);
        // Leaving one out may forbid another.
        check(&["read=/a", "read=/a/b", "/a/b/c"], &[]);
        check(&["write=/a", "/a/b"], &["*/a"]);
    }

    #[test]
    fn the_net_knows_the_routes_below_an_exception() {
        let classes = Classes::of(&routes(&[
            "write=/buy",
            "/buy/items",
            "/orders",
            "shop.example/",
        ]));
        assert_eq!(
            texts(&classes.writes[0].except),
            ["*/buy/items", "shop.example/"]
        );
        assert_eq!(classes.covered.len(), 2);
    }

    #[test]
    fn routes_of_the_command_line_have_two_forms() {
        let check = |text: &str, host: &str, matches: RouteMatch| {
            let route = parse_unfenced(text).unwrap();
            assert_eq!(
                (route.host.as_str(), route.matches),
                (host, matches),
                "{text}"
            );
        };
        let prefix = |text: &str| RouteMatch::Prefix(text.to_owned());
        check("/a/", "*", prefix("/a"));
        check("/", "*", prefix("/"));
        check("shop.example/a", "shop.example", prefix("/a"));
        check(
            "*.shop/grpc:p.S",
            "*.shop",
            RouteMatch::Grpc("p.S".to_owned()),
        );
        let read = parse_class("read=grpc:p.S/Get,List").unwrap();
        assert_eq!(
            read.class,
            ClassRule::GrpcReads(vec!["Get".into(), "List".into()])
        );
        for bad in [
            "a",
            "read=a",
            "both=/a",
            "write=grpc:p.S/Get",
            "read=a/b/grpc:p.S",
        ] {
            assert!(parse_class(bad).is_err(), "{bad}");
        }
    }
}
