"""Which device trains, with how many threads, and in which precision."""

import contextlib
from collections.abc import Iterator

import torch

from engine.config import TrainingConfig
from engine.errors import ConfigError


def choose_device(config: TrainingConfig) -> torch.device:
    """The configured device, set up: threads, and denormals flushed (they make CPU training several times slower)."""
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.set_flush_denormal(True)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("training.device is 'cuda', but torch sees no CUDA device here; use 'auto' or 'cpu'")
    return torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")


def autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """bf16 on CUDA, where it is faster at no measurable loss; plain float32 on a CPU."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run under a seeded global generator (dropout and initialisers know no other) and put the old state back."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
