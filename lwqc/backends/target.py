"""What a target is: the rules and actions that turn a plan into a graph for one runtime."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Literal, Protocol, get_args

import onnx
import onnx_ir as ir

from lwqc.errors import InputError
from lwqc.graph.integer_flow import IntegerFlow
from lwqc.graph.sites import Site, find_sites
from lwqc.passes.convert_floats import convert_floats
from lwqc.passes.encoded_weights import EncodedWeights
from lwqc.passes.pipeline import Pipeline
from lwqc.passes.side_branch import KeepTogether
from lwqc.plans.plan import Plan, SiteEntry
from lwqc.runtime.session import Session, SessionSettings

FloatType = Literal["float32", "float16", "bfloat16"]
Form = Literal[
    "MatMulNBits",  # low-bit weights, float or per-block int8 activations
    "MatMulBnb4",  # NF4 and FP4 weights, float activations
    "GatherBlockQuantized",
    "MatMulInteger",  # 8-bit weights and activations
    "DynamicQuantizeLSTM",  # the same in each step of an LSTM
    "QLinearConv",
    "QuantizeLinear",  # explicit quantization of inputs and weights, which the runtime fuses
    "DequantizeLinear",  # low-bit weights that the runtime unpacks in its kernel
    "UnpackedInteger",  # 4 bits in the file, MatMulInteger at run time
    "Folded",  # low-bit in the file, float kernel at run time
]
_FORMS = frozenset(get_args(Form))
_CHOICES = ("residual-sum", "sizes-on-device")  # passes that `Plan.rewrites` may name


@dataclass(frozen=True)
class Lowered:
    """A model ready for a runtime.

    forms: site name -> how it was lowered.
    """

    model: ir.Model
    forms: Mapping[str, Form]


class Target(Protocol):
    """Everything that differs between runtimes.

    floats: the float type that its graphs compute in. opset: version of the default operator set
    from which on `form` refuses nothing for the version; older models are raised to it. fuses:
    whether it has kernels for fused attention. rewrites: exact graph rewrites that its plans ask
    for. speed: forms of activations worth trying where speed is wanted, the most promising first.
    width_multiple: of channels that its kernels like. profiles: whether it builds engines for a
    range of sizes. sparse: whether 2:4 sparse weights can be of use.
    codes_caches: whether keys and values in int8 run as they should. groups_experts: whether tokens
    had better be grouped by expert, which takes a Split at sizes that are computed.
    """

    floats: FloatType
    opset: int
    fuses: bool
    rewrites: tuple[str, ...]
    speed: tuple[Literal["none", "dynamic", "static"], ...]
    width_multiple: int
    profiles: bool
    sparse: bool
    codes_caches: bool
    groups_experts: bool

    @property
    def name(self) -> str:
        """As users give it, and as plans hold it."""

    @property
    def read_as_run(self) -> bool:
        """Whether a session that runs a graph here shows the kernels that the target has."""

    @property
    def integer_bits(self) -> Literal[7, 8]:
        """Bits of weights that meet 8-bit activations."""

    def form(self, site: Site, entry: SiteEntry, opset: int) -> Form | str:
        """How the entry would run here, or the reason why it cannot, as a plain sentence."""

    def refuses(self, form: str) -> bool:
        """Whether what `form` returned is a reason rather than a form."""

    def candidates(self, site: Site, opset: int, *, tiny: bool = False) -> Sequence[SiteEntry]:
        """Legal weight-only entries of a site, for the size allocators."""

    def flow(self, graph: ir.Graph, sites: Collection[Site]) -> IntegerFlow:
        """Tensors to quantize for sites with static activations, and sites that cannot be."""

    def lacks_kernel(self, node: ir.Node, dtype: ir.DataType, opset: int) -> str:
        """Why a float32 node cannot be had in another float type, or ""."""

    def lower(self, model: ir.Model, plan: Plan, weights: EncodedWeights) -> Lowered:
        """Execute the plan on a copy of the model."""

    def misplaced(
        self, lowered: Lowered, optimized: onnx.GraphProto | None = None
    ) -> dict[str, str]:
        """Sites for which the runtime did not choose the expected kernel, with what it chose.

        optimized: the graph that it runs, where that is known already.
        """

    def violations(self, model: ir.Model) -> list[str]:
        """What the runtime would refuse, or not run where it should; one line each."""

    def options(self, model: ir.Model, plan: Plan, stem: str) -> dict[str, str]:
        """Provider options to be stored beside a model; none where the defaults do."""

    def unmeasured(self) -> str:
        """Why speed cannot be measured on this machine, or ""."""

    def settings(self) -> SessionSettings:
        """How ONNX Runtime runs its graphs here: on the device, or else as a reference."""

    def session(self, model: ir.Model | str | PathLike[str], label: str) -> Session:
        """A graph as it is run here. Raises SessionError."""


def is_reason(form: str) -> bool:
    """Whether what `Target.form` returned is a reason rather than a form."""
    return form not in _FORMS


def legal_forms(target: Target, model: ir.Model, plan: Plan) -> dict[str, Form]:
    """The form of every planned site. Raises InputError where the plan asks the impossible."""
    sites = {s.name: s for s in find_sites(model).sites}
    opset = model.opset_imports.get("", 1)
    forms: dict[str, Form] = {}
    for name, entry in plan.quantize.items():
        form = target.form(sites[name], entry, opset)
        if is_reason(form):
            raise illegal(sites[name], form)
        forms[name] = form  # type: ignore[assignment]
    return forms


def entries_of(plan: Plan, forms: Mapping[str, Form], *kinds: Form) -> dict[str, SiteEntry]:
    """The plan's entries with one of these forms."""
    return {name: entry for name, entry in plan.quantize.items() if forms[name] in kinds}


def lower_pipeline(target: str, plan: Plan) -> Pipeline:
    """The passes that bring a plan's formats to a target, those that need no weights ready to run.

    Of passes that are a choice of the plan, `rewrites` and `floats`, only the chosen ones are left.
    """
    given: dict[str, ir.passes.PassBase | None] = {
        name: None for name in _CHOICES if name not in plan.rewrites
    }
    given["convert-floats"] = convert_floats(plan.floats) if plan.floats is not None else None
    given["keep-together"] = KeepTogether(tuple(n for n, e in plan.quantize.items() if e.has_side))
    return Pipeline.parse(f"lower-{target}").bound(given)


def illegal(site: Site, reason: str) -> InputError:
    """The error for a plan that asks for something its target cannot do."""
    return InputError(f"{site.name} ({site.op} {list(site.shape)}): {reason}")
