"""Convolutions whose operands decide which legacy operator they become."""

from ..convert_row import write_by_row
from ..row_syntax import row

_DEFORMABLE, _DEFORMABLE_WITHOUT_MASK = (
    row("deformable_conv", legacy, f"x>Input offset>Offset filter>Filter {mask}", "out>Output",
        "strides:ints paddings:ints dilations:ints deformable_groups:int groups:int "
        "im2col_step:int")
    for legacy, mask in (("deformable_conv", "mask>Mask"), ("deformable_conv_v1", "mask>-?")))


def deformable_conv(converter, operation):
    """Without a mask it is another operator."""
    masked = len(operation.operands) > 3 and operation.operands[3]
    write_by_row(converter, operation, _DEFORMABLE if masked else _DEFORMABLE_WITHOUT_MASK)
