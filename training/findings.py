"""What can be wrong with a folder of pictures: every kind once, with what to do about it."""

from typing import Literal, NamedTuple

Level = Literal["fatal", "unusable", "defect", "note"]


class Kind(NamedTuple):
    """One kind of finding.

    `fatal` keeps the whole folder from being learnt from, `unusable` one picture; a `defect` spoils what is learnt or
    measured; a `note` is odd and harmless.
    """

    level: Level
    told: str


class Finding(NamedTuple):
    """One thing that was found, and in which file, folder or class; `told` is the detail."""

    kind: str
    where: str
    told: str = ""

    @property
    def level(self) -> Level:
        return KINDS[self.kind].level


KINDS = {
    "misplaced_split": Kind("fatal", "a folder that is neither a split nor a class"),
    "no_train": Kind("fatal", "splits without train/"),
    "no_pictures": Kind("fatal", "no pictures below class folders"),
    "one_class": Kind("fatal", "a classifier needs two classes or more"),
    "class_mismatch": Kind("fatal", "a split has other classes than train/"),
    "class_name": Kind("fatal", "a class whose name is no UTF-8"),
    "empty_class": Kind("fatal", "a class folder without a picture"),
    "broken_link": Kind("unusable", "a link to a file that is not there; remove or mend it"),
    "unreadable": Kind("unusable", "the file cannot be read; see its permissions and the disk"),
    "empty_file": Kind("unusable", "a file of no bytes; copy it anew or remove it"),
    "unsupported": Kind("unusable", "not a picture of an accepted format; convert it to JPEG, PNG or WebP"),
    "damaged": Kind("unusable", "damaged or cut short; copy it anew or remove it"),
    "oversized": Kind("unusable", "more pixels or metadata than the service accepts; shrink it"),
    "same_name": Kind("defect", "classes whose names differ only in case or spaces; are they one?"),
    "stray": Kind("defect", "pictures outside the class folders are not used; move them into a class, or away"),
    "unlisted": Kind("defect", "pictures without a picture's extension are not used; rename them"),
    "wrong_extension": Kind("defect", "the extension says another format than the file has; rename it"),
    "extreme_aspect": Kind("defect", "a strip, of which the model sees the middle; crop or remove it"),
    "tiny": Kind("defect", "too few pixels to show anything; remove it or find the original"),
    "blank": Kind("defect", "one colour all over; remove it"),
    "duplicate": Kind("defect", "the same file more than once in a class weighs more than others; keep one"),
    "near_duplicate": Kind("defect", "almost the same picture again, resized or saved anew; keep one"),
    "conflict": Kind("defect", "the same file in several classes; decide for one"),
    "leak": Kind("defect", "the same file in several splits: accuracy on it means nothing; remove it from one"),
    "near_leak": Kind("defect", "almost the same picture in another split: accuracy on it means little; remove one"),
    "imbalance": Kind("defect", "classes of very different sizes; find more of the small ones"),
    "few_images": Kind("defect", "too few pictures of a class to learn it; find more"),
    "animated": Kind("note", "an animation; its first frame is used"),
    "cmyk": Kind("note", "colours for print; converted to RGB without a colour profile"),
    "sixteen_bit": Kind("note", "16 bits a channel; 8 are kept"),
    "transparent": Kind("note", "transparent; shown over white"),
    "turned": Kind("note", "turned upright by its EXIF orientation"),
    "other_file": Kind("note", "not a picture; passed over"),
}
