"""The catalogue of datasets that a job can name: where to get each, and how it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from moe_dist.data.datasets.cifar import CIFAR10, CIFAR100, open_cifar
from moe_dist.data.datasets.digits import digits_version, open_digits
from moe_dist.data.datasets.gtsrb import READING, open_gtsrb
from moe_dist.data.datasets.idx import DIGIT_NAMES, FASHION_NAMES, open_idx, open_usps
from moe_dist.data.datasets.image_folder import READING as FOLDER_READING
from moe_dist.data.datasets.image_folder import open_image_folder
from moe_dist.data.datasets.inat import open_inat2018
from moe_dist.data.datasets.ip102 import open_ip102
from moe_dist.data.datasets.listed import IMAGENET_LT, PLACES_LT, open_lists
from moe_dist.data.datasets.pixels import encoder_version
from moe_dist.data.datasets.samples import Contents, KeptContents
from moe_dist.data.datasets.vectors import open_texts, open_vectors, texts_version
from moe_dist.data.longtail import LongTail, kept_numbers
from moe_dist.errors import UserError

_LISTS_CHECKED = (
    "every listed image is there, listed once and not in both train and test; labels are 0, 1, 2 ... with training "
    "images of each"
)
_ARRAYS_CHECKED = "sizes and types of all arrays, as many labels as images, labels inside the classes"

_PICKLES_SHUFFLED = "the pickles are shuffled, so a long tail keeps a class's first images; of class folders it draws"


@dataclass(frozen=True)
class Dataset:
    """A named source of labelled images.

    where: what to download and from where; reads: the form its source must have; checked: what is checked when it is
    opened (whether each image decodes is checked when its shards are built); order: what is known of its own order of
    images, where that is a shuffled one; expected: images of the published splits;
    open: returns its contents from a downloaded source (a folder or an archive), or from None where it is embedded;
    version: what its shards depend on beside the source: versions of packages, and of how it is read.
    """

    name: str
    title: str
    where: str
    licence: str
    reads: str
    open: Callable[[Path | None], Contents]
    expected: Mapping[str, int] = field(default_factory=dict)
    checked: str = ""
    order: str = ""
    version: Callable[[], str] = lambda: ""


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
            expected={"train": 1_438, "test": 359},
            version=digits_version,
        ),
        Dataset(
            name="image_folder",
            title="Your own images",
            where="anywhere",
            licence="yours",
            reads="a folder, tar, .zip or .tar.gz of train/<class>/*, test/<class>/* and, if you like, val/<class>/* "
            "(or valid, validation; jpg, jpeg, png, ppm); train/unlabelled/* are images without a label",
            open=open_image_folder,
            checked="no class folder is empty, test and val have only classes that train has, no stray files",
            version=lambda: FOLDER_READING,
        ),
        Dataset(
            name="vectors",
            title="Your own table or arrays: a sample is a vector",
            where="anywhere",
            licence="yours",
            reads="a .csv with a heading (a column called label may hold the classes), a .npy of N x D numbers, or a "
            ".npz of X and, if you like, y, X_test, y_test; without X_test the samples are also the test split",
            open=open_vectors,
            checked="all numbers are finite, as many labels as rows; nothing is unpickled",
        ),
        Dataset(
            name="texts",
            title="Your own texts, by the TF-IDF of their 2,000 most frequent words",
            where="anywhere; 20 Newsgroups: http://qwone.com/~jason/20Newsgroups",
            licence="yours",
            reads="a folder or tar of <class>/*, a text a file; the texts are also the test split",
            open=open_texts,
            checked="there are class folders, and words in their texts",
            version=texts_version,
        ),
        Dataset(
            name="mnist",
            title="MNIST: handwritten digits, 28 x 28 pixels, 10 classes",
            where="http://yann.lecun.com/exdb/mnist or https://ossci-datasets.s3.amazonaws.com/mnist: four .gz files",
            licence="CC BY-SA 3.0",
            reads="a folder or tar of train-images-idx3-ubyte, train-labels-idx1-ubyte and t10k-*, each plain or .gz; "
            "or train-images.idx3-ubyte and its like",
            open=partial(open_idx, dataset="mnist", class_names=DIGIT_NAMES),
            expected={"train": 60_000, "test": 10_000},
            checked=_ARRAYS_CHECKED,
            version=encoder_version,
        ),
        Dataset(
            name="fashion_mnist",
            title="Fashion-MNIST: articles of clothing, 28 x 28 pixels, 10 classes",
            where="https://github.com/zalandoresearch/fashion-mnist: four .gz files",
            licence="MIT",
            reads="files as those of mnist",
            open=partial(open_idx, dataset="fashion_mnist", class_names=FASHION_NAMES),
            expected={"train": 60_000, "test": 10_000},
            checked=_ARRAYS_CHECKED,
            version=encoder_version,
        ),
        Dataset(
            name="usps",
            title="USPS: digits of US postal codes, 16 x 16 pixels, 10 classes",
            where="https://www.kaggle.com/datasets/bistaumanga/usps-dataset: usps.h5",
            licence="free for research",
            reads="usps.h5 (train and test, each data and target; needs moe-dist[usps]), or files as those of mnist",
            open=open_usps,
            expected={"train": 7_291, "test": 2_007},
            checked=_ARRAYS_CHECKED,
            version=encoder_version,
        ),
        Dataset(
            name="cifar10",
            title="CIFAR-10: 32 x 32 pixels, 10 classes; long-tailed with an imbalance factor",
            where="https://www.cs.toronto.edu/~kriz/cifar.html: cifar-10-python.tar.gz",
            licence="free for research",
            reads="the archive as downloaded, its folder cifar-10-batches-py or a tar of it; or train|test/<class>/*",
            open=partial(open_cifar, layout=CIFAR10),
            expected={"train": 50_000, "test": 10_000},
            checked=f"the pickles hold only plain arrays; {_ARRAYS_CHECKED}",
            order=_PICKLES_SHUFFLED,
            version=encoder_version,
        ),
        Dataset(
            name="cifar100",
            title="CIFAR-100: 32 x 32 pixels, 100 classes; long-tailed with an imbalance factor",
            where="https://www.cs.toronto.edu/~kriz/cifar.html: cifar-100-python.tar.gz",
            licence="free for research",
            reads="the archive as downloaded, its folder cifar-100-python or a tar of it; or train|test/<class>/*",
            open=partial(open_cifar, layout=CIFAR100),
            expected={"train": 50_000, "test": 10_000},
            checked=f"the pickles hold only plain arrays; {_ARRAYS_CHECKED}",
            order=_PICKLES_SHUFFLED,
            version=encoder_version,
        ),
        Dataset(
            name="gtsrb",
            title="German traffic signs, 43 classes, with tracks and regions of interest",
            where="https://benchmark.ini.rub.de (the archives of training images, test images and test classes)",
            licence="free for research",
            reads="a folder the three archives were unpacked to, or a tar of it; torchvision's folder; or "
            "train|test/<class>/* and two CSVs, as Kaggle's copy has them",
            open=open_gtsrb,
            expected={"train": 39_209, "test": 12_630},
            checked="tables and images name each other, every class has training images, regions lie in their images",
            version=lambda: READING,
        ),
        Dataset(
            name="imagenet_lt",
            title="ImageNet-LT: long-tailed ImageNet, 1,000 classes of 1,280 to 5 images",
            where="https://image-net.org: ILSVRC 2012 train and val (val in class folders); "
            "https://github.com/zhmiao/OpenLongTailRecognition-OLTR: ImageNet_LT_train.txt, _val.txt, _test.txt",
            licence="ImageNet's terms, only for research; lists BSD 3-Clause",
            reads='a folder or tar of train/, val/ and the lists ("train/n01440764/n01440764_190.JPEG 0")',
            open=partial(open_lists, dataset="imagenet_lt", lists=IMAGENET_LT),
            expected={"train": 115_846, "val": 20_000, "test": 50_000},
            checked=_LISTS_CHECKED,
        ),
        Dataset(
            name="places_lt",
            title="Places-LT: long-tailed Places365, 365 classes of 4,980 to 5 images",
            where="http://places2.csail.mit.edu/download.html: Places365-Standard, small images, easy format; "
            "https://github.com/zhmiao/OpenLongTailRecognition-OLTR: Places_LT_train.txt, _val.txt, _test.txt",
            licence="Places: CC BY, images under their owners' terms; lists BSD 3-Clause",
            reads='a folder or tar of train/, val/ and the lists ("train/airfield/00004851.jpg 0")',
            open=partial(open_lists, dataset="places_lt", lists=PLACES_LT),
            expected={"train": 62_500, "val": 7_300, "test": 36_500},
            checked=_LISTS_CHECKED,
        ),
        Dataset(
            name="inat2018",
            title="iNaturalist 2018: 8,142 species, long-tailed by nature; its public validation set is the test split",
            where="https://github.com/visipedia/inat_comp/tree/master/2018: train_val2018.tar.gz, train2018.json, "
            "val2018.json and, for the species' names, categories.json",
            licence="non-commercial research and education",
            reads="a folder or tar of train_val2018/ with the JSON files, or with iNaturalist18_train.txt and _val.txt",
            open=open_inat2018,
            expected={"train": 437_513, "test": 24_426},
            checked=f"the JSON's form, every image has one category; {_LISTS_CHECKED}",
        ),
        Dataset(
            name="ip102",
            title="IP102: insect pests, 102 classes in eight crops, long-tailed by nature",
            where="https://github.com/xpwu95/IP102: ip102_v1.1 (classification) and classes.txt",
            licence="free for academic use",
            reads='a folder or tar of images/, train.txt, val.txt, test.txt ("00002.jpg 0"), classes.txt and, for '
            'other crops, superclasses.txt ("1-14 Rice", numbers as in classes.txt)',
            open=open_ip102,
            expected={"train": 45_095, "val": 7_508, "test": 22_619},
            checked=f"numbers of classes.txt without a gap; {_LISTS_CHECKED}",
        ),
    )
}


def dataset(name: str) -> Dataset:
    """The dataset called `name`. Raises UserError, naming the choices, where there is none."""
    if name not in DATASETS:
        raise UserError(f"data.dataset: no dataset is called {name!r}; choose one of {', '.join(sorted(DATASETS))}")
    return DATASETS[name]


def open_contents(name: str, source: Path | None, long_tail: LongTail | None = None) -> Contents:
    """The contents of the dataset `name` in `source`, its training split cut to `long_tail`, decided by its order.

    Raises UserError where there is no such dataset, the source is bad, or it has too few images for that long tail.
    """
    contents = dataset(name).open(source)
    if long_tail is None:
        return contents
    try:
        decided = long_tail.decided(contents.shuffled)
        kept = kept_numbers(contents.labels("train"), len(contents.class_names), decided)
    except ValueError as error:
        raise UserError(f"dataset {name}: {error}") from None
    return KeptContents(contents, kept)
