"""Loads a checkpoint: a path or a name on the hub becomes a net, its tokenizer and its special ids.

A checkpoint is a published folder (LLaDA, LLaDA-MoE, or an autoregressive Llama, Qwen2 or Qwen3 to start from), or what
a run of this kit wrote. A net is built without memory and filled tensor by tensor, straight into its shards if it has
any.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lit_llada.backbone.transformer import Backbone
from lit_llada.checkpoint.own import open_run
from lit_llada.checkpoint.published.config_json import family_of, same_net
from lit_llada.checkpoint.published.read import open_published
from lit_llada.checkpoint.source import META, TEXT_FILES, TOKENIZER_FILES, Source, fill, read_files, read_json
from lit_llada.checkpoint.vocabulary import end_of_turn, first, read_chat_template, read_tokenizer
from lit_llada.errors import UserError
from lit_llada.text.chat_template import ChatTemplate, turn_end
from lit_llada.text.specials import Specials
from lit_llada.text.tokenizer import Tokenizer


@dataclass
class Checkpoint:
    """Everything that is needed to use a net.

    Args:
        net: in eval mode.
        tokenizer: None where none was found.
        mask_id: the mask token.
        eos_id: ends a document; None if nothing says so.
        eot_id: ends a chat turn; None without chat.
        pad_id: fills up rows; EOS where nothing else is said.
        forbidden: ids that must not be produced: the mask, and rows of the vocabulary that are no token.
        chat_template: jinja source, as the folder has it.
        generation: ``generation_config.json``.
        files: the text files that travel with the weights, name -> contents.
        run_card: card of the run that made it.
        path: local place that it was loaded from; None for a net that is in memory only.
    """

    net: Backbone
    tokenizer: Tokenizer | None
    mask_id: int
    eos_id: int | None = None
    eot_id: int | None = None
    pad_id: int | None = None
    forbidden: tuple[int, ...] = ()
    chat_template: str | None = None
    generation: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    run_card: dict[str, Any] = field(default_factory=dict)
    path: Path | None = field(default=None, compare=False)  # where it lies is not what it is

    def specials(self, template: ChatTemplate | None = None) -> Specials:
        """The ids that mean something to a sampler; with a template, what ends its turns ends an answer."""
        end = None if template is None or self.tokenizer is None else turn_end(template, self.tokenizer)
        # An end of turn may have the id 0.
        return Specials(self.mask_id, self.eos_id, self.eot_id if end is None else end, self.forbidden)

    @property
    def context(self) -> int | None:
        """The longest sequence that a published folder says it was made for; None where nothing does."""
        fields = json.loads(self.files.get("config.json", "{}"))
        return fields.get("max_sequence_length") or fields.get("max_position_embeddings")


def load_checkpoint(
    path: str | Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    *,
    ema: bool | None = None,
    mask_id: int | None = None,
    causal: bool = False,
    tokenizer: str | None = None,
) -> Checkpoint:
    """Load a checkpoint of any kind for use.

    Args:
        path: a folder in the Hugging Face layout, ``org/name`` on the hub, a ``.ckpt`` or a folder of shards of a run.
        dtype: number type of the weights; None keeps what is stored.
        device: where the net shall be.
        ema: a run's averaged weights (True), its trained ones (False), the averaged ones if there are any (None).
        mask_id: the mask token; None takes the one that the checkpoint, its tokenizer or its authors name.
        causal: keep the causal attention of an autoregressive folder.
        tokenizer: a ``tokenizer.json`` or a folder with one; None looks beside the checkpoint and in the run's data.

    Raises:
        UserError: one line that names the file, tensor or field that does not fit.
    """
    source = open_source(path, ema, mask_id, causal)
    if tokenizer is not None:
        source.files |= _tokenizer_files(Path(tokenizer))
    net = _materialise(source, dtype, device)
    return _with_ids(net, source)


def load_net(path: str | Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Backbone:
    """The net of a checkpoint alone, in eval mode; arguments and errors of :func:`load_checkpoint`."""
    return _materialise(open_source(path), dtype, device)


def load_into(net: Backbone, path: str | Path, ema: bool | None = None) -> None:
    """Fill a net that exists, in its own dtype and on its device; each rank of a sharded one keeps its part.

    Args:
        net: real or on the meta device (then it becomes real where its mesh is, or on the CPU).
        path: what :func:`load_checkpoint` takes.
        ema: which weights of a run, as there.

    Raises:
        UserError: the checkpoint is of another architecture, or as for :func:`load_checkpoint`.
    """
    source = open_source(path, ema, causal=net.config.causal)
    if not same_net(source.config, net.config):
        mine, theirs = vars(net.config), vars(source.config)
        differ = [f"{name} {theirs[name]} (now {mine[name]})" for name in mine if mine[name] != theirs[name]]
        raise UserError(f"{path}: the checkpoint's backbone differs in {', '.join(differ)}")
    if any(parameter.is_meta for parameter in net.parameters()):
        mesh = getattr(next(net.parameters()), "device_mesh", None)
        net.to_empty(device="cpu" if mesh is None else mesh.device_type)
    fill(net, source)


def open_source(path: str | Path, ema: bool | None = None, mask_id: int | None = None, causal: bool = False) -> Source:
    """Find out what ``path`` is, and open it. No weights are read yet.

    Raises:
        UserError: it is nothing that can be read.
    """
    place = fetch_checkpoint(path)
    if place.is_file() or (place / META).is_file():
        return open_run(place, ema, mask_id)
    if ema:
        raise UserError(f"{path}: a published folder has no averaged weights; leave ema out")
    return open_published(place, mask_id, causal)


def fetch_checkpoint(path: str | Path) -> Path:
    """A local path as it is; ``org/name`` is fetched from the Hugging Face hub, or found in its cache.

    Raises:
        UserError: neither here nor there.
    """
    if Path(path).exists():
        return Path(path)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(path)):
        raise UserError(f"{path}: no such file or folder")
    from huggingface_hub import snapshot_download

    patterns = [*TEXT_FILES, "model*.safetensors", "model.safetensors.index.json"]
    try:
        return Path(snapshot_download(str(path), allow_patterns=patterns))
    except Exception as error:  # of the hub, the network, the disk: dozens of types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path}: no such local folder, and the Hugging Face hub does not give it ({reason}); give the path of a "
            "local folder with config.json and safetensors"
        ) from None


def _materialise(source: Source, dtype: torch.dtype | None, device: str | torch.device) -> Backbone:
    """Meta tensors of the right dtype first, so that nothing is ever there twice."""
    with torch.device("meta"):
        net = Backbone(source.config)
    net.to(dtype or source.dtype).to_empty(device=device)
    fill(net, source)
    return net.eval()


def _with_ids(net: Backbone, source: Source) -> Checkpoint:
    """Put together what the configuration, the tokenizer and, last of all, the authors say about special ids."""
    files, rows = source.files, net.config.vocabulary
    fields, generation = (
        read_json(files.get(name, "{}"), f"{source.path}: {name}") for name in ("config.json", "generation_config.json")
    )
    published = {name: i for name, i in family_of(fields).ids.items() if i < rows} if fields else {}
    eos = first(fields.get("eos_token_id"), generation.get("eos_token_id"))
    tokenizer = read_tokenizer(files, source.mask_id, eos)
    eos = first(eos, tokenizer and tokenizer.eos_id, published.get("eos"))
    _check_ids(source, tokenizer, rows)
    assert source.mask_id is not None, "checked"
    tokens = tokenizer.vocab_size if tokenizer else first(fields.get("vocab_size"), rows)
    return Checkpoint(
        net=net,
        tokenizer=tokenizer,
        mask_id=source.mask_id,
        eos_id=eos,
        eot_id=first(end_of_turn(tokenizer), published.get("eot")),
        pad_id=first(fields.get("pad_token_id"), eos),
        forbidden=tuple(sorted({source.mask_id, *range(tokens or rows, rows)})),
        chat_template=read_chat_template(files),
        generation=generation,
        files=files,
        run_card=source.run_card,
        path=source.path,
    )


def _check_ids(source: Source, tokenizer: Tokenizer | None, rows: int) -> None:
    mask = source.mask_id
    if mask is None:
        raise UserError(f"{source.path} does not say which token is the mask; give mask_id")
    if not 0 <= mask < rows:
        raise UserError(f"{source.path}: mask_id {mask} lies outside the vocabulary 0..{rows - 1}")
    if tokenizer is None:
        return
    if tokenizer.mask_id != mask or tokenizer.vocab_size > rows:
        raise UserError(
            f"{source.path}: the tokenizer has {tokenizer.vocab_size} tokens with the mask at {tokenizer.mask_id}, the "
            f"net {rows} with the mask at {mask}; give the tokenizer that it was trained with"
        )
    if source.tokenizer_digest not in (None, tokenizer.digest):
        raise UserError(f"{source.path} was trained with another tokenizer than the one found; give tokenizer")


def _tokenizer_files(place: Path) -> dict[str, str]:
    folder = place if place.is_dir() else place.parent
    files = read_files(folder, TOKENIZER_FILES)
    if place.is_file():
        files["tokenizer.json"] = place.read_text(encoding="utf-8")
    if "tokenizer.json" not in files:
        raise UserError(f"tokenizer {place}: no such file, or a folder without tokenizer.json")
    return files
