"""A model with frozen parts, as the trainer and the checkpoints use it."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.code.batch import Batch

FROZEN = ("clip.", "backbone.")
"""Prefixes of weights that are neither trained nor saved."""


class Learner(nn.Module):
    """A model trained around a frozen CLIP; `forward(batch, *draws)` returns the loss terms."""

    clip: FrozenClip
    config: Any
    backbone_facts: Mapping[str, Any] | None = None  # of an alignment's ViT

    def set_phase(self, phase: Literal[1, 2]) -> None:
        """Choose what is trained; by default the same in both phases."""

    def draws(self, seed: int, batch: Batch) -> tuple[Tensor | None, ...]:
        """Return the random inputs of a step: the same on any number of ranks."""
        return ()

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """Return every weight that is not of a frozen part."""
        state = self.state_dict()
        return {name: state[name] for name in state if not name.startswith(FROZEN)}

    def load_trainable_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the result of `trainable_state_dict`; refuse weights that are not this model's."""
        own = self.trainable_state_dict()
        for name in sorted(own.keys() | state.keys()):
            if name not in state or name not in own:
                fault = "lacks" if name in own else "has an unknown"
                raise ValueError(f"the checkpoint {fault} weight {name}: it is of another model")
            if own[name].shape != state[name].shape:
                raise ValueError(
                    f"the checkpoint's weight {name} has shape {tuple(state[name].shape)}, "
                    f"the model's {tuple(own[name].shape)}: it is of another model"
                )
        self.load_state_dict(state, strict=False)
