//! The dashboard and the alerts name metrics that the proxy exports, and each alert has a section of
//! the runbook.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
};

use pingora_sendfile::cache::{DiskCache, DiskCacheConfig};
use pingora_sendfile::metrics::{CacheCollector, ProcessCollector};
use prometheus::core::Collector;
use serde_json::Value;
use tempfile::TempDir;
use test_support::{Metrics, Origin};

use super::promql::{Expression, Selector};
use super::{list, read, run, text, tool, yaml};
use crate::proxy;

const ALERTS: &str = "deploy/prometheus/alerts.yml";
const DASHBOARD: &str = "deploy/grafana/s3-proxy.json";
const RUNBOOK: &str = "docs/runbook.md";

/// Labels that Prometheus gives to what it reads.
const TARGET: [&str; 2] = ["instance", "job"];

/// Restricts a selector to the proxy: other programs export metrics of the same names.
const JOB: (&str, &str) = ("job", "s3-proxy");

/// The metrics that the proxy exports.
struct Exported {
    /// Names, and the names of their labels.
    metrics: BTreeMap<String, Vec<String>>,
    /// The samples of a proxy that has served nothing.
    scrape: Metrics,
    /// The reference of the metrics.
    document: String,
}

// === impl Exported ===

impl Exported {
    async fn read() -> Self {
        let folder = TempDir::new().expect("a folder");
        let cache = DiskCache::open(DiskCacheConfig::new(folder.path(), 1 << 20)).expect("a cache");
        let cache = CacheCollector::new(cache);
        let all = ProcessCollector.desc().into_iter().chain(cache.desc());
        let metrics: BTreeMap<_, _> = all
            .map(|desc| (desc.fq_name.clone(), desc.variable_labels.clone()))
            .collect();
        let scrape = tokio::task::spawn_blocking(|| {
            let origin = Origin::scripted();
            let proxy = proxy(&origin).start();
            proxy.metrics()
        });
        let scrape = scrape.await.expect("a scrape");
        for (name, labels) in &metrics {
            let is_expected = labels.is_empty();
            assert!(!is_expected || scrape.has(name), "the proxy has no {name}");
        }
        Exported {
            metrics,
            scrape,
            document: read("docs/operations.md"),
        }
    }

    /// Panics unless the proxy exports all that the expression names. Returns the labels that its
    /// result may have.
    fn check(&self, text: &str) -> BTreeSet<String> {
        let Expression {
            selectors,
            grouping,
        } = Expression::parse(text);
        assert!(!selectors.is_empty(), "{text} names no metric");
        let mut labels: BTreeSet<_> = TARGET.map(str::to_owned).into();
        for selector in &selectors {
            labels.extend(self.check_selector(selector, text));
        }
        for label in grouping {
            assert!(labels.contains(&label), "{text}: no metric has {label}");
        }
        labels
    }

    fn check_selector(&self, selector: &Selector, text: &str) -> Vec<String> {
        let metric = &*selector.metric;
        let is_of_the_proxy = selector
            .matchers
            .iter()
            .any(|(label, value)| (&**label, &**value) == JOB);
        assert!(is_of_the_proxy, "{text}: {metric} of any job");
        // Prometheus adds it for every target.
        if metric == "up" {
            return Vec::new();
        }
        let name = family(metric);
        let labels = self.metrics.get(name);
        let labels = labels.unwrap_or_else(|| panic!("{text}: the proxy exports no {metric}"));
        let mut labels = labels.clone();
        if metric.ends_with("_bucket") {
            labels.push("le".to_owned());
        }
        let is_counter = metric.ends_with("_total") || name != metric;
        assert!(
            selector.is_range || !is_counter,
            "{text}: {metric} is a counter; only its rate means something"
        );
        for (label, values) in &selector.matchers {
            if TARGET.contains(&&**label) {
                continue;
            }
            assert!(labels.contains(label), "{text}: {metric} has no {label}");
            let exported = self.scrape.values(metric, label);
            for value in values.split('|') {
                let is_documented = self.document.contains(&format!("`{value}`"));
                let is_exported = exported.is_empty() || exported.contains(value);
                assert!(
                    is_documented && is_exported,
                    "{text}: {metric} has no {label} {value}"
                );
            }
        }
        labels
    }
}

/// The metric that a series belongs to: a histogram has three of them.
fn family(series: &str) -> &str {
    let of_histogram = ["_bucket", "_count", "_sum"];
    let mut of_histogram = of_histogram
        .iter()
        .filter_map(|end| series.strip_suffix(end));
    of_histogram
        .find(|name| name.ends_with("_seconds"))
        .unwrap_or(series)
}

fn alerts() -> Vec<Value> {
    let groups = yaml(&read(ALERTS));
    let groups = list(&groups["groups"]).iter();
    groups
        .flat_map(|group| list(&group["rules"]).to_vec())
        .collect()
}

/// Expression and legend of each line of the dashboard.
fn lines(dashboard: &Value) -> Vec<(&str, &str)> {
    let panels = list(&dashboard["panels"]).iter();
    let targets = panels.filter_map(|panel| panel.get("targets"));
    targets
        .flat_map(list)
        .map(|target| (text(target, "expr"), text(target, "legendFormat")))
        .collect()
}

/// The names after each `before` in a template.
fn names<'a>(template: &'a str, before: &'a str) -> impl Iterator<Item = &'a str> {
    template.split(before).skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        &rest[..end.unwrap_or(rest.len())]
    })
}

#[tokio::test]
async fn alerts_and_dashboard_name_metrics_that_the_proxy_exports() {
    let exported = Exported::read().await;
    for alert in alerts() {
        let labels = exported.check(text(&alert, "expr"));
        for annotation in ["summary", "description"] {
            for label in names(text(&alert["annotations"], annotation), "$labels.") {
                assert!(labels.contains(label), "{alert}: no label {label}");
            }
        }
    }

    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).expect("JSON");
    let mut shown = BTreeSet::new();
    for (expr, legend) in lines(&dashboard) {
        let labels = exported.check(expr);
        for label in names(legend, "{{") {
            assert!(labels.contains(label), "{expr}: no label {label}");
        }
        let selectors = Expression::parse(expr).selectors.into_iter();
        shown.extend(selectors.map(|selector| family(&selector.metric).to_owned()));
    }
    for metric in exported.metrics.keys() {
        assert!(
            shown.contains(metric),
            "the dashboard does not show {metric}"
        );
    }
    for variable in list(&dashboard["templating"]["list"]) {
        if let Some(query) = variable["query"]["query"].as_str() {
            let query = query.strip_prefix("label_values(").expect("a query");
            let (selector, label) = query.rsplit_once(", ").expect("a metric and a label");
            let (metric, matchers) = selector.split_once('{').expect("labels of the metric");
            assert!(exported.metrics.contains_key(metric), "{metric}");
            assert_eq!(matchers, format!("{}=\"{}\"}}", JOB.0, JOB.1));
            assert!(TARGET.contains(&label.trim_end_matches(')')), "{label}");
        }
    }
}

#[test]
fn panels_have_names_of_their_own_and_do_not_overlap() {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).expect("JSON");
    let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
    for panel in list(&dashboard["panels"]) {
        assert!(!text(panel, "title").is_empty());
        assert!(ids.insert(panel["id"].as_u64()), "{}", panel["id"]);
        let [x, y, w, h] =
            ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().expect("a number"));
        assert!(x + w <= 24, "{}", panel["title"]);
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(cells.insert(cell), "{} overlaps another", panel["title"]);
        }
    }
}

#[test]
fn each_alert_has_a_section_of_the_runbook() {
    let runbook = read(RUNBOOK);
    let sections: Vec<_> = runbook
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .collect();
    let alerts = alerts();
    let names: Vec<_> = alerts.iter().map(|alert| text(alert, "alert")).collect();
    assert_eq!(sections, names, "the sections of {RUNBOOK}, in order");
    for alert in &alerts {
        let name = text(alert, "alert");
        let severity = text(&alert["labels"], "severity");
        assert!(["critical", "warning"].contains(&severity), "{name}");
        let url = text(&alert["annotations"], "runbook_url");
        let section = format!("/{RUNBOOK}#{}", name.to_lowercase());
        assert!(url.ends_with(&section), "{url}");
    }
}

#[test]
fn prometheus_accepts_all_expressions_and_raises_each_alert() {
    let Some(promtool) = tool("promtool") else {
        return;
    };
    let folder = TempDir::new().expect("a folder");
    let write = |name: &str, text: String| {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("write a file");
        path
    };
    let alerts_file = super::file(ALERTS);

    // As a rule of its own each, because promtool knows no dashboards.
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).expect("JSON");
    let lines = lines(&dashboard).into_iter().enumerate();
    let rules = lines.map(|(at, (expr, _))| {
        let expr = expr.replace("$__rate_interval", "5m");
        serde_json::json!({"record": format!("line_{at}"), "expr": expr})
    });
    let rules = serde_json::json!({"groups": [{"name": "g", "rules": rules.collect::<Vec<_>>()}]});
    let rules = write("dashboard.yml", rules.to_string());
    run(Command::new(&promtool)
        .args(["check", "rules"])
        .args([&alerts_file, &rules]));

    let tests = include_str!("alerts.yml");
    for alert in alerts() {
        let name = text(&alert, "alert");
        assert!(tests.contains(&format!("alertname=\"{name}\"")), "{name}");
    }
    let tests = tests.replace("ALERTS\n", &format!("{}\n", alerts_file.display()));
    let tests = write("tests.yml", tests);
    run(Command::new(&promtool).args(["test", "rules"]).arg(&tests));
}
