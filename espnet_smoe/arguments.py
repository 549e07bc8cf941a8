"""Options of a training beside the host's own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from espnet2.asr.ctc import CTC
from espnet2.train.class_choices import ClassChoices
from espnet2.utils.get_default_kwargs import get_default_kwargs
from espnet2.utils.nested_dict_action import NestedDictAction
from espnet2.utils.types import str_or_none

import espnet_smoe

__all__ = ["add_arguments"]


def add_arguments(
    parser: argparse.ArgumentParser, choices: Sequence[ClassChoices]
) -> None:
    """Add the options of the task, and set the host's that it needs otherwise.

    Args:
        choices: encoders, decoders, ...; each adds ``<name>`` and ``<name>_conf``.
    """
    group = parser.add_argument_group("Task related")
    required = parser.get_default("required")
    required += ["token_list", "bpemodel", "guides"]
    group.add_argument(
        "--token_list", type=str_or_none, help="a token a line, in id order"
    )
    group.add_argument(
        "--bpemodel", type=str_or_none, help="sentencepiece model of the tokens"
    )
    group.add_argument(
        "--guides",
        action=NestedDictAction,
        default=None,
        help="axis -> list of guides, e.g. {bandwidth: [nb, wb], task: [asr]}",
    )
    group.add_argument(
        "--added_guides",
        nargs="*",
        default=[],
        help="guides that smoe_add_task added behind the token list",
    )
    group.add_argument(
        "--init",
        type=str_or_none,
        default=None,
        choices=["xavier_uniform", "xavier_normal", "kaiming_uniform", None],
        help="initialisation of the parameters; null = torch's own",
    )
    group.add_argument(
        "--frontend_conf",
        action=NestedDictAction,
        default={},
        help="options of the host's log-mel front end",
    )
    group.add_argument(
        "--ctc_conf",
        action=NestedDictAction,
        default=get_default_kwargs(CTC),
        help="options of the host's CTC",
    )
    group.add_argument(
        "--preprocessor_conf",
        action=NestedDictAction,
        default={},
        help="augmentation of training audio: telephone, data_aug_effects, ...",
    )
    group.add_argument(
        "--sampling",
        action=NestedDictAction,
        default=None,
        help="how often each condition is drawn, e.g. {temperature: 2} or "
        "{weights: {nb: 3}}; null = as in the data",
    )
    group.add_argument(
        "--espnet_smoe_version",
        default=espnet_smoe.__version__,
        help="recorded in config.yaml",
    )
    for choice in choices:
        choice.add_arguments(group)
    # data names follow the YAML's axes; the preprocessor checks them. An expert
    # or CTC may be idle on a process: without unused_parameters that is an error
    parser.set_defaults(
        allow_variable_data_keys=True, num_att_plot=0, unused_parameters=True
    )
