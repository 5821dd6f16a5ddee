"""The base class of all networks: taps by name, and a forward pass that stops early."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import safetensors.torch
import torch
from torch import Tensor, nn

from bench.method import Shapes

STAGES = 4  # the most stages that are found in another library's network
REQUIRED = ("embedding", "logits")


class Network(nn.Module):
    """A classifier whose inner tensors (taps) can be read by name; subclasses implement `view`.

    `tap_names` has every tap from shallow to deep, "logits" last. `head` maps the embedding to the
    logits; the rest is the trunk. `bare` is the path of the network as its library has it.
    """

    bare = ""
    tap_names: tuple[str, ...]
    head: nn.Module

    def view(self, images: Tensor, taps: Collection[str]) -> dict[str, Tensor]:
        """The named taps of one batch (B, C, H, W); runs no deeper than the deepest of them.

        Maps are (B, C, H, W), the embedding (B, D), the logits (B, K). ValueError for unknown taps.
        """
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """(B, K) logits."""
        return self.view(images, ("logits",))["logits"]

    def norm_of(self, tap: str) -> nn.BatchNorm2d | None:
        """The BatchNorm that gives a tap, or the main branch of a sum; None where there is none."""
        return None

    def check_taps(self, taps: Collection[str]) -> None:
        """Raises ValueError for a tap that the network lacks, TypeError for a bare name."""
        if isinstance(taps, str):
            raise TypeError(f"taps is the string {taps!r}, wanted a collection such as ({taps!r},)")
        for tap in taps:
            if tap not in self.tap_names:
                raise ValueError(f"no tap {tap!r}; this network has {', '.join(self.tap_names)}")


class Normalised(Network):
    """A network that sees the data's images as its own preprocessing would show them.

    The data's images are (x - m) / s, its own (x - mean) / std: an affine map of each channel. Its
    numbers are part of the state, so that copies and exports keep them.
    """

    def __init__(self, network: Network, mean: Sequence[float], std: Sequence[float]) -> None:
        """`mean` and `std` are per channel, of pixels scaled to [0, 1], as the network's own."""
        super().__init__()
        self.network, self.tap_names = network, network.tap_names
        self.bare = f"network.{network.bare}".rstrip(".")
        self.own = mean, std
        self.scale = nn.Buffer(torch.ones(len(mean), 1, 1))
        self.shift = nn.Buffer(torch.zeros(len(mean), 1, 1))

    def see(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Takes images that are normalised by the data's mean and deviation."""
        m, s, own_m, own_s = (
            torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (mean, std, *self.own)
        )
        self.scale.copy_(s / own_s)
        self.shift.copy_((m - own_m) / own_s)

    @property
    def head(self) -> nn.Module:
        """The classifier of the network inside."""
        return self.network.head

    def norm_of(self, tap: str) -> nn.BatchNorm2d | None:
        """See `Network.norm_of`."""
        return self.network.norm_of(tap)

    def view(self, images: Tensor, taps: Collection[str]) -> dict[str, Tensor]:
        """See `Network.view`."""
        return self.network.view(images * self.scale + self.shift, taps)


class Adapted(Network):
    """A network of another library, as it is there."""

    bare = "model"

    def __init__(self, model: nn.Module) -> None:
        """Makes every activation return a new tensor: one that changes its input spoils a tap."""
        super().__init__()
        self.model = model
        for module in model.modules():
            if getattr(module, "inplace", False):
                module.inplace = False  # pyright: ignore[reportArgumentType]


def misfits(shapes: Shapes, inputs: int) -> Iterator[tuple[str, str]]:
    """Taps whose shapes do not fit a network, with what was wanted; its head reads `inputs`."""
    for tap, shape in shapes.items():
        if tap == "embedding" and shape != (inputs,):
            yield tap, f"has shape {shape}, the head reads ({inputs},)"
        elif tap not in REQUIRED and len(shape) != 3:
            yield tap, f"has shape {shape}, wanted (C, H, W)"


def evenly_spaced(count: int) -> list[int]:
    """Positions of up to `STAGES` of so many blocks, the last one among them.

    Example:
        >>> evenly_spaced(12), evenly_spaced(3)
        ([2, 5, 8, 11], [0, 1, 2])
    """
    places = {round((k + 1) * count / STAGES) - 1 for k in range(STAGES)}
    return sorted(place for place in places if place >= 0)


@contextmanager
def refused(name: str, image_shape: tuple[int, ...]) -> Iterator[None]:
    """Says in one line which network cannot be built for which images, and why."""
    try:
        yield
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        first = error.__cause__ or error  # torch.fx says at which node
        reason = (str(first).strip() or type(first).__name__).splitlines()[0]
        raise ValueError(f"{name} on images of {image_shape}: {reason}") from error


@contextmanager
def modes_restored(network: nn.Module) -> Iterator[None]:
    """Gives every module its own mode back at the end; a frozen part may differ from the whole."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def tap_shapes(network: Network, image_shape: tuple[int, int, int]) -> Shapes:
    """Shape of one sample's tensor at every tap; modes and buffers do not change."""
    images = torch.zeros(2, *image_shape).to(next(network.parameters()))
    with modes_restored(network), torch.no_grad():
        view = network.eval().view(images, network.tap_names)
    return {tap: tuple(x.shape[1:]) for tap, x in view.items()}


# --- what a plugin's network must satisfy ---------------------------------------------------------


def check_network(build: Callable[[], Network], classes: int, shape: tuple[int, int, int]) -> None:
    """Raises ValueError with the first fault, and its cure, of what `build` draws each time."""
    if fault := _fault(build(), build(), classes, shape):
        raise ValueError(fault)


def _fault(network: Network, other: Network, classes: int, shape: tuple[int, int, int]) -> str:
    names, head = getattr(network, "tap_names", ()), getattr(network, "head", None)
    if missing := [tap for tap in REQUIRED if tap not in names]:
        return f"tap_names lacks {missing[0]!r}; it has {', '.join(names) or 'nothing'}"
    if not isinstance(head, nn.Linear) or all(module is not head for module in network.modules()):
        return f"head is {type(head).__name__}, wanted an nn.Linear that is part of the network"
    owners: dict[int, str] = {}
    for key, tensor in network.state_dict().items():
        if (first := owners.setdefault(tensor.data_ptr(), key)) != key:
            return f"{first} and {key} share memory; give each tensor its own"
    shapes = tap_shapes(network, shape)
    if lacking := [tap for tap in names if tap not in shapes]:
        return f"view does not show tap {lacking[0]!r}, which tap_names has"
    if shapes["logits"] != (classes,):
        return f"logits have shape {shapes['logits']}, wanted ({classes},)"
    for tap, fault in misfits(shapes, head.in_features):
        return f"tap {tap!r} {fault}"
    return _not_restored(network, other, shape)


@torch.no_grad()
def _not_restored(network: Network, other: Network, shape: tuple[int, int, int]) -> str:
    """Whether a network with the saved state of another differs from it, or one from itself."""
    images = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    network.train()(images)  # moves the statistics of BatchNorm
    state = safetensors.torch.save({k: x.contiguous() for k, x in network.state_dict().items()})
    other.load_state_dict(safetensors.torch.load(state))
    shown, again, loaded = network.eval()(images), network(images), other.eval()(images)
    if not torch.equal(shown, again):
        return "in evaluation mode it gives other logits for the same images; draw nothing there"
    lost = "its state does not survive saving and loading; register all of it (nn.Buffer)"
    return "" if torch.equal(shown, loaded) else lost
