"""The GPU path against what the device can do: decoding, prompts, serving over HTTP, starting and waking.

Every row runs in a process of its own and within a time of its own, so a row that fails or hangs costs the others
nothing; values are printed as they come. Models have random weights and are made once, in
~/.cache/multimodel/bench-models (or under XDG_CACHE_HOME; a folder in memory is quickest): 29 GB for all.
Prints tables, where the time went wherever a bar was missed, and, last, one JSON line.
"""

import argparse
import importlib
import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpu_measures import Measure, Setting
    from gpu_report import Report

LOG = Path(__file__).parent / "LOG.md"
TABLE_WIDTH = 160
NEEDED = (
    *("torch", "transformers", "safetensors", "tokenizers", "numpy", "rich", "httpx", "psutil", "jinja2"),
    *("msgspec", "pydantic", "llguidance", "fastapi", "uvicorn", "httptools", "uvloop", "prometheus_client"),
    *("huggingface_hub", "multimodel_api", "multimodel_server"),
)


@dataclass(frozen=True)
class Row:
    """Something to measure: a function of a module, and the seconds after which it is given up."""

    module: str
    function: str
    seconds: float


ROWS = {
    "floors": Row("gpu_floors", "floors", 60),
    "attention": Row("gpu_floors", "attention", 60),
    "decode-0.6b": Row("gpu_engine", "decode_small", 150),
    "8b": Row("gpu_engine", "large", 180),
    "http-1b": Row("gpu_server", "http_llama", 90),
    "peer": Row("gpu_peer", "continuous_batching", 90),
    "http-0.6b": Row("gpu_server", "http_small", 120),
    "decode-4b": Row("gpu_engine", "decode_middle", 90),
    "start": Row("gpu_server", "start", 120),
    "wake": Row("gpu_server", "wake", 150),
    "products": Row("gpu_products", "products", 60),
}
"""In the order in which they run: what matters most comes first."""


def main() -> None:
    """Measure and print; the status is 1 where a row failed."""
    chosen = _parse()
    _require(NEEDED)
    if chosen.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from gpu_measures import Setting
    from gpu_report import Report

    setting = Setting(chosen.device, tiny=chosen.tiny, quick=chosen.quick)
    report = Report(setting, _device_name(chosen.device))
    _measure(list(dict.fromkeys(["floors", *(chosen.only or ROWS)])), report, chosen.seconds)
    _print(report)
    if chosen.log:
        with LOG.open("a", encoding="utf-8") as log:
            log.write(report.section())
    raise SystemExit(bool(report.failures))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(ROWS), metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    parser.add_argument("--tiny", action="store_true", help="tiny models, held to no bar: does everything still run?")
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--log", action="store_true", help="append the results to benches/LOG.md")
    parser.add_argument(
        "--seconds", type=float, default=480.0, help="no row begins, or goes on, after that (default: %(default)s)"
    )
    return parser.parse_args()


def _require(packages: Sequence[str]) -> None:
    """End with one clear line where something is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"not installed: {', '.join(missing)}; CONTRIBUTING.md says how to bring them to a bare machine"
        )


def _device_name(device: str) -> str:
    """Return what is measured; asked in a process of its own, as the rows are to find all memory free."""
    if device == "cpu":
        return "CPU"
    code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    name = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    if not name:
        raise SystemExit("no CUDA device; `--device cpu --tiny` shows whether everything runs")
    return name


def _measure(rows: Sequence[str], report: "Report", seconds: float) -> None:
    """Run rows one after another, as long as there is time."""
    deadline = time.monotonic() + seconds
    for name in rows:
        left = deadline - time.monotonic()
        if left <= 0:
            report.failures[name] = f"not begun: {seconds:.0f} s were over"
            continue
        began = time.monotonic()
        failure = _run(name, report, min(ROWS[name].seconds, left))
        print(f"({name}: {time.monotonic() - began:.1f} s)", flush=True)
        if failure is not None:
            report.failures[name] = failure
            print(f"{name} FAILED: {failure}", flush=True)


def _run(name: str, report: "Report", seconds: float) -> str | None:
    """Run one row; return why it did not end well, if so."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    setting = replace(report.setting, seen=report.values)
    process = context.Process(target=_in_child, args=(ROWS[name], setting, theirs))
    process.start()
    theirs.close()
    deadline = time.monotonic() + seconds
    try:
        while ours.poll(max(0.0, deadline - time.monotonic())):
            told: Measure | str | None = ours.recv()
            if told is None or isinstance(told, str):
                return told
            report.measures.append(told)
            print(report.line(told), flush=True)
    except EOFError:
        process.join()
        return f"its process ended with status {process.exitcode}"
    else:
        return f"given up after {seconds:.0f} s"
    finally:
        _end(process.pid)
        process.kill()
        process.join()


def _end(group: int | None) -> None:
    """End a row's process and all that it started."""
    try:
        if group is not None:
            os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _in_child(row: Row, setting: "Setting", told: Connection) -> None:
    """Measure a row, in a process group of its own; the last message is None, or why it failed."""
    os.setpgid(0, 0)
    try:
        getattr(importlib.import_module(row.module), row.function)(setting, told.send)
    except Exception as error:  # noqa: BLE001  (told to whoever waits for this row; the others go on)
        traceback.print_exc()
        first, *_ = str(error).splitlines() or [""]
        told.send(f"{type(error).__name__}: {first}")
    else:
        told.send(None)


def _print(report: "Report") -> None:
    from rich.console import Console

    console = Console(width=TABLE_WIDTH)
    for name, lines in report.profiles():
        console.print(f"\nWhere the time goes, {name}:", *lines, sep="\n  ", markup=False, highlight=False)
    console.print(report.table())
    print(json.dumps(report.document()))


if __name__ == "__main__":
    main()
