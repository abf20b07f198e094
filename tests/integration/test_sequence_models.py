"""Any sequence model through a real tritonserver, asked by tritonclient alone, against its author's own inference."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from build.core.export import ExportError
from build.core.inference import Inference
from build.repository import assembly
from build.server import Server
from ensemble.chain import answer
from ensemble.sample import draw
from ensemble.sequence import Sequence
from tests import zoo

ALLOWED = 1e-4  # of the largest number that is wanted

Request = dict[str, np.ndarray]


class Asked:
    """A model that is served, and its author's inference."""

    def __init__(self, spec: Sequence, client: grpcclient.InferenceServerClient) -> None:
        self.spec, self.client = spec, client
        self.author = Inference.of(zoo.make(spec), Path("none.onnx"), spec)

    def ask(self, request: Request, names: list[str]) -> list[np.ndarray]:
        """As any Triton client does; raises InferenceServerException."""
        inputs = []
        for tensor in self.spec.requested:
            if tensor.name in request:
                value = request[tensor.name].astype(triton_to_np_dtype(tensor.dtype))
                value = value[:, None] if value.ndim == 1 else value
                inputs.append(grpcclient.InferInput(tensor.name, list(value.shape), tensor.dtype))
                inputs[-1].set_data_from_numpy(value)
        wanted = [grpcclient.InferRequestedOutput(name) for name in names]
        found = self.client.infer(self.spec.model.name, inputs, outputs=wanted, client_timeout=30)
        return [found.as_numpy(name) for name in names]

    def wanted(self, number: int, request: Request) -> list[np.ndarray]:
        """What the author's inference and the answer's chain say."""
        made, table = self.spec.answers[number], self.spec.answer[number]
        rows = self.author.rows(request)[list(self.spec.outputs).index(table.of) if table.of else 0]
        if table.at:
            rows = np.take_along_axis(rows, np.maximum(request[table.at], 0).astype(np.int64), 1)
        return answer(made.chain, rows, request)

    def compare(self, lengths: tuple[int, ...]) -> None:
        """Every answer to random histories of these lengths."""
        request = draw(self.spec.contract, lengths, seed=sum(lengths))
        for number, (made, table) in enumerate(zip(self.spec.answers, self.spec.answer, strict=True)):
            # A context that only another answer is about is left out.
            sent = {n: v for n, v in request.items() if n not in self.spec.contract.optional or n == table.at}
            names = [tensor.name for tensor in made.tensors]
            for found, wanted in zip(self.ask(sent, names), self.wanted(number, request), strict=True):
                if found.dtype == np.int32:
                    np.testing.assert_array_equal(found, wanted)
                else:
                    apart = np.abs(found.reshape(wanted.shape) - wanted).max()
                    assert apart <= ALLOWED * np.abs(wanted).max(), (table.name, lengths, apart)

    def refuses(self, request: Request, said: str) -> None:
        names = [tensor.name for tensor in self.spec.answers[0].tensors]
        with pytest.raises(InferenceServerException, match=said):
            self.ask(request, names)


SERVED = [
    "sasrec",
    "gru4rec_own_row",
    "sakt",
    "time_major_packed",
    "tagger",
    "forecast_own_row",
    "deepar",
]


@pytest.fixture(scope="module", params=SERVED)
def asked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    spec, folder = zoo.read(request.param), tmp_path_factory.mktemp(request.param)
    built = assembly.build(spec, zoo.save(spec, folder / "weights.pt"), folder / "models")
    with (
        Server(built.folder, log=folder / "server.log") as server,
        grpcclient.InferenceServerClient(server.grpc_url) as client,
    ):
        yield Asked(spec, client)


def test_it_answers_as_its_author_does(asked):
    for length in (1, 2, 7, 31, 32, 33, 64):
        asked.compare((length,))
    asked.compare((5, 5, 5))
    if not asked.spec.contract.even:
        asked.compare((5, 1, 17, 32, 64, 2))


def test_what_is_wrong_with_a_request_is_said_by_name(asked):
    spec = asked.spec
    leading = next(iter(spec.history))
    good = draw(spec.contract, (4, 4))
    longer = draw(spec.contract, (65, 65))
    asked.refuses(longer, rf"{leading} has shape \[2, 65\S*\]; allowed are at most 64 steps a history")
    for name, table in {**spec.history, **spec.context}.items():
        bad = {key: value.copy() for key, value in good.items()}
        if table.values is None:
            bad[name].reshape(2, -1)[1, -1] = np.inf
            said = "inf"
        else:
            bad[name].reshape(2, -1)[1, -1] = said = 1000
        asked.refuses(bad, rf"{name}: history 1\D.* is .*{said}.*; allowed are ")
        if name in spec.context and name not in spec.contract.optional:
            del bad[name]
            asked.refuses(bad, name)
    asked.compare((4, 4))


def test_a_bad_request_is_answered_alone(asked):
    """Good neighbours, under way at the same time and so in one batch with it, get what they would alone."""
    spec = asked.spec
    names = [tensor.name for tensor in spec.answers[0].tensors]
    requests = [draw(spec.contract, (6,), seed=seed) for seed in range(6)]
    alone = [asked.ask(request, names) for request in requests]
    bad = {key: value.copy() for key, value in requests[3].items()}
    leading = next(iter(spec.history))
    bad[leading].reshape(-1)[-1] = np.inf if spec.history[leading].values is None else 1000
    requests[3] = bad
    found = asked.together(requests, names)
    assert isinstance(found[3], InferenceServerException)
    assert f"{leading}: history 0, position 5 is" in str(found[3])
    for number in (0, 1, 2, 4, 5):
        for one, other in zip(found[number], alone[number], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
