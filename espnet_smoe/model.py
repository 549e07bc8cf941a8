"""Batch -> loss and statistics: one encoding, many tasks.

Batch (B utterances, S samples, U tokens):

    speech          (B, S) float32, 16 kHz      speech_lengths          (B,) int64
    <axis>          (B, 1) int64, guide id, for each utterance axis (``bandwidth``)
    text_<task>     (B, U) int64, padded with -1; ``text_<task>_lengths`` (B,) int64,
                    0 = the utterance has no reference of this task

The encoder runs once on the B utterances; the decoder once on the P rows, the
(utterance, task) pairs that have a reference, grouped by task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from espnet2.asr.ctc import CTC
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.asr.frontend.abs_frontend import AbsFrontend
from espnet2.asr.specaug.abs_specaug import AbsSpecAug
from espnet2.layers.abs_normalize import AbsNormalize
from espnet2.torch_utils.device_funcs import force_gatherable

from espnet_smoe.config import ConfigError
from espnet_smoe.decoder import SMoETransformerDecoder
from espnet_smoe.encoder import SMoEConformerEncoder
from espnet_smoe.freeze import freeze
from espnet_smoe.guide import TASK, GuideTable
from espnet_smoe.mask import valid_mask
from espnet_smoe.ratios import condition_sums, global_ratios
from espnet_smoe.rows import (
    IGNORE,
    Rows,
    add_prompt,
    row_texts,
    smoothed_cross_entropy,
)

__all__ = ["SMoEModel"]


class SMoEModel(ESPnetASRModel):
    """Hybrid CTC/attention model for several tasks and bandwidths.

    Args:
        guides: axis -> guides of the model (YAML ``guides``).
        guide_token_ids: axis -> vocabulary ids of its guiding tokens.
        ctc_weight: weight of CTC in [0, 1) against the decoder; CTC learns the
            transcripts (task ``asr``) only, translations are not monotonic.
        lsm_weight: label smoothing in [0, 1).
        task_weights: task -> weight of its decoder loss; default 1.0 each.
        train_only: tasks to train while all else stays as it is, to the bit: only
            what serves no other task learns (the tokens and experts that
            ``smoe_add_task`` added), and batch norm keeps its statistics.

    Raises:
        ConfigError: a weight is out of range, a task is unknown, or nothing serves
            the tasks to train alone.
    """

    def __init__(
        self,
        vocab_size: int,
        token_list: Sequence[str],
        frontend: AbsFrontend,
        specaug: AbsSpecAug | None,
        normalize: AbsNormalize | None,
        encoder: SMoEConformerEncoder,
        decoder: SMoETransformerDecoder,
        ctc: CTC,
        guides: Mapping[str, Sequence[str]],
        guide_token_ids: Mapping[str, Sequence[int]],
        ctc_weight: float = 0.3,
        lsm_weight: float = 0.1,
        task_weights: Mapping[str, float] | None = None,
        train_only: Sequence[str] = (),
    ) -> None:
        if not 0.0 <= ctc_weight < 1.0 or not 0.0 <= lsm_weight < 1.0:
            raise ConfigError(
                f"ctc_weight and lsm_weight must lie in [0, 1), got {ctc_weight} and "
                f"{lsm_weight}"
            )
        super().__init__(
            vocab_size=vocab_size,
            token_list=list(token_list),
            frontend=frontend,
            specaug=specaug,
            normalize=normalize,
            preencoder=None,
            encoder=encoder,
            postencoder=None,
            decoder=decoder,
            ctc=ctc,
            joint_network=None,
            ctc_weight=ctc_weight,
            lsm_weight=lsm_weight,
            # host metrics that run Python per utterance; scores come from decoding
            report_cer=False,
            report_wer=False,
        )
        self.guides = GuideTable.from_mapping(guides)
        self.guide_token_ids = {a: list(ids) for a, ids in guide_token_ids.items()}
        self.lsm_weight = lsm_weight
        weights = dict(task_weights or {})
        if unknown := sorted(set(weights) - set(self.guides.tasks)):
            raise ConfigError(
                f"task_weights of unknown tasks {unknown}; known: "
                f"{list(self.guides.tasks)}"
            )
        # samples of the fewest frames that the subsampling takes
        self.min_samples = (
            frontend.stft.n_fft + (encoder.min_frames() - 1) * frontend.hop_length
        )
        self.task_weights = [weights.get(t, 1.0) for t in self.guides.tasks]
        if "asr" not in self.guides.tasks and ctc_weight > 0.0:
            raise ConfigError(
                f"ctc_weight {ctc_weight} needs the task 'asr'; tasks: "
                f"{list(self.guides.tasks)}"
            )
        self.train_only = tuple(train_only)
        if self.train_only:
            freeze(self, self.decoder, self.guides, self.train_only)

    def train(self, mode: bool = True) -> SMoEModel:
        """Switch mode; the batch norm of a frozen model stays as in inference."""
        super().train(mode)
        if self.train_only:
            for module in self.modules():
                if isinstance(module, torch.nn.BatchNorm1d):
                    module.eval()
        return self

    def encode(
        self,
        speech: torch.Tensor,
        speech_lengths: torch.Tensor,
        guide_ids: Mapping[str, torch.Tensor],
        balance: list[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Front end and encoder.

        Args:
            speech: (B, S) float32 at 16 kHz; the padding is never read.
            speech_lengths: (B,) int64, samples.
            guide_ids: utterance axis -> (B,) int64 on CPU.
            balance: list for the losses of learned gates, see ``Route``.

        Returns:
            (B, T, D) and (B,) int64 frames.

        Raises:
            GuideError: a guide id is unknown; lists the known ones.
        """
        for axis in self.guides.utterance_axes:
            axis.check_ids(guide_ids[axis.name].tolist())
        expert_ids = self.encoder.expert_ids_of(guide_ids)
        feats, lengths = self._extract_feats(speech, speech_lengths)
        if self.specaug is not None and self.training:
            feats, lengths = self.specaug(feats, lengths)
        if self.normalize is not None:
            feats, lengths = self.normalize(feats, lengths)
        encoded, lengths, _ = self.encoder(
            feats, lengths, expert_ids, guide_ids, balance
        )
        return encoded, lengths

    def collect_feats(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor, **_: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Features for the statistics of stage 10: (B, T0, F) and (B,) frames."""
        feats, lengths = self._extract_feats(speech, speech_lengths)
        return {"feats": feats, "feats_lengths": lengths}

    def _extract_feats(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The host's front end on samples whose padding is silence."""
        valid = valid_mask(speech_lengths, speech.size(1))
        speech = speech.masked_fill(~valid, 0.0)
        # a word of 0.1 s is shorter than the subsampling's field: silence follows it
        missing = max(0, self.min_samples - speech.size(1))
        if missing:  # else it would be copied for nothing
            speech = torch.nn.functional.pad(speech, (0, missing))
        return super()._extract_feats(
            speech, speech_lengths.clamp(min=self.min_samples)
        )

    def rows_of(
        self, guide_ids: Mapping[str, torch.Tensor], has_text: torch.Tensor
    ) -> Rows:
        """The rows of a batch.

        Args:
            guide_ids: utterance axis -> (B,) int64 on CPU.
            has_text: (number of tasks, B) bool on CPU.
        """
        tasks, utterances = torch.nonzero(has_text, as_tuple=True)
        columns = []
        for axis in self.guides.axes:
            ids = tasks if axis.name == TASK else guide_ids[axis.name][utterances]
            columns.append(torch.tensor(self.guide_token_ids[axis.name])[ids])
        return Rows(utterances, tasks, torch.stack(columns, dim=1))

    def forward(
        self,
        speech: torch.Tensor,
        speech_lengths: torch.Tensor,
        **data: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        """Loss of one batch (see the module's docstring for its tensors).

            loss = w_ctc CTC(asr) + (1 - w_ctc) sum over tasks w_task CE(task)

        Both terms are sums over tokens, divided by the number of utterances B. So B
        is the weight with which the host combines the losses of several processes
        into that of one process on all their utterances. With learned gates, the
        weighted balance losses of all banks (statistic ``loss_balance``), each of one
        process's own frames, come on top, times the tokens per utterance: their
        weight is meant against a loss per token.

        Returns:
            loss (), statistics (the same keys on every step, NaN when a task or
            bandwidth is absent; of all processes together), weight B.

        Raises:
            ValueError: a guide id is unknown, or no utterance has a reference.
        """
        lengths = torch.stack(
            [data[f"text_{task}_lengths"] for task in self.guides.tasks]
        )
        names = [a.name for a in self.guides.utterance_axes]
        ids = torch.stack([data[name].view(-1) for name in names])
        # the one transfer to the host of a step
        on_host = torch.cat([lengths, ids]).cpu()
        has_text = on_host[: len(lengths)] > 0
        if not bool(has_text.any()):
            raise ValueError("no utterance of the batch has a reference of any task")
        guide_ids = dict(zip(names, on_host[len(lengths) :], strict=True))

        balance: list[torch.Tensor] = []  # one loss per learned gate
        encoded, frames = self.encode(speech, speech_lengths, guide_ids, balance)
        rows = self.rows_of(guide_ids, has_text)
        losses, correct, tokens = self.decoder_loss(
            encoded, frames, rows, data, balance
        )

        weights = torch.tensor(self.task_weights)[rows.tasks].to(losses.device)
        loss = loss_att = (losses * weights).sum() / len(speech)
        sum_ctc, with_ctc = losses.new_zeros(()), 0
        if self.ctc is not None:
            with_asr = has_text[self.guides.tasks.index("asr")].nonzero().view(-1)
            loss = (1 - self.ctc_weight) * loss_att
            if with_ctc := len(with_asr):
                loss_ctc = self._ctc_loss(encoded, frames, with_asr, data)
                share = with_ctc / len(speech)
                loss = loss + self.ctc_weight * share * loss_ctc
                sum_ctc = with_ctc * loss_ctc.detach()

        balance_sums = {}
        if balance:
            loss_balance = torch.stack(balance).sum()
            loss = loss + loss_balance * tokens.sum() / len(speech)
            total = loss_balance.detach() * len(speech)
            balance_sums["loss_balance"] = (total, len(speech))

        bandwidths = guide_ids["bandwidth"][rows.utterances]
        conditions = {t: rows.tasks == i for i, t in enumerate(self.guides.tasks)}
        for i, bandwidth in enumerate(self.guides.bandwidths):
            conditions[bandwidth] = bandwidths == i
        sums = {
            "loss": (loss.detach() * len(speech), len(speech)),
            **balance_sums,
            "loss_ctc": (sum_ctc, with_ctc),
            "loss_att": (loss_att.detach() * len(speech), len(speech)),
            "acc": (correct.sum(), tokens.sum()),
            **condition_sums(conditions, losses.detach(), correct, tokens),
        }
        stats = global_ratios(sums, losses.device)
        return force_gatherable((loss, stats, len(speech)), loss.device)

    def _ctc_loss(
        self,
        encoded: torch.Tensor,
        frames: torch.Tensor,
        utterances: torch.Tensor,
        data: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """Mean CTC loss of the utterances that have a transcript."""
        text, lengths = data["text_asr"], data["text_asr_lengths"]
        if len(utterances) < len(encoded):
            utterances = utterances.to(encoded.device)
            encoded, frames = encoded[utterances], frames[utterances]
            text, lengths = text[utterances], lengths[utterances]
        return self.ctc(encoded, frames, text, lengths)

    def decoder_loss(
        self,
        encoded: torch.Tensor,
        frames: torch.Tensor,
        rows: Rows,
        data: Mapping[str, torch.Tensor],
        balance: list[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Label-smoothed cross entropy, correct and all tokens of rows, (P,) each.

        Args:
            encoded: (B, T, D) float; frames: (B,) int64; see ``encode``.
            data: ``text_<task>`` and their lengths, see the module's docstring.
            balance: list for the losses of learned gates, see ``Route``.
        """
        names = [f"text_{task}" for task in self.guides.tasks]
        text, lengths = row_texts(
            rows, [data[n] for n in names], [data[f"{n}_lengths"] for n in names]
        )
        ys_in, ys_out = add_prompt(text, lengths, rows.prompts, self.sos, self.eos)
        utterances = rows.utterances.to(encoded.device)
        logits, _ = self.decoder(
            encoded[utterances],
            frames[utterances],
            ys_in,
            lengths + rows.prompts.size(1) + 1,
            rows.prompts,
            balance,
        )
        losses = smoothed_cross_entropy(logits, ys_out, self.lsm_weight)
        valid = ys_out != IGNORE
        correct = ((logits.argmax(-1) == ys_out) & valid).sum(1)
        return losses, correct, valid.sum(1)
