"""What pods are held to: how little they may do, how they end, who may reach them."""

ROLES = ["gateway", "coordinator", "expert-node"]
# Seconds: no new requests come, what runs ends, slack.
PRE_STOP, DRAIN, SLACK = 15, 45, 15
# Who opens connections to whom, and at which port; names are asked of the cluster's DNS by all.
EDGES = {
    ("anybody", "gateway", 8080),
    ("anybody", "gateway", 8081),
    ("gateway", "coordinator", 7070),
    ("coordinator", "expert-node", 7071),
    ("gateway", "etcd", 2379),
    ("coordinator", "etcd", 2379),
    ("expert-node", "etcd", 2379),
    ("etcd", "etcd", 2380),
}


def template(item):
    """The pods that `item` makes, if it makes any."""
    return item.get("spec", {}).get("template") if item["kind"] in ("Deployment", "StatefulSet") else None


def containers(item):
    made = template(item)
    return made["spec"].get("initContainers", []) + made["spec"]["containers"] if made else []


def component(item):
    return item["metadata"]["labels"].get("app.kubernetes.io/component")


def judge(item):
    made = template(item)
    if not made:
        return
    pod, part = made["spec"], component(item)
    wanted = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    yield from missing(pod.get("securityContext", {}), wanted, "the pod's security")
    yield from missing(pod, {"automountServiceAccountToken": False, "enableServiceLinks": False}, "the pod")
    wanted = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    for container in containers(item):
        yield from missing(container.get("securityContext", {}), wanted, container["name"])
        if "memory" not in container["resources"]["limits"]:
            yield f"{container['name']} has no limit of memory"
    spread = {each["topologyKey"] for each in pod["topologySpreadConstraints"]}
    if spread != {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}:
        yield f"spread over {spread}"
    if item["kind"] == "StatefulSet":
        yield from missing(item["spec"], {"podManagementPolicy": "Parallel"}, "the set")
    if part in ROLES:
        yield from role(pod, part)


def role(pod, part):
    main = pod["containers"][0]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        if "httpGet" not in main.get(probe, {}):
            yield f"no {probe}"
    stop = main.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    # Gateways are found by a Service, which takes a while to forget one. The others say that they leave to those who use them.
    if stop != (PRE_STOP if part == "gateway" else 0):
        yield f"waits {stop} s before it stops"
    if pod["terminationGracePeriodSeconds"] < PRE_STOP + DRAIN + SLACK:
        yield f"{pod['terminationGracePeriodSeconds']} s are too little for {PRE_STOP} + {DRAIN} + {SLACK}"
    for volume in pod["volumes"]:
        if volume["name"] == "weights" and not volume.get("hostPath") and not volume["persistentVolumeClaim"].get("readOnly"):
            yield "the weights can be written"
    for container in pod.get("initContainers", []) + pod["containers"]:
        writable = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
        if writable:
            yield f"{container['name']} can write {writable}"


def missing(found, wanted, what):
    for key, value in wanted.items():
        if found.get(key) != value:
            yield f"{what}: {key} is {found.get(key)!r}, not {value!r}"


def selected(items):
    """Services and budgets that select no pods, or name a port that these have not; pods without a budget."""
    made = {component(item): template(item) for item in items.values() if template(item)}
    budgeted = set()
    for key, item in items.items():
        spec = item.get("spec", {})
        selector = spec.get("selector", {}) if item["kind"] in ("Service", "PodDisruptionBudget") else None
        if selector is None:
            continue
        labels = selector.get("matchLabels", selector)
        chosen = {part for part, pod in made.items() if labels.items() <= pod["metadata"]["labels"].items()}
        if not chosen:
            yield f"{key} selects no pod"
        if item["kind"] == "PodDisruptionBudget":
            budgeted |= chosen
            yield from (f"{key}: {wrong}" for wrong in missing(spec, {"maxUnavailable": 1}, "the budget"))
        for port in spec.get("ports", []):
            open_at = {p["name"] for part in chosen for c in made[part]["spec"]["containers"] for p in c["ports"]}
            if port["targetPort"] not in open_at:
                yield f"{key}: no container has the port {port['targetPort']}"
    yield from (f"the pods of {part} have no budget" for part in made.keys() - budgeted)


def edges(items):
    """An edge has to be open at both ends, and the ends that are open are those of edges."""
    policies = [item["spec"] for item in items.values() if item["kind"] == "NetworkPolicy"]
    denied = [p for p in policies if "app.kubernetes.io/component" not in p["podSelector"]["matchLabels"]]
    if [set(p["policyTypes"]) for p in denied] != [{"Ingress", "Egress"}] or denied[0].get("ingress"):
        yield "what is not let through is not denied"
    into, out = set(), set()
    for policy in policies:
        part = policy["podSelector"]["matchLabels"].get("app.kubernetes.io/component")
        for rule in policy.get("ingress", []):
            into |= {(peer, part, port) for peer in peers(rule, "from") for port in ports(rule)}
        for rule in policy.get("egress", []):
            out |= {(part, peer, port) for peer in peers(rule, "to") for port in ports(rule)}
    names = {edge for edge in out if edge[2] == 53}
    wanted_out = {edge for edge in EDGES if edge[0] != "anybody"}
    for what, found, wanted in (("in", into, EDGES), ("out", out - names, wanted_out)):
        yield from (f"let {what}, though nobody needs it: {edge}" for edge in found - wanted)
        yield from (f"not let {what}: {edge}" for edge in wanted - found)


def peers(rule, direction):
    if direction not in rule:
        return ["anybody"]
    return [each.get("podSelector", {}).get("matchLabels", {}).get("app.kubernetes.io/component", "others") for each in rule[direction]]


def ports(rule):
    return [each["port"] for each in rule["ports"]]
