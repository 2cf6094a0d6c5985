"""What tests expect that depends on the processor they run on."""

from lwqc.backends.cpu_rules import probed

EXACT = probed().weight_bits == 8  # whether sums of products of 8-bit numbers are exact here
WHOLE = probed().weight_bits  # bits of weights that meet 8-bit activations
INTEGER = f"w{WHOLE}c"  # the format of weights that meet 8-bit activations
LARGEST = 127 if EXACT else 63  # code of such a weight
NATIVE = probed().name  # the target of files whose 8-bit products are exact here
