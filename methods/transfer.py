"""Transfer learning: the network first trains on a source data set. No teacher."""

from bench.method import PARTS, Method, Stage
from methods._checks import above_zero

SOURCE = """\
Baseline: parameter transfer as in Yosinski, Clune, Bengio, Lipson: How transferable are features \
in deep neural networks?, NIPS 2014.
Deviations: all layers but the classifier are copied; their learning rate is a tenth of the \
recipe's by default."""

SEARCH = {"trunk_lr_factor": [0.01, 0.1, 0.3, 1.0]}
"""What tuning tries."""


def method(*, trunk_lr_factor: float = 0.1, freeze_trunk: bool = False) -> Method:
    """Starts from the weights of the cell's source training, then trains on the target's labels.

    All parameters and buffers but the classifier's are copied; L = CE(z_s, y), one stage, a fresh
    optimiser. Parameters can be copied only between equal architectures; any other is refused.

    Args:
        trunk_lr_factor: learning rate of the copied layers as a factor of the recipe's; the new
            classifier has the recipe's own.
        freeze_trunk: trains the classifier alone (linear probe).

    Raises:
        ValueError: a factor not above 0.

    Example:
        >>> method(freeze_trunk=True).plan[0].trains
        frozenset({'head'})
        >>> method().starts_from, method().needs_teacher
        ('source', False)
    """
    above_zero("transfer", trunk_lr_factor=trunk_lr_factor)
    stage = Stage(
        name="finetune",
        share=1.0,
        trains=frozenset({"head"}) if freeze_trunk else PARTS,
        lr_factor=trunk_lr_factor,
        head_lr_factor=1.0,
    )
    return Method(category="baseline", source=SOURCE, plan=(stage,), starts_from="source")
