"""Weights: progress, and one clear refusal for every way in which files can be wrong."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from multimodel_api.failures import FailureReason
from multimodel_api.progress import LoadPhase
from multimodel_server.config import EngineConfig, KvSize
from multimodel_server.engine.loading import load
from multimodel_server.errors import LoadError
from multimodel_server.models import reader

NORM = "model.layers.1.input_layernorm.weight"


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy of a model in one file, untied."""
    shutil.copytree(tiny_model("llama_untied_scaled_rope").path, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def sharded(tiny_model, tmp_path):
    """The same model over several files and an index."""
    tiny_model("llama_untied_scaled_rope").model.save_pretrained(tmp_path, max_shard_size="60KB")
    return tmp_path


def read(path):
    reports = []
    load(EngineConfig(path, kv_size=KvSize(context_len=64)), lambda phase, *counts: reports.append((phase, *counts)))
    return reports


def change_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def refusal(path):
    with pytest.raises(LoadError) as caught:
        read(path)
    assert caught.value.failure.reason is FailureReason.BAD_WEIGHTS
    return str(caught.value)


@pytest.mark.parametrize("layout", ["folder", "sharded"])
def test_progress_counts_every_byte(layout, request, monkeypatch):
    monkeypatch.setattr(reader, "READ_BYTES", 4096)
    path = request.getfixturevalue(layout)
    reports = read(path)
    sizes = [tensor.nbytes for file in path.glob("*.safetensors") for tensor in load_file(file).values()]
    done = [count for phase, count, total in reports if (phase, total) == (LoadPhase.READING_WEIGHTS, sum(sizes))]
    assert len(done) == len(reports) > 10
    assert (done[0], done[-1]) == (0, sum(sizes))
    assert done == sorted(done)


def test_no_weights_at_all(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "only safetensors files are read" in refusal(folder)


def test_a_missing_tensor_is_named(folder):
    change_tensors(folder / "model.safetensors", lambda tensors: tensors.pop(NORM))
    assert f"no file holds tensor {NORM}" in refusal(folder)


def test_a_missing_head_of_an_untied_model_is_named(folder):
    change_tensors(folder / "model.safetensors", lambda tensors: tensors.pop("lm_head.weight"))
    assert "no file holds tensor lm_head.weight" in refusal(folder)


def test_an_unexpected_tensor_is_named(folder):
    file = folder / "model.safetensors"
    change_tensors(file, lambda tensors: tensors.update({"model.layers.9.oddity": torch.zeros(2), "x": torch.ones(1)}))
    message = refusal(folder)
    assert str(file) in message
    assert "holds tensor model.layers.9.oddity and 1 more, which config.json has no place for" in message


@pytest.mark.parametrize(
    ("name", "shape"),
    [(NORM, [47]), ("model.layers.0.self_attn.k_proj.weight", [48, 48]), ("lm_head.weight", [48, 211])],
)
def test_a_wrong_shape_is_named(folder, name, shape):
    change_tensors(folder / "model.safetensors", lambda tensors: tensors.update({name: torch.zeros(shape)}))
    message = refusal(folder)
    assert str(folder / "model.safetensors") in message
    assert f"tensor {name} has shape {shape}; config.json calls for" in message


def test_an_unknown_element_type_is_named(folder):
    change_tensors(
        folder / "model.safetensors", lambda tensors: tensors.update({NORM: torch.zeros(48, dtype=torch.int8)})
    )
    assert f"tensor {NORM} is I8; the known element types are F32, F16, BF16" in refusal(folder)


@pytest.mark.parametrize("kept", [0, 4, 500, -1])
def test_a_file_cut_short_is_named(folder, kept):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    message = refusal(folder)
    assert f"{file}: is corrupt or cut short" in message


def test_a_file_of_something_else_is_named(folder):
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 3)
    assert "model.safetensors: is corrupt or cut short" in refusal(folder)


def test_a_missing_shard_is_named(sharded):
    shard = min(sharded.glob("model-*.safetensors"))
    shard.unlink()
    assert f"{shard}: is missing" in refusal(sharded)


def test_a_shard_without_its_tensor_is_named(sharded):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    shard = sharded / index["weight_map"][NORM]
    change_tensors(shard, lambda tensors: tensors.pop(NORM))
    assert f"{shard}: lacks tensor {NORM}" in refusal(sharded)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "has no weight_map"),
        ('{"weight_map": {}}', "has no weight_map"),
        ('{"weight_map": {"a": "../elsewhere.safetensors"}}', "must be a file of the model folder"),
        ('{"weight_map": {"a": 5}}', "must be a file of the model folder"),
    ],
)
def test_a_bad_index_is_named(sharded, content, words):
    index = sharded / "model.safetensors.index.json"
    index.write_text(content)
    message = refusal(sharded)
    assert str(index) in message
    assert words in message


def test_what_the_configuration_gives_anyway_may_be_stored_too(tiny_model, tmp_path):
    shutil.copytree(tiny_model("qwen3_tied_wide_heads").path, tmp_path, dirs_exist_ok=True)
    spare = {"lm_head.weight": torch.zeros(211, 48), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}
    change_tensors(tmp_path / "model.safetensors", lambda tensors: tensors.update(spare))
    assert read(tmp_path)


@pytest.fixture
def stored_otherwise(tiny_model, tmp_path):
    """Save an architecture with its tensors changed, and return both decoders' parameters."""

    def parameters(path):
        decoder = load(EngineConfig(path, kv_size=KvSize(context_len=64)), lambda *_: None).runner.decoder
        return dict(decoder.named_parameters())

    def save(variant, change):
        path = tiny_model(variant).path
        shutil.copytree(path, tmp_path, dirs_exist_ok=True)
        tensors = change(load_file(path / "model.safetensors"))
        save_file(tensors, tmp_path / "model.safetensors")
        return parameters(path), parameters(tmp_path)

    return save


@pytest.mark.parametrize("variant", ["qwen3_moe", "mixtral"])
def test_experts_may_be_stored_stacked(variant, stored_otherwise, tiny_model):
    stacked = tiny_model(variant).model.state_dict()
    assert "model.layers.0.mlp.experts.gate_up_proj" in stacked
    theirs, ours = stored_otherwise(variant, lambda _: {name: tensor.clone() for name, tensor in stacked.items()})
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_fused_projections_may_be_stored_apart(stored_otherwise):
    def apart(tensors):
        fused = [name for name in tensors if "qkv_proj" in name]
        assert len(fused) == 3
        for name in fused:
            parts = tensors.pop(name).split([48, 24, 24])
            tensors |= {name.replace("qkv", part): rows.clone() for part, rows in zip("qkv", parts, strict=True)}
        return tensors

    theirs, ours = stored_otherwise("phi3", apart)
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_embedding_models_are_stored_without_the_leading_name(stored_otherwise):
    theirs, ours = stored_otherwise(
        "qwen3_tied_wide_heads", lambda tensors: {name.removeprefix("model."): value for name, value in tensors.items()}
    )
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_a_tensor_under_two_names_is_refused(folder):
    file = folder / "model.safetensors"
    change_tensors(file, lambda tensors: tensors.update({NORM.removeprefix("model."): torch.zeros(48)}))
    assert f"{file}: holds tensor" in refusal(folder)
    assert "again" in refusal(folder)


def test_a_missing_expert_is_named(tiny_model, tmp_path):
    shutil.copytree(tiny_model("qwen3_moe").path, tmp_path, dirs_exist_ok=True)
    name = "model.layers.2.mlp.experts.4.up_proj.weight"
    change_tensors(tmp_path / "model.safetensors", lambda tensors: tensors.pop(name))
    assert f"no file holds tensor {name}" in refusal(tmp_path)
