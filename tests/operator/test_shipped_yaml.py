"""Every MultiModel that examples, pages and notes show is one that the API server takes."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from multimodel_testbed.control_plane import ControlPlane

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "charts" / "multimodel" / "README.md"]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


def shown() -> dict[str, dict[str, Any]]:
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in EXAMPLES}
    for page in PAGES:
        for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)):
            texts[f"{page.relative_to(ROOT)}, block {number + 1}"] = block
    return {
        f"{where}, document {number + 1}": document
        for where, text in texts.items()
        for number, document in enumerate(yaml.safe_load_all(text))
        if isinstance(document, dict) and document.get("kind") == "MultiModel"
    }


SHOWN = shown()


def test_something_is_shown() -> None:
    assert any(where.startswith("examples") for where in SHOWN)


@pytest.mark.control_plane
@pytest.mark.parametrize("where", SHOWN)
def test_the_api_server_takes_it(api_server: ControlPlane, where: str) -> None:
    document = yaml.safe_dump(SHOWN[where])
    api_server.kubectl("apply", "--dry-run=server", "--validate=strict", "--filename=-", stdin=document)
