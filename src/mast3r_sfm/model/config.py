"""Configurations of the network: typed, immutable, with presets of the published models."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from mast3r_sfm.errors import ModelError
from mast3r_sfm.options import DEFAULT_MODEL

logger = logging.getLogger(__name__)

HEAD_TYPES = ("catmlp+dpt", "catconv", "dpt", "linear")

_REQUIRED = (
    "head_type",
    "output_mode",
    "depth_mode",
    "conf_mode",
    "enc_embed_dim",
    "enc_depth",
    "enc_num_heads",
    "dec_embed_dim",
    "dec_depth",
    "dec_num_heads",
    "pos_embed",
)
# constructor arguments of the published models that change nothing at inference
_IGNORED = {
    "patch_embed_cls",
    "landscape_only",
    "freeze",
    "mask_ratio",
    "norm_im2_in_dec",
    "desc_mode",
    "mlp_ratio",
    "inf",
}


@dataclass(frozen=True)
class Activation:
    """Output activation `(name, low, high)` of the points or of a confidence (docs/method.md, Output activations)."""

    name: str
    low: float
    high: float


FINE_PAIRS_ON_CPU = 36
"""Pairs (those of a complete graph of nine photos) up to which a CPU has the time for a model's fine image size."""


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a two-view network, plus what a model may say about its own use.

    image_shape      (H, W) pixels the model was trained at; the long edge is the default image size
    fine_image_size  long edge at which it is more exact on photos, for who has the time; None: no other
    patch_size       side of a token in pixels
    rope_base        base of the rotary position embedding's frequencies
    desc_dim         length of the local descriptors, None for DUSt3R
    two_confs        the descriptors have a confidence channel of their own
    accept_squares   square images are used whole instead of being cropped to 4:3
    min_conf_thr     confidence threshold that suits this model's scenes, None: the tool's default
    min_match_conf   confidence that one in ten confirmed matches of a pair reaches if its images show the same, None:
                     not asked for
    licence          SPDX name or short name of the weights' licence, None if unknown
    """

    head_type: str
    depth_mode: Activation
    conf_mode: Activation
    enc_embed_dim: int
    enc_depth: int
    enc_num_heads: int
    dec_embed_dim: int
    dec_depth: int
    dec_num_heads: int
    image_shape: tuple[int, int] = (224, 224)
    fine_image_size: int | None = None
    patch_size: int = 16
    rope_base: float = 100.0
    desc_dim: int | None = None
    two_confs: bool = False
    desc_conf_mode: Activation | None = None
    accept_squares: bool = False
    min_conf_thr: float | None = None
    min_match_conf: float | None = None
    licence: str | None = None

    def __post_init__(self) -> None:
        if self.head_type not in HEAD_TYPES:
            raise ModelError(
                f"unknown head_type {self.head_type!r} in the model's config; known: {', '.join(HEAD_TYPES)}"
            )
        if (self.desc_dim is not None) != (self.head_type in ("catmlp+dpt", "catconv")):
            raise ModelError(f"head_type {self.head_type!r} does not fit the output_mode of the model's config")
        for side, width, heads in (
            ("enc", self.enc_embed_dim, self.enc_num_heads),
            ("dec", self.dec_embed_dim, self.dec_num_heads),
        ):
            if width % heads or (width // heads) % 4:
                raise ModelError(f"{side}_embed_dim {width} must be a multiple of 4 x {side}_num_heads ({heads})")
        if self.head_type in ("catmlp+dpt", "dpt") and self.dec_depth <= 9:
            raise ModelError(f"head_type {self.head_type!r} needs dec_depth > 9, the config has {self.dec_depth}")
        if self.head_type == "catconv" and self.patch_size % 2:
            raise ModelError(f"head_type 'catconv' needs an even patch_size, the config has {self.patch_size}")

    @property
    def has_descriptors(self) -> bool:
        return self.desc_dim is not None

    @property
    def image_size(self) -> int:
        """Default long edge of the network's images in pixels."""
        return max(self.image_shape)

    def usual_image_size(self, num_images: int, on_gpu: bool) -> int:
        """Long edge that suits a set of so many images: the fine one on a GPU, and on a CPU where pairs are few."""
        pairs = num_images * (num_images - 1) // 2
        if self.fine_image_size is not None and (on_gpu or pairs <= FINE_PAIRS_ON_CPU):
            return self.fine_image_size
        return self.image_size

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
        """Reads the constructor arguments of a published model (docs/method.md, Configurations).

        Raises ModelError that names `source` and the field, if one is missing or unusable.
        """
        missing = [name for name in _REQUIRED if name not in raw]
        if missing:
            raise ModelError(f"{source}: field {missing[0]!r} is missing (needed: {', '.join(_REQUIRED)})")
        output_mode = str(raw["output_mode"])
        desc_dim: int | None = None
        if output_mode.startswith("pts3d+desc"):
            digits = output_mode.removeprefix("pts3d+desc")
            if not digits.isdigit() or int(digits) < 1:
                raise ModelError(f"{source}: output_mode {output_mode!r} must read pts3d+desc<length>")
            desc_dim = int(digits)
        elif output_mode != "pts3d":
            raise ModelError(f"{source}: output_mode {output_mode!r} is unknown; known: pts3d, pts3d+desc<length>")
        if "norm" not in str(raw.get("desc_mode", "norm")):
            raise ModelError(f"{source}: desc_mode {raw['desc_mode']!r} is unknown; known: 'norm'")
        position = str(raw["pos_embed"])
        if not position.startswith("RoPE") or not _is_number(position[4:]):
            raise ModelError(f"{source}: pos_embed {position!r} is not supported; known: RoPE<base>, as RoPE100")
        if float(raw.get("mlp_ratio", 4)) != 4 or raw.get("norm_im2_in_dec", True) is not True:
            raise ModelError(f"{source}: only mlp_ratio 4 with norm_im2_in_dec true is supported")
        two_confs = bool(raw.get("two_confs", False))
        desc_conf_mode = raw.get("desc_conf_mode")
        known = {f.name for f in fields(cls)} | {"img_size"} | set(_REQUIRED) | _IGNORED
        unknown = sorted(set(raw) - known)
        if unknown:
            logger.warning("%s: ignored unknown fields %s", source, ", ".join(unknown))
        try:
            return cls(
                head_type=str(raw["head_type"]),
                depth_mode=_activation(raw["depth_mode"], ("exp", "square", "linear"), "depth_mode", source),
                conf_mode=_activation(raw["conf_mode"], ("exp", "sigmoid"), "conf_mode", source),
                **{name: int(raw[name]) for name in _REQUIRED if name.startswith(("enc_", "dec_"))},
                image_shape=_size(raw.get("img_size", (224, 224))),
                fine_image_size=None if raw.get("fine_image_size") is None else int(raw["fine_image_size"]),
                patch_size=int(raw.get("patch_size", 16)),
                rope_base=float(position[4:]),
                desc_dim=desc_dim,
                two_confs=two_confs,
                desc_conf_mode=None
                if desc_conf_mode is None
                else _activation(desc_conf_mode, ("exp", "sigmoid"), "desc_conf_mode", source),
                accept_squares=bool(raw.get("accept_squares", False)),
                min_conf_thr=None if raw.get("min_conf_thr") is None else float(raw["min_conf_thr"]),
                min_match_conf=None if raw.get("min_match_conf") is None else float(raw["min_match_conf"]),
                licence=raw.get("licence"),
            )
        except (TypeError, ValueError) as error:
            raise ModelError(f"{source}: {error}") from error


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _size(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    height, width = value
    return int(height), int(width)


def _activation(value: Any, names: tuple[str, ...], what: str, source: str) -> Activation:
    if not isinstance(value, list | tuple) or len(value) != 3 or value[0] not in names:
        raise ModelError(f"{source}: {what} {value!r} must be [name, low, high] with a name of {', '.join(names)}")
    activation = Activation(str(value[0]), float(value[1]), float(value[2]))
    if what == "depth_mode" and (activation.low, activation.high) != (-math.inf, math.inf):
        raise ModelError(f"{source}: depth_mode must be unbounded (-Infinity, Infinity), got {value!r}")
    return activation


_EXP = Activation("exp", -math.inf, math.inf)
_CONF = Activation("exp", 1.0, math.inf)
_DESC_CONF = Activation("exp", 0.0, math.inf)
_PUBLISHED_LICENCE = "CC BY-NC-SA 4.0"


def _published(head_type: str, size: int, **extra: Any) -> ModelConfig:
    """ViT-Large encoder, base decoder: the widths that all published models share."""
    return ModelConfig(
        head_type=head_type,
        depth_mode=_EXP,
        conf_mode=_CONF,
        enc_embed_dim=1024,
        enc_depth=24,
        enc_num_heads=16,
        dec_embed_dim=768,
        dec_depth=12,
        dec_num_heads=12,
        image_shape=(size, size),
        licence=_PUBLISHED_LICENCE,
        **extra,
    )


PRESETS: Mapping[str, ModelConfig] = {
    DEFAULT_MODEL: _published("catmlp+dpt", 512, desc_dim=24, two_confs=True, desc_conf_mode=_DESC_CONF),
    "naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt": _published("dpt", 512),
    "naver/DUSt3R_ViTLarge_BaseDecoder_512_linear": _published("linear", 512),
    "naver/DUSt3R_ViTLarge_BaseDecoder_224_linear": _published("linear", 224),
}
"""Configurations of the published models by their Hugging Face names."""
