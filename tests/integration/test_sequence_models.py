"""Any sequence model through a real tritonserver, asked by tritonclient alone, against its author's own inference."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
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
        inputs, wanted = self._sent(request, names)
        found = self.client.infer(self.spec.model.name, inputs, outputs=wanted, client_timeout=30)
        return [found.as_numpy(name) for name in names]

    def together(self, requests: list[Request], names: list[str]) -> list[list[np.ndarray] | Exception]:
        """What each of them gets where all are under way at once."""
        with ThreadPoolExecutor(len(requests)) as pool:
            waiting = [pool.submit(self.ask, request, names) for request in requests]
            return [each.exception() or each.result() for each in waiting]

    def _sent(
        self, request: Request, names: list[str]
    ) -> tuple[list[grpcclient.InferInput], list[grpcclient.InferRequestedOutput]]:
        inputs = []
        for tensor in self.spec.requested:
            if tensor.name in request:
                value = request[tensor.name].astype(triton_to_np_dtype(tensor.dtype))
                value = value[:, None] if value.ndim == 1 else value
                inputs.append(grpcclient.InferInput(tensor.name, list(value.shape), tensor.dtype))
                inputs[-1].set_data_from_numpy(value)
        return inputs, [grpcclient.InferRequestedOutput(name) for name in names]

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


SERVED = [
    "sasrec",
    "gru4rec_own_row",
    "sakt",
    "time_major_packed",
    "tagger",
    "forecast_own_row",
    "deepar",
]


# What is served of these, others are served with.
BUILT = ["gpt2", "t5_encoder", "state_space", "two_stacks", "causal_encoder"]


@pytest.fixture(scope="module", params=SERVED)
def asked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    # A request waits for others at the core: those that are sent together are one batch there.
    spec = zoo.read(request.param, steps__core__queue_delay_us=5000)
    folder = tmp_path_factory.mktemp(request.param)
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


def wrongs(spec: Sequence) -> Iterator[tuple[Request, str]]:
    """Requests of two histories that are refused, and by which words."""
    good = draw(spec.contract, (40, 40))
    for name, table in {**spec.history, **spec.context}.items():
        bad = {key: value.copy() for key, value in good.items()}
        worst = np.inf if table.values is None else 1000
        bad[name].reshape(2, -1)[1, -1] = worst
        yield bad, rf"{name}: history 1\b.* is .*{worst}.*; allowed are "
        if name in spec.context and name not in spec.contract.optional:
            yield {key: value for key, value in good.items() if key != name}, name
    if spec.contract.even:
        yield draw(spec.contract, (4, 3)), "history 1 has 3 steps, and history 0 has 4; this model is not padded"
    if spec.row.index:
        bad = {**good, spec.row.index: np.array([39, 7], np.int32)}
        yield (
            bad,
            f"{spec.row.index}: history 1 has 7; of its 40 steps the model sees 8 to 39, and answers one of these",
        )
    leading = next(iter(spec.history))
    yield draw(spec.contract, (65, 65)), rf"{leading} has shape \[2, 65.*; allowed are at most 64 steps a history"


def test_a_bad_request_is_told_by_name_and_its_neighbours_are_answered(asked):
    names = [tensor.name for tensor in asked.spec.answers[0].tensors]
    good = [draw(asked.spec.contract, (6,), seed=seed) for seed in range(3)]
    alone = [asked.ask(request, names) for request in good]
    for bad, said in wrongs(asked.spec):
        *found, refused = asked.together([*good, bad], names)
        assert isinstance(refused, InferenceServerException), said
        assert re.search(said, str(refused)), refused
        for answers, expected in zip(found, alone, strict=True):
            assert isinstance(answers, list), answers
            for one, other in zip(answers, expected, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", BUILT)
def test_it_is_built_in_parity(name, tmp_path):
    spec = zoo.read(name)
    assert assembly.build(spec, zoo.save(spec, tmp_path / "weights.pt"), tmp_path / "models").parity <= ALLOWED


def test_a_loop_over_time_is_refused_with_what_to_do_where_it_has_several_widths(tmp_path):
    spec = zoo.read("loop", model__buckets=[8, 32])
    said = (
        r"Loop loops over time in Python: traced with 7 rows .* windows of more than one width .* let a recurrent layer"
    )
    with pytest.raises(ExportError, match=said):
        assembly.build(spec, zoo.save(spec, tmp_path / "weights.pt"), tmp_path / "models")
    assert not (tmp_path / "models").exists()
