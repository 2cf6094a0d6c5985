"""A compressed model in memory, and the report on it: everything in it is measured on the file."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from lwqc.backends.device_bench import build_engines
from lwqc.backends.provider_options import options_path, options_text
from lwqc.backends.target import Lowered
from lwqc.compile.branch_reports import (
    parallel_report,
    removal_report,
    slicing_report,
    tokens_report,
)
from lwqc.compile.budget import Reached, asked, weighed
from lwqc.compile.compared_in_parts import check_room, checked_in_parts
from lwqc.compile.decisions import (
    DropDecision,
    ParallelDecision,
    SliceDecision,
    TokenDecision,
)
from lwqc.compile.earlier_outputs import gone_outputs, retyped_outputs
from lwqc.compile.encoded_in_parts import encoded_in_parts
from lwqc.compile.idle_branches import idle_branches
from lwqc.compile.losses import answers_of, divergences, flips_of
from lwqc.compile.outcomes import class_outcome, drop_outcome, output_outcomes
from lwqc.compile.result import Report, SearchReport, SearchTrace, ShapeLatency, SiteRow
from lwqc.compile.saved_check import Expected, check_saved
from lwqc.compile.stamped import stamped
from lwqc.compile.steps.pruned_model import PrunedModel, pruning_report
from lwqc.compile.steps.removed_branches import RemovedBranches
from lwqc.compile.version import Version, files_of
from lwqc.graph.sites import Site
from lwqc.model import io
from lwqc.model.coded_caches import caches_of
from lwqc.model.outputs import check_outputs
from lwqc.model.paths import link_free
from lwqc.model.told import Told
from lwqc.passes.encoded_weights import PartOfSite, stored_parts
from lwqc.passes.widen_bfloat16 import has_bfloat16
from lwqc.plans.goals import Goals, Outcome
from lwqc.plans.plan import Plan, SiteEntry
from lwqc.runtime.measure import OperatorRow, latencies, operator_rows
from lwqc.runtime.session import Outputs, has_bodies, statistics_session
from lwqc.runtime.stats.divergence import Divergence

# The last stage of a job, and its steps, each of about the same time: another process loads the
# file and runs it, times of both models (3), outputs and metric, profiles of both models (3).
CHECKING, CHECKS = "checking", 8
_FEEDS = 64  # that tell which branches of an If run
Decision = DropDecision | ParallelDecision | SliceDecision


@dataclass(frozen=True, repr=False)
class Compressed(Told):
    """A compressed model in memory, ready to be saved and measured.

    coded: the version that formats were applied to. decision: what was
    chosen and at what price, unless the plan was given. shortened: the same of tokens. fallbacks:
    what the target would not run as it should, one line each. search, trace: how, where a search
    chose. counted: by option of a bound, see `lwqc.compile.budget.counted`.
    """

    work: Version
    goals: Goals
    decisions: Plan
    lowered: Lowered
    coded: Version
    pruned: PrunedModel | None = None
    removed: RemovedBranches | None = None
    decision: Decision | None = None
    shortened: TokenDecision | None = None
    fallbacks: tuple[str, ...] = ()
    search: SearchReport | None = None
    trace: SearchTrace | None = None
    counted: Mapping[str, float] = field(default_factory=dict)

    def told(self) -> dict[str, str]:
        """What was done."""
        return {**self.decisions.told(), "model": self.work.name}

    @property
    def plan(self) -> Plan:
        """What was done, with what that depended on."""
        return stamped(self.work, self.decisions, self.goals)

    @property
    def model(self) -> ir.Model:
        """The compressed model."""
        return self.lowered.model

    @property
    def sites(self) -> Mapping[str, Site]:
        """Those of the model just before formats were applied, by name."""
        return self.coded.sites

    def noted(self, *notes: str) -> Compressed:
        """The same with more notes in its plan and its report."""
        return replace(self, decisions=self.decisions.noted(*notes))

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        external_data: bool | None = None,
        verify: bool = True,
        plan: str | os.PathLike[str] | None = None,
        engines: str | os.PathLike[str] | None = None,
    ) -> Report:
        """Write the model, check and measure what was written, then put it in its place.

        verify: False skips everything that loads a model; the report says so. plan: where the plan
        goes, together with the model. engines: where the model with built engines goes, see
        `build_engines`. Nothing is left, and what was there stays, when this raises:
        InputError when the file cannot be written, see `lwqc.model.io.drafted`; UnsoundResult when
        it does not hold, see `lwqc.compile.saved_check`.
        """
        with self.drafted(
            path, external_data=external_data, verify=verify, plan=plan, engines=engines
        ) as draft:
            draft.files.publish()
            return draft.report

    @contextmanager
    def drafted(
        self,
        path: str | os.PathLike[str],
        *,
        external_data: bool | None = None,
        verify: bool = True,
        plan: str | os.PathLike[str] | None = None,
        engines: str | os.PathLike[str] | None = None,
        weigh: bool = False,
    ) -> Iterator[Drafted]:
        """The same, but for the last step: `Drafted.files` are still to be published.

        weigh: measure memory too, where no bound asks for it.
        """
        outputs = [Path(p) for p in (path, plan, engines) if p is not None]
        check_outputs(outputs, files_of(self.work))
        if verify and self.work.job.room is not None:  # before hours of work
            check_room(self.work)
        told = self.work.job.report(CHECKING)
        with (
            encoded_in_parts(
                self.coded, self.model, lambda: self.plan, link_free(Path(path))
            ) as notes,
            io.drafted(self.model, path, external_data=external_data) as files,
        ):
            told(0, CHECKS)
            target = self.work.job.target
            options = target.options(self.model, self.decisions, files.target.stem)
            if options:
                place = options_path(files.target)
                files.add_text(place, options_text(target.name, options))
            if plan is not None:
                files.add_text(Path(plan), self.plan.text)
            if verify and self.work.job.room is None:
                self._check(files)
            report = measure(self.noted(*notes), files, verify=verify, weigh=weigh)
            if engines is not None:
                files.add_made(
                    Path(engines), lambda made: build_engines(target, files.path, options, made)
                )
            yield Drafted(files, report)

    def _expected(self, outputs: Outputs, types: Mapping[str, str]) -> Expected:
        """outputs, types: of the original for the first feeds."""
        work, floats = self.work, self.decisions.floats
        removed = self.removed.removal.dropped_outputs if self.removed is not None else ()
        return Expected(
            work.job.data.fit.first(),
            outputs,
            types,
            {*removed, *gone_outputs(work)},
            any_float=(floats is not None and floats.boundary) or retyped_outputs(work),
            caches=caches_of(self.model.metadata_props),
        )

    def _check(self, files: io.Draft) -> None:
        work, original = self.work, self.work.original
        outputs = original.session(work.job.data.fit.first())
        expected = self._expected(outputs, original.session.types)
        settings, brain = work.job.target.settings(), has_bfloat16(self.model)
        check_saved(files.path, expected, settings, str(files.target), brain=brain)


@dataclass(frozen=True)
class Drafted:
    """A model that was written, checked and measured, but is not yet where it goes."""

    files: io.Draft
    report: Report


def measure(
    result: Compressed, saved: io.Draft, *, verify: bool = True, weigh: bool = False
) -> Report:
    """The report on a written file: everything in it is measured on the file."""
    work, floats = result.work, result.decisions.floats
    report = Report(
        source=work.original.name,
        earlier=work.earlier,
        source_bytes=work.original.size_bytes,
        output=str(saved.target),
        output_bytes=saved.size_bytes,
        recipe=result.decisions.recipe,
        target=result.decisions.target,
        data=work.job.data.fit.description,
        data_kind=work.job.data.fit.kind,
        sites=_rows(result),
        # What the original has of them are codes and scales, where it was quantized.
        skipped=() if result.decisions.restore is not None else result.coded.analysis.skipped,
        rewrites=(*_cleaning(result.decisions), *result.decisions.rewrites),
        untransformed=result.decisions.untransformed,
        kept_float32={} if floats is None else floats.keep,
        fallbacks=result.fallbacks,
        notes=(
            *work.original.notes,
            *result.decisions.notes,
            *_notes(result.decisions),
            *(_refitted(result) if verify else ()),
            *(_idle(result) if verify else ()),
            *(f"not chosen: {why}" for why in work.job.unusable),
        ),
        search=result.search,
        weights=work.job.weights.said,
        bounds=work.job.weights.bounds,
        weighed=weighed(result.goals, work, None),
    )
    if result.pruned is not None:
        report = report.with_measurements(pruning=pruning_report(work, result.pruned))
    decision = result.decision
    if result.removed is not None or isinstance(decision, DropDecision):
        chosen = decision if isinstance(decision, DropDecision) else None
        removal = removal_report(work.model.graph, result.removed, chosen)
        report = report.with_measurements(removal=removal)
    if result.decisions.parallel or isinstance(decision, ParallelDecision):
        made = decision if isinstance(decision, ParallelDecision) else None
        report = report.with_measurements(parallel=parallel_report(result.decisions, made))
    if result.decisions.slice or isinstance(decision, SliceDecision):
        cut = decision if isinstance(decision, SliceDecision) else None
        report = report.with_measurements(slicing=slicing_report(result.decisions, cut))
    if result.decisions.tokens:
        tokens = tokens_report(result.decisions, result.shortened)
        report = report.with_measurements(tokens=tokens)
    if verify:
        report = _verified(result, saved, report, weigh=weigh)
        report = report.with_measurements(notes=(*report.notes, *_still(report.divergence)))
    return report.with_outcomes(_outcomes(result, report))


def _idle(result: Compressed) -> list[str]:
    """Branches that were compressed unseen; nothing where nothing was quantized."""
    work = result.work
    if not result.decisions.quantize or not has_bodies(work.model):
        return []
    return idle_branches(work.model, work.job.data.fit.limited(_FEEDS), statistics_session)


def _notes(plan: Plan) -> tuple[str, ...]:
    """What is left of the formats of a model that was quantized, and which operators stay."""
    if plan.restore is None or not (plan.kept_float or plan.quantize):
        return ()
    notes = [
        f"{name} stays as it was: {reason}" for name, reason in sorted(plan.restore.left.items())
    ]
    if not plan.quantize:
        notes.insert(
            0, f"nothing of the quantization is left: {plan.target} has none of its formats"
        )
    return tuple(notes)


def _refitted(result: Compressed) -> tuple[str, ...]:
    """What a loss means that is measured on the data that layers were fitted to."""
    plan = result.decisions
    prune = plan.prune is not None and plan.prune.compensate == "refit"
    refitted = prune or any(branch.compensate == "linear" for branch in plan.remove)
    if not refitted or not result.work.job.data.fit.given:
        return ()
    return (
        "the loss is measured on the inputs that layers were refitted to; others may lose many "
        "times as much: lwqc verify with other inputs tells",
    )


def _cleaning(plan: Plan) -> tuple[str, ...]:
    if plan.clean is None:
        return ()
    return (*plan.clean.changes, *(f"relaxed {what}" for what in plan.clean.relaxed))


def _verified(result: Compressed, saved: io.Draft, report: Report, *, weigh: bool) -> Report:
    work, told = result.work, result.work.job.report(CHECKING)
    told(1, CHECKS)
    if work.job.room is not None:
        found = checked_in_parts(work, saved, result._expected)
        return report.with_measurements(divergence=found, unmeasured=work.job.unmeasured())
    session = work.job.load(saved.path, label=str(saved.target))
    timed = [
        ShapeLatency(s.label, *latencies([work.original.timed_session, session], s.feeds))
        for s in (work.job.data.serve if work.job.timed else ())
    ]
    told(4, CHECKS)
    answers = answers_of(work, session)
    metric_before = metric_after = metric_drop = None
    if work.job.metric is not None:
        metric_before, metric_after = work.original.metric, work.job.metric(answers)
        metric_drop = work.job.metric.drop(metric_before, metric_after)
    divergence = divergences(result.removed.work if result.removed else work, answers)
    told(5, CHECKS)
    return report.with_measurements(
        weighed=weighed(result.goals, work, saved.path, unasked=weigh),
        divergence=divergence,
        latencies=tuple(timed),
        operators=_operators(work, saved),
        unmeasured=work.job.unmeasured(),
        metric=work.job.metric.name if work.job.metric else None,
        metric_before=metric_before,
        metric_after=metric_after,
        metric_drop=metric_drop,
        flips=flips_of(work, answers),
    )


def _still(found: Mapping[str, Divergence]) -> Iterator[str]:
    """What losses mean of outputs that are always the same."""
    for name, divergence in found.items():
        if divergence.still:
            yield (
                f"output {name} is one and the same number on all of the data: its loss says "
                "nothing of other inputs"
            )


def _operators(work: Version, saved: io.Draft) -> tuple[OperatorRow, ...]:
    """Of models that may be loaded twice more."""
    if work.is_large or not work.job.runs_here:
        return ()
    return tuple(operator_rows(work.original.loadable, saved.path, work.job.data.serve[0].feeds))


def _rows(result: Compressed) -> tuple[SiteRow, ...]:
    plan, forms = result.decisions, result.lowered.forms
    rows = []
    known = result.work.sites
    parts = {part.site: part for _, part in stored_parts(result.model) if part.codes}
    for name, now in result.sites.items():
        entry, site = plan.quantize.get(name), known.get(name, now)  # merged ones are new
        after = entry.size_bytes(now.n, now.k) if entry else _float_bytes(now, plan)
        rows.append(
            SiteRow(
                name=site.name,
                op="+".join(sorted(site.ops)),
                shape=site.shape,
                format=str(entry.weight) if entry else _float_format(name, plan),
                activation=entry.activation if entry else "none",
                kernel=forms.get(site.name, "float"),
                bytes_before=site.float_bytes,
                bytes_after=after,
                reason=plan.kept_float.get(site.name, ""),
                entropy_bytes=_entropy_bytes(now, entry, parts.get(name)),
            )
        )
    return tuple(rows)


def _entropy_bytes(site: Site, entry: SiteEntry | None, codes: PartOfSite | None) -> int | None:
    """Of codes that no kernel reads and that were not learned afterwards."""
    if entry is None or codes is None or not entry.weight.only_stored:
        return None
    return math.ceil(codes.entropy() * site.size / 8)


def _float_format(name: str, plan: Plan) -> str:
    """Sparse weights are only eligible: whether sparse kernels are faster is for the GPU to say."""
    return "float, 2:4 eligible" if name in plan.sparse else "float"


def _float_bytes(site: Site, plan: Plan) -> int:
    """What a weight without a number format takes."""
    return min(site.float_bytes, 2 * site.size) if plan.floats is not None else site.float_bytes


def _outcomes(result: Compressed, report: Report) -> list[Outcome]:
    found = []
    if result.pruned is not None and result.pruned.outcome is not None:
        found.append(result.pruned.outcome)
    for budget, bound in asked(result.goals):
        counted = result.counted.get(budget.option)
        found += budget.outcomes(bound, Reached(result.work, result.model, report, counted))
    if report.drop is not None and result.goals.max_drop is not None:
        found.append(drop_outcome(result.goals.max_drop, report.drop))
    found += output_outcomes(report.divergence, report.bounds)
    if report.flips is not None and result.goals.max_class_drop is not None:
        found.append(class_outcome(result.goals.max_class_drop, report.flips.worst))
    return found
