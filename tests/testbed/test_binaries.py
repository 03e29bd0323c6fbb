import re
import subprocess
import sys
from pathlib import Path

import pytest

from multimodel_testbed import binaries, errors

FAKE_GO = """\
#!/bin/sh
if [ "$1" = env ]; then echo {version}; exit; fi
echo built >> {log}
while [ "$1" != -o ]; do shift; done
sleep 0.3
echo program > "$2"
chmod +x "$2"
"""


def make_program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def only_path(tmp_path, monkeypatch):
    """A PATH on which nothing but the shell's tools and a Go made by the test can be found."""

    def with_go(version: str | None) -> Path:
        log = tmp_path / "builds"
        folder = tmp_path / "path"
        folder.mkdir()
        if version:
            make_program(folder / "go").write_text(FAKE_GO.format(version=version, log=log))
        monkeypatch.setenv("PATH", f"{folder}:/bin" if version else str(folder))
        return log

    return with_go


def test_given_folder_comes_before_the_cache(cache, tmp_path, monkeypatch):
    cached = make_program(binaries.ETCD.folder / "etcd")
    assert binaries.ensure("etcd") == cached
    given = make_program(tmp_path / "assets" / "etcd")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(given.parent))
    assert binaries.ensure("etcd") == given


def test_what_the_given_folder_lacks_comes_from_the_cache(cache, tmp_path, monkeypatch):
    (tmp_path / "assets").mkdir()
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path / "assets"))
    cached = make_program(binaries.ETCD.folder / "etcd")
    assert binaries.ensure("etcd") == cached


def test_versions_do_not_share_a_folder(cache):
    folders = {component.folder for component in binaries.COMPONENTS}
    assert len(folders) == len(binaries.COMPONENTS)
    assert all(component.version in component.folder.name for component in binaries.COMPONENTS)


def test_without_go_the_error_says_what_to_do(cache, only_path):
    only_path(None)
    with pytest.raises(errors.MissingBinaryError, match=r"Install Go 1\.26 or newer .* KUBEBUILDER_ASSETS .* etcd"):
        binaries.ensure("etcd")


def test_go_that_is_too_old_is_named(cache, only_path):
    only_path("go1.21.3")
    with pytest.raises(errors.MissingBinaryError, match=r"the Go here is go1\.21\.3, too old\. Install Go 1\.26"):
        binaries.ensure("etcd")


def test_failed_build_leaves_nothing_that_looks_finished(cache, only_path, tmp_path):
    only_path("go1.26.1")
    make_program(tmp_path / "path" / "go").write_text(
        '#!/bin/sh\nif [ "$1" = env ]; then echo go1.26.1; exit; fi\necho no such module; exit 1\n'
    )
    with pytest.raises(errors.MissingBinaryError, match="no such module"):
        binaries.ensure("etcd")
    assert binaries.locate("etcd") is None


def test_two_processes_that_ask_at_once_build_once(cache, only_path):
    log = only_path("go1.26.1")
    ask = "from multimodel_testbed import binaries; print(binaries.ensure('etcd'))"
    askers = [subprocess.Popen([sys.executable, "-c", ask], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {asker.communicate(timeout=60)[0].strip() for asker in askers}
    assert answers == {str(binaries.ETCD.folder / "etcd")}
    assert log.read_text().splitlines() == ["built"]


def test_the_go_modules_pin_the_versions_that_the_cache_is_named_after():
    for component in (binaries.ETCD, binaries.KUBERNETES, binaries.CONTAINERD, binaries.HELM):
        module = (binaries.GO_MODULES / component.name / "go.mod").read_text()
        pins = dict(re.findall(r"^(?:require |\t)(\S+) (v\S+)", module, re.MULTILINE))
        for package in component.programs.values():
            module_path = next(path for path in pins if f"{package}/".startswith(f"{path}/"))
            assert pins[module_path] == component.version
