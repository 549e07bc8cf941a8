"""Augmentation: what is done to audio is what the guide says (P9).

The feature-level augmentation, SpecAug, is not here: it blanks bands of up to 27 of 80
mel channels at random, for narrowband and wideband alike, but the samples, and so the
band that the guide tells of, stay as they are (see docs/bandwidth.md).
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import soundfile
import torch
from espnet2.iterators.sequence_iter_factory import SequenceIterFactory
from espnet2.layers.augmentation import effects_dict
from espnet2.torch_utils.set_all_random_seed import set_all_random_seed
from espnet2.train.collate_fn import CommonCollateFn

from espnet_smoe.audio import read_audio, to_model_rate
from espnet_smoe.augment import EFFECTS, NARROWING_EFFECTS, Augmentation
from espnet_smoe.codec import CODECS
from espnet_smoe.config import ConfigError
from espnet_smoe.guide import GuideTable
from espnet_smoe.telephone import TelephoneLine, through_telephone

RATE = 16_000
GUIDES = GuideTable.from_mapping({"bandwidth": ["nb", "wb"], "task": ["asr"]})
CLEAN = {"prob": 1.0, "snr_db": [40, 40]}

# Effect of the host, arguments, and how far it lowers what is above 4 kHz of white
# noise against the telephone band, dB, as measured. What lowers it by more than 6 dB,
# what is there to narrow the band, and what moves the end of a recording of 11 kHz
# below 4.5 kHz must be refused.
MEASURED = [
    ("bandpass", {}, 4.2),
    ("bandreject", {}, -2.5),
    ("bandreject", {"center_freq": 6000, "Q": 0.1}, 6.6),
    ("bandwidth_limitation", {"res_type": "soxr_hq"}, 89.0),
    ("clipping", {}, 0.0),
    ("clipping", {"min_quantile": 0.2, "max_quantile": 0.8}, 0.0),
    ("contrast", {}, 0.0),
    ("corrupt_phase", {}, 0.0),
    ("deemphasis", {}, 13.1),
    ("deemphasis", {"coeff": 0.3}, 3.6),
    ("equalization", {}, 0.0),
    ("equalization", {"center_freq": 6000, "gain": -30, "Q": 0.3}, 6.2),
    ("highpass", {}, -7.2),
    ("lowpass", {}, 31.1),
    ("lowpass", {"cutoff_freq": 7500}, 0.7),
    ("pitch_shift", {"n_steps": -12}, 21.9),
    ("pitch_shift", {"n_steps": 12}, 1.5),
    ("polarity_inverse", {}, 0.0),
    ("preemphasis", {}, -7.5),
    ("reverse", {}, 0.0),
    ("speed_perturb", {"factor": 0.5}, 21.4),
    ("speed_perturb", {"factor": 0.75}, 4.3),
    ("speed_perturb", {"factor": 0.9}, 2.0),
    ("speed_perturb", {"factor": 1.1}, 0.7),
    ("time_stretch", {"factor": 0.9}, 0.1),
    ("time_stretch", {"factor": 1.1}, 0.1),
]
MOVES_THE_END = [("speed_perturb", {"factor": 0.75}, 4.3)]
ACCEPTED = [
    m for m in MEASURED if m[0] in EFFECTS and m[2] <= 6 and m not in MOVES_THE_END
]
REFUSED = [m for m in MEASURED if m not in ACCEPTED]


def name_of(value: object) -> str | None:
    return value if isinstance(value, str) else None


def levels(samples: np.ndarray) -> tuple[float, float]:
    """Mean power of frames in the telephone band and above 4 kHz, dB."""
    frames = samples[: len(samples) // 512 * 512].reshape(-1, 512) * np.hanning(512)
    power = np.mean(np.abs(np.fft.rfft(frames)) ** 2, axis=0)
    hertz = np.arange(257) * RATE / 512
    bands = (hertz > 300) & (hertz < 3_400), hertz > 4_100
    return tuple(10 * np.log10(power[band].sum() + 1e-12) for band in bands)


def wideband(seed: int = 0, samples: int = 20_001) -> np.ndarray:
    """Noise in bursts, louder below than above, on the 16-bit grid."""
    rng = np.random.default_rng(seed)
    white = rng.standard_normal(samples + 1)
    bursts = 0.05 + np.clip(np.sin(np.arange(samples) / 700), 0, None)
    speech = np.rint((white[1:] + 0.4 * white[:-1]) * bursts * 3_000) / 32_768
    return speech.astype(np.float32)


def narrowband(seed: int = 0) -> np.ndarray:
    """A call, as dumped."""
    line = TelephoneLine(snr_db=(40.0, 40.0), codecs=("mulaw",))
    rng = np.random.default_rng(seed)
    call = through_telephone(wideband(seed), RATE, line, rng)
    return to_model_rate(call / np.float32(32_768), 8_000)


def effects(*entries: object, num: object = (1, 1), prob: float = 1.0) -> dict:
    return {
        "data_aug_effects": list(entries),
        "data_aug_num": list(num),
        "data_aug_prob": prob,
    }


def test_every_effect_of_the_host_is_classified_by_a_measurement() -> None:
    """A new one in another version is refused until it is measured here."""
    assert set(effects_dict) == {name for name, *_ in MEASURED}
    assert set(effects_dict) == EFFECTS | NARROWING_EFFECTS
    assert not EFFECTS & NARROWING_EFFECTS


@pytest.mark.parametrize(("name", "arguments", "loss"), MEASURED, ids=name_of)
def test_effects_narrow_the_band_as_measured(
    name: str, arguments: dict, loss: float
) -> None:
    white = (0.1 * np.random.default_rng(1).standard_normal(RATE)).astype(np.float32)
    after = effects_dict[name](torch.from_numpy(white), RATE, **arguments).numpy()
    (low, high), (low_after, high_after) = levels(white), levels(after)
    measured = (high - low) - (high_after - low_after)
    assert measured == pytest.approx(loss, abs=0.5 + abs(loss) / 20)


@pytest.mark.parametrize(("name", "arguments", "loss"), REFUSED, ids=name_of)
def test_P9_what_narrows_the_band_is_refused(
    name: str, arguments: dict, loss: float
) -> None:
    with pytest.raises(ConfigError, match=rf"{name}.*telephone, which makes the guide"):
        Augmentation(GUIDES, **effects([1.0, name, arguments]))


def up_to(end: float, seed: int = 0) -> np.ndarray:
    """``wideband`` without what is above ``end`` Hz."""
    spectrum = np.fft.rfft(wideband(seed, 2 * RATE))
    spectrum[np.arange(len(spectrum)) / 2 > end] = 0
    return np.fft.irfft(spectrum).astype(np.float32)


@pytest.mark.parametrize("end", [5_500, 6_000, 7_000])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [*(m[:2] for m in ACCEPTED), ("speed_perturb", {"factor": 0.85})],
    ids=name_of,
)
def test_P9_audio_that_barely_is_wideband_stays_so(
    name: str, arguments: dict, end: int
) -> None:
    """11.025 kHz originals; 16 kHz ones that were slowed down."""
    speech = up_to(end)
    augmentation = Augmentation(GUIDES, **effects([1.0, name, arguments]))
    after, guide = augmentation(speech, "wb")
    assert guide == "wb"

    def share(samples: np.ndarray) -> float:
        power = np.abs(np.fft.rfft(samples)) ** 2
        hertz = np.fft.rfftfreq(len(samples), 1 / RATE)
        high = power[(hertz > 4_500) & (hertz < 4_950)].sum()
        return 10 * np.log10(high / power[(hertz > 300) & (hertz < 3_400)].sum())

    assert share(after) > share(speech) - 7


@pytest.mark.parametrize("factor", [0.5, 0.7, 0.75, 0.8])
def test_P9_a_speed_that_ends_an_11_khz_recording_below_4500_hz_is_refused(
    factor: float,
) -> None:
    with pytest.raises(ConfigError, match=r"speed_perturb.* lowers what is above 4"):
        Augmentation(GUIDES, **effects([1.0, "speed_perturb", {"factor": factor}]))


P9 = {
    **{f"telephone-{c}": {"telephone": {**CLEAN, "codecs": [c]}} for c in CODECS},
    "telephone-lossy": {"telephone": {**CLEAN, "packet_loss": [0.2, 0.3]}},
    "telephone-half": {"telephone": {"prob": 0.5}},
    **{
        f"{name}-{n}": effects([1.0, name, arguments])
        for n, (name, arguments, _) in enumerate(ACCEPTED)
    },
    "both": {
        "telephone": {"prob": 0.5},
        **effects(
            [1.0, "contrast", {}],
            [1.0, [[1.0, "reverse", {}], [1.0, "speed_perturb", {"factor": 1.1}]]],
            num=(0, 2),
        ),
    },
}


@pytest.mark.parametrize("conf", P9.values(), ids=P9.keys())
@pytest.mark.parametrize("bandwidth", ["nb", "wb"])
def test_P9_the_guide_says_what_is_in_the_audio(conf: dict, bandwidth: str) -> None:
    """Narrowband audio never gets a wider band either."""
    augmentation = Augmentation(GUIDES, **conf)
    set_all_random_seed(0)
    heard = set()
    for seed in range(6):
        speech = wideband(seed) if bandwidth == "wb" else narrowband(seed)
        after, guide = augmentation(speech, bandwidth)
        assert after.dtype == np.float32
        low, high = levels(after)
        if guide == "nb":
            assert high - low < -60
        else:
            assert high - low > -20
        heard.add(guide)
    if bandwidth == "nb":
        assert heard == {"nb"}
    elif "telephone" in conf:
        assert heard == ({"nb", "wb"} if conf["telephone"]["prob"] < 1 else {"nb"})
    else:
        assert heard == {"wb"}


@pytest.mark.parametrize("samples", [16_000, 16_001])
def test_a_flipped_utterance_is_what_the_dump_stores_of_that_call(
    samples: int, tmp_path
) -> None:
    conf = {"prob": 1.0, "packet_loss": [0.0, 0.2]}
    speech = wideband(3, samples)
    np.random.seed(5)
    heard, guide = Augmentation(GUIDES, telephone=conf)(speech, "wb")
    assert guide == "nb"

    np.random.seed(5)
    np.random.random()  # whether
    seed = np.random.randint(1 << 32, size=4, dtype=np.uint32)
    line = TelephoneLine(packet_loss=(0.0, 0.2))
    call = through_telephone(speech, RATE, line, np.random.default_rng(seed))
    soundfile.write(tmp_path / "call.wav", call, 8_000, subtype="PCM_16")
    stored = to_model_rate(*read_audio(tmp_path / "call.wav"))
    np.testing.assert_array_equal(heard, stored)
    assert len(heard) == samples + samples % 2


def test_the_share_asked_for_is_flipped_and_the_rest_is_left_alone() -> None:
    augmentation = Augmentation(GUIDES, telephone={"prob": 0.3})
    np.random.seed(0)
    speech = wideband(0, 400)
    flipped = 0
    for _ in range(1_000):
        after, guide = augmentation(speech, "wb")
        flipped += guide == "nb"
        assert guide == "nb" or after is speech
    assert abs(flipped - 300) < 4 * np.sqrt(1_000 * 0.3 * 0.7)


@pytest.mark.parametrize("bandwidth", ["nb", "swb"])
def test_only_wideband_goes_through_the_telephone(bandwidth: str) -> None:
    table = {"bandwidth": ["nb", "wb", "swb"], "task": ["asr"]}
    guides = GuideTable.from_mapping(table)
    speech = wideband()
    after, guide = Augmentation(guides, telephone={"prob": 1.0})(speech, bandwidth)
    assert after is speech
    assert guide == bandwidth


def test_no_probability_no_change() -> None:
    conf = {"telephone": {"prob": 0}, **effects([1.0, "reverse", {}], prob=0)}
    speech = wideband()
    for _ in range(50):
        after, guide = Augmentation(GUIDES, **conf)(speech, "wb")
        assert after is speech
        assert guide == "wb"


def test_effects_are_the_hosts_and_come_before_the_telephone() -> None:
    speech = wideband()
    entry = [1.0, "reverse", {}]
    after, _ = Augmentation(GUIDES, **effects(entry))(speech, "wb")
    np.testing.assert_array_equal(after, speech[::-1])
    both = Augmentation(GUIDES, telephone={"prob": 1.0}, **effects(entry))
    alone = Augmentation(GUIDES, telephone={"prob": 1.0})
    np.random.seed(1)
    heard, guide = both(speech, "wb")
    np.random.seed(1)
    np.random.random()  # whether there are effects
    expected, _ = alone(speech[::-1].copy(), "wb")
    assert guide == "nb"
    np.testing.assert_array_equal(heard, expected)


def test_narrowband_keeps_its_samples_below_4_khz_under_an_effect() -> None:
    speech = narrowband()
    conf = effects([1.0, "polarity_inverse", {}])
    after, _ = Augmentation(GUIDES, **conf)(speech, "nb")
    assert after.shape == speech.shape
    # the resampler's own edge, at 3.65 kHz, is all that is heard of it
    assert np.sum((after + speech) ** 2) < 1e-3 * np.sum(speech**2)


class Utterances(torch.utils.data.Dataset):
    """Wideband utterances as the host's data set hands them over."""

    def __init__(self, augmentation: Augmentation) -> None:
        self.augmentation = augmentation

    def __getitem__(self, name: str) -> tuple[str, dict[str, np.ndarray]]:
        speech, guide = self.augmentation(wideband(int(name), 3_000), "wb")
        return name, {"speech": speech, "nb": np.array([guide == "nb"], np.int64)}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_repeats_the_draws_of_an_unbroken_one(workers: int) -> None:
    """Effects draw from the generators of Python, numpy and torch."""
    one_of = [[1.0, "corrupt_phase", {}], [1.0, "speed_perturb", {"factor": 0.9}]]
    conf = {
        "telephone": {"prob": 0.5, "packet_loss": [0.1, 0.2]},
        **effects([1.0, one_of], [1.0, "preemphasis", {}], num=(0, 2), prob=0.7),
    }
    names = [str(n) for n in range(12)]

    def run(epochs: list[int]) -> list[torch.Tensor]:
        """The last epoch, as the host's trainer draws it."""
        factory = SequenceIterFactory(
            Utterances(Augmentation(GUIDES, **conf)),
            [names[n : n + 3] for n in range(0, 12, 3)],
            seed=3,
            num_workers=workers,
            collate_fn=CommonCollateFn(),
        )
        for epoch in epochs:
            set_all_random_seed(3 + epoch)
            batches = [batch for _, batch in factory.build_iter(epoch)]
        return [batch[key] for batch in batches for key in ("speech", "nb")]

    unbroken, first = run([1, 2]), run([1])
    random.seed(99)
    np.random.seed(99)
    resumed = run([2])
    assert all(torch.equal(a, b) for a, b in zip(unbroken, resumed, strict=True))
    assert any(
        a.shape != b.shape or not torch.equal(a, b)
        for a, b in zip(first, resumed, strict=True)
    )


def test_effects_that_narrow_together_are_refused() -> None:
    slow = [[1.0, "speed_perturb", {"factor": 0.9}], [1.0, "reverse", {}]]
    entries = [
        [1.0, slow],
        [1.0, "preemphasis", {}],  # the worst two must be tried, not any two
        [1.0, "speed_perturb", {"factor": 0.88}],
    ]
    Augmentation(GUIDES, **effects(*entries, num=(1, 1)))
    with pytest.raises(ConfigError, match=r"0\.9}, then speed_perturb.*0\.88} lowers"):
        Augmentation(GUIDES, **effects(*entries, num=(1, 2)))


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"telephone": {}}, "telephone needs the key 'prob'"),
        ({"telephone": {"prob": 1.5}}, r"telephone.prob must lie in \[0, 1\], got 1.5"),
        ({"telephone": {"prob": "0.3"}}, "telephone.prob must be a number, got '0.3'"),
        ({"telephone": {"prob": float("nan")}}, r"telephone.prob must lie in \[0, 1\]"),
        (
            {"telephone": {"prob": 1, "snr": [1, 2]}},
            r"\['snr'\] in telephone; .*'prob'",
        ),
        ({"telephone": {"prob": 1, "snr_db": [2, 1]}}, "telephone.snr_db must be"),
        ({"telephone": {"prob": 1, "codecs": ["evs"]}}, "unknown codec 'evs'; known"),
        ({"telephone": 0.3}, "telephone must map option names"),
        (effects([1.0, "flanger", {}]), "unknown effect 'flanger'; known: .'bandre"),
        (effects([1.0, "codec", {"format": "gsm"}]), "unknown effect 'codec'; known"),
        (effects([1.0, "reverse"]), r"expected \[weight, name, .*got \[1.0, 'reverse'"),
        (
            effects([0.0, "reverse", {}]),
            r"weight in \[0.0, 'reverse', {}\] must be abo",
        ),
        (effects(["1", "reverse", {}]), "a weight must be a number, got '1'"),
        (effects([1.0, [[1.0, "reverse", {}]]]), r"\[two or more of these\]"),
        (effects("reverse"), "expected .* got 'reverse'"),
        (effects(), r"must be a list of effects, got \[\]"),
        (effects([1.0, "clipping", {"level": 1}]), "clipping .* fails: .*'level'"),
        (effects([1.0, "speed_perturb", {}]), "speed_perturb {} fails: .*'factor'"),
        (
            effects([1.0, "equalization", {"Q": 0}]),
            "equalization {'Q': 0} leaves no audio",
        ),
        (effects([1.0, "reverse", {}], num=(1, 2)), r"of 1 effects, got \[1, 2\]"),
        (effects([1.0, "reverse", {}], num=(2, 1)), r"of 1 effects, got \[2, 1\]"),
        (effects([1.0, "reverse", {}], num=(0, 0)), r"of 1 effects, got \[0, 0\]"),
        (effects([1.0, "reverse", {}], num=(0, 1.0)), "data_aug_num must be a whole"),
        (effects([1.0, "reverse", {}], num=(1,)), r"must be \[fewest, most\], got \[1"),
        (effects([1.0, "reverse", {}], prob=2), r"data_aug_prob must lie in \[0, 1\]"),
        ({"data_aug_effects": [[1.0, "reverse", {}]]}, "need each other"),
        ({"data_aug_prob": 0.5}, "data_aug_effects and data_aug_prob need each other"),
    ],
)
def test_a_wrong_conf_is_refused_by_name(conf: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Augmentation(GUIDES, **conf)


@pytest.mark.parametrize("bandwidths", [["wb"], ["nb"], ["swb"]])
def test_the_telephone_needs_guides_for_before_and_after(bandwidths: list) -> None:
    guides = GuideTable.from_mapping({"bandwidth": bandwidths, "task": ["asr"]})
    with pytest.raises(ConfigError, match=r"bandwidths \[.*\] lack \['"):
        Augmentation(guides, telephone={"prob": 0.1})
    Augmentation(guides, **effects([1.0, "reverse", {}]))


def test_the_yaml_that_was_read_is_left_as_it_is() -> None:
    """The host takes a rate out of the arguments; config.yaml keeps it."""
    conf, expected = (
        effects([1.0, "reverse", {}], [1.0, "contrast", {"sample_rate": 8_000}])
        for _ in "ab"
    )
    for _ in range(10):
        Augmentation(GUIDES, **conf)(wideband(), "wb")
    assert conf == expected
