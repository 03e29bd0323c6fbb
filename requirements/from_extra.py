"""Prints what one extra of pyproject.toml needs, for the image's layer of third-party packages.

The layer depends on this list alone, so that no other edit of pyproject.toml installs everything anew.
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
needs = [*project["dependencies"], *project["optional-dependencies"][sys.argv[1]]]
sys.stdout.write("".join(f"{need}\n" for need in needs))
