"""Options that several commands share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openlpu.numerics.scheme import Scheme

LEAST, MOST = 4.5, 8.0
PRUNE = ("drop weights of the layers (default: none): 2:4 keeps two of every four neighbours, blocks:SHARE drops that "
         "share of tiles of 32 rows by 16 (blocks: a quarter)")
QUARTER = "blocks:0.25"


def add_bits(parser: argparse.ArgumentParser) -> None:
    """``--bits`` and ``--prune``: what a weight may take, and which are left out."""
    parser.add_argument("--bits", type=bits, metavar="B", help="bits per weight, 4.5 to 8 (default 8): 4.5 is all in "
                        "4-bit blocks; between them the matrices that need it most keep 8")
    parser.add_argument("--prune", type=prune, metavar="HOW", help=PRUNE)


def scheme(args: argparse.Namespace) -> Scheme | None:
    """The number format that the options ask for; None where they leave it to the model."""
    from openlpu.numerics.scheme import Scheme

    asked = {"weight_bits": args.bits, "prune": args.prune, "kv_bits": getattr(args, "kv_bits", None)}
    asked = {name: value for name, value in asked.items() if value is not None}
    return Scheme(**asked) if asked else None


def bits(text: str) -> float:
    """The value of ``--bits``."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not LEAST <= number <= MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {LEAST:g} to {MOST:g}")
    return number


def prune(text: str) -> str:
    """The value of ``--prune``."""
    if text == "blocks":
        return QUARTER
    kind, _, share = text.partition(":")
    try:
        fits = text == "2:4" or (kind == "blocks" and 0 < float(share) < 1)
    except ValueError:
        fits = False
    if not fits:
        raise argparse.ArgumentTypeError(f"{text!r} is not 2:4, blocks, or blocks:SHARE with a share between 0 and 1")
    return text
