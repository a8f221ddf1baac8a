"""Results of :func:`~paddleq.deploy.verify`."""

from dataclasses import dataclass, field
from typing import List, Optional, Tuple


@dataclass
class RuntimeResult:
    """Result of one file in one runtime.

    Attributes:
        runtime: name of the runtime; "reference" for the operators of the file one by one, in
            float.
        version: version of the runtime.
        file: path of the file.
        top1: share of samples with the top-1 class of the reference; None without scores.
        error: relative L2 distance of the outputs from the reference's.
        ms, float_ms: latency of this model and of the float model; None if not measured.
        size, float_size: size of the files in bytes.
        worst_layer: (name, error before it, error after it) of the layer at which the error of the
            runtime increases most; None if not searched.
        fallback: reason why float kernels computed a quantized model; "" where int8 kernels did.
        problem: reason why ``ok`` is False, or None.

    Examples:
        >>> from paddleq.deploy import RuntimeResult
        >>> RuntimeResult("onnxruntime", "1.31.1", "out/net.onnx", ms=2.0, float_ms=5.0).speedup
        2.5
    """

    runtime: str
    version: str
    file: str
    top1: Optional[float] = None
    error: Optional[float] = None
    ms: Optional[float] = None
    float_ms: Optional[float] = None
    size: Optional[int] = None
    float_size: Optional[int] = None
    worst_layer: Optional[Tuple[str, float, float]] = None
    fallback: str = ""
    problem: Optional[str] = None

    @property
    def ok(self) -> bool:
        """True if there is no problem."""
        return self.problem is None

    @property
    def speedup(self) -> Optional[float]:
        """Speedup over the float model; None if not measured."""
        return None if self.ms is None or self.float_ms is None else self.float_ms / self.ms


_COLUMNS = (
    ("runtime", lambda row: f"{row.runtime} {row.version}".strip()),
    ("file", lambda row: row.file.rpartition(".")[2]),
    ("top-1", lambda row: _number(row.top1, "{:.2%}")),
    ("error", lambda row: _number(row.error, "{:.1e}")),
    ("ms", lambda row: _number(row.ms, "{:.2f}")),
    ("FP32 ms", lambda row: _number(row.float_ms, "{:.2f}")),
    ("faster", lambda row: _number(row.speedup, "{:.2f}x")),
    ("MB", lambda row: _number(row.size and row.size / 1e6, "{:.2f}")),
    ("of FP32", lambda row: _number(row.float_size and row.size / row.float_size, "{:.3f}")),
    ("", lambda row: "ok" if row.ok else "NO"),
)


@dataclass
class Report:
    """Report of :func:`~paddleq.deploy.verify`, with a row for each file in each runtime.

    Attributes:
        path: path of the verified model.
        samples: number of compared samples.
        rows: list of :class:`RuntimeResult`.

    Examples:
        >>> from paddleq.deploy import Report
        >>> Report("out/net", 0).ok
        False
    """

    path: str
    samples: int
    rows: List[RuntimeResult] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if there are rows and none has a problem."""
        return bool(self.rows) and all(row.ok for row in self.rows)

    def __str__(self) -> str:
        columns = []
        for number, (title, cell) in enumerate(_COLUMNS):
            column, justify = [title, *map(cell, self.rows)], str.rjust if number > 1 else str.ljust
            columns.append([justify(text, max(map(len, column))) for text in column])
        lines = [f"{self.path}, {self.samples} samples"]
        lines += ["  ".join(row).rstrip() for row in zip(*columns)]
        for row in self.rows:
            notes = [row.fallback, row.problem]
            if row.worst_layer:
                layer, before, after = row.worst_layer
                notes.append(f"worst layer {layer}, error {before:.1e} before it and {after:.1e} "
                             "after it")
            lines += [f"{row.runtime}, {row.file}: {note}" for note in notes if note]
        return "\n".join(lines)


def _number(value, form):
    return "-" if value is None else form.format(value)
