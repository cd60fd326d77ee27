"""New rows of an embedding table, drawn from the law of the trained ones.

SPEAR-VLM initialises its 1024 3D tokens from a multivariate normal with the mean and the covariance
of the pretrained embeddings (arXiv 2511.17411); it does not state a scale of the covariance. 1.0 is
the plain reading; 1e-5 keeps new tokens at the mean, where they take no probability from old ones
(J. Hewitt, "Initializing new word embeddings for pretrained language models", 2021), and is our
default.
"""

import torch

DEFAULT_COVARIANCE_SCALE = 1e-5

# Share of the mean variance added to the diagonal: a table with fewer rows than columns, or one
# with dead columns, has a singular covariance.
_RIDGE = 1e-6
_CHUNK_ROWS = 16384


def embedding_law(table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (D,) and covariance (D, D) of the rows of (N, D), float32, computed in chunks."""
    n, width = table.shape
    assert n >= 2, n
    mean = torch.zeros(width, dtype=torch.float64)
    for rows in table.split(_CHUNK_ROWS):
        mean += rows.double().sum(0).cpu()
    mean /= n
    covariance = torch.zeros(width, width, dtype=torch.float32)
    centre = mean.float()
    for rows in table.split(_CHUNK_ROWS):
        centred = rows.float().cpu() - centre
        covariance += centred.T @ centred
    return centre, covariance / (n - 1)


def draw_embeddings(
    table: torch.Tensor,
    n: int,
    *,
    seed: int,
    covariance_scale: float = DEFAULT_COVARIANCE_SCALE,
) -> torch.Tensor:
    """Draw ``n`` rows (n, D) like those of the trained ``table`` (N, D).

    Args:
        table: trained rows only (no padding rows).
        n: rows to draw.
        seed: of the generator.
        covariance_scale: factor on the covariance; 1e-5 (default) or 1.0.

    Returns:
        (n, D) in the type of ``table``, on the CPU.
    """
    assert covariance_scale >= 0, covariance_scale
    mean, covariance = embedding_law(table)
    width = len(mean)
    # Double precision: the pivots of a wide table get close to the rounding of single precision.
    ridge = max(_RIDGE * float(covariance.diagonal().mean()), 1e-20)
    factor = torch.linalg.cholesky(covariance.double() + ridge * torch.eye(width).double()).float()
    noise = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    return (mean + covariance_scale**0.5 * (noise @ factor.T)).to(table.dtype)
