"""The operator's command line and environment."""

import pytest

from multimodel_operator import settings


def test_options_win_over_the_environment_and_that_over_defaults() -> None:
    environment = {"MULTIMODEL_OPERATOR_ROUTER_IMAGE": "r:env", "MULTIMODEL_OPERATOR_WORKERS": "3"}
    chosen = settings.parse(["--router-image=r:option", "--namespace=team"], environment)
    assert (chosen.images.router, chosen.workers, chosen.namespace) == ("r:option", 3, "team")
    assert settings.parse([], {}).namespace is None


@pytest.mark.parametrize("option", ["--workers=0", "--resync-seconds=61", "--image-pull-policy=Sometimes", "--nope"])
def test_a_wrong_option_ends_with_a_message(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings.parse([option], {})
    assert option.split("=")[0] in capsys.readouterr().err


def test_a_wrong_environment_ends_with_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings.parse([], {"MULTIMODEL_OPERATOR_WORKERS": "many"})
    assert "--workers" in capsys.readouterr().err
