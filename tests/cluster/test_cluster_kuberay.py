"""cluster/kuberay.yaml has the fields of KubeRay's definitions, asks for a token and scales; Ray's autoscaler reads it.

The definitions themselves (a megabyte of YAML in the chart of the operator) come with no package, so FIELDS below holds
those fields of the reference of KubeRay 1.6.2 that the file may use. An unknown one is refused, as Kubernetes does.
"""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml


def closed(required: str = "", **fields: dict[str, Any]) -> dict[str, Any]:
    """The schema of an object with these fields and no others."""
    return {"type": "object", "properties": fields, "required": required.split(), "additionalProperties": False}


def each(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": schema, "minItems": 1}


TEXT, COUNT, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
NAME = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}
METADATA = closed("name", name=NAME, labels=TEXTS)
AMOUNTS = {"type": "object", "additionalProperties": {"type": ["string", "integer"]}}
CONTAINER_SECURITY = closed(allowPrivilegeEscalation=FLAG, capabilities=closed(drop=each(TEXT)))
CONTAINER = closed(
    "name image resources",
    name=TEXT,
    image=TEXT,
    securityContext=CONTAINER_SECURITY,
    env=each(closed("name value", name=TEXT, value=TEXT)),
    envFrom=each(closed(secretRef=closed("name", name=TEXT, optional=FLAG))),
    ports=each(closed("containerPort", name=TEXT, containerPort=COUNT)),
    resources=closed(limits=AMOUNTS, requests=AMOUNTS),
    volumeMounts=each(closed("name mountPath", name=TEXT, mountPath=TEXT)),
)
POD = closed(
    "containers",
    securityContext=closed(runAsNonRoot=FLAG, runAsUser=COUNT, fsGroup=COUNT),
    tolerations=each(closed(key=TEXT, operator={"enum": ["Exists", "Equal"]}, effect=TEXT)),
    containers=each(CONTAINER),
    volumes=each(closed("name", name=TEXT, emptyDir=closed(sizeLimit=TEXT))),
)
TEMPLATE = closed("spec", metadata=closed(labels=TEXTS, annotations=TEXTS), spec=POD)
GROUP = {"rayStartParams": TEXTS, "template": TEMPLATE}
CLUSTER = closed(
    "headGroupSpec rayVersion",
    rayVersion=TEXT,
    authOptions=closed(mode={"enum": ["disabled", "token"]}, secretName=TEXT),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=closed(
        idleTimeoutSeconds=COUNT,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        securityContext=CONTAINER_SECURITY,
    ),
    headGroupSpec=closed("template", serviceType=TEXT, **GROUP),
    workerGroupSpecs=each(
        closed("groupName template", groupName=TEXT, replicas=COUNT, minReplicas=COUNT, maxReplicas=COUNT, **GROUP)
    ),
)
JOB = closed(
    "entrypoint",
    entrypoint=TEXT,
    clusterSelector=TEXTS,
    rayClusterSpec=CLUSTER,
    runtimeEnvYAML=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    backoffLimit=COUNT,
    activeDeadlineSeconds=COUNT,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
)
FIELDS = {"RayCluster": CLUSTER, "RayJob": JOB}

Document = dict[str, Any]


@pytest.fixture
def documents(repository: Path) -> dict[str, Document]:
    """The file's documents, by their kind."""
    text = (repository / "cluster/kuberay.yaml").read_text()
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def pods(cluster: Document) -> list[Document]:
    """The pod of the head, and those of the groups of workers."""
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


@pytest.mark.parametrize("kind", FIELDS)
def test_only_fields_that_kuberay_has(documents: dict[str, Document], kind: str) -> None:
    api = {"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": kind}}
    jsonschema.validate(documents[kind], closed("metadata spec", metadata=METADATA, spec=FIELDS[kind], **api))


def test_a_misspelt_field_is_refused(documents: dict[str, Document]) -> None:
    spec = documents["RayCluster"]["spec"]
    spec["workerGroupSpecs"][0]["maxReplica"] = 4
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(spec, CLUSTER)


def test_the_autoscaler_reads_it_and_gpu_workers_come_and_go(documents: dict[str, Document]) -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    cluster = documents["RayCluster"]
    cluster["metadata"]["namespace"] = "default"
    types = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    gpu = types["gpu"]
    assert (gpu["min_workers"], gpu["max_workers"], gpu["resources"]["GPU"]) == (0, 4, 1)
    assert cluster["spec"]["enableInTreeAutoscaling"] is True


def test_the_token_is_a_secret_and_no_secret_is_in_the_file(documents: dict[str, Document], repository: Path) -> None:
    assert documents["RayCluster"]["spec"]["authOptions"] == {"mode": "token", "secretName": "moe-dist-token"}
    assert "Secret" not in documents
    names = {variable["name"] for pod in pods(documents["RayCluster"]) for variable in pod["containers"][0]["env"]}
    assert names == {"MOE_DIST_CACHE", "MOE_DIST_NODE_CACHE"}
    usage = (repository / "cluster/kuberay.yaml").read_text().partition("apiVersion")[0]
    assert "secret generic moe-dist-token --from-file=auth_token=/dev/stdin" in usage  # the key that the operator reads


def test_no_container_is_root(documents: dict[str, Document]) -> None:
    for pod in pods(documents["RayCluster"]):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert all(container["securityContext"]["allowPrivilegeEscalation"] is False for container in pod["containers"])


def test_the_policy_covers_the_cluster_and_opens_it_to_no_address(documents: dict[str, Document]) -> None:
    policy = documents["NetworkPolicy"]["spec"]
    assert policy["podSelector"]["matchLabels"] == {"ray.io/cluster": documents["RayCluster"]["metadata"]["name"]}
    assert all("ipBlock" not in source for rule in policy["ingress"] for source in rule["from"])


def test_the_job_runs_on_the_cluster_with_words_that_the_command_knows(documents: dict[str, Document]) -> None:
    from moe_dist.shipped import job_file

    job = documents["RayJob"]["spec"]
    assert job["clusterSelector"] == {"ray.io/cluster": documents["RayCluster"]["metadata"]["name"]}
    words = job["entrypoint"].split()
    assert words[:4] == ["python", "-m", "moe_dist.cli", "run"]
    assert job_file(words[4]).is_file()


def test_its_ray_is_the_one_that_is_installed(documents: dict[str, Document], repository: Path) -> None:
    pinned = re.search(r"^ray==(\S+)$", (repository / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert documents["RayCluster"]["spec"]["rayVersion"] == pinned[1] == version("ray")
