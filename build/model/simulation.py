"""Simulated learners, for everyone who has no data: item response theory with practice.

P(correct) = sigmoid(ability + skill ability + practice - difficulty), after Rasch (1960) with the growth by practice of
performance factors analysis (Pavlik, Cen & Koedinger, 2009):

    ability        of a learner, N(0, 1)
    skill ability  of a learner in one skill, N(0, 0.5)
    practice       0.2 * ln(1 + earlier attempts at the skill)
    difficulty     of a problem: its skill's, N(0, 0.5), plus its own, N(0, 0.8)

Learners work on one skill for a run of problems (geometric, 6 on average) and then go on; popular skills and problems
come more often (Zipf). Histories are as long as in a published classroom release: log-normal with median 20, 2.5 % of
them beyond 512.
"""

from __future__ import annotations

import numpy as np

from ensemble.learners.history import History

PROBLEMS_A_SKILL = 140
RUN = 6  # problems, on average, before a learner changes the skill
MEDIAN_LENGTH, LENGTH_SIGMA = 20, 1.66
SHORTEST, LONGEST = 2, 1500
PRACTICE = 0.2


def simulate(problems: int, learners: int, seed: int = 0) -> list[History]:
    """Histories of `learners` learners over `problems` problems; the same for the same arguments."""
    rng = np.random.default_rng(seed)
    skills = max(problems // PROBLEMS_A_SKILL, 1)
    by_skill = np.array_split(rng.permutation(problems), skills)
    difficulty = rng.normal(0.0, 0.8, problems)
    for members in by_skill:
        difficulty[members] += rng.normal(0.0, 0.5)
    popularity = 1.0 / np.arange(1, skills + 1)
    popularity /= popularity.sum()
    lengths = np.exp(rng.normal(np.log(MEDIAN_LENGTH), LENGTH_SIGMA, learners))
    return [
        _learner(str(number), int(length), by_skill, popularity, difficulty, rng)
        for number, length in enumerate(np.clip(lengths, SHORTEST, LONGEST))
    ]


def _learner(
    name: str,
    length: int,
    by_skill: list[np.ndarray],
    popularity: np.ndarray,
    difficulty: np.ndarray,
    rng: np.random.Generator,
) -> History:
    skill_ability = rng.normal(0.0, 0.5, len(by_skill)) + rng.normal()
    attempts = np.zeros(len(by_skill), int)
    problem_ids, logits = [], []
    done = 0
    while done < length:
        skill = rng.choice(len(by_skill), p=popularity)
        members = by_skill[skill]
        run = min(int(rng.geometric(1 / RUN)), length - done, len(members))
        # Squaring a uniform number favours the front of the list: some problems are set far more often than others.
        start = int(rng.random() ** 2 * len(members))
        chosen = members[(start + np.arange(run)) % len(members)]
        practice = PRACTICE * np.log1p(attempts[skill] + np.arange(run))
        problem_ids.append(chosen)
        logits.append(skill_ability[skill] + practice - difficulty[chosen])
        attempts[skill] += run
        done += run
    chances = 1.0 / (1.0 + np.exp(-np.concatenate(logits)))
    return History(name, np.concatenate(problem_ids), (rng.random(length) < chances).astype(np.int32))
