//! The Helm chart, as helm renders it.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use serde_json::Value;
use tempfile::TempDir;

use super::{file, list, read, run, text, tool, yaml};
use crate::S3_PROXY;

const CHART: &str = "deploy/helm/s3-proxy";

/// A version of Kubernetes that has all that the chart uses.
const KUBERNETES: &str = "1.31.0";

/// Values that turn everything on.
const VALUES: &str = "
config:
  buckets:
    - {path_prefix: /models, bucket: my-models, region: us-east-1, access_key: '${ACCESS_KEY}', secret_key: '${SECRET_KEY}'}
  cache: {disk: {max_size_gb: 5}, default_ttl: 2h}
secretName: keys
tls: {secretName: certificate}
serviceMonitor: {enabled: true}
prometheusRule: {enabled: true}
dashboard: {enabled: true}
";

/// The objects that the chart renders.
struct Rendered(Vec<Value>);

// === impl Rendered ===

impl Rendered {
    fn new(helm: &Path, values: &Path) -> Self {
        let mut command = Command::new(helm);
        command.args(["template", "files", "--kube-version", KUBERNETES]);
        let text = run(command.arg(file(CHART)).arg("--values").arg(values));
        let documents = text.split("\n---\n").map(yaml);
        Rendered(documents.filter(|document| !document.is_null()).collect())
    }

    fn all(&self, kind: &str) -> Vec<&Value> {
        let all = self.0.iter().filter(|object| object["kind"] == kind);
        all.collect()
    }

    fn only(&self, kind: &str) -> &Value {
        let all = self.all(kind);
        let [only] = all[..] else {
            panic!("{} of {kind}", all.len());
        };
        only
    }
}

/// True if a selector takes these labels.
fn selects(selector: &Value, labels: &Value) -> bool {
    let selector = selector.as_object().expect("a selector");
    !selector.is_empty() && selector.iter().all(|(name, value)| labels[name] == *value)
}

fn names(of: &Value) -> BTreeSet<&str> {
    list(of).iter().map(|of| text(of, "name")).collect()
}

#[test]
fn helm_accepts_the_chart_and_its_parts_agree() {
    let Some(helm) = tool("helm") else {
        return;
    };
    let folder = TempDir::new().expect("a folder");
    let values = folder.path().join("values.yaml");
    fs::write(&values, VALUES).expect("write the values");
    let mut lint = Command::new(&helm);
    lint.args(["lint", "--strict", "--kube-version", KUBERNETES]);
    run(lint.arg(file(CHART)).arg("--values").arg(&values));
    let rendered = Rendered::new(&helm, &values);

    let set = &rendered.only("StatefulSet")["spec"];
    let labels = &set["template"]["metadata"]["labels"];
    let pod = &set["template"]["spec"];
    let [container] = list(&pod["containers"]) else {
        panic!("one container");
    };
    assert!(selects(&set["selector"]["matchLabels"], labels));

    // Nothing of the Pod may be changed by who takes over the process.
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(
        pod["securityContext"]["seccompProfile"]["type"],
        "RuntimeDefault"
    );
    let security = &container["securityContext"];
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert_eq!(security["capabilities"]["drop"], serde_json::json!(["ALL"]));

    let ports = names(&container["ports"]);
    for (probe, path) in [
        ("startupProbe", "/health"),
        ("livenessProbe", "/health"),
        ("readinessProbe", "/ready"),
    ] {
        let probe = &container[probe]["httpGet"];
        assert_eq!(probe["path"], path);
        assert!(ports.contains(text(probe, "port")));
    }
    let claims = list(&set["volumeClaimTemplates"]).iter();
    let mut volumes: BTreeSet<_> = claims
        .map(|claim| text(&claim["metadata"], "name"))
        .collect();
    volumes.extend(names(&pod["volumes"]));
    assert_eq!(names(&container["volumeMounts"]), volumes);

    let services = rendered.all("Service");
    for service in &services {
        assert!(selects(&service["spec"]["selector"], labels));
        for port in list(&service["spec"]["ports"]) {
            assert!(ports.contains(text(port, "targetPort")));
        }
    }
    let headless = services
        .iter()
        .find(|it| it["metadata"]["name"] == set["serviceName"]);
    assert_eq!(
        headless.expect("the set's service")["spec"]["clusterIP"],
        "None"
    );
    let budget = &rendered.only("PodDisruptionBudget")["spec"];
    assert!(selects(&budget["selector"]["matchLabels"], labels));
    assert_eq!(budget["maxUnavailable"], 1);
    let account = rendered.only("ServiceAccount");
    assert_eq!(account["metadata"]["name"], pod["serviceAccountName"]);

    let monitor = &rendered.only("ServiceMonitor")["spec"];
    let selector = &monitor["selector"]["matchLabels"];
    let monitored = services
        .iter()
        .filter(|it| selects(selector, &it["metadata"]["labels"]));
    let [monitored] = monitored.collect::<Vec<_>>()[..] else {
        panic!("one service is monitored");
    };
    let [endpoint] = list(&monitor["endpoints"]) else {
        panic!("one endpoint");
    };
    assert!(names(&monitored["spec"]["ports"]).contains(text(endpoint, "port")));
    // The name of the job, which the alerts expect.
    let job = &monitored["metadata"]["labels"][text(monitor, "jobLabel")];
    assert_eq!(*job, "s3-proxy");
    let alerts = yaml(&read("deploy/prometheus/alerts.yml"));
    assert_eq!(rendered.only("PrometheusRule")["spec"], alerts);
    let maps = rendered.all("ConfigMap");
    let file_of = |name: &str| maps.iter().find_map(|map| map["data"][name].as_str());
    let dashboard = file_of("s3-proxy.json").expect("the dashboard");
    assert_eq!(yaml(dashboard), yaml(&read("deploy/grafana/s3-proxy.json")));

    // The proxy accepts what it will be given.
    let config = yaml(file_of("config.yaml").expect("the configuration"));
    assert_eq!(config["cache"]["default_ttl"], "2h");
    let tls = &config["server"]["tls"];
    let mounts = list(&container["volumeMounts"]).iter();
    let mounts: Vec<_> = mounts.map(|mount| text(mount, "mountPath")).collect();
    for (path, listed) in [
        (text(tls, "certificate"), "/tls.crt"),
        (text(tls, "key"), "/tls.key"),
        (text(&config["cache"]["disk"], "path"), ""),
    ] {
        let mount = path.strip_suffix(listed).expect("a name of a Secret's key");
        assert!(mounts.contains(&mount), "{path}");
    }
    let mut config = config.clone();
    config["server"]
        .as_object_mut()
        .expect("a section")
        .remove("tls");
    config["cache"]["disk"]["path"] = folder.path().to_str().expect("UTF-8").into();
    let path = folder.path().join("config.yaml");
    fs::write(&path, config.to_string()).expect("write the configuration");
    run(Command::new(S3_PROXY)
        .env("ACCESS_KEY", "a")
        .env("SECRET_KEY", "b")
        .args(["check", "--config"])
        .arg(&path));
}

/// The message with which helm refuses values.
fn refusal(helm: &Path, values: &str) -> String {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("values.yaml");
    fs::write(&path, values).expect("write the values");
    let mut command = Command::new(helm);
    command.args(["template", "files", "--kube-version", KUBERNETES]);
    let command = command.arg(file(CHART)).arg("--values").arg(path);
    let output = command.output().expect("run helm");
    assert!(!output.status.success(), "{values}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_chart_refuses_values_that_cannot_work() {
    let Some(helm) = tool("helm") else {
        return;
    };
    let said = refusal(&helm, "{}");
    let expected = "config.buckets is empty: name at least one";
    assert!(said.contains(expected), "{said}");

    let bucket = "bucket: b, region: us-east-1, access_key: '${A}'";
    for (secret, key) in [
        ("secret_key: plain-text", "secret_key"),
        ("secret_key: 'plain-text-${A}'", "secret_key"),
        (
            "clients: [{access_key: plain-text, secret_key: '${B}'}]",
            "access_key",
        ),
    ] {
        let values = format!("config: {{buckets: [{{{bucket}, {secret}}}]}}");
        let said = refusal(&helm, &values);
        let expected = format!("config.buckets[0]: {key} is a plain value");
        assert!(said.contains(&expected), "{said}");
        assert!(!said.contains("plain-text"), "{said}");
    }

    let values = format!("config: {{buckets: [{{{bucket}}}], admin: {{token: plain-text}}}}");
    let said = refusal(&helm, &values);
    assert!(
        said.contains("config.admin: token is a plain value"),
        "{said}"
    );
    assert!(!said.contains("plain-text"), "{said}");

    let bucket = "config: {buckets: [{bucket: b, region: us-east-1}]}";
    for (mistake, key) in [
        ("replicas: 3", "replicas"),
        ("persistence: {size: 100 GB}", "size"),
        ("service: {port: 0}", "port"),
    ] {
        let said = refusal(&helm, &format!("{bucket}\n{mistake}\n"));
        assert!(said.contains(key), "{said}");
    }
}

#[test]
fn a_cluster_may_assign_users_itself() {
    let Some(helm) = tool("helm") else {
        return;
    };
    let folder = TempDir::new().expect("a folder");
    let values = folder.path().join("values.yaml");
    let users = "podSecurityContext: {runAsUser: null, runAsGroup: null, fsGroup: null}\n";
    fs::write(&values, format!("{VALUES}{users}")).expect("write the values");
    let rendered = Rendered::new(&helm, &values);
    let pod = &rendered.only("StatefulSet")["spec"]["template"]["spec"];
    let context = pod["securityContext"].as_object().expect("a context");
    for user in ["runAsUser", "runAsGroup", "fsGroup"] {
        assert!(!context.contains_key(user), "{user}");
    }
    assert_eq!(context["runAsNonRoot"], true);
}

#[test]
fn the_chart_has_the_version_of_the_proxy() {
    let chart = yaml(&read(&format!("{CHART}/Chart.yaml")));
    for version in ["version", "appVersion"] {
        assert_eq!(chart[version], env!("CARGO_PKG_VERSION"), "{version}");
    }
}
