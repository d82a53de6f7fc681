"""At which place a query finds what belongs to it. Refuses to know images and texts.

Never holds the whole matrix of scores: rows of it are made, counted and dropped.
"""

from dataclasses import dataclass

import numpy as np

CHUNK = 512  # queries at a time: 40 MiB of scores for 20,000 candidates
TIE = 1e-6  # of cosine: float32 products of unit rows tell no more apart


@dataclass(frozen=True)
class Ranking:
    """Where each query's best partner stands among the candidates.

    Attributes:
        ranks: int64 (Q,), 1 for the first place.
        wrong: int64 (Q,), how many candidates are no partner of the query.
    """

    ranks: np.ndarray
    wrong: np.ndarray

    def hits(self, top: int, pool: int | None = None) -> np.ndarray:
        """float64 (Q,): whether a partner is among the first ``top``.

        With ``pool``, the chance of that among ``pool`` candidates, the best partner and others
        that are no partner: the exact mean over all such draws, from the hypergeometric
        distribution.
        """
        if pool is None:
            return (self.ranks <= top).astype(np.float64)
        from scipy.stats import hypergeom

        drawn = np.minimum(pool - 1, self.wrong)
        return hypergeom.cdf(top - 1, self.wrong, self.ranks - 1, drawn)


def rank_partners(
    queries: np.ndarray, candidates: np.ndarray, partners: np.ndarray, chunk: int = CHUNK
) -> Ranking:
    """Rank candidates by their product with each query.

    The rank is 1 plus the number of candidates that are no partner and score at least as high
    as the best partner: ties, to within 1e-6, count against the query. A model that maps
    everything to one point so comes last, not first.

    Args:
        queries: float32 (Q, D) unit rows.
        candidates: float32 (M, D) unit rows.
        partners: int (K, 2) of (query, candidate), each at most once; every query has one.
        chunk: queries at a time.
    """
    _check(queries, candidates, partners)
    partners = partners[np.argsort(partners[:, 0], kind="stable")]
    starts = np.searchsorted(partners[:, 0], np.arange(len(queries) + 1))
    ranks = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), chunk):
        stop = min(start + chunk, len(queries))
        scores = queries[start:stop] @ candidates.T
        own = partners[starts[start] : starts[stop]] - (start, 0)
        offsets = starts[start:stop] - starts[start]
        values = scores[own[:, 0], own[:, 1]]
        least = np.maximum.reduceat(values, offsets) - np.float32(TIE)
        level = np.count_nonzero(scores >= least[:, None], axis=1)
        right = np.add.reduceat((values >= least[own[:, 0]]).astype(np.int64), offsets)
        ranks[start:stop] = 1 + level - right
    return Ranking(ranks, len(candidates) - np.diff(starts))


def _check(queries: np.ndarray, candidates: np.ndarray, partners: np.ndarray) -> None:
    for name, rows in (("queries", queries), ("candidates", candidates)):
        if rows.ndim != 2 or rows.dtype != np.float32 or not np.isfinite(rows).all():
            raise ValueError(
                f"expected finite {name} float32 (N, D), got {rows.dtype} {rows.shape}"
            )
    if partners.ndim != 2 or partners.shape[1] != 2:
        raise ValueError(f"expected partners (K, 2), got {partners.shape}")
    if len(np.unique(partners[:, 0])) < len(queries):
        raise ValueError("expected a partner for every query; some have none")
