"""The names in the manifests that the binary must know: flags, settings, ports, probes, metrics."""
import functools
import json
import os
import re
import subprocess

import pods
import render

# Where the metrics' names stand.
METRICS_OF = ["cli", "cluster", "coordinator", "expert-node", "gateway"]
ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../..")


def constants():
    for crate in METRICS_OF:
        with open(os.path.join(ROOT, crate, "src/metrics.rs")) as file:
            found = re.findall(r'const [A-Z0-9_]+: &str = "([a-z0-9_]+)";', file.read())
        assert found, f"no names of metrics in {crate}"
        yield from found


# Counters are shown with `_total` behind their names, the model's information with `_info`.
NAMES = set(constants())
METRICS = NAMES | {name + "_total" for name in NAMES} | {"model_info"}
HISTOGRAMS = {name for name in NAMES if name.endswith("_seconds") and "timestamp" not in name or name in ("request_prompt_tokens", "request_generation_tokens")}
# The paths that the listener of --metrics answers, and the flags that say where a port is.
PROBES = {"/healthz", "/readyz"}
LISTENERS = {"--http", "--grpc", "--listen", "--metrics"}
ETCD_PORTS = {"--listen-client-urls", "--listen-peer-urls", "--listen-metrics-urls"}


@functools.cache
def help_of(binary, *command):
    done = subprocess.run([binary, *command, "--help"], capture_output=True, text=True, check=True)
    return " ".join(done.stdout.split())


@functools.cache
def flags_of(binary, *command):
    return set(re.findall(r"--[a-z][a-z0-9-]+", help_of(binary, *command)))


@functools.cache
def settings_of(binary, *command):
    return set(re.findall(r"\[env: (TRAMONTANE_[A-Z_]+)", help_of(binary, *command)))


@functools.cache
def etcd_flags():
    # It says so on stderr.
    done = subprocess.run(["etcd", "--help"], capture_output=True, text=True)
    return set(re.findall(r"--[a-z][a-z0-9-]+", done.stdout + done.stderr))


def judge(item, binary):
    """What `item` names that the binary does not know."""
    if item["kind"] == "ConfigMap":
        known = set().union(*(settings_of(binary, role) for role in pods.ROLES))
        wanted = {key for key in item.get("data", {}) if key.startswith("TRAMONTANE_")}
        yield from (f"no role has a setting {key}" for key in sorted(wanted - known))
    for container in pods.containers(item):
        of_etcd = container["name"] == "etcd"
        yield from (etcd if of_etcd else ours)(container, binary)
        yield from listening(container, ETCD_PORTS if of_etcd else LISTENERS)


def ours(container, binary):
    words = [word for word in container["args"] if not word.startswith("-")]
    command = words[:2] if words[0] == "models" else words[:1]
    flags = {word.split("=")[0] for word in container["args"] if word.startswith("--")}
    yield from (f"`{' '.join(command)}` has no {flag}" for flag in sorted(flags - flags_of(binary, *command)))
    settings = {each["name"] for each in container.get("env", []) if each["name"].startswith("TRAMONTANE_")}
    yield from (f"`{' '.join(command)}` has no setting {name}" for name in sorted(settings - settings_of(binary, *command)))
    given = {each["name"] for each in container.get("env", [])} | {"TRAMONTANE_MODEL"}
    used = set(re.findall(r"\$\(([A-Z_]+)\)", " ".join(container["args"])))
    yield from (f"$({name}) is set nowhere" for name in sorted(used - given))
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        path = container.get(kind, {}).get("httpGet", {}).get("path")
        if path and path not in PROBES:
            yield f"{path} is no probe"
    yield from mounted(container)


def etcd(container, _):
    flags = {word.split("=")[0] for word in container["args"]}
    yield from (f"etcd has no {flag}" for flag in sorted(flags - etcd_flags()))
    yield from mounted(container)


def mounted(container):
    """Files that arguments name are in what is mounted."""
    places = tuple(mount["mountPath"] + "/" for mount in container.get("volumeMounts", []))
    for word in container["args"]:
        file = word.split("=")[-1]
        if file.startswith("/") and not file.startswith(places):
            yield f"{word}: no such volume"


def listening(container, flags):
    """Ports are those that it is told to listen on, and probes ask one of them."""
    given = dict(word.split("=", 1) for word in container["args"] if "=" in word)
    told = {int(given[flag].rsplit(":", 1)[1]) for flag in flags & given.keys()}
    # A coordinator's front door is not asked from outside: it stays where nobody else can reach it.
    named = {port["containerPort"] for port in container.get("ports", [])}
    if told != named:
        yield f"listens on {sorted(told)}, and names the ports {sorted(named)}"
    names = {port["name"] for port in container.get("ports", [])}
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container.get(kind, {})
        port = probe.get("httpGet", probe.get("tcpSocket", {})).get("port")
        if port and port not in names:
            yield f"{kind} asks the port {port}, which it has not"


def is_metric(name):
    name = name.removeprefix("tramontane_")
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    return base in HISTOGRAMS if base != name else name in METRICS and name not in HISTOGRAMS


def dashboard_queries():
    with open(os.path.join(render.CHART, "files/dashboard.json")) as file:
        dashboard = json.load(file)
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(queries) > 20, "the walk missed the panels"
    # As Grafana would have them.
    return [query.replace("$__rate_interval", "5m").replace("$model", ".*") for query in queries]
