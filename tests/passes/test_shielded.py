"""Rules of the optimizer do not reach what they would get wrong."""

import numpy as np
import onnx_ir as ir
import pytest

from lwqc.passes.fold_constants import FoldConstants
from lwqc.runtime.session import Session

CHAINS = {
    "apart": "c = Clip(x, low, middle) y = Clip(c, high, most)",
    "below a relu": "c = Clip(x, least, low) y = Relu(c)",
    "above a relu": "c = Relu(x) y = Clip(c, least, low)",
    "nested": "c = Clip(x, low, most) y = Clip(c, low, middle)",
}


@pytest.mark.parametrize("chain", CHAINS)
def test_limits_on_limited_values_stay_as_they_are(chain):
    """onnxscript 0.7.2 makes 0.5 of Clip to [-1, 0.5] and then to [0.7, 2]; it is 0.7."""
    body = CHAINS[chain].replace(") ", ")\n")
    model = ir.from_onnx_text(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[7] x) => (float[7] y)
        <float least = {{-2.0}}, float low = {{-1.0}}, float middle = {{0.5}},
         float high = {{0.7}}, float most = {{2.0}}> {{
            {body}
        }}"""
    )
    given = {"x": np.linspace(-3, 3, 7).astype(np.float32)}
    before = Session(model.clone())(given)["y"]
    FoldConstants()(model)
    np.testing.assert_array_equal(Session(model)(given)["y"], before)
