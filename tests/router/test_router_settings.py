"""The router's command line."""

from pathlib import Path

import pytest

from multimodel_api.launch import router_arguments
from multimodel_api.router_spec import RouterSpec
from multimodel_router.settings import (
    KubernetesSettings,
    ProcessesSettings,
    Settings,
    TlsSettings,
    WaitingSettings,
    parse,
)


def test_processes() -> None:
    settings = parse(["--fleet", "processes", "--manifest", "mm.yaml"])
    assert settings == Settings(ProcessesSettings(Path("mm.yaml")), host="127.0.0.1", port=1234)


def test_kubernetes() -> None:
    settings = parse(["--fleet=kubernetes", "--multimodel=chat", "--namespace=a", "--host=0.0.0.0", "--wait-seconds=5"])
    assert settings == Settings(KubernetesSettings("chat", "a"), host="0.0.0.0", waiting=WaitingSettings(seconds=5))


def test_everything_that_a_manifest_can_say_has_its_option() -> None:
    router = RouterSpec.model_validate(
        {
            "waiting": {"maxRequests": 9, "maxRequestsPerModel": 3, "maxBytes": 77, "maxSeconds": 8},
            "resumeStreams": False,
            "balance": "prefixHash",
            "accessLog": "json",
            "cors": {"allowedOrigins": ["https://a", "*"]},
        }
    )
    settings = parse(["--fleet=processes", "--manifest=f", *router_arguments(router)])
    assert settings == Settings(
        ProcessesSettings(Path("f")),
        waiting=WaitingSettings(requests=9, requests_per_model=3, bytes=77, bytes_per_model=77, seconds=8),
        resume=False,
        balance="prefix-hash",
        access_log="json",
        cors_origins=("https://a", "*"),
    )


def test_tls_and_workers() -> None:
    settings = parse(
        ["--fleet=kubernetes", "--multimodel=m", "--namespace=n", "--tls-certificate=c", "--tls-key=k", "--workers=2"]
    )
    assert (settings.tls, settings.workers) == (TlsSettings(Path("c"), Path("k")), 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--fleet"),
        (["--fleet=processes"], "needs --manifest FILE"),
        (["--fleet=kubernetes", "--multimodel=chat"], "needs --multimodel NAME and --namespace NAMESPACE"),
        (["--fleet=processes", "--manifest=f", "--port=70000"], "70000 is no port"),
        (["--fleet=processes", "--manifest=f", "--wait-seconds=0"], "0 is no positive number of seconds"),
        (["--fleet=processes", "--manifest=f", "--workers=2"], "--workers needs --fleet kubernetes"),
        (["--fleet=processes", "--manifest=f", "--workers=0"], "0 is too small; use 1 or more"),
        (["--fleet=processes", "--manifest=f", "--tls-key=k"], "--tls-certificate and --tls-key go together"),
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
