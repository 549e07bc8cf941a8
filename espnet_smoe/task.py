"""The ESPnet task: YAML and options -> model, preprocessor, training.

Importing this module registers ``smoe_conformer``, ``smoe_transformer`` and ``smoe``
in the choices of the host's ASR task.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import espnet2.tasks.asr as host_asr
import numpy as np
from espnet2.asr.ctc import CTC
from espnet2.asr.decoder.abs_decoder import AbsDecoder
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.asr.specaug.specaug import SpecAug
from espnet2.iterators.sequence_iter_factory import SequenceIterFactory
from espnet2.tasks.abs_task import IteratorOptions, scheduler_classes
from espnet2.torch_utils.initialize import initialize
from espnet2.train.abs_espnet_model import AbsESPnetModel
from espnet2.train.class_choices import ClassChoices

from espnet_smoe.arguments import add_arguments
from espnet_smoe.audio import MODEL_RATE
from espnet_smoe.augment import Augmentation
from espnet_smoe.batches import build_batches, check_batches
from espnet_smoe.config import ConfigError, ExpertConfig, check_keys
from espnet_smoe.decoder import SMoETransformerDecoder
from espnet_smoe.encoder import SMoEConformerEncoder
from espnet_smoe.guide import GuideTable
from espnet_smoe.host import register
from espnet_smoe.model import SMoEModel
from espnet_smoe.preprocess import SMoEPreprocessor
from espnet_smoe.tokens import guide_token_ids, read_token_list
from espnet_smoe.trainer import SMoETrainer

__all__ = ["SMoETask", "split_batches"]

encoder_choices = ClassChoices(
    "encoder",
    {"smoe_conformer": SMoEConformerEncoder},
    type_check=AbsEncoder,
    default="smoe_conformer",
)
decoder_choices = ClassChoices(
    "decoder",
    {"smoe_transformer": SMoETransformerDecoder},
    type_check=AbsDecoder,
    default="smoe_transformer",
)
model_choices = ClassChoices(
    "model", {"smoe": SMoEModel}, type_check=AbsESPnetModel, default="smoe"
)

register(host_asr.encoder_choices, "smoe_conformer", SMoEConformerEncoder)
register(host_asr.decoder_choices, "smoe_transformer", SMoETransformerDecoder)
register(host_asr.model_choices, "smoe", SMoEModel)

# what build_model fills in; not for YAML
_BUILT = {
    "input_size", "guides", "guide_token_ids", "vocab_size", "token_list",
    "added_guides",
    "encoder_output_size", "split_after", "frontend", "specaug", "normalize",
    "encoder", "decoder", "ctc",
}  # fmt: skip


def check_conf(name: str, conf: Mapping[str, Any], cls: type) -> None:
    """Refuse a key of ``<name>_conf`` that ``cls`` does not take.

    Raises:
        ConfigError: lists the unknown and the known keys.
    """
    known = set(inspect.signature(cls).parameters) - _BUILT
    check_keys(f"{name}_conf", conf, sorted(known))


def split_batches(args: argparse.Namespace, conf: Mapping[str, Any]) -> int:
    """Training batches before a stack's late split.

    Args:
        args: the task's options; ``max_epoch`` and ``num_iters_per_epoch`` give the
            number of training batches.
        conf: the stack's ``*_conf``.

    Raises:
        ConfigError: ``split_at`` is set and the number of batches is not known.
    """
    experts = conf.get("experts")
    split_at = ExpertConfig.from_mapping(experts).split_at if experts else 0.0
    if split_at == 0.0:
        return 0
    if not args.num_iters_per_epoch:
        raise ConfigError(
            f"experts.split_at {split_at} is a fraction of all training batches: set "
            "num_iters_per_epoch, so that their number is known"
        )
    return round(split_at * args.max_epoch * args.num_iters_per_epoch)


class SMoETask(host_asr.ASRTask):
    """ASR and ST by one S-MoE model."""

    trainer = SMoETrainer
    class_choices_list: ClassVar = [
        host_asr.specaug_choices,
        host_asr.normalize_choices,
        model_choices,
        encoder_choices,
        decoder_choices,
    ]

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the options of this task to the host's."""
        add_arguments(parser, cls.class_choices_list)

    @classmethod
    def get_parser(cls) -> argparse.ArgumentParser:
        """The host's parser, without abbreviations and with one line on an error."""
        parser = super().get_parser()
        parser.allow_abbrev = False
        parser.error = _usage_error  # not 110 lines of usage
        return parser

    @classmethod
    def build_all(cls, args: argparse.Namespace) -> None:
        """Build all that training needs but data, to see whether the options fit.

        Raises:
            ConfigError: a key is unknown or a value out of range.
        """
        check_batches(args)
        cls.build_augmentation(args)
        model = cls.build_model(args)
        nbest = np.max(args.keep_nbest_models)
        if model.train_only and nbest > 2:
            # (w + w + w) / 3 is not always w: what is frozen would move
            raise ConfigError(
                f"model_conf.train_only keeps all else to the bit, which the mean of "
                f"{nbest} checkpoints does not; set keep_nbest_models to 1 or 2"
            )
        optimizers = cls.build_optimizers(args, model=model)
        if args.scheduler is not None:
            scheduler = scheduler_classes[args.scheduler]
            check_conf("scheduler", args.scheduler_conf, scheduler)
            scheduler(optimizers[0], **args.scheduler_conf)

    @classmethod
    def option_names(cls) -> list[str]:
        """Names of all options, the host's included, as YAML spells them."""
        # the host's get_default_config would read this process's command line
        return sorted(vars(cls.get_parser().parse_args([])))

    @classmethod
    def build_preprocess_fn(
        cls, args: argparse.Namespace, train: bool
    ) -> Callable[[str, dict[str, Any]], dict[str, np.ndarray]]:
        """The preprocessor of one data set."""
        return SMoEPreprocessor(
            train=train,
            token_list=read_token_list(args.token_list),
            bpemodel=args.bpemodel,
            guides=args.guides,
            augmentation=cls.build_augmentation(args),
        )

    @classmethod
    def build_augmentation(cls, args: argparse.Namespace) -> Augmentation:
        """What the options say training does to audio.

        Raises:
            ConfigError: a key is unknown, a value out of range, or an effect would
                narrow the band.
        """
        check_conf("preprocessor", args.preprocessor_conf, Augmentation)
        guides = GuideTable.from_mapping(args.guides)
        return Augmentation(guides, **args.preprocessor_conf)

    @classmethod
    def build_sequence_iter_factory(
        cls, args: argparse.Namespace, iter_options: IteratorOptions, mode: str
    ) -> SequenceIterFactory:
        """The host's batches, or those of ``sampling``; each process gets its share.

        Raises:
            ConfigError: a batch has fewer utterances than there are processes.
        """
        return build_batches(
            super().build_sequence_iter_factory, args, iter_options, mode
        )

    @classmethod
    def required_data_names(
        cls, train: bool = True, inference: bool = False
    ) -> tuple[str, ...]:
        """Data that every utterance needs."""
        return ("speech",) if inference else ("speech", "targets", "bandwidth")

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> SMoEModel:
        """Build the model that the options describe.

        Raises:
            ConfigError: a key is unknown or a value out of range.
            GuideError: guides do not fit together or with the token list.
        """
        tokens = read_token_list(args.token_list)
        args.token_list = tokens  # config.yaml then needs no other file
        guides = GuideTable.from_mapping(args.guides)
        # config.yaml of earlier releases has no such key
        added_guides = getattr(args, "added_guides", [])
        token_ids = guide_token_ids(guides, tokens, added_guides)
        classes = {
            "encoder": encoder_choices.get_class(args.encoder),
            "decoder": decoder_choices.get_class(args.decoder),
            "model": model_choices.get_class(args.model),
            "frontend": DefaultFrontend,
            "ctc": CTC,
        }
        for name, kind in classes.items():
            check_conf(name, getattr(args, f"{name}_conf"), kind)

        frontend = _build_frontend(args.frontend_conf)
        encoder = classes["encoder"](
            input_size=frontend.output_size(),
            guides=args.guides,
            split_after=split_batches(args, args.encoder_conf),
            **args.encoder_conf,
        )
        decoder = classes["decoder"](
            vocab_size=len(tokens),
            encoder_output_size=encoder.output_size(),
            guides=args.guides,
            guide_token_ids=token_ids,
            split_after=split_batches(args, args.decoder_conf),
            added_guides=added_guides,
            **args.decoder_conf,
        )
        specaug = None
        if args.specaug is not None:
            check_conf("specaug", args.specaug_conf, SpecAug)
            specaug = SpecAug(**args.specaug_conf)
        normalize = None
        if args.normalize is not None:
            normalize_class = host_asr.normalize_choices.get_class(args.normalize)
            check_conf("normalize", args.normalize_conf, normalize_class)
            normalize = normalize_class(**args.normalize_conf)
        model = classes["model"](
            vocab_size=len(tokens),
            token_list=tokens,
            frontend=frontend,
            specaug=specaug,
            normalize=normalize,
            encoder=encoder,
            decoder=decoder,
            ctc=CTC(len(tokens), encoder.output_size(), **args.ctc_conf),
            guides=args.guides,
            guide_token_ids=token_ids,
            **args.model_conf,
        )
        if args.init is not None:
            initialize(model, args.init)
        return model


def _usage_error(message: str) -> None:
    sys.stderr.write(f"smoe_train: {message}; see smoe_train --help_host\n")
    sys.exit(2)


def _build_frontend(conf: Mapping[str, Any]) -> DefaultFrontend:
    """The host's log-mel front end, held to what an utterance alone needs.

    Raises:
        ConfigError: another rate than the model's, or centred frames (at the end of
            an utterance they see its padding, so it would depend on its batch).
    """
    conf = {"fs": MODEL_RATE, "center": False, **conf}
    if conf["fs"] not in (MODEL_RATE, "16k"):
        raise ConfigError(f"frontend_conf.fs must be {MODEL_RATE} Hz, got {conf['fs']}")
    if conf["center"]:
        raise ConfigError("frontend_conf.center must be false, got true")
    return DefaultFrontend(**conf)
