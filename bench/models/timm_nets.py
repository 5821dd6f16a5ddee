"""Makes a `Network` of any classifier of timm, whose own means find the taps; an optional extra."""

from collections.abc import Collection
from typing import Any, cast

import torch
from torch import Tensor, nn

from bench.models.network import STAGES, Adapted, Network, evenly_spaced, modes_restored, refused


def names() -> list[str]:
    """The networks of timm."""
    import timm  # pyright: ignore[reportMissingImports]

    return timm.list_models()


def build(name: str, classes: int, image_shape: tuple[int, int, int]) -> Network:
    """A randomly initialised classifier of timm for images (C, H, W).

    ValueError if it has no linear classifier, or cannot take such images.
    """
    import timm  # pyright: ignore[reportMissingImports]

    channels, *size = image_shape
    how: dict[str, Any] = {"pretrained": False, "num_classes": classes, "in_chans": channels}
    with refused(f"timm/{name}", image_shape):
        try:  # transformers are built for a size, most other networks take any
            model = timm.create_model(name, img_size=tuple(size), **how)
        except TypeError:
            model = timm.create_model(name, **how)
        return TimmNetwork(model, image_shape)


class TimmNetwork(Adapted):
    """A classifier of timm with a tap at the deepest map of each of its last four resolutions.

    Of a network of one resolution, such as a plain vision transformer, four maps are taken, evenly
    spaced. Tokens come as maps, without those of classes and registers.
    """

    model: Any

    def __init__(self, model: Any, image_shape: tuple[int, int, int]) -> None:
        """Runs the model once to find its maps; ValueError if its classifier is not linear."""
        super().__init__(model)
        if not isinstance(model.get_classifier(), nn.Linear):
            kind = type(model.get_classifier()).__name__
            raise ValueError(f"its classifier is a {kind}, wanted one nn.Linear")
        images = torch.zeros(2, *image_shape)
        with modes_restored(model), torch.no_grad():
            maps = model.eval().forward_intermediates(images, intermediates_only=True)
            deepest = {tuple(x.shape[2:]): place for place, x in enumerate(maps)}
            alike = len(deepest) == 1
            places = evenly_spaced(len(maps)) if alike else sorted(deepest.values())[-STAGES:]
            self.places = {f"stage{k}": place for k, place in enumerate(places, start=1)}
            self.tap_names = (*self.places, "embedding", "logits")
            if not torch.equal(self(images), model(images)):
                raise ValueError("its classifier does not read what timm calls its embedding")

    @property
    def head(self) -> nn.Linear:
        """The classifier, which is registered inside the model."""
        return cast(nn.Linear, self.model.get_classifier())

    def view(self, images: Tensor, taps: Collection[str]) -> dict[str, Tensor]:
        """See `Network.view`."""
        self.check_taps(taps)
        stages = [tap for tap in self.places if tap in taps]
        wanted = [self.places[tap] for tap in stages]
        shown: dict[str, Tensor] = {}
        if not {"embedding", "logits"}.isdisjoint(taps):
            if wanted:
                last, maps = self.model.forward_intermediates(images, indices=wanted)
            else:
                last, maps = self.model.forward_features(images), []
            shown["embedding"] = self.model.forward_head(last, pre_logits=True)
            if "logits" in taps:
                shown["logits"] = self.head(shown["embedding"])
        else:
            how = {"indices": wanted, "stop_early": True, "intermediates_only": True}
            maps = self.model.forward_intermediates(images, **how) if wanted else []
        shown |= zip(stages, maps, strict=True)
        return {tap: shown[tap] for tap in taps}
