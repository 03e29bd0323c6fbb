"""`config.json`: what is understood, and how each mistake is named."""

import json

import pytest
import torch

from multimodel_api.failures import FailureReason
from multimodel_server import kernels
from multimodel_server.errors import LoadError
from multimodel_server.layers.attention import Scores
from multimodel_server.layers.rope_scaling import Llama3Scaling
from multimodel_server.layers.rotary import Rope
from multimodel_server.models.decoder import Decoder
from multimodel_server.models.registry import read_model

SMALLEST = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LLAMA3 = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}


@pytest.fixture
def read(tmp_path):
    def read(**changes):
        fields = {name: value for name, value in (SMALLEST | changes).items() if value is not ...}
        (tmp_path / "config.json").write_text(json.dumps(fields))
        return read_model(tmp_path)

    return read


@pytest.fixture
def decoder(read):
    """Return the decoder of a configuration, without memory for its weights."""

    def decoder(**changes):
        with torch.device("meta"):
            return Decoder(read(**changes))

    return decoder


def test_absent_fields_have_the_defaults_of_the_format(read, decoder):
    absent = {"head_dim": None, "num_key_value_heads": None, "rope_scaling": None}
    config = read(**absent).config
    assert (config.num_kv_heads, config.head_dim, config.tie_word_embeddings) == (4, 16, False)
    made = decoder(**absent)
    assert made.ropes == (Rope(16, 10_000.0),)
    assert not [name for name, _ in made.named_parameters() if name.endswith("bias")]


@pytest.mark.parametrize(
    ("architecture", "window", "tied", "theta"),
    [
        ("MistralForCausalLM", 4096, False, 1e4),
        ("MixtralForCausalLM", None, False, 1e6),
        ("Phi3ForCausalLM", None, False, 1e4),
        ("Qwen2ForCausalLM", None, False, 1e4),
        ("Qwen3MoeForCausalLM", None, False, 1e4),
        ("SmolLM3ForCausalLM", None, True, 2e6),
    ],
)
def test_silent_files_mean_what_their_architecture_does(decoder, architecture, window, tied, theta):
    made = decoder(architectures=[architecture], **EXPERTS)
    assert made.layers[0].self_attn.scores.window == window
    assert (made.config.tie_word_embeddings, made.ropes[0].theta) == (tied, theta)


def test_a_silent_gemma_file(decoder):
    made = decoder(architectures=["Gemma2ForCausalLM"], query_pre_attn_scalar=16, sliding_window=8)
    assert [layer.self_attn.scores for layer in made.layers] == [Scores(0.25, 8, 50.0), Scores(0.25, None, 50.0)]
    assert (made.config.tie_word_embeddings, made.logit_soft_cap) == (True, 30.0)
    assert {layer.mlp.activation for layer in made.layers} == {kernels.gelu_mul}


def test_null_turns_windows_and_soft_caps_off(decoder):
    assert decoder(architectures=["MistralForCausalLM"], sliding_window=None).layers[0].self_attn.scores.window is None
    off = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    made = decoder(architectures=["Gemma2ForCausalLM"], query_pre_attn_scalar=16, sliding_window=8, **off)
    assert (made.layers[0].self_attn.scores.soft_cap, made.logit_soft_cap) == (None, None)


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"use_sliding_window": False, "sliding_window": 8}, [None, None]),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, [None, 8]),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, [8, 8]),
        ({"use_sliding_window": True, "sliding_window": 8}, [None, None]),
        (
            {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
            [8, None],
        ),
    ],
)
def test_qwen_windows_begin_at_a_layer_or_are_listed(decoder, changes, windows):
    made = decoder(architectures=["Qwen2ForCausalLM"], **changes)
    assert [layer.self_attn.scores.window for layer in made.layers] == windows


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5, "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 64}},
        {"rope_parameters": {**LLAMA3, "rope_theta": 5e5, "original_max_position_embeddings": 64}},
    ],
)
def test_rope_settings_are_read_in_both_spellings(decoder, rope):
    assert decoder(**rope).ropes == (Rope(16, 5e5, Llama3Scaling(8.0, 1.0, 4.0, 64)),)


@pytest.mark.parametrize("spelling", ["dtype", "torch_dtype"])
def test_the_element_type_is_read_in_both_spellings(read, spelling):
    assert read(**{spelling: "bfloat16"}).config.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": ...}, "hidden_size is missing; it must be a whole number of at least 1"),
        ({"hidden_size": "64"}, 'hidden_size is "64"; it must be a whole number'),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"vocab_size": True}, "vocab_size is true"),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1; it must be a number above 0"),
        ({"tie_word_embeddings": "yes"}, 'tie_word_embeddings is "yes"; it must be true or false'),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3; it must divide num_attention_heads, 4"),
        ({"head_dim": 15}, "head_dim is 15; it must be even"),
        ({"hidden_act": "gelu"}, 'hidden_act is "gelu"; it must be "silu" or "gelu_pytorch_tanh"'),
        ({"architectures": []}, "architectures is []; it must be a list of one class name"),
        ({"dtype": 16}, "dtype is 16; it must be a string"),
        (
            {"rope_scaling": {"rope_type": "dynamic"}},
            'rope_scaling: rope_type is "dynamic"; it must be "default" or "linear" or "llama3" or "yarn"',
        ),
        ({"rope_scaling": {"type": "dynamic"}}, 'rope_scaling: type is "dynamic"; it must be "default" or'),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor is missing; it must be a number above 0"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "original_max_position_embeddings is missing"),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1, 2]}, "original_max_position_embeddings": 8},
            "rope_scaling: short_factor is [1, 2]; it must be a list of 8 numbers above 0",
        ),
        (
            {"rope_scaling": {"type": "su"}, "original_max_position_embeddings": 1},
            "original_max_position_embeddings is 1",
        ),
        ({"partial_rotary_factor": 0.2}, "partial_rotary_factor is 0.2; it must name an even part of head_dim, 16"),
        ({"rope_scaling": [1]}, "rope_scaling is [1]; it must be an object"),
        ({"rope_parameters": LLAMA3}, "rope_parameters: original_max_position_embeddings is missing"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 4}}, "low_freq_factor is 4; it must be below high_freq_factor"),
    ],
)
def test_a_bad_field_is_named(read, tmp_path, changes, words):
    with pytest.raises(LoadError) as caught:
        read(**changes)
    assert caught.value.failure.reason is FailureReason.BAD_CONFIGURATION
    assert str(tmp_path / "config.json") in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("architecture", "changes", "words"),
    [
        ("MistralForCausalLM", {"sliding_window": 0}, "sliding_window is 0; it must be a whole number of at least 1"),
        ("Qwen2ForCausalLM", {"use_sliding_window": True, "max_window_layers": 0}, "sliding_window is missing"),
        ("Qwen2ForCausalLM", {"use_sliding_window": True, "max_window_layers": -1}, "max_window_layers is -1"),
        ("MixtralForCausalLM", {}, "num_local_experts is missing"),
        ("MixtralForCausalLM", {**EXPERTS, "num_experts_per_tok": 5}, "it must be at most num_local_experts, 4"),
        ("Qwen3MoeForCausalLM", {"num_experts_per_tok": 2}, "num_experts is missing"),
        ("Qwen3MoeForCausalLM", {**EXPERTS, "mlp_only_layers": [-1]}, "it must be a list of layer numbers"),
        ("Gemma2ForCausalLM", {"sliding_window": 8}, "query_pre_attn_scalar is missing"),
        ("Gemma2ForCausalLM", {}, "sliding_window is missing"),
        ("Gemma3ForCausalLM", {"use_bidirectional_attention": True}, "use_bidirectional_attention is true"),
        (
            "Gemma3ForCausalLM",
            {"layer_types": ["full_attention"]},
            'it must be a list of 2, each "full_attention" or "sliding_attention"',
        ),
        ("Gemma3ForCausalLM", {"hidden_activation": "relu"}, 'hidden_activation is "relu"; it must be "silu" or'),
        ("SmolLM3ForCausalLM", {"no_rope_layers": [1, 2]}, "it must be a list of 2, each 0 or 1"),
    ],
)
def test_a_bad_field_of_an_architecture_is_named(read, tmp_path, architecture, changes, words):
    with pytest.raises(LoadError) as caught:
        read(architectures=[architecture], **changes)
    assert caught.value.failure.reason is FailureReason.BAD_CONFIGURATION
    assert str(tmp_path / "config.json") in str(caught.value)
    assert words in str(caught.value)


def test_an_unknown_architecture_is_refused_before_its_fields_are_read(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["MambaForCausalLM"]}')
    with pytest.raises(
        LoadError, match=r"MambaForCausalLM is not supported.* Gemma2ForCausalLM, .* SmolLM3ForCausalLM"
    ) as caught:
        read_model(tmp_path)
    assert caught.value.failure.reason is FailureReason.UNSUPPORTED_ARCHITECTURE


def test_quantised_weights_are_refused(read):
    with pytest.raises(LoadError, match=r"quantised \(gptq\)") as caught:
        read(quantization_config={"quant_method": "gptq", "bits": 4})
    assert caught.value.failure.reason is FailureReason.BAD_QUANTIZATION


@pytest.mark.parametrize(
    ("content", "words"), [(None, "No such file"), ("{", "is not JSON"), ("\xff", "is not JSON"), ("[]", "JSON object")]
)
def test_a_file_that_holds_no_configuration_is_named(tmp_path, content, words):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(LoadError, match=words) as caught:
        read_model(tmp_path)
    assert caught.value.failure.reason is FailureReason.BAD_CONFIGURATION
