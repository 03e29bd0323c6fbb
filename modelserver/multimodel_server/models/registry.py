"""Architecture names of `config.json`, and who composes them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from multimodel_api.failures import FailureReason
from multimodel_server.errors import LoadError
from multimodel_server.models.decoder import Blueprint
from multimodel_server.models.fields import Fields
from multimodel_server.models.gemma2 import gemma2
from multimodel_server.models.gemma3 import gemma3
from multimodel_server.models.llama import llama
from multimodel_server.models.mistral import mistral
from multimodel_server.models.mixtral import mixtral
from multimodel_server.models.phi3 import phi3
from multimodel_server.models.qwen2 import qwen2
from multimodel_server.models.qwen3 import qwen3
from multimodel_server.models.qwen3_moe import qwen3_moe
from multimodel_server.models.smollm3 import smollm3

CONFIG_FILE = "config.json"

ARCHITECTURES: Mapping[str, Callable[[Fields], Blueprint]] = MappingProxyType(
    {
        "Gemma2ForCausalLM": gemma2,
        "Gemma3ForCausalLM": gemma3,
        "LlamaForCausalLM": llama,
        "MistralForCausalLM": mistral,
        "MixtralForCausalLM": mixtral,
        "Phi3ForCausalLM": phi3,
        "Qwen2ForCausalLM": qwen2,
        "Qwen3ForCausalLM": qwen3,
        "Qwen3MoeForCausalLM": qwen3_moe,
        "SmolLM3ForCausalLM": smollm3,
    }
)


def read_model(model_dir: Path) -> Blueprint:
    """Return what a model folder's configuration describes.

    Raises:
        LoadError: UnsupportedArchitecture, listing the known ones; BadConfiguration or BadQuantization.
    """
    fields = Fields.read(model_dir / CONFIG_FILE)
    architecture = fields.architecture()
    compose = ARCHITECTURES.get(architecture)
    if compose is None:
        known = ", ".join(sorted(ARCHITECTURES))
        message = f"{fields.source}: architecture {architecture} is not supported; the known ones are {known}"
        raise LoadError(FailureReason.UNSUPPORTED_ARCHITECTURE, message)
    return compose(fields)
