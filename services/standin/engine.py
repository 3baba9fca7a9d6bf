"""The models that the stand-in vendor serves: real ONNX files, and `echo` for tests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import onnxruntime

from services.standin.oip import BadRequestError
from services.standin.tensors import DATATYPES, BadTensorError, Tensor, from_array

_DATATYPE_OF_ONNX = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


class ModelLoadError(ValueError):
    """A model folder does not hold what it should; the text names the file."""


class UnknownModelError(LookupError):
    """There is no such model, or no such version of it."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model; -1 in the shape stands for any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        """As the protocol's metadata has it."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


class Model(Protocol):
    """One version of one model."""

    @property
    def platform(self) -> str:
        """As the protocol's metadata names it."""

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """What it takes."""

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """What it returns."""

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Compute. Raises BadRequestError for inputs that do not fit."""


class EchoModel:
    """Returns what it gets: any tensors, under their own names. For tests of the wire.

    Args:
        specs: What its metadata says that it takes and gives; not enforced.
    """

    platform = "standin_echo"

    def __init__(self, *specs: TensorSpec) -> None:
        self.inputs = self.outputs = specs

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the inputs."""
        return list(inputs)


ECHOES = {
    "echo": EchoModel(TensorSpec("features", "FP32", (-1, -1))),
    "echo_types": EchoModel(
        *(TensorSpec(f"t_{datatype.lower()}", datatype, (-1, -1)) for datatype in DATATYPES)
    ),
}


class OnnxModel:
    """A real model, run by ONNX Runtime on the CPU."""

    platform = "onnxruntime_onnx"

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's errors share no useful base class
            raise ModelLoadError(f"{path}: not an ONNX model that loads: {error}") from error
        self.inputs = [_spec(path, node) for node in self._session.get_inputs()]
        self.outputs = [_spec(path, node) for node in self._session.get_outputs()]

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Check the inputs against the model's own signature, and compute."""
        fit(self.inputs, inputs)
        try:
            feed = {tensor.name: tensor.array() for tensor in inputs}
            results = self._session.run(None, feed)
        except BadTensorError as error:
            raise BadRequestError(str(error)) from error
        except Exception as error:  # the same
            raise BadRequestError(f"the model refused its input: {error}") from error
        return [
            from_array(spec.name, spec.datatype, result)
            for spec, result in zip(self.outputs, results, strict=True)
        ]


class Engine:
    """All models, by name and version; the echoes are always there, at version 1."""

    def __init__(self, folder: Path | None, threads: int) -> None:
        self._models: dict[str, dict[str, Model]] = {
            name: {"1": model} for name, model in ECHOES.items()
        }
        if folder is not None:
            self._models |= _load(folder)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="standin-model")

    def versions(self, name: str) -> list[str]:
        """Versions of a model, oldest first; raises UnknownModelError."""
        if name not in self._models:
            raise UnknownModelError(f"Request for unknown model: '{name}' is not found")
        return sorted(self._models[name], key=int)

    def find(self, name: str, version: str | None) -> tuple[str, Model]:
        """A model and its version, the newest if None is asked for; raises UnknownModelError."""
        versions = self.versions(name)
        found = versions[-1] if version is None else version
        if found not in versions:
            raise UnknownModelError(
                f"Request for unknown model: '{name}' version {found} is not found"
            )
        return found, self._models[name][found]

    async def run(self, model: Model, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Compute in a thread of our own."""
        if isinstance(model, EchoModel):
            return model.run(inputs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, model.run, inputs)

    def names(self) -> dict[str, list[str]]:
        """All models and their versions."""
        return {name: self.versions(name) for name in sorted(self._models)}

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def fit(specs: Sequence[TensorSpec], inputs: Sequence[Tensor]) -> None:
    """Check inputs against a signature; raises BadRequestError for the first misfit."""
    have = {tensor.name: tensor for tensor in inputs}
    if unknown := sorted(have.keys() - {spec.name for spec in specs}):
        raise BadRequestError(f"unexpected inference input '{unknown[0]}'")
    for spec in specs:
        tensor = have.get(spec.name)
        if tensor is None:
            raise BadRequestError(f"expected inference input '{spec.name}' is missing")
        if tensor.datatype != spec.datatype:
            raise BadRequestError(
                f"inference input '{spec.name}' data-type is {tensor.datatype}, "
                f"model expects {spec.datatype}"
            )
        fits = len(tensor.shape) == len(spec.shape) and all(
            want in (-1, got) for want, got in zip(spec.shape, tensor.shape, strict=True)
        )
        if not fits:
            raise BadRequestError(
                f"inference input '{spec.name}' shape is {list(tensor.shape)}, "
                f"model expects {list(spec.shape)}"
            )


def _load(folder: Path) -> dict[str, dict[str, Model]]:
    if not folder.is_dir():
        raise ModelLoadError(f"{folder}: no such folder (TWINPATH_STANDIN_MODELS)")
    models: dict[str, dict[str, Model]] = {}
    for path in sorted(folder.glob("*/*/model.onnx")):
        name, version = path.parent.parent.name, path.parent.name
        if name in ECHOES or not version.isdigit():
            raise ModelLoadError(f"{path}: must be <name>/<number>/model.onnx, not named echo")
        models.setdefault(name, {})[version] = OnnxModel(path)
    if not models:
        raise ModelLoadError(f"{folder}: holds no <name>/<version>/model.onnx")
    return models


def _spec(path: Path, node: Any) -> TensorSpec:
    datatype = _DATATYPE_OF_ONNX.get(node.type)
    if datatype is None:
        raise ModelLoadError(f"{path}: '{node.name}' is a {node.type}, which has no datatype here")
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape)
    return TensorSpec(node.name, datatype, shape)
