"""Model repositories for tests: small Python models that a real Triton loads in a second or two.

`echo` returns FP32 `features`; `echo_types` returns one tensor of every datatype; `faulty` fails
in the ways that its input asks for; `echo_v2` has two versions. All are functions of their input,
so that a test knows what must come back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

from tests.canonical import Wire

ROOT = Path(__file__).resolve().parents[1]
TRITON_ENV = Path(os.environ.get("TWINPATH_TRITON_ENV", ROOT / ".venv-triton"))
BACKENDS = ROOT / "deploy" / "triton" / "backends"

# The datatypes of the contract, and the ranks that the tests send them with.
TYPES = (
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64", "BF16", "BYTES"),
)

# The echo also writes down what has reached it, as a line of JSON for each request, beside the
# repository: what a model really gets is seen by the model alone.
_ECHO = """
import ctypes
import json
import math
from pathlib import Path

import triton_python_backend_utils as pb

capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
capsule_pointer.restype = ctypes.c_void_p
capsule_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


def raw(tensor, datatype):
    if datatype == "BF16":  # numpy has no such type: read the memory itself
        size = 2 * math.prod(tensor.shape())
        capsule = tensor.to_dlpack()
        managed = ctypes.cast(capsule_pointer(capsule, b"dltensor"), ctypes.POINTER(ctypes.c_void_p))
        return ctypes.string_at(managed[0], size) if size else b""
    array = tensor.as_numpy()
    if datatype == "BYTES":
        return b"".join(len(e).to_bytes(4, "little") + e for e in array.reshape(-1).tolist())
    return array.tobytes()


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.types = {
            t["name"]: t["data_type"].removeprefix("TYPE_").replace("STRING", "BYTES")
            for t in config["input"]
        }
        self.log = Path(args["model_repository"]).parent.parent / "captured.jsonl"

    def execute(self, requests):
        for request in requests:
            seen = [
                [t.name(), self.types[t.name()], list(t.shape()), raw(t, self.types[t.name()]).hex()]
                for t in request.inputs()
            ]
            with self.log.open("a") as log:
                log.write(json.dumps(seen) + "\\n")
        # The input's own tensors: no conversion on the way back either.
        return [pb.InferenceResponse(list(request.inputs())) for request in requests]
"""

_BATCHED = """
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        return [pb.InferenceResponse([pb.Tensor("sum", r.inputs()[0].as_numpy().sum(
            axis=1, keepdims=True))]) for r in requests]
"""

# Fails as a whole if a row of the batch says 3; takes its time where a row says so.
_PICKY = """
import time

import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests):
        return [self.one(r.inputs()[0].as_numpy()) for r in requests]

    def one(self, array):
        if (array == 3).any():
            return pb.InferenceResponse(error=pb.TritonError("secret 1234"))
        if array.max() >= 100:
            time.sleep(float(array.max()) / 1000)
        return pb.InferenceResponse([pb.Tensor("sum", array)])
"""

_STEP = """
import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests):
        return [self.one(r.inputs()[0].as_numpy()) for r in requests]

    def one(self, x):
        return pb.InferenceResponse([pb.Tensor("y", (CODE).astype(np.float32))])
"""

_TIDY = """
import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests):
        return [self.one(r.inputs()[0].as_numpy()) for r in requests]

    def one(self, texts):
        tidy = [[b" ".join(text.split()).lower()] for text in texts.reshape(-1)]
        return pb.InferenceResponse([pb.Tensor("tidy", np.array(tidy, dtype=np.object_))])
"""

_SIGNS = """
import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests):
        return [self.one(r.inputs()[0].as_numpy()) for r in requests]

    def one(self, vectors):
        return pb.InferenceResponse([pb.Tensor("signs", np.sign(vectors).astype(np.int8))])
"""

# The first element of `features` says what to do.
_FAULTY = """
import time
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        return [self.one(r) for r in requests]

    def one(self, request):
        array = pb.get_input_tensor_by_name(request, "features").as_numpy()
        what = float(array.reshape(-1)[0])
        if what == 1:
            raise RuntimeError("secret value 1234 in a message")
        if what == 2:
            return pb.InferenceResponse(error=pb.TritonError("secret 1234",
                pb.TritonError.INVALID_ARG))
        if what == 3:
            array = np.zeros((1, 7), dtype=np.float32)
        if what == 4:
            return pb.InferenceResponse([])
        if what >= 100:
            time.sleep(what / 1000)
        return pb.InferenceResponse([pb.Tensor("features", array)])
"""

# Declares FP32 [n, 1] and returns something else, as the first element says.
_MISSHAPEN = """
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        return [self.one(r.inputs()[0].as_numpy()) for r in requests]

    def one(self, array):
        rows = len(array)
        shape, kind = {
            1: ((rows, 2), np.float32),
            2: ((rows + 1, 1), np.float32),
            3: ((rows,), np.float32),
            4: ((rows, 1), np.float64),
        }.get(int(array.reshape(-1)[0]), ((rows, 1), np.float32))
        return pb.InferenceResponse([pb.Tensor("sum", np.zeros(shape, dtype=kind))])
"""

# With Triton's `--grpc-header-forward-pattern traceparent` the header is a request parameter.
_HEADERS = """
import json

import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests):
        return [self.one(json.loads(r.parameters())) for r in requests]

    def one(self, parameters):
        said = np.array([parameters.get("traceparent", "").encode()], dtype=np.object_)
        return pb.InferenceResponse([pb.Tensor("traceparent", said)])
"""

_STREAM = '''
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    """Says each word of `text_input` in a chunk of its own, with the vLLM backend's tensors."""

    def initialize(self, args):
        self.log = Path(args["model_repository"]).parent.parent / "cancelled.txt"

    def execute(self, requests):
        for request in requests:
            self.answer(request, request.get_response_sender())

    def answer(self, request, sender):
        text = pb.get_input_tensor_by_name(request, "text_input").as_numpy().reshape(-1)[0]
        for word in text.decode().split():
            if request.is_cancelled():
                with self.log.open("a") as log:
                    log.write(text.decode()[:40] + "\\n")
                break
            if word == "FAIL":
                sender.send(pb.InferenceResponse(error=pb.TritonError("secret 1234")))
                break
            if word == "WAIT":
                time.sleep(0.05)
            if word == "WRONG":
                tensor = pb.Tensor("text_output", np.zeros((1, 2), dtype=np.float32))
            else:
                said = np.array([word.encode() + b" "], dtype=np.object_)
                tensor = pb.Tensor("text_output", said)
            sender.send(pb.InferenceResponse([tensor]))
        sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
'''


def _tensor(kind: str, name: str, datatype: str, dims: str) -> str:
    triton = "STRING" if datatype == "BYTES" else datatype
    return f'{kind} {{ name: "{name}" data_type: TYPE_{triton} dims: {dims} }}\n'


def write_model(
    root: Path, name: str, code: str, config: str, versions: Iterable[str] = ("1",)
) -> Path:
    """Write a model of Triton's Python backend; returns its folder."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(f'name: "{name}"\nbackend: "python"\n{config}')
    for version in versions:
        (folder / version).mkdir(exist_ok=True)
        (folder / version / "model.py").write_text(code)
    return folder


def echo(root: Path, name: str = "echo") -> None:
    """FP32 `features` of rank 2, returned as they came."""
    config = _tensor("input", "features", "FP32", "[-1, -1]")
    config += _tensor("output", "features", "FP32", "[-1, -1]")
    write_model(root, name, _ECHO, "max_batch_size: 0\n" + config)


def echo_types(root: Path) -> None:
    """A tensor of each datatype, `t_bool` … `t_bytes`, rank 2, returned as they came."""
    config = "max_batch_size: 0\n"
    for datatype in TYPES:
        for kind in ("input", "output"):
            config += _tensor(kind, f"t_{datatype.lower()}", datatype, "[-1, -1]")
    write_model(root, "echo_types", _ECHO, config)


def batched(root: Path) -> None:
    """FP32 `features` [n, 3] with at most 8 rows, and `sum` [n, 1]; two versions."""
    config = "max_batch_size: 8\n" + _tensor("input", "features", "FP32", "[3]")
    config += _tensor("output", "sum", "FP32", "[1]") + "dynamic_batching { }\n"
    config += "version_policy { all { } }\n"
    write_model(root, "batched", _BATCHED, config, ("1", "2"))


def faulty(root: Path) -> None:
    """Fails as the first element of `features` says: 1 raises, 2 refuses, 3 and 4 wrong outputs."""
    config = "max_batch_size: 0\n" + _tensor("input", "features", "FP32", "[-1, -1]")
    config += _tensor("output", "features", "FP32", "[-1, -1]")
    write_model(root, "faulty", _FAULTY, config)


def picky(root: Path) -> None:
    """FP32 `features` [n, 1]; a row of 3 fails the whole batch, one of 100 and more is slow."""
    config = "max_batch_size: 64\n" + _tensor("input", "features", "FP32", "[1]")
    config += _tensor("output", "sum", "FP32", "[1]")
    write_model(root, "picky", _PICKY, config)


def misshapen(root: Path) -> None:
    """Takes FP32 `features` [n, 1]; 1 to 4 return another shape or type than `sum` [n, 1]."""
    config = "max_batch_size: 8\n" + _tensor("input", "features", "FP32", "[1]")
    config += _tensor("output", "sum", "FP32", "[1]")
    write_model(root, "misshapen", _MISSHAPEN, config)


def headers(root: Path) -> None:
    """Takes FP32 `features` and returns the `traceparent` header with which it was asked."""
    config = "max_batch_size: 0\n" + _tensor("input", "features", "FP32", "[-1, -1]")
    config += _tensor("output", "traceparent", "BYTES", "[1]")
    write_model(root, "headers", _HEADERS, config)


def embedding(root: Path) -> None:
    """BYTES `text` [n, 1] to unit vectors FP32 `embedding` [n, 32]: the trained ONNX model."""
    from deploy.training.embedding import write_embedding  # scikit-learn takes seconds

    write_embedding(root, datetime(2026, 1, 1, tzinfo=UTC), None)


def semantic_ensemble(root: Path) -> None:
    """`text_signs`: preprocess (tidy the text), ONNX model (`text_embedding`), postprocess."""
    embedding(root)
    tidy = _tensor("input", "text", "BYTES", "[1]") + _tensor("output", "tidy", "BYTES", "[1]")
    write_model(root, "tidy", _TIDY, "max_batch_size: 64\n" + tidy)
    signs = _tensor("input", "vector", "FP32", "[32]") + _tensor("output", "signs", "INT8", "[32]")
    write_model(root, "signs", _SIGNS, "max_batch_size: 64\n" + signs)
    config = 'platform: "ensemble"\nmax_batch_size: 64\n'
    config += _tensor("input", "text", "BYTES", "[1]") + _tensor("output", "signs", "INT8", "[32]")
    steps = (
        ("tidy", ("text", "text"), ("tidy", "tidied")),
        ("text_embedding", ("text", "tidied"), ("embedding", "vector")),
        ("signs", ("vector", "vector"), ("signs", "signs")),
    )
    _write_ensemble(root, "text_signs", config, steps)


def ensemble(root: Path) -> None:
    """`halved_sum`: preprocess (halve), model (`batched`), postprocess (round down); rank 2."""
    batched(root)
    for name, code in (("halve", "x / 2"), ("floor", "np.floor(x)")):
        width = "[3]" if name == "halve" else "[1]"
        config = "max_batch_size: 8\n" + _tensor("input", "x", "FP32", width)
        config += _tensor("output", "y", "FP32", width)
        write_model(root, name, _STEP.replace("CODE", code), config)
    config = 'platform: "ensemble"\nmax_batch_size: 8\n'
    config += _tensor("input", "features", "FP32", "[3]") + _tensor(
        "output", "total", "FP32", "[1]"
    )
    steps = (
        ("halve", ("x", "features"), ("y", "halved")),
        ("batched", ("features", "halved"), ("sum", "summed")),
        ("floor", ("x", "summed"), ("y", "total")),
    )
    _write_ensemble(root, "halved_sum", config, steps)


def _write_ensemble(
    root: Path,
    name: str,
    config: str,
    steps: Iterable[tuple[str, tuple[str, str], tuple[str, str]]],
) -> None:
    config += "ensemble_scheduling {\n"
    for model, (inside, given), (out, made) in steps:
        config += f'step {{ model_name: "{model}" model_version: -1\n'
        config += f'input_map {{ key: "{inside}" value: "{given}" }}\n'
        config += f'output_map {{ key: "{out}" value: "{made}" }} }}\n'
    folder = root / name
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(f'name: "{name}"\n{config}}}\n')


def queued(root: Path) -> None:
    """As `picky`, with a queue of two requests, two priorities, and time-outs from the request."""
    config = "max_batch_size: 1\n" + _tensor("input", "features", "FP32", "[1]")
    config += _tensor("output", "sum", "FP32", "[1]")
    config += """dynamic_batching {
  priority_levels: 2
  default_priority_level: 2
  default_queue_policy {
    timeout_action: REJECT
    default_timeout_microseconds: 30000000
    allow_timeout_override: true
    max_queue_size: 2
  }
}
"""
    write_model(root, "queued", _PICKY, config)


def words(root: Path) -> None:
    """A decoupled model with the tensors of Triton's vLLM backend: a chunk for each word."""
    config = "max_batch_size: 0\nmodel_transaction_policy { decoupled: true }\n"
    config += _tensor("input", "text_input", "BYTES", "[1]")
    config += 'input { name: "stream" data_type: TYPE_BOOL dims: [1] optional: true }\n'
    config += (
        'input { name: "sampling_parameters" data_type: TYPE_STRING dims: [1] optional: true }\n'
    )
    config += _tensor("output", "text_output", "BYTES", "[-1]")
    write_model(root, "words", _STREAM, config)


ALL: tuple[Callable[[Path], None], ...] = (
    *(echo, echo_types, batched, faulty, picky, headers, words),
)


def captured(root: Path) -> list[list[Wire]]:
    """Return what has reached the echo models of a repository, in order of arrival."""
    log = root.parent / "captured.jsonl"
    if not log.exists():
        return []
    return [
        [Wire(name, kind, tuple(shape), bytes.fromhex(raw)) for name, kind, shape, raw in entry]
        for entry in map(json.loads, log.read_text().splitlines())
    ]


def repository(root: Path, *models: Callable[[Path], None]) -> Path:
    """Write the models (all of them if none is named) and return the repository."""
    for model in models or ALL:
        model(root)
    return root
