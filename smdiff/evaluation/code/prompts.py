"""What a model is given for a task. A style's text is fixed by its version: another text is another version."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from smdiff.data.prompts import Prompt, chat, continuation
from smdiff.errors import UserError

# The paper's format (arXiv 2510.17206, appendix on code), that of lm-evaluation-harness's humaneval_instruct.
_USER = "Write a solution to the following problem and make sure that it passes the tests:\n```python\n{prompt}\n```"
_ASSISTANT = "Here is the completed function:\n\n```python\n{prompt}\n"


def choose_style(wanted: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The style's name without its version.

    Raises:
        UserError: "instruct" without a chat template.
    """
    template = bool(getattr(tokenizer, "chat_template", None))
    if wanted == "instruct" and not template:
        why, fix = "the model's tokenizer has no chat template", "Use --style completion, which is for base models."
        raise UserError("--style instruct", why, fix)
    return wanted if wanted != "auto" else "instruct" if template else "completion"


def describe(style: str) -> dict[str, str]:
    """Name with version, and the text, as a result records it."""
    texts = {"user": _USER, "assistant": _ASSISTANT} if style == "instruct" else {"text": "{prompt}"}
    return {"style": f"{style}-v1", **texts}


def build(style: str, text: str, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    """The tokens before the answer. `text`, the task's prompt, has no white space at its end."""
    if style == "completion":
        return continuation(tokenizer, text)
    turn = chat(tokenizer, [{"role": "user", "content": _USER.format(prompt=text)}])
    begun = tokenizer(_ASSISTANT.format(prompt=text), add_special_tokens=False)["input_ids"]
    return Prompt(text, turn.ids + begun, "chat")
