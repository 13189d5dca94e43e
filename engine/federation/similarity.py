"""How alike two images look: structural similarity and peak signal-to-noise ratio."""

import torch
from torch import Tensor
from torch.nn import functional

WINDOW_PX = 7
C1, C2 = 0.01**2, 0.03**2  # the paper's constants, of images in 0..1


def structural_similarity(one: Tensor, other: Tensor) -> Tensor:
    """SSIM of images in 0..1 (n, channels, height, width), pair by pair: (n,), 1 where they are equal.

    The mean over channels and all WINDOW_PX square windows that lie inside, evenly weighted, with the windows' own
    variances. Two black windows are alike, so images on a black ground are never far apart: compare with a baseline.
    Wang, Bovik, Sheikh & Simoncelli, Image Quality Assessment: From Error Visibility to Structural Similarity, IEEE
    Transactions on Image Processing 13 (2004) 600-612; there a window is Gaussian.
    """
    one, other = one.double(), other.double()

    def mean(values: Tensor) -> Tensor:
        return functional.avg_pool2d(values, WINDOW_PX, stride=1)

    mean_one, mean_other = mean(one), mean(other)
    variances = mean(one * one) - mean_one**2 + mean(other * other) - mean_other**2
    covariance = mean(one * other) - mean_one * mean_other
    luminance = (2 * mean_one * mean_other + C1) / (mean_one**2 + mean_other**2 + C1)
    return (luminance * (2 * covariance + C2) / (variances + C2)).mean((1, 2, 3))


def peak_signal_to_noise(one: Tensor, other: Tensor) -> Tensor:
    """PSNR in dB of images in 0..1 (n, channels, height, width), pair by pair: (n,); 100 where they are equal."""
    error = (one.double() - other.double()).square().mean((1, 2, 3))
    return -10 * torch.log10(error.clamp(min=1e-10))
