"""A stock python-socketio client, driven by another process: one JSON object a line in, one a line out.

In:  {"id", "do": "connect", "url", "auth", "transports", "namespace"}, then {"id", "do": "emit", "event", "data"} and
     {"id", "do": "disconnect"}.
Out: {"event", "args"} for everything that the server says, in the order in which it came, connects and disconnects
     among them; {"answer": id, "data"} or {"answer": id, "error"} for what was asked.
"""

import asyncio
import json
import sys

import socketio

ANSWER_SECONDS = 3


def say(what):
    print(json.dumps(what), flush=True)


class Told(socketio.AsyncClientNamespace):
    """Writes down all that happens. No `await` before it is written: so it stays in order."""

    async def trigger_event(self, event, *args):
        args = [arg if isinstance(arg, (dict, list, str, int, float, bool)) or arg is None else repr(arg) for arg in args]
        say({"event": event, "args": args})


async def carry_out(client, ask):
    if ask["do"] == "connect":
        client.register_namespace(Told(ask["namespace"]))
        await client.connect(
            ask["url"], auth=ask["auth"], transports=ask["transports"], namespaces=[ask["namespace"]], wait_timeout=10
        )
        return client.transport()
    if ask["do"] == "disconnect":
        # What is queued while a post is under way (its answer may come by a poll before the post is done) this client never
        # sends, once it disconnects: its DISCONNECT would be lost. Over a WebSocket it is lost anyhow, and after a lost one
        # the queue has for ever something that was not done.
        if client.transport() == "polling":
            await asyncio.wait_for(client.eio.queue.join(), ANSWER_SECONDS)
        return await client.disconnect()
    return await client.call(ask["event"], ask["data"], namespace=ask["namespace"], timeout=ANSWER_SECONDS)


async def answer(client, ask):
    try:
        say({"answer": ask["id"], "data": await carry_out(client, ask)})
    except Exception as error:  # Whatever it is, it is the test's to judge.
        say({"answer": ask["id"], "error": f"{type(error).__name__}: {error}"})


async def main():
    client = socketio.AsyncClient(reconnection_delay=0.05, reconnection_delay_max=0.5, handle_sigint=False)
    lines = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    asked = set()
    while line := await lines.readline():
        task = asyncio.create_task(answer(client, json.loads(line)))
        asked.add(task)
        task.add_done_callback(asked.discard)
    await client.shutdown()


asyncio.run(main())
