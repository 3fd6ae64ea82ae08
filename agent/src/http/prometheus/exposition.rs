//! Text format of Prometheus for metrics.

use std::fmt::Write as _;

/// Type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MetricType {
    Counter,
    Gauge,
}

/// Metrics as text. It ends with a line break, as the format requires.
#[derive(Debug, Default)]
pub(crate) struct Exposition(String);

impl Exposition {
    /// Adds a metric with its samples, each with its labels.
    pub(crate) fn metric(
        &mut self,
        kind: MetricType,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (String, f64)>,
    ) {
        let kind = match kind {
            MetricType::Counter => "counter",
            MetricType::Gauge => "gauge",
        };
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let labels = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
            let _ = writeln!(self.0, "{name}{labels} {value}");
        }
    }

    /// Returns the text.
    pub(crate) fn into_text(self) -> String {
        self.0
    }
}

/// Returns a label. Its value is escaped.
pub(crate) fn label(name: &str, value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("{name}=\"{value}\"")
}

/// Returns a sample without labels.
pub(crate) fn unlabelled(value: usize) -> (String, f64) {
    (String::new(), number(value as u64))
}

/// Returns a number as the value of a sample.
#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
pub(crate) fn number(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_escaped() {
        assert_eq!(label("a", "x\"\\\n}"), r#"a="x\"\\\n}""#);
        let mut text = Exposition::default();
        text.metric(MetricType::Gauge, "m", "Help.", [(label("a", "b"), 1.5), unlabelled(2)]);
        assert_eq!(text.into_text(), "# HELP m Help.\n# TYPE m gauge\nm{a=\"b\"} 1.5\nm 2\n");
    }
}
