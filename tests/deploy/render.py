"""Kubernetes objects from both sources: Kustomize's folders and the chart; and the chart's output written as Kustomize's base.
`render.py TOOLS OUT` leaves all of them in the folder OUT.

A variant is one way to deploy: a folder of Kustomize's and the values that ask the chart for the same.
"""
import os
import subprocess
import sys
import tempfile

import yaml

HERE = os.path.dirname(os.path.abspath(__file__))
DEPLOY = os.path.normpath(os.path.join(HERE, "../../deploy"))
CHART = os.path.join(DEPLOY, "helm/tramontane")
KUSTOMIZE = os.path.join(DEPLOY, "kustomize")
# Each component as `helm template` is asked for it.
COMPONENTS = {
    "monitoring": ["monitoring.enabled=true"],
    "cert-manager": ["certManager.enabled=true"],
    "tracing": ["tracing.endpoint=http://collector.observability:4317"],
    "keda": ["autoscaling.kind=keda"],
    "hpa": ["autoscaling.kind=hpa"],
    "external-etcd": [
        "etcd.enabled=false",
        "etcd.endpoints={etcd-1.example.com:2379,etcd-2.example.com:2379,etcd-3.example.com:2379}",
        "etcd.cidr=10.0.0.0/8",
    ],
    "weights-host-path": ["weights.hostPath=/var/lib/tramontane/models"],
}
OVERLAYS = ["cpu", "gpu", "single-node"]
MADE = "# Made from the chart in deploy/helm/tramontane; do not change it here.\n"


class Tools:
    """The programs, in the folder that ./test fills."""

    def __init__(self, folder):
        self.folder = folder

    def run(self, program, *args):
        path = os.path.join(self.folder, program)
        # No configuration of the user's is read or written.
        env = {"PATH": os.environ["PATH"], "HOME": self.folder}
        done = subprocess.run([path, *args], capture_output=True, text=True, env=env)
        if done.returncode:
            raise SystemExit(f"{program} {' '.join(args)}: {done.stderr}")
        return done.stdout

    def helm(self, sets=(), values=None):
        args = ["template", "tramontane", CHART, "--namespace", "tramontane"]
        args += [arg for each in sets for arg in ("--set", each)]
        return self.run("helm", *args, *(["--values", values] if values else []))

    def kustomize(self, folder):
        return self.run("kubectl", "kustomize", folder)


def variants(tools):
    """Each variant's name, and its objects by Kustomize and by the chart."""
    yield "base", tools.kustomize(f"{KUSTOMIZE}/base"), tools.helm()
    for name in OVERLAYS:
        yield name, tools.kustomize(f"{KUSTOMIZE}/overlays/{name}"), tools.helm(values=f"{DEPLOY}/helm/values/{name}.yaml")
    for name, sets in COMPONENTS.items():
        # Kustomize takes relative paths only.
        with tempfile.TemporaryDirectory() as folder:
            base, component = (os.path.relpath(f"{KUSTOMIZE}/{part}", os.path.realpath(folder)) for part in ("base", f"components/{name}"))
            with open(f"{folder}/kustomization.yaml", "w") as file:
                yaml.safe_dump({"resources": [base], "components": [component]}, file)
            yield name, tools.kustomize(folder), tools.helm(sets)


def by_template(rendered):
    """What `helm template` says, by the template that it comes from."""
    files = {}
    for document in rendered.split("---\n# Source: tramontane/templates/")[1:]:
        name, text = document.split("\n", 1)
        files[name] = files.get(name, MADE) + ("---\n" if name in files else "") + text.strip("\n") + "\n"
    return files


def made(charts):
    """The files that are made from the chart, by path, with their text; `charts` are the variants as the chart has them."""
    base = by_template(charts["base"])
    files = {f"{KUSTOMIZE}/base/{name}": text for name, text in base.items()}
    for component in COMPONENTS:
        added = {name: text for name, text in by_template(charts[component]).items() if name not in base}
        files.update({f"{KUSTOMIZE}/components/{component}/{name}": text for name, text in added.items()})
    return files


def main(folder, out):
    for name, kustomize, chart in variants(Tools(folder)):
        for source, text in (("kustomize", kustomize), ("chart", chart)):
            with open(f"{out}/{name}.{source}.yaml", "w") as file:
                file.write(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
