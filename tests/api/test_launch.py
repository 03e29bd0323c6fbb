"""A model of a manifest becomes the server's command line."""

from typing import Any

import pytest

from multimodel_api.launch import router_arguments, server_arguments
from multimodel_api.manifest import EngineSettings, Model
from multimodel_api.router_spec import RouterSpec


def arguments(engine: EngineSettings | None = None, **fields: Any) -> list[str]:
    model = Model.model_validate({"name": "a", **fields})
    return server_arguments(model, engine or EngineSettings(), host="127.0.0.1", port=8000, failure_file="f")


def test_only_what_is_set_is_passed() -> None:
    assert arguments(plain={"modelId": "org/a"}) == [
        "--model=org/a", "--host=127.0.0.1", "--port=8000", "--failure-file=f",
    ]  # fmt: skip


def test_every_setting_has_its_flag() -> None:
    engine = EngineSettings.model_validate(
        {
            "maxSeqs": 4, "maxBatchedTokens": 64, "dtype": "f32", "prefixCacheN": 0, "noKvCache": True,
            "pagedAttention": {"mode": "off", "contextLen": 128, "blockSize": 8, "cacheType": "auto"},
            "maxSeqLen": 8192, "maxBatchSize": 2, "numDeviceLayers": ["0:16", "1:12"],
        }
    )  # fmt: skip
    given = arguments(engine, plain={"modelId": "org/a", "revision": "v1"}, alias="x", inSituQuant="Q4K")
    assert {"--revision=v1", "--alias=x", "--isq=Q4K", "--max-seqs=4", "--max-batched-tokens=64"} <= set(given)
    assert {"--pa-context-len=128", "--pa-block-size=8", "--dtype=f32"} <= set(given)
    assert {"--paged-attn=off", "--pa-cache-type=auto", "--prefix-cache-n=0", "--no-kv-cache"} <= set(given)
    assert {"--max-seq-len=8192", "--max-batch-size=2", "--num-device-layers=0:16;1:12"} <= set(given)
    assert "--no-kv-cache" not in arguments(EngineSettings(no_kv_cache=False), plain={"modelId": "org/a"})


def test_a_value_that_looks_like_a_flag_stays_a_value() -> None:
    assert "--alias=--help" in arguments(plain={"modelId": "org/a"}, alias="--help")


def test_a_source_that_cannot_be_loaded_is_refused() -> None:
    with pytest.raises(ValueError, match="diffusion"):
        arguments(diffusion={"modelId": "org/flux"})


def test_a_router_is_told_what_the_manifest_sets_and_nothing_else() -> None:
    assert router_arguments(RouterSpec(replicas=5)) == []
    everything = {
        "waiting": {
            "maxRequests": 8,
            "maxRequestsPerModel": 4,
            "maxBytes": 1024,
            "maxBytesPerModel": 512,
            "maxSeconds": 90,
            "abandonedLoads": "cancel",
        },
        "resumeStreams": False,
        "balance": "leastLoad",
        "cors": {"allowedOrigins": ["https://a.example", "https://b.example"]},
        "accessLog": "json",
    }
    assert router_arguments(RouterSpec.model_validate(everything)) == [
        "--max-waiting=8",
        "--max-waiting-per-model=4",
        "--max-waiting-bytes=1024",
        "--max-waiting-bytes-per-model=512",
        "--wait-seconds=90",
        "--abandoned-loads=cancel",
        "--resume=off",
        "--balance=least-load",
        "--access-log=json",
        "--cors-origin=https://a.example",
        "--cors-origin=https://b.example",
    ]
    assert router_arguments(RouterSpec(resume_streams=True)) == ["--resume=on"]
