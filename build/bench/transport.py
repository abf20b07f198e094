"""How tensors get to a server and back. A connection belongs to one thread."""

from __future__ import annotations

import http
import http.client
from collections.abc import Sequence
from typing import Protocol

import grpc
import numpy as np
import tritonclient.http as httpclient
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import triton_to_np_dtype

from ensemble.errors import ServingError
from ensemble.tables import Tensor

HEADER_LENGTH = "Inference-Header-Content-Length"  # of Triton's HTTP protocol: where JSON ends and tensors begin
TIMEOUT_S = 120.0  # the naive rungs' queues are long
Given = Sequence[tuple[Tensor, np.ndarray]]


class Transport(Protocol):
    """A connection to a tritonserver."""

    def infer(self, model: str, inputs: Given, outputs: Sequence[Tensor]) -> list[np.ndarray]:
        """The outputs, in their order, of one request; the inputs have their tensors' types."""
        ...

    def close(self) -> None:
        """End the connection."""
        ...


class Http:
    """Triton's HTTP protocol with binary tensors: tritonclient writes and reads the bodies.

    Its own transport is gevent's, whose connections belong to the thread that used them first.
    """

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(url, timeout=TIMEOUT_S)

    def close(self) -> None:
        self._connection.close()

    def infer(self, model: str, inputs: Given, outputs: Sequence[Tensor]) -> list[np.ndarray]:
        given = []
        for tensor, value in inputs:
            given.append(httpclient.InferInput(tensor.name, list(value.shape), tensor.dtype))
            given[-1].set_data_from_numpy(value)
        wanted = [httpclient.InferRequestedOutput(tensor.name) for tensor in outputs]
        body, header_length = httpclient.InferenceServerClient.generate_request_body(given, outputs=wanted)
        headers = {HEADER_LENGTH: str(header_length)}
        self._connection.request("POST", f"/v2/models/{model}/infer", body, headers)
        response = self._connection.getresponse()
        content = response.read()
        if response.status != http.HTTPStatus.OK:
            raise ServingError(content.decode(errors="replace"), str(response.status))
        length = int(response.headers[HEADER_LENGTH])
        parsed = httpclient.InferenceServerClient.parse_response_body(content, header_length=length)
        return [parsed.as_numpy(tensor.name) for tensor in outputs]


class Grpc:
    """Triton's gRPC protocol; messages are written here, as the project's client does it."""

    def __init__(self, url: str) -> None:
        unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self._channel = grpc.insecure_channel(url, unlimited)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def infer(self, model: str, inputs: Given, outputs: Sequence[Tensor]) -> list[np.ndarray]:
        message = service_pb2.ModelInferRequest(
            model_name=model,
            inputs=[
                service_pb2.ModelInferRequest.InferInputTensor(
                    name=tensor.name, datatype=tensor.dtype, shape=value.shape
                )
                for tensor, value in inputs
            ],
            outputs=[service_pb2.ModelInferRequest.InferRequestedOutputTensor(name=tensor.name) for tensor in outputs],
            raw_input_contents=[value.tobytes() for _, value in inputs],
        )
        try:
            answer = self._stub.ModelInfer(message, timeout=TIMEOUT_S)
        except grpc.RpcError as e:
            raise ServingError(e.details(), e.code().name) from e
        found = {
            output.name: np.frombuffer(content, triton_to_np_dtype(output.datatype)).reshape(output.shape)
            for output, content in zip(answer.outputs, answer.raw_output_contents, strict=True)
        }
        return [found[tensor.name] for tensor in outputs]
