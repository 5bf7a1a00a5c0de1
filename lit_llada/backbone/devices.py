"""Finds out what the GPU of this machine cannot do, before a run starts on it, or starts without it."""

from __future__ import annotations

import re

import torch

from lit_llada.errors import UserError

NO_GPU = ("Found no NVIDIA driver", "No CUDA GPUs are available")


def require_driver(cpu: str) -> None:
    """Refuse a GPU whose driver this torch cannot use.

    Without this, ``torch.cuda.is_available()`` is False, with a warning, and the run silently takes the CPU; under
    Lightning, which has it count devices without asking the driver, it is True and the first use fails.

    Args:
        cpu: the option that chooses the CPU.

    Raises:
        UserError: the driver is too old, or does not start for another reason. No GPU at all is no error.
    """
    if not torch.backends.cuda.is_built():
        return
    try:
        torch.cuda.init()
    except RuntimeError as error:
        said = " ".join(str(error).split())
        if said.startswith(NO_GPU):
            return
        raise UserError(
            f"torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use this machine's GPU:"
            f" {re.split(r'[.] Please', said)[0][:200]}; update the driver, install a torch that fits it, or set {cpu}"
        ) from error


def require_bfloat16(device: torch.device, precision: str) -> None:
    """Refuse bfloat16 on a GPU that only emulates it.

    Raises:
        UserError: its compute capability is below 8.0.
    """
    if device.type == "cuda" and precision.startswith("bf16") and not bfloat16_on_gpu(device):
        major, minor = torch.cuda.get_device_capability(device)
        raise UserError(
            f"trainer.precision {precision} needs a GPU of compute capability 8.0 or higher, and this one has"
            f" {major}.{minor}; set trainer.precision 16-mixed (VRPO cannot use that) or 32-true"
        )


def bfloat16_on_gpu(device: torch.device | None = None) -> bool:
    """Whether the GPU multiplies bfloat16 itself."""
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


def pick_device(name: str = "auto") -> str:
    """The device of that name, if it is here; ``auto`` takes the accelerator if there is one, else the CPU.

    Raises:
        UserError: it is not here.
    """
    if name == "auto":
        require_driver("--device cpu")
        found = torch.accelerator.current_accelerator(check_available=True)
        return "cpu" if found is None else found.type
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} is not here ({str(error).splitlines()[0]}); give another, or auto") from None
    return name
