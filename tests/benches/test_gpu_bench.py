"""The GPU benchmark still runs, on the CPU with tiny models; its sums are right, and a bad row costs no other one."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHES = Path(__file__).parents[2] / "benches"
FLOORS = ["device copy", "bf16 matrix product", "host to device"]


@pytest.fixture
def bench(monkeypatch):
    """Return a module of the benchmark by its name."""
    monkeypatch.syspath_prepend(str(BENCHES))
    return importlib.import_module


@pytest.mark.timeout(300)
def test_it_runs_on_the_cpu_with_tiny_models(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = [
        sys.executable,
        BENCHES / "gpu.py",
        "--device=cpu",
        "--tiny",
        "--quick",
        "--only",
        "decode-0.6b",
        "http-1b",
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    document = json.loads(ran.stdout.splitlines()[-1])
    names = ["decode, qwen3-0.6b, batch 1, 32 tokens", "over HTTP, llama-3.2-1b, 4 x 16 in, 8 out"]
    assert [measure["name"] for measure in document["measures"]] == FLOORS + names
    assert all(measure["value"] > 0 for measure in document["measures"])
    assert document["measures"][3]["profile"]


def test_every_product_is_told_once(bench):
    measures, told = bench("gpu_measures"), []
    bench("gpu_products").products(
        measures.Setting("cpu", tiny=True, quick=True, seen={measures.COPY: 0.01}), told.append
    )
    parts = ["queries, keys, values", "attention's output", "gate and up", "down", "head"]
    assert [measure.name.partition(" of ")[0] for measure in told] == parts * 3
    assert [note.partition(": plain torch")[0] for note in told[0].notes] == ["1 at once", "8 at once", "16 at once"]


@pytest.mark.parametrize(
    ("shape", "step_gigabytes", "kv_kibibytes", "prefill_seconds"),
    [("qwen3-0.6b", 1.19, 112, 0.00691), ("qwen3-4b", 8.04, 144, 0.0434), ("qwen3-8b", 15.14, 144, 0.0773)],
)
def test_the_floors_are_those_of_the_shapes(bench, shape, step_gigabytes, kv_kibibytes, prefill_seconds):
    costs = bench("gpu_engine").Costs.of(shape)
    assert costs.decode_bytes(1, 0) / 1e9 == pytest.approx(step_gigabytes, rel=0.005)
    assert costs.decode_bytes(2, 10) - costs.decode_bytes(1, 0) == 20 * kv_kibibytes * 1024
    assert costs.prefill_flops(4096) / 800e12 == pytest.approx(prefill_seconds, rel=0.02)


def test_a_profile_tells_kernels_from_pauses(bench):
    spans = [(0.0, 10.0, "a"), (5.0, 8.0, "b"), (12.0, 20.0, "a"), (50.0, 60.0, "b")]
    profile = bench("gpu_measures").average(spans, 2)
    assert (profile.step_us, profile.busy_us, profile.launch_gaps_us, profile.host_gaps_us) == (30.0, 14.0, 1.0, 15.0)
    assert [(kernel.name, kernel.calls, kernel.microseconds) for kernel in profile.kernels] == [
        ("a", 1.0, 9.0),
        ("b", 1.0, 6.5),
    ]


@pytest.mark.parametrize(
    ("body", "seconds", "reason"),
    [
        ("raise ValueError('no such thing')", 60, "ValueError: no such thing"),
        ("import os; os._exit(9)", 60, "its process ended with status 9"),
        ("import threading; threading.Event().wait()", 8, "given up after 8 s"),
    ],
)
def test_a_row_that_fails_keeps_what_it_told(bench, tmp_path, monkeypatch, body, seconds, reason):
    told = "from gpu_measures import Measure\ndef row(setting, tell):\n    tell(Measure('first', 1.0, 'x'))\n"
    (tmp_path / "bad_row.py").write_text(f"{told}    {body}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    gpu = bench("gpu")
    monkeypatch.setitem(gpu.ROWS, "bad", gpu.Row("bad_row", "row", seconds))
    report = bench("gpu_report").Report(bench("gpu_measures").Setting("cpu", tiny=True, quick=True), "CPU")
    gpu._measure(["bad"], report, 100)
    assert report.failures == {"bad": reason}
    assert report.values == {"first": 1.0}


def test_a_missed_bar_is_said_with_where_the_time_goes(bench):
    measures, profile = (
        bench("gpu_measures"),
        bench("gpu_measures").average([(0.0, 8.0, "gemm"), (10.0, 12.0, "norm")], 1),
    )
    report = bench("gpu_report").Report(measures.Setting("cuda", tiny=False, quick=False), "a device")
    report.measures += [
        measures.Measure("slow", 0.4, "%", measures.Bar("≥", 0.5), profile=profile),
        measures.Measure("soon", 0.4, "s", measures.Bar("≤", 0.5), profile=profile),
    ]
    section = report.section()
    assert "| slow | 40.0 % | ≥ 50.0 % | MISSED |" in section
    assert "| soon | 0.4 s | ≤ 0.5 s | kept |" in section
    assert section.count("Where the time goes") == 1
    assert "gemm" in section
