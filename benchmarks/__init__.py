"""One command each; ratios are measured side by side in one run."""

import os

# Before any benchmark imports torch, which reads it once: threads that wait do so asleep, as on the command line (see
# lit_llada/cli/main.py). On a busy machine a step is up to twenty times as slow otherwise.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
