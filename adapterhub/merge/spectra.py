"""What sums of adapters keep, without the adapters: the spectra of any weighted sum from R x R matrices, many modules at once.

BᵀB and AAᵀ of the stacked factors are worked out once. A weighted sum is then Q·(T·W)·A with orthonormal Q, TᵀT = BᵀB and
the weights W of the columns, and its singular values, its energy and what it holds of each parent follow from one
eigenproblem of R x R a module, as in adapterhub.lora.lowrank, whose bounds these are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from adapterhub.lora.inner import Stack
from adapterhub.lora.lowrank import DROP, NOISE, evened
from adapterhub.merge.report import Kept, Vector


@dataclass(frozen=True)
class Products:
    """One module: BᵀB and AAᵀ of the stacked factors, and the parents' ranks there, 0 for one that lacks it."""

    ranks: tuple[int, ...]
    left: torch.Tensor
    """(R, R) float64."""
    right: torch.Tensor
    """(R, R) float64."""
    gram: torch.Tensor
    """(K, K) float64, zeros for a parent that lacks the module."""

    @classmethod
    def of(cls, stack: Stack, ranks: tuple[int, ...]) -> Products:
        there = torch.tensor([rank > 0 for rank in ranks])
        gram = torch.zeros(len(ranks), len(ranks), dtype=torch.float64)
        gram[there[:, None] & there] = stack.gram().flatten()
        return cls(ranks, stack.left, stack.right, gram)


class Spectra:
    """The products of all modules, those of equal ranks side by side."""

    def __init__(self, products: Mapping[str, Products]) -> None:
        self.products = products
        alike: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for name, one in products.items():
            alike[one.ranks].append(name)
        self._groups = [_Group(ranks, names, products) for ranks, names in alike.items()]

    def kept(self, weights: Mapping[str, Sequence[float]]) -> dict[str, Kept]:
        """What each number of directions keeps, by module; `weights` has one number a parent for each module.

        torch.linalg.LinAlgError where a sum's factors are beyond float32.
        """
        found: dict[str, Kept] = {}
        for group in self._groups:
            found.update(group.kept([weights[name] for name in group.names]))
        return {name: found[name] for name in self.products}

    def uncut(self, weights: Mapping[str, Sequence[float]], directions: Mapping[str, int]) -> dict[str, Kept]:  # fmt: skip
        """The same where nothing is cut off, with the `directions` that each module then has."""
        found = {}
        for name, one in self.products.items():
            with_parents = one.gram @ torch.tensor(weights[name], dtype=torch.float64)
            energy = torch.tensor(weights[name], dtype=torch.float64) @ with_parents
            gram = torch.zeros(len(one.ranks) + 1, len(one.ranks) + 1, dtype=torch.float64)
            gram[0, 0], gram[0, 1:], gram[1:, 1:] = energy.clamp(min=0), with_parents, one.gram
            found[name] = Kept.all_of(gram.numpy(), directions[name])
        return found


class _Group:
    """Modules in which the parents have the same ranks; every matrix is (modules, R, R) float64."""

    def __init__(
        self, ranks: tuple[int, ...], names: Sequence[str], products: Mapping[str, Products]
    ) -> None:
        self.names = names
        mine = [products[name] for name in names]
        self._left = torch.stack([one.left for one in mine])
        self._right = torch.stack([one.right for one in mine])
        self._norms = torch.stack([one.gram.diagonal() for one in mine]).clamp(min=0).numpy()
        self._owners = torch.arange(len(ranks)).repeat_interleave(torch.tensor(ranks))
        ends = torch.tensor(ranks).cumsum(0).tolist()
        self._places = [slice(end - rank, end) for end, rank in zip(ends, ranks, strict=True)]
        even = evened(self._left.diagonal(dim1=1, dim2=2), self._right.diagonal(dim1=1, dim2=2))
        squares, v = torch.linalg.eigh(even[:, :, None] * self._left * even[:, None, :])
        used = squares > NOISE * squares[:, -1:]
        roots = torch.where(used, squares, 0.0).sqrt()
        self._triangle = roots[:, :, None] * v.mT / even[:, None, :]  # T, with TᵀT = BᵀB

    def kept(self, weights: Sequence[Sequence[float]]) -> Iterator[tuple[str, Kept]]:
        columns = torch.tensor(weights, dtype=torch.float64)[:, self._owners]
        weighted = columns[:, :, None] * self._left * columns[:, None, :]
        left, right = (side.diagonal(dim1=1, dim2=2) for side in (weighted, self._right))
        if float(left.max()) > torch.finfo(torch.float32).max ** 2:
            raise torch.linalg.LinAlgError("the weighted factors overflow float32")  # type: ignore[attr-defined]
        half = self._triangle * columns[:, None, :]
        squares, p = torch.linalg.eigh(half @ self._right @ half.mT)
        squared = evened(left, right) ** 2
        noise = NOISE * (left * squared).sum(1) * (right / squared).sum(1)
        values = torch.where(squares > noise[:, None], squares, 0.0).sqrt().flip(1)
        kept = values > DROP * values[:, :1]
        values, p = torch.where(kept, values, 0.0), p.flip(2)
        inverse = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)
        counts = kept.sum(1).tolist()
        energies = torch.where(kept.any(1), (weighted * self._right).sum((1, 2)).clamp(min=0), 0.0)
        directions = (values**2).cumsum(1).numpy()
        inner, inside = [], []
        for place in self._places:
            into = p.mT @ self._triangle[:, :, place]  # (modules, k, rank)
            seen = into @ (self._right[:, place] @ (half.mT @ p))  # (modules, k, k)
            diagonal = torch.where(kept, seen.diagonal(dim1=1, dim2=2), 0.0)
            inner.append(diagonal.cumsum(1).numpy())
            shares = torch.where(kept[:, :, None], seen * inverse[:, None, :], 0.0) ** 2
            inside.append(shares.cumsum(1).cumsum(2).diagonal(dim1=1, dim2=2).numpy())
        for row, (name, count, energy) in enumerate(
            zip(self.names, counts, energies.tolist(), strict=True)
        ):
            most = max(1, count)  # one direction of zeros where there is nothing

            def cut(found: Vector, row: int = row, most: int = most) -> Vector:
                return found[row, :most]

            norms = self._norms[row].tolist()
            yield name, Kept(energy, cut(directions), norms, [*map(cut, inner)], [*map(cut, inside)])  # fmt: skip
