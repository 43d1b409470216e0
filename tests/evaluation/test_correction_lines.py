"""What is said of the bounds that an energy lowers."""

import math

from edlm.evaluation import correction
from edlm.likelihood.estimates import Estimate


def test_each_bound_has_its_line_and_its_remark() -> None:
    remarks = correction.remarks({"num_steps": 8, "num_particles": 4})
    with_energy = "8 steps, 4 particles"
    assert remarks == {
        "plain_bound": "8 steps, no energy",
        "bound": with_energy,
        "gain": "their difference, text by text",
    }
    bits = math.log(2)
    found = {"plain_bound": Estimate(2.0 * bits, 0.25 * bits, 9), "gain": Estimate(-bits, 0.0, 9)}
    assert correction.bits_lines(found, "byte", remarks) == [
        ("plain bound", "2.0000 ± 0.2500", "bits/byte, 8 steps, no energy"),
        ("gain", "-1.0000 ± 0.0000", "bits/byte, their difference, text by text"),
    ]
