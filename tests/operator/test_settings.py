"""The operator's command line and environment."""

import pytest

from multimodel_operator import settings
from multimodel_operator.settings import Election


def test_options_win_over_the_environment_and_that_over_defaults() -> None:
    environment = {"MULTIMODEL_OPERATOR_ROUTER_IMAGE": "r:env", "MULTIMODEL_OPERATOR_WORKERS": "3"}
    chosen = settings.parse(["--router-image=r:option", "--namespace=team"], environment)
    assert (chosen.images.router, chosen.workers, chosen.namespace) == ("r:option", 3, "team")
    assert settings.parse([], {}).namespace is None


@pytest.mark.parametrize(
    ("arguments", "environment", "required"),
    [
        ([], {}, False),
        (["--require-api-keys"], {}, True),
        (["--require-api-keys=true"], {}, True),
        ([], {"MULTIMODEL_OPERATOR_REQUIRE_API_KEYS": "true"}, True),
        (["--require-api-keys=false"], {"MULTIMODEL_OPERATOR_REQUIRE_API_KEYS": "true"}, False),
    ],
)
def test_api_keys_may_be_required(arguments: list[str], environment: dict[str, str], required: bool) -> None:
    assert settings.parse(arguments, environment).require_api_keys is required


def test_nobody_is_asked_for_sizes_unless_said_so() -> None:
    assert settings.parse([], {}).hub_endpoint == ""
    assert settings.parse(["--hub-endpoint=http://hub"], {}).hub_endpoint == "http://hub"


@pytest.mark.parametrize(("text", "namespaces"), [("", ()), ("a", ("a",)), ("a,b", ("a", "b"))])
def test_metrics_are_read_from_namespaces(text: str, namespaces: tuple[str, ...]) -> None:
    assert settings.parse([f"--metrics-namespaces={text}"], {}).metrics_namespaces == namespaces


def test_one_of_several_is_elected_by_a_lease() -> None:
    assert settings.parse([], {}).election is None
    chosen = settings.parse(["--leader-elect", "--lease=ours/operator", "--identity=pod-0"], {})
    assert chosen.election == Election("ours", "operator", "pod-0", seconds=15)
    default = settings.parse(["--leader-elect"], {}).election
    assert default is not None
    assert (default.namespace, default.name) == ("default", "multimodel-operator")
    assert default.identity


@pytest.mark.parametrize(
    "option",
    [
        "--require-api-keys=maybe",
        "--lease=operator",
        "--lease-seconds=0",
        "--requests-per-second=0",
        "--workers=0",
        "--resync-seconds=61",
        "--image-pull-policy=Sometimes",
        "--nope",
    ],
)
def test_a_wrong_option_ends_with_a_message(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings.parse([option], {})
    assert option.split("=")[0] in capsys.readouterr().err


def test_a_wrong_environment_ends_with_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings.parse([], {"MULTIMODEL_OPERATOR_WORKERS": "many"})
    assert "--workers" in capsys.readouterr().err
