#!/usr/bin/env bash
# torch.optim.Muon computes its steps in bfloat16, of parameters in float64 and on processors too.
#
# Versions: torch==2.13.0, numpy==2.4.6 (Linux x86-64, the build for processors)
# One would guess: a step of a float64 or float32 parameter is computed in that type, as those of the other
#   optimizers are; 16 bits are what the user asks for, by autocast or by the parameter's type.
# What happens: the Newton-Schulz iterations run in bfloat16 whatever the parameter is. Each number of a step is
#   one of 8 bits of mantissa, and the step is 1 to 10 % away from what the same iterations in float64 give.
# Why it matters: small fits on a processor are what float32 is taken for there. Where it has no instructions for
#   bfloat16, as most x86 with AVX2 alone, the products are emulated: for a matrix of 256 x 768 on one thread
#   of an AMD EPYC with AVX2 a step took 1.3 s, the iterations in float32 0.13 s and in float64 0.25 s, a step of
#   Adam 0.003 s (times are not checked here).
#
# Output seen:
#   Adam float32: the step has more digits than bfloat16
#   Muon float32: the step is in bfloat16, 1 to 10 % away from iterations in float64
#   Adam float64: the step has more digits than bfloat16
#   Muon float64: the step is in bfloat16, 1 to 10 % away from iterations in float64
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - >"$folder/found" <<'EOF'
import torch


def iterated(gradient):
    """Five Newton-Schulz iterations with the coefficients of the optimizer, in float64."""
    x = gradient.double()
    x = x / x.norm()
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


for kind in (torch.float32, torch.float64):
    gradient = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)).to(kind)
    wanted = iterated(gradient)
    for name in ("Adam", "Muon"):
        parameter = torch.nn.Parameter(torch.zeros(32, 64, dtype=kind))
        parameter.grad = gradient.clone()
        if name == "Adam":
            torch.optim.Adam([parameter], lr=1.0).step()
        else:
            torch.optim.Muon([parameter], lr=1.0, weight_decay=0.0, nesterov=False).step()
        step = -parameter.detach()
        rounded = torch.equal(step, step.bfloat16().to(kind))
        told = "the step has more digits than bfloat16"
        if rounded:
            away = float((step.double() - wanted).norm() / wanted.norm())
            told = "the step is in bfloat16"
            if 0.01 < away < 0.1:
                told += ", 1 to 10 % away from iterations in float64"
        print(f"{name} {str(kind).removeprefix('torch.')}: {told}")
EOF
cat "$folder/found"
diff "$folder/found" - <<'EOF'
Adam float32: the step has more digits than bfloat16
Muon float32: the step is in bfloat16, 1 to 10 % away from iterations in float64
Adam float64: the step has more digits than bfloat16
Muon float64: the step is in bfloat16, 1 to 10 % away from iterations in float64
EOF
