//! Patterns of names in certificates.

use std::fmt;

use super::Identity;

/// A name with `*` for one segment of a path or one label of a DNS name, and `{zone}` and `{role}`
/// for the requested ones.
///
/// With `://` it is matched against URIs, whose segments end at `/`, else against DNS names, whose labels end at `.` and whose
/// case does not matter. It is matched from left to right without going back, so a name can be read in one way only: a `*` is
/// always a whole segment, and the placeholders stand for the very zone and role that are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    kind: Kind,
    parts: Vec<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Uri,
    Dns,
}

impl Kind {
    const fn separator(self) -> char {
        match self {
            Kind::Uri => '/',
            Kind::Dns => '.',
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Zone,
    Role,
    /// Any one segment or label.
    Any,
}

/// Why a pattern was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPattern {
    #[error("empty: write a name like spiffe://mesh.example/zone/{{zone}} or *.{{zone}}.example")]
    Empty,
    #[error("{0:?}: only {{zone}} and {{role}} can stand in braces")]
    Placeholder(String),
    #[error("{0:?}: `*` stands for a whole path segment or label, not for a part of one")]
    Wildcard(String),
    #[error("{0:?}: a DNS name has letters, digits, '-', '_' and '.'; a URI has `://`")]
    Name(String),
}

impl Pattern {
    /// Reads a pattern.
    pub fn parse(text: &str) -> Result<Pattern, InvalidPattern> {
        if text.is_empty() {
            return Err(InvalidPattern::Empty);
        }
        let kind = match text.contains("://") {
            true => Kind::Uri,
            false => Kind::Dns,
        };
        let pattern = Pattern {
            text: text.to_owned(),
            kind,
            parts: parts(text, kind)?,
        };
        for part in &pattern.parts {
            let Part::Literal(literal) = part else {
                continue;
            };
            let is_possible = match kind {
                Kind::Uri => literal.chars().all(|c| c.is_ascii_graphic()),
                Kind::Dns => (literal.chars())
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')),
            };
            if !is_possible {
                return Err(InvalidPattern::Name(text.to_owned()));
            }
        }
        Ok(pattern)
    }

    /// Whether `{zone}` or `{role}` stands in it.
    pub fn has_placeholders(&self) -> bool {
        self.has_role() || self.parts.contains(&Part::Zone)
    }

    /// Whether `{role}` stands in it.
    pub fn has_role(&self) -> bool {
        self.parts.contains(&Part::Role)
    }

    /// Whether one of the names matches, with this zone and role in place of the placeholders.
    pub fn matches(&self, identity: &Identity, zone: &str, role: &str) -> bool {
        let names = match self.kind {
            Kind::Uri => &identity.uris,
            Kind::Dns => &identity.dns,
        };
        names.iter().any(|name| self.matches_name(name, zone, role))
    }

    fn matches_name(&self, name: &str, zone: &str, role: &str) -> bool {
        let mut rest = name;
        for part in &self.parts {
            let matched = match part {
                Part::Literal(literal) => self.skip(rest, literal),
                Part::Zone => self.skip(rest, zone),
                Part::Role => self.skip(rest, role),
                Part::Any => {
                    let end = rest.find(self.kind.separator()).unwrap_or(rest.len());
                    rest.split_at_checked(end)
                        .filter(|(segment, _)| !segment.is_empty())
                        .map(|(_, after)| after)
                }
            };
            match matched {
                Some(after) => rest = after,
                None => return false,
            }
        }
        rest.is_empty()
    }

    /// The text after `prefix`, which is never empty: no client is in a zone without a name.
    fn skip<'n>(&self, name: &'n str, prefix: &str) -> Option<&'n str> {
        let (start, rest) = name.split_at_checked(prefix.len())?;
        let same = match self.kind {
            Kind::Uri => start == prefix,
            Kind::Dns => start.eq_ignore_ascii_case(prefix),
        };
        (same && !prefix.is_empty()).then_some(rest)
    }
}

fn parts(text: &str, kind: Kind) -> Result<Vec<Part>, InvalidPattern> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let special = match next {
            '{' | '}' => [("{zone}", Part::Zone), ("{role}", Part::Role)]
                .into_iter()
                .find_map(|(word, part)| Some((rest.strip_prefix(word)?, part)))
                .ok_or_else(|| InvalidPattern::Placeholder(text.to_owned()))?,
            '*' => {
                let rest = rest.get(1..).unwrap_or_default();
                let begins = match literal.chars().next_back() {
                    Some(before) => before == kind.separator(),
                    None => parts.is_empty(),
                };
                let ends = rest.is_empty() || rest.starts_with(kind.separator());
                if !begins || !ends {
                    return Err(InvalidPattern::Wildcard(text.to_owned()));
                }
                (rest, Part::Any)
            }
            other => {
                literal.push(other);
                rest = rest.get(other.len_utf8()..).unwrap_or_default();
                continue;
            }
        };
        if !literal.is_empty() {
            parts.push(Part::Literal(std::mem::take(&mut literal)));
        }
        parts.push(special.1);
        rest = special.0;
    }
    if !literal.is_empty() {
        parts.push(Part::Literal(literal));
    }
    Ok(parts)
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
