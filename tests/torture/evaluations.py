"""Small evaluations for the torture: their models, their commands, and what must be equal in the end."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from smdiff.data.tokenizers import bytes_tokenizer
from smdiff.diffusion.soft_mask import SoftMask
from smdiff.models.denoiser import Denoiser
from tests.conftest import small_causal, small_dit

# What depends on the clock.
_TIMES = ("seconds", "tokens_per_second")


@dataclass(frozen=True)
class World:
    """Two soft-masked models, a judge and a text in a folder."""

    folder: Path

    @classmethod
    def made(cls, folder: Path) -> World:
        tokenizer = bytes_tokenizer()
        for seed, name in enumerate(("one", "two")):
            dit = small_dit(len(tokenizer), seed, max_position_embeddings=1024)
            Denoiser(dit, tokenizer.mask_token_id, SoftMask(3, w_s=0.5)).save(folder / name)
            tokenizer.save_pretrained(folder / name)
        judge = AutoModelForCausalLM.from_config(small_causal("gpt2", len(tokenizer)))
        judge.save_pretrained(folder / "judge")
        tokenizer.save_pretrained(folder / "judge")
        (folder / "text.txt").write_text("Something was said, at some length. " * 20)
        return cls(folder)

    def eval_code(self, out: Path) -> list[str]:
        sweep = ["--limit", "3", "--length", "8", "--steps", "1/4,1/1", "--soft-mask", "both", "--batch-size", "2"]
        run = ["--allow-code-execution", "--workers", "1", "--quiet"]
        return ["eval-code", str(self.folder / "one"), *sweep, *run, "--out", str(out)]

    def eval_text(self, out: Path) -> list[str]:
        models = [str(self.folder / name) for name in ("one", "two")]
        data = ["--data", str(self.folder / "text.txt"), "--length", "16", "--limit", "4", "--draws", "2"]
        texts = ["--generate", "3", "--steps", "1/2", "--soft-mask", "both", "--batch-size", "2"]
        judged = ["--judge", str(self.folder / "judge"), "--mauve-seeds", "0", "--quiet"]
        return ["eval-text", *models, *data, *texts, *judged, "--out", str(out)]

    def command(self, kind: str, out: Path) -> list[str]:
        return self.eval_code(out) if kind == "eval-code" else self.eval_text(out)


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in _TIMES}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def outcome(out: Path) -> dict[str, Any]:
    """What an evaluation found: the samples in their order, all other records, the scores. Nothing of the clock."""
    found: dict[str, Any] = {}
    for path in out.rglob("*.jsonl"):
        records = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
        in_order = path.name == "samples.jsonl"  # verdicts come as programs end
        found[str(path.relative_to(out))] = records if in_order else sorted(map(json.dumps, records))
    result = json.loads((out / "result.json").read_text())
    facts = json.loads((out / "eval.json").read_text())
    return found | {"results": _timeless([result["results"], result.get("generated"), result["notes"]]), "facts": facts}


def check_files(out: Path) -> None:
    """Whatever has happened: JSON files are valid, and lines are but for the last one."""
    for path in out.rglob("*.json"):
        if path.name != "lock.json":
            json.loads(path.read_text())
    for path in out.rglob("*.jsonl"):
        for line in path.read_text().split("\n")[:-1]:
            json.loads(line)


def leftovers(out: Path) -> list[Path]:
    """Files that should have been moved or removed."""
    return [*out.rglob("*.partial"), *out.rglob("lock.json")]
