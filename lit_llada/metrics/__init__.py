"""Metrics that add up over batches and processes: means, the noise curve, router load, right answers.

Each is a ``torchmetrics.Metric`` of plain tensors and needs no trainer. All keep float64 (or integer) sums, which the
processes add once when the metric is computed; none is saved in a checkpoint.
"""

from lit_llada.metrics.exact_match import RightByTask
from lit_llada.metrics.means import Means
from lit_llada.metrics.noise_curve import NllByNoise
from lit_llada.metrics.router_load import ExpertVisits

__all__ = ["ExpertVisits", "Means", "NllByNoise", "RightByTask"]
