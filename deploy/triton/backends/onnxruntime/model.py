"""A Python-based Triton backend named `onnxruntime`.

It runs `<model>/<version>/model.onnx` with ONNX Runtime, so that a model repository written for
NVIDIA's native `onnxruntime` backend loads unchanged on a Triton that has only the Python backend.
The requests that Triton's dynamic batcher hands over are stacked along the first dimension, run
once, and split again. If the stacked run fails, each request runs alone, so that a bad one fails
alone.

Model parameters (in `config.pbtxt`, as for the native backend): `intra_op_thread_count` and
`inter_op_thread_count`, 1 unless given; 0 leaves it to ONNX Runtime.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

MODEL_FILE = "model.onnx"
TRITON_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}


class TritonPythonModel:
    """One instance of one version of one model."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        """Fill in inputs and outputs from the graph; what the config states must agree."""
        config = auto_complete_model_config.as_dict()
        session = _open(Path(pb_utils.get_model_dir()) / MODEL_FILE, config, gpu=False)
        batched = config["max_batch_size"] > 0
        for kind, values in (("input", session.get_inputs()), ("output", session.get_outputs())):
            stated = {tensor["name"]: tensor for tensor in config[kind]}
            for value in values:
                tensor = _describe(value, batched=batched)
                known = stated.get(value.name)
                if known is not None and _agree(known, tensor):
                    continue  # the config may narrow a free dimension
                add = getattr(auto_complete_model_config, f"add_{kind}")
                add(tensor)
        return auto_complete_model_config

    def initialize(self, args):
        config = json.loads(args["model_config"])
        path = Path(args["model_repository"]) / args["model_version"] / MODEL_FILE
        self._session = _open(path, config, gpu=args["model_instance_kind"] == "GPU")
        self._batched = config["max_batch_size"] > 0
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [value.name for value in self._session.get_outputs()]
        self._strings = {
            value.name
            for value in (*self._session.get_inputs(), *self._session.get_outputs())
            if value.type == "tensor(string)"
        }
        _check(config, self._session, batched=self._batched)

    def execute(self, requests):
        """Answer each request: one response for each, in order."""
        responses = [None] * len(requests)
        groups = {}
        for index, request in enumerate(requests):
            try:
                feeds = self._read(request)
            except (ValueError, UnicodeDecodeError) as error:
                responses[index] = _failed(error)
                continue
            # Only what has the same types and trailing shapes can be stacked.
            key = tuple((array.dtype.str, array.shape[1:]) for array in feeds.values())
            groups.setdefault(key if self._batched else index, []).append((index, feeds))
        for members in groups.values():
            self._answer(members, requests, responses)
        return responses

    def finalize(self):
        self._session = None

    def _read(self, request):
        """Return the request's arrays by name."""
        feeds = {}
        for name in self._inputs:
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is None:
                raise ValueError(f"input '{name}' is missing")
            array = tensor.as_numpy()
            feeds[name] = _decode(name, array) if name in self._strings else array
        if self._batched and len({len(array) for array in feeds.values()}) > 1:
            raise ValueError("inputs differ in their first dimension, which is the batch")
        return feeds

    def _answer(self, members, requests, responses):
        """Run the members as one batch and put each one's part into `responses`."""
        if len(members) == 1:
            ((index, feeds),) = members
            try:
                outputs = self._session.run(self._outputs, feeds)
            except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base class
                responses[index] = _failed(error)
                return
            responses[index] = self._respond(requests[index], outputs)
            return
        stacked = {
            name: np.concatenate([feeds[name] for _, feeds in members]) for name in self._inputs
        }
        counts = [len(feeds[self._inputs[0]]) for _, feeds in members]
        try:
            outputs = self._session.run(self._outputs, stacked)
            if any(len(output) != sum(counts) for output in outputs):
                raise ValueError("the graph does not keep the batch dimension")  # noqa: TRY301
        except Exception:  # noqa: BLE001 - whatever it was, it may be one member's fault
            for member in members:
                self._answer([member], requests, responses)
            return
        start = 0
        for (index, _), count in zip(members, counts, strict=True):
            part = [output[start : start + count] for output in outputs]
            responses[index] = self._respond(requests[index], part)
            start += count

    def _respond(self, request, outputs):
        wanted = set(request.requested_output_names())
        tensors = []
        for name, output in zip(self._outputs, outputs, strict=True):
            if wanted and name not in wanted:
                continue
            array = _encode(output) if name in self._strings else output
            tensors.append(pb_utils.Tensor(name, np.ascontiguousarray(array)))
        return pb_utils.InferenceResponse(output_tensors=tensors)


def _threads(config, name):
    value = config.get("parameters", {}).get(name, {}).get("string_value", "1")
    if not value.isdigit():
        raise pb_utils.TritonModelException(f"parameter {name} must be a number, not '{value}'")
    return int(value)


def _open(path, config, *, gpu):
    """Load the graph, or say why it can't be."""
    if not path.is_file():
        raise pb_utils.TritonModelException(f"no {MODEL_FILE} in version {path.parent.name}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = _threads(config, "intra_op_thread_count")
    options.inter_op_num_threads = _threads(config, "inter_op_thread_count")
    # Spinning threads would take the cores that the other services need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    if gpu and "CUDAExecutionProvider" in ort.get_available_providers():
        providers.insert(0, "CUDAExecutionProvider")
    try:
        return ort.InferenceSession(str(path), sess_options=options, providers=providers)
    except Exception as error:
        raise pb_utils.TritonModelException(f"{MODEL_FILE} can't be loaded: {error}") from error


def _describe(value, *, batched):
    """Return a graph's input or output as Triton's configuration states it."""
    if value.type not in TRITON_TYPES:
        raise pb_utils.TritonModelException(f"'{value.name}' is {value.type}, which Triton lacks")
    dims = [size if isinstance(size, int) else -1 for size in value.shape]
    if batched:
        if not dims or dims[0] != -1:
            raise pb_utils.TritonModelException(
                f"'{value.name}' has no free first dimension, so max_batch_size must be 0"
            )
        dims = dims[1:]
    return {"name": value.name, "data_type": TRITON_TYPES[value.type], "dims": dims}


def _agree(stated, actual):
    """Tell whether a configured tensor fits the graph's; a free dimension fits any size."""
    dims = [int(size) for size in stated.get("reshape", {}).get("shape") or stated["dims"]]
    return (
        stated["data_type"] == actual["data_type"]
        and len(dims) == len(actual["dims"])
        and all(other in (one, -1) for one, other in zip(dims, actual["dims"], strict=True))
    )


def _check(config, session, *, batched):
    """Refuse to load a model whose configuration and graph say different things."""
    for kind, values in (("input", session.get_inputs()), ("output", session.get_outputs())):
        graph = {value.name: _describe(value, batched=batched) for value in values}
        stated = {tensor["name"]: tensor for tensor in config[kind]}
        unknown = sorted(stated.keys() - graph.keys())
        missing = sorted(graph.keys() - stated.keys()) if kind == "input" else []
        if unknown or missing:
            raise pb_utils.TritonModelException(
                f"{kind}s differ: only in the configuration {unknown}, only in the graph {missing}"
            )
        for name, tensor in stated.items():
            if not _agree(tensor, graph[name]):
                raise pb_utils.TritonModelException(
                    f"{kind} '{name}': the configuration says {tensor['data_type']} "
                    f"{tensor['dims']}, the graph {graph[name]['data_type']} {graph[name]['dims']}"
                )


def _decode(name, array):
    """Turn Triton's bytes into the text that ONNX Runtime wants."""
    try:
        flat = [
            item.decode("utf-8") if isinstance(item, bytes) else str(item) for item in array.flat
        ]
    except UnicodeDecodeError as error:
        raise ValueError(f"input '{name}' is not valid UTF-8") from error
    return np.array(flat, dtype=np.object_).reshape(array.shape)


def _encode(array):
    """Turn ONNX Runtime's text into the bytes that Triton wants."""
    flat = [str(item).encode("utf-8") for item in array.flat]
    return np.array(flat, dtype=np.object_).reshape(array.shape)


def _failed(error):
    return pb_utils.InferenceResponse(
        output_tensors=[], error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
    )
