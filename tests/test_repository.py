"""Rules of the layout that no linter checks."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("api", "operator", "router", "modelserver", "client", "testbed")
DRAWERS = {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"}


def test_the_operator_folder_does_not_shadow_the_standard_library() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()
    subprocess.run([sys.executable, "-c", "import operator; operator.eq"], cwd=ROOT, check=True, timeout=60)


def test_tests_are_no_packages() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_no_module_is_a_drawer() -> None:
    modules = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert [path for path in modules if path.name in DRAWERS] == []
