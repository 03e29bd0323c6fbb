"""`config.json`: what is understood, and how each mistake is named."""

import json

import pytest

from multimodel_api.failures import FailureReason
from multimodel_server.errors import LoadError
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
LLAMA3 = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}


@pytest.fixture
def read(tmp_path):
    def read(**changes):
        fields = {name: value for name, value in (SMALLEST | changes).items() if value is not ...}
        (tmp_path / "config.json").write_text(json.dumps(fields))
        return read_model(tmp_path)[0]

    return read


def test_absent_fields_have_the_defaults_of_the_format(read):
    config = read(head_dim=None, num_key_value_heads=None, rope_scaling=None)
    assert (config.num_kv_heads, config.head_dim, config.rope_theta, config.rope_scaling) == (4, 16, 10_000.0, None)
    assert not (config.tie_word_embeddings or config.attention_bias or config.mlp_bias)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5, "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 64}},
        {"rope_parameters": {**LLAMA3, "rope_theta": 5e5, "original_max_position_embeddings": 64}},
    ],
)
def test_rope_settings_are_read_in_both_spellings(read, rope):
    config = read(**rope)
    assert config.rope_theta == 5e5
    assert (config.rope_scaling.factor, config.rope_scaling.original_max_position_embeddings) == (8.0, 64)


@pytest.mark.parametrize("spelling", ["dtype", "torch_dtype"])
def test_the_element_type_is_read_in_both_spellings(read, spelling):
    assert read(**{spelling: "bfloat16"}).dtype == "bfloat16"


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
        ({"hidden_act": "gelu"}, 'hidden_act is "gelu"; it must be "silu"'),
        ({"use_sliding_window": True}, "use_sliding_window is true"),
        ({"architectures": []}, "architectures is []; it must be a list of one class name"),
        ({"dtype": 16}, "dtype is 16; it must be a string"),
        (
            {"rope_scaling": {"rope_type": "yarn"}},
            'rope_scaling: rope_type is "yarn"; it must be "default" or "llama3"',
        ),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: rope_type is missing"),
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


def test_an_unknown_architecture_is_refused_before_its_fields_are_read(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["MambaForCausalLM"]}')
    with pytest.raises(
        LoadError, match=r"MambaForCausalLM is not supported.* LlamaForCausalLM, Qwen3ForCausalLM"
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
