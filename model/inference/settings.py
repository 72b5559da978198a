"""The settings of a prediction: everything besides weights, picture and words (METHOD §8)."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from codeseg.model.clip.dense import VARIANTS
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.clip.prompts import TEMPLATES
from codeseg.model.clip.weights import WEIGHTS
from codeseg.model.inference.masks import KNOWLEDGE_SCALE, KNOWLEDGE_THRESHOLD
from codeseg.model.override import override
from codeseg.model.regions.config import Grouping, Method

SCG = "scg"
METHODS = ("code", *VARIANTS, SCG, f"code+{SCG}", *(f"{variant}+{SCG}" for variant in VARIANTS))
TRAINING_FREE = "naclip"
"""The method of a CLIP alone where none is named."""
SENTENCES = {"imagenet": TEMPLATES, "photo": ("a photo of a {}.",), "plain": ("{}",)}
"""Sets of templates by name."""


@dataclass(frozen=True)
class PredictionSettings:
    """Everything that decides a label map besides weights, picture and words; recorded with it."""

    method: str = "code"
    """code (the trained segmenter), or a training-free one: maskclip, sclip, clearclip, naclip;
    scg labels regions (METHOD §9); code+scg, naclip+scg … do both."""
    short_side: int = 448
    """The picture is resized to this short side, pixels …"""
    long_side: int = 2048
    """… unless its long side would exceed this one."""
    window: int = 448
    """Side of the sliding window, pixels."""
    stride: int = 224
    """Step of the sliding window, pixels."""
    pamr: bool = True
    """Refine the soft masks by the picture's colours, before the mix; training-free: off, as
    published."""
    prompts: str = "learned"
    """code: learned (the trained prompt) or templates (the text side of the knowledge branch)."""
    templates: str = "imagenet"
    """Sentences for dense CLIP masks: imagenet (CLIP's 80), photo (one) or plain (the word)."""
    knowledge_weight: float = 0.3
    """code: share of the dense CLIP's mask in the mix; the others are all dense CLIP."""
    knowledge_dense: str = "maskclip"
    """code: the dense form of the knowledge branch."""
    knowledge_scale: float = KNOWLEDGE_SCALE
    """Dense mask = sigmoid(scale · (cosine − threshold))."""
    knowledge_threshold: float = KNOWLEDGE_THRESHOLD
    """Cosine at which a dense mask is one half."""
    background_threshold: float = 0.4
    """Constant score of the background where there is one."""
    regions: int = 16
    """scg: most regions of a window."""
    region_method: Method = "kmeans"
    """scg: kmeans or spectral."""
    region_min_patches: int = 2
    """scg: smaller regions join their most similar neighbour."""
    region_weight: float = 0.5
    """code+scg …: share of the regions' own labels; the rest is the other method's masks, averaged
    inside each region."""
    region_scale: float = KNOWLEDGE_SCALE
    """scg: a region's score is sigmoid(scale · (cosine − threshold))."""
    region_threshold: float = KNOWLEDGE_THRESHOLD
    """scg: cosine at which a region's score is one half."""

    @property
    def masks_by(self) -> str | None:
        """The method that makes masks, without regions: code, a dense form, or None for scg."""
        return None if self.method == SCG else self.method.removesuffix(f"+{SCG}")

    @property
    def by_regions(self) -> bool:
        """Whether regions take part."""
        return self.method == SCG or self.method.endswith(f"+{SCG}")

    @property
    def grouping(self) -> Grouping:
        """How regions are made."""
        return Grouping(self.region_method, self.regions, self.region_min_patches)

    @classmethod
    def for_clip(cls, clip: FrozenClip, **changes: Any) -> Self:
        """Return a CLIP's defaults, then what was recorded as best for it, then the changes.

        The defaults are a picture and window of twice the CLIP's native size and half a step.

        Raises:
            ValueError: a change names no setting, or its value has another type.
        """
        method, side = changes.get("method", cls.method), 2 * clip.image_size
        defaults = cls(
            method=method,
            short_side=side,
            long_side=2048 * side // 448,
            window=side,
            stride=side // 2,
            pamr=method not in VARIANTS,
        )
        return override(defaults, for_method(recorded(clip), method) | changes)

    def record(self) -> dict[str, Any]:
        """The settings that matter for this method, to lie beside a number."""
        values = asdict(self)
        if self.masks_by != "code":
            for name in ("knowledge_weight", "knowledge_dense"):
                del values[name]
            if not self.by_regions:
                del values["prompts"]
        if not self.by_regions:
            values = {k: v for k, v in values.items() if not k.startswith("region")}
        elif self.masks_by is None:
            del values["region_weight"]
        return values

    def check(self) -> None:
        """Refuse settings that make no sense.

        Raises:
            ValueError: names the setting.
        """
        choices = {
            "method": METHODS,
            "knowledge_dense": tuple(VARIANTS),
            "prompts": ("learned", "templates"),
            "templates": tuple(SENTENCES),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r} is none of {', '.join(known)}")
        for name in ("short_side", "long_side", "window", "stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1 pixel, not {getattr(self, name)}")
        if self.stride > self.window:
            raise ValueError(
                f"stride {self.stride} exceeds window {self.window}: pixels would be left out"
            )
        for name in ("knowledge_weight", "region_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in 0..1, not {getattr(self, name)}")
        _ = self.grouping  # checks itself


def recorded(clip: FrozenClip) -> dict[str, Any]:
    """Return the settings recorded as best for a CLIP; only the embedded one has any."""
    if clip.pretrained != "storybook":
        return {}
    return tomllib.loads((WEIGHTS / "storybook.toml").read_text())


def for_method(table: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Return a table's settings for a method: the table's own, then its [code], then [code+scg]."""
    settings = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    for name in (method.removesuffix(f"+{SCG}"), method):
        settings |= table.get(name, {})
    return settings
