//! What a run found: named figures, as a table, as JSON, and against limits.

use std::{
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hdrhistogram::Histogram;
use serde_json::{Map, Value};

use crate::cli::Failure;

/// Longest latency that is told apart, in microseconds; a longer one counts as this.
const LATENCY_MAX_US: u64 = 120_000_000;
/// Latencies that a task gathers before it takes the shared histogram's lock.
const GATHERED: usize = 512;

/// Figures in the order in which they are shown. A name says its unit.
pub struct Report {
    bench: &'static str,
    figures: Vec<(String, f64)>,
}

impl Report {
    pub fn new(bench: &'static str) -> Self {
        Self { bench, figures: Vec::new() }
    }

    pub fn add(&mut self, name: impl Into<String>, value: f64) {
        self.figures.push((name.into(), value));
    }

    /// p50, p90, p99 and the largest of a histogram, in milliseconds; nothing when nothing was recorded.
    pub fn add_latency(&mut self, prefix: &str, latency: &Latency) {
        let histogram = latency.0.lock().unwrap_or_else(PoisonError::into_inner);
        if histogram.is_empty() {
            return;
        }
        let ms = |us: u64| us as f64 / 1000.0;
        for (name, quantile) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)] {
            self.add(format!("{prefix}{name}_ms"), ms(histogram.value_at_quantile(quantile)));
        }
        self.add(format!("{prefix}max_ms"), ms(histogram.max()));
    }

    pub fn json(&self) -> String {
        let mut object = Map::new();
        object.insert("bench".into(), self.bench.into());
        object.extend(self.figures.iter().map(|(name, value)| (name.clone(), Value::from(*value))));
        format!("{:#}\n", Value::Object(object))
    }

    pub fn table(&self) -> String {
        let width = self.figures.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        self.figures.iter().map(|(name, value)| format!("{name:width$}  {}\n", number(*value))).collect()
    }

    /// Whether every limit is kept.
    ///
    /// # Errors
    /// `Usage` for a limit on a figure that this bench does not have, `Failed` naming each one that is broken.
    pub fn check(&self, max: &[Limit], min: &[Limit]) -> Result<(), Failure> {
        let mut broken = Vec::new();
        for (limits, word) in [(max, "above"), (min, "below")] {
            for limit in limits {
                let value = self.figure(&limit.figure)?;
                if (word == "above" && value > limit.value) || (word == "below" && value < limit.value) {
                    broken.push(format!("{} is {}, {word} {}", limit.figure, number(value), number(limit.value)));
                }
            }
        }
        if broken.is_empty() { Ok(()) } else { Err(Failure::failed(broken.join("; "))) }
    }

    fn figure(&self, name: &str) -> Result<f64, Failure> {
        let found = self.figures.iter().find(|(known, _)| known == name).map(|(_, value)| *value);
        found.ok_or_else(|| {
            let names: Vec<&str> = self.figures.iter().map(|(name, _)| name.as_str()).collect();
            Failure::Usage(format!("there is no figure {name} here; there are {}", names.join(", ")))
        })
    }
}

/// Three digits that mean something, and no more.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        ..0.01 => format!("{value:.5}"),
        ..1.0 => format!("{value:.3}"),
        ..100.0 => format!("{value:.2}"),
        _ => format!("{value:.0}"),
    }
}

/// `figure=value`.
#[derive(Clone, Debug)]
pub struct Limit {
    figure: String,
    value: f64,
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (figure, value) = text.split_once('=').ok_or("a limit is written FIGURE=VALUE, such as p99_ms=10")?;
        let value = value.parse().map_err(|_| format!("{value:?} is not a number"))?;
        Ok(Self { figure: figure.to_owned(), value })
    }
}

/// Latencies of many tasks in one histogram.
#[derive(Clone)]
pub struct Latency(Arc<Mutex<Histogram<u64>>>);

impl Latency {
    pub fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("these bounds are right");
        Self(Arc::new(Mutex::new(histogram)))
    }

    /// How many were recorded.
    pub fn count(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub fn record(&self, latency: Duration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(micros(latency));
    }

    /// A task's own way in.
    pub fn recorder(&self) -> Recorder {
        Recorder { shared: self.clone(), gathered: Vec::with_capacity(GATHERED) }
    }
}

/// Hands latencies over in heaps, so that tasks do not meet at the lock; the rest when it is dropped.
pub struct Recorder {
    shared: Latency,
    gathered: Vec<u64>,
}

impl Recorder {
    pub fn record(&mut self, latency: Duration) {
        self.gathered.push(micros(latency));
        if self.gathered.len() == GATHERED {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let mut histogram = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.gathered.drain(..).for_each(|us| histogram.saturating_record(us));
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.flush();
    }
}

fn micros(latency: Duration) -> u64 {
    u64::try_from(latency.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let latency = Latency::new();
        let mut recorder = latency.recorder();
        (1..=1000).for_each(|ms| recorder.record(Duration::from_millis(ms)));
        drop(recorder);
        let mut report = Report::new("test");
        report.add("rate", 120_034.4);
        report.add_latency("", &latency);
        report
    }

    #[test]
    fn latencies_of_all_recorders_are_in_the_report() {
        let json: Value = serde_json::from_str(&report().json()).unwrap();
        let near = |name: &str, ms: f64| assert!((json[name].as_f64().unwrap() / ms - 1.0).abs() < 0.01, "{json}");
        near("p50_ms", 500.0);
        near("p99_ms", 990.0);
        near("max_ms", 1000.0);
        assert!(report().table().starts_with("rate    120034\n"), "{}", report().table());
    }

    #[test]
    fn a_broken_limit_fails_and_an_unknown_one_is_wrong_usage() {
        let limit = |text: &str| vec![text.parse::<Limit>().unwrap()];
        assert!(report().check(&limit("p99_ms=2000"), &limit("rate=1")).is_ok());
        assert!(
            matches!(report().check(&limit("p99_ms=10"), &[]), Err(Failure::Failed(why)) if why.contains("p99_ms"))
        );
        assert!(matches!(report().check(&[], &limit("rate=1e9")), Err(Failure::Failed(_))));
        assert!(matches!(report().check(&limit("p98_ms=10"), &[]), Err(Failure::Usage(why)) if why.contains("p99_ms")));
        assert!("p99_ms".parse::<Limit>().is_err() && "p99_ms=fast".parse::<Limit>().is_err());
    }
}
