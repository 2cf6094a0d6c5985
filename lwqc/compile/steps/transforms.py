"""Equivalence transforms: rewrites that leave the outputs and make a model easier to quantize."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from lwqc.compile.steps.step import Made, Step
from lwqc.compile.version import Version
from lwqc.passes.migrate_scales import MigrateScales
from lwqc.passes.prepare_pruning import prepare_pruning
from lwqc.passes.rotate_stream import RotateStream
from lwqc.plans.plan import Plan, Transforms


def version(work: Version, transforms: Transforms, *, token_weights: bool = False) -> Version:
    """The same work on the transformed model; what the original computes stays the reference.

    Made once: its statistics and encoded weights serve the search and the result alike.
    """
    if not transforms and token_weights == work.token_weights:
        return work

    def made() -> Version:
        model = transform(work.model, transforms) if transforms else work.model
        return work.derived(model, token_weights=token_weights)

    return work.facts.get(("transformed", transforms.model_dump_json(), token_weights), made)


def transform(model: ir.Model, transforms: Transforms) -> ir.Model:
    """A transformed copy. Raises InputError for names that the model lacks."""
    copy, _ = prepare_pruning(model) if transforms.rotations else (model.clone(), None)
    RotateStream(transforms.rotations)(copy)
    MigrateScales({name: np.asarray(s) for name, s in transforms.scales.items()})(copy)
    return copy


def _run(made: Made) -> Made:
    plan = made.plan
    return made.on(version(made.version, plan.transforms, token_weights=plan.token_weights))


def _text(plan: Plan) -> Iterator[str]:
    if plan.transforms:
        yield (
            f"{len(plan.transforms.rotations)} streams are rotated, channels scaled in "
            f"{len(plan.transforms.scales)} places"
        )


STEP = Step("transforms", _run, _text)
