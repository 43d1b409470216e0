"""Several processes as one run: who is first, what falls to whom, and what all of them know.

`torchrun`, or `edlm run --nproc_per_node N`, starts the processes and says so in the environment. Where it did not,
every function here is that of a single process.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from edlm import progress

T = TypeVar("T")
R = TypeVar("R")
_BUCKET = 1 << 25  # elements that are summed over the processes in one call
_PATIENCE = timedelta(hours=2)  # the others wait while the first one writes, or tokenises


@contextlib.contextmanager
def joined(device: str) -> Iterator[None]:
    """Join the processes that were started together, and leave them at the end; only the first one prints.

    device: as a config names it; on CUDA each process takes the device of its number.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_PATIENCE)
    dist.all_reduce(torch.zeros(1))  # wait for all: one that ends at once would cut off who still connects
    with open(os.devnull, "w") as nowhere, contextlib.ExitStack() as stack:
        if not is_first():
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        yield
    dist.destroy_process_group()  # not after an error: the others may never come to it


def world() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def require_one(recipe: str) -> None:
    """Raise ValueError, where there are several processes, for a recipe whose work they would not share."""
    if world() > 1:
        raise ValueError(f"{recipe} runs in one process, and {world()} were started: leave --nproc_per_node out")


def is_first() -> bool:
    """Check whether this is the process that writes and prints."""
    return rank() == 0


def rows_of_rank(rows: Tensor) -> Tensor:
    """Return the rows (n,) of a batch that fall to this process: a run of them, even among all, or one more."""
    return rows.tensor_split(world())[rank()]


def spread(work: Callable[[T], R], items: Sequence[T], shown: str | None = None) -> list[R]:
    """Compute the result of every item, in order, each worked out by one process and known to all.

    A result is what one process would have found: items are not split. It must not lie on a device. shown: what a
    progress bar says meanwhile, None for none.
    """
    share = items[rank() :: world()]
    own = [work(item) for item in (share if shown is None else bar(share, desc=shown, unit="batch", leave=False))]
    found = gather(own)
    return [found[number % world()][number // world()] for number in range(len(items))]


def gather(value: T) -> list[T]:
    """Gather the value that each process gives, in the order of the processes."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value)
    return found


def from_first(find: Callable[[], T]) -> T:
    """Share what the first process finds with all; an error of the user's or of the disk's is raised in all.

    Raises ValueError where the first process does, or finds that a file cannot be had.
    """
    if world() == 1:
        return find()
    message: list[Any] = [None, None]
    if is_first():
        try:
            message[0] = find()
        except (ValueError, OSError) as error:
            message[1] = str(error)
    dist.broadcast_object_list(message, src=0)
    if message[1] is not None:
        raise ValueError(message[1])
    return message[0]


def total(values: Sequence[float], device: torch.device) -> list[float]:
    """Sum each number over the processes, in float64."""
    if world() == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    return sums.tolist()


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Give every parameter the sum of its gradients over the processes; those without any in all are left without."""
    if world() == 1:
        return
    wanted = list(parameters)
    known = torch.tensor([each.grad is not None for each in wanted], dtype=torch.int32, device=wanted[0].device)
    dist.all_reduce(known, dist.ReduceOp.MAX)
    gradients = []
    for parameter, somewhere in zip(wanted, known.tolist(), strict=True):
        if somewhere:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        for gradient, summed in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
            gradient.copy_(summed.view_as(gradient))


def bar(*arguments: Any, **settings: Any) -> Any:
    """Build a progress bar, shown by the first process alone."""
    return progress.bar(*arguments, **{"disable": not is_first(), **settings})


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in their order, in runs of one type and of about `_BUCKET` elements."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and (tensor.dtype != bucket[0].dtype or sum(map(Tensor.numel, bucket)) + tensor.numel() > _BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
