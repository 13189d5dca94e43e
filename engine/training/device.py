"""Which device trains, with how many threads, and in which precision."""

import contextlib
from collections.abc import Iterator

import torch

from engine.config import Federation
from engine.errors import ConfigError, RunError
from engine.sections import TrainingConfig


def choose_device(config: TrainingConfig) -> torch.device:
    """The configured device, set up: threads, and denormals flushed (they make CPU training several times slower)."""
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.set_flush_denormal(True)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("training.device is 'cuda', but torch sees no CUDA device here; use 'auto' or 'cpu'")
    return torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")


def autocast(device: torch.device, config: TrainingConfig) -> contextlib.AbstractContextManager[object]:
    """Training's precision: with "auto" bf16 on CUDA and on CPUs that multiply it natively, twice as fast there.

    Elsewhere bf16 would be emulated, far slower than float32. Evaluation is float32 everywhere.
    """
    return torch.autocast(device.type, torch.bfloat16) if trains_in_bf16(device, config) else contextlib.nullcontext()


def trains_in_bf16(device: torch.device, config: TrainingConfig) -> bool:
    if config.precision == "float32":
        return False
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


@contextlib.contextmanager
def explained_out_of_memory(federation: Federation) -> Iterator[None]:
    """Memory that runs out is the machine's trouble, no hospital's: one RunError that says what helps."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        on_cpu = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
        if not on_cpu and not isinstance(error, torch.OutOfMemoryError):
            raise
        size, side = federation.training.batch_size, federation.model.image_size_px
        raise RunError(
            f"out of {'memory' if on_cpu else 'GPU memory'}: free some and go on with --resume, or train anew with "
            f"--set training.batch_size=N below {size} or --set model.image_size_px=N below {side}"
        ) from None


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run under a seeded global generator (dropout and initialisers know no other) and put the old state back."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
