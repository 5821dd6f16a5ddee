"""The baseline: the student without a teacher, which every method has to beat."""

from bench.method import Method, Stage

SOURCE = "Baseline: the student trained on the labels alone by cross-entropy, without a teacher."


def method() -> Method:
    """Plain training: L = CE(z_s, y), one stage, every part.

    Example:
        >>> [stage.name for stage in method().plan], method().needs_teacher
        (['train'], False)
    """
    return Method(category="baseline", source=SOURCE, plan=(Stage(name="train", share=1.0),))
