"""Where the windows of convolutions and poolings lie."""

from __future__ import annotations

from dataclasses import dataclass

from lwqc.learn.operation import Call


@dataclass(frozen=True)
class Windows:
    """Along each spatial axis: size, stride, dilation, padding before and after; windows there are.

    beyond: how far the last window reaches over the padded end, as `ceil_mode` allows.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: list[int]
    after: list[int]
    beyond: list[int]

    @property
    def symmetric(self) -> bool:
        """Whether padding is the same on both sides."""
        return self.before == self.after and not any(self.beyond)

    @property
    def flat(self) -> list[int]:
        """Padding as `torch.nn.functional.pad` takes it: of the last axis first."""
        sides = zip(self.before, self.after, strict=True)
        return [n for side in reversed(list(sides)) for n in side]

    @property
    def flat_beyond(self) -> list[int]:
        """What `ceil_mode` adds, in the same form."""
        return [n for more in reversed(self.beyond) for n in (0, more)]


def windows(call: Call, sizes: list[int], kernel: list[int]) -> Windows:
    """The windows of a node over an input of these spatial sizes."""
    rank = len(sizes)
    strides = list(call.get("strides") or [1] * rank)
    dilations = list(call.get("dilations") or [1] * rank)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = list(call.get("pads") or [0] * (2 * rank))
    before, after = pads[:rank], pads[rank:]
    auto = call.get("auto_pad", "NOTSET")
    if auto == "VALID":
        before, after = [0] * rank, [0] * rank
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        total = [
            max((-(-size // stride) - 1) * stride + over - size, 0)
            for size, stride, over in zip(sizes, strides, reach, strict=True)
        ]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        before, after = (small, large) if auto == "SAME_UPPER" else (large, small)
    beyond = [0] * rank
    if call.get("ceil_mode", 0) and auto in ("NOTSET", "VALID"):
        for i in range(rank):
            padded = sizes[i] + before[i] + after[i]
            count = -(-(padded - reach[i]) // strides[i]) + 1
            if (count - 1) * strides[i] >= sizes[i] + before[i]:
                count -= 1  # a window that would begin in the padding is left out
            beyond[i] = max((count - 1) * strides[i] + reach[i] - padded, 0)
    return Windows(kernel, strides, dilations, before, after, beyond)
