"""Knowledge tracing: a learner's history of problems and responses in, the probability of solving each problem out."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from ensemble import tables
from ensemble.contract import Contract, Source, Values, Words
from ensemble.errors import SpecError
from ensemble.spec import Answer, Core, Spec
from ensemble.tables import CORE, INTEGERS, POSTPROCESS, PROPOSE, Count, Name, Network, Table, Tensor

# What clients call the answers.
PROBABILITIES, NEXT_PROBLEMS, CANDIDATES = "probabilities", "next_problems", "candidates"
INTEGER_ROLES = ("problem_ids", "responses", "recent_problem_ids", "recent_responses")
COUNTS = ("lengths", "next_problem_ids")


class Model(tables.Model):
    """The served model. problems: how many there are, numbered from 0."""

    problems: Count


class NextProblems(Table):
    """How many unanswered problems are proposed, and the success rate they should be nearest to."""

    count: Count
    target_success_rate: Annotated[float, Field(gt=0, lt=1)]


class Candidates(Table):
    """That a request may name the problems that it is about: only their columns are computed, and only they are answered.

    ids, probabilities: what their tensors are called in a request and in its answer.
    """

    ids: Name = "candidate_ids"
    probabilities: Name = "candidate_probabilities"


class Tensors(Table):
    """Every tensor by its role."""

    problem_ids: Tensor
    responses: Tensor
    recent_problem_ids: Tensor
    recent_responses: Tensor
    lengths: Tensor
    logits: Tensor
    all_logits: Tensor
    probabilities: Tensor
    next_problem_ids: Tensor
    next_problem_probabilities: Tensor

    @model_validator(mode="before")
    @classmethod
    def _names_default_to_roles(cls, table: object) -> object:
        if not isinstance(table, dict):
            return table
        return {role: {"name": role, **t} if isinstance(t, dict) else t for role, t in table.items()}

    @model_validator(mode="after")
    def _names_are_unique(self) -> Tensors:
        names = [tensor.name for _, tensor in self]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(
                f"two tensors are named {twice[0]!r}; an ensemble wires tensors by name, so each needs its own"
            )
        return self


class KnowledgeTracing(Spec):
    """A served model of knowledge tracing."""

    by_name: ClassVar[bool] = False
    made_from: ClassVar[frozenset[str]] = Spec.made_from | {"candidates", "tensors"}

    model: Model
    network: Network
    next_problems: NextProblems
    candidates: Candidates | None = None
    tensors: Tensors

    @model_validator(mode="before")
    @classmethod
    def _requests_are_fixed(cls, table: object) -> object:
        if isinstance(table, dict) and {"preprocess", "request"} & table.keys():
            raise ValueError(
                "knowledge tracing's requests are problem ids and responses, and nothing stands in front of their check: "
                "[preprocess] and [request] go with a spec of any sequence model, which has [history]"
            )
        return table

    @model_validator(mode="after")
    def _types_are_served(self) -> KnowledgeTracing:
        for role, tensor in self.tensors:
            allowed = INTEGERS if role in INTEGER_ROLES else ("INT32",) if role in COUNTS else ("FP32",)
            if tensor.dtype not in allowed:
                raise ValueError(f"tensors.{role}.dtype is {tensor.dtype}; allowed is {' or '.join(allowed)}")
            unknown = [size for size in tensor.shape if isinstance(size, str) and size not in self.sizes_by_name]
            if unknown or tensor.optional:
                said = (
                    f"shape has {unknown[0]!r}; names in it are"
                    if unknown
                    else "optional is nothing a role can be; names are"
                )
                raise ValueError(f"tensors.{role}: {said} {', '.join(self.sizes_by_name)}")
        return self

    @model_validator(mode="after")
    def _proposals_fit(self) -> KnowledgeTracing:
        if self.next_problems.count > self.model.problems:
            raise ValueError(
                f"next_problems.count is {self.next_problems.count}, but there are only "
                f"{self.model.problems} problems (model.problems)"
            )
        return self

    def check_names(self) -> None:
        """As Spec's: of candidates."""
        if self.candidates is None:
            return
        if self.reduce.where != "core":
            raise ValueError(
                '[candidates] needs reduce.where = "core": their columns are taken inside of the ONNX graph'
            )
        taken = [tensor.name for _, tensor in self.tensors]
        for key, name in self.candidates:
            if name in taken:
                raise ValueError(
                    f"candidates.{key} is {name!r}, which a tensor of [tensors] is named; give it another name"
                )
            taken.append(name)

    @property
    def sizes_by_name(self) -> dict[str, int]:
        """Problems, the window and the number of proposals."""
        window = -1 if len(self.model.widths) > 1 else self.model.window
        return {"problems": self.model.problems, "window": window, "next": self.next_problems.count}

    @property
    def shortest_history(self) -> int:
        """Interactions that a learner needs at least. Without the cut there is no row to answer a cold start from."""
        return 0 if self.model.cold_start and self.reduce.where == "core" else 1

    @property
    def contract(self) -> Contract:
        """What a request has to be, and what the core gets of it."""
        t, problems = self.tensors, self.model.problems
        return Contract(
            inputs={
                t.problem_ids.name: Values(problems, f"0 to {problems - 1}", "problem_id"),
                t.responses.name: Values(2, "0 (wrong) and 1 (correct)", "response"),
            },
            core=(
                Source(t.recent_problem_ids.name, t.problem_ids.name),
                Source(t.recent_responses.name, t.responses.name),
                Source(t.lengths.name, "lengths"),
                *(Source(tensor.name, asked.name, columns=True) for asked, tensor in self._candidates),
            ),
            widths=self.model.widths,
            shortest=self.shortest_history,
            longest=self.batching.longest_history,
            words=Words("learner", "learners", "interaction", "interactions"),
            contexts={
                asked.name: Values(problems, f"0 to {problems - 1}", "candidate_id", shape=(-1,))
                for asked, _ in self._candidates
            },
            optional=tuple(asked.name for asked, _ in self._candidates),
        )

    @property
    def _candidates(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """What a request names problems in, and what hands them to the core; none where the spec has no candidates."""
        if self.candidates is None:
            return ()
        name, dtype = self.candidates.ids, self.tensors.problem_ids.dtype
        columns = Tensor(dtype=self.tensors.recent_problem_ids.dtype, shape=[-1], name=f"{name}_columns")
        return ((Tensor(dtype=dtype, shape=[-1], name=name, optional=True), columns),)

    @property
    def requested(self) -> tuple[Tensor, ...]:
        """What a client sends, in the contract's order."""
        return self.tensors.problem_ids, self.tensors.responses, *(asked for asked, _ in self._candidates)

    @property
    def fed(self) -> dict[str, Source]:
        """Problem ids and responses."""
        return dict(zip(("problem_ids", "responses"), self.contract.core, strict=False))

    @property
    def windows(self) -> tuple[Tensor, ...]:
        """What the first step makes of it, in the contract's order."""
        return *self._history, *(columns for _, columns in self._candidates)

    @property
    def _history(self) -> tuple[Tensor, ...]:
        """A window; the last one says how much of it is valid."""
        return self.tensors.recent_problem_ids, self.tensors.recent_responses, self.tensors.lengths

    @property
    def cores(self) -> tuple[Core, ...]:
        """One, of the wanted row's logits, or of every row's where postprocess selects; and one of the candidates'."""
        if self.reduce.where != "core":
            return (Core(CORE, self._history[:-1], (self.tensors.all_logits,)),)
        every = Core(CORE, self._history, (self.tensors.logits,))
        return every, *(
            Core(
                f"{CORE}_{CANDIDATES}",
                (*self._history, columns),
                (Tensor(dtype="FP32", shape=[-1], name=f"{self.tensors.logits.name}_at_{asked.name}"),),
                columns.name,
            )
            for asked, columns in self._candidates
        )

    @property
    def answers(self) -> tuple[Answer, ...]:
        """What clients can ask for; each is a step of its own, which runs only for those who do."""
        t, wanted = self.tensors, self.next_problems
        proposal: list[list[Any]] = [
            ["sigmoid"],
            # The request's own history, not the window: what was answered 600 interactions ago is answered all the same.
            ["leave_out", t.problem_ids.name, 0],
            ["nearest", wanted.target_success_rate, wanted.count],
        ]
        return (
            Answer(PROBABILITIES, POSTPROCESS, self.core_output, (t.probabilities,), [["sigmoid"]]),
            Answer(
                NEXT_PROBLEMS,
                PROPOSE,
                self.core_output,
                (t.next_problem_ids, t.next_problem_probabilities),
                proposal,
                (t.problem_ids,),
            ),
            *(
                Answer(
                    CANDIDATES,
                    f"{POSTPROCESS}_{CANDIDATES}",
                    core.outputs[0],
                    (Tensor(dtype="FP32", shape=[-1], name=self.candidates.probabilities),),
                    [["at", asked.name], ["sigmoid"]],
                    (asked,),
                    asked.name,
                )
                for core, (asked, _) in zip(self.cores[1:], self._candidates, strict=True)
                if self.candidates is not None
            ),
        )


def narrowed(spec: Spec) -> KnowledgeTracing:
    """The spec, of knowledge tracing.

    Raises:
        SpecError: it is of another kind of model.
    """
    if not isinstance(spec, KnowledgeTracing):
        raise SpecError(
            f"this is for knowledge tracing, and {spec.model.name} is another kind of model: give a spec with [tensors], "
            "as SPEC= or --spec"
        )
    return spec
