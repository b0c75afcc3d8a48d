"""Serves a trained model over HTTP with Ray Serve: log probabilities, the words that come next, sampled text.

pip install 'raylm[serve]'
python jobs/serve.py runs/quick --port 8000             a run, a checkpoint or exported weights
curl localhost:8000/score -d '{"text": "the company said"}'
curl localhost:8000/next -d '{"session": "me", "text": "the company", "most": 3}'
curl -N localhost:8000/generate -d '{"prompt": "the company said", "words": 20, "seed": 1}'

`next` goes on where its session stopped: the carry of the last `SESSIONS` sessions is kept, in the one replica that
there is. A request that asks for something else is refused with status 400 and a line that says why.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", TF_USE_LEGACY_KERAS="1")

import numpy as np
import ray
from pydantic import Field, ValidationError

from raylm.cli.main import guarded, leave
from raylm.cli.trained import load
from raylm.config import Section
from raylm.errors import UserError

SESSIONS = 1000
LONGEST = 20_000
"""Characters of a text."""


class Score(Section):
    text: str = Field(min_length=1, max_length=LONGEST)


class Next(Section):
    session: str | None = Field(None, max_length=200)
    text: str = Field(min_length=1, max_length=LONGEST)
    most: int = Field(10, ge=1, le=1000)


class Generate(Section):
    prompt: str = Field("", max_length=LONGEST)
    words: int = Field(50, ge=1, le=2000)
    temperature: float = Field(1.0, ge=0.0)
    top_k: int | None = Field(None, ge=1)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    seed: int = Field(0, ge=0)


_ASKED: dict[str, type[Section]] = {"/score": Score, "/next": Next, "/generate": Generate}


class Service:
    """A model and what is asked of it, without HTTP. Requests that do not fit raise UserError."""

    def __init__(self, path: str) -> None:
        """Raises: UserError: there is no model that can be read."""
        import tensorflow as tf  # here: only the replica needs it

        from raylm.training.generate import Generator
        from raylm.training.inference import make_model
        from raylm.training.likelihood import Likelihood

        self._trained = load(path, False, "serve")
        self._model = make_model(self._trained)
        self._likelihood, self._generator = Likelihood(self._model), Generator(self._model)
        self._step = tf.function(self._model.next_logits, autograph=False)
        self._alone = self._trained.config.data.mode == "sentences"
        self._before = [] if self._alone else [self._trained.vocabulary.end_of_sentence]
        self._sessions: OrderedDict[str, Any] = OrderedDict()

    def answer(self, path: str, body: bytes) -> dict[str, Any] | Iterator[bytes]:
        """What a request is answered with: a document, or text as it is sampled."""
        asked = _ASKED.get(path)
        if asked is None:
            raise UserError(f"there is no {path}; there are /score, /next and /generate")
        try:
            request = asked.model_validate_json(body)
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"{'.'.join(map(str, first['loc'])) or 'the request'}: {first['msg']}") from None
        if isinstance(request, Score):
            return self.score(request)
        if isinstance(request, Next):
            return self.next(request)
        assert isinstance(request, Generate)
        return self.generate(request)

    def score(self, request: Score) -> dict[str, Any]:
        """The log probability of each token, in nats; null for the first of a sentence, which is given."""
        ids = self._ids(request.text)
        if self._alone and len(ids) < 2:
            raise UserError("the first word of a sentence is given: the text has no other")
        read = np.array([*self._before, *ids], np.int32)
        logs = np.concatenate(list(self._likelihood.log_probabilities([read])))
        words = [self._trained.vocabulary.words[token] for token in ids]
        perplexity = math.exp(min(700.0, -float(logs.mean(dtype=np.float64))))
        shown = [None] * self._alone + logs.tolist()
        return {"tokens": words, "log_probabilities": shown, "perplexity": perplexity}

    def next(self, request: Next) -> dict[str, Any]:
        """The likeliest next words after a text, which goes on from its session's."""
        carry = self._sessions.pop(request.session, None) if request.session else None
        ids = self._ids(request.text)
        if carry is None:
            ids, carry = [*self._before, *ids], self._model.zero_carry(1)
        for token in ids:
            logits, carry = self._step(np.array([token], np.int32), carry)
        if request.session:
            self._sessions[request.session] = carry
            if len(self._sessions) > SESSIONS:
                self._sessions.popitem(last=False)
        values = logits[0].numpy().astype(np.float64)
        logs = values - values.max() - math.log(np.exp(values - values.max()).sum())
        likeliest = np.argsort(-logs, kind="stable")[: request.most]
        words = self._trained.vocabulary.words
        return {"next": [{"word": words[each], "log_probability": float(logs[each])} for each in likeliest]}

    def generate(self, request: Generate) -> Iterator[bytes]:
        """The text after a prompt, word by word."""
        from raylm.training.generate import Sampling, shown  # here: as above

        vocabulary, tokenizer = self._trained.vocabulary, self._trained.tokenizer
        ids = self._ids(request.prompt) if request.prompt.strip() else []
        never = () if vocabulary.unknown is None else (vocabulary.unknown,)
        sampling = Sampling(request.temperature, request.top_k, request.top_p, never)
        random = np.random.Generator(np.random.Philox(key=request.seed))
        context = [*self._before, *ids] or [vocabulary.end_of_sentence]
        last = vocabulary.end_of_sentence if self._alone else None
        drawn = islice(self._generator.ids(context, sampling, random, last), request.words)
        return shown(drawn, vocabulary, tokenizer, begins_line=not ids)

    def _ids(self, text: str) -> Sequence[int]:
        from raylm.training.generate import read_prompt  # here: as above

        ids, _ = read_prompt(text, self._trained.vocabulary, self._trained.tokenizer)
        if not ids:
            raise UserError("the text has no words")
        return ids


def main(arguments: Sequence[str], program: str) -> int:
    """Serves until Ctrl-C. Raises: UserError: there is no such model, or Ray Serve is not installed."""
    parser = argparse.ArgumentParser(program, description="Serve a trained model over HTTP with Ray Serve.")
    parser.add_argument("model", metavar="MODEL", help="a run, one checkpoint or exported weights")
    parser.add_argument("--host", default="127.0.0.1", help="default %(default)s: this machine alone")
    parser.add_argument("--port", type=int, default=8000, help="default %(default)s")
    options = parser.parse_args(arguments)
    load(options.model, False, program)  # its mistakes are told here, in one line
    try:
        from ray import serve
    except ImportError:
        raise UserError("Ray Serve is not installed: pip install 'raylm[serve]'") from None
    ray.init(address=os.environ.get("RAY_ADDRESS", "local"))
    serve.start(http_options={"host": options.host, "port": options.port})
    place = options.model if "://" in options.model else os.path.abspath(os.path.expanduser(options.model))
    serve.run(application(place), name="raylm", route_prefix="/")
    print(f"{program}: http://{options.host}:{options.port}/score, /next and /generate; Ctrl-C ends it", flush=True)
    try:
        signal.pause()
    except KeyboardInterrupt:
        serve.shutdown()
    return 0


def application(path: str) -> Any:
    """The Ray Serve application of a model; one replica, which keeps the sessions."""
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse

    class Http:
        """One request at a time: the model's answers take the processor, not the network."""

        def __init__(self, path: str) -> None:
            self._service = Service(path)

        async def __call__(self, request: Request) -> Response:
            try:
                found = self._service.answer(request.url.path, await request.body())
            except UserError as mistake:
                return JSONResponse({"error": str(mistake)}, status_code=400)
            if isinstance(found, dict):
                return JSONResponse(found)
            return StreamingResponse(found, media_type="text/plain; charset=utf-8")

    return serve.deployment(num_replicas=1)(Http).bind(path)


if __name__ == "__main__":
    leave(guarded(main, sys.argv[1:], "python jobs/serve.py"))
