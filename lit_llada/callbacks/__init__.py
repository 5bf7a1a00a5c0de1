"""What one sees of a run: Lightning callbacks, each of which can be left out. YAML names them by class."""

from lit_llada.callbacks.ema import EMA
from lit_llada.callbacks.noise_curve import NoiseCurve
from lit_llada.callbacks.provenance import Provenance
from lit_llada.callbacks.router import RouterLoad
from lit_llada.callbacks.samples import SampleLogger
from lit_llada.callbacks.throughput import Throughput

__all__ = ["EMA", "NoiseCurve", "Provenance", "RouterLoad", "SampleLogger", "Throughput"]
