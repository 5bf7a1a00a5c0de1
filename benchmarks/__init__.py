"""One command each; ratios are measured side by side in one run."""
