"""`convert`: the JSON configuration of mistral.rs printed as a MultiModel."""

from pathlib import Path
from typing import Annotated

import typer

from multimodel.cli.options import examples
from multimodel.cli.reporting import reported_errors, show_warning
from multimodel.convert import ConversionError, convert
from multimodel.labels import dns_label
from multimodel.manifest_file import read_text, to_yaml
from multimodel_api.manifest import MultiModel

DefaultModelId = Annotated[
    str | None,
    typer.Option("--default-model-id", metavar="ID", help="Alias or model id of the default model; else the first."),
]

CONVERT_EXAMPLES = examples(
    "multimodel convert config.json > models.yaml",
    "multimodel convert config.json --name chat --default-model-id qwen3-4b",
    "multimodel convert config.json | kubectl apply -f -",
)


def _checked_name(name: str | None) -> str | None:
    if name is not None and dns_label(name) != name:
        raise typer.BadParameter(f"{name!r} is no DNS label; write {dns_label(name)!r}")
    return name


def read_configuration(file: Path, *, name: str | None = None, default_model_id: str | None = None) -> MultiModel:
    """Return the MultiModel that a JSON configuration file describes, and warn of what it loses.

    Raises:
        ManifestError: the file cannot be read.
        ConversionError: it is no configuration that can be converted.
    """
    text = read_text(file)
    try:
        conversion = convert(text, name=name or dns_label(file.stem), default_model_id=default_model_id)
    except ConversionError as error:
        raise ConversionError("\n".join(f"{file}: {line}" for line in str(error).splitlines())) from error
    for warning in conversion.warnings:
        show_warning(f"{file}: {warning}")
    return conversion.resource


@reported_errors()
def convert_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The JSON configuration.")],
    default_model_id: DefaultModelId = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Name of the MultiModel; else the file's name.", callback=_checked_name),
    ] = None,
) -> None:
    """Print the JSON configuration of mistral.rs as a MultiModel; warnings go to standard error."""
    resource = read_configuration(file, name=name, default_model_id=default_model_id)
    print(to_yaml(resource), end="")
