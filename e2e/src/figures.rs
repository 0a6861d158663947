//! Figures and simple statistics.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// One figure, as `--json` writes it.
#[derive(Debug, Serialize)]
pub struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    /// The number of measurements behind it.
    samples: usize,
}

impl Figure {
    /// A sum over this many measurements.
    pub fn count(name: String, count: usize, samples: usize) -> Figure {
        Figure {
            name,
            value: count as f64,
            unit: "",
            samples,
        }
    }

    /// A value from this many measurements.
    pub fn of(name: impl Into<String>, unit: &'static str, value: f64, samples: usize) -> Figure {
        Figure {
            name: name.into(),
            value,
            unit,
            samples,
        }
    }

    /// A quantile of the samples: 0.5 is the median.
    pub fn quantile(
        name: impl Into<String>,
        unit: &'static str,
        samples: &[f64],
        share: f64,
    ) -> Figure {
        Figure {
            name: name.into(),
            value: quantile(samples, share),
            unit,
            samples: samples.len(),
        }
    }
}

/// The smallest sample that at least this share of all samples does not exceed (nearest rank); NaN
/// without samples.
pub fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    let found = sorted.get(rank.saturating_sub(1));
    found.copied().unwrap_or(f64::NAN)
}

pub fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

/// `median (smallest .. largest)`, to a number of decimals.
pub fn spread(samples: &[f64], decimals: usize) -> String {
    format!(
        "{:.decimals$} ({:.decimals$} .. {:.decimals$})",
        median(samples),
        quantile(samples, 0.0),
        quantile(samples, 1.0)
    )
}

/// The load average of the last minute, which includes other programs.
pub fn machine_load() -> Result<String> {
    let text = fs::read_to_string("/proc/loadavg").context("/proc/loadavg")?;
    let minute = text.split_whitespace().next();
    Ok(minute.unwrap_or_default().to_owned())
}

pub fn write(file: &Path, figures: &[Figure]) -> Result<()> {
    let text = serde_json::to_string_pretty(figures)? + "\n";
    fs::write(file, text).with_context(|| file.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples() {
        let samples = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(quantile(&samples, 0.0), 1.0);
        assert_eq!(median(&samples), 2.0);
        assert_eq!(quantile(&samples, 0.99), 4.0);
        assert!(median(&[]).is_nan());
    }
}
