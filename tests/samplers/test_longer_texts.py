"""Texts that are longer than a pipeline: filled window by window, by noise of their own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from specifications import Spec
from torch import Tensor

import edlm
from edlm import contracts


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(1, 3), st.integers(0, 6), st.sampled_from([None, "sir"]))
def test_a_longer_text_is_filled_window_by_window(seed: int, stride: int, more: int, selection: str | None):
    pipeline = Spec(seed=seed % 5, selection=selection, length=4, num_steps=3).pipeline()
    out = edlm.extend(pipeline, 4 + more, stride, 3, seed=seed)
    assert out["tokens"].shape == (3, 4 + more)
    assert (out["tokens"] != 3).all()
    assert torch.equal(out["tokens"][:, :4], edlm.sample(pipeline, 3, seed=seed)["tokens"])
    assert torch.equal(out["info", "denoiser_passes"], (out["info", "t"] > 0).sum(1))
    alone = edlm.extend(pipeline, 4 + more, stride, 1, seed=seed, first_row=2)
    assert torch.equal(alone["tokens"][0], out["tokens"][2])


def test_what_is_given_anywhere_stays_and_a_callback_sees_the_whole_text():
    states: list[Tensor] = []
    prompt = torch.tensor([3, 1, 3, 3, 3, 3, 0, 3, 2])
    pipeline = Spec(length=4, num_steps=None).pipeline()
    out = edlm.extend(pipeline, 9, 2, 2, prompt=prompt, callback=lambda state, _: states.append(state[contracts.X_T]))
    assert (out["tokens"][:, [1, 6, 8]] == torch.tensor([1, 0, 2])).all()
    assert [int((state == 3).sum()) for state in states] == [10, 8, 6, 4, 2, 0]
    assert torch.equal(states[-1], out["tokens"])


def test_windows_do_not_share_noise():
    draws: list[Tensor] = []
    pipeline = Spec(selection=None, length=4, num_steps=1).pipeline()
    pipeline.kernel.step.module["propose"].register_forward_pre_hook(
        lambda _, inputs: draws.append(inputs[0]["proposal_noise"])
    )
    edlm.extend(pipeline, 10, 2, 2)
    drawn = torch.cat([noise.flatten() for noise in draws])
    assert len(drawn.unique()) == len(drawn) == 20


@pytest.mark.parametrize(
    ("length", "stride", "message"),
    [
        (9, 4, r"stride = 4 must lie in 1\.\.3"),
        (9, 0, "stride = 0"),
        (3, 2, "length = 3 must be at least that of the pipeline, 4"),
    ],
)
def test_windows_that_do_not_fit_are_refused(length: int, stride: int, message: str):
    with pytest.raises(ValueError, match=message):
        edlm.extend(Spec(length=4).pipeline(), length, stride)
