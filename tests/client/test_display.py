"""How loading looks: tables, lines, and commands to copy."""

import io
import json
import shlex

import pytest
from rich.console import Console

from multimodel.display import chat_command, loading_line, loading_table, serving_lines
from multimodel.loading import ModelView, settled, unseen
from multimodel_api.failures import FailureReason, LoadFailure
from multimodel_api.lifecycle import ModelCard
from multimodel_api.manifest import MultiModelSpec
from multimodel_api.progress import LoadPhase, LoadProgress
from multimodel_api.state import ModelState

LOADED, RELOADING, UNLOADED = ModelState.LOADED, ModelState.RELOADING, ModelState.UNLOADED
FAILURE = LoadFailure(reason=FailureReason.MODEL_NOT_FOUND, message="no folder [models/nope]")
HALF = LoadProgress(
    phase=LoadPhase.READING_WEIGHTS,
    bytes_done=3_000_000,
    bytes_total=6_000_000,
)


def view(state=None, seconds=0.0, **fields):
    card = ModelCard(id="math", created=1, status=state, **fields) if state else None
    return ModelView(name="abacus", id="math", card=card, seconds=seconds)


VIEWS = {
    "unseen": (view(), "math: waiting for the router"),
    "starting": (view(ModelState.RELOADING), "math: reloading, starting (0.0 s)"),
    "reading": (view(ModelState.RELOADING, 1.21, progress=HALF), "math: reloading, reading weights (1.2 s)"),
    "loaded": (view(ModelState.LOADED, 1.21), "math: loaded (1.2 s)"),
    "unloaded": (view(ModelState.UNLOADED), "math: unloaded: the next request loads it"),
    "no loader": (view(ModelState.NO_LOADER_CONFIG), "math: no_loader_config: this kind of source cannot be loaded"),
    "failed": (
        view(ModelState.INTERNAL_ERROR, failure=FAILURE),
        "math: internal_error: ModelNotFound: no folder [models/nope]",
    ),
}


@pytest.mark.parametrize(("model", "line"), VIEWS.values(), ids=VIEWS)
def test_each_state_has_its_line(model, line):
    assert loading_line(model) == line


def test_the_table_shows_name_id_state_phase_bytes_and_failures_as_they_are():
    console = Console(file=io.StringIO(), width=120)
    console.print(loading_table(tuple(model for model, _ in VIEWS.values())))
    shown = console.file.getvalue()
    for text in ("abacus", "math", "reading weights", "3.0 MB of 6.0 MB", "1.2", "no folder [models/nope]"):
        assert text in shown


@pytest.mark.parametrize(
    ("name", "expected"), [("unseen", False), ("reading", False), ("failed", True), ("unloaded", True)]
)
def test_settled_means_seen_and_not_loading(name, expected):
    loaded = VIEWS["loaded"][0]
    assert settled((loaded, VIEWS[name][0])) is expected


def test_a_change_of_phase_is_a_new_stage_and_a_second_more_is_not():
    later = view(ModelState.RELOADING, progress=HALF.model_copy(update={"bytes_done": 5_000_000}))
    warming = view(ModelState.RELOADING, progress=HALF.model_copy(update={"phase": LoadPhase.WARMING_UP}))
    reading = VIEWS["reading"][0]
    assert reading.stage == later.stage
    assert reading.stage != warming.stage


def test_seconds_run_while_a_model_loads_and_start_again_with_the_next_load():
    (model,) = unseen(MultiModelSpec(models=[{"name": "abacus", "plain": {"modelId": "math"}}]), now=10.0)
    seconds = []
    for now, state in enumerate((None, RELOADING, LOADED, LOADED, RELOADING, RELOADING, UNLOADED), start=11):
        model = model.seen(ModelCard(id="math", created=1, status=state) if state else None, now=now)
        seconds.append(model.seconds)
    assert seconds == [1.0, 2.0, 3.0, 3.0, 0.0, 1.0, 2.0]


def test_a_look_without_answer_changes_nothing_but_the_seconds():
    reading = VIEWS["reading"][0]
    assert reading.seen(None, now=5.0).stage == reading.stage


def test_commands_name_the_models_that_serve_the_default_first():
    others = tuple(
        ModelView(str(n), str(n), ModelCard(id=str(n), created=1, status=ModelState.LOADED)) for n in range(4)
    )
    lines = serving_lines("http://127.0.0.1:8080", (*others, VIEWS["loaded"][0], VIEWS["failed"][0]), "math")
    assert lines[0] == "5 of 6 models loaded; OpenAI endpoint: http://127.0.0.1:8080/v1"
    chats = [line for line in lines if "chat/completions" in line]
    assert [json.loads(shlex.split(line)[-1])["model"] for line in chats] == ["math", "0", "1"]


def test_commands_take_the_key_from_the_environment_where_one_is_needed():
    lines = serving_lines("http://127.0.0.1:8080", (VIEWS["loaded"][0],), "math", with_key=True)
    curls = [line for line in lines if line.startswith("curl ")]
    header = '-H "Authorization: Bearer $MULTIMODEL_API_KEY"'
    assert len(curls) == 2
    assert all(header in line for line in curls)


def test_any_id_survives_the_shell():
    command = shlex.split(chat_command("http://127.0.0.1:1234", 'it\'s "théirs" $HOME'))
    assert json.loads(command[-1])["model"] == 'it\'s "théirs" $HOME'
