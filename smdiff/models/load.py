"""One way in: a run folder, an adapter, MDLM's layout, a Dream, a LLaDA, a hub name. Strict about every tensor; runs no
code."""

from __future__ import annotations

import hashlib
import math
import re
import reprlib
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import get_last_checkpoint

from smdiff.data.tokenizers import load_tokenizer, open_tokenizer
from smdiff.diffusion.soft_mask import SoftMask
from smdiff.errors import UserError, first_line
from smdiff.files import STAGING, run_of
from smdiff.models import adapters
from smdiff.models.adapt import Adaptation, adapted, is_gguf, open_causal_tokenizer
from smdiff.models.causal import SHIFT, is_causal, load_causal
from smdiff.models.denoiser import Denoiser
from smdiff.models.dit import DiT, DiTConfig
from smdiff.models.mdlm import Checkpoint, read_mdlm
from smdiff.models.weights import FIX, check_names, load_strictly, read_object, read_tensors
from smdiff.ranks import local_rank

# Names on the hub, of a GGUF file too; neither they nor revisions lead out of the cache.
_NAME = r"(?!\.)[\w.-]+/(?!\.)[\w.-]+(/[\w.-]+\.gguf)?"
_REVISION = r"(?!.*\.\.)\w[\w./-]*"
_MOST_MIXED = 1000
_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]


def read_soft_mask(folder: Path) -> SoftMask | None:
    """The scalars in a folder, ours or the paper's code's; None where there are none."""
    ours, theirs = folder / "soft_mask.json", folder / "transparency_config.json"
    path = ours if ours.exists() else theirs
    if not path.exists():
        return None
    try:
        stored = read_object(path)
        found = SoftMask.from_dict(stored) if path == ours else SoftMask.from_transparency(stored)
        if found is not None:
            _check_scalars(found)
        return found
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else first_line(error)
        raise UserError(f"{path} does not hold the scalars", reason, "Restore it from where it came.") from None


def _check_scalars(found: SoftMask) -> None:
    if found.k is not None and (type(found.k) is not int or not 1 <= found.k <= _MOST_MIXED):
        raise ValueError(f"k is {reprlib.repr(found.k)}, no number from 1 to {_MOST_MIXED}")
    for name, value in found.values().items():
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}")


def _read_run(folder: Path) -> Checkpoint:
    """A folder that smdiff wrote: a finished run, or one of its checkpoints."""
    shape = _shape(folder / "config.json")
    tensors = read_tensors(folder / "model.safetensors")
    ema = folder / "ema.safetensors"
    if ema.exists():
        tensors |= read_tensors(ema)
    soft_mask = read_soft_mask(folder)
    run = folder.parent.parent  # of a checkpoint: the tokenizer and run.json are the run's
    home = run if not _has_tokenizer(folder) and (run / "run.json").exists() else folder
    return Checkpoint(str(folder), shape, tensors, soft_mask, home)


def _shape(config: Path) -> DiTConfig:
    """The DiT that a config.json describes.

    Raises:
        UserError: none that there could be.
    """
    fix = "Copy the model's folder again."
    try:
        shape = DiTConfig.from_dict(read_object(config))
    except UserError:
        raise
    except Exception as error:  # configurations check themselves, with errors of many kinds
        raise UserError(f"{config} cannot be used", first_line(error), fix) from None
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "cond_dim",
             "max_position_embeddings")  # fmt: skip
    for name in names:
        value = getattr(shape, name)
        if type(value) is not int or not 0 < value < 2**31:
            raise UserError(f"{config} cannot be used", f"{name} is {reprlib.repr(value)}", fix)
    if type(shape.mask_token_id) is not int or not 0 <= shape.mask_token_id < shape.vocab_size:
        raise UserError(f"{config} cannot be used", "its mask is no token of the vocabulary", fix)
    return shape


def pinned(name: str, revision: str | None) -> str:
    """A hub name at a revision (branch, tag or commit), `owner/model@revision`.

    Raises:
        UserError: the name is that of something here, which has no revisions.
    """
    if revision is None:
        return name
    if not re.fullmatch(_REVISION, revision) or "@" in name:
        raise UserError(f"--revision {revision}", "it is no branch, tag or commit, or the name has one already",
                        "Give one of them, as the hub lists them.")  # fmt: skip
    if Path(name).expanduser().exists() or not re.fullmatch(_NAME, name):
        fix = "Leave it out, or name a model on the hub (owner/model)."
        raise UserError(f"--revision {revision} has no effect", f"{name} is a path, and no name on the hub", fix)
    return f"{name}@{revision}"


def local_path(name: str) -> Path:
    """Where the files of `name` are: a path as it is; a hub name (owner/model, owner/model@revision) after the
    download, if it is needed.

    Raises:
        UserError: no such path, and no such name on the hub or no network.
    """
    path, (name, _, revision) = Path(name).expanduser(), name.partition("@")
    if path.exists():
        return path
    _, _, file = name.rpartition("/")
    fix = "Give a run's --out folder, a checkpoint, or a name on the hub (owner/model)."
    if not re.fullmatch(_NAME, name) or (revision and not re.fullmatch(_REVISION, revision)):
        raise UserError(f"no model at {path}", "no such file or folder", fix)
    try:
        if file.endswith(".gguf"):
            return Path(hf_hub_download(name.removesuffix(f"/{file}"), file, revision=revision or None))
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=_FILES))
    except Exception as error:  # whatever the network layer below says
        raise UserError(f"no model at {name}", f"no such folder, nor on the hub: {first_line(error)}", fix) from None


def weights_digest(name: str) -> str:
    """What tells a model's files from those of another under the same name: sizes, beginnings and ends."""
    path, digest = local_path(name), hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".json"))
    for file in files:
        if file.name in ("result.json", "run.json", "lock.json"):
            continue
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(1 << 20))
            opened.seek(max(0, size - (1 << 20)))
            digest.update(opened.read())
    return digest.hexdigest()[:16]


def _is_dit(folder: Path) -> bool:
    config = folder / "config.json"
    return config.exists() and read_object(config).get("model_type") == DiTConfig.model_type


def _is_transformers(folder: Path) -> bool:
    """Whether a folder holds a `transformers` model other than ours; MDLM's own kind counts as bare weights."""
    config = folder / "config.json"
    return config.exists() and read_object(config).get("model_type") not in (None, "mdlm", DiTConfig.model_type)


def read_checkpoint(name: str, heads: int | None = None) -> Checkpoint:
    """A DiT: a run folder (finished or not), a checkpoint folder, or a file, folder or hub name with MDLM weights.

    Args:
        heads: attention heads, for bare weights that do not tell.

    Raises:
        UserError: missing, unreadable, or of no known kind.
    """
    path = local_path(name)
    if path.is_file():
        return read_mdlm(path, heads)
    if is_adapter(path):
        raise UserError(f"{name} is an adapter", fix="Give its merged folder (smdiff finetune --merge).")
    if _is_dit(path) and not (path / STAGING).exists():
        return _read_run(path)
    latest = get_last_checkpoint(path / "checkpoints") if (path / "checkpoints").is_dir() else None
    if latest is not None:
        found = _read_run(Path(latest))
        return Checkpoint(
            name, found.shape, found.tensors, found.soft_mask, found.folder,
            note=f"{name} is not finished: using {Path(latest).name}",
        )  # fmt: skip
    weights = sorted([*path.glob("*.safetensors"), *path.glob("*.ckpt")])
    if len(weights) == 1 and not _is_transformers(path):
        config = path / "config.json"
        stated = read_object(config).get("n_heads") if config.exists() else None
        return read_mdlm(weights[0], heads or stated)
    raise UserError(
        f"no model in {name}", "neither a run of smdiff, nor MDLM weights, nor a transformers model",
        "Give one of them, or a name on the hub (owner/model).",
    )  # fmt: skip


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer_config.json").exists()


def read_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The tokenizer that a run folder carries."""
    folder = checkpoint.folder
    if folder is None or not _has_tokenizer(folder):
        raise UserError(
            f"{checkpoint.source} carries no tokenizer", "it is bare weights",
            "Name the one it was trained with: --tokenizer gpt2, say.",
        )  # fmt: skip
    try:
        return open_tokenizer(folder)
    except Exception as error:  # malformed files make it raise nearly anything
        raise UserError(
            f"cannot read the tokenizer in {folder}", first_line(error), fix="Copy or fetch it once more."
        ) from None


def build(checkpoint: Checkpoint) -> Denoiser:
    """The denoiser of a checkpoint."""
    shape, tensors, source = checkpoint.shape, checkpoint.tensors, checkpoint.source
    if shape.num_hidden_layers > len(tensors):  # before so many are made
        why = f"its configuration has {shape.num_hidden_layers} layers, its weights only {len(tensors)} tensors"
        raise UserError(f"{source} does not fit the model", why, "Copy the model's folder again.")
    try:
        with torch.device("meta"):
            wanted = DiT(shape).state_dict()
    except Exception as error:  # shapes that there cannot be
        raise UserError(
            f"the configuration of {source} cannot be used", first_line(error), fix="Copy or fetch it once more."
        ) from None
    check_names(wanted, tensors, source, FIX)  # before its memory is taken
    backbone = DiT(shape)
    load_strictly(backbone, tensors, source)
    return Denoiser(backbone, checkpoint.shape.mask_token_id, checkpoint.soft_mask)


class Model(NamedTuple):
    """A model ready to sample from or score.

    Attributes:
        denoiser: in evaluation mode.
        tokenizer: with a mask token.
        note: something the user should know; "" if nothing.
    """

    denoiser: Denoiser
    tokenizer: PreTrainedTokenizerBase
    note: str = ""


def _without_token(vocab_size: int, mask_id: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that must never be drawn: the mask's, and those that stand for no token (Dream has 397)."""
    known = set(tokenizer.get_vocab().values())
    return [i for i in range(vocab_size) if i not in known or i == mask_id]


def _load_dit(name: str, tokenizer_name: str | None) -> Model:
    checkpoint = read_checkpoint(name)
    shape = checkpoint.shape
    carried = checkpoint.folder is not None and _has_tokenizer(checkpoint.folder)
    if not carried and tokenizer_name is not None:
        tokenizer = load_tokenizer(tokenizer_name)
        if len(tokenizer) != shape.vocab_size or tokenizer.mask_token_id != shape.mask_token_id:
            raise UserError(
                f"--tokenizer {tokenizer_name} does not fit {name}",
                f"it has {len(tokenizer)} ids with the mask at {tokenizer.mask_token_id}, the model has "
                f"{shape.vocab_size} with the mask at {shape.mask_token_id}",
                fix="Give the one it was trained with.",
            )
    else:
        tokenizer = read_tokenizer(checkpoint)
    return Model(build(checkpoint), tokenizer, checkpoint.note)


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, vocab_size: int, mask_id: int, name: str) -> None:
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size or tokenizer.mask_token_id != mask_id:
        raise UserError(
            f"the tokenizer does not fit {name}",
            f"its ids go up to {largest} with the mask at {tokenizer.mask_token_id}, the model has {vocab_size} "
            f"embeddings with the mask at {mask_id}",
            fix="Give the model's own with --tokenizer.",
        )


def _load_causal(
    name: str, folder: Path, tokenizer_name: str | None, dtype: torch.dtype | None, quantize: bool = False
) -> Model:
    backbone, shift = load_causal(folder, read_object(folder / "config.json"), dtype, quantize)
    mask_id, vocab_size = backbone.config.mask_token_id, backbone.config.vocab_size
    tokenizer = load_tokenizer(tokenizer_name or str(_tokenizer_home(folder)), mask_id)
    _check_tokenizer(tokenizer, vocab_size, mask_id, name)
    forbidden = _without_token(vocab_size, mask_id, tokenizer)
    return Model(Denoiser(backbone, mask_id, read_soft_mask(folder), shift, forbidden), tokenizer)


def _tokenizer_home(folder: Path) -> Path:
    """The folder, or of a checkpoint the run, which has the tokenizer."""
    return folder if _has_tokenizer(folder) else run_of(folder) or folder


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a peft adapter."""
    return (folder / adapters.CONFIG).exists()


def _load_adapter(name: str, folder: Path, dtype: torch.dtype | None, quantize: bool = False) -> Model:
    """An adapter on its base; of the base's own tokenizer where the folder has none."""
    base_name = adapters.base_of(adapters.read_config(folder))
    home = _tokenizer_home(folder)
    try:
        path = local_path(base_name)
        if is_causal_model(path):
            stored = read_object(folder / "config.json") if (folder / "config.json").exists() else {}
            if "mask_token_id" not in stored or not _has_tokenizer(home):
                raise UserError(
                    f"{base_name} is a causal model",
                    "and the adapter makes no denoiser of it",
                    fix="Take an adapter of smdiff finetune.",
                )
            tokenizer = open_tokenizer(home)
            backbone = adapted(path, tokenizer, Adaptation(shift=stored.get(SHIFT, True)), dtype, quantize)
            _check_tokenizer(tokenizer, backbone.config.vocab_size, stored["mask_token_id"], name)
            forbidden = _without_token(backbone.config.vocab_size, stored["mask_token_id"], tokenizer)
            denoiser = Denoiser(backbone, stored["mask_token_id"], None, stored.get(SHIFT, True), forbidden)
        else:
            base = open_base(base_name, str(home) if _has_tokenizer(home) else None, dtype, quantize=quantize)
            denoiser, tokenizer = base.denoiser, base.tokenizer
            if _has_tokenizer(home):
                tokenizer = open_tokenizer(home)  # with the chat template of the training
    except UserError as error:
        raise UserError(
            f"the base of the adapter {name}",
            str(error),
            fix="Check base_model_name_or_path in its adapter_config.json.",
        ) from None
    model = adapters.load(denoiser.backbone, folder)
    soft_mask = read_soft_mask(folder)
    return Model(
        Denoiser(
            denoiser.backbone, denoiser.mask_id, soft_mask, denoiser.shift, denoiser.forbidden.tolist(), adapter=model
        ),
        tokenizer,
    )


def is_causal_model(path: Path) -> bool:
    """Whether a path holds an ordinary causal model: a GGUF file, or a `transformers` folder that says nothing else."""
    if path.is_file():
        return is_gguf(path)
    return not is_adapter(path) and _is_transformers(path) and is_causal(read_object(path / "config.json"))


def _unfinished(path: Path) -> Path | None:
    """The last checkpoint of a run that has delivered nothing yet."""
    delivered = ((path / "config.json").exists() or is_adapter(path)) and not (path / STAGING).exists()
    if not (path / "checkpoints").is_dir() or delivered:
        return None
    latest = get_last_checkpoint(path / "checkpoints")
    return None if latest is None else Path(latest)


def open_base(
    name: str,
    tokenizer: str | None,
    dtype: torch.dtype | None,
    *,
    quantize: bool = False,
    adaptation: Adaptation | None = None,
) -> Model:
    """A model as it is stored, on the CPU.

    Args:
        adaptation: makes a denoiser of a causal model; without it such a model is refused.

    Raises:
        UserError: whatever is missing or does not fit.
    """
    path = local_path(name)
    if adaptation is not None and is_causal_model(path):
        found = open_causal_tokenizer(path, tokenizer)
        backbone = adapted(path, found, adaptation, dtype, quantize)
        mask_id = backbone.config.mask_token_id
        forbidden = _without_token(backbone.config.vocab_size, mask_id, found)
        return Model(Denoiser(backbone, mask_id, None, adaptation.shift, forbidden), found)
    if is_gguf(path):
        raise UserError(f"{name} is a causal model", fix="Make a denoiser of it with smdiff finetune.")
    latest = _unfinished(path) if path.is_dir() else None
    if latest is not None and (is_adapter(latest) or not _is_dit(latest)):
        model = open_base(str(latest), tokenizer, dtype, quantize=quantize)
        return model._replace(note=f"{name} is not finished: using {latest.name}")
    if path.is_dir() and is_adapter(path):
        model = _load_adapter(name, path, dtype, quantize)
    elif path.is_dir() and _is_transformers(path):
        model = _load_causal(name, path, tokenizer, dtype, quantize)
    else:
        return _load_dit(name, tokenizer)
    if (path / "ema.safetensors").exists():
        apply_averages(model.denoiser, path)
    return model


@torch.no_grad()
def apply_averages(denoiser: Denoiser, folder: Path) -> None:
    """A checkpoint's averaged weights, which are what the run is going to deliver."""
    parameters = dict(denoiser.backbone.named_parameters())
    for name, tensor in read_tensors(folder / "ema.safetensors").items():
        parameters[name].copy_(tensor)


def restore(denoiser: Denoiser, folder: Path) -> None:
    """Weights and scalars that `Denoiser.save` wrote, back into the same model.

    Raises:
        UserError: naming the tensors that do not fit.
    """
    if denoiser.adapter is not None:
        adapters.restore(denoiser.adapter, folder)
    elif isinstance(denoiser.backbone, DiT):
        load_strictly(denoiser.backbone, read_tensors(folder / "model.safetensors"), str(folder))
    else:
        stored = {k: x for path in sorted(folder.glob("model*.safetensors")) for k, x in read_tensors(path).items()}
        wanted = denoiser.backbone.state_dict()
        shared = set(getattr(denoiser.backbone, "all_tied_weights_keys", {}))
        check_names({k: x for k, x in wanted.items() if k in stored or k not in shared}, stored, str(folder))
        denoiser.backbone.load_state_dict(stored, strict=False)
    if denoiser.soft_mask is not None:
        soft_mask = read_soft_mask(folder)
        if soft_mask is None:
            raise UserError(f"{folder} holds no soft_mask.json", fix="Copy or fetch it once more.")
        denoiser.soft_mask.load_state_dict(soft_mask.state_dict())


def merged(denoiser: Denoiser) -> Denoiser:
    """The same model with its adapter in the weights."""
    if denoiser.adapter is None:
        return denoiser
    forbidden = denoiser.forbidden.tolist()
    return Denoiser(adapters.merge(denoiser.adapter), denoiser.mask_id, denoiser.soft_mask, denoiser.shift, forbidden)


def default_device() -> str:
    """The GPU of this process if there is one."""
    return f"cuda:{local_rank()}" if torch.cuda.is_available() else "cpu"


def _place(device: str | torch.device | None) -> torch.device:
    """The device that was asked for, or the best there is."""
    try:
        place = torch.device(device or default_device())
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--device {device}", "there is no such device here", "Leave it out for the best there is."
        ) from error
    return place


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load(
    name: str,
    tokenizer: str | None = None,
    device: str | torch.device | None = None,
    precision: str = "auto",
) -> Model:
    """A model ready to sample from or score.

    Args:
        name: a run folder, an adapter folder, a Dream, LLaDA or other bidirectional `transformers` folder, MDLM
            weights, or a hub name.
        tokenizer: a folder or hub name, for weights that carry none.
        device: by default the GPU if there is one.
        precision: "fp32", "bf16", or "auto", which is fp32 on a CPU and the checkpoint's own on a GPU.

    Raises:
        UserError: whatever is missing or does not fit.
    """
    place = _place(device)
    dtype = _DTYPES.get(precision, torch.float32 if place.type == "cpu" else None)
    model = open_base(name, tokenizer, dtype)
    model.denoiser.to(place).eval()
    if dtype is None and model.denoiser.table.dtype == torch.float16:
        dtype = torch.bfloat16  # logits of tokens that are never chosen are beyond float16
    if dtype is not None:
        model.denoiser.backbone.to(dtype)  # the three scalars stay in float32
    return model
