"""One small layer of each type and configuration, with the shape of its input."""

from paddle import nn

LAYERS = {
    "conv1d": (lambda: nn.Conv1D(4, 6, 3, padding=1), [3, 4, 9]),
    "conv1d_nlc": (lambda: nn.Conv1D(4, 6, 3, data_format="NLC"), [3, 9, 4]),
    "conv1d_groups": (lambda: nn.Conv1D(4, 8, 3, groups=2, dilation=2), [3, 4, 9]),
    "conv2d": (lambda: nn.Conv2D(3, 5, 3), [2, 3, 8, 8]),
    "conv2d_no_bias": (lambda: nn.Conv2D(3, 5, 3, bias_attr=False), [2, 3, 8, 8]),
    "conv2d_depthwise": (lambda: nn.Conv2D(6, 6, 3, groups=6), [2, 6, 8, 8]),
    "conv2d_multiplier": (lambda: nn.Conv2D(6, 12, 3, groups=6), [2, 6, 8, 8]),
    "conv2d_groups": (lambda: nn.Conv2D(6, 8, 3, groups=2, stride=2), [2, 6, 9, 9]),
    "conv2d_dilated": (lambda: nn.Conv2D(3, 5, 3, dilation=2), [2, 3, 9, 9]),
    "conv2d_same": (lambda: nn.Conv2D(3, 5, 3, padding="SAME", stride=2), [2, 3, 9, 9]),
    "conv2d_valid": (lambda: nn.Conv2D(3, 5, 3, padding="VALID"), [2, 3, 9, 9]),
    "conv2d_uneven": (lambda: nn.Conv2D(3, 5, 3, padding=[[0, 0], [0, 0], [1, 2], [0, 1]]),
                      [2, 3, 9, 9]),
    "conv2d_reflect": (lambda: nn.Conv2D(3, 5, 3, padding=1, padding_mode="reflect"),
                       [2, 3, 9, 9]),
    "conv2d_nhwc": (lambda: nn.Conv2D(3, 5, 3, data_format="NHWC"), [2, 8, 8, 3]),
    "conv2d_odd": (lambda: nn.Conv2D(7, 13, 3), [1, 7, 5, 5]),
    "conv3d": (lambda: nn.Conv3D(2, 4, 3), [2, 2, 5, 5, 5]),
    "conv1d_transpose": (lambda: nn.Conv1DTranspose(4, 6, 3, stride=2), [3, 4, 7]),
    "conv2d_transpose": (lambda: nn.Conv2DTranspose(4, 6, 3, stride=2), [2, 4, 5, 5]),
    "conv2d_transpose_groups": (lambda: nn.Conv2DTranspose(4, 6, 3, groups=2), [2, 4, 5, 5]),
    "linear": (lambda: nn.Linear(8, 5), [4, 8]),
    "linear_3d": (lambda: nn.Linear(8, 5, bias_attr=False), [2, 3, 8]),
}
LAYER_TYPES = ["Conv1D", "Conv2D", "Conv3D", "Conv1DTranspose", "Conv2DTranspose", "Linear"]
