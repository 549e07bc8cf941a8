"""What is wrong with a recording that can still be used: offset, clipping, overload.

Levels are fractions of full scale, 1.0. Nothing here changes samples or refuses them;
``espnet_smoe.audio`` refuses what cannot be used.
"""

from __future__ import annotations

import numpy as np

__all__ = ["check_quality", "is_silent"]

# An offset of 10 % of the RMS holds 1 % of the power (-20 dB): speech itself, cut into
# utterances of half a second and more, stays below. One step of 16-bit audio is no
# offset: converters that round down leave half of one.
_OFFSET_OF_RMS = 0.1
_OFFSET = 1 / 32768

_RUN = 3  # equal samples in a row; two of them can be the two sides of a clean peak
_LEVELS_BELOW = 3
_CROWDED = 2  # times as many samples as on the levels below
_CLIPPED_SHARE = 1e-4


def check_quality(samples: np.ndarray) -> list[str]:
    """Say what is wrong with audio that can be used nevertheless.

    Three things are looked for: a mean above 10 % of the RMS; at least 0.01 % of the
    samples clipped; samples beyond full scale, which a dump clips. Clipping that was
    followed by a lossy codec, a filter or resampling leaves no flat tops and is not
    seen.

    Args:
        samples: (S,) float, full scale 1.0, S > 0.

    Returns:
        Sentences without a final stop, for a caller to put a name before; empty where
        nothing is wrong.
    """
    if is_silent(samples):
        return [f"silent: all samples are {samples[0]:g}"]
    found = []
    mean = float(samples.mean(dtype=float))
    rms = float(np.sqrt(np.square(samples, dtype=float).mean()))
    if abs(mean) > max(_OFFSET, _OFFSET_OF_RMS * rms):
        found.append(
            f"DC offset: the mean is {mean:.4f} of full scale, "
            f"{abs(mean) / rms:.0%} of the RMS"
        )
    clipped = (_num_clipped(samples) + _num_clipped(-samples)) / len(samples)
    largest = float(np.abs(samples).max())
    if clipped >= _CLIPPED_SHARE:
        found.append(
            f"clipped: {100 * clipped:.2f} % of the samples sit at the largest "
            f"value, {largest:.3f} of full scale"
        )
    if largest > 1.0:
        beyond = float(np.mean(np.abs(samples) > 1.0))
        found.append(
            f"too loud: {100 * beyond:.2g} % of the samples lie beyond full scale, up "
            f"to {largest:.3g}, and are clipped"
        )
    return found


def is_silent(samples: np.ndarray) -> bool:
    """Whether all samples (S,) are equal: a dead channel, with an offset or without."""
    return bool((samples == samples[0]).all())


def _num_clipped(samples: np.ndarray) -> int:
    """Samples in flat tops at the largest value, 0 where they are a clean peak's.

    The largest value alone does not tell: 16-bit and G.711 audio has few levels when
    it is quiet, so clean peaks are flat as well. But a clean peak is a parabola, on
    the way to which the wave spends as long on the next levels as on the last. A
    clipped wave passes them at full slope.
    """
    top = samples.max()
    at_top = samples == top
    if top <= 0 or at_top.all():
        return 0
    edges = np.flatnonzero(np.diff(at_top, prepend=False, append=False))
    if np.diff(edges)[::2].max() < _RUN:
        return 0
    step = float(top - samples[~at_top].max())
    lowest = float(top) - (_LEVELS_BELOW + 0.5) * step  # half: rounding
    count = int(at_top.sum())
    below = int(np.count_nonzero(samples >= lowest)) - count
    return count if count > _CROWDED * below else 0
