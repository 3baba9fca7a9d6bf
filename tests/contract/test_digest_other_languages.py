"""The digest in Go and Node: generated messages and the specification's comments are enough.

The programs in digest_go/ and digest_node/ share no code with the product. Stubs are generated
here, into a folder of the test's own, by each language's own protoc plugin.
"""

from __future__ import annotations

import importlib.resources
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

HERE = Path(__file__).parent
PROTOS = ROOT / "protos"
VECTORS = PROTOS / "twinpath" / "inference" / "v1" / "digest_vectors.json"
FILES = ("twinpath/common/v1/rules.proto", "twinpath/inference/v1/tensor.proto")

pytestmark = pytest.mark.timeout(600)


def run(*argv: str, cwd: Path, given: str = "") -> str:
    """Run a program; return what it printed."""
    done = subprocess.run(argv, cwd=cwd, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}:\n{done.stderr}"
    return done.stdout


def fetch(*argv: str, cwd: Path) -> None:
    """Fetch a language's packages; where none can be had the test has nothing to say."""
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()
        pytest.skip(f"{' '.join(argv)} failed: {lines[-1]}")


def generate(plugin: Path, kind: str, out: Path, *options: str) -> None:
    """Generate messages with a language's plugin for protoc."""
    out.mkdir(exist_ok=True)
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    chosen = [f"--{kind}_opt={option}" for option in options]
    run(
        *(sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", f"-I{well_known}"),
        *(f"--plugin=protoc-gen-{kind}={plugin}", f"--{kind}_out={out}", *chosen, *FILES),
        cwd=PROTOS,
    )


def check(printed: str) -> None:
    """Compare what a program got with the published vectors."""
    got = json.loads(printed)
    cases = json.loads(VECTORS.read_text(encoding="utf-8"))["cases"]
    assert set(got) == {case["case"] for case in cases}
    for case in cases:
        wanted = {name: case[name] for name in ("canonical_form", "digest")}
        assert got[case["case"]] == wanted, case["case"]


@pytest.mark.skipif(shutil.which("go") is None, reason="there is no Go here")
def test_go_computes_the_published_digests(tmp_path: Path) -> None:
    """A Go program with generated messages gets every vector's canonical form and digest."""
    work = tmp_path / "digest"
    shutil.copytree(HERE / "digest_go", work)
    fetch("go", "mod", "download", cwd=work)
    plugin = tmp_path / "protoc-gen-go"
    run("go", "build", "-o", str(plugin), "google.golang.org/protobuf/cmd/protoc-gen-go", cwd=work)
    module = "twinpath.invalid/digest"
    packages = (f"M{FILES[0]}={module}/gen/common", f"M{FILES[1]}={module}/gen/inference")
    generate(plugin, "go", work, f"module={module}", *packages)
    check(run("go", "run", ".", cwd=work, given=VECTORS.read_text(encoding="utf-8")))


@pytest.mark.skipif(shutil.which("npm") is None, reason="there is no Node with npm here")
def test_node_computes_the_published_digests(tmp_path: Path) -> None:
    """A Node program with generated messages gets every vector's canonical form and digest."""
    work = tmp_path / "digest"
    shutil.copytree(HERE / "digest_node", work, ignore=shutil.ignore_patterns("node_modules"))
    fetch("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=work)
    plugin = work / "node_modules" / ".bin" / "protoc-gen-es"
    generate(plugin, "es", work / "gen", "target=js", "import_extension=js")
    check(run("node", "main.js", cwd=work, given=VECTORS.read_text(encoding="utf-8")))


def test_no_registry_s_address_is_committed() -> None:
    """Locks hold checksums and versions; where packages come from is each machine's setting."""
    for file in (*(HERE / "digest_go").iterdir(), *(HERE / "digest_node").iterdir()):
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            assert "resolved" not in text, file
            assert "http" not in text, file
