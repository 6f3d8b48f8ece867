"""A language model behind an OpenAI-compatible endpoint: settings, one request, what went wrong.

Whatever a server does becomes one of four things: completions, a refusal (ask more slowly), trouble
(ask again), or the end of the run. The key is read from the environment and appears nowhere else.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import email.utils
import json
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import openai

from kard_jax.core.files import InputError

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_BYTES_A_TOKEN = 4  # of English, by rule of thumb, where a server does not count
_SHOWN = 300  # characters of what a server says
# Codes of a 400 that are about one question's text, not about how all are asked.
_ABOUT_ONE = {"content_filter", "content_policy_violation", "context_length_exceeded"}


class Completion(NamedTuple):
  """A text that a model wrote.

  Attributes:
    text: may be empty.
    finish: why it ended: "stop", "length" (cut), "content_filter", or what else the server says.
  """

  text: str
  finish: str


class Answer(NamedTuple):
  """What one request brought.

  Attributes:
    completions: one or more.
    prompt_tokens, completion_tokens: what was used, of all completions together.
  """

  completions: list[Completion]
  prompt_tokens: int
  completion_tokens: int


class RefusedError(Exception):
  """The server wants fewer requests; `wait` is the seconds it names, if it does."""

  def __init__(self, reason: str, wait: float | None):
    super().__init__(reason)
    self.wait = wait


class TroubleError(RefusedError):
  """No usable answer, but there may be one next time."""


class RejectedError(Exception):
  """The server does not answer this prompt, now or later."""


@dataclasses.dataclass(frozen=True)
class Endpoint:
  """A model and how it is asked.

  Attributes:
    model: its name there.
    base_url: of the API, such as "http://localhost:8000/v1" for a server of one's own.
    key_variable: the environment variable that holds the key; None where none is needed.
    options: further fields of each request, such as temperature, max_tokens, or what one server
      alone knows.
    concurrency: requests that are open at a time.
    timeout: seconds until an answer must be there, whole.
    attempts: how often a request is made that meets trouble; refusals do not count.
    patience: seconds without any answer after which the run stops; the longest wait too.
    at_once: whether all completions of a prompt are asked for in one request (`n`), which is billed
      for the prompt once; not every server can.
    prices: dollars a million tokens, read and written; None: unknown.
    max_tokens, max_cost: tokens and dollars at which nothing more is asked, all runs together.
  """

  model: str
  base_url: str = "https://api.openai.com/v1"
  key_variable: str | None = "OPENAI_API_KEY"
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  concurrency: int = 32
  timeout: float | int = 120.0
  attempts: int = 8
  patience: float | int = 600.0
  at_once: bool = False
  prices: tuple[float | int, float | int] | None = None
  max_tokens: int | None = None
  max_cost: float | int | None = None

  def __post_init__(self) -> None:
    if self.key_variable is not None and not _VARIABLE.fullmatch(self.key_variable):
      raise InputError(  # it may be the key itself: it is not shown
        "KEY_VARIABLE: the NAME of an environment variable in upper case is needed, never the key"
      )
    if not re.match(r"https?://[^/@]+(/|$)", self.base_url):
      raise InputError(
        "BASE_URL: an address such as 'http://localhost:8000/v1' is needed, without user or key"
      )
    if not 1 <= self.concurrency <= 1000:
      raise InputError(f"CONCURRENCY = {self.concurrency}: from 1 to 1000")
    for name in ("timeout", "attempts", "patience"):
      if getattr(self, name) <= 0:
        raise InputError(f"endpoint.Endpoint.{name} = {getattr(self, name)}: give more than 0")
    if taken := {"model", "messages", "n", "stream"} & set(self.options):
      raise InputError(f"REQUEST: {sorted(taken)[0]!r} is set by other means; leave it out")
    if self.max_cost is not None and self.prices is None:
      raise InputError("MAX_COST needs PRICES, dollars a million tokens: (read, written)")

  @property
  def identity(self) -> dict[str, Any]:
    """What decides the texts that come, besides the prompts."""
    return {"model": self.model, "request": dict(self.options)}

  def key(self) -> str:
    """The key, from the environment.

    Raises:
      InputError: the variable is not set, or holds what cannot be a key.
    """
    if self.key_variable is None:
      return "none"
    key = os.environ.get(self.key_variable, "").strip()
    if not key:
      raise InputError(
        f"the environment variable {self.key_variable} is not set; it should hold the key of "
        f"{self.base_url} (KEY_VARIABLE = None where none is needed)"
      )
    if not key.isascii() or not key.isprintable() or " " in key:
      raise InputError(f"what {self.key_variable} holds is no key: it has spaces or odd characters")
    return key

  def cost(self, prompt_tokens: float | int, completion_tokens: float | int) -> float | None:
    """Dollars for so many tokens; None where prices are unknown."""
    if self.prices is None:
      return None
    read, written = self.prices
    return (prompt_tokens * read + completion_tokens * written) / 1e6


class Client:
  """An open connection to an endpoint, for one event loop.

  Args:
    endpoint: to be asked.
  """

  def __init__(self, endpoint: Endpoint):
    self._endpoint = endpoint
    self._key = endpoint.key()
    self.api = openai.AsyncOpenAI(
      api_key=self._key,
      base_url=endpoint.base_url,
      timeout=endpoint.timeout,
      max_retries=0,  # its own would not share what one request learns with the others
    )

  async def __aenter__(self) -> Client:
    return self

  async def __aexit__(self, *_: object) -> None:
    await self.api.close()

  async def complete(self, prompt: str, n: int) -> Answer:
    """Asks once.

    Args:
      prompt: the text of the one message.
      n: completions wanted.

    Returns:
      from 1 to n completions.

    Raises:
      RefusedError: too many requests.
      TroubleError: a server's error, a cut connection, none in time, or one that makes no sense.
      RejectedError: the server will not answer this prompt.
      InputError: no request like this will be answered: a wrong key, model, address or option.
    """
    extra: dict[str, Any] = dict(self._endpoint.options) | ({"n": n} if n > 1 else {})
    try:
      async with asyncio.timeout(self._endpoint.timeout):  # the client's own is for each read
        response = await self.api.chat.completions.with_raw_response.create(
          model=self._endpoint.model,
          messages=[{"role": "user", "content": prompt}],
          extra_body=extra,
        )
        content = response.http_response.content
    except openai.APIStatusError as error:
      raise self._refusal(error) from None
    except (openai.APITimeoutError, TimeoutError):
      raise TroubleError(f"no answer within {self._endpoint.timeout:g} s", None) from None
    except openai.APIConnectionError as error:
      cause = error.__cause__
      raise TroubleError(
        f"the connection failed ({type(cause).__name__}: {self.clean(str(cause))})", None
      ) from None
    return _parse(content, prompt, n)

  def clean(self, text: str) -> str:
    """What a server said, on one line, without the key should it repeat it."""
    if self._endpoint.key_variable is not None:
      text = text.replace(self._key, "[key]")
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."

  def _refusal(self, error: openai.APIStatusError) -> Exception:
    status, said = error.status_code, self.clean(_message(error))
    wait = retry_after(error.response.headers)
    if status == 429 and error.code == "insufficient_quota":
      return InputError(f"{self._endpoint.base_url}: the account has no credit left (429: {said})")
    if status in (429, 503, 529):
      return RefusedError(f"{status}: {said}", wait)
    if status >= 500 or status in (408, 409, 425):
      return TroubleError(f"{status}: {said}", wait)
    if status in (401, 403):
      hold = self._endpoint.key_variable or "no key: set KEY_VARIABLE"
      return InputError(f"{self._endpoint.base_url} refuses the key ({hold}; {status}: {said})")
    if status == 400 and error.code in _ABOUT_ONE:
      return RejectedError(f"{error.code}: {said}")
    return InputError(
      f"{self._endpoint.base_url} does not take requests to {self._endpoint.model!r} (BASE_URL, "
      f"MODEL, REQUEST; {status}: {said})"
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
  """Seconds that a server asks to wait: `Retry-After` as seconds or date, or OpenAI's in ms."""
  if (given := headers.get("retry-after-ms")) is not None:
    try:
      return max(0.0, float(given) / 1000)
    except ValueError:
      pass
  given = headers.get("retry-after")
  if given is None:
    return None
  try:
    return max(0.0, float(given))
  except ValueError:
    pass
  try:
    until = email.utils.parsedate_to_datetime(given)
  except ValueError:
    return None
  if until.tzinfo is None:
    until = until.replace(tzinfo=datetime.UTC)
  return max(0.0, (until - datetime.datetime.now(datetime.UTC)).total_seconds())


def tokens_of(text: str) -> int:
  """About how many tokens a text has, by its bytes."""
  return -(-len(text.encode()) // _BYTES_A_TOKEN)


def _message(error: openai.APIStatusError) -> str:
  body = error.body
  if isinstance(body, Mapping) and isinstance(body.get("message"), str):
    return body["message"]
  return error.message


def _parse(content: bytes, prompt: str, n: int) -> Answer:
  try:
    body = json.loads(content)
    completions = read_choices(body)
  except (ValueError, RecursionError) as error:
    raise TroubleError(f"an answer that makes no sense ({error})", None) from None
  prompt_tokens, completion_tokens = usage(body, prompt, completions)
  return Answer(completions[:n], prompt_tokens, completion_tokens)


def read_choices(body: Any) -> list[Completion]:
  """The completions in the body of an answer.

  Raises:
    ValueError: there are none, or it is no such body.
  """
  choices = body.get("choices") if isinstance(body, dict) else None
  if not isinstance(choices, list) or not choices:
    raise ValueError("no choices")
  completions = []
  for choice in choices:
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
      raise ValueError("a choice without a message")
    text = message.get("content")
    if not isinstance(text, str | None):
      raise ValueError("a message that is no text")
    # A lone surrogate, which JSON can hold, would be in no file.
    text = (text or "").encode(errors="replace").decode()
    completions.append(Completion(text, str(choice.get("finish_reason") or "stop")))
  return completions


def usage(body: Mapping[str, Any], prompt: str, completions: list[Completion]) -> tuple[int, int]:
  """Tokens read and written, as the server counts them; estimated where it does not."""
  given = body.get("usage")
  given = given if isinstance(given, dict) else {}
  counts = [given.get("prompt_tokens"), given.get("completion_tokens")]
  guesses = [tokens_of(prompt), sum(tokens_of(completion.text) for completion in completions)]
  read, written = (
    count if isinstance(count, int) and count >= 0 else guess
    for count, guess in zip(counts, guesses, strict=True)
  )
  return read, written
