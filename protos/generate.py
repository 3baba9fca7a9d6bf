"""Generates the Python code beside the protos, and lints the protos with buf.

    python protos/generate.py            write the generated code
    python protos/generate.py --check    exit 1 if the committed code is not what protoc writes
    python protos/generate.py --lint     buf lint, and buf breaking against the newest tag

buf reads a descriptor set that protoc wrote, so it needs no network for google's protos.
"""

from __future__ import annotations

import argparse
import filecmp
import importlib.resources
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
REPO = ROOT.parent
BUF = Path(sys.executable).parent / "buf"


def _protos(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.glob("twinpath/**/*.proto"))


def _protoc(root: Path, *options: str) -> None:
    from grpc_tools import protoc  # noqa: PLC0415 - a development dependency

    well_known = str(importlib.resources.files("grpc_tools") / "_proto")
    from google.rpc import status_pb2  # noqa: PLC0415 - the package brings its protos along

    google = Path(status_pb2.__file__).parents[2]
    arguments = ["protoc", f"-I{root}", f"-I{well_known}", f"-I{google}", *options, *_protos(root)]
    if protoc.main(arguments) != 0:
        sys.exit("protoc failed")


def generate(out: Path) -> None:
    """Write *_pb2.py, *_pb2.pyi and *_pb2_grpc.py under `out`."""
    out.mkdir(parents=True, exist_ok=True)
    _protoc(ROOT, f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}")
    for empty in out.glob("twinpath/**/*_pb2_grpc.py"):
        if "class " not in empty.read_text():  # a file without a service needs no stub
            empty.unlink()


def check() -> int:
    """Compare the committed code with fresh code; print each file that differs."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = {p.relative_to(scratch) for p in Path(scratch).glob("twinpath/**/*_pb2*")}
        committed = {p.relative_to(ROOT) for p in ROOT.glob("twinpath/**/*_pb2*.py*")}
        committed = {p for p in committed if "__pycache__" not in p.parts}
        wrong = sorted(fresh ^ committed)
        for path in sorted(fresh & committed):
            if not filecmp.cmp(Path(scratch) / path, ROOT / path, shallow=False):
                wrong.append(path)
    for path in wrong:
        print(f"{path}: not what `make proto` writes")
    return 1 if wrong else 0


def _image(root: Path, out: Path) -> None:
    _protoc(root, f"--descriptor_set_out={out}", "--include_imports", "--include_source_info")


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=REPO, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def lint() -> int:
    """Run buf lint, and buf breaking against the newest tag, if there is one."""
    environment = {**os.environ, "BUF_CACHE_DIR": tempfile.gettempdir()}
    with tempfile.TemporaryDirectory() as scratch:
        image = Path(scratch) / "now.binpb"
        _image(ROOT, image)
        config = str(ROOT / "buf.yaml")
        command = [str(BUF), "lint", str(image), "--config", config]
        code = subprocess.run(command, env=environment, check=False).returncode
        tag = _git("describe", "--tags", "--abbrev=0")
        if not tag:
            print("buf breaking: there is no tag yet to compare with")
        else:
            before = Path(scratch) / "before"
            before.mkdir()
            archive = subprocess.run(
                ["git", "archive", tag, "protos"], cwd=REPO, capture_output=True, check=True
            )
            subprocess.run(["tar", "-x", "-C", str(before)], input=archive.stdout, check=True)
            old = Path(scratch) / "before.binpb"
            _image(before / "protos", old)
            command = [str(BUF), "breaking", str(image), "--against", str(old), "--config", config]
            code = code or subprocess.run(command, env=environment, check=False).returncode
    return code


def main() -> int:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--lint", action="store_true", help="buf lint and buf breaking")
    arguments = parser.parse_args()
    if arguments.check:
        return check()
    if arguments.lint:
        return lint()
    generate(ROOT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
