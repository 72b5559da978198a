"""The settings of a prediction: everything except weights, picture and words (METHOD §8)."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from codeseg.model.checkpoint import CONFIG, find_settings, locate, read_json
from codeseg.model.clip.dense import VARIANTS
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.clip.prompts import CUSTOM_TEMPLATES, TEMPLATES
from codeseg.model.clip.weights import WEIGHTS
from codeseg.model.inference.masks import KNOWLEDGE_SCALE, KNOWLEDGE_THRESHOLD
from codeseg.model.inference.pamr import DILATIONS
from codeseg.model.override import closest, override
from codeseg.model.pictures.resize import RESIZES
from codeseg.model.regions.config import CLIP, Grouping, Method

SCG = "scg"
TRAINED = ("code", "align")  # methods that need a RUN, of CoDe or of an alignment
METHODS = (*TRAINED, *VARIANTS, SCG, *(f"{name}+{SCG}" for name in (*TRAINED, *VARIANTS)))
EMBEDDED, PHOTOGRAPHS = "storybook", "ViT-B-16"  # the tiny CLIP in the package; the default CLIP
SENTENCES = {
    "custom": CUSTOM_TEMPLATES,
    "imagenet": TEMPLATES,
    "photo": ("a photo of a {}.",),
    "plain": ("{}",),
}
"""Sets of templates by name."""
SIDES = ("short_side", "long_side", "window", "stride")  # in pixels


@dataclass(frozen=True)
class PredictionSettings:
    """Everything that affects a label map except weights, picture and words; recorded with it."""

    method: str = "code"
    """code (the trained segmenter); align (words projected to a self-supervised ViT's patches);
    training-free: maskclip, sclip, clearclip, naclip, scclip; scg labels regions (METHOD §9);
    code+scg, align+scg, naclip+scg … combine both."""
    protocol: str = "code"
    """The protocol from which the settings below come: data_manifests/protocols."""
    normalisation: str = "imagenet"
    """Source of the pixels' mean and deviation: imagenet or clip."""
    resize: str = "opencv"
    """How to resize the picture: opencv (bilinear, as published) or antialiased."""
    positions: str = "size"
    """How to resize position embeddings: by size, or by factor (h + 0.1)/n as in SCLIP."""
    edges: str = "pad"
    """Windows that do not fill their last patches: pad with zeros, or cut and stretch the map."""
    short_side: int = 448
    """Resize the picture to this short side, pixels, …"""
    long_side: int = 2048
    """… unless its long side would exceed this one."""
    window: int = 448
    """Side of the sliding window, pixels; 0: the whole picture at once."""
    stride: int = 224
    """Step of the sliding window, pixels."""
    precision: str = "fp32"
    """Precision of matrix products: fp32, or bf16 (autocast), faster where hardware supports it."""
    refinement: str = "pamr"
    """Refinement of maps by the picture's colors: pamr, laplacian (far cheaper) or none. Under
    protocol code, the default for training-free methods is none, as published."""
    refine_at: str = "mask"
    """What to refine: mask (each window's, before mixing) or picture (the stitched maps)."""
    dilations: tuple[int, ...] = DILATIONS
    """pamr: dilations of its neighborhoods, pixels."""
    score: str = "sigmoid"
    """sigmoid (each text independently, averaged over windows) or softmax (of averaged cosines,
    over all names of all classes)."""
    logit_scale: float = 40.0
    """softmax: scale of the cosines."""
    background: str = "constant"
    """constant (background_threshold; sigmoid), names (class 0 has names like any other) or vabs
    (the CLIP's text encoder chooses its names from a lexicon)."""
    probability_threshold: float = 0.0
    """softmax: less probable pixels become background, if there is one."""
    area_threshold: float = 0.0
    """softmax: classes that cover no larger share of the foreground are dropped, if there is a
    background."""
    prompts: str = "learned"
    """code: learned (the trained prompt) or templates (those of the knowledge branch)."""
    templates: str = "custom"
    """Sentences for dense CLIP masks: custom (the reference's 9), imagenet (CLIP's 80), photo
    (one) or plain (the word)."""
    knowledge_weight: float = 0.3
    """code, align (0 by default): share of the dense CLIP's mask in the mix."""
    knowledge_dense: str = "maskclip"
    """code, align: dense method of the knowledge branch."""
    knowledge_scale: float = KNOWLEDGE_SCALE
    """Dense mask = sigmoid(scale · (cosine − threshold))."""
    knowledge_threshold: float = KNOWLEDGE_THRESHOLD
    """Cosine at which a dense mask is one half."""
    align_scale: float = 10.0
    """align: mask = sigmoid(scale · (cosine − threshold))."""
    align_threshold: float = 0.24
    """align: cosine at which a mask is one half; a background of 0.4 then corresponds to 0.2."""
    cleaning: float = 0.0
    """align: weight of the attention maps that are mixed into the masks, whose weight is 1
    (Talk2DINO's background cleaning); 0: none."""
    background_threshold: float = 0.4
    """sigmoid: constant score of the background, if there is one."""
    regions: int = 16
    """scg: maximum number of regions per window."""
    region_method: Method = "kmeans"
    """scg: kmeans or spectral."""
    region_min_patches: int = 2
    """scg: smaller regions are merged into their most similar neighbor."""
    region_features: str = CLIP
    """scg: features that patches are grouped by: clip (its keys), storybook or a ViT of timm;
    align+scg always uses the alignment's ViT."""
    region_weight: float = 0.5
    """code+scg …: share of the regions' own labels; the rest is the other method's masks, averaged
    inside each region."""
    region_scale: float = KNOWLEDGE_SCALE
    """scg: a region's score is sigmoid(scale · (cosine − threshold))."""
    region_threshold: float = KNOWLEDGE_THRESHOLD
    """scg: cosine at which a region's score is one half."""

    @property
    def masks_by(self) -> str | None:
        """The method that makes masks, without regions: code, a dense method, or None for scg."""
        return None if self.method == SCG else self.method.removesuffix(f"+{SCG}")

    @property
    def by_regions(self) -> bool:
        """Whether the method uses regions."""
        return self.method == SCG or self.method.endswith(f"+{SCG}")

    @property
    def least(self) -> float:
        """The score that a pixel's best word must exceed; otherwise the pixel is background."""
        by_softmax = self.score == "softmax"
        return self.probability_threshold if by_softmax else self.background_threshold

    @property
    def grouping(self) -> Grouping:
        """The settings that make regions."""
        return Grouping(self.region_method, self.regions, self.region_min_patches)

    @classmethod
    def for_clip(
        cls,
        clip: FrozenClip,
        protocol: Mapping[str, Any] | None = None,
        recorded: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> Self:
        """Return a CLIP's defaults, overridden by the protocol, the recorded best, the changes.

        By default, picture and window have twice the CLIP's native size and the stride is half the
        window. A protocol's pixels are for a CLIP of 224 and are scaled to this one. The best
        settings of the embedded CLIP, then a run's (`recorded`, from `read_settings`), apply only
        under protocol code; those of CLIPs of photographs (weights/photographs.toml) only if no
        protocol is named.

        Raises:
            ValueError: a change names no setting, or its value has the wrong type.
        """
        method, side = changes.get("method", cls.method), 2 * clip.image_size
        defaults = cls(
            method=method,
            short_side=side,
            long_side=2048 * side // 448,
            window=side,
            stride=side // 2,
            refinement="none" if method in VARIANTS else "pamr",
            knowledge_weight=0.0 if method.startswith("align") else cls.knowledge_weight,
        )
        chosen = dict(protocol or {})
        if protocol is None and clip.pretrained != EMBEDDED:
            chosen = read_settings(WEIGHTS / "photographs.toml").get(method, {})
        for key in chosen.keys() & set(SIDES):
            chosen[key] = round(chosen[key] * clip.image_size / 224)
        if (protocol or {}).get("protocol", "code") == "code":
            if clip.pretrained == EMBEDDED:
                chosen |= for_method(read_settings(WEIGHTS / f"{EMBEDDED}.toml"), method)
            chosen |= for_method(recorded or {}, method)
        return override(defaults, chosen | changes)

    def record(self) -> dict[str, Any]:
        """Return the settings that affect this method, to be recorded with a score."""
        method, softmax = self.masks_by, self.score == "softmax"
        foreign = {
            "logit_scale probability_threshold area_threshold": not softmax,
            "background_threshold knowledge_scale knowledge_threshold": softmax,
            "align_scale align_threshold": softmax or method != "align",
            "cleaning": method != "align",
            "knowledge_weight knowledge_dense": method not in TRAINED,
            "prompts": method == "align" or (method != "code" and not self.by_regions),
            "refine_at dilations": self.refinement == "none",
            "regions region_method region_min_patches": not self.by_regions,
            "region_scale region_threshold": not self.by_regions,
            "region_features": method == "align" or not self.by_regions,
            "region_weight": method is None or not self.by_regions,
        }
        left_out = {name for names, out in foreign.items() if out for name in names.split()}
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    def check(self) -> None:
        """Refuse invalid settings; the ValueError names the first."""
        choices = {
            "method": METHODS,
            "knowledge_dense": tuple(VARIANTS),
            "prompts": ("learned", "templates"),
            "templates": tuple(SENTENCES),
            "normalisation": ("imagenet", "clip"),
            "resize": RESIZES,
            "positions": ("size", "factor"),
            "edges": ("pad", "cut"),
            "precision": ("fp32", "bf16"),
            "refinement": ("pamr", "laplacian", "none"),
            "refine_at": ("mask", "picture"),
            "score": ("sigmoid", "softmax"),
            "background": ("constant", "names", "vabs"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r} is none of {', '.join(known)}")
        if (self.score == "sigmoid") != (self.background == "constant"):
            raise ValueError(
                f"score {self.score} does not go with background {self.background}: sigmoid needs "
                "constant, softmax needs names or vabs"
            )
        if not self.dilations or min(self.dilations) < 1:
            raise ValueError(f"dilations must be at least 1 pixel, not {self.dilations}")
        for name in SIDES:
            if getattr(self, name) < (name != "window"):
                raise ValueError(f"{name} must be at least 1 pixel, not {getattr(self, name)}")
        if self.stride > self.window > 0:
            raise ValueError(
                f"stride {self.stride} exceeds window {self.window}: pixels would be left out"
            )
        shares = ("knowledge_weight", "region_weight", "probability_threshold", "area_threshold")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in 0..1, not {getattr(self, name)}")
        if self.cleaning < 0:
            raise ValueError(f"cleaning must not be negative, not {self.cleaning}")
        _ = self.grouping  # checks itself


def read_settings(path: Path) -> dict[str, Any]:
    """Read a TOML file of settings and of tables that apply to one method; refuse unknown names."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        named = [key for key, value in table.items() if isinstance(value, Mapping)]
        if unknown := set(named).difference(METHODS):
            raise ValueError(f"[{min(unknown)}] is no method; {closest(min(unknown), METHODS)}")
        for method in METHODS:
            override(PredictionSettings(), for_method(table, method))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return table


def lexicon() -> list[str]:
    """Return the words from which the background's are chosen by default."""
    return (WEIGHTS / "lexicon.txt").read_text().splitlines()


def run_settings(run: str | Path) -> dict[str, Any]:
    """Return the settings chosen for a run (settings.toml in RUN or its checkpoint), or {}."""
    path = find_settings(locate(run))
    return {} if path is None else read_settings(path)


def default_method(run: str | Path | None, clip: str) -> str:
    """Return the default method: the run's (recorded, or its kind), else the CLIP's best."""
    if run is not None:
        kind = "align" if "backbone" in read_json(locate(run) / CONFIG) else "code"
        return str(run_settings(run).get("method", kind))
    return "naclip" if clip == EMBEDDED else "scclip"


def for_method(table: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Return a table's settings for a method: the table's own, then its [code], then [code+scg]."""
    settings = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    for name in (method.removesuffix(f"+{SCG}"), method):
        settings |= table.get(name, {})
    return settings
