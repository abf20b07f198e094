"""Tensors bound to buffers that stay where they are, and CUDA graphs captured over them."""

import collections
import itertools

import numpy as np
import onnxruntime as ort

from .errors import ORT_ERRORS
from .settings import graph_batch_sizes
from .tensors import NUMPY_TYPES

GRAPH_ID = "gpu_graph_id"  # run option: which captured graph; from 1 on
NO_GRAPH = "-1"
REFUSALS: tuple[type[Exception], ...] = (ValueError, RuntimeError, *ORT_ERRORS)  # of a graph, while it is captured
CAPTURING_RUNS = 3  # the first run allocates, a later one is captured, the next one replays


class Bound:
    """Buffers for one set of shapes, which stay where they are: what is computed lies at the same addresses every time.

    A captured graph reads these addresses, so its binding is made once. Every other run binds anew: an input that a node
    wants on the CPU (an LSTM's sequence_lens) ONNX Runtime copies from the device when it is bound, not when it is run.

    Rows that a batch leaves free are filled with its first one: no other batch's rows, and nothing that was not asked.
    """

    def __init__(self, session, shapes, device, number, graph=None):
        """shapes: of each input, the batch first. device: "cpu" or "cuda"; number: its. graph: run option GRAPH_ID."""
        self.session, self.device = session, device
        self.options = run_options(graph)
        self.plain = run_options(None)
        types = {tensor.name: NUMPY_TYPES[tensor.type] for tensor in session.get_inputs()}
        self.staged = {name: np.zeros(shape, types[name]) for name, shape in shapes.items()}
        self.inputs = {
            name: ort.OrtValue.ortvalue_from_shape_and_type(staged.shape, staged.dtype, device, number)
            for name, staged in self.staged.items()
        }
        for name, value in self.inputs.items():
            value.update_inplace(self.staged[name])
        self.outputs = {}
        names = [tensor.name for tensor in session.get_outputs()]
        first = self.bind()
        for name in names:
            first.bind_output(name, device, number)
        # What the first run allocates for its outputs is kept as their buffers.
        session.run_with_iobinding(first, self.plain)
        self.outputs = dict(zip(names, first.get_outputs(), strict=True))
        self.graph_binding = self.bind() if graph else None

    def bind(self):
        """All buffers bound to the session."""
        binding = self.session.io_binding()
        for name, value in self.inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in self.outputs.items():
            binding.bind_ortvalue_output(name, value)
        return binding

    def run(self, feeds, names, graph=True):
        """Outputs by `names` for feeds of as many rows as the buffers have, or fewer; the caller's to keep."""
        self.compute(feeds, graph)
        return self.fetch(len(next(iter(feeds.values()))), names)

    def compute(self, feeds, graph=True):
        """Fill the buffers and run; the outputs stay where they are."""
        for name, staged in self.staged.items():
            rows = len(feeds[name])
            staged[:rows] = feeds[name]
            staged[rows:] = feeds[name][:1]
            self.inputs[name].update_inplace(staged)
        if graph and self.graph_binding:
            self.session.run_with_iobinding(self.graph_binding, self.options)
        else:
            self.session.run_with_iobinding(self.bind(), self.plain)

    def fetch(self, rows, names):
        """The first rows of outputs, brought to the host: all that leaves the device."""
        # Of a buffer on the CPU, numpy() is the buffer itself.
        values = [self.outputs[name].numpy()[:rows] for name in names]
        return [value.copy() for value in values] if self.device == "cpu" else values


class Binder:
    """Runs a session on bound buffers, made once for each shape.

    sizes: batches that are captured as CUDA graphs, at the shapes that `capture` is given; a smaller batch of such a shape
    is padded to the next size. Every other batch has buffers of just its size, and no graph; of these so many are kept, and
    the ones that were not used for longest go first.
    """

    def __init__(self, session, device, number=0, sizes=(), kept=1):
        self.session, self.device, self.number, self.sizes, self.kept = session, device, number, tuple(sizes), kept
        # A number is never given again: the session keeps what was captured under it, also where that was refused.
        self.graphs = itertools.count(1)
        self.captured = {}
        self.others = collections.OrderedDict()
        self.types = {tensor.name: NUMPY_TYPES.get(tensor.type) for tensor in session.get_inputs()}

    def capture(self, shapes):
        """Capture a graph for each size. shapes: of each input, without the batch.

        Returns:
            None, or why no graph is kept for these shapes: a replay answers otherwise than the model does.
        """
        key = _key(shapes)
        for size in self.sizes:
            graph = str(next(self.graphs))
            whole = {name: (size, *shape) for name, shape in shapes.items()}
            try:
                bound = Bound(self.session, whole, self.device, self.number, graph)
                ones, zeros = ({n: np.full(s.shape, v, s.dtype) for n, s in bound.staged.items()} for v in (1, 0))
                names = list(bound.outputs)
                for _ in range(CAPTURING_RUNS):
                    bound.run(ones, names)
                # Whatever the graph has of the values that it was captured with, and not from its buffers, shows now.
                for given in (zeros, ones):
                    replayed, computed = bound.run(given, names), bound.run(given, names, graph=False)
                    if not all(
                        np.allclose(a, b, 1e-3, 1e-3, equal_nan=True) for a, b in zip(replayed, computed, strict=True)
                    ):
                        return f"batch of {size}: replayed, it answers otherwise than computed anew"
            except REFUSALS as e:
                return f"batch of {size}: {str(e).splitlines()[0]}"
            self.captured[size, key] = bound
        return None

    def takes(self, feeds):
        """Whether all of the session's inputs are there, as numbers."""
        return feeds.keys() == self.types.keys() and all(
            self.types[name] == value.dtype and value.ndim and len(value) for name, value in feeds.items()
        )

    def bound(self, feeds):
        """The buffers for these feeds: with a graph where one is large enough, else of just their shapes."""
        rows = len(next(iter(feeds.values())))
        key = _key({name: value.shape[1:] for name, value in feeds.items()})
        size = next((size for size in self.sizes if size >= rows and (size, key) in self.captured), None)
        if size is not None:
            return self.captured[size, key]
        if (rows, key) not in self.others:
            if len(self.others) == self.kept:
                self.others.popitem(last=False)
            shapes = {name: value.shape for name, value in feeds.items()}
            self.others[rows, key] = Bound(self.session, shapes, self.device, self.number)
        self.others.move_to_end((rows, key))
        return self.others[rows, key]

    def run(self, feeds, names):
        """Outputs by `names`, as session.run answers them."""
        return self.bound(feeds).run(feeds, names)


def run_options(graph):
    """graph: the number of a CUDA graph to capture or replay; None for none. Providers without graphs pass it over."""
    options = ort.RunOptions()
    options.add_run_config_entry(GRAPH_ID, graph or NO_GRAPH)
    return options


def _key(shapes):
    return tuple(sorted(shapes.items()))


def warm_shapes(config):
    """Shapes of the inputs, without the batch, that model_warmup has; each once. As the model sees them: reshaped."""
    reshaped = {tensor["name"]: tensor["reshape"].get("shape", []) for tensor in config["input"] if "reshape" in tensor}
    found = []
    for sample in config.get("model_warmup", []):
        shapes = {
            name: tuple(int(axis) for axis in reshaped.get(name, given.get("dims", [])))
            for name, given in sample["inputs"].items()
        }
        if shapes not in found:
            found.append(shapes)
    return found


def capture_all(config, session, device, number, warn):
    """A Binder with a graph for every size and warm-up shape that can be captured; `warn` is told of each other one.

    It keeps buffers for every batch of every warm-up shape, which are the widths that are served.
    """
    widths = warm_shapes(config)
    kept = max(len(widths), 1) * config["max_batch_size"]
    binder = Binder(session, device, number, graph_batch_sizes(config), kept)
    for shapes in widths if binder.sizes else ():
        why = binder.capture(shapes)
        if why:
            text = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            warn(f"model '{config['name']}': no CUDA graph for {text}: {why}. Such batches are computed without")
    return binder
