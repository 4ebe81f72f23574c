"""The smallest agent: one session, one question. `python examples/agent.py /ip4/127.0.0.1/tcp/4001/p2p/12D3KooW...`"""

from __future__ import annotations

import sys

import trio

import meshnode.client


async def main(*bootstrap: str) -> None:
    async with meshnode.client.connect(bootstrap) as mesh, mesh.session({"agent": {"max_tokens": 64}}) as session:
        for notice in session.notices:
            print(notice, file=sys.stderr)
        async for token in session.say("Why is the sky blue?"):
            print(token, end="", flush=True)
        print()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
