"""`ExpertStack`: one matrix of every expert of a layer, in any form that a `LinearWeight` has.

The experts lie one below the other: E matrices [N, K] are one of [E · N, K]. So what is known of a matrix's rows,
scales and panels of eight rows holds for a stack too, if an expert has whole ones.
"""

from dataclasses import dataclass

from torch import Tensor

from miniserve.kernels.linear_weight import ROWS, LinearWeight


@dataclass(frozen=True)
class ExpertStack:
    """W [E, N, K].

    Attributes:
        matrix: [E · N, K], without a bias.
        num_experts: E.
    """

    matrix: LinearWeight
    num_experts: int

    def __post_init__(self) -> None:
        rows = self.matrix.shape[0]
        whole = ROWS if self.matrix.is_4bit else 1
        if rows % (self.num_experts * whole):
            raise ValueError(f"{rows} rows are not those of {self.num_experts} experts, {whole} together")

    @classmethod
    def of(cls, experts: "Tensor | ExpertStack") -> "ExpertStack":
        """A stack, or floats [E, N, K] as one; nothing is copied."""
        if isinstance(experts, ExpertStack):
            return experts
        return cls(LinearWeight(experts.flatten(0, 1)), len(experts))

    def __getitem__(self, expert: int) -> LinearWeight:
        data, scales = (
            None if part is None else part.view(self.num_experts, -1, *part.shape[1:])[expert]
            for part in (self.matrix.data, self.matrix.scales)
        )
        assert data is not None
        return LinearWeight(data, scales)

    @property
    def shape(self) -> tuple[int, int, int]:
        """E, N and K."""
        rows, columns = self.matrix.shape
        return self.num_experts, rows // self.num_experts, columns

    @property
    def nbytes(self) -> int:
        """Of all experts."""
        return self.matrix.nbytes

    def dense(self) -> Tensor:
        """W as it counts in products, [E, N, K]: in its own type, or float32 if it was rounded."""
        return self.matrix.dense().view(self.shape)
