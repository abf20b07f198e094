"""A bad spec made good, by Model Analyzer for real: what is gained is measured."""

from __future__ import annotations

import dataclasses

from build.analyzer import analysis, profile
from build.repository import assembly as repository
from build.repository.workspace import Workspace
from ensemble.spec import Spec
from tests.integration.test_analyzer import SHORT


def test_a_bad_spec_is_tuned(workspace: Workspace):
    short = dataclasses.replace(SHORT, concurrency=(2, 4), steps_varied=())
    assert analysis.tune(workspace, quick=True, p99_ms=None, kinds=(short,))
    tuned = Spec.read(workspace.spec_file)
    assert tuned.steps.core.queue_delay_us < profile.SEED_DELAY_US
    assert tuned.tuned is not None
    assert tuned.tuned.speed > 5
    assert tuned.tuned.throughput > 1.5
    assert repository.build(tuned, workspace.checkpoint, workspace.out).changed == ()
