"""What every model's module shares: the command line, sessions for metrics, lean export."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

Feeds = dict[str, NDArray[Any]]
Run = Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class OpenModel:
    """A function from feeds to outputs by name, backed by an ONNX Runtime session."""

    session: ort.InferenceSession
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the model on one batch."""
        return dict(zip(self.outputs, self.session.run(None, dict(feeds)), strict=True))


def open_run(path: str | Path) -> OpenModel:
    """Open a file on the CPU."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return OpenModel(
        session,
        tuple(i.name for i in session.get_inputs()),
        tuple(o.name for o in session.get_outputs()),
    )


def export(
    module: Any,
    examples: tuple[Any, ...],
    path: str | Path,
    *,
    inputs: list[str],
    outputs: list[str],
    dynamic_shapes: Any,
    untrained: bool = False,
) -> None:
    """Export a torch module with the modern exporter, without its per-node debugging notes.

    untrained: the file is for training, so batch normalisation stays beside its convolution.
    """
    import onnx_ir as ir
    import torch
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    module.eval()
    program = torch.onnx.export(
        module,
        examples,
        dynamo=True,
        opset_version=20,
        input_names=inputs,
        output_names=outputs,
        dynamic_shapes=dynamic_shapes,
        verbose=False,
        optimize=not untrained,
    )
    if program is None:
        raise RuntimeError("the exporter returned no program")
    if untrained:
        _fold_sizes(program.model)
    ClearMetadataAndDocStringPass()(program.model)
    _restore_names(program.model, module)
    ir.save(program.model, path)


def _fold_sizes(model: Any) -> None:
    """Compute what depends on no input; the exporter's own clean-up folds normalisations too."""
    from onnxscript.optimizer import fold_constants, remove_unused_nodes

    fold_constants(model)
    remove_unused_nodes(model)


def _restore_names(model: Any, module: Any) -> None:
    """Name weights that the exporter transposed (and so renamed `val_*`) as the module does."""
    transposed = {
        p.detach().numpy().T.tobytes(): name
        for name, p in module.named_parameters()
        if p.dim() == 2
    }
    for value in list(model.graph.initializers.values()):
        name = transposed.get(value.const_value.tobytes())
        if name and name not in model.graph.initializers:
            value.name = name


def export_legacy(
    module: Any,
    examples: tuple[Any, ...],
    path: str | Path,
    *,
    inputs: list[str],
    outputs: list[str],
    dynamic_axes: Mapping[str, Mapping[int, str]],
) -> None:
    """Export with torch's older, tracing exporter at opset 17: files in the wild look like this."""
    import torch

    module.eval()
    torch.onnx.export(
        module,
        examples,
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=inputs,
        output_names=outputs,
        dynamic_axes=dynamic_axes,
    )


def command(
    name: str,
    evaluate: Callable[[OpenModel], Mapping[str, float]],
    train: Callable[[Path, float], None],
    default: Path,
) -> None:
    """`python -m models.NAME --train [--out FILE] [--minutes M]` or `--evaluate FILE`."""
    parser = argparse.ArgumentParser(prog=f"python -m models.{name}")
    parser.add_argument("--train", action="store_true", help="train from scratch and export")
    parser.add_argument("--out", type=Path, default=default, help="where --train writes")
    parser.add_argument("--minutes", type=float, default=0.0, help="training time; 0: the default")
    parser.add_argument("--evaluate", type=Path, metavar="FILE", help="print the metric of a file")
    arguments = parser.parse_args()
    if arguments.train:
        start = time.perf_counter()
        train(arguments.out, arguments.minutes)
        print(f"trained in {(time.perf_counter() - start) / 60:.1f} minutes: {arguments.out}")
    if arguments.evaluate or arguments.train:
        for key, value in evaluate(open_run(arguments.evaluate or arguments.out)).items():
            print(f"{key} {value:.4f}")
    else:
        parser.print_help()


def batches(feeds: Feeds, size: int) -> list[Feeds]:
    """Cut arrays along axis 0 into feeds of at most `size`."""
    total = len(next(iter(feeds.values())))
    return [{k: v[i : i + size] for k, v in feeds.items()} for i in range(0, total, size)]


def top1(run: Run, feeds: list[Feeds], labels: NDArray[np.integer[Any]]) -> float:
    """Share of samples whose largest logit is the label."""
    predicted = np.concatenate([run(f)["logits"].argmax(-1) for f in feeds])
    return float(np.mean(predicted == labels))
