"""What becomes of images that turn out damaged in the middle of training."""

from collections.abc import Callable, Sequence

from facd_basicsr.engine.distributed import Ranks
from facd_basicsr.errors import UserError


class DamagedImages:
    """Ends the training at the first damaged image, or counts them.

    Args:
        skip: ``datasets.train.skip_damaged``.
        ranks: whose findings are reported together.
        warn: told of each file once.
    """

    def __init__(self, skip: bool, ranks: Ranks, warn: Callable[[str], None]) -> None:
        self._skip = skip
        self._ranks = ranks
        self._warn = warn
        self._found: dict[str, int] = {}  # samples by complaint, of this rank
        self._known: set[str] = set()  # reported before

    def look(self, complaints: Sequence[str]) -> None:
        """To be given the ``damaged`` of every batch (:class:`facd_basicsr.data.seeded_dataset.SeededDataset`).

        Raises:
            UserError: naming a damaged file that may not be passed over.
        """
        for complaint in filter(None, '\n'.join(complaints).splitlines()):
            if not self._skip:
                raise UserError(
                    f'datasets.train: {complaint}; accepted: whole images (facd check reads every file), or '
                    'datasets.train.skip_damaged: true, which takes another image in the place of a damaged one'
                )
            self._found[complaint] = self._found.get(complaint, 0) + 1

    def report(self) -> None:
        """Warns of files that are new since the last report. To be called by all ranks."""
        if not self._skip:
            return
        total = self._total()
        for complaint in sorted(total.keys() - self._known):
            self._warn(
                f'datasets.train: {complaint}; another image takes its place ({len(total)} damaged, in '
                f'{sum(total.values())} samples so far).'
            )
        self._known |= total.keys()

    def end(self) -> None:
        """Reports what is new and how often each image was replaced. To be called by all ranks."""
        self.report()
        if self._known:
            total = self._total()
            counts = ', '.join(f'{complaint.split(": ")[0]} {samples}' for complaint, samples in sorted(total.items()))
            self._warn(f'Damaged images, and in how many samples another took their place: {counts}.')

    def _total(self) -> dict[str, int]:
        """Samples by complaint, of all ranks."""
        total: dict[str, int] = {}
        for found in self._ranks.gather(self._found):
            for complaint, samples in found.items():
                total[complaint] = total.get(complaint, 0) + samples
        return total
