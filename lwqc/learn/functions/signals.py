"""Windows and transforms of signals."""

from __future__ import annotations

import torch

from lwqc.learn.operation import Call, Operation, Table, Tensor

_TERMS = {
    "HannWindow": (0.5, 0.5, 0.0),
    "HammingWindow": (25 / 46, 21 / 46, 0.0),
    "BlackmanWindow": (0.42, 0.5, 0.08),
}


def _window(name: str) -> Operation:
    a, b, c = _TERMS[name]

    def run(call: Call, size: Tensor) -> Tensor:
        count = int(size.item())
        whole = count if call.get("periodic", 1) else count - 1
        at = torch.arange(count, dtype=torch.float64) * (2 * torch.pi / max(whole, 1))
        made = a - b * torch.cos(at) + c * torch.cos(2 * at)
        return made.to(call.get("output_datatype", torch.float32))

    return Operation(run, numbers=(0,))


def _complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x[..., 0]


def _dft(call: Call, x: Tensor, length: Tensor | None = None, axis: Tensor | None = None) -> Tensor:
    """Real and imaginary parts along the last axis, which negative axes count too."""
    usual = call.get("axis", 1) if call.opset < 20 else -2
    along = (usual if axis is None else int(axis.item())) % x.ndim
    size = None if length is None else int(length.item())
    value = _complex(x)
    if call.get("inverse", 0):
        made = torch.fft.ifft(value, size, along)
    elif call.get("onesided", 0):
        made = torch.fft.rfft(value, size, along)
    else:
        made = torch.fft.fft(value, size, along)
    return torch.view_as_real(made.resolve_conj())


def _stft(
    call: Call,
    x: Tensor,
    step: Tensor,
    window: Tensor | None = None,
    length: Tensor | None = None,
) -> Tensor:
    """Frames [B, frames, bins, 2]."""
    size = int(length.item()) if length is not None else window.shape[0]  # type: ignore[union-attr]
    value = _complex(x) if x.ndim == 3 else x
    frames = value.unfold(-1, size, int(step.item()))
    frames = frames if window is None else frames * window
    half = call.get("onesided", 1)
    made = torch.fft.rfft(frames) if half else torch.fft.fft(frames)
    return torch.view_as_real(made)


TABLE: Table = {
    **{("", name): _window(name) for name in _TERMS},
    ("", "DFT"): Operation(_dft, numbers=(1, 2)),
    ("", "STFT"): Operation(_stft, numbers=(1, 3), fixed=(2,)),
}
