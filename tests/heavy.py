"""What takes long to import and is no part of the package: a process imports it once, before it forks."""

from contextlib import suppress

import hypothesis.extra.numpy  # noqa: F401
import matplotlib.figure  # noqa: F401
import scipy.stats  # noqa: F401
import tensordict.nn  # noqa: F401
from torchtune import config  # noqa: F401

with suppress(ImportError):  # it is an extra
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, Qwen2ForCausalLM  # noqa: F401
    from transformers.models.llama.modeling_llama import LlamaForCausalLM  # noqa: F401
