"""The command line of a model server: what it accepts, and words that teach it."""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from multimodel_server.config import CacheType, DtypeName, KvSize, PagedAttentionMode, ServerConfig

_EXAMPLES = """\
examples:
  a model in a folder, on port 8000 of this machine:
    python -m multimodel_server --model examples/models/abacus

  a model of the Hugging Face Hub, pinned, under a name of your own (HF_TOKEN is read for gated models):
    python -m multimodel_server --model Qwen/Qwen3-0.6B --revision main --alias qwen

  then, from another terminal:
    curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
      -d '{"messages": [{"role": "user", "content": "Hello"}]}'

sampling: a request's own values win over the model's generation_config.json, which wins over the
server's defaults (temperature 1, no filters). Temperature 0 is greedy.
"""
_KV_SIZES = {"pa_context_len": "context_len", "pa_memory_mb": "memory_mb", "pa_memory_fraction": "memory_fraction"}
_PLACEMENT_ONLY = ("max_seq_len", "max_batch_size")
"""They bound what layers are placed on several devices for: a model on one device reserves nothing by them."""
_LOG_LEVELS = ("debug", "info", "warning", "error")


def parse(arguments: Sequence[str] | None = None) -> ServerConfig:
    """Return the settings of a command line; ends the process with status 2 and one clear line if it is wrong."""
    given = vars(_parser().parse_args(arguments))
    kv_size = KvSize(**{field: given.pop(option) for option, field in _KV_SIZES.items() if option in given})
    kept = {option: value for option, value in given.items() if option not in _PLACEMENT_ONLY}
    return ServerConfig(kv_size=kv_size, **kept)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m multimodel_server",
        description="Serve one language model over OpenAI's HTTP API; its engine runs in a child process.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    _add_model(parser.add_argument_group("model"))
    _add_engine(parser.add_argument_group("engine"))
    _add_memory(parser.add_argument_group("engine's memory"))
    _add_serving(parser.add_argument_group("serving"))
    return parser


def _add_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", required=True, type=_text, metavar="DIR_OR_HUB_ID", help="folder, or org/name")
    group.add_argument("--alias", type=_text, help="the id that replies name; the model's own id stays accepted")
    group.add_argument("--revision", type=_text, help="branch, tag or commit of the Hub repository")
    group.add_argument("--cache-dir", type=Path, metavar="DIR", help="where downloads are kept (default: HF_HOME's)")
    group.add_argument("--offline", action="store_true", help="never ask the Hub; also HF_HUB_OFFLINE=1")
    group.add_argument("--chat-template", metavar="TEXT_OR_FILE", help="Jinja chat template instead of the model's")
    group.add_argument("--jinja-explicit", type=Path, metavar="FILE", help="chat template that wins over all others")
    group.add_argument("--isq", metavar="TYPE", help="not supported yet; refused with a clear reason")


def _add_engine(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--dtype", choices=get_args(DtypeName), help="arithmetic; auto takes the checkpoint's")
    group.add_argument("--max-seqs", type=_whole(1), metavar="N", help="most sequences running at once (default: 32)")
    group.add_argument(
        "--max-batched-tokens", "--max-num-batched-tokens", type=_whole(16), metavar="N",
        help="token budget of a step (default: 4096)",
    )  # fmt: skip
    group.add_argument(
        "--heartbeat-seconds", type=_positive, metavar="S",
        help="an engine with work that is silent for longer is rebooted (default: 30)",
    )  # fmt: skip


def _add_memory(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--paged-attn", dest="paged_attention", choices=get_args(PagedAttentionMode),
        help="off computes equal lengths together and reserves whole contexts (default: auto, which is on)",
    )  # fmt: skip
    size = group.add_mutually_exclusive_group()
    size.add_argument("--pa-context-len", type=_whole(1), metavar="N", help="KV cache for N tokens")
    size.add_argument("--pa-memory-mb", type=_whole(1), metavar="MIB", help="KV cache of so many MiB")
    size.add_argument("--pa-memory-fraction", type=_fraction, metavar="F", help="KV cache of this part of the memory")
    group.add_argument(
        "--pa-block-size", dest="block_size", type=int, choices=(8, 16, 32), help="tokens in a KV block (default: 16)"
    )
    group.add_argument(
        "--pa-cache-type", dest="cache_type", choices=get_args(CacheType),
        help="elements of the KV cache; f8e4m3 takes half of bf16's room (default: auto)",
    )  # fmt: skip
    group.add_argument(
        "--prefix-cache-n", type=_whole(0), metavar="N",
        help="0 shares no prefixes; with --paged-attn off, the texts that are kept (default: 16)",
    )  # fmt: skip
    group.add_argument("--no-kv-cache", action="store_true", help="compute the whole text again for each token")
    group.add_argument(
        "--num-device-layers", "-n", type=_device_layers, metavar="DEVICE:LAYERS;...",
        help="layers on each device; more than one device is not served yet",
    )  # fmt: skip
    for option, default in (("--max-seq-len", 4096), ("--max-batch-size", 1)):
        group.add_argument(
            option, type=_whole(1), metavar="N",
            help=f"what layers are placed on several devices for; it limits nothing (default: {default})",
        )  # fmt: skip


def _add_serving(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--host", type=_text, help="address to listen on (default: 127.0.0.1)")
    group.add_argument("--port", type=_whole(0, 65535), metavar="N", help="0 picks a free one (default: 8000)")
    group.add_argument(
        "--drain-seconds", type=_positive, metavar="S", help="how long answers may go on after SIGTERM (default: 30)"
    )
    group.add_argument("--failure-file", type=Path, metavar="FILE", help="where a failed load writes its reason")
    group.add_argument("--log-level", choices=_LOG_LEVELS, help="least level that is logged (default: info)")


def _text(value: str) -> str:
    if not value.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return value


def _whole(least: int, most: int | None = None) -> Callable[[str], int]:
    wanted = f"a whole number of at least {least}" + (f" and at most {most}" if most is not None else "")

    def parse_whole(value: str) -> int:
        number = int(value) if value.lstrip("-").isascii() and value.lstrip("-").isdigit() else None
        if number is None or number < least or (most is not None and number > most):
            raise argparse.ArgumentTypeError(f"must be {wanted}, got '{value}'")
        return number

    return parse_whole


def _device_layers(value: str) -> tuple[str, ...]:
    placements = tuple(value.split(";"))
    if not all(re.fullmatch(r"[0-9]+:[1-9][0-9]*", placement) for placement in placements):
        raise argparse.ArgumentTypeError(f"must be DEVICE:LAYERS, several joined by ';', got '{value}'")
    return placements


def _fraction(value: str) -> float:
    number = _number(value)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got '{value}'")
    return number


def _positive(value: str) -> float:
    number = _number(value)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got '{value}'")
    return number


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got '{value}'") from None
