"""What the manifests are held to, one check a name: `check.py RENDERED CHECK [ARGUMENT…]`, where render.py has left them in the
folder RENDERED. Ends with what is wrong, if anything is."""
import os
import re
import sys

import kubernetes_validate
import names
import pods
import render
import yaml

# Two of those that kubernetes-validate has the schemas of: with the oldest one the zone's label is not on pods yet.
KUBERNETES = ["1.32.0", "1.37.0"]
# Kinds that no schema of Kubernetes knows, with the fields of `spec` that each must have.
FOREIGN = {
    "monitoring.coreos.com/v1 ServiceMonitor": {"selector", "endpoints"},
    "monitoring.coreos.com/v1 PrometheusRule": {"groups"},
    "keda.sh/v1alpha1 ScaledObject": {"scaleTargetRef", "minReplicaCount", "maxReplicaCount", "triggers"},
    "cert-manager.io/v1 Issuer": set(),
    "cert-manager.io/v1 Certificate": {"secretName", "issuerRef"},
}


class Rendered:
    """All variants, as both sources have them."""

    def __init__(self, folder):
        names = ["base", *render.OVERLAYS, *render.COMPONENTS]
        self.charts = {name: read(f"{folder}/{name}.chart.yaml") for name in names}
        self.kustomize = {name: objects(read(f"{folder}/{name}.kustomize.yaml")) for name in names}

    def each(self):
        """Every object of every variant, and where it is."""
        for variant, items in self.kustomize.items():
            for key, item in items.items():
                yield f"{variant}: {key}", item


def read(path):
    with open(path) as file:
        return file.read()


def objects(text):
    """The objects in `text` by kind and name."""
    items = [each for each in yaml.load_all(text, yaml.CSafeLoader) if each]
    named = {f"{each['kind']}/{each['metadata']['name']}": each for each in items}
    assert len(named) == len(items), "two objects of one kind have one name"
    return named


def same(rendered):
    """Kustomize and the chart render the same objects."""
    for variant, kustomize in rendered.kustomize.items():
        chart = objects(rendered.charts[variant])
        for key in sorted(kustomize.keys() | chart.keys()):
            for difference in differences(kustomize.get(key), chart.get(key), ""):
                yield f"{variant}: {key}: {difference}"


def differences(left, right, path):
    if isinstance(left, dict) and isinstance(right, dict):
        for key in sorted(left.keys() | right.keys()):
            yield from differences(left.get(key), right.get(key), f"{path}.{key}")
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for at, (one, other) in enumerate(zip(left, right)):
            yield from differences(one, other, f"{path}[{at}]")
    elif left != right:
        yield f"{path}: Kustomize has {left!r}, the chart {right!r}"


def made(rendered):
    """Files that are made from the chart are as it makes them; UPDATE_DEPLOY=1 writes them."""
    for path, text in render.made(rendered.charts).items():
        if os.environ.get("UPDATE_DEPLOY"):
            with open(path, "w") as file:
                file.write(text)
        elif not os.path.exists(path) or read(path) != text:
            yield f"{path} is not what the chart renders: UPDATE_DEPLOY=1 cargo test -p tramontane --test deploy writes it"


def schemas(rendered):
    """Every object is one that Kubernetes knows, without a field too many; of kinds that others define, the frame is."""
    judged = []
    for at, item in rendered.each():
        kind = f"{item['apiVersion']} {item['kind']}"
        if kind in FOREIGN:
            yield from (f"{at}: {wrong}" for wrong in foreign(item, FOREIGN[kind]))
        elif item not in judged:
            judged.append(item)
            for version in KUBERNETES:
                try:
                    kubernetes_validate.validate(item, version, strict=True)
                except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
                    yield f"{at}: Kubernetes {version}: {getattr(error, 'message', error)}"


def foreign(item, wanted):
    if item.keys() != {"apiVersion", "kind", "metadata", "spec"}:
        yield f"has {sorted(item)}"
    for missing in wanted - item["spec"].keys():
        yield f"spec.{missing} is missing"


def references(rendered):
    """What an object names is there: ConfigMaps, Services of StatefulSets, targets of autoscalers and budgets, ports of Services."""
    for variant, items in rendered.kustomize.items():
        for key, item in items.items():
            for wanted in references_of(item):
                if wanted not in items:
                    yield f"{variant}: {key} names {wanted}, which is not there"
        yield from (f"{variant}: {wrong}" for wrong in pods.selected(items))


def references_of(item):
    spec = item.get("spec", {})
    if item["kind"] == "StatefulSet":
        yield f"Service/{spec['serviceName']}"
    if "scaleTargetRef" in spec:
        yield f"{spec['scaleTargetRef']['kind']}/{spec['scaleTargetRef']['name']}"
    for container in pods.containers(item):
        for source in container.get("envFrom", []):
            yield f"ConfigMap/{source['configMapRef']['name']}"


def locked(rendered):
    """Pods are as restricted as they can be, end in time, and are asked what they must be asked."""
    for at, item in rendered.each():
        yield from (f"{at}: {wrong}" for wrong in pods.judge(item))


def edges(rendered):
    """Network policies let through what the roles need, and nothing else."""
    yield from pods.edges(rendered.kustomize["base"])


def in_binary(rendered, binary):
    """Every flag, setting, port and probe that the manifests name is one of the binary's."""
    for at, item in rendered.each():
        yield from (f"{at}: {wrong}" for wrong in names.judge(item, binary))


def metrics(rendered):
    """Every metric in rules, autoscalers and dashboard is one that is exported."""
    texts = {at: str(item) for at, item in rendered.each() if item["kind"] in ("PrometheusRule", "HorizontalPodAutoscaler", "ScaledObject")}
    texts["dashboard"] = "\n".join(names.dashboard_queries())
    assert len(texts) >= 4, "the walk missed them"
    for at, text in texts.items():
        for name in sorted(set(re.findall(r"\btramontane_[a-z0-9_]+", text))):
            if not names.is_metric(name):
                yield f"{at}: {name} is no metric of ours"


def queries(_, out):
    """The queries that no rule holds, written to `out` as rules, for promtool to read."""
    rules = [{"record": f"query:{at}", "expr": query} for at, query in enumerate(names.dashboard_queries())]
    with open(out, "w") as file:
        yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}, file)
    return []


def main(folder, check, *arguments):
    checks = [same, made, schemas, references, locked, edges, in_binary, metrics, queries]
    wrong = list({each.__name__: each for each in checks}[check](Rendered(folder), *arguments))
    if wrong:
        sys.exit("\n".join(dict.fromkeys(wrong)))


if __name__ == "__main__":
    main(*sys.argv[1:])
