"""The catalogue: every dataset a job can name, where to get it and what is read of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from moe_dist.data.digits import digits_version, open_digits
from moe_dist.data.gtsrb import open_gtsrb
from moe_dist.data.image_folder import open_image_folder
from moe_dist.data.samples import Contents, Sample
from moe_dist.errors import UserError


@dataclass(frozen=True)
class Dataset:
    """A named source of labelled images.

    where: where to get it; reads: what its source must look like; expected: images of the published splits;
    open: its contents from a downloaded source (a folder or a tar), or from None where it is embedded;
    version: what an embedded dataset's bytes depend on, beside a source.
    """

    name: str
    title: str
    where: str
    licence: str
    reads: str
    open: Callable[[Path | None], Contents]
    expected: Mapping[str, int] = field(default_factory=dict)
    version: Callable[[], str] = lambda: ""

    def read(self, source: Path | None, split: str) -> Iterator[Sample]:
        """The samples of `split` ("train" or "test"). Raises UserError where the source is not as `reads` says."""
        return self.open(source).read(split)


DATASETS = {
    entry.name: entry
    for entry in (
        Dataset(
            name="digits",
            title="Handwritten digits, 8 x 8 pixels, 10 classes",
            where="embedded: it comes with scikit-learn (UCI, optical recognition of handwritten digits)",
            licence="CC BY 4.0",
            reads="no source; one fifth of each class is set aside as the test split",
            open=open_digits,
            expected={"train": 1438, "test": 359},
            version=digits_version,
        ),
        Dataset(
            name="image_folder",
            title="Your own images",
            where="anywhere",
            licence="yours",
            reads="a folder or tar of train/<class>/* and test/<class>/* (jpg, jpeg, png, ppm)",
            open=open_image_folder,
        ),
        Dataset(
            name="gtsrb",
            title="German traffic signs, 43 classes, with tracks and regions of interest",
            where="https://benchmark.ini.rub.de (the archives of training images, test images and test classes)",
            licence="free for research",
            reads="a folder the three archives were unpacked to, or a tar of it; or train|test/<class>/* and two CSVs",
            open=open_gtsrb,
            expected={"train": 39209, "test": 12630},
        ),
    )
}


def dataset(name: str) -> Dataset:
    """The dataset called `name`. Raises UserError with the choices where there is none."""
    if name not in DATASETS:
        raise UserError(f"data.dataset: no dataset is called {name!r}; choose one of {', '.join(sorted(DATASETS))}")
    return DATASETS[name]
