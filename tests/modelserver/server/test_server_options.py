"""The command line: what it accepts, and the words it refuses with."""

import dataclasses
from pathlib import Path

import pytest

from multimodel_api.launch import server_arguments
from multimodel_api.manifest import EngineSettings, Model
from multimodel_server import options
from multimodel_server.config import KvSize, ServerConfig


def test_only_the_model_is_needed() -> None:
    assert options.parse(["--model", "org/a"]) == ServerConfig(model="org/a")


def test_a_manifests_settings_arrive() -> None:
    engine = EngineSettings.model_validate(
        {
            "maxSeqs": 4, "maxBatchedTokens": 64, "prefixCacheN": 3, "noKvCache": True,
            "pagedAttention": {"mode": "off", "memoryFraction": 0.5, "blockSize": 8, "cacheType": "f8e4m3"},
            "maxSeqLen": 8192, "maxBatchSize": 2, "numDeviceLayers": ["0:16", "1:12"],
            "dtype": "f32", "chatTemplate": "{{ 1 }}", "jinjaExplicit": "/t.jinja",
        }
    )  # fmt: skip
    model = Model.model_validate(
        {"name": "a", "alias": "--help", "inSituQuant": "Q4K", "plain": {"modelId": "org/a", "revision": "v1"}}
    )
    arguments = server_arguments(model, engine, host="0.0.0.0", port=8080, failure_file="/f")
    assert options.parse(arguments) == ServerConfig(
        model="org/a", alias="--help", revision="v1", isq="Q4K", max_seqs=4, max_batched_tokens=64, block_size=8,
        kv_size=KvSize(memory_fraction=0.5), cache_type="f8e4m3", paged_attention="off", prefix_cache_n=3,
        no_kv_cache=True, num_device_layers=("0:16", "1:12"), dtype="f32", chat_template="{{ 1 }}",
        jinja_explicit=Path("/t.jinja"), host="0.0.0.0", port=8080, failure_file=Path("/f"),
    )  # fmt: skip


def test_the_reference_s_command_lines_are_understood() -> None:
    arguments = ["--model=a", "--max-seqs", "64", "--max-num-batched-tokens", "512", "--prefix-cache-n", "32"]
    arguments += ["--paged-attn", "off", "-n", "0:28", "--max-seq-len", "8192", "--max-batch-size", "4"]
    assert options.parse(arguments) == ServerConfig(
        model="a", max_seqs=64, max_batched_tokens=512, prefix_cache_n=32, paged_attention="off",
        num_device_layers=("0:28",),
    )  # fmt: skip


def test_every_engine_setting_reaches_the_engine() -> None:
    config = ServerConfig(
        model="a", dtype="f32", max_seqs=4, max_batched_tokens=64, block_size=8, kv_size=KvSize(context_len=64),
        cache_type="f8e4m3", paged_attention="off", prefix_cache_n=3, no_kv_cache=True, num_device_layers=("0:1",),
    )  # fmt: skip
    engine = config.engine(Path("/m"))
    for field in dataclasses.fields(engine):
        expected = Path("/m") if field.name == "model_dir" else getattr(config, field.name)
        assert getattr(engine, field.name) == expected != field.default


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--model"),
        (["--model="], "argument --model: must not be empty"),
        (
            ["--model=a", "--port=70000"],
            "argument --port: must be a whole number of at least 0 and at most 65535, got '70000'",
        ),
        (["--model=a", "--max-seqs=0"], "argument --max-seqs: must be a whole number of at least 1, got '0'"),
        (["--model=a", "--max-seqs=x"], "got 'x'"),
        (["--model=a", "--pa-memory-fraction=1.5"], "must be above 0 and at most 1, got '1.5'"),
        (["--model=a", "--pa-memory-fraction=nan"], "must be above 0 and at most 1, got 'nan'"),
        (["--model=a", "--pa-context-len=5", "--pa-memory-mb=5"], "not allowed with argument"),
        (["--model=a", "--pa-block-size=7"], "invalid choice: 7"),
        (["--model=a", "--dtype=int8"], "invalid choice: 'int8'"),
        (["--model=a", "--paged-attn=of"], "invalid choice: 'of'"),
        (["--model=a", "--pa-cache-type=f16"], "invalid choice: 'f16'"),
        (["--model=a", "--prefix-cache-n=-1"], "must be a whole number of at least 0, got '-1'"),
        (["--model=a", "--max-seq-len=0"], "must be a whole number of at least 1, got '0'"),
        (["--model=a", "--num-device-layers=0"], "must be DEVICE:LAYERS, several joined by ';', got '0'"),
        (["--model=a", "--drain-seconds=-1"], "must be a number above 0"),
        (["--model=a", "--mod=b"], "unrecognized arguments: --mod=b"),
    ],
)
def test_a_wrong_value_ends_with_status_2_and_says_why(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        options.parse(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_the_help_teaches_by_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        options.parse(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert "python -m multimodel_server --model Qwen/Qwen3-0.6B --revision main --alias qwen" in text
    assert "==SUPPRESS==" not in text
