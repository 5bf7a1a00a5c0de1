"""Lightning callbacks that show or keep what a run does; each can be left out.

In YAML each has a namespace of its own (``throughput:``, ``sampling:``, ...), see ``lit_llada.cli.training``.
"""

from lit_llada.callbacks.ema import EMA
from lit_llada.callbacks.noise_curve import NoiseCurve
from lit_llada.callbacks.provenance import Provenance
from lit_llada.callbacks.router import RouterLoad
from lit_llada.callbacks.samples import SampleLogger
from lit_llada.callbacks.throughput import Throughput

__all__ = ["EMA", "NoiseCurve", "Provenance", "RouterLoad", "SampleLogger", "Throughput"]
