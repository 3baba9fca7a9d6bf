"""A mistake in a provider file is reported with file, line and rule; all of them at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.remote import catalog, providers
from services.remote.wire import Usage
from services.remote.yaml_lines import CatalogError
from tests.support import ROOT
from twinpath.common.v1 import context_pb2

GOOD = """\
name: acme
protocol: oip-http
base_url: https://api.acme.example
token: {env: ACME_TOKEN}
region: eu
max_data_class: internal
models:
  - name: big
    version: "1"
    price: {per_call_nanos_usd: 5, per_kib_out_nanos_usd: 2}
    inputs:
      - {name: x, datatype: FP32, shape: [-1, 3]}
    outputs:
      - {name: y, datatype: FP32, shape: [-1, 1]}
"""


def load(folder: Path, text: str, **environment: str) -> catalog.Provider:
    """The provider of a catalog with one file."""
    path = folder / "providers" / "acme.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return catalog.load(folder, providers.mistakes, environment)["acme"]


def test_a_good_file_is_read(tmp_path: Path) -> None:
    """What it says is what is used."""
    provider = load(tmp_path, GOOD)
    assert provider.ceiling == context_pb2.DATA_CLASS_INTERNAL
    model = provider.find("big", "")
    assert model is not None
    assert model.price[0].nanos(Usage(), 2048, 0) == 9
    assert provider.find("big", "2") is None
    assert provider.find("small", "") is None


def test_of_several_versions_the_last_listed_serves(tmp_path: Path) -> None:
    """An empty version means the one that serves now."""
    again = GOOD[GOOD.index("  - name: big") :].replace('"1"', '"2"')
    provider = load(tmp_path, GOOD + again)
    assert provider.find("big", "").version == "2"
    assert provider.find("big", "1").version == "1"


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("region: eu\n", "", 1, "region: Field required"),
        ("region: eu", "regoin: eu", 5, "regoin: Extra inputs"),
        ("internal", "restricted", 6, "restricted data never leaves"),
        ("internal", "secret", 6, "'public', 'internal' or 'confidential'"),
        ("FP32, shape: [-1, 3]", "FLOAT, shape: [-1, 3]", 12, "models[0].inputs[0].datatype"),
        ("shape: [-1, 3]", "shape: [-2, 3]", 12, "models[0].inputs[0].shape[0]"),
        ("per_call_nanos_usd: 5", "per_call_nanos_usd: -5", 10, "greater than or equal to 0"),
        ("{env: ACME_TOKEN}", "{}", 4, "name one of: a file, an environment variable"),
        ("{env: ACME_TOKEN}", "{env: A, file: b}", 4, "name one of: a file"),
        ("https://api", "http://api", 1, "must be https"),
        ("https://api.acme.example", "https://u:p@api.acme.example", 1, "must not hold"),
        ("https://api.acme.example", "api.acme.example", 1, "base_url must be http"),
        ("https://api.acme.example", "${ACME_URL}", 3, "ACME_URL is not set"),
        ("oip-http", "carrier-pigeon", 2, "carrier-pigeon is none of: "),
        ("name: acme", "name: other", 1, "must be the file's own name"),
        ("region: eu", "region: [eu", 6, "expected"),
        ("{name: y,", "{name: y, name: y,", 14, "duplicate key"),
    ],
)
def test_a_mistake_has_file_line_and_rule(tmp_path: Path, old, new, line, words) -> None:
    """The line is the mistaken key's own, or its parent's where it is missing."""
    assert old in GOOD
    with pytest.raises(CatalogError) as caught:
        load(tmp_path, GOOD.replace(old, new, 1))
    text = str(caught.value)
    assert f"providers/acme.yaml:{line}: " in text
    assert words in text


def test_all_mistakes_of_a_file_are_reported_at_once(tmp_path: Path) -> None:
    """Nobody has to run it once for each."""
    wrong = GOOD.replace("FP32", "FLOAT").replace("region: eu", "region: ''")
    with pytest.raises(CatalogError) as caught:
        load(tmp_path, wrong)
    assert len(str(caught.value).splitlines()) == 3


def test_variables_have_defaults_and_can_be_set(tmp_path: Path) -> None:
    """The same file serves at home and in production."""
    text = GOOD.replace("https://api.acme.example", "${ACME_URL:-http://127.0.0.1:9}")
    assert load(tmp_path, text).base_url == "http://127.0.0.1:9"
    assert load(tmp_path, text, ACME_URL="https://x.example").base_url == "https://x.example"


def test_plain_http_to_another_machine_must_be_wanted(tmp_path: Path) -> None:
    """It is possible, but never by accident."""
    text = GOOD.replace("https://api", "http://api") + "plain_http: true\n"
    assert load(tmp_path, text).plain_http


def test_a_catalog_without_providers_is_a_mistake(tmp_path: Path) -> None:
    """A wrong folder does not pass for a service without vendors."""
    with pytest.raises(CatalogError, match="holds no provider file"):
        catalog.load(tmp_path, providers.mistakes, {})


def test_the_repositorys_own_catalog_is_good() -> None:
    """What we ship loads."""
    found = catalog.load(ROOT / "deploy" / "catalog", providers.mistakes, {})
    assert found["standin"].find("diabetes_large", "1") is not None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("{answer_schema: {type: array}}", "answer_schema must be of type object"),
        ("{task: tabular, columns: {x: [a]}, answer_schema: {type: object}}", "to text tasks"),
    ],
)
def test_a_schema_that_no_answer_could_be_forced_to_is_a_mistake(
    tmp_path: Path, options: str, words: str
) -> None:
    """Found when the file is read, not by the first caller."""
    text = f"""
name: acme
protocol: openai-chat
base_url: https://api.acme.example
token: {{env: ACME_TOKEN}}
region: eu
max_data_class: internal
models:
  - name: m
    version: "1"
    inputs: [{{name: x, datatype: BYTES, shape: [1]}}]
    outputs: [{{name: y, datatype: BYTES, shape: [1]}}]
    options: {options}
"""
    with pytest.raises(CatalogError, match=words):
        load(tmp_path, text)
