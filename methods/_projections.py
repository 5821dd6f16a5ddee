"""One trained linear layer per network, to embeddings of a common size."""

from torch import Tensor, nn


class Projections(nn.Module):
    """The student's and the teacher's embeddings, each through a layer of its own."""

    def __init__(self, student: int, teacher: int, width: int) -> None:
        """Sizes of both embeddings and of what they are mapped to."""
        super().__init__()
        self.student = nn.Linear(student, width)
        self.teacher = nn.Linear(teacher, width)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Both embeddings, (B, width) each; the teacher's has a gradient too, of its layer."""
        return self.student(student), self.teacher(teacher)
