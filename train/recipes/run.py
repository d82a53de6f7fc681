"""A recipe carried out: from data to a table, going on from what an earlier attempt left.

Refuses to know how a row is made: that is for ``masks`` and ``pairs``.
"""

from medclipsam.train.pairs.pairs import PairList
from medclipsam.train.recipes.job import Job, Result
from medclipsam.train.recipes.layout import look
from medclipsam.train.recipes.phantoms import write_phantoms


def carry_out(job: Job) -> Result:
    """Check the data, then do whatever is not done yet, up to the table.

    Raises:
        ConfigError: the data are not laid out as expected, every problem named; or the output
            folder holds other work.
        BundleError, BackendError, OutputError, KeyboardInterrupt: see ``compare_masks`` and
            ``compare_captions``.
    """
    if job.recipe.phantoms:
        write_phantoms(job.data, job.recipe.phantoms, job.limit)
    found = look(job.recipe, job.data, job.incomplete)
    if isinstance(found, PairList):
        from medclipsam.train.recipes.pairs import compare_captions

        return compare_captions(job, found)
    from medclipsam.train.recipes.masks import compare_masks

    return compare_masks(job, found.limited(job.limit, job.recipe.draw.seed))
