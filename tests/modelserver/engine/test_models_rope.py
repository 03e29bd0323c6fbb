"""Rotary frequencies at the sizes of published models, against transformers."""

import pytest
import torch
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from multimodel_server.layers.rotary import Rotary
from multimodel_server.models.config import decoder_config
from multimodel_server.models.fields import Fields
from multimodel_server.models.rope import read_rope

SIZES = {
    "vocab_size": 100,
    "hidden_size": 1024,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32_768}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 4096,
    "short_factor": [1.0 + pair / 100 for pair in range(48)],
    "long_factor": [1.0 + pair for pair in range(48)],
}


@pytest.mark.parametrize(
    ("settings", "context"),
    [
        ({"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}, 131_072),
        ({**LLAMA3, "original_max_position_embeddings": 8192}, 131_072),
        (YARN, 131_072),
        ({**YARN, "truncate": False, "beta_fast": 16, "beta_slow": 2}, 131_072),
        ({**YARN, "attention_factor": 1.5}, 131_072),
        ({**YARN, "mscale": 0.7, "mscale_all_dim": 0.4}, 131_072),
        ({**YARN, "original_max_position_embeddings": 64}, 131_072),
        (LONG, 131_072),
        (LONG, 4096),
        ({**LONG, "attention_factor": 1.25}, 4097),
        ({**LONG, "factor": 2.0}, 100),
    ],
)
def test_frequencies_are_transformers(settings, context):
    fields = Fields("config.json", {**SIZES, "rope_parameters": settings})
    rotary = Rotary(read_rope(fields, decoder_config(fields)), context, torch.device("cpu"))
    config = PreTrainedConfig(**SIZES)
    config.head_dim, config.rope_parameters = 128, settings
    frequencies, magnitude = ROPE_INIT_FUNCTIONS[settings["rope_type"]](config, torch.device("cpu"), seq_len=context)
    torch.testing.assert_close(rotary.frequencies, frequencies, atol=0, rtol=1e-6)
    assert rotary.magnitude == pytest.approx(magnitude)
