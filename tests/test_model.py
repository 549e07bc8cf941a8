"""The whole model: rows, loss, statistics, and what a training run relies on."""

import copy
import io

import contract
import dummies
import pytest
import torch
from espnet2.legacy.nets.pytorch_backend.transformer.label_smoothing_loss import (
    LabelSmoothingLoss,
)

from espnet_smoe.config import ConfigError
from espnet_smoe.guide import GuideError
from espnet_smoe.rows import add_prompt, smoothed_cross_entropy

ONLY_ASR = [("wb", ("asr",)), ("nb", ("asr",)), ("nb", ("asr",))]
ONLY_ST = [("nb", ("st_de",)), ("wb", ("st_es", "st_de"))]
NO_GERMAN = [("nb", ("asr",)), ("wb", ("st_es", "asr"))]
ALONE = [("wb", ("st_es", "asr"))]
BATCHES = pytest.mark.parametrize(
    "utterances",
    [dummies.MIXED, ONLY_ASR, ONLY_ST, NO_GERMAN, ALONE],
    ids=["mixed", "transcripts", "translations", "a-task-absent", "one-utterance"],
)


def naive_loss(model, data, guides=dummies.GUIDES):
    """Reference: encoder and decoder on one row at a time, the host's losses."""
    table = model.guides
    size = len(data["speech"])
    smoothed = LabelSmoothingLoss(model.vocab_size, -1, model.lsm_weight)
    weights = dict(zip(table.tasks, model.task_weights, strict=True))
    loss_att, loss_ctc, losses = 0.0, 0.0, {}
    for b in range(size):
        alone = dummies.one_utterance(data, b)
        encoded, frames = dummies.encode(model, alone, guides)
        named = {
            axis.name: axis.guides[int(alone[axis.name])]
            for axis in table.utterance_axes
        }
        for task in table.tasks:
            text = alone[f"text_{task}"][0]
            if not len(text):
                continue
            prompt = table.prompt(named | {"task": task})
            prompt = [model.token_list.index(t) for t in prompt]
            ys_in = torch.tensor([model.sos, *prompt, *text])[None]
            ys_out = torch.tensor([-1] * len(prompt) + [*text, model.eos])[None]
            logits, _ = model.decoder(
                encoded, frames, ys_in, torch.tensor([ys_in.size(1)])
            )
            loss = smoothed(logits, ys_out)
            losses[b, task] = loss.item()
            loss_att = loss_att + weights[task] * loss / size
            if task == "asr" and model.ctc is not None:
                ctc = model.ctc(encoded, frames, text[None], torch.tensor([len(text)]))
                loss_ctc = loss_ctc + ctc / size
    ctc_weight = model.ctc_weight
    return (1 - ctc_weight) * loss_att + ctc_weight * loss_ctc, losses


def close(got, want):
    got, want = got.double().squeeze(), want.double().squeeze()
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


# ---- loss ----------------------------------------------------------------------


@BATCHES
@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
def test_p4_the_loss_is_that_of_a_loop_over_utterances_and_tasks(
    utterances, ctc_weight
):
    conf = {"ctc_weight": ctc_weight, "task_weights": {"st_de": 2.5, "asr": 0.5}}
    model = dummies.build(model_conf=conf).eval()
    data = dummies.batch(utterances)
    leaves = list(model.parameters())

    loss, stats, weight = model(**data)
    assert int(weight) == len(utterances)
    close(stats["loss"], loss.detach())
    want, _ = naive_loss(model, data)
    close(loss, want)
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    wanted = torch.autograd.grad(want, leaves, allow_unused=True)
    for g, w in zip(grads, wanted, strict=True):
        # an idle expert has no gradient at all, in a batch or row by row
        assert (g is None) == (w is None)
        if w is not None:
            torch.testing.assert_close(g, w, atol=1e-4, rtol=1e-4)


def test_three_axes_take_their_place_in_prompt_and_loss_by_yaml_alone():
    guides = dummies.CHANNEL_GUIDES
    utterances = [
        ("wb", "mic", ("asr", "st_de")),
        ("nb", "phone", ("asr",)),
        ("nb", "mic", ("st_de",)),
        ("wb", "phone", ("asr",)),
    ]
    model = dummies.build(
        guides,
        encoder={"experts": {"axis": ["channel", "bandwidth"]}},
        decoder={"experts": {"axis": "task", "map": {"asr": 0, "st_de": 0}}},
    ).eval()
    assert [len(b.experts) for b in model.encoder.banks()] == [4] * 4
    assert [len(b.experts) for b in model.decoder.banks()] == [1, 1]
    data = dummies.batch(utterances, guides)
    close(model(**data)[0], naive_loss(model, data, guides)[0])

    contract.check_isolation(
        lambda: dummies.encode(model, data, guides)[0].detach(),
        dummies.expert_modules(model.encoder),
        [3, 0, 2, 1],  # phone nb, phone wb, mic nb, mic wb
    )
    rows = model.rows_of(dummies.guide_ids(data, guides), torch.ones(2, 4) > 0)
    prompts = [[model.token_list[t] for t in p] for p in rows.prompts.tolist()]
    assert prompts[0] == ["<wb>", "<mic>", "<asr>"]
    assert prompts[6] == ["<nb>", "<mic>", "<st_de>"]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_p1_the_smoothed_loss_is_the_hosts(smoothing):
    model = dummies.build(model_conf={"lsm_weight": smoothing})
    torch.manual_seed(0)
    logits = torch.randn(3, 6, model.vocab_size) * 3
    target = torch.randint(0, model.vocab_size, (3, 6))
    target[0, :2] = target[1, 4:] = target[2] = -1
    got = smoothed_cross_entropy(logits, target, smoothing)
    host = LabelSmoothingLoss(model.vocab_size, -1, smoothing)
    want = [host(x[None], y[None]) for x, y in zip(logits, target, strict=True)]
    torch.testing.assert_close(got, torch.stack(want), atol=1e-5, rtol=1e-5)


def test_the_prompt_is_read_and_never_predicted():
    model = dummies.build()
    eos = model.eos
    text = torch.tensor([[11, 12, 13], [14, -1, -1]])
    ys_in, ys_out = add_prompt(
        text, torch.tensor([3, 1]), torch.tensor([[2, 4], [3, 5]]), eos, eos
    )
    assert ys_in.tolist() == [[eos, 2, 4, 11, 12, 13], [eos, 3, 5, 14, eos, eos]]
    assert ys_out.tolist() == [[-1, -1, 11, 12, 13, eos], [-1, -1, 14, eos, -1, -1]]


# ---- one encoding, many tasks --------------------------------------------------


def count_calls(module):
    sizes = []
    module.register_forward_hook(lambda _, __, out: sizes.append(len(out[0])))
    return sizes


@BATCHES
def test_p4_every_utterance_is_encoded_once_and_every_pair_with_text_decoded_once(
    utterances,
):
    model = dummies.build().eval()
    frontend, encoder = count_calls(model.frontend), count_calls(model.encoder)
    decoder, ctc = count_calls(model.decoder), []
    model.ctc.register_forward_hook(lambda _, args, __: ctc.append(len(args[0])))
    model(**dummies.batch(utterances))
    assert frontend == encoder == [len(utterances)]
    assert decoder == [sum(len(tasks) for _, tasks in utterances)]
    transcribed = sum("asr" in tasks for _, tasks in utterances)
    assert ctc == ([transcribed] if transcribed else [])


def test_p4_rows_are_the_pairs_with_text_grouped_by_task():
    model = dummies.build()
    data = dummies.batch(dummies.MIXED)
    has_text = torch.stack(
        [data[f"text_{t}_lengths"] > 0 for t in dummies.GUIDES["task"]]
    )
    rows = model.rows_of(dummies.guide_ids(data), has_text)
    assert rows.tasks.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert rows.utterances.tolist() == [0, 1, 3, 0, 3, 2, 3]
    prompts = [[model.token_list[t] for t in p] for p in rows.prompts.tolist()]
    for prompt, b, t in zip(prompts, rows.utterances, rows.tasks, strict=True):
        bandwidth, task = dummies.MIXED[b][0], dummies.GUIDES["task"][t]
        assert prompt == [f"<{bandwidth}>", f"<{task}>"]


def test_a_batch_without_any_reference_is_refused():
    model = dummies.build()
    with pytest.raises(ValueError, match="no utterance of the batch has a reference"):
        model(**dummies.batch([("nb", ())]))


# ---- isolation, neighbours, explicit guides ------------------------------------


def test_p2_one_bandwidth_and_task_give_the_other_experts_no_gradient():
    model = dummies.build()
    model(**dummies.batch([("wb", ("st_de",)), ("wb", ("st_de",))]))[0].backward()
    idle = dummies.expert_modules(model.encoder)[:1]
    idle += dummies.expert_modules(model.decoder)[::2]
    idle = {id(p) for module in idle for p in module.parameters()}
    assert idle
    for name, p in model.named_parameters():
        # nobody has a transcript, so CTC is idle as well
        assert (p.grad is None) == (id(p) in idle or name.startswith("ctc.")), name


def test_p3_an_utterance_encodes_the_same_alone_as_in_a_batch():
    model = dummies.build().eval()
    data = dummies.batch([("wb", ("asr",)), ("nb", ("asr",)), ("wb", ("asr",))])
    speech = data["speech"].nan_to_num()
    bandwidths = data["bandwidth"].view(-1)

    def run(speech, lengths, rows):
        return model.encode(speech, lengths, {"bandwidth": bandwidths[rows]})

    contract.check_neighbours(run, speech, data["speech_lengths"], tolerance=1e-5)


@pytest.mark.parametrize("samples", [1, 200, 511, 512, 513])
def test_p3_a_word_shorter_than_the_subsampling_encodes_the_same_alone(samples):
    model = dummies.build().eval()
    lengths = torch.tensor([samples, 3000])
    torch.manual_seed(0)
    speech = torch.randn(2, 3000, dtype=torch.double)

    def run(speech, lengths, rows):
        return model.encode(speech, lengths, {"bandwidth": torch.tensor([1, 0])[rows]})

    contract.check_neighbours(run, speech, lengths, tolerance=1e-5)


def test_p3_padding_changes_no_loss():
    model = dummies.build().eval()
    loss, *_ = model(**dummies.batch(poison=True))
    want, *_ = model(**dummies.batch(poison=False))
    assert torch.equal(loss, want)
    assert loss.isfinite()


def test_p6_guides_stay_on_no_module():
    model = dummies.build().eval()
    calls = [
        lambda u=u: model(**dummies.batch(u))
        for u in (dummies.MIXED, ONLY_ST, ONLY_ASR, dummies.MIXED)
    ]
    contract.check_no_guide_state(model, calls)


@pytest.mark.parametrize("bad", [2, -1])
@pytest.mark.parametrize(
    "experts", [{"axis": "bandwidth"}, None], ids=["experts", "hard-sharing"]
)
def test_p6_an_unknown_bandwidth_id_is_an_error(bad, experts):
    model = dummies.build(encoder={"experts": experts})
    data = dummies.batch(ONLY_ASR)
    data["bandwidth"][1] = bad
    with pytest.raises(ValueError, match="known"):
        model(**data)


# ---- statistics ----------------------------------------------------------------


@BATCHES
def test_statistics_have_the_same_keys_and_are_right_in_every_cell(utterances):
    model = dummies.build().eval()
    data = dummies.batch(utterances)
    _, stats, _ = model(**data)
    cells = [*dummies.GUIDES["task"], *dummies.GUIDES["bandwidth"]]
    assert set(stats) == {"loss", "loss_ctc", "loss_att", "acc"} | {
        f"{kind}_{cell}" for kind in ("loss", "acc") for cell in cells
    }
    _, losses = naive_loss(model, data)
    for cell in cells:
        mine = [
            loss
            for (b, task), loss in losses.items()
            if cell in (task, utterances[b][0])
        ]
        assert stats[f"loss_{cell}"].isnan() == (not mine)
        assert stats[f"acc_{cell}"].isnan() == (not mine)
        if mine:
            assert float(stats[f"loss_{cell}"]) == pytest.approx(
                sum(mine) / len(mine), rel=1e-4
            )
    assert stats["loss_ctc"].isnan() == (utterances is ONLY_ST)


def test_accuracy_counts_text_and_end_but_no_prompt():
    model = dummies.build().eval()
    data = dummies.batch([("nb", ("asr",))])
    with torch.no_grad():  # a model that answers the first text token, always
        model.decoder.output_layer.weight.zero_()
        model.decoder.output_layer.bias.zero_()
        model.decoder.output_layer.bias[data["text_asr"][0, 0]] = 1.0
    text = data["text_asr"][0]
    want = int((text == text[0]).sum()) / (len(text) + 1)
    _, stats, _ = model(**data)
    assert float(stats["acc"]) == pytest.approx(want)
    assert float(stats["acc_asr"]) == pytest.approx(want)


def test_collected_features_are_those_of_the_front_end():
    model = dummies.build().eval()
    data = dummies.batch(ONLY_ASR, poison=False)
    out = model.collect_feats(**data)
    assert out["feats"].shape[0] == len(ONLY_ASR)
    assert out["feats"].shape[2] == dummies.MELS
    frames = (data["speech_lengths"] - 128) // dummies.SAMPLES_A_FRAME + 1
    assert torch.equal(out["feats_lengths"], frames)


# ---- configuration -------------------------------------------------------------


@pytest.mark.parametrize(
    "others, error, message",
    [
        ({"model_conf": {"ctc_weight": 1.0}}, ConfigError, "ctc_weight and lsm_weight"),
        (
            {"model_conf": {"lsm_weight": -0.1}},
            ConfigError,
            "ctc_weight and lsm_weight",
        ),
        ({"model_conf": {"task_weights": {"mt": 1}}}, ConfigError, "unknown tasks"),
        ({"model_conf": {"length_normalized_loss": True}}, ConfigError, "known: "),
        ({"frontend_conf": {"center": True}}, ConfigError, "center must be false"),
        ({"frontend_conf": {"fs": 8000}}, ConfigError, "must be 16000 Hz, got 8000"),
        ({"frontend_conf": {"mels": 80}}, ConfigError, r"\['mels'\] in frontend_conf"),
        ({"ctc_conf": {"weight": 1}}, ConfigError, "in ctc_conf"),
        (
            {"encoder": {"experts": {"axis": "bandwidth", "split_at": 0.5}}},
            ConfigError,
            "set num_iters_per_epoch",
        ),
    ],
)
def test_bad_configs_are_refused(others, error, message):
    with pytest.raises(error, match=message):
        dummies.build(**others)


def test_ctc_without_transcripts_is_refused_and_a_pure_translator_is_not():
    guides = {"bandwidth": ["nb", "wb"], "task": ["st_de"]}
    with pytest.raises(ConfigError, match="needs the task 'asr'"):
        dummies.build(guides, model_conf={"ctc_weight": 0.3})
    model = dummies.build(guides, model_conf={"ctc_weight": 0.0})
    loss, *_ = model(**dummies.batch([("nb", ("st_de",))], guides))
    assert loss.isfinite()


def test_a_token_list_without_the_guides_is_refused():
    tokens = [t for t in dummies.token_list() if t != "<st_es>"]
    with pytest.raises(GuideError, match=r"lacks the guiding tokens \['<st_es>'\]"):
        dummies.build(token_list=tokens)


def test_the_split_is_a_fraction_of_all_training_batches():
    model = dummies.build(
        encoder={"experts": {"axis": "bandwidth", "split_at": 0.25}},
        decoder={"experts": {"axis": "task", "split_at": 0.5}},
        num_iters_per_epoch=6,
        max_epoch=4,
    )
    assert int(model.encoder.split.batches_left) == 6
    assert int(model.decoder.split.batches_left) == 12


# ---- late split over a training run --------------------------------------------


def split_model():
    return dummies.build(
        encoder={"experts": {"axis": "bandwidth", "split_at": 0.2}},
        decoder={"experts": {"axis": "task", "split_at": 0.3}},
        num_iters_per_epoch=10,
    )


def train(model, optimizer, steps, validate=False):
    model.train()
    for n in steps:
        optimizer.zero_grad()
        model(**dummies.batch(seed=n))[0].backward()
        optimizer.step()
        if validate:
            model.eval()
            with torch.no_grad():
                model(**dummies.batch(seed=100 + n))
            model.train()


def checkpoint(model, optimizer):
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    return torch.load(file)


def make_optimizer(model, kind):
    options = {"adam": {"lr": 0.01}, "sgd": {"lr": 0.01, "momentum": 0.9}}[kind]
    return {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[kind](
        model.parameters(), **options
    )


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_a_resumed_run_is_bit_identical_wherever_it_stopped(kind):
    model = split_model()
    optimizer = make_optimizer(model, kind)
    saved = {}
    for n in range(5):
        saved[n] = copy.deepcopy(checkpoint(model, optimizer))
        train(model, optimizer, [n])
    want = model.state_dict()
    for stopped in range(1, 5):
        resumed = split_model()
        optimizer = make_optimizer(resumed, kind)
        state, optimizer_state = saved[stopped]
        resumed.load_state_dict(state)
        optimizer.load_state_dict(optimizer_state)
        train(resumed, optimizer, range(stopped, 5))
        for key, value in resumed.state_dict().items():
            assert torch.equal(value, want[key]), (stopped, key)


def test_validation_and_saving_between_batches_change_no_parameter():
    plain, watched = split_model(), split_model()
    optimizers = [make_optimizer(m, "adam") for m in (plain, watched)]
    train(plain, optimizers[0], range(5))
    for n in range(5):
        train(watched, optimizers[1], [n], validate=True)
        checkpoint(watched, optimizers[1])
    for (name, p), q in zip(
        plain.named_parameters(), watched.parameters(), strict=True
    ):
        assert torch.equal(p, q), name


def test_each_stack_splits_at_its_own_batch():
    model = split_model()
    optimizer = make_optimizer(model, "adam")
    for n, (encoder_tied, decoder_tied) in enumerate(
        [(True, True), (True, True), (False, True), (False, False)]
    ):
        train(model, optimizer, [n])
        for stack, tied in (
            (model.encoder, encoder_tied),
            (model.decoder, decoder_tied),
        ):
            state = stack.state_dict()
            equal = [
                torch.equal(v, state[k.replace("experts.1", "experts.0")])
                for k, v in state.items()
                if ".experts.1." in k
            ]
            assert all(equal) == tied, n
