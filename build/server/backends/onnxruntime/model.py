"""Triton's `onnxruntime` backend as a Python-based backend, for servers that come without the native one.

It reads the config.pbtxt keys that the native backend reads (github.com/triton-inference-server/onnxruntime_backend) and
refuses at load what that one refuses at load, so that a repository which is served here is served there. `reshape` is
not seen here: Triton's core applies it before a backend gets a tensor.

On a GPU it does more than the native one: tensors are bound to buffers that stay where they are, and with the parameter
cuda_graph_batch_sizes (e.g. "1,2,4,8") a CUDA graph is captured at load for each of these sizes and each shape of
model_warmup, and replayed for every batch that fits one.
"""

import json
import os
import traceback
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from lastrow_onnxruntime import binding, settings, tensors
from lastrow_onnxruntime.errors import ORT_ERRORS, ConfigError
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        config = auto_complete_model_config.as_dict()
        if not (config["input"] and config["output"]):
            # Triton tells this hook nothing of the model's place, but starts the process with it as first argument.
            command = Path(f"/proc/{os.getpid()}/cmdline").read_bytes().split(b"\0")
            path = settings.model_file(config, Path(os.fsdecode(command[1])).parent)
            session = settings.open_session(config, path, "CPU", 0)
            tensors.complete(config, session.get_inputs(), session.get_outputs())
        return auto_complete_model_config

    def initialize(self, args):
        config = json.loads(args["model_config"])
        for key in settings.unknown_keys(config):
            pb_utils.Logger.log_warn(f"model '{config['name']}': {key} has no effect on this onnxruntime backend")
        path = settings.model_file(config, Path(args["model_repository"]) / args["model_version"])
        kind, device = args["model_instance_kind"], int(args["model_instance_device_id"])
        graphs = bool(settings.graph_batch_sizes(config)) and kind == "GPU"
        try:
            self.session = settings.open_session(config, path, kind, device, graphs)
        except ConfigError as e:
            if not graphs or "graph capture" not in str(e):
                raise
            pb_utils.Logger.log_warn(f"model '{config['name']}': no CUDA graphs, they are refused for this model: {e}")
            config["parameters"].pop("cuda_graph_batch_sizes")
            self.session = settings.open_session(config, path, kind, device)
        tensors.validate(config, self.session.get_inputs(), self.session.get_outputs())
        self.input_names = [tensor["name"] for tensor in config["input"]]
        self.output_names = [tensor["name"] for tensor in config["output"]]
        self.batching = config["max_batch_size"] > 0
        self.allowed = tensors.allowed_inputs(self.session.get_inputs())
        self.run_options = binding.run_options(None)
        shrinkage = settings.parameters(config).get("memory.enable_memory_arena_shrinkage")
        if shrinkage:
            self.run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", shrinkage)
        # On the CPU there is nothing to gain: session.run takes and gives NumPy's own memory.
        on_gpu = kind == "GPU" and self.batching and not shrinkage
        on_gpu = on_gpu and settings.boolean("io_binding", settings.parameters(config).get("io_binding", "1"))
        warn = pb_utils.Logger.log_warn
        self.binder = binding.capture_all(config, self.session, "cuda", device, warn) if on_gpu else None

    def execute(self, requests):
        """Every request's response, whatever the others are: what is raised here Triton answers to all of them."""
        responses, fit = {}, {}
        for number, request in enumerate(requests):
            try:
                fit[number] = request, self._feeds(request)
            except Exception as e:
                responses[number] = self._error(e)
        responses.update(zip(fit, self._run(list(fit.values())), strict=True))
        return [responses[number] for number in range(len(requests))]

    def _feeds(self, request):
        given = ((name, pb_utils.get_input_tensor_by_name(request, name)) for name in self.input_names)
        feeds = {name: tensor.as_numpy() for name, tensor in given if tensor is not None}  # None: optional, not sent
        if self.batching:
            tensors.check_rows(feeds, self.allowed)
        return feeds

    def _run(self, given):
        """The responses to [(request, feeds)], in one session.run where they can be batched, row after row."""
        if not given:
            return []
        if len(given) == 1 or self.batching:
            try:
                return self._answer(given)
            except Exception as e:
                if len(given) == 1:
                    return [self._error(e, given[0][1])]
        # One request spoils the batch: each alone tells which, and the others get their answers.
        return [self._run([one])[0] for one in given]

    def _answer(self, given):
        feeds = given[0][1]
        if len(given) > 1:
            feeds = {name: np.concatenate([each[name] for _, each in given]) for name in feeds}
        wanted = {name for request, _ in given for name in request.requested_output_names()}
        names = [name for name in self.output_names if name in wanted]
        if self.binder and self.binder.takes(feeds):
            outputs = self.binder.run(feeds, names)
        else:
            outputs = self.session.run(names, feeds, self.run_options)
        if len(given) == 1:
            return [self._response(names, outputs)]
        ends = np.cumsum([len(next(iter(each.values()))) for _, each in given])[:-1]
        pieces = zip(*(np.split(output, ends) for output in outputs), strict=True)
        return [self._response(names, piece) for piece in pieces]

    @staticmethod
    def _error(error, feeds=None):
        """A response that says what went wrong, and with which tensors."""
        invalid = isinstance(error, (ValueError, ort_errors.InvalidArgument))
        text = str(error)
        if not isinstance(error, (ValueError, *ORT_ERRORS)):
            text = f"{type(error).__name__}: {error}"
            pb_utils.Logger.log_error("".join(traceback.format_exception(type(error), error, error.__traceback__)))
        if feeds:
            text += f" (given: {'; '.join(tensors.text(name, value) for name, value in feeds.items())})"
        code = pb_utils.TritonError.INVALID_ARG if invalid else pb_utils.TritonError.INTERNAL
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code))

    @staticmethod
    def _response(names, values):
        return pb_utils.InferenceResponse([pb_utils.Tensor(*named) for named in zip(names, values, strict=True)])
