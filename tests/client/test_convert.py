"""The reference's JSON configuration turned into a MultiModel."""

import json
from pathlib import Path

import pytest
import yaml

from multimodel.convert import SUPPORTED_VARIANTS, UNSUPPORTED_VARIANTS, ConversionError, convert
from multimodel.labels import MAX_LABEL, dns_label, unique_labels
from multimodel.manifest_file import to_yaml
from multimodel_api.manifest import MultiModel

GOLDEN = Path(__file__).parent / "golden"

LLAMA, QWEN = "meta-llama/Llama-3.2-3B-Instruct", "Qwen/Qwen3-4B"
GGUF = {"tok_model_id": LLAMA, "quantized_model_id": "org/llama-gguf", "quantized_filename": "llama-Q4_K_M.gguf"}

PUBLISHED = {
    "aliases": {
        "llama3-3b": {"alias": "llama3-3b", "Plain": {"model_id": LLAMA}},
        "qwen3-4b": {"alias": "qwen3-4b", "Plain": {"model_id": QWEN}, "in_situ_quant": "Q4K"},
    },
    "text": {
        "llama3-3b": {"Plain": {"model_id": LLAMA}},
        "qwen3-4b": {"Plain": {"model_id": QWEN}, "in_situ_quant": "Q4K"},
    },
    "mixed types": {
        "text-model": {"Plain": {"model_id": LLAMA}},
        "vision-model": {"VisionPlain": {"model_id": "google/gemma-3-4b-it"}},
    },
    "gguf": {"llama-gguf": {"GGUF": GGUF}},
}
"""The configurations that the reference's manual shows, in shape and fields."""


def one(variant="Plain", source=None, label="a", **fields):
    return json.dumps({label: {variant: {"model_id": "org/a"} if source is None else source, **fields}})


def test_golden_configuration():
    conversion = convert((GOLDEN / "mixed.json").read_text(), name="mixed", default_model_id="qwen3-4b")
    assert to_yaml(conversion.resource) == (GOLDEN / "mixed.yaml").read_text()
    assert [str(warning) for warning in conversion.warnings] == [
        "Llama 3.2 (3B): the label becomes the model name 'llama-3-2-3b', which must be a DNS label",
        "Llama 3.2 (3B): Plain.arch is ignored: the architecture is read from the model's config.json",
        "vision-model: VisionPlain.max_edge is ignored: there is no limit on images to set",
    ]


@pytest.mark.parametrize("configuration", PUBLISHED.values(), ids=PUBLISHED)
def test_published_configurations_convert_without_loss(configuration):
    conversion = convert(json.dumps(configuration), name="chat")
    assert [model.name for model in conversion.resource.spec.models] == list(configuration)
    assert [model.alias for model in conversion.resource.spec.models] == [
        entry.get("alias") for entry in configuration.values()
    ]
    assert conversion.resource.spec.default.name == next(iter(configuration))
    assert conversion.warnings == ()


@pytest.mark.parametrize(("variant", "kind"), SUPPORTED_VARIANTS.items())
def test_every_supported_variant_becomes_its_kind(variant, kind):
    source = GGUF if variant == "GGUF" else None
    (model,) = convert(one(variant, source), name="chat").resource.spec.models
    assert (model.kind, model.canonical_id) == (kind, "org/llama-gguf" if variant == "GGUF" else "org/a")


@pytest.mark.parametrize("variant", UNSUPPORTED_VARIANTS)
def test_unsupported_variants_are_refused_with_the_supported_ones(variant):
    with pytest.raises(ConversionError, match=f"a: {variant} models are not supported; supported are: Plain, Vision"):
        convert(one(variant), name="chat")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("", "the configuration is empty"),
        (" \n", "the configuration is empty"),
        ("{}", "names no model"),
        ("[1]", "expected an object keyed by label, found a list"),
        ('"text"', "found a string"),
        ('{"a":\n {,}}', "not valid JSON: line 2, column 3"),
        ('{"a": 3}', "a: expected an object like .* found a number"),
        ('{"a": {"alias": "b"}}', "a: found alias, but no model specification; add one of: Plain"),
        ('{"a": {}}', "a: found nothing, but no model specification"),
        ('{"a": {"Plain": "org/a"}}', "a: Plain: expected an object of fields, found a string"),
        ('{"a": {"Plain": {}}}', "a: Plain.model_id: is required"),
        ('{"a": {"Plain": {"model_id": 5}}}', r"a: Plain.model_id: Input should be a valid string \(found 5\)"),
        ('{"a": {"Plain": {"model_id": "x", "dtype": "q4"}}}', "a: Plain.dtype: Input should be 'auto', .*found 'q4'"),
        ('{"a": {"Plain": {"model_id": "x", "max_seq_len": 0}}}', r"a: Plain.max_seq_len: .*greater.*\(found 0\)"),
        ('{"a": {"Plain": {"model_id": "x"}, "num_device_layers": ["x"]}}', r"a: num_device_layers.0: .*match pattern"),
        ('{"a": {"Plain": {"model_id": "x"}, "alias": 7}}', "a: alias: Input should be a valid string"),
        ('{"a": {"Plain": {"model_id": "x"}, "alias": "default"}}', "a: the id 'default' is reserved"),
        ('{"a": {"Plain": {"model_id": "x"}, "GGUF": {}}}', "a: has Plain and GGUF"),
        ('{"a": {"Gguf": {}}}', "a: unknown variant Gguf; did you mean GGUF"),
        ('{"a": {"plain": {}}}', "a: unknown variant plain; did you mean Plain"),
        ('{"a": {"GGUF": {"quantized_filename": "f"}}}', "a: GGUF.quantized_model_id: is required"),
        ('{"a": {"Plain": {"model_id": "x"}}, "a": {}}', 'the key "a" appears twice'),
        ('{"a": {"Plain": {"model_id": "x", "model_id": "y"}}}', 'the key "model_id" appears twice'),
        ('{"a": {"Plain": {"model_id": "x"}}, "b": {"Plain": {"model_id": "x"}}}', "two models have the same API id"),
    ],
)
def test_what_cannot_be_converted_is_named(document, message):
    with pytest.raises(ConversionError, match=message):
        convert(document, name="chat")


def test_the_default_is_named_by_alias_or_model_id():
    document = json.dumps(PUBLISHED["aliases"])
    for model_id in ("qwen3-4b", QWEN):
        assert convert(document, name="chat", default_model_id=model_id).resource.spec.default.canonical_id == QWEN


def test_an_unknown_default_lists_the_ids_and_knows_labels():
    with pytest.raises(ConversionError, match=r"'a' \(it is a label; labels are not ids\); choose one of: b, org/a"):
        convert(one(alias="b"), name="chat", default_model_id="a")


def test_one_model_may_serve_under_two_aliases():
    entries = {alias: {"alias": alias, "Plain": {"model_id": "org/a"}} for alias in ("x", "y")}
    assert [model.api_id for model in convert(json.dumps(entries), name="chat").resource.spec.models] == ["x", "y"]


@pytest.mark.parametrize("variant", SUPPORTED_VARIANTS)
def test_what_sizes_the_placement_of_layers_is_kept(variant):
    source = (GGUF if variant == "GGUF" else {"model_id": "org/a"}) | {"max_seq_len": 8192, "max_batch_size": 2}
    conversion = convert(one(variant, source, num_device_layers=["0:16", "1:12"]), name="chat")
    engine = conversion.resource.spec.models[0].engine
    assert (engine.max_seq_len, engine.max_batch_size, engine.num_device_layers) == (8192, 2, ["0:16", "1:12"])
    assert conversion.warnings == ()


def test_null_means_unset():
    source = {"model_id": "org/a", "dtype": None, "topology": None}
    conversion = convert(one(source=source, alias=None, in_situ_quant=None), name="chat")
    assert conversion.resource.spec.models[0].alias is None
    assert conversion.warnings == ()


def test_unknown_fields_are_reported():
    conversion = convert(one(source={"model_id": "org/a", "tempo": 1}, colour="red"), name="chat")
    assert [(warning.label, warning.field) for warning in conversion.warnings] == [
        ("a", "colour"),
        ("a", "Plain.tempo"),
    ]


def test_written_yaml_reads_back_the_same():
    resource = convert((GOLDEN / "mixed.json").read_text(), name="mixed").resource
    assert MultiModel.model_validate(yaml.safe_load(to_yaml(resource))) == resource


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("qwen3-4b", "qwen3-4b"),
        ("Qwen/Qwen3-4B", "qwen-qwen3-4b"),
        ("Café Crème", "cafe-creme"),
        ("--x--", "x"),
        ("模型", "model"),
        ("a" * 80, "a" * MAX_LABEL),
    ],
)
def test_labels_become_readable_dns_labels(text, label):
    assert dns_label(text) == label


def test_labels_stay_unique_and_proper_ones_keep_theirs():
    assert unique_labels(["A b", "a.b", "a-b", "模", "型"]) == {
        "A b": "a-b-2",
        "a.b": "a-b-3",
        "a-b": "a-b",
        "模": "model",
        "型": "model-2",
    }
    long = unique_labels(["x" * 63, "X" * 70])
    assert len(set(long.values())) == 2
    assert all(len(label) <= MAX_LABEL for label in long.values())
