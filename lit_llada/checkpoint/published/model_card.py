"""The model card of an exported checkpoint: what it is, how to load it, and the run that trained it."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from lit_llada.checkpoint.published.families import Fields

if TYPE_CHECKING:
    from lit_llada.checkpoint.load import Checkpoint

CARD = """\
---
library_name: lit_llada
tags: [masked-diffusion, language-model]
---

# {title}

{kind} with {parameters:,} parameters, in the format of {architecture}. It reads text in which some tokens are the mask
(id {mask_id}) and says for each of them which token belongs there{order}.

```python
from lit_llada import load_checkpoint

checkpoint = load_checkpoint("PATH OF THIS FOLDER")
logits = checkpoint.net(tokens)  # [B, T] -> [B, T, V]
```
"""


def model_card(checkpoint: Checkpoint, fields: Fields) -> str:
    """Markdown, made from the net and, where there is one, the card of the run that trained it."""
    config, card = checkpoint.net.config, checkpoint.run_card
    text = CARD.format(
        title="A masked diffusion language model" if not config.causal else "An autoregressive language model",
        kind="A sparse Transformer (mixture of experts)" if config.n_experts else "A dense Transformer",
        parameters=config.parameter_count(),
        architecture=fields["architectures"][0],
        mask_id=checkpoint.mask_id,
        order=", from the left alone" if config.causal else ", from both sides",
    )
    return text + (_training(card) if card.get("starts") else "")


def _training(card: dict[str, Any]) -> str:
    """The part about the run: data by their hashes, code by its commit, and the command."""
    lines = ["", "## Training", ""]
    for data in card.get("data", []):
        splits = ", ".join(f"{name}: {split['tokens']:,} tokens" for name, split in data["splits"].items())
        lines.append(f"* Data `{data['sha256'][:16]}` ({splits})")
    start = card["starts"][-1]
    git = start.get("git") or {}
    lines += [
        f"* Code: {', '.join(f'{name} {version}' for name, version in start['versions'].items() if version)}"
        + (f"; commit `{git['commit']}`{' with changes' if git['dirty'] else ''}" if git else ""),
        f"* Machine: {start['device']}, {start['world_size']} processes; started {len(card['starts'])} times",
        "",
        "```",
        shlex.join(map(str, start["command"])),
        "```",
        "",
        "```json",
        json.dumps(card.get("config", {}), indent=2),
        "```",
        "",
    ]
    return "\n".join(lines)
