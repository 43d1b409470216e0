"""A model class for `lm_eval`, the harness that most published figures come from; importing it registers `edlm`.

It needs `pip install 'edlm-torch[harness]'`. Likelihoods are exact where they are known, and a bound elsewhere. The
results say which, under "config".
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import lm_eval.__main__ as command_line
import torch
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from edlm.evaluation import continuations
from edlm.evaluation.continuations import Answer, Reading, Wanted
from edlm.weights import hub

NAME = "edlm"
_READING = tuple(field.name for field in fields(Reading) if field.name not in ("model", "batch_size"))
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens")  # names of one thing
_DRAWN = ("until", "temperature", "top_p", "do_sample", *_LENGTHS)


@register_model(NAME)
class Edlm(LM):
    """A denoiser or an autoregressive model, as `lm_eval` asks one; see `continuations.Reading` for the options."""

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 8,
        device: str | None = None,
        max_batch_size: int | None = None,
        length: int | None = None,
        revision: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        unknown = options.keys() - set(_READING)
        if unknown:
            known = ", ".join(("pretrained", "length", "revision", *_READING))
            raise ValueError(f"model_args: {', '.join(sorted(unknown))} is not known; known are {known}")
        if not str(batch_size).isdecimal():
            raise ValueError(f"batch_size = {batch_size!r} must be a whole number of at least 1")
        model = hub.from_pretrained(pretrained, device=_there(device), length=length, revision=revision)
        self.reading = Reading(model, batch_size=int(batch_size), **options)
        self._errors: list[float] = []

    def get_model_info(self) -> dict[str, Any]:
        """Say what the model is, and whether its likelihoods are exact or bounds; for the results' "config"."""
        model, reading = self.reading.model, self.reading
        known = [error for error in self._errors if math.isfinite(error)]
        errors = {"likelihood_mean_error_nats": sum(known) / len(known)} if known and not reading.is_exact else {}
        return {
            "model_kind": model.kind,
            "model_sha256": model.found.weights,
            "model_num_parameters": sum(each.numel() for each in model.network.parameters()),
            "likelihood": reading.likelihood,
            "likelihood_is_exact": reading.is_exact,
            "num_draws": None if reading.is_exact else reading.num_draws,
            **errors,
            "noise_seed": reading.seed,
        }

    @property
    def tokenizer_name(self) -> str:
        """The fingerprint of the vocabulary, by which requests are cached."""
        return self.reading.model.vocabulary.fingerprint

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score continuations given their contexts: log-probability, and whether greedy decoding writes it."""
        vocabulary, size = self.reading.model.vocabulary, self.reading.batch_size
        found: list[tuple[float, bool]] = []
        with tqdm(total=len(requests), disable=disable_tqdm, unit="text") as bar:
            for first in range(0, len(requests), size):
                asked = [request.args for request in requests[first : first + size]]
                pairs = [continuations.encode_pair(vocabulary, *each) for each in asked]
                for arguments, answer in zip(asked, continuations.score(self.reading, pairs), strict=True):
                    found.append((self._noted(answer).log_prob, answer.greedy))
                    self.cache_hook.add_partial("loglikelihood", arguments, found[-1])
                bar.update(len(asked))
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts."""
        found = []
        for request in tqdm(requests, disable=disable_tqdm, unit="text"):
            found.append(self._noted(continuations.score_whole(self.reading, request.args[0])).log_prob)
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Write what follows contexts, up to a stop string. The same request asked again has noise of its own."""
        found, asked = [], Counter[str]()
        for request in tqdm(requests, disable=disable_tqdm, unit="text"):
            context, options = request.args
            found.append(continuations.complete(self.reading, context, wanted(options), asked[context]))
            asked[context] += 1
            self.cache_hook.add_partial("generate_until", request.args, found[-1])
        return found

    def _noted(self, answer: Answer) -> Answer:
        """Keep the error of an answer for `get_model_info`."""
        self._errors.append(answer.standard_error)
        return answer


def wanted(options: Mapping[str, Any]) -> Wanted:
    """Read what a task asks of a text. Without `do_sample` and a temperature the most likely tokens are taken.

    Raises ValueError, naming it, for an option that is not known.
    """
    unknown = options.keys() - set(_DRAWN)
    if unknown:
        raise ValueError(f"generation_kwargs: {', '.join(sorted(unknown))} is not known; known are {', '.join(_DRAWN)}")
    until = options.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    most = next((int(options[name]) for name in _LENGTHS if options.get(name) is not None), Wanted().most)
    heat = float(options.get("temperature", 1.0 if options.get("do_sample") else 0.0))
    return Wanted(stops, most, 0.0 if options.get("do_sample") is False else heat, float(options.get("top_p", 1.0)))


def _there(device: str | None) -> str:
    """Take the CPU where there is no GPU: `lm_eval` asks for one whether its user does or not."""
    return "cpu" if device is None or (device.startswith("cuda") and not torch.cuda.is_available()) else device


def run() -> None:
    """Hand over to the command line of `lm_eval`, which takes the words of this process."""
    command_line.cli_evaluate()
