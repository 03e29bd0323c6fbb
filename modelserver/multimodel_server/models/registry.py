"""Architecture names of `config.json`, and who composes them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from multimodel_api.failures import FailureReason
from multimodel_server.errors import LoadError
from multimodel_server.models.config import CONFIG_FILE, DecoderConfig, Fields, decoder_config
from multimodel_server.models.decoder import Decoder
from multimodel_server.models.llama import llama
from multimodel_server.models.qwen3 import qwen3

Composition = Callable[[DecoderConfig], Decoder]
"""Builds a decoder with uninitialised weights, on torch's default device and in its default dtype."""

ARCHITECTURES: Mapping[str, Composition] = MappingProxyType({"LlamaForCausalLM": llama, "Qwen3ForCausalLM": qwen3})


def read_model(model_dir: Path) -> tuple[DecoderConfig, Composition]:
    """Return a model folder's configuration and the composition of its architecture.

    Raises:
        LoadError: UnsupportedArchitecture, listing the known ones; BadConfiguration or BadQuantization.
    """
    fields = Fields.read(model_dir / CONFIG_FILE)
    architecture = fields.architecture()
    composition = ARCHITECTURES.get(architecture)
    if composition is None:
        known = ", ".join(sorted(ARCHITECTURES))
        message = f"{fields.source}: architecture {architecture} is not supported; the known ones are {known}"
        raise LoadError(FailureReason.UNSUPPORTED_ARCHITECTURE, message)
    return decoder_config(fields), composition
