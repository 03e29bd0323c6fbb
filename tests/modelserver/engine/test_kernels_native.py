"""Native products with bfloat16 weights against float64, on every path and remainder; and what happens without them."""

import logging

import pytest
import torch

from multimodel_server import kernels
from multimodel_server.kernels import native

CPU = torch.device("cpu")


@pytest.fixture
def fresh_library(monkeypatch, tmp_path):
    """Looks for the library anew, in a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    yield tmp_path
    native.library.cache_clear()


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (16, 16), (35, 100), (64, 48), (4099, 33)])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 6, 7, 12, 13, 64, 65])
def test_products_are_those_of_the_widened_weights(rows, shape):
    assert native.library() is not None, "this needs a C compiler"
    out, width = shape
    generator = torch.Generator().manual_seed(rows * out + width)
    weight = torch.randn(out, width, generator=generator).bfloat16()
    inputs = torch.randn(rows, width, generator=generator)
    bias = torch.randn(out, generator=generator)
    expected = inputs.double() @ weight.double().T + bias
    assert torch.allclose(kernels.linear(inputs, weight, bias).double(), expected, atol=1e-5 * width**0.5)
    assert torch.allclose(kernels.linear(inputs, weight).double(), expected - bias, atol=1e-5 * width**0.5)


def test_inputs_need_not_be_contiguous():
    inputs, weight = torch.randn(20, 6).T, torch.randn(8, 20).bfloat16()
    assert torch.allclose(kernels.linear(inputs, weight), inputs @ weight.float().T, atol=1e-5)


def test_matrices_are_held_narrow_only_where_that_loses_nothing():
    assert kernels.held_dtype(torch.bfloat16, torch.float32, CPU) is torch.bfloat16
    assert kernels.held_dtype(torch.float32, torch.float32, CPU) is torch.float32
    assert kernels.held_dtype(torch.float16, torch.float32, CPU) is torch.float32
    assert kernels.held_dtype(torch.bfloat16, torch.bfloat16, CPU) is torch.bfloat16
    assert kernels.held_dtype(torch.bfloat16, torch.float32, torch.device("cuda")) is torch.float32


def test_the_code_is_compiled_once(fresh_library):
    assert native.library() is not None
    (compiled,) = (fresh_library / "multimodel" / "native").iterdir()
    native.library.cache_clear()
    assert native.library() is not None
    assert [compiled] == list((fresh_library / "multimodel" / "native").iterdir())


def test_without_a_compiler_weights_are_held_in_float32(fresh_library, monkeypatch, caplog):
    monkeypatch.setenv("PATH", str(fresh_library))
    with caplog.at_level(logging.INFO):
        assert kernels.held_dtype(torch.bfloat16, torch.float32, CPU) is torch.float32
    assert "install gcc" in caplog.text


def test_a_compiler_that_fails_is_as_none(fresh_library, monkeypatch):
    broken = fresh_library / "cc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(fresh_library))
    assert native.library() is None
    assert kernels.linear(torch.ones(1, 2), torch.ones(3, 2).bfloat16()).tolist() == [[2.0, 2.0, 2.0]]


def test_without_a_folder_of_its_own_nothing_is_compiled(fresh_library, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    assert native.library() is None


def test_it_can_be_switched_off(fresh_library, monkeypatch):
    monkeypatch.setenv("MULTIMODEL_NATIVE", "0")
    assert native.library() is None
