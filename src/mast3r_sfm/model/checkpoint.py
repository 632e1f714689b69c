"""Published weights -> a network on a device (docs/method.md, Checkpoints)."""

from __future__ import annotations

import ast
import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mast3r_sfm.device import compute_dtype, resolve_device, resolve_precision
from mast3r_sfm.errors import ModelError
from mast3r_sfm.model import hub
from mast3r_sfm.model.config import PRESETS, ModelConfig
from mast3r_sfm.model.network import TwoViewNetwork
from mast3r_sfm.model.network.blocks import LayerNorm
from mast3r_sfm.options import DEFAULT_MODEL, SMALL_MODEL, Device, Precision
from mast3r_sfm.text import listed
from mast3r_sfm.types import ModelDescription

logger = logging.getLogger(__name__)

_INDEX = "model.safetensors.index.json"
_WEIGHTS = "model.safetensors"
_LISTED = 8  # names an error message lists before it counts the rest


@dataclass(frozen=True)
class Model:
    """A network with its weights, ready to predict.

    name       what was loaded; `revision` is the hub's commit, None for local files
    requested  what was asked for: another name than `name` if the bundled model stands in for the published one
    licence    of the weights, as far as it is known
    precision  fp32, tf32, bf16 or fp16
    may_change_precision  the precision was chosen by the machine, not by the caller
    """

    network: TwoViewNetwork
    config: ModelConfig
    name: str
    revision: str | None
    licence: str
    device: torch.device
    precision: Precision
    requested: str = ""
    may_change_precision: bool = False

    def description(self) -> ModelDescription:
        """What a result says of its model."""
        gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None
        return ModelDescription(
            name=self.name,
            requested=self.requested or self.name,
            revision=self.revision,
            licence=self.licence,
            precision=str(self.precision),
            device=str(self.device),
            gpu=gpu,
            min_conf_thr=self.config.min_conf_thr,
        )


def load_model(
    model_name: str | Path | None = None,
    device: str | Device = "auto",
    precision: str = "auto",
    revision: str | None = None,
) -> Model:
    """Loads a model by its Hugging Face name, from a folder or file, or the bundled one (`small`).

    model_name  a hub id; a folder with `config.json` and `model.safetensors` (or shards with their index); a
                `.safetensors` file beside its `config.json`; a published `.pth` file; None: the published model,
                and where it is neither cached nor reachable the bundled one, with a warning
    device      auto, cuda, cuda:N, cpu, mps
    precision   auto, fp32, tf32, bf16, fp16: the matrix products; norms and outputs stay float32

    Raises ModelError (not found, unreadable, or weights that do not fit the configuration) and
    InputError (device or precision that is not there).
    """
    if model_name is not None:
        return _load(str(model_name), device, precision, revision)
    try:
        return _load(DEFAULT_MODEL, device, precision, revision)
    except hub.HubUnreachableError as error:
        logger.warning(
            "%s. The small model bundled with this tool (%s) is used instead of %s: expect coarse depth; it was "
            "trained on rendered scenes only",
            error,
            SMALL_MODEL,
            DEFAULT_MODEL,
        )
        return replace(_load(SMALL_MODEL, device, precision, None), requested=DEFAULT_MODEL)


def in_bfloat16(model: Model) -> Model:
    """The same model, loaded again for bfloat16, which does not overflow where half precision does."""
    return replace(_load(model.name, str(model.device), "bf16", model.revision), requested=model.requested)


def _load(name: str, device: str | Device, precision: str, revision: str | None) -> Model:
    torch_device = resolve_device(device)
    resolved = resolve_precision(precision, torch_device)
    source = _locate(name, revision)
    with torch.device("meta"):
        network = TwoViewNetwork(source.config)
    with source.open() as weights:
        assign_weights(network, weights, compute_dtype(resolved), torch_device, source.label)
    network.eval()
    licence = source.config.licence or _licence_of(name)
    chosen_here = Precision.parse(precision) is Precision.AUTO
    return Model(network, source.config, name, source.revision, licence, torch_device, resolved, name, chosen_here)


# ------------------------------------------------------------------ where the weights are
Weights = Mapping[str, Callable[[], torch.Tensor]]
"""Key -> a function that reads the tensor, so that one tensor at a time is in memory."""


@dataclass(frozen=True)
class _Source:
    label: str
    config: ModelConfig
    files: tuple[Path, ...]
    revision: str | None = None

    @contextmanager
    def open(self) -> Iterator[Weights]:
        if self.files[0].suffix == ".pth":
            yield _pth_weights(self.files[0])
            return
        from safetensors import SafetensorError, safe_open

        with ExitStack() as stack:
            weights: dict[str, Callable[[], torch.Tensor]] = {}
            for path in self.files:
                try:
                    opened = stack.enter_context(safe_open(path, framework="pt"))
                except (SafetensorError, OSError) as error:
                    raise ModelError(f"{path}: not a readable safetensors file ({error}); download it again") from error
                weights |= {key: partial(opened.get_tensor, key) for key in opened.keys()}  # noqa: SIM118 (not a dict)
            yield weights


def _locate(name: str, revision: str | None) -> _Source:
    if name == SMALL_MODEL:
        folder = Path(str(resources.files("mast3r_sfm") / "data" / SMALL_MODEL))
        return _folder_source(folder, name)
    path = Path(name)
    if path.is_dir():
        return _folder_source(path, name)
    if path.is_file():
        if path.suffix == ".pth":
            return _Source(name, _pth_config(path), (path,))
        if path.suffix == ".safetensors":
            return _Source(name, _read_config(path.with_name("config.json")), (path,))
        raise ModelError(f"{name}: a model file must be .safetensors (beside its config.json) or .pth")
    if path.suffix in (".safetensors", ".pth") or name.startswith((".", "/", "~")):
        raise ModelError(f"{name}: no such model file or folder; published models: {hub.published_names()}")
    if name.count("/") != 1:
        raise ModelError(
            f"{name!r} is neither an existing file or folder nor a hub name (owner/model); "
            f"published: {hub.published_names()}"
        )
    return _hub_source(name, revision)


def _folder_source(folder: Path, name: str) -> _Source:
    config = _read_config(folder / "config.json")
    if (folder / _WEIGHTS).is_file():
        return _Source(name, config, (folder / _WEIGHTS,))
    if not (folder / _INDEX).is_file():
        raise ModelError(f"{folder}: holds neither {_WEIGHTS} nor {_INDEX}")
    shards = _shards(folder / _INDEX)
    for shard in shards:
        if not (folder / shard).is_file():
            raise ModelError(f"{folder}: {_INDEX} names {shard}, which is missing")
    return _Source(name, config, tuple(folder / shard for shard in shards))


def _hub_source(name: str, revision: str | None) -> _Source:
    config_file = hub.fetch(name, "config.json", revision)
    config = _read_config(config_file)
    try:
        files = [hub.fetch(name, _WEIGHTS, revision)]
    except hub.NotOnHubError:
        files = _hub_shards(name, revision)
    except hub.HubUnreachableError:
        try:  # a cached model in shards has no single file, and offline the hub cannot say so
            files = _hub_shards(name, revision)
        except hub.HubUnreachableError:
            files = []
        if not files:
            raise
    return _Source(name, config, tuple(files), hub.revision_of(config_file))


def _hub_shards(name: str, revision: str | None) -> list[Path]:
    return [hub.fetch(name, shard, revision) for shard in _shards(hub.fetch(name, _INDEX, revision))]


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{index}: not a readable index of weights ({error})") from error


def _read_config(path: Path) -> ModelConfig:
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ModelError(f"{path}: missing; the model's configuration must lie beside its weights") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{path}: must hold a JSON object")
    return ModelConfig.from_dict(raw, str(path))


# ------------------------------------------------------------------ upstream .pth files
def _load_pth(path: Path) -> dict[str, Any]:
    import argparse

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch raises anything from KeyError to pickle errors on foreign files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{path}: not a checkpoint that can be read safely ({reason})") from error
    if not isinstance(content, dict) or not {"model", "args"} <= content.keys():
        raise ModelError(f"{path}: must hold a dict with 'model' and 'args', as the published checkpoints do")
    return content


def _pth_weights(path: Path) -> Weights:
    state = _load_pth(path)["model"]
    return {key: partial(state.__getitem__, key) for key in state}


def _pth_config(path: Path) -> ModelConfig:
    text = getattr(_load_pth(path)["args"], "model", None)
    if not isinstance(text, str):
        raise ModelError(f"{path}: its 'args' name no model")
    return ModelConfig.from_dict(parse_constructor(text, str(path)), str(path))


def parse_constructor(text: str, source: str) -> dict[str, Any]:
    """Keyword arguments of a constructor call given as text; literals, tuples and `inf` only, never evaluated.

    `"Net(img_size=(512, 512), depth_mode=('exp', -inf, inf))"` -> the dict of its arguments.
    Raises ModelError that names `source` on anything else.
    """

    def literal(node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Tuple | ast.List):
            return [literal(item) for item in node.elts]
        if isinstance(node, ast.Name) and node.id == "inf":
            return math.inf
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = literal(node.operand)
            if isinstance(value, int | float):
                return -value
        raise ModelError(f"{source}: the model's description has an argument that is no literal: {ast.unparse(node)}")

    try:
        call = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ModelError(f"{source}: the model's description cannot be parsed: {text[:80]!r}") from error
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise ModelError(f"{source}: the model's description is no constructor call with keywords: {text[:80]!r}")
    return {keyword.arg: literal(keyword.value) for keyword in call.keywords if keyword.arg}


# ------------------------------------------------------------------ weights -> network
_IGNORED = re.compile(r"^(prediction_head\.|enc_pos_embed$|dec_pos_embed$|.*\.act_[1-4]_postprocess\.)")
_ALIAS = re.compile(r"\.layer_rn\.(\d)\.weight$")


def _canonical(weights: Weights) -> dict[str, Callable[[], torch.Tensor]]:
    """Keys under the names of the network's distinct parameters (docs/method.md, Checkpoints)."""
    known = {key: read for key, read in weights.items() if not _IGNORED.match(key)}
    for key in list(known):
        if match := _ALIAS.search(key):
            name = f"{key[: match.start()]}.layer{int(match[1]) + 1}_rn.weight"
            read = known.pop(key)
            known.setdefault(name, read)
    if not any(key.startswith("dec_blocks2.") for key in known):  # weights of a pre-training
        known |= {
            f"dec_blocks2.{key.removeprefix('dec_blocks.')}": read
            for key, read in list(known.items())
            if key.startswith("dec_blocks.")
        }
    return known


def _names(keys: Iterable[str]) -> str:
    return listed(sorted(keys), _LISTED)


def assign_weights(network: nn.Module, weights: Weights, dtype: torch.dtype, device: torch.device, label: str) -> None:
    """Replaces every parameter of the network on `meta` by its tensor, one at a time."""
    known = _canonical(weights)
    wanted = dict(network.named_parameters())
    missing = wanted.keys() - known.keys() - {"mask_token"}
    unexpected = known.keys() - wanted.keys()
    problems = []
    if missing:
        problems.append(f"missing {_names(missing)}")
    if unexpected:
        problems.append(f"unexpected {_names(unexpected)}")
    if problems:
        raise ModelError(f"{label}: the weights do not fit the configuration: {'; '.join(problems)}")
    for name, parameter in wanted.items():
        owner_name, _, attribute = name.rpartition(".")
        owner = network.get_submodule(owner_name)
        tensor = known[name]() if name in known else torch.zeros(parameter.shape)
        if tensor.shape != parameter.shape:
            raise ModelError(
                f"{label}: the weights do not fit the configuration: {name} has shape {tuple(tensor.shape)}, "
                f"the configuration needs {tuple(parameter.shape)}"
            )
        # from the mapped file; converted before it goes to a GPU, which halves what is sent there
        tensor = tensor.to(torch.float32 if isinstance(owner, LayerNorm) else dtype).to(device)
        if tensor.dim() == 4:  # convolutions are up to three times as fast so, on CPUs and GPUs
            tensor = tensor.to(memory_format=torch.channels_last)
        setattr(owner, attribute, nn.Parameter(tensor, requires_grad=False))


def _licence_of(name: str) -> str:
    if name in PRESETS or name.startswith("naver/"):
        return "CC BY-NC-SA 4.0"
    return "unknown (see the model's card)"
