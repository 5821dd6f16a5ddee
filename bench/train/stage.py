"""What a stage trains: the parts of a student, and the training images."""

from torch import Tensor, nn

from bench.method import Stage
from bench.models.network import Network


def images_of(
    stage: Stage, kept: Tensor | None, labelled: Tensor | None, train_images: int
) -> tuple[Tensor | None, Tensor | None]:
    """The training images of a stage.

    `kept`: (N,) bool, the images that the stage's `keep` chose; None without a choice. `labelled`:
    see `Student`. N is `train_images`.

    Returns:
        Positions of the images that an epoch goes through, and (N,) bool, the images whose transfer
        loss counts; None for all.

    Raises:
        ValueError: no image was kept.
    """
    subset = taught = None
    if kept is not None:
        if not kept.any():
            raise ValueError(f"stage {stage.name!r}: no training image was kept")
        if stage.task_on_all:
            taught = kept
        else:
            subset = kept.nonzero().flatten()
    if not stage.needs_teacher and labelled is not None:
        # As many steps as with all images, on labelled images that are repeated.
        known = labelled.nonzero().flatten()
        subset = known.repeat(-(-train_images // len(known)))[:train_images]
    return subset, taught


def parts_of(network: Network, connector: nn.Module) -> dict[str, list[nn.Parameter]]:
    """All parameters by the names of `Stage.trains`: trunk, head and connector."""
    head = list(network.head.parameters())
    own = {id(parameter) for parameter in head}
    trunk = [p for p in network.parameters() if id(p) not in own]
    return {"trunk": trunk, "head": head, "connector": list(connector.parameters())}


def freeze(stage: Stage, network: Network, connector: nn.Module) -> None:
    """Freezes the parts that the stage does not train, and unfreezes the others."""
    for part, parameters in parts_of(network, connector).items():
        for parameter in parameters:
            parameter.requires_grad_(part in stage.trains)
    # Evaluation mode also freezes the running statistics of BatchNorm.
    network.train("trunk" in stage.trains)
    network.head.train("head" in stage.trains)
    connector.train("connector" in stage.trains)
