"""What examples, pages and notes show: MultiModels that the API server takes, and manifests whose fields exist."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from multimodel_testbed.control_plane import ControlPlane

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "charts" / "multimodel" / "README.md"]
EXAMPLES = [*sorted((ROOT / "examples").glob("*.yaml")), *sorted((ROOT / "crds").glob("*.yaml"))]
SHOWN_ONLY = {"keda.sh/v1alpha1"}
"""API groups of others, which nothing here makes objects of."""


def shown() -> dict[str, dict[str, Any]]:
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in EXAMPLES}
    for page in PAGES:
        for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)):
            texts[f"{page.relative_to(ROOT)}, block {number + 1}"] = block
    return {
        f"{where}, document {number + 1}": document
        for where, text in texts.items()
        for number, document in enumerate(yaml.safe_load_all(text))
        if isinstance(document, dict) and {"apiVersion", "kind"} <= set(document)
    }


MANIFESTS = shown()
SHOWN = {where: document for where, document in MANIFESTS.items() if document["kind"] == "MultiModel"}


def test_something_is_shown() -> None:
    assert any(where.startswith("examples") for where in SHOWN)


@pytest.mark.control_plane
@pytest.mark.parametrize("where", SHOWN)
def test_the_api_server_takes_it(api_server: ControlPlane, where: str) -> None:
    document = yaml.safe_dump(SHOWN[where])
    api_server.kubectl("apply", "--dry-run=server", "--validate=strict", "--filename=-", stdin=document)


@pytest.mark.control_plane
def test_every_field_that_is_shown_exists(kubeconform: Any) -> None:
    known = [document for document in MANIFESTS.values() if document["apiVersion"] not in SHOWN_ONLY]
    assert {"CustomResourceDefinition", "MultiModel"} <= {document["kind"] for document in known}
    assert kubeconform(yaml.safe_dump_all(known)) == []


@pytest.mark.control_plane
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"spec": {"models": [{"name": "a", "plane": {}}]}}, "additional properties 'plane' not allowed"),
        ({"spec": {"models": "a"}}, "got string, want array"),
        ({"kind": "MultiModle"}, "could not find schema for MultiModle"),
    ],
)
def test_kubeconform_finds_what_is_wrong(kubeconform: Any, wrong: dict[str, Any], words: str) -> None:
    (found,) = kubeconform(yaml.safe_dump({**next(iter(SHOWN.values())), **wrong}))
    assert words in found["msg"]
