"""What the embedded Triton needs of this machine, checked before anything starts.

The `nvidia-pytriton` package ships the real server binary. Its Python backend runs models in a
stub process that is linked against a shared libpython of the environment's Python version.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

GLIBC_NEEDED = (2, 35)
_REMEDY = (
    "or point TWINPATH_TRITON_URL at a Triton server that runs elsewhere (NVIDIA's container image)"
)
_PROBE = """
import json, sys, sysconfig
get = sysconfig.get_config_var
print(json.dumps({
    "version": "%d.%d" % sys.version_info[:2],
    "executable": sys.executable,
    "base": sys.base_prefix,
    "libdir": get("LIBDIR") or "",
    "names": [get("INSTSONAME") or "", get("LDLIBRARY") or ""],
    "multiarch": get("MULTIARCH") or "",
    "site": sysconfig.get_paths()["purelib"],
}))
"""


class PythonFacts(TypedDict):
    """What an interpreter says about itself.

    `names` is its own idea of the file names of its libpython, shared or static.
    """

    version: str
    executable: str
    base: str
    libdir: str
    names: list[str]
    multiarch: str
    site: str


class TritonUnavailableError(RuntimeError):
    """The embedded Triton can't run here; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class TritonRuntime:
    """The files of one Triton environment.

    Attributes:
        environment: The virtual environment that holds nvidia-pytriton.
        site: Its site-packages folder.
        python: Its Python version, like `3.11`.
        libpython: The shared libpython that the model stubs load.
    """

    environment: Path
    site: Path
    python: str
    libpython: Path

    @property
    def package(self) -> Path:
        """The folder with the server, its backends and the stubs."""
        return self.site / "pytriton" / "tritonserver"

    @property
    def server(self) -> Path:
        """The server's binary."""
        return self.package / "bin" / "tritonserver"

    @property
    def stub(self) -> Path:
        """The process that runs Python models, built for this environment's Python."""
        return self.package / "python_backend_stubs" / self.python / "triton_python_backend_stub"

    @property
    def libraries(self) -> Path:
        """The libraries that the wheel brings along."""
        return self.site / "nvidia_pytriton.libs"


def find_runtime(environment: Path) -> TritonRuntime:
    """Check this machine and the environment, and name the files that are needed.

    Raises:
        TritonUnavailableError: Something is missing; nothing was started or written.
    """
    check_machine(sys.platform, platform.machine(), _glibc_version())
    python = environment / "bin" / "python"
    if not python.exists():
        raise TritonUnavailableError(
            f"there is no Triton environment at {environment}: run `make env`, {_REMEDY}"
        )
    facts = _ask(python)
    site = Path(facts["site"])
    if not (site / "pytriton" / "tritonserver" / "bin" / "tritonserver").is_file():
        raise TritonUnavailableError(
            f"{environment} does not hold nvidia-pytriton: remove it and run `make env`, {_REMEDY}"
        )
    libpython = find_libpython(facts)
    if libpython is None:
        raise TritonUnavailableError(_no_libpython(facts))
    runtime = TritonRuntime(environment, site, facts["version"], libpython)
    if not runtime.stub.is_file():
        have = sorted(path.name for path in (runtime.package / "python_backend_stubs").iterdir())
        raise TritonUnavailableError(
            f"nvidia-pytriton has no stub for Python {runtime.python}, only for {', '.join(have)}: "
            f"make {environment} with one of these (PYTHON=python3.11 make env), {_REMEDY}"
        )
    return runtime


def check_machine(system: str, machine: str, glibc: tuple[int, int] | None) -> None:
    """Refuse a machine for which no embedded Triton exists.

    Args:
        system: `sys.platform`.
        machine: `platform.machine()`.
        glibc: Version of the C library, None where it is another one (musl).

    Raises:
        TritonUnavailableError: With the reason and the remedy.
    """
    if system != "linux" or machine not in {"x86_64", "AMD64"}:
        raise TritonUnavailableError(
            f"the embedded Triton runs on Linux x86-64 only, and this is {system} {machine}: "
            f"use such a machine or a container, {_REMEDY}"
        )
    if glibc is None or glibc < GLIBC_NEEDED:
        need = ".".join(map(str, GLIBC_NEEDED))
        have = "another C library" if glibc is None else "glibc " + ".".join(map(str, glibc))
        raise TritonUnavailableError(
            f"the embedded Triton needs glibc {need} or newer, and this machine has {have}: "
            f"use Debian 12, Ubuntu 22.04, RHEL 10 or newer, {_REMEDY}"
        )


def find_libpython(facts: PythonFacts) -> Path | None:
    """Search the shared libpython that belongs to an interpreter.

    Args:
        facts: What the interpreter says about itself.

    Returns:
        The file, or None if the interpreter has none and the system has none either.
    """
    names = [name for name in facts["names"] if ".so" in name]
    names.append(f"libpython{facts['version']}.so.1.0")
    folders = [Path(facts["libdir"]), Path(facts["base"]) / "lib"]
    folders += [Path(root) / facts["multiarch"] for root in ("/usr/lib", "/lib", "/usr/local/lib")]
    folders += [Path(root) for root in ("/usr/local/lib", "/usr/lib64", "/usr/lib", "/lib64")]
    for folder in folders:
        for name in names:
            if (found := folder / name).is_file():
                return found.resolve()
    return _from_loader_cache(names)


def _from_loader_cache(names: list[str]) -> Path | None:
    ldconfig = shutil.which("ldconfig", path=f"{os.environ.get('PATH', '')}:/sbin:/usr/sbin")
    if ldconfig is None:
        return None
    listing = subprocess.run(
        [ldconfig, "-p"], capture_output=True, text=True, check=False, timeout=10
    ).stdout
    for line in listing.splitlines():
        entry, arrow, target = line.strip().partition(" => ")
        if arrow and entry.split(" ")[0] in names and Path(target).is_file():
            return Path(target).resolve()
    return None


def _ask(python: Path) -> PythonFacts:
    try:
        answer = subprocess.run(
            [str(python), "-I", "-c", _PROBE],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise TritonUnavailableError(
            f"{python} does not run ({error}): remove {python.parent.parent} and run `make env`"
        ) from error
    facts: PythonFacts = json.loads(answer.stdout)
    return facts


def _no_libpython(facts: PythonFacts) -> str:
    version = facts["version"]
    return (
        f"Triton's Python models need a shared libpython{version}.so.1.0, and "
        f"{facts['executable']} (Python {version}) was built without one: install it "
        f"(Debian and Ubuntu: apt install libpython{version}; Fedora: dnf install "
        f"python{version}-libs; pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install "
        f"{version}), or make the environment with another Python (PYTHON=... make env), {_REMEDY}"
    )


def _glibc_version() -> tuple[int, int] | None:
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        major, minor = version.split(".")[:2]
        return (int(major), int(minor)) if name == "glibc" else None
    except (ValueError, OSError):
        return None
