"""``convert`` and ``consolidate``: import, export and upcycle, there and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_llada.backbone.transformer import Backbone
from lit_llada.checkpoint.load import load_checkpoint, load_net
from lit_llada.cli.main import main
from lit_llada.modules.pretraining import PretrainingModule

GOLDEN = Path(__file__).parents[1] / "golden"


def weights_equal(net: Backbone, expected: dict[str, Any]) -> bool:
    state = net.state_dict()
    return state.keys() == expected.keys() and all((state[n].numpy() == t).all() for n, t in expected.items())


def test_convert_import_and_back(tmp_path: Path, capsys: Any) -> None:
    target, back = tmp_path / "new" / "start.ckpt", tmp_path / "back"
    source = shutil.copytree(GOLDEN / "moe_a", tmp_path / "source")
    assert main(["convert", "import", str(source), str(target)]) == 2
    assert "does not say which token is the mask; give mask_id" in capsys.readouterr().err
    assert main(["convert", "import", str(source), str(target), "--mask_id", "156"]) == 0
    assert "219,168 parameters, vocabulary 160, mask 156" in capsys.readouterr().out
    shutil.rmtree(source)
    loaded, original = load_checkpoint(target), load_net(GOLDEN / "moe_a")
    assert weights_equal(loaded.net.float(), {n: t.float().numpy() for n, t in original.state_dict().items()})
    assert (loaded.mask_id, loaded.eos_id) == (156, 150)
    module = PretrainingModule.load_from_checkpoint(target, weights_only=True)
    assert module.net.config == original.config and module.mask_id == 156
    assert main(["convert", "export", str(target), str(back), "--dtype", "bfloat16"]) == 0
    config = [json.loads((folder / "config.json").read_text()) for folder in (back, GOLDEN / "moe_a")]
    assert config[0] == config[1]
    assert weights_equal(
        load_net(back, torch.float32), {n: t.float().numpy() for n, t in original.state_dict().items()}
    )


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--help"], 0, "convert import GSAI-ML/LLaDA-8B-Base"),
        (["export", "--help"], 0, "--max_shard_size"),
        ([], 2, "convert: no direction; say lit-llada convert import, export or upcycle"),
        (["turn", "a", "b"], 2, "convert: 'turn' is no direction"),
        (["import", "gone", "x"], 2, "gone: no such file or folder"),
        (["export", str(GOLDEN / "dense_a"), "{tmp}"], 2, "exists; remove it or give another name"),
        (["export", str(GOLDEN / "dense_a"), "{tmp}/x", "--dtype", "int8"], 2, "dtype: Expected one of"),
        (
            ["export", str(GOLDEN / "dense_a"), "{tmp}/x", "--max_shard_size", "big"],
            2,
            "max_shard_size big: give bytes",
        ),
    ],
)
def test_convert_teaches(words: list[str], status: int, said: str, tmp_path: Path, capsys: Any) -> None:
    try:
        result = main(["convert", *(word.replace("{tmp}", str(tmp_path)) for word in words)])
    except SystemExit as stop:  # of --help
        result = int(stop.code or 0)
    captured = capsys.readouterr()
    assert result == status and said in (captured.out if status == 0 else captured.err), captured
    assert "Traceback" not in captured.err and not list(tmp_path.iterdir())


def test_convert_upcycle(tmp_path: Path, capsys: Any) -> None:
    target, tokens = tmp_path / "moe.ckpt", torch.tensor([[3, 1, 4, 1, 5]])
    words = ["convert", "upcycle", str(GOLDEN / "dense_a"), str(target)]
    assert main([*words, "--n_experts", "4", "--experts_per_token", "2", "--renormalize", "true"]) == 0
    assert "4 experts, 2 a token" in capsys.readouterr().out
    net = load_net(target)
    assert net.config.n_experts == 4
    with torch.no_grad():
        dense = load_net(GOLDEN / "dense_a")(tokens)
        torch.testing.assert_close(net(tokens), dense, rtol=0, atol=1e-4)
    assert main([*words, "--n_experts", "4"]) == 2
    assert "exists" in capsys.readouterr().err
