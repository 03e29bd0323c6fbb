"""How a manifest becomes command lines of model servers and the router: the same in a pod and on this machine."""

from multimodel_api.manifest import EngineSettings, HubSource, Model
from multimodel_api.router_spec import Cors, RouterSpec, WaitingRoom

MODULE = "multimodel_server"

_BALANCE = {"leastLoad": "least-load", "prefixHash": "prefix-hash"}
_SWITCH = {True: "on", False: "off"}


def server_arguments(model: Model, engine: EngineSettings, *, host: str, port: int, failure_file: str) -> list[str]:
    """Return the arguments of `python -m multimodel_server` for a loadable model.

    Raises:
        ValueError: the model's source kind cannot be loaded (`Model.loadable` is false).
    """
    source = getattr(model, model.kind)
    if not model.loadable or not isinstance(source, HubSource):
        raise ValueError(
            f"model {model.name}: a source of kind '{model.kind}' cannot be loaded; use one of the kinds: plain"
        )
    paged = engine.paged_attention
    options: dict[str, object] = {
        "--model": source.model_id,
        "--revision": source.revision,
        "--alias": model.alias,
        "--isq": model.in_situ_quant,
        "--max-seqs": engine.max_seqs,
        "--max-batched-tokens": engine.max_batched_tokens,
        "--paged-attn": paged and paged.mode,
        "--pa-context-len": paged and paged.context_len,
        "--pa-memory-mb": paged and paged.memory_mb,
        "--pa-memory-fraction": paged and paged.memory_fraction,
        "--pa-block-size": paged and paged.block_size,
        "--pa-cache-type": paged and paged.cache_type,
        "--prefix-cache-n": engine.prefix_cache_n,
        "--max-seq-len": engine.max_seq_len,
        "--max-batch-size": engine.max_batch_size,
        "--num-device-layers": engine.num_device_layers and ";".join(engine.num_device_layers),
        "--dtype": engine.dtype,
        "--chat-template": engine.chat_template,
        "--jinja-explicit": engine.jinja_explicit,
        "--host": host,
        "--port": port,
        "--failure-file": failure_file,
    }
    switches = ["--no-kv-cache"] if engine.no_kv_cache else []
    return [f"{option}={value}" for option, value in options.items() if value is not None] + switches


def router_arguments(router: RouterSpec) -> list[str]:
    """Return the arguments of `python -m multimodel_router` that say how it treats requests; none for what is unset.

    Pods, certificates and keys are a cluster's: the operator says where those are.
    """
    waiting = router.waiting or WaitingRoom()
    options: dict[str, object] = {
        "--max-waiting": waiting.max_requests,
        "--max-waiting-per-model": waiting.max_requests_per_model,
        "--max-waiting-bytes": waiting.max_bytes,
        "--max-waiting-bytes-per-model": waiting.max_bytes_per_model,
        "--wait-seconds": waiting.max_seconds,
        "--abandoned-loads": waiting.abandoned_loads,
        "--resume": None if router.resume_streams is None else _SWITCH[router.resume_streams],
        "--balance": router.balance and _BALANCE[router.balance],
        "--access-log": router.access_log,
    }
    origins = (router.cors or Cors()).allowed_origins
    return [
        *(f"{option}={value}" for option, value in options.items() if value is not None),
        *(f"--cors-origin={origin}" for origin in origins),
    ]
