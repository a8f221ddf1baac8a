"""Search of the share of a range that quantizes with the least squared error."""

import paddle

# Shares of the full range. Neighbours differ by 3 %, the last one is 0.048.
_GRID = tuple(0.97 ** power for power in range(1, 101))
_REFINEMENTS = (0.015, 0.0075, 0.00375)


def least_error_shares(error_of, like):
    """Search the shares in (0, 1] of ranges whose quantization has the least squared error.

    A grid from 1 down to 0.048 whose neighbours differ by 3 %, then the neighbours of the best one
    at 1.5, 0.75 and 0.375 %. The error of the whole range is never exceeded.

    Args:
        error_of: function from a tensor of shares to that of the squared errors.
        like: float32 tensor of the shape of the shares.

    Returns:
        The shares, float32 of the shape of ``like``.

    Examples:
        >>> import paddle
        >>> from paddleq.functional.range_search import least_error_shares
        >>> best = paddle.to_tensor([0.5, 2.0])
        >>> shares = least_error_shares(lambda shares: (shares - best).square(), best)
        >>> [round(each, 2) for each in shares.tolist()]
        [0.5, 1.0]
    """
    with paddle.no_grad():
        shares = paddle.ones_like(like)
        error = error_of(shares)

        def tried(candidates):
            found = error_of(candidates)
            better = found < error
            return (paddle.where(better, candidates, shares), paddle.where(better, found, error))

        for share in _GRID:
            shares, error = tried(paddle.full_like(shares, share))
        for width in _REFINEMENTS:
            centre = shares
            for factor in (1.0 + width, 1.0 - width):
                shares, error = tried((centre * factor).clip(max=1.0))
        return shares
