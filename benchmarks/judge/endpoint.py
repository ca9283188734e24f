"""An OpenAI-compatible endpoint: one reply to one conversation."""

import time
from dataclasses import dataclass, field
from typing import Any, Final

import httpx2

from distillzoo.benchmarks.judge.verdict import Messages
from distillzoo.core.errors import UserError

TIMEOUT: Final = 120.0
"""Seconds for a reply."""

TRIES: Final = 6
"""How often a request is sent that the endpoint is too busy for, or that gets lost."""

LONGEST_WAIT: Final = 60.0
"""Seconds between two tries; they begin with one and double, unless the endpoint says how long."""


@dataclass(frozen=True)
class Endpoint:
    """A model behind ``POST URL/chat/completions``, asked at temperature 0.

    Attributes:
        url: the API's base, as in https://api.openai.com/v1.
        model: as the endpoint names it.
        key: sent as a bearer token; it appears in no message. None for an endpoint that asks for none.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        try:
            address = httpx2.URL(self.url)
        except httpx2.InvalidURL as error:
            raise UserError(f"--endpoint: no URL ({error}).") from None
        if address.scheme not in {"http", "https"} or not address.host:
            raise UserError("--endpoint should be the base of an API, for example https://api.openai.com/v1.")
        if self.key is not None and not (self.key.isascii() and self.key.isprintable()):
            raise UserError("The API key holds characters that cannot be sent, perhaps the end of a line.")

    def client(self) -> httpx2.Client:
        """A client for many calls of ``ask``, from several threads."""
        headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        return httpx2.Client(timeout=TIMEOUT, headers=headers)

    def ask(self, client: httpx2.Client, messages: Messages) -> str:
        """The reply to a conversation.

        Raises:
            UserError: the endpoint refuses, answers with something else, or cannot be reached after several tries.
        """
        body = {"model": self.model, "messages": messages, "temperature": 0}
        problem = ""
        for attempt in range(TRIES):
            wait = 2.0**attempt
            try:
                response = client.post(f"{self.url.rstrip('/')}/chat/completions", json=body)
            except httpx2.TransportError as error:
                problem = self._plain(f"{type(error).__name__}: {error}")
            else:
                if response.status_code == httpx2.codes.OK:
                    return self._reply(response)
                problem = self._plain(f"HTTP {response.status_code}: {response.text}")
                if response.status_code not in {408, 429} and response.status_code < 500:
                    raise UserError(f"The endpoint at {self._host} refuses to judge. {problem}")
                wait = _asked_wait(response) or wait
            if attempt + 1 < TRIES:
                time.sleep(min(wait, LONGEST_WAIT))
        raise UserError(
            f"The endpoint at {self._host} gave no reply in {TRIES} tries, at last: {problem}. What was judged before "
            f"is kept: the same command goes on from there."
        )

    def _reply(self, response: httpx2.Response) -> str:
        try:
            content: Any = response.json()["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            raise UserError(
                f"The endpoint at {self._host} sent no chat completion: {self._plain(response.text)}"
            ) from None
        return content if isinstance(content, str) else ""  # a refusal has no content

    @property
    def _host(self) -> str:
        return httpx2.URL(self.url).host

    def _plain(self, text: str) -> str:
        """A few words of what came back, without the key, which some endpoints repeat."""
        shown = " ".join(text.split())
        return (shown if self.key is None else shown.replace(self.key, "***"))[:300]


def _asked_wait(response: httpx2.Response) -> float | None:
    """Seconds that the endpoint asks to wait; None where it doesn't, or gives a date."""
    try:
        return max(0.0, float(response.headers["retry-after"]))
    except (KeyError, ValueError):
        return None
