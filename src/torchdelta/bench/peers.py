"""The peers: other ways to run the same network dense, each with one small class.

A peer is prepared once, is given inputs beforehand (`load`, not timed), and runs them (`run`,
timed). It gets the same weights, input, dtype and number of threads as ours.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib
import importlib.metadata
import importlib.util
import io
import logging
import tempfile
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchdelta.engines.torch_engine import to_layout
from torchdelta.errors import EngineError

WARM_UP_RUNS = 3
# runs that choose between two ways of one peer
TRIAL_RUNS = 2
ONNX_OPSET = 17
INSTALL_HINT = 'pip install "torchdelta[bench]"'


@dataclass
class Workload:
    """What all peers run.

    model:   in eval mode, float32, on the device; left untouched
    example: [N, C, H, W] float32, N streams' frames as the model sees them
    threads: CPU threads that each may use
    tf32:    float32 may be multiplied in TF32
    """

    model: nn.Module
    example: Tensor
    dtype: torch.dtype
    threads: int
    tf32: bool = False

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.example.device

    def network(self, layout: torch.memory_format) -> nn.Module:
        """Copy the model in the dtype, its weights in a layout."""
        return to_layout(copy.deepcopy(self.model).to(self.dtype), layout)

    @cached_property
    def onnx(self) -> bytes:
        """The model as ONNX, float32; by the tracing exporter, by the newer one where that fails.

        Raises: EngineError where neither can.
        """
        model = copy.deepcopy(self.model)
        errors = []
        for newer in (False, True):
            try:
                with _silence():
                    return _export(model, self.example.clone(), newer)
            except Exception as error:
                errors.append(f"{type(error).__name__}: {first_line(error)}")
        raise EngineError(f"the model cannot be exported to ONNX ({'; then '.join(errors)})")


def _export(model: nn.Module, example: Tensor, newer: bool) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        if newer:
            program = torch.onnx.export(model, (example,), dynamo=True, verbose=False)
            assert program is not None
            program.save(file, external_data=False)
        else:
            torch.onnx.export(
                model, (example,), file, dynamo=False, opset_version=ONNX_OPSET, verbose=False
            )
        return file.read_bytes()


@contextlib.contextmanager
def peer_settings(
    device: torch.device, tf32: bool = False, *, benchmark: bool = True
) -> Iterator[None]:
    """Let PyTorch run the peers as fast as it can.

    tf32:      float32 may be multiplied in TF32; else it must not
    benchmark: cuDNN tries its kernels at a shape's first run and keeps the best
    """
    if device.type != "cuda":
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = benchmark, tf32, tf32
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep exporters' and compilers' chatter from the user; errors are raised all the same.

    It is about themselves: that one is old, what the other traced, that there is no GPU.
    """
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


class Peer(ABC):
    """One way to run the network dense; making one prepares it for a workload's shape.

    reference: a yardstick in another precision, which is never the best peer
    """

    name: ClassVar[str]
    reference: ClassVar[bool] = False
    # the packages that it needs; the first one's version is the peer's
    packages: ClassVar[tuple[str, ...]] = ("torch",)
    dtypes: ClassVar[frozenset[torch.dtype]] = frozenset(
        {torch.float32, torch.float16, torch.bfloat16}
    )

    @abstractmethod
    def __init__(self, work: Workload) -> None:
        """Prepare to run the workload; whatever is raised is why this peer cannot run."""

    @classmethod
    def unavailable(cls, dtype: torch.dtype) -> str | None:
        """Say why it cannot run here, in this dtype; None where it can."""
        for package in cls.packages:
            if importlib.util.find_spec(package) is None:
                return f"{package} is not installed ({INSTALL_HINT})"
        if dtype not in cls.dtypes:
            return f"it has no {str(dtype).removeprefix('torch.')} on this device"
        return None

    @classmethod
    def version(cls) -> str:
        """Give its version."""
        return importlib.metadata.version(cls.packages[0])

    @abstractmethod
    def load(self, x: Tensor) -> Any:
        """Bring an input [N, C, H, W] float32 into the form that `run` takes; not timed."""

    @abstractmethod
    def run(self, feed: Any) -> Any:
        """Run one input; this is what is timed."""

    def outputs(self, result: Any) -> list[Tensor]:
        """Give a result's tensors, in the order in which the model returns them."""
        return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


class Eager(Peer):
    """PyTorch as it is; channels last, which it runs fastest, unless told otherwise."""

    name = "torch"

    def __init__(self, work: Workload, layout: torch.memory_format = torch.channels_last) -> None:
        self._dtype, self._layout = work.dtype, layout
        self._model: Callable[[Tensor], Any] = work.network(layout)

    def load(self, x: Tensor) -> Tensor:
        """Convert dtype and layout; a copy, which the model may write to."""
        return x.to(self._dtype, copy=True, memory_format=self._layout)

    @torch.inference_mode()
    def run(self, feed: Tensor) -> Any:
        """Call the model."""
        return self._model(feed)


class Compiled(Eager):
    """torch.compile: with weights frozen into the code on a CPU, with CUDA graphs on a GPU.

    There its input stays in one place, so that its graph need not copy it from elsewhere.
    """

    name = "compile"

    def __init__(self, work: Workload) -> None:
        super().__init__(work)
        inductor = importlib.import_module("torch._inductor.config")
        self._static: Tensor | None = None
        if work.device.type == "cuda":
            dynamo = importlib.import_module("torch._dynamo")
            self._static = super().load(work.example).clone(memory_format=torch.preserve_format)
            dynamo.mark_static_address(self._static)
            self._model = torch.compile(self._model, dynamic=False, mode="reduce-overhead")
        else:
            self._model = torch.compile(self._model, dynamic=False)
        # the first run compiles; freezing is read then, and off by default
        with _silence(), inductor.patch(freezing=work.device.type == "cpu"):
            self.run(self.load(work.example))

    def load(self, x: Tensor) -> Tensor:
        """Convert dtype and layout, on a GPU to where the graph reads it."""
        feed = super().load(x)
        return feed if self._static is None else self._static.copy_(feed)

    @torch.no_grad()
    def run(self, feed: Tensor) -> Any:
        """Call the compiled model; weights are frozen only where no gradient is wanted."""
        return self._model(feed)


class CudaGraph(Eager):
    """PyTorch's own kernels, launched as one CUDA graph."""

    name = "cudagraph"

    def __init__(self, work: Workload, layout: torch.memory_format = torch.channels_last) -> None:
        super().__init__(work, layout)
        self._static = super().load(work.example).clone(memory_format=torch.preserve_format)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        # libraries allocate at their first runs, which a capture does not allow
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_RUNS):
                super().run(self._static)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self._graph):
            self._result = self._model(self._static)

    def load(self, x: Tensor) -> Tensor:
        """Copy the input to where the graph reads it."""
        return self._static.copy_(super().load(x))

    def run(self, feed: Tensor) -> Any:
        """Replay the graph."""
        self._graph.replay()
        return self._result


class CudnnFp32(CudaGraph):
    """What the papers compare with: cuDNN in float32 without TF32, whatever ours computes in.

    As a CUDA graph; channels last or first, whichever is faster for the workload.
    """

    name = "cudnn-fp32"
    reference = True

    def __init__(self, work: Workload) -> None:
        plain = replace(work, dtype=torch.float32, tf32=False)
        with peer_settings(work.device):
            layouts = (torch.channels_last, torch.contiguous_format)
            super().__init__(plain, min(layouts, key=lambda layout: _trial_ms(plain, layout)))


def _trial_ms(work: Workload, layout: torch.memory_format) -> float:
    """Measure PyTorch eager on a GPU in one layout."""
    peer = Eager(work, layout)
    feed = peer.load(work.example)
    peer.run(feed)
    torch.cuda.synchronize(work.device)
    start = time.perf_counter()
    for _ in range(TRIAL_RUNS):
        peer.run(feed)
    torch.cuda.synchronize(work.device)
    return (time.perf_counter() - start) * 1e3


class OnnxRuntime(Peer):
    """ONNX Runtime on the CPU."""

    name = "onnxruntime"
    packages = ("onnxruntime", "onnx")
    dtypes = frozenset({torch.float32})

    def __init__(self, work: Workload) -> None:
        ort = importlib.import_module("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = work.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # its threads spin while it runs, which is fastest, and stop with the run: spinning on they
        # would take the cores from whoever is timed next
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = ort.InferenceSession(
            work.onnx, sess_options=options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name

    def load(self, x: Tensor) -> Any:
        """Name the input."""
        return {self._input: x.contiguous().numpy()}

    def run(self, feed: Any) -> Any:
        """Run the session."""
        return self._session.run(None, feed)

    def outputs(self, result: Any) -> list[Tensor]:
        """Wrap the arrays."""
        return [torch.from_numpy(array) for array in result]


class OpenVino(Peer):
    """OpenVINO on the CPU, for latency."""

    name = "openvino"
    packages = ("openvino", "onnx")
    dtypes = frozenset({torch.float32, torch.bfloat16})

    def __init__(self, work: Workload) -> None:
        ov = importlib.import_module("openvino")
        core = ov.Core()
        precision = "bf16" if work.dtype == torch.bfloat16 else "f32"
        options = {
            "INFERENCE_NUM_THREADS": work.threads,
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
        }
        model = core.compile_model(core.read_model(model=work.onnx), "CPU", options)
        used = str(model.get_property("INFERENCE_PRECISION_HINT").to_string())
        if used != precision:
            raise EngineError(f"it computes in {used} where {precision} was asked for")
        self._tensor = ov.Tensor
        self._request = model.create_infer_request()
        self._count = len(model.outputs)

    def load(self, x: Tensor) -> Any:
        """Wrap the input's memory."""
        array = x.contiguous().numpy()
        # keeping the array keeps its memory
        return array, self._tensor(array, shared_memory=True)

    def run(self, feed: Any) -> Any:
        """Run one request."""
        self._request.set_input_tensor(feed[1])
        self._request.infer()
        return self._request

    def outputs(self, result: Any) -> list[Tensor]:
        """Copy the request's outputs."""
        return [
            torch.from_numpy(result.get_output_tensor(i).data.copy()) for i in range(self._count)
        ]


PEERS: dict[str, tuple[type[Peer], ...]] = {
    "cpu": (Eager, Compiled, OnnxRuntime, OpenVino),
    "cuda": (Eager, CudaGraph, Compiled, CudnnFp32),
}


def parse_peers(
    text: str | None, device: torch.device, *, float32: bool = False
) -> tuple[list[type[Peer]], bool]:
    """Find the peers that a list like "torch,openvino" names; None: all, "none": none.

    float32: ours computes in it, so that "all" need no reference in float32 beside the others
    Returns them, and whether they were asked for by name. Raises: EngineError naming those known.
    """
    known = {peer.name: peer for peer in PEERS[device.type]}
    if text is None:
        return [peer for peer in known.values() if not (peer.reference and float32)], False
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["none"]:
        return [], True
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise EngineError(
            f"peer {', '.join(map(repr, unknown)) or repr(text)} is unknown on {device.type}; "
            f"known are {', '.join(known)}, or none"
        )
    return [known[name] for name in dict.fromkeys(names)], True


def make_peers(
    kinds: Sequence[type[Peer]],
    work: Workload,
    check: Callable[[list[Tensor]], str | None],
    *,
    asked: bool,
    say: Callable[[str], None],
) -> tuple[list[Peer], list[str]]:
    """Prepare the peers, warm them up, and check what they compute.

    check:   says what is wrong with the outputs for the workload's example, None where they do
    asked:   a peer that cannot run is an error; else it is left out with a note
    returns: the peers that run, and a note for each that does not
    Raises:  EngineError with the reasons, where peers were asked for by name.
    """
    ready, reasons = [], []
    for kind in kinds:
        reason = kind.unavailable(work.dtype)
        if reason is None:
            say(f"preparing {kind.name}")
            try:
                peer = kind(work)
                result = None
                for _ in range(WARM_UP_RUNS):
                    result = peer.run(peer.load(work.example))
                wrong = check(peer.outputs(result))
                reason = f"its result differs from the dense network's: {wrong}" if wrong else None
            except Exception as error:
                reason = str(error) if isinstance(error, EngineError) else _said(error)
        if reason is None:
            ready.append(peer)
        else:
            reasons.append(f"{kind.name} left out: {reason}")
    if reasons and asked:
        raise EngineError("; ".join(reasons).replace(" left out:", " cannot run:"))
    return ready, reasons


class Lineup:
    """The peers of one network: prepared for one shape of input, kept until another one comes.

    kinds, asked: as `parse_peers` gives them
    """

    def __init__(
        self, kinds: Sequence[type[Peer]], asked: bool, say: Callable[[str], None]
    ) -> None:
        self._kinds, self._asked, self._say = kinds, asked, say
        self._shape: torch.Size | None = None
        self._found: tuple[list[Peer], list[str]] = [], []

    def prepare(
        self, work: Workload, check: Callable[[], Callable[[list[Tensor]], str | None]]
    ) -> tuple[list[Peer], list[str]]:
        """Give the peers, and a note for each that cannot run; see `make_peers`.

        check: makes the check of `make_peers`, where peers have to be prepared
        """
        if self._kinds and work.example.shape != self._shape:
            self.forget()
            right = check()
            with peer_settings(work.device, work.tf32):
                self._found = make_peers(self._kinds, work, right, asked=self._asked, say=self._say)
            self._shape = work.example.shape
        return self._found

    def forget(self) -> None:
        """Give the memory of the peers back."""
        if self._shape is None:
            return
        self._found, self._shape = ([], []), None
        # torch.compile keeps what it has compiled, and its graphs their memory
        importlib.import_module("torch._dynamo").reset()
        gc.collect()
        torch.cuda.empty_cache()


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """Give the first line of an error's text that says anything."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
