"""The contracts themselves: generated code, comments, rules, the table of who may call what."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf import descriptor_pb2

from tests.support import ROOT
from twinpath.common.v1 import rules_pb2

PROTOS = ROOT / "protos"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """protos/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("generate_protos", PROTOS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def files(
    generator: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> list[descriptor_pb2.FileDescriptorProto]:
    """Our files, with the comments that the generated code leaves out."""
    image = tmp_path_factory.mktemp("protos") / "image.binpb"
    generator._image(PROTOS, image)
    everything = descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes())
    return [file for file in everything.file if file.name.startswith("twinpath/")]


def copy_of_the_protos(folder: Path) -> Path:
    """Return a generate.py beside a copy of the protos that a test may spoil."""
    target = folder / "protos"
    shutil.copytree(PROTOS, target, ignore=shutil.ignore_patterns("__pycache__"))
    return target / "generate.py"


def run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run generate.py."""
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_committed_code_is_what_the_protos_say() -> None:
    """Regenerated, the code beside the protos is the same, byte for byte."""
    done = run(PROTOS / "generate.py", "--check")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("how", ["edited", "missing", "left over"])
def test_a_difference_between_protos_and_code_is_found(tmp_path: Path, how: str) -> None:
    """The comparison above can fail: for a field, for a file too few and for one too many."""
    script = copy_of_the_protos(tmp_path)
    folder = script.parent / "twinpath" / "common" / "v1"
    if how == "edited":
        proto = folder / "context.proto"
        proto.write_text(proto.read_text().replace("int64 time_left_us", "int64 time_over_us"))
    elif how == "missing":
        (folder / "rules_pb2.py").unlink()
    else:
        (folder / "gone_pb2.py").write_text("")
    done = run(script, "--check")
    assert done.returncode == 1
    assert "make proto" in done.stdout


def test_buf_accepts_the_protos() -> None:
    """Style and comments, by the rules of buf.yaml."""
    done = run(PROTOS / "generate.py", "--lint")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("before", "after", "rule"),
    [
        ("  // The entries.\n  repeated Value values", "  repeated Value values", "comment"),
        ("bool bool_value", "bool boolValue", "lower_snake_case"),
    ],
)
def test_buf_can_fail(tmp_path: Path, before: str, after: str, rule: str) -> None:
    """A lint that never fails is none: a missing comment and a wrong name are found."""
    script = copy_of_the_protos(tmp_path)
    proto = script.parent / "twinpath" / "common" / "v1" / "value.proto"
    text = proto.read_text()
    assert before in text
    proto.write_text(text.replace(before, after, 1))
    done = run(script, "--lint")
    assert done.returncode != 0
    assert "value.proto" in done.stdout + done.stderr
    assert rule in done.stdout + done.stderr


def paths(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    """Yield (source path, name) of everything that must have a comment."""
    kinds = descriptor_pb2.FileDescriptorProto
    for s, service in enumerate(file.service):
        at = (kinds.SERVICE_FIELD_NUMBER, s)
        yield at, service.name
        for m, method in enumerate(service.method):
            yield (*at, 2, m), f"{service.name}.{method.name}"
    for e, enum in enumerate(file.enum_type):
        at = (kinds.ENUM_TYPE_FIELD_NUMBER, e)
        yield at, enum.name
        for v, value in enumerate(enum.value):
            yield (*at, 2, v), value.name
    for m, message in enumerate(file.message_type):
        yield from message_paths(message, (kinds.MESSAGE_TYPE_FIELD_NUMBER, m))


def message_paths(
    message: descriptor_pb2.DescriptorProto, at: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], str]]:
    """Yield what within a message must have a comment; the entries of maps are not written."""
    if message.options.map_entry:
        return
    yield at, message.name
    for f, field in enumerate(message.field):
        yield (*at, 2, f), f"{message.name}.{field.name}"
    for o, oneof in enumerate(message.oneof_decl):
        if not oneof.name.startswith("_"):  # proto3's `optional` makes one that nobody wrote
            yield (*at, 8, o), f"{message.name}.{oneof.name}"
    for n, nested in enumerate(message.nested_type):
        yield from message_paths(nested, (*at, 3, n))


def test_everything_in_the_contracts_has_a_comment(
    files: list[descriptor_pb2.FileDescriptorProto],
) -> None:
    """Every service, RPC, message, field, oneof, enum and value says what it is."""
    seen = 0
    bare = []
    for file in files:
        comments = {
            tuple(place.path): place.leading_comments.strip()
            for place in file.source_code_info.location
        }
        for path, name in paths(file):
            seen += 1
            if len(comments.get(path, "")) < 2:
                bare.append(f"{file.name}: {name}")
    assert bare == []
    assert seen > 300


def test_comments_of_times_and_amounts_give_their_unit(
    files: list[descriptor_pb2.FileDescriptorProto],
) -> None:
    """A field whose name ends in a unit does not contradict it; one in time has a unit."""
    wrong = []
    for file in files:
        for message in file.message_type:
            for field in message.field:
                timed = re.search(r"(^|_)(time|latency|duration)(s?)($|_)", field.name)
                unit = re.search(r"_(us|ms|s|unix_us|id)$", field.name)
                number = field.type in (3, 4, 5, 13, 1, 2)
                if timed and number and not unit:
                    wrong.append(f"{message.name}.{field.name}")
    assert wrong == []


def all_fields(
    files: list[descriptor_pb2.FileDescriptorProto],
) -> Iterator[tuple[str, descriptor_pb2.FieldDescriptorProto, rules_pb2.FieldRules]]:
    """Yield every field that has rules, with them."""
    for file in files:
        for message in file.message_type:
            for field in message.field:
                options = descriptor_pb2.FieldOptions.FromString(field.options.SerializeToString())
                if options.HasExtension(rules_pb2.rules):
                    yield f"{message.name}.{field.name}", field, options.Extensions[rules_pb2.rules]


def test_rules_fit_the_fields_that_they_stand_at(
    files: list[descriptor_pb2.FileDescriptorProto],
) -> None:
    """A rule that its field's type can't break would be a promise that nobody keeps."""
    field_type = descriptor_pb2.FieldDescriptorProto
    wrong = []
    count = 0
    for name, field, rules in all_fields(files):
        count += 1
        repeated = field.label == field_type.LABEL_REPEATED
        text = field.type == field_type.TYPE_STRING
        sized = text or field.type == field_type.TYPE_BYTES
        number = not sized and field.type not in (
            field_type.TYPE_MESSAGE,
            field_type.TYPE_ENUM,
            field_type.TYPE_BOOL,
        )
        if repeated and (rules.min_len or rules.max_len or rules.pattern):
            wrong.append(f"{name}: rules of an element at a list")
        if not repeated and (rules.min_items or rules.max_items or rules.unique_by):
            wrong.append(f"{name}: rules of a list at one value")
        if not repeated and not sized and (rules.min_len or rules.max_len):
            wrong.append(f"{name}: a length of what has none")
        if rules.pattern and not text:
            wrong.append(f"{name}: a pattern for what is no text")
        if (rules.HasField("min") or rules.HasField("max")) and (repeated or not number):
            wrong.append(f"{name}: a range of what is no number")
        if rules.pattern:
            re.compile(rules.pattern)
    assert wrong == []
    assert count > 50


def test_lists_and_texts_in_requests_are_bounded(
    files: list[descriptor_pb2.FileDescriptorProto],
) -> None:
    """What a caller may send has a limit of its own, in every request's own fields."""
    bounded = {name for name, _, rules in all_fields(files) if rules.max_len or rules.max_items}
    field_type = descriptor_pb2.FieldDescriptorProto
    free = []
    for file in files:
        for message in file.message_type:
            if not message.name.endswith("Request"):
                continue
            for field in message.field:
                sized = field.type in (field_type.TYPE_STRING, field_type.TYPE_BYTES)
                if sized or field.label == field_type.LABEL_REPEATED:
                    name = f"{message.name}.{field.name}"
                    if name not in bounded:
                        free.append(name)
    # A decision id to prove: looked up, never kept; the frame's limit of a message holds.
    assert free == ["ProveRequest.decision_id"]


def test_enums_begin_with_what_is_not_said(
    files: list[descriptor_pb2.FileDescriptorProto],
) -> None:
    """Zero is UNSPECIFIED everywhere, so that absence is told from a choice."""
    for file in files:
        for enum in file.enum_type:
            assert enum.value[0].number == 0
            assert enum.value[0].name.endswith("_UNSPECIFIED"), enum.name


def test_both_paths_have_the_same_service(
    files: list[descriptor_pb2.FileDescriptorProto],
) -> None:
    """There is one inference service; `local` and `remote` have no contract of their own."""
    services = sorted(f"{file.package}.{s.name}" for file in files for s in file.service)
    assert services == [
        "twinpath.audit.v1.Audit",
        "twinpath.features.v1.Features",
        "twinpath.inference.v1.Bulk",  # remote alone: Triton has no price for waiting
        "twinpath.inference.v1.Inference",
        "twinpath.inference.v1.ModelControl",  # local alone: loading is no part of asking
        "twinpath.router.v1.Jobs",  # of the router, too: decisions that may wait
        "twinpath.router.v1.Router",
    ]
