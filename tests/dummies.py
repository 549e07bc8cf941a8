"""Tiny models and batches, made through the task as training makes them."""

import re
from argparse import Namespace
from contextlib import contextmanager

import torch

from espnet_smoe.guide import GuideTable
from espnet_smoe.task import SMoETask

D, H, MELS = 16, 24, 8
SAMPLES_A_FRAME = 64
GUIDES = {"bandwidth": ["nb", "wb"], "task": ["asr", "st_de", "st_es"]}
CHANNEL_GUIDES = {
    "bandwidth": ["nb", "wb"],
    "channel": ["phone", "mic"],
    "task": ["asr", "st_de"],
}

# (bandwidth, tasks with a reference); neither guides nor tasks stand in order
MIXED = [
    ("wb", ("st_de", "asr")),
    ("nb", ("asr",)),
    ("wb", ("st_es",)),
    ("nb", ("asr", "st_de", "st_es")),
]


def token_list(guides=GUIDES, plain=20):
    """Specials, guiding tokens and ``plain`` ordinary tokens."""
    ordinary = [f"▁t{i}" for i in range(plain)]
    specials = GuideTable.from_mapping(guides).tokens
    return ["<blank>", "<unk>", *specials, *ordinary, "<sos/eos>"]


def options(guides=GUIDES, encoder=(), decoder=(), **others):
    """Options of the task for a tiny model; ``encoder=dict(...)`` changes some."""
    rates = {"dropout_rate": 0.0, "positional_dropout_rate": 0.0}
    sizes = {"attention_heads": 2, "linear_units": H, "num_blocks": 2}
    defaults = {
        "guides": guides,
        "token_list": token_list(guides),
        "encoder": "smoe_conformer",
        "encoder_conf": {
            **rates,
            **sizes,
            "output_size": D,
            "cnn_module_kernel": 5,
            "experts": {"axis": "bandwidth"},
            **dict(encoder),
        },
        "decoder": "smoe_transformer",
        "decoder_conf": {
            **rates,
            **sizes,
            "experts": {"axis": "task"},
            **dict(decoder),
        },
        "model": "smoe",
        "model_conf": {},
        "frontend_conf": {"n_fft": 128, "hop_length": SAMPLES_A_FRAME, "n_mels": MELS},
        "ctc_conf": {},
        "specaug": None,
        "specaug_conf": {},
        "normalize": "utterance_mvn",
        "normalize_conf": {},
        "init": None,
        "max_epoch": 1,
        "num_iters_per_epoch": None,
    }
    if unknown := set(others) - set(defaults):
        raise TypeError(f"unknown options {unknown}")
    return Namespace(**{**defaults, **others})


def build(guides=GUIDES, *, seed=0, **others):
    """A tiny model in double precision and training mode, with decided scores."""
    torch.manual_seed(seed)
    model = SMoETask.build_model(options(guides, **others))
    with torch.no_grad():
        # fresh models score all tokens alike and have unit batch statistics
        model.decoder.output_layer.weight.mul_(4.0)
        if model.ctc is not None:
            model.ctc.ctc_lo.weight.mul_(4.0)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_(0.0, 0.1)
                module.running_var.uniform_(0.5, 2.0)
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0.0, 0.1)
    return model.double()


def split_options(stack, split_after, batches=10):
    """Options that tie ``stack`` (``encoder``, ``decoder``) for some batches."""
    axis = {"encoder": "bandwidth", "decoder": "task"}[stack]
    experts = {"axis": axis, "split_at": split_after / batches}
    return {stack: {"experts": experts}, "num_iters_per_epoch": batches}


def batch(utterances=MIXED, guides=GUIDES, *, seed=0, poison=True):
    """A batch as the host collates it.

    Args:
        utterances: per utterance one guide for each utterance axis, then its tasks.
        poison: fill the padding of the speech with NaN instead of zeros.
    """
    generator = torch.Generator().manual_seed(seed)
    table = GuideTable.from_mapping(guides)
    ordinary = len(table.tokens) + 2

    def draw(low, high, shape=()):
        return torch.randint(low, high, shape, generator=generator)

    lengths = torch.stack([draw(1500, 4500) for _ in utterances])
    speech = torch.randn(
        len(utterances), int(lengths.max()), dtype=torch.double, generator=generator
    )
    for row, length in zip(speech, lengths, strict=True):
        row[length:] = torch.nan if poison else 0.0
    data = {"speech": speech, "speech_lengths": lengths}
    for n, axis in enumerate(table.utterance_axes):
        data[axis.name] = torch.tensor([[axis.index(u[n])] for u in utterances])
    for task in table.tasks:
        texts = [
            draw(ordinary, ordinary + 20, (int(draw(1, 6)) if task in u[-1] else 0,))
            for u in utterances
        ]
        data[f"text_{task}"] = torch.nn.utils.rnn.pad_sequence(
            texts, batch_first=True, padding_value=-1
        )
        data[f"text_{task}_lengths"] = torch.tensor([len(t) for t in texts])
    return data


def guide_ids(data, guides=GUIDES):
    """Utterance axis -> (B,) ids of a batch."""
    axes = GuideTable.from_mapping(guides).utterance_axes
    return {a.name: data[a.name].view(-1) for a in axes}


def one_utterance(data, b):
    """Utterance ``b`` of a batch alone, without padding."""
    alone = {}
    for name, value in data.items():
        alone[name] = value[b : b + 1]
        if f"{name}_lengths" in data:
            alone[name] = alone[name][:, : int(data[f"{name}_lengths"][b])]
    return alone


def encode(model, data, guides=GUIDES):
    """``model.encode`` of a batch."""
    ids = guide_ids(data, guides)
    return model.encode(data["speech"], data["speech_lengths"], ids)


def banks(stack):
    """Expert banks of a stack that hold more than one expert."""
    return [b for b in stack.banks() if len(b.experts) > 1]


def expert_modules(stack):
    """Per expert id, its FFNs in all blocks."""
    return [
        torch.nn.ModuleList(experts)
        for experts in zip(*(b.experts for b in banks(stack)), strict=True)
    ]


@contextmanager
def disturbed(module):
    """Other parameters for a while."""
    before = [p.detach().clone() for p in module.parameters()]
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p))
    yield
    with torch.no_grad():
        for p, old in zip(module.parameters(), before, strict=True):
            p.copy_(old)


def stock_name(name):
    """Name of an S-MoE parameter in the host's dense module."""
    return re.sub(r"\.experts\.\d+", "", name)


def copy_from_stock(stack, stock):
    """Make every expert a copy of the host's FFN, and the rest equal to it."""
    source, own = stock.state_dict(), stack.state_dict()
    shared = [k for k in own if not k.startswith("split.")]
    assert {stock_name(k) for k in shared} == set(source)
    stack.load_state_dict(own | {k: source[stock_name(k)] for k in shared})
