"""A server that answers as a chat completions API does, has a limit, and misbehaves as asked.

As a script it prints its address and serves until it is killed; `start` runs it so. `GET /stats`
tells what it saw. What was asked and answered is known by the prompts and by a number in each text.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import pathlib
import random
import re
import subprocess
import sys
import time
import urllib.request
from email.utils import formatdate

KEY = "sk-local-0123456789abcdef"
FAULTS = (
  "error",
  "cut",
  "cut_body",
  "slow",
  "late",
  "malformed",
  "empty",
  "nonsense",
  "busy_error",
)


class Server:
  """Attributes as the flags of `main`."""

  def __init__(self, flags):
    self.flags = flags
    self.draws = random.Random(flags.seed)
    self.room = self.burst = max(1.0, flags.rate * flags.burst)
    self.filled = time.monotonic()
    self.open = 0
    self.seen = collections.Counter()
    self.answers = collections.defaultdict(list)  # prompt -> the texts that were sent whole
    self.times = []  # of requests within the limit
    self.serial = 0
    self.batches = Batches()

  def within_limit(self):
    if self.draws.random() < self.flags.moody_share:
      return False
    if self.flags.most_open and self.open > self.flags.most_open:
      return False
    if not self.flags.rate:
      return True
    now = time.monotonic()
    self.room = min(self.burst, self.room + (now - self.filled) * self.flags.rate)
    self.filled = now
    if self.room < 1:
      return False
    self.room -= 1
    return True

  async def serve(self, reader, writer):
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
      while head := await self.head(reader):
        method, path, headers = head
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if path == "/stats":
          await self.send(writer, 200, self.stats())
          continue
        if path.startswith(("/v1/files", "/v1/batches")):
          await self.send(writer, 200, self.batches.respond(method, path.split("?")[0], body))
          continue
        self.open += 1
        try:
          if not await self.respond(writer, headers, json.loads(body)):
            break
        finally:
          self.open -= 1
    writer.close()

  async def head(self, reader):
    line = await reader.readline()
    if not line:
      return None
    method, path, _ = line.decode().split()
    headers = {}
    while line := (await reader.readline()).decode().strip():
      name, _, value = line.partition(":")
      headers[name.lower()] = value.strip()
    return method, path, headers

  async def respond(self, writer, headers, body):
    """Answers or misbehaves; returns whether the connection goes on."""
    given = headers.get("authorization", "")
    if given != f"Bearer {KEY}":
      self.seen["wrong key"] += 1
      said = f"Incorrect API key provided: {given.removeprefix('Bearer ')}"
      await self.error(writer, 401, said, "invalid_api_key")
      return True
    if self.flags.status:
      self.seen["refused for good"] += 1
      await self.error(writer, self.flags.status, f"no {given}", self.flags.code)
      return True
    if not self.within_limit():
      self.seen["limit"] += 1
      extra = {}
      if self.draws.random() < self.flags.told:
        seconds = self.flags.wait
        dated = self.draws.random() < 0.5
        extra = {
          "Retry-After": formatdate(time.time() + seconds + 1, usegmt=True) if dated else seconds
        }
      await self.error(writer, 429, "Rate limit reached", "rate_limit_exceeded", extra)
      return True
    self.times.append(time.monotonic())
    fault = self.fault()
    self.seen[fault] += 1
    latency = self.flags.latency * self.draws.uniform(0.5, 1.5)
    if fault == "slow":
      latency = self.flags.slow
    elif fault == "late":
      latency = self.flags.late
    await asyncio.sleep(latency)
    return await self.behave(writer, fault, body)

  def fault(self):
    draw = self.draws.random()
    for name in FAULTS:
      draw -= getattr(self.flags, f"{name}_share")
      if draw < 0:
        return name
    return "answer"

  async def behave(self, writer, fault, body):
    if fault == "error":
      await self.error(writer, 500, "The server had an error", "server_error")
    elif fault == "busy_error":
      await self.error(writer, 503, "Overloaded", None, {"Retry-After": "0.2"})
    elif fault == "malformed":
      await self.send(writer, 200, b'{"choices": [{"mess')
    elif fault == "nonsense":
      await self.send(writer, 200, self.draws.choice([b"<html></html>", b"[]", b'"x"', b""]))
    elif fault == "empty":
      await self.send(writer, 200, json.dumps({"choices": [], "usage": {}}).encode())
    elif fault == "cut":
      return False
    else:
      prompt = body["messages"][0]["content"]
      n = min(body.get("n", 1), self.flags.most_choices)
      texts = []
      for _ in range(n):
        self.serial += 1
        texts.append(f"It follows from fact {self.serial}.\nAnswer: {'AB'[self.serial % 3 > 1]}")
      choices = [
        {"index": i, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        for i, text in enumerate(texts)
      ]
      usage = {"prompt_tokens": len(prompt) // 4, "completion_tokens": 10 * n}
      content = json.dumps({"choices": choices, "usage": usage}).encode()
      if fault == "cut_body":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content))
        writer.write(content[: len(content) // 2])
        await writer.drain()
        return False
      if fault != "late":  # nobody waits for it any more
        self.answers[prompt] += texts
      await self.send(writer, 200, content)
    return True

  async def error(self, writer, status, message, code, extra=None):
    content = json.dumps({"error": {"message": message, "code": code, "type": "x"}}).encode()
    await self.send(writer, status, content, extra)

  async def send(self, writer, status, content, extra=None):
    lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in (extra or {}).items()]
    lines += [f"Content-Length: {len(content)}", "", ""]
    writer.write("\r\n".join(lines).encode() + content)
    await writer.drain()

  def stats(self):
    seconds = self.times[-1] - self.times[0] if len(self.times) > 1 else 0.0
    return json.dumps(
      {
        "seen": self.seen,
        "answers": self.answers,
        "within_limit": len(self.times),
        "seconds": seconds,
        "times": self.times,
        "batches": len(self.batches.known),
      }
    ).encode()


class Batches:
  """The Batch API: a batch is done when it is looked at the second time.

  A request whose prompt says "broken" gets an error, one that says "expired" too, the first time.
  """

  def __init__(self):
    self.files = {}
    self.known = {}
    self.expired = set()

  def respond(self, method, path, body):
    parts = path.removeprefix("/v1/").split("/")
    if parts[-1] == "content":
      return self.files[parts[1]]
    if parts[0] == "files":
      return self.dump(self.file(re.search(rb'(\{"custom_id.*?\n)\r\n--', body, re.DOTALL)[1]))
    if method == "POST":
      asked = json.loads(body)
      batch = {
        "id": f"batch_{len(self.known)}",
        "object": "batch",
        "endpoint": asked["endpoint"],
        "completion_window": "24h",
        "created_at": 0,
        "input_file_id": asked["input_file_id"],
        "metadata": asked["metadata"],
        "status": "validating",
      }
      self.known[batch["id"]] = batch
    elif len(parts) == 1:
      return json.dumps(
        {"object": "list", "has_more": False, "data": [*self.known.values()][::-1]}
      ).encode()
    else:
      batch = self.known[parts[1]]
      self.advance(batch)
    return json.dumps(batch).encode()

  def dump(self, id):
    found = {"id": id, "object": "file", "bytes": 1, "created_at": 0, "filename": "x"}
    return json.dumps(found | {"purpose": "batch", "status": "processed"}).encode()

  def file(self, content):
    id = f"file-{len(self.files)}"
    self.files[id] = content
    return id

  def advance(self, batch):
    if batch["status"] == "validating":
      batch["status"] = "in_progress"
      return
    if batch["status"] == "completed":
      return
    good, bad, late = [], [], set()
    for line in self.files[batch["input_file_id"]].splitlines():
      row = json.loads(line)
      prompt = row["body"]["messages"][0]["content"]
      out = {"id": "x", "custom_id": row["custom_id"], "response": None, "error": None}
      if "broken" in prompt:
        problem = {"error": {"message": "no such thing", "code": "bad"}}
        bad.append(out | {"response": {"status_code": 400, "body": problem}})
      elif "expired" in prompt and prompt not in self.expired:
        late.add(prompt)
        bad.append(out | {"error": {"code": "batch_expired", "message": "too late"}})
      else:
        choices = [
          {"finish_reason": "stop", "message": {"content": f"{row['custom_id']} {i} of {prompt}"}}
          for i in range(row["body"].get("n", 1))
        ]
        usage = {"prompt_tokens": 7, "completion_tokens": 3 * len(choices)}
        body = {"choices": choices, "usage": usage}
        good.append(out | {"response": {"status_code": 200, "body": body}})
    self.expired |= late
    random.Random(0).shuffle(good)
    batch["status"] = "completed"
    for name, rows in (("output_file_id", good), ("error_file_id", bad)):
      if rows:
        batch[name] = self.file("".join(json.dumps(row) + "\n" for row in rows).encode())


def main():
  flags = argparse.ArgumentParser(allow_abbrev=False)
  flags.add_argument("--rate", type=float, default=0, help="requests a second; 0: no limit")
  flags.add_argument(
    "--burst", type=float, default=0.1, help="seconds of the rate that are saved up"
  )
  flags.add_argument("--most_open", type=int, default=0)
  flags.add_argument("--most_choices", type=int, default=100)
  flags.add_argument("--moody_share", type=float, default=0, help="refused at any rate")
  flags.add_argument("--told", type=float, default=0.5, help="share of refusals with Retry-After")
  flags.add_argument("--wait", type=float, default=1)
  flags.add_argument("--latency", type=float, default=0.0)
  flags.add_argument("--slow", type=float, default=1.0)
  flags.add_argument("--late", type=float, default=5.0)
  flags.add_argument("--status", type=int, default=0, help="answers every request with this")
  flags.add_argument("--code", default=None)
  flags.add_argument("--seed", type=int, default=0)
  for name in FAULTS:
    flags.add_argument(f"--{name}_share", type=float, default=0)
  server = Server(flags.parse_args())

  async def run():
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1", flush=True)
    async with listening:
      await listening.serve_forever()

  asyncio.run(run())


class Running:
  """A server in a process of its own."""

  def __init__(self, process, url):
    self.process, self.url = process, url

  def stats(self):
    with urllib.request.urlopen(self.url.removesuffix("/v1") + "/stats") as response:
      return json.load(response)


@contextlib.contextmanager
def start(**flags):
  """Runs the server with the flags of `main`, such as `rate=100, error_share=0.1`."""
  command = [sys.executable, str(pathlib.Path(__file__).resolve())]
  command += [f"--{name}={value}" for name, value in flags.items()]
  process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  try:
    yield Running(process, process.stdout.readline().strip())
  finally:
    process.kill()
    process.wait()
    process.stdout.close()


if __name__ == "__main__":
  main()
