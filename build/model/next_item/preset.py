"""The presets of the next item: SASRec and GRU4Rec on users' item histories."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from build.model.next_item.evaluation import TOP, answerable, judge, popularity, unseen
from build.model.next_item.histories import Held, History, items, leave_one_out, read
from build.model.next_item.network import Network, create
from build.model.next_item.simulation import simulate
from build.model.next_item.training import train
from build.model.trial import Trial, Worth, chosen
from ensemble.errors import LastrowError
from ensemble.sequence import Sequence
from ensemble.tables import Gru4RecNetwork, SasrecNetwork

USERS = 6000  # simulated


class NextItem:
    """A network for the next item, and users to train it on. data: a file of histories; None: simulated users."""

    def __init__(self, spec: Sequence, data: Path | None, count: int | None) -> None:
        self.spec, self.data, self.count = spec, data, count

    def sizes(self) -> dict[str, int]:
        """Items, and the columns of the answer: one more, of padding."""
        found = items(self.histories())
        return {"items": found, "columns": found + 1}

    def histories(self) -> list[History]:
        """All users', read or simulated.

        Raises:
            DataError: the file cannot be read.
        """
        if self.data is None:
            return simulate(self.spec.sizes["items"], self.count or USERS)
        return read(self.data)[: self.count]

    def split(self) -> tuple[list[History], list[Held], list[Held]]:
        """Training histories, and of each user the item before the last, and the last, held out."""
        return leave_one_out(self.histories())

    def create(self) -> Network:
        """An untrained model of the spec's network and sizes.

        Raises:
            LastrowError: the spec has no size `items`, or another number of columns.
        """
        sizes, network = self.spec.sizes, self.spec.network
        if "items" not in sizes or self.spec.dims(self.spec.cores[0].outputs[0]) != [sizes["items"] + 1]:
            raise LastrowError(
                f"{network.type} answers a column for each item and one of padding: the spec needs [sizes] items, and one "
                "output of shape [columns] with columns = items + 1"
            )
        own = {"embedding": network.embedding} if isinstance(network, (SasrecNetwork, Gru4RecNetwork)) else {}
        if isinstance(network, SasrecNetwork):
            own |= {"window": self.spec.model.window, "blocks": network.blocks, "heads": network.heads}
        elif isinstance(network, Gru4RecNetwork):
            own |= {"hidden": network.hidden}
        return create(network.type, items=sizes["items"], **own)

    def train(
        self, budget_s: float, progress: Callable[[float, str], None]
    ) -> tuple[nn.Module, Callable[[str | None], str], str]:
        """Train on all but each user's last two items; test on the last."""
        model, (training, _, test) = self.create(), self.split()
        report = train(model, training, test, self.spec.model.window, budget_s=budget_s, progress=progress)
        said = (
            f"hit rate at 10 {report.hit_rate:.3f}, NDCG {report.ndcg:.3f}; popularity {report.baseline_hit_rate:.3f}, "
            f"{report.baseline_ndcg:.3f} ({report.test_users:,} users, {report.items:,} items)"
        )
        return model, report.to_json, said

    def trial(self, sample: int | None = None) -> Trial:
        """Every user's last item, ranked among all that the user has not had, beside a ranking by popularity.

        Raises:
            LastrowError: the spec has no answer that ranks unseen items.
        """
        (name,), (training, _, test) = self.spec.history, self.split()
        answer = next((each.name for each in self.spec.answer if _ranks(each.links, name)), None)
        if answer is None:
            raise LastrowError(
                f"what is held out is ranked among unseen items: the spec needs an [[answer]] with chain = "
                f'[{{ leave_out = "{name}" }}, {{ top = {TOP} }}], or more than {TOP}'
            )
        held = answerable(test)
        held = [held[number] for number in chosen(len(held), sample)]
        popular = popularity(training, self.spec.sizes["items"])([each.history for each in held])

        def answered(number: int, row: np.ndarray) -> np.ndarray:
            ids = unseen(torch.from_numpy(row[None]), [held[number].history])[0]
            return ids[ids > 0]

        def worth(ranked: SequenceOf[np.ndarray]) -> Worth:
            found = judge(ranked, held)
            return {f"hit rate at {TOP}": found.hit_rate, f"NDCG at {TOP}": found.ndcg}

        return Trial(
            f"the last item of {len(held):,} {self.spec.words.histories}, among all unseen of {self.spec.sizes['items']:,}",
            [{name: each.history.item_ids} for each in held],
            answer,
            answered,
            worth,
            {"popularity": worth(list(popular))},
        )

    def requests(self) -> dict[str, dict[str, np.ndarray]]:
        """Users of short, median, long, window-filling and longer histories."""
        (name,), window = self.spec.history, self.spec.model.window
        held = sorted((each.history for each in self.split()[2]), key=len)
        longest = np.concatenate([each.item_ids for each in held[-8:]])
        wanted = {5: "short", len(held[len(held) // 2]): "median", window // 2: "long"}
        shown = {}
        for length, said in wanted.items():
            nearest = min(held, key=lambda each: abs(len(each) - length))
            shown[f"{nearest.user} ({said})"] = {name: nearest.item_ids}
        shown["fills the window"] = {name: longest[:window]}
        shown["longer than the window"] = {name: longest[: 2 * window]}
        return shown


def _ranks(links: list[list[Any]], history: str) -> bool:
    return ["leave_out", history] in links and links[-1][0] == "top" and links[-1][1] >= TOP
