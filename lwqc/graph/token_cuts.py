"""Places in a residual stream behind which a model can go on with fewer of its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from lwqc.graph.attention_scores import AttentionScores, scores_of
from lwqc.graph.axes import Factor, Kind, is_free
from lwqc.graph.axis_analysis import AxisAnalysis, Use, analyse_axes
from lwqc.graph.branch_kinds import TypedBranch, branch_tree
from lwqc.graph.sampled import Sampled
from lwqc.graph.shapes import declared_shapes
from lwqc.model.refusal import Refusal

TOKENS = 1  # the axis of a stream [batch, tokens, features]


@dataclass(frozen=True, eq=False)
class TokenCut:
    """A residual sum of self-attention, behind which tokens may go.

    name: of the branch. stream: the sum [batch, tokens, features]. scores: of the attention.
    tokens: how many there are. always: how many of them, the first ones, the model reads by their
    place (a class token), which stay. free: the others, as indices that may go from all that is
    computed behind. analysis: of the model in which the tokens of the sum have nothing to do with
    those before it.
    """

    name: str
    stream: ir.Value
    scores: AttentionScores
    tokens: int
    always: int
    free: Factor
    analysis: AxisAnalysis


@dataclass(frozen=True)
class TokenCuts:
    """Cuts in graph order, and attention behind which no token can go, with the reason."""

    cuts: tuple[TokenCut, ...]
    refused: tuple[Refusal, ...]


def find_token_cuts(model: ir.Model) -> TokenCuts:
    """Where tokens can go.

    The axis algebra says what removing them would change, once for each residual sum behind which
    it takes the tokens for indices of their own: where any are given by a stored tensor, laid out
    as an image, told apart by their place or asked for at the outputs, none can go.
    """
    shapes = declared_shapes(model)[0]
    cuts: list[TokenCut] = []
    refused: list[Refusal] = []
    for branch in branch_tree(model.graph).branches:
        if branch.kind == "attention" and not branch.cross:
            found = _cut(model, branch, shapes)
            if isinstance(found, TokenCut):
                cuts.append(found)
            else:
                refused.append(Refusal(branch.name, found))
    return TokenCuts(tuple(cuts), tuple(refused))


def find_token_cut(model: ir.Model, name: str) -> TokenCut | str:
    """The cut behind one branch, or why there is none."""
    branches = {b.name: b for b in branch_tree(model.graph).branches}
    branch = branches.get(name)
    if branch is None:
        return "is no branch; see lwqc inspect --branches"
    if branch.kind != "attention" or branch.cross:
        return "is no self-attention"
    return _cut(model, branch, declared_shapes(model)[0])


def _cut(model: ir.Model, branch: TypedBranch, shapes: Mapping[str, Sampled]) -> TokenCut | str:
    stream = branch.branch.add.outputs[0]
    sizes = shapes.get(stream.name or "")
    if sizes is None or sizes.rank != 3:
        return f"its stream {stream.shape} is no [batch, tokens, features]"
    if not sizes.static(TOKENS):
        return "its number of tokens is not fixed"
    scores = scores_of(model.graph, branch.branch, shapes)
    if isinstance(scores, str):
        return scores
    analysis = analyse_axes(model, shapes, anew={stream: TOKENS})
    tokens = analysis.dims[stream][TOKENS].find()
    parts = _parts(tokens)
    if isinstance(parts, str):
        return parts
    always, free = parts
    if stored := _given_by_token(analysis, free):
        return f"{stored} has something of its own for each token"
    if not _of_stream(model, branch.branch.stream, scores, shapes):
        return "its queries and keys are not the tokens of its stream"
    return TokenCut(branch.name, stream, scores, tokens.size, always, free, analysis)


def _of_stream(
    model: ir.Model, stream: ir.Value, scores: AttentionScores, shapes: Mapping[str, Sampled]
) -> bool:
    """Whether rows and columns of the scores are the tokens of a stream, in their order."""
    analysis = analyse_axes(model, shapes, anew={stream: TOKENS})
    tokens = _leaves(analysis, stream, TOKENS)
    here = (_leaves(analysis, *place) for place in (scores.query_tokens, scores.key_tokens))
    return bool(tokens) and all(leaves == tokens for leaves in here)


def _leaves(analysis: AxisAnalysis, value: ir.Value, axis: int) -> list[Factor]:
    """The indices along an axis, in parts; none where they are not known or not told apart."""
    dims = analysis.dims.get(value)
    leaves = [] if dims is None else [leaf.find() for leaf in dims[axis].leaves()]
    return leaves if any(map(is_free, leaves)) else []


def _parts(tokens: Factor) -> tuple[int, Factor] | str:
    """How many tokens at the start stay, and the others; or why all of them do."""
    terms = [t.find() for t in (tokens.kids if tokens.kind is Kind.SUM else (tokens,))]
    frozen = [t for t in terms if t.frozen]
    free = [t for t in terms if not t.frozen]
    if not free:
        return frozen[0].frozen
    if any(t.kids for t in free):
        return f"tokens are laid out as {tokens!r}"
    if len(free) > 1 or terms[-1] is not free[0]:
        return f"tokens are told apart by their place: {tokens!r}"
    return tokens.size - free[0].size, free[0]


def _given_by_token(analysis: AxisAnalysis, tokens: Factor) -> str:
    """The first stored tensor that has something of its own for each token, or ""."""
    for key, dims in analysis.stored.items():
        if any(leaf.find() is tokens for dim in dims for leaf in dim.leaves()):
            return (key.value if isinstance(key, Use) else key).name or ""
    return ""
