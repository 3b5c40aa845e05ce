"""The Frechet distance between two sets of features, each taken as a Gaussian.

FID (arXiv 1706.08500) with features of pictures, FVD (arXiv 1812.01717) with those of clips.
"""

from __future__ import annotations

import numpy as np


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """|m1 - m2|^2 + Tr(C1 + C2 - 2 sqrt(C1 C2)) of features (n, d) and (m, d); n, m at least 2.

    With centred features A and B over sqrt(n - 1), C1 = A'A and C2 = B'B, and the trace of
    sqrt(C1 C2) is the sum of the singular values of A B': no root of a matrix is needed, and fewer
    features than dimensions, where the covariances are singular, are no special case.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError("a covariance needs at least two features")
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    difference = first.mean(0) - second.mean(0)
    a, b = _root(first), _root(second)
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    # The last term can exceed the others by rounding alone.
    return max(float(difference @ difference + (a**2).sum() + (b**2).sum() - 2 * cross), 0.0)


def _root(features):
    """A matrix R with at most d rows and R'R the covariance."""
    centred = (features - features.mean(0)) / np.sqrt(len(features) - 1)
    return np.linalg.qr(centred, mode="r") if len(centred) > centred.shape[1] else centred
