"""The router's command line."""

from pathlib import Path

import pytest

from multimodel_router.settings import KubernetesSettings, ProcessesSettings, Settings, parse


def test_processes() -> None:
    settings = parse(["--fleet", "processes", "--manifest", "mm.yaml"])
    assert settings == Settings(ProcessesSettings(Path("mm.yaml")), host="127.0.0.1", port=1234)


def test_kubernetes() -> None:
    settings = parse(["--fleet=kubernetes", "--multimodel=chat", "--namespace=a", "--host=0.0.0.0", "--wait-seconds=5"])
    assert settings == Settings(KubernetesSettings("chat", "a"), host="0.0.0.0", wait_seconds=5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--fleet"),
        (["--fleet=processes"], "needs --manifest FILE"),
        (["--fleet=kubernetes", "--multimodel=chat"], "needs --multimodel NAME and --namespace NAMESPACE"),
        (["--fleet=processes", "--manifest=f", "--port=70000"], "70000 is no port"),
        (["--fleet=processes", "--manifest=f", "--wait-seconds=0"], "0 is no positive number of seconds"),
        (["--fleet=docker"], "invalid choice: 'docker'"),
    ],
)
def test_a_wrong_command_line_is_explained(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(arguments)
    assert words in capsys.readouterr().err


def test_help_teaches_by_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        parse(["--help"])
    assert (
        "python -m multimodel_router --fleet processes --manifest examples/quickstart.yaml" in capsys.readouterr().out
    )
