//! From what Kubernetes is told to what podman is told: the pods of `deploy/`, each as the arguments that run its container. What it
//! does not understand it refuses, so that nothing of a manifest is left out unseen.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::tools::{file, python, succeeds, tools};

/// What of a pod we give to a container, or need not: what Kubernetes itself would do with it.
const POD: [&str; 7] = [
    "automountServiceAccountToken",
    "containers",
    "enableServiceLinks",
    "securityContext",
    "terminationGracePeriodSeconds",
    "topologySpreadConstraints",
    "volumes",
];
/// The same of a container.
const CONTAINER: [&str; 15] = [
    "args",
    "command",
    "env",
    "envFrom",
    "image",
    "imagePullPolicy",
    "lifecycle",
    "livenessProbe",
    "name",
    "ports",
    "readinessProbe",
    "resources",
    "securityContext",
    "startupProbe",
    "volumeMounts",
];

/// All objects of a way to deploy.
pub(crate) struct Objects(Vec<Value>);

/// A pod to be.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) addr: IpAddr,
    /// Under which it is known to others, if it is.
    pub(crate) host: Option<String>,
    /// The image, as it is named in the manifest.
    pub(crate) image: String,
    /// Where its readiness is asked for.
    pub(crate) ready: (u16, String),
    /// How its container is run: flags, the image left out, arguments.
    pub(crate) flags: Vec<String>,
    pub(crate) args: Vec<String>,
    /// Seconds it has to end.
    pub(crate) grace: u64,
}

/// Whose pods: a Deployment's or a StatefulSet's.
struct Workload<'a> {
    object: &'a Value,
    objects: &'a Objects,
}

impl Objects {
    /// What `kubectl kustomize` makes of a folder of `deploy/kustomize`; `scratch` is written to.
    pub(crate) fn render(folder: &str, scratch: &Path) -> Self {
        let folder = file("deploy/kustomize").join(folder);
        let yaml = succeeds(Command::new(tools().join("kubectl")).arg("kustomize").arg(folder));
        let written = scratch.join("objects.yaml");
        fs::write(&written, yaml).expect("a file");
        let program = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
        let json = succeeds(python().args(["-c", program]).arg(written));
        Self(serde_json::from_str(&json).expect("a list of objects"))
    }

    fn find(&self, kinds: &[&str], name: &str) -> &Value {
        let found = self
            .0
            .iter()
            .find(|object| kinds.iter().any(|&kind| object["kind"] == kind) && object["metadata"]["name"] == name);
        found.unwrap_or_else(|| panic!("no {kinds:?} {name}"))
    }

    /// The pods of the workload `name`, one at each of `addrs`, whatever number the manifest says. `volumes` has a folder for each Secret and each claim.
    pub(crate) fn pods(&self, name: &str, addrs: &[IpAddr], volumes: &Path) -> Vec<Pod> {
        let workload = Workload { object: self.find(&["Deployment", "StatefulSet"], name), objects: self };
        (0..).zip(addrs).map(|(number, &addr)| workload.pod(&format!("{name}-{number}"), addr, volumes)).collect()
    }
}

impl Workload<'_> {
    fn pod(&self, name: &str, addr: IpAddr, volumes: &Path) -> Pod {
        let spec = &self.object["spec"]["template"]["spec"];
        knows(spec, &POD);
        let [container] = list(&spec["containers"]) else { panic!("one container: {spec}") };
        knows(container, &CONTAINER);
        let settings = self.settings(container, name, addr);
        let expand = |text: &Value| expand(string(text), &settings);
        let mut flags = vec![format!("--name={name}"), format!("--hostname={name}")];
        flags.extend(settings.iter().map(|(name, value)| format!("--env={name}={value}")));
        flags.extend(list(&container["command"]).iter().map(|program| format!("--entrypoint={}", expand(program))));
        flags.extend(confined(&spec["securityContext"], &container["securityContext"]));
        flags.push(format!("--memory={}", quantity(&container["resources"]["limits"]["memory"])));
        flags.extend(list(&container["volumeMounts"]).iter().map(|mount| self.mount(name, spec, mount, volumes)));
        let host = self.object["spec"]["serviceName"].as_str().map(|service| format!("{name}.{service}"));
        Pod {
            name: name.to_owned(),
            addr,
            host,
            image: string(&container["image"]).to_owned(),
            ready: probe(container),
            flags,
            args: list(&container["args"]).iter().map(expand).collect(),
            grace: spec["terminationGracePeriodSeconds"].as_u64().expect("seconds"),
        }
    }

    /// Its environment.
    fn settings(&self, container: &Value, name: &str, addr: IpAddr) -> BTreeMap<String, String> {
        let mut settings = BTreeMap::new();
        for from in list(&container["envFrom"]) {
            let map = self.objects.find(&["ConfigMap"], string(&from["configMapRef"]["name"]));
            let data = map["data"].as_object().expect("settings");
            settings.extend(data.iter().map(|(name, value)| (name.clone(), string(value).to_owned())));
        }
        for variable in list(&container["env"]) {
            let from = &variable["valueFrom"];
            let value = match (variable["value"].as_str(), from["fieldRef"]["fieldPath"].as_str()) {
                (Some(value), _) => value.to_owned(),
                (None, Some("metadata.name")) => name.to_owned(),
                (None, Some("status.podIP")) => addr.to_string(),
                // A label that is not there.
                (None, Some("metadata.labels['topology.kubernetes.io/zone']")) => String::new(),
                (None, Some(field)) => panic!("the field {field} is unknown here"),
                (None, None) => {
                    let resource = string(&from["resourceFieldRef"]["resource"]);
                    let (list, what) = resource.split_once('.').expect("requests.cpu, say");
                    quantity(&container["resources"][list][what]).to_string()
                }
            };
            settings.insert(string(&variable["name"]).to_owned(), value);
        }
        settings
    }

    /// A Secret is a folder, read-only; what the pod claims is one of its own.
    fn mount(&self, pod: &str, spec: &Value, mount: &Value, volumes: &Path) -> String {
        let (name, path) = (&mount["name"], string(&mount["mountPath"]));
        let claims = list(&self.object["spec"]["volumeClaimTemplates"]);
        if claims.iter().any(|claim| claim["metadata"]["name"] == *name) {
            return format!("--volume={}:{path}", volumes.join(format!("{}-{pod}", string(name))).display());
        }
        let volume = list(&spec["volumes"]).iter().find(|volume| volume["name"] == *name).expect("the volume is there");
        let secret = volume["secret"]["secretName"].as_str().unwrap_or_else(|| panic!("no stand-in for {volume}"));
        assert_eq!(mount["readOnly"], true, "{mount}");
        format!("--volume={}:{path}:ro", volumes.join(secret).display())
    }
}

/// What a container may not do. (Podman's own profile of system calls is there unless it is taken away.)
fn confined(pod: &Value, container: &Value) -> Vec<String> {
    assert_eq!(pod["seccompProfile"]["type"], "RuntimeDefault", "{pod}");
    assert_eq!(container["allowPrivilegeEscalation"], false, "{container}");
    assert_eq!(container["readOnlyRootFilesystem"], true, "{container}");
    let (user, group) = (&pod["runAsUser"], &pod["runAsGroup"]);
    let mut flags = vec![format!("--user={user}:{group}"), format!("--group-add={}", pod["fsGroup"])];
    flags.extend(["--security-opt=no-new-privileges", "--read-only", "--read-only-tmpfs=false"].map(str::to_owned));
    flags.extend(list(&container["capabilities"]["drop"]).iter().map(|what| format!("--cap-drop={}", string(what))));
    flags
}

/// Port and path.
fn probe(container: &Value) -> (u16, String) {
    let get = &container["readinessProbe"]["httpGet"];
    let port = list(&container["ports"]).iter().find(|port| port["name"] == get["port"]).expect("a port of that name");
    (port["containerPort"].as_u64().expect("a number") as u16, string(&get["path"]).to_owned())
}

/// `$(NAME)` in `text` as the variable of that name.
fn expand(text: &str, settings: &BTreeMap<String, String>) -> String {
    let mut expanded = text.to_owned();
    for (name, value) in settings {
        expanded = expanded.replace(&format!("$({name})"), value);
    }
    assert!(!expanded.contains("$("), "a variable in {text} is not set");
    expanded
}

/// Bytes, or cores, a part of one as one.
fn quantity(of: &Value) -> u64 {
    let text = string(of);
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let number: u64 = digits.parse().unwrap_or_else(|_| panic!("{text} is no quantity"));
    match &text[digits.len()..] {
        "" => number,
        "m" => number.div_ceil(1000),
        "Mi" => number << 20,
        "Gi" => number << 30,
        unit => panic!("the unit {unit} is unknown here"),
    }
}

/// Fails when `object` says something that is not among `known`.
fn knows(object: &Value, known: &[&str]) {
    let fields = object.as_object().expect("an object").keys();
    let unknown: Vec<&String> = fields.filter(|field| !known.contains(&field.as_str())).collect();
    assert!(unknown.is_empty(), "no stand-in for {unknown:?}");
}

fn list(of: &Value) -> &[Value] {
    of.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn string(of: &Value) -> &str {
    of.as_str().unwrap_or_else(|| panic!("a text: {of}"))
}
