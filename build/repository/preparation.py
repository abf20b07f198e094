"""A workspace made ready for what is asked of it: its checkpoint trained, its repository built."""

from __future__ import annotations

from build.progress import bar, say
from build.repository.workspace import Workspace
from ensemble.knowledge_tracing import narrowed
from ensemble.lint import lint
from ensemble.sequence import Sequence
from ensemble.spec import DEFAULT_SPEC

TRAINING_S = 60.0


def train(workspace: Workspace, budget_s: float = TRAINING_S) -> None:
    """Train the spec's network on the workspace's learners; write checkpoint and report, and print what it is worth.

    Raises:
        DataError, LastrowError: there are no such learners, or too few.
    """
    from build.model import checkpoint, preset, training

    if isinstance(workspace.spec, Sequence):
        kind = preset.of(workspace.spec, workspace.data, workspace.learners)
        with bar("train") as update:
            trained, to_json, said = kind.train(budget_s, update)
        checkpoint.save(trained, workspace.checkpoint)
        workspace.report.write_text(to_json(workspace.data_digest()), encoding="utf-8")
        print(said)
        return
    spec = narrowed(workspace.spec)
    with bar("read learners" if workspace.data else "simulate learners"):
        seen, unseen = training.split(workspace.folds())
    with bar("train") as update:
        model, report = training.train(seen, unseen, spec, budget_s=budget_s, progress=update)
    checkpoint.save(model, workspace.checkpoint)
    workspace.report.write_text(report.to_json(workspace.data_digest()), encoding="utf-8")
    print(
        f"test AUC {report.auc:.4f}, per-problem mean {report.baseline_auc:.4f} "
        f"({report.test_learners:,} learners, {report.test_interactions:,} interactions)"
    )


def train_if_missing(workspace: Workspace) -> None:
    """Train a model of this project's that is not there; a checkpoint that was given is its reader's to miss.

    Raises:
        LastrowError: it is none of those that are trained here.
    """
    if not workspace.checkpoint.exists() and not workspace.checkpoint_given:
        train(workspace)


def build(workspace: Workspace) -> None:
    """Build the repository, and only what changed, of a checkpoint that is trained if it is missing; say what came of it."""
    from build.repository import assembly

    train_if_missing(workspace)
    built = assembly.build(workspace.spec, workspace.checkpoint, workspace.out)
    done = f"wrote {len(built.changed)} files to" if built.changed else "up to date:"
    say(f"{done} {built.folder} (parity {built.parity:.1e})")
    for finding in lint(built.folder):
        say(str(finding))
    if workspace.spec_file != DEFAULT_SPEC:
        say(f"its spec: {workspace.spec_file}")
