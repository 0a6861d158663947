//! `tidegate get` and `tidegate describe`: the state of the admin port, by kind and name.

pub(crate) mod cells;
mod conditions;
mod instances;
mod istio;
mod operations;
mod proxies;
mod zones;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde::de::DeserializeOwned;
use serde_json::Value;
use xds_server::conditions::Condition;

use crate::{
    client::OperatorArgs,
    output::{self, Output},
};

/// The kinds, with their short names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// The state of every service in every zone.
    #[value(alias = "zone")]
    Zones,
    /// The owners of each cell, and the replicas that grant its writes.
    #[value(alias = "cell")]
    Cells,
    /// The connected proxies: their resources, their rejections, and the policies that their
    /// filters have applied.
    #[value(alias = "proxy")]
    Proxies,
    /// The registered instances, and why a record is rejected.
    #[value(alias = "instance")]
    Instances,
    /// The moves of cells, newest first, with cause and reason.
    #[value(alias = "operation")]
    Operations,
    /// The states that may need an operator's action.
    #[value(alias = "condition")]
    Conditions,
    /// The objects that Tidegate keeps in an Istio mesh. `-o yaml` prints them as `kubectl apply`
    /// takes them.
    #[value(alias = "istio-object")]
    IstioObjects,
}

#[derive(Args)]
pub(crate) struct GetArgs {
    kind: Kind,
    /// Only these names.
    names: Vec<String>,
    #[command(flatten)]
    how: HowArgs,
}

/// The connection and the output format.
#[derive(Args)]
pub(crate) struct HowArgs {
    /// The output format.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    operator: OperatorArgs,
}

#[derive(Args)]
pub(crate) struct DescribeArgs {
    kind: Kind,
    name: String,
    #[command(flatten)]
    operator: OperatorArgs,
}

/// A kind of items that the admin port lists.
trait Listed: DeserializeOwned {
    /// The prefix of the name: `zone/sh-a`.
    const KIND: &'static str;
    const PATH: &'static str;
    const HEADERS: &'static [&'static str];

    /// The items in an answer.
    fn items(answer: Value) -> Option<Vec<Value>> {
        match answer {
            Value::Array(items) => Some(items),
            _ => None,
        }
    }

    /// A line for the whole answer, above the table.
    fn remark(answer: &Value) -> Option<String> {
        let _ = answer;
        None
    }

    /// The part of an item that is an object of Kubernetes, if it has one. `-o yaml` prints it as a
    /// document of its own.
    fn manifest(item: &Value) -> Option<&Value> {
        let _ = item;
        None
    }

    /// The name to select it by. Several items may share one.
    fn name(&self) -> String;

    fn row(&self) -> Vec<String>;

    /// Lines about it that fit no column, below the table.
    fn remarks(&self) -> Vec<String> {
        Vec::new()
    }
}

impl GetArgs {
    /// All items of a kind: for the commands that existed before `get`.
    pub(crate) fn all(kind: Kind, how: HowArgs) -> GetArgs {
        GetArgs {
            kind,
            names: Vec::new(),
            how,
        }
    }

    pub(crate) async fn run(&self) -> anyhow::Result<()> {
        print!("{}", self.answer().await?);
        Ok(())
    }

    async fn answer(&self) -> anyhow::Result<String> {
        match self.kind {
            Kind::Zones => self.list::<zones::Zone>().await,
            Kind::Cells => self.list::<cells::Cell>().await,
            Kind::Proxies => self.list::<proxies::Proxy>().await,
            Kind::Instances => self.list::<instances::Listed>().await,
            Kind::Operations => self.list::<operations::Operation>().await,
            Kind::Conditions => self.list::<conditions::Held>().await,
            Kind::IstioObjects => self.list::<istio::Object>().await,
        }
    }

    async fn list<T: Listed>(&self) -> anyhow::Result<String> {
        let answer: Value = self.how.operator.read(T::PATH).await?;
        show::<T>(answer, &self.names, self.how.output)
    }
}

/// The items of these names, or all of them.
fn show<T: Listed>(answer: Value, names: &[String], output: Output) -> anyhow::Result<String> {
    let remark = T::remark(&answer);
    let chosen = choose::<T>(answer, names)?;
    let (values, items): (Vec<Value>, Vec<T>) = chosen.into_iter().unzip();
    Ok(match output {
        Output::Json => output::json(&Value::Array(values)),
        Output::Yaml => match values.iter().map(T::manifest).collect::<Option<Vec<_>>>() {
            Some(manifests) if !manifests.is_empty() => output::documents(&manifests)?,
            _ => output::yaml(&Value::Array(values))?,
        },
        Output::Name => {
            let mut names: Vec<String> = items.iter().map(T::name).collect();
            names.dedup();
            let lines = names.iter().map(|name| format!("{}/{name}\n", T::KIND));
            lines.collect()
        }
        Output::Table => {
            let rows = items.iter().map(T::row).collect();
            let below = items.iter().flat_map(T::remarks);
            let below: String = below.map(|line| format!("{line}\n")).collect();
            let above = remark.map(|line| format!("{line}\n")).unwrap_or_default();
            above + &output::table(T::HEADERS, rows) + &below
        }
    })
}

fn choose<T: Listed>(answer: Value, names: &[String]) -> anyhow::Result<Vec<(Value, T)>> {
    let items = T::items(answer).context("an answer of another version")?;
    let read = |value: Value| {
        let item = T::deserialize(&value).context("an answer of another version")?;
        anyhow::Ok((value, item))
    };
    let all: Vec<(Value, T)> = items.into_iter().map(read).collect::<Result<_, _>>()?;
    if let Some(unknown) = names
        .iter()
        .find(|name| !all.iter().any(|(_, item)| item.name() == **name))
    {
        let mut known: Vec<String> = all.iter().map(|(_, item)| item.name()).collect();
        known.dedup();
        bail!(
            "no {} {unknown:?}; there are: {}",
            T::KIND,
            known.join(", ")
        );
    }
    let is_chosen = |item: &T| names.is_empty() || names.contains(&item.name());
    Ok(all
        .into_iter()
        .filter(|(_, item)| is_chosen(item))
        .collect())
}

impl DescribeArgs {
    /// Prints everything known of it, and the conditions that name it with their actions.
    pub(crate) async fn run(&self) -> anyhow::Result<()> {
        let text = match self.kind {
            Kind::Zones => self.describe::<zones::Zone>().await,
            Kind::Cells => self.describe::<cells::Cell>().await,
            Kind::Proxies => self.describe::<proxies::Proxy>().await,
            Kind::Instances => self.describe::<instances::Listed>().await,
            Kind::Operations => self.describe::<operations::Operation>().await,
            Kind::Conditions => self.describe::<conditions::Held>().await,
            Kind::IstioObjects => self.describe::<istio::Object>().await,
        }?;
        print!("{text}");
        Ok(())
    }

    async fn describe<T: Listed>(&self) -> anyhow::Result<String> {
        let answer: Value = self.operator.read(T::PATH).await?;
        let chosen = choose::<T>(answer, std::slice::from_ref(&self.name))?;
        let mut text = String::new();
        for (value, _) in &chosen {
            text += &output::yaml(value)?;
            text += "\n";
        }
        let held: Vec<Condition> = self.operator.read(conditions::Held::PATH).await?;
        Ok(text + &about(&held, &self.name))
    }
}

/// The conditions that name it, with their actions.
fn about(held: &[Condition], name: &str) -> String {
    let named = |condition: &&Condition| {
        let told = [&condition.subject, &condition.detail];
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        told.iter()
            .any(|text| text.split(|c| !is_part(c)).any(|word| word == name) || **text == name)
    };
    let mut text = String::new();
    for condition in held.iter().filter(named) {
        let Condition {
            code,
            name,
            severity,
            subject,
            detail,
            since,
            what_to_do,
            ..
        } = condition;
        let severity = severity.as_str();
        text += &format!("{severity} {code} {name} {subject} since {since}\n");
        text += &format!("  {detail}\n  do: {what_to_do}\n");
    }
    match text.is_empty() {
        true => "no condition names it\n".to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests;
