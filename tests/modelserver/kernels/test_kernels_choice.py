"""Who computes a kernel: Triton on CUDA devices, plain torch elsewhere and where Triton is missing or unwanted."""

import importlib
import logging
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from multimodel_server import kernels
from multimodel_server.kernels import reference, triton_norm, triton_overlap

KERNELS = {
    "_rms_norm",
    "_gate_tile",
    "_prepare_heads",
    "_survey",
    "_race",
    "_choose",
    "_attend",
    "_merge",
    "_one_row",
    "_some_rows",
}


class OnCuda(torch.Tensor):
    """A tensor that says it is on a CUDA device."""

    is_cuda = True


@pytest.fixture
def fresh_choice(monkeypatch):
    """Forgets whether there is Triton; returns what computes a norm, chosen anew."""
    monkeypatch.setattr(triton_norm, "rms_norm", lambda *_, **__: "triton")
    kernels.has_triton.cache_clear()
    yield kernels._chosen(rms_norm, "triton_norm")
    kernels.has_triton.cache_clear()


def rms_norm(hidden, weight, eps, *, plus_one=False):
    return "plain torch"


def test_triton_computes_on_cuda_devices_and_only_there(fresh_choice):
    tensor = torch.ones(1)
    assert fresh_choice(tensor.as_subclass(OnCuda), tensor, 1e-6, plus_one=True) == "triton"
    assert fresh_choice(tensor, tensor, 1e-6, plus_one=True) == "plain torch"


def test_the_environment_may_ask_for_plain_torch(fresh_choice, monkeypatch):
    monkeypatch.setenv("MULTIMODEL_KERNELS", "reference")
    assert fresh_choice(torch.ones(1).as_subclass(OnCuda), torch.ones(1), 1e-6) == "plain torch"


def test_where_triton_is_missing_one_warning_says_so(fresh_choice, monkeypatch, caplog):
    monkeypatch.setattr(kernels, "find_spec", lambda name: None if name == "triton" else find_spec(name))
    tensor, another = torch.ones(4).as_subclass(OnCuda), kernels._chosen(reference.silu_mul, "triton_activation")
    with caplog.at_level(logging.WARNING):
        assert fresh_choice(tensor, tensor, 1e-6) == fresh_choice(tensor, tensor, 1e-6) == "plain torch"
        another(tensor)
    messages = [record.message for record in caplog.records]
    assert messages == ["Kernels are computed in plain torch, which is slow: triton is not installed"]


def test_every_kernel_that_triton_may_compute_has_its_signature():
    for name in ("add_rms_norm", "gelu_mul", "paged_attention", "prepare_heads", "rms_norm", "sample", "silu_mul"):
        plain = getattr(kernels, name).__wrapped__
        assert plain.__name__ == name
        assert plain.__annotations__ == twin(name).__annotations__


def twin(name):
    modules = ("triton_activation", "triton_attention", "triton_heads", "triton_norm", "triton_sampling")
    (found,) = [
        function
        for module in modules
        if (function := getattr(importlib.import_module(f"multimodel_server.kernels.{module}"), name, None))
    ]
    return found


@pytest.fixture
def fresh_overlap():
    triton_overlap.overlap.cache_clear()
    yield triton_overlap.overlap
    triton_overlap.overlap.cache_clear()


@pytest.mark.parametrize(
    ("device", "capability", "expected"), [("cuda", (9, 0), True), ("cuda", (8, 9), False), ("cpu", (9, 0), False)]
)
def test_kernels_overlap_on_devices_that_can(fresh_overlap, monkeypatch, device, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    arguments = fresh_overlap(torch.device(device))
    assert arguments["overlaps"] == arguments.get("launch_pdl", False) == expected


def test_kernels_can_be_kept_from_overlapping(fresh_overlap, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setenv("MULTIMODEL_OVERLAP", "0")
    assert fresh_overlap(torch.device("cuda")) == {"overlaps": False}


def test_an_engine_on_the_cpu_never_imports_triton():
    code = """
import sys, torch
import multimodel_server.engine.loading
from multimodel_server import kernels
kernels.rms_norm(torch.ones(1, 4), torch.ones(4), 1e-6)
assert "triton" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_kernel_compiles_for_hopper_within_its_registers(run_compiler):
    """The interpreter takes what the compiler refuses."""
    compiled = [line.split() for line in run_compiler("compile_for_hopper.py").splitlines()]
    assert {name for name, *_ in compiled} >= KERNELS
    assert {spilled for _, spilled, _ in compiled} == {"0"}
    early = {name for name, _, accesses in compiled if accesses != "0"}
    assert early == {"_one_row"}, "all but weights may be what the kernel ahead is still writing"
