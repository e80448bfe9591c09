"""`pixelwise verify`: does a converted network compute here what the original does?"""

from __future__ import annotations

import json as json_text
from typing import Annotated

import typer


def command(
    file: Annotated[str, typer.Argument(help="Another project's checkpoint, or one of ours.")],
    *,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> int:
    """Compare a converted network's outputs with the reference that ships for its origin.

    The weights of the file are checked for what is no number, and taken back to the original's
    names, where they must be the same bit by bit. The reference is a small network of the same
    origin and system with stored outputs; exit code 4 if anything differs.
    """
    from pixelwise.convert.reference import TOLERANCE
    from pixelwise.verify import verify

    found = verify(file)
    if json:
        document = {
            "origin": found.origin,
            "system": found.name,
            "tensors": found.tensors,
            "returned": found.returned,
            "not_finite": list(found.not_finite),
            "proof": found.reference and found.reference.proof,
            "differences": [
                {"output": d.output, "worst": d.worst, "scale": d.scale, "ok": d.ok}
                for d in found.differences
            ],
            "ok": found.ok,
        }
        print(json_text.dumps(document, indent=2))
        return 0 if found.ok else 4
    print(f"{file}: {found.name}" + (f" of {found.origin}" if found.origin else ""))
    if found.returned is not None:
        print(f"  weights    {found.returned} of {found.tensors} tensors return bit by bit")
    print(f"  numbers    {', '.join(found.not_finite) or 'all finite'}")
    stored = found.reference
    if stored is None:
        print("  reference  none: these weights were not converted from another project")
    else:
        print(f"  reference  {stored.name} of {stored.origin}, proven by {stored.proof}")
    for d in found.differences:
        share = d.worst / d.scale
        print(f"  {'ok' if d.ok else 'WRONG':9}  {d.output}: differs by {share:.1e} of the largest")
    print(f"{'ok' if found.ok else 'NOT OK'} (allowed is {TOLERANCE:g})")
    return 0 if found.ok else 4
