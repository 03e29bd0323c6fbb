"""The benchmark of the host's part of a step still measures steps in which every sequence decodes."""

import importlib
from pathlib import Path

import pytest
import torch

from multimodel_server import kernels

BENCHES = Path(__file__).parents[2] / "benches"


@pytest.mark.parametrize("batch", [1, 5])
def test_every_measured_step_brings_each_sequence_a_token(monkeypatch, batch):
    monkeypatch.syspath_prepend(str(BENCHES))
    monkeypatch.setattr(kernels, "sample", lambda logits, _: torch.ones(len(logits), dtype=torch.int64))
    host_step = importlib.import_module("host_step")
    pipeline = host_step.decoding(batch)
    for _ in range(3):
        assert host_step.step(pipeline) > 0
    chunks = pipeline.launch()
    assert [chunk.decodes for chunk in chunks] == [True] * batch
    (landing,) = pipeline.land(all_launched=False)
    assert [message.token_ids for message in landing.told] == [[1]] * batch
