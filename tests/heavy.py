"""What takes long to import and is no part of the package: a process imports it once, before it forks."""

import hypothesis.extra.numpy  # noqa: F401
import matplotlib.figure  # noqa: F401
import scipy.stats  # noqa: F401
import tensordict.nn  # noqa: F401
from torchtune import config  # noqa: F401
