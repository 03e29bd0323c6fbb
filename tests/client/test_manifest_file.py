"""Manifest files: what is wrong is said with file, field, value and fix."""

import pytest

from multimodel.manifest_file import ManifestError, read_manifest

HEAD = "apiVersion: multimodel.dev/v1alpha1\nkind: MultiModel\nmetadata: {name: chat}\n"


@pytest.fixture
def error_for(tmp_path):
    def errors(text):
        file = tmp_path / "models.yaml"
        file.write_text(text)
        with pytest.raises(ManifestError) as raised:
            read_manifest(file)
        lines = str(raised.value).splitlines()
        assert all(line.startswith(f"{file}: ") for line in lines)
        return [line.removeprefix(f"{file}: ") for line in lines]

    return errors


def test_a_good_manifest_is_read(tmp_path):
    file = tmp_path / "models.yaml"
    file.write_text(HEAD + "spec: {models: [{name: a, alias: x, plain: {modelId: org/a}}]}")
    assert read_manifest(file).spec.default.api_id == "x"


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("{models: [{name: a, plain: {}}]}", "spec.models[0].plain.modelId: is required; add it"),
        (
            "{defaultModell: a, models: [{name: a, plain: {modelId: x}}]}",
            "spec.defaultModell: is no known field; did you mean defaultModel?",
        ),
        (
            "{models: [{name: a, plain: {modelId: x}, engine: {pagedAttention: {blocksize: 8}}}]}",
            "spec.models[0].engine.pagedAttention.blocksize: is no known field; did you mean blockSize?",
        ),
        (
            "{models: [{name: a, plain: {modelId: x}, router: {}}]}",
            "spec.models[0].router: is no known field; known are: nodeSelector, tolerations, affinity, "
            "runtimeClassName, priorityClassName, resources, resourceClaims, env, envFrom, volumes, volumeMounts, "
            "hubToken, cache, loading, podTemplate, name, alias, plain, vision, gguf, embedding, diffusion, speech, "
            "inSituQuant, engine, scaling, balance",
        ),
        (
            "{models: [{name: My Model, plain: {modelId: x}}]}",
            "spec.models[0].name: 'My Model' is not a DNS label (lower-case letters, digits and '-'); write 'my-model'",
        ),
        (
            "{models: [{name: a, plain: {modelId: x}, engine: {maxSeqs: 0}}]}",
            "spec.models[0].engine.maxSeqs: Input should be greater than or equal to 1 (found 0)",
        ),
        (
            "{models: [{name: a, plain: {modelId: x}, vision: {modelId: x}}]}",
            "spec.models[0]: exactly one source must be set: plain, vision, gguf, embedding, diffusion, speech",
        ),
        (
            "{defaultModel: b, models: [{name: a, plain: {modelId: x}}]}",
            "spec: defaultModel must be the alias or the model id of one of the models",
        ),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_fix(error_for, spec, line):
    assert error_for(f"{HEAD}spec: {spec}") == [line]


def test_every_problem_is_named(error_for):
    assert len(error_for(HEAD + "spec: {models: [{name: a}, {name: b, plain: {modelID: x}}]}")) == 3


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [1\nb: 2", "not valid YAML: line 2, column 2: expected ',' or ']', but got ':'"),
        ("", "holds no resource; start with 'apiVersion: multimodel.dev/v1alpha1'"),
        ("- a", "holds no resource; start with 'apiVersion: multimodel.dev/v1alpha1'"),
        ("a: 1\n---\nb: 2", "not valid YAML: line 2, column 1: but found another document"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(error_for, text, line):
    assert error_for(text) == [line]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"a: \xff")
    for name, message in (("none.yaml", "no such file"), ("", "cannot be read"), ("binary.yaml", "not UTF-8 text")):
        with pytest.raises(ManifestError, match=message):
            read_manifest(tmp_path / name)
