"""From the values or colours stored in a label picture to labels 0..K-1 and 255."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pixelwise.data.source import Color
from pixelwise.errors import DataError
from pixelwise.types import IGNORE

MAX_CLASSES = 255  # 255 itself marks ignored pixels


@dataclass(frozen=True, eq=False)
class LabelTable:
    """What each stored value means.

    Args:
        values: [V] ascending stored values; a colour is R * 65536 + G * 256 + B.
        labels: [V] uint8 what they become.
        colored: whether the values are colours.
        others: what any other value becomes; None makes it an error.
    """

    values: npt.NDArray[np.int64]
    labels: npt.NDArray[np.uint8]
    colored: bool = False
    others: int | None = None

    @classmethod
    def of(
        cls, meaning: Mapping[int, int], *, colored: bool = False, others: int | None = None
    ) -> LabelTable:
        """From stored value → label."""
        ordered = sorted(meaning.items())
        values = np.array([value for value, _ in ordered], np.int64)
        labels = np.array([label for _, label in ordered], np.uint8)
        return cls(values, labels, colored, others)

    def apply(self, raw: npt.NDArray[Any], path: Path) -> npt.NDArray[np.uint8]:
        """Translate a label picture.

        Args:
            raw:  [H, W] values or [H, W, 3] colours, as `read_label` gives them.
            path: the file, for messages.

        Returns:
            [H, W] uint8.

        Raises:
            DataError: a value that the table does not know.
        """
        codes = self.codes(raw, path)
        at = np.minimum(np.searchsorted(self.values, codes), len(self.values) - 1)
        known = self.values[at] == codes
        labels = self.labels[at]
        if not known.all():
            if self.others is None:
                raise DataError(self._message(codes[~known], path))
            labels = np.where(known, labels, np.uint8(self.others))
        return labels.astype(np.uint8)

    def unknown(self, raw: npt.NDArray[Any], path: Path) -> list[int]:
        """The stored values that the table does not know, ascending."""
        if self.others is not None:
            return []
        found = np.unique(self.codes(raw, path))
        return found[~np.isin(found, self.values)].tolist()

    def codes(self, raw: npt.NDArray[Any], path: Path) -> npt.NDArray[np.int64]:
        """[H, W] what the table looks up."""
        if self.colored:
            if raw.ndim != 3:
                raise DataError(
                    f"{path}: holds one value per pixel where colours were expected; "
                    f"set `layout: index` in data.yaml"
                )
            return pack_colors(raw)
        if raw.ndim == 3:
            if not (raw == raw[..., :1]).all():
                raise DataError(
                    f"{path}: a colour picture where class numbers were expected; list `colors` "
                    f"in data.yaml, or save the labels as an index (palette) PNG"
                )
            raw = raw[..., 0]  # grey saved as RGB
        return raw.astype(np.int64)

    def show(self, code: int) -> str:
        """A stored value as a user writes it."""
        if self.colored:
            return str([code >> 16, code >> 8 & 255, code & 255])
        return str(code)

    def _message(self, codes: npt.NDArray[np.int64], path: Path) -> str:
        found = np.unique(codes)
        shown = ", ".join(self.show(int(code)) for code in found[:8])
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        what = "colours" if self.colored else "values"
        lossy = (
            "; a JPEG changes labels: use PNG" if path.suffix.lower() in (".jpg", ".jpeg") else ""
        )
        return (
            f"{path}: label {what} {shown}{more} belong to no class ({len(codes)} pixels); "
            f"add them to `names`, or to `void` if they count for nothing{lossy}"
        )


def pack_colors(raw: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """[..., 3] colours as one number each."""
    parts = raw.astype(np.int64)
    return parts[..., 0] << 16 | parts[..., 1] << 8 | parts[..., 2]


def index_table(raw_values: Sequence[int], void: frozenset[int], where: str) -> LabelTable:
    """Stored values become labels in ascending order; void ones, and 255 unless named, become 255.

    Raises:
        DataError: more classes than labels can tell apart.
    """
    kept = [value for value in raw_values if value not in void]
    check_class_count(len(kept), where)
    meaning = {IGNORE: IGNORE} | dict.fromkeys(void, IGNORE)
    return LabelTable.of(meaning | {value: label for label, value in enumerate(kept)})


def color_table(
    colors: Sequence[Color], void: Sequence[Color], meanings: Mapping[Color, int] | None = None
) -> LabelTable:
    """Colours become labels in their order; further ones by `meanings`."""
    table = {_pack(color): IGNORE for color in void}
    table |= {_pack(color): label for color, label in (meanings or {}).items()}
    table |= {_pack(color): label for label, color in enumerate(colors)}
    return LabelTable.of(table, colored=True)


def check_class_count(count: int, where: str) -> None:
    """Refuse more classes than an 8-bit label map holds."""
    if count > MAX_CLASSES:
        raise DataError(f"{where}: {count} classes; at most {MAX_CLASSES} fit in a label map")


def _pack(color: Color) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]
