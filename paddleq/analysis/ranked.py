"""Results that have a row for each layer and an order of badness."""

import abc

from .._checks import check_int
from .._text import table


class Ranked(abc.ABC):
    """Rows, one for each layer, in the order in which the model has them.

    Args:
        rows: what has an attribute ``name``.
    """

    def __init__(self, rows):
        self.rows = list(rows)

    def __iter__(self):
        return iter(self.rows)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, name):
        """The row of the layer of this name."""
        return next(row for row in self.rows if row.name == name)

    def __str__(self):
        return self.table()

    @abc.abstractmethod
    def ranking(self):
        """The rows, worst first; without those of layers that no data reached."""

    def worst(self, count=1):
        """The names of the ``count`` worst layers, worst first."""
        check_int("count", count, 1)
        return [row.name for row in self.ranking()[:count]]

    def table(self):
        """The rows as text, worst first; layers that no data reached come last."""
        ranking = self.ranking()
        rows = ranking + [row for row in self.rows if row not in ranking]
        return table([self._titles(), *map(self._cells, rows)])

    @abc.abstractmethod
    def _titles(self):
        """The titles of the columns."""

    @abc.abstractmethod
    def _cells(self, row):
        """The texts of a row."""
