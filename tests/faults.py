"""Faults to plant in a copy of the package, each with the test that must catch it; see `test_planted_faults.py`."""

import faults_blocks
import faults_conditional
import faults_data
import faults_distillation
import faults_drafting
import faults_files
import faults_findings
import faults_harness
import faults_hub
import faults_in_order
import faults_likelihoods
import faults_maths
import faults_networks
import faults_numbers
import faults_over_large
import faults_plans
import faults_published
import faults_recipes
import faults_remasking
import faults_sampling
import faults_training

PUBLISHED = faults_published.FAULTS
OWN = [
    *faults_maths.FAULTS,
    *faults_networks.FAULTS,
    *faults_sampling.FAULTS,
    *faults_remasking.FAULTS,
    *faults_plans.FAULTS,
    *faults_distillation.FAULTS,
    *faults_in_order.FAULTS,
    *faults_drafting.FAULTS,
    *faults_files.FAULTS,
    *faults_recipes.FAULTS,
    *faults_numbers.FAULTS,
    *faults_data.FAULTS,
    *faults_training.FAULTS,
    *faults_findings.FAULTS,
    *faults_likelihoods.FAULTS,
    *faults_conditional.FAULTS,
    *faults_hub.FAULTS,
    *faults_harness.FAULTS,
    *faults_blocks.FAULTS,
    *faults_over_large.FAULTS,
]


def table() -> str:
    """The faults and the tests that catch them, as `docs/contributing/testing.md` shows them."""
    rows = [f"| {fault.name} | `{fault.caught_by.removeprefix('tests/')}` |" for fault in (*PUBLISHED, *OWN)]
    return "\n".join(["| planted fault | caught by |", "|---|---|", *rows])


if __name__ == "__main__":
    print(table())
