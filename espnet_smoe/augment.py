"""Augmentation of training audio that keeps audio and bandwidth guide in agreement.

Two kinds, in this order: the host's effects, which may not narrow the band, and the
telephone line, which does and makes the guide ``nb``. All randomness comes from the
global generators of Python, numpy and torch, which the host seeds at every epoch and in
every worker, so that a resumed run repeats the draws of an unbroken one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from espnet2.layers.augmentation import DataAugmentation

from espnet_smoe.audio import (
    FULL_SCALE,
    MODEL_RATE,
    NARROWBAND_RATE,
    narrow_band,
    to_model_rate,
)
from espnet_smoe.config import ConfigError, check_keys, check_number
from espnet_smoe.guide import GuideTable
from espnet_smoe.telephone import TelephoneLine, through_telephone

__all__ = ["EFFECTS", "NARROWING_EFFECTS", "Augmentation"]

EFFECTS = frozenset({
    "bandreject", "clipping", "contrast", "corrupt_phase", "deemphasis",
    "equalization", "highpass", "pitch_shift", "polarity_inverse", "preemphasis",
    "reverse", "speed_perturb", "time_stretch",
})  # fmt: skip
"""The host's effects that are taken if, with the arguments given, the band stays."""

NARROWING_EFFECTS = frozenset({"bandpass", "bandwidth_limitation", "lowpass"})
"""The host's effects that are there to narrow the band, and are refused."""

_MAX_LOSS = 6.0  # dB: a quarter of the energy stays
_TELEPHONE_BAND = (300.0, 3400.0)  # Hz
# Where noise ends, and the band in which it must stay, Hz. Recordings of 11.025 kHz are
# the lowest wideband: what moves their end below 4.5 kHz leaves nothing by which they
# could be told from a call.
_TRIALS = (
    (MODEL_RATE / 2, (NARROWBAND_RATE / 2, MODEL_RATE / 2)),
    (5_500.0, (4_500.0, 4_950.0)),
)


class Augmentation:
    """What training may do to an utterance (YAML ``preprocessor_conf``).

    Args:
        guides: the model's guides.
        telephone: ``prob``, the share of the ``wb`` utterances that go through a
            telephone line and become ``nb``, and fields of ``TelephoneLine``.
        data_aug_effects: the host's effects, ``[weight, name, {argument: value}]``
            or, to choose one of several, ``[weight, [[weight, name, {...}], ...]]``;
            see ``espnet2.layers.augmentation.DataAugmentation``.
        data_aug_num: [fewest, most] effects that an utterance gets.
        data_aug_prob: the share of the utterances that get effects.

    Raises:
        ConfigError: an unknown key, effect or argument, a value out of range, guides
            without ``nb`` or ``wb`` for ``telephone``, or effects that narrow the band.
    """

    def __init__(
        self,
        guides: GuideTable,
        telephone: Mapping[str, Any] | None = None,
        data_aug_effects: list[list[Any]] | None = None,
        data_aug_num: Sequence[int] = (1, 1),
        data_aug_prob: float | None = None,
    ) -> None:
        if (data_aug_effects is None) != (data_aug_prob is None):
            raise ConfigError(
                "data_aug_effects and data_aug_prob need each other, got "
                f"{data_aug_effects!r} and {data_aug_prob!r}"
            )
        self.line, self.telephone_prob = None, 0.0
        self.effects, self.effects_prob = None, 0.0
        if telephone is not None:
            self.line, self.telephone_prob = _read_telephone(telephone, guides)
        if data_aug_effects is not None:
            self.effects_prob = _share("data_aug_prob", data_aug_prob)
            groups = _read_groups(data_aug_effects)
            _check_num(data_aug_num, len(groups))
            _check_band(groups, data_aug_num[1])
            # the host changes the arguments that it is given
            self.effects = DataAugmentation(
                copy.deepcopy(data_aug_effects), data_aug_num
            )

    def __call__(self, speech: np.ndarray, bandwidth: str) -> tuple[np.ndarray, str]:
        """Draw what happens to an utterance, and do it.

        Args:
            speech: (S,) float32, 16 kHz, full scale 1.0.
            bandwidth: its guide.

        Returns:
            (S',) float32, 16 kHz, and the guide that is true of it. The telephone
            line leaves S' = S, rounded up to an even number.
        """
        if self.effects is not None and np.random.random() < self.effects_prob:
            speech = self.effects(speech, MODEL_RATE).astype(np.float32)
            if bandwidth == "nb":
                speech = narrow_band(speech, MODEL_RATE)
        if bandwidth != "wb" or self.line is None:
            return speech, bandwidth
        if np.random.random() >= self.telephone_prob:
            return speech, bandwidth
        seed = np.random.randint(1 << 32, size=4, dtype=np.uint32)
        rng = np.random.default_rng(seed)
        call = through_telephone(speech, MODEL_RATE, self.line, rng)
        # from here on as the dump treats a recorded call
        heard = call / np.float32(FULL_SCALE)
        return to_model_rate(heard, NARROWBAND_RATE), "nb"


def _read_telephone(
    conf: Mapping[str, Any], guides: GuideTable
) -> tuple[TelephoneLine, float]:
    fields = TelephoneLine.__dataclass_fields__
    check_keys("telephone", conf, ["prob", *fields])
    if "prob" not in conf:
        raise ConfigError(f"telephone needs the key 'prob', got {dict(conf)}")
    if missing := [g for g in ("nb", "wb") if g not in guides.bandwidths]:
        raise ConfigError(
            f"telephone makes wb utterances nb, but the model's bandwidths "
            f"{list(guides.bandwidths)} lack {missing}"
        )
    prob = _share("telephone.prob", conf["prob"])
    line = {key: value for key, value in conf.items() if key != "prob"}
    return TelephoneLine.from_mapping(line), prob


def _share(name: str, value: object) -> float:
    check_number(name, value)
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"{name} must lie in [0, 1], got {value}")
    return float(value)


def _read_groups(effects: object) -> list[list[tuple[str, dict]]]:
    """Per entry of ``data_aug_effects`` the (name, arguments) it chooses from.

    Lists must be lists: the host tells an effect from alternatives by that.
    """
    if not isinstance(effects, list) or not effects:
        raise ConfigError(
            f"data_aug_effects must be a list of effects, got {effects!r}"
        )
    groups = []
    for entry in effects:
        match entry:
            # the host takes a lone alternative for something else and fails
            case [weight, list([_, _, *_] as several)]:
                _check_weight(weight, entry)
                groups.append([_read_effect(one) for one in several])
            case _:
                groups.append([_read_effect(entry)])
    return groups


def _read_effect(entry: object) -> tuple[str, dict]:
    match entry:
        case list([weight, str(name), dict(arguments)]):
            _check_weight(weight, entry)
        case _:
            raise ConfigError(
                "data_aug_effects: expected [weight, name, {argument: value}] or "
                f"[weight, [two or more of these]], got {entry!r}"
            )
    if name in NARROWING_EFFECTS:
        raise ConfigError(
            f"data_aug_effects: {name} narrows the band and leaves the guide; use "
            "preprocessor_conf.telephone, which makes the guide nb"
        )
    if name not in EFFECTS:
        raise ConfigError(
            f"data_aug_effects: unknown effect {name!r}; known: {sorted(EFFECTS)}"
        )
    return name, arguments


def _check_weight(weight: object, entry: object) -> None:
    check_number("data_aug_effects: a weight", weight)
    if not weight > 0:
        raise ConfigError(f"data_aug_effects: the weight in {entry!r} must be above 0")


def _check_num(num: object, most: int) -> None:
    if not isinstance(num, list | tuple) or len(num) != 2:
        raise ConfigError(f"data_aug_num must be [fewest, most], got {num!r}")
    for number in num:
        check_number("data_aug_num", number, int)
    if not 0 <= num[0] <= num[1] or not 1 <= num[1] <= most:
        raise ConfigError(
            f"data_aug_num must be [fewest, most] of {most} effects, got {list(num)}"
        )


def _check_band(groups: Sequence[Sequence[tuple[str, dict]]], most: int) -> None:
    """Refuse effects that take away what is above 4 kHz, by trying them on noise.

    Each is tried alone, then for each noise the ``most`` worst one after another.
    """
    for end, band in _TRIALS:
        worst = []
        for group in groups:
            losses = [(_checked_loss([effect], end, band), effect) for effect in group]
            worst.append(max(losses, key=lambda loss: loss[0]))
        worst.sort(key=lambda loss: loss[0])
        _checked_loss([effect for _, effect in worst[-most:]], end, band)


def _checked_loss(
    chain: Sequence[tuple[str, dict]], end: float, band: tuple[float, float]
) -> float:
    """How far effects lower a band of noise that ends at ``end`` Hz, in dB."""
    names = ", then ".join(f"{name} {arguments}" for name, arguments in chain)
    before = after = _noise(end)
    try:
        for name, arguments in chain:
            effect = DataAugmentation([[1.0, name, dict(arguments)]])
            after = effect(after, MODEL_RATE)
    except Exception as error:  # whatever a wrong argument makes of it
        reason = " ".join(str(error).split())
        raise ConfigError(f"data_aug_effects: {names} fails: {reason}") from error
    with np.errstate(divide="ignore", invalid="ignore"):
        loss = _band_loss(before, after, band)
    if math.isnan(loss):
        raise ConfigError(f"data_aug_effects: {names} leaves no audio")
    if loss > _MAX_LOSS:
        raise ConfigError(
            f"data_aug_effects: {names} lowers what is above {band[0] / 1000:g} kHz in "
            f"audio that reaches {end / 1000:g} kHz by {loss:.1f} dB ({_MAX_LOSS:g} at "
            "most) and leaves the guide; to narrow the band use "
            "preprocessor_conf.telephone, which makes the guide nb"
        )
    return loss


def _noise(end: float) -> np.ndarray:
    """A second of white noise up to ``end`` Hz: (S,) float32 at 16 kHz."""
    white = np.random.default_rng(0).standard_normal(MODEL_RATE)
    spectrum = np.fft.rfft(white)
    spectrum[np.fft.rfftfreq(len(white), 1 / MODEL_RATE) > end] = 0.0
    return (0.1 * np.fft.irfft(spectrum, len(white))).astype(np.float32)


def _band_loss(
    before: np.ndarray, after: np.ndarray, band: tuple[float, float]
) -> float:
    """How far an effect lowers a band against the telephone band, in dB.

    Args:
        before, after: (S,) and (S',) float at 16 kHz.
        band: its edges, Hz.
    """
    ratios = []
    for samples in (before, after):
        power = np.abs(np.fft.rfft(samples)) ** 2
        hertz = np.fft.rfftfreq(len(samples), 1 / MODEL_RATE)
        high, low = (
            power[(hertz > first) & (hertz <= last)].sum()
            for first, last in (band, _TELEPHONE_BAND)
        )
        ratios.append(high / low)
    return float(10 * np.log10(ratios[0] / ratios[1]))
