"""Simulated users, for everyone who has no data: tastes over clusters of items, some of them popular (Zipf).

A user has a few favourite clusters, stays in one for a run of items (geometric, 8 on average) and then changes to
another favourite. Of a cluster the popular items come more often, and none twice. Histories are log-normal, median 40.
"""

from __future__ import annotations

import numpy as np

from build.model.next_item.histories import History

ITEMS_A_CLUSTER = 50
FAVOURITES = 4  # clusters
RUN = 8  # items, on average, before a user changes the cluster
MEDIAN_LENGTH, LENGTH_SIGMA = 40, 0.7
SHORTEST = 5


def simulate(items: int, users: int, seed: int = 0) -> list[History]:
    """Histories of `users` users over items 1 to `items`; the same for the same arguments."""
    rng = np.random.default_rng(seed)
    clusters = np.array_split(rng.permutation(items) + 1, max(items // ITEMS_A_CLUSTER, 2))
    popularity = 1.0 / np.arange(1, len(clusters) + 1) ** 0.7
    popularity /= popularity.sum()
    lengths = np.exp(rng.normal(np.log(MEDIAN_LENGTH), LENGTH_SIGMA, users)).astype(int)
    return [_user(str(number), max(int(n), SHORTEST), clusters, popularity, rng) for number, n in enumerate(lengths)]


def _user(
    name: str, length: int, clusters: list[np.ndarray], popularity: np.ndarray, rng: np.random.Generator
) -> History:
    chosen = rng.choice(len(clusters), min(FAVOURITES, len(clusters)), replace=False, p=popularity)
    # Each favourite in an order of its own: the smallest of exponential times at Zipf's rates comes first.
    left = [
        clusters[c][np.argsort(rng.exponential(size=len(clusters[c])) * np.arange(1, len(clusters[c]) + 1))].tolist()
        for c in chosen
    ]
    taken: list[int] = []
    while len(taken) < length and any(left):
        cluster = left[rng.integers(len(left))]
        run = min(int(rng.geometric(1 / RUN)), length - len(taken))
        taken += cluster[:run]
        del cluster[:run]
    return History(name, np.array(taken, np.int32))
