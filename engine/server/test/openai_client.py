#!/usr/bin/env python3
"""Tests `kvmark serve` with the official openai client. Usage: openai_client.py KVMARK MODEL_DIR

Exits with 77, which ctest counts as skipped, if the Python package openai is not installed.
"""
import re
import subprocess
import sys
import threading

try:
    import openai
except ImportError:
    print("skipped: the Python package `openai` is not installed (pip install openai)")
    sys.exit(77)

KEY = "sk-test"
NAME = "tiny"
checks = 0


def check(condition, what):
    global checks
    checks += 1
    if not condition:
        raise AssertionError(what)


def start(binary, model):
    args = [binary, "serve", "--model", model, "--port", "0", "--api-key", KEY, "--served-model-name", NAME,
            "--device", "cpu", "--num-gpu-blocks-override", "600", "--max-model-len", "2048"]
    server = subprocess.Popen(args, stderr=subprocess.PIPE, text=True)
    for line in server.stderr:
        found = re.search(r"listening on (http://\S+)", line)
        if found:
            threading.Thread(target=server.stderr.read, daemon=True).start()
            return server, found.group(1)
    raise RuntimeError("the server ended before it listened; run it by hand to see why: " + " ".join(args))


def error_of(kind, call):
    try:
        call()
    except kind as e:
        check(isinstance(e.body, dict) and set(e.body) >= {"message", "type", "param", "code"},
              f"four keys in {e.body}")
        return e
    raise AssertionError(f"no {kind.__name__}")


def models(c):
    check([m.id for m in c.models.list()] == [NAME], "models.list")
    check(c.models.retrieve(NAME).id == NAME, "models.retrieve")
    error_of(openai.NotFoundError, lambda: c.models.retrieve("other"))


def completions(c):
    ask = dict(model=NAME, prompt=" The secret number of Edmond is 402913. The secret number of Edmond is",
               max_tokens=12, temperature=0, stop=["."])
    whole = c.completions.create(**ask)
    check(whole.choices[0].text == " 402913" and whole.choices[0].finish_reason == "stop", f"recall: {whole}")
    check(whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens, "usage adds up")
    again = c.completions.create(**ask)
    check(again.usage.prompt_tokens_details.cached_tokens >= 16, "the usage counts cached tokens")
    chunks = list(c.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    check("".join(x.choices[0].text for x in chunks if x.choices) == whole.choices[0].text, "stream joined")
    check(chunks[-1].choices == [] and chunks[-1].usage == again.usage, "usage chunk")
    check(all(x.usage is None for x in chunks[:-1]), "no usage in events before the last")
    check(len(chunks) == whole.usage.completion_tokens + 1, "one chunk a token")
    plain = list(c.completions.create(**ask, stream=True))
    check(all(x.usage is None for x in plain), "no usage without include_usage")

    many = c.completions.create(model=NAME, prompt=["One", "Two"], n=2, max_tokens=4, seed=1, temperature=1)
    check([x.index for x in many.choices] == [0, 1, 2, 3], "two prompts, two choices each")
    ids = c.completions.create(model=NAME, prompt=[[1, 2, 3], [4]], max_tokens=2, extra_body={"return_token_ids": True})
    check(all(len(x.token_ids) == 2 for x in ids.choices), "token ids in and out")
    lp = c.completions.create(model=NAME, prompt="Once", max_tokens=5, logprobs=3, temperature=0,
                              extra_body={"ignore_eos": True}).choices[0].logprobs
    check(len(lp.tokens) == len(lp.token_logprobs) == len(lp.top_logprobs) == len(lp.text_offset) == 5, "logprobs")
    check(all(v <= 0 for v in lp.token_logprobs) and lp.text_offset[0] == 0, "values of logprobs")
    same = [c.completions.create(model=NAME, prompt="Once", max_tokens=20, temperature=1, seed=7).choices[0].text
            for _ in range(2)]
    check(same[0] == same[1], "the same seed gives the same text")


def chats(c):
    ask = dict(model=NAME, messages=[{"role": "system", "content": "Be brief."},
                                     {"role": "user", "content": [{"type": "text", "text": "Who is Edmond?"}]}],
               max_completion_tokens=16, temperature=0)
    whole = c.chat.completions.create(**ask)
    check(whole.object == "chat.completion" and whole.choices[0].message.role == "assistant", "chat")
    chunks = list(c.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    check(chunks[0].choices[0].delta.role == "assistant", "role first")
    joined = "".join(x.choices[0].delta.content or "" for x in chunks if x.choices)
    check(joined == whole.choices[0].message.content, "chat stream joined")
    finishes = [x.choices[0].finish_reason for x in chunks if x.choices]
    check(finishes[-1] == whole.choices[0].finish_reason, "finish reason")
    check(chunks[-1].usage.completion_tokens == whole.usage.completion_tokens, "chat usage chunk")

    lp = c.chat.completions.create(**ask, logprobs=True, top_logprobs=2).choices[0].logprobs
    check(all(len(x.top_logprobs) == 2 and x.logprob <= 0 for x in lp.content), "chat logprobs")
    check(b"".join(bytes(x.bytes) for x in lp.content).decode(errors="replace").startswith(joined), "bytes of logprobs")
    with c.chat.completions.stream(**{**ask, "n": 2}) as s:
        try:
            final = s.get_final_completion()
        except openai.LengthFinishReasonError as e:  # raised by the client for finish_reason "length"
            final = e.completion
        check([x.message.content for x in final.choices] == [joined, joined], "the accumulated stream with n=2")
    off = c.chat.completions.create(**ask, extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    check(off.usage.prompt_tokens > whole.usage.prompt_tokens, "thinking off adds an empty think block to the prompt")


def errors(c, url):
    say = [{"role": "user", "content": "x"}]
    e = error_of(openai.NotFoundError, lambda: c.chat.completions.create(model="gpt-4", messages=say))
    check(e.code == "model_not_found", e.code)
    e = error_of(openai.BadRequestError, lambda: c.chat.completions.create(model=NAME, messages=say, temperature=3))
    check(e.param == "temperature", e.param)
    e = error_of(openai.BadRequestError, lambda: c.completions.create(model=NAME, prompt="x", max_tokens=5000))
    check(e.code == "context_length_exceeded", e.code)
    e = error_of(openai.BadRequestError,
                 lambda: c.chat.completions.create(model=NAME, messages=say, response_format={"type": "json_object"}))
    check(e.param == "response_format", e.param)
    e = error_of(openai.BadRequestError, lambda: c.completions.create(model=NAME, prompt=[5000]))
    check(e.param == "prompt", e.param)
    bad = openai.OpenAI(base_url=url + "/v1", api_key="sk-tes", max_retries=0)
    e = error_of(openai.AuthenticationError, lambda: bad.models.list())
    check(e.code == "invalid_api_key", e.code)


def disconnects(c):
    stream = c.completions.create(model=NAME, prompt="Once", max_tokens=1500, stream=True,
                                  extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    again = c.completions.create(model=NAME, prompt="Once", max_tokens=1)
    check(again.choices[0].text is not None, "the server answers after a client has disconnected")


def main():
    server, url = start(sys.argv[1], sys.argv[2])
    try:
        with openai.OpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0, timeout=60) as c:
            models(c)
            completions(c)
            chats(c)
            errors(c, url)
            disconnects(c)
    finally:
        server.terminate()
        code = server.wait(20)
    check(code == 0, f"exit status {code}")
    print(f"openai {openai.__version__}: {checks} checks passed")


main()
