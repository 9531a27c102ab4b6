"""Operators whose kernels in ONNX's reference evaluator are wrong, computed as ONNX Runtime does.

They run where ONNX Runtime builds no kernel: StringNormalizer on hosts without its locale, STFT,
and AveragePool in double precision. `make conformance` compares them with ONNX Runtime's.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.reference.op_run import OpRun

from dask_onnx.modelio.operator_names import OperatorName, operator_name

_CHANGES: dict[str, Callable[[str], str]] = {"LOWER": str.lower, "UPPER": str.upper}
_LOCALE = "en_US.UTF-8"
"""Locale of a StringNormalizer that names none."""
_TURKIC = ("tr", "az", "crh", "ku", "tt")
"""Languages of the locales of glibc that map other letters than all the rest: i and dotless i."""


class StringNormalizer(OpRun):
    """Texts without stop words, in upper or lower case.

    Each letter is mapped to one letter, as C's towlower and towupper do in the UTF-8 locales of
    glibc, in which ONNX Runtime changes the case: accents stay, empty texts stay, and letters
    without a single counterpart (such as the sharp s) stay as they are.
    """

    op_domain = ""

    def __init__(self, onnx_node: Any, run_params: Any, schema: Any = None) -> None:
        super().__init__(onnx_node, run_params, schema)
        given = {a.name: self._extract_attribute_value(a) for a in onnx_node.attribute}
        locale = given.get("locale") or _LOCALE
        if given.get("case_change_action", "NONE") not in (*_CHANGES, "NONE"):
            raise ValueError(f"case_change_action is {given['case_change_action']!r}")
        words = given.get("stopwords") or []
        if "" in words or len(set(words)) < len(words):
            raise ValueError("stopwords has an empty text, or one text twice")
        if not _maps_as_most(locale):
            raise ValueError(f"dask_onnx's own kernel does not map letters as the locale {locale}")

    def _run(
        self,
        texts: np.ndarray,
        case_change_action: str = "NONE",
        is_case_sensitive: int = 0,
        locale: str | None = None,
        stopwords: Sequence[str] | None = None,
    ) -> tuple[np.ndarray]:
        if texts.ndim not in (1, 2) or (texts.ndim == 2 and texts.shape[0] != 1) or not texts.size:
            raise ValueError(
                f"StringNormalizer takes shape (texts,) or (1, texts), not {texts.shape}"
            )
        change = _CHANGES.get(case_change_action)
        compared = None if is_case_sensitive else change or str.lower
        words = {_mapped(word, compared) for word in stopwords or ()}
        kept = [text for text in texts.ravel().tolist() if _mapped(text, compared) not in words]
        # Without any text left the result is one empty text.
        result = np.array([_mapped(text, change) for text in kept] or [""], object)
        return (result.reshape(-1) if texts.ndim == 1 else result.reshape(1, -1),)


def _maps_as_most(locale: str) -> bool:
    """Return whether a locale of glibc has the letters of all of Unicode, in their usual cases."""
    name, _, encoding = locale.partition("@")[0].partition(".")
    language = name.partition("_")[0].lower()
    return language not in _TURKIC and encoding.replace("-", "").lower() == "utf8"


def _mapped(text: Any, change: Callable[[str], str] | None) -> str:
    if not isinstance(text, str):
        raise TypeError(f"StringNormalizer takes texts; one is {type(text).__name__}")
    if change is None:
        return text
    changed = change(text)
    if text.isascii():
        return changed
    return "".join(_mapped_letter(letter, change) for letter in text)


def _mapped_letter(letter: str, change: Callable[[str], str]) -> str:
    changed = change(letter)
    if len(changed) == 1:
        return changed
    if change is str.lower:
        return "i" if letter == "\u0130" else letter  # the only capital of two small letters
    title = letter.title()  # Greek letters with iota subscript have one capital of their own
    return title if len(title) == 1 else letter


def locale_remedy(node: onnx.NodeProto) -> str:
    """Return how to install the locale of a StringNormalizer; "" for other nodes."""
    if operator_name(node) != ("", "StringNormalizer"):
        return ""
    locale = next((a.s.decode(errors="replace") for a in node.attribute if a.name == "locale"), "")
    locale = locale or _LOCALE
    language, _, encoding = locale.partition(".")
    encoding = encoding or "ISO-8859-1"
    return (
        f"install the locale {locale} on every host (Debian and Ubuntu: apt-get install locales "
        f"&& localedef -i {language} -f {encoding} {locale}; Fedora: dnf install "
        f"glibc-langpack-{language.partition('_')[0]}; Alpine has no locales for onnxruntime: "
        "take an image with glibc)"
    )


class STFT(OpRun):
    """Short-time Fourier transform of signals (batch, samples) or (batch, samples, 1 or 2).

    The evaluator's own kernel takes signals without a last axis for one signal of many channels.
    """

    op_domain = ""

    def _run(
        self,
        signal: np.ndarray,
        frame_step: np.ndarray,
        window: np.ndarray | None = None,
        frame_length: np.ndarray | None = None,
        onesided: int = 1,
    ) -> tuple[np.ndarray]:
        if signal.ndim == 3 and signal.shape[2] == 2:
            samples = signal[..., 0] + 1j * signal[..., 1]
        else:
            samples = signal.reshape(signal.shape[:2])
        if frame_length is not None:
            length = int(np.asarray(frame_length).reshape(()))
        else:
            length = samples.shape[1] if window is None else len(window)
        step = int(np.asarray(frame_step).reshape(()))
        if step < 1 or not 0 < length <= samples.shape[1]:
            raise ValueError(
                f"STFT of {samples.shape[1]} samples with frames of {length} every {step}"
            )
        frames = np.lib.stride_tricks.sliding_window_view(samples, length, axis=1)[:, ::step]
        if window is not None:
            frames = frames * window
        spectrum = np.fft.rfft(frames, axis=-1) if onesided else np.fft.fft(frames, axis=-1)
        return (np.stack([spectrum.real, spectrum.imag], -1).astype(signal.dtype),)


class AveragePool(OpRun):
    """Mean of each window over the last axes; x has shape (batch, channels, ...).

    The evaluator's own kernel marks what it pads by NaN, so that it leaves out the NaN of the
    values too, and shifts windows that reach over the end (ceil_mode).
    """

    op_domain = ""

    def _run(
        self,
        x: np.ndarray,
        auto_pad: str = "NOTSET",
        ceil_mode: int = 0,
        count_include_pad: int = 0,
        dilations: Sequence[int] | None = None,
        kernel_shape: Sequence[int] = (),
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[np.ndarray]:
        rank = len(kernel_shape)
        steps, gaps = strides or [1] * rank, dilations or [1] * rank
        given = pads or [0] * 2 * rank
        spans = [gap * (size - 1) + 1 for gap, size in zip(gaps, kernel_shape, strict=True)]
        places = [
            _places(size, span, step, (given[axis], given[axis + rank]), auto_pad, ceil_mode)
            for axis, (size, span, step) in enumerate(zip(x.shape[2:], spans, steps, strict=True))
        ]
        precise = x.dtype if x.dtype == np.float64 else np.float32
        total = np.zeros((*x.shape[:2], *(len(starts) for starts, *_ in places)), precise)
        counts = np.zeros(total.shape[2:], np.int64)
        for offsets in itertools.product(*map(range, kernel_shape)):
            indices, inside, counted = zip(
                *(
                    _positions(place, size, offset * gap)
                    for place, size, offset, gap in zip(
                        places, x.shape[2:], offsets, gaps, strict=True
                    )
                ),
                strict=True,
            )
            mask = _outer(inside)
            places_of_window: tuple[Any, ...] = (slice(None), slice(None), *np.ix_(*indices))
            total += np.where(mask, x[places_of_window], 0)
            counts += _outer(counted) if count_include_pad else mask
        return ((total / counts).astype(x.dtype),)


_Places = tuple[np.ndarray, int, int]
"""Starts of the windows along an axis, and the positions between which windows are counted."""


def _places(
    size: int, span: int, step: int, pads: tuple[int, int], auto_pad: str, ceil_mode: int
) -> _Places:
    """Return the starts of the windows along an axis of `size`, counted from its first element."""
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        count = -(-size // step)
        missing = max((count - 1) * step + span - size, 0)
        before = missing // 2 if auto_pad == "SAME_UPPER" else missing - missing // 2
        pads = before, missing - before
    else:
        room = size + sum(pads) - span
        count = (-(-room // step) if ceil_mode else room // step) + 1
        # A window must not begin behind the end and what is padded before it.
        if ceil_mode and (count - 1) * step >= size + pads[0]:
            count -= 1
    return np.arange(count) * step - pads[0], -pads[0], size + pads[1]


def _positions(
    places: _Places, size: int, offset: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of one element of each window: its index, whether it has a value, and if it counts."""
    starts, first, end = places
    index = starts + offset
    inside = (index >= 0) & (index < size)
    return np.where(inside, index, 0), inside, (index >= first) & (index < end)


def _outer(masks: Sequence[np.ndarray]) -> np.ndarray:
    """Return the product of one mask for each axis, with all axes."""
    return functools.reduce(np.logical_and.outer, masks)


CORRECTED_OPERATORS: dict[OperatorName, type[OpRun]] = {
    (each.op_domain, each.__name__): each for each in (StringNormalizer, STFT, AveragePool)
}
"""Operators that replace kernels of the reference evaluator, by domain and op type."""
