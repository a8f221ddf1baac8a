"""What :func:`~paddleq.deploy.verify` found."""

from dataclasses import dataclass, field
from typing import List, Optional, Tuple


@dataclass
class Finding:
    """One file in one runtime.

    Attributes:
        runtime: its name; "as it stands" for the operators of the file one by one.
        version: of the runtime.
        file: path of the file.
        top1: share of the samples whose largest score is where it is in the reference; None where
            the output has no scores.
        error: relative L2 distance of the outputs from the reference's.
        ms, float_ms: milliseconds of a run, of this model and of the float one; None if not known.
        size, float_size: bytes of the files.
        worst_layer: (name, error before it, error behind it) of the layer behind which the runtime
            is furthest from the file as it stands; None where it was not looked for.
        fallback: reason why float kernels computed a quantized model; "" where int8 kernels did.
        problem: what is wrong, or None.

    Examples:
        >>> from paddleq.deploy import Finding
        >>> Finding("onnxruntime", "1.31.1", "out/net.onnx", ms=2.0, float_ms=5.0).speedup
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
    def ok(self):
        """Whether nothing is wrong."""
        return self.problem is None

    @property
    def speedup(self):
        """How many times faster than the float model; None if not known."""
        return None if None in (self.ms, self.float_ms) else self.float_ms / self.ms


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
    """What was found, a row for each file in each runtime.

    Attributes:
        path: what was verified.
        samples: how many samples were compared.
        rows: list of :class:`Finding`.

    Examples:
        >>> from paddleq.deploy import Report
        >>> Report("out/net", 0).ok
        False
    """

    path: str
    samples: int
    rows: List[Finding] = field(default_factory=list)

    @property
    def ok(self):
        """Whether every runtime computed what it should; False where none did."""
        return bool(self.rows) and all(row.ok for row in self.rows)

    def __str__(self):
        cells = [[title for title, _ in _COLUMNS]]
        cells += [[cell(row) for _, cell in _COLUMNS] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*cells)]
        lines = [f"{self.path}, {self.samples} samples"]
        for row in cells:
            left = [text.ljust(width) for text, width in zip(row[:2], widths)]
            lines.append("  ".join(left + [text.rjust(width) for text, width in
                                           zip(row[2:], widths[2:])]).rstrip())
        for row in self.rows:
            name = f"{row.runtime}, {row.file}"
            if row.fallback:
                lines.append(f"{name}: {row.fallback}")
            if row.problem:
                lines.append(f"{name}: {row.problem}")
            if row.worst_layer:
                layer, before, behind = row.worst_layer
                lines.append(f"{name}: worst layer {layer}, error {before:.1e} before it and "
                             f"{behind:.1e} behind it")
        return "\n".join(lines)


def _number(value, form):
    return "-" if value is None else form.format(value)
