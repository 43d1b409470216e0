"""Networks of the published code and ours with the same weights: the same activations, laws and gradients."""

import pytest
import torch
from published_numbers import (
    LOG_LINEAR,
    by_sigma,
    cases,
    close,
    dtypes,
    golden,
    gradients_agree,
    loader,
    logits_tolerance,
    loss_tolerance,
    masked_rows,
    told_tolerance,
)
from tensordict import TensorDict

import edlm
from edlm import contracts
from edlm.models import autoregressive
from edlm.objectives import losses
from edlm.weights import published


@cases
@pytest.mark.parametrize(("file", "prefix"), [("dit", "sd."), ("ar", "sd."), ("ebm_bi", "ebm."), ("ebm_ar", "ar.")])
def test_published_weights_survive_the_round_trip(case, file, prefix):
    numbers = golden(f"{file}_{case}")
    state = numbers.part(prefix)
    back = published.export(loader(state)(state, numbers.config["model"]["heads"]))
    assert back.keys() == state.keys() | {"rotary_emb.inv_freq"}
    assert all(torch.equal(back[name], value) for name, value in state.items())


@cases
@dtypes
def test_denoiser_logits(case, dtype):
    numbers = golden(f"dit_{case}")
    network = numbers.network("sd.", dtype)
    x, sigma = numbers["x"], numbers["sigma"].to(dtype)
    with torch.no_grad():
        conditioned, alone = network.head(network(x, sigma)), network.head(network(x))
        zero = network.head(network(x, torch.zeros_like(sigma)))
    close(conditioned, numbers.at("logits", dtype), told_tolerance(dtype))
    close(alone, numbers.at("logits_sigma0", dtype), logits_tolerance(dtype))
    close(zero, numbers.at("logits_sigma0", dtype), logits_tolerance(dtype))


@cases
def test_denoiser_blocks(case):
    numbers = golden(f"dit_{case}")
    network = numbers.network("sd.")
    seen = {}
    for i, block in enumerate(network.trunk.blocks):
        block.register_forward_hook(lambda _module, _input, output, i=i: seen.update({i: output[0]}))
    with torch.no_grad():
        network(numbers["x"], numbers["sigma"].double())
    for i in range(len(network.trunk.blocks)):
        close(seen[i], numbers[f"act.block{i}_f64"], 1e-8)


@cases
@dtypes
@pytest.mark.parametrize("conditioned", [True, False])
def test_subs_log_probabilities_at_masked_positions(case, dtype, conditioned):
    numbers = golden(f"dit_{case}")
    x, positions = numbers["x"], masked_rows(numbers, numbers["x"])
    denoiser = edlm.denoisers.subs(numbers.network("sd.", dtype), numbers.mask_id)
    if conditioned:  # built by hand: sigma is given per row here and not as a time
        denoiser.module.schedule = by_sigma(numbers["sigma"].to(dtype))
    with torch.no_grad():
        hidden = denoiser(
            TensorDict({contracts.X_T: x, contracts.T: torch.zeros(len(x)), contracts.POSITIONS: positions})
        )[contracts.HIDDEN]
        log_p = denoiser.logits(hidden).log_softmax(-1)
    expected = numbers.at("subs_logp" if conditioned else "subs_logp_tc0", dtype).flatten(0, 1)[positions]
    tokens = torch.arange(log_p.shape[1]) != numbers.mask_id
    tolerance = told_tolerance if conditioned else logits_tolerance
    close(log_p[:, tokens], expected[:, tokens], tolerance(dtype))
    assert (log_p[:, numbers.mask_id] == -torch.inf).all()  # published: about -1e6
    assert (expected[:, numbers.mask_id] < -1e5).all()


@cases
@dtypes
def test_d3pm_and_sedd_parameterisations(case, dtype):
    numbers = golden(f"dit_{case}")
    network, x = numbers.network("sd.", dtype), numbers["x"]
    positions = masked_rows(numbers, x)
    sigma = numbers["sigma"].to(dtype)
    with torch.no_grad():
        hidden = network(x, sigma).flatten(0, 1)[positions]
        log_p = edlm.denoisers.d3pm(network, numbers.mask_id, LOG_LINEAR).log_prob(hidden)
        alpha = (-sigma).exp().unsqueeze(1).expand(x.shape).flatten()[positions]
        log_score = edlm.denoisers.sedd(network, numbers.mask_id, LOG_LINEAR).log_score(hidden, alpha)
    close(log_p, numbers.at("d3pm_logp", dtype).flatten(0, 1)[positions], told_tolerance(dtype))
    close(log_score, numbers.at("sedd_logscore", dtype).flatten(0, 1)[positions], told_tolerance(dtype))


@cases
@dtypes
def test_autoregressive_log_probabilities(case, dtype):
    numbers = golden(f"ar_{case}")
    network, x = numbers.network("sd.", dtype), numbers["x"]
    tokens = torch.arange(network.head.out_features) != numbers.mask_id
    with torch.no_grad():
        log_p = network.head(network(x))[..., tokens].log_softmax(-1)
        ours = autoregressive.ar_log_prob(network, x, numbers.mask_id, bos_id=None)
    close(log_p, numbers.at("logp", dtype)[..., tokens], logits_tolerance(dtype))
    assert (ours[:, 0] == 0).all()  # the first token is given
    valid = numbers["attention_mask"][:, 1:]
    close(-ours[:, 1:] * valid, numbers.at("nlls", dtype), loss_tolerance(dtype))


@cases
def test_autoregressive_loss_and_gradients(case):
    numbers = golden(f"ar_{case}")
    network = numbers.network("sd.")
    log_prob = (
        autoregressive.ar_log_prob(network, numbers["x"], numbers.mask_id, bos_id=None) * numbers["attention_mask"]
    )
    loss = losses.next_token(log_prob).sum() / numbers["token_mask"].sum()
    loss.backward()
    close(loss, numbers["loss_f64"], 1e-6)
    gradients_agree(network, numbers.part("grad."))


@cases
def test_autoregressive_samples_are_what_the_log_probabilities_say(case):
    numbers = golden(f"ar_{case}")
    network, tokens = numbers.network("sd."), numbers["sample_tokens"]
    with torch.no_grad():
        logits = network.head(network(tokens[:, :-1]))
    logits[..., numbers.mask_id] = -torch.inf
    assert (tokens[:, 0] == numbers.config["bos"]).all()
    assert torch.equal((logits.log_softmax(-1) + numbers["sample_gumbel"]).argmax(-1), tokens[:, 1:])
